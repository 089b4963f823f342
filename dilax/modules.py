"""Flax modules that hold the kernel and the bias of each function in `dilax.functional`.

All take (*batch, *space, c_in) with any number of leading batch axes, including none: the number of spatial axes is that of `kernel_size`.
Output channels and kernel size may be given by position, all options by keyword.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from dilax import arguments
from dilax.arguments import per_axis
from dilax.convolution import ConvModule, Initializer, TimeConv, add_bias, check_groups, check_positive
from dilax.errors import UserError, shown
from dilax.functional import depthwise_conv, dilated_conv, dilated_conv_transpose, separable_conv
from dilax.geometry import IntOrTuple
from dilax.streaming import Flow, Layer, Ring


class DilatedConv(TimeConv):
    """`dilated_conv` with a learned kernel and bias; its parameters are those of `flax.linen.Conv`.

    Attributes:
        features: Output channels.
        kernel_size: Taps per axis, such as (3, 3) for images; an int needs `rank`.
        dilation: See `dilated_conv`.
        groups: See `dilated_conv`.
        weight_norm: Whether to learn the direction of the kernel and its length `kernel_scale` (features,) separately for each output
            channel (Salimans & Kingma 2016, arXiv:1602.07868).
        rank: Number of spatial axes, required if `kernel_size` is an int.
        stride: See `dilated_conv`.
        padding: See `dilated_conv`.
        padding_mode: See `dilated_conv`.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation; None for the promoted dtype of the input and the parameters.
        param_dtype: Dtype of the parameters.
        precision: See `dilated_conv`.
        kernel_init: Initializer of the kernel.
        bias_init: Initializer of the bias.
        lowering: See `dilated_conv`.

    Example:
        >>> x = jnp.ones((8, 32, 32, 3))
        >>> layer = DilatedConv(features=16, kernel_size=(3, 3), dilation=2)
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 32, 32, 16)
    """

    features: int
    kernel_size: IntOrTuple
    _: dataclasses.KW_ONLY
    dilation: IntOrTuple = 1
    groups: int = 1
    weight_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *space_out, features)."""
        taps = self._taps(x)
        arguments.flag("DilatedConv", "weight_norm", self.weight_norm)
        check_groups(self, x.shape[-1], self.features, self.groups)
        kernel = self.param("kernel", self.kernel_init, (*taps, x.shape[-1] // self.groups, self.features), self.param_dtype)
        if self.weight_norm:
            kernel = _with_lengths(kernel, self.param("kernel_scale", lambda _: _lengths(kernel)))
        x, kernel, bias = promote_dtype(x, kernel, self._bias(self.features), dtype=self.dtype)
        options = dict(padding_mode=self.padding_mode, dilation=self.dilation, groups=self.groups)
        return add_bias(self._convolve(dilated_conv, x, kernel, **options), bias)

    def _input_channels(self) -> int:
        return self.get_variable("params", "kernel").shape[-2] * self.groups

    def _convolve_chunk(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        kernel = self.get_variable("params", "kernel")
        if self.weight_norm:
            kernel = _with_lengths(kernel, self.get_variable("params", "kernel_scale"))
        y, ring = self._step_kernel(x, ring, kernel, self.dilation, self.groups)
        return self._add_stored_bias(y), ring


class DepthwiseConv(TimeConv):
    """`depthwise_conv` with a learned kernel and bias: `multiplier` output channels for each input channel.

    Attributes:
        kernel_size: Taps per axis.
        multiplier: Output channels per input channel.

    For all other attributes see `DilatedConv`.

    Example:
        >>> x = jnp.ones((8, 100, 16))
        >>> layer = DepthwiseConv(kernel_size=(3,), dilation=8, padding="CAUSAL")
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 100, 16)
    """

    kernel_size: IntOrTuple
    multiplier: int = 1
    _: dataclasses.KW_ONLY
    dilation: IntOrTuple = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *space_out, c_in * multiplier)."""
        taps = self._taps(x)
        check_positive(self, "multiplier")
        features = x.shape[-1] * self.multiplier
        kernel = self.param("kernel", self.kernel_init, (*taps, 1, features), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, self._bias(features), dtype=self.dtype)
        y = self._convolve(depthwise_conv, x, kernel, padding_mode=self.padding_mode, dilation=self.dilation)
        return add_bias(y, bias)

    def _input_channels(self) -> int:
        return self.get_variable("params", "kernel").shape[-1] // self.multiplier

    def _convolve_chunk(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        y, ring = self._step_kernel(x, ring, self.get_variable("params", "kernel"), self.dilation, x.shape[-1])
        return self._add_stored_bias(y), ring


class SeparableConv(TimeConv):
    """`separable_conv` with learned `depthwise_kernel`, `pointwise_kernel` and bias.

    Attributes:
        features: Output channels.
        kernel_size: Taps per axis of the depthwise kernel.
        multiplier: Depthwise channels per input channel.
        dilation: Dilation of the depthwise convolution.
        stride: Stride of the depthwise convolution.
        padding: Padding of the depthwise convolution.
        padding_mode: Padding mode of the depthwise convolution.
        kernel_init: Initializer of both kernels.

    For all other attributes see `DilatedConv`.

    Example:
        >>> x = jnp.ones((8, 32, 32, 16))
        >>> layer = SeparableConv(features=64, kernel_size=(3, 3), dilation=4)
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 32, 32, 64)
    """

    features: int
    kernel_size: IntOrTuple
    multiplier: int = 1
    _: dataclasses.KW_ONLY
    dilation: IntOrTuple = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *space_out, features)."""
        taps = self._taps(x)
        check_positive(self, "multiplier", "features")
        middle, ones = x.shape[-1] * self.multiplier, (1,) * len(taps)
        depthwise = self.param("depthwise_kernel", self.kernel_init, (*taps, 1, middle), self.param_dtype)
        pointwise = self.param("pointwise_kernel", self.kernel_init, (*ones, middle, self.features), self.param_dtype)
        x, depthwise, pointwise, bias = promote_dtype(x, depthwise, pointwise, self._bias(self.features), dtype=self.dtype)
        y = self._convolve(separable_conv, x, depthwise, pointwise, padding_mode=self.padding_mode, dilation=self.dilation)
        return add_bias(y, bias)

    def _input_channels(self) -> int:
        return self.get_variable("params", "depthwise_kernel").shape[-1] // self.multiplier

    def _convolve_chunk(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        depthwise, pointwise = (self.get_variable("params", f"{part}_kernel") for part in ("depthwise", "pointwise"))
        y, ring = self._step_kernel(x, ring, depthwise, self.dilation, x.shape[-1])
        y, pointwise = promote_dtype(y, pointwise.reshape(pointwise.shape[-2:]), dtype=self.dtype)
        return self._add_stored_bias(jnp.einsum("...c,co->...o", y, pointwise, precision=self.precision)), ring


class DilatedConvTranspose(ConvModule, Layer):
    """`dilated_conv_transpose` with a learned kernel (*kernel_size, features // groups, c_in) and bias.

    The kernel is that of `flax.linen.ConvTranspose` with `transpose_kernel=True`.

    Attributes:
        features: Output channels.
        kernel_size: Taps per axis.
        dilation: See `dilated_conv_transpose`.
        groups: See `dilated_conv_transpose`.
        output_size: See `dilated_conv_transpose`.
        stride: See `dilated_conv_transpose`.
        padding: See `dilated_conv_transpose`.
        kernel_init: Initializer of the kernel; the default has a fan-in of c_in.

    For all other attributes see `DilatedConv`.

    Example:
        >>> x = jnp.ones((8, 16, 16, 32))
        >>> layer = DilatedConvTranspose(features=8, kernel_size=(4, 4), stride=2)
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 32, 32, 8)
    """

    features: int
    kernel_size: IntOrTuple
    _: dataclasses.KW_ONLY
    dilation: IntOrTuple = 1
    groups: int = 1
    output_size: IntOrTuple | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *output_size, features)."""
        taps = self._taps(x)
        check_groups(self, x.shape[-1], self.features, self.groups)
        kernel = self.param("kernel", self.kernel_init, (*taps, self.features // self.groups, x.shape[-1]), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, self._bias(self.features), dtype=self.dtype)
        options = dict(dilation=self.dilation, groups=self.groups, output_size=self.output_size)
        return add_bias(self._convolve(dilated_conv_transpose, x, kernel, **options), bias)

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Refuse to be fed in chunks."""
        raise UserError(f"{flow.name_of(self)} is a DilatedConvTranspose, which looks ahead; use `dilax.CausalConvTranspose`.")


class MultiDilationConv(TimeConv):
    """The same input convolved at several dilations in parallel: multi-scale features.

    With `share_kernel` one kernel is applied at every dilation, so that the same weights detect a pattern at every scale, and the number of
    parameters does not grow with the number of dilations; with merge="concat", each dilation still has its own bias.

    Attributes:
        features: Output channels of each dilation.
        kernel_size: Taps per axis.
        dilations: One per branch.
        share_kernel: Whether the branches share one kernel.
        merge: "concat" joins the branches along the channels in the order of `dilations`, "sum" adds them.
        groups: See `dilated_conv`.
        padding: See `dilated_conv`; "VALID" gives branches of different sizes, which cannot be merged.

    For all other attributes see `DilatedConv`.

    Example:
        >>> x = jnp.ones((8, 32, 32, 3))
        >>> layer = MultiDilationConv(features=16, kernel_size=(3, 3), dilations=(1, 2, 4), share_kernel=True)
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 32, 32, 48)
    """

    features: int
    kernel_size: IntOrTuple
    dilations: tuple[IntOrTuple, ...]
    share_kernel: bool = False
    merge: str = "concat"
    _: dataclasses.KW_ONLY
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *space_out, features or features * len(dilations))."""
        taps = self._taps(x)
        self._check_fields(len(taps))
        check_groups(self, x.shape[-1], self.features, self.groups)
        shape = (*taps, x.shape[-1] // self.groups, self.features)
        kernels = [self.param(name, self.kernel_init, shape, self.param_dtype) for name in self._kernel_names()]
        bias = self._bias(self.features * (len(self.dilations) if self.merge == "concat" else 1))
        x, bias, *kernels = promote_dtype(x, bias, *kernels, dtype=self.dtype)
        branches = []
        for i, dilation in enumerate(self.dilations):
            options = dict(padding_mode=self.padding_mode, dilation=dilation, groups=self.groups)
            branches.append(self._convolve(dilated_conv, x, kernels[0 if self.share_kernel else i], **options))
        if len({branch.shape for branch in branches}) > 1:
            raise UserError(
                f"MultiDilationConv: padding={self.padding!r} gives the dilations {self.dilations} outputs of different sizes; use 'SAME'."
            )
        return add_bias(self._merge(branches), bias)

    def _kernel_names(self) -> list[str]:
        return ["kernel"] if self.share_kernel else [f"kernel_{i}" for i in range(len(self.dilations))]

    def _merge(self, branches: Sequence[jax.Array]) -> jax.Array:
        return jnp.concatenate(branches, axis=-1) if self.merge == "concat" else functools.reduce(jnp.add, branches)

    def _time_dilations(self, rank: int) -> list[int]:
        return [per_axis(dilation, rank, "dilation", "MultiDilationConv")[0] for dilation in self.dilations]

    def _input_channels(self) -> int:
        return self.get_variable("params", self._kernel_names()[0]).shape[-2] * self.groups

    def _convolve_chunk(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        kernels = [self.get_variable("params", name) for name in self._kernel_names()] * (len(self.dilations) if self.share_kernel else 1)
        steps = [self._step_kernel(x, ring, kernel, dilation, self.groups) for kernel, dilation in zip(kernels, self.dilations)]
        return self._add_stored_bias(self._merge([y for y, _ in steps])), steps[0][1]

    def _check_fields(self, rank: int) -> None:
        caller = "MultiDilationConv"
        if isinstance(self.dilations, str) or not isinstance(self.dilations, Sequence) or len(self.dilations) == 0:
            raise UserError(f"{caller}: dilations={shown(self.dilations)} must be a tuple, one per branch, such as (1, 2, 4).")
        for i, dilation in enumerate(self.dilations):
            per_axis(dilation, rank, f"dilations[{i}]", caller)
        arguments.flag(caller, "share_kernel", self.share_kernel)
        arguments.word(caller, "merge", self.merge, ("concat", "sum"))


def _lengths(kernel: jax.Array) -> jax.Array:
    """Euclidean norm of the kernel of each output channel."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=range(kernel.ndim - 1)))


def _with_lengths(kernel: jax.Array, lengths: jax.Array) -> jax.Array:
    """Scale the kernel of each output channel to that length."""
    factor = lengths / jnp.maximum(_lengths(kernel), jnp.finfo(kernel.dtype).tiny)
    return kernel * factor.reshape((1,) * (kernel.ndim - 1) + (-1,))
