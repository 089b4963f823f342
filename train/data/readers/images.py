"""Image files, and folders of them with a sub-folder for each class."""

import contextlib
import functools
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from dilax.errors import UserError
from train.data.readers.files import Labelled, labelled_splits
from train.data.source import Lazy, Record, check_shapes

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY = {"1", "L", "LA"}
_DEEP = {"F", "I", "I;16", "I;16B", "I;16L", "I;16N"}


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
    from PIL import Image

    stream: IO[bytes] | pathlib.Path = io.BytesIO(file) if isinstance(file, bytes) else file
    with Image.open(stream) as opened:
        _check_depth(opened, file if isinstance(file, pathlib.Path) else "an image")
        image = opened if opened.mode == _MODES[channels] else opened.convert(_MODES[channels])
        pixels = np.asarray(image)
    return fit(pixels.reshape(*pixels.shape[:2], channels), image_size)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Scale the shorter side of an image to `size` and crop the centre.

    Args:
        image: uint8 (height, width, channels).
        size: Side of the result; 0 returns the image as it is.

    Returns: uint8 (size, size, channels), scaled bilinearly.
    """
    height, width, _ = image.shape
    if size == 0 or height == width == size:
        return image
    scale = size / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    top, left = (height - size) // 2, (width - size) // 2
    return resize(image, height, width)[top : top + size, left : left + size]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image, uint8 (old height, old width, channels), bilinearly to uint8 (height, width, channels)."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    channels = image.shape[-1]
    resized = Image.fromarray(image[..., 0] if channels == 1 else image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(height, width, channels)


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
        _check_depth(image, file)
        return image.mode in _GREY, (image.height, image.width)


def _check_depth(image: Any, name: object) -> None:
    """Refuse an open image whose values would be cut off at 8 bits."""
    if image.mode in _DEEP:
        raise UserError(f"{name} has more than 8 bits per channel, which would be cut off; save it with 8.")


@contextlib.contextmanager
def naming(file: pathlib.Path) -> Iterator[None]:
    """Turn what PIL raises for a truncated or foreign file into a UserError that names it."""
    from PIL import Image

    try:
        yield
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} cannot be read as an image ({reason}); repair or remove it.") from error
