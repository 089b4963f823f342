"""Images of any size as windows of one size, each with the part of its image that it is scored on: together they cover every pixel once.

A window is larger than that part by a margin of what a network and a metric see beyond it, except where it ends with the image. So the
scores of all windows of an image, added up, are those of the whole image.
"""

import dataclasses
import functools
import itertools
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from dilax import UserError
from train.data.readers.images import decode
from train.data.source import Lazy, Record, Source, fits, hold


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image file, or some of its columns.

    Attributes:
        file: The file.
        name: What messages and reports call it.
        size: Height and width.
        first: The first column.
    """

    file: pathlib.Path
    name: str
    size: tuple[int, int]
    first: int = 0


@dataclasses.dataclass(frozen=True)
class Cut:
    """How images are cut into windows.

    Attributes:
        window: Side of the windows.
        margin: Pixels around what a window is scored on.
        grid: Images are cut to multiples of it, and windows begin at multiples of it.
        channels: 1 for grey, 3 for RGB.
    """

    window: int
    margin: int
    grid: int
    channels: int


def trimmed(size: Sequence[int], grid: int) -> tuple[int, int]:
    """Return the first two of some sizes, height and width, without the rows and columns that do not fill a square of the grid."""
    height, width = (side // grid * grid for side in size[:2])
    return height, width


def window_side(pictures: Sequence[Picture], wanted: int, most: int, cut_grid: int, margin: int) -> int:
    """Return the side of windows that fit into all images and hold a margin on both sides.

    Args:
        pictures: All images.
        wanted: The side that is asked for; 0 leaves it to this function.
        most: The side if the images allow it and none is asked for.
        cut_grid: See `Cut.grid`.
        margin: See `Cut.margin`.

    Raises:
        UserError: if there is none.
    """
    smallest = min(pictures, key=lambda picture: min(picture.size))
    least = min(trimmed(smallest.size, cut_grid))
    side = trimmed((wanted or min(least, most),) * 2, cut_grid)[0]
    words = f"{smallest.name} has {smallest.size[0]} x {smallest.size[1]} pixels"
    if side > least:
        raise UserError(f"config.restoration.window={wanted} is larger than the smallest image: {words}; choose at most {least}.")
    needed = 2 * margin + cut_grid
    if side < needed and any(max(trimmed(picture.size, cut_grid)) > side for picture in pictures):
        if wanted:
            raise UserError(
                f"config.restoration.window={wanted} leaves nothing to score beside {margin} pixels of context on either side; "
                f"choose {needed} or more."
            )
        raise UserError(
            f"{words}, and images are scored in windows of one size, of at least {needed} for this model; leave that image out, or "
            "choose a model that sees less."
        )
    return side


def cut_images(pictures: Sequence[Picture], cut: Cut, memory_mb: float) -> Source:
    """Return the windows of images as a source: in memory if they fit into `memory_mb` MiB, else read from the files as they are used.

    Records are {"image": uint8 (window, window, channels), and as int32 "number": that of the image, "seed": what follows from its pixels,
    "place": row and column of the upper left pixel, "size": height and width of the image, "kept": the rows and columns that are scored,
    from and to}.
    """
    chosen = [
        (number, place, kept) for number, picture in enumerate(pictures) for place, kept in _windows(trimmed(picture.size, cut.grid), cut)
    ]
    numbers = np.array([number for number, _, _ in chosen], np.int32)
    fields = {
        "number": numbers,
        "place": np.array([place for _, place, _ in chosen], np.int32),
        "size": np.array([trimmed(pictures[number].size, cut.grid) for number in numbers], np.int32),
        "kept": np.array([kept for _, _, kept in chosen], np.int32),
    }
    names = tuple(pictures[number].name for number in numbers)
    source = Lazy(len(chosen), functools.partial(_read, tuple(pictures), cut, fields), fields, names)
    return hold(source) if fits([source], memory_mb) else source


def _windows(size: tuple[int, int], cut: Cut) -> list[tuple[tuple[int, int], tuple[int, int, int, int]]]:
    """Return the place of each window of an image, and which rows and columns of the image it is scored on."""
    rows, columns = (_along(length, cut) for length in size)
    return [((top, left), (*tall, *wide)) for top, tall in rows for left, wide in columns]


def _along(length: int, cut: Cut) -> list[tuple[int, tuple[int, int]]]:
    """Return the first pixel of each window along an axis, and from where to where it is scored: to the middle of what two share."""
    free = length - cut.window
    step = max(1, (cut.window - 2 * cut.margin) // cut.grid) * cut.grid
    count = -(-free // step) + 1
    starts = [i * free // max(1, count - 1) // cut.grid * cut.grid for i in range(count)]
    edges = [0, *((first + cut.window + second) // 2 for first, second in itertools.pairwise(starts)), length]
    return list(zip(starts, itertools.pairwise(edges)))


@functools.lru_cache(maxsize=4)  # an image is read once for its windows where they follow each other, as in evaluation
def _decoded(picture: Picture, grid: int, channels: int, changed: int) -> tuple[np.ndarray, int]:
    height, width = trimmed(picture.size, grid)
    pixels = decode(picture.file, channels, 0)[:height, picture.first : picture.first + width]
    return pixels, seed_of(pixels)


def _read(pictures: tuple[Picture, ...], cut: Cut, fields: dict[str, np.ndarray], indices: list[int]) -> list[Record]:
    records = []
    for index in indices:
        known = {name: values[index] for name, values in fields.items()}
        picture = pictures[int(known["number"])]
        pixels, seed = _decoded(picture, cut.grid, cut.channels, _changed(picture.file))
        top, left = known["place"]
        image = pixels[top : top + cut.window, left : left + cut.window]
        records.append({"image": image, "seed": np.int32(seed), **known})
    return records


def _changed(file: pathlib.Path) -> int:
    """Return when a file was written; 0 if it is missing, which decoding it says in a line."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def seed_of(pixels: np.ndarray) -> int:
    """Return a seed, below 2^31, that follows from the pixels of an image alone: its noise is the same in every run and every split."""
    return zlib.crc32(np.ascontiguousarray(pixels).tobytes()) >> 1
