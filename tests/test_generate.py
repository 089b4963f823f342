"""Sampling: the most likely codes equal those of full recomputation, samples follow the probabilities, invalid prompts are refused."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dilax
from dilax import models
from dilax.audio import mu_law_decode, mu_law_encode
from dilax.blocks import Dropout
from dilax.errors import UserError
from dilax.generate import continue_sequence, sample_codes, sample_waveform
from dilax.losses import logistic_mixture_loss

RNG = np.random.default_rng(0)
CONDITIONS = dict(
    local_condition=jnp.asarray(RNG.normal(size=(2, 12, 3)), jnp.float32),
    global_condition=jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32),
)
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "wavenet": (models.WaveNet(9, (1, 2, 4), features=5, skip_features=4), {}),
    "wavenet, conditioned": (models.WaveNet(9, (1, 2), features=5, skip_features=4, local_features=3, global_features=2), CONDITIONS),
    "waves": (models.WaveNet(dilations=(1, 2), features=4, skip_features=4, outputs="mixture", mixtures=2), {}),
    "bytenet": (models.ByteNet(9, 6, 3, (1, 2, 4)), {}),
    "bytenet, after a source": (
        models.ByteNet(9, 6, 2, (1, 2), source_vocabulary=5),
        {"condition": jnp.asarray(RNG.normal(size=(2, 12, 6)), jnp.float32)},
    ),
    "tcn": (models.TCN(9, 3, (6, 5), vocabulary=9, embedding_features=4), {}),
}


def prompt_of(name: str, count: int = 4) -> jax.Array:
    if name == "waves":
        return jnp.asarray(RNG.uniform(-0.5, 0.5, (2, count, 1)), jnp.float32)
    return jnp.asarray(RNG.integers(0, 9, (2, count)), jnp.int32)


def variables_of(name: str) -> Any:
    model, conditions = MODELS[name]
    whole = prompt_of(name, 12)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), whole, train=False, **conditions))
    return jax.tree.map(lambda a: jnp.asarray(RNG.normal(0, 1.2, a.shape), a.dtype), shapes)


@pytest.mark.parametrize("name", MODELS)
def test_the_most_likely_samples_equal_full_recomputation(name):
    (model, conditions), variables, prompt = MODELS[name], variables_of(name), prompt_of(name)
    run = jax.jit(lambda v, prompt: dilax.sample(model, v, jax.random.key(1), prompt, 8, temperature=0, conditions=conditions))
    actual = run(variables, prompt)
    # The whole sequence is recomputed for every sample; samples that are not known yet are noise.
    whole = jax.jit(lambda v, x: model.apply(v, x, train=False, **conditions))
    slow = prompt_of(name, 12).at[:, :4].set(prompt)
    for at in range(4, 12):
        outputs = whole(variables, slow)[:, at - 1]
        new = sample_waveform(jax.random.key(0), outputs, temperature=0) if name == "waves" else outputs.argmax(-1).astype(jnp.int32)
        slow = slow.at[:, at].set(new)
    if name == "waves":
        np.testing.assert_allclose(actual, slow[:, 4:], atol=1e-4)
    else:
        np.testing.assert_array_equal(actual, slow[:, 4:])


def test_continuing_a_stream_equals_sampling_at_once():
    """In two parts, each with its own conditions, the samples are those that `sample` draws at once."""
    name = "wavenet, conditioned"
    (model, conditions), variables, prompt = MODELS[name], variables_of(name), prompt_of(name)
    local, fixed = conditions["local_condition"], {"global_condition": conditions["global_condition"]}
    state = model.apply(variables, 2, method="init_stream")
    outputs, state = model.apply(variables, prompt, state, method="stream", local_condition=local[:, :4], **fixed)
    outputs, parts = outputs[:, -1], []
    for start, steps in ((4, 5), (9, 3)):
        now = {"local_condition": local[:, start : start + steps], **fixed}
        run = jax.jit(functools.partial(continue_sequence, model, steps=steps, temperature=0))
        new, outputs, state = run(variables, jax.random.key(1), outputs, state, conditions=now)
        parts.append(new)
    whole = dilax.sample(model, variables, jax.random.key(1), prompt, 8, temperature=0, conditions=conditions)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    with pytest.raises(UserError, match=r"^continue_sequence: steps=0 is below 1; use 1 or more\."):
        continue_sequence(model, variables, jax.random.key(1), outputs, state, 0)
    with pytest.raises(
        UserError, match=r"^continue_sequence: local_condition has 3 samples along time, but steps=5; give one for each step\."
    ):
        continue_sequence(model, variables, jax.random.key(1), outputs, state, 5, conditions={"local_condition": local[:, :3], **fixed})


def test_more_logits_than_codes_are_refused():
    model, prompt = models.TCN(12, kernel_size=3, features=(4,), vocabulary=8, embedding_features=4), jnp.ones((1, 5), jnp.int32)
    variables = model.init(jax.random.key(0), prompt, train=False)
    with pytest.raises(UserError, match=r"^continue_sequence: the model has logits for 12 codes, but accepts only 8 as its input; use"):
        dilax.sample(model, variables, jax.random.key(1), prompt, 3)


def shares(logits: list[float], **options: Any) -> np.ndarray:
    rows = jnp.broadcast_to(jnp.array(logits, jnp.float32), (20000, len(logits)))
    codes = sample_codes(jax.random.key(0), rows, **options)
    return np.bincount(codes, minlength=len(logits)) / 20000


def test_samples_follow_the_probabilities():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(p).tolist()
    np.testing.assert_allclose(shares(logits), p, atol=0.015)
    np.testing.assert_allclose(shares(logits, temperature=0.5), p**2 / (p**2).sum(), atol=0.015)
    np.testing.assert_allclose(shares(logits, top_k=2), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(shares(logits, top_p=0.6), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(shares(logits, top_p=0.5), [1, 0, 0, 0])
    np.testing.assert_allclose(shares(logits, temperature=0), [1, 0, 0, 0])
    np.testing.assert_allclose(shares(logits, top_k=9), p, atol=0.015)
    np.testing.assert_allclose(shares([0.0, 1.0, 1.0, 1.0, 0.0], top_k=1), [0, 1, 0, 0, 0])
    np.testing.assert_allclose(shares([0.0, 1.0, 1.0, 1.0, 0.0], top_k=2), [0, 0.5, 0.5, 0, 0], atol=0.015)
    np.testing.assert_allclose(shares([0.0] * 8, top_p=0.25), [0.5, 0.5, 0, 0, 0, 0, 0, 0], atol=0.015)


def test_samples_of_a_waveform_follow_its_likelihood():
    outputs = jnp.array([0.3, -0.4, 0.5, -0.2, -2.0, -3.0])
    drawn = np.asarray(sample_waveform(jax.random.key(0), jnp.broadcast_to(outputs, (50000, 6))))[:, 0]
    levels = np.linspace(-1, 1, 21)
    p = np.exp(-np.asarray(logistic_mixture_loss(jnp.broadcast_to(outputs, (21, 6)), jnp.asarray(levels, jnp.float32), levels=21)))
    assert p.sum() == pytest.approx(1, abs=1e-4)
    actual = np.bincount(np.round((drawn + 1) * 10).astype(int), minlength=21) / 50000
    np.testing.assert_allclose(actual, p, atol=0.01)


@pytest.mark.parametrize("levels", [2, 16, 65536])
def test_the_likelihood_of_a_waveform_is_the_mass_of_its_level(levels):
    outputs, x = RNG.normal(size=(9, 6)), np.concatenate([[-1.0, 1.0], RNG.uniform(-1, 1, 7)])
    outputs[:, 4:] -= 2
    weights = np.exp(outputs[:, :2]) / np.exp(outputs[:, :2]).sum(1, keepdims=True)
    means, scales, half = outputs[:, 2:4], np.exp(outputs[:, 4:]), 1 / (levels - 1)

    def below(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(x[:, None] - means) / scales))

    high = np.where((x >= 1 - half)[:, None], 1, below(x + half))
    low = np.where((x <= -1 + half)[:, None], 0, below(x - half))
    actual = logistic_mixture_loss(jnp.asarray(outputs, jnp.float32), jnp.asarray(x, jnp.float32), levels=levels)
    np.testing.assert_allclose(actual, -np.log((weights * (high - low)).sum(1)), rtol=2e-4, atol=2e-4)
    steep = functools.partial(logistic_mixture_loss, levels=levels)
    far = jax.grad(lambda o: steep(o, jnp.asarray(x, jnp.float32)).sum())(jnp.asarray(outputs, jnp.float32) - 30)
    assert np.isfinite(np.asarray(far)).all()


def test_mu_law_decode_inverts_encode():
    codes = jnp.arange(256)
    np.testing.assert_array_equal(mu_law_encode(mu_law_decode(codes)), codes)
    x = np.linspace(-1, 1, 1001)
    expected = np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256)
    np.testing.assert_allclose(2 * np.asarray(mu_law_encode(jnp.asarray(x, jnp.float32))) / 255 - 1, expected, atol=1 / 255 + 1e-5)
    np.testing.assert_array_equal(mu_law_encode(jnp.array([-3.0, 3.0])), [0, 255])


@pytest.mark.parametrize(
    ("name", "prompt", "options", "words"),
    [
        ("tcn", np.zeros((2, 0), int), {}, r"sample: the prompt is empty; give at least one sample"),
        ("tcn", np.array([[1, 9]]), {}, r"sample: the prompt has the code 9; the model accepts codes from 0 to 8\."),
        ("tcn", np.array([[-1, 1]]), {}, r"sample: the prompt has the code -1"),
        ("tcn", np.array([1, 2]), {}, r"sample: the prompt must be integer codes \(batch, time\), got int32 \(2,\)"),
        ("tcn", np.ones((1, 2)), {}, r"sample: the prompt must be integer codes \(batch, time\), got float"),
        ("waves", np.ones((1, 2), int), {}, r"sample: the prompt must be floats \(batch, time, 1\), got int32 \(1, 2\)"),
        ("tcn", np.ones((1, 2), int), {"temperature": -1.0}, r"sample: temperature=-1\.0 is below 0;"),
        ("tcn", np.ones((1, 2), int), {"temperature": np.nan}, r"sample: temperature=nan is not a finite number;"),
        ("tcn", np.ones((1, 2), int), {"top_k": -1}, r"sample: top_k=-1 is below 0; use 0 or more"),
        ("tcn", np.ones((1, 2), int), {"top_p": 0.0}, r"sample: top_p=0\.0 is not in the range 0 < top_p <= 1"),
        (
            "wavenet, conditioned",
            np.ones((2, 2), int),
            {"conditions": CONDITIONS},
            r"local_condition has 12 samples along time, but the prompt and the new samples have 5; give one",
        ),
        (
            "wavenet, conditioned",
            np.ones((2, 2), int),
            {},
            r"WaveNet: local_condition is None, but local_features=3 requires shape \(2, 2, 3\)",
        ),
        (
            "wavenet",
            np.ones((2, 9), int),
            {"conditions": {"global_condition": jnp.ones((2, 2))}},
            r"global_condition is of shape \(2, 2\), but global_features=0 requires None",
        ),
    ],
)
def test_invalid_prompts_and_options_are_refused(name, prompt, options, words):
    with pytest.raises(UserError, match=words):
        dilax.sample(MODELS[name][0], variables_of(name), jax.random.key(0), jnp.asarray(prompt), 3, **options)


@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        (models.TCN(2, features=()), jnp.ones((1, 4, 2)), r"TCN: features=\(\) and dilations=None must have equal lengths of at least 1"),
        (models.TCN(2, features=(3, 3), dilations=(1,)), jnp.ones((1, 4, 2)), "must have equal lengths of at least 1"),
        (models.TCN(2), jnp.ones((1, 4), int), r"TCN: x must be floats \(batch, time, channels\), got int32 \(1, 4\); set `vocabulary`"),
        (models.TCN(2, vocabulary=5), jnp.ones((1, 4, 2)), r"TCN: with vocabulary=5 x must be integer codes \(batch, time\)"),
        (
            models.WaveNet(),
            jnp.ones((1, 4, 1)),
            r"WaveNet: x must be integer codes \(batch, time\), got float32 \(1, 4, 1\); see `dilax.audio.mu_law_encode`",
        ),
        (models.WaveNet(outputs="mixture"), jnp.ones((1, 4)), r"with outputs='mixture' x must be floats \(batch, time, 1\)"),
        (models.WaveNet(outputs="softmx"), jnp.ones((1, 4), int), r"outputs='softmx' is unknown.*Did you mean \"softmax\""),
        (models.WaveNet(dilations=()), jnp.ones((1, 4), int), r"dilations=\(\) must not be empty"),
    ],
)
def test_inputs_that_do_not_fit(model, x, words):
    with pytest.raises(UserError, match=words):
        model.init(jax.random.key(0), x, train=False)


@pytest.mark.parametrize(
    ("fields", "channels", "count"),
    [
        (dict(out_features=1, kernel_size=7, features=(30,) * 8), 2, 96_001),
        (dict(out_features=88, kernel_size=3, features=(150,) * 2), 88, 269_938),
        (dict(out_features=88, kernel_size=5, features=(150,) * 4), 88, 882_538),
    ],
)
def test_tcn_has_the_parameters_and_the_receptive_field_of_the_paper(fields, channels, count):
    model = models.TCN(**fields)
    x = jnp.zeros((1, 4000, channels))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    variables, apply = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes), cast(Any, model.apply)
    (field,) = dilax.receptive_field(lambda x: apply(variables, x, train=False), x)
    assert (field.size, field.offset + (field.size or 0)) == (1 + 2 * (fields["kernel_size"] - 1) * (2 ** len(fields["features"]) - 1), 1)


def test_spatial_dropout_drops_whole_channels():
    layer = Dropout(0.5, spatial=True)
    y = np.asarray(layer.apply({}, jnp.ones((3, 40, 8)), train=True, rngs={"dropout": jax.random.key(0)}))
    assert ((y == y[:, :1]).all(1)).all()
    assert 0.2 < (y[:, 0] == 0).mean() < 0.8


def test_a_model_that_looks_ahead_is_refused():
    model, x = models.TCN(9, 3, (6,), causal=False), jnp.ones((1, 5, 9))
    variables = model.init(jax.random.key(0), x, train=False)
    with pytest.raises(UserError, match=r"^forecast: the model looks 2 samples ahead, which are not known yet; use a causal model\.$"):
        dilax.forecast(model, variables, x, 3)
    coded, prompt = models.TCN(9, 3, (6,), causal=False, vocabulary=9), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(UserError, match=r"^sample: the model looks 2 samples ahead"):
        dilax.sample(coded, coded.init(jax.random.key(0), prompt, train=False), jax.random.key(0), prompt, 3)
