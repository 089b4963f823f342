"""A convolution and its two derivatives as JAX primitives, so that each can be computed by a lowering of its own.

y = output(x, kernel), x' = input_gradient(y, kernel) and kernel' = kernel_gradient(x, y) are the three operations of one trilinear form
sum(y * output(x, kernel)): each is linear in both its arguments, and its transposes are the other two. So forward and reverse mode
of every order, vmap, remat, scan and export all work (a `custom_vjp` would forbid forward mode). Which lowering computes a operation is
settled per platform when the program is lowered.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from dilax.lowerings import registry
from dilax.plan import ConvPlan

# Operands of each operation, and what it makes.
OPERANDS = {"output": ("x", "kernel", "y"), "input_gradient": ("y", "kernel", "x"), "kernel_gradient": ("x", "y", "kernel")}
SHAPES = {"x": "x_shape", "kernel": "kernel_shape", "y": "y_shape"}
PRIMITIVES = {operation: Primitive(f"dilated_conv_{operation}" if operation != "output" else "dilated_conv") for operation in OPERANDS}


def bind(operation: str, a: jax.Array, b: jax.Array, plan: ConvPlan, lowering: str) -> jax.Array:
    """Apply a operation; under `shard_map` both operands then vary over the same axes.

    Where the axes of the mesh are explicit and the batch is spread over them, a kernel's gradient is summed over it and whole everywhere.
    """
    axes = [jax.typeof(operand).manual_axis_type.varying for operand in (a, b)]
    a, b = (
        lax.pcast(operand, tuple(sorted(missing)), to="varying") if missing else operand
        for operand, missing in ((a, axes[1] - axes[0]), (b, axes[0] - axes[1]))
    )
    apply: Any = functools.partial(PRIMITIVES[operation].bind, plan=plan, lowering=lowering)
    sharding = jax.typeof(a).sharding
    if operation == "kernel_gradient" and any(sharding.spec):
        apply = jax.sharding.auto_axes(apply, out_sharding=NamedSharding(sharding.mesh, PartitionSpec()))
    return apply(a, b)


def compute(operation: str, platform: str, a: jax.Array, b: jax.Array, *, plan: ConvPlan, lowering: str) -> jax.Array:
    """What a operation is on one platform, as ordinary JAX operations."""
    if 0 in (plan.batch, plan.c_in, plan.c_out):  # the lowerings divide by these; a sum over nothing is 0
        return jnp.zeros(getattr(plan, SHAPES[OPERANDS[operation][2]]), a.dtype)
    name = registry.select_lowering(plan, platform=platform, operation=operation) if lowering == "auto" else lowering
    return (getattr(registry.LOWERINGS[name], operation) or getattr(registry.LOWERINGS["lax"], operation))(a, b, plan)


def _abstract(operation: str, a: Any, b: Any, *, plan: ConvPlan, lowering: str) -> Any:
    return a.update(shape=getattr(plan, SHAPES[OPERANDS[operation][2]]), weak_type=False)


def _transpose(operation: str, wanted: str, cotangent: jax.Array, a: Any, b: Any, **params: Any) -> jax.Array:
    """The transpose of a operation in the operand `wanted`: the operation that makes it."""
    known = dict(zip(OPERANDS[operation], (a, b, cotangent)))
    found = next(other for other, (*_, made) in OPERANDS.items() if made == wanted)
    first, second, _ = OPERANDS[found]
    return bind(found, known[first], known[second], **params)


def _batch(operation: str, operands: tuple[Any, Any], dims: tuple[Any, Any], *, plan: ConvPlan, lowering: str) -> tuple[jax.Array, int]:
    """Fold the mapped axis into the one that all mapped arrays have in common."""
    first, second, made = OPERANDS[operation]
    size = next(operand.shape[dim] for operand, dim in zip(operands, dims) if dim is not None)
    arrays = {
        name: operand if dim is None else jnp.moveaxis(operand, dim, 0) for name, operand, dim in zip((first, second), operands, dims)
    }
    mapped = {made} | {name for name, dim in zip((first, second), dims) if dim is not None}
    if mapped == {"x", "y"}:
        axes, plan = {"x": 0, "y": 0}, dataclasses.replace(plan, batch=plan.batch * size)
    elif mapped == {"x", "kernel"} and plan.groups == 1:
        axes, plan = {"x": -1, "kernel": -2}, dataclasses.replace(plan, c_in=plan.c_in * size)
    elif mapped == {"y", "kernel"} and plan.groups == 1:
        axes, plan = {"y": -1, "kernel": -1}, dataclasses.replace(plan, c_out=plan.c_out * size)
    else:
        arrays = {name: array if name in mapped else jnp.broadcast_to(array, (size, *array.shape)) for name, array in arrays.items()}
        axes = {"x": -1, "y": -1, "kernel": -1}
        plan = dataclasses.replace(plan, c_in=plan.c_in * size, c_out=plan.c_out * size, groups=plan.groups * size)
    folded = {name: _folded(array, axes[name]) if name in axes else array for name, array in arrays.items()}
    if lowering != "auto" and not registry.supports(lowering, plan):
        lowering = "auto"
    return _unfolded(bind(operation, folded[first], folded[second], plan, lowering), axes[made], size), 0


def _folded(x: jax.Array, axis: int) -> jax.Array:
    """Merge the leading axis into another, which it comes before."""
    axis = axis % (x.ndim - 1)
    return jnp.moveaxis(x, 0, axis).reshape(*x.shape[1 : axis + 1], -1, *x.shape[axis + 2 :])


def _unfolded(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Split an axis as `_folded` merged it, and put its first part in front."""
    axis = axis % x.ndim
    return jnp.moveaxis(x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :]), axis, 0)


def _register(operation: str, primitive: Any) -> None:
    first, second, _ = OPERANDS[operation]
    # Outside jit, the program that is compiled is that of the platform it runs on.
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("plan", "lowering")))
    primitive.def_abstract_eval(functools.partial(_abstract, operation))
    ad.defbilinear(primitive, functools.partial(_transpose, operation, first), functools.partial(_transpose, operation, second))
    batching.primitive_batchers[primitive] = functools.partial(_batch, operation)
    for platform in (None, *registry.PLATFORMS):
        # Under jit, so that layers of one shape share one function.
        rule = jax.jit(functools.partial(compute, operation, platform or "other"), static_argnames=("plan", "lowering"))
        mlir.register_lowering(primitive, mlir.lower_fun(rule, multiple_results=False), platform=platform)


for _operation, _primitive in PRIMITIVES.items():
    _register(_operation, _primitive)
