"""Piano rolls: which keys sound at each step, sequences of unequal length in three splits."""

import io
import pathlib
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from dilax.errors import UserError
from train.data.readers.files import read_bytes

SPLITS = ("train", "validation", "test")
_CELLS = {"train": "traindata", "validation": "validdata", "test": "testdata"}
# What scipy and numpy raise for files that are torn or hold something else.
_TORN = (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, struct.error, zlib.error, zipfile.BadZipFile)


def read_piano_rolls(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """Return {"train", "validation", "test"}: lists of bool (time, keys).

    `.mat`: the cells traindata, validdata and testdata, each (1, n) of (time, keys), as the code of the TCN paper reads them (Bai et al.
    2018, arXiv:1803.01271). `.npz`: the arrays train, validation (or valid) and test, each (n, time, keys); where sequences are shorter
    than that, their lengths stand in train_lengths and so on, integers (n,), and what lies behind them is not looked at.

    Raises:
        UserError: if the file is missing, torn or of another kind, a split is missing, or a sequence is not of 0 and 1, or of other keys.
    """
    readers = {".mat": _read_mat, ".npz": _read_npz}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is neither .mat nor .npz; save the piano rolls as one of them.")
    found = readers[path.suffix.lower()](path, read_bytes(path, "a .mat or .npz file"))
    rolls = {split: [_checked(f"{path}: {split} {i}", roll) for i, roll in enumerate(found[split])] for split in SPLITS}
    for split in SPLITS:
        if not rolls[split]:
            raise UserError(f"{path}: {split} holds no sequences; add some.")
        for i, roll in enumerate(rolls[split]):
            keys = rolls["train"][0].shape[1]
            if roll.shape[1] != keys:
                raise UserError(f"{path}: {split} {i} has {roll.shape[1]} keys and train 0 has {keys}; make them agree.")
    return rolls


def _checked(where: str, roll: np.ndarray) -> np.ndarray:
    """Return a roll as bool (time, keys)."""
    if roll.ndim != 2 or not (np.issubdtype(roll.dtype, np.number) or roll.dtype == bool):
        raise UserError(f"{where} is {roll.dtype} of shape {roll.shape}; give numbers (time, keys).")
    if 0 in roll.shape:
        raise UserError(f"{where} has shape {roll.shape}, so no {('steps', 'keys')[roll.shape.index(0)]}; leave it out, or repair it.")
    wrong = roll[(roll != 0) & (roll != 1)]
    if len(wrong):
        raise UserError(f"{where} holds {wrong[0]:.4g}; give 1 for the keys that sound and 0 for the others.")
    return roll.astype(bool)


def _read_mat(path: pathlib.Path, content: bytes) -> dict[str, list[np.ndarray]]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        held = loadmat(io.BytesIO(content), variable_names=tuple(_CELLS.values()))
    except NotImplementedError as error:
        raise UserError(f"{path} is a .mat file of version 7.3; save it with -v7.") from error
    except (*_TORN, MatReadError) as error:
        raise UserError(f"{path} cannot be read as a .mat file ({_reason(error)}); it is torn, or of another kind.") from error
    found = {}
    for split, name in _CELLS.items():
        cells = held.get(name)
        if cells is None:
            raise UserError(f"{path} has no {name}; give a file with the cells {', '.join(_CELLS.values())}.")
        if cells.dtype != object or cells.ndim != 2 or cells.shape[0] != 1:
            raise UserError(f"{path}: {name} is {cells.dtype} of shape {cells.shape}; give cells of shape (1, sequences).")
        found[split] = [np.asarray(cell) for cell in cells[0]]
    return found


def _read_npz(path: pathlib.Path, content: bytes) -> dict[str, list[np.ndarray]]:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise UserError(f"{path} is no .npz file, which is a zip archive of arrays; it is torn, or of another kind.")
    try:
        file: Any = np.load(io.BytesIO(content), allow_pickle=False)
        names = set(file.files)
    except (*_TORN, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as a .npz file ({_reason(error)}); it is torn, or of another kind.") from error
    found = {}
    for split in SPLITS:
        name = "valid" if split == "validation" and "validation" not in names else split
        if name not in names:
            raise UserError(f"{path} has no {split}, it has {', '.join(sorted(names)) or 'nothing'}; add it, (sequences, time, keys).")
        rolls = _array(path, file, name)
        if rolls.ndim != 3:
            raise UserError(f"{path}: {name} has shape {rolls.shape}; give (sequences, time, keys), and shorter ones with {name}_lengths.")
        lengths = _array(path, file, f"{name}_lengths") if f"{name}_lengths" in names else np.full(len(rolls), rolls.shape[1])
        if lengths.shape != rolls.shape[:1] or not np.issubdtype(lengths.dtype, np.integer):
            raise UserError(f"{path}: {name}_lengths is {lengths.dtype} of shape {lengths.shape}; give integers ({len(rolls)},).")
        outside = lengths[(lengths < 0) | (lengths > rolls.shape[1])]
        if len(outside):
            raise UserError(f"{path}: {name}_lengths holds {outside[0]}, and {name} has {rolls.shape[1]} steps; correct it.")
        found[split] = [roll[:length] for roll, length in zip(rolls, lengths.tolist())]
    return found


def _array(path: pathlib.Path, file: Any, name: str) -> np.ndarray:
    try:
        return file[name]
    except (*_TORN, NotImplementedError) as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path}: {name} is an array of objects, which is a pickle and could run any code; pad the sequences into one array of "
                f"numbers (sequences, time, keys), and put their lengths into {name}_lengths."
            ) from error
        raise UserError(f"{path}: {name} cannot be read ({_reason(error)}); the file is torn.") from error


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
