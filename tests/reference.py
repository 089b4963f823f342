"""The oracle: dilated convolution as slow and obvious NumPy loops in float64, for any rank. It shares no code with dilax."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

Index = tuple[int, ...]


def per_axis(value: Any, rank: int) -> tuple[Any, ...]:
    """Return one entry per spatial axis; a value that is not a tuple applies to every axis."""
    return value if isinstance(value, tuple) else (value,) * rank


def pad_pair(size: int, taps: int, stride: int, padding: str | int | tuple[int, int], dilation: int) -> tuple[int, int]:
    """Return the padding before and after an axis of `size` samples."""
    span = (taps - 1) * dilation + 1
    if padding == "SAME":
        positions = -(-size // stride)
        total = max(0, (positions - 1) * stride + span - size)
        return total // 2, total - total // 2
    if padding == "VALID":
        return 0, 0
    if padding == "CAUSAL":
        return span - 1, 0
    if padding == "TORCH":
        return dilation * (taps - 1) // 2, dilation * (taps - 1) // 2
    if isinstance(padding, int):
        return padding, padding
    if isinstance(padding, tuple):
        return padding
    raise AssertionError(f"unknown padding {padding!r}")


def positions(size: int, taps: int, stride: int, padding: str | int | tuple[int, int], dilation: int) -> int:
    """Return the number of outputs along an axis: the kernel starts every `stride` samples and must end inside the padded axis."""
    lo, hi = pad_pair(size, taps, stride, padding, dilation)
    span = (taps - 1) * dilation + 1
    return len([start for start in range(0, lo + size + hi, stride) if start + span <= lo + size + hi])


def source(index: int, size: int, mode: str) -> int | None:
    """Return the sample at `index` of a padded axis, where 0 is the first real sample; None if it is a zero."""
    if mode == "zeros":
        return index if 0 <= index < size else None
    if mode == "edge":
        return min(max(index, 0), size - 1)
    if mode == "wrap":
        return index % size
    if mode == "reflect":
        if size == 1:
            return 0
        round_trip = index % (2 * (size - 1))
        return min(round_trip, 2 * (size - 1) - round_trip)
    raise AssertionError(f"unknown padding mode {mode!r}")


def reads(space: Index, window: Index, stride: Any, padding: Any, padding_mode: str, dilation: Any) -> Iterator[tuple[Index, Index, Index]]:
    """Yield every (output position, tap, input position) at which the kernel reads a real sample."""
    rank = len(space)
    axes = []
    for size, taps, step, pad, gap in zip(
        space, window, per_axis(stride, rank), per_axis(padding, rank), per_axis(dilation, rank), strict=True
    ):
        lo, _ = pad_pair(size, taps, step, pad, gap)
        triples = []
        for p in range(positions(size, taps, step, pad, gap)):
            for t in range(taps):
                i = source(p * step + t * gap - lo, size, padding_mode)
                if i is not None:
                    triples.append((p, t, i))
        axes.append(triples)
    for per_axis_triples in itertools.product(*axes):
        p, t, i = zip(*per_axis_triples, strict=True)
        yield p, t, i


def output_size(space: Index, window: Index, stride: Any, padding: Any, dilation: Any) -> Index:
    """Return the spatial size of the convolution's output."""
    rank = len(space)
    arguments = per_axis(stride, rank), per_axis(padding, rank), per_axis(dilation, rank)
    return tuple(positions(*axis) for axis in zip(space, window, *arguments, strict=True))


def channels(c_in: int, c_out: int, groups: int) -> list[tuple[slice, slice]]:
    """Return the input and the output channels of every group."""
    ins, outs = c_in // groups, c_out // groups
    return [(slice(g * ins, (g + 1) * ins), slice(g * outs, (g + 1) * outs)) for g in range(groups)]


def conv(x, kernel, *, stride=1, padding="SAME", padding_mode="zeros", dilation=1, groups=1) -> np.ndarray:
    """Gather: y[n, p, o] = sum over t, i of x[n, p * stride + t * dilation - pad_lo, i] * kernel[t, i, o]."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    space, window = x.shape[1:-1], kernel.shape[:-2]
    y = np.zeros((x.shape[0], *output_size(space, window, stride, padding, dilation), kernel.shape[-1]))
    for ins, outs in channels(x.shape[-1], kernel.shape[-1], groups):
        for p, t, i in reads(space, window, stride, padding, padding_mode, dilation):
            y[:, *p, outs] += x[:, *i, ins] @ kernel[*t, :, outs]
    return y


def conv_transpose(y, kernel, space: Index, *, stride=1, padding="SAME", padding_mode="zeros", dilation=1, groups=1) -> np.ndarray:
    """Scatter: what `conv` reads from a sample of an input of size `space` is added to it. Also the gradient of `conv` for x."""
    y, kernel = np.asarray(y, np.float64), np.asarray(kernel, np.float64)
    x = np.zeros((y.shape[0], *space, kernel.shape[-2] * groups))
    for ins, outs in channels(x.shape[-1], kernel.shape[-1], groups):
        for p, t, i in reads(space, kernel.shape[:-2], stride, padding, padding_mode, dilation):
            x[:, *i, ins] += y[:, *p, outs] @ kernel[*t, :, outs].T
    return x


def kernel_gradient(x, g, window: Index, *, stride=1, padding="SAME", padding_mode="zeros", dilation=1, groups=1) -> np.ndarray:
    """The gradient of sum(g * conv(x, kernel)) for the kernel, of shape (*window, c_in // groups, c_out)."""
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    kernel = np.zeros((*window, x.shape[-1] // groups, g.shape[-1]))
    for ins, outs in channels(x.shape[-1], g.shape[-1], groups):
        for p, t, i in reads(x.shape[1:-1], window, stride, padding, padding_mode, dilation):
            kernel[*t, :, outs] += x[:, *i, ins].T @ g[:, *p, outs]
    return kernel


def depthwise(x, kernel, *, stride=1, padding="SAME", padding_mode="zeros", dilation=1) -> np.ndarray:
    """Convolve one channel at a time; output channel c * multiplier + m is computed from input channel c."""
    multiplier = kernel.shape[-1] // x.shape[-1]
    outputs = []
    for c in range(x.shape[-1]):
        for m in range(multiplier):
            o = c * multiplier + m
            one = conv(x[..., [c]], kernel[..., [o]], stride=stride, padding=padding, padding_mode=padding_mode, dilation=dilation)
            outputs.append(one[..., 0])
    return np.stack(outputs, axis=-1)


def zero_stuffed(kernel, dilation: Any) -> np.ndarray:
    """Return the dense kernel that is equivalent to a dilated one: dilation - 1 zeros between neighbouring taps."""
    window = kernel.shape[:-2]
    gaps = per_axis(dilation, len(window))
    wide = np.zeros((*((k - 1) * d + 1 for k, d in zip(window, gaps, strict=True)), *kernel.shape[-2:]), kernel.dtype)
    for t in np.ndindex(*window):
        wide[*(i * d for i, d in zip(t, gaps, strict=True))] = kernel[t]
    return wide


def transpose_size(space: Index, window: Index, stride: Any, padding: Any, dilation: Any) -> Index:
    """Return the default output size of the transposed convolution of an input of size `space`."""
    rank = len(space)
    sizes = []
    for m, taps, step, pad, gap in zip(
        space, window, per_axis(stride, rank), per_axis(padding, rank), per_axis(dilation, rank), strict=True
    ):
        if pad in ("SAME", "CAUSAL"):
            sizes.append(m * step)
        else:
            sizes.append(next(n for n in itertools.count(1) if positions(n, taps, step, pad, gap) >= m))
            assert positions(sizes[-1], taps, step, pad, gap) == m, "no input has so few outputs"
    return tuple(sizes)
