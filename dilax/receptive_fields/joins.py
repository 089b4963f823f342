"""What arrays see that are put together from several: concatenated, stacked, tiled, or written into another."""

import dataclasses
import functools
import itertools
from typing import Any

from dilax.receptive_fields.composition import with_border
from dilax.receptive_fields.constants import Constant
from dilax.receptive_fields.reach import MAX_PHASES, NOTHING, IndexSet, Reach, clip, ends, listing, window
from dilax.receptive_fields.views import (
    Axis,
    Operand,
    View,
    elementwise,
    global_view,
    merge_views,
    single,
    spread,
    through,
    with_constant,
)

Shape = tuple[int, ...]
# The first position of a piece, its length, and what it sees along the axis of the concatenation; the latter is None for constants.
Piece = tuple[int, int, Axis | None]


def part(view: Any, along: int, start: int) -> tuple[View, int, int]:
    """Return `View.part` of a slice that begins at `start` of the array that `view` describes."""
    if view.part is not None and view.part[1] == along:
        return view.part[0], along, view.part[2] + start
    return view, along, start


def concatenate(eqn: Any, operands: list[Operand]) -> View:
    """Return the view of arrays that are concatenated."""
    along, result = eqn.params["dimension"], eqn.outvars[0].aval.shape
    shapes = [var.aval.shape for var in eqn.invars]
    kept = [(x, shape) for x, shape in zip(operands, shapes) if shape[along]]
    views = [x for x, _ in kept if isinstance(x, View)]
    if not views:
        return global_view(result)
    whole = _rejoin([x for x, _ in kept], [shape[along] for _, shape in kept], along, result[along])
    if whole is not None:
        return whole
    # The other axes, along which the pieces lie side by side.
    merged = functools.reduce(lambda a, b: merge_views(a, b, result), (_without(view, along) for view in views))
    for x, shape in kept:
        if isinstance(x, Constant):
            merged = with_constant(merged, x, shape, result)
    starts = itertools.accumulate((shape[along] for _, shape in kept), initial=0)
    pieces = [(start, shape[along], single(x.axes[along]) if isinstance(x, View) else None) for start, (x, shape) in zip(starts, kept)]
    complete = all(axis is not None for (*_, axis), (x, _) in zip(pieces, kept) if isinstance(x, View))
    joined = _join(pieces, result[along]) if complete else None
    return View(tuple(joined if i == along else axis for i, axis in enumerate(merged.axes)))


def _without(view: View, along: int) -> View:
    return View(tuple(None if i == along else axis for i, axis in enumerate(view.axes)))


def _rejoin(pieces: list[Operand], widths: list[int], along: int, size: int) -> View | None:
    """Return the view of neighbouring slices of one array that are put back in their places, or None if the pieces are something else."""
    parts = [x.part for x in pieces if isinstance(x, View) and x.part is not None]
    if len(parts) < len(pieces):
        return None
    origin, axis, first = parts[0]
    places = itertools.accumulate(widths, initial=first)
    if axis != along or any(view is not origin or i != along or start != place for (view, i, start), place in zip(parts, places)):
        return None
    axes = tuple(through(a, window(1, 1, -first), size) if i == along else a for i, a in enumerate(origin.axes))
    return View(axes, part(origin, along, first))


def _join(pieces: list[Piece], size: int) -> Axis | None:
    """Return the axis along which pieces are concatenated.

    The widest piece is the inside. The others are a border if they lie where its pattern reaches beyond the input, as in the modes of
    jnp.pad. Pieces of other values further in are not equivariant; if they see anything else, all outputs are listed.
    """
    start, _, middle = max((piece for piece in pieces if piece[2]), key=lambda piece: piece[1])
    others = [piece for piece in pieces if piece[0] != start]
    assert middle is not None
    if any(axis and axis.source != middle.source for *_, axis in others):
        return None
    joined = middle.through(window(1, 1, start), size)
    if joined is None or joined.reach.listed or any(axis and axis.reach.listed for *_, axis in others if _wide(axis, middle)):
        return _list(pieces, middle, size)
    reach, seen = joined.reach, {}
    for first, count, axis in others:
        if axis is None:
            continue
        if count > MAX_PHASES:
            # Too many outputs to compare: they must see what the inside would see there, though their values may differ.
            moved = axis.through(window(1, 1, first), size)
            if moved is None or moved.reach.border or (moved.reach.rate, moved.reach.sets) != (joined.reach.rate, joined.reach.sets):
                return None
            reach = reach.without_equivariance()
            continue
        sets = {first + i: axis.reach.seen(i) for i in range(count)}
        if not all(_fits(reach, output, indices, middle.samples) for output, indices in sets.items()):
            return _list(pieces, middle, size)
        for output, indices in sets.items():
            if middle.reach.is_intact(output - start, middle.samples) or not _is_near(reach, output, indices, middle.samples):
                reach = reach.without_equivariance()
                break
        seen.update(sets)
    return dataclasses.replace(joined, reach=with_border(reach, {**_seen_at_border(joined), **seen}, middle.samples))


def _wide(axis: Axis | None, middle: Axis) -> bool:
    return axis is not None and _extent(axis.reach) > _extent(middle.reach)


def _extent(reach: Reach) -> int:
    return max(bits.bit_length() for _, bits in reach.sets)


def _seen_at_border(axis: Axis) -> dict[int, IndexSet]:
    return {output: axis.reach.seen(output) for output in axis.reach.exceptions}


def _fits(reach: Reach, output: int, indices: IndexSet, samples: int) -> bool:
    """Return whether a piece beside the inside sees what the inside would see there, or lies where that reaches beyond the input."""
    inside = clip(ends(indices), samples)
    if reach.lies_inside(output, samples) or not reach.at(output)[1]:
        return inside == NOTHING or indices == reach.at(output)
    return inside == NOTHING or inside[1] - inside[0] < _extent(reach)


def _is_near(reach: Reach, output: int, indices: IndexSet, samples: int) -> bool:
    """Return whether an output beyond the input sees no sample further in than its mirror image, as reflecting padding does.

    One that reads the other end, as wrap-around padding does, depends on the length of the input.
    """
    (first, last), (least, most), extent = clip(ends(indices), samples), ends(reach.at(output)), _extent(reach)
    return first > last or (last <= extent - least if least < 0 else first >= 2 * (samples - 1) - most - extent)


def _list(pieces: list[Piece], middle: Axis, size: int) -> Axis | None:
    if size > MAX_PHASES:
        return None
    sets: list[IndexSet] = []
    for _, width, axis in pieces:
        sets.extend(axis.reach.seen(i) if axis else (0, 0) for i in range(width))
    return dataclasses.replace(middle, size=size, reach=Reach(middle.reach.rate, tuple(sets), listed=True))


def stack(eqn: Any, operands: list[Operand]) -> View:
    """Return the view of arrays that are stacked along a new axis."""
    shape = eqn.invars[0].aval.shape
    axes = [*elementwise(operands, [shape] * len(operands), shape).axes] if shape else []
    axes.insert(eqn.params["axis"], None)
    return View(tuple(axes))


def unstack(eqn: Any, operands: list[Operand]) -> list[View]:
    """Return the views of the slices along an axis."""
    (x,) = operands
    assert isinstance(x, View)
    return [View(tuple(axis for i, axis in enumerate(x.axes) if i != eqn.params["axis"])) for _ in eqn.outvars]


def tile(eqn: Any, operands: list[Operand]) -> View:
    """Return the view of an array that is repeated as a whole."""
    (x,), axes = operands, []
    assert isinstance(x, View)
    for axis, n, times in zip(x.axes, eqn.invars[0].aval.shape, eqn.params["reps"], strict=True):
        if times == 1 or axis is None:
            axes.append(axis)
        elif n == 1:
            axes.append(spread(axis, times))
        else:
            axes.append(through(axis, listing([i % n] for i in range(n * times)), n * times) if 0 < n * times <= MAX_PHASES else None)
    return View(tuple(axes))
