"""Metrics as sums and counts under a mask: added over batches and devices, and divided once at the end."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dilax import arguments
from dilax.errors import UserError
from dilax.losses import IGNORED
from dilax.losses import si_sdr as si_sdr  # a metric that is also the basis of a loss

Confusion = np.ndarray | jax.Array | Sequence[Sequence[int | float]]


def classification_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Return the sums of loss, accuracy and confusion over the examples that count.

    Args:
        logits: (batch, classes).
        labels: (batch,), integers.
        mask: bool (batch,), False for padded examples, which do not count.

    Returns:
        "loss": the sum of the cross-entropy in nats, float32 (); NaN if a label that counts is not a class. "accuracy": the number of
        correct predictions, float32 (). "count": the number of examples, by which both are to be divided, float32 (). "confusion": float32
        (classes, classes), rows are the true class and columns the predicted one.

    Raises:
        UserError: if shapes or dtypes do not fit.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
        >>> sums = classification_sums(logits, jnp.array([0, 0, 1]), jnp.array([True, True, False]))
        >>> float(sums["accuracy"]), float(sums["count"]), sums["confusion"].tolist()
        (1.0, 2.0, [[1.0, 1.0], [0.0, 0.0]])
    """
    logits, labels, mask = _checked("classification_sums", logits, labels, mask)
    if logits.ndim != 2:
        raise UserError(f"classification_sums: logits of shape {logits.shape} must be (batch, classes).")
    classes, weight = logits.shape[-1], mask.astype(jnp.float32)
    truth = jax.nn.one_hot(labels, classes)
    predicted = jax.nn.one_hot(logits.argmax(-1), classes)
    # A padded row may hold anything, even infinities, so it is replaced before the sum.
    losses = jnp.where(mask, -jnp.sum(jnp.where(truth > 0, jax.nn.log_softmax(logits), 0.0), -1), 0.0)
    invalid = mask & ((labels < 0) | (labels >= classes))
    return {
        "loss": jnp.where(invalid.any(), jnp.nan, losses.sum()),
        "accuracy": jnp.sum(weight * jnp.sum(truth * predicted, -1)),
        "count": weight.sum(),
        "confusion": jnp.einsum("ni,nj,n->ij", truth, predicted, weight),
    }


def segmentation_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array, *, ignored_label: int = IGNORED) -> dict[str, jax.Array]:
    """Return the sums of loss, accuracy and confusion over the pixels that count.

    Args:
        logits: (batch, *space, classes).
        labels: (batch, *space), integers.
        mask: bool (batch,), False for padded examples, whose pixels do not count.
        ignored_label: Label of the pixels that do not count.

    Returns:
        "loss": the sum of the cross-entropy in nats, float32 (); NaN if a label that counts is not a class. "accuracy": the number of
        correct pixels, int32 (). "count": the number of pixels, by which both are to be divided, int32 (). "confusion": int32 (classes,
        classes), rows are the true class and columns the predicted one. The integers are exact for images of up to 2^24 pixels.

    Raises:
        UserError: if shapes or dtypes do not fit.

    Example:
        >>> logits = jnp.array([[[[2.0, 0.0], [0.0, 1.0], [9.0, 0.0]]]])
        >>> sums = segmentation_sums(logits, jnp.array([[[0, 0, 255]]]), jnp.array([True]))
        >>> int(sums["accuracy"]), int(sums["count"]), sums["confusion"].tolist()
        (1, 2, [[1, 1], [0, 0]])
    """
    logits, labels, mask = _checked("segmentation_sums", logits, labels, mask)
    ignored_label = arguments.integer("segmentation_sums", "ignored_label", ignored_label)
    batch, classes, pixels = logits.shape[0], logits.shape[-1], math.prod(labels.shape[1:])
    logits, labels = logits.reshape(batch, pixels, classes), labels.reshape(batch, pixels)
    counts = (labels != ignored_label) & mask[:, None]
    truth = jnp.where(counts[..., None], jax.nn.one_hot(labels, classes), 0.0)
    predicted = jax.nn.one_hot(logits.argmax(-1), classes)
    # Float32 counts one image exactly and multiplies fast on every device; the images are added as integers.
    confusion = jnp.einsum("bni,bnj->bij", truth, predicted).astype(jnp.int32).sum(0)
    loss = -jnp.sum(jnp.where(truth > 0, jax.nn.log_softmax(logits), 0.0))
    invalid = counts & ((labels < 0) | (labels >= classes))
    return {
        "loss": jnp.where(invalid.any(), jnp.nan, loss),
        "accuracy": jnp.trace(confusion),
        "count": counts.astype(jnp.int32).sum(),
        "confusion": confusion,
    }


def _checked(caller: str, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return logits in float32, labels and mask, checked against each other."""
    logits = arguments.array(caller, "logits", logits, "floating-point").astype(jnp.float32)
    labels, mask = arguments.array(caller, "labels", labels, "integer"), arguments.array(caller, "mask", mask, "bool")
    if labels.ndim == 0 or logits.shape[:-1] != labels.shape or mask.shape != labels.shape[:1] or not logits.shape[-1]:
        raise UserError(
            f"{caller}: logits of shape {logits.shape}, labels of shape {labels.shape} and mask of shape {mask.shape} do not fit; "
            "give (batch, *space, classes), (batch, *space) and (batch,)."
        )
    return logits, labels, mask


def class_iou(confusion: Confusion) -> NDArray[np.float64]:
    """Return the intersection over union of each class.

    Args:
        confusion: (classes, classes), counts summed over the whole evaluation; rows are the true class.

    Returns:
        (classes,), float64, from 0 to 1; NaN for a class that occurs neither in the truth nor in the predictions.

    Example:
        >>> class_iou([[3, 1, 0], [0, 1, 0], [0, 0, 0]]).tolist()
        [0.75, 0.5, nan]
    """
    counts = arguments.host_array("class_iou", "confusion", confusion).astype(np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise UserError(f"class_iou: confusion of shape {counts.shape} must be (classes, classes).")
    if wrong := counts[~((counts >= 0) & np.isfinite(counts))].tolist():
        raise UserError(f"class_iou: confusion holds {wrong[0]:g}, which is not a count; give finite numbers of 0 or more.")
    intersection = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), np.nan)


def mean_iou(confusion: Confusion) -> float:
    """Return the mean of `class_iou` over the classes that occur in the truth or in the predictions; NaN if none does.

    Args:
        confusion: (classes, classes), counts summed over the whole evaluation; rows are the true class.

    Example:
        >>> mean_iou([[3, 1, 0], [0, 1, 0], [0, 0, 0]])
        0.625
    """
    iou = class_iou(confusion)
    occurring = iou[~np.isnan(iou)]
    return float(occurring.mean()) if len(occurring) else float("nan")
