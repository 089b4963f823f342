"""What JPEG at a quality does to an image, as a JAX function: the standard tables of the IJG library, without chroma subsampling."""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 8  # pixels of a block along each axis
# Annex K of ITU-T T.81.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# Of JFIF: RGB to luminance and two differences of colour, which are then around 128.
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])


def tables(quality: int, channels: int) -> np.ndarray:
    """Return the steps by which the coefficients of each channel are rounded, (8, 8, channels), at a quality from 1 to 100."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = np.stack([_LUMA, *(_CHROMA,) * (channels - 1)], -1)
    return np.clip((base * percent + 50) // 100, 1, 255).astype(np.float32)


def compressed(images: jax.Array, quality: int) -> jax.Array:
    """Return images as they are read from JPEG files of a quality.

    Args:
        images: Floats (batch, height, width, 1 or 3) from 0 to 255, of which height and width are multiples of 8.
        quality: From 1 to 100.

    Returns:
        Whole numbers from 0 to 255 of the same shape, as floats.
    """
    n, height, width, channels = images.shape
    x = jnp.round(images) - 128  # the level that is taken off before the transform, of luminance as of RGB
    x = jnp.round(_mixed(x, _TO_YCC)) if channels == 3 else x
    blocks = x.reshape(n, height // BLOCK, BLOCK, width // BLOCK, BLOCK, channels)
    steps, dct = jnp.asarray(tables(quality, channels)), jnp.asarray(_dct_matrix())
    exact = jax.lax.Precision.HIGHEST
    coefficients = jnp.einsum("ki,nrisjc,lj->nrsklc", dct, blocks, dct, precision=exact)
    levels = coefficients / steps[None, None, None]
    # Halves, which are frequent among whole numbers, are rounded away from 0; the offset is for those that float32 misses.
    rounded = jnp.sign(levels) * jnp.floor(jnp.abs(levels) + (0.5 + 1e-5)) * steps[None, None, None]
    x = jnp.einsum("ki,nrsklc,lj->nrisjc", dct, rounded, dct, precision=exact).reshape(images.shape)
    x = jnp.clip(jnp.round(x), -128, 127)
    x = jnp.round(_mixed(x, np.linalg.inv(_TO_YCC))) if channels == 3 else x
    return jnp.clip(x + 128, 0, 255)


def _mixed(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """Mix three channels by a matrix."""
    return jnp.einsum("nhwc,dc->nhwd", x, jnp.asarray(matrix, jnp.float32), precision=jax.lax.Precision.HIGHEST)


def _dct_matrix() -> np.ndarray:
    """Return the orthonormal matrix of the discrete cosine transform of 8 samples, rows the frequencies."""
    frequency, sample = np.mgrid[:BLOCK, :BLOCK]
    matrix = np.cos(np.pi * (2 * sample + 1) * frequency / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)
