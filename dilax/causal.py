"""Layers of causal sequence models besides convolutions, and checks that a network is causal and can be fed in chunks.

All take (batch, time, channels) and work in `dilax.streaming`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from dilax.errors import UserError
from dilax.functional import dilated_conv_transpose
from dilax.geometry import effective_kernel_size
from dilax.streaming import Flow, Layer, Ring, conv_transpose_step, end_stream, new_ring, turn


class CausalConvTranspose(Layer):
    """`dilated_conv_transpose` along time without a look ahead: `stride` outputs for each input.

    y[m] = sum over p, t with p * stride + t * dilation = m of x[p] kernel[t]; what would come after the last input's outputs is left out.

    Attributes:
        features: Output channels.
        kernel_size: Taps.
        stride: Outputs per input.
        dilation: Outputs between neighbouring taps.
        use_bias: Whether to add a bias.
        dtype: Of the computation.

    Example:
        >>> x = jnp.ones((8, 100, 16))
        >>> layer = CausalConvTranspose(features=4, kernel_size=16, stride=8)
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 800, 4)
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, time, c_in) to (batch, time * stride, features)."""
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, (self.kernel_size, self.features, x.shape[-1]), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        behind = max(0, effective_kernel_size(self.kernel_size, self.dilation) - self.stride)
        size = x.shape[1] * self.stride
        y = dilated_conv_transpose(x, kernel, stride=self.stride, dilation=self.dilation, padding=((0, behind),), output_size=size)
        return y if bias is None else y + bias[None, None]

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        """Return one sample of zeros."""
        return jnp.zeros((batch_size, 1, self.get_variable("params", "kernel").shape[-1]), dtype)

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Return a ring of the inputs that still have outputs to come."""
        flow.strided |= self.stride > 1
        return new_ring(x.shape[0], (self.kernel_size - 1) * self.dilation // self.stride, x.shape[2:], x.dtype)

    def step(self, x: jax.Array, state: Ring, flow: Flow) -> tuple[jax.Array, Ring]:
        """Return the outputs for a chunk, and the ring after it."""
        kernel, bias = (self.get_variable("params", name) if self.has_variable("params", name) else None for name in ("kernel", "bias"))
        chunk, kernel, bias, samples = promote_dtype(x, kernel, bias, state.samples, dtype=self.dtype)
        y, after = conv_transpose_step(chunk, kernel, Ring(samples, state.place), stride=self.stride, dilation=self.dilation)
        return (y if bias is None else y + bias[None, None]), Ring(after.samples.astype(x.dtype), after.place)


class Delay(Layer):
    """The same sequence; fed in chunks, `samples` late, to be added to a branch that looks as far ahead.

    Attributes:
        samples: By how many.
    """

    samples: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x."""
        return x

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Return a ring of what is held back."""
        return new_ring(x.shape[0], self.samples, x.shape[2:], x.dtype)

    def step(self, x: jax.Array, state: Ring, flow: Flow) -> tuple[jax.Array, Ring]:
        """Return the samples before, and the ring after the chunk."""
        (late,), after = turn(state, x, [self.samples])
        return late, after


class CumulativeNorm(Layer):
    """Layer normalisation over all channels of all samples so far: the causal form of one over the whole sequence.

    Attributes:
        epsilon: Added to the variance.
        dtype: Of the result; statistics are taken in float32.

    Reference:
        Luo & Mesgarani 2019, arXiv:1809.07454, section II-E.
    """

    epsilon: float = 1e-8
    dtype: Any = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, time, channels) to the same shape."""
        return self._normalised(x, self._zeros(x), jnp.ones(x.shape[1], bool))[0]

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        """Return one sample of zeros."""
        return jnp.zeros((batch_size, 1, *self.get_variable("params", "scale").shape), dtype)

    def start(self, x: jax.Array, flow: Flow) -> dict[str, jax.Array]:
        """Return sums over nothing."""
        return self._zeros(x)

    def step(self, x: jax.Array, state: dict[str, jax.Array], flow: Flow) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the normalised chunk, and the sums after it."""
        return self._normalised(x, state, flow.within(x, flow.latency) if flow.latency else jnp.ones(x.shape[1], bool))

    def _zeros(self, x: jax.Array) -> dict[str, jax.Array]:
        return {name: jnp.zeros((x.shape[0], 1, 1), jnp.float32) for name in ("count", "sum", "squares")}

    @nn.compact
    def _normalised(self, x: jax.Array, state: dict[str, jax.Array], counts: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Normalise samples of which those count that `counts`, bool (time,), says."""
        wide = jnp.where(counts[None, :, None], x.astype(jnp.float32), 0.0)
        steps = jnp.broadcast_to(jnp.cumsum(counts.astype(jnp.float32))[None, :, None] * x.shape[-1], (x.shape[0], x.shape[1], 1))
        count = jnp.maximum(state["count"] + steps, 1.0)
        total = state["sum"] + jnp.cumsum(wide.sum(-1, keepdims=True), axis=1)
        squares = state["squares"] + jnp.cumsum(jnp.square(wide).sum(-1, keepdims=True), axis=1)
        mean = total / count
        variance = jnp.maximum(squares / count - jnp.square(mean), 0.0)
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        y = (wide - mean) / jnp.sqrt(variance + self.epsilon) * scale[None, None] + bias[None, None]
        return y.astype(self.dtype or x.dtype), {
            "count": (state["count"] + steps)[:, -1:],
            "sum": total[:, -1:],
            "squares": squares[:, -1:],
        }


def check_causal(fn: Callable[[jax.Array], jax.Array], x: jax.Array, *, cuts: Sequence[int] | None = None) -> None:
    """Check that no output of a function of a sequence changes, bit for bit, when what comes after it changes.

    Args:
        fn: (batch, time, ...) -> (batch, time_out, ...), time_out being time or a fixed multiple or share of it.
        x: A sequence, not constant.
        cuts: After which samples to change it; None takes the first, the last but one and up to six in between.

    Raises:
        UserError: naming the first output that sees a later input, and by how much it changed.

    Example:
        >>> check_causal(lambda x: jnp.cumsum(x, axis=1), jnp.arange(12.0).reshape(1, 12, 1))
    """
    x = jnp.asarray(x)
    if x.ndim < 2 or x.shape[1] < 2:
        raise UserError(f"check_causal: x of shape {x.shape} must be (batch, time, ...) with at least 2 samples.")
    count = x.shape[1]
    run = jax.jit(fn)
    y = np.asarray(run(x))
    if y.ndim < 2 or y.shape[1] == 0 or (y.shape[1] % count and count % y.shape[1]):
        raise UserError(f"check_causal: outputs of shape {y.shape} for {count} samples are not so many for each; give a function of time.")
    other = jnp.roll(x[:, ::-1], 1, axis=0)
    if bool((other == x).all()):
        raise UserError("check_causal: x is the same backwards, so nothing can be changed in it; give random samples.")
    places = sorted(set(np.linspace(0, count - 2, 8).astype(int).tolist())) if cuts is None else cuts
    for cut in places:
        changed = jnp.concatenate([x[:, : cut + 1], other[:, cut + 1 :]], axis=1)
        known = (cut + 1) * y.shape[1] // count if y.shape[1] >= count else -(-(cut + 1) // (count // y.shape[1]))
        found = np.asarray(run(changed))[:, :known]
        wrong = np.flatnonzero((found != y[:, :known]).any(axis=(0, *range(2, y.ndim))))
        if len(wrong):
            change = np.abs(found.astype(np.float64) - y[:, :known]).max()
            raise UserError(
                f"check_causal: output {wrong[0]} changes by up to {change:.3g} with inputs after {cut}: it looks ahead. "
                "Look for padding other than 'CAUSAL', statistics or pooling over time, or a shift the wrong way."
            )


def check_streamable(model: Any, variables: Any, x: jax.Array, *, chunks: Sequence[int] = (1, 3, 2), tolerance: float = 1e-4) -> None:
    """Check that a model fed in chunks gives what it gives for the whole sequence.

    Args:
        model: A module with `init_stream` and `stream`.
        variables: Its variables.
        x: (batch, time, ...).
        chunks: Sizes of the chunks, in turn.
        tolerance: Greatest difference allowed, as a share of the greatest output.

    Raises:
        UserError: naming the first output that differs, or the part that cannot be fed in chunks.

    Example:
        >>> x, layer = jnp.arange(12.0).reshape(1, 12, 1), CumulativeNorm()
        >>> check_streamable(layer, layer.init(jax.random.key(0), x), x)
    """
    train = {"train": False} if "train" in inspect.signature(type(model).__call__).parameters else {}
    whole = np.asarray(model.apply(variables, x, **train))
    latency = model.apply(variables, method="latency")
    state = model.apply(variables, x.shape[0], x.dtype, method="init_stream")
    run = jax.jit(lambda chunk, state: model.apply(variables, chunk, state, method="stream"))
    parts, at, turn = [], 0, 0
    while at < x.shape[1]:
        y, state = run(x[:, at : at + chunks[turn % len(chunks)]], state)
        parts.append(np.asarray(y))
        at, turn = at + chunks[turn % len(chunks)], turn + 1
    if latency:
        parts.append(np.asarray(run(jnp.zeros_like(x, shape=(x.shape[0], latency, *x.shape[2:])), end_stream(state))[0]))
    streamed = np.concatenate(parts, axis=1)[:, latency:]
    if streamed.shape != whole.shape:
        raise UserError(f"check_streamable: in chunks the outputs have shape {streamed.shape}, and {whole.shape} for the whole sequence.")
    differences = np.abs(streamed.astype(np.float64) - whole).max(axis=(0, *range(2, whole.ndim)))
    wrong = np.flatnonzero(~(differences <= tolerance * max(float(np.abs(whole).max()), 1e-30)))
    if len(wrong):
        raise UserError(
            f"check_streamable: output {wrong[0]} differs by {differences[wrong[0]]:.3g} from that of the whole sequence: something "
            "besides the layers of dilax looks at other samples; write it as a `dilax.streaming.Layer`."
        )
