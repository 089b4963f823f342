"""Image files, and folders of them with a sub-folder for each class."""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from dilax import inputs
from dilax.errors import UserError
from dilax.inputs import check_depth, naming
from train.data.readers.files import Labelled, labelled_splits
from train.data.source import Lazy, Record, check_shapes

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_GREY = {"1", "L", "LA"}


def open_folder(data_dir: str, image_size: int) -> tuple[Lazy, Lazy, tuple[str, ...]]:
    """Return training split, test split and class names of a folder of images.

    `train.data.readers.files.labelled_splits` describes the folder. The name of a class is that of its sub-folder; classes are sorted.
    Images are grey if all of them are, else RGB. Records are {"image": uint8 (height, width, channels), "label": int32}.

    Raises: UserError: if a folder is missing or empty, the classes of the splits differ, or a file is not an image.
    """
    directory = pathlib.Path(data_dir).expanduser()
    if not data_dir or not directory.is_dir():
        raise UserError(f'data.name="folder" needs data.dir to be a folder of images; "{data_dir}" is not a folder.')
    train, test = labelled_splits(directory, SUFFIXES)
    class_names = tuple(sorted({label for _, label in [*train, *test]}))
    channels = image_channels([path for path, _ in [*train, *test]], image_size)
    train_source, test_source = (_source(split, directory, class_names, channels, image_size) for split in (train, test))
    return train_source, test_source, class_names


def _source(labelled: Labelled, directory: pathlib.Path, class_names: tuple[str, ...], channels: int, image_size: int) -> Lazy:
    codes = {name: code for code, name in enumerate(class_names)}
    labels = np.array([codes[name] for _, name in labelled], np.int32)
    files = tuple(path for path, _ in labelled)
    names = tuple(str(path.relative_to(directory)) for path in files)
    return Lazy(len(files), functools.partial(_read, files, labels, channels, image_size), {"label": labels}, names)


def _read(files: tuple[pathlib.Path, ...], labels: np.ndarray, channels: int, image_size: int, indices: list[int]) -> list[Record]:
    return [{"image": read_image(files[index], channels, image_size), "label": labels[index]} for index in indices]


def read_image(file: pathlib.Path, channels: int, image_size: int) -> np.ndarray:
    """Decode an image file as `decode`; a UserError names a file that is not an image."""
    with naming(file):
        return decode(file, channels, image_size)


def decode(file: bytes | pathlib.Path, channels: int, image_size: int) -> np.ndarray:
    """Decode an image.

    Args:
        file: An image file, or its bytes.
        channels: 1 for grey, 3 for RGB, 4 for RGBA; the image is converted.
        image_size: Side of the square that `fit` fits the image to; 0 leaves it as it is.

    Returns: uint8 (height, width, channels).
    Raises: UserError: if the image has more than 8 bits per channel.
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
    """Return 1 if all image files are grey, else 3.

    Raises:
        UserError: if a file is not an image, or images differ in size and `image_size` is 0.
    """
    headers = map(_header, files)
    if image_size:
        return 1 if all(grey for grey, _ in headers) else 3  # stops at the first colour image
    grey, sizes = zip(*headers, strict=True)
    check_shapes("image", set(sizes))
    return 1 if all(grey) else 3


def _header(file: pathlib.Path) -> tuple[bool, tuple[int, int]]:
    """Return whether the image is grey, and (height, width)."""
    from PIL import Image

    with naming(file), Image.open(file) as image:
        check_depth(image, file)
        return image.mode in _GREY, (image.height, image.width)
