"""Augmentation of an image and its mask together, as pure functions of (key, example), run on the device inside the training step.

Both are sampled at the same places, the image bilinearly, the mask at the nearest pixel. As in `train.data.augment`, the draw of
example i depends on the key and on its place i in the whole batch alone.
"""

from typing import Any

import jax
import jax.numpy as jnp

from train.data.augment import example_keys, to_float


def random_places(key: jax.Array, shape: tuple[int, int], crop: tuple[int, int], scale: float, flip: bool) -> tuple[jax.Array, jax.Array]:
    """Draw where the rows and the columns of a crop lie in an image.

    The image is zoomed by (1 + scale)^u, u uniform in -1..1; the crop lies anywhere within it or, along an axis in which the crop is the
    larger, anywhere around it; half of the crops are mirrored left to right if `flip`.

    Args:
        key: Of this example.
        shape: (height, width) of the image.
        crop: (height, width) of the crop.
        scale: Greatest zoom less 1.
        flip: Whether to mirror.

    Returns:
        Rows (crop height,) and columns (crop width,), in pixels of the image, whose centres are at 0, 1, ...; some may lie outside.
    """
    scale_key, row_key, column_key, flip_key = jax.random.split(key, 4)
    zoom = (1 + scale) ** jax.random.uniform(scale_key, (), minval=-1.0)
    rows, columns = (_axis(k, old, new, zoom) for k, old, new in zip((row_key, column_key), shape, crop))
    return rows, jnp.where(jax.random.bernoulli(flip_key) & flip, columns[::-1], columns)


def _axis(key: jax.Array, old: int, new: int, zoom: jax.Array) -> jax.Array:
    # Whole pixels of the zoomed image, so that nothing is blurred where the zoom is 1.
    room = jnp.floor(old * zoom) - new
    first = jnp.sign(room) * jnp.floor(jax.random.uniform(key) * (jnp.abs(room) + 1))
    return (first + jnp.arange(new, dtype=jnp.float32) + 0.5) / zoom - 0.5


def sample(image: jax.Array, mask: jax.Array, rows: jax.Array, columns: jax.Array, ignored: int) -> tuple[jax.Array, jax.Array]:
    """Read an image and its mask at the crossings of rows and columns.

    Args:
        image: Float (height, width, channels), in -1..1.
        mask: uint8 (height, width).
        rows: (new height,), in pixels; what lies outside of the image is grey, 0, and `ignored`.
        columns: (new width,).
        ignored: Label of what lies outside.

    Returns:
        Image (new height, new width, channels), bilinear, and mask (new height, new width), nearest.
    """
    height, width = mask.shape
    inside = _inside(rows, height)[:, None] & _inside(columns, width)[None]
    image = _linear(_linear(image, rows, 0), columns, 1)
    label = mask[_nearest(rows, height)][:, _nearest(columns, width)]
    return jnp.where(inside[..., None], image, 0.0), jnp.where(inside, label, jnp.asarray(ignored, mask.dtype))


def _inside(places: jax.Array, size: int) -> jax.Array:
    return (places >= -0.5) & (places < size - 0.5)


def _nearest(places: jax.Array, size: int) -> jax.Array:
    return jnp.clip(jnp.floor(places + 0.5), 0, size - 1).astype(jnp.int32)


def _linear(image: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """Interpolate along one axis; beyond the outermost centres the edge is repeated."""
    size = image.shape[axis]
    places = jnp.clip(places, 0, size - 1)
    floor = jnp.floor(places)
    low, share = floor.astype(jnp.int32), (places - floor).reshape(-1, *(1,) * (image.ndim - 1 - axis))
    share = jnp.broadcast_to(share, (*(1,) * axis, *share.shape))
    before, after = jnp.take(image, low, axis), jnp.take(image, jnp.minimum(low + 1, size - 1), axis)
    return before * (1 - share) + after * share


def random_colour(key: jax.Array, image: jax.Array, strength: float) -> jax.Array:
    """Multiply brightness, contrast and, of 3 channels, saturation by factors uniform in 1 - strength .. 1 + strength.

    Args:
        key: Of this example.
        image: Float (height, width, channels), in -1..1; so is the result.
        strength: From 0 to 1.
    """
    bright, contrast, saturation = jax.random.uniform(key, (3,), minval=1 - strength, maxval=1 + strength)
    image = (image + 1) * bright - 1
    mean = image.mean()
    image = mean + (image - mean) * contrast
    if image.shape[-1] == 3:
        grey = image.mean(-1, keepdims=True)
        image = grey + (image - grey) * saturation
    return jnp.clip(image, -1, 1)


def augment_pairs(
    key: jax.Array, images: jax.Array, masks: jax.Array, options: Any, ignored: int, first: Any = 0
) -> tuple[jax.Array, jax.Array]:
    """Apply the part `augment` of a config to images and masks.

    Args:
        key: Of the whole batch.
        images: uint8 (n, height, width, channels).
        masks: uint8 (n, height, width).
        options: crop, scale, flip, colour; see `train.config`.
        ignored: Label of pixels that count nowhere.
        first: Number of the first of these examples in the whole batch.

    Returns:
        Float images (n, *crop, channels) in -1..1, and masks uint8 (n, *crop).
    """
    shape = masks.shape[1], masks.shape[2]
    crop = options.crop or shape

    def one(key: jax.Array, image: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        place_key, colour_key = jax.random.split(key)
        image = to_float(image)
        if options.colour:
            image = random_colour(colour_key, image, options.colour)
        if tuple(crop) == shape and not options.scale and not options.flip:
            return image, mask
        rows, columns = random_places(place_key, shape, crop, options.scale, options.flip)
        return sample(image, mask, rows, columns, ignored)

    return jax.vmap(one)(example_keys(key, len(images), first), images, masks)
