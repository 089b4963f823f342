"""Predictions from images and volumes: classes of pixels, boxes, restored images."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from dilax import detection, inputs, volumes
from dilax.errors import UserError, shown
from dilax.inference.predictor import Predictor
from dilax.restoring import in_tiles, restored
from dilax.tiling import tiled
from dilax.views import average_views


@dataclasses.dataclass(frozen=True, repr=False)
class ImagePredictor(Predictor):
    """A trained model of images or volumes."""

    def _predict_mask(self, one: Any) -> np.ndarray:
        if self.spec.is_volume:
            volume = volumes.read_volume(one) if isinstance(one, str | os.PathLike) else None
            labels = self.segment_whole(self.levels(volume.values, name=str(one)) if volume else self.levels(np.asarray(one)))
            return volume.unturned(labels) if volume else labels
        image = inputs.to_pixels(one, self.spec.input_shape[-1])
        return self.segment_whole(image)

    def _predict_image(self, one: Any) -> np.ndarray:
        return self.restore(inputs.to_colours(one))

    def levels(self, values: np.ndarray, *, name: str = "the volume") -> np.ndarray:
        """Map the intensities of a volume, (x, y, z) or (x, y, z, channels), to levels as in training; see `dilax.volumes.to_levels`.

        Raises:
            UserError: if it is not a volume, or has other channels than those of the training; `name` is what the message calls it.
        """
        found, channels = volumes.to_levels(values, intensities=self.spec.intensities), self.spec.input_shape[-1]
        if found.shape[-1] != channels:
            raise UserError(f"{name} has {found.shape[-1]} channels, and the run was trained on {channels}; give the same channels.")
        return found

    def segment(self, images: Any, *, scales: tuple[float, ...] = (1.0,), flip: bool = False) -> np.ndarray:
        """Return the most probable class of each pixel.

        Args:
            images: uint8 (batch, height, width, channels), or volumes (batch, x, y, z, channels) as `levels` returns them.
            scales: Sizes at which the model runs, relative to the image; the probabilities are averaged.
            flip: Whether it also runs on images that are mirrored along their last axis.

        Returns:
            uint8 (batch, *space).
        """
        self._check_task("segment", "segmentation")
        return np.asarray(self._segment(self.variables, jnp.asarray(images), tuple(scales), flip))

    def segment_whole(
        self, image: np.ndarray, *, scales: tuple[float, ...] = (1.0,), flip: bool = False, tile: tuple[int, ...] = ()
    ) -> np.ndarray:
        """Return the class of each pixel, uint8 (*space), of one image or volume of any size, uint8 (*space, channels).

        An image is scaled to `image_size`, if that is set, and the classes are scaled back. A volume is padded to the size of those of the
        training, as these are in evaluation. With `tile`, sizes per axis, parts of that size are computed one after the other, with the
        same result (see `dilax.tiled`). See `segment` for the other arguments.
        """
        if self.spec.is_volume:
            padded = volumes.pad_to(image, self.spec.input_shape[:-1])
            return self._classes(padded, scales, flip, tile)[tuple(slice(size) for size in image.shape[:-1])]
        scaled = inputs.resize_pixels(image, *inputs.scaled_size(image.shape[:2], self.image_size)) if self.image_size else image
        return inputs.nearest(self._classes(scaled, scales, flip, tile), *image.shape[:2])

    def _classes(self, image: np.ndarray, scales: tuple[float, ...], flip: bool, tile: tuple[int, ...]) -> np.ndarray:
        if not tile:
            return self.segment(image[None], scales=scales, flip=flip)[0]
        self._check_task("segment", "segmentation")
        if flip or tuple(scales) != (1.0,):
            raise UserError(f"segment_whole: tile={shown(tile)} cannot be combined with scales or flip; leave one of them out.")
        return self._tiled(tuple(tile))(image[None])[0].argmax(-1).astype(np.uint8)

    @functools.cached_property
    def _tiled(self) -> Callable[[tuple[int, ...]], Callable[..., Any]]:
        return functools.lru_cache(lambda tile: tiled(self.apply, tile))

    @functools.cached_property
    def _segment(self) -> Callable[..., Any]:
        def run(variables: VariableDict, images: jax.Array, scales: tuple[float, ...], flip: bool) -> jax.Array:
            def logits(x: jax.Array) -> Any:
                return self.model.apply(variables, x=x, train=False)

            return average_views(logits, self.arguments(images)["x"], scales, flip).argmax(-1).astype(jnp.uint8)

        return jax.jit(run, static_argnums=(2, 3))

    def restore(self, image: np.ndarray) -> np.ndarray:
        """Return an image of any size restored in exact tiles, uint8 (height, width, channels); see `dilax.tiled`.

        Args:
            image: uint8 (height, width, channels), which is first enlarged by `spec.enlarged`; or floats from 0 to 255, perhaps beyond,
                that have their final size. A model of grey images restores each colour on its own, and one of colours takes grey for one.
        """
        self._check_task("restore", "restoration")
        return restored(self._restore, image, channels=self.spec.input_shape[-1], scale=self.spec.enlarged)

    @functools.cached_property
    def _restore(self) -> Callable[..., Any]:
        def run(x: jax.Array) -> Any:
            return self.model.apply(self.variables, x=self.arguments(x)["x"], train=False)

        return in_tiles(run)

    def detect(
        self, image: np.ndarray, *, score_threshold: float = 0.5, iou_threshold: float = 0.5, max_detections: int = 100
    ) -> list[tuple[str, float, detection.Box]]:
        """Return class, score and box (x_min, y_min, x_max, y_max) in pixels of the objects in an image, by falling score.

        The image is uint8 (height, width, channels), of any size; see `dilax.models.Detector.detections` for the options.
        """
        self._check_task("detect", "detection")
        options = dict(score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections)
        found = self._detect(self.variables, jnp.asarray(detection.fitted(image, self.spec))[None], tuple(options.items()))
        return detection.objects_in(image.shape, found, self.spec)

    @functools.cached_property
    def _detect(self) -> Callable[..., Any]:
        def run(variables: VariableDict, images: jax.Array, options: tuple[tuple[str, Any], ...]) -> Any:
            outputs = dataclasses.replace(self, variables=variables).apply(images)
            return detection.detector_of(self.model).detections(outputs, (images.shape[1], images.shape[2]), **dict(options))

        return jax.jit(run, static_argnums=2)
