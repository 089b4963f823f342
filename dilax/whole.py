"""Operations that an exporter is to see as a whole: one convolution, one pooling, not the slices and products that they are computed by."""

import contextlib
import contextvars
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Names and values of the options of an operation, in its parameter `options`.
Options = tuple[tuple[str, Any], ...]
_KEPT = contextvars.ContextVar("dilax_keep_whole", default=False)
_REPLACED = contextvars.ContextVar[Mapping[str, Callable[..., Any]]]("dilax_replaced", default=types.MappingProxyType({}))


@contextlib.contextmanager
def keep_whole() -> Iterator[None]:
    """Trace each operation of `define` as one equation inside the scope."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)


@contextlib.contextmanager
def replaced(meanings: Mapping[str, Callable[..., jax.Array]]) -> Iterator[None]:
    """Trace operations of `define` with other meanings inside the scope.

    Args:
        meanings: For the name of an operation a function (its meaning, *arrays, **options) to an array.
    """
    token = _REPLACED.set(meanings)
    try:
        yield
    finally:
        _REPLACED.reset(token)


def define(name: str, meaning: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Define an operation on arrays.

    Args:
        name: Name of its primitive, which a jaxpr and an exporter see inside `keep_whole`.
        meaning: Function (*arrays, **options) to an array; the options are hashable. Everywhere else, the operation is this function.

    Returns:
        Function of the same arguments.
    """
    primitive = Primitive(name)

    def compute(*operands: Any, options: Options, shape: Any, dtype: Any) -> jax.Array:
        return meaning(*operands, **dict(options))

    def avals(*operands: Any, options: Options, shape: Any, dtype: Any) -> Any:
        return operands[0].update(shape=shape, dtype=dtype, weak_type=False)

    def differentiate(primals: Any, tangents: Any, **params: Any) -> Any:
        return jax.jvp(functools.partial(compute, **params), primals, tuple(map(ad.instantiate_zeros, tangents)))

    def batch(operands: Any, dims: Any, **params: Any) -> Any:
        return jax.vmap(functools.partial(compute, **params), in_axes=tuple(dims))(*operands), 0

    primitive.def_impl(compute)
    primitive.def_abstract_eval(avals)
    ad.primitive_jvps[primitive] = differentiate
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))

    def apply(*operands: jax.Array, **options: Any) -> jax.Array:
        if not _KEPT.get():
            other = _REPLACED.get().get(name)
            return other(meaning, *operands, **options) if other else meaning(*operands, **options)
        result = jax.eval_shape(functools.partial(meaning, **options), *operands)
        # The shape is a parameter, so that no exporter needs to trace the meaning, perhaps with functions of JAX replaced.
        return primitive.bind(*operands, options=tuple(options.items()), shape=result.shape, dtype=result.dtype)

    return apply
