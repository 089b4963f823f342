"""A folder of images and a folder of masks, matched by their file names without suffixes."""

import functools
import pathlib
from typing import Any

from dilax.errors import UserError
from dilax.files import user_path
from train.data.readers.files import intact
from train.data.readers.images import SUFFIXES, decode, image_channels
from train.data.readers.masks import MaskReader, count_classes, decode_mask
from train.data.readers.pairs import Layout, Pairs, split_pairs
from train.data.source import Lazy, Record, Source


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
    pairs, origin = split_pairs(directory, Layout(names, SUFFIXES, lists=data.lists, validation=bool(data.validation)))
    pairs = {split: tuple(intact(part, _decode_both, data.on_bad, f"images for {split}")) for split, part in pairs.items()}
    class_names = tuple(data.class_names) or count_classes((decode_mask(file) for _, file in pairs["train"]), data.mask_values, ignored)
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
