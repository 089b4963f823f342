"""Exact inference on images, volumes and recordings that do not fit into memory as a whole: tile by tile, without seams.

The input is read in overlapping windows (see `dilax.tile_plans`), and the part of each window's output that is unaffected by the window's
own border is kept. Every output that is kept therefore depends on the same samples as in the whole image.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dilax import arguments
from dilax.arguments import check_function, is_integer
from dilax.errors import UserError, shown
from dilax.tile_checks import references
from dilax.tile_plans import CALLER, Fn, Shape, Tile, TilePlan, Window, make_plan


def tiled(fn: Fn, tile: Tile = (512, 512), *, batch_size: int = 1, reduce: str | None = None, check: bool = True) -> Callable[..., Any]:
    """Wrap a function so that it is computed tile by tile, with the same result as on the whole image.

    The overlap of the windows follows from `receptive_field(fn, image)`: a window is larger than the tile it yields by `left + right` of
    the receptive field. All windows have the same shape, so fn is compiled once. Memory use is that of `batch_size` windows, plus the image
    and the result.

    Args:
        fn: Maps (batch, *space, channels) to (batch, *space_out, channels_out), or to a pytree of such arrays, for any number of spatial
            axes. Only operations on x itself are analysed: fn must not use the length of x as a number, as in x / x.shape[1].
        tile: Samples that each window yields, an int for all axes or one entry per axis; None for an axis that is not to be divided. It is
            rounded down to a multiple of the period of fn (its output stride), but to no less than one period. Images that are not larger
            than the tile are computed whole.
        batch_size: Number of windows computed at once.
        reduce: "mean" returns the mean over space of each output, (batch, channels_out), instead of the output itself. No array of the
            size of the image is then allocated.
        check: Compare the tiles with what fn returns for the image at once, the first time that an image of a shape is given, to guard
            against mistakes of the analysis. This takes the time of another run. If it would take more than 64 MiB, two neighbouring
            windows per axis are computed at once instead, which takes twice the memory of a window.

    Returns:
        A function of an image (batch, *space, channels), which may be an array, a `np.memmap`, or any object with a shape, a dtype and
        slicing. It returns NumPy arrays that equal `fn(image)` up to rounding. In long images, `jax.image.resize` rounds the positions it
        reads by 1e-4 of a sample and more unless it enlarges by a power of 2; `dilax.resize` does not. The keyword `out` takes an array, or
        a pytree of arrays, to write the result to, such as a `np.memmap`.

    Raises:
        UserError: by `tiled`, if an argument is invalid. By the function it returns, if fn cannot be computed tile by tile: because an
            output depends on a whole axis that is longer than the tile; because fn depends on the position within the image (coordinates,
            or a resize to a size that is not a multiple of the input's); because the analysis does not support an operation; or because the
            tiles differ from the image (see `check`).

    Example:
        >>> from dilax.functional import dilated_conv
        >>> features = lambda x: dilated_conv(x, jnp.ones((3, 3, 1, 2)), dilation=6)
        >>> image = np.ones((1, 90, 70, 1), np.float32)
        >>> tiled(features, tile=(32, 32))(image).shape
        (1, 90, 70, 2)

        A model that pools over the whole image takes two passes, provided that the pooled mean can be passed to it. The first pass
        computes the mean of its features, the second everything that follows:

        >>> mean = tiled(features, tile=(32, 32), reduce="mean")(image)
        >>> y = tiled(lambda x: features(x) - mean[:, None, None], tile=(32, 32))(image)
        >>> float(abs(y - (features(image) - features(image).mean((1, 2), keepdims=True))).max()) < 1e-4
        True

        With the DeepLab models:

            features = lambda x: model.apply(variables, x, train=False, method="features")[-1]
            mean = tiled(features, tile, reduce="mean")(image)
            logits = tiled(lambda x: model.apply(variables, x, train=False, image_mean=mean), tile)(image)
    """
    check_function(CALLER, fn)
    tile = tuple(tile) if isinstance(tile, list) else tile
    sizes = tile if isinstance(tile, tuple) else (tile,)
    if not sizes or not all(size is None or (is_integer(size) and size > 0) for size in sizes):
        raise UserError(
            f"{CALLER}: tile={shown(tile)} is not valid; give a positive int, or a tuple with one per spatial axis (None: not divided)."
        )
    tile = tuple(map(arguments.plain, tile)) if isinstance(tile, tuple) else arguments.plain(tile)
    batch_size = arguments.integer(CALLER, "batch_size", batch_size, minimum=1)
    if reduce is not None and not (isinstance(reduce, str) and reduce == "mean"):
        raise UserError(f'{CALLER}: reduce={shown(reduce)} is unknown; use "mean", or None for the outputs themselves.')
    arguments.flag(CALLER, "check", check)
    plan_for = functools.lru_cache(lambda shape, dtype: make_plan(fn, tile, shape, dtype))
    run = jax.jit(lambda xs, spans: _run_windows(fn, xs, spans, batch_size, reduce))

    # Those whose tiles were compared with the image.
    checked: set[TilePlan] = set()

    def compute(plan: TilePlan, image: Any) -> Iterator[tuple[Window, list[np.ndarray]]]:
        expected = references(fn, plan, image) if check and plan not in checked else []
        for window, ys in _iterate(plan, run, image, batch_size):
            for reference in expected:
                reference.compare(window, ys, bool(reduce))
            yield window, ys
        checked.add(plan)

    def apply(image: Any, *, out: Any = None) -> Any:
        # Slicing a jax array would compile a program per window.
        image = np.asarray(image) if isinstance(image, jax.Array) else arguments.shaped(CALLER, "image", image)
        if not hasattr(image, "__getitem__"):
            raise UserError(
                f"{CALLER}: the image is a {type(image).__name__}, which holds no values; give an array, or an object that can be "
                "sliced like one."
            )
        plan = plan_for(_check_shape(image, tile), jax.dtypes.canonicalize_dtype(image.dtype))
        if reduce:
            if out is not None:
                raise UserError(f'{CALLER}: out cannot be combined with reduce="mean", whose results are small; omit out.')
            return _mean(plan, compute(plan, image))
        results = _allocate(plan, out)
        for window, ys in compute(plan, image):
            for result, y, (kept, target) in zip(results, ys, window.outputs):
                result[target] = y[kept]
        return jax.tree.unflatten(plan.tree, results) if out is None else out

    return apply


def _check_shape(image: Any, tile: Tile) -> Shape:
    """Return the shape of the image, or raise if it does not match the tile."""
    shape = tuple(map(int, image.shape))
    if len(shape) < 3:
        raise UserError(f"{CALLER}: an image of shape {shape} is not (batch, *space, channels); add the missing axes.")
    if isinstance(tile, tuple) and len(tile) != len(shape) - 2:
        raise UserError(
            f"{CALLER}: tile={tile} has {len(tile)} entries for the {len(shape) - 2} spatial axes of an image of shape {shape}; "
            "give an int or one entry per axis."
        )
    return shape


def _iterate(plan: TilePlan, run: Callable[..., list[jax.Array]], image: Any, batch_size: int) -> Iterator[tuple[Window, list[np.ndarray]]]:
    """Yield each window with its outputs, computing `batch_size` windows at once; the last batch is padded with its last window."""
    windows = plan.windows()
    while batch := list(itertools.islice(windows, batch_size)):
        padded = [*batch, *batch[-1:] * (batch_size - len(batch))]
        xs = np.stack([np.asarray(image[window.samples]) for window in padded])
        spans = np.array([[[(s.start, s.stop) for s in kept[1:]] for kept, _ in window.outputs] for window in padded], np.int32)
        ys = [np.asarray(y) for y in run(xs, spans)]
        yield from ((window, [y[i] for y in ys]) for i, window in enumerate(batch))


def _run_windows(fn: Fn, xs: jax.Array, spans: jax.Array, batch_size: int, reduce: str | None) -> list[jax.Array]:
    """Return the outputs of fn for the windows xs (n, batch, *space, channels), each with a leading axis n.

    With `reduce`, return the sums over the kept outputs, given by `spans` (n, outputs, axes, 2).
    """

    def run_one(x: jax.Array, spans: jax.Array) -> list[jax.Array]:
        ys = jax.tree.leaves(fn(x))
        return [_sum(y, span) for y, span in zip(ys, spans)] if reduce else ys

    return jax.vmap(run_one)(xs, spans) if batch_size > 1 else [y[None] for y in run_one(xs[0], spans[0])]


def _sum(y: jax.Array, spans: jax.Array) -> jax.Array:
    """Sum over space the outputs within the spans, one (first, last + 1) per spatial axis."""
    for axis, (first, stop) in enumerate(spans, start=1):
        place = jax.lax.broadcasted_iota(jnp.int32, y.shape, axis)
        y = jnp.where((place >= first) & (place < stop), y, jnp.zeros_like(y))
    wide = jnp.issubdtype(y.dtype, jnp.inexact) and jnp.finfo(y.dtype).bits >= 32
    return (y if wide else y.astype(jnp.float32)).sum(tuple(range(1, y.ndim - 1)))


def _mean(plan: TilePlan, sums: Iterator[tuple[Window, list[np.ndarray]]]) -> Any:
    """Return the means over the whole image, given the sums of each window."""
    totals = [np.zeros((leaf.shape[0], leaf.shape[-1])) for leaf in plan.leaves]
    for _, ys in sums:
        totals = [total + y for total, y in zip(totals, ys)]
    dtypes = [leaf.dtype if jnp.issubdtype(leaf.dtype, jnp.inexact) else np.float32 for leaf in plan.leaves]
    counts = [math.prod(leaf.shape[1:-1]) for leaf in plan.leaves]
    return jax.tree.unflatten(plan.tree, [(total / n).astype(dtype) for total, n, dtype in zip(totals, counts, dtypes)])


def _allocate(plan: TilePlan, out: Any) -> list[Any]:
    """Return the arrays to write to: new ones, or the leaves of `out`, whose structure, shapes and dtypes are checked."""
    if out is None:
        return [np.empty(leaf.shape, leaf.dtype) for leaf in plan.leaves]
    results, tree = jax.tree.flatten(out)
    if tree != plan.tree:
        raise UserError(f"{CALLER}: out has the structure {tree}, but fn returns {plan.tree}; give arrays in the same structure.")
    for result, leaf in zip(results, plan.leaves):
        if tuple(result.shape) != leaf.shape or not np.can_cast(leaf.dtype, result.dtype, "same_kind"):
            raise UserError(
                f"{CALLER}: out has shape {tuple(result.shape)} and dtype {result.dtype}, but fn returns {leaf.shape} of dtype "
                f"{leaf.dtype}; give an array of that shape and dtype."
            )
    return results
