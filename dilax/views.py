"""Several views of one image, at several sizes and mirrored, whose predictions are averaged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dilax.resizing import resize


def average_views(logits: Callable[[jax.Array], jax.Array], images: jax.Array, scales: tuple[float, ...], flip: bool) -> jax.Array:
    """Return the logits of a segmentation model or, for several views of the image, the logarithm of their mean probabilities.

    Args:
        logits: Maps float images (batch, *space, channels) to (batch, *space, classes).
        images: Float (batch, height, width, channels), or (batch, x, y, z, channels).
        scales: Sizes at which the model runs, relative to the image; the probabilities are resized to the image, linearly.
        flip: Whether each scale also runs on the image mirrored along its last axis.

    Returns:
        (batch, *space, classes).
    """
    if scales == (1.0,) and not flip:
        return logits(images)
    shape = images.shape[1:-1]
    total: Any = 0.0
    for scale in scales:
        resized = resize(images, tuple(max(1, round(size * scale)) for size in shape))
        for mirrored in (False, True)[: 1 + flip]:
            view = jnp.flip(resized, -2) if mirrored else resized
            p = jax.nn.softmax(logits(view).astype(jnp.float32))
            total += resize(jnp.flip(p, -2) if mirrored else p, shape)
    return jnp.log(jnp.maximum(total / (len(scales) * (1 + flip)), 1e-30))
