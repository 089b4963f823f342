"""A convolution and its two gradients as JAX primitives, so that each can be computed by a different lowering.

The operations y = output(x, kernel), x' = input_gradient(y, kernel) and kernel' = kernel_gradient(x, y) belong to a single trilinear form,
sum(y * output(x, kernel)): each is linear in both of its operands, and its transposes are the other two. Forward and reverse mode of any
order, vmap, remat, scan and export therefore all work (a `custom_vjp` would rule out forward mode). The lowering of an operation is
selected for each platform when the program is lowered.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jax.sharding import PartitionSpec

from dilax import partitioning
from dilax.arguments import is_integer
from dilax.lowerings import onednn, registry, sharded
from dilax.plan import ConvPlan

# The two operands of each operation, and its result.
OPERANDS = {"output": ("x", "kernel", "y"), "input_gradient": ("y", "kernel", "x"), "kernel_gradient": ("x", "y", "kernel")}
PRIMITIVES = {operation: Primitive(f"dilated_conv_{operation}" if operation != "output" else "dilated_conv") for operation in OPERANDS}


def vary_alike(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Make two arrays vary over the same mesh axes, which only matters under `shard_map`."""
    axes = [jax.typeof(operand).manual_axis_type.varying for operand in (a, b)]
    a, b = (
        lax.pcast(operand, tuple(sorted(missing)), to="varying") if missing else operand
        for operand, missing in ((a, axes[1] - axes[0]), (b, axes[0] - axes[1]))
    )
    return a, b


def bind(operation: str, a: jax.Array, b: jax.Array, plan: ConvPlan, lowering: str) -> jax.Array:
    """Apply an operation.

    Axes of a mesh that are explicit are left to the compiler inside: the result is sharded over batch and space like the first operand, and
    a kernel gradient, which is summed over both, is replicated.
    """
    a, b = vary_alike(a, b)
    spec = PartitionSpec(*jax.typeof(a).sharding.spec[:-1]) if operation != "kernel_gradient" else PartitionSpec()
    return partitioning.bind(PRIMITIVES[operation], a, b, spec=spec, plan=plan, lowering=lowering)


def compute(operation: str, a: jax.Array, b: jax.Array, *, plan: ConvPlan, lowering: str, **where: Any) -> jax.Array:
    """Compute an operation by other JAX functions, which `where`, the options of `select_lowering`, lets it select.

    A lowering by name may not support the plan that is left after vmap, or of the part of one device; then one is selected.
    """
    if 0 in (plan.batch, plan.c_in, plan.c_out):  # the lowerings divide by these; an empty sum is 0
        return lax.full_like(a, 0, shape=plan.result_shape(operation))
    usable = lowering != "auto" and registry.supports(lowering, plan) and (where["native"] or lowering != "onednn")
    name = lowering if usable else registry.select_lowering(plan, operation=operation, **where)
    return (getattr(registry.LOWERINGS[name], operation) or getattr(registry.LOWERINGS["lax"], operation))(a, b, plan)


def _abstract(operation: str, a: Any, b: Any, *, plan: ConvPlan, lowering: str) -> Any:
    return a.update(shape=plan.result_shape(operation), weak_type=False)


def _transpose(operation: str, operand: str, cotangent: jax.Array, a: Any, b: Any, **params: Any) -> jax.Array:
    """Transpose an operation with respect to one operand, by the operation whose result that is."""
    arrays = dict(zip(OPERANDS[operation], (a, b, cotangent)))
    transposed = next(other for other, (*_, result) in OPERANDS.items() if result == operand)
    first, second, _ = OPERANDS[transposed]
    return bind(transposed, arrays[first], arrays[second], **params)


def _batch(operation: str, operands: tuple[Any, Any], dims: tuple[Any, Any], *, plan: ConvPlan, lowering: str) -> tuple[jax.Array, int]:
    """Batch an operation: fold the mapped axis into an axis that all mapped arrays share."""
    first, second, result = OPERANDS[operation]
    size = next(operand.shape[dim] for operand, dim in zip(operands, dims) if dim is not None)
    if is_integer(size) and size == 0:
        return lax.full_like(vary_alike(*operands)[0], 0, shape=(0, *plan.result_shape(operation))), 0
    arrays = {
        name: operand if dim is None else jnp.moveaxis(operand, dim, 0) for name, operand, dim in zip((first, second), operands, dims)
    }
    mapped = {result} | {name for name, dim in zip((first, second), dims) if dim is not None}
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
    folded = {name: _fold(array, axes[name]) if name in axes else array for name, array in arrays.items()}
    return _unfold(bind(operation, folded[first], folded[second], plan, lowering), axes[result], size), 0


def _fold(x: jax.Array, axis: int) -> jax.Array:
    """Merge the leading axis into another, as its outer part."""
    axis = axis % (x.ndim - 1)
    size = x.shape[0] * x.shape[axis + 1]
    return jnp.moveaxis(x, 0, axis).reshape(*x.shape[1 : axis + 1], size, *x.shape[axis + 2 :])


def _unfold(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Undo `_fold`: split an axis, and move its outer part, of length `size`, to the front."""
    axis = axis % x.ndim
    rest = x.shape[axis] // size
    return jnp.moveaxis(x.reshape(*x.shape[:axis], size, rest, *x.shape[axis + 1 :]), axis, 0)


def _run(primitive: Primitive, compiled: Any, *operands: jax.Array, **params: Any) -> jax.Array:
    """Run a primitive outside of jit, as a program for the platform that it runs on, unless jit is disabled."""
    return (partitioning.MEANINGS[primitive] if partitioning.jit_is_disabled() else compiled)(*operands, **params)


def _register(operation: str, primitive: Any) -> None:
    first, second, _ = OPERANDS[operation]
    primitive.def_impl(functools.partial(_run, primitive, jax.jit(primitive.bind, static_argnames=("plan", "lowering"))))
    primitive.def_abstract_eval(functools.partial(_abstract, operation))
    ad.defbilinear(primitive, functools.partial(_transpose, operation, first), functools.partial(_transpose, operation, second))
    batching.primitive_batchers[primitive] = functools.partial(_batch, operation)
    rule = functools.partial(sharded.rule, OPERANDS[operation])
    for platform in (None, *registry.PLATFORMS):
        # Under jit, so that layers of the same shape share a function.
        direct, unpartitioned, exported = (
            jax.jit(
                functools.partial(compute, operation, platform=platform or "other", several=several, native=native),
                static_argnames=("plan", "lowering"),
            )
            for several, native in ((False, platform == "cpu"), (True, False), (False, False))
        )
        local = functools.partial(sharded.compute, operation, bind)
        options: Any = dict(unpartitioned=unpartitioned, exported=exported, state=onednn.status)
        partitioning.register(primitive, direct, rule, local, platform=platform, **options)


for _operation, _primitive in PRIMITIVES.items():
    _register(_operation, _primitive)
