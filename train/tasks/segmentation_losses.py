"""What segmentation learns from: the parts of config.segmentation.loss, and the weights of the classes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dilax import UserError, losses
from dilax.errors import did_you_mean
from train.data.readers.masks import class_pixels
from train.data.source import Source

LOSSES = ("cross_entropy", "focal", "dice")
WEIGHTED = ("cross_entropy", "focal")  # those of them that weigh the classes
BALANCES = ("", "median_frequency")


def check_losses(config: ConfigDict) -> None:
    """Refuse unknown losses, and weights of classes that mean nothing."""
    options = config.segmentation
    for name in loss_names(config):
        if name not in LOSSES:
            raise UserError(
                f"config.segmentation.loss={options.loss!r} is unknown; use one of {LOSSES}, or several of them joined by +."
                f"{did_you_mean(name, LOSSES)}"
            )
    if options.balance and options.class_weights:
        raise UserError("config.segmentation.balance and config.segmentation.class_weights both set the weights of classes; remove one.")
    if any(not (isinstance(weight, int | float) and 0 <= weight < math.inf) for weight in options.class_weights):
        raise UserError(f"config.segmentation.class_weights={tuple(options.class_weights)} must be numbers of 0 or more.")
    if options.class_weights and not any(options.class_weights):
        raise UserError(f"config.segmentation.class_weights={tuple(options.class_weights)} leaves nothing to learn; give one above 0.")


def loss_names(config: ConfigDict) -> tuple[str, ...]:
    """Return the parts of config.segmentation.loss."""
    return tuple(name.strip() for name in config.segmentation.loss.split("+"))


def make_losses(options: Any, names: tuple[str, ...], class_weights: tuple[float, ...]) -> Callable[[Any, jax.Array], jax.Array]:
    """Return (outputs, labels) -> (batch,): the sum of the losses of those names.

    Outputs are logits (batch, height, width, classes), or (logits, auxiliary logits), the loss of which is added with `aux_weight`.

    Args:
        options: The part `segmentation` of a config.
        names: Some of `LOSSES`.
        class_weights: Weights of the classes; () weighs all alike.
    """
    weights, ignored = class_weights or None, options.ignored_label
    known: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        "cross_entropy": lambda x, y: losses.pixel_cross_entropy(x, y, class_weights=weights, ignored_label=ignored),
        "focal": lambda x, y: losses.focal_loss(x, y, gamma=options.focal_gamma, class_weights=weights, ignored_label=ignored),
        "dice": lambda x, y: losses.dice_loss(x, y, ignored_label=ignored),
    }
    parts = [known[name] for name in names]

    def total(outputs: Any, labels: jax.Array) -> jax.Array:
        logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((part(logits, labels) for part in parts), jnp.zeros(len(labels)))
        return sum((options.aux_weight * part(x, labels) for x in aux for part in parts), loss)

    return total


def pixel_accuracy(logits: jax.Array, labels: jax.Array, ignored: int) -> jax.Array:
    """Return the share (batch,) of the pixels of each example that are right; 0 where all are ignored."""
    counts = (labels != ignored).reshape(len(labels), -1)
    right = (logits.argmax(-1) == labels.astype(jnp.int32)).reshape(len(labels), -1) & counts
    return right.astype(jnp.float32).sum(1) / jnp.maximum(counts.astype(jnp.float32).sum(1), 1)


def class_weights(config: ConfigDict, source: Source, class_names: tuple[str, ...]) -> tuple[float, ...]:
    """Return the weight of each class, as config.segmentation gives it or from the pixels of the training split; () weighs all alike.

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
    pixels, labelled = class_pixels(source, len(class_names), options.ignored_label)
    return tuple(losses.median_frequency_weights(pixels, labelled).tolist())
