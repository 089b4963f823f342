"""Augmentations that change the pixels or the targets of examples and leave them where they are."""

import jax
import jax.numpy as jnp
import numpy as np

from dilax.errors import UserError


def one_hot(labels: jax.Array | np.ndarray, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Map labels (n,) to targets (n, num_classes), smoothed as by `smooth`."""
    return smooth(jax.nn.one_hot(labels, num_classes), smoothing)


def smooth(targets: jax.Array, smoothing: float) -> jax.Array:
    """Spread a fraction `smoothing` of each target (n, classes) evenly over all classes (Szegedy et al. 2016, section 7)."""
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]


def random_colour(key: jax.Array, image: jax.Array, *, strength: float) -> jax.Array:
    """Multiply brightness, contrast and, given 3 channels, saturation by factors uniform in 1 - strength .. 1 + strength.

    Args:
        key: Of this example.
        image: Float (*space, channels) in -1..1.
        strength: From 0 to 1.

    Returns:
        The changed image, clipped to -1..1.
    """
    brightness, contrast, saturation = jax.random.uniform(key, (3,), minval=1 - strength, maxval=1 + strength)
    image = (image + 1) * brightness - 1
    mean = image.mean()
    image = mean + (image - mean) * contrast
    if image.shape[-1] == 3:
        grey = image.mean(-1, keepdims=True)
        image = grey + (image - grey) * saturation
    return jnp.clip(image, -1, 1)


def random_noise(key: jax.Array, image: jax.Array, *, strength: float) -> jax.Array:
    """Add Gaussian noise to a float image (*space, channels) in -1..1, of a deviation uniform in 0 .. strength of that range; clipped."""
    size_key, noise_key = jax.random.split(key)
    deviation = 2 * strength * jax.random.uniform(size_key)
    return jnp.clip(image + deviation * jax.random.normal(noise_key, image.shape), -1, 1)


def cutout(key: jax.Array, image: jax.Array, *, side: int) -> jax.Array:
    """Overlay a square (a cube for volumes) of zeros, which is grey, on a float image (*space, channels).

    Its centre is any pixel, so that it may extend beyond the image (DeVries & Taylor 2017, arXiv:1708.04552).
    """
    sizes = image.shape[:-1]
    centre = jax.random.randint(key, (len(sizes),), 0, jnp.array(sizes))
    covered = jnp.ones((1,) * image.ndim, bool)
    for axis, size in enumerate(sizes):
        line, start = jnp.arange(size), centre[axis] - side // 2
        covered &= ((line >= start) & (line < start + side)).reshape(*(1,) * axis, -1, *(1,) * (image.ndim - 1 - axis))
    return jnp.where(covered, jnp.zeros_like(image), image)


def mixup(keys: jax.Array, images: jax.Array, targets: jax.Array, *, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mix each image and its target with those of its neighbour in the batch: 0 with 1, 2 with 3, and so on.

    The batch is already in random order, and neighbours are on the same device (Zhang et al. 2018, arXiv:1710.09412).

    Args:
        keys: One per example, (n,).
        images: (n, *space, channels), with n even.
        targets: (n, classes).
        alpha: Both parameters of the Beta distribution of the mixing weight.

    Returns:
        The mixed images and targets, to which each example itself contributes a weight of at least 1/2.

    Raises:
        UserError: If n is odd.
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
