"""The lowerings as a whole: the rule, the primitives under all transformations, devices, export, and `autotune`.

The values of each lowering are tested in test_functional.py.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dilax
from dilax import lowerings
from dilax.lowerings import onednn, products, registry
from dilax.plan import ConvPlan

NATIVE = ("onednn",) if onednn.is_installed() else ()
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 3)), jnp.float32)
K = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 4)), jnp.float32)


def plan_of(x_shape, c_out, window, *, stride: Any = 1, padding: Any = "SAME", dilation: Any = 1, groups=1) -> ConvPlan:
    rank = len(window)
    stride, dilation = ((value,) * rank if isinstance(value, int) else value for value in (stride, dilation))
    pads = dilax.explicit_padding(x_shape[1:-1], window, stride=stride, padding=padding, dilation=dilation)
    return ConvPlan(x_shape[0], x_shape[1:-1], x_shape[-1], c_out, window, stride, pads, dilation, groups, "float32")


def draw(*shapes):
    rng = np.random.default_rng(3)
    return [jnp.asarray(rng.normal(0.3, 1.0, shape), jnp.float32) for shape in shapes]


def marked(x, kernel, plan):
    """An output that is recognisable by its values."""
    return lowerings.LOWERINGS["lax"].output(x, kernel, plan) + 100


@pytest.fixture
def cpu_is_marked(monkeypatch):
    monkeypatch.setitem(lowerings.LOWERINGS, "marked", dilax.Lowering(marked))
    monkeypatch.setattr(registry, "select_lowering", lambda plan, platform, **_: "marked" if platform == "cpu" else "lax")
    jax.clear_caches()
    yield
    jax.clear_caches()


PLANS = {
    "depthwise": (plan_of((8, 32, 32, 64), 64, (3, 3), groups=64, dilation=2), ("taps",) * 3),
    "depthwise, too many taps": (plan_of((2, 40, 40, 64), 64, (9, 9), groups=64), ("lax",) * 3),
    "small groups": (plan_of((2, 14, 14, 128), 128, (3, 3), groups=32), ("taps",) * 3),
    "wide groups": (plan_of((2, 14, 14, 64), 64, (3, 3), groups=2), ("split",) * 3),
    "many wide groups": (plan_of((2, 14, 14, 1024), 1024, (3, 3), groups=64), ("lax",) * 3),
    "1x1": (plan_of((8, 8, 8, 3), 5, (1, 1), stride=2), ("products",) * 3),
    "1x1, padded": (plan_of((8, 8, 8, 3), 5, (1, 1), padding=1), ("lax", "lax", "patches")),
    "ASPP": (plan_of((1, 33, 33, 2048), 256, (3, 3), dilation=12), ("products",) * 3),
    "large map": (plan_of((8, 64, 64, 64), 64, (3, 3), dilation=2), ("lax", "lax", "patches")),
    "stride": (plan_of((8, 56, 56, 64), 128, (3, 3), stride=2), ("products", "products", "products")),
    "stem": (plan_of((128, 32, 32, 3), 32, (3, 3)), ("lax", "lax", "patches")),
    "3-D": (plan_of((1, 16, 32, 32, 32), 32, (3, 3, 3), dilation=2), ("planes",) * 3),
    "1-D": (plan_of((8, 4096, 64), 64, (2,), dilation=64, padding="CAUSAL"), ("lax",) * 3),
}


@pytest.mark.parametrize(("plan", "expected"), PLANS.values(), ids=PLANS)
def test_the_rule(plan, expected):
    assert tuple(dilax.select_lowering(plan, operation=operation, native=False) for operation in lowerings.OPERATIONS) == expected
    others = itertools.product(("cuda", "rocm", "tpu", "other"), lowerings.OPERATIONS)
    assert {dilax.select_lowering(plan, platform=platform, operation=operation) for platform, operation in others} == {"lax"}
    assert all(lowerings.supports(name, plan) for name in expected)


@pytest.mark.usefixtures("cpu_is_marked")
def test_auto_chooses_per_platform():
    plain = dilax.dilated_conv(X, K, lowering="lax")
    np.testing.assert_allclose(dilax.dilated_conv(X, K), plain + 100, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(dilax.dilated_conv)(X, K), plain + 100, rtol=1e-5)
    gradient = jax.grad(lambda k: dilax.dilated_conv(X, k).sum())(K)
    np.testing.assert_allclose(gradient, jax.grad(lambda k: dilax.dilated_conv(X, k, lowering="lax").sum())(K), rtol=1e-4)


@pytest.mark.usefixtures("cpu_is_marked")
def test_the_choice_holds_in_exported_programs():
    exported = export.export(jax.jit(dilax.dilated_conv), platforms=("cpu", "cuda", "tpu"))(X, K)
    np.testing.assert_allclose(exported.call(X, K), dilax.dilated_conv(X, K, lowering="lax") + 100, rtol=1e-5)
    only_tpu = export.export(jax.jit(dilax.dilated_conv), platforms=("tpu",))(X, K)
    assert "stablehlo.convolution" in only_tpu.mlir_module()
    assert "stablehlo.add" not in only_tpu.mlir_module()  # which `marked` would have added


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_elsewhere_a_depthwise_convolution_is_xlas(platform):
    x, kernel = draw((2, 9, 9, 4), (3, 3, 1, 4))
    gradients = jax.jit(jax.grad(lambda x, kernel: (dilax.depthwise_conv(x, kernel) ** 2).sum(), argnums=(0, 1)))
    text = export.export(gradients, platforms=(platform,))(x, kernel).mlir_module()
    assert text.count("stablehlo.convolution") == 3


@pytest.mark.parametrize(("lowering", "groups"), [("auto", 1), ("lax", 4), ("taps", 4), ("split", 2), ("products", 1), ("patches", 1)])
def test_an_empty_batch_gives_empty_maps_and_zero_gradients(lowering, groups):
    x, kernel = draw((0, 9, 9, 4), (3, 3, 4 // groups, 4))
    y, pull_back = jax.vjp(lambda x, kernel: dilax.dilated_conv(x, kernel, groups=groups, stride=2, lowering=lowering), x, kernel)
    for_x, for_kernel = pull_back(y)
    assert (y.shape, for_x.shape) == ((0, 5, 5, 4), x.shape)
    np.testing.assert_array_equal(for_kernel, np.zeros_like(kernel))


@pytest.mark.parametrize(("lowering", "groups"), [("auto", 1), ("lax", 4), ("taps", 4), ("split", 2), ("products", 1), ("patches", 1)])
@pytest.mark.parametrize("batch", [2, 0])
@pytest.mark.parametrize(("for_x", "for_kernel"), [(0, None), (None, 0), (1, 1)])
def test_an_empty_mapped_axis_gives_empty_maps_and_zero_gradients(lowering, groups, batch, for_x, for_kernel):
    x, kernel = draw((batch, 9, 4), (3, 4 // groups, 4))
    xs = x if for_x is None else jnp.zeros(np.insert(x.shape, for_x, 0))
    kernels = kernel if for_kernel is None else jnp.zeros(np.insert(kernel.shape, for_kernel, 0))
    conv = jax.vmap(lambda x, k: dilax.dilated_conv(x, k, groups=groups, stride=2, lowering=lowering), (for_x, for_kernel))
    y, pull_back = jax.vjp(conv, xs, kernels)
    assert y.shape == (0, batch, 5, 4)
    for gradient, operand in zip(pull_back(y), (xs, kernels)):
        np.testing.assert_array_equal(gradient, np.zeros_like(operand))


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0)])
def test_a_mapped_empty_batch_gives_empty_maps(mapped):
    x, kernel = draw((0, 9, 4), (3, 4, 4))
    xs, kernels = (array if axis is None else jnp.stack([array] * 3) for array, axis in zip((x, kernel), mapped))
    y, pull_back = jax.vjp(jax.vmap(lambda x, k: dilax.dilated_conv(x, k, lowering="products"), mapped), xs, kernels)
    assert y.shape == (3, 0, 9, 4)
    assert [gradient.shape for gradient in pull_back(y)] == [xs.shape, kernels.shape]


def test_a_plan_counts_multiply_adds():
    plan = ConvPlan(2, (32, 16), 8, 12, (3, 3), (2, 1), ((2, 1), (2, 2)), (1, 2), 4, "float32")
    assert plan.rank == 2
    assert plan.output_size == (17, 16)
    assert plan.taps == 9
    assert (plan.x_shape, plan.kernel_shape, plan.y_shape) == ((2, 32, 16, 8), (3, 3, 2, 12), (2, 17, 16, 12))
    assert plan.multiply_adds == 2 * 17 * 16 * 12 * 9 * 2


@pytest.mark.parametrize(("stride", "dilation", "padding"), [(1, 4, "SAME"), (2, 3, "CAUSAL"), (3, 9, 4), (1, 1, "VALID")])
def test_the_fraction_of_taps_on_samples(stride, dilation, padding):
    plan = plan_of((1, 11, 7, 1), 1, (3, 2), stride=stride, padding=padding, dilation=(dilation, 1))
    ones = dilax.dilated_conv(
        jnp.ones(plan.x_shape), jnp.ones(plan.kernel_shape), stride=stride, padding=plan.padding, dilation=(dilation, 1), lowering="lax"
    )
    assert products.useful_fraction(plan) == pytest.approx(float(ones.sum()) / plan.multiply_adds)


@pytest.mark.parametrize("stride", [1, 2])
def test_symbolic_batch_exports(stride):
    shape = export.symbolic_shape("b, 9, 3")
    exported = export.export(jax.jit(lambda x: dilax.dilated_conv(x, K, stride=stride)))(jax.ShapeDtypeStruct(shape, X.dtype))
    np.testing.assert_allclose(exported.call(X), dilax.dilated_conv(X, K, stride=stride), rtol=1e-5, atol=1e-6)


def test_symbolic_space_exports_at_stride_1():
    shape = export.symbolic_shape("b, t, 3")
    exported = export.export(jax.jit(lambda x: dilax.dilated_conv(x, K, dilation=2)))(jax.ShapeDtypeStruct(shape, X.dtype))
    np.testing.assert_allclose(exported.call(X), dilax.dilated_conv(X, K, dilation=2), rtol=1e-5, atol=1e-6)


def test_symbolic_batch_exports_depthwise():
    x, kernel = draw((2, 9, 4), (3, 1, 4))
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 9, 4"), x.dtype)
    exported = export.export(jax.jit(lambda x: dilax.depthwise_conv(x, kernel, dilation=2)), platforms=("cpu", "tpu"))(shape)
    np.testing.assert_allclose(exported.call(x), dilax.depthwise_conv(x, kernel, dilation=2, lowering="lax"), rtol=1e-5, atol=1e-6)


# Large enough for several blocks of patches, an axis without a short divisor, and several reductions.
LARGE = {
    "patches, blocks": ("patches", plan_of((4, 67, 24, 30), 20, (3, 5), dilation=(2, 3))),
    "patches, blocks, stride": ("patches", plan_of((3, 131, 70, 12), 8, (5, 5), stride=(2, 3), padding="TORCH")),
    "planes": ("planes", plan_of((2, 9, 8, 7, 3), 5, (3, 2, 3), dilation=(4, 1, 2))),
    "planes, stride": ("planes", plan_of((2, 11, 8, 9, 4), 6, (4, 3, 2), stride=(3, 2, 1), padding=((5, 1), "SAME", 0))),
    "planes, a tap reads padding alone": ("planes", plan_of((1, 4, 8, 7, 3), 5, (3, 3, 3), dilation=(5, 1, 1))),
    "taps, no divisor": ("taps", plan_of((3, 31, 37, 6), 6, (3, 3), dilation=(1, 4), groups=6)),
    "taps, folds": ("taps", plan_of((16, 24, 20, 4), 8, (5, 2), groups=4)),
    "taps, 1-D": ("taps", plan_of((2, 1531, 4), 4, (7,), padding="CAUSAL", dilation=50, groups=4)),
    "taps, groups": ("taps", plan_of((2, 19, 20, 12), 6, (2, 3), stride=2, groups=3)),
}


@pytest.mark.parametrize(("lowering", "plan"), LARGE.values(), ids=LARGE)
def test_larger_maps_agree_with_lax(lowering, plan):
    x, kernel, y = draw(plan.x_shape, plan.kernel_shape, plan.y_shape)

    def gradients(lowering):
        def run(x, kernel, y):
            result, pull_back = jax.vjp(lambda x, kernel: lowerings.convolve(x, kernel, plan, lowering), x, kernel)
            return result, *pull_back(y)

        return jax.jit(run)(x, kernel, y)

    for actual, expected in zip(gradients(lowering), gradients("lax")):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))


def depthwise_loss(x, kernel):
    return jnp.sum(jnp.sin(dilax.depthwise_conv(x, kernel, dilation=2)))


def test_higher_derivatives_and_linearization():
    x, kernel = draw((2, 7, 3), (3, 1, 3))

    def by_lax(x, kernel):
        return jnp.sum(jnp.sin(dilax.depthwise_conv(x, kernel, dilation=2, lowering="lax")))

    np.testing.assert_allclose(jax.hessian(depthwise_loss, 1)(x, kernel), jax.hessian(by_lax, 1)(x, kernel), rtol=1e-4, atol=1e-4)
    mixed = [jax.jacfwd(jax.jacrev(loss, 1), 0)(x, kernel) for loss in (depthwise_loss, by_lax)]
    np.testing.assert_allclose(*mixed, rtol=1e-4, atol=1e-4)
    tangents = draw(x.shape, kernel.shape)
    linear = [jax.linearize(loss, x, kernel)[1](*tangents) for loss in (depthwise_loss, by_lax)]
    np.testing.assert_allclose(*linear, rtol=1e-4)


def mesh_of(count):
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize(
    ("name", "plan"),
    {
        "depthwise": plan_of((16, 12, 11, 6), 6, (3, 3), groups=6, dilation=2),
        "depthwise, 1-D": plan_of((16, 64, 6), 6, (3,), groups=6, dilation=2),
        "dense": plan_of((16, 40, 40, 16), 12, (3, 3)),
        "1x1": plan_of((16, 12, 11, 6), 8, (1, 1)),
    }.items(),
)
def test_a_batch_spread_over_devices_is_not_gathered(name, plan):
    x, kernel, y = draw(plan.x_shape, plan.kernel_shape, plan.y_shape)

    def run(x, kernel, y):
        result, pull_back = jax.vjp(lambda x, kernel: lowerings.convolve(x, kernel, plan, "auto"), x, kernel)
        return result, *pull_back(y)

    spread, whole = NamedSharding(mesh_of(8), P("data")), NamedSharding(mesh_of(8), P())
    program = jax.jit(run, in_shardings=(spread, whole, spread), out_shardings=(spread, spread, whole)).lower(x, kernel, y).compile()
    text = program.as_text() or ""
    assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text
    assert "all-reduce" in text  # of the kernel gradient
    for actual, expected in zip(program(x, kernel, y), jax.jit(run)(x, kernel, y)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_vmap_of_an_explicit_lowering_falls_back_where_necessary():
    """A mapped kernel gives a dense convolution of many outputs, or a grouped one, which the lowering may not support."""
    xs, kernels = draw((3, 2, 6, 4), (3, 1, 4, 5))
    actual = jax.vmap(lambda x, kernel: dilax.dilated_conv(x, kernel, lowering="products"))(xs, kernels)
    np.testing.assert_allclose(actual, [dilax.dilated_conv(x, k, lowering="lax") for x, k in zip(xs, kernels)], rtol=1e-5, atol=1e-5)


def test_an_unsupported_lowering_is_refused():
    with pytest.raises(dilax.UserError) as error:
        dilax.dilated_conv(X, K, lowering="taps")
    assert str(error.value) == (
        "dilated_conv: lowering='taps' does not support 3 taps, 3 input channels and groups=1; "
        f"use one of {('auto', 'lax', 'products', 'patches', *NATIVE)}."
    )
    with pytest.raises(dilax.UserError, match=r"^select_lowering: operation='forward' is unknown; use one of \('output', "):
        dilax.select_lowering(plan_of((2, 9, 3), 4, (3,)), operation="forward")
    with pytest.raises(dilax.UserError, match=r"^select_lowering: platform='gpu' is unknown; use one of \('cpu', 'cuda', "):
        dilax.select_lowering(plan_of((2, 9, 3), 4, (3,)), platform="gpu")


def test_autotune_of_a_plan(capsys):
    plan = plan_of((1, 16, 4), 4, (3,), groups=4)
    names = {"auto", "lax", "taps", "split", *NATIVE}
    assert dilax.autotune(plan, repeats=1) in names
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cpu (")
    assert {line.split()[0] for line in lines[1:]} == names
    assert dilax.autotune(plan, measure="forward", repeats=1, table=False) in names
    assert capsys.readouterr().out == ""


def test_autotune_of_a_function_omits_unsupported_lowerings(capsys):
    dilax.autotune(lambda x, kernel, lowering: dilax.dilated_conv(x, kernel, lowering=lowering), X, K, repeats=1)
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}
    assert names == {"auto", "lax", "products", "patches", *NATIVE}


AUTOTUNE_ERRORS = {
    "neither": ((3,), {}, "autotune: 3 is neither a ConvPlan nor a function; give one of them."),
    "arguments": (
        (plan_of((1, 9, 3), 4, (3,)), 1),
        {},
        "autotune: a ConvPlan takes no further arguments, got 1; its arrays are drawn at random.",
    ),
    "repeats": ((plan_of((1, 9, 3), 4, (3,)),), {"repeats": 0}, "autotune: repeats=0 is not a positive integer; use 1 or more."),
    "measure": (
        (plan_of((1, 9, 3), 4, (3,)),),
        {"measure": "train"},
        "autotune: measure='train' is unknown; use one of ('forward', 'training'). Did you mean \"training\"?",
    ),
}


@pytest.mark.parametrize(("args", "keywords", "text"), AUTOTUNE_ERRORS.values(), ids=AUTOTUNE_ERRORS)
def test_errors_of_autotune(args, keywords, text):
    with pytest.raises(dilax.UserError) as error:
        dilax.autotune(*args, **keywords)
    assert str(error.value) == text
