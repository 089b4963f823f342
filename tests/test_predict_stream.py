"""Sounds fed to a run as they come: what is told, separated and drawn is what the run makes of the whole; pipes and mistakes."""

import functools
import io
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.data.open_sequences import log_mel_frames
from train.predict_sequences import Options
from train.predict_stream import stream
from train.run import Trained
from train.sequence_report import probabilities

import dilax
from dilax.audio import mu_law_decode, mu_law_encode
from dilax.errors import UserError
from train import run
from train.config import default_config, model_config
from train.data.readers import sound as sounds_

RATE, RNG = 8000, np.random.default_rng(5)
TIME = np.arange(5237) / RATE
# Rising tones in noise: nothing in it repeats itself, and no block is like another.
SOUND = (0.4 * np.sin(400 * TIME * (1 + 5 * TIME)) + 0.05 * RNG.normal(size=len(TIME))).clip(-1, 1).astype(np.float32)
SOUND = np.frombuffer(sounds_.pcm(SOUND), "<i2").astype(np.float32) / 2**15
WAV = sounds_.open_header(RATE, 1) + sounds_.pcm(SOUND)


class Pipe(io.BytesIO):
    """Bytes that come as from a pipe, a few at a time."""

    def read1(self, size: int | None = -1) -> bytes:
        """Return fewer bytes than asked for, of odd and even number."""
        return super().read(min(317 + len(self.getvalue()) % 2 + self.tell() % 5, size or 0))


def trained(
    task: str, source: str, model: str, fields: dict[str, Any], shape: tuple[int, ...], symbols: int = 0, **changes: Any
) -> Trained:
    """A run that has learned nothing: its parameters are large enough to matter, and its head small enough for doubt."""
    config = default_config("stream")
    config.task = task
    config.data.name = source
    config.model = {**model_config(model, **fields)}
    config.sequence.update(changes)
    names = ("one", "two", "three") if task == "sequence_classification" else ("s1", "s2")
    setup = run.setup(config, symbols or len(names), shape, 100, vocabulary=symbols)
    random = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: leaf + 0.6 * random.normal(size=leaf.shape).astype(np.float32), setup.init())
    params = {name: jax.tree.map(lambda leaf: 0.1 * leaf, part) if name == "head" else part for name, part in variables["params"].items()}
    variables = {"params": params, "batch_stats": jax.tree.map(abs, variables["batch_stats"])}
    facts = {"sample_rate": RATE, "mean": [-2.0], "std": [3.0]}
    return Trained(config.lock(), setup, variables, names, shape, 100, tuple(map(str, range(symbols))), facts)


def options(**changes: Any) -> Options:
    return Options(**{**dict(steps=1850, sampling={}, seed=3, folder=pathlib.Path(), replace=False), **changes})


WORDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "causal, mean": ("separable_tcn", dict(features=8, kernel_size=3, dilations=(1, 2), activation="silu"), "mean"),
    "causal, max": ("tcn", dict(kernel_size=2, features=(6, 6)), "max"),
    "looks ahead": ("separable_tcn", dict(features=8, kernel_size=3, dilations=(1, 2), activation="silu", causal=False), "last"),
}


@pytest.mark.parametrize("case", WORDS)
def test_the_last_line_is_what_is_told_of_the_whole(case):
    model, fields, pool = WORDS[case]
    (frames,) = log_mel_frames([SOUND], RATE, 8)
    made = trained("sequence_classification", "wav", model, fields, (len(frames), 8), pool=pool, bands=8)
    lines = [piece.decode().split("\t") for piece in stream(made, Pipe(WAV), options())]
    whole = probabilities(made.setup, made.variables, {"input": (frames[None] + 2) / 3, "length": np.array([len(frames)])})[0]
    assert lines[-1][1] == made.class_names[whole.argmax()]
    assert float(lines[-1][2]) == pytest.approx(whole.max(), abs=2e-4)
    # Frames of 32 ms each 10 ms: a line for ten, and what is left at the end; what looks ahead is late by 3 frames.
    late = 3 if case == "looks ahead" else 0
    ends = [*range(10, len(frames) + 1, 10), *([len(frames)] if len(frames) % 10 else [])]
    ends = [end - late for end in ends] + ([len(frames)] if late else [])
    assert [line[0] for line in lines] == [f"{(end - 1) / 100 + 0.032:.2f}" for end in ends]


def test_only_the_last_frames_are_told_of():
    """As many as the longest sound of the training had, though the network may have seen more."""
    made = trained("sequence_classification", "wav", *WORDS["causal, mean"][:2], (7, 8), pool="mean", bands=8)
    (frames,) = log_mel_frames([SOUND], RATE, 8)
    *_, last = stream(made, Pipe(WAV), options())
    outputs: Any = made.setup.steps.model.apply(made.variables, jnp.asarray((frames[None] + 2) / 3), train=False)
    expected = jax.nn.softmax(outputs[0, -7:].mean(0))
    assert float(last.split(b"\t")[2]) == pytest.approx(float(expected.max()), abs=2e-4)


def test_a_sound_shorter_than_a_frame():
    made = trained("sequence_classification", "wav", *WORDS["causal, mean"][:2], (7, 8), pool="mean", bands=8)
    (line,) = stream(made, Pipe(sounds_.open_header(RATE, 1) + sounds_.pcm(SOUND[:90])), options())
    frames = log_mel_frames([SOUND[:90]], RATE, 8)[0]
    whole = probabilities(made.setup, made.variables, {"input": (frames[None] + 2) / 3, "length": np.array([1])})[0]
    assert float(line.split(b"\t")[2]) == pytest.approx(whole.max(), abs=2e-4)


TASNET = dict(features=12, bottleneck_features=6, hidden_features=8, skip_features=6, blocks=2, repeats=1, causal=True, kernel_size=24)


def test_what_is_separated_is_what_the_whole_gives():
    made = trained("separation", "mixtures", "conv_tasnet", TASNET, (len(SOUND), 1))
    head, *pieces = stream(made, Pipe(WAV), options())
    assert head == sounds_.open_header(RATE, 2)
    assert len(pieces) > 5
    assert all(len(piece) % 4 == 0 for piece in pieces)
    found = np.frombuffer(b"".join(pieces), "<i2").reshape(-1, 2) / 2**15
    assert found.shape == (len(SOUND), 2)
    outputs = np.asarray(made.setup.outputs(made.variables, {"input": SOUND[None, :, None], "length": np.array([len(SOUND)])}))[0]
    at = 0
    for piece in pieces:  # of the sizes that together come closest to the mixture up to there
        end = at + len(piece) // 4
        scale = np.linalg.lstsq(outputs[:end].astype(np.float64), SOUND[:end], rcond=None)[0]
        np.testing.assert_allclose(found[at:end], (outputs[at:end] * scale).clip(-1, 1), atol=2e-3)
        at = end


@pytest.mark.parametrize("outputs", ["softmax", "mixture"])
def test_a_sound_is_gone_on_with(outputs):
    """First what came in, then what the outputs after all of it, the likeliest each, say: over the end of a block, too."""
    codes = outputs == "softmax"
    fields = dict(dilations=(1, 2, 4), features=4, skip_features=4, outputs=outputs, **({} if codes else {"mixtures": 2}))
    made = trained("waveform", "wav", "wavenet", fields, (400,) if codes else (400, 1), symbols=256 if codes else 0)
    head, *pieces = stream(made, Pipe(WAV), options(sampling={"temperature": 0.0}, steps=1000))
    assert head == sounds_.open_header(RATE, 1)
    sound = np.frombuffer(b"".join(pieces), "<i2") / 2**15
    np.testing.assert_array_equal(sound[: len(SOUND)], SOUND)
    assert len(sound) == len(SOUND) + 1000
    prompt = mu_law_encode(jnp.asarray(SOUND)) if codes else jnp.asarray(SOUND)[:, None]
    drawn = dilax.sample(made.setup.steps.model, made.variables, jax.random.key(0), prompt[None], 1000, temperature=0.0)[0]
    expected = np.asarray(mu_law_decode(drawn) if codes else drawn[:, 0])
    np.testing.assert_allclose(sound[len(SOUND) :], expected, atol=2e-4 if codes else 2e-3)


def test_seeds_draw_and_steps_count():
    made = trained("waveform", "wav", "wavenet", dict(dilations=(1, 2), features=4, skip_features=4), (400,), symbols=256)
    one, two, same = (b"".join(stream(made, Pipe(WAV), options(seed=seed))) for seed in (1, 2, 1))
    assert one == same
    assert one != two
    assert len(one) == 44 + 2 * (len(SOUND) + 1850)
    drawn = np.frombuffer(one, "<i2", offset=44 + 2 * len(SOUND))
    assert not np.array_equal(drawn[:800], drawn[800:1600])


def test_what_comes_in_is_answered_before_more_comes():
    made = trained("separation", "mixtures", "conv_tasnet", TASNET, (4000, 1))

    class Waiting(Pipe):
        def read1(self, size: int | None = -1) -> bytes:
            if self.tell() > 3000:
                raise RuntimeError("waits for more")
            return super().read1(size)

    pieces = stream(made, Waiting(WAV), options())
    assert [len(next(pieces)) for _ in range(2)] == [44, 4 * (800 - 16)]
    with pytest.raises(RuntimeError, match="waits for more"):
        next(pieces)


def header(rate: int = RATE, channels: int = 1) -> bytes:
    return sounds_.open_header(rate, channels)


MISTAKES: dict[str, tuple[str, bytes, str]] = {
    "another sample rate": (
        "words",
        header(16000) + bytes(90),
        "standard input has 16000 samples a second, and the run was trained on 8000; resample it.",
    ),
    "stereo": ("voices", header(channels=2) + bytes(90), "standard input has 2 channels; mix it down to one channel."),
    "text": (
        "words",
        b"hello\n" * 9,
        "standard input is no .wav file: it does not begin with RIFF and WAVE; convert it to PCM of 16 bits.",
    ),
    "nothing": ("waves", b"", "standard input is no .wav file: it does not begin with RIFF and WAVE; convert it to PCM of 16 bits."),
    "no samples": ("waves", header(), "standard input holds no samples; give some."),
    "not UTF-8": ("text", b"\xff\xfe", "standard input is not UTF-8; convert it."),
    "over the whole": (
        "global",
        WAV,
        "ConvTasNet.init_stream: input_norm/GroupNorm_0 is a GroupNorm, which looks at the whole sequence; use batch, layer or cumulative normalisation, and train=False.",
    ),
    "no Streamable": (
        "gated",
        WAV,
        "--stream: the model 'gated_dilated_cnn' looks at whole sequences, it cannot be fed in chunks; train a causal one.",
    ),
    "another task": ("piano", b"", "--stream is for runs on texts, tables and sounds, and this one is of sequence_prediction on 'piano'."),
}


@functools.cache
def of_kind(kind: str) -> Trained:
    wave = dict(dilations=(1, 2), features=4, skip_features=4)
    return {
        "words": lambda: trained("sequence_classification", "wav", *WORDS["causal, mean"][:2], (7, 8), bands=8),
        "voices": lambda: trained("separation", "mixtures", "conv_tasnet", TASNET, (400, 1)),
        "global": lambda: trained("separation", "mixtures", "conv_tasnet", {**TASNET, "causal": False}, (400, 1)),
        "waves": lambda: trained("waveform", "wav", "wavenet", wave, (400,), symbols=256),
        "text": lambda: trained("language_model", "text", "wavenet", wave, (400,), symbols=9),
        "gated": lambda: trained("sequence_classification", "wav", "gated_dilated_cnn", dict(features=4, dilations=(1,)), (7, 8), bands=8),
        "piano": lambda: trained("sequence_prediction", "piano", "tcn", dict(kernel_size=2, features=(4,)), (40, 2), loss="binary"),
    }[kind]()


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_line(case):
    kind, content, words = MISTAKES[case]
    with pytest.raises(UserError) as caught:
        list(stream(of_kind(kind), Pipe(content), options()))
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_sound_that_breaks_off_is_answered_as_far_as_it_goes():
    """A size in the header that is more than comes, and half a sample at the end, as from a recorder that was stopped."""
    made = of_kind("words")
    sized = WAV[:40] + (2 * len(SOUND) + 1000).to_bytes(4, "little") + WAV[44:]
    assert list(stream(made, Pipe(sized + b"\1"), options())) == list(stream(made, Pipe(WAV), options()))
    short = WAV[:40] + (2 * 3000).to_bytes(4, "little") + WAV[44:]  # what follows is no sound
    assert list(stream(made, Pipe(short), options())) == list(stream(made, Pipe(WAV[: 44 + 6000]), options()))
