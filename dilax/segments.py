"""Segments of labelled sequences: runs of one class, and how well those that were found agree with the true ones, as sums and counts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dilax import arguments
from dilax.errors import UserError, shown

_NOTHING = -1  # in place of the class of a step that belongs to no segment


class Segment(NamedTuple):
    """Steps of one class that follow each other.

    Attributes:
        start: The first step.
        end: The step after the last.
        label: The class.
    """

    start: int
    end: int
    label: Any


def segments(labels: ArrayLike) -> list[Segment]:
    """Return the runs of equal labels in a sequence.

    Args:
        labels: (time,), integers or texts.

    Raises:
        UserError: if labels are not integers or texts (time,).

    Example:
        >>> segments(["cut", "cut", "mix"])
        [Segment(start=0, end=2, label='cut'), Segment(start=2, end=3, label='mix')]
    """
    try:
        values = np.asarray(labels)
    except (TypeError, ValueError):
        values = np.asarray(None)
    if values.shape == (0,):
        return []
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise UserError(f"segments: labels={shown(labels)} must be integers or texts, one for every step.")
    starts = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist()]
    return [Segment(start, end, values[start].item()) for start, end in zip(starts, [*starts[1:], len(values)])]


def segment_scores(
    found: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    overlaps: Sequence[float] = (0.1, 0.25, 0.5),
    ignored: int | None = None,
) -> dict[str, jax.Array]:
    """Return the segmental edit score of each sequence, and its numbers of segments that are found, found wrongly, and missed.

    The edit score of a sequence is 1 - d / n for the Levenshtein distance d between the classes of its segments and of the true ones, the
    longer of which has n: only the order counts. It is 1 if neither has a segment. A segment is found if the true segment of its class with
    which its intersection over union is largest (the first of several) reaches the overlap; of several that find the same true segment one
    counts as found, and the others as wrong.

    Args:
        found: (batch, time), integers, the predicted classes.
        labels: (batch, time), integers, the true classes.
        mask: bool (batch, time), False at steps that do not count.
        overlaps: Smallest intersections over union, above 0, up to 1.
        ignored: A class whose segments are left out, such as the background; None leaves out none.

    Returns:
        "edit": float32 (batch,), from 0 to 1. "found", "wrong" and "missed": int32 (batch, overlaps), for `f1_score`: of their sums over
        all sequences, as Farha & Gall do, or of each sequence, whose mean Lea et al. report.

    Raises:
        UserError: if shapes or dtypes do not fit, or an overlap is out of range.

    Example:
        >>> scores = segment_scores(jnp.array([[1, 1, 2, 2]]), jnp.array([[1, 2, 2, 2]]), jnp.ones((1, 4), bool), overlaps=(0.5, 0.6))
        >>> scores["edit"].tolist(), scores["found"].tolist(), scores["wrong"].tolist(), scores["missed"].tolist()
        ([1.0], [[2, 1]], [[0, 1]], [[0, 1]])

    Reference:
        Lea et al. 2016, arXiv:1602.02995 (edit score); Lea et al. 2017, arXiv:1611.05267, section 4.1 (F1 at overlaps); Farha & Gall
        2019, arXiv:1903.01945, section 4.
    """
    caller = "segment_scores"
    found, labels, mask = checked_steps(caller, found, labels, mask)
    limits = _limits(caller, overlaps)
    left_out = None if ignored is None else arguments.integer(caller, "ignored", ignored)
    ours, theirs = (jnp.where(mask if left_out is None else mask & (classes != left_out), classes, _NOTHING) for classes in (found, labels))
    counts = jax.vmap(lambda a, b: _counts(a, b, jnp.asarray(limits, jnp.float32)))(ours, theirs)
    return {"edit": _edit_scores(ours, theirs), **{name: counts[:, i] for i, name in enumerate(("found", "wrong", "missed"))}}


def checked_steps(caller: str, found: Any, labels: Any, mask: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return predicted and true classes (batch, time) as int32, and the mask, checked against each other."""
    found, labels = (arguments.array(caller, name, value, "integer") for name, value in (("found", found), ("labels", labels)))
    mask = arguments.array(caller, "mask", mask, "bool")
    if found.ndim != 2 or found.shape != labels.shape or mask.shape != labels.shape or not labels.size:
        raise UserError(
            f"{caller}: found of shape {found.shape}, labels of shape {labels.shape} and mask of shape {mask.shape} must all be "
            "(batch, time)."
        )
    return found.astype(jnp.int32), labels.astype(jnp.int32), mask


def _limits(caller: str, overlaps: Any) -> list[float]:
    if not isinstance(overlaps, list | tuple) or not overlaps or any(isinstance(limit, list | tuple) for limit in overlaps):
        raise UserError(f"{caller}: overlaps={shown(overlaps)} is not a sequence of numbers; give one, such as (0.1, 0.25, 0.5).")
    limits = [arguments.number(caller, "overlaps", limit) for limit in overlaps]
    if wrong := [limit for limit in limits if not 0 < limit <= 1]:
        raise UserError(f"{caller}: overlaps={shown(overlaps)} holds {wrong[0]:g}; give shares above 0, up to 1.")
    return limits


def _starts(classes: jax.Array) -> jax.Array:
    """Return which steps (..., time) begin a run of one class."""
    first = jnp.ones_like(classes[..., :1], bool)
    return jnp.concatenate([first, classes[..., 1:] != classes[..., :-1]], -1)


def _counts(ours: jax.Array, theirs: jax.Array, limits: jax.Array) -> jax.Array:
    """Return found, wrong and missed segments (3, overlaps) of one sequence (time,).

    Two segments overlap in one run of steps in which neither sequence changes, so it is enough to look at these runs, of which there are at
    most as many as steps.
    """
    steps = len(ours)

    def sizes(runs: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(jnp.ones(steps, jnp.int32), runs, steps)

    a, b = (jnp.cumsum(_starts(classes).astype(jnp.int32)) - 1 for classes in (ours, theirs))
    both = jnp.cumsum((_starts(ours) | _starts(theirs)).astype(jnp.int32)) - 1
    shared = sizes(both)[both]
    union = sizes(a)[a] + sizes(b)[b] - shared
    iou = jnp.where((ours == theirs) & (ours != _NOTHING), shared.astype(jnp.float32) / union.astype(jnp.float32), 0.0)
    best = jax.ops.segment_max(iou, a, steps)[a]
    place = jax.ops.segment_min(jnp.where(iou == best, jnp.arange(steps), steps), a, steps)[a]
    hit = (iou[:, None] >= limits[None]) & (jnp.arange(steps) == place)[:, None]
    # Of one true segment, several may be the best match.
    found = (jax.ops.segment_sum(hit.astype(jnp.int32), b, steps) > 0).astype(jnp.int32).sum(0)
    total, true = (jnp.sum(_starts(classes) & (classes != _NOTHING), dtype=jnp.int32) for classes in (ours, theirs))
    return jnp.stack([found, total - found, true - found])


def _in_order(classes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the classes of the segments in order, followed by anything, (batch, time), and how many there are, (batch,)."""
    begins = _starts(classes) & (classes != _NOTHING)
    order = jnp.argsort(~begins, axis=1, stable=True)
    return jnp.take_along_axis(classes, order, axis=1), begins.astype(jnp.int32).sum(1)


def _edit_scores(ours: jax.Array, theirs: jax.Array) -> jax.Array:
    """Return the edit score of each sequence, (batch,)."""
    (a, count), (b, true) = _in_order(ours), _in_order(theirs)
    batch, steps = a.shape
    columns = jnp.broadcast_to(jnp.arange(steps + 1, dtype=jnp.int32)[None], (batch, steps + 1))

    def next_row(i: jax.Array, row: jax.Array) -> jax.Array:
        differ = (jnp.take(a, i, axis=1)[:, None] != b).astype(jnp.int32)
        without = jnp.concatenate([row[:, :1] + 1, jnp.minimum(row[:, 1:] + 1, row[:, :-1] + differ)], 1)
        # Insertions cost 1 for each column: the minimum so far, when that is taken off.
        new = jax.lax.cummin(without - columns, axis=1) + columns
        return jnp.where((i < count)[:, None], new, row)

    last = jax.lax.fori_loop(0, count.max(), next_row, columns)
    distance = jnp.take_along_axis(last, true[:, None], axis=1)[:, 0]
    longest = jnp.maximum(count, true)
    return 1 - distance.astype(jnp.float32) / jnp.maximum(longest, 1).astype(jnp.float32)


def f1_score(found: ArrayLike, wrong: ArrayLike, missed: ArrayLike) -> NDArray[np.float64]:
    """Return 2 found / (2 found + wrong + missed), the harmonic mean of precision and recall.

    Args:
        found: (...,), numbers of what was found, summed over the whole evaluation.
        wrong: (...,), numbers of what was found wrongly.
        missed: (...,), numbers of what was missed.

    Returns:
        (...,), float64, from 0 to 1; 0 where there is nothing to find and nothing was found.

    Raises:
        UserError: if they are not numbers of 0 or more, of one shape.

    Example:
        >>> f1_score([2, 1], [0, 1], [0, 1]).tolist()
        [1.0, 0.5]
    """
    given = {"found": found, "wrong": wrong, "missed": missed}
    counts = {name: arguments.host_array("f1_score", name, value).astype(np.float64) for name, value in given.items()}
    if len({values.shape for values in counts.values()}) > 1:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in counts.items())
        raise UserError(f"f1_score: {shapes} differ in shape; give one of each.")
    for name, values in counts.items():
        if outside := values[~((values >= 0) & np.isfinite(values))].tolist():
            raise UserError(f"f1_score: {name} holds {outside[0]:g}, which is not a count; give finite numbers of 0 or more.")
    total = 2 * counts["found"] + counts["wrong"] + counts["missed"]
    return np.asarray(2 * counts["found"] / np.where(total > 0, total, 1))
