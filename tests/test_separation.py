"""Conv-TasNet and its loss: against torchaudio and numpy, in chunks, and what is silent or padded."""

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, check_receptive_field, check_summary, check_training, positive, random_input
from foreign import random_state
from test_streaming import fed

import dilax
from dilax import losses, metrics, models
from dilax.errors import UserError

SMALL: Any = dict(features=6, kernel_size=16, stride=8, bottleneck_features=5, hidden_features=7, skip_features=4, blocks=2, repeats=1)
MIXTURE = random_input((2, 48, 1))
NETWORKS = {
    "global": models.ConvTasNet(**SMALL),
    "three sources": models.ConvTasNet(sources=3, mask_activation="relu", block_kernel_size=4, **SMALL),
    "causal": models.ConvTasNet(causal=True, **SMALL),
    "causal, wide frames": models.ConvTasNet(causal=True, norm="layer", **SMALL | dict(kernel_size=12, stride=4, blocks=1)),
    "causal, frames side by side": models.ConvTasNet(causal=True, norm="batch", **SMALL | dict(kernel_size=8, blocks=1)),
}
CAUSAL = [name for name, model in NETWORKS.items() if model.causal]
with np.load(Path(__file__).parent / "golden" / "conv_tasnet.npz") as file:
    GOLDEN = {name: file[name] for name in file.files}
ABOUT = json.loads(str(GOLDEN["about"]))
FIELDS = {
    "num_sources": "sources",
    "enc_num_feats": "features",
    "enc_kernel_size": "kernel_size",
    "msk_num_hidden_feats": "hidden_features",
    "msk_num_layers": "blocks",
    "msk_num_stacks": "repeats",
    "msk_activate": "mask_activation",
}


def variables_of(model: Any, x: jax.Array = MIXTURE) -> Any:
    """Random, and different for each leaf."""
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [jnp.asarray(0.1 + 0.4 * np.abs(random_input(leaf.shape, i))) for i, leaf in enumerate(leaves)])


def run(model: Any) -> Any:
    return jax.jit(functools.partial(model.apply, train=False))


def of_torchaudio(state: dict[str, np.ndarray]) -> Any:
    """The parameters of a torchaudio network under their names here."""

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": state[f"{name}.weight"][..., 0].T, "bias": state[f"{name}.bias"]}

    def norm(name: str) -> dict[str, Any]:
        return {"GroupNorm_0": {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}}

    def prelu(name: str) -> dict[str, np.ndarray]:
        return {"negative_slope": state[f"{name}.weight"][0]}

    net = "mask_generator"
    params: dict[str, Any] = {
        "encoder": {"kernel": state["encoder.weight"][:, 0].T},
        "decoder": {"kernel": state["decoder.weight"][:, 0]},
        "input_norm": norm(f"{net}.input_norm"),
        "input": dense(f"{net}.input_conv"),
        "prelu": prelu(f"{net}.output_prelu"),
        "masks": dense(f"{net}.output_conv"),
    }
    for i in itertools.count():
        block = f"{net}.conv_layers.{i}"
        if f"{block}.skip_out.weight" not in state:
            return {"params": params}
        inner = f"{block}.conv_layers"
        params[f"block{i}"] = {
            "expand": dense(f"{inner}.0"),
            "prelu1": prelu(f"{inner}.1"),
            "norm1": norm(f"{inner}.2"),
            "conv": {"kernel": state[f"{inner}.3.weight"].transpose(2, 1, 0), "bias": state[f"{inner}.3.bias"]},
            "prelu2": prelu(f"{inner}.4"),
            "norm2": norm(f"{inner}.5"),
            "skip_out": dense(f"{block}.skip_out"),
        }
        if f"{block}.res_out.weight" in state:
            params[f"block{i}"]["residual_out"] = dense(f"{block}.res_out")


def network_of(seed: int) -> tuple[Any, Any]:
    """A network of the fixture, and its variables."""
    theirs, state = ABOUT[seed]["fields"], random_state(ABOUT[seed]["shapes"], seed)
    fields: Any = {ours: theirs[name] for name, ours in FIELDS.items() if name in theirs}
    width = theirs["msk_num_feats"]
    model = models.ConvTasNet(stride=theirs["enc_kernel_size"] // 2, bottleneck_features=width, skip_features=width, **fields)
    return model, jax.tree.map(jnp.asarray, of_torchaudio(state))


@pytest.mark.parametrize("seed", range(len(ABOUT)))
def test_equals_torchaudio(seed):
    (model, variables), x = network_of(seed), jnp.asarray(GOLDEN[f"x{seed}"])
    chex.assert_trees_all_equal_shapes(variables, jax.eval_shape(lambda: model.init(KEY, x, train=False)))
    np.testing.assert_allclose(run(model)(variables, x), GOLDEN[f"y{seed}"], rtol=1e-4, atol=1e-4)


def separate(state: dict[str, np.ndarray], fields: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """The network of torchaudio in numpy and float64: mixtures (batch, time, 1) to sources (batch, time, sources)."""
    state = {name.removeprefix("mask_generator."): value.astype(np.float64) for name, value in state.items()}

    def dense(name: str, y: np.ndarray) -> np.ndarray:
        return y @ state[f"{name}.weight"][..., 0].T + state[f"{name}.bias"]

    def norm(name: str, y: np.ndarray) -> np.ndarray:
        far = y - y.mean((1, 2), keepdims=True)
        return far / np.sqrt(y.var((1, 2), keepdims=True) + 1e-8) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def prelu(name: str, y: np.ndarray) -> np.ndarray:
        return np.where(y > 0, y, state[f"{name}.weight"] * y)

    def depthwise(name: str, y: np.ndarray, dilation: int) -> np.ndarray:
        kernel = state[f"{name}.weight"][:, 0]
        padded = np.pad(y, ((0, 0), (dilation * (kernel.shape[1] - 1) // 2,) * 2, (0, 0)))
        taps = [padded[:, i * dilation :][:, : y.shape[1]] * kernel[:, i] for i in range(kernel.shape[1])]
        return sum(taps) + state[f"{name}.bias"]

    size, time = fields["enc_kernel_size"], x.shape[1]
    stride, layers = size // 2, fields["msk_num_layers"]
    padded = np.pad(x[..., 0].astype(np.float64), ((0, 0), (stride, stride + -time % stride)))
    starts = range(0, padded.shape[1] - size + 1, stride)
    encoded = np.stack([padded[:, p : p + size] for p in starts], 1) @ state["encoder.weight"][:, 0].T
    y: Any = dense("input_conv", norm("input_norm", encoded))
    skips: Any = 0.0
    for i in range(layers * fields["msk_num_stacks"]):
        block = f"conv_layers.{i}"
        inner = f"{block}.conv_layers"
        h = norm(f"{inner}.2", prelu(f"{inner}.1", dense(f"{inner}.0", y)))
        h = norm(f"{inner}.5", prelu(f"{inner}.4", depthwise(f"{inner}.3", h, 2 ** (i % layers))))
        y = y + dense(f"{block}.res_out", h) if f"{block}.res_out.weight" in state else y
        skips = skips + dense(f"{block}.skip_out", h)
    masks = dense("output_conv", prelu("output_prelu", skips)).reshape(*encoded.shape[:2], fields["num_sources"], -1)
    masks = np.maximum(masks, 0) if fields.get("msk_activate") == "relu" else 1 / (1 + np.exp(-masks))
    frames = (masks * encoded[:, :, None]) @ state["decoder.weight"][:, 0]
    out = np.zeros((x.shape[0], padded.shape[1], fields["num_sources"]))
    for p, start in enumerate(starts):
        out[:, start : start + size] += np.moveaxis(frames[:, p], 1, 2)
    return out[:, stride : stride + time]


@pytest.mark.parametrize("seed", range(len(ABOUT)))
def test_equals_torchaudio_at_every_loudness(seed):
    theirs, state = ABOUT[seed]["fields"], random_state(ABOUT[seed]["shapes"], seed)
    np.testing.assert_allclose(separate(state, theirs, GOLDEN[f"x{seed}"]), GOLDEN[f"y{seed}"], rtol=1e-5, atol=1e-6)
    model, variables = network_of(seed)
    for loudness in (30.0, 1e-2, 1e-3, 1e-4, 1e-5):
        x = np.float32(loudness) * GOLDEN[f"x{seed}"]
        expected = separate(state, theirs, x)
        np.testing.assert_allclose(run(model)(variables, x), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=f"{loudness}")


def test_the_default_has_as_many_parameters_as_that_of_torchaudio():
    shapes = jax.eval_shape(lambda: models.create("conv_tasnet").init(KEY, MIXTURE, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 4_984_881


@pytest.mark.parametrize("name", ["three sources", "causal"])
def test_contract(name):
    model = NETWORKS[name]
    variables = jax.jit(lambda: model.init(KEY, MIXTURE, train=False))()
    assert float(variables["params"]["prelu"]["negative_slope"]) == 0.25
    y = run(model)(variables, MIXTURE)
    assert (y.shape, y.dtype) == ((2, 48, model.sources), jnp.float32)
    assert jax.eval_shape(run(model), variables, MIXTURE[:1, :21]).shape == (1, 21, model.sources)
    check_training(model, variables, MIXTURE)
    half = run(model.clone(dtype=jnp.bfloat16))(variables, MIXTURE.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    chex.assert_trees_all_close(half, y, atol=0.1 * float(jnp.abs(y).max()))


@pytest.mark.parametrize("name", CAUSAL)
def test_in_chunks_it_equals_itself(name):
    model = NETWORKS[name]
    variables = variables_of(model)
    found = jax.jit(lambda v, x: fed(model, v, x, (8, 24, 16)))(variables, MIXTURE)
    chex.assert_trees_all_close(found, run(model)(variables, MIXTURE), rtol=1e-4, atol=1e-5)


def test_users_can_check_it():
    model = NETWORKS["causal, wide frames"]
    variables = variables_of(model)
    dilax.check_streamable(model, variables, MIXTURE, chunks=(8, 24, 16))
    assert model.apply(variables, method="latency") == 8


def test_in_chunks_its_gradients_are_those_of_the_whole():
    model = NETWORKS["causal"].clone(blocks=1)
    variables, x = variables_of(model), MIXTURE[:, :24]

    def gradients(call: Any) -> Any:
        return jax.jit(jax.grad(lambda v, x: (call(v, x) * random_input((2, 24, 2), 1)).sum(), (0, 1)))(variables, x)

    found = gradients(lambda v, x: fed(model, v, x, (8, 16)))
    chex.assert_trees_all_close(found, gradients(functools.partial(model.apply, train=False)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_it_is_causal_bit_for_bit_but_for_its_latency(name):
    model = NETWORKS[name]
    variables, late = variables_of(model), model.kernel_size - model.stride

    def delayed(x: jax.Array) -> jax.Array:
        y: Any = model.apply(variables, x, train=False)
        return jnp.pad(y, ((0, 0), (late, 0), (0, 0)))[:, :48]

    ends = (7, 15, 39)
    dilax.check_causal(delayed, MIXTURE, cuts=ends)
    if late:
        with pytest.raises(UserError, match="it looks ahead"):
            dilax.check_causal(lambda x: delayed(x)[:, 1:], MIXTURE[:, :47], cuts=ends)


@pytest.mark.parametrize("causal", [False, True])
def test_receptive_field(causal):
    fields: Any = dict(
        features=3,
        kernel_size=4,
        stride=2,
        bottleneck_features=3,
        hidden_features=3,
        skip_features=3,
        blocks=2,
        repeats=1,
        norm="none",
        causal=causal,
    )
    model = models.ConvTasNet(**fields)
    shape = (1, 45, 1)
    variables = positive(model.init(KEY, jnp.zeros(shape), train=False))
    check_receptive_field(lambda x: model.apply(variables, x, train=False), shape)
    check_summary(model, variables, jnp.zeros(shape))


@pytest.mark.parametrize("name", ["global", "causal"])
def test_an_empty_mixture_spoils_no_gradient(name):
    model, mask = NETWORKS[name], jnp.array([[True] * 48, [False] * 48])
    variables = variables_of(model)

    def loss(v: Any) -> Any:
        y, _ = model.apply(v, MIXTURE, train=True, mask=mask, mutable=["batch_stats"])
        return losses.separation_loss(y, y[:, ::-1] + 1.0, mask).sum()

    chex.assert_tree_all_finite(jax.jit(jax.grad(loss))(variables))


def test_what_does_not_stream_says_why():
    model = NETWORKS["global"]
    with pytest.raises(
        UserError, match=r"ConvTasNet\.init_stream: input_norm/GroupNorm_0 is a GroupNorm, which looks at the whole sequence"
    ):
        model.apply(variables_of(model), 2, method="init_stream")
    model = model.clone(norm="cumulative")
    with pytest.raises(UserError, match="block0/conv looks ahead, which cannot be combined with strides or with several dilations"):
        model.apply(variables_of(model), 2, method="init_stream")
    model = NETWORKS["causal"]
    variables = variables_of(model)
    state = model.apply(variables, 2, method="init_stream")
    with pytest.raises(UserError, match=r"ConvTasNet\.stream: a chunk of 12 samples is not a multiple of stride=8; feed multiples of it"):
        model.apply(variables, MIXTURE[:, :12], state, method="stream")


ERRORS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "rank": ({}, MIXTURE[..., 0], "ConvTasNet: x must be floats (batch, time, 1), got float32 (2, 48)."),
    "channels": ({}, jnp.ones((2, 48, 2)), "ConvTasNet: x must be floats (batch, time, 1), got float32 (2, 48, 2)."),
    "dtype": ({}, jnp.ones((2, 48, 1), jnp.int32), "ConvTasNet: x must be floats (batch, time, 1), got int32 (2, 48, 1)."),
    "stride": ({"stride": 5}, MIXTURE, "ConvTasNet: kernel_size=16 must be a multiple of stride=5; use 16 and 8, for instance."),
    "blocks": ({"blocks": 0}, MIXTURE, "ConvTasNet: blocks=0 is below 1; use 1 or more."),
    "masks": (
        {"mask_activation": "sigmod"},
        MIXTURE,
        "ConvTasNet: mask_activation='sigmod' is unknown; use one of ('sigmoid', 'relu'). Did you mean \"sigmoid\"?",
    ),
    "norm": (
        {"causal": True, "norm": "global"},
        MIXTURE,
        "ConvTasNet: norm='global' looks at the whole sequence, which causal=True does not allow; "
        "use one of ('batch', 'layer', 'cumulative', 'none', 'frozen').",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_texts(name):
    fields, x, text = ERRORS[name]
    with pytest.raises(UserError) as error:
        models.ConvTasNet(**fields).init(KEY, x, train=False)
    assert str(error.value) == text


RNG = np.random.default_rng(1)
TARGETS: Any = RNG.normal(0.5, 1, (3, 30, 3)).astype(np.float32)
ESTIMATES: Any = (2 * TARGETS[..., [2, 0, 1]] + RNG.normal(-1, 1.5, TARGETS.shape)).astype(np.float32)
LENGTHS = (30, 17, 4)
MASK = jnp.asarray(np.arange(30) < np.array(LENGTHS)[:, None])


def decibels(e, t):
    """Equation 3 of Le Roux et al. for two waveforms."""
    e, t = e.astype(np.float64) - e.mean(dtype=np.float64), t.astype(np.float64) - t.mean(dtype=np.float64)
    along = (e @ t) / (t @ t) * t
    return 10 * np.log10((along @ along) / ((e - along) @ (e - along)))


@pytest.mark.parametrize("mask", [None, MASK])
def test_si_sdr_and_loss_equal_the_loop(mask):
    lengths = (30, 30, 30) if mask is None else LENGTHS
    ratios = [[[decibels(ESTIMATES[b, :n, i], TARGETS[b, :n, j]) for j in range(3)] for i in range(3)] for b, n in enumerate(lengths)]
    found = jax.jit(metrics.si_sdr)(ESTIMATES, TARGETS, mask)
    assert (found.shape, found.dtype) == ((3, 3), jnp.float32)
    np.testing.assert_allclose(found, [[r[i][i] for i in range(3)] for r in ratios], rtol=1e-3, atol=1e-3)
    orders = list(itertools.permutations(range(3)))
    best = [min(-sum(r[i][order[i]] for i in range(3)) / 3 for order in orders) for r in ratios]
    loss = jax.jit(losses.separation_loss)
    assert loss(ESTIMATES, TARGETS, mask).dtype == jnp.float32
    np.testing.assert_allclose(loss(ESTIMATES, TARGETS, mask), best, rtol=1e-3, atol=1e-3)
    for order in orders:
        np.testing.assert_allclose(loss(ESTIMATES[..., list(order)], TARGETS, mask), best, rtol=1e-3, atol=1e-3)


def test_neither_scale_nor_offset_matters():
    expected = metrics.si_sdr(ESTIMATES, TARGETS)
    for scale in (1e-6, -3.0, 1e6):
        np.testing.assert_allclose(metrics.si_sdr(scale * ESTIMATES + scale, TARGETS), expected, atol=0.01)
        np.testing.assert_allclose(metrics.si_sdr(ESTIMATES, scale * TARGETS - scale), expected, atol=0.01)
    np.testing.assert_allclose(metrics.si_sdr(5 * TARGETS, TARGETS), 80, atol=0.01)
    half = jnp.asarray(ESTIMATES, jnp.bfloat16)
    assert metrics.si_sdr(half, TARGETS).dtype == jnp.float32


def test_what_is_padded_counts_nowhere():
    value = jax.jit(jax.value_and_grad(lambda e, t: losses.separation_loss(e, t, MASK).sum(), (0, 1)))
    real = np.asarray(MASK)[..., None]
    loss, gradients = value(ESTIMATES, TARGETS)
    other = value(np.where(real, ESTIMATES, np.nan), np.where(real, TARGETS, np.inf))
    chex.assert_trees_all_close(other, (loss, gradients), rtol=1e-5, atol=1e-6)
    for gradient in gradients:
        assert (np.asarray(gradient)[~np.broadcast_to(real, gradient.shape)] == 0).all()


@pytest.mark.parametrize("what", ["target", "estimate", "both", "constant", "padding alone"])
def test_silence_is_finite(what):
    e, t, mask = ESTIMATES.copy(), TARGETS.copy(), MASK
    if what in ("target", "both"):
        t[0, :, 1] = 0
    if what in ("estimate", "both"):
        e[0] = 0
    if what == "constant":
        t[0, :, 1] = e[0, :, 1] = 0.25
    if what == "padding alone":
        mask = mask.at[0].set(False)
    ratios = np.asarray(metrics.si_sdr(e, t, mask))
    np.testing.assert_allclose(ratios[0, 1], -80, atol=0.01)
    value, gradient = jax.jit(jax.value_and_grad(lambda e: losses.separation_loss(e, t, mask).sum()))(e)
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.isfinite(ratios).all()
    assert (np.abs(np.asarray(gradient)[1]) > 0).any()
    np.testing.assert_allclose(jax.grad(lambda e: metrics.si_sdr(e, t, mask)[0, 1])(jnp.asarray(e)), 0, atol=1e-5)


def test_waveforms_that_do_not_fit():
    with pytest.raises(UserError) as error:
        metrics.si_sdr(TARGETS, TARGETS[:, 1:])
    assert str(error.value) == ("si_sdr: estimate of shape (3, 30, 3) and target of shape (3, 29, 3) must both be (batch, time, sources).")
    with pytest.raises(UserError) as error:
        losses.separation_loss(TARGETS, TARGETS, MASK[:, 1:])
    assert str(error.value) == "separation_loss: a mask of shape (3, 29) does not fit waveforms of shape (3, 30, 3); give (batch, time)."
