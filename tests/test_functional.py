"""Laws 1 to 4 of the convolution functions: one table of cases, one list of laws, every lowering.

All lowerings are held to the same oracle in value, tangent, gradients, second derivative and dtype, so they also agree among themselves.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import dilax

BATCH = 2
LOWERINGS = list(dilax.LOWERINGS)


class Case(NamedTuple):
    space: tuple[int, ...]
    window: tuple[int, ...]
    c_in: int = 3
    c_out: int = 2
    stride: Any = 1
    padding: Any = "SAME"
    padding_mode: str = "zeros"
    dilation: Any = 1
    groups: int = 1

    def geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def arguments(self) -> dict[str, Any]:
        return {**self.geometry(), "padding_mode": self.padding_mode, "groups": self.groups}

    def plan(self, batch: int = BATCH) -> dilax.ConvPlan:
        """The plan that the functions create for zero padding."""
        axes = [reference.per_axis(value, len(self.space)) for value in (self.stride, self.dilation)]
        pads = dilax.explicit_padding(self.space, self.window, **self.geometry())
        return dilax.ConvPlan(batch, self.space, self.c_in, self.c_out, self.window, axes[0], pads, axes[1], self.groups, "float32")

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of x, the kernel and the output."""
        out = reference.output_size(self.space, self.window, self.stride, self.padding, self.dilation)
        kernel = (*self.window, self.c_in // self.groups, self.c_out)
        return (BATCH, *self.space, self.c_in), kernel, (BATCH, *out, self.c_out)


CASES = {
    "odd window": Case((7,), (3,)),
    "even window": Case((7,), (4,)),
    "even window, odd dilation": Case((8,), (2,), dilation=3),
    "dilation below the kernel": Case((9,), (3,), dilation=2),
    "dilation of the kernel": Case((9,), (3,), dilation=3),
    "dilation above the kernel": Case((11,), (3,), dilation=4),
    "dilation of the input": Case((5,), (3,), dilation=5),
    "dilation above the input": Case((5,), (4,), dilation=7),
    "stride": Case((8,), (3,), stride=2),
    "stride, odd sample": Case((7,), (4,), stride=2),
    "stride above the kernel": Case((10,), (2,), stride=4),
    "stride and dilation": Case((11,), (3,), stride=3, dilation=2),
    "valid": Case((9,), (3,), padding="VALID", dilation=2),
    "valid, stride leaves a rest": Case((10,), (2,), stride=3, padding="VALID", dilation=3),
    "causal": Case((8,), (3,), padding="CAUSAL", dilation=2),
    "causal, stride": Case((8,), (2,), stride=3, padding="CAUSAL", dilation=4),
    "causal, dilation above the input": Case((4,), (3,), padding="CAUSAL", dilation=5),
    "torch": Case((8,), (3,), padding="TORCH", dilation=2),
    "torch, even window": Case((9,), (2,), stride=2, padding="TORCH", dilation=3),
    "int": Case((7,), (3,), stride=2, padding=2, dilation=2),
    "pair": Case((7,), (3,), padding=((0, 3),), dilation=2),
    "padding beyond the kernel": Case((5,), (2,), stride=2, padding=((4, 3),)),
    "kernel of one tap": Case((5,), (1,), dilation=3),
    "kernel of one tap, stride": Case((6,), (1,), stride=4),
    "kernel of one tap, padded": Case((4,), (1,), padding=((2, 1),)),
    "one sample": Case((1,), (3,), dilation=2),
    "one sample, causal": Case((1,), (2,), stride=2, padding="CAUSAL", dilation=3),
    "groups": Case((7,), (3,), c_in=4, c_out=6, dilation=2, groups=2),
    "depthwise": Case((8,), (3,), c_in=3, c_out=3, stride=2, dilation=3, groups=3),
    "depthwise, multiplier": Case((6,), (2,), c_in=3, c_out=6, padding="CAUSAL", dilation=2, groups=3),
    "reflect": Case((6,), (3,), padding_mode="reflect", dilation=2),
    "reflect, longer than the axis": Case((3,), (3,), padding=((8, 5),), padding_mode="reflect", dilation=2),
    "reflect, one sample": Case((1,), (3,), padding_mode="reflect", dilation=2),
    "edge": Case((6,), (4,), stride=2, padding="TORCH", padding_mode="edge", dilation=3),
    "wrap": Case((6,), (3,), padding="CAUSAL", padding_mode="wrap", dilation=2),
    "wrap, longer than the axis": Case((3,), (2,), padding=((7, 8),), padding_mode="wrap", dilation=3),
    "2d": Case((5, 7), (3, 2), dilation=(1, 3)),
    "2d, all unequal": Case((7, 6), (2, 3), stride=(3, 2), dilation=(2, 1)),
    "2d, causal and same": Case((5, 4), (3, 2), stride=(2, 1), padding=("CAUSAL", "SAME"), dilation=(2, 3)),
    "2d, int and int": Case((4, 5), (2, 3), padding=(1, 2)),
    "2d, pair and word": Case((6, 5), (3, 3), stride=2, padding=((0, 3), "VALID"), dilation=(2, 1)),
    "2d, dilation above the input": Case((3, 4), (3, 3), dilation=(4, 5)),
    "2d, groups": Case((5, 6), (3, 2), c_in=6, c_out=3, stride=(1, 2), padding="TORCH", dilation=2, groups=3),
    "2d, depthwise": Case((5, 6), (3, 3), c_in=4, c_out=4, dilation=(2, 1), groups=4),
    "2d, depthwise, multiplier": Case((6, 5), (2, 3), c_in=2, c_out=6, stride=(1, 2), padding=((0, 3), 1), dilation=(1, 2), groups=2),
    "2d, reflect": Case((4, 5), (3, 2), stride=(2, 1), padding_mode="reflect", dilation=(3, 2)),
    "2d, wrap, depthwise": Case((4, 5), (3, 3), c_in=2, c_out=2, padding=("CAUSAL", 2), padding_mode="wrap", dilation=(1, 2), groups=2),
    "3d": Case((3, 4, 5), (2, 3, 1), c_in=2, dilation=(2, 1, 3)),
    "3d, stride and groups": Case(
        (4, 3, 5), (3, 2, 2), c_in=4, stride=(2, 1, 3), padding=("SAME", 1, "CAUSAL"), dilation=(1, 2, 2), groups=2
    ),
    "3d, depthwise, edge": Case((3, 4, 3), (2, 2, 3), c_in=2, c_out=4, padding_mode="edge", dilation=(1, 3, 1), groups=2),
}
# Cases for jit, vmap, remat and scan: dense, grouped and depthwise, each with stride, dilation and odd padding somewhere.
FEW = ["2d, reflect", "depthwise, multiplier", "2d, depthwise, multiplier", "3d, stride and groups"]

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def each_way(cases: dict[str, Case]) -> Any:
    """Every case with every lowering that supports it; "auto" selects one of these."""
    ways = [
        pytest.param(case, lowering, id=f"{name}-{lowering}")
        for name, case in cases.items()
        for lowering in LOWERINGS
        if dilax.lowerings.supports(lowering, case.plan())
    ]
    return pytest.mark.parametrize(("case", "lowering"), ways)


each_zero_padded = pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CASES.items() if case.padding_mode == "zeros"]
)


def draw(*shapes: tuple[int, ...], seed: int = 7) -> list[Any]:
    """One random float32 array per shape, with a nonzero mean so that a lost tap or sample is noticed."""
    rng = np.random.default_rng(seed)
    return [rng.normal(0.3, 1.0, shape).astype(np.float32) for shape in shapes]


def close(actual: Any, expected: np.ndarray, dtype: Any = jnp.float32) -> None:
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max(initial=0))


def bilinear_law(op, a, b, expected_op, expected_for_a, expected_for_b) -> None:
    """Hold value, tangent, gradients and second derivative of op(a, b) to the oracle.

    The second derivative is that of 0.5 * sum(w * op(a, b) ** 2), reverse over reverse (which is built on forward over reverse);
    for a bilinear op it is an exact sum of the oracle's three functions.
    """
    y = expected_op(a, b)
    w, da, db = draw(y.shape, a.shape, b.shape, seed=11)

    def slope(a, b):
        for_a, for_b = jax.grad(lambda a, b: 0.5 * jnp.sum(w * op(a, b) ** 2), argnums=(0, 1))(a, b)
        return jnp.vdot(for_a, da) + jnp.vdot(for_b, db), (for_a, for_b)

    @jax.jit
    def derivatives(a, b):
        return jax.jvp(op, (a, b), (da, db)), jax.grad(slope, argnums=(0, 1), has_aux=True)(a, b)

    (value, tangent), (second, first) = derivatives(a, b)
    dy = expected_op(da, b) + expected_op(a, db)
    close(value, y)
    close(tangent, dy)
    close(first[0], expected_for_a(w * y, b))
    close(first[1], expected_for_b(a, w * y))
    close(second[0], expected_for_a(w * dy, b) + expected_for_a(w * y, db))
    close(second[1], expected_for_b(a, w * dy) + expected_for_b(da, w * y))


@each_case
def test_value_equals_the_oracle(case):
    x, kernel = draw(*case.shapes()[:2])
    close(dilax.dilated_conv(x, kernel, **case.arguments()), reference.conv(x, kernel, **case.arguments()))


@each_way(CASES)
def test_derivatives_equal_the_oracle(case, lowering):
    x, kernel = draw(*case.shapes()[:2])
    bilinear_law(
        lambda x, kernel: dilax.dilated_conv(x, kernel, **case.arguments(), lowering=lowering),
        x,
        kernel,
        lambda x, kernel: reference.conv(x, kernel, **case.arguments()),
        lambda g, kernel: reference.conv_transpose(g, kernel, case.space, **case.arguments()),
        lambda x, g: reference.kernel_gradient(x, g, case.window, **case.arguments()),
    )


@each_case
def test_dilation_is_a_zero_stuffed_kernel(case):
    x, kernel = draw(*case.shapes()[:2])
    stuffed = jnp.asarray(reference.zero_stuffed(kernel, case.dilation))
    dense = dilax.dilated_conv(x, stuffed, **{**case.arguments(), "dilation": 1})
    close(dilax.dilated_conv(x, kernel, **case.arguments()), np.asarray(dense))


@each_zero_padded
def test_transpose_and_its_derivatives_equal_the_oracle(case):
    y, kernel = draw(*case.shapes()[:0:-1])
    arguments = {**case.geometry(), "groups": case.groups}
    bilinear_law(
        lambda y, kernel: dilax.dilated_conv_transpose(y, kernel, **arguments, output_size=case.space),
        y,
        kernel,
        lambda y, kernel: reference.conv_transpose(y, kernel, case.space, **arguments),
        lambda g, kernel: reference.conv(g, kernel, **arguments),
        lambda y, g: reference.kernel_gradient(g, y, case.window, **arguments),
    )


@each_zero_padded
def test_transpose_is_the_adjoint_at_its_default_size(case):
    _, kernel_shape, y_shape = case.shapes()
    arguments = {**case.geometry(), "groups": case.groups}
    space = reference.transpose_size(y_shape[1:-1], case.window, **case.geometry())
    x, kernel, y = draw((BATCH, *space, case.c_in), kernel_shape, y_shape)
    back = dilax.dilated_conv_transpose(y, kernel, **arguments)
    close(back, reference.conv_transpose(y, kernel, space, **arguments))
    forth = dilax.dilated_conv(x, kernel, **arguments)
    np.testing.assert_allclose(np.vdot(forth, y), np.vdot(x, back), rtol=1e-4, atol=1e-3)


def test_transpose_takes_one_output_size_for_all_axes():
    y, kernel = draw((1, 4, 4, 2), (3, 2, 3, 2))
    back = dilax.dilated_conv_transpose(y, kernel, stride=2, output_size=7)
    close(back, reference.conv_transpose(y, kernel, (7, 7), stride=2))


# Each with the examples and the kernels from which its outputs are computed.
TRANSFORMS = {
    "jit": (lambda conv, xs, ks: jnp.stack([jax.jit(conv)(x, ks[0]) for x in xs]), (0, 1, 2), (0, 0, 0)),
    "vmap x": (lambda conv, xs, ks: jax.vmap(conv, (0, None))(xs, ks[0]), (0, 1, 2), (0, 0, 0)),
    "vmap x, inner axis": (lambda conv, xs, ks: jax.vmap(conv, (2, None))(jnp.moveaxis(xs, 0, 2), ks[0]), (0, 1, 2), (0, 0, 0)),
    "vmap kernel": (lambda conv, xs, ks: jax.vmap(conv, (None, 0), out_axes=1)(xs[0], ks).swapaxes(0, 1), (0, 0, 0), (0, 1, 2)),
    "vmap kernel, inner axis": (lambda conv, xs, ks: jax.vmap(conv, (None, 1))(xs[0], jnp.moveaxis(ks, 0, 1)), (0, 0, 0), (0, 1, 2)),
    "vmap both": (lambda conv, xs, ks: jax.vmap(conv, (0, -1))(xs, jnp.moveaxis(ks, 0, -1)), (0, 1, 2), (0, 1, 2)),
    "vmap twice": (lambda conv, xs, ks: jax.vmap(jax.vmap(conv, (None, 0)), (0, None))(xs, ks)[:, 1], (0, 1, 2), (1, 1, 1)),
    "remat": (lambda conv, xs, ks: jnp.stack([jax.checkpoint(conv)(x, ks[0]) for x in xs]), (0, 1, 2), (0, 0, 0)),
    "scan": (lambda conv, xs, ks: jax.lax.scan(lambda count, pair: (count + 1, conv(*pair)), 0, (xs, ks))[1], (0, 1, 2), (0, 1, 2)),
}


@each_way({name: CASES[name] for name in FEW})
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_keep_values_and_gradients(case, transform, lowering):
    x_shape, kernel_shape, y_shape = case.shapes()
    xs, ks, gs = draw((3, *x_shape), (3, *kernel_shape), (3, *y_shape))

    transformed, of_x, of_k = TRANSFORMS[transform]

    def loss(xs, ks):
        ys = transformed(lambda x, k: dilax.dilated_conv(x, k, **case.arguments(), lowering=lowering), xs, ks)
        return jnp.vdot(ys, gs), ys

    (for_xs, for_ks), ys = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(xs, ks)
    expected_xs, expected_ks = np.zeros(xs.shape), np.zeros(ks.shape)
    for y, g, i, j in zip(ys, gs, of_x, of_k, strict=True):
        close(y, reference.conv(xs[i], ks[j], **case.arguments()))
        expected_xs[i] += reference.conv_transpose(g, ks[j], case.space, **case.arguments())
        expected_ks[j] += reference.kernel_gradient(xs[i], g, case.window, **case.arguments())
    close(for_xs, expected_xs)
    close(for_ks, expected_ks)


@each_way({name: CASES[name] for name in FEW})
def test_gradients_per_example(case, lowering):
    x_shape, kernel_shape, y_shape = case.shapes()
    xs, kernel, gs = draw((3, *x_shape), kernel_shape, (3, *y_shape))

    def gradients(x, g):
        _, pull_back = jax.vjp(lambda x, k: dilax.dilated_conv(x, k, **case.arguments(), lowering=lowering), x, kernel)
        return pull_back(g)

    for_xs, for_kernel = jax.jit(jax.vmap(gradients))(xs, gs)
    close(for_xs, np.stack([reference.conv_transpose(g, kernel, case.space, **case.arguments()) for g in gs]))
    close(for_kernel, np.stack([reference.kernel_gradient(x, g, case.window, **case.arguments()) for x, g in zip(xs, gs, strict=True)]))


DEPTHWISE = [name for name, case in CASES.items() if case.groups == case.c_in]


def sides(case: Case) -> dict[str, Any]:
    return {**case.geometry(), "padding_mode": case.padding_mode}


@each_way({name: CASES[name] for name in DEPTHWISE})
def test_depthwise_and_its_derivatives_equal_the_oracle(case, lowering):
    x, kernel = draw(*case.shapes()[:2])
    bilinear_law(
        lambda x, kernel: dilax.depthwise_conv(x, kernel, **sides(case), lowering=lowering),
        x,
        kernel,
        lambda x, kernel: reference.depthwise(x, kernel, **sides(case)),
        lambda g, kernel: reference.conv_transpose(g, kernel, case.space, **case.arguments()),
        lambda x, g: reference.kernel_gradient(x, g, case.window, **case.arguments()),
    )


@each_way({name: CASES[name] for name in DEPTHWISE})
def test_separable_and_its_gradients_equal_the_oracle(case, lowering):
    x_shape, kernel_shape, (*middle_shape, c_middle) = case.shapes()
    x, kernel, pointwise, g = draw(x_shape, kernel_shape, (*(1 for _ in case.window), c_middle, 5), (*middle_shape, 5))

    @jax.jit
    def value_and_gradients(*arrays):
        y, pull_back = jax.vjp(lambda *arrays: dilax.separable_conv(*arrays, **sides(case), lowering=lowering), *arrays)
        return y, pull_back(g)

    y, (for_x, for_kernel, for_pointwise) = value_and_gradients(x, kernel, pointwise)
    middle = reference.depthwise(x, kernel, **sides(case))
    back = reference.conv_transpose(g, pointwise, case.shapes()[2][1:-1])
    close(y, reference.conv(middle, pointwise))
    close(for_x, reference.conv_transpose(back, kernel, case.space, **case.arguments()))
    close(for_kernel, reference.kernel_gradient(x, back, case.window, **case.arguments()))
    close(for_pointwise, reference.kernel_gradient(middle, g, (1,) * len(case.window)))


CAUSAL = {
    "1d": Case((9,), (3,), padding="CAUSAL", dilation=2),
    "1d, stride": Case((9,), (2,), stride=2, padding="CAUSAL", dilation=3),
    "1d, edge": Case((9,), (3,), padding="CAUSAL", padding_mode="edge", dilation=2),
    "1d, depthwise": Case((9,), (3,), c_out=6, padding="CAUSAL", dilation=2, groups=3),
    "2d, first axis": Case((6, 5), (3, 3), padding=("CAUSAL", "SAME"), dilation=(2, 1)),
    "2d, first axis, depthwise": Case((6, 5), (3, 2), c_out=3, padding=("CAUSAL", "SAME"), dilation=(1, 2), groups=3),
}


@each_way(CAUSAL)
def test_the_past_does_not_see_the_future(case, lowering):
    x, kernel, noise = draw(*case.shapes()[:2], case.shapes()[0])
    conv = jax.jit(lambda x: dilax.dilated_conv(x, kernel, **case.arguments(), lowering=lowering))
    y = np.asarray(conv(x))
    step = reference.per_axis(case.stride, 1)[0]
    for now in range(case.space[0]):
        changed = np.asarray(conv(np.concatenate([x[:, : now + 1], 1e3 * noise[:, now + 1 :]], axis=1)))
        known = now // step + 1
        np.testing.assert_array_equal(changed[:, :known].view(np.uint32), y[:, :known].view(np.uint32))
        assert known == y.shape[1] or np.all(changed[:, known] != y[:, known])


HALF_ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
# Sums of thousands of positive terms, over input channels, over positions (kernel gradient) and over output channels (input gradient).
LONG_SUMS = {
    "inputs": Case((3,), (2,), c_in=4096, c_out=2, dilation=2),
    "positions": Case((1500,), (2,), c_in=2, dilation=2),
    "outputs": Case((3,), (2,), c_in=2, c_out=4096, dilation=2),
    "depthwise, positions": Case((1200,), (2,), c_in=2, c_out=4, groups=2),
    "depthwise, 2d": Case((20, 30), (3, 2), c_in=2, c_out=2, dilation=(1, 2), groups=2),
    "depthwise, taps": Case((26,), (24,), c_in=2, c_out=2, padding="VALID", groups=2),
}


@each_way(LONG_SUMS)
@pytest.mark.parametrize("dtype", HALF_ROUNDING)
def test_half_precision_sums_in_float32(case, dtype, lowering):
    rng = np.random.default_rng(5)
    x, kernel, g = (jnp.asarray(rng.uniform(0.5, 1.5, shape), dtype) for shape in case.shapes())

    @jax.jit
    def value_and_gradients(x, kernel):
        y, pull_back = jax.vjp(lambda x, kernel: dilax.dilated_conv(x, kernel, **case.arguments(), lowering=lowering), x, kernel)
        return y, *pull_back(g)

    y, for_x, for_kernel = value_and_gradients(x, kernel)
    x, kernel, g = (np.asarray(array, np.float64) for array in (x, kernel, g))
    for actual, expected in (
        (y, reference.conv(x, kernel, **case.arguments())),
        (for_x, reference.conv_transpose(g, kernel, case.space, **case.arguments())),
        (for_kernel, reference.kernel_gradient(x, g, case.window, **case.arguments())),
    ):
        assert actual.dtype == dtype
        np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=1.01 * HALF_ROUNDING[dtype])


@pytest.mark.parametrize(
    ("of_x", "of_kernel", "of_y"),
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float16", "float16"),
        ("bfloat16", "float32", "float32"),
        ("float32", "float16", "float32"),
        ("bfloat16", "float16", "float32"),
    ],
)
@pytest.mark.parametrize("lowering", ["auto", "lax"])
@jax.numpy_dtype_promotion("standard")
def test_mixed_dtypes_promote(of_x, of_kernel, of_y, lowering):
    x, kernel, pointwise = draw((1, 6, 2), (3, 1, 4), (1, 4, 3))
    x, kernel, pointwise = jnp.asarray(x, of_x), jnp.asarray(kernel, of_kernel), jnp.asarray(pointwise, of_kernel)
    y, pull_back = jax.vjp(lambda x, kernel: dilax.dilated_conv(x, kernel, groups=2, dilation=2, lowering=lowering), x, kernel)
    assert y.dtype == of_y
    assert [gradient.dtype for gradient in pull_back(jnp.ones_like(y))] == [of_x, of_kernel]
    expected = reference.conv(np.asarray(x, np.float32), np.asarray(kernel, np.float32), groups=2, dilation=2)
    rounding = 1e-5 + HALF_ROUNDING.get(of_y, 0)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=1.01 * rounding, atol=1e-6)
    assert dilax.depthwise_conv(x, kernel, lowering=lowering).dtype == of_y
    assert dilax.separable_conv(x, kernel, pointwise, lowering=lowering).dtype == of_y
    assert dilax.dilated_conv_transpose(y.astype(of_x), kernel, groups=2, lowering=lowering).dtype == of_y


@pytest.mark.parametrize("op", ["dilated_conv", "depthwise_conv", "separable_conv", "dilated_conv_transpose"])
def test_precision_reaches_xla(op):
    x, kernel, pointwise = draw((1, 6, 1), (3, 1, 1), (1, 1, 1))
    arrays = (x, kernel, pointwise) if op == "separable_conv" else (x, kernel)
    jaxpr = str(jax.make_jaxpr(lambda *arrays: getattr(dilax, op)(*arrays, precision="highest", lowering="lax"))(*arrays))
    assert jaxpr.count("Precision.HIGHEST") == 2 * (len(arrays) - 1)  # one each for the two operands of every product
