"""How segmentation is judged beyond the sums over a split: single images, Dice coefficients of volumes, distances between surfaces."""

import math

import numpy as np

from dilax import metrics
from train.tasks.base import Scores


def image_scores(truths: np.ndarray, predictions: np.ndarray, classes: int, ignored: int) -> np.ndarray:
    """Return the mean intersection over union (n,) of each image; NaN where all of its pixels are ignored."""
    scores = []
    for truth, prediction in zip(truths, predictions):
        known = truth != ignored
        pairs = truth[known].astype(np.int64) * classes + prediction[known]
        scores.append(metrics.mean_iou(np.bincount(pairs, minlength=classes**2).reshape(classes, classes)))
    return np.array(scores)


def mean_dice(truth: np.ndarray, found: np.ndarray, classes: int) -> float:
    """Return the mean Dice coefficient of the classes but the first, the background, in one volume; NaN if it has none of them."""
    pairs = [(truth == number, found == number) for number in range(1, classes)]
    totals = [a.sum() + b.sum() for a, b in pairs]
    values = [2 * (a & b).sum() / total for (a, b), total in zip(pairs, totals) if total]
    return float(np.mean(values)) if values else float("nan")


def class_dice(scores: Scores) -> np.ndarray:
    """Return the Dice coefficient of each class, averaged over the volumes in which it occurs; NaN if it occurs in none."""
    count = scores.sums["dice_count"]
    return np.where(count > 0, scores.sums["dice"] / np.maximum(count, 1), np.nan)


def mean_of(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN, and 0 if there are none, so that checkpoints can be compared."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def surface_distances(scores: Scores, classes: int) -> dict[str, list[float]]:
    """Return what `dilax.metrics.hausdorff_distance` makes of the kept volumes, by the names of its metrics.

    Returns:
        "hd95_mm": for each class the 95th percentile in millimetres, averaged over the volumes in which both surfaces exist, NaN if there
        are none, as for the background. "hd95_missed": the number of volumes in which only one of them exists, NaN if it is 0.
    """
    if not scores.kept:
        return {}
    means, missed = [math.nan], [math.nan]
    for number in range(1, classes):
        found = [
            metrics.hausdorff_distance(prediction == number, truth == number, spacing=spacing.tolist())
            for prediction, truth, spacing in zip(scores.kept["found"], scores.kept["label"], scores.kept["spacing"])
        ]
        finite = [value for value in found if math.isfinite(value)]
        means.append(float(np.mean(finite)) if finite else math.nan)
        missed.append(float(sum(map(math.isinf, found))) or math.nan)
    return {"hd95_mm": means, "hd95_missed": missed}
