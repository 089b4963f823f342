"""Datasets of images by name, with boxes of the objects in each."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dilax.errors import UserError
from dilax.files import user_path
from dilax.spec import DataSpec
from train.data import source as sources
from train.data.image_sets import SHARED_KEYS
from train.data.readers import coco, shapes, tfds, voc
from train.data.readers.boxes import BoxReader, Marked, Objects, check_classes, inside, largest_count
from train.data.readers.files import intact
from train.data.readers.images import decode, image_channels
from train.data.source import Lazy, Record, Source
from train.data.splits import Splits, class_order, hold_out
from train.keys import OTHER, Key, Keys, Reads

# The config keys that `open_boxed` reads, in addition to data.name, dir, validation, memory_mb and workers.
BOX_KEYS: Keys = {
    **SHARED_KEYS,
    "data.image_shape": Key((), "(height, width) in pixels that images are scaled to; () leaves them as they are", items=int),
    "data.keep_aspect": Key(True, "scale images as far as they fit into that size and pad the rest; false stretches them to it"),
    "data.class_names": Key((), "names of the classes in order; () takes those of the boxes for training", items=str),
    "data.lists": Key("", 'folder below data.dir of train.txt, val.txt and test.txt, a file name per line; "" is ImageSets/Main'),
}
_FILES = ("data.dir", "data.on_bad")
BOX_READS: Reads = {
    "shapes": (),
    "voc_xml": (*_FILES, "data.lists", "data.class_names"),
    "coco_json": _FILES,
    OTHER: ("data.dir", "data.download"),
}
_SMALLEST = 16  # side of an image in pixels


def open_boxed(data: ConfigDict, *, seed: int) -> Splits:
    """Open a dataset of images with boxes.

    The dataset's own validation split is used, unless data.validation is 0; if it has none, a share of the training split is held out.
    Every record has room for as many boxes as the image with the most of them has, in whatever split it is.

    Args:
        data: The part `data` of a config: the keys name, dir, validation, memory_mb and those of `BOX_KEYS`.
        seed: Seed of the choice of the validation split.

    Returns: records as those of `train.data.readers.boxes.BoxReader.record`.
    Raises: UserError: if the dataset is missing or malformed, or the keys do not fit it. Images that are streamed are checked as they are
        read.
    """
    given: Any = data  # the values of a ConfigDict have no static types
    _check_shape(given.image_shape)
    marked, class_names, origin = _marked(given)
    objects = inside({split: part.objects for split, part in marked.items()})
    check_classes(objects, class_names)
    reader = BoxReader(class_names, largest_count(objects), tuple(given.image_shape), not given.keep_aspect)
    opened: dict[str, Source] = {split: _source(part, objects[split], reader) for split, part in marked.items()}
    if given.validation == 0:
        opened.pop("validation", None)  # that of the shapes
    elif "validation" not in opened:
        opened["train"], validation = hold_out(opened["train"], given.validation, seed)
        opened |= {} if validation is None else {"validation": validation}
    for split, source in opened.items():
        if not (sources.field(source, "box_mask") & ~sources.field(source, "crowd")).any():
            raise UserError(f"data: the {split} split has no box that counts in its {len(source)} images; mark the objects in some.")
    if sources.fits(list(opened.values()), given.memory_mb):
        opened = {split: sources.hold(source) for split, source in opened.items()}
    shape, mean, std = opened["train"][0]["image"].shape, tuple(given.mean), tuple(given.std)
    spec = DataSpec(given.name, shape, class_names, len(opened["train"]), mean=mean, std=std, stretched=reader.stretch)
    return Splits(spec, opened["train"], opened.get("validation"), opened["test"], origin)


def count_training(data: ConfigDict) -> tuple[int, bool]:
    """Return the number of images for training in a folder, and whether it has a validation split of its own; arguments as `open_boxed`."""
    given: Any = data
    pairs, *_ = _read_files(given)
    return len(pairs["train"]), "validation" in pairs


def _marked(data: Any) -> tuple[dict[str, Marked], tuple[str, ...], str]:
    """Return {split: images with their objects}, the class names and the origin."""
    if data.name == "shapes":
        return {split: _drawn(*shapes.shapes(split)) for split in shapes.IMAGES}, shapes.CLASS_NAMES, "shapes, which are made up"
    if data.name not in ("voc_xml", "coco_json"):
        return tfds.open_tfds_boxes(data)
    pairs, class_names, origin = _read_files(data)
    pairs = {split: intact(part, lambda pair: decode(pair[0], 3, 0), data.on_bad, f"images for {split}") for split, part in pairs.items()}
    channels = image_channels([file for part in pairs.values() for file, _ in part], bool(data.image_shape))
    return {split: _of_files(part, user_path(data.dir), channels) for split, part in pairs.items()}, class_names, origin


def _read_files(data: Any) -> tuple[dict[str, voc.Pairs], tuple[str, ...], str]:
    """Return {split: image files with their objects}, the class names and the origin."""
    directory = user_path(data.dir)
    if not data.dir or not directory.is_dir():
        raise UserError(f'data.name="{data.name}" needs data.dir to be a folder of images and boxes; "{data.dir}" is not a folder.')
    if data.name == "coco_json":
        return coco.read_coco(directory, validation=bool(data.validation))
    pairs, origin = voc.read_voc(directory, data.lists, validation=bool(data.validation))
    return pairs, tuple(data.class_names) or class_order(name for _, one in pairs["train"] for name in one.names), origin


def _of_files(pairs: Sequence[tuple[pathlib.Path, Objects]], directory: pathlib.Path, channels: int) -> Marked:
    files = tuple(file for file, _ in pairs)
    names = tuple(str(file.relative_to(directory)) for file in files)
    return Marked([one for _, one in pairs], functools.partial(_decode_files, files, channels), names)


def _decode_files(files: tuple[pathlib.Path, ...], channels: int, indices: list[int]) -> list[np.ndarray]:
    return [decode(files[index], channels, 0) for index in indices]


def _drawn(images: np.ndarray, objects: Sequence[Objects]) -> Marked:
    return Marked(objects, functools.partial(_take, images), ())


def _take(images: np.ndarray, indices: list[int]) -> list[np.ndarray]:
    return list(images[indices])


def _source(marked: Marked, objects: Sequence[Objects], reader: BoxReader) -> Lazy:
    """Return the records of a split, whose boxes are known without decoding its images."""
    rows = [reader.fields(one) for one in objects]
    fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Lazy(len(rows), functools.partial(_read, marked.read, objects, reader), fields, marked.files)


def _read(images: Any, objects: Sequence[Objects], reader: BoxReader, indices: list[int]) -> list[Record]:
    return [reader.record(image, objects[index]) for index, image in zip(indices, images(indices), strict=True)]


def _check_shape(shape: Any) -> None:
    if len(shape) not in (0, 2) or any(side < _SMALLEST for side in shape):
        raise UserError(f"config.data.image_shape={tuple(shape)} must be (height, width), each {_SMALLEST} pixels or more, or ().")
