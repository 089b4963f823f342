"""Smoothed dilated convolutions: neighbouring samples, of which a dilated convolution sees every d-th alone, depend on each other again.

A convolution with dilation d splits its input into the d ** n groups of samples that are d apart along each of n axes, and convolves each
group by itself. Group interaction mixes the groups of its output; a separable and shared convolution mixes neighbouring samples of its
input. Both are given by weights that are the difference from no smoothing, so that zeros are the plain dilated convolution.

Reference: Wang & Ji 2018, "Smoothed Dilated Convolutions for Improved Dense Prediction", arXiv:1808.08931.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike

from dilax import arguments
from dilax.arguments import is_integer, per_axis
from dilax.convolution import TimeConv, add_bias, check_groups
from dilax.errors import UserError, in_our_words
from dilax.functional import depthwise_conv, dilated_conv
from dilax.geometry import IntOrTuple, Padding
from dilax.streaming import Flow, Ring, new_ring

SMOOTHINGS = ("group_interaction", "separable_shared")


@in_our_words
def smoothed_conv(
    x: jax.Array,
    kernel: jax.Array,
    weights: jax.Array,
    *,
    smoothing: str,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    dilation: IntOrTuple = 1,
    groups: int = 1,
    precision: lax.PrecisionLike = None,
    lowering: str = "auto",
) -> jax.Array:
    """Apply a smoothed dilated convolution: `dilated_conv` after `separable_shared_conv`, or before `group_interaction`.

    Args:
        x: (batch, *space, c_in), floating-point, with 1, 2 or 3 spatial axes.
        kernel: (*kernel_size, c_in // groups, c_out).
        weights: Those of the smoothing; zeros give the plain `dilated_conv`.
        smoothing: "group_interaction" or "separable_shared".
        stride: See `dilated_conv`; 1 for group interaction.
        padding: See `dilated_conv`. The smoothing keeps the size. A separable and shared convolution is causal along the axes with padding
            "CAUSAL", and centred along all others; group interaction cannot be causal.
        padding_mode: See `dilated_conv`; also that of a separable and shared convolution.
        dilation: See `dilated_conv`.
        groups: See `dilated_conv`.
        precision: See `dilated_conv`.
        lowering: Lowering of the dilated convolution, and of the separable and shared one if it is "lax"; see `dilated_conv`.

    Returns:
        (batch, *space_out, c_out), as `dilated_conv`.

    Raises:
        UserError: as in `dilated_conv`, if the weights do not fit, or if group interaction is combined with a stride or causal padding.

    Example:
        >>> x, kernel, weights = jnp.ones((1, 9, 9, 3)), jnp.ones((3, 3, 3, 8)), jnp.zeros((3, 3, 1, 1))
        >>> smoothed_conv(x, kernel, weights, smoothing="separable_shared", dilation=2).shape
        (1, 9, 9, 8)

    Reference:
        Wang & Ji 2018, arXiv:1808.08931, section 3.
    """
    caller = "smoothed_conv"
    arguments.word(caller, "smoothing", smoothing, SMOOTHINGS)
    x = _image(caller, x)
    options: Any = dict(stride=stride, padding=padding, padding_mode=padding_mode, dilation=dilation, groups=groups, precision=precision)
    if smoothing == "group_interaction":
        _check_interaction(caller, stride, padding)
        y = dilated_conv(x, kernel, lowering=lowering, **options)
        return group_interaction(y, weights, dilation=dilation, precision=precision)
    shared: Any = dict(padding=_shared_padding(padding, x.ndim - 2), padding_mode=padding_mode, precision=precision)
    x = separable_shared_conv(x, weights, dilation=dilation, lowering="lax" if lowering == "lax" else "auto", **shared)
    return dilated_conv(x, kernel, lowering=lowering, **options)


def group_interaction(x: jax.Array, weights: jax.Array, *, dilation: IntOrTuple, precision: lax.PrecisionLike = None) -> jax.Array:
    """Add to each group of samples that are `dilation` apart a linear combination of all groups.

    With one axis, y[q * d + a] = x[q * d + a] + sum over b of weights[a, b] * x[q * d + b], where a, b = 0 ... d - 1 and x is 0 after its
    end, which matters if its size is not a multiple of d. All channels have the same weights.

    Args:
        x: (batch, *space, channels), floating-point: the output of a convolution with that dilation.
        weights: (groups, groups), where groups is the product of the dilations. Groups are counted in row-major order of the positions of
            their first samples. The matrix of the paper is these weights plus the identity.
        dilation: An int or one per axis.
        precision: As in `jax.lax.dot_general`.

    Returns:
        An array of the shape of x, in the promoted dtype.

    Raises:
        UserError: if the weights do not fit.

    Example:
        >>> swapped = jnp.asarray([[-1.0, 1.0], [1.0, -1.0]])
        >>> group_interaction(jnp.arange(6.0).reshape(1, 6, 1), swapped, dilation=2).ravel().tolist()
        [1.0, 0.0, 3.0, 2.0, 5.0, 4.0]

    Reference:
        Wang & Ji 2018, arXiv:1808.08931, section 3.3.
    """
    caller = "group_interaction"
    x = _image(caller, x)
    rank = x.ndim - 2
    gaps = per_axis(dilation, rank, "dilation", caller)
    count = math.prod(gaps)
    x, weights = _promoted(caller, x, weights, (count, count), f"the {count} groups of dilation={gaps}")
    arguments.precision(caller, precision)
    padded = jnp.pad(x, ((0, 0), *((0, -n % d) for n, d in zip(x.shape[1:-1], gaps)), (0, 0)))
    blocks = padded.reshape(x.shape[0], *(m for n, d in zip(padded.shape[1:-1], gaps) for m in (n // d, d)), x.shape[-1])
    space, inside, outside = "hvw"[:rank], "abc"[:rank], "pqr"[:rank]
    subscripts = [f"n{''.join(a + b for a, b in zip(space, phases))}i" for phases in (inside, outside)]
    mixed = jnp.einsum(f"{subscripts[0]},{outside}{inside}->{subscripts[1]}", blocks, weights.reshape(gaps * 2), precision=precision)
    return x + lax.slice(mixed.reshape(padded.shape), (0,) * x.ndim, x.shape)


def separable_shared_conv(
    x: jax.Array,
    weights: jax.Array,
    *,
    dilation: IntOrTuple,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    precision: lax.PrecisionLike = None,
    lowering: str = "auto",
) -> jax.Array:
    """Add to `x` its convolution, channel by channel, with one kernel that all channels share.

    Args:
        x: (batch, *space, channels), floating-point: the input of a convolution with that dilation.
        weights: (2 * dilation - 1, ..., 1, 1), one axis of that size for each spatial axis. The kernel of the paper is these weights plus 1
            at the centre.
        dilation: An int or one per axis.
        padding: See `dilated_conv`; it must keep the size, as "SAME" and "CAUSAL" do.
        padding_mode: See `dilated_conv`.
        precision: See `dilated_conv`.
        lowering: See `dilated_conv`.

    Returns:
        An array of the shape of x, in the promoted dtype.

    Raises:
        UserError: if the weights do not fit, or the padding does not keep the size.

    Example:
        >>> x, weights = jnp.arange(5.0).reshape(1, 5, 1), jnp.asarray([1.0, 0.0, 0.0]).reshape(3, 1, 1)
        >>> separable_shared_conv(x, weights, dilation=2).ravel().tolist()
        [0.0, 1.0, 3.0, 5.0, 7.0]

    Reference:
        Wang & Ji 2018, arXiv:1808.08931, section 3.4.
    """
    caller = "separable_shared_conv"
    x = _image(caller, x)
    gaps = per_axis(dilation, x.ndim - 2, "dilation", caller)
    x, weights = _promoted(caller, x, weights, (*_shared_size(gaps), 1, 1), f"dilation={gaps}")
    options: Any = dict(padding=padding, padding_mode=padding_mode, precision=precision, lowering=lowering)
    y = depthwise_conv(x, _for_channels(weights, x.shape[-1]), **options)
    if y.shape != x.shape:
        raise UserError(f"{caller}: padding={padding!r} changes the size from {x.shape[1:-1]} to {y.shape[1:-1]}; use 'SAME' or 'CAUSAL'.")
    return x + y


class SmoothedConv(TimeConv):
    """A dilated convolution without gridding: `smoothed_conv` with a learned kernel, learned weights of the smoothing, and a bias.

    Its parameters are those of `DilatedConv` and, if a dilation is above 1, the `smoothing` weights. They are initially 0: the module then
    equals `DilatedConv` exactly, and may take its place in a trained network.

    Attributes:
        features: Output channels.
        kernel_size: Taps per axis.
        dilation: See `dilated_conv`.
        smoothing: "group_interaction" mixes the groups of the output that are `dilation` apart, with the square of the product of the
            dilations as the number of weights; "separable_shared" convolves the input with one kernel of 2 * dilation - 1 taps per axis for
            all channels. See `smoothed_conv`.
        groups: See `dilated_conv`.
        stride: See `smoothed_conv`.
        padding: See `smoothed_conv`.

    For all other attributes see `DilatedConv`.

    Example:
        >>> x = jnp.ones((8, 32, 32, 3))
        >>> layer = SmoothedConv(features=16, kernel_size=(3, 3), dilation=2, smoothing="separable_shared")
        >>> jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)["params"])
        {'bias': (16,), 'kernel': (3, 3, 3, 16), 'smoothing': (3, 3, 1, 1)}

    Reference:
        Wang & Ji 2018, arXiv:1808.08931, section 3.
    """

    features: int
    kernel_size: IntOrTuple
    _: dataclasses.KW_ONLY
    dilation: IntOrTuple = 1
    smoothing: str = "group_interaction"
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *space_out, features)."""
        taps = self._taps(x)
        arguments.word("SmoothedConv", "smoothing", self.smoothing, SMOOTHINGS)
        check_groups(self, x.shape[-1], self.features, self.groups)
        gaps = per_axis(self.dilation, len(taps), "dilation", "SmoothedConv")
        if self.smoothing == "group_interaction":
            _check_interaction("SmoothedConv", self.stride, self.padding)
        kernel = self.param("kernel", self.kernel_init, (*taps, x.shape[-1] // self.groups, self.features), self.param_dtype)
        bias, options = self._bias(self.features), dict(padding_mode=self.padding_mode, dilation=self.dilation, groups=self.groups)
        if max(gaps) == 1:
            x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
            return add_bias(self._convolve(dilated_conv, x, kernel, **options), bias)
        count = math.prod(gaps)
        shape = (count, count) if self.smoothing == "group_interaction" else (*_shared_size(gaps), 1, 1)
        weights = self.param("smoothing", nn.initializers.zeros_init(), shape, self.param_dtype)
        x, kernel, weights, bias = promote_dtype(x, kernel, weights, bias, dtype=self.dtype)
        return add_bias(self._convolve(smoothed_conv, x, kernel, weights, smoothing=self.smoothing, **options), bias)

    def start(self, x: jax.Array, flow: Flow) -> Any:
        """Return a ring for the dilated convolution, and one for the smoothing before it if there is any."""
        ring = super().start(x, flow)
        rank = len(self._taps(x))
        gaps = per_axis(self.dilation, rank, "dilation", "SmoothedConv")
        if max(gaps) == 1:
            return ring
        if self.smoothing == "group_interaction":
            raise UserError(
                f"{flow.name_of(self)} mixes samples with later ones by smoothing='group_interaction', so that it cannot be fed in chunks; "
                "use smoothing='separable_shared'."
            )
        if _shared_padding(self.padding, rank)[0] != "CAUSAL":
            raise UserError(f"{flow.name_of(self)} smooths with later samples, so that it cannot be fed in chunks; use padding 'CAUSAL'.")
        return ring, new_ring(x.shape[0], _shared_size(gaps)[0] - 1, x.shape[2:], x.dtype)

    def _input_channels(self) -> int:
        return self.get_variable("params", "kernel").shape[-2] * self.groups

    def _convolve_chunk(self, x: jax.Array, ring: Any) -> tuple[jax.Array, Any]:
        kernel, channels = self.get_variable("params", "kernel"), x.shape[-1]
        if isinstance(ring, Ring):
            y, ring = self._step_kernel(x, ring, kernel, self.dilation, self.groups)
            return self._add_stored_bias(y), ring
        ring, smoothing_ring = ring
        weights = _for_channels(self.get_variable("params", "smoothing"), channels)
        padding = _shared_padding(self.padding, kernel.ndim - 2)
        smooth, smoothing_ring = self._step_kernel(x, smoothing_ring, weights, 1, channels, stride=1, padding=padding)
        y, ring = self._step_kernel(x.astype(smooth.dtype) + smooth, ring, kernel, self.dilation, self.groups)
        return self._add_stored_bias(y), (ring, smoothing_ring)


def _shared_size(gaps: tuple[int, ...]) -> tuple[int, ...]:
    """The size of the kernel of a separable and shared convolution: every sample reaches its neighbours in all other groups."""
    return tuple(2 * d - 1 for d in gaps)


def _for_channels(weights: jax.Array, channels: int) -> jax.Array:
    """Return the kernel of a depthwise convolution that is the same for all channels."""
    return jnp.broadcast_to(weights, (*weights.shape[:-1], channels))


def _shared_padding(padding: Padding, rank: int) -> tuple[str, ...]:
    """Return the padding of a separable and shared convolution before a convolution with a given one."""
    words = tuple(padding) if isinstance(padding, tuple | list) and len(padding) == rank else (padding,) * rank
    return tuple("CAUSAL" if isinstance(word, str) and word == "CAUSAL" else "SAME" for word in words)


def _check_interaction(caller: str, stride: IntOrTuple, padding: Padding) -> None:
    """Refuse what group interaction is not defined for."""
    strides = stride if isinstance(stride, tuple | list) else (stride,)
    if any(is_integer(step) and step > 1 for step in strides):
        raise UserError(
            f"{caller}: stride={stride} leaves out some of the groups that smoothing='group_interaction' mixes; use stride=1, or "
            "smoothing='separable_shared'."
        )
    words = padding if isinstance(padding, tuple | list) else (padding,)
    if any(isinstance(word, str) and word == "CAUSAL" for word in words):
        raise UserError(
            f"{caller}: smoothing='group_interaction' mixes samples with later ones, which padding={padding!r} does not allow; use "
            "smoothing='separable_shared'."
        )


def _image(caller: str, x: jax.Array) -> jax.Array:
    x = arguments.array(caller, "x", x, "inexact")
    if not 3 <= x.ndim <= 5:
        raise UserError(f"{caller}: x of shape {x.shape} must be (batch, *space, channels) with 1, 2 or 3 spatial axes.")
    return x


def _promoted(caller: str, x: jax.Array, weights: jax.Array, shape: tuple[int, ...], what: str) -> tuple[jax.Array, jax.Array]:
    """Check the shape of the weights, and return both arrays in their promoted dtype."""
    weights = arguments.array(caller, "weights", weights, "inexact")
    if weights.shape != shape:
        raise UserError(f"{caller}: weights of shape {weights.shape} do not fit {what}; give weights of shape {shape}.")
    dtype: DTypeLike = jnp.promote_types(x.dtype, weights.dtype)
    return x.astype(dtype), weights.astype(dtype)
