"""Images, sounds and texts, as files or in memory, prepared as models were trained on them."""

import contextlib
import functools
import io
import math
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import IO, Any

import jax
import numpy as np

from dilax.audio import log_mel
from dilax.errors import UserError, reason
from dilax.files import check_file
from dilax.sounds import check_samples, decode_sound, mixed_down, resample
from dilax.spec import MIDDLE_GREY

IMAGE_KINDS = "a PNG, JPEG or other image file"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP = {"F", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_PIXELS_PER_BYTE = 8 * 1032  # of 1 bit each, compressed as far as zlib can
_ALLOCATED = 2**26  # pixels of an image that may be blank, which some formats compress further
_ORIENTATION = 0x0112  # tag of EXIF, 1 to 8


def name_of(file: bytes | pathlib.Path) -> str:
    """Return what messages call an image."""
    return "an image of the dataset" if isinstance(file, bytes) else str(file)


@functools.cache
def _formats() -> list[str]:
    """Return the formats that PIL decodes itself. EPS is a program, which Ghostscript would run, whatever the name of the file."""
    from PIL import Image

    Image.init()
    return sorted(Image.OPEN.keys() - {"EPS"})


@contextlib.contextmanager
def open_image(file: bytes | pathlib.Path) -> Iterator[Any]:
    """Open an image file, or its bytes, with PIL; its pixels are decoded when they are used.

    Raises:
        UserError: if it is missing, not a regular file, or truncated, damaged or not an image.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(file, pathlib.Path):
        check_file(file, IMAGE_KINDS)
    stream: IO[bytes] | pathlib.Path = io.BytesIO(file) if isinstance(file, bytes) else file
    # PIL limits the pixels to protect servers; scans and aerial images have more.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # about metadata; damaged pixels are errors
            with Image.open(stream, formats=_formats()) as image:
                _check_size(image, name_of(file), len(file) if isinstance(file, bytes) else file.stat().st_size)
                yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{name_of(file)} cannot be read as an image: it is of another type, or damaged; give {IMAGE_KINDS}.") from error
    except MemoryError as error:
        raise UserError(f"{name_of(file)} has more pixels than fit into memory; scale it down, or cut it into pieces.") from error
    except Exception as error:  # PIL raises many kinds for damaged files
        raise UserError(f"{name_of(file)} cannot be read as an image ({reason(error)}); repair or remove it.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_size(image: Any, name: str, size: int) -> None:
    """Refuse an open image that claims more pixels than its `size` bytes can hold, before PIL allocates memory for them."""
    if image.width * image.height > max(_ALLOCATED, _PIXELS_PER_BYTE * size):
        raise UserError(
            f"{name} claims {image.width} x {image.height} pixels, more than its {size} bytes can hold: it is damaged; copy it again."
        )


def orientation(image: Any) -> int:
    """Return the EXIF orientation of an open image, 1 if it gives none."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except SyntaxError:  # what should be EXIF is something else
        return 1


def upright_image(image: Any) -> Any:
    """Return an open image turned as its EXIF orientation says."""
    from PIL import ImageOps

    image.load()
    return ImageOps.exif_transpose(image) if orientation(image) > 1 else image


def check_depth(image: Any, name: str) -> None:
    """Refuse an open image whose values would be cut off at 8 bits."""
    deep = image.mode in _DEEP
    for codec, _, _, options in getattr(image, "tile", [])[:1]:  # PIL gives the mode RGB to colours of 16 bits, too
        form, *more = options if isinstance(options, tuple) else (options,)
        deep |= ";16" in str(form) and not str(form).startswith("BGR;16")  # which has 16 bits for all channels together
        deep |= codec.startswith("ppm") and more[0] > 255
    if deep:
        raise UserError(f"{name} has more than 8 bits per channel, which would be cut off; save it with 8.")


def decode(file: bytes | pathlib.Path, channels: int) -> np.ndarray:
    """Decode an image file, or its bytes, as uint8 (height, width, channels); see `to_pixels`.

    Raises:
        UserError: if it cannot be read, or has more than 8 bits per channel.
    """
    with open_image(file) as image:
        return _converted(image, channels, name_of(file))


def to_pixels(image: Any, channels: int) -> np.ndarray:
    """Return an image as uint8 (height, width, channels).

    Args:
        image: A path, an image of PIL, or an array uint8 (height, width), (height, width, 1), (height, width, 3) or (height, width, 4).
        channels: 1 for grey, 3 for RGB, 4 for RGBA; the image is converted, turned upright as its EXIF orientation says and, unless RGBA is
            asked for, laid on white where it is transparent.

    Raises:
        UserError: if it is none of these, or the file cannot be read.
    """
    if channels not in _MODES:
        raise UserError(f"images of {channels} channels are not supported; use 1, 3 or 4.")
    if isinstance(image, str | os.PathLike):
        return decode(check_file(image, IMAGE_KINDS), channels)
    from PIL import Image

    if isinstance(image, Image.Image):
        return _converted(image, channels, "the image")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or 0 in pixels.shape:
        raise UserError(
            f"an image of shape {np.shape(image)} must be (height, width) or (height, width, channels), with 1, 3 or 4 channels."
        )
    if pixels.dtype != np.uint8:
        raise UserError(f"an image of dtype {pixels.dtype} must be uint8, from 0 to 255; colours from 0 to 1 are multiplied by 255 first.")
    if pixels.shape[-1] == channels:
        return pixels
    return _converted(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), channels, "the image")


def to_colours(image: Any) -> np.ndarray:
    """Return an image as uint8 (height, width, 3), or (height, width, 1) if it is grey; arguments and errors as those of `to_pixels`."""
    pixels = to_pixels(image, 3)
    return pixels[..., :1] if (pixels == pixels[..., :1]).all() else pixels


def _converted(image: Any, channels: int, name: str) -> np.ndarray:
    """Convert an open image: upright, and on white where it is transparent, unless it is asked for as RGBA."""
    from PIL import Image

    check_depth(image, name)
    upright = upright_image(image)
    if channels < 4 and upright.has_transparency_data:
        ground = Image.new("RGBA", upright.size, "white")
        ground.alpha_composite(upright.convert("RGBA"))
        upright = ground
    pixels = np.asarray(upright if upright.mode == _MODES[channels] else upright.convert(_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def resize_pixels(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image, uint8 (old height, old width, channels), bilinearly to uint8 (height, width, channels), as PIL does."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    channels = image.shape[-1]
    resized = Image.fromarray(image[..., 0] if channels == 1 else image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(height, width, channels)


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale an image, uint8 (old height, old width, channels), until it covers (height, width), and crop the centre."""
    old_height, old_width, _ = image.shape
    if (old_height, old_width) == (height, width):
        return image
    scale = max(height / old_height, width / old_width)
    tall, wide = max(height, round(old_height * scale)), max(width, round(old_width * scale))
    top, left = (tall - height) // 2, (wide - width) // 2
    return resize_pixels(image, tall, wide)[top : top + height, left : left + width]


def scaled_size(shape: Sequence[int], size: int) -> tuple[int, int]:
    """Return (height, width), scaled so that the longer of them is `size`."""
    height, width = (max(1, round(n * size / max(shape))) for n in shape)
    return height, width


def inner_size(shape: Sequence[int], height: int, width: int, *, stretch: bool = False) -> tuple[int, int]:
    """Return (height, width), scaled to the largest size that lies inside of another, or with `stretch` to that very size."""
    scale = min(height / shape[0], width / shape[1])
    return (height, width) if stretch else (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))


def fit_inside(image: np.ndarray, height: int, width: int, *, stretch: bool = False) -> np.ndarray:
    """Scale an image, uint8 (old height, old width, channels), to its `inner_size`, and pad it below and on the right with grey."""
    tall, wide = inner_size(image.shape, height, width, stretch=stretch)
    resized = resize_pixels(image, tall, wide)
    return np.pad(resized, ((0, height - tall), (0, width - wide), (0, 0)), constant_values=MIDDLE_GREY)


def nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a mask (old height, old width) to (height, width); a new pixel takes the value of the old one that its centre is in."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(mask.shape, (height, width)))
    return mask[rows][:, columns]


def to_samples(sound: Any, rate: int | None, wanted: int) -> np.ndarray:
    """Return a sound as float32 (samples,) in -1..1, several channels being averaged and other sample rates converted.

    Args:
        sound: The path of a file that libsndfile reads, or an array of floats (samples,) or (samples, channels) in -1..1.
        rate: Samples per second of an array; None is `wanted`.
        wanted: Samples per second of the result.

    Raises:
        UserError: if it is neither, or the file cannot be read.
    """
    if isinstance(sound, str | os.PathLike):
        decoded = decode_sound(sound)
        return resample(str(sound), decoded.samples, decoded.rate, wanted)
    samples = np.asarray(sound)
    if samples.ndim not in (1, 2) or 0 in samples.shape or samples.dtype.kind != "f":
        raise UserError(f"a sound of shape {samples.shape} and dtype {samples.dtype} must be floats (samples,) or (samples, channels).")
    samples = samples.astype(np.float32)
    check_samples("a sound", samples if samples.ndim == 2 else samples[:, None], rate or wanted)
    return resample("a sound", mixed_down(samples) if samples.ndim == 2 else samples, rate or wanted, wanted)


def mel_frame(rate: int) -> tuple[int, int]:
    """Return the samples in a log-mel frame, 32 ms, and from one frame to the next, 10 ms."""
    return round(0.032 * rate), round(0.01 * rate)


def mel_frames(sounds: Sequence[np.ndarray], rate: int, bands: int) -> list[np.ndarray]:
    """Return the log-mel energies (frames, bands) of each sound (samples,), in frames of `mel_frame`; one frame if it is shorter."""
    window, hop = mel_frame(rate)
    # Silence after a sound does not change its own frames, so that one program serves for all.
    length = max(window, *map(len, sounds))
    counts = [1 + max(0, len(samples) - window) // hop for samples in sounds]
    padded = (np.pad(samples, (0, length - len(samples))) for samples in sounds)
    return [np.asarray(_log_mel(samples, rate, bands))[:count] for samples, count in zip(padded, counts)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _log_mel(samples: jax.Array, rate: int, bands: int) -> jax.Array:
    window, hop = mel_frame(rate)
    return log_mel(samples[None], rate, window=window, hop=hop, bands=bands)[0]


def square_side(pixels: int) -> int:
    """Return the side of a square image that is read pixel by pixel.

    Raises:
        UserError: if it is not a square.
    """
    side = math.isqrt(pixels)
    if side**2 != pixels:
        raise UserError(f"the run was trained on images of {pixels} pixels, which are not square: their height and width are not known.")
    return side


def encode(text: str, symbols: tuple[str, ...], units: str, *, name: str = "") -> np.ndarray:
    """Return the code of each character, or of each byte of the UTF-8 text, int32 (n,).

    Args:
        text: Any text.
        symbols: What each code stands for.
        units: "characters" or "bytes".
        name: What messages call the text; "" gives it no name.

    Raises:
        UserError: if a character is not in `symbols` or cannot be encoded as UTF-8.

    Example:
        >>> encode("nab", ("a", "b", "n"), "characters").tolist()
        [2, 0, 1]
    """
    if units == "bytes":
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    known = np.array([ord(symbol) for symbol in symbols], np.uint32)
    order = np.argsort(known)
    indices = order[np.minimum(np.searchsorted(known[order], points), len(known) - 1)]
    missing = np.flatnonzero(known[indices] != points)
    if len(missing):
        at = int(missing[0])
        some = "".join(symbols[:40]) + ("..." if len(symbols) > 40 else "")
        raise UserError(
            f"{name}{': ' * bool(name)}character {text[at]!a} at position {at} is not in the vocabulary of {len(symbols)} characters, "
            f"{some!a}; "
            'remove it, or train with units "bytes", which cover every character.'
        )
    return indices.astype(np.int32)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = text[error.start]
        raise UserError(f"character {bad!a} at position {error.start} cannot be encoded as UTF-8; remove it.") from error


def decode_text(codes: np.ndarray, symbols: tuple[str, ...], units: str) -> str:
    """Return the text of codes, integers (n,); bytes that are not UTF-8 become U+FFFD.

    Raises:
        UserError: if a code is negative or not less than the number of symbols.

    Example:
        >>> decode_text(np.array([206, 177]), tuple(map(str, range(256))), "bytes")
        'α'
    """
    codes = np.asarray(codes)
    outside = codes[(codes < 0) | (codes >= len(symbols))]
    if len(outside):
        raise UserError(f"code {outside[0]} is not in the vocabulary of {len(symbols)} symbols; give codes 0 to {len(symbols) - 1}.")
    if units == "bytes":
        return bytes(codes.tolist()).decode("utf-8", errors="replace")
    return "".join(symbols[code] for code in codes.tolist())
