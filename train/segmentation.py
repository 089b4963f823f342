"""The task of segmentation: its loss, its figures, the weights of its classes, and evaluation at several scales."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dilax import losses, metrics
from dilax.errors import UserError
from dilax.resizing import resize
from train.config import loss_names
from train.data.readers.masks import class_pixels
from train.data.source import Source


def make_losses(config: ConfigDict, class_weights: tuple[float, ...]) -> Callable[[Any, jax.Array], jax.Array]:
    """Return (outputs, labels) -> (batch,): the sum of the parts of config.segmentation.loss.

    Outputs are logits (batch, height, width, classes), or (logits, auxiliary logits), the loss of which is added with
    config.segmentation.aux_weight. `class_weights` () weighs all alike.
    """
    options, weights = config.segmentation, class_weights or None
    ignored = options.ignored_label
    known: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        "cross_entropy": lambda x, y: losses.pixel_cross_entropy(x, y, class_weights=weights, ignored_label=ignored),
        "focal": lambda x, y: losses.focal_loss(x, y, gamma=options.focal_gamma, class_weights=weights, ignored_label=ignored),
        "dice": lambda x, y: losses.dice_loss(x, y, ignored_label=ignored),
    }
    parts = [known[name] for name in loss_names(config)]

    def total(outputs: Any, labels: jax.Array) -> jax.Array:
        logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((part(logits, labels) for part in parts), jnp.zeros(len(labels)))
        return sum((options.aux_weight * part(x, labels) for x in aux for part in parts), loss)

    return total


def right_share(logits: jax.Array, labels: jax.Array, ignored: int) -> jax.Array:
    """Share (batch,) of the pixels of each example that are right; 0 where all are ignored."""
    counts = (labels != ignored).reshape(len(labels), -1)
    right = (logits.argmax(-1) == labels.astype(jnp.int32)).reshape(len(labels), -1) & counts
    return right.astype(jnp.float32).sum(1) / jnp.maximum(counts.astype(jnp.float32).sum(1), 1)


def figures(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Turn the sums of `dilax.metrics.segmentation_sums` into mean intersection over union, pixel accuracy and loss."""
    count = float(sums["count"])
    if not count:
        raise UserError("there is no pixel to score: all are ignored; check the masks, or config.data.mask_values.")
    means = {name: float(sums[name]) / count for name in ("accuracy", "loss")}
    return {"miou": metrics.mean_iou(sums["confusion"]), **means}


def class_weights(config: ConfigDict, source: Source, class_names: tuple[str, ...]) -> tuple[float, ...]:
    """Return the weight of each class, as config.segmentation gives it or from the pixels of the training split; () for all alike.

    Raises:
        UserError: if the weights given do not fit the classes.
    """
    options = config.segmentation
    given = tuple(float(weight) for weight in options.class_weights)
    if given and len(given) != len(class_names):
        raise UserError(
            f"config.segmentation.class_weights has {len(given)} entries for {len(class_names)} classes ({', '.join(class_names)}); "
            "give one for each."
        )
    if options.balance != "median_frequency":
        return given
    pixels, seen = class_pixels(source, len(class_names), options.ignored_label)
    return tuple(losses.median_frequency_weights(pixels, seen).tolist())


def averaged(logits: Callable[[jax.Array], jax.Array], images: jax.Array, scales: tuple[float, ...], flip: bool) -> jax.Array:
    """Return log-probabilities (batch, height, width, classes): the mean of the probabilities at all scales, and of mirrored images.

    Args:
        logits: Float images (batch, height, width, channels) -> (batch, height, width, classes).
        images: Float (batch, height, width, channels).
        scales: Sizes of the image that the model sees, 1 being its own; the probabilities are resized to it, bilinearly.
        flip: Whether each is also run mirrored left to right.
    """
    shape = images.shape[1:3]
    total: Any = 0.0
    for scale in scales:
        size = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
        resized = resize(images, size)
        for mirrored in (False, True)[: 1 + flip]:
            seen = resized[:, :, ::-1] if mirrored else resized
            p = jax.nn.softmax(logits(seen).astype(jnp.float32))
            total += resize(p[:, :, ::-1] if mirrored else p, shape)
    return jnp.log(jnp.maximum(total / (len(scales) * (1 + flip)), 1e-30))
