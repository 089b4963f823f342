"""Laws of the reader of piano rolls: what was written is read, and a damaged file gets one line and never ends the process."""

import contextlib
import io
import pathlib
import pickle
import subprocess
from typing import Any

import numpy as np
import pytest
from reading import check_mistake, written
from scipy.io import savemat

from dilax.errors import UserError
from train.data.readers.piano import read_piano_rolls

RNG = np.random.default_rng(5)


def rolls(*lengths: int, keys: int = 5) -> list[np.ndarray]:
    return [RNG.random((length, keys)) < 0.3 for length in lengths]


ROLLS = {"train": rolls(4, 9, 2), "validation": rolls(3), "test": rolls(6, 6)}


def mat(dtype: Any = np.float64, **changes: Any) -> bytes:
    arrays: dict[str, Any] = {}
    for split, name in (("train", "traindata"), ("validation", "validdata"), ("test", "testdata")):
        cells = np.empty((1, len(ROLLS[split])), object)
        for i, roll in enumerate(ROLLS[split]):
            cells[0, i] = roll.astype(dtype)
        arrays[name] = cells
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def npz(validation: str = "validation", padding: float = -1, dtype: Any = np.int8, **changes: Any) -> bytes:
    """An archive of ROLLS, padded where they differ in length, with `changes`; None leaves an array out."""
    arrays: dict[str, Any] = {}
    for split, sequences in ROLLS.items():
        name, time = validation if split == "validation" else split, max(map(len, sequences))
        arrays[name] = np.full((len(sequences), time, 5), padding).astype(dtype)
        for row, roll in zip(arrays[name], sequences):
            row[: len(roll)] = roll
        if split == "train":
            arrays["train_lengths"] = np.array([len(roll) for roll in sequences])
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return buffer.getvalue()


PIANOS = {
    "float.mat": mat(),
    "whole.MAT": mat(np.uint8),
    "padded.npz": npz(),
    "valid.npz": npz("valid"),
    "bool.npz": npz(padding=0, dtype=bool),
    "float.npz": npz(padding=np.nan, dtype=np.float32),
}


@pytest.mark.parametrize("name", PIANOS)
def test_piano_rolls_are_those_that_were_written(tmp_path, name):
    splits = read_piano_rolls(written(tmp_path / name, PIANOS[name]))
    assert list(splits) == ["train", "validation", "test"]
    for split, sequences in ROLLS.items():
        for roll, other in zip(splits[split], sequences, strict=True):
            assert roll.dtype == bool
            np.testing.assert_array_equal(roll, other)


def cells(*sequences: np.ndarray) -> np.ndarray:
    array = np.empty((1, len(sequences)), object)
    array[0] = [None, *sequences][1:] if len(sequences) != 1 else [sequences[0]]
    return array


OBJECTS = (
    "{path}: train is an array of objects, which is a pickle and could run any code; pad the sequences into one array of numbers "
    "(sequences, time, keys), and put their lengths into train_lengths."
)
# Name of the file, its content, and the message, as for check_mistake.
MISTAKES: list[tuple[str, Any, str]] = [
    ("a.mat", None, "{path} does not exist; give a .mat or .npz file."),
    ("a.pickle", b"x", "{path} is neither a .mat nor a .npz file; save the piano rolls as one of them."),
    ("a.mat", mat()[:1000],
     "{path} cannot be read as a .mat file (could not read bytes); it is truncated, damaged or in another format."),
    ("a.mat", b"MATLAB 7.3".ljust(124) + b"\0\2IM", "{path} is a .mat file of version 7.3; save it with -v7."),
    ("a.mat", mat(validdata=None), "{path} has no validdata; give a file with the cells traindata, validdata, testdata."),
    ("a.mat", mat(testdata=np.zeros((3, 4))),
     "{path}: testdata is float64 of shape (3, 4); give cells of shape (1, sequences)."),
    ("a.mat", mat(testdata=cells(np.ones((2, 5)), np.zeros((0, 5)))),
     "{path}: test 1 has shape (0, 5), so no steps; remove or repair it."),
    ("a.mat", mat(testdata=cells(np.ones((2, 5)), np.full((2, 5), 0.5))),
     "{path}: test 1 has the value 0.5; give 1 for the keys that sound and 0 for the others."),
    ("a.mat", mat(validdata=cells(np.ones((2, 6)))),
     "{path}: validation 0 has 6 keys and train 0 has 5; make them agree."),
    ("a.mat", mat(traindata=cells(np.ones((2, 6)), np.ones((2, 5)))),
     "{path}: train 1 has 5 keys and train 0 has 6; make them agree."),
    ("a.mat", mat(testdata=cells(np.ones((2, 5)), np.array(["x"]))),
     "{path}: test 1 is <U1 of shape (1,); give numbers (time, keys)."),
    ("a.npz", npz()[:900], "{path} is not a .npz file, which is a zip archive of arrays; it is truncated, or in another format."),
    ("a.npz", npz().replace(b"\1\1", b"\1\3", 1), "{path}: train cannot be read (Bad CRC-32 for file 'train.npy'); the file is damaged."),
    ("a.npz", npz(train=cells(*ROLLS["train"])[0]), OBJECTS),
    ("a.npz", npz("dev"), "{path} has no array validation, only dev, test, train, train_lengths; add it, with shape (sequences, time, keys)."),
    ("a.npz", npz(test=None),
     "{path} has no array test, only train, train_lengths, validation; add it, with shape (sequences, time, keys)."),
    ("a.npz", npz(test=np.zeros((4, 5))),
     "{path}: test has shape (4, 5); give (sequences, time, keys), and shorter ones with test_lengths."),
    ("a.npz", npz(test=np.zeros((0, 4, 5))), "{path}: test has no sequences; add some."),
    ("a.npz", npz(test=np.zeros((2, 4, 0))), "{path}: test 0 has shape (4, 0), so no keys; remove or repair it."),
    ("a.npz", npz(test=np.full((2, 4, 5), np.nan)),
     "{path}: test 0 has the value nan; give 1 for the keys that sound and 0 for the others."),
    ("a.npz", npz(train_lengths=None), "{path}: train 0 has the value -1; give 1 for the keys that sound and 0 for the others."),
    ("a.npz", npz(train_lengths=np.array([4, 10, 2])), "{path}: train_lengths has the value 10, but train has 9 steps; correct it."),
    ("a.npz", npz(train_lengths=np.array([4, 9, -1])), "{path}: train_lengths has the value -1, but train has 9 steps; correct it."),
    ("a.npz", npz(train_lengths=np.array([4, 9, 0])),
     "{path}: train 2 has shape (0, 5), so no steps; remove or repair it."),
    ("a.npz", npz(train_lengths=np.array([4, 9])), "{path}: train_lengths is int64 of shape (2,); give integers (3,)."),
    ("a.npz", npz(train_lengths=np.array([4.0, 9, 2])),
     "{path}: train_lengths is float64 of shape (3,); give integers (3,)."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), MISTAKES)
def test_mistakes_get_one_line(tmp_path, name, content, message):
    check_mistake(read_piano_rolls, tmp_path / name, content, message)


# Bytes of the file of `mat()` at which scipy reads or writes where it must not when they are changed, which usually ends the process.
CRASHES = [(144, 14), (241, 255), (457, 127)]


@pytest.mark.parametrize(("at", "byte"), CRASHES)
def test_a_damaged_file_does_not_end_the_process(tmp_path, at, byte):
    content = bytearray(mat())
    content[at] = byte
    check_damaged(tmp_path / "a.mat", bytes(content))


def test_what_cannot_be_sent_back_gets_one_line(tmp_path, monkeypatch):
    """What scipy makes of invalid memory need not be what pickle can restore."""
    done = subprocess.CompletedProcess([], 0, stdout=pickle.dumps({"traindata": 1})[:-1])
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: done)
    check_damaged(tmp_path / "a.mat", mat())


@pytest.mark.parametrize("seed", range(3))
def test_damaged_archives_get_one_line(tmp_path, seed):
    random, content = np.random.default_rng(seed), npz()
    for _ in range(100):
        damaged = bytearray(content)
        for at in random.integers(len(content), size=3):
            damaged[at] = random.integers(256)
        check_damaged(tmp_path / "a.npz", bytes(damaged), harmless=True)


def check_damaged(path: pathlib.Path, content: bytes, harmless: bool = False) -> None:
    """Check that a damaged file gets one line; if `harmless`, the damage may be where nothing is read."""
    path.write_bytes(content)
    message = ""
    with contextlib.suppress(UserError) if harmless else pytest.raises(UserError):
        try:
            read_piano_rolls(path)
        except UserError as error:
            message = str(error)
            raise
    assert "\n" not in message
