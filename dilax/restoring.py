"""A photograph through a network that restores images: enlarged first, its colours together or one by one."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dilax.spec import from_float, to_float
from dilax.tiling import tiled

TILE = 256  # pixels along each axis that are restored at once


def enlarged(images: jax.Array | np.ndarray, scale: int) -> jax.Array:
    """Return images (batch, height, width, channels), floats, `scale` times as high and wide by bicubic interpolation."""
    n, height, width, channels = images.shape
    return jax.image.resize(images, (n, height * scale, width * scale, channels), "cubic")


def in_tiles(run: Callable[[jax.Array], Any]) -> Callable[..., Any]:
    """Return a network that is run on images of any size, tile by tile; the receptive fields of those that restore images are exact."""
    return tiled(run, TILE, check=False)


def restored(run: Callable[..., Any], image: np.ndarray, *, channels: int, scale: int) -> np.ndarray:
    """Return the restored image, uint8.

    Args:
        run: The network, of images (1, height, width, channels) whose black is -1 and whose white is 1.
        image: uint8 (height, width, any channels), or floats from 0 to 255 that are not enlarged.
        channels: What the network takes; of one that takes 1, each colour is an image.
        scale: How many times an image of 8 bits is enlarged first.
    """
    x = np.asarray(image, np.float32)
    if image.dtype == np.uint8 and scale > 1:
        x = np.asarray(enlarged(x[None], scale))[0]
    given = x.shape[-1]
    parts = np.moveaxis(x, -1, 0)[..., None] if channels == 1 else np.broadcast_to(x, (*x.shape[:2], channels))[None]
    y = np.concatenate([run(to_float(part[None])) for part in parts])
    y = np.moveaxis(y[..., 0], 0, -1) if channels == 1 else y[0]
    y = y.mean(-1, keepdims=True) if given < channels else y
    return np.clip(np.round(from_float(y)), 0, 255).astype(np.uint8)
