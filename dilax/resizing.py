"""Resizing by interpolation over any number of spatial axes, sampled at half-pixel centres, without antialiasing.

Output i of an axis that is resized from n to m samples lies at position (i + 1/2) * n / m - 1/2 of the input. Each axis is multiplied by a
matrix with two weights per row that is known when the function is traced. The gradient is then a matrix product as well, several times
faster on a CPU than the scatter that indexing would need, and the analysis of receptive fields can read from the matrix which inputs each
output depends on. The weights are computed from integers, so that away from the border the result of enlarging by an integer factor does
not depend on where the input starts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dilax import arguments, axis_operations, partitioning, whole
from dilax.arguments import is_integer, per_axis
from dilax.errors import UserError
from dilax.geometry import IntOrTuple
from dilax.partitioning import Shards

METHODS = ("bilinear", "nearest")


def resize(x: jax.Array, size: IntOrTuple, *, method: str = "bilinear", align_corners: bool = False) -> jax.Array:
    """Resize the spatial axes of `x` by interpolation.

    The result equals PyTorch's `interpolate` with `align_corners=False` ("nearest" is its "nearest-exact") and `jax.image.resize` with
    `antialias=False`.

    Args:
        x: (batch, *space, channels), any number of spatial axes.
        size: Samples of the result, an int for all axes or one per axis.
        method: "bilinear" interpolates between the two nearest samples per axis (linear in 1-D, trilinear in 3-D); beyond the border, the
            outermost sample is repeated. "nearest" takes the nearest sample, and the later one of two equally near.
        align_corners: Place output i at i * (n - 1) / (m - 1) instead, so that the first and the last sample keep their values; only for
            "bilinear".

    Returns:
        (batch, *size, channels), in the dtype of x. float16 and bfloat16 are accumulated in float32.

    Raises:
        UserError: if the shape or dtype of x or another argument is invalid.

    Example:
        >>> resize(jnp.asarray([1.0, 3.0]).reshape(1, 2, 1), 4).ravel().tolist()
        [1.0, 1.5, 2.5, 3.0]
        >>> resize(jnp.asarray([1.0, 3.0]).reshape(1, 2, 1), 4, method="nearest").ravel().tolist()
        [1.0, 1.0, 3.0, 3.0]
    """
    x = arguments.array("resize", "x", x)
    _check(x, method, align_corners)
    align_corners = bool(align_corners)
    sizes = per_axis(size, x.ndim - 2, "size", "resize", symbolic=True)
    if 0 in x.shape[1:-1]:
        raise UserError(f"resize: x of shape {x.shape} has an empty axis; there is nothing to interpolate.")
    return _whole(x, size=sizes, method=method, align_corners=align_corners)


def _resize(x: jax.Array, *, size: tuple[Any, ...], method: str, align_corners: bool) -> jax.Array:
    narrow = method == "bilinear" and jnp.finfo(x.dtype).bits < 32
    y = x.astype(jnp.float32) if narrow else x
    # The last axis first: the product over the first axis, which is the largest one, then moves no data for a batch of one.
    for axis, (old, new) in reversed(list(enumerate(zip(x.shape[1:-1], size), start=1))):
        if old != new:
            y = _resize_nearest(y, axis, new) if method == "nearest" else _resize_linear(y, axis, new, align_corners)
    return y.astype(x.dtype)


_whole = whole.define("dilax_resize_space", _resize)


def _check(x: jax.Array, method: str, align_corners: bool) -> None:
    arguments.word("resize", "method", method, METHODS)
    arguments.flag("resize", "align_corners", align_corners)
    if x.ndim < 3:
        raise UserError(f"resize: x of shape {x.shape} must be (batch, *space, channels); add the missing axes.")
    if method == "bilinear" and not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"resize: x has dtype {x.dtype}, which cannot be averaged; convert it to float32, or use method='nearest'.")
    if method == "nearest" and align_corners:
        raise UserError("resize: align_corners=True has no meaning for method='nearest'; leave it out.")


def _resize_nearest(x: jax.Array, axis: int, new: int) -> jax.Array:
    old = x.shape[axis]
    if not (is_integer(old) and is_integer(new)):
        return jnp.take(x, (2 * jnp.arange(new) + 1) * old // (2 * new), axis)
    if new % old == 0:
        return jnp.repeat(x, new // old, axis)
    if old % new == 0:
        step = old // new
        return lax.slice_in_dim(x, step // 2, None, step, axis)
    return _interpolate(x, axis=axis, old=old, new=new, align_corners=None)[0]


def _resize_linear(x: jax.Array, axis: int, new: int, align_corners: bool) -> jax.Array:
    old = x.shape[axis]
    if not (is_integer(old) and is_integer(new)):
        return _resize_linear_symbolic(x, axis, new, align_corners)
    if old % new == 0 and not align_corners:
        step = old // new
        later = lax.slice_in_dim(x, step // 2, None, step, axis)
        return later if step % 2 else (lax.slice_in_dim(x, step // 2 - 1, None, step, axis) + later) / 2
    return _interpolate(x, axis=axis, old=old, new=new, align_corners=align_corners)[0]


def _resize_linear_symbolic(x: jax.Array, axis: int, new: int, align_corners: bool) -> jax.Array:
    """Resize an axis whose old or new length is symbolic (`jax.export`), so that the weights are only known when the program runs."""
    shape = tuple(new if i == axis else n for i, n in enumerate(x.shape))
    if not align_corners:
        return jax.image.resize(x, shape, "linear", antialias=False, precision=lax.Precision.HIGHEST)
    old, length = (jnp.asarray(n).astype(x.dtype) for n in (x.shape[axis], new))
    # Output i is computed at (i + 1/2 - translation) / scale - 1/2; a single one, and all of a single input, at 0.
    scale = jnp.where(old > 1, jnp.maximum(length - 1, 1) / jnp.maximum(old - 1, 1), 2 * length)[None]
    options: Any = dict(method="linear", antialias=False, precision=lax.Precision.HIGHEST)
    return jax.image.scale_and_translate(x, shape, (axis,), scale, 0.5 - 0.5 * scale, **options)


def _direct(x: jax.Array, *, axis: int, old: int, new: int, align_corners: bool | None) -> list[jax.Array]:
    """Interpolate an axis linearly, or, if `align_corners` is None, take the nearest samples."""
    if align_corners is None:
        return [jnp.take(x, _nearest(old, new), axis)]
    return [_product(jnp.asarray(interpolation_matrix(old, new, align_corners=align_corners), x.dtype), x, axis)]


def _local(x: jax.Array, *, axis: int, shards: Shards, old: int, new: int, align_corners: bool | None) -> list[jax.Array]:
    """Do the same for one shard of the result, from the samples that it depends on."""
    held, part = x.shape[axis], shards.length(new)
    nearest = align_corners is None
    weights = np.eye(old)[_nearest(old, new)] if nearest else interpolation_matrix(old, new, align_corners=align_corners)
    rows = [weights[shard * part : (shard + 1) * part] for shard in range(shards.count)]
    # The samples that each part depends on, counted from the first one that the device holds.
    spans = np.concatenate([np.flatnonzero(row.any(0))[[0, -1]] - shard * held for shard, row in enumerate(rows) if len(row)])
    starts = [shard * held + int(spans.min()) for shard in range(shards.count)]
    blocks = np.zeros((shards.count, part, np.ptp(spans) + 1))
    for block, row, start in zip(blocks, rows, starts):
        inside = slice(max(start, 0), max(start + block.shape[1], 0))
        block[: len(row), inside.start - start :][:, : row[:, inside].shape[1]] = row[:, inside]
    x = partitioning.window(x, axis, shards, old, starts, blocks.shape[2])
    chosen = jnp.asarray(blocks.argmax(2) if nearest else blocks, np.int32 if nearest else x.dtype)[lax.axis_index(shards.over)]
    y = jnp.take(x, chosen, axis) if nearest else _product(chosen, x, axis)
    return [partitioning.valid(y, axis, shards, new)]


_interpolate = axis_operations.define("dilax_resize", _direct, _local)


def _product(matrix: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    y = lax.dot_general(matrix, x, (((1,), (axis,)), ((), ())), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(y, 0, axis)


def _nearest(old: int, new: int) -> np.ndarray:
    """The nearest sample of each sample of the result, the later one of two equally near."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def interpolation_matrix(old: int, new: int, *, align_corners: bool = False) -> np.ndarray:
    """Return the matrix of linear interpolation from `old` to `new` samples, (new, old); each row sums to 1.

    Raises:
        UserError: if a size is not an integer of at least 1.

    Example:
        >>> interpolation_matrix(2, 4).tolist()
        [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    caller = "interpolation_matrix"
    arguments.integer(caller, "old", old, minimum=1)
    rows = np.arange(arguments.integer(caller, "new", new, minimum=1))
    arguments.flag(caller, "align_corners", align_corners)
    if align_corners:
        numerator, denominator = rows * (old - 1), max(new - 1, 1)
    else:
        numerator, denominator = (2 * rows + 1) * old - new, 2 * new
    lower, remainder = np.divmod(numerator, denominator)
    matrix = np.zeros((new, old))
    for column, weight in ((lower, 1 - remainder / denominator), (lower + 1, remainder / denominator)):
        np.add.at(matrix, (rows, np.clip(column, 0, old - 1)), weight)
    return matrix
