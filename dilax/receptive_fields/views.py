"""What an array sees of the input, axis by axis, and how elementwise operations join that."""

import dataclasses
import functools

import numpy as np

from dilax.receptive_fields.constants import Constant
from dilax.receptive_fields.reach import GLOBAL, IDENTITY, Reach, ReceptiveField, both, chain


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of an array that stands for one of the input's space.

    Attributes:
        source: Which of them.
        samples: Its length.
        size: The length of the array's axis.
        reach: What the places along the array's axis see of it.
        trimmed: As `ReceptiveField`.
    """

    source: int
    samples: int
    size: int
    reach: Reach = IDENTITY
    trimmed: tuple[int, int] = (0, 0)

    def through(self, reach: Reach, size: int) -> "Axis | None":
        """The axis after an operation whose `size` outputs see that of it; None, seen whole, if it has too many phases."""
        found = chain(self.reach, reach, size)
        return found and dataclasses.replace(self, reach=found, size=size, trimmed=self._padded(reach.reads(self.size, size)))

    def _padded(self, places: set[int]) -> tuple[int, int]:
        """What counts as trimmed when padding stands at these places, outside of the axis, that would see samples of the input."""
        before, after = self.trimmed
        for place in places:
            first, bits = self.reach.at(place)
            if bits and place < 0:
                before = max(before, first + 1)
            elif bits:
                after = max(after, self.samples - first - bits.bit_length() + 1)
        return before, after

    def pinned(self) -> "Axis":
        """The axis in a function that does not commute with shifts along it."""
        return dataclasses.replace(self, reach=self.reach.pinned())

    def inside(self, size: int) -> np.ndarray:
        """Which of `size` places see no padding; all of them if every place does."""
        found = np.array([self.reach.lies_inside(place, self.samples) for place in range(size)], bool)
        return found if found.any() else ~found


@dataclasses.dataclass(frozen=True)
class View:
    """What an array sees: for each of its axes, None or the axis of the input's space that it stands for.

    An axis of the input that no axis of the array stands for is seen as a whole.
    """

    axes: tuple[Axis | None, ...]

    def reach(self, source: int) -> Reach | None:
        """The sets seen along an axis of the input; None is the whole axis."""
        return next((axis.reach for axis in self.axes if axis is not None and axis.source == source), None)

    def field(self, source: int) -> ReceptiveField:
        """The receptive field along an axis of the input."""
        axis = next((axis for axis in self.axes if axis is not None and axis.source == source), None)
        return GLOBAL if axis is None else dataclasses.replace(axis.reach.field(), trimmed=axis.trimmed)


Operand = View | Constant


def whole(shape: tuple[int, ...]) -> View:
    """An array of which every place sees the whole input."""
    return View((None,) * len(shape))


def through(axis: Axis | None, reach: Reach, size: int) -> Axis | None:
    """`Axis.through`, where there is one."""
    return axis and axis.through(reach, size)


def joined(operands: list[Operand], shapes: list[tuple[int, ...]], result: tuple[int, ...]) -> View:
    """The view of an elementwise operation; shapes may be 1 where the result's is longer, or ()."""
    views = [_stretched(view, shape, result) for view, shape in zip(operands, shapes) if isinstance(view, View)]
    found = functools.reduce(lambda a, b: either(a, b, result), views)
    for operand, shape in zip(operands, shapes):
        if isinstance(operand, Constant):
            found = laid_along(found, operand, shape, result)
    return found


def laid_along(view: View, constant: Constant, shape: tuple[int, ...], result: tuple[int, ...]) -> View:
    """The view after it meets a constant of that shape: not the same function everywhere, if the constant is not level."""
    if not shape:
        return view
    axes = [
        axis.pinned()
        if axis and n == m > 1 and axis.reach.shifts and not axis.reach.listed and not constant.level(i, axis.inside(m))
        else axis
        for i, (axis, n, m) in enumerate(zip(view.axes, shape, result))
    ]
    return View(tuple(axes))


def either(a: View, b: View, shape: tuple[int, ...]) -> View:
    """What arrays of one shape see together."""
    return View(tuple(map(_either, a.axes, b.axes, shape)))


def _either(a: Axis | None, b: Axis | None, size: int) -> Axis | None:
    if a is None or b is None or a.source != b.source:
        return None
    found = both(a.reach, b.reach, size)
    return found and dataclasses.replace(a, reach=found, trimmed=most(a.trimmed, b.trimmed))


def most(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """The larger at each end."""
    return max(a[0], b[0]), max(a[1], b[1])


def _stretched(view: View, shape: tuple[int, ...], result: tuple[int, ...]) -> View:
    """The view of an operand whose axes of length 1 are repeated: all places there see the same."""
    return View(tuple(axis if n == m else None for n, m, axis in zip(shape, result, view.axes))) if shape else whole(result)
