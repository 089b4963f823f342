"""Modules fed in chunks: what a layer needs of the past is kept in an explicit state.

`Streamable` gives a module the methods `init_stream` and `stream`. They run its own `__call__`, in which every `Layer`, a module that looks
back in time, reads past samples from the state instead of from the sequence. A network is thus written once, for whole sequences.

Time is the first spatial axis. Zero padding on both sides ("SAME") is allowed where it keeps the size: the outputs are then `latency`
samples late, and `end_stream` marks where the sequence ends.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.typing import DTypeLike

from dilax import arguments
from dilax.arguments import is_integer, takes_train
from dilax.errors import UserError, shown

State = dict[str, Any]
_NEVER = 2**31 - 1
_CLOCK = "clock"
# Modules that compute statistics over time, or look at the whole sequence.
_NOT_CAUSAL = (nn.GroupNorm, nn.InstanceNorm, nn.MultiHeadDotProductAttention, nn.RNN, nn.Bidirectional)


class Flow:
    """The pass of one chunk through a network: it carries the state before the chunk, and collects the state after it.

    Attributes:
        caller: Name that error messages start with.
        old: The state before the chunk; None while the initial state is collected.
        new: The state after the layers that have run so far.
        latency: Samples by which the outputs of these layers are late.
        strided: Whether one of these layers has a stride.
        depth: Length of the path of the network, which may be a part of another one.
        concrete: Whether the network is only traced, and the initial state computed all the same.
    """

    def __init__(self, caller: str, state: State | None) -> None:
        """Start from a state, or from None to collect the initial state of each layer."""
        self.caller, self.old, self.new = caller, state, dict[str, Any]()
        self.latency, self.strided, self.depth, self.concrete = 0, False, 0, False

    def intercept(self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """Run a `Layer` on its state, and any other module unchanged; an interceptor for `flax.linen.intercept_methods`."""
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, nn.Module):
            return call(*args, **kwargs)
        if isinstance(module, _NOT_CAUSAL) or _has_statistics_over_time(module, args, kwargs):
            raise UserError(
                f"{self.name_of(module)} is a {type(module).__name__}, which looks at the whole sequence; "
                "use batch, layer or cumulative normalisation, and train=False."
            )
        if isinstance(module, nn.Conv | nn.ConvTranspose) and np.ravel(module.kernel_size)[0] != 1:
            raise UserError(
                f"{self.name_of(module)} is a {type(module).__name__} of Flax, which does not keep past samples; "
                "use `dilax.DilatedConv` or `dilax.CausalConvTranspose`."
            )
        if not isinstance(module, Layer):
            return call(*args, **kwargs)
        key = self._path_of(module)
        while key in self.new:
            key += "+"  # a layer that is run more than once
        x = args[0]
        if self.old is None:
            with jax.ensure_compile_time_eval() if self.concrete else contextlib.nullcontext():
                self.new[key] = module.start(x, self)
                if self.latency:
                    self.new[_CLOCK] = _clock()
            return call(*args, **kwargs)
        y, self.new[key] = module.step(x, self._state_of(key, module.start(x, self)), self)
        return y

    def name_of(self, module: nn.Module) -> str:
        """Return the caller and the path of a module, which error messages start with."""
        return f"{self.caller}: {self._path_of(module)}"

    def _path_of(self, module: nn.Module) -> str:
        return "/".join(module.path[self.depth :]) or type(module).__name__

    def require_no_latency(self, module: nn.Module) -> None:
        """Refuse a layer that changes the rate, or cannot leave out invalid samples, if layers before it look ahead."""
        if self.latency:
            raise UserError(
                f"{self.name_of(module)} cannot be fed in chunks after layers that look ahead; use padding 'CAUSAL' along time in those."
            )

    def valid_samples(self, x: jax.Array, latency: int) -> jax.Array:
        """Return which samples of a chunk that is `latency` samples late lie between the start and the end of the sequence, bool (n,)."""
        clock = self._state_of(_CLOCK, _clock())
        times = clock["time"] - latency + jnp.arange(x.shape[1], dtype=jnp.int32)
        return (times >= 0) & (times < clock["end"])

    def _state_of(self, key: str, start: Any) -> Any:
        """Return the state of one layer, checked against its initial state."""
        assert self.old is not None
        if key not in self.old:
            raise UserError(f"{self.caller}: the state has no buffer for {key}: it belongs to another model; make one with init_stream.")
        state = self.old[key]
        for expected, given in zip(jax.tree.leaves(start), jax.tree.leaves(state), strict=False):
            if expected.shape == given.shape:
                continue
            if expected.shape[1:] == given.shape[1:]:
                raise UserError(
                    f"{self.caller}: a chunk of batch size {expected.shape[0]} does not fit a state of batch size {given.shape[0]}; "
                    "make a state of that batch size with init_stream."
                )
            raise UserError(
                f"{self.caller}: the buffer of {key} has shape {tuple(given.shape)}, not {tuple(expected.shape)}: the state belongs to "
                "another model, or the chunk has a different number of channels; make one with init_stream."
            )
        return state


def _clock() -> dict[str, jax.Array]:
    """The number of samples fed so far, and the length of the sequence: infinite until `end_stream`."""
    return {"time": jnp.zeros((), jnp.int32), "end": jnp.full((), _NEVER, jnp.int32)}


def end_stream(state: State) -> State:
    """Mark the end of the sequence in a state; feed `latency` zeros after it to obtain the outputs that are still due.

    Args:
        state: The state after the last sample.

    Returns:
        The state to feed the zeros with.

    Example:
        >>> rest, _ = model.apply(variables, zeros, dilax.end_stream(state), method="stream")  # doctest: +SKIP
    """
    if not isinstance(state, dict):
        raise UserError(f"end_stream: state={shown(state)} is not a state; give the one that stream returned.")
    if _CLOCK not in state:
        return state
    return {**state, _CLOCK: {**state[_CLOCK], "end": state[_CLOCK]["time"]}}


def _has_statistics_over_time(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a normalisation computes its statistics from the batch, or over time, the second axis."""
    if isinstance(module, nn.BatchNorm):
        return not kwargs.get("use_running_average", module.use_running_average)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return any(axis % args[0].ndim == 1 for axis in np.atleast_1d(np.asarray(module.reduction_axes)))
    return False


class Streamable(nn.Module):
    """A module from (batch, time, ...) to (batch, time_out, ...) that can be fed in chunks, provided that its layers can.

    Example:
        >>> from dilax import DilatedConv, check_streamable
        >>> class Network(Streamable):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return x + nn.relu(DilatedConv(4, (3,), dilation=2, padding="CAUSAL")(x))
        ...
        ...     def stream_input(self, batch_size, dtype):
        ...         return jnp.zeros((batch_size, 1, 4), dtype)  # one sample
        >>> model, x = Network(), jax.random.normal(jax.random.key(0), (2, 9, 4))
        >>> check_streamable(model, model.init(jax.random.key(0), x), x)
    """

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return an input of one sample of zeros, (batch_size, 1, ...); a subclass defines this, and may read its parameters to do so."""
        name = type(self).__name__
        raise UserError(f"{name}: the shape of its input is unknown; define {name}.stream_input(batch_size, dtype), see `Streamable`.")

    def stream_conditions(self, batch_size: int) -> dict[str, jax.Array]:
        """Return the further arguments that `__call__` requires with that sample, by name."""
        return {}

    def init_stream(self, batch_size: int, *, dtype: DTypeLike = jnp.float32) -> State:
        """Return the state before the first sample: `model.apply(variables, batch_size, method="init_stream")`.

        Args:
            batch_size: Number of sequences fed in parallel.
            dtype: Dtype of the chunks; a model that takes integer codes ignores it.

        Raises:
            UserError: if a layer cannot be fed in chunks.
        """
        caller = f"{type(self).__name__}.init_stream"
        if not export.is_symbolic_dim(batch_size):
            batch_size = arguments.integer(caller, "batch_size", batch_size, minimum=1)
        try:
            dtype = jnp.zeros((), dtype).dtype
        except (TypeError, ValueError):
            raise UserError(f"{caller}: dtype={shown(dtype)} is not a dtype; give that of the chunks, such as jnp.float32.") from None
        return self._initial(batch_size, dtype).new

    def latency(self) -> int:
        """Return how many samples late the outputs of `stream` are, 0 if causal: `model.apply(variables, method="latency")`."""
        return self._initial(1, jnp.float32).latency

    def stream(self, chunk: jax.Array, state: State, **conditions: jax.Array) -> tuple[Any, State]:
        """Feed the next samples: `model.apply(variables, chunk, state, method="stream")`.

        Args:
            chunk: (batch, n, ...) with n of at least 1, a multiple of the strides; n may differ from call to call.
            state: The state returned by `init_stream` or by the previous call.
            **conditions: Further arguments of `__call__` for these samples.

        Returns:
            The outputs for these samples, equal to those of `__call__` with train=False on the whole sequence, and the next state.

        Raises:
            UserError: if the chunk does not fit the state, or the state does not fit the model.
        """
        caller = f"{type(self).__name__}.stream"
        chunk = arguments.array(caller, "chunk", chunk)
        if chunk.ndim < 2 or chunk.shape[1] < 1:
            raise UserError(f"{caller}: a chunk of shape {chunk.shape} must be (batch, n, ...) with n of at least 1.")
        if not isinstance(state, dict):
            raise UserError(f"{caller}: the state is a {type(state).__name__}, not a dict; make one with init_stream.")
        flow = Flow(caller, state)
        y = self._run(chunk, flow, conditions)
        if flow.latency and _CLOCK in state:
            flow.new[_CLOCK] = {**state[_CLOCK], "time": state[_CLOCK]["time"] + chunk.shape[1]}
        if extra := [key for key in state if key not in flow.new]:
            raise UserError(f"{caller}: the state has a buffer for {extra[0]}: it belongs to another model; make one with init_stream.")
        return y, flow.new

    def _initial(self, batch_size: Any, dtype: DTypeLike) -> Flow:
        flow = Flow(f"{type(self).__name__}.init_stream", None)
        if not is_integer(batch_size):  # a symbolic size of `jax.export` is known in this trace alone
            self._run(self.stream_input(batch_size, dtype), flow, self.stream_conditions(batch_size))
            return flow
        flow.concrete = True
        module, variables = self.unbind()

        def run(module: Any) -> None:
            module._run(module.stream_input(batch_size, dtype), flow, module.stream_conditions(batch_size))

        jax.eval_shape(lambda variables: module.apply(variables, method=run), variables)
        return flow

    def _run(self, x: jax.Array, flow: Flow, conditions: dict[str, jax.Array]) -> Any:
        flow.depth = len(self.path)
        kwargs = {"train": False} if takes_train(self) else {}
        with nn.intercept_methods(flow.intercept):
            return self(x, **kwargs, **conditions)


class Layer(Streamable):
    """A module that looks back in time, and keeps what it needs of the past in a state of its own."""

    def start(self, x: jax.Array, flow: Flow) -> Any:
        """Return the state before the first sample, for an input of the shape and dtype of x; its values are not known."""
        raise NotImplementedError

    def step(self, x: jax.Array, state: Any, flow: Flow) -> tuple[jax.Array, Any]:
        """Return the outputs for a chunk, and the next state."""
        raise NotImplementedError
