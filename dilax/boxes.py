"""Boxes as arrays (..., 4) of corners (x_min, y_min, x_max, y_max): overlaps, codings and non-maximum suppression.

Coordinates are in pixels, x points to the right and y down, and they are those of edges: the first pixel reaches from 0 to 1, and a box
around a whole image of 480 x 640 pixels is (0, 0, 640, 480). Everything is computed in float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dilax import arguments
from dilax.errors import UserError

# The largest logarithm of a ratio of sizes that is decoded: a box may be up to 62.5 times as large as its anchor.
MAX_LOG_RATIO = math.log(1000 / 16)
_SMALLEST = 1e-6  # pixels; the side of a box without extent whose logarithm is taken


def area(boxes: jax.Array) -> jax.Array:
    """Return the area of boxes in square pixels; 0 for a box whose maximum is below its minimum.

    Args:
        boxes: (..., 4), floats.

    Returns:
        (...), float32.

    Example:
        >>> area(jnp.array([[0.0, 0.0, 3.0, 2.0], [1.0, 1.0, 1.0, 5.0]])).tolist()
        [6.0, 0.0]
    """
    boxes = _boxes("area", "boxes", boxes)
    return _area(boxes)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the intersection over union of each box of a with each box of b; 0 if both have no area.

    Args:
        a: (..., n, 4), floats.
        b: (..., m, 4), floats, with the same leading axes.

    Returns:
        (..., n, m), float32, from 0 to 1.

    Raises:
        UserError: if the leading axes differ.

    Example:
        >>> iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 8.0]])).tolist()
        [[1.0, 0.25]]
    """
    a, b = _pairs("iou", a, b)
    return _divided(*_overlap(a, b))


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the generalised intersection over union of each box of a with each box of b.

    It is the intersection over union, less the share of the smallest box around both that neither of them covers. Unlike `iou`, it says how
    far apart two boxes without intersection are.

    Args:
        a: (..., n, 4), floats.
        b: (..., m, 4), floats, with the same leading axes.

    Returns:
        (..., n, m), float32, from -1 to 1.

    Raises:
        UserError: if the leading axes differ.

    Example:
        >>> giou(jnp.array([[0.0, 0.0, 1.0, 1.0]]), jnp.array([[3.0, 0.0, 4.0, 1.0]])).tolist()
        [[-0.5]]

    Reference:
        Rezatofighi et al. 2019, arXiv:1902.09630, algorithm 1.
    """
    a, b = _pairs("giou", a, b)
    return _generalised(a, b)


def clip_boxes(boxes: jax.Array, image_size: tuple[int, int]) -> jax.Array:
    """Return the part of each box that lies inside of an image.

    Args:
        boxes: (..., 4), floats.
        image_size: (height, width) in pixels.

    Returns:
        (..., 4), float32; a box outside of the image has no area.

    Example:
        >>> clip_boxes(jnp.array([-2.0, 3.0, 5.0, 99.0]), (10, 4)).tolist()
        [0.0, 3.0, 4.0, 10.0]
    """
    boxes = _boxes("clip_boxes", "boxes", boxes)
    height, width = arguments.per_axis(image_size, 2, "image_size", "clip_boxes")
    limits = np.array([width, height, width, height], np.float32)
    return jnp.clip(boxes, 0.0, jnp.broadcast_to(limits, boxes.shape))


def encode_boxes(boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """Return boxes relative to anchors: shifts of the centres in sizes of the anchor, and logarithms of the ratios of the sizes.

    Args:
        boxes: (..., 4), floats.
        anchors: (..., 4), floats; the shape of `boxes` or one that broadcasts to it, with as many axes.

    Returns:
        (..., 4), float32: (dx, dy, log(width ratio), log(height ratio)). A side below 1e-6 pixels counts as one of 1e-6 pixels.

    Raises:
        UserError: if the shapes do not fit.

    Example:
        >>> encode_boxes(jnp.array([2.0, 0.0, 4.0, 2.0]), jnp.array([0.0, 0.0, 2.0, 2.0])).tolist()
        [1.0, 0.0, 0.0, 0.0]

    Reference:
        Girshick et al. 2014, arXiv:1311.2524, appendix C.
    """
    boxes, anchors = _with_anchors("encode_boxes", "boxes", boxes, anchors)
    centre, size = _centre_size(boxes)
    anchor_centre, anchor_size = _centre_size(anchors)
    ratio = jnp.maximum(size, _SMALLEST) / anchor_size
    return jnp.concatenate([(centre - anchor_centre) / anchor_size, jnp.log(ratio)], -1)


def decode_boxes(deltas: jax.Array, anchors: jax.Array) -> jax.Array:
    """Return the boxes that `encode_boxes` has encoded. Logarithms of ratios are limited to log(1000 / 16).

    Args:
        deltas: (..., 4), floats.
        anchors: (..., 4), floats; the shape of `deltas` or one that broadcasts to it, with as many axes.

    Returns:
        (..., 4), float32.

    Raises:
        UserError: if the shapes do not fit.

    Example:
        >>> decode_boxes(jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 2.0, 2.0])).tolist()
        [2.0, 0.0, 4.0, 2.0]
    """
    deltas, anchors = _with_anchors("decode_boxes", "deltas", deltas, anchors)
    anchor_centre, anchor_size = _centre_size(anchors)
    centre = deltas[..., :2] * anchor_size + anchor_centre
    half = 0.5 * anchor_size * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_RATIO))
    return jnp.concatenate([centre - half, centre + half], -1)


def encode_ltrb(boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """Return the distances from the centre of each anchor to the left, top, right and bottom of a box, in sizes of the anchor.

    Args:
        boxes: (..., 4), floats.
        anchors: (..., 4), floats; the shape of `boxes` or one that broadcasts to it, with as many axes.

    Returns:
        (..., 4), float32; negative where the centre lies outside of the box.

    Raises:
        UserError: if the shapes do not fit.

    Example:
        >>> encode_ltrb(jnp.array([0.0, 1.0, 6.0, 5.0]), jnp.array([1.0, 1.0, 3.0, 3.0])).tolist()
        [1.0, 0.5, 2.0, 1.5]

    Reference:
        Tian et al. 2019, arXiv:1904.01355, section 3.1, with distances in sizes of the anchor, which has the size of a cell.
    """
    boxes, anchors = _with_anchors("encode_ltrb", "boxes", boxes, anchors)
    centre, size = _centre_size(anchors)
    return jnp.concatenate([(centre - boxes[..., :2]) / size, (boxes[..., 2:] - centre) / size], -1)


def decode_ltrb(distances: jax.Array, anchors: jax.Array) -> jax.Array:
    """Return the boxes that `encode_ltrb` has encoded.

    Args:
        distances: (..., 4), floats.
        anchors: (..., 4), floats; the shape of `distances` or one that broadcasts to it, with as many axes.

    Returns:
        (..., 4), float32.

    Raises:
        UserError: if the shapes do not fit.

    Example:
        >>> decode_ltrb(jnp.array([1.0, 0.5, 2.0, 1.5]), jnp.array([1.0, 1.0, 3.0, 3.0])).tolist()
        [0.0, 1.0, 6.0, 5.0]
    """
    distances, anchors = _with_anchors("decode_ltrb", "distances", distances, anchors)
    centre, size = _centre_size(anchors)
    return jnp.concatenate([centre - distances[..., :2] * size, centre + distances[..., 2:] * size], -1)


def centreness(distances: jax.Array) -> jax.Array:
    """Return how close points are to the centre of their boxes, given the distances of `encode_ltrb`.

    Args:
        distances: (..., 4), floats.

    Returns:
        (...), float32: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)), which is 1 at the centre and 0 on the border and outside.

    Example:
        >>> centreness(jnp.array([[2.0, 3.0, 2.0, 3.0], [1.0, 1.0, 4.0, 1.0], [0.0, 1.0, 4.0, 1.0]])).tolist()
        [1.0, 0.5, 0.0]

    Reference:
        Tian et al. 2019, arXiv:1904.01355, section 3.3.
    """
    left, top, right, bottom = (_boxes("centreness", "distances", distances)[..., i] for i in range(4))
    across = _divided(jnp.minimum(left, right), jnp.maximum(left, right))
    down = _divided(jnp.minimum(top, bottom), jnp.maximum(top, bottom))
    return jnp.sqrt(jnp.maximum(across, 0.0) * jnp.maximum(down, 0.0))


def nms(boxes: jax.Array, scores: jax.Array, *, iou_threshold: float, max_outputs: int) -> tuple[jax.Array, jax.Array]:
    """Suppress boxes that overlap with a box of a higher score (greedy non-maximum suppression), with outputs of fixed shape.

    Args:
        boxes: (..., n, 4), floats.
        scores: (..., n), floats; a box whose score is -inf or NaN is never kept.
        iou_threshold: Boxes are suppressed by a kept one if their `iou` is above this.
        max_outputs: Number of boxes to keep at most.

    Returns:
        The indices of the kept boxes by falling score, int32 (..., max_outputs); of equal scores, the first box comes first. And a mask,
        bool (..., max_outputs), which is False, and the index 0, once all boxes are kept or suppressed.

    Raises:
        UserError: if shapes do not fit, or an option is out of range.

    Example:
        >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [9.0, 9.0, 12.0, 12.0]])
        >>> indices, mask = nms(boxes, jnp.array([0.6, 0.9, 0.8]), iou_threshold=0.5, max_outputs=3)
        >>> indices.tolist(), mask.tolist()
        ([1, 2, 0], [True, True, False])
    """
    boxes, scores = _scored("nms", boxes, scores)
    return _nms("nms", boxes, scores, jnp.zeros(scores.shape, jnp.int32), iou_threshold, max_outputs)


def batched_nms(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, *, iou_threshold: float, max_outputs: int
) -> tuple[jax.Array, jax.Array]:
    """Suppress boxes as `nms` does, each by boxes of its own class alone.

    Args:
        boxes: (..., n, 4), floats.
        scores: (..., n), floats.
        classes: (..., n), integers.
        iou_threshold: See `nms`.
        max_outputs: Number of boxes of all classes to keep at most.

    Returns:
        Indices and mask, as those of `nms`.

    Raises:
        UserError: if shapes do not fit, or an option is out of range.

    Example:
        >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0]])
        >>> batched_nms(boxes, jnp.array([0.6, 0.9]), jnp.array([0, 1]), iou_threshold=0.5, max_outputs=2)[0].tolist()
        [1, 0]
    """
    boxes, scores = _scored("batched_nms", boxes, scores)
    classes = arguments.array("batched_nms", "classes", classes, "integer")
    if classes.shape != scores.shape:
        raise UserError(f"batched_nms: classes of shape {classes.shape} do not fit scores of shape {scores.shape}; give one class per box.")
    return _nms("batched_nms", boxes, scores, classes, iou_threshold, max_outputs)


def _nms(
    caller: str, boxes: jax.Array, scores: jax.Array, classes: jax.Array, iou_threshold: float, max_outputs: int
) -> tuple[jax.Array, jax.Array]:
    """Suppress boxes in each of the leading axes."""
    threshold = arguments.number(caller, "iou_threshold", iou_threshold, minimum=0)
    outputs = arguments.integer(caller, "max_outputs", max_outputs, minimum=1)
    *leading, n = scores.shape
    if n == 0 or 0 in leading:
        return jnp.zeros((*leading, outputs), jnp.int32), jnp.zeros((*leading, outputs), bool)
    flat = (each.reshape(-1, *each.shape[len(leading) :]) for each in (boxes, scores, classes))
    indices, mask = _suppress(*flat, threshold=threshold, outputs=outputs)
    return jnp.where(mask, indices, 0).reshape(*leading, outputs), mask.reshape(*leading, outputs)


# Compiled as a whole, so that it is compiled once where it is called without `jax.jit`.
@functools.partial(jax.jit, static_argnames=("threshold", "outputs"))
def _suppress(boxes: jax.Array, scores: jax.Array, classes: jax.Array, *, threshold: float, outputs: int) -> tuple[jax.Array, jax.Array]:
    """Return the indices of the kept boxes, and which of them are valid, (batch, outputs)."""

    def one(boxes: jax.Array, scores: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
        def keep(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            best = jnp.argmax(left).astype(jnp.int32)
            near = _divided(*_overlap(boxes[best][None], boxes))[0] > threshold
            gone = (near & (classes == classes[best])) | (jnp.arange(left.size, dtype=jnp.int32) == best)
            return jnp.where(gone, -jnp.inf, left), (best, left[best] > -jnp.inf)

        return lax.scan(keep, scores, None, length=outputs)[1]

    return jax.vmap(one)(boxes, scores, classes)


def _area(boxes: jax.Array) -> jax.Array:
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return size[..., 0] * size[..., 1]


def _overlap(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the areas (..., n, m) of intersections and unions of boxes (..., n, 4) and (..., m, 4)."""
    first, second = a[..., :, None, :], b[..., None, :, :]
    intersection = _area(jnp.concatenate([jnp.maximum(first[..., :2], second[..., :2]), jnp.minimum(first[..., 2:], second[..., 2:])], -1))
    return intersection, _area(first) + _area(second) - intersection


def _generalised(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return `giou` of boxes (..., n, 4) and (..., m, 4)."""
    intersection, union = _overlap(a, b)
    first, second = a[..., :, None, :], b[..., None, :, :]
    hull = _area(jnp.concatenate([jnp.minimum(first[..., :2], second[..., :2]), jnp.maximum(first[..., 2:], second[..., 2:])], -1))
    return _divided(intersection, union) - _divided(hull - union, hull)


def _divided(over: jax.Array, under: jax.Array) -> jax.Array:
    """Divide, with 0 and gradient 0 where the divisor is not positive."""
    return jnp.where(under > 0, over / jnp.where(under > 0, under, 1.0), 0.0)


def _centre_size(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    return 0.5 * (boxes[..., :2] + boxes[..., 2:]), boxes[..., 2:] - boxes[..., :2]


def _boxes(caller: str, name: str, value: jax.Array) -> jax.Array:
    """Return boxes in float32."""
    boxes = arguments.array(caller, name, value, "floating-point").astype(jnp.float32)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise UserError(f"{caller}: {name} of shape {boxes.shape} must be (..., 4); give the four numbers of a box along the last axis.")
    return boxes


def _pairs(caller: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = _boxes(caller, "a", a), _boxes(caller, "b", b)
    if a.ndim < 2 or a.shape[:-2] != b.shape[:-2]:
        raise UserError(f"{caller}: a of shape {a.shape} and b of shape {b.shape} do not fit; give (..., n, 4) and (..., m, 4).")
    return a, b


def _with_anchors(caller: str, name: str, value: jax.Array, anchors: jax.Array) -> tuple[jax.Array, jax.Array]:
    value, anchors = _boxes(caller, name, value), _boxes(caller, "anchors", anchors)
    if value.ndim != anchors.ndim or any(n not in (1, m) for n, m in zip(anchors.shape, value.shape)):
        raise UserError(f"{caller}: anchors of shape {anchors.shape} do not fit {name} of shape {value.shape}; give one anchor for each.")
    return value, jnp.broadcast_to(anchors, value.shape)


def _scored(caller: str, boxes: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    boxes = _boxes(caller, "boxes", boxes)
    scores = arguments.array(caller, "scores", scores, "floating-point").astype(jnp.float32)
    if boxes.ndim < 2 or scores.shape != boxes.shape[:-1]:
        raise UserError(
            f"{caller}: boxes of shape {boxes.shape} and scores of shape {scores.shape} do not fit; give (..., n, 4) and (..., n)."
        )
    return boxes, jnp.where(jnp.isnan(scores), -jnp.inf, scores)
