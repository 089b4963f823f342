"""Dataset name -> splits of random-access records, and batches of them."""

import math
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dilax.errors import UserError
from train.config import SEQUENCE_TASKS
from train.data import open_sequences
from train.data import source as sources
from train.data.batches import eval_batches, train_batches
from train.data.readers import cells, mask_folders, masks
from train.data.readers import images as folder
from train.data.readers import packaged as digits
from train.data.readers import tfds as tfds_source
from train.data.source import ArraySource, Source, Splits

__all__ = ["ArraySource", "Source", "Splits", "eval_batches", "load", "load_masks", "open_splits", "train_batches"]

_STRATIFIED = 100_000  # records of which the labels are read to stratify; TFDS has to read the images too, which takes long for more


def open_splits(config: ConfigDict) -> Splits:
    """Open the data of a whole config, with the labels that its task learns; errors as those that open it."""
    if config.task == "sequence_classification" and config.data.name.partition(":")[0] not in open_sequences.LABELLED:
        return open_sequences.of_pixels(load(config.data, seed=config.seed))
    if config.task in SEQUENCE_TASKS:
        return open_sequences.load_sequences(config)
    if config.task == "segmentation":
        return load_masks(config.data, seed=config.seed, ignored=config.segmentation.ignored_label)
    return load(config.data, seed=config.seed)


def load(config: ConfigDict, *, seed: int) -> Splits:
    """Open the dataset that `config`, the part `data` of a config, describes.

    What fits in `memory_mb` is decoded into memory here; the rest is decoded as it is read. The records are the same either way.
    The validation split takes its share of each class; of above 100,000 records, it does so only with `classes` or `per_class`.

    Args:
        config: The keys name, dir, download, validation, classes, per_class, image_size, memory_mb.
        seed: Chooses the validation split and the records of data.per_class.

    Raises: UserError: if the dataset is missing, or the keys do not fit it.
    """
    data: Any = config  # the values of a ConfigDict have no static types
    train, test, class_names = _open(data)
    chosen = bool(data.classes or data.per_class)
    stratify = chosen or len(train) <= _STRATIFIED
    if not chosen:  # all is kept: decode first, and the labels come with the images
        train, test = _hold([train, test], data.memory_mb)
    if chosen or (stratify and data.validation):
        train = _with_labels(train)
    if data.classes:
        train, test = (_keep_classes(_with_labels(split), data.classes, class_names) for split in (train, test))
        class_names = tuple(class_names[label] for label in data.classes)
    train, validation = _hold_out(train, data.validation, seed, stratify)
    if data.per_class:
        train = _keep_per_class(train, data.per_class, class_names, seed)
    held = _hold([train, test] if validation is None else [train, test, validation], data.memory_mb)
    height, width, channels = held[0][0]["image"].shape
    return Splits(data.name, class_names, (height, width, channels), held[0], None if validation is None else held[2], held[1])


def load_masks(config: ConfigDict, *, seed: int, ignored: int) -> Splits:
    """Open the set of images and masks that `config`, the part `data` of a config, describes.

    A validation split of its own is used as it is (unless data.validation is 0), else a share of the training split is held out.

    Args:
        config: The keys name, dir, download, validation, image_size, memory_mb, image_field, mask_field, mask_values, class_names, lists.
        seed: Chooses the validation split.
        ignored: Label of pixels that count nowhere.

    Raises: UserError: if the dataset is missing, the keys do not fit it, a mask does not fit its image or the classes, or a split has
        no pixel that counts. What is streamed is checked as it is read.
    """
    data: Any = config
    _check_mask_keys(data)
    opened, class_names = _open_masks(data, ignored)
    if ignored < len(class_names):
        raise UserError(
            f"config.segmentation.ignored_label={ignored} is one of the {len(class_names)} classes; to leave a class out, "
            "list the values of the others in config.data.mask_values."
        )
    train, validation = opened["train"], opened.get("validation")
    if data.validation == 0:
        validation = None
    elif validation is None:
        train, validation = _hold_out(train, data.validation, seed, stratify=False)
    splits = {"training": train, "test": opened["test"], **({} if validation is None else {"validation": validation})}
    held = dict(zip(splits, _hold(list(splits.values()), data.memory_mb), strict=True))
    for name, split in held.items():
        masks.check_labelled(split, name, ignored)
    height, width, channels = held["training"][0]["image"].shape
    return Splits(data.name, class_names, (height, width, channels), held["training"], held.get("validation"), held["test"])


def _check_mask_keys(data: Any) -> None:
    for key in ("classes", "per_class"):
        if data[key]:
            raise UserError(
                f"config.data.{key}={data[key]!r} chooses images by their class, and images to segment have none; leave it out."
            )
    values = tuple(data.mask_values)
    if not all(isinstance(value, int) for value in values):
        raise UserError(f"config.data.mask_values={values} must be whole numbers.")
    if len(set(values)) < len(values) or not all(0 <= value <= 255 for value in values):
        raise UserError(f"config.data.mask_values={values} must be different numbers from 0 to 255.")
    if values and data.class_names and len(values) != len(data.class_names):
        raise UserError(
            f"config.data.mask_values names {len(values)} classes and config.data.class_names {len(data.class_names)}; give one of each."
        )


def _open_masks(data: Any, ignored: int) -> tuple[Any, tuple[str, ...]]:
    """Return {split: source} and the class names."""
    if data.name == "cells":
        return cells.cells(data.image_size, ignored), cells.CLASS_NAMES
    if data.name == "folder":
        return mask_folders.open_mask_folder(data, ignored)
    if data.name in ("digits", "digits8x8"):
        raise UserError(f'data.name="{data.name}" has no masks to segment; use "cells", "folder", or a set of TFDS with masks.')
    return tfds_source.open_tfds_masks(data, ignored)


def _open(data: Any) -> tuple[Source, Source, tuple[str, ...]]:
    """Return train, test and the class names."""
    if data.name == "digits":
        return *digits.digits(data.image_size), digits.CLASS_NAMES
    if data.name == "digits8x8":
        return *digits.digits8x8(data.image_size), digits.CLASS_NAMES
    if data.name == "folder":
        return folder.open_folder(data.dir, data.image_size)
    if data.name == "cells":
        raise UserError('data.name="cells" has masks and no labels of whole images; set config.task="segmentation".')
    return tfds_source.open_tfds(data.name, data.dir, data.download, data.image_size)


def _hold(splits: list[Source], memory_mb: int) -> list[Source]:
    """Decode all the splits into memory if together they fit, else return them as they are."""
    firsts = [split[0] for split in splits]
    size = sum(len(split) * (math.prod(first["image"].shape) + np.size(first["label"])) for split, first in zip(splits, firsts))
    return [sources.hold(split) for split in splits] if size <= memory_mb * 2**20 else splits


def _with_labels(source: Source) -> Source:
    """Return the source, knowing its labels."""
    if not isinstance(source, tfds_source.TfdsSource):
        return source
    return sources.subset(source, np.arange(len(source)), source.read_labels())


def _labels(source: Any) -> np.ndarray:
    """Return the labels, int32 (n,), of a source that knows them."""
    return source.labels


def _keep_classes(source: Source, classes: tuple[int, ...], class_names: tuple[str, ...]) -> Source:
    if len(set(classes)) < len(classes) or not all(0 <= label < len(class_names) for label in classes):
        raise UserError(f"data.classes={tuple(classes)} must be different labels from 0 to {len(class_names) - 1}.")
    labels = _labels(source)
    new = np.full(len(class_names), -1, np.int32)
    new[list(classes)] = np.arange(len(classes))
    indices = np.flatnonzero(new[labels] >= 0)
    if len(indices) == 0:
        raise UserError(f"data.classes={tuple(classes)} leaves a split without records; choose other classes.")
    return sources.subset(source, indices, new[labels[indices]])


def _hold_out(train: Source, share: float, seed: int, stratify: bool) -> tuple[Source, Source | None]:
    """Return train and validation; the choice does not depend on what is held in memory."""
    labels = _labels(train) if stratify and share else np.zeros(len(train), np.int32)
    chosen = sources.held_out(labels, share, seed)
    return (train, None) if chosen is None else (_where(train, ~chosen), _where(train, chosen))


def _keep_per_class(train: Source, per_class: int, class_names: tuple[str, ...], seed: int) -> Source:
    labels = _labels(train)
    counts = np.bincount(labels, minlength=len(class_names))
    least = int(np.argmin(counts))
    if per_class < 0 or counts[least] < per_class:
        raise UserError(
            f'data.per_class={per_class}: class "{class_names[least]}" has {counts[least]} training records; choose at most that.'
        )
    return _where(train, sources.first_of_each(labels, per_class, sources.PER_CLASS, seed))


def _where(source: Source, chosen: np.ndarray) -> Source:
    known = getattr(source, "labels", None)
    return sources.subset(source, np.flatnonzero(chosen), None if known is None else known[chosen])
