"""A trained model with its variables and the description of its data: everything that a prediction needs."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from dilax import arguments, generate, inputs
from dilax.audio import mu_law_decode, mu_law_encode
from dilax.errors import UserError
from dilax.files import read_bytes
from dilax.pooling import pool_sequence
from dilax.pruning import unpruned
from dilax.resizing import resize
from dilax.restoring import enlarged as enlarged  # as training does, too
from dilax.restoring import in_tiles, restored
from dilax.spec import DataSpec

POOLS = ("last", "mean", "max")


@dataclasses.dataclass(frozen=True)
class Inference:
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

    model: nn.Module
    variables: VariableDict
    spec: DataSpec
    pool: str = "last"
    task: str = ""
    image_size: int = 0

    def __repr__(self) -> str:
        """Say what the model is for, without its numbers."""
        names = self.spec.outputs
        shown = ", ".join(map(repr, names if len(names) <= 10 else names[:9])) + (f", and {len(names) - 9} more" if len(names) > 10 else "")
        return (
            f"Inference(task={self.task!r}, model={type(self.model).__name__}, data={self.spec.name!r}, "
            f"input_shape={self.spec.input_shape}, outputs=({shown}))"
        )

    def _check_task(self, method: str, *tasks: str) -> None:
        """Refuse a method that does not fit what the model was trained for."""
        if self.task and self.task not in tasks:
            raise UserError(
                f"{method}: this run was trained for {self.task}, not for {' or '.join(tasks)}; use predict, which fits every run."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes or, in other tasks, of the outputs; the same as `spec.outputs`."""
        return self.spec.outputs

    def predict(self, given: Any, *, top: int | None = None, steps: int | None = None, rate: int | None = None) -> Any:
        """Predict from raw inputs, which are prepared as in training.

        ========================= ======================================= ======================================================
        `task`                    one input                               its result
        ========================= ======================================= ======================================================
        "classification"          an image                                [(class, probability), ...], the `top` most probable
        "segmentation"            an image                                uint8 (height, width), the class of each of its pixels
        "sequence_classification" what the run was trained on: a sound,   [(class, probability), ...], the `top` most probable
                                  a text, a series (time, channels), or
                                  an image that is read pixel by pixel
        "sequence_prediction"     a table (time, columns)                 (`steps`, columns), the rows that follow it
        "language_model"          the beginning of a text                 the text with `steps` more symbols
        "waveform"                a sound                                 float32 (samples + `steps`,), the sound continued
        "separation"              a sound                                 float32 (samples, sources)
        "restoration"             an image                                uint8 (height, width, channels), the restored image
        ========================= ======================================= ======================================================

        An image is a path, an image of PIL, or an array uint8 of any size, (height, width) or (height, width, channels). A sound is a path,
        or an array of floats (samples,) in -1..1. A text is a string, or the
        `pathlib.Path` of a file.

        Args:
            given: One input; or several, as a list, or as an array of images (batch, height, width, channels). A list of numbers, or
                of lists of numbers, is one series or table.
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
            "sequence_classification": (self._predict_class, {"top", "rate"}),
            "sequence_prediction": (self._predict_rows, {"steps"}),
            "language_model": (self._predict_text, {"steps"}),
            "waveform": (self._predict_sound, {"steps", "rate"}),
            "separation": (self._predict_sources, {"rate"}),
            "restoration": (lambda one: self.restore(inputs.to_colours(one)), set()),
        }
        if self.task not in predictors:
            raise UserError(f"predict: task={self.task!r} is not one of {tuple(predictors)}; load the run with dilax.load.")
        function, known = predictors[self.task]
        options = {name: value for name, value in {"top": top, "steps": steps, "rate": rate}.items() if value is not None}
        for name, value in options.items():
            if name not in known:
                raise UserError(f"predict: {name}={value} does not apply to a run of the task {self.task}; leave it out.")
            options[name] = arguments.integer("predict", name, value, minimum=1)
        images = isinstance(given, np.ndarray | jax.Array) and given.ndim == 4
        if images or (isinstance(given, list | tuple) and not all(map(_is_row, given))):
            return [function(one, **options) for one in given]
        return function(given, **options)

    def _predict_class(self, one: Any, *, top: int = 1, rate: int | None = None) -> list[tuple[str, float]]:
        spec = self.spec
        if spec.pixels or len(spec.input_shape) == 3:
            side = inputs.square_side(spec.input_shape[0]) if spec.pixels else 0
            height, width = (side, side) if spec.pixels else spec.input_shape[:2]
            return self.rank(inputs.fit(inputs.to_pixels(one, spec.input_shape[-1]), height, width)[None], top=top)[0]
        if spec.symbols:
            values = self.codes(_text(one))[: spec.input_shape[0]]
        elif spec.sample_rate:
            values = inputs.mel_frames([inputs.to_samples(one, rate, spec.sample_rate)], spec.sample_rate, spec.input_shape[-1])[0]
        else:
            values = _numbers(one, "a series", "(time, channels)")
        x, length = self.padded(values)
        return self.rank(x, top=top, length=length)[0]

    def _predict_mask(self, one: Any) -> np.ndarray:
        image = inputs.to_pixels(one, self.spec.input_shape[-1])
        return self.segment_whole(image)

    def _predict_rows(self, one: Any, *, steps: int = 200) -> np.ndarray:
        values, columns = _numbers(one, "a table", "(time, columns)"), len(self.spec.outputs)
        if not self.spec.mean:
            raise UserError(f"predict: a run on data.name={self.spec.name!r} cannot predict from your own inputs.")
        if values.shape[1] != columns:
            raise UserError(
                f"predict: a table of {values.shape[1]} columns does not fit the run, which has {', '.join(self.spec.outputs)}."
            )
        return self.forecast(values, steps)

    def _predict_text(self, one: Any, *, steps: int = 200) -> str:
        prompt = _text(one)
        drawn = self.sample(self.codes(prompt)[None], steps)[0]
        return prompt + inputs.decode_text(drawn, self.spec.symbols, self.spec.units)

    def _predict_sound(self, one: Any, *, steps: int = 200, rate: int | None = None) -> np.ndarray:
        samples, levels = inputs.to_samples(one, rate, self.spec.sample_rate), len(self.spec.symbols)
        prompt = np.asarray(mu_law_encode(jnp.asarray(samples), levels=levels)) if levels else samples[:, None]
        return np.concatenate([samples, self.to_sound(self.sample(prompt[None], steps))[0]])

    def _predict_sources(self, one: Any, *, rate: int | None = None) -> np.ndarray:
        return self.separate(inputs.to_samples(one, rate, self.spec.sample_rate))

    def codes(self, text: str, *, name: str = "") -> np.ndarray:
        """Return the codes of a text, int32 (symbols,); `name` is what messages call it.

        Raises:
            UserError: if it is empty, or has a character that the run does not know.
        """
        if not text:
            raise UserError("the text is empty; give at least one character.")
        return inputs.encode(text, self.spec.symbols, self.spec.units, name=name)

    def padded(self, values: np.ndarray, *, name: str = "the input") -> tuple[np.ndarray, np.ndarray]:
        """Standardise a sequence, codes (time,) or floats (time, channels), as in training and pad it to the length of the run.

        Args:
            values: The sequence.
            name: What messages call it.

        Returns:
            The model input (1, length, ...) and the number of its valid steps (1,).

        Raises:
            UserError: if it is empty or longer than the run takes, or has other channels.
        """
        length, *channels = self.spec.input_shape
        if list(values.shape[1:]) != channels:
            raise UserError(f"{name} has {values.shape[1]} channels, and the run was trained on {channels[0]}; give the same channels.")
        if not len(values):
            raise UserError(f"{name} has no steps; give at least one.")
        if len(values) > length:
            raise UserError(
                f"{name} has {len(values)} steps, and the run takes {length}; shorten it, or train with a larger config.sequence.length."
            )
        scaled = values if self.spec.symbols else self.spec.scale(values)
        return np.pad(scaled, ((0, length - len(values)), *((0, 0) for _ in channels)))[None], np.array([len(values)], np.int32)

    def outputs(self, x: Any, *, length: Any = None) -> jax.Array:
        """Run the model on a batch, compiled once for each shape.

        Args:
            x: Images uint8 (batch, height, width, channels); or sequences, floats (batch, time, channels) standardised as `spec.scale`
                does, or codes (batch, time).
            length: Number of valid steps of each sequence, (batch,); None counts all of them.

        Returns:
            The outputs of the model, such as logits.
        """
        return self._run(self.variables, jnp.asarray(x), None if length is None else jnp.asarray(length))

    @functools.cached_property
    def _run(self) -> Callable[..., Any]:
        # The variables are an argument, so that they do not become constants of the compiled program.
        return jax.jit(lambda variables, x, length: dataclasses.replace(self, variables=variables).apply(x, length=length))

    def apply(self, x: jax.Array, *, length: jax.Array | None = None) -> Any:
        """Run the model on a batch as a pure function, for JAX to transform or export; arguments and result as `outputs`."""
        arguments: dict[str, Any] = self.arguments(x, length)
        return self.model.apply(self.variables, **arguments, train=False)

    def arguments(self, x: jax.Array, length: jax.Array | None = None) -> dict[str, jax.Array]:
        """Return the arguments of the model for a batch, by name; arguments as `outputs`."""
        if x.dtype == jnp.uint8 and not self.spec.symbols:
            x = self.spec.prepare(x)
        return model_arguments(self.model, x, length)

    def probabilities(self, x: Any, *, length: Any = None) -> np.ndarray:
        """Return the probability of each class: (batch, classes), or (batch, height, width, classes) in segmentation."""
        outputs = self.outputs(x, length=length)
        if outputs.ndim == 3:
            steps = jnp.full(outputs.shape[0], outputs.shape[1], jnp.int32) if length is None else jnp.asarray(length)
            outputs = pool_steps(outputs, steps, self.pool)
        return np.asarray(jax.nn.softmax(outputs))

    def rank(self, x: Any, *, top: int, length: Any = None) -> list[list[tuple[str, float]]]:
        """Return the `top` most probable classes of each example with their probabilities, the most probable first.

        Raises:
            UserError: if there are not that many classes.
        """
        self._check_task("classify", "classification", "sequence_classification")
        names = self.spec.outputs
        if not 1 <= top <= len(names):
            raise UserError(f"top={top} is not a number of classes; the run has {len(names)}, so give 1 to {len(names)}.")
        probabilities = self.probabilities(x, length=length)
        orders = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top].tolist()
        return [[(names[i], float(row[i])) for i in order] for order, row in zip(orders, probabilities)]

    def classify(self, x: Any, *, length: Any = None) -> list[tuple[str, float]]:
        """Return the most probable class of each example and its probability."""
        return [best for (best,) in self.rank(x, top=1, length=length)]

    def segment(self, images: Any, *, scales: tuple[float, ...] = (1.0,), flip: bool = False) -> np.ndarray:
        """Return the most probable class of each pixel.

        Args:
            images: uint8 (batch, height, width, channels).
            scales: Sizes at which the model runs, relative to the image; the probabilities are averaged.
            flip: Whether it also runs on mirrored images.

        Returns:
            uint8 (batch, height, width).
        """
        self._check_task("segment", "segmentation")
        return np.asarray(self._segment(self.variables, jnp.asarray(images), tuple(scales), flip))

    def segment_whole(self, image: np.ndarray, *, scales: tuple[float, ...] = (1.0,), flip: bool = False) -> np.ndarray:
        """Return the class of each pixel, uint8 (height, width), of one image of any size, uint8 (height, width, channels).

        It is scaled to `image_size`, if that is set, and the classes are scaled back; see `segment` for the other arguments.
        """
        scaled = inputs.resize_pixels(image, *inputs.scaled_size(image.shape[:2], self.image_size)) if self.image_size else image
        return inputs.nearest(self.segment(scaled[None], scales=scales, flip=flip)[0], *image.shape[:2])

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

    def separate(self, mixture: np.ndarray) -> np.ndarray:
        """Separate a mixture (time,) into its sources (time, sources).

        The training loss does not see the scale of a source: each is scaled so that their sum comes closest to the mixture, within -1..1.
        """
        self._check_task("separate", "separation")
        found = np.asarray(self.outputs(mixture[None, :, None], length=np.array([len(mixture)], np.int32))[0], np.float32)
        scaled = found * np.linalg.lstsq(found, mixture, rcond=None)[0]
        return scaled / max(1.0, float(np.abs(scaled).max()))

    def sample(
        self, prompt: np.ndarray, steps: int, *, seed: int = 0, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
    ) -> np.ndarray:
        """Continue prompts, codes (batch, time) or waveforms (batch, time, 1), by `steps` samples; see `dilax.sample`."""
        self._check_task("sample", "language_model", "waveform")
        options: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p)
        return np.asarray(self._sample(self.variables, jax.random.key(seed), jnp.asarray(prompt), steps, tuple(options.items())))

    @functools.cached_property
    def _sample(self) -> Callable[..., Any]:
        def run(variables: VariableDict, key: jax.Array, prompt: jax.Array, steps: int, options: tuple[tuple[str, Any], ...]) -> jax.Array:
            return generate.sample(self.model, variables, key, prompt, steps, **dict(options))

        return jax.jit(run, static_argnums=(3, 4))

    def forecast(self, values: np.ndarray, steps: int) -> np.ndarray:
        """Forecast the `steps` rows that follow a table (time, columns), in its own units; see `dilax.forecast`."""
        self._check_task("forecast", "sequence_prediction")
        return self.spec.unscale(np.asarray(self._forecast(self.variables, jnp.asarray(self.spec.scale(values))[None], steps))[0])

    @functools.cached_property
    def _forecast(self) -> Callable[..., Any]:
        return jax.jit(lambda variables, x, steps: generate.forecast(self.model, variables, x, steps), static_argnums=2)

    def to_sound(self, values: np.ndarray) -> np.ndarray:
        """Map mu-law codes (batch, time), or samples (batch, time, 1), to waveforms (batch, time) in -1..1."""
        return np.asarray(mu_law_decode(jnp.asarray(values), levels=len(self.spec.symbols))) if values.ndim == 2 else values[..., 0]


def _is_row(one: Any) -> bool:
    """Return whether an element of a list is a number, or a row of numbers, of one series or table."""
    return not isinstance(one, str | os.PathLike | np.ndarray | jax.Array) and (
        np.ndim(one) == 0 if not isinstance(one, list | tuple) else all(np.ndim(cell) == 0 and not isinstance(cell, str) for cell in one)
    )


def _text(one: Any) -> str:
    """Return a text, or that of a file given as a `pathlib.Path`."""
    if isinstance(one, os.PathLike):
        data = read_bytes(one, "a text file")
        try:
            return data.decode("utf-8").removeprefix("\ufeff")  # with its line ends as they are, as in training
        except UnicodeDecodeError as error:
            raise UserError(f"{one} is not UTF-8 at byte {error.start}; convert it.") from error
    if not isinstance(one, str):
        raise UserError(f"predict: a {type(one).__name__} is not a text; give a string, or the pathlib.Path of a text file.")
    return one


def _numbers(one: Any, what: str, shape: str) -> np.ndarray:
    """Return finite numbers (time, channels); a vector has one channel."""
    try:
        values = np.asarray(one, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"predict: {what} must be an array {shape} of numbers, not a {type(one).__name__}.") from error
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise UserError(f"predict: {what} of shape {np.shape(one)} must be {shape}, of finite numbers.")
    return values


def model_arguments(model: nn.Module, x: jax.Array, length: jax.Array | None = None) -> dict[str, jax.Array]:
    """Return {"x": x in the model's dtype}, with the "mask" of the valid steps where `length` is given and the model takes a mask."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(getattr(model, "dtype", None) or jnp.float32)
    if length is None or not takes_mask(type(unpruned(model))):
        return {"x": x}
    return {"x": x, "mask": valid_steps(x.shape[1], length)}


def takes_mask(model: type[nn.Module]) -> bool:
    """Return whether the models of a class accept the mask of a padded batch."""
    return "mask" in inspect.signature(model.__call__).parameters


def valid_steps(steps: int, length: jax.Array) -> jax.Array:
    """Return which of `steps` are not padding, bool (batch, steps), for sequences of `length` (batch,)."""
    return jnp.arange(steps)[None] < length[:, None]


def pool_steps(outputs: jax.Array, length: jax.Array, pool: str) -> jax.Array:
    """Pool outputs at every step (batch, time, classes) into (batch, classes); outputs that are already pooled pass unchanged.

    Args:
        outputs: Outputs of a model.
        length: Number of valid steps of each sequence, (batch,).
        pool: "last", "mean" or "max", as `dilax.pooling.pool_sequence`.
    """
    return outputs if outputs.ndim == 2 else pool_sequence(outputs, kind=pool, mask=valid_steps(outputs.shape[1], length))


def average_views(logits: Callable[[jax.Array], jax.Array], images: jax.Array, scales: tuple[float, ...], flip: bool) -> jax.Array:
    """Return the logits of a segmentation model or, for several views of the image, the logarithm of their mean probabilities.

    Args:
        logits: Maps float images (batch, height, width, channels) to (batch, height, width, classes).
        images: Float (batch, height, width, channels).
        scales: Sizes at which the model runs, relative to the image; the probabilities are resized to the image, bilinearly.
        flip: Whether each scale also runs on the mirrored image.

    Returns:
        (batch, height, width, classes).
    """
    if scales == (1.0,) and not flip:
        return logits(images)
    shape = images.shape[1:3]
    total: Any = 0.0
    for scale in scales:
        resized = resize(images, (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))))
        for mirrored in (False, True)[: 1 + flip]:
            view = resized[:, :, ::-1] if mirrored else resized
            p = jax.nn.softmax(logits(view).astype(jnp.float32))
            total += resize(p[:, :, ::-1] if mirrored else p, shape)
    return jnp.log(jnp.maximum(total / (len(scales) * (1 + flip)), 1e-30))
