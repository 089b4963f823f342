"""Laws of the reader of mixtures and their sources."""

import pathlib

import numpy as np
import pytest
import soundfile
from reading import check_call

from train.data.readers.mixtures import pieces, read_mixtures
from train.data.readers.sound import write_wav

RNG = np.random.default_rng(5)


def mixtures(folder: pathlib.Path, names: list[str], lengths: dict[str, int]) -> None:
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for file, length in lengths.items():
            write_wav(folder / name / file, np.linspace(-0.1, 0.1 * i, length), 8000)


def test_mixtures_are_those_that_were_written(tmp_path):
    mixtures(tmp_path, ["s10", "mix_clean", "s2", "noise"], {"b.wav": 5, "a.wav": 7})
    read = read_mixtures(tmp_path)
    assert (read.names, read.rate) == (("s2", "s10"), 8000)
    for sound, length in zip(read.sounds, (7, 5)):
        np.testing.assert_allclose(sound, np.linspace([-0.1] * 3, [0.1, 0.2, 0], length), atol=1e-4)


def test_mixtures_may_be_in_any_format(tmp_path, capsys):
    samples = RNG.uniform(-0.5, 0.5, (3, 64)).round(2)
    for name, sound in zip(("mix", "s1", "s2"), samples):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.FLAC", np.stack([sound, sound], axis=1), 8000)
        (tmp_path / name / "._a.flac").write_text("not a sound")
        (tmp_path / name / "notes.txt").write_text("not a sound")
    read = read_mixtures(tmp_path)
    np.testing.assert_allclose(read.sounds[0], samples.T, atol=1e-4)
    assert capsys.readouterr().err == "note: 3 of 3 files were mixed down to one channel.\n"
    assert read_mixtures(tmp_path, rate=4000).sounds[0].shape == (32, 3)


@pytest.mark.parametrize(("count", "starts"), [(3, [0]), (4, [0]), (5, [0, 1]), (8, [0, 4]), (10, [0, 4, 6])])
def test_pieces_end_where_the_sound_does(count, starts):
    sound = RNG.normal(size=(count, 2))
    cut = pieces([sound, sound[::-1]], 4)
    assert len(cut) == 2 * len(starts)
    for piece, start in zip(cut, starts):
        np.testing.assert_array_equal(piece, sound[start : start + 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "mix").rename(folder / "sum"),
         "{folder} has the folders s1, s2, sum; give it one folder of mixtures, mix, and two or more of sources, s1, s2 and so on."),
        (lambda folder: (folder / "s2").rename(folder / "other"),
         "{folder} has the folders mix, other, s1; give it one folder of mixtures, mix, and two or more of sources, s1, s2 and so on."),
        (lambda folder: (folder / "s2" / "a.wav").unlink(), "{folder}/mix/a.wav has no counterpart of the same name in s2/; add it, or remove this file."),
        (lambda folder: (folder / "mix" / "a.wav").unlink(), "{folder}/s1/a.wav has no counterpart of the same name in mix/; add it, or remove this file."),
        (lambda folder: write_wav(folder / "s1" / "a.wav", np.zeros(5), 8000),
         "{folder}/s1/a.wav has 5 samples and {folder}/mix/a.wav has 7; cut them to the same length."),
        (lambda folder: [path.unlink() for path in folder.glob("*/a.wav")],
         "{folder}/mix has no sound files; add some, with names that end in .wav, .flac, .ogg, .mp3."),
    ],
)  # fmt: skip
def test_mistakes_in_folders_of_mixtures(tmp_path, change, message):
    mixtures(tmp_path, ["mix", "s1", "s2"], {"a.wav": 7})
    change(tmp_path)
    check_call(lambda: read_mixtures(tmp_path), message.format(folder=tmp_path))
