"""Anchors of the cells of a map, and which box each of them is to predict.

A detector predicts one box per anchor. Matching says which: the index of a box, `BACKGROUND` where there is none, or `IGNORED` where it is
not clear, which contributes to no loss. Boxes are corners in pixels, as in `dilax.boxes`, padded to one number per image under a mask.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dilax import arguments
from dilax.boxes import iou
from dilax.errors import UserError, shown

BACKGROUND, IGNORED = -1, -2


def anchor_shapes(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> np.ndarray:
    """Return anchors around the point (0, 0), one for each aspect ratio and size, rounded to whole pixels.

    Args:
        sizes: Square roots of the areas, in pixels.
        aspect_ratios: Ratios of height to width.

    Returns:
        (len(aspect_ratios) * len(sizes), 4), float32; those of the first aspect ratio come first.

    Raises:
        UserError: if there are none, or one is not positive.

    Example:
        >>> anchor_shapes((32,), (0.5, 1.0)).tolist()
        [[-23.0, -11.0, 23.0, 11.0], [-16.0, -16.0, 16.0, 16.0]]
    """
    side, ratio = (_numbers("anchor_shapes", *one) for one in (("sizes", sizes), ("aspect_ratios", aspect_ratios)))
    height = np.sqrt(ratio)[:, None] * side
    width = (1 / np.sqrt(ratio))[:, None] * side
    half = np.stack([width.ravel(), height.ravel()], -1) / 2
    return np.round(np.concatenate([-half, half], -1)).astype(np.float32)


def grid_anchors(map_size: tuple[int, int], *, stride: int | tuple[int, int], shapes: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Return the anchors of all cells of a map, row by row: at each cell the same shapes.

    Args:
        map_size: (rows, columns) of the map.
        stride: Distance between neighbouring cells in pixels of the image, vertically and horizontally.
        shapes: (anchors of a cell, 4), such as those of `anchor_shapes`.
        offset: Position of the first cell, in strides: 0 is the corner of the image, 0.5 the centre of the pixels that a cell stands for.

    Returns:
        (rows * columns * anchors of a cell, 4), float32; the anchors of a cell are consecutive.

    Raises:
        UserError: if an argument is not of this kind.

    Example:
        >>> grid_anchors((1, 2), stride=8, shapes=anchor_shapes((4,), (1.0,))).tolist()
        [[-2.0, -2.0, 2.0, 2.0], [6.0, -2.0, 10.0, 2.0]]
    """
    caller = "grid_anchors"
    rows, columns = arguments.per_axis(map_size, 2, "map_size", caller)
    down, across = arguments.per_axis(stride, 2, "stride", caller)
    shapes, offset = arguments.host_array(caller, "shapes", shapes), arguments.number(caller, "offset", offset)
    if shapes.ndim != 2 or shapes.shape[1] != 4:
        raise UserError(f"{caller}: shapes of shape {shapes.shape} must be (anchors of a cell, 4); give those of `anchor_shapes`.")
    y, x = np.meshgrid((np.arange(rows) + offset) * down, (np.arange(columns) + offset) * across, indexing="ij")
    corners = np.stack([x, y, x, y], -1).reshape(-1, 1, 4) + shapes
    return corners.reshape(-1, 4).astype(np.float32)


def match_overlap(
    boxes: jax.Array, mask: jax.Array, anchors: jax.Array | np.ndarray, *, positive: float = 0.5, negative: float = 0.4
) -> jax.Array:
    """Match each anchor with the box that it overlaps most, if it overlaps it enough.

    An anchor is matched from an intersection over union of `positive` on. Below `negative` it is background, and in between it is ignored;
    but the anchors that overlap a box more than all others do are matched even so, so that most boxes have one.

    Args:
        boxes: (..., n, 4), floats; n is at least 1.
        mask: bool (..., n), False for boxes that are padding.
        anchors: (cells, 4).
        positive: Intersection over union from which an anchor is matched.
        negative: Intersection over union below which it is background.

    Returns:
        int32 (..., cells): the index of a box, `BACKGROUND` or `IGNORED`.

    Raises:
        UserError: if shapes do not fit, or an option is out of range.

    Example:
        >>> boxes, anchors = jnp.array([[0.0, 0.0, 4.0, 4.0]]), np.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 9.0], [8.0, 8.0, 9.0, 9.0]])
        >>> match_overlap(boxes, jnp.array([True]), anchors).tolist()
        [0, -2, -1]

    Reference:
        Lin et al. 2017, arXiv:1708.02002, section 4, and Ren et al. 2015, arXiv:1506.01497, section 3.1.2, condition (i).
    """
    caller = "match_overlap"
    boxes, mask, anchors = _checked(caller, boxes, mask, anchors)
    positive, negative = (arguments.number(caller, n, v, minimum=0) for n, v in (("positive", positive), ("negative", negative)))
    if negative > positive:
        raise UserError(f"{caller}: negative={negative} is above positive={positive}; give thresholds with negative <= positive.")
    overlap = jnp.where(mask[..., None], iou(boxes, anchors), -1.0)
    best, which = overlap.max(-2), overlap.argmax(-2).astype(jnp.int32)
    matches = jnp.where(best >= positive, which, jnp.where(best < negative, BACKGROUND, IGNORED))
    highest = overlap.max(-1, keepdims=True)
    closest = jnp.any((overlap == highest) & (highest > 0), -2)
    return jnp.where(closest, which, matches)


def match_centres(
    boxes: jax.Array, mask: jax.Array, anchors: jax.Array | np.ndarray, *, radius: float = 1.5, ranges: np.ndarray | None = None
) -> jax.Array:
    """Match the anchors whose centre lies inside of a box, and near its centre, with the smallest such box.

    Args:
        boxes: (..., n, 4), floats; n is at least 1.
        mask: bool (..., n), False for boxes that are padding.
        anchors: (cells, 4); all that counts is their centre and their width.
        radius: Distance from the centre of the box below which an anchor is matched, along either axis, in widths of the anchor.
        ranges: (cells, 2): an anchor is matched if the farthest side of the box is more than the first and less than the second number of
            pixels away from its centre; None for no such limit.

    Returns:
        int32 (..., cells): the index of a box, or `BACKGROUND`.

    Raises:
        UserError: if shapes do not fit, or an option is out of range.

    Example:
        >>> boxes, anchors = jnp.array([[0.0, 0.0, 8.0, 8.0]]), np.array([[2.0, 2.0, 4.0, 4.0], [4.0, 4.0, 12.0, 12.0]])
        >>> match_centres(boxes, jnp.array([True]), anchors).tolist()
        [0, -1]

    Reference:
        Tian et al. 2019, arXiv:1904.01355, section 3.1 and 3.2, and the centre sampling of its later version, arXiv:2006.09214, section 3.
    """
    caller = "match_centres"
    boxes, mask, anchors = _checked(caller, boxes, mask, anchors)
    radius = arguments.number(caller, "radius", radius, above=0)
    centre, width = 0.5 * (anchors[..., :2] + anchors[..., 2:]), anchors[..., 2] - anchors[..., 0]
    middle = 0.5 * (boxes[..., :2] + boxes[..., 2:])
    away = jnp.abs(centre[..., None, :, :] - middle[..., :, None, :]).max(-1)
    sides = _distances(boxes, centre)
    farthest = sides.max(-1)
    fits = mask[..., None] & (away < radius * width[..., None, :]) & (sides.min(-1) > 0)
    if ranges is not None:
        lowest, highest = _ranges(caller, ranges, anchors.shape[-2], boxes.ndim)
        fits &= (farthest > lowest) & (farthest < highest)
    extent = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    smallest = jnp.where(fits, extent[..., None], jnp.inf)
    return jnp.where(fits.any(-2), smallest.argmin(-2).astype(jnp.int32), BACKGROUND)


def match_nearest(
    boxes: jax.Array,
    mask: jax.Array,
    anchors: jax.Array | np.ndarray,
    predictions: jax.Array,
    *,
    nearest: int = 4,
    positive: float = 0.15,
    negative: float = 0.7,
) -> jax.Array:
    """Match each box with the same number of anchors, whatever its size: the nearest ones, and those whose predictions are nearest.

    Distances are sums of the absolute differences of centres and sizes. An anchor that is among the nearest of several boxes is matched
    with the one that it overlaps most.

    Args:
        boxes: (..., n, 4), floats; n is at least 1.
        mask: bool (..., n), False for boxes that are padding.
        anchors: (cells, 4).
        predictions: (..., cells, 4), the boxes that the detector predicts at present.
        nearest: Number of anchors, and again of predictions, for each box.
        positive: An anchor whose intersection over union with its box is below this is ignored.
        negative: An anchor without a box is ignored if its prediction overlaps with any box by more than this.

    Returns:
        int32 (..., cells): the index of a box, `BACKGROUND` or `IGNORED`.

    Raises:
        UserError: if shapes do not fit, or an option is out of range.

    Example:
        >>> boxes, anchors = jnp.array([[0.0, 0.0, 4.0, 4.0]]), np.array([[0.0, 0.0, 4.0, 5.0], [0.0, 0.0, 9.0, 9.0], [8.0, 8.0, 9.0, 9.0]])
        >>> match_nearest(boxes, jnp.array([True]), anchors, jnp.asarray(anchors), nearest=1).tolist()
        [0, -1, -1]

    Reference:
        Chen et al. 2021, arXiv:2103.09460, section 4.2.
    """
    caller = "match_nearest"
    boxes, mask, anchors = _checked(caller, boxes, mask, anchors)
    predictions = arguments.array(caller, "predictions", predictions, "floating-point").astype(jnp.float32)
    cells = anchors.shape[-2]
    if predictions.shape != (*boxes.shape[:-2], cells, 4):
        raise UserError(
            f"{caller}: predictions of shape {predictions.shape} do not fit boxes of shape {boxes.shape} and {cells} anchors; "
            "give (..., cells, 4)."
        )
    nearest = min(arguments.integer(caller, "nearest", nearest, minimum=1), cells)
    positive, negative = (arguments.number(caller, n, v, minimum=0) for n, v in (("positive", positive), ("negative", negative)))
    chosen = _nearest(boxes, anchors, nearest) | _nearest(boxes, lax.stop_gradient(predictions), nearest)
    overlap = iou(boxes, anchors)
    score = jnp.where(chosen & mask[..., None], overlap, -1.0)
    best, which = score.max(-2), score.argmax(-2).astype(jnp.int32)
    found = jnp.where(mask[..., None], iou(boxes, lax.stop_gradient(predictions)), -1.0).max(-2)
    without = jnp.where(found > negative, IGNORED, BACKGROUND)
    return jnp.where(best >= positive, which, jnp.where(best >= 0, IGNORED, without))


def _nearest(boxes: jax.Array, candidates: jax.Array, nearest: int) -> jax.Array:
    """Return which candidates (..., cells, 4) are among the nearest of each box, bool (..., n, cells)."""
    ours, theirs = (jnp.concatenate([0.5 * (one[..., :2] + one[..., 2:]), one[..., 2:] - one[..., :2]], -1) for one in (boxes, candidates))
    distance = jnp.abs(ours[..., :, None, :] - theirs[..., None, :, :]).sum(-1)
    _, indices = lax.top_k(-distance, nearest)
    cells = lax.broadcasted_iota(jnp.int32, distance.shape, distance.ndim - 1)
    chosen = jnp.zeros(distance.shape, bool)
    for i in range(nearest):
        chosen |= cells == indices[..., i : i + 1]
    return chosen


def _distances(boxes: jax.Array, centre: jax.Array) -> jax.Array:
    """Return the distances (..., n, cells, 4) from centres to the left, top, right and bottom of boxes (..., n, 4)."""
    point, corners = centre[..., None, :, :], boxes[..., :, None, :]
    return jnp.concatenate([point - corners[..., :2], corners[..., 2:] - point], -1)


def _ranges(caller: str, ranges: np.ndarray, cells: int, ndim: int) -> tuple[jax.Array, jax.Array]:
    limits = arguments.array(caller, "ranges", ranges, "floating-point").astype(jnp.float32)
    if limits.shape != (cells, 2):
        raise UserError(f"{caller}: ranges of shape {limits.shape} do not fit {cells} anchors; give (cells, 2).")
    limits = limits.reshape(*(1,) * (ndim - 1), cells, 2)
    return limits[..., 0], limits[..., 1]


def _checked(caller: str, boxes: jax.Array, mask: jax.Array, anchors: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return boxes and anchors in float32, the latter with the leading axes of the former, and the mask."""
    boxes = arguments.array(caller, "boxes", boxes, "floating-point").astype(jnp.float32)
    mask = arguments.array(caller, "mask", mask, "bool")
    if boxes.ndim < 2 or boxes.shape[-1] != 4 or not boxes.shape[-2] or mask.shape != boxes.shape[:-1]:
        raise UserError(
            f"{caller}: boxes of shape {boxes.shape} and mask of shape {mask.shape} do not fit; give (..., n, 4) "
            "and (..., n), with n at least 1."
        )
    anchors = arguments.array(caller, "anchors", anchors, "floating-point").astype(jnp.float32)
    if anchors.ndim != 2 or anchors.shape[1] != 4 or not anchors.shape[0]:
        raise UserError(f"{caller}: anchors of shape {anchors.shape} must be (cells, 4); give those of `grid_anchors`.")
    return boxes, mask, jnp.broadcast_to(anchors, (*boxes.shape[:-2], *anchors.shape))


def _numbers(caller: str, name: str, values: Sequence[float]) -> np.ndarray:
    if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
        raise UserError(f"{caller}: {name}={shown(values)} is not a sequence of numbers; give a tuple such as (0.5, 1.0, 2.0).")
    return np.array([arguments.number(caller, f"{name}[{i}]", value, above=0) for i, value in enumerate(values)])
