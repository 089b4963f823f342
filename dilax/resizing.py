"""Maps made larger or smaller by interpolation, any number of spatial axes, sampled at half-pixel centres and never smoothed first.

Output i of an axis that goes from n to m samples lies at (i + 1/2) * n / m - 1/2 of the input. One axis after the other is multiplied by
a matrix with two weights in each row, known when the program is traced: its gradient is such a product, too, on a CPU several times
faster than the scatter that belongs to indexing, and it can be read off which inputs an output sees. Weights come from whole numbers, so
that a map enlarged a whole number of times is the same wherever it starts, away from its border.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dilax.errors import UserError, did_you_mean
from dilax.geometry import IntOrTuple, per_axis

METHODS = ("bilinear", "nearest")


def resize(x: jax.Array, size: IntOrTuple, method: str = "bilinear", *, align_corners: bool = False) -> jax.Array:
    """Resample the spatial axes of `x`.

    Equal to PyTorch's `interpolate` with `align_corners=False` ("nearest": its "nearest-exact"), and to `jax.image.resize` with
    `antialias=False`.

    Args:
        x: (batch, *space, channels), any number of spatial axes.
        size: Samples per axis of the result, an int for all axes or one per axis.
        method: "bilinear" weighs the two nearest samples per axis (linear in 1-D, trilinear in 3-D); samples beyond the border repeat the
            outermost. "nearest" takes the nearest sample, the later of two.
        align_corners: Put output i at i * (n - 1) / (m - 1) instead, so that first and last samples stay what they are; only for
            "bilinear".

    Returns:
        (batch, *size, channels), in the dtype of x. float16 and bfloat16 are summed in float32.

    Raises:
        UserError: if shapes, dtype or arguments do not fit.

    Example:
        >>> resize(jnp.asarray([1.0, 3.0]).reshape(1, 2, 1), 4).ravel().tolist()
        [1.0, 1.5, 2.5, 3.0]
        >>> resize(jnp.asarray([1.0, 3.0]).reshape(1, 2, 1), 4, "nearest").ravel().tolist()
        [1.0, 1.0, 3.0, 3.0]
    """
    x = jnp.asarray(x)
    _check(x, method, align_corners)
    sizes = per_axis(size, x.ndim - 2, "size", "resize")
    if 0 in x.shape[1:-1]:
        raise UserError(f"resize: x of shape {x.shape} has an empty axis; there is nothing to interpolate.")
    narrow = method == "bilinear" and jnp.finfo(x.dtype).bits < 32
    y = x.astype(jnp.float32) if narrow else x
    # The last axis first: the product over the first, which is the largest, then moves no data for a batch of one.
    for axis, (old, new) in reversed(list(enumerate(zip(x.shape[1:-1], sizes), start=1))):
        if old != new:
            y = _nearest(y, axis, new) if method == "nearest" else _linear(y, axis, new, align_corners)
    return y.astype(x.dtype)


def _check(x: jax.Array, method: str, align_corners: bool) -> None:
    if method not in METHODS:
        raise UserError(f"resize: method={method!r} is unknown; use one of {METHODS}.{did_you_mean(str(method), METHODS)}")
    if x.ndim < 3:
        raise UserError(f"resize: x of shape {x.shape} must be (batch, *space, channels); add the missing axes.")
    if method == "bilinear" and not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"resize: x has dtype {x.dtype}, which cannot be averaged; convert it to float32, or use method='nearest'.")
    if method == "nearest" and align_corners:
        raise UserError("resize: align_corners=True has no meaning for method='nearest'; leave it out.")


def _nearest(x: jax.Array, axis: int, new: int) -> jax.Array:
    old = x.shape[axis]
    if new % old == 0:
        return jnp.repeat(x, new // old, axis)
    if old % new == 0:
        step = old // new
        return lax.slice_in_dim(x, step // 2, None, step, axis)
    return jnp.take(x, (2 * np.arange(new) + 1) * old // (2 * new), axis)


def _linear(x: jax.Array, axis: int, new: int, align_corners: bool) -> jax.Array:
    old = x.shape[axis]
    if old % new == 0 and not align_corners:
        step = old // new
        later = lax.slice_in_dim(x, step // 2, None, step, axis)
        return later if step % 2 else (lax.slice_in_dim(x, step // 2 - 1, None, step, axis) + later) / 2
    matrix = jnp.asarray(weights(old, new, align_corners), x.dtype)
    y = lax.dot_general(matrix, x, (((1,), (axis,)), ((), ())), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(y, 0, axis)


def weights(old: int, new: int, align_corners: bool = False) -> np.ndarray:
    """Return the matrix (new, old) of linear interpolation; each row sums to 1.

    Example:
        >>> weights(2, 4).tolist()
        [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    rows = np.arange(new)
    over, under = (rows * (old - 1), max(new - 1, 1)) if align_corners else ((2 * rows + 1) * old - new, 2 * new)
    before, rest = np.divmod(over, under)
    matrix = np.zeros((new, old))
    for column, share in ((before, 1 - rest / under), (before + 1, rest / under)):
        np.add.at(matrix, (rows, np.clip(column, 0, old - 1)), share)
    return matrix
