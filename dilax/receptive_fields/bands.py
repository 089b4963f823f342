"""The reach of constant matrices and index arrays. Resizing and gathering are such matrices, periodic away from the border."""

import itertools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from dilax.receptive_fields.reach import MAX_PHASES, IndexSet, Reach, index_set

# The longest periods that are tried, in rows, in addition to the one that the shape implies.
MAX_PERIOD_ROWS = 64
# A matrix of more elements counts as dense.
MAX_ELEMENTS = 2**26


def matrix_reach(matrix: np.ndarray) -> Reach | None:
    """Return what each row of an (outputs, inputs) matrix sees: the columns of its non-zero weights.

    Rows that reach the first or the last column are taken to be the border, where a resize clips its weights or repeats a sample. The
    period is that of the other rows, in weights as well as in columns; without a period, the sets are listed. Weights of the size of a
    rounding error of a position along the axis count as 0 where rows a period apart disagree about them (a third of 3 is not exactly 1).

    Returns:
        None if every row sees both the first and the last column, if there are too many rows, or if all weights are 0, as in a model that
        is not yet initialised.
    """
    rows, columns = matrix.shape
    rounding = float(jnp.finfo(matrix.dtype).eps) if jnp.issubdtype(matrix.dtype, jnp.inexact) else 0.0
    matrix = matrix.astype(np.float32)
    noise = min(4 * columns * rounding, 1e-3) * np.abs(matrix).max(initial=0)
    nonzero = np.abs(matrix) > noise
    first, last = nonzero.argmax(1), columns - 1 - nonzero[:, ::-1].argmax(1)
    # This includes rows of zeros, for which argmax returns 0.
    if ((first == 0) & (last == columns - 1)).all():
        return None
    inside = np.flatnonzero(nonzero.any(1) & (first > 0) & (last < columns - 1))
    for outputs, inputs in _candidate_periods(first, inside, columns, rows):
        if _is_period(matrix, first, last, inside, outputs, inputs, noise):
            phases = ([row for row in inside.tolist() if row % outputs == phase] for phase in range(outputs))
            sets = tuple(_phase_set(matrix, nonzero, phase, inputs, outputs) for phase in phases)
            return Reach(Fraction(inputs, outputs), sets)
    sets = tuple(index_set(np.flatnonzero(row).tolist()) for row in nonzero)
    return Reach(Fraction(columns, rows), sets, listed=True) if rows <= MAX_PHASES else None


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


def _is_period(
    matrix: np.ndarray, first: np.ndarray, last: np.ndarray, inside: np.ndarray, outputs: int, inputs: int, noise: float
) -> bool:
    """Return whether the inside rows repeat with that period and include every phase."""
    rows = np.intersect1d(inside, inside - outputs)
    if len(np.unique(inside % outputs)) < outputs or inputs >= matrix.shape[1]:
        return False
    if (first[rows + outputs] - first[rows] != inputs).any() or (last[rows + outputs] - last[rows] != inputs).any():
        return False
    return bool((np.abs(matrix[rows + outputs][:, inputs:] - matrix[rows][:, :-inputs]) <= noise).all())


def _phase_set(matrix: np.ndarray, nonzero: np.ndarray, rows: list[int], inputs: int, outputs: int) -> IndexSet:
    """Return the set of one phase: all non-zero weights if its rows agree about them, else those above the noise."""
    exact, above_noise = (
        [index_set((np.flatnonzero(weights[row]) - row // outputs * inputs).tolist()) for row in rows] for weights in (matrix, nonzero)
    )
    return exact[0] if all(a == b for a, b in itertools.pairwise(exact)) else above_noise[0]
