"""Pooling against matrices of weights that numpy loops fill in: one table of cases, one list of laws, the maximum and both means.

A maximum has weight 1 at the first of the largest samples of its window, so value, tangent, gradient and second derivative are products
with one matrix. The data are multiples of 1/2 with many ties.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax import lax
from reading import check_call

import dilax
from dilax.pooling import avg_pool, max_pool, pool_sequence

BATCH, CHANNELS = 2, 3


class Case(NamedTuple):
    space: tuple[int, ...]
    window: Any
    stride: Any = None
    padding: Any = "VALID"
    dilation: Any = 1

    def arguments(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def taps(self) -> tuple[int, ...]:
        return reference.per_axis(self.window, len(self.space))

    def steps(self) -> tuple[int, ...]:
        return self.taps() if self.stride is None else reference.per_axis(self.stride, len(self.space))

    def output(self) -> tuple[int, ...]:
        return reference.output_size(self.space, self.taps(), self.steps(), self.padding, self.dilation)


CASES = {
    "side by side": Case((8,), 2),
    "side by side, with a rest": Case((11,), 3),
    "one tap": Case((5,), 1),
    "one tap, stride": Case((7,), 1, 3),
    "overlapping": Case((9,), 3, 1),
    "overlapping, same": Case((9,), 3, 2, "SAME"),
    "even, same": Case((9,), 4, 1, "SAME"),
    "stride above the window": Case((12,), 2, 5),
    "dilated": Case((9,), 3, 1, "VALID", 3),
    "dilated, default stride": Case((13,), 3, None, "SAME", 2),
    "causal": Case((8,), 5, 1, "CAUSAL"),
    "causal, dilated": Case((8,), 3, 2, "CAUSAL", 4),
    "torch": Case((8,), 3, 2, "TORCH"),
    "int": Case((8,), 6, 3, 2),
    "pair": Case((7,), 7, 2, ((1, 4),)),
    "global": Case((13,), 13),
    "many taps": Case((90,), 70, 3, "SAME"),
    "many taps, dilated": Case((5,), 65, 1, 64, 2),
    "2d": Case((6, 7), 2),
    "2d, overlapping, same": Case((7, 6), 3, 2, "SAME"),
    "2d, all unequal": Case((9, 8), (3, 2), (2, 1), ("SAME", 1), (2, 3)),
    "2d, dilated, same": Case((6, 5), 3, 1, "SAME", 2),
    "2d, words": Case((7, 8), (2, 5), (1, 2), ("CAUSAL", (2, 0)), (3, 1)),
    "2d, many taps": Case((11, 12), (9, 8), (1, 2), "SAME"),
    "2d, many taps, dilated": Case((7, 9), (3, 22), 1, "SAME", (2, 1)),
    "2d, global, many taps": Case((11, 11), 11),
    "3d": Case((4, 5, 3), 2),
    "3d, all unequal": Case((4, 5, 6), (3, 2, 2), (1, 2, 3), ("SAME", "VALID", "CAUSAL"), (1, 2, 3)),
    "3d, many taps": Case((5, 5, 6), 5, 1, 2),
}
OPS = {
    "max": max_pool,
    "avg": avg_pool,
    "avg of samples": functools.partial(avg_pool, count_padding=False),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_op = pytest.mark.parametrize("op", OPS)


def draw(*shape: int, seed: int = 3) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-3, 4, shape) / 2).astype(np.float32)


def weights(op: str, x: np.ndarray, case: Case) -> np.ndarray:
    """Weights of every sample in every output: (batch, *output, *space, channels)."""
    matrix = np.zeros((x.shape[0], *case.output(), *case.space, x.shape[-1]), np.float32)
    windows: dict[Any, list[Any]] = {}
    for p, _, i in reference.reads(case.space, case.taps(), case.steps(), case.padding, "zeros", case.dilation):
        windows.setdefault(p, []).append(i)
    for p, places in windows.items():
        for n, c in np.ndindex(x.shape[0], x.shape[-1]):
            if op == "max":
                values = [x[n, *i, c] for i in places]
                matrix[n, *p, *places[values.index(max(values))], c] = 1
            else:
                for i in places:
                    matrix[n, *p, *i, c] = 1 / (np.prod(case.taps()) if op == "avg" else len(places))
    return matrix.reshape(x.shape[0], *case.output(), -1, x.shape[-1])


def pooled(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.einsum("n...ic,nic->n...c", matrix, x.reshape(x.shape[0], -1, x.shape[-1]))


def spread(matrix: np.ndarray, g: np.ndarray, case: Case) -> np.ndarray:
    rows = matrix.reshape(g.shape[0], -1, *matrix.shape[-2:])
    return np.einsum("npic,npc->nic", rows, g.reshape(g.shape[0], -1, g.shape[-1])).reshape(-1, *case.space, g.shape[-1])


def close(actual: Any, expected: np.ndarray) -> None:
    assert actual.dtype == jnp.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max(initial=0))


@each_case
@each_op
def test_value_and_derivatives_equal_the_oracle(case, op):
    x = draw(BATCH, *case.space, CHANNELS)
    matrix = weights(op, x, case)
    dx, w = draw(*x.shape, seed=5), draw(BATCH, *case.output(), CHANNELS, seed=6)
    pool = lambda x: OPS[op](x, case.window, **case.arguments())  # noqa: E731

    @jax.jit
    def run(x):
        gradient = jax.grad(lambda x: 0.5 * jnp.sum(w * pool(x) ** 2))
        return jax.jvp(pool, (x,), (dx,)), gradient(x), jax.grad(lambda x: jnp.vdot(gradient(x), dx))(x)

    (value, tangent), first, second = run(x)
    y, dy = pooled(matrix, x), pooled(matrix, dx)
    close(value, y)
    close(tangent, dy)
    close(first, spread(matrix, w * y, case))
    close(second, spread(matrix, w * dy, case))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dilation == 1])
def test_max_equals_reduce_window(name):
    case = CASES[name]
    pads = dilax.explicit_padding(case.space, case.taps(), stride=case.steps(), padding=case.padding)
    x, g = draw(BATCH, *case.space, CHANNELS), draw(BATCH, *case.output(), CHANNELS, seed=6)

    def theirs(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *case.taps(), 1), (1, *case.steps(), 1), ((0, 0), *pads, (0, 0)))

    @jax.jit
    def run(x):
        return [
            (y, pull_back(g)[0])
            for y, pull_back in (jax.vjp(lambda x: max_pool(x, case.window, **case.arguments()), x), jax.vjp(theirs, x))
        ]

    (ours_y, ours_g), (theirs_y, theirs_g) = run(x)
    np.testing.assert_array_equal(ours_y, theirs_y)
    np.testing.assert_array_equal(ours_g, theirs_g)  # sums of halves: exact in any order


FEW = ["2d, overlapping, same", "2d, many taps", "3d, all unequal"]
TRANSFORMS = {
    "jit": lambda pool, xs: jnp.stack([jax.jit(pool)(x) for x in xs]),
    "vmap": lambda pool, xs: jax.vmap(pool)(xs),
    "vmap, inner axis": lambda pool, xs: jax.vmap(pool, in_axes=2, out_axes=1)(jnp.moveaxis(xs, 0, 2)).swapaxes(0, 1),
    "remat": lambda pool, xs: jnp.stack([jax.checkpoint(pool)(x) for x in xs]),
    "scan": lambda pool, xs: lax.scan(lambda count, x: (count + 1, pool(x)), 0, xs)[1],
}


@pytest.mark.parametrize("name", FEW)
@each_op
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_keep_values_and_gradients(name, op, transform):
    case = CASES[name]
    xs, g = draw(2, BATCH, *case.space, CHANNELS), draw(2, BATCH, *case.output(), CHANNELS, seed=6)

    @jax.jit
    def run(xs):
        y, pull_back = jax.vjp(lambda xs: TRANSFORMS[transform](lambda x: OPS[op](x, case.window, **case.arguments()), xs), xs)
        return y, pull_back(g)[0]

    ys, gradients = run(xs)
    for x, y, g_of_x, gradient in zip(xs, ys, g, gradients, strict=True):
        matrix = weights(op, x, case)
        close(y, pooled(matrix, x))
        close(gradient, spread(matrix, g_of_x, case))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32", "int8", "uint8"])
@pytest.mark.parametrize("name", FEW)
def test_max_keeps_the_dtype(name, dtype):
    case = CASES[name]
    x = jnp.asarray(2 * draw(BATCH, *case.space, CHANNELS) + 3 - (100 if dtype == "int8" else 0), dtype)
    y = max_pool(x, case.window, **case.arguments())
    assert y.dtype == dtype
    wide = np.asarray(x, np.float32)
    np.testing.assert_array_equal(np.asarray(y, np.float32), pooled(weights("max", wide, case), wide))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@each_op
def test_half_precision_gradients_have_its_dtype(op, dtype):
    case = CASES["2d, overlapping, same"]
    x = draw(BATCH, *case.space, CHANNELS)
    g = draw(BATCH, *case.output(), CHANNELS, seed=6)
    y, pull_back = jax.vjp(lambda x: OPS[op](x, case.window, **case.arguments()), jnp.asarray(x, dtype))
    (gradient,) = pull_back(jnp.asarray(g, dtype))
    assert y.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(np.asarray(gradient, np.float32), spread(weights(op, x, case), g, case), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_half_precision_means_are_summed_in_float32(dtype, rounding):
    x = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1.5, (1, 900, 2)), dtype)
    y = avg_pool(x, 900)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), np.asarray(x, np.float64).mean(1, keepdims=True), rtol=1.01 * rounding)


@pytest.mark.parametrize("window", [(3, 2), (3, 22)])
@pytest.mark.parametrize("place", [(2, 21), (0, 0), (4, 22)])
def test_a_nan_is_the_maximum_of_its_windows_and_gets_their_gradient(window, place):
    x = draw(1, 5, 23, 1)
    x[0, *place, 0] = np.nan
    y, pull_back = jax.vjp(lambda x: max_pool(x, window, stride=1), x)
    touched = np.array([[0 <= place[0] - i < window[0] and 0 <= place[1] - j < window[1] for j in range(y.shape[2])] for i in range(3)])
    np.testing.assert_array_equal(np.isnan(y[0, ..., 0]), touched)
    assert pull_back(jnp.ones_like(y))[0][0, *place, 0] == float(touched.sum())


@pytest.mark.parametrize("window", [3, 65])
def test_minus_infinity_is_an_ordinary_sample(window):
    x = jnp.full((1, 70, 1), -jnp.inf)
    y, tangent = jax.jvp(lambda x: max_pool(x, window, stride=1, padding="CAUSAL"), (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(y, x)
    # If the padding comes first, it is the maximum.
    np.testing.assert_array_equal(tangent[0, :, 0], [0] * (window - 1) + [1] * (71 - window))


@pytest.mark.parametrize("op", [max_pool, avg_pool])
@pytest.mark.parametrize("window", [(3, 4), (9, 8)])
def test_receptive_field(op, window):
    actual = dilax.receptive_field(
        lambda x: op(x, window, stride=(2, 3), padding=((1, 0), 2), dilation=(2, 1)), jax.ShapeDtypeStruct((1, 50, 50, 2), jnp.float32)
    )
    expected = [((k - 1) * d + 1, s, -lo) for k, d, s, lo in zip(window, (2, 1), (2, 3), (1, 2))]
    assert [(field.size, field.stride, field.offset) for field in actual] == expected


@each_op
def test_a_batch_of_unknown_size_exports(op):
    shape = jax.export.symbolic_shape("b, 8, 9, 2")
    exported = jax.export.export(jax.jit(lambda x: OPS[op](x, 3, stride=2, padding="SAME")))(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = draw(3, 8, 9, 2)
    np.testing.assert_allclose(exported.call(x), OPS[op](x, 3, stride=2, padding="SAME"), rtol=1e-6)


X = jnp.ones((2, 9, 8, 3))


def test_pooling_of_sequences_by_hand():
    x, lengths = np.random.default_rng(0).normal(-2, 1, (3, 7, 4)).astype(np.float32), (7, 3, 0)
    mask = jnp.asarray(np.arange(7) < np.array(lengths)[:, None])
    expected = {
        "max": np.stack([x[0].max(0), x[1, :3].max(0), np.zeros(4)]),
        "mean": np.stack([x[0].mean(0), x[1, :3].mean(0), np.zeros(4)]),
        "last": np.stack([x[0, 6], x[1, 2], np.zeros(4)]),
    }
    padded = jnp.asarray(np.where(np.asarray(mask)[..., None], x, np.nan))
    for kind, values in expected.items():
        np.testing.assert_allclose(pool_sequence(padded, kind=kind, mask=mask), values, rtol=1e-5)
        gradient = np.asarray(jax.grad(lambda x, kind=kind: pool_sequence(x, kind=kind, mask=mask).sum())(padded))
        assert np.isfinite(gradient).all() and (gradient[~np.asarray(mask)] == 0).all()
        np.testing.assert_allclose(gradient.sum(1), np.array([[1] * 4, [1] * 4, [0] * 4]), rtol=1e-5)
        np.testing.assert_allclose(pool_sequence(jnp.asarray(x), kind=kind)[:1], values[:1], rtol=1e-5)


ERRORS = {
    "booleans": (
        lambda: max_pool(X > 0, 2),
        "max_pool: x has dtype bool; convert it to an integer or a floating-point dtype such as float32 first.",
    ),
    "mean of integers": (
        lambda: avg_pool(jnp.ones((2, 9, 3), jnp.int32), 2),
        "avg_pool: x has dtype int32; convert it to a floating-point dtype such as float32 first.",
    ),
    "x without channels": (
        lambda: max_pool(X[0, 0], 2),
        "max_pool: x of shape (8, 3) must be (batch, *space, channels) with 1, 2 or 3 spatial axes.",
    ),
    "window 0": (lambda: avg_pool(X, 0), "avg_pool: window=0 is below 1; use 1 or more."),
    "window of another rank": (
        lambda: max_pool(X, (2, 2, 2)),
        "max_pool: window=(2, 2, 2) has length 3, but there are 2 spatial axes; give an int or a tuple of 2 ints.",
    ),
    "stride of a float": (lambda: max_pool(X, 2, stride=1.5), "max_pool: stride=1.5 is not an integer; give an int or a tuple of 2 ints."),  # pyright: ignore[reportArgumentType]
    "dilation 0": (lambda: max_pool(X, 2, dilation=0), "max_pool: dilation=0 is below 1; use 1 or more."),
    "window wider than the input": (
        lambda: avg_pool(X, 3, dilation=(1, 4)),
        "avg_pool: the window spans 9 samples, which is more than an axis of 8 has with padding='VALID'; "
        "use a smaller window or dilation, or padding='SAME'.",
    ),
    "no samples": (
        lambda: max_pool(X[:, :0], 2),
        "max_pool: the input has an axis of length 0; every spatial axis needs at least one sample.",
    ),
    "no samples, padded": (
        lambda: max_pool(X[:, :0], 2, padding=1),
        "max_pool: the input has an axis of length 0; every spatial axis needs at least one sample.",
    ),
    "misspelt padding": (
        lambda: max_pool(X, 2, padding="same"),
        "max_pool: padding='same' is not valid; use one of ('SAME', 'VALID', 'CAUSAL', 'TORCH'), an int, or a (lo, hi) pair per axis. "
        'Did you mean "SAME"?',
    ),
    "padding alone": (
        lambda: max_pool(X, 2, padding=(0, 2)),
        "max_pool: with padding=(0, 2) and dilation 1, a window on an axis of 8 contains only padding; use less padding or a smaller dilation.",
    ),
    "kind": (
        lambda: pool_sequence(X[..., 0], kind="first"),
        "pool_sequence: kind='first' is unknown; use one of ('max', 'mean', 'last').",
    ),
    "shapes": (
        lambda: pool_sequence(X[..., 0], kind="max", mask=jnp.ones((1, 3), bool)),
        "pool_sequence: x of shape (2, 9, 8) and mask of shape (1, 3) must be (batch, time, channels) and (batch, time).",
    ),
    "padding alone, between taps": (
        lambda: avg_pool(X[:, :2], 2, stride=1, padding="SAME", dilation=(3, 1), count_padding=False),
        "avg_pool: with padding='SAME' and dilation 3, a window on an axis of 2 contains only padding; use less padding or a smaller dilation.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    check_call(*ERRORS[name])


def test_a_mean_of_only_padding_is_zero():
    np.testing.assert_array_equal(avg_pool(X, 2, padding=((0, 1), 2))[0, -1, :, 0], [0, 0.5, 0.5, 0.5, 0.5, 0])
