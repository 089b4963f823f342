"""Detection in one image of any size: it is fitted as in training, and what is found there is returned in its own pixels."""

from typing import Any

import flax.linen as nn
import numpy as np

from dilax.errors import UserError
from dilax.inputs import fit_inside, inner_size
from dilax.models import Detections, Detector
from dilax.pruning import unpruned
from dilax.spec import DataSpec

Box = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max in pixels


def is_detector(model: nn.Module) -> bool:
    """Return whether a model detects boxes, as those of `dilax.models.Detector` do, pruned or not."""
    return isinstance(unpruned(model), Detector)


def detector_of(model: nn.Module) -> Detector:
    """Return the detector that a model is, whose methods make detections of its outputs; of a pruned one, that which was pruned.

    Raises:
        UserError: if it is not a detector.
    """
    detector = unpruned(model)
    if not isinstance(detector, Detector):
        raise UserError(f"detect: a {type(detector).__name__} does not detect boxes; give a detector, such as separable_detector.")
    return detector


def fitted(image: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Return an image, uint8 (height, width, channels), scaled and padded to the size of the data."""
    return fit_inside(image, *spec.input_shape[:2], stretch=spec.stretched)


def objects_in(shape: tuple[int, ...], found: Detections, spec: DataSpec) -> list[tuple[str, float, Box]]:
    """Return class, score and box of what was found in one fitted image, by falling score.

    Args:
        shape: (height, width, ...) of the image before it was fitted.
        found: Its detections, with a batch axis of 1.
        spec: What the data looks like.
    """
    tall, wide = inner_size(shape, *spec.input_shape[:2], stretch=spec.stretched)
    scale = np.array([shape[1] / wide, shape[0] / tall] * 2)
    limits = np.array([shape[1], shape[0]] * 2, np.float64)
    boxes, scores, classes, mask = (np.asarray(each)[0] for each in found)
    edges: Any = np.clip(boxes.astype(np.float64) * scale, 0, limits)
    real = np.flatnonzero(mask & (edges[:, 2:] > edges[:, :2]).all(1))  # what was found in the padding has no area in the image
    return [(spec.outputs[classes[i]], float(scores[i]), tuple(edges[i].tolist())) for i in real]
