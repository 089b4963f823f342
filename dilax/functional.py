"""Dilated convolutions as pure functions of arrays: any of 1, 2 or 3 spatial axes, read from `x.ndim`."""

from typing import Any

import jax
import jax.numpy as jnp

from dilax.errors import UserError, did_you_mean
from dilax.geometry import (
    PADDING_MODES,
    ConvPlan,
    IntOrTuple,
    Padding,
    explicit_padding,
    is_integer,
    per_axis,
    transposed_size,
)
from dilax.geometry import (
    output_size as conv_output_size,
)
from dilax.lowerings import LOWERINGS, convolve, supports


def dilated_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    dilation: IntOrTuple = 1,
    groups: int = 1,
    precision: Any = None,
    lowering: str = "auto",
) -> jax.Array:
    """Convolve `x` with `kernel`, its taps `dilation` samples apart.

    y[n, p, o] = sum over t, i of x[n, p * stride + t * dilation - lo, i] * kernel[t, i, o]
    (cross-correlation, as in every deep-learning library; x outside its range counts as 0).

    Args:
        x: (batch, *space, c_in), floating point; 1, 2 or 3 spatial axes.
        kernel: (*window, c_in // groups, c_out).
        stride: Samples between neighbouring outputs, per axis.
        padding: "SAME", "VALID", "CAUSAL", "TORCH", an int, or a tuple with one of these or a (lo, hi) pair per axis; see
            `explicit_padding`.
        padding_mode: What stands outside x: "zeros", or its own samples as `numpy.pad` has them: "reflect", "edge", "wrap".
        dilation: Samples between neighbouring taps, per axis; 1 is an ordinary convolution. The kernel then spans (k - 1) * dilation + 1
            samples.
        groups: Number of independent channel groups; outputs of group g are the g-th share of c_out.
        precision: As in `jax.lax.conv_general_dilated`.
        lowering: "auto" (see `select_lowering` and `use_lowering`) or a key of `LOWERINGS`: how the result is computed, never what it is.

    Returns:
        (batch, *space_out, c_out), in the promoted dtype of x and kernel. float16 and bfloat16 are summed in float32.

    Raises:
        UserError: if shapes, dtypes or arguments do not fit; a `ValueError`.

    Example:
        >>> dilated_conv(jnp.ones((1, 7, 1)), jnp.ones((3, 1, 1)), dilation=2).shape
        (1, 7, 1)

    Reference:
        Yu & Koltun 2016, arXiv:1511.07122.
    """
    return _dilated_conv("dilated_conv", x, kernel, stride, padding, padding_mode, dilation, groups, precision, lowering)


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    dilation: IntOrTuple = 1,
    precision: Any = None,
    lowering: str = "auto",
) -> jax.Array:
    """Convolve every channel of `x` with kernels of its own: `dilated_conv` with groups = c_in.

    Args:
        x: (batch, *space, c_in), floating point.
        kernel: (*window, 1, c_in * multiplier); output channel c * multiplier + m comes from input channel c.
        stride: As `dilated_conv`.
        padding: As `dilated_conv`.
        padding_mode: As `dilated_conv`.
        dilation: As `dilated_conv`.
        precision: As `dilated_conv`.
        lowering: As `dilated_conv`.

    Returns:
        (batch, *space_out, c_in * multiplier).

    Raises:
        UserError: as `dilated_conv`.

    Example:
        >>> depthwise_conv(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 1, 6)), dilation=2).shape
        (1, 8, 8, 6)

    Reference:
        Chollet 2017, arXiv:1610.02357.
    """
    caller = "depthwise_conv"
    kernel = jnp.asarray(kernel)
    c_in = jnp.shape(x)[-1] if jnp.ndim(x) else 0
    if jnp.ndim(kernel) > 2 and c_in and (kernel.shape[-2] != 1 or kernel.shape[-1] % c_in):
        raise UserError(
            f"{caller}: a kernel of shape {kernel.shape} does not fit {c_in} input channels; "
            f"its last two axes must be (1, {c_in} * multiplier)."
        )
    return _dilated_conv(caller, x, kernel, stride, padding, padding_mode, dilation, c_in, precision, lowering)


def separable_conv(
    x: jax.Array,
    depthwise_kernel: jax.Array,
    pointwise_kernel: jax.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    dilation: IntOrTuple = 1,
    precision: Any = None,
    lowering: str = "auto",
) -> jax.Array:
    """Convolve depthwise with dilation, then mix the channels with a 1x1 kernel.

    Args:
        x: (batch, *space, c_in), floating point.
        depthwise_kernel: (*window, 1, c_in * multiplier), as `depthwise_conv`.
        pointwise_kernel: (1, ..., 1, c_in * multiplier, c_out).
        stride: As `dilated_conv`; of the depthwise part, as all that follows.
        padding: As `dilated_conv`.
        padding_mode: As `dilated_conv`.
        dilation: As `dilated_conv`.
        precision: As `dilated_conv`; of both parts.
        lowering: As `dilated_conv`; of the depthwise part, and of the pointwise one where that can take it.

    Returns:
        (batch, *space_out, c_out).

    Raises:
        UserError: as `dilated_conv`.

    Example:
        >>> separable_conv(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 1, 3)), jnp.ones((1, 1, 3, 16)), dilation=4).shape
        (1, 8, 8, 16)

    Reference:
        Chollet 2017, arXiv:1610.02357; with dilation: Chen et al. 2018, arXiv:1802.02611.
    """
    caller = "separable_conv"
    pointwise_kernel = jnp.asarray(pointwise_kernel)
    if any(size != 1 for size in pointwise_kernel.shape[:-2]):
        raise UserError(f"{caller}: a pointwise_kernel of shape {pointwise_kernel.shape} has a window; its leading axes must all be 1.")
    y = depthwise_conv(
        x,
        depthwise_kernel,
        stride=stride,
        padding=padding,
        padding_mode=padding_mode,
        dilation=dilation,
        precision=precision,
        lowering=lowering,
    )
    # The lowerings for groups cannot compute a dense product.
    pointwise = lowering if lowering == "lax" else "auto"
    return _dilated_conv(caller, y, pointwise_kernel, 1, "VALID", "zeros", 1, 1, precision, pointwise)


def dilated_conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    dilation: IntOrTuple = 1,
    groups: int = 1,
    output_size: IntOrTuple | None = None,
    precision: Any = None,
    lowering: str = "auto",
) -> jax.Array:
    """Transposed convolution: the exact adjoint of `dilated_conv` with the same kernel and arguments.

    sum(dilated_conv(a, kernel, ...) * x) == sum(a * dilated_conv_transpose(x, kernel, ...)) for every a and x: each sample of x adds
    x[n, p, o] * kernel[t, i, o] to y[n, p * stride + t * dilation - lo, i].

    Args:
        x: (batch, *space, c_out), floating point: what `dilated_conv` would return.
        kernel: (*window, c_in // groups, c_out), the kernel of `dilated_conv`, neither flipped nor transposed.
        stride: As `dilated_conv`.
        padding: As `dilated_conv`.
        dilation: As `dilated_conv`.
        groups: As `dilated_conv`.
        output_size: Space of the result. With a stride several sizes convolve to the same one; None takes size * stride for "SAME" and
            "CAUSAL", (size - 1) * stride + e - lo - hi for all else (e: the span of the kernel).
        precision: As `dilated_conv`.
        lowering: As `dilated_conv`.

    Returns:
        (batch, *output_size, c_in).

    Raises:
        UserError: as `dilated_conv`, and if `output_size` does not convolve to the space of x.

    Example:
        >>> dilated_conv_transpose(jnp.ones((1, 5, 8)), jnp.ones((3, 4, 8)), stride=2).shape
        (1, 10, 4)

    Reference:
        Dumoulin & Visin 2016, arXiv:1603.07285, section 4.
    """
    caller = "dilated_conv_transpose"
    x, kernel = _promoted(caller, x, kernel)
    size, window = x.shape[1:-1], kernel.shape[:-2]
    _check_groups(caller, groups, x.shape[-1], "input")
    if kernel.shape[-1] != x.shape[-1]:
        raise UserError(
            f"{caller}: a kernel of shape {kernel.shape} does not fit {x.shape[-1]} input channels; "
            f"its last axis must be {x.shape[-1]}, its last but one c_out // groups."
        )
    if output_size is None:
        sizes = transposed_size(size, window, stride=stride, padding=padding, dilation=dilation, caller=caller)
    else:
        sizes = per_axis(output_size, len(size), "output_size", caller)
    there = conv_output_size(sizes, window, stride=stride, padding=padding, dilation=dilation, caller=caller)
    if there != size:
        raise UserError(f"{caller}: output_size={sizes} would convolve to {there}, not to the {size} of x; choose another, or None.")

    def forward(y: jax.Array) -> jax.Array:
        return _dilated_conv(caller, y, kernel, stride, padding, "zeros", dilation, groups, precision, lowering)

    (y,) = jax.linear_transpose(forward, jax.ShapeDtypeStruct((x.shape[0], *sizes, kernel.shape[-2] * groups), x.dtype))(x)
    return y


def _dilated_conv(
    caller: str,
    x: jax.Array,
    kernel: jax.Array,
    stride: IntOrTuple,
    padding: Padding,
    padding_mode: str,
    dilation: IntOrTuple,
    groups: int,
    precision: Any,
    lowering: str,
) -> jax.Array:
    """`dilated_conv` for any caller, whose name its errors begin with."""
    x, kernel = _promoted(caller, x, kernel)
    _check_words(caller, padding_mode, lowering)
    _check_channels(caller, x, kernel, groups)
    size, window = x.shape[1:-1], kernel.shape[:-2]
    stride = per_axis(stride, len(size), "stride", caller)
    dilation = per_axis(dilation, len(size), "dilation", caller)
    # Called for its errors: the kernel may be wider than the input, or the input empty.
    conv_output_size(size, window, stride=stride, padding=padding, dilation=dilation, caller=caller)
    pads = explicit_padding(size, window, stride=stride, padding=padding, dilation=dilation, caller=caller)
    if padding_mode != "zeros":
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode=padding_mode)
        size, pads = x.shape[1:-1], ((0, 0),) * len(size)
    plan = ConvPlan(x.shape[0], size, x.shape[-1], kernel.shape[-1], window, stride, pads, dilation, int(groups), str(x.dtype), precision)
    if lowering != "auto" and not supports(lowering, plan):
        able = ("auto", *(name for name in LOWERINGS if supports(name, plan)))
        raise UserError(
            f"{caller}: lowering={lowering!r} cannot compute {plan.taps} taps of {plan.c_in} channels in {plan.groups} groups; "
            f"use one of {able}."
        )
    return convolve(x, kernel, plan, lowering)


def _promoted(caller: str, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return both in one inexact dtype, after the checks of their ranks."""
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    for name, array in (("x", x), ("kernel", kernel)):
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            raise UserError(f"{caller}: {name} has dtype {array.dtype}; convert it to a floating-point dtype such as float32 first.")
    if not 3 <= x.ndim <= 5:
        raise UserError(f"{caller}: x of shape {x.shape} must be (batch, *space, channels) with 1, 2 or 3 spatial axes.")
    if kernel.ndim != x.ndim:
        raise UserError(
            f"{caller}: a kernel of shape {kernel.shape} has {max(kernel.ndim - 2, 0)} spatial axes, x of shape {x.shape} {x.ndim - 2}; "
            "make the kernel (*window, c_in // groups, c_out)."
        )
    if 0 in kernel.shape or (is_integer(x.shape[-1]) and x.shape[-1] == 0):
        raise UserError(f"{caller}: x of shape {x.shape} and kernel of shape {kernel.shape} must have no channels or window of length 0.")
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    return x.astype(dtype), kernel.astype(dtype)


def _check_words(caller: str, padding_mode: str, lowering: str) -> None:
    if padding_mode not in PADDING_MODES:
        hint = did_you_mean(str(padding_mode), PADDING_MODES)
        raise UserError(f"{caller}: padding_mode={padding_mode!r} is unknown; use one of {PADDING_MODES}.{hint}")
    if lowering != "auto" and lowering not in LOWERINGS:
        known = ("auto", *LOWERINGS)
        raise UserError(f"{caller}: lowering={lowering!r} is unknown; use one of {known}.{did_you_mean(str(lowering), known)}")


def _check_groups(caller: str, groups: int, channels: int, which: str) -> None:
    per_axis(groups, 1, "groups", caller)
    if channels % groups:
        word = f"{channels} {which} channel" + ("s" if channels != 1 else "")
        raise UserError(f"{caller}: {word} cannot be split into groups={groups}; choose a divisor of {channels}.")


def _check_channels(caller: str, x: jax.Array, kernel: jax.Array, groups: int) -> None:
    _check_groups(caller, groups, x.shape[-1], "input")
    _check_groups(caller, groups, kernel.shape[-1], "output")
    if kernel.shape[-2] * groups != x.shape[-1]:
        raise UserError(
            f"{caller}: a kernel of shape {kernel.shape} does not fit {x.shape[-1]} input channels in {groups} groups; "
            f"its last but one axis must be {x.shape[-1] // groups}."
        )
