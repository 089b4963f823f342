"""A run as a program of another runtime: raw inputs, preparation, model and answer in one function, for whole inputs or as steps.

Images go in as they are, uint8; sequences in their own units, float32, or as codes, with the number of their valid steps. Steps after the
end of a sequence never count, whatever they hold.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dilax import DataSpec, Inference, UserError
from dilax.export import Port, StreamStep, stream_step
from dilax.inference import valid_steps
from dilax.inputs import mel_frame, square_side

BATCH, LENGTH, CLOCK = "batch", "length", "state_clock_end"
Run = Callable[..., tuple[np.ndarray, ...]]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a program gives.

    Attributes:
        name: Name of the result.
        of: Outputs of the model, and the number of valid steps (batch,) -> result.
        outputs: Result -> outputs of the model as `Task.judge` takes them, or as good as these for the metric `best_by`.
        images: Batch of evaluation -> the images that a program is given; None gives those of the batch.
    """

    name: str
    of: Callable[[jax.Array, jax.Array], jax.Array]
    outputs: Callable[[np.ndarray], Any]
    images: Callable[[dict[str, Any]], np.ndarray] | None = None


PROBABILITIES = Answer("probabilities", lambda outputs, _: jax.nn.softmax(outputs), lambda found: np.log(np.maximum(found, 1e-30)))
# Of outputs that may be true together.
CHANCES = Answer(
    "probabilities",
    lambda outputs, _: jax.nn.sigmoid(outputs),
    lambda found: np.log(np.maximum(found, 1e-30)) - np.log(np.maximum(1 - found, 1e-30)),
)


def unchanged(name: str) -> Answer:
    """Return the answer that is the outputs of the model."""
    return Answer(name, lambda outputs, _: outputs, lambda found: found)


def most_probable(classes: int) -> Answer:
    """Return the answer that is the class of each pixel."""
    return Answer(
        "classes",
        lambda outputs, _: outputs.argmax(-1).astype(jnp.int32),
        lambda found: (found[..., None] == np.arange(classes)).astype(np.float32),
    )


def in_units(spec: DataSpec) -> Answer:
    """Return the answer that is the outputs in the units of the data, if it is standardised."""
    if not spec.mean:
        return unchanged("prediction")
    mean, std = (np.asarray(values, np.float32) for values in (spec.mean, spec.std))
    return Answer("prediction", lambda outputs, _: outputs * std[None, None] + mean[None, None], spec.scale)


@dataclasses.dataclass(frozen=True)
class Portable:
    """A run as a program.

    Attributes:
        function: The program, of arrays in the order of `inputs`.
        inputs: Its inputs; the first size of each is "batch".
        output: Name of its result.
        arguments: Batch of evaluation -> arrays for the inputs.
        outputs: See `Answer.outputs`.
        about: What the first input holds, in words, and what else a program around this one needs to know to make it.
    """

    function: Callable[..., jax.Array]
    inputs: tuple[Port, ...]
    output: str
    arguments: Callable[[dict[str, Any]], tuple[np.ndarray, ...]]
    outputs: Callable[[np.ndarray], Any]
    about: dict[str, Any]


def portable(inference: Inference, answer: Answer) -> Portable:
    """Return a run as a program of whole inputs of the size of the data."""
    spec = inference.spec

    def function(x: jax.Array, length: jax.Array | None = None) -> jax.Array:
        outputs = inference.apply(_prepared(spec, x, length), length=length)
        return answer.of(outputs, jnp.full(x.shape[0], spec.input_shape[0], jnp.int32) if length is None else length)

    inputs = (_port(spec),) if _is_image(spec) else (_port(spec), Port(LENGTH, (BATCH,), "int32"))
    images = answer.images

    def arguments(batch: dict[str, Any]) -> tuple[np.ndarray, ...]:
        return _arguments(spec, batch) if images is None else (images(batch),)

    return Portable(function, inputs, answer.name, arguments, answer.outputs, _about(spec))


def silenced(whole: Portable) -> Portable:
    """Return a program of whole sequences whose results after the end of each are 0, as those of `fed` are."""

    def function(x: jax.Array, length: jax.Array) -> jax.Array:
        return _silenced(whole.function(x, length), length)

    return dataclasses.replace(whole, function=function)


def portable_step(inference: Inference, answer: Answer, *, chunk: int, batch: int | str) -> StreamStep:
    """Return a run as a program of a chunk and the state of a stream.

    Raises:
        UserError: if its inputs are not sequences, or its model cannot be fed in chunks of that size.
    """
    spec, dtype = inference.spec, jnp.dtype(getattr(inference.model, "dtype", None) or jnp.float32).name
    if _is_image(spec):
        raise UserError("--stream: this run reads images, which are there as a whole; leave it out.")
    step = stream_step(inference.model, inference.variables, chunk=chunk, batch=batch, dtype=dtype)
    if step.latency and batch != 1:
        raise UserError(f"--batch: outputs of this network are {step.latency} samples late, so each sequence is fed alone; leave it out.")
    port = _port(spec)

    def function(x: jax.Array, *state: jax.Array) -> tuple[jax.Array, ...]:
        (outputs, *after) = step.function(*inference.arguments(_prepared(spec, x, None)).values(), *state)
        return answer.of(outputs, jnp.full(x.shape[0], chunk, jnp.int32)), *after

    inputs = (dataclasses.replace(port, shape=(batch, chunk, *port.shape[2:])), *step.inputs[1:])
    return dataclasses.replace(step, function=function, inputs=inputs, outputs=(answer.name, *step.outputs[1:]))


def fed(run: Run, step: StreamStep, spec: DataSpec) -> Run:
    """Return the program of whole sequences that feeds them to that of a step, chunk after chunk; results after the end of each are 0."""
    chunk, names = int(step.inputs[0].shape[1]), [port.name for port in step.inputs[1:]]
    silence = silence_of(spec)

    def whole(x: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, ...]:
        state = list(step.initial(len(x)))
        if CLOCK in names:
            state[names.index(CLOCK)] = np.asarray(length.max(), np.int32)
        more = step.latency + -(x.shape[1] + step.latency) % chunk
        padded = np.concatenate([x, np.broadcast_to(silence, (len(x), more, *x.shape[2:]))], axis=1)
        found = []
        for start in range(0, padded.shape[1], chunk):
            output, *state = run(padded[:, start : start + chunk], *state)
            found.append(output)
        outputs = np.concatenate(found, axis=1)[:, step.latency : step.latency + x.shape[1]]
        return (np.asarray(_silenced(jnp.asarray(outputs), jnp.asarray(length))),)

    return whole


def silence_of(spec: DataSpec) -> np.ndarray:
    """Return the sample, in the units of the data, that stands for nothing: what sequences are padded with."""
    return np.asarray(spec.mean or 0, np.dtype(spec.dtype))


def _is_image(spec: DataSpec) -> bool:
    return len(spec.input_shape) == 3 or spec.is_volume or bool(spec.pixels)


def _port(spec: DataSpec) -> Port:
    """Return the first input, whatever its values are."""
    if not _is_image(spec):
        return Port("codes" if spec.symbols else "values", (BATCH, *spec.input_shape), spec.dtype)
    side = square_side(spec.input_shape[0]) if spec.pixels else 0
    return Port("image", (BATCH, side, side, spec.input_shape[-1]) if spec.pixels else (BATCH, *spec.input_shape), "uint8")


def _arguments(spec: DataSpec, batch: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """Return the raw inputs of a batch of evaluation, whose sequences are standardised."""
    if _is_image(spec):
        return (batch["image"],)
    values = spec.unscale(batch["input"]) if spec.mean else batch["input"]
    return values.astype(spec.dtype), batch["length"].astype(np.int32)


def _prepared(spec: DataSpec, x: jax.Array, length: jax.Array | None) -> jax.Array:
    """Standardise sequences as in training, with zeros after the end of each; images are standardised with the model."""
    if _is_image(spec):
        return x
    if spec.mean:
        mean, std = (np.asarray(values, np.float32) for values in (spec.mean, spec.std))
        x = (x - mean[None, None]) / std[None, None]
    return x if length is None else _silenced(x, length)


def _silenced(x: jax.Array, length: jax.Array) -> jax.Array:
    """Return x (batch, time, ...) with zeros after the end of each sequence."""
    valid = valid_steps(x.shape[1], length)
    return jnp.where(valid.reshape(*valid.shape, *(1,) * (x.ndim - 2)), x, jnp.zeros_like(x))


def _about(spec: DataSpec) -> dict[str, Any]:
    """Return what the first input holds, in words, and the parts of the spec that belong to it."""
    parts = {name: value for name, value in spec.to_json().items() if value and name in ("mean", "std", "sample_rate", "symbols", "units")}
    if _is_image(spec):
        what = "volumes (x, y, z, channels), levels from 0 to 255" if spec.is_volume else "images, colours from 0 to 255"
        return {"holds": what, **parts}
    if spec.symbols:
        kind = "mu-law codes of sound" if spec.sample_rate else f"places in symbols of {spec.units}" if spec.units else "places in symbols"
        return {"holds": kind, **parts}
    if spec.sample_rate and spec.mean:
        window, hop = mel_frame(spec.sample_rate)
        return {"holds": "log-mel frames of sound, as of dilax.audio.log_mel", "window": window, "hop": hop, **parts}
    return {"holds": "samples of sound in -1..1" if spec.sample_rate else "steps in the units of the data", **parts}
