"""What an array sees of the input, axis by axis, and how elementwise operations combine it."""

import dataclasses
import functools
import math
from fractions import Fraction

import numpy as np

from dilax.receptive_fields.composition import compose, merge
from dilax.receptive_fields.constants import Constant
from dilax.receptive_fields.reach import GLOBAL, IDENTITY, MAX_PHASES, Reach, ReceptiveField, listing, repeat


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of an array that corresponds to a spatial axis of the input.

    Attributes:
        source: The spatial axis of the input.
        samples: The length of that axis.
        size: The length of the array's axis.
        reach: What the positions along the array's axis see of the input's axis.
    """

    source: int
    samples: int
    size: int
    reach: Reach = IDENTITY

    def through(self, reach: Reach, size: int) -> "Axis | None":
        """Return the axis after an operation whose `size` outputs see it through `reach`; None (seen whole) with too many phases."""
        composed = compose(self.reach, reach, size, self.size, self.samples)
        return composed and dataclasses.replace(self, reach=composed, size=size)

    def without_equivariance(self) -> "Axis":
        """Return the axis in a function that is not shift-equivariant along it."""
        return dataclasses.replace(self, reach=self.reach.without_equivariance())

    def inside(self, size: int) -> np.ndarray:
        """Return a mask of the positions, of `size`, that are not affected by the border; all of them if every position is."""
        mask = self.reach.intact(size, self.samples)
        return mask if mask.any() else ~mask


@dataclasses.dataclass(frozen=True)
class Merged:
    """Axes of which a reshape made one, in row-major order, so that a later reshape can tell them apart again.

    Attributes:
        parts: The axes, None for those that see a spatial axis whole or belong to none.
        sizes: Their lengths.
    """

    parts: "tuple[Axis | None, ...]"
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """The length of the array's axis."""
        return math.prod(self.sizes)

    def without_equivariance(self) -> "Merged":
        """Return the axes in a function that is shift-equivariant along none of them."""
        return dataclasses.replace(self, parts=tuple(part and part.without_equivariance() for part in self.parts))

    def leading(self) -> Axis | None:
        """Return the first of the axes, whose positions are repeated; the others are then seen whole."""
        first, size = self.parts[0], math.prod(self.sizes[1:])
        return first and first.through(repeat(size), self.size)


AnyAxis = Axis | Merged | None


@dataclasses.dataclass(frozen=True)
class View:
    """What an array sees of the input.

    Attributes:
        axes: For each axis of the array, the spatial axis of the input that it corresponds to, or None. A spatial axis of the input that
            no axis of the array corresponds to is seen whole.
        part: If the array was sliced from another: what that sees, the axis along which it was sliced, and the first position.
    """

    axes: tuple[AnyAxis, ...]
    part: "tuple[View, int, int] | None" = dataclasses.field(default=None, compare=False, repr=False)

    def reach(self, source: int) -> Reach | None:
        """Return the sets seen along a spatial axis of the input; None if it is seen whole."""
        axis = self._axis(source)
        return axis and axis.reach

    def field(self, source: int) -> ReceptiveField:
        """Return the receptive field along a spatial axis of the input."""
        axis = self._axis(source)
        return GLOBAL if axis is None else axis.reach.field()

    def _axis(self, source: int) -> Axis | None:
        return next((axis for axis in map(single, self.axes) if axis is not None and axis.source == source), None)


Operand = View | Constant


def global_view(shape: tuple[int, ...]) -> View:
    """Return the view of an array whose every element sees the whole input."""
    return View((None,) * len(shape))


def single(axis: AnyAxis) -> Axis | None:
    """Return an axis as one that corresponds to at most one axis of the input."""
    return axis.leading() if isinstance(axis, Merged) else axis


def through(axis: AnyAxis, reach: Reach, size: int) -> AnyAxis:
    """Return `Axis.through`, or None for no axis."""
    if axis is None or (reach == IDENTITY and size == axis.size):
        return axis
    alone = single(axis)
    return alone and alone.through(reach, size)


def spread(axis: AnyAxis, size: int) -> AnyAxis:
    """Return an axis of length 1 whose only position is repeated `size` times."""
    return through(axis, listing([[0]] * size, Fraction(1, size)), size) if 0 < size <= MAX_PHASES else None


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
    axes = (axis if n != m else beside_constant(axis, constant, i, n) for i, (axis, n, m) in enumerate(zip(view.axes, shape, result)))
    return View(tuple(axes))


def beside_constant(axis: AnyAxis, constant: Constant, i: int, size: int) -> AnyAxis:
    """Return an axis of that size in a function of a constant whose axis `i` lies beside it."""
    if axis is None or size == 1 or (isinstance(axis, Axis) and (axis.reach.listed or not axis.reach.equivariant)):
        return axis
    mask = axis.inside(size) if isinstance(axis, Axis) else np.ones(size, bool)
    return axis if constant.is_uniform(i, mask) else axis.without_equivariance()


def merge_views(a: View, b: View, shape: tuple[int, ...]) -> View:
    """Return the union of what two arrays of one shape see."""
    return View(tuple(map(merge_axes, a.axes, b.axes, shape)))


def merge_axes(a: AnyAxis, b: AnyAxis, size: int) -> AnyAxis:
    """Return the union of what two axes see that correspond to each other."""
    if isinstance(a, Merged) and isinstance(b, Merged) and a.sizes == b.sizes:
        return Merged(tuple(map(_merge_single, a.parts, b.parts, a.sizes)), a.sizes)
    return _merge_single(single(a), single(b), size)


def _merge_single(a: Axis | None, b: Axis | None, size: int) -> Axis | None:
    if a is None or b is None or a.source != b.source:
        return None
    merged = merge(a.reach, b.reach, size, a.samples)
    return merged and dataclasses.replace(a, reach=merged)


def _broadcast(view: View, shape: tuple[int, ...], result: tuple[int, ...]) -> View:
    """Return the view of an operand whose axes of length 1 are repeated: all positions along them see the same."""
    return (
        View(tuple(axis if n == m else spread(axis, m) for n, m, axis in zip(shape, result, view.axes))) if shape else global_view(result)
    )
