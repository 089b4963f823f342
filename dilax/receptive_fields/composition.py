"""What one reach sees through another, and the union of two."""

import dataclasses
import math

from dilax.receptive_fields.reach import EMPTY, MAX_PHASES, NOTHING, IndexSet, Reach, Span, clip, contains, ends, hull, members, union


def compose(first: Reach, second: Reach, size: int, positions: int, samples: int) -> Reach | None:
    """Return what the outputs of `second` see through `first`.

    Args:
        first: What each of the `positions` along an axis sees of the `samples` of the input.
        second: What each of the `size` outputs sees of those positions; positions outside the axis are padding.
        size: Number of outputs.
        positions: Number of positions.
        samples: Number of samples.

    Returns:
        None if there are too many phases.
    """
    listed = first.listed or second.listed
    outputs = size if listed else len(second.sets) * math.lcm(second.inputs, len(first.sets)) // second.inputs
    if outputs > MAX_PHASES:
        return None
    rate, equivariant = first.rate * second.rate, first.equivariant and second.equivariant
    if listed:
        sets = tuple(_through(first, second.seen(output), positions) for output in range(size))
        return Reach(rate, sets, listed, equivariant)
    lo, hi = _positions_read(second, size)
    if lo < 0 or hi >= positions:
        first = first.bounded(0 if lo < 0 else None, positions if hi >= positions else None, samples)
    sets = tuple(union(first.at(index) for index in members(*second.at(output))) for output in range(outputs))
    needs = None
    if first.needs or second.needs:
        needs = tuple(_need_through(first, second, output) for output in range(outputs))
    reach = Reach(rate, sets, listed, equivariant, simplify(needs, sets))
    border = _candidates(first, second, size)
    if len(border) > MAX_PHASES:
        return None
    return with_border(reach, {output: _through(first, second.seen(output), positions) for output in border}, samples)


def merge(a: Reach, b: Reach, size: int, samples: int) -> Reach | None:
    """Return the union of what `a` and `b` see, for an axis of `size` outputs; None if there are too many phases."""
    if a == b:
        return a
    # Different rates have no common period.
    listed = a.listed or b.listed or a.rate != b.rate
    outputs = size if listed else math.lcm(len(a.sets), len(b.sets))
    if outputs > MAX_PHASES:
        return None
    equivariant = a.equivariant and b.equivariant
    if listed:
        return Reach(a.rate, tuple(union((a.seen(output), b.seen(output))) for output in range(size)), listed, equivariant)
    sets = tuple(union((a.at(output), b.at(output))) for output in range(outputs))
    needs = None
    if a.needs or b.needs:
        needs = tuple(hull((a.need(output), b.need(output))) for output in range(outputs))
    reach = Reach(a.rate, sets, listed, equivariant, simplify(needs, sets))
    border = a.exceptions.keys() | b.exceptions.keys()
    return with_border(reach, {output: union((a.seen(output), b.seen(output))) for output in border}, samples)


def simplify(needs: tuple[Span, ...] | None, sets: tuple[IndexSet, ...]) -> tuple[Span, ...] | None:
    """Return None if all that outputs need is what they see."""
    return None if needs == tuple(map(ends, sets)) else needs


def with_border(reach: Reach, seen: dict[int, IndexSet], samples: int) -> Reach:
    """Return a reach with those outputs as its border that see samples of the input beyond the ends of their set."""
    border = []
    for output, indices in sorted(seen.items()):
        inside = clip(ends(indices), samples)
        if not contains(ends(reach.at(output)), inside):
            border.append((output, inside))
    return dataclasses.replace(reach, border=tuple(border)) if border or reach.border else reach


def _through(first: Reach, indices: IndexSet, positions: int) -> IndexSet:
    """Return what is seen through the positions in a set; positions outside the axis count with what they would see of padding."""
    return union(first.seen(i) if 0 <= i < positions else first.at(i) for i in members(*indices)) if indices[1] else EMPTY


def _positions_read(second: Reach, size: int) -> Span:
    """Return the first and the last position that any of the outputs reads."""
    count = min(len(second.sets), size)
    edges = {*range(count), *range(size - count, size)}
    return hull(span for output in edges for span in (ends(second.at(output)), second.need(output)) if span != NOTHING)


def _need_through(first: Reach, second: Reach, output: int) -> Span:
    """Return what an output needs: all that the positions need that it reads or needs."""
    positions = {*members(*second.at(output)), *(i for i in second.need(output) if abs(i) < NOTHING[0])}
    return hull(first.need(i) for i in positions)


def _candidates(first: Reach, second: Reach, size: int) -> set[int]:
    """Return the outputs of which something is read at the border."""
    outputs = set(second.exceptions)
    shifts = [(lo - phase * second.rate, hi - phase * second.rate) for phase, (lo, hi) in enumerate(map(ends, second.sets)) if lo <= hi]
    if shifts:
        least, most = min(lo for lo, _ in shifts), max(hi for _, hi in shifts)
        for position in first.exceptions:
            start, stop = math.ceil((position - most) / second.rate), math.floor((position - least) / second.rate) + 1
            outputs.update(range(max(start, 0), min(stop, size)))
    return outputs
