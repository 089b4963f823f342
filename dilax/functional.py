"""Dilated convolutions as pure functions of arrays, with 1, 2 or 3 spatial axes as given by `x.ndim`."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from dilax import arguments
from dilax.arguments import is_integer, per_axis
from dilax.errors import UserError, in_our_words
from dilax.geometry import PADDING_MODES, IntOrTuple, Padding, explicit_padding, transposed_size
from dilax.geometry import output_size as conv_output_size
from dilax.lowerings import LOWERINGS, convolve, convolve_transpose, supports
from dilax.lowerings.registry import check_name
from dilax.plan import ConvPlan


@in_our_words
def dilated_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    dilation: IntOrTuple = 1,
    groups: int = 1,
    precision: lax.PrecisionLike = None,
    lowering: str = "auto",
) -> jax.Array:
    """Convolve `x` with `kernel`, its taps `dilation` samples apart.

    y[n, p, o] = sum over t, i of x[n, p * stride + t * dilation - lo, i] * kernel[t, i, o]
    (a cross-correlation, as in every deep-learning library; x is 0 outside its range).

    Args:
        x: (batch, *space, c_in), floating-point, with 1, 2 or 3 spatial axes.
        kernel: (*kernel_size, c_in // groups, c_out).
        stride: Samples between neighbouring outputs, an int or one per axis.
        padding: "SAME", "VALID", "CAUSAL", "TORCH", an int, or a tuple with one of these or a (lo, hi) pair per axis; see
            `explicit_padding`.
        padding_mode: Values of the padding: "zeros", or samples of x as in `numpy.pad`: "reflect", "edge" or "wrap".
        dilation: Samples between neighbouring taps, an int or one per axis; 1 is an ordinary convolution. The kernel spans
            (k - 1) * dilation + 1 samples.
        groups: Number of independent channel groups; group g maps the g-th block of input channels to the g-th block of output channels.
        precision: As in `jax.lax.conv_general_dilated`.
        lowering: "auto" (see `select_lowering` and `use_lowering`) or a key of `LOWERINGS`. It determines how the result is computed, not
            what it is.

    Returns:
        (batch, *space_out, c_out), in the promoted dtype of x and kernel; products of float16 and bfloat16 are summed in float32.

    Raises:
        UserError: if shapes, dtypes or arguments do not fit. It is a `ValueError`.

    Example:
        >>> dilated_conv(jnp.ones((1, 7, 1)), jnp.ones((3, 1, 1)), dilation=2).shape
        (1, 7, 1)

    Reference:
        Yu & Koltun 2016, arXiv:1511.07122.
    """
    return _dilated_conv("dilated_conv", x, kernel, stride, padding, padding_mode, dilation, groups, precision, lowering)


@in_our_words
def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    dilation: IntOrTuple = 1,
    precision: lax.PrecisionLike = None,
    lowering: str = "auto",
) -> jax.Array:
    """Convolve each channel of `x` with its own kernels: `dilated_conv` with groups=c_in.

    Args:
        x: (batch, *space, c_in), floating-point.
        kernel: (*kernel_size, 1, c_in * multiplier); output channel c * multiplier + m is computed from input channel c.
        stride: See `dilated_conv`.
        padding: See `dilated_conv`.
        padding_mode: See `dilated_conv`.
        dilation: See `dilated_conv`.
        precision: See `dilated_conv`.
        lowering: See `dilated_conv`.

    Returns:
        (batch, *space_out, c_in * multiplier).

    Raises:
        UserError: as in `dilated_conv`.

    Example:
        >>> depthwise_conv(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 1, 6)), dilation=2).shape
        (1, 8, 8, 6)

    Reference:
        Chollet 2017, arXiv:1610.02357.
    """
    options = (stride, padding, padding_mode, dilation, precision, lowering)
    return _depthwise_conv("depthwise_conv", x, kernel, *options, argument="kernel")


@in_our_words
def separable_conv(
    x: jax.Array,
    depthwise_kernel: jax.Array,
    pointwise_kernel: jax.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    dilation: IntOrTuple = 1,
    precision: lax.PrecisionLike = None,
    lowering: str = "auto",
) -> jax.Array:
    """Apply a dilated depthwise convolution, then mix the channels with a 1x1 kernel.

    Args:
        x: (batch, *space, c_in), floating-point.
        depthwise_kernel: (*kernel_size, 1, c_in * multiplier); see `depthwise_conv`.
        pointwise_kernel: (1, ..., 1, c_in * multiplier, c_out).
        stride: Stride of the depthwise convolution; see `dilated_conv`.
        padding: Padding of the depthwise convolution; see `dilated_conv`.
        padding_mode: Padding mode of the depthwise convolution; see `dilated_conv`.
        dilation: Dilation of the depthwise convolution; see `dilated_conv`.
        precision: Precision of both convolutions; see `dilated_conv`.
        lowering: Lowering of the depthwise convolution, and of the pointwise one if it is "lax"; see `dilated_conv`.

    Returns:
        (batch, *space_out, c_out).

    Raises:
        UserError: as in `dilated_conv`.

    Example:
        >>> separable_conv(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 1, 3)), jnp.ones((1, 1, 3, 16)), dilation=4).shape
        (1, 8, 8, 16)

    Reference:
        Chollet 2017, arXiv:1610.02357; with dilation, Chen et al. 2018, arXiv:1802.02611.
    """
    caller = "separable_conv"
    pointwise_kernel = _array(caller, "pointwise_kernel", pointwise_kernel)
    if any(size != 1 for size in pointwise_kernel.shape[:-2]):
        raise UserError(
            f"{caller}: a pointwise_kernel of shape {pointwise_kernel.shape} must have kernel size 1; make its leading axes of length 1."
        )
    options = (stride, padding, padding_mode, dilation, precision, lowering)
    y = _depthwise_conv(caller, x, depthwise_kernel, *options, argument="depthwise_kernel")
    # The lowerings for grouped convolutions do not support a dense one.
    pointwise = lowering if lowering == "lax" else "auto"
    return _dilated_conv(caller, y, pointwise_kernel, 1, "VALID", "zeros", 1, 1, precision, pointwise, argument="pointwise_kernel")


@in_our_words
def dilated_conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    dilation: IntOrTuple = 1,
    groups: int = 1,
    output_size: IntOrTuple | None = None,
    precision: lax.PrecisionLike = None,
    lowering: str = "auto",
) -> jax.Array:
    """Apply a transposed convolution: the exact adjoint of `dilated_conv` with the same kernel and arguments.

    sum(dilated_conv(a, kernel, ...) * x) == sum(a * dilated_conv_transpose(x, kernel, ...)) for all a and x: each sample of x adds
    x[n, p, o] * kernel[t, i, o] to y[n, p * stride + t * dilation - lo, i].

    Args:
        x: (batch, *space, c_out), floating-point: shaped like an output of `dilated_conv`.
        kernel: (*kernel_size, c_in // groups, c_out), the kernel of `dilated_conv`, neither flipped nor transposed.
        stride: See `dilated_conv`.
        padding: See `dilated_conv`.
        dilation: See `dilated_conv`.
        groups: See `dilated_conv`.
        output_size: Spatial shape of the result. With a stride, several sizes convolve to the same one; None takes size * stride for "SAME"
            and "CAUSAL", and (size - 1) * stride + e - lo - hi for any other padding, where e is the span of the kernel.
        precision: See `dilated_conv`.
        lowering: See `dilated_conv`.

    Returns:
        (batch, *output_size, c_in).

    Raises:
        UserError: as in `dilated_conv`, and if a convolution does not map `output_size` to the spatial shape of x.

    Example:
        >>> dilated_conv_transpose(jnp.ones((1, 5, 8)), jnp.ones((3, 4, 8)), stride=2).shape
        (1, 10, 4)

    Reference:
        Dumoulin & Visin 2016, arXiv:1603.07285, section 4.
    """
    caller = "dilated_conv_transpose"
    x, kernel = _promoted(caller, x, kernel)
    size, kernel_size = x.shape[1:-1], kernel.shape[:-2]
    _check_groups(caller, groups, x.shape[-1], "input")
    if kernel.shape[-1] != x.shape[-1]:
        raise UserError(
            f"{caller}: a kernel of shape {kernel.shape} does not fit {x.shape[-1]} input channels; "
            f"its last two axes must be (c_out // groups, {x.shape[-1]})."
        )
    if output_size is None:
        sizes = transposed_size(size, kernel_size, stride=stride, padding=padding, dilation=dilation, caller=caller)
    else:
        sizes = per_axis(output_size, len(size), "output_size", caller, symbolic=True)
    forward_size = conv_output_size(sizes, kernel_size, stride=stride, padding=padding, dilation=dilation, caller=caller)
    if forward_size != size:
        raise UserError(
            f"{caller}: a convolution maps output_size={sizes} to {forward_size}, but x has {size}; choose another size, or None."
        )

    x_shape = (x.shape[0], *sizes, kernel.shape[-2] * groups)
    plan = _plan(caller, x_shape, kernel, stride, padding, dilation, groups, precision, lowering)
    return convolve_transpose(x, kernel, plan, lowering)


def _dilated_conv(
    caller: str,
    x: jax.Array,
    kernel: jax.Array,
    stride: IntOrTuple,
    padding: Padding,
    padding_mode: str,
    dilation: IntOrTuple,
    groups: int,
    precision: lax.PrecisionLike,
    lowering: str,
    argument: str = "kernel",
) -> jax.Array:
    """`dilated_conv` on behalf of `caller`, whose name error messages start with; they call the kernel `argument`."""
    x, kernel = _promoted(caller, x, kernel, argument)
    arguments.word(caller, "padding_mode", padding_mode, PADDING_MODES)
    _check_channels(caller, x, kernel, groups, argument)
    plan = _plan(caller, x.shape, kernel, stride, padding, dilation, groups, precision, lowering)
    if padding_mode != "zeros":
        x = jnp.pad(x, ((0, 0), *plan.padding, (0, 0)), mode=padding_mode)
        plan = dataclasses.replace(plan, input_size=x.shape[1:-1], padding=((0, 0),) * plan.rank)
    return convolve(x, kernel, plan, lowering)


def _depthwise_conv(
    caller: str,
    x: jax.Array,
    kernel: jax.Array,
    stride: IntOrTuple,
    padding: Padding,
    padding_mode: str,
    dilation: IntOrTuple,
    precision: lax.PrecisionLike,
    lowering: str,
    *,
    argument: str,
) -> jax.Array:
    """`depthwise_conv` on behalf of `caller`, as in `_dilated_conv`."""
    x, kernel = _promoted(caller, x, kernel, argument)
    c_in = x.shape[-1]
    if kernel.shape[-2] != 1 or kernel.shape[-1] % c_in:
        raise UserError(
            f"{caller}: a {argument} of shape {kernel.shape} does not fit {c_in} input channels; "
            f"its last two axes must be (1, {c_in} * multiplier)."
        )
    return _dilated_conv(caller, x, kernel, stride, padding, padding_mode, dilation, c_in, precision, lowering, argument)


def _plan(
    caller: str,
    x_shape: tuple[int, ...],
    kernel: jax.Array,
    stride: IntOrTuple,
    padding: Padding,
    dilation: IntOrTuple,
    groups: int,
    precision: lax.PrecisionLike,
    lowering: str,
) -> ConvPlan:
    """Plan the convolution of an input of a given shape, and check that it fits and that the lowering supports it."""
    check_name(caller, "lowering", lowering)
    arguments.precision(caller, precision)
    size, kernel_size = x_shape[1:-1], kernel.shape[:-2]
    # Called for its checks: the kernel may be wider than the input, or the input empty.
    conv_output_size(size, kernel_size, stride=stride, padding=padding, dilation=dilation, caller=caller)
    pads = explicit_padding(size, kernel_size, stride=stride, padding=padding, dilation=dilation, caller=caller)
    steps, gaps = (per_axis(value, len(size), name, caller) for name, value in (("stride", stride), ("dilation", dilation)))
    channels = (x_shape[-1], kernel.shape[-1])
    plan = ConvPlan(x_shape[0], size, *channels, kernel_size, steps, pads, gaps, int(groups), str(kernel.dtype), precision)
    if lowering != "auto" and not supports(lowering, plan):
        supported = ("auto", *(name for name in LOWERINGS if supports(name, plan)))
        raise UserError(
            f"{caller}: lowering={lowering!r} does not support {plan.taps} taps, {plan.c_in} input channels and groups={plan.groups}; "
            f"use one of {supported}."
        )
    return plan


def _promoted(caller: str, x: jax.Array, kernel: jax.Array, argument: str = "kernel") -> tuple[jax.Array, jax.Array]:
    """Check the ranks and dtypes of both arrays, and return them in their promoted dtype."""
    x, kernel = (_array(caller, name, value) for name, value in (("x", x), (argument, kernel)))
    if not 3 <= x.ndim <= 5:
        raise UserError(f"{caller}: x of shape {x.shape} must be (batch, *space, channels) with 1, 2 or 3 spatial axes.")
    if kernel.ndim != x.ndim:
        raise UserError(
            f"{caller}: a {argument} of shape {kernel.shape} is for {max(kernel.ndim - 2, 0)}-D inputs, but x of shape {x.shape} is "
            f"{x.ndim - 2}-D; make the {argument} (*kernel_size, c_in // groups, c_out)."
        )
    if 0 in kernel.shape or (is_integer(x.shape[-1]) and x.shape[-1] == 0):
        raise UserError(
            f"{caller}: the channels of x {x.shape} and all axes of {argument} {kernel.shape} must be at least 1; "
            "remove the axis of length 0."
        )
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    # An array of that dtype is not converted: it may be one of another library, such as the quantised kernels of qwix, that cannot be.
    x, kernel = (array if array.dtype == dtype else array.astype(dtype) for array in (x, kernel))
    return x, kernel


def _array(caller: str, argument: str, value: jax.Array) -> jax.Array:
    return arguments.array(caller, argument, value, "inexact")


def _check_groups(caller: str, groups: int, channels: int, which: str) -> None:
    arguments.integer(caller, "groups", groups, minimum=1)
    if channels % groups:
        word = f"{channels} {which} channel" + ("s" if channels != 1 else "")
        raise UserError(f"{caller}: {word} cannot be split into groups={groups}; choose a divisor of {channels}.")


def _check_channels(caller: str, x: jax.Array, kernel: jax.Array, groups: int, argument: str) -> None:
    _check_groups(caller, groups, x.shape[-1], "input")
    _check_groups(caller, groups, kernel.shape[-1], "output")
    if kernel.shape[-2] * groups != x.shape[-1]:
        raise UserError(
            f"{caller}: a {argument} of shape {kernel.shape} does not fit {x.shape[-1]} input channels with groups={groups}; "
            f"its second-to-last axis must be {x.shape[-1] // groups}."
        )
