"""Exact inference on images, volumes and recordings that do not fit into memory as a whole: window by window, without seams.

A window begins and ends where the function's period allows, so that strides and padding fall on the same samples as in the whole image; it
is larger than what it yields by the halo, what outputs see beyond it; and at the border of the image it ends there, so that the padding of
the function itself is the same. So every output that is kept sees just what it sees in the whole image.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dilax.errors import UserError
from dilax.geometry import is_integer
from dilax.receptive_fields import ReceptiveField, receptive_fields

CALLER = "tiled"
# Axes of twice this length and more are analysed at a shorter one, by a multiple of it: resizes are matrices to the analysis. One of the
# three is a multiple of every output stride in use: 320 and 512 (speech), 441 (a hundredth of a second of music), 2 to 64 (images).
SHORT = (2880, 4096, 4410)

Shape = tuple[int, ...]
Tile = int | tuple[int | None, ...]
Fields = list[tuple[ReceptiveField, ...]]


def tiled(fn: Callable[[jax.Array], Any], tile: Tile = (512, 512), *, batch_size: int = 1, reduce: str | None = None) -> Callable[..., Any]:
    """Make a function run in windows of bounded size, with the result that it has on the whole image.

    The halo comes from `receptive_field(fn, image)`: windows are larger by `left + right` of it than the tiles they yield. All windows have
    one shape, so fn is compiled once; memory is that of `batch_size` windows, besides the image and the result.

    Args:
        fn: Maps (batch, *space, channels) to (batch, *space_out, channels_out), or to a tree of such arrays; any number of spatial axes.
            Only what it computes from x along space is followed: it may not use the length of x as a number (x / x.shape[1]).
        tile: Samples that a window yields, an int for all axes or one per axis, None for an axis that is never cut. It is rounded down to
            a multiple of the function's period (its output stride), but not to 0. Images that are no larger run whole.
        batch_size: Windows computed at once.
        reduce: "mean" gives the mean over space of the outputs, (batch, channels_out), instead of the outputs; nothing of the size of the
            image is held.

    Returns:
        A function of an image (batch, *space, channels): an array, a `np.memmap`, or anything with shape, dtype and slicing. It returns
        numpy arrays that are equal to `fn(image)` but for rounding; `jax.image.resize` rounds the places that it reads, in long images by
        1e-4 of a sample and more, unless it enlarges by a power of 2; `dilax.resize` does not. The argument `out` takes an array, or a tree
        of them, to write to, such as a `np.memmap`.

    Raises:
        UserError: when made, if an argument is wrong. When called, if fn cannot be computed in windows: an output sees a whole axis that is
            longer than the tile; places differ by more than what they see (coordinates; a resize to a size that does not fit); the analysis
            does not know an operation.

    Example:
        >>> from dilax.functional import dilated_conv
        >>> features = lambda x: dilated_conv(x, jnp.ones((3, 3, 1, 2)), dilation=6)
        >>> image = np.ones((1, 90, 70, 1), np.float32)
        >>> tiled(features, tile=(32, 32))(image).shape
        (1, 90, 70, 2)

        A model that pools over the whole image takes two passes, if it can be given the mean that it pools. The first pass computes that
        of its features, the second all that follows:

        >>> mean = tiled(features, tile=(32, 32), reduce="mean")(image)
        >>> y = tiled(lambda x: features(x) - mean[:, None, None], tile=(32, 32))(image)
        >>> float(abs(y - (features(image) - features(image).mean((1, 2), keepdims=True))).max()) < 1e-4
        True

        With the DeepLab models:

            features = lambda x: model.apply(variables, x, train=False, method="features")[-1]
            mean = tiled(features, tile, reduce="mean")(image)
            logits = tiled(lambda x: model.apply(variables, x, train=False, image_mean=mean), tile)(image)
    """
    sizes = tile if isinstance(tile, tuple) else (tile,)
    if not sizes or not all(size is None or (is_integer(size) and size > 0) for size in sizes):
        raise UserError(f"{CALLER}: tile={tile!r} must be a positive int, or a tuple with one per spatial axis (None: never cut).")
    if not is_integer(batch_size) or batch_size < 1:
        raise UserError(f"{CALLER}: batch_size={batch_size!r} is not a positive integer; use 1 or more.")
    if reduce not in (None, "mean"):
        raise UserError(f'{CALLER}: reduce={reduce!r} is not known; use "mean", or None for the outputs themselves.')
    plan_of = functools.lru_cache(lambda shape, dtype: _plan(fn, tile, shape, dtype))
    run = jax.jit(lambda xs, spans: _windows_at_once(fn, xs, spans, batch_size, reduce))

    def apply(image: Any, out: Any = None) -> Any:
        # Every other slice of an array of jax would be a program to compile.
        image = np.asarray(image) if isinstance(image, jax.Array) else image
        plan = plan_of(_shape(image, tile), jax.dtypes.canonicalize_dtype(image.dtype))
        if reduce:
            if out is not None:
                raise UserError(f'{CALLER}: reduce="mean" gives small arrays that are returned; leave out= away.')
            return _mean(plan, _computed(plan, run, image, batch_size))
        results = _results(plan, out)
        for window, ys in _computed(plan, run, image, batch_size):
            for result, y, (kept, place) in zip(results, ys, window.outputs):
                result[place] = y[kept]
        return jax.tree.unflatten(plan.tree, results) if out is None else out

    return apply


@dataclasses.dataclass(frozen=True)
class Cut:
    """How one axis is cut. Along it, every window has the same number of samples and begins at a multiple of the period.

    Attributes:
        size: Samples of a window.
        starts: The first sample of each.
        steps: Input samples between neighbouring outputs, for every array that fn returns.
        edges: For every such array, the outputs where what is kept of one window ends and that of the next begins; 0 first, all last.
    """

    size: int
    starts: Shape
    steps: tuple[Fraction, ...]
    edges: tuple[Shape, ...]

    def kept(self, output: int, window: int) -> tuple[slice, slice]:
        """What of a window's output is kept, and where it belongs."""
        first, last = self.edges[output][window : window + 2]
        start = int(self.starts[window] / self.steps[output])
        return slice(first - start, last - start), slice(first, last)


@dataclasses.dataclass(frozen=True)
class Window:
    """One window: the samples it reads, and for every array that fn returns, what is kept of it and where that belongs."""

    samples: tuple[slice, ...]
    outputs: tuple[tuple[tuple[slice, ...], tuple[slice, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The windows of an image, and the shapes and dtypes of what fn makes of the whole of it, as leaves of a tree."""

    cuts: tuple[Cut, ...]
    leaves: tuple[Any, ...]
    tree: Any

    def windows(self) -> Iterator[Window]:
        """All windows, row by row."""
        for turn in itertools.product(*(range(len(cut.starts)) for cut in self.cuts)):
            samples = (slice(cut.starts[i], cut.starts[i] + cut.size) for i, cut in zip(turn, self.cuts))
            outputs = []
            for output in range(len(self.leaves)):
                along = [cut.kept(output, i) for i, cut in zip(turn, self.cuts)]
                kept, place = ((slice(None), *slices) for slices in zip(*along))
                outputs.append((kept, place))
            yield Window((slice(None), *samples), tuple(outputs))


def _shape(image: Any, tile: Tile) -> Shape:
    shape = tuple(map(int, image.shape))
    if len(shape) < 3:
        raise UserError(f"{CALLER}: an image of shape {shape} must be (batch, *space, channels).")
    if isinstance(tile, tuple) and len(tile) != len(shape) - 2:
        raise UserError(
            f"{CALLER}: tile={tile} has {len(tile)} entries for the {len(shape) - 2} spatial axes of an image of shape {shape}; "
            "give an int or one entry per axis."
        )
    return shape


def _plan(fn: Callable[[jax.Array], Any], tile: Tile, shape: Shape, dtype: Any) -> Plan:
    leaves, tree = jax.tree.flatten(jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, dtype)))
    for leaf in leaves:
        if len(leaf.shape) != len(shape):
            raise UserError(
                f"{CALLER}: fn maps {shape} to {tuple(leaf.shape)}; it must keep the number of axes: (batch, *space, channels)."
            )
    space = shape[1:-1]
    tiles = tile if isinstance(tile, tuple) else (tile,) * len(space)
    longer = [axis for axis, (n, size) in enumerate(zip(space, tiles)) if size is not None and size < n]
    cuts = [Cut(n, (0,), (Fraction(1),) * len(leaves), tuple((0, leaf.shape[1 + i]) for leaf in leaves)) for i, n in enumerate(space)]
    if longer:
        fields = _fields(fn, shape, dtype, longer, leaves)
        for axis in longer:
            along = _along(fields, axis, space[axis], tiles[axis])
            cuts[axis] = _cut(space[axis], tiles[axis] or 1, along, [leaf.shape[1 + axis] for leaf in leaves])
        _check_windows(fn, shape, dtype, cuts, fields, leaves)
    return Plan(tuple(cuts), tuple(leaves), tree)


def _fields(fn: Callable[[jax.Array], Any], shape: Shape, dtype: Any, longer: Sequence[int], leaves: Sequence[Any]) -> Fields:
    """The receptive fields of every array that fn returns; found on an image with shorter axes to be cut, if that is as good."""
    for common in SHORT:
        short = tuple(common + n % common if i - 1 in longer and n >= 2 * common else n for i, n in enumerate(shape))
        if short == shape:
            break
        found, made = _traced(receptive_fields, fn, short, dtype), jax.tree.leaves(_traced(jax.eval_shape, fn, short, dtype))
        along = [
            (fields[i], shape[1 + i] - short[1 + i], leaf.shape[1 + i] - part.shape[1 + i])
            for fields, leaf, part in zip(found, leaves, made)
            for i in longer
            if fields
        ]
        # As good, if what is left out is whole periods, and has the outputs that it should have.
        if all(field.period and inputs % field.period == 0 and outputs * field.stride == inputs for field, inputs, outputs in along):
            return found
    else:
        # Without a period on any of the shorter ones, there is none on the image.
        if not all(field.period for field, *_ in along):
            return found
    return receptive_fields(fn, jax.ShapeDtypeStruct(shape, dtype))


def _along(fields: Fields, axis: int, length: int, tile: int | None) -> list[ReceptiveField]:
    """The receptive fields along an axis that is to be cut."""
    found = []
    for leaf, field in enumerate(fields):
        name = f"output {leaf} of fn" if len(fields) > 1 else "fn"
        if not field:
            raise UserError(f"{CALLER}: {name} does not depend on the image; return it from another function.")
        if field[axis].size is None:
            raise UserError(
                f"{CALLER}: outputs of {name} see all {length} samples of spatial axis {axis}, more than tile={tile} (a global mean, "
                f'attention, a dense layer); give {name} that mean from a first pass with reduce="mean", or use None for that axis of tile.'
            )
        if field[axis].period is None:
            raise UserError(
                f"{CALLER}: {name} is not the same function everywhere along spatial axis {axis}, of {length} samples (a resize to a size "
                "that does not fit, coordinates, wrapping around); crop or pad the image to a multiple of the output stride, or use None "
                "for that axis of tile."
            )
        found.append(field[axis])
    return found


def _cut(length: int, tile: int, fields: Sequence[ReceptiveField], outputs: Sequence[int]) -> Cut:
    """Cut an axis, given what the outputs along it see and how many there are."""
    period = math.lcm(*(field.period or 1 for field in fields))
    advance = max(tile // period, 1) * period
    steps = tuple(Fraction(field.stride) for field in fields)
    # What an output must have on its left and on its right in the window, so as not to feel padding.
    halos = [(field.left + field.trimmed[0], field.right + field.trimmed[1]) for field in fields]
    # The first output of a window that can be kept, and one past the last that is needed to reach the next window's first.
    firsts = [max(math.ceil(left / step), 0) for (left, _), step in zip(halos, steps)]
    lasts = [first + int(advance / step) for first, step in zip(firsts, steps)]
    size = 1
    for (_, right), step, last, count in zip(halos, steps, lasts, outputs):
        # The last of them sees nothing after the window, and is there: the windows' outputs lack what the image's lack (VALID, cropping).
        # That leaves room for a whole field, which a border that mirrors the image needs.
        size = max(size, math.floor((last - 1) * step) + right + 1, math.ceil(length - step * (count - last)))
    size += (length - size) % period
    if size >= length:
        return Cut(length, (0,), steps, tuple((0, count) for count in outputs))
    starts = (*range(0, length - size, advance), length - size)
    edges = [(0, *(int(start / step) + first for start in starts[1:]), count) for step, first, count in zip(steps, firsts, outputs)]
    return Cut(size, starts, steps, tuple(edges))


def _check_windows(
    fn: Callable[[jax.Array], Any], shape: Shape, dtype: Any, cuts: Sequence[Cut], fields: Fields, leaves: Sequence[Any]
) -> None:
    """Check that fn does to windows what it does to the image, as far as shapes and receptive fields tell."""
    for axis, cut in enumerate(cuts):
        if len(cut.starts) == 1:
            continue
        # One axis at a time, so that a function that turns the image is found out.
        window = (*shape[: 1 + axis], cut.size, *shape[2 + axis :])
        made = jax.tree.leaves(_traced(jax.eval_shape, fn, window, dtype))
        fewer = [int((shape[1 + axis] - cut.size) / step) for step in cut.steps]
        wanted = [(*leaf.shape[: 1 + axis], leaf.shape[1 + axis] - n, *leaf.shape[2 + axis :]) for leaf, n in zip(leaves, fewer)]
        if [tuple(leaf.shape) for leaf in made] != wanted:
            found, expected = (" and ".join(map(str, shapes)) for shapes in ([tuple(leaf.shape) for leaf in made], wanted))
            raise UserError(
                f"{CALLER}: fn maps a window of shape {window} to {found}, not to {expected}, as it should by what it does to the image; "
                "its output must follow the size of its input along the same axis."
            )
    window = (shape[0], *(cut.size for cut in cuts), shape[-1])
    for one, other in zip(fields, _traced(receptive_fields, fn, window, dtype)):
        for axis, cut in enumerate(cuts):
            if len(cut.starts) > 1 and one[axis] != other[axis]:
                raise UserError(
                    f"{CALLER}: along spatial axis {axis}, outputs see {one[axis]} in the image, but {other[axis]} in a window of "
                    f"{cut.size} samples; use a larger tile, and give no size to resize to that does not follow from the input's."
                )


def _traced(analyse: Callable[..., Any], fn: Callable[[jax.Array], Any], shape: Shape, dtype: Any) -> Any:
    """Analyse fn on another shape than the image's, which it may not take."""
    try:
        return analyse(fn, jax.ShapeDtypeStruct(shape, dtype))
    except Exception as error:  # whatever a user's function raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{CALLER}: fn takes the image, but not a part of shape {shape}: {reason}; use None for axes to be kept."
        ) from error


def _computed(plan: Plan, run: Callable[..., list[jax.Array]], image: Any, batch_size: int) -> Iterator[tuple[Window, list[np.ndarray]]]:
    """Compute window by window, `batch_size` of them at once; the last batch is filled up with its last window."""
    windows = plan.windows()
    while batch := list(itertools.islice(windows, batch_size)):
        filled = [*batch, *batch[-1:] * (batch_size - len(batch))]
        xs = np.stack([np.asarray(image[window.samples]) for window in filled])
        spans = np.array([[[(s.start, s.stop) for s in kept[1:]] for kept, _ in window.outputs] for window in filled], np.int32)
        ys = [np.asarray(y) for y in run(xs, spans)]
        yield from ((window, [y[i] for y in ys]) for i, window in enumerate(batch))


def _windows_at_once(fn: Callable[[jax.Array], Any], xs: jax.Array, spans: jax.Array, batch_size: int, reduce: str | None) -> list[Any]:
    """The arrays that fn makes of windows (n, batch, *space, channels); reduced, the sums of what is kept: spans (n, arrays, axes, 2)."""

    def one(x: jax.Array, spans: jax.Array) -> list[jax.Array]:
        ys = jax.tree.leaves(fn(x))
        return [_sum(y, span) for y, span in zip(ys, spans)] if reduce else ys

    return jax.vmap(one)(xs, spans) if batch_size > 1 else [y[None] for y in one(xs[0], spans[0])]


def _sum(y: jax.Array, spans: jax.Array) -> jax.Array:
    """Sum over the outputs that lie within the spans, first and one past the last, of every spatial axis."""
    for axis, (first, last) in enumerate(spans, start=1):
        place = jax.lax.broadcasted_iota(jnp.int32, y.shape, axis)
        y = jnp.where((place >= first) & (place < last), y, jnp.zeros_like(y))
    wide = jnp.issubdtype(y.dtype, jnp.inexact) and jnp.finfo(y.dtype).bits >= 32
    return (y if wide else y.astype(jnp.float32)).sum(tuple(range(1, y.ndim - 1)))


def _mean(plan: Plan, computed: Iterator[tuple[Window, list[np.ndarray]]]) -> Any:
    totals = [np.zeros((leaf.shape[0], leaf.shape[-1])) for leaf in plan.leaves]
    for _, ys in computed:
        totals = [total + y for total, y in zip(totals, ys)]
    dtypes = [leaf.dtype if jnp.issubdtype(leaf.dtype, jnp.inexact) else np.float32 for leaf in plan.leaves]
    counts = [math.prod(leaf.shape[1:-1]) for leaf in plan.leaves]
    return jax.tree.unflatten(plan.tree, [(total / n).astype(dtype) for total, n, dtype in zip(totals, counts, dtypes)])


def _results(plan: Plan, out: Any) -> list[Any]:
    """The arrays to write to."""
    if out is None:
        return [np.empty(leaf.shape, leaf.dtype) for leaf in plan.leaves]
    results, tree = jax.tree.flatten(out)
    if tree != plan.tree:
        raise UserError(f"{CALLER}: out is a tree {tree}, and fn returns {plan.tree}; give arrays in the same tree.")
    for result, leaf in zip(results, plan.leaves):
        if tuple(result.shape) != leaf.shape or not np.can_cast(leaf.dtype, result.dtype, "same_kind"):
            raise UserError(
                f"{CALLER}: out has shape {tuple(result.shape)} and dtype {result.dtype}, but fn makes {leaf.shape} of dtype {leaf.dtype}; "
                "give an array of that shape and dtype."
            )
    return results
