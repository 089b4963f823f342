"""A trained model with its variables and the description of its data: everything that a prediction needs."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dilax import arguments, inputs
from dilax.errors import UserError
from dilax.inference.images import ImagePredictor
from dilax.inference.predictor import model_arguments, pool_steps, takes_mask, valid_steps
from dilax.inference.sequences import SequencePredictor
from dilax.restoring import enlarged
from dilax.views import average_views

__all__ = ["POOLS", "Inference", "average_views", "enlarged", "model_arguments", "pool_steps", "takes_mask", "valid_steps"]

POOLS = ("last", "mean", "max")


@dataclasses.dataclass(frozen=True, repr=False)
class Inference(ImagePredictor, SequencePredictor):
    """A trained model that is ready to predict; `dilax.load` reads one from the folder of a run.

    Attributes:
        model: The Flax module.
        variables: Its parameters and running statistics.
        spec: What its data looks like.
        pool: How outputs at every step become one for the whole sequence; see `pool_steps`.
        task: What the model was trained for, the config.task of its run, which determines what `predict` takes and gives.
        image_size: Longer side that images are scaled to before they are segmented; 0 leaves them as they are.

    Example:
        >>> digits = dilax.load("runs/digits")  # doctest: +SKIP
        >>> digits.predict("image.png", top=2)  # doctest: +SKIP
        [('7', 0.998), ('9', 0.001)]
    """

    def predict(self, given: Any, *, top: int | None = None, steps: int | None = None, rate: int | None = None) -> Any:
        """Predict from raw inputs, which are prepared as in training.

        ========================= ======================================= ======================================================
        `task`                    one input                               its result
        ========================= ======================================= ======================================================
        "classification"          an image                                [(class, probability), ...], the `top` most probable
        "segmentation"            an image; a volume, for a run on        uint8 (height, width) or (x, y, z), the class of each of its
                                  volumes                                 pixels
        "detection"               an image                                [(class, score, box), ...], as `detect` returns them
        "sequence_classification" what the run was trained on: a sound,   [(class, probability), ...], the `top` most probable
                                  a text, a series (time, channels), or
                                  an image that is read pixel by pixel
        "sequence_labelling"      features (time, channels), or a text    [(start, end, class), ...]: its segments, or its spans
        "sequence_prediction"     a table (time, columns)                 (`steps`, columns), the rows that follow it
        "language_model"          the beginning of a text                 the text with `steps` more symbols
        "waveform"                a sound                                 float32 (samples + `steps`,), the sound continued
        "separation"              a sound                                 float32 (samples, sources)
        "restoration"             an image                                uint8 (height, width, channels), the restored image
        ========================= ======================================= ======================================================

        An image is a path, an image of PIL, or an array uint8 of any size, (height, width) or (height, width, channels). A sound is a path,
        or an array of floats (samples,) in -1..1. A text is a string, or the `pathlib.Path` of a file. A volume is the path of a NIfTI
        file, or an array of intensities (x, y, z) or (x, y, z, channels), whose axes point to the right, to the front and upwards; the
        classes have the axes of the file or array.

        Args:
            given: One input; or several, as a list, or as an array of images (batch, height, width, channels) or volumes. A list of
                numbers, or of lists of numbers, is one series or table.
            top: Number of classes to give; None is 1.
            steps: Number of samples, symbols or rows to add; None is 200. `sample` and `forecast` have further options.
            rate: Samples per second of sounds given as arrays; None is that of the training, `spec.sample_rate`.

        Returns:
            The result, or a list of them for several inputs.

        Raises:
            UserError: if an input does not fit the run, or an option does not apply to its task.
        """
        predictors: dict[str, tuple[Callable[..., Any], set[str]]] = {
            "classification": (self._predict_class, {"top"}),
            "segmentation": (self._predict_mask, set()),
            "detection": (lambda one: self.detect(inputs.to_pixels(one, self.spec.input_shape[-1])), set()),
            "sequence_classification": (self._predict_class, {"top", "rate"}),
            "sequence_labelling": (self._predict_segments, set()),
            "sequence_prediction": (self._predict_rows, {"steps"}),
            "language_model": (self._predict_text, {"steps"}),
            "waveform": (self._predict_sound, {"steps", "rate"}),
            "separation": (self._predict_sources, {"rate"}),
            "restoration": (self._predict_image, set()),
        }
        if self.task not in predictors:
            raise UserError(f"predict: task={self.task!r} is not one of {tuple(predictors)}; load the run with dilax.load.")
        function, known = predictors[self.task]
        options = {name: value for name, value in {"top": top, "steps": steps, "rate": rate}.items() if value is not None}
        for name, value in options.items():
            if name not in known:
                raise UserError(f"predict: {name}={value} does not apply to a run of the task {self.task}; leave it out.")
            options[name] = arguments.integer("predict", name, value, minimum=1)
        batch = isinstance(given, np.ndarray | jax.Array) and given.ndim == (5 if self.spec.is_volume else 4)
        if batch or (isinstance(given, list | tuple) and not all(map(_is_row, given))):
            return [function(one, **options) for one in given]
        return function(given, **options)


def _is_row(one: Any) -> bool:
    """Return whether an element of a list is a number, or a row of numbers, of one series or table."""
    return not isinstance(one, str | os.PathLike | np.ndarray | jax.Array) and (
        np.ndim(one) == 0 if not isinstance(one, list | tuple) else all(np.ndim(cell) == 0 and not isinstance(cell, str) for cell in one)
    )
