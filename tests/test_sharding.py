"""Operations whose batch is spread over eight devices equal those on one: cases x transforms x ways to spread, values and gradients.

Values are tested against the oracle elsewhere; here one device is the oracle for several.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from selection import with_slow

import dilax
from dilax import models
from dilax.lowerings import patches

Op = Callable[[jax.Array, jax.Array], jax.Array]
DEVICES = 8


def op(function: Op = dilax.dilated_conv, **options: Any) -> Op:
    return functools.partial(function, **options)


# An operation, and the shapes of an example and of the kernel. Together, their outputs and gradients are computed by every lowering.
CASES = {
    "1d": (op(dilation=2), (9, 3), (3, 3, 2)),
    "2d": (op(dilation=(1, 2), padding=("CAUSAL", "SAME")), (7, 6, 3), (3, 2, 3, 2)),
    "1d, lax": (op(stride=2, lowering="lax"), (9, 3), (3, 3, 2)),
    "depthwise": (op(dilax.depthwise_conv, stride=2, dilation=2), (7, 5, 2), (3, 2, 1, 4)),
    "wide groups": (op(groups=2, lowering="split"), (7, 36), (2, 18, 36)),
    "products": (op(dilation=5, lowering="products"), (9, 3), (3, 3, 2)),
    "patches": (op(stride=2, lowering="patches"), (9, 4, 3), (3, 2, 3, 2)),
    "planes": (op(dilation=(2, 1, 1), lowering="planes"), (7, 3, 4, 2), (3, 2, 2, 2, 3)),
    "transposed": (op(dilax.dilated_conv_transpose, stride=2, dilation=3), (7, 2), (3, 3, 2)),
    "transposed, taps": (op(dilax.dilated_conv_transpose, stride=2, groups=2, lowering="taps"), (7, 2), (2, 1, 2)),
    "transposed, lax": (op(dilax.dilated_conv_transpose, stride=2, lowering="lax"), (7, 2), (2, 3, 2)),
    "max_pool": (lambda x, kernel: dilax.max_pool(x * kernel, 3, stride=2, padding="SAME"), (7, 2), (1, 1, 2)),
    "avg_pool": (lambda x, kernel: dilax.avg_pool(x * kernel, 3, padding=1, count_padding=False), (7, 2), (1, 1, 2)),
    "resize": (lambda x, kernel: dilax.resize(x * kernel, (5, 9)), (7, 6, 2), (1, 1, 1, 2)),
}
TRANSFORMED = ["2d", "depthwise", "transposed"]

SCALES = (0.5, -1.0)


def sum_of_vmap(op: Op) -> Op:
    return lambda x, kernel: jax.vmap(lambda scale: op(x * scale, kernel))(jnp.asarray(SCALES)).sum(0)


def sum_of_scan(op: Op) -> Op:
    return lambda x, kernel: lax.scan(lambda carry, scale: (carry, op(x, kernel * scale)), 0, jnp.asarray(SCALES))[1].sum(0)


def tangent(op: Op) -> Op:
    return lambda x, kernel: jax.jvp(op, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))[1]


def slope(op: Op) -> Op:
    """The input gradient of a nonlinear sum, whose own gradients are second derivatives."""
    return lambda x, kernel: jax.grad(lambda x: jnp.sum(jnp.sin(op(x, kernel))))(x)


# From an operation to another one of the same arguments.
TRANSFORMS = {"jvp": tangent, "second derivative": slope, "vmap": sum_of_vmap, "remat": jax.checkpoint, "scan": sum_of_scan}


def gradients(op: Op, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    """The value of an operation, and both gradients of a nonlinear sum of it."""
    (for_x, for_kernel), y = jax.grad(lambda x, kernel: (jnp.sum(jnp.sin(y := op(x, kernel))), y), argnums=(0, 1), has_aux=True)(x, kernel)
    return y, for_x, for_kernel


def mesh_of(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,))


def spread_by_jit(kind: AxisType, op: Op, x: jax.Array, kernel: jax.Array) -> Any:
    mesh = mesh_of(kind)
    arrays = jax.device_put(x, NamedSharding(mesh, P("data"))), jax.device_put(kernel, NamedSharding(mesh, P()))
    return jax.jit(functools.partial(gradients, op))(*arrays)


def summed(op: Op, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    """The gradients of one share of the batch, those of the kernel summed over all."""
    y, for_x, for_kernel = gradients(op, x, kernel)
    return y, for_x, lax.psum(for_kernel, "data")


def spread_by_shard_map(op: Op, x: jax.Array, kernel: jax.Array) -> Any:
    specs: Any = {"mesh": mesh_of(AxisType.Auto), "in_specs": (P("data"), P()), "out_specs": (P("data"), P("data"), P())}
    # With the checks, JAX itself sums the gradient of an operand that is the same on all devices.
    return jax.jit(jax.shard_map(functools.partial(gradients, op), **specs))(x, kernel)


def spread_by_unchecked_shard_map(op: Op, x: jax.Array, kernel: jax.Array) -> Any:
    specs: Any = {"mesh": mesh_of(AxisType.Auto), "in_specs": (P("data"), P()), "out_specs": (P("data"), P("data"), P())}
    return jax.jit(jax.shard_map(functools.partial(summed, op), **specs, check_vma=False))(x, kernel)


def gradients_around_shard_map(op: Op, x: jax.Array, kernel: jax.Array) -> Any:
    spread = jax.shard_map(op, mesh=mesh_of(AxisType.Auto), in_specs=(P("data"), P()), out_specs=P("data"))
    return jax.jit(functools.partial(gradients, spread))(x, kernel)


def spread_by_pmap(op: Op, x: jax.Array, kernel: jax.Array) -> Any:
    y, for_x, for_kernel = jax.pmap(functools.partial(summed, op), axis_name="data", in_axes=(0, None))(x[:, None], kernel)
    return y[:, 0], for_x[:, 0], for_kernel[0]


WAYS = {
    "jit": functools.partial(spread_by_jit, AxisType.Auto),
    "explicit": functools.partial(spread_by_jit, AxisType.Explicit),
    "shard_map": spread_by_shard_map,
    "shard_map, unchecked": spread_by_unchecked_shard_map,
    "around shard_map": gradients_around_shard_map,
    "pmap": spread_by_pmap,
}


@functools.cache
def on_one_device(case: str, transform: str | None) -> tuple[Op, Any, Any]:
    op, x_shape, kernel_shape = CASES[case]
    rng = np.random.default_rng(5)
    arrays = [jnp.asarray(rng.normal(0.3, 1.0, shape), jnp.float32) for shape in ((DEVICES, *x_shape), kernel_shape)]
    op = TRANSFORMS[transform](op) if transform else op
    return op, arrays, jax.jit(functools.partial(gradients, op))(*arrays)


def check(case: str, transform: str | None, way: str) -> None:
    op, arrays, expected = on_one_device(case, transform)
    for actual, wanted in zip(WAYS[way](op, *arrays), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5 * float(jnp.abs(wanted).max()))


SPREAD = [(case, way) for case in CASES for way in WAYS]


@pytest.mark.parametrize(
    ("case", "way"), with_slow(SPREAD, kept=[(case, way) for case, way in SPREAD if case == "2d" or way == "shard_map"])
)
def test_values_and_gradients_are_those_of_one_device(case, way, monkeypatch):
    monkeypatch.setattr(patches, "BLOCK", 64)  # several blocks
    check(case, None, way)


@pytest.mark.parametrize("way", with_slow(WAYS, kept=("jit", "shard_map")))
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", TRANSFORMED)
def test_transforms_are_those_of_one_device(case, transform, way):
    check(case, transform, way)


def test_the_gradients_of_a_network_are_those_of_one_device():
    model: Any = models.create("dilated_cnn", num_classes=3, features=(4, 6), dilations=(1, 2), pools=(2, 1), norm="layer", dropout=0.0)
    x = jnp.asarray(np.random.default_rng(5).normal(0.3, 1.0, (DEVICES, 8, 8, 3)), jnp.float32)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)
    gradient = jax.grad(lambda variables, x: jnp.sum(jnp.sin(model.apply(variables, x, train=True))))
    spread = jax.shard_map(gradient, mesh=mesh_of(AxisType.Auto), in_specs=(P(), P("data")), out_specs=P())
    expected = jax.jit(gradient)(variables, x)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), jax.jit(spread)(variables, x), expected)
