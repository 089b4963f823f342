"""Predictions from sequences and of classes: texts, sounds, series and tables, ranked, labelled, separated or continued."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from dilax import generate, inputs, tagging
from dilax.audio import mu_law_decode, mu_law_encode
from dilax.errors import UserError
from dilax.files import read_bytes
from dilax.inference.predictor import Predictor, pool_steps, valid_steps
from dilax.segments import Segment, segments


@dataclasses.dataclass(frozen=True, repr=False)
class SequencePredictor(Predictor):
    """A trained model of sequences, or of the classes of images."""

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

    def _predict_segments(self, one: Any) -> list[Segment]:
        return self.spans(_text(one)) if self.spec.symbols else segments(self.label(_numbers(one, "features", "(time, channels)")))

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

    def label(self, values: np.ndarray | Sequence[str]) -> list[str]:
        """Return the class of every step of features (time, channels), or the tag of every word of a list."""
        self._check_task("label", "sequence_labelling")
        (longest, size), names, symbols = self.spec.input_shape, self.spec.outputs, self.spec.symbols
        if not symbols and (np.ndim(values) != 2 or np.shape(values)[1] != size or not len(values)):
            raise UserError(f"label: features of shape {np.shape(values)} do not fit the run; give (time, {size}).")
        x = tagging.encode_words(list(values), symbols, characters=size - 2) if symbols else self.spec.scale(np.asarray(values))
        length, padding = jnp.array([len(x)], jnp.int32), max(0, longest - len(x))  # so that the model is compiled once
        outputs = self.outputs(np.pad(x, ((0, padding), (0, 0)))[None], length=length)
        found = tagging.decode_tags(outputs, valid_steps(outputs.shape[1], length), names) if symbols else outputs.argmax(-1)
        return [names[i] for i in np.asarray(found)[0, : len(x)].tolist()]

    def spans(self, text: str) -> list[Segment]:
        """Return the spans that the tags of a text's words make, with where they begin and end in characters."""
        words = tagging.words_of(text)
        found = tagging.spans(self.label([word.label for word in words]))
        return [Segment(words[one.start].start, words[one.end - 1].end, one.label) for one in found]

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
