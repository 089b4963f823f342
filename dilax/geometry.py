"""The geometry of a dilated convolution in integers: effective kernel sizes, padding, output sizes.

Sizes of inputs may be symbolic (`jax.export`).

A kernel axis with k taps that are `dilation` samples apart spans e = (k - 1) * dilation + 1 samples. On an axis of n samples, padded with
lo zeros before and hi zeros after it, a convolution with stride s has floor((n + lo + hi - e) / s) + 1 outputs.
"""

from collections.abc import Sequence
from typing import Any

from jax import core

from dilax.arguments import is_integer, is_size, per_axis
from dilax.errors import UserError, did_you_mean, shown

PADDING_WORDS = ("SAME", "VALID", "CAUSAL", "TORCH")
PADDING_MODES = ("zeros", "reflect", "edge", "wrap")

IntOrTuple = int | tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]
Padding = str | int | Sequence[Any]


def effective_kernel_size(kernel_size: IntOrTuple, dilation: IntOrTuple) -> Any:
    """Return the number of samples that a dilated kernel spans: (kernel_size - 1) * dilation + 1.

    Args:
        kernel_size: Taps, an int or one per axis.
        dilation: Samples between neighbouring taps, an int or one per axis.

    Returns:
        An int if both arguments are ints, otherwise a tuple with one int per axis.

    Example:
        >>> effective_kernel_size(3, 2), effective_kernel_size((3, 5), (4, 1))
        (5, (9, 5))
    """
    rank = _rank(kernel_size, dilation)
    taps = per_axis(kernel_size, rank or 1, "kernel_size", "effective_kernel_size")
    gaps = per_axis(dilation, rank or 1, "dilation", "effective_kernel_size")
    spans = tuple((k - 1) * d + 1 for k, d in zip(taps, gaps))
    return spans if rank else spans[0]


def explicit_padding(
    input_size: IntOrTuple,
    kernel_size: IntOrTuple,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    dilation: IntOrTuple = 1,
    caller: str = "explicit_padding",
) -> Pairs:
    """Return how many samples `padding` adds before and after each axis.

    With e = (kernel_size - 1) * dilation + 1, an axis of n samples is padded by

    - "SAME": max(0, (ceil(n / stride) - 1) * stride + e - n) samples in total, half before and half after, an odd one after (as in XLA and
      TensorFlow); with stride 1 these are e - 1 in total, not on each side;
    - "VALID": no samples;
    - "CAUSAL": e - 1 samples before and none after, so that no output sees a later input;
    - "TORCH": dilation * (kernel_size - 1) // 2 samples on each side;
    - an int: that many samples on each side; a pair (lo, hi): lo samples before and hi after.

    Args:
        input_size: n, an int (one axis) or one per axis.
        kernel_size: Taps, an int or one per axis.
        stride: Samples between neighbouring outputs, an int or one per axis.
        padding: One of the above for all axes, or a tuple with one of them per axis. In 1-D, write a pair as ((lo, hi),).
        dilation: Samples between neighbouring taps, an int or one per axis.
        caller: Name that error messages start with.

    Returns:
        ((lo, hi), ...), one pair per axis.

    Raises:
        UserError: if the padding is not one of the above, or is negative.

    Example:
        >>> explicit_padding((10, 10), 3, padding=("CAUSAL", "SAME"), dilation=2)
        ((4, 0), (2, 2))
    """
    rank = _rank(input_size, kernel_size, stride, dilation) or 1
    taps = per_axis(kernel_size, rank, "kernel_size", caller)
    sizes = per_axis(input_size, rank, "input_size", caller, minimum=0, symbolic=True)
    steps = per_axis(stride, rank, "stride", caller)
    gaps = per_axis(dilation, rank, "dilation", caller)
    words = _padding_per_axis(padding, rank, caller)
    return tuple(_axis_padding(*axis, padding, caller) for axis in zip(words, sizes, taps, steps, gaps))


def time_padding(
    kernel_size: IntOrTuple,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    dilation: IntOrTuple = 1,
    caller: str = "time_padding",
) -> tuple[int, int]:
    """Return how many samples `padding` adds before and after time, the first axis, of a long sequence.

    The second number is the lookahead of the convolution in samples. With padding="SAME" and a stride, the padding depends on the length of
    the sequence; it is then that of 2**24 samples.

    Args:
        kernel_size: Taps, an int or one per axis.
        stride: Samples between neighbouring outputs, an int or one per axis.
        padding: See `explicit_padding`; for all axes, or one per axis.
        dilation: Samples between neighbouring taps, an int or one per axis.
        caller: Name that error messages start with.

    Example:
        >>> time_padding(3, dilation=4), time_padding(3, padding="CAUSAL", dilation=4)
        ((4, 4), (8, 0))
    """
    length = (2**24,) * len(kernel_size) if isinstance(kernel_size, Sequence) else 2**24
    return explicit_padding(length, kernel_size, stride=stride, padding=padding, dilation=dilation, caller=caller)[0]


def output_size(
    input_size: IntOrTuple,
    kernel_size: IntOrTuple,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    dilation: IntOrTuple = 1,
    caller: str = "output_size",
) -> Any:
    """Return the number of outputs along each axis: floor((n + lo + hi - e) / stride) + 1 with e = (kernel_size - 1) * dilation + 1.

    Args:
        input_size: n, an int (one axis) or one per axis.
        kernel_size: Taps, an int or one per axis.
        stride: Samples between neighbouring outputs, an int or one per axis.
        padding: See `explicit_padding`, which also defines lo and hi.
        dilation: Samples between neighbouring taps, an int or one per axis.
        caller: Name that error messages start with.

    Returns:
        An int if all sizes are ints, otherwise a tuple with one int per axis.

    Raises:
        UserError: if an axis is empty, its kernel is wider than the padded input, or the padding is invalid.

    Example:
        >>> output_size(32, 3, dilation=4), output_size((32, 20), 3, padding="VALID", dilation=(4, 1))
        (32, (24, 18))
    """
    rank = _rank(input_size, kernel_size, stride, dilation)
    axes = rank or 1
    pads = explicit_padding(input_size, kernel_size, stride=stride, padding=padding, dilation=dilation, caller=caller)
    sizes = per_axis(input_size, axes, "input_size", caller, minimum=0, symbolic=True)
    spans = effective_kernel_size(per_axis(kernel_size, axes, "kernel_size", caller), dilation)
    steps = per_axis(stride, axes, "stride", caller)
    outputs = tuple(_axis_output(*axis, padding, caller) for axis in zip(sizes, pads, spans, steps))
    return outputs if rank else outputs[0]


def transposed_size(
    size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    *,
    stride: IntOrTuple,
    padding: Padding,
    dilation: IntOrTuple,
    caller: str = "transposed_size",
) -> tuple[int, ...]:
    """Return the default output size of a transposed convolution: an input size whose convolution has `size` outputs.

    "SAME" and "CAUSAL" give size * stride, the largest such size; any other padding gives (size - 1) * stride + e - lo - hi, the smallest.

    Args:
        size: Input size of the transposed convolution, one per axis.
        kernel_size: Taps, one per axis.
        stride: As in the convolution; so are padding and dilation.
        padding: See `explicit_padding`.
        dilation: Samples between neighbouring taps, an int or one per axis.
        caller: Name that error messages start with.
    """
    rank = len(size)
    size = per_axis(size, rank, "size", caller, minimum=0, symbolic=True)
    steps = per_axis(stride, rank, "stride", caller)
    spans = effective_kernel_size(kernel_size, per_axis(dilation, rank, "dilation", caller))
    words = _padding_per_axis(padding, rank, caller)
    pads = explicit_padding(size, kernel_size, stride=stride, padding=padding, dilation=dilation, caller=caller)
    sizes = tuple(
        n * step if word in ("SAME", "CAUSAL") else (n - 1) * step + span - lo - hi
        for word, n, step, span, (lo, hi) in zip(words, size, steps, spans, pads)
    )
    if all(is_integer(n) for n in sizes) and min(sizes) < 1:
        raise UserError(f"{caller}: padding={shown(padding)} leaves an output of size {sizes}; use less padding or give output_size.")
    return sizes


def _rank(*values: Any) -> int:
    """Number of axes: the length of the first sequence among `values`, 0 if all are ints."""
    return next((len(value) for value in values if isinstance(value, Sequence) and not isinstance(value, str)), 0)


def _padding_per_axis(padding: Padding, rank: int, caller: str) -> tuple[Any, ...]:
    if isinstance(padding, str) or is_integer(padding):
        return (padding,) * rank
    if not isinstance(padding, Sequence):
        raise UserError(f"{caller}: padding={shown(padding)} is not valid; use one of {PADDING_WORDS}, an int, or one of these per axis.")
    if len(padding) != rank:
        axes = f"are {rank} spatial axes" if rank != 1 else "is 1 spatial axis"
        hint = f" In 1-D, write a pair as padding=({shown(tuple(padding))},)." if rank == 1 and len(padding) == 2 else ""
        raise UserError(f"{caller}: padding={shown(padding)} has length {len(padding)}, but there {axes}; give one entry per axis.{hint}")
    return tuple(padding)


def _axis_padding(word: Any, size: int, taps: int, stride: int, dilation: int, given: Padding, caller: str) -> tuple[int, int]:
    span = (taps - 1) * dilation + 1
    if isinstance(word, str) and word in PADDING_WORDS:
        return _word_padding(word, size, taps, span, stride, dilation)
    pair: Any = (word, word) if is_size(word) else word
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(is_size, pair)):
        hint = did_you_mean(word.upper(), PADDING_WORDS) if isinstance(word, str) else ""
        raise UserError(
            f"{caller}: padding={shown(given)} is not valid; use one of {PADDING_WORDS}, an int, or a (lo, hi) pair per axis.{hint}"
        )
    if any(is_integer(p) and p < 0 for p in pair):
        raise UserError(f"{caller}: padding={shown(given)} is negative; use 0 or more, and crop the input instead.")
    lo, hi = (int(p) if is_integer(p) else p for p in pair)
    return lo, hi


def _word_padding(word: str, size: int, taps: int, span: int, stride: int, dilation: int) -> tuple[int, int]:
    """The padding (lo, hi) of an axis that a word stands for."""
    if word == "VALID":
        return 0, 0
    if word == "CAUSAL":
        return span - 1, 0
    if word == "TORCH":
        half = dilation * (taps - 1) // 2
        return half, half
    # The last output starts at `last`, 1 to `stride` samples before the end. Symbolic sizes may not be comparable, so the maximum is taken
    # only where the kernel may end before the input does.
    last = (-(-size // stride) - 1) * stride
    total = last + span - size
    if span < stride:
        total = core.max_dim(total, 0)
    return total // 2, total - total // 2


def _axis_output(size: int, pair: tuple[int, int], span: int, stride: int, padding: Padding, caller: str) -> int:
    padded = size + sum(pair) - span
    if is_integer(size) and size < 1:
        raise UserError(f"{caller}: the input has an axis of length {size}; every spatial axis needs at least one sample.")
    if is_integer(size) and padded < 0:
        raise UserError(
            f"{caller}: the kernel spans {span} samples, which is more than an axis of {size} has with padding={shown(padding)}; "
            f"use a smaller kernel_size or dilation, or padding='SAME'."
        )
    return padded // stride + 1
