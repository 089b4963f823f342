"""Plots of volumes: slices in three planes with their true and predicted masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dilax.annotated import checked_call
from dilax.errors import UserError, shown
from dilax.plots.segmentation import segmentation_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLANES = ("yz", "xz", "xy")  # of slices across the first, the second and the third axis
_BESIDE = 255  # in masks, beside the slice: no class


@checked_call(background=0)
def volume_slices(
    volumes: np.ndarray,
    truths: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    titles: Sequence[str],
    *,
    spacing: Any = 1.0,
    background: int | None = 0,
) -> "Figure":
    """Show slices of volumes across each of their three axes, with their true and predicted masks, each volume under a title.

    A slice lies where the true mask has most voxels of a class, or in the middle if it has none. The first axis of a slice runs upwards,
    and voxels have their true proportions.

    Args:
        volumes: (n, x, y, z, channels), uint8, or floats in 0..1.
        truths: (n, x, y, z), classes. Values that are not a class, such as an ignored label, show the volume.
        predictions: (n, x, y, z), classes.
        class_names: One name per class.
        titles: n titles.
        spacing: Distance of neighbouring voxels: a number, or (3,) for the axes, or (n, 3) for those of each volume.
        background: As `segmentation_overlay`; its voxels do not decide where a slice lies.

    Returns:
        Three rows of panels for each volume, as those of `segmentation_grid`.

    Raises:
        UserError: if there is no volume, or the lengths or a spacing do not fit.
    """
    volumes, truths, predictions = np.asarray(volumes), np.asarray(truths), np.asarray(predictions)
    count = len(np.atleast_1d(volumes))
    if not count or volumes.ndim != 5 or not truths.shape == predictions.shape == volumes.shape[:4] or len(titles) != count:
        raise UserError(
            f"volume_slices: volumes {volumes.shape}, truths {truths.shape}, predictions {predictions.shape} and {len(titles)} titles do "
            "not match; give n > 0 volumes, masks (n, x, y, z) and n titles."
        )
    try:
        spacings = np.broadcast_to(np.asarray(spacing, np.float64), (count, 3))
    except (TypeError, ValueError):
        spacings = np.zeros((1, 3))
    if not (np.isfinite(spacings) & (spacings > 0)).all():
        raise UserError(
            f"volume_slices: spacing={shown(spacing)} must hold numbers above 0: one, or (3,), or (n, 3) for n={count} volumes."
        )
    rows: list[tuple[np.ndarray, ...]] = []
    names: list[str] = []
    for arrays, sizes, title in zip(zip(volumes, truths, predictions), spacings, titles):
        for axis, plane in enumerate(_PLANES):
            at = _place(arrays[1], axis, len(class_names), background)
            rows.append(tuple(_proportional(np.take(array, at, axis), np.delete(sizes, axis)) for array in arrays))
            names.append(f"{title}, {plane}" if axis == 0 else f"{plane}")
    side = tuple(max(row[0].shape[axis] for row in rows) for axis in range(2))
    images, true, found = (np.stack([_centred(row[i], side, fill) for row in rows]) for i, fill in enumerate((0, _BESIDE, _BESIDE)))
    return segmentation_grid(images, true, found, class_names, names, background=background)


def _place(mask: np.ndarray, axis: int, classes: int, background: int | None) -> int:
    """Return the position along an axis at which a mask (x, y, z) has most voxels of a class."""
    known = (mask >= 0) & (mask < classes) & (mask != (-1 if background is None else background))
    counts = known.sum(tuple(other for other in range(3) if other != axis))
    return int(counts.argmax()) if counts.any() else mask.shape[axis] // 2


def _proportional(array: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return a slice (a, b, ...) as an image (height, width, ...) of square pixels, the nearest ones being repeated; its first axis is b.

    The second axis of the slice then runs upwards.
    """
    for axis, size in enumerate(sizes):
        old = array.shape[axis]
        new = max(1, round(old * size / sizes.min()))
        array = np.take(array, (2 * np.arange(new) + 1) * old // (2 * new), axis)
    return np.swapaxes(array, 0, 1)[::-1]


def _centred(array: np.ndarray, side: tuple[int, ...], fill: int) -> np.ndarray:
    """Pad an image to a height and a width, on both sides."""
    pads = [((size - n) // 2, size - n - (size - n) // 2) for n, size in zip(array.shape, side)]
    return np.pad(array, pads + [(0, 0)] * (array.ndim - 2), constant_values=fill)
