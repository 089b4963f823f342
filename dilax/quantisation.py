"""Training for int8: a network learns weights that rounding hardly changes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax import lax

from dilax import arguments, rounding
from dilax.pruning.pruned import change


@contextlib.contextmanager
def use_quantisation(dtype: str | None) -> Iterator[None]:
    """Round the kernels and the inputs of every convolution and `flax.linen.Dense` traced inside the scope to int8, and back to floats.

    Kernels, those of depthwise and grouped convolutions included, have a step for each output channel, inputs one for each example, between
    its least and greatest value. Gradients are those without rounding (the straight-through estimator). A network that is trained inside
    the scope loses less when `dilax.export.quantise` makes an int8 program of it; its variables are those of any other training. Batch
    normalisation need not be folded first: it scales whole output channels, and their steps with them.

    Whatever the lowering, the rounded operands are what it is given. The scope is read while a function is traced, as that of
    `use_lowering`. The range of an example is that of all of its samples, so that inside the scope a causal model is only causal to within
    a rounding.

    Args:
        dtype: "int8", or None to leave everything as it is, also inside another scope.

    Raises:
        UserError: if the dtype is another one.

    Example:
        >>> import jax.numpy as jnp, dilax
        >>> kernel = jnp.array([[[0.504]], [[1.0]]])  # two taps
        >>> with use_quantisation("int8"):
        ...     y = dilax.dilated_conv(jnp.ones((1, 2, 1)), kernel, padding="VALID")
        >>> float(y[0, 0, 0])  # 32 and 64 of 64 steps
        1.5

    Reference:
        Jacob et al. 2018, arXiv:1712.05877.
    """
    if dtype is not None:
        arguments.word("use_quantisation", "dtype", dtype, ("int8",))
    with rounding.scope(dtype is not None), nn.intercept_methods(_rounding_dense) if dtype else contextlib.nullcontext():
        yield


def _rounding_dense(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Have linear layers round their operands; one with a product of its own keeps it."""
    module = context.module
    if type(module) is nn.Dense and context.method_name == "__call__" and module.dot_general is None:
        change(module, {"dot_general": _dot_general})
    return call(*args, **kwargs)


def _dot_general(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    return lax.dot_general(*rounding.in_scope(x, kernel, output_axis=-1), *args, **kwargs)
