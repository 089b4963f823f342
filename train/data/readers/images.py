"""Image files, and folders of them with a sub-folder for each class."""

import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dilax import inputs
from dilax.errors import UserError
from dilax.files import user_path
from dilax.inputs import check_depth, open_image, orientation
from train.data.readers.files import Labelled, intact_labelled, labelled_splits
from train.data.source import Lazy, Record, check_shapes
from train.data.splits import class_order

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_GREY = {"1", "L", "LA"}
_ANIMATED = {"GIF", "PNG", "TIFF", "WEBP"}  # the further pictures of an MPO, as cameras write it, are previews


def open_folder(
    data_dir: str, image_size: int, *, validation: bool = True, on_bad: str = "refuse"
) -> tuple[dict[str, Lazy], tuple[str, ...], str]:
    """Return {split: records}, the class names and the origin of a folder of images.

    `train.data.readers.files.labelled_splits` describes the folder. The name of a class is that of its sub-folder; `class_order` sorts
    them. Images are grey if all of them are, else RGB. Records are {"image": uint8 (height, width, channels), "label": int32}.

    Raises: UserError: if a folder is missing or empty, the classes of the splits differ, or a file is not an image.
    """
    directory = user_path(data_dir)
    if not data_dir or not directory.is_dir():
        raise UserError(f'data.name="folder" needs data.dir to be a folder of images; "{data_dir}" is not a folder.')
    parts, origin = labelled_splits(directory, SUFFIXES, validation=validation)
    parts = intact_labelled(parts, lambda file: decode(file, 3, 0), on_bad, "images")
    class_names = class_order(label for _, label in parts["train"])
    channels = image_channels([path for part in parts.values() for path, _ in part], image_size)
    return {split: _source(part, directory, class_names, channels, image_size) for split, part in parts.items()}, class_names, origin


def _source(labelled: Labelled, directory: pathlib.Path, class_names: tuple[str, ...], channels: int, image_size: int) -> Lazy:
    codes = {name: code for code, name in enumerate(class_names)}
    labels = np.array([codes[name] for _, name in labelled], np.int32)
    files = tuple(path for path, _ in labelled)
    names = tuple(str(path.relative_to(directory)) for path in files)
    return Lazy(len(files), functools.partial(_read, files, labels, channels, image_size), {"label": labels}, names)


def _read(files: tuple[pathlib.Path, ...], labels: np.ndarray, channels: int, image_size: int, indices: list[int]) -> list[Record]:
    return [{"image": decode(files[index], channels, image_size), "label": labels[index]} for index in indices]


def decode(file: bytes | pathlib.Path, channels: int, image_size: int) -> np.ndarray:
    """Decode an image: upright, as its EXIF orientation says, and on white where it is transparent, unless it is asked for as RGBA.

    Args:
        file: An image file, or its bytes.
        channels: 1 for grey, 3 for RGB, 4 for RGBA; the image is converted.
        image_size: Side of the square that `fit` fits the image to; 0 leaves it as it is.

    Returns: uint8 (height, width, channels).
    Raises: UserError: if it cannot be read, or has more than 8 bits per channel.
    """
    pixels = inputs.decode(file, channels)
    return fit(pixels, image_size)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Scale the shorter side of an image to `size` and crop the centre.

    Args:
        image: uint8 (height, width, channels).
        size: Side of the result; 0 returns the image as it is.

    Returns: uint8 (size, size, channels), scaled bilinearly.
    """
    return inputs.fit(image, size, size) if size else image


def image_channels(files: Sequence[pathlib.Path], image_size: int) -> int:
    """Return 1 if all image files are grey, else 3; lines on stderr count those that are transparent, or of which a part is read.

    Raises:
        UserError: if a file is not an image or has more than 8 bits per channel, or images differ in size and `image_size` is 0.
    """
    headers = read_headers(files)
    if not image_size:
        check_shapes("image", {header.size for header in headers})
    return 1 if all(header.grey for header in headers) else 3


def read_headers(files: Sequence[pathlib.Path]) -> list["Header"]:
    """Return what is known of each image before its pixels are decoded; lines and errors as those of `image_channels`."""
    headers = list(map(_header, files))
    for count, what in (
        (sum(header.transparent for header in headers), "have an alpha channel: where they are transparent, they are laid on white"),
        (sum(header.animated for header in headers), "hold several pictures, of which the first is read"),
    ):
        if count:
            print(f"note: {count} of {len(files)} images {what}.", file=sys.stderr)
    return headers


class Header(NamedTuple):
    """What is known of an image before its pixels are decoded; its size is (height, width)."""

    grey: bool
    size: tuple[int, int]
    transparent: bool
    animated: bool


def _header(file: pathlib.Path) -> Header:
    with open_image(file) as image:
        check_depth(image, str(file))
        # PIL decodes the whole of a PNG to look for an orientation after its pixels. It swaps the sides of a TIFF itself.
        known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        turned = known and orientation(image) >= 5  # these swap the sides
        animated = image.format in _ANIMATED and getattr(image, "is_animated", False)
        size = (image.width, image.height) if turned else (image.height, image.width)
        return Header(image.mode in _GREY, size, image.has_transparency_data, animated)
