"""Recordings with a class for every step: folders of features and labels, as of videos, or folds in .mat files."""

import dataclasses
import io
import pathlib
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from dilax.errors import UserError, reason
from dilax.files import read_bytes
from train.data.readers.files import list_files
from train.data.readers.mat import read_cells
from train.data.readers.tables import read_table
from train.data.readers.text import read_text
from train.data.splits import divided, origin_of, with_fixed_test

SUFFIXES = (".npy", ".npz", ".csv")
FEATURES, LABELS, SPLITS, MAPPING = "features", ("groundTruth", "labels"), "splits", "mapping.txt"
_LAYOUT = f"{FEATURES}/ with {', '.join(SUFFIXES)} files, and {' or '.join(f'{name}/' for name in LABELS)} with a .txt file for each"
_SCORES, _CLASSES = "S", "Y"  # cells of a .mat file


@dataclasses.dataclass(frozen=True)
class Recording:
    """Features of every step, and their classes.

    Attributes:
        name: What messages call it.
        features: float32 (time, channels).
        labels: The class of every step.
    """

    name: str
    features: np.ndarray
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Recordings:
    """The recordings of each split.

    Attributes:
        parts: Those of "train", "test" and perhaps "validation".
        classes: All classes in their order, if the data says so; else ().
        origin: Where they come from, for `Splits.origin`.
    """

    parts: dict[str, list[Recording]]
    classes: tuple[str, ...]
    origin: str


def read_folder(folder: pathlib.Path, split: int, *, validation: bool = True) -> Recordings:
    """Read a folder of features/NAME.npy and groundTruth/NAME.txt, which holds the class of one step on each line.

    An array is (time, channels) or (channels, time): the size that equals the number of labels is time, and if both sizes do, it is the one
    that is time in all other files, or else the first. labels/ may replace groundTruth/. mapping.txt, with lines such as "0 background",
    gives the classes and their order. splits/train.split1.bundle and test.split1.bundle name the recordings of the first split. Without
    them a fixed fifth is the test split, unless there are train/ and test/ with such folders.

    Args:
        folder: The folder.
        split: Number of the split, from 1.
        validation: As for `train.data.splits.divided`.

    Raises:
        UserError: if something is missing or damaged, or features and labels do not match.
    """
    paths = {} if (folder / FEATURES).is_dir() else divided(folder, validation=validation)
    if paths:
        read = {part: _read_all(path) for part, path in paths.items()}
        classes = _classes(folder / MAPPING)
        return Recordings({part: list(found.values()) for part, found in read.items()}, classes, origin_of(folder, paths))
    found = _read_all(folder)
    if (folder / SPLITS).is_dir():
        files = {part: folder / SPLITS / f"{part}.split{split}.bundle" for part in ("train", "test")}
        parts = {part: [_named(file, line, found) for line in _lines(file)] for part, file in files.items()}
        for part, file in files.items():
            if not parts[part]:
                raise UserError(f"{file} names no recordings; add a line for each of the {part} split.")
        origin = f"{folder} (split {split})"
    else:
        parts = with_fixed_test(list(found.values()), folder, "recordings")
        origin = origin_of(folder, {})
    return Recordings(parts, _classes(folder / MAPPING), origin)


def count_steps(folder: pathlib.Path) -> list[int]:
    """Return the number of steps of each recording of a folder that `read_folder` reads, by its labels.

    Raises:
        UserError: if the folder does not hold recordings, or no file of labels.
    """
    labels = _labels_of(folder)
    files = list_files(labels, (".txt",))
    if not files:
        raise UserError(f"{labels} holds no .txt files; add the labels of each recording.")
    return [len(_lines(file)) for file in files]


def read_folds(folder: pathlib.Path, fold: int) -> Recordings:
    """Read a folder of .mat files, each of which is a fold: one is the test split, and the others are the training split.

    Each file holds two cells of shape (1, recordings): S, features (time, channels), and Y, the classes of the steps as integers.

    Args:
        folder: The folder.
        fold: Which of the files, in the order of their names, is the test split, from 1.

    Raises:
        UserError: if there are fewer than two files, or one is damaged or does not hold such cells.
    """
    files = sorted(list_files(folder, (".mat",)), key=_natural)
    if len(files) < 2:
        raise UserError(f"{folder} holds {len(files)} .mat files, and a test split needs one of two or more; give the folder of all folds.")
    if fold > len(files):
        raise UserError(f"config.sequence.split={fold} is not a fold of {folder}, which holds {len(files)}; choose 1 to {len(files)}.")
    read = [_read_fold(file) for file in files]
    parts = {"train": [one for i, part in enumerate(read, 1) if i != fold for one in part], "test": read[fold - 1]}
    return Recordings(parts, (), f"{folder} (test: {files[fold - 1].name})")


def _natural(path: pathlib.Path) -> list[tuple[int, str]]:
    """A key that sorts Split_2 before Split_10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _read_fold(path: pathlib.Path) -> list[Recording]:
    cells = read_cells(path, read_bytes(path, "a .mat file"), (_SCORES, _CLASSES))
    found = []
    for i, (features, classes) in enumerate(zip(cells[_SCORES], cells[_CLASSES], strict=False), 1):
        name, classes = f"{path}, recording {i}", np.ravel(classes)
        if len(cells[_SCORES]) != len(cells[_CLASSES]):
            raise UserError(
                f"{path}: {_SCORES} has {len(cells[_SCORES])} recordings and {_CLASSES} has {len(cells[_CLASSES])}; match them."
            )
        if classes.dtype.kind not in "iu":
            raise UserError(f"{name}: {_CLASSES} is {classes.dtype}; give the classes of the steps as integers.")
        features = _as_float(name, features)
        if features.ndim != 2 or len(features) != len(classes):
            raise UserError(f"{name}: features of shape {features.shape} do not fit {len(classes)} classes; give (time, channels).")
        found.append(Recording(name, features, tuple(map(str, classes.tolist()))))
    return found


def _read_all(folder: pathlib.Path) -> dict[str, Recording]:
    """Return the recordings of a folder by their names."""
    labels = _labels_of(folder)
    files: dict[str, pathlib.Path] = {}
    for path in list_files(folder / FEATURES, SUFFIXES):
        if path.stem in files:
            raise UserError(f"{path} and {files[path.stem]} have the same name; keep one of them.")
        files[path.stem] = path
    if not files:
        raise UserError(f"{folder / FEATURES} holds no {', '.join(SUFFIXES)} files; add the features of each recording.")
    known = _classes(folder / MAPPING) or _classes(folder.parent / MAPPING)
    words = {name: _labels(labels / f"{name}.txt", path, known) for name, path in files.items()}
    arrays = {name: read_features(path) for name, path in files.items()}
    turned = _orientation([(files[name], arrays[name].shape, len(words[name])) for name in files])
    return {name: Recording(str(files[name]), arrays[name].T if turned else arrays[name], words[name]) for name in files}


def _labels_of(folder: pathlib.Path) -> pathlib.Path:
    """Return the folder of the labels of recordings."""
    labels = next((folder / name for name in LABELS if (folder / name).is_dir()), None)
    if not (folder / FEATURES).is_dir() or labels is None:
        raise UserError(f'"{folder}" does not hold recordings; give a folder with {_LAYOUT}.')
    return labels


def _orientation(read: Sequence[tuple[pathlib.Path, tuple[int, ...], int]]) -> bool:
    """Return whether the arrays are (channels, time), given their files, shapes and numbers of labels."""
    agree = {False, True}
    for path, shape, count in read:
        fits = {turned for turned in (False, True) if shape[turned] == count and (path.suffix.lower() != ".csv" or not turned)}
        if not fits:
            raise UserError(f"{path} has features of shape {shape} and {count} labels; give as many labels as steps.")
        if not agree & fits:
            raise UserError(
                f"{path} is {'(channels, time)' if fits == {True} else '(time, channels)'}, unlike the files before it; turn it."
            )
        agree &= fits
    return False not in agree


def read_features(path: pathlib.Path) -> np.ndarray:
    """Return the array of a .npy file, the only one or the one called "features" of a .npz file, or the numbers of a .csv file.

    Returns:
        float32, of two axes as they are in the file.

    Raises:
        UserError: if the file is missing, damaged or in another format, or holds other than finite numbers on two axes.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path} is not a file of features; give one of {', '.join(SUFFIXES)}.")
    values = read_table(path)[1] if suffix == ".csv" else _read_array(path)
    values = _as_float(str(path), values)
    if values.ndim != 2 or 0 in values.shape:
        raise UserError(f"{path} has shape {values.shape}; give features (time, channels) or (channels, time).")
    return values


def turned_features(path: pathlib.Path, channels: int) -> np.ndarray:
    """Return features (time, channels) of a file without labels: the size that equals `channels` is theirs, the second if both are.

    Raises:
        UserError: as `read_features`, and if neither size does.
    """
    values = read_features(path)
    if channels not in values.shape:
        raise UserError(f"{path} has features of shape {values.shape}, and the run was trained on {channels} channels; give the same.")
    return values if values.shape[1] == channels else values.T


def _read_array(path: pathlib.Path) -> np.ndarray:
    content = read_bytes(path, "a .npy or .npz file")
    try:
        if not zipfile.is_zipfile(io.BytesIO(content)):
            return np.load(io.BytesIO(content), allow_pickle=False)
        file: Any = np.load(io.BytesIO(content), allow_pickle=False)
        arrays = {name: file[name] for name in file.files if name == FEATURES or len(file.files) == 1}
    except Exception as error:  # of many kinds for a damaged file, or one with a pickle
        raise UserError(f"{path} cannot be read as an array ({reason(error)}); it is damaged, or in another format.") from error
    if not arrays:
        raise UserError(f'{path} holds the arrays {", ".join(sorted(file.files))}; call the one with the features "{FEATURES}".')
    return next(iter(arrays.values()))


def _as_float(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiub":
        raise UserError(f"{name} holds {values.dtype}; give numbers.")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{name} holds features that are NaN, infinite or beyond float32; repair or remove it.")
    return values


def _labels(path: pathlib.Path, features: pathlib.Path, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes that a file holds, one on each line."""
    if not path.exists():
        raise UserError(f"{features} has no labels; add {path}, with the class of one step on each line.")
    lines = _lines(path)
    for i, line in enumerate(lines, 1):
        if known and line not in known:
            raise UserError(f"{path}, line {i}: the class {line[:40]!r} is not in {MAPPING}; correct it, or add it there.")
    return tuple(lines)


def _classes(path: pathlib.Path) -> tuple[str, ...]:
    """Return the classes of a mapping.txt in the order of their numbers; () if there is none."""
    if not path.is_file():
        return ()
    numbered = []
    for i, line in enumerate(_lines(path), 1):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or not name.strip():
            raise UserError(f'{path}, line {i}: {line[:40]!r} is not a number and a class, such as "0 background"; correct it.')
        numbered.append((int(number), name.strip()))
    names = tuple(name for _, name in sorted(numbered))
    if len(set(names)) < len(names):
        raise UserError(f"{path} names a class twice; give each one number.")
    return names


def _lines(path: pathlib.Path) -> list[str]:
    """Return the lines of a text file; those at its end may be blank."""
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if blank := next((i for i, line in enumerate(lines, 1) if not line), None):
        raise UserError(f"{path}, line {blank} is blank; remove it, or fill it in.")
    return lines


def _named(bundle: pathlib.Path, line: str, found: dict[str, Recording]) -> Recording:
    """Return the recording that a line of a bundle names, such as "groundTruth/video-1.txt"."""
    name = pathlib.PurePosixPath(line).name.removesuffix(".txt")
    if name not in found:
        raise UserError(f"{bundle} names {name}, and there are no features of it; add them, or remove the line.")
    return found[name]
