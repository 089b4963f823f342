"""What the convolution modules share to be fed in chunks along time, their first spatial axis; see `dilax.streaming`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from dilax.errors import UserError
from dilax.geometry import is_integer, per_axis, time_padding
from dilax.streaming import Flow, Layer, Ring, conv_step, conv_step_nd, new_ring


class TimeConv(Layer):
    """A convolution that can be fed in chunks.

    Its padding along time is "CAUSAL", or keeps the size at stride 1: then the outputs are late by what is padded behind.
    """

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        """Return one sample of zeros."""
        module: Any = self  # its fields are those of the subclasses
        if not is_integer(module.kernel_size) and len(module.kernel_size) > 1:
            raise UserError(f"{type(self).__name__}: the sizes of the axes besides time are not known; stream a model that knows them.")
        return jnp.zeros((batch_size, 1, self._channels()), dtype)

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Return a ring as long as the kernel looks back."""
        module: Any = self
        name, window = flow.name_of(self), window_of(self, x)
        stride = per_axis(module.stride, len(window), "stride", name)[0]
        lengths = [(window[0] - 1) * dilation for dilation in self._time_dilations(len(window))]
        pads = self._time_pads(window)
        if module.padding_mode != "zeros":
            raise UserError(f"{name} pads with padding_mode={module.padding_mode!r}, which needs the whole sequence; use 'zeros'.")
        if any(sum(pad) != length for pad, length in zip(pads, lengths)):
            raise UserError(f"{name} has padding={module.padding!r}, with which it cannot be fed in chunks; use 'CAUSAL' along time.")
        late = max(hi for _, hi in pads)
        if late and (stride > 1 or flow.strided or len(set(pads)) > 1):
            raise UserError(f"{name} looks ahead, and strides or several dilations stand in the way; use padding 'CAUSAL' along time.")
        if flow.old is not None and x.shape[1] % stride:
            raise UserError(f"{name} has stride {stride}, of which a chunk of {x.shape[1]} samples is no multiple; feed chunks that are.")
        if stride > 1:
            flow.keeps_time(self)
        flow.strided |= stride > 1
        flow.latency += late
        return new_ring(x.shape[0], max(lengths), x.shape[2:], x.dtype)

    def step(self, x: jax.Array, state: Ring, flow: Flow) -> tuple[jax.Array, Ring]:
        """Return the outputs for a chunk, and the ring after it."""
        window = window_of(self, x)
        # Layers before that look ahead, or this one, also give outputs for what is no part of the sequence. One tap alone spreads none of
        # it, and may stand in a branch that is less late, as a shortcut does.
        if flow.latency and window[0] > 1:
            late = self._time_pads(window)[0][1]
            inside = flow.within(x, flow.latency - late).reshape(1, -1, *(1,) * (x.ndim - 2))
            x = jnp.where(jnp.broadcast_to(inside, x.shape), x, jnp.zeros_like(x))
        return self._convolved(x, state)

    def _time_pads(self, window: tuple[int, ...]) -> list[tuple[int, int]]:
        """What is padded before and after along time, for each dilation; a sequence long enough for "SAME" at any stride."""
        module: Any = self
        options: Any = dict(stride=module.stride, padding=module.padding, caller=type(self).__name__)
        gaps = [(dilation, *window[1:]) for dilation in self._time_dilations(len(window))]
        return [time_padding(window, dilation=gap, **options) for gap in gaps]

    def _time_dilations(self, rank: int) -> list[int]:
        raise NotImplementedError

    def _channels(self) -> int:
        raise NotImplementedError

    def _convolved(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        """The outputs for a chunk, and the ring after it."""
        raise NotImplementedError


def window_of(module: Any, x: jax.Array) -> tuple[int, ...]:
    """Taps per axis of a module, checked against its input."""
    caller, size, rank = type(module).__name__, module.kernel_size, module.rank
    if is_integer(size) and rank is None:
        raise UserError(
            f"{caller}: kernel_size={size} does not say how many spatial axes there are; "
            f"write kernel_size=({size}, {size}) for images, ({size},) for sequences, or kernel_size={size}, rank=2."
        )
    if rank not in (None, 1, 2, 3):
        raise UserError(f"{caller}: rank={rank!r} is not supported; use 1, 2 or 3.")
    window = per_axis(size, rank or (len(size) if hasattr(size, "__len__") else 1), "kernel_size", caller)
    if not 1 <= len(window) <= 3:
        raise UserError(f"{caller}: kernel_size={size!r} has {len(window)} spatial axes; give 1, 2 or 3.")
    if x.ndim < len(window) + 1:
        raise UserError(
            f"{caller}: kernel_size={window} needs x (*batch, *space, channels) with {len(window)} spatial axes, got shape {x.shape}."
        )
    return window


def stepped(
    module: Any, x: jax.Array, ring: Ring, kernel: jax.Array, dilation: Any, groups: int, *, use_bias: bool = True
) -> tuple[jax.Array, Ring]:
    """Convolve a chunk with a kernel of a module, along time by steps."""
    rank, options = kernel.ndim - 2, {"groups": groups, "precision": module.precision}
    chunk, kernel = promote_dtype(x, kernel, dtype=module.dtype)
    stride, gaps = (per_axis(value, rank, "", type(module).__name__) for value in (module.stride, dilation))
    if rank == 1:
        y, after = conv_step(chunk, kernel, ring, stride=stride[0], dilation=gaps[0], **options)
    else:
        words = module.padding if isinstance(module.padding, (tuple, list)) else (module.padding,) * rank
        y, after = conv_step_nd(chunk, kernel, ring, stride=stride, padding=words, dilation=gaps, **options)
    return with_stored_bias(module, y) if use_bias else y, after


def with_stored_bias(module: Any, y: jax.Array) -> jax.Array:
    """Add the bias of a module, if it has one."""
    if not module.use_bias:
        return y
    bias = module.get_variable("params", "bias").astype(y.dtype)
    return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
