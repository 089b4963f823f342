"""Runs on sounds of any format and rate from files to predictions: classified, continued, separated; their reports; mistakes."""

import pathlib
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
import soxr
from sequence_runs import FOLDER, data_of, dir_of, open_data, predict, trained
from task_cases import RATE

from dilax.errors import UserError
from dilax.loading import read_status
from train.data.readers import sound
from train.data.source import gather

LEARNED: dict[str, Callable[[dict[str, float]], bool]] = {
    "words": lambda metrics: metrics["test/accuracy"] == 1,
    "waves": lambda metrics: metrics["test/bits_per_sample"] < 8,
    "voices": lambda metrics: metrics["test/si_sdr_improvement"] > 10,
}
SHOWN = {
    "waves": ["samples.png", "sample_0.wav"],
    "voices": ["separation.png", "mixture.wav", "s1.wav", "s1_separated.wav"],
}


@pytest.mark.parametrize("name", LEARNED)
def test_runs_learn(name):
    trained(name)
    assert LEARNED[name](read_status(FOLDER / name / "run")["metrics"])


@pytest.mark.parametrize("name", SHOWN)
def test_reports_show_what_was_made(name):
    trained(name)
    report = (FOLDER / name / "run" / "report" / "report.md").read_text()
    for file in [*SHOWN[name], "learning_curves.png"]:
        assert f"]({file})" in report


def test_the_report_of_waves_holds_sounds():
    trained("waves")
    with wave.open(str(FOLDER / "waves" / "run" / "report" / "sample_0.wav")) as file:
        assert (file.getframerate(), file.getnframes()) == (RATE, 200 + 20)


def test_sounds_are_classified():
    lines = predict("words", *(data_of("words") / label / "3.wav" for label in ("low", "high")))
    assert [line.split("\t")[1] for line in lines] == ["low", "high"]


def test_a_sound_is_continued_in_a_file_of_its_own(tmp_path):
    trained("waves")
    path = data_of("waves") / "low" / "0.wav"
    (line,) = predict("waves", path, "--steps=30", out=tmp_path / "out")
    assert line == f"{path}\t{tmp_path / 'out' / '0_continued.wav'}\t{1630 / RATE:.3f} s"
    before, after = sound.read_sound(path)[0], sound.read_sound(tmp_path / "out" / "0_continued.wav")[0]
    np.testing.assert_allclose(after[:1600], before, atol=1e-4)
    assert len(after) == 1630
    with pytest.raises(UserError, match=r"0_continued\.wav exists and would be overwritten; give another folder with --out\."):
        predict("waves", path, "--steps=30", out=tmp_path / "out")


def separated(path: pathlib.Path, out: pathlib.Path) -> np.ndarray:
    """The sources (2, time) that predict writes for a mixture."""
    (line,) = predict("voices", path, out=out)
    files = [out / f"{path.stem}_{name}.wav" for name in ("s1", "s2")]
    assert line == "\t".join(map(str, [path, *files]))
    return np.stack([sound.read_sound(file)[0] for file in files])


def test_a_mixture_is_separated_into_files(tmp_path):
    trained("voices")
    sources = separated(data_of("voices") / "mix" / "3.wav", tmp_path / "out")
    truth = [sound.read_sound(data_of("voices") / name / "3.wav")[0] for name in ("s1", "s2")]
    # Of the scale of the sources, though the loss does not see the scale; in either order.
    errors = [[np.square(a - b).mean() / np.square(b).mean() for b in truth] for a in sources]
    assert min(errors[0][0] + errors[1][1], errors[0][1] + errors[1][0]) < 0.2
    mixture = sound.read_sound(data_of("voices") / "mix" / "3.wav")[0]
    assert np.square(sources.sum(0) - mixture).mean() < 0.1 * np.square(mixture).mean()


def convert(path: pathlib.Path, to: pathlib.Path, *, rate: int = RATE, channels: int = 1) -> pathlib.Path:
    """Save a sound in the format that the new name says, at another rate or with more channels."""
    samples, _ = sound.read_sound(path)
    to.parent.mkdir(parents=True, exist_ok=True)
    samples = samples if rate == RATE else soxr.resample(samples, RATE, rate)
    soundfile.write(to, np.stack([samples] * channels, 1), rate, subtype="PCM_16")
    return to


@pytest.mark.parametrize("name", LEARNED)
def test_sounds_of_any_format_and_rate_are_opened(name, tmp_path, capsys):
    wav, data = open_data(name, dir_of(name)), data_of(name)
    for path in data.rglob("*.wav"):
        convert(path, (tmp_path / "flac" / path.relative_to(data)).with_suffix(".flac"))
    flac = open_data(name, tmp_path / "flac")
    assert flac.spec == wav.spec
    for one, other in ((flac.train, wav.train), (flac.validation, wav.validation), (flac.test, wav.test)):
        assert one is not None and other is not None
        batches = [gather(split, np.arange(len(split))) for split in (one, other)]
        for field, values in batches[0].items():
            np.testing.assert_array_equal(values, batches[1][field])
    assert capsys.readouterr().err == ""

    shutil.copytree(data, tmp_path / "mixed")
    for path in data.rglob("5.wav"):
        convert(path, tmp_path / "mixed" / path.relative_to(data), rate=2 * RATE)
    mixed = open_data(name, tmp_path / "mixed")
    assert (mixed.spec.sample_rate, mixed.spec.input_shape) == (RATE, wav.spec.input_shape)
    assert [len(split) for split in (mixed.train, mixed.test)] == [len(split) for split in (wav.train, wav.test)]
    count, total = len(list(data.rglob("5.wav"))), len(list(data.rglob("*.wav")))
    assert capsys.readouterr().err == f"note: {count} of {total} files were resampled to {RATE} Hz.\n"


def test_sounds_of_any_format_and_rate_are_classified(tmp_path, capsys):
    path = data_of("words") / "low" / "3.wav"
    trained("words")
    (expected,) = (line.split("\t")[1:] for line in predict("words", path))
    for same in (convert(path, tmp_path / "3.flac"), convert(path, tmp_path / "stereo.wav", channels=2)):
        (line,) = predict("words", same)
        assert line.split("\t") == [str(same), *expected]
    capsys.readouterr()
    (line,) = predict("words", convert(path, tmp_path / "fast.flac", rate=2 * RATE))
    assert line.split("\t")[1] == "low"
    assert capsys.readouterr().err == f"note: {tmp_path / 'fast.flac'} was resampled to {RATE} Hz.\n"


def test_sounds_of_any_format_and_rate_are_separated(tmp_path):
    trained("voices")
    path = data_of("voices") / "mix" / "3.wav"
    expected = separated(path, tmp_path / "wav")
    np.testing.assert_array_equal(separated(convert(path, tmp_path / "3.flac"), tmp_path / "flac"), expected)
    fast = separated(convert(path, tmp_path / "3.wav", rate=2 * RATE), tmp_path / "fast")
    assert np.square(fast - expected).mean() < 0.05 * np.square(expected).mean()


def test_sounds_of_any_format_and_rate_are_continued(tmp_path):
    trained("waves")
    path = data_of("waves") / "low" / "0.wav"
    (line,) = predict("waves", convert(path, tmp_path / "0.flac"), "--steps=30", out=tmp_path / "flac")
    predict("waves", path, "--steps=30", out=tmp_path / "wav")
    assert line.endswith(f"\t{tmp_path / 'flac' / '0_continued.wav'}\t{1630 / RATE:.3f} s")
    contents = [(tmp_path / name / "0_continued.wav").read_bytes() for name in ("flac", "wav")]
    assert contents[0] == contents[1]
    predict("waves", convert(path, tmp_path / "fast.wav", rate=2 * RATE), "--steps=30", out=tmp_path / "out")
    samples, rate = sound.read_sound(tmp_path / "out" / "fast_continued.wav")
    assert (len(samples), rate) == (1630, RATE)
    assert np.corrcoef(samples[:1600], sound.read_sound(path)[0])[0, 1] > 0.99


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    sound.write_wav(folder / "long.wav", np.zeros(9000, np.float32), RATE)
    (folder / "text.wav").write_text("not a sound")
    return folder


MISTAKES = {
    "a sound that is too long": ("words", ["long.wav"], "long.wav has 110 steps, and the run takes 39; shorten it, or train with a larger"),
    "no such sound": ("words", ["gone.wav"], "gone.wav"),
    "no such mixture": ("voices", ["gone.flac"], "gone.flac"),
    "not a sound": ("waves", ["text.wav"], "text.wav cannot be read as sound"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_line(wrong, case):
    name, inputs, words = MISTAKES[case]
    given = [wrong / one if "." in one else one for one in inputs]
    with pytest.raises(UserError) as caught:
        predict(name, *given, out=wrong / "out")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (wrong / "out").exists()


def test_a_sound_is_classified_from_the_command_line(root):
    path = data_of("words") / "low" / "3.wav"
    (whole,) = predict("words", path)
    words = [sys.executable, "-m", "train.predict", "--workdir", str(FOLDER / "words" / "run"), "--stream"]
    done = subprocess.run(words, input=path.read_bytes(), capture_output=True, cwd=root, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    (_, answer, probability), (_, expected, other) = done.stdout.decode().splitlines()[-1].split("\t"), whole.split("\t")
    assert answer == expected
    assert float(probability) == pytest.approx(float(other), abs=2e-4)
