"""Prediction as input comes, `train.predict --stream`: lines of text and rows of tables are answered, sounds told, separated, gone on with.

Sounds are .wav on standard input, and on standard output where they are made:
`arecord -q -f S16_LE -r 8000 -t wav | python -m train.predict --workdir runs/spoken_digits --stream`.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dilax.audio import log_mel
from dilax.errors import UserError
from dilax.generate import choose, go_on
from dilax.models.wavenet import mu_law_encode
from dilax.streaming import Streamable, end_stream
from train.data.open_sequences import mel_frame
from train.data.readers import sound as sounds_
from train.data.readers import tables, text
from train.predict_sequences import Options, Scale, check_rate, classified, codes_of, encoded, row
from train.run import Trained
from train.sequence_report import to_sound
from train.sequences import pooled

Bytes = io.BufferedReader | io.BytesIO
_INPUT = "standard input"
_FRAMES = 10  # log-mel frames told at once: a line each 0.1 s
_BLOCKS = 10  # blocks of sound a second


def stream(trained: Trained, file: Bytes, options: Options) -> Iterator[bytes]:
    """Yield what to write as the input comes in, in pieces.

    Of a text: after each line the run goes on to the end of a line of its own, of up to `steps` symbols; it remembers all that came
    before. Of a table: the row that is to follow each row. Of texts to classify: the number, class and probability of each line.
    Of sounds to classify: every 0.1 s the seconds heard, and class and probability of the last of them, as many as the longest sound of
    the training had. Of mixtures: .wav with a channel for each source, scaled so that up to then they come closest to the mixture. Of
    sounds to go on with: .wav of what comes in, then `steps` samples more.

    Args:
        trained: The run.
        file: Text in UTF-8, or .wav of one channel.
        options: Of the prediction.

    Raises:
        UserError: if the input does not fit the run, its model cannot be fed in chunks, or the task is another.
    """
    config = trained.config
    kind = config.task, "" if config.task == "language_model" else config.data.name.partition(":")[0]
    of_lines: dict[tuple[str, str], Callable[..., Iterator[str]]] = {
        ("language_model", ""): _text,
        ("sequence_prediction", "csv"): _rows,
        ("sequence_classification", "text"): _classes,
    }
    of_sounds: dict[tuple[str, str], Callable[..., Iterator[bytes]]] = {
        ("sequence_classification", "wav"): _spoken,
        ("separation", "mixtures"): _separated,
        ("waveform", "wav"): _sounded,
    }
    if kind in of_lines:
        return (piece.encode() for piece in of_lines[kind](trained, _lines(file), options))
    if kind not in of_sounds:
        raise UserError(f"--stream is for runs on texts, tables and sounds, and this one is of {config.task} on {config.data.name!r}.")
    return of_sounds[kind](trained, file, options)


class _Fed:
    """The model of a run, fed in chunks.

    Attributes:
        outputs: (1, n) for the last sample fed.
        state: After it.
    """

    def __init__(self, trained: Trained) -> None:
        """Begin with nothing seen."""
        self.model: Any = trained.setup.steps.model
        self.variables, name = trained.variables, trained.config.model.name
        if not isinstance(self.model, Streamable):
            raise UserError(f"--stream: the model {name!r} looks at whole sequences, it cannot be fed in chunks; train a causal one.")
        self._latency: Any = self.model.apply(self.variables, method="latency")
        self.state: Any = self.model.apply(self.variables, 1, method="init_stream")
        self.outputs, self._early = None, self._latency
        self._run: Any = jax.jit(lambda variables, x, state: self.model.apply(variables, x, state, method="stream"))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Map samples (n, ...) to the outputs that they bring: fewer at first, if the model looks ahead."""
        outputs, self.state = self._run(self.variables, jnp.asarray(x)[None], self.state)
        self.outputs, early = outputs[:, -1], min(self._early, outputs.shape[1])
        self._early -= early
        return np.asarray(outputs[0, early:])

    def whole(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the outputs that each chunk brings, and at the end those still to come."""
        x = np.zeros(0)
        for x in chunks:
            yield self(x)
        if self._latency:
            self.state = end_stream(self.state)
            yield self(np.zeros((self._latency, *x.shape[1:]), x.dtype))


def _lines(file: Bytes) -> Iterator[str]:
    try:
        yield from io.TextIOWrapper(file, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{_INPUT} is not UTF-8; convert it.") from error


def _text(trained: Trained, lines: Iterable[str], options: Options) -> Iterator[str]:
    fed, key, units = _Fed(trained), jax.random.key(options.seed), trained.config.sequence.units
    draw_one = jax.jit(lambda key, logits: choose(key, logits, **options.sampling))
    for line in lines:
        for code in encoded(trained, line):
            fed(np.array([code], np.int32))
        drawn: list[int] = []
        while len(drawn) < options.steps and (not drawn or trained.symbols[drawn[-1]] not in ("\n", "10")):
            key, now = jax.random.split(key)
            drawn.append(int(draw_one(now, fed.outputs)[0]))
            fed(np.array(drawn[-1:], np.int32))
        written = text.decode(np.array(drawn), trained.symbols, units)
        yield written if written.endswith("\n") else written + "\n"


def _classes(trained: Trained, lines: Iterable[str], _: Options) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        (found,) = classified(trained, [str(number)], [codes_of(trained, line.rstrip("\n"))])
        yield found + "\n"


def _rows(trained: Trained, lines: Iterable[str], _: Options) -> Iterator[str]:
    fed, scale, reader = _Fed(trained), Scale(trained), tables.RowReader(trained.class_names)
    yield row(trained.class_names) + "\n"
    for values in map(reader.read, lines):
        if values is not None:
            yield row([f"{value:.6g}" for value in scale.back(fed(scale.to(values)[None]))[0]]) + "\n"


def _sound(trained: Trained, file: Bytes) -> Iterator[np.ndarray]:
    """The pieces of a sound of the run's sample rate, as they come."""
    rate, pieces = sounds_.stream_wav(file, _INPUT)
    check_rate(trained, _INPUT, rate)
    return pieces


def _blocks(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of one size; the last may be shorter."""
    held = np.zeros(0, np.float32)
    for piece in pieces:
        held = np.concatenate([held, piece])
        for _ in range(len(held) // size):
            yield held[:size]
            held = held[size:]
    if len(held):
        yield held


def _frames(pieces: Iterable[np.ndarray], rate: int, bands: int) -> Iterator[np.ndarray]:
    """The log-mel frames (n, bands) of a sound as `train.data.open_sequences.log_mel_frames`, `_FRAMES` at a time."""
    window, hop = mel_frame(rate)
    many = window + (_FRAMES - 1) * hop
    run = jax.jit(lambda x: log_mel(x[None], rate, window=window, hop=hop, bands=bands)[0])
    held, some = np.zeros(0, np.float32), False
    for piece in pieces:
        held = np.concatenate([held, piece])
        while len(held) >= many:
            yield np.asarray(run(held[:many]))
            held, some = held[_FRAMES * hop :], True
    left = 1 + (len(held) - window) // hop if len(held) >= window else int(not some)
    if left:
        yield np.asarray(run(np.pad(held, (0, many - len(held)))))[:left]


def _spoken(trained: Trained, file: Bytes, _: Options) -> Iterator[bytes]:
    fed, scale, rate = _Fed(trained), Scale(trained), trained.facts["sample_rate"]
    (window, hop), bands, pool = mel_frame(rate), trained.config.sequence.bands, trained.config.sequence.pool
    last, count = np.zeros((0, len(trained.class_names)), np.float32), 0
    for outputs in fed.whole(scale.to(frames) for frames in _frames(_sound(trained, file), rate, bands)):
        last, count = np.concatenate([last, outputs])[-trained.input_shape[0] :], count + len(outputs)
        if not count:
            continue
        found = np.asarray(jax.nn.softmax(pooled(jnp.asarray(last)[None], jnp.array([len(last)]), pool)[0]))
        seconds = ((count - 1) * hop + window) / rate
        yield f"{seconds:.2f}\t{trained.class_names[int(found.argmax())]}\t{found.max():.4f}\n".encode()


def _separated(trained: Trained, file: Bytes, _: Options) -> Iterator[bytes]:
    fed, rate, count = _Fed(trained), trained.facts["sample_rate"], len(trained.class_names)
    stride, pieces = getattr(fed.model, "stride", 1), _sound(trained, file)
    heard = np.zeros(0, np.float32)  # of which the sources are still to come

    def chunks() -> Iterator[np.ndarray]:
        nonlocal heard
        for samples in _blocks(pieces, -(-rate // _BLOCKS // stride) * stride):
            heard = np.concatenate([heard, samples])
            yield np.pad(samples, (0, -len(samples) % stride))[:, None]

    yield sounds_.open_header(rate, count)
    # The loss does not see the size of a source: it is made that with which all together come closest to the mixture so far.
    products, towards = np.zeros((count, count)), np.zeros(count)
    for outputs in fed.whole(chunks()):
        found = outputs[: len(heard)].astype(np.float64)  # what is padded to a whole stride brings more
        mixture, heard = heard[: len(found)], heard[len(found) :]
        products, towards = products + found.T @ found, towards + found.T @ mixture
        yield sounds_.pcm(np.clip(found * np.linalg.lstsq(products, towards, rcond=None)[0], -1, 1))


def _sounded(trained: Trained, file: Bytes, options: Options) -> Iterator[bytes]:
    fed, rate, levels = _Fed(trained), trained.facts["sample_rate"], trained.config.sequence.levels
    size, key = max(1, rate // _BLOCKS), jax.random.key(options.seed)
    pieces = _sound(trained, file)
    yield sounds_.open_header(rate, 1)
    for samples in _blocks(pieces, size):
        fed(np.asarray(mu_law_encode(jnp.asarray(samples), levels)) if trained.symbols else samples[:, None])
        yield sounds_.pcm(samples)
    run: Any = jax.jit(lambda variables, key, outputs, state: go_on(fed.model, variables, key, outputs, state, size, **options.sampling))
    outputs, state = fed.outputs, fed.state
    for start in range(0, options.steps, size):
        new, outputs, state = run(fed.variables, jax.random.fold_in(key, start), outputs, state)
        yield sounds_.pcm(to_sound(trained.setup, np.asarray(new))[0, : options.steps - start])


def write(pieces: Iterable[bytes]) -> None:
    """Write each piece to standard output as soon as it is there."""
    with contextlib.suppress(KeyboardInterrupt):  # how a live stream ends
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
