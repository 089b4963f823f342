"""What all detectors share: from raw outputs to the loss and to detections, by pure functions of fixed shapes.

A detector predicts one box for each anchor: its class, as logits of independent yes-or-no decisions, and where the box lies relative to
the anchor. Detectors differ in their anchors, in which box an anchor is matched with, and in how a box is coded.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dilax import arguments
from dilax.anchors import IGNORED, grid_anchors, match_centres
from dilax.boxes import area, batched_nms, centreness, clip_boxes, decode_ltrb, encode_ltrb
from dilax.detection_losses import giou_loss, sigmoid_focal_loss
from dilax.errors import UserError

Outputs = dict[str, jax.Array]
# The probability of each class that an untrained detector predicts, so that the many anchors without a box do not dominate the first steps
# (Lin et al. 2017, arXiv:1708.02002, section 3.3), and the logit of it.
PRIOR = 0.01
PRIOR_BIAS = nn.initializers.constant(float(np.log(PRIOR / (1 - PRIOR))))


class Level(NamedTuple):
    """One of the maps on which boxes are predicted.

    Attributes:
        anchors: (cells, 4), the anchors in the order of the outputs.
        sizes: The smallest and the largest size of the boxes that are predicted here, as the square root of their area in pixels.
    """

    anchors: np.ndarray
    sizes: tuple[float, float] = (0.0, math.inf)


class Detections(NamedTuple):
    """Detected boxes by falling score, padded to a fixed number.

    Attributes:
        boxes: (batch, detections, 4), corners in pixels, clipped to the image.
        scores: (batch, detections), from 0 to 1.
        classes: (batch, detections), int32.
        mask: (batch, detections), False for padding, which is 0 in all other arrays.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    mask: jax.Array


class Detector(nn.Module):
    """Base of the detectors, whose `__call__(x, *, train)` maps images to a dict of raw outputs, each (batch, cells, ...) in float32.

    The outputs are "logits" (batch, cells, classes), "boxes" (batch, cells, 4), and what a detector has besides. The methods below take
    them; none of them needs variables, so that they are called on the module itself. All of their shapes are fixed.

    Subclasses define `levels`, `matches`, `decode` and `box_losses`.
    """

    @nn.nowrap
    def levels(self, image_size: tuple[int, int]) -> list[Level]:
        """Return the maps on which boxes are predicted, those of the finest stride first.

        Args:
            image_size: (height, width) in pixels.
        """
        raise NotImplementedError

    @nn.nowrap
    def matches(self, predicted: jax.Array, boxes: jax.Array, mask: jax.Array, levels: list[Level]) -> jax.Array:
        """Return which box each anchor is to predict, int32 (batch, cells), as the functions of `dilax.anchors` do.

        Args:
            predicted: (batch, cells, 4), the boxes that the detector predicts at present.
            boxes: (batch, n, 4), corners in pixels.
            mask: bool (batch, n), False for padding.
            levels: Those of the image.
        """
        raise NotImplementedError

    @nn.nowrap
    def decode(self, boxes: jax.Array, anchors: jax.Array) -> jax.Array:
        """Map raw boxes (..., 4) and their anchors to corners in pixels."""
        raise NotImplementedError

    @nn.nowrap
    def box_losses(self, outputs: Outputs, predicted: jax.Array, targets: jax.Array, anchors: jax.Array) -> Outputs:
        """Return the losses of all anchors as if each had a box, (batch, cells) by name.

        Args:
            outputs: The raw outputs.
            predicted: (batch, cells, 4), the decoded boxes.
            targets: (batch, cells, 4), the boxes to predict.
            anchors: (batch, cells, 4).
        """
        raise NotImplementedError

    @nn.nowrap
    def scores(self, outputs: Outputs) -> jax.Array:
        """Return the score of each class, (batch, cells, classes) from 0 to 1."""
        return nn.sigmoid(outputs["logits"])

    @nn.nowrap
    def detection_loss(
        self, outputs: Outputs, boxes: jax.Array, classes: jax.Array, mask: jax.Array, image_size: tuple[int, int]
    ) -> tuple[Outputs, jax.Array]:
        """Return the sums of the losses of each image, and the number of anchors that were matched with a box.

        The loss of a batch is the sum of all of them, divided by the number of matched anchors in the batch (or 1).

        Args:
            outputs: What `__call__` returned.
            boxes: (batch, n, 4), corners in pixels; n is at least 1.
            classes: (batch, n), integers.
            mask: bool (batch, n), False for boxes that are padding.
            image_size: (height, width) of the images in pixels.

        Returns:
            {"classes": (batch,), "boxes": (batch,), ...}, float32, and the number of matched anchors, float32 (batch,). "classes" is NaN
            for an image with a box of a class that the detector does not have.

        Raises:
            UserError: if shapes do not fit.

        Reference:
            Lin et al. 2017, arXiv:1708.02002, section 4.
        """
        levels, outputs = self._checked(outputs, image_size)
        boxes, classes, mask = self._truth(boxes, mask, outputs["logits"].shape[0], classes)
        anchors = _all_anchors(levels, boxes.shape[0])
        predicted = self.decode(outputs["boxes"], anchors)
        matches = self.matches(predicted, boxes, mask, levels)
        found = matches >= 0
        chosen = jnp.maximum(matches, 0)
        labels = jnp.where(found, jnp.take_along_axis(classes, chosen, 1), -1)
        number = outputs["logits"].shape[-1]
        focal = sigmoid_focal_loss(outputs["logits"], jax.nn.one_hot(labels, number)).sum(-1)
        targets = jnp.take_along_axis(boxes, chosen[..., None], 1)
        # A box for the anchors without one, whose losses do not count, so that all of them are finite.
        targets = jnp.where(found[..., None], targets, anchors)
        sums = {name: jnp.where(found, loss, 0.0).sum(1) for name, loss in self.box_losses(outputs, predicted, targets, anchors).items()}
        unknown = jnp.any(mask & ((classes < 0) | (classes >= number)), 1)
        sums["classes"] = jnp.where(unknown, jnp.nan, jnp.where(matches == IGNORED, 0.0, focal).sum(1))
        return sums, found.astype(jnp.float32).sum(1)

    @nn.nowrap
    def detections(
        self,
        outputs: Outputs,
        image_size: tuple[int, int],
        *,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        candidates: int = 1000,
    ) -> Detections:
        """Return the boxes that a detector has found.

        Args:
            outputs: What `__call__` returned.
            image_size: (height, width) of the images in pixels.
            score_threshold: Boxes are reported if their score is above this.
            iou_threshold: Boxes are suppressed by one of the same class and a higher score if their intersection over union is above this.
            max_detections: Number of boxes to report at most for each image.
            candidates: Number of boxes and classes of the highest scores that are considered on each level.

        Raises:
            UserError: if shapes do not fit, or an option is out of range.
        """
        levels, outputs = self._checked(outputs, image_size)
        score_threshold = arguments.number("detections", "score_threshold", score_threshold, minimum=0)
        candidates = arguments.integer("detections", "candidates", candidates, minimum=1)
        found, start = [], 0
        for level in levels:
            part = {name: output[:, start : start + len(level.anchors)] for name, output in outputs.items()}
            found.append(self._candidates(part, level, candidates))
            start += len(level.anchors)
        boxes, scores, classes = (jnp.concatenate(each, 1) for each in zip(*found))
        options: Any = dict(score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections)
        return Detector.suppressed(clip_boxes(boxes, image_size), scores, classes, **options)

    @staticmethod
    def suppressed(
        boxes: jax.Array, scores: jax.Array, classes: jax.Array, *, score_threshold: float, iou_threshold: float, max_detections: int
    ) -> Detections:
        """Return the candidates whose score is high enough and that no other one suppresses.

        Args:
            boxes: (batch, candidates, 4), corners in pixels.
            scores: (batch, candidates).
            classes: (batch, candidates), integers.
            score_threshold: See `detections`.
            iou_threshold: See `detections`.
            max_detections: See `detections`.

        Raises:
            UserError: if shapes do not fit, or an option is out of range.
        """
        valid = jnp.where(scores > score_threshold, scores, -jnp.inf)
        indices, mask = batched_nms(boxes, valid, classes, iou_threshold=iou_threshold, max_outputs=max_detections)

        def kept(one: jax.Array) -> jax.Array:
            shape = (*mask.shape, *(1,) * (one.ndim - 2))
            return jnp.where(mask.reshape(shape), jnp.take_along_axis(one, indices.reshape(shape), 1), jnp.zeros((), one.dtype))

        return Detections(kept(boxes), kept(scores), kept(classes), mask)

    @nn.nowrap
    def anchor_coverage(self, boxes: jax.Array, mask: jax.Array, image_size: tuple[int, int]) -> jax.Array:
        """Return the share of boxes that at least one anchor is matched with; the others cannot be learned.

        Args:
            boxes: (batch, n, 4), corners in pixels.
            mask: bool (batch, n), False for boxes that are padding.
            image_size: (height, width) of the images in pixels.

        Returns:
            float32 (), from 0 to 1; NaN if there are no boxes.

        Raises:
            UserError: if shapes do not fit.
        """
        levels = self.levels(_size(self, image_size))
        boxes, _, mask = self._truth(boxes, mask, None)
        anchors = _all_anchors(levels, boxes.shape[0])
        matches = self.matches(anchors, boxes, mask, levels)
        found = jnp.any(matches[:, None] == jnp.arange(boxes.shape[1], dtype=jnp.int32)[None, :, None], -1) & mask
        return found.sum().astype(jnp.float32) / mask.sum().astype(jnp.float32)

    @nn.nowrap
    def _candidates(self, outputs: Outputs, level: Level, candidates: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return boxes, scores and classes of the highest scores on one level; the score of a box of another size is 0."""
        scores = self.scores(outputs)
        batch, cells, classes = scores.shape
        best, indices = lax.top_k(scores.reshape(batch, cells * classes), min(candidates, cells * classes))
        cell = indices // classes
        raw = jnp.take_along_axis(outputs["boxes"], cell[..., None], 1)
        boxes = self.decode(raw, jnp.asarray(level.anchors)[cell])
        if level.sizes != (0.0, math.inf):
            size = jnp.sqrt(area(boxes))
            best = jnp.where((size >= level.sizes[0]) & (size <= level.sizes[1]), best, 0.0)
        return boxes, best, indices % classes

    @nn.nowrap
    def _checked(self, outputs: Outputs, image_size: tuple[int, int]) -> tuple[list[Level], Outputs]:
        """Return the levels of an image, and the outputs in float32, which must be those of such an image."""
        caller = type(self).__name__
        if not isinstance(outputs, dict) or not {"logits", "boxes"} <= outputs.keys():
            raise UserError(
                f"{caller}: outputs of type {type(outputs).__name__} are not those of a detector; give what `__call__` returned."
            )
        image_size = _size(self, image_size)
        levels = self.levels(image_size)
        outputs = {name: arguments.array(caller, name, one, "floating-point").astype(jnp.float32) for name, one in outputs.items()}
        cells, anchors = outputs["logits"].shape[1:2], sum(len(level.anchors) for level in levels)
        if cells != (anchors,):
            raise UserError(
                f"{caller}: outputs of shape {outputs['logits'].shape} are not those of images of image_size={image_size}, "
                f"which have {anchors} cells; give the size of the images that the detector was applied to."
            )
        return levels, outputs

    @nn.nowrap
    def _truth(
        self, boxes: jax.Array, mask: jax.Array, batch: int | None, classes: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return boxes, classes and mask, checked against each other."""
        caller = type(self).__name__
        boxes = arguments.array(caller, "boxes", boxes, "floating-point").astype(jnp.float32)
        mask = arguments.array(caller, "mask", mask, "bool")
        classes = jnp.zeros(mask.shape, jnp.int32) if classes is None else arguments.array(caller, "classes", classes, "integer")
        fits = boxes.ndim == 3 and boxes.shape[2] == 4 and boxes.shape[1] and boxes.shape[:2] == mask.shape == classes.shape
        if not fits or boxes.shape[0] != (batch or boxes.shape[0]):
            raise UserError(
                f"{caller}: boxes of shape {boxes.shape}, classes of shape {classes.shape} and mask of shape {mask.shape} do not fit; give "
                f"({batch or 'batch'}, n, 4), ({batch or 'batch'}, n) twice, with n at least 1."
            )
        return jnp.where(mask[..., None], boxes, 0.0), classes, mask


class PointDetector(Detector):
    """Base of the detectors that predict the distances from the centre of a cell to the sides of a box, and how central the cell is.

    The outputs have "centreness" (batch, cells) besides. An anchor is as large as its cell. Its score is the geometric mean of the
    probability of the class and of the centreness; its box is scored by the generalised intersection over union.

    Reference:
        Tian et al. 2019, arXiv:1904.01355.
    """

    @nn.nowrap
    def matches(self, predicted: jax.Array, boxes: jax.Array, mask: jax.Array, levels: list[Level]) -> jax.Array:
        """Match by centres, on each level the boxes whose farthest side is between 4 and 8 cells away; on the outer levels, beyond."""
        anchors = np.concatenate([level.anchors for level in levels])
        cell = anchors[:, 2] - anchors[:, 0]
        lowest, highest = 4 * cell, 8 * cell
        lowest[: len(levels[0].anchors)] = 0
        highest[-len(levels[-1].anchors) :] = math.inf
        return match_centres(boxes, mask, anchors, ranges=np.stack([lowest, highest], -1))

    @nn.nowrap
    def decode(self, boxes: jax.Array, anchors: jax.Array) -> jax.Array:
        """Map distances (..., 4) in sizes of the anchor to corners in pixels."""
        return decode_ltrb(boxes, anchors)

    @nn.nowrap
    def box_losses(self, outputs: Outputs, predicted: jax.Array, targets: jax.Array, anchors: jax.Array) -> Outputs:
        """Return the losses of the boxes and of the centreness of all anchors, (batch, cells)."""
        centre = centreness(encode_ltrb(targets, anchors))
        return {
            "boxes": giou_loss(predicted, targets),
            "centreness": sigmoid_focal_loss(outputs["centreness"], centre, alpha=None, gamma=0),
        }

    @nn.nowrap
    def scores(self, outputs: Outputs) -> jax.Array:
        """Return the geometric mean of the probabilities of the classes and of the centreness, (batch, cells, classes)."""
        return jnp.sqrt(nn.sigmoid(outputs["logits"]) * nn.sigmoid(outputs["centreness"])[..., None])


def point_level(image_size: tuple[int, int], stride: int) -> Level:
    """Return a level whose anchors are its cells."""
    half = np.array([[-0.5, -0.5, 0.5, 0.5]], np.float32) * stride
    return Level(grid_anchors(map_size(image_size, stride), stride=stride, shapes=half, offset=0.5))


def map_size(image_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return (rows, columns) of the map of a stride, a power of 2."""
    return -(-image_size[0] // stride), -(-image_size[1] // stride)


def flattened(x: jax.Array, last: int) -> jax.Array:
    """Map the map (batch, rows, columns, anchors * last) of a head to (batch, cells, last) in float32."""
    return x.reshape(x.shape[0], -1, last).astype(jnp.float32)


def _size(module: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = arguments.per_axis(image_size, 2, "image_size", type(module).__name__)
    return height, width


def _all_anchors(levels: list[Level], batch: int) -> jax.Array:
    anchors = np.concatenate([level.anchors for level in levels])
    return jnp.broadcast_to(jnp.asarray(anchors)[None], (batch, *anchors.shape))
