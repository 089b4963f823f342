"""Random calls of what samples and continues sequences, and of the loss of waveforms: what the oracle says, or one line."""

import math
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import exact, fuzz, refusal
from scipy import special, stats

import dilax
from dilax import generate, losses, models
from dilax.errors import UserError

KEY = jax.random.key(0)


@st.composite
def mixtures(draw: Any) -> tuple[np.ndarray, int]:
    """Arguments of mixtures of logistics, (*batch, 3 * n), and n; some of them far apart, or far narrower than a level."""
    batch, n = draw(st.sampled_from([(), (1,), (5,), (2, 3), (0,)])), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    scale = draw(st.sampled_from([-14.0, -9.0, -4.0, 0.0, 3.0, 20.0, 90.0]))
    parts = [
        rng.normal(0, 1, (*batch, n)) * draw(st.sampled_from([1, 50])),
        rng.normal(0, 0.6, (*batch, n)),
        rng.normal(scale, 1, (*batch, n)),
    ]
    return np.concatenate(parts, -1).astype(np.float32), n


def split(outputs: np.ndarray) -> list[np.ndarray]:
    logits, means, log_scales = np.split(np.asarray(outputs, np.float64), 3, -1)
    return [special.log_softmax(logits, -1), means, log_scales]


LEVELS = st.sampled_from([2, 3, 16, 256, 65536, 2**20, 2**31, 10**400, 1, 0, 2.0, True])


@fuzz(
    0.5, mixtures(), LEVELS, st.integers(0, 99), st.sampled_from(["float32", "float16", "bfloat16", "int32"]), st.sampled_from([0, 0, 0, 1])
)
def test_logistic_mixture_loss(case, levels, seed, dtype, extra):
    outputs, _ = case
    rng, shape = np.random.default_rng(seed), (*outputs.shape[:-1], *(2,) * extra)
    values = np.where(rng.random(shape) < 0.3, rng.choice([-1.0, 1.0, 0.0, 1.2], shape), rng.uniform(-1, 1, shape))
    x, given = jnp.asarray(values, dtype), jnp.asarray(outputs, "float32" if dtype == "int32" else dtype)
    try:
        found = losses.logistic_mixture_loss(given, x, levels=levels)
    except UserError as error:
        return refusal(
            error, "logistic_mixture_loss", dtype == "int32" or extra > 0 or levels is True or levels in (0, 1, 2.0, 10**400, 2**31)
        )
    assert found.shape == shape and found.dtype == np.float32
    (log_w, means, log_scales), half, one = split(exact(given)), 1 / (levels - 1), exact(x)[..., None]
    logistic: Any = stats.logistic(means, np.exp(np.maximum(log_scales, -14)))
    # Of the two tails, the one that the level lies in loses no digits.
    lo, hi = np.where(one <= -1 + half, -np.inf, one - half), np.where((one >= 1 - half) & (one > -1 + half), np.inf, one + half)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = logistic.logcdf(hi) + np.log1p(-np.exp(logistic.logcdf(lo) - logistic.logcdf(hi)))
        right = logistic.logsf(lo) + np.log1p(-np.exp(logistic.logsf(hi) - logistic.logsf(lo)))
        tails = np.where(one > means, right, left)
    narrow = np.isfinite(lo) & np.isfinite(hi) & (half * np.exp(-log_scales) < 1e-5)
    expected = -special.logsumexp(log_w + np.where(narrow, logistic.logpdf(one) + math.log(2 * half), tails), -1)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-3)


@fuzz(
    1,
    st.lists(st.sampled_from([0.0, 1.0, 1.5, -2.0, 3.0, -np.inf, 60.0, -1e4]), min_size=1, max_size=6),
    st.sampled_from([1.0, 1, 0, 0.5, 2.0, 1e-3, 1e-30, 1e-300, 1e30, -1.0, float("nan"), "1"]),
    st.sampled_from([0, 0, 1, 2, 3, 99, -1, 1.5]),
    st.sampled_from([1.0, 1.0, 0.9, 0.5, 1e-9, 1e-300, 0.0, 1.1, None]),
    st.sampled_from(["float32", "float32", "bfloat16", "float16", "int32"]),
)
def test_sample_codes(logits, temperature, top_k, top_p, dtype):
    rows = jnp.asarray(np.tile(logits, (300, 1)), "float32").astype(dtype)
    try:
        codes = np.asarray(generate.sample_codes(KEY, rows, temperature=temperature, top_k=top_k, top_p=top_p))
    except UserError as error:
        wrong = (
            dtype == "int32" or temperature in (-1.0, "1") or temperature != temperature or top_k in (-1, 1.5) or top_p in (0.0, 1.1, None)
        )
        return refusal(error, "sample_codes", wrong)
    assert codes.shape == (300,) and codes.dtype == np.int32
    values = exact(rows)[0]
    if np.isneginf(values).all():
        return
    order = sorted(range(len(values)), key=lambda c: (-values[c], c))
    kept = order[:1] if temperature == 0 else order[: top_k or None]
    p = special.softmax((values[kept] - values.max()) / max(temperature, 1e-37))
    if top_p < 1:
        kept = [c for c, before in zip(kept, np.cumsum(p) - p) if before < top_p - 1e-6] or kept[:1]
        p = special.softmax((values[kept] - values.max()) / max(temperature, 1e-37))
    counts = {c: (codes == c).mean() for c in range(len(values))}
    for c, share in counts.items():
        assert abs(share - (p[kept.index(c)] if c in kept else 0)) < 0.15, (counts, kept, p)
        assert share == 0 or c in kept


@fuzz(
    1,
    mixtures(),
    st.sampled_from([1.0, 0, 0.5, 1e-300, 3, 1e30, -1, float("inf"), None]),
    st.sampled_from(["float32", "bfloat16", "int32"]),
)
def test_sample_waveform(case, temperature, dtype):
    outputs, n = case
    row = outputs.reshape(-1, 3 * n)[:1]
    rows = jnp.asarray(np.tile(row, (400, 1)) if len(row) else outputs, dtype)
    try:
        drawn = np.asarray(generate.sample_waveform(KEY, rows, temperature=temperature))
    except UserError as error:
        return refusal(error, "sample_waveform", dtype == "int32" or rows.ndim != 2 or temperature in (-1, math.inf, None))
    assert drawn.shape == (len(rows), 1) and drawn.dtype == np.float32 and (np.abs(drawn) <= 1).all()
    if not len(row):
        return
    log_w, means, log_scales = (part[0] for part in split(exact(rows)))
    if temperature == 0:
        np.testing.assert_allclose(drawn, np.clip(means[log_w.argmax()], -1, 1), atol=1e-6)
        return
    at = np.linspace(-0.99, 0.99, 21)
    with np.errstate(over="ignore"):
        cdf = (np.exp(log_w) * special.expit((at[:, None] - means) / np.exp(log_scales) / max(temperature, 1e-37))).sum(-1)
    near = np.abs(at[:, None] - means).min(-1) < 1e-5
    np.testing.assert_allclose(np.where(near, cdf, (drawn <= at).mean(0)), cdf, atol=0.12)


def spoilt(draw: Any, valid: Any, *others: Any) -> Any:
    """Mostly the valid value."""
    return valid if draw(st.integers(0, 9)) else draw(st.sampled_from(others))


CODES = models.TCN(5, 2, (4, 3), vocabulary=5, embedding_features=3)
WAVES = models.WaveNet(dilations=(1, 2), features=3, skip_features=4, outputs="mixture", mixtures=2, global_features=2)
NUMBERS, AHEAD = models.TCN(2, 3, (4,)), models.TCN(2, 3, (4,), causal=False)


def made(model: Any, x: Any, **conditions: Any) -> Any:
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False, **conditions))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.9, leaf.shape), leaf.dtype), shapes)


VARIABLES = {
    id(CODES): made(CODES, jnp.zeros((1, 2), jnp.int32)),
    id(WAVES): made(WAVES, jnp.zeros((1, 2, 1)), global_condition=jnp.zeros((1, 2))),
    id(NUMBERS): made(NUMBERS, jnp.zeros((1, 2, 2))),
    id(AHEAD): made(AHEAD, jnp.zeros((1, 2, 2))),
}
RUNS = {id(model): jax.jit(lambda v, x, c, model=model: model.apply(v, x, train=False, **c)) for model in (CODES, WAVES, NUMBERS)}


@st.composite
def continuations(draw: Any) -> tuple[Any, ...]:
    model = draw(st.sampled_from([CODES, WAVES, NUMBERS]))
    batch, count, steps = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (batch, count) if model is CODES else (batch, count, 1 if model is WAVES else 2)
    x: Any = rng.integers(0, 5, shape).astype(np.int32) if model is CODES else rng.uniform(-0.5, 0.5, shape).astype(np.float32)
    conditions = {"global_condition": rng.normal(size=(batch, 2)).astype(np.float32)} if model is WAVES else None
    given = spoilt(draw, x, x[:, :0], x[0], x + 9, x.astype(np.float64), x.astype(np.int16), x[..., None], x[:0], "abc", None, x * np.nan)
    others = (
        {},
        {"global_condition": None},
        {"nothing": x},
        {"global_condition": rng.normal(size=(batch, 3))},
        3,
        {"local_condition": x[..., None]},
    )
    return model, given, spoilt(draw, steps, 0, -1, 2.5, True), spoilt(draw, conditions, *others), x


@fuzz(0.15, continuations())
def test_continuations_equal_full_recomputation(case):
    model, x, steps, conditions, valid = case
    numbers, variables = model is NUMBERS, VARIABLES[id(model)]
    try:
        if numbers:
            new = dilax.forecast(model, variables, x, steps)
        else:
            new = dilax.sample(model, variables, KEY, x, steps, temperature=0, conditions=conditions)
    except UserError as error:
        right = x is not valid or steps not in (1, 2, 3) or steps is True or conditions is not None or model is WAVES
        return refusal(error, ("sample", "forecast", "continue_sequence", "TCN", "WaveNet", "WaveNet.stream", "TCN.stream"), right)
    x = np.asarray(x)
    whole = np.concatenate([x, np.zeros((len(x), steps, *x.shape[2:]), x.dtype)], 1)
    for at in range(x.shape[1], whole.shape[1]):
        y = np.asarray(RUNS[id(model)](variables, jnp.asarray(whole), {} if numbers else conditions or {}))[:, at - 1]
        log_w, means, _ = split(y) if model is WAVES else [y] * 3
        waves = np.clip(np.take_along_axis(means, log_w.argmax(-1)[:, None], 1), -1, 1)
        whole[:, at] = y if numbers else waves if model is WAVES else y.argmax(-1)
    np.testing.assert_allclose(new, whole[:, x.shape[1] :], atol=0 if model is CODES else 2e-3, equal_nan=True)


# Rows of logits and options of `sample_codes` that once gave another code than the most likely one, the last.
LIKELIEST: tuple[tuple[list[float], dict[str, Any], str], ...] = (
    ([0.0, 2.0, 3.0], {"temperature": 1e-45}, "float32"),
    ([0.0, 2.0, 3.0], {"temperature": 1e-300}, "float32"),
    ([0.0, 2.0, 3.0], {"temperature": 1e-6}, "float16"),
    ([0.0, 2.0, 3.0], {"temperature": 0.01, "top_p": 1e-300}, "float32"),
)


@pytest.mark.parametrize(("logits", "options", "dtype"), LIKELIEST)
def test_the_likeliest_code_is_drawn_near_the_limits(logits, options, dtype):
    codes = generate.sample_codes(KEY, jnp.asarray([logits] * 20, "float32").astype(dtype), **options)
    assert codes.tolist() == [len(logits) - 1] * 20


def test_waveforms_are_finite_near_the_limits_and_in_half_precision():
    row = jnp.array([[0.0, 0.25, 100.0]])
    assert generate.sample_waveform(KEY, row, temperature=0).tolist() == [[0.25]]
    assert abs(float(generate.sample_waveform(KEY, row, temperature=1e-300)[0, 0])) == 1
    half = generate.sample_waveform(KEY, row.astype(jnp.bfloat16), temperature=0.5)
    assert half.dtype == jnp.float32 and abs(float(half[0, 0])) == 1


def test_the_nucleus_of_a_large_vocabulary_in_half_precision():
    codes = generate.sample_codes(KEY, jnp.zeros((200, 3000), jnp.bfloat16), top_p=0.5)
    assert 1300 < int(codes.max()) <= 1501


def test_the_loss_of_a_scale_that_overflows_is_finite():
    loss, gradient = jax.value_and_grad(losses.logistic_mixture_loss)(jnp.array([0.0, 0.1, 90.0]), jnp.array(0.2))
    np.testing.assert_allclose(loss, 90 + math.log(4) - math.log(2 / 65535), rtol=1e-5)
    np.testing.assert_allclose(gradient, [0, 0, 1], atol=1e-5)


def test_levels_beyond_32_bits_are_refused():
    with pytest.raises(UserError, match=r"^logistic_mixture_loss: levels=1000.* is above those of 32 bits; use 2\*\*32 or less\."):
        losses.logistic_mixture_loss(jnp.zeros(3), jnp.zeros(()), levels=10**60)


def test_conditions_that_the_model_does_not_take_are_refused():
    x, global_ = jnp.zeros((1, 2, 1)), jnp.zeros((1, 2))
    unknown = "sample: conditions hold {}, which is not a condition of {}; it takes {}."
    names = "local_condition, global_condition"
    cases: Any = (
        (CODES, jnp.zeros((1, 2), jnp.int32), {"nothing": x}, unknown.format("'nothing'", "TCN", "mask")),
        (
            WAVES,
            x,
            {"globl_condition": global_},
            unknown.format("'globl_condition'", "WaveNet", names) + ' Did you mean "global_condition"?',
        ),
        *((WAVES, x, {name: 1.0}, unknown.format(repr(name), "WaveNet", names)) for name in ("x", "chunk", "state", "train", 3)),
        (WAVES, x, {"global_condition": "a"}, "sample: global_condition='a' is not an array; give one of numbers."),
        (WAVES, x, {"global_condition": [[1], [1, 2]]}, "sample: global_condition=[[1], [1, 2]] is not an array; give one of numbers."),
    )
    for model, prompt, conditions, said in cases:
        with pytest.raises(UserError) as caught:
            dilax.sample(model, VARIABLES[id(model)], KEY, prompt, 2, conditions=conditions)
        assert str(caught.value) == said
