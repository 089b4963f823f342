"""Image files, and folders of them with a sub-folder for each class."""

import contextlib
import functools
import io
import pathlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from dilax.errors import UserError
from train.data.readers.files import Labelled, check_file, labelled_splits, user_path
from train.data.source import Lazy, Record, check_shapes
from train.data.splits import class_order

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY = {"1", "L", "LA"}
_DEEP = {"F", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_ANIMATED = {"GIF", "PNG", "TIFF", "WEBP"}  # the further pictures of an MPO, as cameras write it, are previews
_ORIENTATION = 0x0112  # tag of EXIF, 1 to 8


def open_folder(data_dir: str, image_size: int, *, validation: bool = True) -> tuple[dict[str, Lazy], tuple[str, ...], str]:
    """Return {split: records}, the class names and the origin of a folder of images.

    `train.data.readers.files.labelled_splits` describes the folder. The name of a class is that of its sub-folder; `class_order` sorts
    them. Images are grey if all of them are, else RGB. Records are {"image": uint8 (height, width, channels), "label": int32}.

    Raises: UserError: if a folder is missing or empty, the classes of the splits differ, or a file is not an image.
    """
    directory = user_path(data_dir)
    if not data_dir or not directory.is_dir():
        raise UserError(f'data.name="folder" needs data.dir to be a folder of images; "{data_dir}" is not a folder.')
    parts, origin = labelled_splits(directory, SUFFIXES, validation=validation)
    class_names = class_order(label for _, label in parts["train"])
    channels = image_channels([path for part in parts.values() for path, _ in part], image_size)
    return {split: _source(part, class_names, channels, image_size) for split, part in parts.items()}, class_names, origin


def _source(labelled: Labelled, class_names: tuple[str, ...], channels: int, image_size: int) -> Lazy:
    codes = {name: code for code, name in enumerate(class_names)}
    labels = np.array([codes[name] for _, name in labelled], np.int32)
    files = tuple(path for path, _ in labelled)
    return Lazy(len(files), functools.partial(_read, files, labels, channels, image_size), {"label": labels})


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
    from PIL import Image

    with open_image(file) as image:
        _check_depth(image, name_of(file))
        upright = upright_image(image)
        if channels < 4 and upright.has_transparency_data:
            ground = Image.new("RGBA", upright.size, "white")
            ground.alpha_composite(upright.convert("RGBA"))
            upright = ground
        pixels = np.asarray(upright if upright.mode == _MODES[channels] else upright.convert(_MODES[channels]))
    return fit(pixels.reshape(*pixels.shape[:2], channels), image_size)


def name_of(file: bytes | pathlib.Path) -> str:
    """Return what messages call an image."""
    return "an image of the dataset" if isinstance(file, bytes) else str(file)


@contextlib.contextmanager
def open_image(file: bytes | pathlib.Path) -> Iterator[Any]:
    """Open an image file, or its bytes, with PIL; its pixels are decoded when they are used.

    Raises:
        UserError: if it is missing, not a regular file, or truncated, damaged or not an image.
    """
    from PIL import Image

    if isinstance(file, pathlib.Path):
        check_file(file, "an image file")
    stream: IO[bytes] | pathlib.Path = io.BytesIO(file) if isinstance(file, bytes) else file
    # PIL limits the pixels to protect servers; scans and aerial images have more.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # about metadata; damaged pixels are errors
            with Image.open(stream) as image:
                yield image
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{name_of(file)} has more pixels than fit into memory; scale it down, or cut it into pieces.") from error
    except Exception as error:  # PIL raises many kinds for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name_of(file)} cannot be read as an image ({reason}); repair or remove it.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def upright_image(image: Any) -> Any:
    """Return an open image turned as its EXIF orientation says."""
    from PIL import ImageOps

    image.load()
    return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image


def _orientation(image: Any) -> int:
    """Return the EXIF orientation of an open image, 1 if it gives none."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except SyntaxError:  # what should be EXIF is something else
        return 1


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
    """Return 1 if all image files are grey, else 3; lines on stderr count those that are transparent, or of which a part is read.

    Raises:
        UserError: if a file is not an image or has more than 8 bits per channel, or images differ in size and `image_size` is 0.
    """
    headers = list(map(_header, files))
    if not image_size:
        check_shapes("image", {header.size for header in headers})
    for count, what in (
        (sum(header.transparent for header in headers), "have an alpha channel: where they are transparent, they are laid on white"),
        (sum(header.animated for header in headers), "hold several pictures, of which the first is read"),
    ):
        if count:
            print(f"note: {count} of {len(files)} images {what}.", file=sys.stderr)
    return 1 if all(header.grey for header in headers) else 3


class _Header(NamedTuple):
    """What is known of an image before its pixels are decoded; its size is (height, width)."""

    grey: bool
    size: tuple[int, int]
    transparent: bool
    animated: bool


def _header(file: pathlib.Path) -> _Header:
    with open_image(file) as image:
        _check_depth(image, str(file))
        # PIL decodes the whole of a PNG to look for an orientation after its pixels. It swaps the sides of a TIFF itself.
        known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        turned = known and _orientation(image) >= 5  # these swap the sides
        animated = image.format in _ANIMATED and getattr(image, "is_animated", False)
        size = (image.width, image.height) if turned else (image.height, image.width)
        return _Header(image.mode in _GREY, size, image.has_transparency_data, animated)


def _check_depth(image: Any, name: str) -> None:
    """Refuse an open image whose values would be cut off at 8 bits."""
    deep = image.mode in _DEEP
    for codec, _, _, options in image.tile[:1]:  # PIL gives the mode RGB to colours of 16 bits, too
        form, *more = options if isinstance(options, tuple) else (options,)
        deep |= ";16" in str(form) and not str(form).startswith("BGR;16")  # which has 16 bits for all channels together
        deep |= codec.startswith("ppm") and more[0] > 255
    if deep:
        raise UserError(f"{name} has more than 8 bits per channel, which would be cut off; save it with 8.")
