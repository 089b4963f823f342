"""The seam: any lowering can be registered, and "auto" takes each platform's own when the program is lowered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import dilax
from dilax import lowerings
from dilax.geometry import ConvPlan

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 3)), jnp.float32)
K = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 4)), jnp.float32)


def marked(x, kernel, plan):
    """A lowering that can be told by its result."""
    return lowerings.lax_convolution(x, kernel, plan) + 100


@pytest.fixture
def cpu_is_marked(monkeypatch):
    monkeypatch.setitem(lowerings.LOWERINGS, "marked", marked)
    monkeypatch.setattr(lowerings, "select_lowering", lambda plan, platform: "marked" if platform == "cpu" else "lax")


def test_select_lowering_names_a_lowering_on_every_platform():
    plan = ConvPlan(2, (9,), 3, 4, (3,), (1,), ((1, 1),), (1,), 1, "float32")
    assert {dilax.select_lowering(plan, platform) for platform in lowerings.PLATFORMS} <= set(dilax.LOWERINGS)
    assert dilax.select_lowering(plan) in dilax.LOWERINGS


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
    assert "stablehlo.add" not in only_tpu.mlir_module()  # what `marked` would have added


def test_a_plan_counts_multiply_adds():
    plan = ConvPlan(2, (32, 16), 8, 12, (3, 3), (2, 1), ((2, 1), (2, 2)), (1, 2), 4, "float32")
    assert plan.rank == 2
    assert plan.output_size == (17, 16)
    assert plan.multiply_adds == 2 * 17 * 16 * 12 * 9 * 2


@pytest.mark.parametrize("stride", [1, 2])
def test_symbolic_batch_exports(stride):
    shape = export.symbolic_shape("b, 9, 3")
    exported = export.export(jax.jit(lambda x: dilax.dilated_conv(x, K, stride=stride)))(jax.ShapeDtypeStruct(shape, X.dtype))
    np.testing.assert_allclose(exported.call(X), dilax.dilated_conv(X, K, stride=stride), rtol=1e-5)


def test_symbolic_space_exports_at_stride_1():
    shape = export.symbolic_shape("b, t, 3")
    exported = export.export(jax.jit(lambda x: dilax.dilated_conv(x, K, dilation=2)))(jax.ShapeDtypeStruct(shape, X.dtype))
    np.testing.assert_allclose(exported.call(X), dilax.dilated_conv(X, K, dilation=2), rtol=1e-5)
