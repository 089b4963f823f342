"""What is particular to labels of recordings: folders and folds of features, the background, and rows of a stream."""

import sys

import numpy as np
from ml_collections import ConfigDict

from dilax import DataSpec, UserError
from dilax.errors import did_you_mean
from train.data.readers import made_up
from train.data.readers.files import data_path
from train.data.readers.recordings import Recording, Recordings, read_folder, read_folds
from train.data.scaling import scale_of
from train.data.splits import Splits, check_classes, class_order
from train.keys import POSITIVE, UNLIMITED, Key, Keys
from train.tasks.steps import padded_splits

KEYS: Keys = {
    "sequence.split": Key(
        1, "which split is used of data that has several: the number of a bundle, or of the .mat file that is tested on", (1, UNLIMITED)
    ),
    "sequence.background": Key("", 'class that is left out of the edit score and of F1; "" leaves out none'),
    "sequence.smoothing": Key(0.15, "weight of the smoothing loss, which penalises short segments", (0, UNLIMITED)),
    "sequence.threshold": Key(4.0, "difference of log-probabilities above which the smoothing loss does not grow", (POSITIVE, UNLIMITED)),
}
MADE_UP = tuple(key for key in KEYS if key != "sequence.split")  # what made-up recordings read
_LENGTH = 200  # steps of the longest of them


def open_recordings(config: ConfigDict, name: str, like: DataSpec | None) -> Splits:
    """Return splits of padded recordings, each channel standardised by the training split, or as `like` says."""
    return _splits(config, _made_up(config) if name == "actions" else _read(config, name), like)


def read_row(line: str, number: int, channels: int) -> np.ndarray:
    """Return the features (channels,) of a line of a stream."""
    cells = line.replace(",", " ").split()
    try:
        values = np.array(cells, np.float64)
    except ValueError as error:
        raise UserError(f"line {number}: {line.strip()[:40]!r} is not a row of numbers; give the {channels} features of a step.") from error
    if len(values) != channels or not np.isfinite(values).all():
        raise UserError(
            f"line {number} has {len(values)} numbers, not all finite or not {channels}; give the {channels} features of a step."
        )
    return values


def _read(config: ConfigDict, name: str) -> Recordings:
    path = data_path(config, "a folder of recordings")
    if name == "mat":
        return read_folds(path, config.sequence.split)
    return read_folder(path, config.sequence.split, validation=bool(config.data.validation))


def _made_up(config: ConfigDict) -> Recordings:
    """Recordings drawn at random: the training split by config.seed, the test split the same for every run."""
    length, count = config.sequence.length or _LENGTH, made_up.ACTION_RECORDINGS
    drawn = {"train": made_up.actions(count, length, 1, config.seed), "test": made_up.actions(count // 2, length, 2)}
    parts = {
        part: [Recording(f"{part} {i}", values, tuple(labels)) for i, (values, labels) in enumerate(some, 1)]
        for part, some in drawn.items()
    }
    return Recordings(parts, made_up.ACTIONS, "recordings made up at random")


def _splits(config: ConfigDict, recordings: Recordings, like: DataSpec | None) -> Splits:
    parts, origin = recordings.parts, recordings.origin
    present = class_order(label for part in parts.values() for one in part for label in one.labels)
    names = like.outputs if like else recordings.classes or present
    check_classes(names, origin)
    if unknown := [name for name in present if name not in names]:
        raise UserError(f"{origin} has steps of {', '.join(unknown)[:200]}, and the run was trained on {', '.join(names)[:200]}.")
    learned = {label for one in parts["train"] for label in one.labels}
    if unseen := [name for name in names if name not in learned]:
        print(f"note: {origin}: the training split has no steps of {', '.join(unseen)}.", file=sys.stderr)
    background = config.sequence.background
    if background and background not in names:
        raise UserError(
            f"config.sequence.background={background!r} is not a class of {origin}; use one of {', '.join(names)[:200]}, or ''."
            f"{did_you_mean(background, names)}"
        )
    first = parts["train"][0]
    for one in (one for part in parts.values() for one in part):
        if one.features.shape[1] != first.features.shape[1]:
            raise UserError(f"{one.name} has {one.features.shape[1]} channels, and {first.name} has {first.features.shape[1]}; match them.")
    channels = [f"channel {i + 1}" for i in range(first.features.shape[1])]
    mean, std = scale_of(like, np.concatenate([one.features for one in parts["train"]]), channels, origin)
    length = config.sequence.length or max(len(one.labels) for part in parts.values() for one in part)
    spec = DataSpec(config.data.name, (length, len(channels)), names, mean=mean, std=std)

    def features(one: Recording) -> np.ndarray:
        return spec.scale(one.features)

    train, validation, test = padded_splits(config, parts, length, names, features, lambda one: one.labels)
    return Splits(spec, train, validation, test, origin, ("classes", "recordings")).with_spec(examples=len(train))
