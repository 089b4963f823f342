"""Training, validation and test split: how files name them, and how records are divided into them."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from dilax.errors import UserError
from dilax.spec import DataSpec
from train.data.source import Source, subset

# What a permutation is for: the first number of its key, so that no two choices are correlated.
TEST_SPLIT, VALIDATION, PER_CLASS, EPOCH = 1, 2, 3, 4
# The names by which files and folders call a split, in any letter case.
WORDS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}


@dataclasses.dataclass(frozen=True)
class Splits:
    """The splits of a dataset.

    Attributes:
        spec: What the dataset looks like to a model.
        train: The records to learn from.
        validation: Those that decide between checkpoints, or None.
        test: Those that are scored once, at the end.
    """

    spec: DataSpec
    train: Source
    validation: Source | None
    test: Source

    def with_spec(self, **changes: Any) -> "Splits":
        """Return the same splits with other values of some fields of `spec`."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, **changes))


def split_of(name: str) -> str | None:
    """Return the split that a name stands for, or None.

    Example:
        >>> split_of("Val"), split_of("testing"), split_of("cats")
        ('validation', 'test', None)
    """
    return next((split for split, words in WORDS.items() if name.lower() in words), None)


def split_names(names: Iterable[str], where: object) -> dict[str, str]:
    """Return {"train" | "validation" | "test": the name that stands for it}, or {} if no name stands for the training split.

    Args:
        names: Names of folders, files or arrays, without suffixes; those that do not name a split are ignored.
        where: What holds them, for the error.

    Raises:
        UserError: if two of them stand for one split.

    Example:
        >>> split_names(["Training", "val", "notes"], "pets")
        {'train': 'Training', 'validation': 'val'}
    """
    matches: dict[str, list[str]] = {split: [] for split in WORDS}
    for name in sorted(names):
        if (split := split_of(name)) is not None:
            matches[split].append(name)
    if not matches["train"]:
        return {}
    for split, same in matches.items():
        if len(same) > 1:
            raise UserError(f"{where} holds both {same[0]} and {same[1]}, which name the same split, {split}; rename or remove one.")
    return {split: same[0] for split, same in matches.items() if same}


def split_paths(folder: pathlib.Path, *, suffix: str = "") -> dict[str, pathlib.Path]:
    """Return {"train" | "validation" | "test": path} of the splits in a folder, or {} if there is no training split, or no folder.

    Args:
        folder: Folder to look into.
        suffix: Suffix of the files to look for, such as ".txt"; "" looks for sub-folders.

    Raises:
        UserError: if two of them stand for one split.
    """
    if not folder.is_dir():
        return {}
    paths = [path for path in folder.iterdir() if (path.is_file() and path.suffix.lower() == suffix if suffix else path.is_dir())]
    by_name = {path.stem if suffix else path.name: path for path in paths}
    return {split: by_name[name] for split, name in split_names(by_name, folder).items()}


def permutation(n: int, *key: int) -> np.ndarray:
    """Return a permutation of range(n), a pure function of (n, key).

    It sorts raw bits, whose stream NumPy promises to keep; that of `Generator.permutation` may change between versions.
    """
    return np.argsort(np.random.PCG64(np.random.SeedSequence(key)).random_raw(n), kind="stable")


def stratified(labels: np.ndarray, count: int, *key: int) -> np.ndarray:
    """Choose `count` of the records with these labels, (n,), so that every class is within one record of its share.

    Returns: bool (n,), True where chosen; a pure function of (labels, count, key).
    """
    shuffled = permutation(len(labels), *key)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[(2 * np.arange(count) + 1) * len(labels) // (2 * max(count, 1))]] = True
    return chosen


def first_of_each(labels: np.ndarray, count: int, *key: int) -> np.ndarray:
    """Choose `count` records of every class, or all records of a smaller class.

    Returns: bool (n,), True where chosen; a pure function of (labels, count, key).
    """
    shuffled = permutation(len(labels), *key)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[shuffled[labels[shuffled] == label][:count]] = True
    return chosen


def fixed_test(labels: np.ndarray, where: object, records: str) -> np.ndarray:
    """Choose the test split of data that does not define one: a fifth of the records, whatever the seed of a run.

    Args:
        labels: Class of each record, (n,); all alike if the records have none.
        where: What holds them, for the error.
        records: What they are called, such as "images".

    Returns: bool (n,), True for the test split.
    Raises: UserError: if there are too few records.
    """
    chosen = stratified(labels, round(len(labels) / 5), TEST_SPLIT)
    if not chosen.any():
        raise UserError(
            f"{where} holds {len(labels)} {records}, too few to hold out a fifth for testing; add {records}, or folders train and test."
        )
    return chosen


def held_out(labels: np.ndarray, share: float, seed: int, name: str = "data.validation") -> np.ndarray | None:
    """Choose the records that are held out of the training split.

    Args:
        labels: Class of each record, (n,), of which each gives its share; all alike if the records have none.
        share: Share of the records, from 0 to below 1.
        seed: Seed of the choice.
        name: Config key of the share, for errors.

    Returns: bool (n,), True where held out, or None if the share is 0.
    Raises: UserError: if nothing is left on one side.
    """
    if not 0 <= share < 1:
        raise UserError(f"{name}={share} must be a share of the training records, from 0 to below 1.")
    count = round(len(labels) * share)
    if share and not 0 < count < len(labels):
        raise UserError(f"{name}={share} of {len(labels)} records leaves nothing on one side; change it, or set 0 to hold out none.")
    return stratified(labels, count, VALIDATION, seed) if share else None


def hold_out(source: Source, share: float, seed: int, labels: np.ndarray | None = None) -> tuple[Source, Source | None]:
    """Divide a source into training and validation split.

    Args:
        source: The records of both.
        share: Share of the validation split; 0 makes none.
        seed: Seed of the choice, which does not depend on what is held in memory.
        labels: Class of each record, (n,), to take the share of each class.

    Raises: UserError: as `held_out`.
    """
    chosen = held_out(np.zeros(len(source), np.int32) if labels is None else labels, share, seed)
    if chosen is None:
        return source, None
    return subset(source, np.flatnonzero(~chosen)), subset(source, np.flatnonzero(chosen))
