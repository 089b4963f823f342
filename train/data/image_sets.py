"""Datasets of images by name: with a class for each image, or with a mask of classes; and of volumes, which are images of three axes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dilax.errors import UserError
from dilax.spec import DataSpec
from train.data import source as sources
from train.data.readers import cells, ellipsoids, images, mask_folders, masks, packaged, tfds, volumes
from train.data.source import Source
from train.data.splits import PER_CLASS, Splits, check_classes, first_of_each, hold_out
from train.keys import ON_BAD, OTHER, UNLIMITED, Key, Keys, Reads

LARGEST = 2**14  # side of images that are scaled, in pixels
# The config keys of all image sets, in addition to data.name, dir, validation, memory_mb and workers.
SHARED_KEYS: Keys = {
    "data.download": Key(True, "download and prepare a set of TFDS that is missing", may_change=True),
    "data.on_bad": ON_BAD,
    "data.mean": Key((), "mean of the colours, from 0 to 1, that is subtracted: one number, or one per channel; () is 0.5"),
    "data.std": Key(
        (), "standard deviation of the colours, by which they are then divided; () is 0.5: colours are from -1 to 1 with both ()"
    ),
}
# Those that `open_labelled` reads.
IMAGE_KEYS: Keys = {
    **SHARED_KEYS,
    "data.classes": Key((), "labels of the classes to keep, which are renumbered in this order; () keeps all", items=int),
    "data.per_class": Key(0, "training examples of each class to keep; 0 keeps all", (0, UNLIMITED)),
    "data.image_size": Key(0, "side that images are scaled and cropped to; 0 leaves them as they are", (0, LARGEST)),
}
# The same for `open_masked`.
MASK_KEYS: Keys = {
    **SHARED_KEYS,
    "data.image_size": Key(0, "longer side that images and masks are scaled to, then padded to a square; 0 leaves them", (0, LARGEST)),
    "data.image_field": Key("", 'image feature of a set of TFDS ("" is "image"), or folder of the images or volumes ("" is "images")'),
    "data.mask_field": Key(
        "", 'mask feature of a set of TFDS ("" is "segmentation_mask"), or folder of the masks ("" is "masks", of volumes "labels")'
    ),
    "data.mask_values": Key((), "value of each class in the masks, in order; all others are ignored; () is 0, 1, 2 and so on"),
    "data.class_names": Key((), "names of the classes; () takes those of the dataset, or numbers them as far as its masks go", items=str),
    "data.lists": Key("", "folder below data.dir of train.txt, validation.txt and test.txt, with the name of a file per line"),
    "data.intensities": Key(
        (), "the intensities of volumes that become black and white, such as (-100, 300); () takes percentiles 0.5 and 99.5 of each"
    ),
    "data.test": Key(0.2, "share of the volumes of a folder without splits that is the test split, whatever the seed", (0.001, 0.999)),
}
# The keys that one kind of labelled images, or of images with masks, reads and another may not.
IMAGE_READS: Reads = {"digits": (), "digits8x8": (), "folder": ("data.dir", "data.on_bad"), OTHER: ("data.dir", "data.download")}
_FOUND = ("data.dir", "data.image_field", "data.mask_field", "data.mask_values", "data.class_names")
_FILES, _IMAGES = (*_FOUND, "data.lists", "data.on_bad"), ("data.image_size",)
MASK_READS: Reads = {
    "cells": _IMAGES,
    "ellipsoids": (),
    "folder": (*_FILES, *_IMAGES),
    "volumes": (*_FILES, "data.intensities", "data.test"),
    OTHER: (*_FOUND, *_IMAGES, "data.download"),
}
VOLUMES = ("ellipsoids", "volumes")  # those of them that have three axes
_STRATIFIED = 100_000  # records up to which the validation split is stratified: TFDS has to read all images to know the labels


def open_labelled(data: ConfigDict, *, seed: int) -> Splits:
    """Open a dataset of images with one class each.

    What fits into `memory_mb` is decoded into memory here; the rest is decoded as it is read. The records are the same either way. The
    dataset's own validation split is used, unless data.validation is 0; if it has none, a share of each class of the training split is held
    out. Of more than 100,000 records, it is a share of each class only if `classes` or `per_class` is set.

    Args:
        data: The part `data` of a config: the keys name, dir, validation, memory_mb and those of `IMAGE_KEYS`.
        seed: Seed of the choice of the validation split, and of the records that data.per_class keeps.

    Returns: records {"image": uint8 (height, width, channels), "label": int32}.
    Raises: UserError: if the dataset is missing, or the keys do not fit it.
    """
    given: Any = data  # the values of a ConfigDict have no static types
    read, class_names, origin = _labelled_sources(given)
    opened = dict(read)
    hold_some = bool(given.validation) and "validation" not in opened
    chosen = bool(given.classes or given.per_class)
    stratify = chosen or len(opened["train"]) <= _STRATIFIED
    if not chosen:  # all is kept: decode first, and the labels come with the images
        opened = dict(zip(opened, _hold(list(opened.values()), given.memory_mb)))
    if chosen or (stratify and hold_some):
        opened["train"] = _with_labels(opened["train"])
    if given.classes:
        opened = {split: _keep_classes(source, given.classes, class_names) for split, source in opened.items()}
        class_names = tuple(class_names[label] for label in given.classes)
    check_classes(class_names, f"data.name={given.name!r}")
    if "validation" not in opened:
        labels = sources.field(opened["train"], "label") if stratify and hold_some else None
        opened["train"], validation = hold_out(opened["train"], given.validation, seed, labels)
        opened |= {} if validation is None else {"validation": validation}
    if given.per_class:
        opened["train"] = _keep_per_class(opened["train"], given.per_class, class_names, seed)
    return _splits(given, class_names, opened, origin)


def open_masked(data: ConfigDict, *, seed: int, ignored: int) -> Splits:
    """Open a dataset of images, or of volumes, with a mask of classes each.

    The dataset's own validation split is used, unless data.validation is 0; if it has none, a share of the training split is held out.

    Args:
        data: The part `data` of a config: the keys name, dir, validation, memory_mb and those of `MASK_KEYS`.
        seed: Seed of the choice of the validation split.
        ignored: Label of pixels that count neither in the loss nor in the metrics.

    Returns: records {"image": uint8 (height, width, channels), "label": uint8 (height, width)}; those of volumes have three axes of space,
        and the "spacing" of their voxels, float32 (3,), in millimetres.
    Raises: UserError: if the dataset is missing, the keys do not fit it, a mask does not fit its image or the classes, or a split has no
        pixel that counts. What is streamed is checked as it is read.
    """
    given: Any = data
    _check_mask_keys(given)
    read, class_names, origin = _masked_sources(given, ignored)
    opened = dict(read)
    check_classes(class_names, f"data.name={given.name!r}")
    if ignored < len(class_names):
        raise UserError(
            f"config.segmentation.ignored_label={ignored} is one of the {len(class_names)} classes; to leave a class out, "
            "list the values of the others in config.data.mask_values."
        )
    if given.validation == 0:
        opened.pop("validation", None)  # of data that comes with the code
    elif "validation" not in opened:
        opened["train"], validation = hold_out(opened["train"], given.validation, seed)
        opened |= {} if validation is None else {"validation": validation}
    splits = _splits(given, class_names, opened, origin)
    for name, split in (("training", splits.train), ("test", splits.test), ("validation", splits.validation)):
        if split is not None:
            masks.check_labelled(split, name, ignored)
    masks.check_present(splits.train, class_names, ignored)
    return splits


def _labelled_sources(data: Any) -> tuple[Mapping[str, Source], tuple[str, ...], str]:
    """Return {split: source}, the class names and the origin."""
    if data.name in ("digits", "digits8x8"):
        read = packaged.digits if data.name == "digits" else packaged.digits8x8
        return dict(zip(("train", "test"), read(data.image_size))), packaged.CLASS_NAMES, ""
    if data.name == "folder":
        return images.open_folder(data.dir, data.image_size, validation=bool(data.validation), on_bad=data.on_bad)
    if data.name == "cells":
        raise UserError('data.name="cells" has masks, not labels of whole images; set config.task="segmentation".')
    return tfds.open_tfds(data.name, data.dir, data.download, data.image_size, validation=bool(data.validation))


def _masked_sources(data: Any, ignored: int) -> tuple[Mapping[str, Source], tuple[str, ...], str]:
    """Return {split: source}, the class names and the origin."""
    if data.name == "cells":
        return cells.cells(data.image_size, ignored), cells.CLASS_NAMES, ""
    if data.name == "ellipsoids":
        return ellipsoids.ellipsoids(ignored), ellipsoids.CLASS_NAMES, "made-up ellipsoids"
    if data.name == "folder":
        return mask_folders.open_mask_folder(data, ignored)
    if data.name == "volumes":
        return volumes.open_volume_folder(data, ignored)
    if data.name in ("digits", "digits8x8"):
        raise UserError(f'data.name="{data.name}" has no masks to segment; use "cells", "folder", or a set of TFDS with masks.')
    return tfds.open_tfds_masks(data, ignored)


def _splits(data: Any, class_names: tuple[str, ...], opened: dict[str, Source], origin: str) -> Splits:
    """Return splits that are in memory if together they fit."""
    held = dict(zip(opened, _hold(list(opened.values()), data.memory_mb)))
    shape = held["train"][0]["image"].shape
    spec = DataSpec(data.name, shape, class_names, len(held["train"]), mean=tuple(data.mean), std=tuple(data.std))
    if data.name == "volumes":
        spec = dataclasses.replace(spec, intensities=tuple(map(float, data.intensities)))
    kinds = ("classes", "volumes" if data.name in VOLUMES else "images")
    return Splits(spec, held["train"], held.get("validation"), held["test"], origin, kinds)


def _hold(splits: list[Source], memory_mb: float) -> list[Source]:
    return [sources.hold(split) for split in splits] if sources.fits(splits, memory_mb) else splits


def _with_labels(source: Source) -> Source:
    """Return the source with its labels in memory, so that they are read only once."""
    if sources.in_memory(source):
        return source
    return sources.subset(source, np.arange(len(source)), {"label": sources.field(source, "label")})


def _keep_classes(source: Source, classes: tuple[int, ...], class_names: tuple[str, ...]) -> Source:
    if len(set(classes)) < len(classes) or not all(0 <= label < len(class_names) for label in classes):
        raise UserError(f"data.classes={tuple(classes)} must be different labels from 0 to {len(class_names) - 1}.")
    labels = sources.field(source, "label")
    new = np.full(len(class_names), -1, np.int32)
    new[list(classes)] = np.arange(len(classes))
    indices = np.flatnonzero(new[labels] >= 0)
    if len(indices) == 0:
        raise UserError(f"data.classes={tuple(classes)} leaves a split without records; choose other classes.")
    return sources.subset(source, indices, {"label": new[labels[indices]]})


def _keep_per_class(train: Source, per_class: int, class_names: tuple[str, ...], seed: int) -> Source:
    labels = sources.field(train, "label")
    counts = np.bincount(labels, minlength=len(class_names))
    least = int(np.argmin(counts))
    if per_class < 0 or counts[least] < per_class:
        raise UserError(
            f'data.per_class={per_class}: class "{class_names[least]}" has {counts[least]} training records; choose at most that many.'
        )
    return sources.subset(train, np.flatnonzero(first_of_each(labels, per_class, PER_CLASS, seed)))


def _check_mask_keys(data: Any) -> None:
    values, names = tuple(data.mask_values), tuple(data.class_names)
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"config.data.class_names names {twice[0]!r} twice; give each class a name of its own.")
    if not all(isinstance(value, int) for value in values):
        raise UserError(f"config.data.mask_values={values} must be whole numbers.")
    if len(set(values)) < len(values) or not all(0 <= value <= 255 for value in values):
        raise UserError(f"config.data.mask_values={values} must be different numbers from 0 to 255.")
    if values and data.class_names and len(values) != len(data.class_names):
        raise UserError(
            f"config.data.mask_values lists {len(values)} classes and config.data.class_names {len(data.class_names)}; "
            "give as many of one as of the other."
        )
