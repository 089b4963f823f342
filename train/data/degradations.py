"""Degradations of clean images, as pure functions that JAX traces: noise, lost resolution, JPEG artefacts.

Images are floats (batch, height, width, channels) from 0 to 255.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dilax.inference import enlarged
from train.data.jpeg import BLOCK, compressed

NOISE, RESOLUTION, JPEG = "noise", "super_resolution", "jpeg"
KINDS = (NOISE, RESOLUTION, JPEG)


def grid(options: ConfigDict) -> int:
    """Return the side of the squares of pixels that a degradation treats alike, of which sizes and places of windows are multiples."""
    given: Any = options
    return {NOISE: 1, RESOLUTION: given.scale, JPEG: BLOCK}[given.degradation]


def context(options: ConfigDict) -> int:
    """Return how many pixels around a pixel may change what it is degraded to, beyond its square of the grid."""
    # Cubic interpolation reads two samples on either side, of the small image and, as many times farther apart, of the large one.
    given: Any = options
    return 4 * given.scale if given.degradation == RESOLUTION else 0


def degraded(images: jax.Array, options: ConfigDict, noise: jax.Array) -> jax.Array:
    """Degrade images as the part `restoration` of a config says.

    Args:
        images: Clean images, whose height and width are multiples of `grid`.
        options: That part.
        noise: What is added in the kind "noise", of the same shape, in the same units.

    Returns:
        Images of the same shape; those of noise may leave 0..255.
    """
    given: Any = options
    if given.degradation == NOISE:
        return images + noise
    return enlarged(shrunk(images, given.scale), given.scale) if given.degradation == RESOLUTION else compressed(images, given.quality)


def shrunk(images: jax.Array, scale: int) -> jax.Array:
    """Return images `scale` times smaller by bicubic interpolation with antialiasing, in 8 bits, as papers make their small images."""
    n, height, width, channels = images.shape
    small = jax.image.resize(images, (n, height // scale, width // scale, channels), "cubic", antialias=True)
    return jnp.clip(jnp.round(small), 0, 255)


def drawn_noise(keys: jax.Array, shape: tuple[int, ...], sigma: jax.Array) -> jax.Array:
    """Return Gaussian noise (batch, *shape) of the deviations `sigma` (batch,), with a key for each example."""
    return jax.vmap(lambda key, sigma: sigma * jax.random.normal(key, shape))(keys, sigma)


def fixed_noise(seeds: jax.Array, places: jax.Array, shape: tuple[int, ...], sigma: float) -> jax.Array:
    """Return the Gaussian noise of windows of images: that of a pixel depends on the image and on its place alone, not on the window.

    Args:
        seeds: That of each image, (batch,), integers.
        places: Row and column of the upper left pixel of each window, (batch, 2), integers.
        shape: (height, width, channels) of a window.
        sigma: Standard deviation.

    Returns:
        (batch, *shape).
    """
    height, width, channels = shape

    def window(seed: jax.Array, place: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), seed)
        rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(place[0] + jnp.arange(height))
        pixels = jax.vmap(lambda row: jax.vmap(lambda column: jax.random.fold_in(row, column))(place[1] + jnp.arange(width)))(rows)
        return jax.vmap(jax.vmap(lambda pixel: jax.random.normal(pixel, (channels,))))(pixels)

    return sigma * jax.vmap(window)(seeds, places)


def as_uint8(images: np.ndarray | jax.Array) -> np.ndarray:
    """Return floats from 0 to 255 as the 8 bits that an image file holds."""
    return np.clip(np.round(np.asarray(images)), 0, 255).astype(np.uint8)
