"""The effective receptive field: how strongly an output depends on each input, not only whether it does."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dilax import arguments
from dilax.arguments import check_function
from dilax.errors import UserError


def effective_receptive_field(
    fn: Callable[[jax.Array], jax.Array], x: jax.Array | jax.ShapeDtypeStruct, *, key: jax.Array, samples: int = 16
) -> jax.Array:
    """Return how strongly the central output depends on each position of the input.

    It is the magnitude of the gradient of the central output (index size // 2 along every spatial axis, all channels weighted with random
    signs) with respect to normally distributed inputs, averaged over channels, batch and inputs. It typically peaks in the middle and fades
    towards the edges of the field that `receptive_field` returns; training widens it.

    Args:
        fn: A differentiable function that maps (batch, *space, channels) to (batch, *space_out, channels_out). If it returns another number
            of axes, all of them but the first are treated as channels.
        x: Its input, floating point; only the shape and dtype are used.
        key: Key for the random inputs and signs; the same key gives the same result.
        samples: Number of random inputs, computed one after the other.

    Returns:
        (*space,), float32, scaled to a maximum of 1.

    Raises:
        UserError: if x is not floating point or has no spatial axes, or if fn does not return one floating-point array that depends on it.

    Example:
        >>> from dilax.functional import dilated_conv
        >>> conv = lambda x: dilated_conv(x, jax.numpy.ones((3, 1, 1)), dilation=2)
        >>> effective_receptive_field(conv, jax.numpy.ones((1, 7, 1)), key=jax.random.key(0)).tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]

    Reference:
        Luo et al. 2016, arXiv:1701.04128, section 3.
    """
    caller = "effective_receptive_field"
    check_function(caller, fn)
    x = arguments.image(caller, "x", x)
    if len(x.shape) < 3 or 0 in x.shape:
        raise UserError(f"{caller}: x of shape {tuple(x.shape)} must be (batch, *space, channels) with at least one sample.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"{caller}: x has dtype {x.dtype}, which has no gradient; use a floating-point dtype such as float32.")
    x = jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))  # NumPy's float64 is float32 in JAX
    samples = arguments.integer(caller, "samples", samples, minimum=1)
    leaves = jax.tree.leaves(jax.eval_shape(fn, x))
    if len(leaves) != 1 or not jnp.issubdtype(leaves[0].dtype, jnp.floating) or 0 in leaves[0].shape:
        given = " and ".join(f"{leaf.dtype} {tuple(leaf.shape)}" for leaf in leaves) or "no array"
        raise UserError(f"{caller}: fn returns {given}; give a function that returns one floating-point array that is not empty.")

    def magnitude(key: jax.Array) -> jax.Array:
        input_key, sign_key = jax.random.split(key)
        y, pullback = jax.vjp(
            lambda x: _central_output(jax.tree.leaves(fn(x))[0], len(x.shape)), jax.random.normal(input_key, x.shape, x.dtype)
        )
        (gradient,) = pullback(jax.random.rademacher(sign_key, y.shape, y.dtype))
        return jnp.abs(gradient.astype(jnp.float32)).mean((0, -1))

    # One input at a time, to limit the memory.
    mean = jax.jit(lambda keys: jax.lax.map(magnitude, keys).mean(0))(jax.random.split(key, samples))
    largest = float(mean.max())
    if not 0 < largest < math.inf:
        raise UserError(f"{caller}: the gradient of the central output is {largest} everywhere; check that fn depends on x and is finite.")
    return mean / largest


def _central_output(y: jax.Array, rank: int) -> jax.Array:
    """Return the output at the centre of space; all of y if it has no space."""
    return y[(slice(None), *(n // 2 for n in y.shape[1:-1]))] if y.ndim == rank else y
