"""Building blocks of the models: normalisation, dropout, conv-norm-act, squeeze-excite, residual blocks.

Blocks that behave differently in training take `train` as a keyword argument. Where a batch is split over devices by `jax.pmap` or
`jax.shard_map`, `batch_axis` tells normalisation and dropout the name of the device axis.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dilax.causal import CumulativeNorm
from dilax.errors import UserError, did_you_mean
from dilax.geometry import IntOrTuple, Padding
from dilax.modules import DilatedConv, SeparableConv

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "elu": nn.elu,
    "tanh": nn.tanh,
}
NORMS = ("batch", "group", "layer", "global", "cumulative", "none", "frozen")

_BATCH_AXIS: contextvars.ContextVar[str | None] = contextvars.ContextVar("dilax_batch_axis", default=None)


@contextlib.contextmanager
def batch_axis(name: str | None) -> Iterator[None]:
    """Name the device axis over which the batch is split, for every block traced inside the scope.

    Under `jax.pmap` and `jax.shard_map` each device traces its own share of the batch. Inside the scope, batch statistics and dropout masks
    are those of the whole batch. Under `jax.jit` a sharded batch needs no name. The scope is read while a function is traced, so enter it
    inside the function that is mapped.

    Args:
        name: The `axis_name` of `jax.pmap`, or the mesh axis of `jax.shard_map`; None for a batch that is not split.

    Example:
        >>> def normalise(x):
        ...     with batch_axis("data"):
        ...         return Norm("batch").init_with_output(jax.random.key(0), x, train=True)[0]
        >>> jax.pmap(normalise, axis_name="data")(jnp.ones((1, 4, 3))).shape
        (1, 4, 3)
    """
    token = _BATCH_AXIS.set(name)
    try:
        yield
    finally:
        _BATCH_AXIS.reset(token)


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return the activation function of that name: a key of `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation={name!r} is unknown; use one of {tuple(ACTIVATIONS)}.{did_you_mean(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Norm(nn.Module):
    """Normalisation by name.

    Attributes:
        kind: "batch" (Ioffe & Szegedy 2015), "group" (Wu & He 2018; the most groups up to 8 that divide the channels), "layer" (over the
            channels of each sample), "global" (over all of an example; Luo & Mesgarani 2019), "cumulative" (its causal form, as
            `dilax.CumulativeNorm`), "none", or "frozen": "batch" with its running statistics even in training, so that they stay what they
            are while scale and bias are learnt; for fine-tuning on small batches, with the variables of "batch".
        dtype: Of the result; statistics are always taken in float32.
    """

    kind: str = "batch"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, *space, channels) to the same shape; statistics leave out the places where mask, bool (batch, *space), is False."""
        if self.kind not in NORMS:
            raise UserError(f"norm={self.kind!r} is unknown; use one of {NORMS}.{did_you_mean(str(self.kind), NORMS)}")
        if self.kind == "none":
            return x
        wide = x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
        if self.kind == "cumulative":
            return CumulativeNorm(dtype=self.dtype or x.dtype)(wide)
        if mask is not None:
            # Statistics of nothing would be void: an example without a place that counts is normalised as a whole.
            mask = mask | ~mask.any(tuple(range(1, mask.ndim)), keepdims=True) if self.kind in ("group", "global") else mask
        everywhere = None if mask is None else jnp.broadcast_to(mask[..., None], x.shape)
        return self._normalised(wide, train, everywhere).astype(self.dtype or x.dtype)

    def _normalised(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        if self.kind == "frozen":
            return nn.BatchNorm(use_running_average=True)(x)
        if self.kind == "batch":
            axis, values_per_channel = _BATCH_AXIS.get(), x.size // x.shape[-1]
            if train and values_per_channel == 1 and axis is None and not self.is_initializing():
                raise UserError(
                    f"Norm: an input of shape {x.shape} has one value per channel, whose batch statistics are void; "
                    "use a larger batch, or norm='group' or 'frozen'."
                )
            over_devices = train and mask is not None and axis is not None
            norm = _MaskedBatchNorm if over_devices else nn.BatchNorm
            return norm(use_running_average=not train, momentum=0.9, axis_name=axis, name="BatchNorm_0")(x, mask=mask)
        if self.kind in ("group", "global"):
            groups = 1 if self.kind == "global" else max(g for g in range(1, 9) if x.shape[-1] % g == 0)
            return nn.GroupNorm(num_groups=groups)(x, mask=mask)
        return nn.LayerNorm()(x)


class _MaskedBatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` in training under pmap, where each place counts alike; there each device does, whatever its mask leaves."""

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None) -> jax.Array:
        channels, axes = x.shape[-1:], tuple(range(x.ndim - 1))
        real = jnp.ones_like(x) if mask is None else mask.astype(x.dtype)
        sums = [jnp.sum(part, axis=axes) for part in (real, x * real, jnp.square(x) * real)]
        if not self.is_initializing():
            sums = lax.psum(sums, self.axis_name)
        mean = sums[1] / sums[0]
        var = jnp.maximum(sums[2] / sums[0] - jnp.square(mean), 0)
        for name, start, found in (("mean", jnp.zeros, mean), ("var", jnp.ones, var)):
            running = self.variable("batch_stats", name, start, channels, jnp.float32)
            if not self.is_initializing():
                running.value = self.momentum * running.value + (1 - self.momentum) * found
        scale, bias = self.param("scale", self.scale_init, channels), self.param("bias", self.bias_init, channels)
        mean, factor, bias = (each.reshape(*(1,) * len(axes), -1) for each in (mean, scale * lax.rsqrt(var + self.epsilon), bias))
        return (x - mean) * factor + bias


def masked(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Return x (batch, *space, channels) with zeros where mask, bool (batch, *space), is False; None leaves it as it is.

    Before a convolution that looks ahead: what is behind the end of a sequence then is the zero padding of one that is not padded.

    Example:
        >>> masked(jnp.ones((1, 3, 1)), jnp.array([[True, True, False]])).ravel().tolist()
        [1.0, 1.0, 0.0]
    """
    if mask is None:
        return x
    return jnp.where(jnp.broadcast_to(mask[..., None], x.shape), x, jnp.zeros_like(x))


def embed_sequence(caller: str, x: jax.Array, *, vocabulary: int, features: int) -> jax.Array:
    """Embed integer codes by a learned table named `embedding`, or pass on a sequence of floats.

    Call it inside a compact method, to which the table then belongs.

    Args:
        caller: Name that errors begin with.
        x: Codes (batch, time), or without a vocabulary floats (batch, time, channels).
        vocabulary: Number of symbols; 0 for floats.
        features: Channels of an embedded symbol.

    Returns:
        (batch, time, features), or x itself without a vocabulary.

    Raises:
        UserError: if x is not of the kind that `vocabulary` says.
    """
    if vocabulary:
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise UserError(f"{caller}: with vocabulary={vocabulary} x must be integer codes (batch, time), got {x.dtype} {x.shape}.")
        return nn.Embed(vocabulary, features, embedding_init=nn.initializers.normal(1.0), name="embedding")(x)
    if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"{caller}: x must be floats (batch, time, channels), got {x.dtype} {x.shape}; set `vocabulary` for integer codes.")
    return x


class Dropout(nn.Module):
    """Dropout whose mask for example i of a batch depends on the key and i alone.

    So the mask is the same on one device, with the batch sharded over many, and under pmap (`flax.linen.Dropout` draws another mask on
    every device there).

    Attributes:
        rate: Probability that a value is dropped.
        spatial: Whether a channel is dropped at all places at once (Tompson et al. 2015, arXiv:1411.4280).
    """

    rate: float
    spatial: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, ...) to the same shape; needs the key "dropout" when `train` and rate > 0."""
        if not 0 <= self.rate < 1:
            raise UserError(f"Dropout: rate={self.rate} is not a probability; use 0 <= rate < 1.")
        if not train or self.rate == 0:
            return x
        axis = _BATCH_AXIS.get()
        first = 0 if axis is None or self.is_initializing() else lax.axis_index(axis) * x.shape[0]
        key = self.make_rng("dropout")
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(x.shape[0]))
        shape = (*(1,) * (x.ndim - 2), x.shape[-1]) if self.spatial else x.shape[1:]
        keep = jnp.broadcast_to(jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, shape))(keys), x.shape)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


class ConvNormAct(nn.Module):
    """Dilated convolution, normalisation, activation; the convolution has a bias only where no normalisation follows.

    Attributes:
        features: Output channels.
        kernel_size: As `DilatedConv`.
        stride: As `dilated_conv`.
        padding: As `dilated_conv`.
        dilation: As `dilated_conv`.
        groups: As `dilated_conv`.
        separable: Whether to use a `SeparableConv` (without groups).
        norm: As `Norm`.
        activation: A key of `ACTIVATIONS`, or "none".
        dtype: Of the computation.
    """

    features: int
    kernel_size: IntOrTuple = (3, 3)
    stride: IntOrTuple = 1
    padding: Padding = "SAME"
    dilation: IntOrTuple = 1
    groups: int = 1
    separable: bool = False
    norm: str = "batch"
    activation: str = "relu"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, c_in) to (batch, *space_out, features)."""
        shared: dict[str, Any] = dict(
            stride=self.stride, padding=self.padding, dilation=self.dilation, use_bias=self.norm == "none", dtype=self.dtype
        )
        if self.separable:
            x = SeparableConv(self.features, self.kernel_size, **shared)(x)
        else:
            x = DilatedConv(self.features, self.kernel_size, groups=self.groups, **shared)(x)
        x = Norm(self.norm, self.dtype)(x, train=train)
        return x if self.activation == "none" else activation(self.activation)(x)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means over space (Hu et al. 2018, arXiv:1709.01507).

    Attributes:
        ratio: Channels over hidden units.
        dtype: Of the computation.
    """

    ratio: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, *space, channels) to the same shape."""
        space = tuple(range(1, x.ndim - 1))
        gate = x.mean(space, keepdims=True)
        gate = nn.relu(nn.Dense(max(1, x.shape[-1] // self.ratio), dtype=self.dtype)(gate))
        return x * nn.sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype)(gate))


class SeparableResidual(nn.Module):
    """x + two separable dilated convolutions, each normalised; a 1x1 convolution on the short cut where shapes differ.

    Attributes:
        features: Output channels.
        stride: Of the first convolution and of the short cut.
        dilation: Of both convolutions.
        squeeze_excite: Whether a `SqueezeExcite` ends the branch.
        norm: As `Norm`.
        activation: A key of `ACTIVATIONS`.
        dtype: Of the computation.
    """

    features: int
    stride: int = 1
    dilation: IntOrTuple = 1
    squeeze_excite: bool = False
    norm: str = "batch"
    activation: str = "relu"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, height, width, c_in) to (batch, height_out, width_out, features)."""
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        separable: dict[str, Any] = dict(dilation=self.dilation, separable=True, **shared)
        y = ConvNormAct(self.features, stride=self.stride, activation=self.activation, **separable)(x, train=train)
        y = ConvNormAct(self.features, activation="none", **separable)(y, train=train)
        if self.squeeze_excite:
            y = SqueezeExcite(dtype=self.dtype)(y)
        if x.shape != y.shape:
            x = ConvNormAct(self.features, (1, 1), stride=self.stride, activation="none", **shared)(x, train=train)
        return activation(self.activation)(x + y)


class BasicBlock(nn.Module):
    """x + two 3x3 convolutions, each normalised (He et al. 2016, arXiv:1512.03385, figure 5 left).

    Attributes:
        features: Output channels.
        stride: Of the first convolution and of the short cut.
        dilation: Of each convolution.
        project: Whether a 1x1 convolution, normalised, stands on the short cut. It is told, not read from the shapes, so that the
            parameters are the same where a stride has become a dilation.
        residual: Whether x is added at all.
        norm: As `Norm`.
        activation: A key of `ACTIVATIONS`.
        dtype: Of the computation.
    """

    features: int
    stride: int = 1
    dilation: tuple[int, int] = (1, 1)
    project: bool = False
    residual: bool = True
    norm: str = "batch"
    activation: str = "relu"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, height, width, c_in) to (batch, height_out, width_out, features)."""
        shared: dict[str, Any] = dict(padding="TORCH", norm=self.norm, dtype=self.dtype)
        first, second = self.dilation
        y = ConvNormAct(self.features, (3, 3), self.stride, dilation=first, activation=self.activation, name="conv1", **shared)(
            x, train=train
        )
        y = ConvNormAct(self.features, (3, 3), dilation=second, activation="none", name="conv2", **shared)(y, train=train)
        if self.residual:
            if self.project:
                x = ConvNormAct(self.features, (1, 1), self.stride, activation="none", name="shortcut", **shared)(x, train=train)
            y = x + y
        return activation(self.activation)(y)


class Bottleneck(nn.Module):
    """x + convolutions 1x1, 3x3 and 1x1, each normalised, the 3x3 with the stride (He et al. 2016, arXiv:1512.03385, figure 5 right).

    Attributes:
        features: Channels of the first two convolutions; the output has 4 times as many.
        stride: Of the 3x3 convolution and of the short cut.
        dilation: The first is that of the 3x3 convolution; the second is not used, since no wide kernel follows.
        project: As `BasicBlock`.
        norm: As `Norm`.
        activation: A key of `ACTIVATIONS`.
        dtype: Of the computation.
    """

    features: int
    stride: int = 1
    dilation: tuple[int, int] = (1, 1)
    project: bool = False
    norm: str = "batch"
    activation: str = "relu"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, height, width, c_in) to (batch, height_out, width_out, 4 * features)."""
        shared: dict[str, Any] = dict(padding="TORCH", norm=self.norm, dtype=self.dtype)
        inner: dict[str, Any] = dict(activation=self.activation, **shared)
        y = ConvNormAct(self.features, (1, 1), name="conv1", **inner)(x, train=train)
        y = ConvNormAct(self.features, (3, 3), self.stride, dilation=self.dilation[0], name="conv2", **inner)(y, train=train)
        y = ConvNormAct(4 * self.features, (1, 1), activation="none", name="conv3", **shared)(y, train=train)
        if self.project:
            x = ConvNormAct(4 * self.features, (1, 1), self.stride, activation="none", name="shortcut", **shared)(x, train=train)
        return activation(self.activation)(x + y)
