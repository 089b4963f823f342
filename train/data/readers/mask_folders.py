"""A folder of images and a folder of masks, matched by their file names without suffixes."""

import functools
import pathlib
from typing import Any

import numpy as np

from dilax.errors import UserError
from dilax.files import user_path
from train.data.readers.files import by_stem, intact
from train.data.readers.images import SUFFIXES, decode, image_channels
from train.data.readers.lists import read_lists
from train.data.readers.masks import MaskReader, decode_mask
from train.data.source import Lazy, Record, Source
from train.data.splits import divided, fixed_test, origin_of

Pairs = tuple[tuple[pathlib.Path, pathlib.Path], ...]  # files (image, mask)


def open_mask_folder(data: Any, ignored: int) -> tuple[dict[str, Source], tuple[str, ...], str]:
    """Return {split: source}, the class names and the origin of a folder of images and masks.

    `data.dir` has one of these layouts, in which `images` and `masks` stand for data.image_field and data.mask_field:
        train/images and train/masks, and the same below validation/ and test/;
        images and masks, and with data.lists a folder of train.txt, validation.txt and test.txt, with a file name per line, with or without
            suffix;
        images and masks alone, of which a fixed fifth is the test split.
    `train.data.splits.WORDS` lists the names of such folders and files. If there is no test split, the validation split is the test split.
    A mask is a grey or palette image of class numbers. Records are as those of `MaskReader.record`.

    Args:
        data: The part `data` of a config.
        ignored: Label of pixels that count neither in the loss nor in the metrics.

    Raises: UserError: if a folder, a file or a mask is missing, or the number of classes is not given and cannot be counted.
    """
    directory = user_path(data.dir)
    if not data.dir or not directory.is_dir():
        raise UserError(f'data.name="folder" needs data.dir to be a folder of images and masks; "{data.dir}" is not a folder.')
    names = (data.image_field or "images", data.mask_field or "masks")
    pairs, origin = _split_pairs(directory, names, data.lists, bool(data.validation))
    pairs = {split: tuple(intact(part, _decode_both, data.on_bad, f"images for {split}")) for split, part in pairs.items()}
    class_names = tuple(data.class_names) or _count_classes(pairs["train"], data.mask_values, ignored)
    reader = MaskReader(len(class_names), tuple(data.mask_values), ignored, data.image_size)
    channels = image_channels([image for split in pairs.values() for image, _ in split], data.image_size)
    sources: dict[str, Source] = {split: _source(files, directory, channels, reader) for split, files in pairs.items()}
    return sources, class_names, origin


def _decode_both(pair: tuple[pathlib.Path, pathlib.Path]) -> None:
    decode(pair[0], 3, 0)
    decode_mask(pair[1])


def _source(files: Pairs, directory: pathlib.Path, channels: int, reader: MaskReader) -> Lazy:
    names = tuple(str(image.relative_to(directory)) for image, _ in files)
    return Lazy(len(files), functools.partial(_read, files, channels, reader), files=names)


def _read(files: Pairs, channels: int, reader: MaskReader, indices: list[int]) -> list[Record]:
    return [_record(*files[index], channels, reader) for index in indices]


def _record(image_file: pathlib.Path, mask_file: pathlib.Path, channels: int, reader: MaskReader) -> Record:
    return reader.record(decode(image_file, channels, 0), decode_mask(mask_file), str(mask_file))


def _split_pairs(directory: pathlib.Path, names: tuple[str, str], lists: str, validation: bool) -> tuple[dict[str, Pairs], str]:
    """Return {split: pairs of files}, and the origin."""
    if lists:
        return _listed_pairs(directory, names, directory / user_path(lists), validation)
    folders = divided(directory, validation=validation)
    if folders:
        return {split: _pairs(folder, names) for split, folder in folders.items()}, origin_of(directory, folders)
    pairs = _pairs(directory, names)
    test = fixed_test(np.zeros(len(pairs), np.int32), directory, "images")
    parts = {split: tuple(pair for pair, held in zip(pairs, test) if held == (split == "test")) for split in ("train", "test")}
    return parts, origin_of(directory, {})


def _pairs(directory: pathlib.Path, names: tuple[str, str]) -> Pairs:
    """Return (image, mask) of every stem, which both folders must have."""
    images, masks = (_by_stem(directory / name) for name in names)
    for present, other, folder, what in ((images, masks, names[1], "mask"), (masks, images, names[0], "image")):
        missing = sorted(present.keys() - other.keys())
        if missing:
            raise UserError(
                f"{present[missing[0]]} has no {what} of the same name in {directory / folder} ({len(missing)} such files); "
                "add or remove it."
            )
    return tuple((images[stem], masks[stem]) for stem in sorted(images))


def _listed_pairs(directory: pathlib.Path, names: tuple[str, str], lists: pathlib.Path, validation: bool) -> tuple[dict[str, Pairs], str]:
    """Return the pairs that the files train.txt, validation.txt and test.txt name, and the origin."""
    images, masks = (_by_stem(directory / name) for name in names)

    def lacks(stem: str) -> pathlib.Path | None:
        return None if stem in images and stem in masks else directory / names[stem in images]

    stems, origin = read_lists(lists, lacks, validation=validation)
    pairs = {split: tuple((images[stem], masks[stem]) for stem in part) for split, part in stems.items()}
    return pairs, f"{directory}, lists {origin}"


def _by_stem(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    return by_stem(folder, SUFFIXES, "mask", hint="name the two folders in config.data.image_field and config.data.mask_field")


def _count_classes(pairs: Pairs, values: tuple[int, ...], ignored: int) -> tuple[str, ...]:
    """Return "class 0", "class 1", ...: one for each of `values`, or up to the highest number in the masks of the training split."""
    if values:
        return tuple(f"class {value}" for value in values)
    present = np.zeros(256, bool)
    for _, file in pairs:
        present[decode_mask(file)] = True
    numbers = np.flatnonzero(present).tolist()
    classes = [number for number in numbers if number != ignored]
    # The numbers of black and white masks, and of classes drawn as shades of grey, are not labels.
    if len(classes) < 2 or (len(classes) < 8 and classes[-1] >= 4 * len(classes)):
        raise UserError(
            f"the masks hold {', '.join(map(str, numbers[:8]))}, of which {ignored} is ignored: these are not the numbers of two or more "
            f"classes; list the values that are classes in config.data.mask_values, such as {tuple(numbers[:8])}."
        )
    return tuple(f"class {i}" for i in range(classes[-1] + 1))
