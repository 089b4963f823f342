"""Images with a mask of classes: a mask is read, checked and fitted together with its image."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dilax.errors import UserError
from dilax.inputs import name_of, nearest, open_image, resize_pixels, scaled_size, upright_image
from dilax.spec import MIDDLE_GREY
from train.data.source import Record, Source, read

_VALUES = 256
_CHUNK = 64  # records read at once


@dataclasses.dataclass(frozen=True)
class MaskReader:
    """How the masks of a dataset become labels.

    Attributes:
        classes: Number of classes.
        values: Value of each class in the masks, in order, all other values being ignored; () is 0, 1, 2 and so on.
        ignored: Label of pixels that count neither in the loss nor in the metrics.
        image_size: Longer side that image and mask are scaled to, then padded to a square; 0 leaves them as they are.
    """

    classes: int
    values: tuple[int, ...]
    ignored: int
    image_size: int

    def record(self, image: np.ndarray, mask: np.ndarray, where: str) -> Record:
        """Return {"image": uint8 (height, width, channels), "label": uint8 (height, width)}.

        Args:
            image: uint8 (height, width, channels).
            mask: uint8 (height, width).
            where: Name of the mask, for errors.

        Raises:
            UserError: if their sizes differ, or the mask holds a value that is not a class.
        """
        if mask.shape != image.shape[:2]:
            raise UserError(f"{where}: the mask has {_size(mask)} pixels, its image {_size(image)}; make them the same size.")
        image, label = fit_inside(image, self.labels(mask, where), self.image_size, self.ignored)
        return {"image": image, "label": label}

    def labels(self, mask: np.ndarray, where: str) -> np.ndarray:
        """Return the labels of a mask, uint8 of any shape; `where` and errors as those of `record`."""
        table = np.full(_VALUES, self.ignored, np.uint8)
        if self.values:
            table[list(self.values)] = np.arange(self.classes)
            return table[mask]
        table[: self.classes] = np.arange(self.classes)
        present = np.flatnonzero(np.bincount(mask.ravel(), minlength=_VALUES))
        wrong = present[(present >= self.classes) & (present != self.ignored)]
        if len(wrong):
            raise UserError(
                f"{where}: the mask holds {', '.join(map(str, wrong[:5]))}, but the classes are 0 to {self.classes - 1} and "
                f"{self.ignored} is ignored; correct the mask, or list the values of the classes in config.data.mask_values."
            )
        return table[mask]


def decode_mask(file: bytes | pathlib.Path) -> np.ndarray:
    """Decode a mask file, or its bytes, turned as its EXIF orientation says, as its image is.

    Returns: uint8 (height, width): grey values, or the indices of a palette, never its colours.
    Raises: UserError: if it cannot be read, is a colour image, or holds a number above 255.
    """
    name = name_of(file)
    with open_image(file) as image:
        if image.format == "JPEG":
            raise UserError(f"{name} is a JPEG, which blurs class numbers; save the masks as PNG, from their source.")
        mask = np.asarray(upright_image(image))
        if mask.ndim != 2 or image.mode in ("F", "LA"):
            raise UserError(f"{name} is an image of mode {image.mode}; save the class numbers as a grey or palette image.")
    if mask.dtype != np.uint8 and mask.dtype != bool and mask.size and not 0 <= mask.min() <= mask.max() < _VALUES:
        raise UserError(f"{name} holds the number {min(mask.min(), 0) or mask.max()}; a mask holds class numbers, up to 255.")
    return mask.astype(np.uint8)


def fit_inside(image: np.ndarray, mask: np.ndarray, size: int, ignored: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale the longer side of an image and its mask to `size`, and pad them below and on the right to a square.

    Args:
        image: uint8 (height, width, channels); scaled bilinearly and padded with grey.
        mask: uint8 (height, width); scaled to the nearest pixel and padded with `ignored`.
        size: Side of the square; 0 returns both as they are.
        ignored: Label of the padding.
    """
    if size == 0:
        return image, mask
    height, width = scaled_size(mask.shape, size)
    image, mask = resize_pixels(image, height, width), nearest(mask, height, width)
    pads = ((0, size - height), (0, size - width))
    return np.pad(image, (*pads, (0, 0)), constant_values=MIDDLE_GREY), np.pad(mask, pads, constant_values=ignored)


def check_labelled(source: Source, split: str, ignored: int) -> None:
    """Raise UserError if the masks of a split hold nothing but ignored pixels; stop reading at the first pixel that counts.

    Args:
        source: Records with masks as "label".
        split: Name of the split, for the error.
        ignored: Label of ignored pixels.
    """
    for start in range(0, len(source), _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, len(source)))
        if any((record["label"] != ignored).any() for record in read(source, indices)):
            return
    raise UserError(
        f"data: all pixels of the {split} split are ignored (label {ignored}); check its masks, or set config.data.mask_values."
    )


def check_present(source: Source, class_names: Sequence[str], ignored: int) -> None:
    """Raise UserError if the masks of the training split hold pixels of one class alone; name the classes without any pixel on stderr.

    Reading stops at the first record with which all classes have been seen.
    """
    seen = np.zeros(_VALUES, bool)
    for start in range(0, len(source), _CHUNK):
        for record in read(source, np.arange(start, min(start + _CHUNK, len(source)))):
            seen[record["label"]] = True
        if seen[: len(class_names)].all():
            return
    absent = [name for name, present in zip(class_names, seen) if not present]
    if len(class_names) - len(absent) < 2:
        only = next(name for name in class_names if name not in absent)
        also = f"; pixels of {ignored} are ignored" if seen[ignored] else ""
        raise UserError(
            f"data: all pixels of the training split that count are of one class, {only}{also}; correct the masks, or list the value "
            "of each class in config.data.mask_values, such as (0, 255)."
        )
    print(f"note: the training split has no pixel of {', '.join(absent)}.", file=sys.stderr)


def class_pixels(source: Source, classes: int, ignored: int) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of a whole split, for `dilax.losses.median_frequency_weights`.

    Returns:
        int64 (classes,), the pixels of each class, and int64 (classes,), the labelled pixels of the images that contain it.
    """
    pixels, totals = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for start in range(0, len(source), _CHUNK):
        for record in read(source, np.arange(start, min(start + _CHUNK, len(source)))):
            label: Any = record["label"]
            counts = np.bincount(label[label != ignored], minlength=classes)
            pixels += counts
            totals += np.where(counts > 0, counts.sum(), 0)
    return pixels, totals


def count_classes(masks: Iterable[np.ndarray], values: tuple[int, ...], ignored: int) -> tuple[str, ...]:
    """Return "class 0", "class 1", ...: one for each of `values`, or up to the highest number in `masks`, those of training.

    Raises:
        UserError: if they hold one number alone, or numbers that are not those of classes.
    """
    if values:
        return tuple(f"class {value}" for value in values)
    present = np.zeros(256, bool)
    for mask in masks:
        present[mask] = True
    numbers = np.flatnonzero(present).tolist()
    classes = [number for number in numbers if number != ignored]
    # The numbers of black and white masks, and of classes drawn as shades of grey, are not labels.
    if len(classes) < 2 or (len(classes) < 8 and classes[-1] >= 4 * len(classes)):
        raise UserError(
            f"the masks hold {', '.join(map(str, numbers[:8]))}, of which {ignored} is ignored: these are not the numbers of two or more "
            f"classes; list the values that are classes in config.data.mask_values, such as {tuple(numbers[:8])}."
        )
    return tuple(f"class {i}" for i in range(classes[-1] + 1))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
