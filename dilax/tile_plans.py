"""How an image is divided for tiled inference: which windows are read, and which outputs of each window are kept.

Windows start and end at multiples of the function's period, so that strides and padding fall on the same samples as in the whole image.
A window is larger than the tile it yields by the halo, which is what its outputs see beyond the tile. Windows at the border of the image
end there, so that the function pads them as it pads the image.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax

from dilax.errors import UserError
from dilax.receptive_fields import ReceptiveField, receptive_fields

CALLER = "tiled"
# Long axes are analysed at one of these lengths (plus a remainder), since the analysis builds a matrix for every resize. Each common output
# stride divides one of the three: 320 and 512 (speech), 441 (10 ms of music), 2 to 64 (images).
SHORT_LENGTHS = (2880, 4096, 4410)
# Up to this length of an axis, and this many values, the whole image is analysed as well.
MAX_LENGTH, MAX_SAMPLES = 2**22, 2**26

Fn = Callable[[jax.Array], Any]
Shape = tuple[int, ...]
Tile = int | tuple[int | None, ...]
Fields = list[tuple[ReceptiveField, ...]]


@dataclasses.dataclass(frozen=True)
class AxisPlan:
    """How one axis is divided. All windows have the same number of samples along it and start at a multiple of the period.

    Attributes:
        size: Samples of a window.
        starts: The first sample of each window.
        steps: Input samples between neighbouring outputs, for each array that fn returns.
        edges: For each such array, the outputs at which the part kept of one window ends and that of the next begins, from 0 to the length.
    """

    size: int
    starts: Shape
    steps: tuple[Fraction, ...]
    edges: tuple[Shape, ...]

    def kept(self, output: int, window: int) -> tuple[slice, slice]:
        """Return which part of a window's output is kept, and where it belongs in the whole output."""
        first, stop = self.edges[output][window : window + 2]
        start = int(self.starts[window] / self.steps[output])
        return slice(first - start, stop - start), slice(first, stop)


@dataclasses.dataclass(frozen=True)
class Window:
    """One window.

    Attributes:
        samples: The slices of the image that it reads.
        outputs: For each array that fn returns, the slices that are kept of the window's output, and where they belong in the whole.
    """

    samples: tuple[slice, ...]
    outputs: tuple[tuple[tuple[slice, ...], tuple[slice, ...]], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TilePlan:
    """How an image is divided.

    Attributes:
        axes: One plan per spatial axis.
        leaves: Shapes and dtypes of the arrays that fn returns for the whole image.
        tree: The structure of what fn returns.
        whole: fn, traced for the whole image.
    """

    axes: tuple[AxisPlan, ...]
    leaves: tuple[Any, ...]
    tree: Any
    whole: Any

    def windows(self) -> Iterator[Window]:
        """Yield all windows in row-major order."""
        for index in itertools.product(*(range(len(axis.starts)) for axis in self.axes)):
            samples = (slice(axis.starts[i], axis.starts[i] + axis.size) for i, axis in zip(index, self.axes))
            outputs = []
            for output in range(len(self.leaves)):
                per_axis = [axis.kept(output, i) for i, axis in zip(index, self.axes)]
                kept, target = ((slice(None), *slices) for slices in zip(*per_axis))
                outputs.append((kept, target))
            yield Window((slice(None), *samples), tuple(outputs))


def make_plan(fn: Fn, tile: Tile, shape: Shape, dtype: Any) -> TilePlan:
    """Plan the windows for an image.

    Args:
        fn: The function to be tiled.
        tile: Samples that each window yields, as in `dilax.tiled`.
        shape: Shape of the image, (batch, *space, channels).
        dtype: Dtype of the image.

    Raises:
        UserError: if fn cannot be computed in windows.
    """
    whole = jax.jit(fn).trace(jax.ShapeDtypeStruct(shape, dtype))
    leaves, tree = jax.tree.flatten(whole.out_info)
    if not leaves:
        raise UserError(f"{CALLER}: fn returns no array; give a function that returns one, or a pytree of arrays.")
    for leaf in leaves:
        if len(leaf.shape) != len(shape):
            raise UserError(
                f"{CALLER}: fn maps {shape} to {tuple(leaf.shape)}; it must keep the number of axes: (batch, *space, channels)."
            )
    space = shape[1:-1]
    tiles = tile if isinstance(tile, tuple) else (tile,) * len(space)
    divided = [axis for axis, (n, size) in enumerate(zip(space, tiles)) if size is not None and size < n]
    axes = [AxisPlan(n, (0,), (Fraction(1),) * len(leaves), tuple((0, leaf.shape[1 + i]) for leaf in leaves)) for i, n in enumerate(space)]
    if divided:
        fields = _analyse(fn, shape, dtype, divided, leaves)
        for axis in divided:
            along = _check_fields(fields, axis, space[axis], tiles[axis])
            axes[axis] = _divide(space[axis], tiles[axis] or 1, along, [leaf.shape[1 + axis] for leaf in leaves])
        _check_windows(fn, shape, dtype, axes, fields, leaves)
    return TilePlan(tuple(axes), tuple(leaves), tree, whole)


def _analyse(fn: Fn, shape: Shape, dtype: Any, divided: Sequence[int], leaves: Sequence[Any]) -> Fields:
    """Return the receptive fields of every output of fn, from an image with shorter axes where the result is the same."""
    found: Fields | None = None
    for length in SHORT_LENGTHS:
        short = tuple(length + n % length if i - 1 in divided and n >= 2 * length else n for i, n in enumerate(shape))
        if short == shape:
            break
        analysed = _analyse_short(fn, short, dtype)
        if analysed is None:
            continue
        found, short_leaves = analysed
        along = [
            (fields[i], shape[1 + i] - short[1 + i], leaf.shape[1 + i] - short_leaf.shape[1 + i])
            for fields, leaf, short_leaf in zip(found, leaves, short_leaves)
            for i in divided
            if fields
        ]
        # The result is the same if whole periods were left out, together with all of their outputs.
        if all(field.period and inputs % field.period == 0 and outputs * field.stride == inputs for field, inputs, outputs in along):
            return _confirm(found, fn, shape, dtype)
    else:
        # Without a period at any of the short lengths, there is none in the whole image.
        if found and not all(fields[i].period for fields in found for i in divided if fields):
            return found
    return receptive_fields(fn, jax.ShapeDtypeStruct(shape, dtype))


def _confirm(found: Fields, fn: Fn, shape: Shape, dtype: Any) -> Fields:
    """Return the fields of the whole image, and those found in a shorter one where the analysis of the whole gives up.

    A function may treat a position apart that the shorter image does not have.
    """
    if max(shape) > MAX_LENGTH or math.prod(shape) > MAX_SAMPLES:
        return found
    whole = receptive_fields(fn, jax.ShapeDtypeStruct(shape, dtype))
    return [tuple(short if full.size is None else full for full, short in zip(*fields)) for fields in zip(whole, found)]


def _analyse_short(fn: Fn, shape: Shape, dtype: Any) -> tuple[Fields, list[Any]] | None:
    """Return the receptive fields of fn and what it returns, or None if an image of that shape is too small for it."""
    try:
        leaves = jax.tree.leaves(_trace(jax.eval_shape, fn, shape, dtype))
    except UserError:  # the whole image is analysed then, and what is wrong with it, if anything, is raised
        return None
    if any(0 in leaf.shape for leaf in leaves):
        return None
    return _trace(receptive_fields, fn, shape, dtype), leaves


def _check_fields(fields: Fields, axis: int, length: int, tile: int | None) -> list[ReceptiveField]:
    """Return the receptive field of every output along an axis, or raise if the axis cannot be divided."""
    along = []
    for leaf, field in enumerate(fields):
        name = f"output {leaf} of fn" if len(fields) > 1 else "fn"
        if not field:
            raise UserError(f"{CALLER}: {name} does not depend on the image; return it from another function.")
        if field[axis].size is None:
            raise UserError(
                f"{CALLER}: {name} depends on all {length} samples of spatial axis {axis}, more than tile={tile} (a global mean, "
                f'attention, a dense layer); pass the mean from a first pass with reduce="mean" to {name}, or use None for that axis of '
                "tile."
            )
        if field[axis].period is None:
            raise UserError(
                f"{CALLER}: {name} depends on the position along spatial axis {axis}, of {length} samples (a resize to a size that is not "
                "a multiple, coordinates, wrap-around padding); crop or pad the image to a multiple of the output stride, or use None for "
                "that axis of tile."
            )
        along.append(field[axis])
    return along


def _divide(length: int, tile: int, fields: Sequence[ReceptiveField], outputs: Sequence[int]) -> AxisPlan:
    """Divide an axis, given the receptive field and the number of outputs of every array along it."""
    period = math.lcm(*(field.period or 1 for field in fields))
    advance = max(tile // period, 1) * period
    steps = tuple(Fraction(field.stride) for field in fields)
    # The samples that an output must have on its left and right within the window, so as not to be affected by padding.
    halos = [(field.left + field.trimmed[0], field.right + field.trimmed[1]) for field in fields]
    # The first output of a window that can be kept, and one past the last that is needed to reach the first of the next window.
    firsts = [max(math.ceil(left / step), 0) for (left, _), step in zip(halos, steps)]
    stops = [first + int(advance / step) for first, step in zip(firsts, steps)]
    size = 1
    for (_, right), step, stop, count in zip(halos, steps, stops, outputs):
        # The last output must see nothing beyond the window, and must exist: windows lose the same outputs to VALID padding and cropping
        # as the image. This leaves room for a whole receptive field, which reflecting padding needs.
        size = max(size, math.floor((stop - 1) * step) + right + 1, math.ceil(length - step * (count - stop)))
    size += (length - size) % period
    if size >= length:
        return AxisPlan(length, (0,), steps, tuple((0, count) for count in outputs))
    starts = (*range(0, length - size, advance), length - size)
    edges = [(0, *(int(start / step) + first for start in starts[1:]), count) for step, first, count in zip(steps, firsts, outputs)]
    return AxisPlan(size, starts, steps, tuple(edges))


def _check_windows(fn: Fn, shape: Shape, dtype: Any, axes: Sequence[AxisPlan], fields: Fields, leaves: Sequence[Any]) -> None:
    """Check that fn treats windows as it treats the image, as far as shapes and receptive fields can tell."""
    for axis, plan in enumerate(axes):
        if len(plan.starts) > 1:
            _check_window_shapes(fn, shape, dtype, axis, plan, leaves)
    window = (shape[0], *(plan.size for plan in axes), shape[-1])
    for whole, part in zip(fields, _trace(receptive_fields, fn, window, dtype)):
        for axis, plan in enumerate(axes):
            if len(plan.starts) > 1 and whole[axis] != part[axis]:
                raise UserError(
                    f"{CALLER}: along spatial axis {axis}, the receptive field is {whole[axis]} in the image, but {part[axis]} in a window "
                    f"of {plan.size} samples; use a larger tile, and let every size in fn follow from that of its input."
                )


def _check_window_shapes(fn: Fn, shape: Shape, dtype: Any, axis: int, plan: AxisPlan, leaves: Sequence[Any]) -> None:
    """Check the output shapes of a window that is shorter along one axis only, which detects a function that transposes the image."""
    window = (*shape[: 1 + axis], plan.size, *shape[2 + axis :])
    actual = [tuple(leaf.shape) for leaf in jax.tree.leaves(_trace(jax.eval_shape, fn, window, dtype))]
    missing = [int((shape[1 + axis] - plan.size) / step) for step in plan.steps]
    expected = [(*leaf.shape[: 1 + axis], leaf.shape[1 + axis] - n, *leaf.shape[2 + axis :]) for leaf, n in zip(leaves, missing)]
    if actual != expected:
        actual_text, expected_text = (" and ".join(map(str, shapes)) for shapes in (actual, expected))
        raise UserError(
            f"{CALLER}: fn maps a window of shape {window} to {actual_text}, not to {expected_text}, as its result for the whole image "
            "implies; the size of its output must follow from the size of its input along the same axis."
        )


def _trace(analyse: Callable[..., Any], fn: Fn, shape: Shape, dtype: Any) -> Any:
    """Analyse fn for a shape other than the image's, which fn may not accept."""
    try:
        return analyse(fn, jax.ShapeDtypeStruct(shape, dtype))
    except Exception as error:  # fn is the user's and may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{CALLER}: fn accepts the image, but not a part of it of shape {shape}: {reason}; use None in tile for axes to be kept whole."
        ) from error
