"""Base classes of the convolution modules: the fields they share, and how a module is fed in chunks along time.

Time is the first spatial axis; see `dilax.streaming`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

from dilax import arguments
from dilax.annotated import plain_fields
from dilax.arguments import is_integer, per_axis
from dilax.errors import UserError, in_our_words, shown
from dilax.geometry import IntOrTuple, Padding, time_padding
from dilax.streaming import Flow, Layer, Ring, conv_step, conv_step_nd, new_ring

Initializer = Callable[..., Any]


class ConvModule(nn.Module):
    """The common fields of all convolution modules; a subclass adds `kernel_size` and further fields.

    Attributes:
        rank: Number of spatial axes, required if `kernel_size` is an int.
        stride: See `dilated_conv`.
        padding: See `dilated_conv`.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation; None for the promoted dtype of the input and the parameters.
        param_dtype: Dtype of the parameters.
        precision: See `dilated_conv`.
        kernel_init: Initializer of the kernel.
        bias_init: Initializer of the bias.
        lowering: See `dilated_conv`.
    """

    _: dataclasses.KW_ONLY
    rank: int | None = None
    stride: IntOrTuple = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: jax.lax.PrecisionLike = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    lowering: str = "auto"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)  # makes the dataclass, and with it __init__
        cls.__init__ = in_our_words(cls.__init__, name=cls.__name__)

    def __post_init__(self) -> None:
        plain_fields(self, [field.name for field in dataclasses.fields(self) if field.init and field.name not in ("parent", "name")])
        super().__post_init__()

    def _taps(self, x: jax.Array) -> tuple[int, ...]:
        """Return the taps per spatial axis, checked against the input."""
        module: Any = self  # kernel_size is a field of the subclasses
        caller, size, rank = type(self).__name__, module.kernel_size, self.rank
        self._check_common(caller)
        x = arguments.array(caller, "x", x)
        if is_integer(size) and rank is None:
            raise UserError(
                f"{caller}: kernel_size={size} does not say how many spatial axes there are; "
                f"write kernel_size=({size}, {size}) for images, ({size},) for sequences, or kernel_size={size}, rank=2."
            )
        if rank is not None and (not is_integer(rank) or not 1 <= rank <= 3):
            raise UserError(f"{caller}: rank={shown(rank)} is not supported; use 1, 2 or 3.")
        taps = per_axis(size, rank or (len(size) if isinstance(size, Sequence) else 1), "kernel_size", caller)
        if not 1 <= len(taps) <= 3:
            raise UserError(f"{caller}: kernel_size={size!r} has {len(taps)} spatial axes; give 1, 2 or 3.")
        if x.ndim < len(taps) + 1:
            raise UserError(
                f"{caller}: kernel_size={taps} needs x (*batch, *space, channels) with {len(taps)} spatial axes, got shape {x.shape}."
            )
        return taps

    def _check_common(self, caller: str) -> None:
        """Check the fields that no function checks."""
        arguments.flag(caller, "use_bias", self.use_bias)
        arguments.dtype(caller, "dtype", self.dtype)
        arguments.dtype(caller, "param_dtype", self.param_dtype)
        arguments.function(caller, "kernel_init", self.kernel_init)
        arguments.function(caller, "bias_init", self.bias_init)

    def _bias(self, features: int) -> jax.Array | None:
        """Create the bias, if there is one."""
        return self.param("bias", self.bias_init, (features,), self.param_dtype) if self.use_bias else None

    def _convolve(self, conv: Callable[..., jax.Array], x: jax.Array, *kernels: jax.Array, **options: Any) -> jax.Array:
        """Apply a function of `dilax.functional` with all leading axes of x merged into one batch axis."""
        first = x.ndim - kernels[0].ndim + 1  # the first spatial axis
        shared: Any = dict(stride=self.stride, padding=self.padding, precision=self.precision, lowering=self.lowering)
        y = conv(x.reshape(math.prod(x.shape[:first]), *x.shape[first:]), *kernels, **shared, **options)
        return y.reshape(*x.shape[:first], *y.shape[1:])


def check_positive(module: nn.Module, *fields: str) -> None:
    """Check that fields of a module are integers of at least 1."""
    for field in fields:
        arguments.integer(type(module).__name__, field, getattr(module, field), minimum=1)


def check_groups(module: nn.Module, c_in: int, features: int, groups: int) -> None:
    """Refuse groups that divide the channels of neither side, before a kernel of the wrong shape is created."""
    check_positive(module, "features", "groups")
    for what, count in (("input channels", c_in), ("features", features)):
        if count % groups:
            raise UserError(f"{type(module).__name__}: {count} {what} cannot be split into groups={groups}; choose a divisor of {count}.")


def add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Add a bias (channels,), if there is one, to the last axis."""
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


class TimeConv(ConvModule, Layer):
    """A convolution that can be fed in chunks along time.

    Its padding along time must be "CAUSAL", or keep the size at stride 1; the outputs are then as many samples late as are padded after the
    end.

    Attributes:
        padding_mode: See `dilated_conv`.
    """

    _: dataclasses.KW_ONLY
    padding_mode: str = "zeros"

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return one sample of zeros."""
        module: Any = self
        if not is_integer(module.kernel_size) and len(module.kernel_size) > 1:
            raise UserError(
                f"{type(self).__name__}: the size of the axes other than time is unknown; stream a model that defines stream_input."
            )
        return jnp.zeros((batch_size, 1, self._input_channels()), dtype)

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Return a ring as long as the kernel looks back."""
        name, taps = flow.name_of(self), self._taps(x)
        stride = per_axis(self.stride, len(taps), "stride", name)[0]
        lookbacks = [(taps[0] - 1) * dilation for dilation in self._time_dilations(len(taps))]
        pads = self._time_pads(taps)
        if self.padding_mode != "zeros":
            raise UserError(f"{name} pads with padding_mode={self.padding_mode!r}, which needs the whole sequence; use 'zeros'.")
        if any(sum(pad) != lookback for pad, lookback in zip(pads, lookbacks)):
            raise UserError(f"{name} has padding={self.padding!r}, with which it cannot be fed in chunks; use 'CAUSAL' along time.")
        lookahead = max(hi for _, hi in pads)
        if lookahead and (stride > 1 or flow.strided or len(set(pads)) > 1):
            raise UserError(
                f"{name} looks ahead, which cannot be combined with strides or with several dilations; use padding 'CAUSAL' along time."
            )
        if flow.old is not None and x.shape[1] % stride:
            raise UserError(f"{name} has stride {stride}, which does not divide a chunk of {x.shape[1]} samples; feed multiples of it.")
        if stride > 1:
            flow.require_no_latency(self)
        flow.strided |= stride > 1
        flow.latency += lookahead
        return new_ring(x.shape[0], max(lookbacks), x.shape[2:], x.dtype)

    def step(self, x: jax.Array, state: Ring, flow: Flow) -> tuple[jax.Array, Ring]:
        """Return the outputs for a chunk, and the next ring."""
        taps = self._taps(x)
        # Layers before this one that look ahead also give outputs outside the sequence, which are masked here. A kernel of one tap does not
        # spread them, and may be in a branch with less latency, such as a shortcut.
        if flow.latency and taps[0] > 1:
            lookahead = self._time_pads(taps)[0][1]
            valid = flow.valid_samples(x, flow.latency - lookahead).reshape(1, -1, *(1,) * (x.ndim - 2))
            x = jnp.where(jnp.broadcast_to(valid, x.shape), x, jnp.zeros_like(x))
        return self._convolve_chunk(x, state)

    def _time_pads(self, taps: tuple[int, ...]) -> list[tuple[int, int]]:
        """The padding before and after time, for each dilation."""
        options: Any = dict(stride=self.stride, padding=self.padding, caller=type(self).__name__)
        return [time_padding(taps, dilation=(dilation, *taps[1:]), **options) for dilation in self._time_dilations(len(taps))]

    def _time_dilations(self, rank: int) -> list[int]:
        """The dilation along time of each branch."""
        module: Any = self
        return [per_axis(module.dilation, rank, "dilation", type(self).__name__)[0]]

    def _input_channels(self) -> int:
        raise NotImplementedError

    def _convolve_chunk(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        """Return the outputs for a chunk, and the next ring."""
        raise NotImplementedError

    def _step_kernel(
        self,
        x: jax.Array,
        ring: Ring,
        kernel: jax.Array,
        dilation: IntOrTuple,
        groups: int,
        *,
        stride: IntOrTuple | None = None,
        padding: Padding | None = None,
    ) -> tuple[jax.Array, Ring]:
        """Convolve a chunk with a kernel, along time by steps, without the bias; stride and padding are the module's unless given."""
        rank = kernel.ndim - 2
        stride, padding = (self.stride if stride is None else stride), (self.padding if padding is None else padding)
        # The other lowerings need not support the shapes of chunks.
        options: Any = dict(groups=groups, precision=self.precision, lowering="lax" if self.lowering == "lax" else "auto")
        chunk, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        steps, gaps = (per_axis(value, rank, "", type(self).__name__) for value in (stride, dilation))
        if rank == 1:
            return conv_step(chunk, kernel, ring, stride=steps[0], dilation=gaps[0], **options)
        words = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,) * rank
        return conv_step_nd(chunk, kernel, ring, stride=steps, padding=words, dilation=gaps, **options)

    def _add_stored_bias(self, y: jax.Array) -> jax.Array:
        return add_bias(y, self.get_variable("params", "bias").astype(y.dtype)) if self.use_bias else y
