"""Metrics as sums and counts under a mask: added over batches and devices, and divided once at the end."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

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
        "loss": the sum of the cross-entropy in nats, float32 (). "accuracy": the number of correct predictions, float32 (). "count": the
        number of examples, by which both are to be divided, float32 (). "confusion": float32 (classes, classes), rows are the true class
        and columns the predicted one.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
        >>> sums = classification_sums(logits, jnp.array([0, 0, 1]), jnp.array([True, True, False]))
        >>> float(sums["accuracy"]), float(sums["count"]), sums["confusion"].tolist()
        (1.0, 2.0, [[1.0, 1.0], [0.0, 0.0]])
    """
    logits, classes, weight = logits.astype(jnp.float32), logits.shape[-1], mask.astype(jnp.float32)
    truth = jax.nn.one_hot(labels, classes)
    predicted = jax.nn.one_hot(logits.argmax(-1), classes)
    # A padded row may hold anything, even infinities, so it is replaced before the sum.
    losses = jnp.where(mask, -jnp.sum(jnp.where(truth > 0, jax.nn.log_softmax(logits), 0.0), -1), 0.0)
    return {
        "loss": losses.sum(),
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

    Example:
        >>> logits = jnp.array([[[[2.0, 0.0], [0.0, 1.0], [9.0, 0.0]]]])
        >>> sums = segmentation_sums(logits, jnp.array([[[0, 0, 255]]]), jnp.array([True]))
        >>> int(sums["accuracy"]), int(sums["count"]), sums["confusion"].tolist()
        (1, 2, [[1, 1], [0, 0]])
    """
    batch, classes = logits.shape[0], logits.shape[-1]
    logits, labels = logits.reshape(batch, -1, classes).astype(jnp.float32), labels.reshape(batch, -1)
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
    counts = np.asarray(confusion, np.float64)
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
