"""Flax modules that hold the kernel and the bias of each function in `dilax.functional`.

All take (*batch, *space, c_in) with any number of leading batch axes, none included: the number of spatial axes is that of `kernel_size`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from dilax.errors import UserError, did_you_mean
from dilax.functional import depthwise_conv, dilated_conv, dilated_conv_transpose, separable_conv
from dilax.geometry import IntOrTuple, Padding, is_integer, per_axis
from dilax.stepping import TimeConv, stepped, window_of, with_stored_bias
from dilax.streaming import Ring

Dtype = Any
Initializer = Callable[..., Any]

default_kernel_init = nn.initializers.lecun_normal()


class DilatedConv(TimeConv):
    """`dilated_conv` with a learned kernel and bias; its parameters are those of `flax.linen.Conv`.

    Attributes:
        features: Output channels.
        kernel_size: Taps per axis, such as (3, 3) for images; an int needs `rank`.
        rank: Number of spatial axes, only for an int `kernel_size`.
        stride: As `dilated_conv`.
        padding: As `dilated_conv`.
        padding_mode: As `dilated_conv`.
        dilation: As `dilated_conv`.
        groups: As `dilated_conv`.
        use_bias: Whether to add a bias.
        weight_norm: Whether the kernel is learned as its direction and, `kernel_scale` (features,), its length for each output channel
            (Salimans & Kingma 2016, arXiv:1602.07868).
        dtype: Of the computation; None promotes the input's and the parameters'.
        param_dtype: Of the parameters.
        precision: As `dilated_conv`.
        kernel_init: Initializer of the kernel.
        bias_init: Initializer of the bias.
        lowering: As `dilated_conv`.

    Example:
        >>> x = jnp.ones((8, 32, 32, 3))
        >>> layer = DilatedConv(features=16, kernel_size=(3, 3), dilation=2)
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 32, 32, 16)
    """

    features: int
    kernel_size: IntOrTuple
    rank: int | None = None
    stride: IntOrTuple = 1
    padding: Padding = "SAME"
    padding_mode: str = "zeros"
    dilation: IntOrTuple = 1
    groups: int = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: Any = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = nn.initializers.zeros_init()
    lowering: str = "auto"
    weight_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *space_out, features)."""
        window = window_of(self, x)
        _check_divisible(self, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, (*window, x.shape[-1] // self.groups, self.features), self.param_dtype)
        if self.weight_norm:
            kernel = _scaled(kernel, self.param("kernel_scale", lambda _: _lengths(kernel)))
        bias = _bias(self, self.features)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = dilated_conv(
            _flat_batch(x, window),
            kernel,
            stride=self.stride,
            padding=self.padding,
            padding_mode=self.padding_mode,
            dilation=self.dilation,
            groups=self.groups,
            precision=self.precision,
            lowering=self.lowering,
        )
        return _with_batch_and_bias(y, x, window, bias)

    def _time_dilations(self, rank: int) -> list[int]:
        return [per_axis(self.dilation, rank, "dilation", "DilatedConv")[0]]

    def _channels(self) -> int:
        return self.get_variable("params", "kernel").shape[-2] * self.groups

    def _convolved(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        kernel = self.get_variable("params", "kernel")
        if self.weight_norm:
            kernel = _scaled(kernel, self.get_variable("params", "kernel_scale"))
        return stepped(self, x, ring, kernel, self.dilation, self.groups)


class DepthwiseConv(TimeConv):
    """`depthwise_conv` with a learned kernel and bias: `multiplier` output channels for each input channel.

    Attributes:
        multiplier: Output channels per input channel.

    All other attributes: as `DilatedConv`.

    Example:
        >>> x = jnp.ones((8, 100, 16))
        >>> layer = DepthwiseConv(kernel_size=(3,), dilation=8, padding="CAUSAL")
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 100, 16)
    """

    kernel_size: IntOrTuple
    multiplier: int = 1
    rank: int | None = None
    stride: IntOrTuple = 1
    padding: Padding = "SAME"
    padding_mode: str = "zeros"
    dilation: IntOrTuple = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: Any = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = nn.initializers.zeros_init()
    lowering: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *space_out, c_in * multiplier)."""
        window = window_of(self, x)
        _check_count(self, "multiplier")
        features = x.shape[-1] * self.multiplier
        kernel = self.param("kernel", self.kernel_init, (*window, 1, features), self.param_dtype)
        bias = _bias(self, features)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = depthwise_conv(
            _flat_batch(x, window),
            kernel,
            stride=self.stride,
            padding=self.padding,
            padding_mode=self.padding_mode,
            dilation=self.dilation,
            precision=self.precision,
            lowering=self.lowering,
        )
        return _with_batch_and_bias(y, x, window, bias)

    def _time_dilations(self, rank: int) -> list[int]:
        return [per_axis(self.dilation, rank, "dilation", "DepthwiseConv")[0]]

    def _channels(self) -> int:
        return self.get_variable("params", "kernel").shape[-1] // self.multiplier

    def _convolved(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        return stepped(self, x, ring, self.get_variable("params", "kernel"), self.dilation, x.shape[-1])


class SeparableConv(TimeConv):
    """`separable_conv` with learned `depthwise_kernel`, `pointwise_kernel` and bias.

    Attributes:
        features: Output channels.
        multiplier: Depthwise channels per input channel.
        stride: Of the depthwise part, as `padding`, `padding_mode` and `dilation`.
        kernel_init: Initializer of both kernels.

    All other attributes: as `DilatedConv`.

    Example:
        >>> x = jnp.ones((8, 32, 32, 16))
        >>> layer = SeparableConv(features=64, kernel_size=(3, 3), dilation=4)
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 32, 32, 64)
    """

    features: int
    kernel_size: IntOrTuple
    multiplier: int = 1
    rank: int | None = None
    stride: IntOrTuple = 1
    padding: Padding = "SAME"
    padding_mode: str = "zeros"
    dilation: IntOrTuple = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: Any = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = nn.initializers.zeros_init()
    lowering: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *space_out, features)."""
        window = window_of(self, x)
        _check_count(self, "multiplier")
        _check_count(self, "features")
        middle = x.shape[-1] * self.multiplier
        depthwise = self.param("depthwise_kernel", self.kernel_init, (*window, 1, middle), self.param_dtype)
        ones = (1,) * len(window)
        pointwise = self.param("pointwise_kernel", self.kernel_init, (*ones, middle, self.features), self.param_dtype)
        bias = _bias(self, self.features)
        x, depthwise, pointwise, bias = promote_dtype(x, depthwise, pointwise, bias, dtype=self.dtype)
        y = separable_conv(
            _flat_batch(x, window),
            depthwise,
            pointwise,
            stride=self.stride,
            padding=self.padding,
            padding_mode=self.padding_mode,
            dilation=self.dilation,
            precision=self.precision,
            lowering=self.lowering,
        )
        return _with_batch_and_bias(y, x, window, bias)

    def _time_dilations(self, rank: int) -> list[int]:
        return [per_axis(self.dilation, rank, "dilation", "SeparableConv")[0]]

    def _channels(self) -> int:
        return self.get_variable("params", "depthwise_kernel").shape[-1] // self.multiplier

    def _convolved(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        depthwise, pointwise = (self.get_variable("params", f"{part}_kernel") for part in ("depthwise", "pointwise"))
        y, ring = stepped(self, x, ring, depthwise, self.dilation, x.shape[-1], use_bias=False)
        y, pointwise = promote_dtype(y, pointwise.reshape(pointwise.shape[-2:]), dtype=self.dtype)
        return with_stored_bias(self, jnp.einsum("...c,co->...o", y, pointwise, precision=self.precision)), ring


class DilatedConvTranspose(nn.Module):
    """`dilated_conv_transpose` with a learned kernel (*window, features // groups, c_in) and bias.

    The kernel is that of `flax.linen.ConvTranspose` with `transpose_kernel=True`.

    Attributes:
        features: Output channels.
        output_size: As `dilated_conv_transpose`.
        kernel_init: Initializer of the kernel; the default counts c_in as its inputs.

    All other attributes: as `DilatedConv`.

    Example:
        >>> x = jnp.ones((8, 16, 16, 32))
        >>> layer = DilatedConvTranspose(features=8, kernel_size=(4, 4), stride=2)
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 32, 32, 8)
    """

    features: int
    kernel_size: IntOrTuple
    rank: int | None = None
    stride: IntOrTuple = 1
    padding: Padding = "SAME"
    dilation: IntOrTuple = 1
    groups: int = 1
    output_size: IntOrTuple | None = None
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: Any = None
    kernel_init: Initializer = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
    bias_init: Initializer = nn.initializers.zeros_init()
    lowering: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *output_size, features)."""
        window = window_of(self, x)
        _check_divisible(self, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, (*window, self.features // self.groups, x.shape[-1]), self.param_dtype)
        bias = _bias(self, self.features)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = dilated_conv_transpose(
            _flat_batch(x, window),
            kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            output_size=self.output_size,
            precision=self.precision,
            lowering=self.lowering,
        )
        return _with_batch_and_bias(y, x, window, bias)


class MultiDilationConv(TimeConv):
    """The same input convolved at several dilations, side by side: multi-scale features.

    With `share_kernel` one kernel is applied at every dilation, so a pattern is found at every scale by the same weights (and the number
    of parameters does not depend on the number of dilations); each dilation keeps a bias of its own.

    Attributes:
        features: Output channels of each dilation.
        dilations: One per branch.
        share_kernel: Whether the branches share one kernel.
        merge: "concat" joins the branches along the channels in the order of `dilations`, "sum" adds them.
        padding: As `dilated_conv`; "VALID" gives the branches different sizes, which cannot be merged.

    All other attributes: as `DilatedConv`.

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
    rank: int | None = None
    stride: IntOrTuple = 1
    padding: Padding = "SAME"
    padding_mode: str = "zeros"
    groups: int = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: Any = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = nn.initializers.zeros_init()
    lowering: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *space_out, features or features * len(dilations))."""
        window = window_of(self, x)
        self._check()
        _check_divisible(self, x.shape[-1])
        shape = (*window, x.shape[-1] // self.groups, self.features)
        names = ["kernel"] if self.share_kernel else [f"kernel_{i}" for i in range(len(self.dilations))]
        kernels = [self.param(name, self.kernel_init, shape, self.param_dtype) for name in names]
        bias = _bias(self, self.features * (len(self.dilations) if self.merge == "concat" else 1))
        x, bias, *kernels = promote_dtype(x, bias, *kernels, dtype=self.dtype)
        branches: list[Any] = [
            dilated_conv(
                _flat_batch(x, window),
                kernels[0 if self.share_kernel else i],
                stride=self.stride,
                padding=self.padding,
                padding_mode=self.padding_mode,
                dilation=dilation,
                groups=self.groups,
                precision=self.precision,
                lowering=self.lowering,
            )
            for i, dilation in enumerate(self.dilations)
        ]
        if len({branch.shape for branch in branches}) > 1:
            raise UserError(
                f"MultiDilationConv: padding={self.padding!r} gives the dilations {self.dilations} outputs of different sizes; use 'SAME'."
            )
        y = jnp.concatenate(branches, axis=-1) if self.merge == "concat" else functools.reduce(jnp.add, branches)
        return _with_batch_and_bias(y, x, window, bias)

    def _time_dilations(self, rank: int) -> list[int]:
        return [per_axis(dilation, rank, "dilation", "MultiDilationConv")[0] for dilation in self.dilations]

    def _channels(self) -> int:
        return self.get_variable("params", "kernel" if self.share_kernel else "kernel_0").shape[-2] * self.groups

    def _convolved(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        names = ["kernel" if self.share_kernel else f"kernel_{i}" for i in range(len(self.dilations))]
        steps = [
            stepped(self, x, ring, self.get_variable("params", name), dilation, self.groups, use_bias=False)
            for name, dilation in zip(names, self.dilations)
        ]
        branches = [y for y, _ in steps]
        y = jnp.concatenate(branches, axis=-1) if self.merge == "concat" else functools.reduce(jnp.add, branches)
        return with_stored_bias(self, y), steps[0][1]

    def _check(self) -> None:
        if is_integer(self.dilations) or len(self.dilations) == 0:
            raise UserError(f"MultiDilationConv: dilations={self.dilations!r} must be a tuple, one per branch, such as (1, 2, 4).")
        if self.merge not in ("concat", "sum"):
            hint = did_you_mean(str(self.merge), ("concat", "sum"))
            raise UserError(f"MultiDilationConv: merge={self.merge!r} is unknown; use 'concat' or 'sum'.{hint}")


def _check_count(module: Any, argument: str) -> None:
    per_axis(getattr(module, argument), 1, argument, type(module).__name__)


def _check_divisible(module: Any, channels: int) -> None:
    """Refuse groups that divide neither side before a kernel of a wrong shape is made."""
    caller, groups = type(module).__name__, module.groups
    _check_count(module, "features")
    _check_count(module, "groups")
    for what, count in (("input channels", channels), ("features", module.features)):
        if count % groups:
            raise UserError(f"{caller}: {count} {what} cannot be split into groups={groups}; choose a divisor of {count}.")


def _lengths(kernel: jax.Array) -> jax.Array:
    """Euclidean norm of the kernel of each output channel."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=range(kernel.ndim - 1)))


def _scaled(kernel: jax.Array, lengths: jax.Array) -> jax.Array:
    """Give the kernel of each output channel that length."""
    factor = lengths / jnp.maximum(_lengths(kernel), jnp.finfo(kernel.dtype).tiny)
    return kernel * factor.reshape((1,) * (kernel.ndim - 1) + (-1,))


def _bias(module: Any, features: int) -> Any:
    return module.param("bias", module.bias_init, (features,), module.param_dtype) if module.use_bias else None


def _flat_batch(x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """Merge all leading axes into one batch axis."""
    if x.ndim == len(window) + 2:
        return x
    first = x.ndim - len(window) - 1
    return x.reshape(math.prod(x.shape[:first]), *x.shape[first:])


def _with_batch_and_bias(y: jax.Array, x: jax.Array, window: tuple[int, ...], bias: jax.Array | None) -> jax.Array:
    """Give y the leading axes of x back, and add the bias."""
    if x.ndim != len(window) + 2:
        y = y.reshape(*x.shape[: x.ndim - len(window) - 1], *y.shape[1:])
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
