"""Linear operations along one axis as JAX primitives, so that they are partitioned well where that axis is spread over devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jax.sharding import PartitionSpec

from dilax import partitioning
from dilax.arguments import is_integer
from dilax.lowerings import registry
from dilax.partitioning import Rule, Shards

Operation = Callable[..., list[jax.Array]]
Parameters = dict[str, Any]


def define(name: str, direct: Operation, local: Operation, derivative: Callable[[Parameters], Parameters] = dict) -> Operation:
    """Define a linear operation along one axis, and its transpose.

    Args:
        name: Name of its primitive.
        direct: Function (x, *, axis, **parameters) to a list of arrays that only differ from x in the length of the axis. The parameters
            are hashable.
        local: The same for one device if the axis is spread: function (x, *, axis, shards, **parameters) from its shard of x to its shards
            of the results, with 0 where these reach beyond the end of the axis.
        derivative: Function from the parameters to those of the derivative, for an operation that also adds a constant.

    Returns:
        Function (x, *, axis, **parameters) to a list of arrays.
    """
    forward, backward = Primitive(name), Primitive(f"{name}_transpose")

    def transposed(*ys: jax.Array, shape: tuple[int, ...], **params: Any) -> list[jax.Array]:
        return _transpose(functools.partial(direct, **params), ys, shape)

    def local_transposed(*ys: jax.Array, shape: tuple[int, ...], shards: dict[str, Shards], **params: Any) -> list[jax.Array]:
        shape = tuple(shards[name].length(size) for name, size in zip(_names(len(shape)), shape))
        return _transpose(functools.partial(local_part, shards=shards, **params), ys, shape)

    def local_part(x: jax.Array, *, axis: int, shards: dict[str, Shards], **params: Any) -> list[jax.Array]:
        spread = shards[_names(x.ndim)[axis]]
        return local(x, axis=axis, shards=spread, **params) if spread.over else direct(x, axis=axis, **params)

    def forward_avals(x: Any, **params: Any) -> list[Any]:
        results = jax.eval_shape(functools.partial(direct, **params), jax.ShapeDtypeStruct(x.shape, x.dtype))
        return [x.update(shape=result.shape, weak_type=False) for result in results]

    def backward_avals(y: Any, *_: Any, shape: tuple[int, ...], **params: Any) -> list[Any]:
        return [y.update(shape=shape, weak_type=False)]

    def bind(primitive: Primitive, *operands: jax.Array, **params: Any) -> list[jax.Array]:
        # On an explicit mesh, the axis itself is not spread afterwards.
        spec = [None if i == params["axis"] else over for i, over in enumerate(jax.typeof(operands[0]).sharding.spec)]
        return partitioning.bind(primitive, *operands, spec=PartitionSpec(*spec), **params)

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        return bind(forward, *primals, **params), bind(forward, *tangents, **derivative(params))

    def transpose(cotangents: Any, x: Any, **params: Any) -> list[Any]:
        return bind(backward, *map(ad.instantiate_zeros, cotangents), shape=x.aval.shape, **params)

    def transpose_back(cotangents: Any, *_: Any, shape: tuple[int, ...], **params: Any) -> list[Any]:
        return bind(forward, ad.instantiate_zeros(cotangents[0]), **params)

    def batch(primitive: Primitive, operands: Any, dims: Any, **params: Any) -> Any:
        size = next(operand.shape[dim] for operand, dim in zip(operands, dims) if dim is not None)
        operands = [
            jnp.broadcast_to(operand, (size, *operand.shape)) if dim is None else jnp.moveaxis(operand, dim, 0)
            for operand, dim in zip(operands, dims)
        ]
        params["axis"] += 1
        if "shape" in params:
            params["shape"] = (size, *params["shape"])
        results = bind(primitive, *operands, **params)
        return results, [0] * len(results)

    ad.primitive_jvps[forward] = jvp
    ad.primitive_transposes[forward] = transpose
    ad.deflinear2(backward, transpose_back)
    meanings = {forward: (direct, local_part, forward_avals), backward: (transposed, local_transposed, backward_avals)}
    for primitive, (meaning, part, avals) in meanings.items():
        primitive.multiple_results = True
        primitive.def_abstract_eval(avals)
        primitive.def_impl(functools.partial(_run, primitive))
        batching.primitive_batchers[primitive] = functools.partial(batch, primitive)
        partitioning.register(primitive, meaning, functools.partial(_rule, avals), part)

    def apply(x: jax.Array, **params: Any) -> list[jax.Array]:
        # Exporters and other compilers do not know our primitives.
        return direct(x, **params) if registry.scope() == "lax" else bind(forward, x, **params)

    return apply


def _run(primitive: Primitive, *operands: jax.Array, **params: Any) -> list[jax.Array]:
    """Run a primitive outside of jit, as a program that is compiled once, unless jit is disabled."""
    if partitioning.jit_is_disabled():
        return partitioning.MEANINGS[primitive](*operands, **params)
    return _compiled(primitive, tuple(params.items()))(*operands)


@functools.cache
def _compiled(primitive: Primitive, params: tuple[tuple[str, Any], ...]) -> Callable[..., list[jax.Array]]:
    return jax.jit(functools.partial(primitive.bind, **dict(params)))


def _rule(avals: Callable[..., list[Any]], *operands: Any, **params: Any) -> Rule | None:
    """Return the rule by which results are spread like operands; None for sizes that are unknown or 0."""
    if not all(is_integer(n) and n for operand in operands for n in operand.shape):
        return None
    names = _names(operands[0].ndim)
    return Rule((names,) * len(operands), (names,) * len(avals(*operands, **params)))


def _names(rank: int) -> tuple[str, ...]:
    return tuple(f"a{axis}" for axis in range(rank))


def _transpose(function: Operation, ys: tuple[jax.Array, ...], shape: tuple[int, ...]) -> list[jax.Array]:
    return list(jax.linear_transpose(function, lax.full_like(ys[0], 0, shape=shape))(list(ys)))
