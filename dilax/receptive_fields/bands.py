"""What the rows of a constant matrix see: resizing and picking samples are such matrices, periodic away from the border."""

import itertools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from dilax.receptive_fields.reach import MOST_PHASES, Reach, places

# Periods tried, in rows, besides the one that follows from the shape.
MOST_ROWS = 64
# Elements, beyond which the matrix counts as dense.
LARGEST = 2**26


def banded(matrix: np.ndarray) -> Reach | None:
    """What each row of an (outputs, inputs) matrix sees: the places of its non-zero weights.

    Rows that reach the first or last column are the border, where a resize clips its weights or repeats a sample; the period is that of
    the other rows, in weights as well as in places. Without one, the sets are listed. Weights as small as the rounding of a place along
    the axis count as 0 where rows a period apart do not agree about them (a third of 3 is not quite 1).

    Returns:
        None if every row sees the first and the last column, if there are too many rows, or if all weights are 0, as those of a model
        are before it has any.
    """
    rows, columns = matrix.shape
    rounding = float(jnp.finfo(matrix.dtype).eps) if jnp.issubdtype(matrix.dtype, jnp.inexact) else 0.0
    matrix = matrix.astype(np.float32)
    noise = min(4 * columns * rounding, 1e-3) * np.abs(matrix).max(initial=0)
    seen = np.abs(matrix) > noise
    first, last = seen.argmax(1), columns - 1 - seen[:, ::-1].argmax(1)
    # Rows of zeros are among those, by what argmax makes of them.
    if ((first == 0) & (last == columns - 1)).all():
        return None
    inside = np.flatnonzero(seen.any(1) & (first > 0) & (last < columns - 1))
    for outputs, inputs in _periods(first, inside, columns, rows):
        if _repeats(matrix, first, last, inside, outputs, inputs, noise):
            phases = ([row for row in inside.tolist() if row % outputs == phase] for phase in range(outputs))
            sets = tuple(_common(matrix, seen, phase, inputs, outputs) for phase in phases)
            return Reach(Fraction(inputs, outputs), sets)
    sets = tuple(places(np.flatnonzero(row).tolist()) for row in seen)
    return Reach(Fraction(columns, rows), sets, listed=True) if rows <= MOST_PHASES else None


def picked(indices: np.ndarray, size: int) -> Reach | None:
    """What is seen by outputs that each are one sample of an axis, or none where the index lies outside."""
    if len(indices) * size > LARGEST:
        return None
    return banded(indices[:, None] == np.arange(size))


def _periods(first: np.ndarray, inside: np.ndarray, columns: int, rows: int) -> list[tuple[int, int]]:
    """Periods to try, (rows, columns): that of the shape, and what rows near the middle suggest."""
    common, middle = math.gcd(rows, columns), len(inside) // 2
    # Without rows to repeat, any period would do. That of the shape is believed sooner: a resize has no other, unless it keeps corners.
    found = [(rows // common, columns // common)] if common > 1 else []
    for step in range(1, min(MOST_ROWS, len(inside) - middle - 1) + 1):
        a, b = inside[middle], inside[middle + step]
        if first[b] > first[a]:
            found.append((int(b - a), int(first[b] - first[a])))
    return found


def _repeats(matrix: np.ndarray, first: np.ndarray, last: np.ndarray, inside: np.ndarray, outputs: int, inputs: int, noise: float) -> bool:
    """Whether the rows inside repeat with that period, and every phase is among them."""
    rows = np.intersect1d(inside, inside - outputs)
    if len(np.unique(inside % outputs)) < outputs or inputs >= matrix.shape[1]:
        return False
    if (first[rows + outputs] - first[rows] != inputs).any() or (last[rows + outputs] - last[rows] != inputs).any():
        return False
    return bool((np.abs(matrix[rows + outputs][:, inputs:] - matrix[rows][:, :-inputs]) <= noise).all())


def _common(matrix: np.ndarray, seen: np.ndarray, rows: list[int], inputs: int, outputs: int) -> tuple[int, int]:
    """The set of one phase: all non-zero weights if its rows agree about them, else those above the noise."""
    exact, clear = ([places((np.flatnonzero(kind[row]) - row // outputs * inputs).tolist()) for row in rows] for kind in (matrix, seen))
    return exact[0] if all(a == b for a, b in itertools.pairwise(exact)) else clear[0]
