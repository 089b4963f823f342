"""Average precision of detected boxes, as COCO defines it, in NumPy: what a ratio of sums cannot say, since all detections are ranked."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dilax import arguments
from dilax.errors import UserError, shown

# As COCO computes them, since an overlap may equal one of them exactly.
IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS = np.linspace(0.0, 1.0, 101)
_NEARLY_ONE = 1 - 1e-10  # a box equals another if they overlap as much


@dataclasses.dataclass(frozen=True)
class DetectionScores:
    """How well the boxes of a split were detected; `score_detections` makes it.

    Attributes:
        thresholds: The intersections over union from which on a detection counts as right, T of them.
        precision: (T, 101, classes), the highest precision at a recall of at least 0, 0.01, ... 1; NaN for a class without true boxes.
        recall: (T, classes), the share of the true boxes that any detection hits; NaN for a class without true boxes.
        truths: int64 (classes,), the number of true boxes, those of crowds left out.
    """

    thresholds: tuple[float, ...]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    truths: NDArray[np.int64]

    def class_ap(self, threshold: float | None = None) -> NDArray[np.float64]:
        """Return the average precision of each class, (classes,); NaN for a class without true boxes.

        Args:
            threshold: One of `thresholds`, such as 0.5; None averages over all of them.

        Raises:
            UserError: if it is not one of them.
        """
        if threshold is None:
            return self.precision.mean((0, 1))
        return self.precision[self._place(threshold)].mean(0)

    def mean_ap(self, threshold: float | None = None) -> float:
        """Return the mean of `class_ap` over the classes that have true boxes; NaN if none has. Arguments and errors as `class_ap`."""
        values = self.class_ap(threshold)
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else float("nan")

    def curve(self, threshold: float) -> NDArray[np.float64]:
        """Return the precision (101, classes) at recalls of 0, 0.01, ... 1 for one of `thresholds`; NaN for a class without true boxes."""
        return self.precision[self._place(threshold)]

    def _place(self, threshold: float) -> int:
        value = arguments.number("DetectionScores", "threshold", threshold)
        near = [i for i, one in enumerate(self.thresholds) if abs(one - value) < 1e-9]
        if not near:
            known = ", ".join(f"{one:g}" for one in self.thresholds)
            raise UserError(f"DetectionScores: threshold={value} was not measured; use one of {known}.")
        return near[0]


def score_detections(
    boxes: ArrayLike,
    scores: ArrayLike,
    classes: ArrayLike,
    mask: ArrayLike,
    true_boxes: ArrayLike,
    true_classes: ArrayLike,
    true_mask: ArrayLike,
    crowd: ArrayLike | None = None,
    *,
    num_classes: int,
    iou_thresholds: tuple[float, ...] = IOU_THRESHOLDS,
    max_detections: int = 100,
) -> DetectionScores:
    """Score detections against the true boxes of a whole split.

    In each image the detections of a class, the highest score first, each take the true box of that class that they overlap most, among
    those that are not taken and that they overlap by the threshold; a detection that finds none is false. The detections of all images
    are then ranked by their scores, and the precision at a recall is the highest of those where the recall is reached: Lin et al. 2014,
    arXiv:1405.0312, in the definitions of COCO's own program (its areas "all"). A crowd is a region of objects that are not marked one by
    one: any number of detections may lie in it, by the share of their own area; they count neither as right nor as false.

    Args:
        boxes: (images, detections, 4), detected boxes, (x_min, y_min, x_max, y_max) in any unit.
        scores: (images, detections), the higher the more certain. The order of equal scores is that of the images and the detections.
        classes: (images, detections), integers.
        mask: bool (images, detections), which detections exist.
        true_boxes: (images, truths, 4), in the unit of `boxes`.
        true_classes: (images, truths), integers.
        true_mask: bool (images, truths), which true boxes exist.
        crowd: bool (images, truths), which of them are crowds; None is none.
        num_classes: Number of classes.
        iou_thresholds: Intersections over union from which on a detection is right; the default is COCO's 0.5, 0.55, ... 0.95.
        max_detections: Number of detections that count in each image for each class, those with the highest scores.

    Returns:
        The scores; `mean_ap()` of them is COCO's AP, `mean_ap(0.5)` its AP at 0.5.

    Raises:
        UserError: if shapes or dtypes do not fit, or a number is not finite, a class unknown or a box turned over.

    Example:
        >>> found = [[[0, 0, 10, 10], [20, 0, 30, 10]]]
        >>> one = score_detections(found, [[0.9, 0.8]], [[0, 0]], [[True, True]], [[[0, 0, 10, 9]]], [[0]], [[True]], num_classes=1)
        >>> round(one.mean_ap(0.5), 3), round(one.mean_ap(), 3)
        (1.0, 0.9)
    """
    caller = "score_detections"
    num_classes = arguments.integer(caller, "num_classes", num_classes, minimum=1)
    max_detections = arguments.integer(caller, "max_detections", max_detections, minimum=1)
    thresholds = _thresholds(caller, iou_thresholds)
    found = _boxes_of(caller, "", {"boxes": boxes, "classes": classes, "mask": mask}, num_classes)
    true = _boxes_of(caller, "true_", {"boxes": true_boxes, "classes": true_classes, "mask": true_mask}, num_classes)
    if len(found[0]) != len(true[0]):
        raise UserError(f"{caller}: boxes are of {len(found[0])} images and true_boxes of {len(true[0])}; give the same images.")
    points = arguments.host_array(caller, "scores", scores).astype(np.float64)
    _check_shape(caller, "scores", points, found[2].shape)
    _check_finite(caller, "scores", points[found[2]])
    crowds = np.zeros(true[2].shape, bool) if crowd is None else _bools(caller, "crowd", crowd)
    _check_shape(caller, "crowd", crowds, true[2].shape)
    parts = [_score_class(i, found, points, true, crowds, np.asarray(thresholds), max_detections) for i in range(num_classes)]
    precision, recall, truths = zip(*parts)
    return DetectionScores(thresholds, np.stack(precision, -1), np.stack(recall, -1), np.array(truths))


Boxes = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # (images, n, 4), (images, n), bool (images, n)


def _score_class(
    label: int, found: Boxes, points: NDArray[Any], true: Boxes, crowds: NDArray[Any], thresholds: NDArray[Any], most: int
) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Return the precision (T, 101) and the recall (T,) of a class, and the number of its true boxes."""
    ours, theirs = found[2] & (found[1] == label), true[2] & (true[1] == label)
    truths = int((theirs & ~crowds).sum())
    ranks, right, ignored = [np.zeros(0)], [np.zeros((len(thresholds), 0), bool)], [np.zeros((len(thresholds), 0), bool)]
    for image in np.flatnonzero(ours.any(1)):
        (chosen,) = np.nonzero(ours[image])
        chosen = chosen[np.argsort(-points[image, chosen], kind="stable")[:most]]
        crowd = crowds[image, theirs[image]]
        overlaps = overlap(found[0][image, chosen], true[0][image, theirs[image]], crowd)
        hit, neither = _match(overlaps, crowd, thresholds)
        ranks.append(points[image, chosen])
        right.append(hit)
        ignored.append(neither)
    order = np.argsort(-np.concatenate(ranks), kind="stable")
    hits, neither = (np.concatenate(each, 1)[:, order] for each in (right, ignored))
    return *_curve(hits, neither, truths), truths


def overlap(boxes: NDArray[Any], truths: NDArray[Any], crowd: NDArray[Any]) -> NDArray[np.float64]:
    """Return the intersection over union (n, m) of boxes (n, 4) and (m, 4); over the area of the first where the second is a `crowd`."""
    corners = np.minimum(boxes[:, None, 2:], truths[None, :, 2:]) - np.maximum(boxes[:, None, :2], truths[None, :, :2])
    shared = corners.clip(0).prod(-1)
    area, other = ((each[:, 2:] - each[:, :2]).prod(-1) for each in (boxes, truths))
    whole = area[:, None] + np.where(crowd[None], 0.0, other[None] - shared)
    return np.where(shared > 0, shared / np.where(shared > 0, whole, 1), 0.0)


def _match(overlaps: NDArray[Any], crowd: NDArray[Any], thresholds: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which of n detections, ranked, are right and which count as neither, bool (T, n), from their overlaps (n, m) with m boxes."""
    limits = np.minimum(thresholds, _NEARLY_ONE)
    shape = len(thresholds), len(overlaps)
    right, neither = np.zeros(shape, bool), np.zeros(shape, bool)
    taken = np.zeros((len(thresholds), len(crowd)), bool)
    every = np.arange(len(thresholds))
    for i in np.flatnonzero(overlaps.max(1, initial=0) >= limits.min()):
        near = overlaps[i] >= limits[:, None]
        open_to = np.where(near & ~taken & ~crowd, overlaps[i], -1.0)
        best = len(crowd) - 1 - open_to[:, ::-1].argmax(1)  # of those that tie, the last
        hit = open_to[every, best] >= 0
        taken[every[hit], best[hit]] = True
        right[:, i], neither[:, i] = hit, ~hit & (near & crowd).any(1)
    return right, neither


def _curve(right: NDArray[Any], neither: NDArray[Any], truths: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision (T, 101) and recall (T,) of ranked detections, bool (T, n)."""
    if not truths:
        return np.full((len(right), len(RECALLS)), np.nan), np.full(len(right), np.nan)
    hits, misses = np.cumsum(right, 1), np.cumsum(~right & ~neither, 1)
    recall, precision = hits / truths, hits / np.maximum(hits + misses, 1)
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    padded = np.concatenate([best, np.zeros((len(right), 1))], 1)  # a recall that is not reached
    places = [np.searchsorted(row, RECALLS, side="left") for row in recall]
    return np.stack([row[place] for row, place in zip(padded, places)]), recall.max(1, initial=0)


def _thresholds(caller: str, values: Any) -> tuple[float, ...]:
    limits = arguments.host_array(caller, "iou_thresholds", values).astype(np.float64)
    if limits.ndim != 1 or not limits.size or not ((limits > 0) & (limits <= 1)).all():
        raise UserError(f"{caller}: iou_thresholds={shown(values)} must be numbers above 0, up to 1, such as (0.5, 0.75).")
    return tuple(limits.tolist())


def _boxes_of(caller: str, prefix: str, given: dict[str, Any], num_classes: int) -> Boxes:
    """Return boxes, classes and mask, checked against each other."""
    boxes = arguments.host_array(caller, f"{prefix}boxes", given["boxes"]).astype(np.float64)
    if boxes.ndim != 3 or boxes.shape[-1] != 4:
        raise UserError(f"{caller}: {prefix}boxes of shape {boxes.shape} must be (images, boxes, 4): x_min, y_min, x_max, y_max.")
    mask = _bools(caller, f"{prefix}mask", given["mask"])
    _check_shape(caller, f"{prefix}mask", mask, boxes.shape[:2])
    classes = arguments.host_array(caller, f"{prefix}classes", given["classes"])
    _check_shape(caller, f"{prefix}classes", classes, boxes.shape[:2])
    for label in classes[mask][~np.isin(classes[mask], np.arange(num_classes))][:1]:
        raise UserError(f"{caller}: {prefix}classes hold {shown(label.item())}, which is not a class; give integers below {num_classes}.")
    _check_finite(caller, f"{prefix}boxes", boxes[mask])
    for box in boxes[mask][(boxes[mask][:, 2:] < boxes[mask][:, :2]).any(1)][:1].tolist():
        raise UserError(f"{caller}: {prefix}boxes hold {tuple(box)}, whose corners are turned over; give x_min, y_min, x_max, y_max.")
    return boxes, classes, mask


def _bools(caller: str, name: str, value: Any) -> NDArray[np.bool_]:
    try:
        x = np.asarray(value)
    except (TypeError, ValueError):
        x = np.asarray(None)
    if x.dtype != bool:
        raise UserError(f"{caller}: {name}={shown(value)} is not an array of bool; give one.")
    return x


def _check_shape(caller: str, name: str, x: NDArray[Any], shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise UserError(f"{caller}: {name} has shape {x.shape} beside boxes of {shape}; give one for each box.")


def _check_finite(caller: str, name: str, x: NDArray[Any]) -> None:
    if not np.isfinite(x).all():
        raise UserError(f"{caller}: {name} hold {x[~np.isfinite(x)][0]}; give finite numbers.")
