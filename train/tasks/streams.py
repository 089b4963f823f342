"""What tasks that predict as input comes share: a model fed in chunks, lines of text, blocks of sound; and the flags of a draw."""

import argparse
import functools
import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from dilax import Inference, UserError, end_stream
from dilax.streaming import Streamable
from train.data.readers import sound
from train.tasks.base import Bytes, add_inputs

INPUT = "standard input"
BLOCKS = 10  # blocks of sound per second


class Feeder:
    """A model that is fed in chunks.

    Attributes:
        outputs: (1, n) for the last sample fed, or None before the first.
        state: State of the stream after that sample.
    """

    def __init__(self, inference: Inference) -> None:
        """Start a stream."""
        self.model: Any = inference.model
        self.variables = inference.variables
        if not isinstance(self.model, Streamable):
            name = type(self.model).__name__
            raise UserError(f"--stream: {name} needs the whole sequence and cannot be fed in chunks; train a causal model.")
        self._latency: Any = self.model.apply(self.variables, method="latency")
        self.state: Any = self.model.apply(self.variables, 1, method="init_stream")
        self.outputs: Any = None
        self._early = self._latency

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs that samples (n, ...) bring: fewer at first, if the model looks ahead."""
        outputs, self.state = _feed(self.model, self.variables, jnp.asarray(x)[None], self.state)
        self.outputs, early = outputs[:, -1], min(self._early, outputs.shape[1])
        self._early -= early
        return np.asarray(outputs[0, early:])

    def feed_all(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the outputs that each chunk brings and, at the end, those that are still to come."""
        x = np.zeros(0)
        for x in chunks:
            yield self(x)
        if self._latency:
            self.state = end_stream(self.state)
            yield self(np.zeros((self._latency, *x.shape[1:]), x.dtype))


@functools.partial(jax.jit, static_argnums=0)
def _feed(model: Any, variables: VariableDict, x: jax.Array, state: Any) -> Any:
    return model.apply(variables, x, state, method="stream")


def lines(file: Bytes) -> Iterator[str]:
    """Yield the lines of UTF-8 text as they come."""
    try:
        yield from io.TextIOWrapper(file, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{INPUT} is not UTF-8; convert it.") from error


def sound_pieces(inference: Inference, file: Bytes) -> Iterator[np.ndarray]:
    """Return the pieces of a .wav stream as they come, at the sample rate of the run; a line on stderr says if they are resampled."""
    (rate, pieces), wanted = sound.stream_wav(file, INPUT), inference.spec.sample_rate
    if rate == wanted:
        return pieces
    print(f"note: {INPUT} has {rate} samples per second; it is resampled to the {wanted} of the run.", file=sys.stderr)
    return sound.resample_pieces(pieces, rate, wanted)


def blocks(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the same samples in blocks of `size`; the last block may be shorter."""
    held = np.zeros(0, np.float32)
    for piece in pieces:
        held = np.concatenate([held, piece])
        for _ in range(len(held) // size):
            yield held[:size]
            held = held[size:]
    if len(held):
        yield held


def add_stream_flag(parser: argparse.ArgumentParser) -> None:
    """Add --stream."""
    parser.add_argument("--stream", action="store_true", help="read standard input and write as it comes")


def add_sampling_flags(parser: argparse.ArgumentParser, what: str, inputs: str) -> None:
    """Add the flags of a draw of `what`, the positional arguments and --stream."""
    parser.add_argument("--steps", type=int, default=200, help=f"{what} to add; the default is 200")
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of the draw; 0 takes the most probable")
    parser.add_argument("--top_k", type=int, default=0, help="draw among this many of the most probable; 0 draws among all")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw among the most probable that have this share together; 1 is all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    add_stream_flag(parser)
    add_inputs(parser, inputs)


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the draw for `dilax.sample`.

    Raises:
        UserError: naming the flag that is out of range.
    """
    check_flag(args, "temperature", args.temperature >= 0, "at least 0")
    check_flag(args, "top_k", args.top_k >= 0, "at least 0")
    check_flag(args, "top_p", 0 < args.top_p <= 1, "above 0 and at most 1")
    check_flag(args, "steps", args.steps >= 1, "at least 1")
    return dict(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)


def check_flag(args: argparse.Namespace, name: str, holds: bool, rule: str) -> None:
    """Refuse a flag that is out of range."""
    if not holds:
        raise UserError(f"--{name}={getattr(args, name)} must be {rule}.")
