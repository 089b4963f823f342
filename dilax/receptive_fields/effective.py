"""The effective receptive field: how much each input matters to an output, not only whether it can."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dilax.errors import UserError


def effective_receptive_field(fn: Callable[[jax.Array], jax.Array], x: Any, *, key: jax.Array, samples: int = 16) -> jax.Array:
    """How strongly the central output depends on each place of the input.

    The gradient of the central output (index size // 2 along every axis of space, all channels weighted with random signs) with respect to
    the input, at normally distributed inputs: its magnitude, averaged over channels, batch and inputs. It is widest in the middle and
    thins out towards the edge of what `receptive_field` gives; training widens it.

    Args:
        fn: Maps (batch, *space, channels) to (batch, *space_out, channels_out), differentiable. If it returns another number of axes, all
            of them but the first count as channels.
        x: Its input, or a `jax.ShapeDtypeStruct`; only shape and dtype are read. Floating point.
        key: For inputs and signs; the same key gives the same map.
        samples: Number of random inputs, one after the other.

    Returns:
        (*space), float32, the largest value 1.

    Raises:
        UserError: if x is not floating point, has no space, or the output does not depend on it.

    Example:
        >>> from dilax.functional import dilated_conv
        >>> conv = lambda x: dilated_conv(x, jax.numpy.ones((3, 1, 1)), dilation=2)
        >>> effective_receptive_field(conv, jax.numpy.ones((1, 7, 1)), key=jax.random.key(0)).tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]

    Reference:
        Luo et al. 2016, arXiv:1701.04128, section 3.
    """
    caller = "effective_receptive_field"
    if len(x.shape) < 3 or 0 in x.shape:
        raise UserError(f"{caller}: x of shape {tuple(x.shape)} must be (batch, *space, channels) with at least one sample.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"{caller}: x has dtype {x.dtype}, which has no gradient; use a floating-point dtype such as float32.")
    if samples < 1:
        raise UserError(f"{caller}: samples={samples} is below 1; use 1 or more.")

    def magnitude(key: jax.Array) -> jax.Array:
        inputs, signs = jax.random.split(key)
        y, pullback = jax.vjp(lambda x: _centre(fn(x), len(x.shape)), jax.random.normal(inputs, x.shape, x.dtype))
        (gradient,) = pullback(jax.random.rademacher(signs, y.shape, y.dtype))
        return jnp.abs(gradient.astype(jnp.float32)).mean((0, -1))

    # One input at a time, so that memory is that of one.
    found = jax.jit(lambda keys: jax.lax.map(magnitude, keys).mean(0))(jax.random.split(key, samples))
    largest = float(found.max())
    if not 0 < largest < math.inf:
        raise UserError(f"{caller}: the gradient of the central output is {largest} everywhere; check that fn depends on x and is finite.")
    return found / largest


def _centre(y: jax.Array, rank: int) -> jax.Array:
    """The central place of an output that has space."""
    return y[(slice(None), *(n // 2 for n in y.shape[1:-1]))] if y.ndim == rank else y
