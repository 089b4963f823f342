"""Masks and embeddings of sequences."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dilax import arguments
from dilax.errors import UserError


def masked(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Set samples to zero where a mask is False.

    A convolution that looks ahead then sees zero padding after the end of a sequence, as it would without the padding of a batch.

    Args:
        x: (batch, *space, channels).
        mask: bool (batch, *space); None returns x unchanged.

    Example:
        >>> masked(jnp.ones((1, 3, 1)), jnp.array([[True, True, False]])).ravel().tolist()
        [1.0, 1.0, 0.0]
    """
    if mask is None:
        return x
    x = arguments.array("masked", "x", x)
    mask = arguments.mask("masked", mask, x)
    return jnp.where(jnp.broadcast_to(mask[..., None], x.shape), x, jnp.zeros_like(x))


def embed_sequence(caller: str, x: jax.Array, *, vocabulary: int, features: int) -> jax.Array:
    """Embed integer codes by a learned table named `embedding`; return a sequence of floats unchanged.

    Call it inside a compact method: the table belongs to that module.

    Args:
        caller: Name that error messages start with.
        x: Codes (batch, time), or floats (batch, time, channels) if there is no vocabulary.
        vocabulary: Number of symbols; 0 for floats.
        features: Channels of an embedded symbol.

    Returns:
        (batch, time, features), or x itself if there is no vocabulary.

    Raises:
        UserError: if x is not of the kind that `vocabulary` implies.
    """
    if vocabulary:
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise UserError(f"{caller}: with vocabulary={vocabulary} x must be integer codes (batch, time), got {x.dtype} {x.shape}.")
        return nn.Embed(vocabulary, features, embedding_init=nn.initializers.normal(1.0), name="embedding")(x)
    if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"{caller}: x must be floats (batch, time, channels), got {x.dtype} {x.shape}; set `vocabulary` for integer codes.")
    return x
