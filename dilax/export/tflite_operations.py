"""Pooling and resizing in the forms that litert-converter recognises, and makes MAX_POOL_2D, AVERAGE_POOL_2D and RESIZE_BILINEAR.

They have rows and columns; sequences get a row. What TFLite has no operation for keeps its own form.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dilax.arguments import is_integer
from dilax.pooling import Windows

Meaning = Callable[..., jax.Array]
# A composite operation that the converter knows.
RESIZE = "odml.upsample_bilinear2d"


def _max_pool(meaning: Meaning, x: jax.Array, *, windows: Windows) -> jax.Array:
    if not _is_expressible(x, windows):
        return meaning(x, windows=windows)
    return _in_rows(lambda rows: _reduced(rows, _with_rows(windows), -np.inf, lax.max), x)


def _avg_pool(meaning: Meaning, x: jax.Array, *, windows: Windows, count_padding: bool) -> jax.Array:
    padded = any(any(pair) for _, _, pair, _ in windows)
    samples_alone, windows_2d = padded and not count_padding, _with_rows(windows)
    if not _is_expressible(x, windows) or (samples_alone and not _is_same(x.shape[1:-1], windows)):
        return meaning(x, windows=windows, count_padding=count_padding)

    def mean(rows: jax.Array) -> jax.Array:
        if samples_alone:
            return _reduced(rows, windows_2d, 0.0, lax.add) / _reduced(jnp.ones_like(rows), windows_2d, 0.0, lax.add)
        # Padding that counts has to consist of samples.
        inside = tuple((taps, stride, (0, 0), dilation) for taps, stride, _, dilation in windows_2d)
        return _reduced(_padded(rows, windows_2d, 0.0), inside, 0.0, lax.add) / math.prod(taps for taps, *_ in windows)

    return _in_rows(mean, x)


def _resize(meaning: Meaning, x: jax.Array, *, size: tuple[Any, ...], method: str, align_corners: bool) -> jax.Array:
    fixed = all(map(is_integer, (*x.shape, *size)))
    if method != "bilinear" or align_corners or x.ndim > 4 or x.dtype != jnp.float32 or not fixed:
        return meaning(x, size=size, method=method, align_corners=align_corners)
    target = size if x.ndim == 4 else (1, *size)

    def resized(rows: jax.Array, **_: Any) -> jax.Array:  # without constants, which would be further operands
        shape = (rows.shape[0], *target, rows.shape[3])
        return jax.image.resize(rows, shape, "linear", antialias=False, precision=lax.Precision.HIGHEST)

    options: Any = dict(size=np.asarray(target), align_corners=False, is_nchw_op=False)
    return _in_rows(lambda rows: lax.composite(resized, RESIZE)(rows, **options), x)


MEANINGS = {"dilax_max_pool": _max_pool, "dilax_avg_pool": _avg_pool, "dilax_resize_space": _resize}


def _is_expressible(x: jax.Array, windows: Windows) -> bool:
    """Return whether TFLite pools like that: floats, along one or two axes, without dilation."""
    return x.dtype == jnp.float32 and len(windows) <= 2 and all(dilation == 1 for *_, dilation in windows)


def _in_rows(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Apply a function of (batch, rows, columns, channels), also to sequences (batch, time, channels)."""
    return function(x) if x.ndim == 4 else function(x[:, None])[:, 0]


def _with_rows(windows: Windows) -> Windows:
    return windows if len(windows) == 2 else ((1, 1, (0, 0), 1), *windows)


def _is_same(size: tuple[int, ...], windows: Windows) -> bool:
    """Return whether the padding is that of "SAME", the only one that the operations have."""
    taps, strides, pads, _ = zip(*windows)
    return list(pads) == list(lax.padtype_to_pads(size, taps, strides, "SAME"))


def _padded(rows: jax.Array, windows: Windows, outside: float) -> jax.Array:
    pads = [pair for _, _, pair, _ in windows]
    return lax.pad(rows, np.float32(outside), [(0, 0, 0), *((*pair, 0) for pair in pads), (0, 0, 0)]) if any(map(any, pads)) else rows


def _reduced(rows: jax.Array, windows: Windows, outside: float, combine: Any) -> jax.Array:
    """Combine the samples of each window, with `outside` around the samples."""
    taps, strides, *_ = zip(*windows)
    same = _is_same(rows.shape[1:-1], windows)
    x = rows if same else _padded(rows, windows, outside)
    return lax.reduce_window(x, np.float32(outside), combine, (1, *taps, 1), (1, *strides, 1), "SAME" if same else "VALID")
