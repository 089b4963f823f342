"""Modules fed in chunks: what a layer needs of the past stands in an explicit state.

`Streamable` gives a module `init_stream` and `stream`: they run its own `__call__`, in which every `Layer`, one that looks back, takes
its samples from the state instead of from the sequence. So a network is written once, for whole sequences.

The first spatial axis is time. Zero padding on both sides ("SAME") is allowed where the size is kept: outputs then come `latency` samples
late, and `end_stream` says where the sequence ends.
"""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dilax.errors import UserError

State = dict[str, Any]
_NEVER = 2**31 - 1
_CLOCK = "clock"
# Modules that take statistics over time, or look at all of it.
_OFFENDERS = (nn.GroupNorm, nn.InstanceNorm, nn.MultiHeadDotProductAttention, nn.RNN, nn.Bidirectional)


class Flow:
    """What one chunk meets on its way through a network: the state it came with, and the one it leaves behind.

    Attributes:
        latency: Samples by which the outputs of the layers run so far are late.
        strided: Whether one of them had a stride.
    """

    def __init__(self, caller: str, state: State | None) -> None:
        """Begin with a state, or with none to collect one from what the layers start with."""
        self.caller, self.old, self.new = caller, state, dict[str, Any]()
        self.latency, self.strided = 0, False

    def intercept(self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """Run a layer that looks back on its state, and any other module as it is."""
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, nn.Module):
            return call(*args, **kwargs)
        if isinstance(module, _OFFENDERS) or _looks_along_time(module, args, kwargs):
            raise UserError(
                f"{self.name_of(module)} is a {type(module).__name__}, which looks at the whole sequence; "
                "use batch, layer or cumulative normalisation, and train=False."
            )
        if isinstance(module, nn.Conv | nn.ConvTranspose) and np.ravel(module.kernel_size)[0] != 1:
            raise UserError(
                f"{self.name_of(module)} is a {type(module).__name__} of Flax, which keeps nothing of the past; "
                "use `dilax.DilatedConv` or `dilax.CausalConvTranspose`."
            )
        if not isinstance(module, Layer):
            return call(*args, **kwargs)
        key = "/".join(module.path) or type(module).__name__
        while key in self.new:
            key += "+"  # a layer that is run more than once
        x = args[0]
        start = module.start(x, self)
        if self.old is None:
            self.new[key] = start
            if self.latency:
                self.new[_CLOCK] = _clock()
            return call(*args, **kwargs)
        y, self.new[key] = module.step(x, self._held(key, start), self)
        return y

    def name_of(self, module: nn.Module) -> str:
        """Who calls, and the place of a module, for errors."""
        return f"{self.caller}: {'/'.join(module.path) or type(module).__name__}"

    def require_no_latency(self, module: nn.Module) -> None:
        """Refuse a layer that changes the rate, or cannot leave samples out, behind layers that look ahead."""
        if self.latency:
            raise UserError(
                f"{self.name_of(module)} cannot be fed in chunks behind layers that look ahead; use padding 'CAUSAL' along time in those."
            )

    def valid_samples(self, x: jax.Array, latency: int) -> jax.Array:
        """Return which samples (n,) of a chunk that is `latency` late lie in the sequence, neither before its start nor after its end."""
        now = self._held(_CLOCK, _clock())
        places = now["time"] - latency + jnp.arange(x.shape[1], dtype=jnp.int32)
        return (places >= 0) & (places < now["end"])

    def _held(self, key: str, start: Any) -> Any:
        """The state of one layer, checked against the one it starts with."""
        assert self.old is not None
        if key not in self.old:
            raise UserError(f"{self.caller}: the state has no buffer for {key}, it is of another model; make one with init_stream.")
        held = self.old[key]
        for ours, given in zip(jax.tree.leaves(start), jax.tree.leaves(held), strict=False):
            if ours.shape == given.shape:
                continue
            if ours.shape[1:] == given.shape[1:]:
                raise UserError(
                    f"{self.caller}: a chunk of batch size {ours.shape[0]} meets a state of batch size {given.shape[0]}; "
                    "make a state for it with init_stream."
                )
            raise UserError(
                f"{self.caller}: the buffer of {key} is {tuple(given.shape)}, not {tuple(ours.shape)}: the state is of another model, "
                "or the chunk has other channels; make one with init_stream."
            )
        return held


def _clock() -> dict[str, jax.Array]:
    """Samples fed so far, and in all: no more than can be counted, until `end_stream` says so."""
    return {"time": jnp.zeros((), jnp.int32), "end": jnp.full((), _NEVER, jnp.int32)}


def end_stream(state: State) -> State:
    """Say that the sequence has ended: zeros that are fed from here on, `latency` of them, bring out what is left.

    Example:
        >>> rest, _ = model.apply(variables, zeros, dilax.end_stream(state), method="stream")  # doctest: +SKIP
    """
    if _CLOCK not in state:
        return state
    return {**state, _CLOCK: {**state[_CLOCK], "end": state[_CLOCK]["time"]}}


def _looks_along_time(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a normalisation takes its statistics from the batch, or over time, the second axis."""
    if isinstance(module, nn.BatchNorm):
        return not kwargs.get("use_running_average", module.use_running_average)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return any(axis % args[0].ndim == 1 for axis in np.atleast_1d(np.asarray(module.reduction_axes)))
    return False


class Streamable(nn.Module):
    """A module that maps (batch, time, ...) to (batch, time_out, ...), and can be fed in chunks if what it is made of is causal.

    Example:
        >>> from dilax import DilatedConv, check_streamable
        >>> class Network(Streamable):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return x + nn.relu(DilatedConv(4, (3,), dilation=2, padding="CAUSAL")(x))
        ...
        ...     def stream_input(self, batch_size, dtype):
        ...         return jnp.zeros((batch_size, 1, 4), dtype)  # one sample, to begin with
        >>> model, x = Network(), jax.random.normal(jax.random.key(0), (2, 9, 4))
        >>> check_streamable(model, model.init(jax.random.key(0), x), x)
    """

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        """Return one sample (batch_size, 1, ...) of zeros, such as `stream` takes; the parameters are there to be read."""
        name = type(self).__name__
        raise UserError(f"{name}: what it takes is not known; define {name}.stream_input(batch_size, dtype), as `Streamable` does.")

    def stream_conditions(self, batch_size: int) -> dict[str, jax.Array]:
        """Return what else `__call__` must be given, for that sample."""
        return {}

    def init_stream(self, batch_size: int, dtype: Any = jnp.float32) -> State:
        """Return the state before the first sample: `model.apply(variables, batch_size, method="init_stream")`.

        Args:
            batch_size: Sequences fed side by side.
            dtype: Of the chunks to come (the integer codes of a model that takes those have their own).

        Raises:
            UserError: if a part of the module cannot be fed in chunks.
        """
        return self._begun(batch_size, dtype).new

    def latency(self) -> int:
        """Return by how many samples the outputs of `stream` are late: `model.apply(variables, method="latency")`; 0 if causal."""
        return self._begun(1, jnp.float32).latency

    def stream(self, chunk: jax.Array, state: State, **conditions: jax.Array) -> tuple[Any, State]:
        """Feed the next samples: `model.apply(variables, chunk, state, method="stream")`.

        Args:
            chunk: (batch, n, ...), n from 1; it may differ from call to call, but is a multiple of the strides.
            state: As `init_stream` or the last call returned it.
            **conditions: Further arguments of `__call__`, for those samples.

        Returns:
            The outputs for those samples, as `__call__` with train=False would give them for the whole sequence, and the next state.

        Raises:
            UserError: if the chunk does not fit the state, or the state the model.
        """
        caller = f"{type(self).__name__}.stream"
        if chunk.ndim < 2 or chunk.shape[1] < 1:
            raise UserError(f"{caller}: a chunk of shape {chunk.shape} must be (batch, n, ...) with n of at least 1.")
        if not isinstance(state, dict):
            raise UserError(f"{caller}: the state is a {type(state).__name__}; make one with init_stream.")
        flow = Flow(caller, state)
        y = self._run(chunk, flow, conditions)
        if flow.latency and _CLOCK in state:
            flow.new[_CLOCK] = {**state[_CLOCK], "time": state[_CLOCK]["time"] + chunk.shape[1]}
        if extra := [key for key in state if key not in flow.new]:
            raise UserError(f"{caller}: the state holds a buffer for {extra[0]}, it is of another model; make one with init_stream.")
        return y, flow.new

    def _begun(self, batch_size: int, dtype: Any) -> Flow:
        flow = Flow(f"{type(self).__name__}.init_stream", None)
        self._run(self.stream_input(batch_size, dtype), flow, self.stream_conditions(batch_size))
        return flow

    def _run(self, x: jax.Array, flow: Flow, conditions: dict[str, jax.Array]) -> Any:
        kwargs = {"train": False} if "train" in inspect.signature(type(self).__call__).parameters else {}
        with nn.intercept_methods(flow.intercept):
            return self(x, **kwargs, **conditions)


class Layer(Streamable):
    """A module that looks back along time, and keeps in a state of its own what it needs of the past."""

    def start(self, x: jax.Array, flow: Flow) -> Any:
        """Return the state before the first sample, for an input such as x."""
        raise NotImplementedError

    def step(self, x: jax.Array, state: Any, flow: Flow) -> tuple[jax.Array, Any]:
        """Return the outputs for a chunk, and the next state."""
        raise NotImplementedError
