"""Sounds that are fed to a run as they come: classes, sources and continuations are those of the whole sound; pipes and mistakes."""

import argparse
import functools
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dilax import DataSpec
from dilax.audio import mu_law_encode
from dilax.errors import UserError
from dilax.inputs import mel_frames
from train.build import Trained, build
from train.config import default_config, model_config
from train.data.readers import sound

RATE, RNG = 8000, np.random.default_rng(5)
TIME = np.arange(5237) / RATE
# Rising tones in noise: nothing in it repeats itself, and no block is like another.
SOUND = (0.4 * np.sin(400 * TIME * (1 + 5 * TIME)) + 0.05 * RNG.normal(size=len(TIME))).clip(-1, 1).astype(np.float32)
SOUND = np.frombuffer(sound.pcm(SOUND), "<i2").astype(np.float32) / 2**15


def wav(samples: np.ndarray, *, rate: int = RATE) -> bytes:
    """A .wav file of samples (n,) or (n, channels), as a recorder writes it to a pipe."""
    return sound.open_header(rate, 1 if samples.ndim == 1 else samples.shape[1]) + sound.pcm(samples)


WAV = wav(SOUND)
(FRAMES,) = mel_frames([SOUND], RATE, 8)


class Pipe(io.BytesIO):
    """Bytes that come as from a pipe, a few at a time."""

    def read1(self, size: int | None = -1) -> bytes:
        """Return fewer bytes than asked for, of odd and even number."""
        return super().read(min(317 + len(self.getvalue()) % 2 + self.tell() % 5, size or 0))


SEPARABLE = dict(features=8, kernel_size=3, dilations=(1, 2), activation="silu")
TASNET = dict(features=12, bottleneck_features=6, hidden_features=8, skip_features=6, blocks=2, repeats=1, causal=True, kernel_size=24)
WAVENET = dict(dilations=(1, 2), features=4, skip_features=4)
CLASSES, WHOLE = ("one", "two", "three"), (len(FRAMES), 8)
# Task, data, model, its fields, shape of an input, number of symbols, changes of the part `sequence` of the config.
RUNS: dict[str, tuple[str, str, str, dict[str, Any], tuple[int, ...], int, dict[str, Any]]] = {
    "causal, mean": ("sequence_classification", "wav", "separable_tcn", SEPARABLE, WHOLE, 0, {"pool": "mean", "bands": 8}),
    "causal, max": ("sequence_classification", "wav", "tcn", dict(kernel_size=2, features=(6, 6)), WHOLE, 0, {"pool": "max", "bands": 8}),
    "looks ahead": (
        "sequence_classification",
        "wav",
        "separable_tcn",
        {**SEPARABLE, "causal": False},
        WHOLE,
        0,
        {"pool": "last", "bands": 8},
    ),
    "short": ("sequence_classification", "wav", "separable_tcn", SEPARABLE, (7, 8), 0, {"pool": "mean", "bands": 8}),
    "gated": ("sequence_classification", "wav", "gated_dilated_cnn", dict(features=4, dilations=(1,)), (7, 8), 0, {"bands": 8}),
    "series": ("sequence_classification", "ucr:toy", "tcn", dict(kernel_size=2, features=(4,)), (9, 1), 0, {}),
    "voices": ("separation", "mixtures", "conv_tasnet", TASNET, (len(SOUND), 1), 0, {}),
    "global": ("separation", "mixtures", "conv_tasnet", {**TASNET, "causal": False}, (400, 1), 0, {}),
    "waves": ("waveform", "wav", "wavenet", WAVENET, (400,), 256, {}),
    "waves, mixture": ("waveform", "wav", "wavenet", {**WAVENET, "outputs": "mixture", "mixtures": 2}, (400, 1), 0, {}),
    "text": ("language_model", "text", "wavenet", WAVENET, (400,), 9, {}),
    "piano": ("sequence_prediction", "piano", "tcn", dict(kernel_size=2, features=(4,)), (40, 2), 0, {"loss": "binary"}),
}


@functools.cache
def untrained(name: str) -> Trained:
    """A run that has learned nothing: its parameters are large enough to matter, and its head small enough for doubt."""
    task, data, model, fields, shape, symbols, changes = RUNS[name]
    config = default_config("stream", task=task)
    config.data.name = data
    config.model = model_config(model, **fields)
    config.sequence.update(changes)
    codes = tuple(map(str, range(symbols)))
    outputs = codes or {"sequence_classification": CLASSES, "waveform": ("sample",)}.get(task, ("s1", "s2"))
    channels = 1 if symbols else shape[-1]
    spec = DataSpec("test", shape, outputs, 100, codes, sample_rate=RATE, mean=(-2.0,) * channels, std=(3.0,) * channels)
    setup, random = build(config.lock(), spec), np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: leaf + 0.6 * random.normal(size=leaf.shape).astype(np.float32), setup.init())
    params = {name: jax.tree.map(lambda leaf: 0.1 * leaf, part) if name == "head" else part for name, part in variables["params"].items()}
    return Trained(setup, setup.inference({"params": params, "batch_stats": jax.tree.map(abs, variables["batch_stats"])}))


def stream(name: str, file: io.BytesIO, *words: str) -> Iterator[bytes]:
    """What --stream writes, with these flags of the command line."""
    run = untrained(name)
    parser = argparse.ArgumentParser()
    run.setup.task.add_prediction_flags(parser)
    args = parser.parse_args(["--stream", *words])
    args.out, args.replace = pathlib.Path(), False
    return run.setup.task.stream(run.inference, file, args)


def whole_probabilities(name: str, frames: np.ndarray) -> np.ndarray:
    """The probabilities of the classes, from all frames at once."""
    inference = untrained(name).inference
    return inference.probabilities(inference.spec.scale(frames)[None], length=np.array([len(frames)]))[0]


@pytest.mark.parametrize("name", ["causal, mean", "causal, max", "looks ahead"])
def test_the_last_line_is_the_class_of_the_whole(name):
    lines = [piece.decode().split("\t") for piece in stream(name, Pipe(WAV))]
    whole = whole_probabilities(name, FRAMES)
    assert lines[-1][1] == CLASSES[whole.argmax()]
    assert float(lines[-1][2]) == pytest.approx(whole.max(), abs=2e-4)
    # Frames of 32 ms each 10 ms: a line for ten, and what is left at the end; a model that looks ahead is late by 3 frames.
    late = 3 if name == "looks ahead" else 0
    ends = [*range(10, len(FRAMES) + 1, 10), *([len(FRAMES)] if len(FRAMES) % 10 else [])]
    ends = [end - late for end in ends] + ([len(FRAMES)] if late else [])
    assert [line[0] for line in lines] == [f"{(end - 1) / 100 + 0.032:.2f}" for end in ends]


def test_only_the_last_frames_are_classified():
    """As many as the longest sound of the training had, though the network may have seen more."""
    run = untrained("short")
    *_, last = stream("short", Pipe(WAV))
    outputs = run.inference.outputs(run.setup.spec.scale(FRAMES)[None])
    expected = jax.nn.softmax(outputs[0, -7:].mean(0))
    assert float(last.split(b"\t")[2]) == pytest.approx(float(expected.max()), abs=2e-4)


def test_a_sound_shorter_than_a_frame_is_classified():
    (line,) = stream("short", Pipe(wav(SOUND[:90])))
    (frames,) = mel_frames([SOUND[:90]], RATE, 8)
    assert float(line.split(b"\t")[2]) == pytest.approx(whole_probabilities("short", frames).max(), abs=2e-4)


def test_separated_sources_are_those_of_the_whole():
    head, *pieces = stream("voices", Pipe(WAV))
    assert head == sound.open_header(RATE, 2)
    assert len(pieces) > 5
    assert all(len(piece) % 4 == 0 for piece in pieces)
    sources = np.frombuffer(b"".join(pieces), "<i2").reshape(-1, 2) / 2**15
    assert sources.shape == (len(SOUND), 2)
    outputs = np.asarray(untrained("voices").inference.outputs(SOUND[None, :, None], length=np.array([len(SOUND)])))[0]
    at = 0
    for piece in pieces:  # of the scales with which their sum comes closest to the mixture up to there
        end = at + len(piece) // 4
        scale = np.linalg.lstsq(outputs[:end].astype(np.float64), SOUND[:end], rcond=None)[0]
        np.testing.assert_allclose(sources[at:end], (outputs[at:end] * scale).clip(-1, 1), atol=2e-3)
        at = end


@pytest.mark.parametrize("name", ["waves", "waves, mixture"])
def test_a_sound_is_continued(name):
    """First what came in, then the most probable samples after all of it, beyond the end of a block, too."""
    codes = name == "waves"
    head, *pieces = stream(name, Pipe(WAV), "--temperature=0", "--steps=1000")
    assert head == sound.open_header(RATE, 1)
    samples = np.frombuffer(b"".join(pieces), "<i2") / 2**15
    np.testing.assert_array_equal(samples[: len(SOUND)], SOUND)
    assert len(samples) == len(SOUND) + 1000
    inference = untrained(name).inference
    prompt = np.asarray(mu_law_encode(jnp.asarray(SOUND))) if codes else SOUND[:, None]
    expected = inference.to_sound(inference.sample(prompt[None], 1000, temperature=0.0))[0]
    np.testing.assert_allclose(samples[len(SOUND) :], expected, atol=2e-4 if codes else 2e-3)


def test_seeds_draw_and_steps_count():
    one, two, same = (b"".join(stream("waves", Pipe(WAV), "--steps=1850", f"--seed={seed}")) for seed in (1, 2, 1))
    assert one == same
    assert one != two
    assert len(one) == 44 + 2 * (len(SOUND) + 1850)
    drawn = np.frombuffer(one, "<i2", offset=44 + 2 * len(SOUND))
    assert not np.array_equal(drawn[:800], drawn[800:1600])


def test_a_block_is_answered_before_the_next_comes():
    class Waiting(Pipe):
        def read1(self, size: int | None = -1) -> bytes:
            if self.tell() > 3000:
                raise RuntimeError("waits for more")
            return super().read1(size)

    pieces = stream("voices", Waiting(WAV))
    assert [len(next(pieces)) for _ in range(2)] == [44, 4 * (800 - 16)]
    with pytest.raises(RuntimeError, match="waits for more"):
        next(pieces)


MISTAKES: dict[str, tuple[str, bytes, str]] = {
    "text": (
        "short",
        b"hello\n" * 9,
        "standard input is not a .wav file: it does not begin with RIFF and WAVE; convert it to 16-bit PCM.",
    ),
    "nothing": ("waves", b"", "standard input is not a .wav file: it does not begin with RIFF and WAVE; convert it to 16-bit PCM."),
    "no samples": ("waves", wav(SOUND[:0]), "standard input has no samples; give some."),
    "not UTF-8": ("text", b"\xff\xfe", "standard input is not UTF-8; convert it."),
    "the whole sequence is normalised": (
        "global",
        WAV,
        "ConvTasNet.init_stream: input_norm/GroupNorm_0 is a GroupNorm, which looks at the whole sequence; use batch, layer or cumulative "
        "normalisation, and train=False.",
    ),
    "not streamable": (
        "gated",
        WAV,
        "--stream: GatedDilatedCNN needs the whole sequence and cannot be fed in chunks; train a causal model.",
    ),
    "series": ("series", b"", "--stream is for text, tables and sound, and this run is on 'ucr:toy'; give files instead."),
    "piano rolls": ("piano", b"", "a run on data.name='piano' has nothing to predict from files or a stream; use train.evaluate."),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_line(case):
    name, content, message = MISTAKES[case]
    with pytest.raises(UserError) as caught:
        list(stream(name, Pipe(content)))
    assert str(caught.value) == message


def test_several_channels_are_mixed_down(capsys):
    stereo = np.stack([SOUND, SOUND], 1)
    assert list(stream("short", Pipe(wav(stereo)))) == list(stream("short", Pipe(WAV)))
    assert capsys.readouterr().err == "note: standard input has 2 channels; they are mixed down to one.\n"


@pytest.mark.parametrize("rate", [4000, 11025, 16000])
def test_another_sample_rate_is_converted_as_that_of_a_file(tmp_path, rate, capsys):
    content = wav(SOUND, rate=rate)
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    converted, _ = sound.read_sound(path, rate=RATE)
    capsys.readouterr()
    arrived = np.concatenate(list(sound.resample_pieces(sound.stream_wav(Pipe(content), "it")[1], rate, RATE)))
    assert arrived.dtype == np.float32
    np.testing.assert_allclose(arrived, converted, atol=1e-5)
    answers = list(stream("short", Pipe(content)))
    note = f"note: standard input has {rate} samples per second; it is resampled to the 8000 of the run.\n"
    assert capsys.readouterr().err == note
    plain = list(stream("short", Pipe(wav(converted))))
    assert [line.split(b"\t")[0] for line in answers] == [line.split(b"\t")[0] for line in plain]


def test_a_sound_that_breaks_off_is_answered_as_far_as_it_goes():
    """A size in the header that is more than comes, and half a sample at the end, as from a recorder that was stopped."""
    sized = WAV[:40] + (2 * len(SOUND) + 1000).to_bytes(4, "little") + WAV[44:]
    assert list(stream("short", Pipe(sized + b"\1"))) == list(stream("short", Pipe(WAV)))
    short = WAV[:40] + (2 * 3000).to_bytes(4, "little") + WAV[44:]  # what follows is not sound
    assert list(stream("short", Pipe(short))) == list(stream("short", Pipe(WAV[: 44 + 6000])))
