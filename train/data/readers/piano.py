"""Piano rolls: which keys sound at each step, in sequences of unequal length and three splits."""

import io
import pathlib
import zipfile
from typing import Any

import numpy as np

from dilax.errors import UserError, reason
from dilax.files import read_bytes
from train.data.readers.mat import read_cells

SPLITS = ("train", "validation", "test")
_CELLS = {"train": "traindata", "validation": "validdata", "test": "testdata"}


def read_piano_rolls(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """Return the sequences of each split, {"train", "validation", "test"} to lists of bool (time, keys).

    `.mat`: the cells traindata, validdata and testdata, each (1, n) of (time, keys), as the code of the TCN paper reads them (Bai et al.
    2018, arXiv:1803.01271). `.npz`: the arrays train, validation (or valid) and test, each (n, time, keys); if sequences are shorter than
    that, their lengths are in train_lengths and so on, integers (n,), and the steps after them are ignored.

    Raises:
        UserError: if the file is missing, damaged or in another format, a split is missing, or a sequence has values other than 0 and 1
            or another number of keys.
    """
    readers = {".mat": _read_mat, ".npz": _read_npz}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"{path} is neither a .mat nor a .npz file; save the piano rolls as one of them.")
    splits = readers[suffix](path, read_bytes(path, "a .mat or .npz file"))
    rolls = {split: [_as_bool(f"{path}: {split} {i}", roll) for i, roll in enumerate(splits[split])] for split in SPLITS}
    for split in SPLITS:
        if not rolls[split]:
            raise UserError(f"{path}: {split} has no sequences; add some.")
        for i, roll in enumerate(rolls[split]):
            keys = rolls["train"][0].shape[1]
            if roll.shape[1] != keys:
                raise UserError(f"{path}: {split} {i} has {roll.shape[1]} keys and train 0 has {keys}; make them agree.")
    return rolls


def _as_bool(where: str, roll: np.ndarray) -> np.ndarray:
    """Return a roll as bool (time, keys)."""
    _check_form(where, roll.shape, roll.dtype)
    wrong = roll[(roll != 0) & (roll != 1)]
    if len(wrong):
        raise UserError(f"{where} has the value {wrong[0]:.4g}; give 1 for the keys that sound and 0 for the others.")
    return roll.astype(bool)


def _check_form(where: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse what is not numbers (time, keys)."""
    if len(shape) != 2 or not (np.issubdtype(dtype, np.number) or np.issubdtype(dtype, np.bool_)):
        raise UserError(f"{where} is {dtype} of shape {shape}; give numbers (time, keys).")
    if 0 in shape:
        raise UserError(f"{where} has shape {shape}, so no {('steps', 'keys')[shape.index(0)]}; remove or repair it.")


def _read_mat(path: pathlib.Path, content: bytes) -> dict[str, list[np.ndarray]]:
    cells = read_cells(path, content, tuple(_CELLS.values()))
    return {split: cells[name] for split, name in _CELLS.items()}


def _read_npz(path: pathlib.Path, content: bytes) -> dict[str, list[np.ndarray]]:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise UserError(f"{path} is not a .npz file, which is a zip archive of arrays; it is truncated, or in another format.")
    try:
        file: Any = np.load(io.BytesIO(content), allow_pickle=False)
        names = set(file.files)
    except Exception as error:  # of many kinds for a damaged archive
        raise UserError(f"{path} cannot be read as a .npz file ({reason(error)}); it is truncated, or in another format.") from error
    splits = {}
    for split in SPLITS:
        name = "valid" if split == "validation" and "validation" not in names else split
        if name not in names:
            present = ", ".join(sorted(names)) or "nothing"
            raise UserError(f"{path} has no array {split}, only {present}; add it, with shape (sequences, time, keys).")
        rolls = _array(path, file, name)
        if rolls.ndim != 3:
            raise UserError(f"{path}: {name} has shape {rolls.shape}; give (sequences, time, keys), and shorter ones with {name}_lengths.")
        if len(rolls):  # an array without content may claim more sequences than fit into memory
            _check_form(f"{path}: {split} 0", rolls.shape[1:], rolls.dtype)
        lengths = _array(path, file, f"{name}_lengths") if f"{name}_lengths" in names else np.full(len(rolls), rolls.shape[1])
        if lengths.shape != rolls.shape[:1] or not np.issubdtype(lengths.dtype, np.integer):
            raise UserError(f"{path}: {name}_lengths is {lengths.dtype} of shape {lengths.shape}; give integers ({len(rolls)},).")
        outside = lengths[(lengths < 0) | (lengths > rolls.shape[1])]
        if len(outside):
            raise UserError(f"{path}: {name}_lengths has the value {outside[0]}, but {name} has {rolls.shape[1]} steps; correct it.")
        splits[split] = [roll[:length] for roll, length in zip(rolls, lengths.tolist())]
    return splits


def _array(path: pathlib.Path, file: Any, name: str) -> np.ndarray:
    try:
        return file[name]
    except Exception as error:  # of many kinds for a damaged archive
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path}: {name} is an array of objects, which is a pickle and could run any code; pad the sequences into one array of "
                f"numbers (sequences, time, keys), and put their lengths into {name}_lengths."
            ) from error
        raise UserError(f"{path}: {name} cannot be read ({reason(error)}); the file is damaged.") from error
