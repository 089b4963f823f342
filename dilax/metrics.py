"""Metrics as sums and counts under a mask, added over batches and devices and divided once, at the end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dilax.losses import IGNORED
from dilax.losses import si_sdr as si_sdr  # of which a loss is made, too


def classification_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the examples that count.

    Args:
        logits: (batch, classes).
        labels: (batch,), integers.
        mask: (batch,), true where an example counts; a padded one does not.

    Returns:
        Sums of the cross-entropy in nats ("loss") and of right answers ("accuracy"), the "count" they are divided by, and the "confusion"
        matrix (classes, classes), rows the true class, columns the predicted one.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
        >>> sums = classification_sums(logits, jnp.array([0, 0, 1]), jnp.array([True, True, False]))
        >>> float(sums["accuracy"]), float(sums["count"]), sums["confusion"].tolist()
        (1.0, 2.0, [[1.0, 1.0], [0.0, 0.0]])
    """
    logits, classes, weight = logits.astype(jnp.float32), logits.shape[-1], mask.astype(jnp.float32)
    truth = jax.nn.one_hot(labels, classes)
    predicted = jax.nn.one_hot(logits.argmax(-1), classes)
    # A padded row may hold anything, even infinities: it is replaced before it is summed.
    losses = jnp.where(mask, -jnp.sum(jnp.where(truth > 0, jax.nn.log_softmax(logits), 0.0), -1), 0.0)
    return {
        "loss": losses.sum(),
        "accuracy": jnp.sum(weight * jnp.sum(truth * predicted, -1)),
        "count": weight.sum(),
        "confusion": jnp.einsum("ni,nj,n->ij", truth, predicted, weight),
    }


def segmentation_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array, *, ignored_label: int = IGNORED) -> dict[str, jax.Array]:
    """Sums over the pixels that count.

    Args:
        logits: (batch, height, width, classes); any number of spatial axes.
        labels: (batch, height, width), integers.
        mask: (batch,), true where an example counts; a padded one does not.
        ignored_label: Label of pixels that do not count.

    Returns:
        Sums of the cross-entropy in nats ("loss"; NaN if a label that counts is no class) and of right pixels ("accuracy"), the "count"
        of pixels they are divided by, and the "confusion" matrix (classes, classes), rows the true class, columns the predicted one. All
        but the loss are int32, and exact for images of up to 2^24 pixels.

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
    # Float32 counts one image without error, and is multiplied fast everywhere; the images are added as integers.
    confusion = jnp.einsum("bni,bnj->bij", truth, predicted).astype(jnp.int32).sum(0)
    loss = -jnp.sum(jnp.where(truth > 0, jax.nn.log_softmax(logits), 0.0))
    wrong = counts & ((labels < 0) | (labels >= classes))
    return {
        "loss": jnp.where(wrong.any(), jnp.nan, loss),
        "accuracy": jnp.trace(confusion),
        "count": counts.astype(jnp.int32).sum(),
        "confusion": confusion,
    }


def class_iou(confusion: Any) -> np.ndarray:
    """Intersection over union of each class.

    Args:
        confusion: (classes, classes) counts, rows the true class; summed over all that is to be scored.

    Returns:
        (classes,), float64, from 0 to 1; NaN for a class that is neither in the truth nor predicted.

    Example:
        >>> class_iou([[3, 1, 0], [0, 1, 0], [0, 0, 0]]).tolist()
        [0.75, 0.5, nan]
    """
    counts = np.asarray(confusion, np.float64)
    right = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - right
    return np.where(union > 0, right / np.maximum(union, 1), np.nan)


def mean_iou(confusion: Any) -> float:
    """Mean of `class_iou` over the classes that occur, in the truth or the prediction; NaN if none does.

    Example:
        >>> mean_iou([[3, 1, 0], [0, 1, 0], [0, 0, 0]])
        0.625
    """
    found = class_iou(confusion)
    found = found[~np.isnan(found)]
    return float(found.mean()) if len(found) else float("nan")
