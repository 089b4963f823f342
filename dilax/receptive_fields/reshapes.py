"""Axes that a reshape splits and merges."""

import math

from dilax.receptive_fields.reach import repeat, window
from dilax.receptive_fields.views import AnyAxis, Axis, Merged, single, spread, through

Shape = tuple[int, ...]


def reshape(axes: tuple[AnyAxis, ...], old: Shape, new: Shape) -> tuple[AnyAxis, ...]:
    """Return the axes of an array of shape `old` after it is reshaped to `new`.

    An axis becomes the new axis that starts where it started: unchanged, repeated (merged with later axes), or in windows (split). Merged
    axes are separated again where a later reshape splits them.
    """
    if 0 in old:
        return (None,) * len(new)
    axes, old = _unmerge(axes, old)
    result = _follow_starts(axes, old, new)
    for target, sources in _merges(old, new).items():
        # The leading axis alone is repeated, which windows may run along.
        if any(axes[i] is not None for i in sources[1:]):
            result[target] = Merged(tuple(single(axes[i]) for i in sources), tuple(old[i] for i in sources))
    return tuple(result)


def _unmerge(axes: tuple[AnyAxis, ...], shape: Shape) -> tuple[tuple[Axis | None, ...], Shape]:
    """Return the axes and the shape in which merged axes stand side by side."""
    pairs: list[tuple[Axis | None, int]] = []
    for axis, n in zip(axes, shape):
        pairs.extend(zip(axis.parts, axis.sizes) if isinstance(axis, Merged) else [(axis, n)])
    return tuple(axis for axis, _ in pairs), tuple(n for _, n in pairs)


def _follow_starts(axes: tuple[Axis | None, ...], old: Shape, new: Shape) -> list[AnyAxis]:
    """Return the new axes, each of which is the old axis that starts where it starts, if there is one."""
    result: list[AnyAxis] = [None] * len(new)
    ones_old, ones_new = _unit_axes(old), _unit_axes(new)
    starts = {math.prod(new[:i]): i for i, n in enumerate(new) if n > 1}
    for i, axis in enumerate(axes):
        before, after = math.prod(old[:i]), math.prod(old[i + 1 :])
        if axis is None:
            continue
        if old[i] == 1:
            # All positions see the same, so that any new axis may stand for it; the others of length 1 keep their order.
            ones, place = ones_new.get(before, ()), ones_old[before].index(i)
            if place < len(ones):
                result[ones[place]] = axis
            elif before in starts and result[starts[before]] is None:
                result[starts[before]] = spread(axis, new[starts[before]])
        elif before in starts:
            target = starts[before]
            stride = math.prod(new[target + 1 :])
            common = math.gcd(after, stride)
            finer = through(axis, repeat(after // common), old[i] * (after // common))
            result[target] = through(finer, window(stride // common, stride // common), new[target])
    return result


def _merges(old: Shape, new: Shape) -> dict[int, list[int]]:
    """Return the new axes that are several old ones, with the numbers of those."""
    merges = {}
    for target, n in enumerate(new):
        before = math.prod(new[:target])
        sources = [i for i in range(len(old)) if old[i] > 1 and before <= math.prod(old[:i]) < before * n]
        aligned = sources and math.prod(old[: sources[0]]) == before and math.prod(old[i] for i in sources) == n
        if n > 1 and aligned and len(sources) > 1:
            merges[target] = sources
    return merges


def _unit_axes(shape: Shape) -> dict[int, list[int]]:
    """Return the axes of length 1, keyed by the product of the axes before them."""
    axes: dict[int, list[int]] = {}
    for i, n in enumerate(shape):
        if n == 1:
            axes.setdefault(math.prod(shape[:i]), []).append(i)
    return axes
