"""Layers of causal sequence models other than convolutions.

All of them take (batch, time, channels) and can be fed in chunks; see `dilax.streaming`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike

from dilax import arguments
from dilax.annotated import checked
from dilax.errors import UserError
from dilax.functional import dilated_conv_transpose
from dilax.geometry import effective_kernel_size
from dilax.streaming import Flow, Layer, Ring, advance_ring, conv_transpose_step, new_ring


@checked()
class CausalConvTranspose(Layer):
    """`dilated_conv_transpose` along time without lookahead: each input gives `stride` outputs.

    y[m] = sum over p, t with p * stride + t * dilation = m of x[p] kernel[t]; outputs beyond those of the last input are cut off.

    Attributes:
        features: Output channels.
        kernel_size: Taps.
        stride: Outputs per input.
        dilation: Output samples between neighbouring taps.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation.

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
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, time, c_in) to (batch, time * stride, features)."""
        self._check(x)
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, (self.kernel_size, self.features, x.shape[-1]), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        excess = max(0, effective_kernel_size(self.kernel_size, self.dilation) - self.stride)
        size = x.shape[1] * self.stride
        y = dilated_conv_transpose(x, kernel, stride=self.stride, dilation=self.dilation, padding=((0, excess),), output_size=size)
        return y if bias is None else y + bias[None, None]

    def _check(self, x: jax.Array) -> None:
        caller = type(self).__name__
        if arguments.array(caller, "x", x, "floating-point").ndim != 3:
            raise UserError(f"{caller}: x of shape {x.shape} must be (batch, time, channels).")

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return one sample of zeros."""
        return jnp.zeros((batch_size, 1, self.get_variable("params", "kernel").shape[-1]), dtype)

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Return a ring of the inputs that still contribute to later outputs."""
        flow.require_no_latency(self)
        flow.strided |= self.stride > 1
        return new_ring(x.shape[0], (self.kernel_size - 1) * self.dilation // self.stride, x.shape[2:], x.dtype)

    def step(self, x: jax.Array, state: Ring, flow: Flow) -> tuple[jax.Array, Ring]:
        """Return the outputs for a chunk, and the next ring."""
        kernel, bias = (self.get_variable("params", name) if self.has_variable("params", name) else None for name in ("kernel", "bias"))
        chunk, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y, ring = conv_transpose_step(chunk, kernel, state, stride=self.stride, dilation=self.dilation)
        return (y if bias is None else y + bias[None, None]), ring


@checked(samples=0)
class Delay(Layer):
    """The identity; fed in chunks, it delays a sequence, so that it can be added to a branch that looks equally far ahead.

    Attributes:
        samples: The delay, in samples.
    """

    samples: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x."""
        return x

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Return a ring of the samples that are held back."""
        return new_ring(x.shape[0], self.samples, x.shape[2:], x.dtype)

    def step(self, x: jax.Array, state: Ring, flow: Flow) -> tuple[jax.Array, Ring]:
        """Return the delayed samples, and the next ring."""
        (delayed,), ring = advance_ring(state, x, [self.samples])
        return delayed, ring


@checked()
class CumulativeNorm(Layer):
    """Layer normalisation over all channels of all samples so far: the causal form of normalisation over the whole sequence.

    Attributes:
        epsilon: Added to the variance.
        dtype: Dtype of the result; statistics are computed in float32.

    Reference:
        Luo & Mesgarani 2019, arXiv:1809.07454, section II-E.
    """

    epsilon: float = 1e-8
    dtype: DTypeLike | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, time, channels) to the same shape."""
        return self._normalise(x, self._zeros(x), jnp.ones(x.shape[1], bool))[0]

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return one sample of zeros."""
        return jnp.zeros((batch_size, 1, *self.get_variable("params", "scale").shape), dtype)

    def start(self, x: jax.Array, flow: Flow) -> dict[str, jax.Array]:
        """Return the sums over no samples."""
        return self._zeros(x)

    def step(self, x: jax.Array, state: dict[str, jax.Array], flow: Flow) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the normalised chunk, and the next sums."""
        return self._normalise(x, state, flow.valid_samples(x, flow.latency) if flow.latency else jnp.ones(x.shape[1], bool))

    def _zeros(self, x: jax.Array) -> dict[str, jax.Array]:
        return {name: jnp.zeros((x.shape[0], 1, 1), jnp.float32) for name in ("count", "origin", "sum", "squares")}

    @nn.compact
    def _normalise(self, x: jax.Array, state: dict[str, jax.Array], valid: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Normalise samples; only those where `valid`, bool (time,), is True enter the statistics."""
        wide = x.astype(jnp.float32)
        # Sums of values far from zero lose the digits that hold their spread, so the first valid sample is subtracted. The result does not
        # depend on it, and neither does the gradient.
        first = lax.stop_gradient(jnp.take(wide, valid.argmax(), axis=1, mode="clip").mean(-1)[:, None, None])
        origin = jnp.where(state["count"] > 0, state["origin"], first)
        wide = jnp.where(valid[None, :, None], wide - origin, 0.0)
        steps = jnp.broadcast_to(jnp.cumsum(valid.astype(jnp.float32))[None, :, None] * x.shape[-1], (x.shape[0], x.shape[1], 1))
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
            "origin": origin,
            "sum": total[:, -1:],
            "squares": squares[:, -1:],
        }
