"""The geometry of a dilated convolution in integers: effective kernel sizes, padding, output sizes.

A kernel axis with k taps that are `dilation` samples apart spans e = (k - 1) * dilation + 1 samples. On an axis of n samples, padded with
lo zeros before and hi zeros after it, a convolution with stride s has floor((n + lo + hi - e) / s) + 1 outputs.
"""

import numbers
from collections.abc import Sequence
from typing import Any

from dilax.errors import UserError, did_you_mean

PADDING_WORDS = ("SAME", "VALID", "CAUSAL", "TORCH")
PADDING_MODES = ("zeros", "reflect", "edge", "wrap")

IntOrTuple = int | tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]
Padding = str | int | Sequence[Any]


def is_integer(value: Any) -> bool:
    """Return whether `value` is an integer, Python's or NumPy's, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def per_axis(value: int | Sequence[int], rank: int, argument: str, caller: str, *, minimum: int = 1) -> tuple[int, ...]:
    """Return `value` as one integer per spatial axis.

    Args:
        value: An int for all axes, or a sequence with one int per axis.
        rank: Number of spatial axes.
        argument: Name of the argument, for error messages.
        caller: Name of the function that the user called, which error messages start with.
        minimum: Smallest value allowed.

    Raises:
        UserError: if `value` is neither an integer nor `rank` integers, or one of them is below `minimum`.
    """
    values: Any = (value,) * rank if is_integer(value) else value
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(is_integer(v) for v in values):
        raise UserError(f"{caller}: {argument}={value!r} is not an integer; give an int or {_ints(rank)}.")
    if len(values) != rank:
        raise UserError(
            f"{caller}: {argument}={tuple(values)} has length {len(values)}, but there {_axes(rank)}; give an int or {_ints(rank)}."
        )
    if min(values) < minimum:
        raise UserError(f"{caller}: {argument}={value!r} is below {minimum}; use {minimum} or more.")
    return tuple(int(v) for v in values)


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
    sizes = (input_size,) * rank if not isinstance(input_size, Sequence) else tuple(input_size)
    taps = per_axis(kernel_size, rank, "kernel_size", caller)
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
    sizes = (input_size,) * axes if not isinstance(input_size, Sequence) else tuple(input_size)
    pads = explicit_padding(sizes, kernel_size, stride=stride, padding=padding, dilation=dilation, caller=caller)
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
    steps = per_axis(stride, rank, "stride", caller)
    spans = effective_kernel_size(kernel_size, per_axis(dilation, rank, "dilation", caller))
    words = _padding_per_axis(padding, rank, caller)
    pads = explicit_padding(size, kernel_size, stride=stride, padding=padding, dilation=dilation, caller=caller)
    sizes = tuple(
        n * step if word in ("SAME", "CAUSAL") else (n - 1) * step + span - lo - hi
        for word, n, step, span, (lo, hi) in zip(words, size, steps, spans, pads)
    )
    if all(is_integer(n) for n in sizes) and min(sizes) < 1:
        raise UserError(f"{caller}: padding={padding!r} leaves an output of size {sizes}; use less padding or give output_size.")
    return sizes


def _rank(*values: Any) -> int:
    """Number of axes: the length of the first sequence among `values`, 0 if all are ints."""
    return next((len(value) for value in values if isinstance(value, Sequence)), 0)


def _axes(rank: int) -> str:
    return f"are {rank} spatial axes" if rank != 1 else "is 1 spatial axis"


def _ints(rank: int) -> str:
    return f"a tuple of {rank} ints" if rank != 1 else "a tuple of one int"


def _padding_per_axis(padding: Padding, rank: int, caller: str) -> tuple[Any, ...]:
    if isinstance(padding, str) or is_integer(padding):
        return (padding,) * rank
    if not isinstance(padding, Sequence):
        raise UserError(f"{caller}: padding={padding!r} is not valid; use one of {PADDING_WORDS}, an int, or one of these per axis.")
    if len(padding) != rank:
        hint = f" In 1-D, write a pair as padding=({tuple(padding)},)." if rank == 1 and len(padding) == 2 else ""
        raise UserError(f"{caller}: padding={padding!r} has length {len(padding)}, but there {_axes(rank)}; give one entry per axis.{hint}")
    return tuple(padding)


def _axis_padding(word: Any, size: int, taps: int, stride: int, dilation: int, given: Padding, caller: str) -> tuple[int, int]:
    span = (taps - 1) * dilation + 1
    if word == "SAME":
        # A symbolic size (jax.export) cannot be compared, but at stride 1 the padding does not depend on it.
        total = span - 1 if stride == 1 else max(0, (-(-size // stride) - 1) * stride + span - size)
        return total // 2, total - total // 2
    if word == "VALID":
        return 0, 0
    if word == "CAUSAL":
        return span - 1, 0
    if word == "TORCH":
        half = dilation * (taps - 1) // 2
        return half, half
    pair = (word, word) if is_integer(word) else word
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2 or not all(is_integer(p) for p in pair):
        hint = _padding_hint(word) if isinstance(word, str) else ""
        raise UserError(f"{caller}: padding={given!r} is not valid; use one of {PADDING_WORDS}, an int, or a (lo, hi) pair per axis.{hint}")
    if min(pair) < 0:
        raise UserError(f"{caller}: padding={given!r} is negative; use 0 or more, and crop the input instead.")
    return int(pair[0]), int(pair[1])


def _padding_hint(word: str) -> str:
    """Say what an unknown word may be meant for: how much padding there is, or what its values are."""
    names = {"circular": "wrap", "replicate": "edge", "constant": "zeros", "nearest": "edge"}
    mode = names.get(word.lower(), word.lower())
    if mode in PADDING_MODES:
        return f' What the padding is filled with is an argument of its own: padding_mode="{mode}".'
    return did_you_mean(word.upper(), PADDING_WORDS)


def _axis_output(size: int, pair: tuple[int, int], span: int, stride: int, padding: Padding, caller: str) -> int:
    padded = size + sum(pair) - span
    if is_integer(size) and size < 1:
        raise UserError(f"{caller}: the input has an axis of length {size}; every spatial axis needs at least one sample.")
    if is_integer(size) and padded < 0:
        raise UserError(
            f"{caller}: the kernel spans {span} samples, which is more than an axis of {size} has with padding={padding!r}; "
            f"use a smaller kernel_size or dilation, or padding='SAME'."
        )
    return padded // stride + 1
