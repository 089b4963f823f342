"""Mean and standard deviation of each channel of the training split, and predictions as text in the units of the data."""

import sys
from collections.abc import Sequence

import numpy as np

from dilax.errors import UserError
from dilax.spec import DataSpec

_SHOWN = 10  # constant channels that are named
_DIGITS = 17  # significant digits that tell all numbers in float64 apart
_FINEST = 2.0**-20  # standardised values below this are printed as if they were this large


def measure(values: np.ndarray, names: Sequence[str], where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel, by which `DataSpec.scale` standardises.

    A channel that is constant, up to the rounding of its dtype, has no scale: its deviation is given as 1, and a line on stderr names it.

    Args:
        values: The training split, (samples, channels).
        names: Names of the channels, for the note.
        where: What holds them, for the note.
    """
    wide = values.astype(np.float64)
    mean = wide.mean(0)
    # Deviations are measured in units of the largest, whose square then neither overflows nor vanishes.
    largest = np.abs(wide - mean).max(0)
    std = largest * np.sqrt(np.square((wide - mean) / np.where(largest > 0, largest, 1)).mean(0))
    constant = np.ptp(values, axis=0) <= 4 * np.finfo(values.dtype).eps * np.abs(wide).max(0)
    if constant.any():
        found = [name for name, same in zip(names, constant) if same]
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        listed = ", ".join(found[:_SHOWN]) + more
        print(f"note: {where}: constant in the training split, therefore centred but not scaled: {listed}.", file=sys.stderr)
    return tuple(mean.tolist()), tuple(np.where(constant, 1.0, std).tolist())


def scale_of(like: DataSpec | None, values: np.ndarray, names: Sequence[str], where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the deviation of what a run was trained on, `like`, or those that `measure` returns if that is None.

    Raises:
        UserError: if that had another number of channels.
    """
    if like is None:
        return measure(values, names, where)
    if len(like.mean) != len(names):
        raise UserError(f"{where} has {len(names)} channels, and the run was trained on {len(like.mean)}; give data of the same channels.")
    return like.mean, like.std


def written(spec: DataSpec, row: np.ndarray) -> list[str]:
    """Return predictions (channels,) in the units of the data as text.

    They have the digits that tell apart neighbouring float32 numbers of the standardised values, which is what the model computes with.
    """
    steps = np.spacing(np.maximum(np.abs(spec.scale(row)), np.float32(_FINEST))) * np.asarray(spec.std)
    sizes = np.maximum(np.abs(row) / steps, 1)
    digits = np.minimum(np.ceil(np.log10(sizes)) + 2, _DIGITS).astype(int)
    return [f"{value:.{count}g}" for value, count in zip(row.tolist(), digits.tolist())]
