"""The reach of constant matrices and index arrays. Resizing and gathering are such matrices, periodic away from the border."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from dilax.receptive_fields.reach import MAX_PHASES, IndexSet, Reach, contains, ends, index_set, listing

# The longest periods that are tried, in rows, in addition to the one that the shape implies.
MAX_PERIOD_ROWS = 64
# Rounding errors of a resize by lanczos5, which has the widest kernel, lie this close to its other weights.
MAX_LOBES = 5
# A matrix of more elements counts as dense.
MAX_ELEMENTS = 2**26


def matrix_reach(matrix: np.ndarray) -> Reach | None:
    """Return what each row of an (outputs, inputs) matrix sees: the columns of its non-zero weights.

    The rows have a period if all of them repeat those in the middle, in weights as well as in columns. Rows whose pattern touches the first
    or the last column may differ, since a resize clips its weights or repeats a sample there, but must see no more than the pattern clipped
    to the matrix; they count as the border. Without a period, the sets are listed. Weights of the size of a rounding error of a position
    along the axis count as 0 where rows a period apart disagree about them (a third of 3 is not exactly 1), unless some of them lie further
    from all larger weights than a position that is rounded moves a weight.

    Returns:
        None if every row sees both the first and the last column, if there are too many rows, or if all weights are 0, as in a model that
        is not yet initialised.
    """
    rows, columns = matrix.shape
    rounding = float(jnp.finfo(matrix.dtype).eps) if jnp.issubdtype(matrix.dtype, jnp.inexact) else 0.0
    matrix = np.abs(matrix) if np.iscomplexobj(matrix) else matrix.astype(np.float32)
    noise = min(4 * columns * rounding, 1e-3) * np.abs(matrix).max(initial=0)
    nonzero = np.abs(matrix) > noise
    first, last = nonzero.argmax(1), columns - 1 - nonzero[:, ::-1].argmax(1)
    row, column = np.nonzero((matrix != 0) & ~nonzero)
    if ((column < first[row] - MAX_LOBES) | (column > last[row] + MAX_LOBES) | ~nonzero.any(1)[row]).any():
        noise, nonzero = 0.0, matrix != 0
        first, last = nonzero.argmax(1), columns - 1 - nonzero[:, ::-1].argmax(1)
    # This includes rows of zeros, for which argmax returns 0.
    if ((first == 0) & (last == columns - 1)).all():
        return None
    # Rows of zeros belong to the inside as well.
    inside = np.flatnonzero(~nonzero.any(1) | ((first > 0) & (last < columns - 1)))
    for outputs, inputs in _candidate_periods(first, inside[nonzero[inside].any(1)], columns, rows):
        reach = _periodic_reach(matrix, noise, inside, outputs, inputs)
        if reach is not None:
            return reach
    if rows > MAX_PHASES:
        return None
    return listing((np.flatnonzero(row).tolist() for row in matrix), Fraction(columns, rows))


def index_reach(indices: np.ndarray, size: int) -> Reach | None:
    """Return what is seen by outputs that each read one sample of an axis, or nothing where the index is out of range."""
    if len(indices) * size > MAX_ELEMENTS:
        return None
    return matrix_reach(indices[:, None] == np.arange(size))


def _candidate_periods(first: np.ndarray, inside: np.ndarray, columns: int, rows: int) -> list[tuple[int, int]]:
    """Return the periods to try, (rows, columns): the one that the shape implies, and those that rows near the middle suggest."""
    common, middle = math.gcd(rows, columns), len(inside) // 2
    # The period of the shape comes first, since without rows that repeat any period would pass, and a resize has no other period unless it
    # aligns corners.
    periods = [(rows // common, columns // common)] if common > 1 else []
    for step in range(1, min(MAX_PERIOD_ROWS, len(inside) - middle - 1) + 1):
        a, b = inside[middle], inside[middle + step]
        if first[b] > first[a]:
            periods.append((int(b - a), int(first[b] - first[a])))
    return periods


def _periodic_reach(matrix: np.ndarray, noise: float, inside: np.ndarray, outputs: int, inputs: int) -> Reach | None:
    """Return the reach of a matrix whose rows repeat with that period, or None."""
    rows, columns = matrix.shape
    # The rows before `start` and from `stop` on are the border.
    start, stop, sets, border = 0, rows, [], []
    for phase in range(outputs):
        like = inside[inside % outputs == phase]
        if not len(like):
            return None
        pattern = _pattern(matrix, noise, like, inputs, outputs)
        for row in range(phase, rows, outputs):
            shift = row // outputs * inputs
            lo, hi = ends((pattern[0] + shift, pattern[1]))
            if not _repeats(matrix, noise, row, like[len(like) // 2], shift - like[len(like) // 2] // outputs * inputs):
                if lo > hi or (lo > 0 and hi < columns - 1):
                    return None
                start, stop = (max(start, row + 1), stop) if row < rows // 2 else (start, min(stop, row))
            seen = ends(index_set(np.flatnonzero(np.abs(matrix[row]) > noise).tolist()))
            if not contains((min(max(lo, 0), columns - 1), max(min(hi, columns - 1), 0)), seen):
                return None
            if not contains((lo, hi), seen):
                border.append((row, seen))
        sets.append(pattern)
    if start > stop:
        return None
    reach = Reach(Fraction(inputs, outputs), tuple(sets), border=tuple(sorted(border)))
    return reach.bounded(start or None, stop if stop < rows else None, columns)


def _repeats(matrix: np.ndarray, noise: float, row: int, middle: int, shift: int) -> bool:
    """Return whether a row equals the one in the middle, shifted and clipped to the matrix."""
    columns = matrix.shape[1]
    if abs(shift) >= columns:
        return bool((np.abs(matrix[row]) <= noise).all())
    moved = np.zeros_like(matrix[row])
    moved[max(shift, 0) : columns + min(shift, 0)] = matrix[middle, max(-shift, 0) : columns - max(shift, 0)]
    return bool((np.abs(matrix[row] - moved) <= noise).all())


def _pattern(matrix: np.ndarray, noise: float, rows: np.ndarray, inputs: int, outputs: int) -> IndexSet:
    """Return the set of one phase at its first row: all non-zero weights if its rows agree about them, else those above the noise."""
    exact, above_noise = (
        [index_set((np.flatnonzero(np.abs(matrix[row]) > limit) - row // outputs * inputs).tolist()) for row in rows.tolist()]
        for limit in (0, noise)
    )
    return exact[0] if all(indices == exact[0] for indices in exact) else above_noise[len(rows) // 2]
