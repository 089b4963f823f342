"""Losses of object detection, element by element; a detector sums them over its cells.

Matching, which says what each cell is to predict, is in `dilax.anchors`.
"""

import jax
import jax.numpy as jnp

from dilax import arguments
from dilax.boxes import giou
from dilax.errors import UserError


def sigmoid_focal_loss(logits: jax.Array, targets: jax.Array, *, alpha: float | None = 0.25, gamma: float = 2.0) -> jax.Array:
    """Return the focal loss of independent yes-or-no predictions: the cross-entropy with confident ones weighted down.

    With p the predicted probability of the target, it is -(1 - p)^gamma log(p), times alpha for targets of 1 and 1 - alpha for those of 0.

    Args:
        logits: (...), floats.
        targets: Of the same shape, floats from 0 to 1.
        alpha: Weight of the targets of 1, from 0 to 1; None weights both equally, by 1.
        gamma: Focusing parameter, at least 0; 0 gives the cross-entropy.

    Returns:
        (...), float32.

    Raises:
        UserError: if the shapes differ, or an option is out of range.

    Example:
        >>> sigmoid_focal_loss(jnp.zeros(2), jnp.array([1.0, 0.0])).round(4)  # a quarter, and three quarters, of log(2) / 4
        Array([0.0433, 0.13  ], dtype=float32)

    Reference:
        Lin et al. 2017, arXiv:1708.02002, section 3.
    """
    caller = "sigmoid_focal_loss"
    logits, targets = _same(caller, "logits", logits, targets)
    gamma = arguments.number(caller, "gamma", gamma, minimum=0)
    entropy = jnp.maximum(logits, 0.0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    p = jax.nn.sigmoid(logits)
    # Bounded away from 0, where powers below 1 have no derivative.
    error = jnp.maximum(p * (1 - targets) + (1 - p) * targets, 1e-7)
    loss = entropy * error**gamma
    if alpha is None:
        return loss
    alpha = arguments.number(caller, "alpha", alpha, minimum=0)
    if alpha > 1:
        raise UserError(f"{caller}: alpha={alpha} is above 1; give the weight of the targets of 1, from 0 to 1, or None.")
    return loss * (alpha * targets + (1 - alpha) * (1 - targets))


def giou_loss(boxes: jax.Array, targets: jax.Array) -> jax.Array:
    """Return 1 minus the generalised intersection over union of each box with its target.

    Args:
        boxes: (..., 4), floats, corners in pixels.
        targets: Of the same shape.

    Returns:
        (...), float32, from 0 to 2.

    Raises:
        UserError: if the shapes differ.

    Example:
        >>> giou_loss(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 4.0]])).tolist()
        [0.5]

    Reference:
        Rezatofighi et al. 2019, arXiv:1902.09630, section 3.2.
    """
    boxes, targets = _same("giou_loss", "boxes", boxes, targets)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise UserError(f"giou_loss: boxes of shape {boxes.shape} must be (..., 4); give the corners of a box along the last axis.")
    return 1 - giou(boxes[..., None, :], targets[..., None, :])[..., 0, 0]


def smooth_l1_loss(predictions: jax.Array, targets: jax.Array, *, beta: float = 1.0) -> jax.Array:
    """Return the absolute difference less beta / 2, or, where it is below beta, the squared difference over 2 beta.

    Args:
        predictions: (...), floats.
        targets: Of the same shape.
        beta: Difference at which the loss becomes linear, at least 0; 0 gives the absolute difference.

    Returns:
        (...), float32.

    Raises:
        UserError: if the shapes differ, or beta is negative.

    Example:
        >>> smooth_l1_loss(jnp.array([0.5, 3.0]), jnp.zeros(2)).tolist()
        [0.125, 2.5]

    Reference:
        Girshick 2015, arXiv:1504.08083, section 2.3.
    """
    predictions, targets = _same("smooth_l1_loss", "predictions", predictions, targets)
    beta = arguments.number("smooth_l1_loss", "beta", beta, minimum=0)
    difference = jnp.abs(predictions - targets)
    if beta == 0:
        return difference
    return jnp.where(difference < beta, 0.5 * jnp.square(difference) / beta, difference - 0.5 * beta)


def _same(caller: str, name: str, value: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return both arrays in float32, checked to have the same shape."""
    value, targets = (arguments.array(caller, each, one, "floating-point") for each, one in ((name, value), ("targets", targets)))
    if value.shape != targets.shape:
        raise UserError(f"{caller}: {name} of shape {value.shape} and targets of shape {targets.shape} differ; give one target for each.")
    return value.astype(jnp.float32), targets.astype(jnp.float32)
