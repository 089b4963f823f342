"""Training, validation and test split: how files name them, and how records are divided into them."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from dilax.errors import UserError
from dilax.spec import DataSpec
from train.data.source import Source, subset

# What a permutation is for: the first number of its key, so that no two choices are correlated.
TEST_SPLIT, VALIDATION, PER_CLASS, EPOCH = 1, 2, 3, 4
# The names by which files and folders call a split, in any letter case.
WORDS = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "dev", "devel"), "test": ("test", "testing")}
_SPOKEN = {"train": "training", "validation": "validation", "test": "test"}
# Names such as train2017 or test_set, which are neither splits nor classes.
_LIKE_A_SPLIT = re.compile(
    rf"({'|'.join(word for words in WORDS.values() for word in words)})([\W_].*|\d+|sets?|data|images)?", re.IGNORECASE
)
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")
Record = TypeVar("Record")


@dataclasses.dataclass(frozen=True)
class Splits:
    """The splits of a dataset.

    Attributes:
        spec: What the dataset looks like to a model.
        train: The records to learn from.
        validation: Those that decide between checkpoints, or None.
        test: Those that are scored once, at the end.
        origin: Where the data comes from, such as "pets (training: train/, test: test/)"; "" is the name of the dataset.
        kinds: What the outputs and the records are called.
    """

    spec: DataSpec
    train: Source
    validation: Source | None
    test: Source
    origin: str = ""
    kinds: tuple[str, str] = ("classes", "images")

    def describe(self) -> str:
        """Return what was opened, in one line: "data: 3 classes, 120 training, 30 validation, 40 test images from pets"."""
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if part is not None)
        return f"data: {len(self.spec.outputs)} {self.kinds[0]}, {counts} {self.kinds[1]} from {self.origin or self.spec.name}"

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
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    paths = [path for path in visible if (path.is_file() and path.suffix.lower() == suffix if suffix else path.is_dir())]
    by_name = {path.stem if suffix else path.name: path for path in paths}
    return {split: by_name[name] for split, name in split_names(by_name, folder).items()}


def divided(folder: pathlib.Path, *, suffix: str = "", validation: bool = True) -> dict[str, pathlib.Path]:
    """Return the splits that a folder is divided into, {"train", "test" and perhaps "validation": path}, or {} if it is not divided.

    This is the rule of all readers: a folder with a training split is divided; if it has no test split, its validation split is that.

    Args:
        folder: Folder to look into.
        suffix: As `split_paths`.
        validation: Whether a validation split beside a test split is wanted; otherwise it is left out.

    Raises:
        UserError: if there is a training split alone, or two paths stand for one split.
    """
    paths = split_paths(folder, suffix=suffix)
    end = suffix or "/"
    if paths and len(paths) == 1:
        (train,) = paths.values()
        as_class = "" if suffix else f"; if {train.name} is a class, put the classes into folders train/ and test/"
        raise UserError(
            f"{folder} holds {train.stem if suffix else train.name}{end} but neither test{end} nor validation{end}; add one, or set "
            f"config.data.dir to {train}{as_class}."
        )
    if paths and "test" not in paths:
        paths["test"] = paths.pop("validation")
    if not validation:
        paths.pop("validation", None)
    return paths


def origin_of(folder: pathlib.Path, paths: dict[str, pathlib.Path]) -> str:
    """Return which part of a folder is which split, for `Splits.origin`; `paths` as `divided` returns them."""
    if not paths:
        return f"{folder} (a fixed part of it is the test split)"
    taken = taken_parts({split: f"{path.name}{'/' * path.is_dir()}" for split, path in paths.items()})
    first = next(iter(paths.values()))
    kin = (path for path in sorted(first.parent.iterdir()) if path.is_dir() == first.is_dir() and not path.name.startswith("."))
    others = ", ".join(f"{path.name}{'/' * path.is_dir()}" for path in kin if path not in paths.values())
    return f"{folder} ({taken}; not read: {others})" if others else f"{folder} ({taken})"


def taken_parts(names: Mapping[str, str]) -> str:
    """Return which name is taken for which split: "training: train/, test: val/"."""
    return ", ".join(f"{_SPOKEN[split]}: {name}" for split, name in names.items())


def check_classes(names: Sequence[str], where: object) -> None:
    """Refuse data of fewer than two classes, and classes that are splits under names that are not known.

    Raises:
        UserError: naming them.
    """
    if len(names) < 2:
        content = f"only one class, {names[0]}" if names else "no class"
        raise UserError(f"{where} holds {content}, from which nothing can be learned; give two or more classes.")
    matches = [_LIKE_A_SPLIT.fullmatch(name) for name in names]
    if all(matches) and len({split_of(match[1]) for match in matches if match}) > 1:
        raise UserError(f"{where} holds {', '.join(names)}, which are splits, not classes; name them train, validation and test.")


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return distinct class names in order: as numbers if all of them are numbers, as text otherwise.

    Example:
        >>> class_order(["10", "9", "-1"]), class_order(["b10", "b9"])
        (('-1', '9', '10'), ('b10', 'b9'))
    """
    distinct = sorted(set(names))
    return tuple(sorted(distinct, key=float) if all(map(_NUMBER.fullmatch, distinct)) else distinct)


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


def fixed_test(labels: np.ndarray, where: object, records: str, *, share: float = 0.2) -> np.ndarray:
    """Choose the test split of data that does not define one: a fifth of the records, or another share, whatever the seed of a run.

    Args:
        labels: Class of each record, (n,); all alike if the records have none.
        where: What holds them, for the error.
        records: What they are called, such as "images".
        share: The share of the test split.

    Returns: bool (n,), True for the test split.
    Raises: UserError: if there are too few records.
    """
    chosen = stratified(labels, round(len(labels) * share), TEST_SPLIT)
    if not chosen.any() or chosen.all():
        part = "a fifth" if share == 0.2 else f"config.data.test={share:g} of them"
        raise UserError(
            f"{where} holds {len(labels)} {records}, too few to hold out {part} for testing; add {records}, or folders train and test."
        )
    return chosen


def with_fixed_test(
    records: Sequence[Record], where: object, what: str, *, labels: np.ndarray | None = None, share: float = 0.2
) -> dict[str, list[Record]]:
    """Return {"train", "test": records} of data that does not define a test split, as `fixed_test` chooses it.

    Args:
        records: The records.
        where: See `fixed_test`.
        what: What the records are called, such as "images".
        labels: The class of each record; None if they have none.
        share: See `fixed_test`.

    Raises:
        UserError: as `fixed_test`.
    """
    test = fixed_test(np.zeros(len(records), np.int32) if labels is None else labels, where, what, share=share)
    return {split: [one for one, held in zip(records, test) if held == (split == "test")] for split in ("train", "test")}


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
