"""Augmentation as pure functions of (key, images), run on the device inside the training step.

The draw of example i depends on the key and on its place i in the whole batch alone, so it is the same however the batch is sharded.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from ml_collections import ConfigDict

from dilax.errors import UserError


def to_float(images: Any, dtype: Any = jnp.float32) -> jax.Array:
    """Map uint8 pixels 0..255 to floats -1..1."""
    return (images.astype(jnp.float32) / 127.5 - 1).astype(dtype)


def seen(config: ConfigDict, images: jax.Array) -> jax.Array:
    """Map float images in -1..1 to what the model of a whole config sees: standardised by config.data.mean and std, in config.dtype."""
    given = config.data.mean, config.data.std
    if any(given):
        mean, std = (jnp.broadcast_to(jnp.asarray(values or (0.5,), images.dtype), images.shape) for values in given)
        images = ((images + 1) / 2 - mean) / std
    return images.astype(config.dtype)


def one_hot(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Map labels (n,) to targets (n, num_classes), a share `smoothing` of each spread over all classes (Szegedy et al. 2016, section 7)."""
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def example_keys(key: jax.Array, count: int, first: Any = 0) -> jax.Array:
    """One key for each of `count` examples, the first of which is number `first` of the whole batch."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))


def random_crop(key: jax.Array, image: jax.Array, padding: int) -> jax.Array:
    """Shift an image (height, width, channels) by up to `padding` pixels each way; what comes in is its edge repeated."""
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="edge")
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirror an image (height, width, channels) left to right, half of the time."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def random_affine(key: jax.Array, image: jax.Array, degrees: float, scale: float) -> jax.Array:
    """Rotate a float image (height, width, channels) by up to `degrees` and zoom it by (1 + scale)^u, u uniform in -1..1, bilinearly."""
    angle_key, scale_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, (), minval=-1.0) * jnp.deg2rad(degrees)
    zoom = (1 + scale) ** jax.random.uniform(scale_key, (), minval=-1.0)
    height, width, _ = image.shape
    row, column = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) - (n - 1) / 2 for n in (height, width)), indexing="ij")
    rows = (row * jnp.cos(angle) - column * jnp.sin(angle)) / zoom + (height - 1) / 2
    columns = (row * jnp.sin(angle) + column * jnp.cos(angle)) / zoom + (width - 1) / 2
    return jax.vmap(lambda channel: map_coordinates(channel, [rows, columns], order=1, mode="nearest"), -1, -1)(image)


def cutout(key: jax.Array, image: jax.Array, side: int) -> jax.Array:
    """Lay a square of zeros (grey) over a float image; it may reach past the border (DeVries & Taylor 2017, arXiv:1708.04552)."""
    height, width, _ = image.shape
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    top, left = row - side // 2, column - side // 2
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return jnp.where(inside, jnp.zeros_like(image), image)


def mixup(keys: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mix each image and target with its neighbour's in the batch, 0 with 1, 2 with 3, ... (Zhang et al. 2018, arXiv:1710.09412).

    The batch is in random order already; neighbours stay on one device.

    Args:
        keys: One per example, (n,).
        images: (n, height, width, channels), n even.
        targets: (n, classes).
        alpha: Both parameters of the Beta distribution of the weight.

    Raises:
        UserError: if n is odd.
    """
    count = images.shape[0]
    if count % 2:
        raise UserError(f"mixup: a batch of {count} on one device cannot be paired; use an even batch size per device.")
    weight = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys[::2]).repeat(2)
    weight = jnp.maximum(weight, 1 - weight)

    def mix(a: jax.Array) -> jax.Array:
        partner = a.reshape(count // 2, 2, *a.shape[1:])[:, ::-1].reshape(a.shape)
        own = weight.reshape(-1, *(1,) * (a.ndim - 1))
        return a * own + partner * (1 - own)

    return mix(images), mix(targets)


def augment(key: jax.Array, images: jax.Array, labels: jax.Array, options: Any, num_classes: int, first: Any = 0) -> tuple[Any, Any]:
    """Apply the part `augment` of a config.

    Args:
        key: Of the whole batch.
        images: uint8 (n, height, width, channels).
        labels: int32 (n,).
        options: crop_padding, flip, rotate, scale, cutout, mixup, label_smoothing; see `train.config`.
        num_classes: Number of classes.
        first: Number of the first of these examples in the whole batch.

    Returns:
        Float images (n, height, width, channels) in -1..1, and targets (n, num_classes).
    """
    keys = jax.vmap(lambda key: jax.random.split(key, 5))(example_keys(key, images.shape[0], first))
    if options.crop_padding:
        images = jax.vmap(random_crop, (0, 0, None))(keys[:, 0], images, options.crop_padding)
    if options.flip:
        images = jax.vmap(random_flip)(keys[:, 1], images)
    images, targets = to_float(images), one_hot(labels, num_classes, options.label_smoothing)
    if options.rotate or options.scale:
        images = jax.vmap(random_affine, (0, 0, None, None))(keys[:, 2], images, options.rotate, options.scale)
    if options.cutout:
        images = jax.vmap(cutout, (0, 0, None))(keys[:, 3], images, options.cutout)
    return mixup(keys[:, 4], images, targets, options.mixup) if options.mixup else (images, targets)
