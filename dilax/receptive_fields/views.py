"""What an array sees of the input, axis by axis, and how elementwise operations combine it."""

import dataclasses
import functools

import numpy as np

from dilax.receptive_fields.constants import Constant
from dilax.receptive_fields.reach import GLOBAL, IDENTITY, Reach, ReceptiveField, compose, merge


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of an array that corresponds to a spatial axis of the input.

    Attributes:
        source: The spatial axis of the input.
        samples: The length of that axis.
        size: The length of the array's axis.
        reach: What the positions along the array's axis see of the input's axis.
        trimmed: As in `ReceptiveField`.
    """

    source: int
    samples: int
    size: int
    reach: Reach = IDENTITY
    trimmed: tuple[int, int] = (0, 0)

    def through(self, reach: Reach, size: int) -> "Axis | None":
        """Return the axis after an operation whose `size` outputs see it through `reach`; None (seen whole) with too many phases."""
        composed = compose(self.reach, reach, size)
        if composed is None:
            return None
        trimmed = self._trimmed_by(reach.padding_indices(self.size, size))
        return dataclasses.replace(self, reach=composed, size=size, trimmed=trimmed)

    def _trimmed_by(self, padding: set[int]) -> tuple[int, int]:
        """Return `trimmed` once padding takes the place of indices outside the axis that would have seen samples of the input."""
        before, after = self.trimmed
        for index in padding:
            first, bits = self.reach.at(index)
            if bits and index < 0:
                before = max(before, first + 1)
            elif bits:
                after = max(after, self.samples - first - bits.bit_length() + 1)
        return before, after

    def without_equivariance(self) -> "Axis":
        """Return the axis in a function that is not shift-equivariant along it."""
        return dataclasses.replace(self, reach=self.reach.without_equivariance())

    def inside(self, size: int) -> np.ndarray:
        """Return a mask of the positions, of `size`, that see no padding; all of them if every position sees some."""
        mask = np.array([self.reach.lies_inside(position, self.samples) for position in range(size)], bool)
        return mask if mask.any() else ~mask


@dataclasses.dataclass(frozen=True)
class View:
    """What an array sees of the input.

    Attributes:
        axes: For each axis of the array, the spatial axis of the input that it corresponds to, or None. A spatial axis of the input that
            no axis of the array corresponds to is seen whole.
    """

    axes: tuple[Axis | None, ...]

    def reach(self, source: int) -> Reach | None:
        """Return the sets seen along a spatial axis of the input; None if it is seen whole."""
        return next((axis.reach for axis in self.axes if axis is not None and axis.source == source), None)

    def field(self, source: int) -> ReceptiveField:
        """Return the receptive field along a spatial axis of the input."""
        axis = next((axis for axis in self.axes if axis is not None and axis.source == source), None)
        return GLOBAL if axis is None else dataclasses.replace(axis.reach.field(), trimmed=axis.trimmed)


Operand = View | Constant


def global_view(shape: tuple[int, ...]) -> View:
    """Return the view of an array whose every element sees the whole input."""
    return View((None,) * len(shape))


def through(axis: Axis | None, reach: Reach, size: int) -> Axis | None:
    """Return `Axis.through`, or None for no axis."""
    return axis and axis.through(reach, size)


def elementwise(operands: list[Operand], shapes: list[tuple[int, ...]], result: tuple[int, ...]) -> View:
    """Return the view of an elementwise operation; a shape may be (), or 1 where the result is longer."""
    views = [_broadcast(view, shape, result) for view, shape in zip(operands, shapes) if isinstance(view, View)]
    merged = functools.reduce(lambda a, b: merge_views(a, b, result), views)
    for operand, shape in zip(operands, shapes):
        if isinstance(operand, Constant):
            merged = with_constant(merged, operand, shape, result)
    return merged


def with_constant(view: View, constant: Constant, shape: tuple[int, ...], result: tuple[int, ...]) -> View:
    """Return the view after it is combined with a constant of that shape: not equivariant along axes where the constant varies."""
    if not shape:
        return view
    axes = [
        axis.without_equivariance()
        if axis and n == m > 1 and axis.reach.equivariant and not axis.reach.listed and not constant.is_uniform(i, axis.inside(m))
        else axis
        for i, (axis, n, m) in enumerate(zip(view.axes, shape, result))
    ]
    return View(tuple(axes))


def merge_views(a: View, b: View, shape: tuple[int, ...]) -> View:
    """Return the union of what two arrays of one shape see."""
    return View(tuple(map(_merge_axes, a.axes, b.axes, shape)))


def _merge_axes(a: Axis | None, b: Axis | None, size: int) -> Axis | None:
    if a is None or b is None or a.source != b.source:
        return None
    merged = merge(a.reach, b.reach, size)
    return merged and dataclasses.replace(a, reach=merged, trimmed=maximum(a.trimmed, b.trimmed))


def maximum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Return the elementwise maximum of two pairs."""
    return max(a[0], b[0]), max(a[1], b[1])


def _broadcast(view: View, shape: tuple[int, ...], result: tuple[int, ...]) -> View:
    """Return the view of an operand whose axes of length 1 are repeated: all positions along them see the same."""
    return View(tuple(axis if n == m else None for n, m, axis in zip(shape, result, view.axes))) if shape else global_view(result)
