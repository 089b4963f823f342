"""Blocks that aggregate context at full resolution: ASPP, DenseASPP, the context module, hybrid dilated convolutions.

They take maps with any number of spatial axes; kernels have 3 taps, or 1, along each.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dilax import arguments
from dilax.annotated import checked
from dilax.arguments import is_integer
from dilax.blocks import ACTIVATIONS, NORMS, ConvNormAct, Dropout, Norm, activation
from dilax.errors import UserError, shown
from dilax.modules import DilatedConv

# The dilations of ASPP are specified for this output stride.
REFERENCE_STRIDE = 16


def scaled_dilations(dilations: Sequence[int], output_stride: int | None) -> tuple[int, ...]:
    """Convert dilations from output stride 16 to another output stride, at which they span the same part of the image.

    Args:
        dilations: Dilations at output stride 16, one per branch.
        output_stride: Input size divided by the size of the map.

    Returns:
        dilation * 16 / output_stride for each branch, at least 1.

    Raises:
        UserError: if the dilations are not a tuple of positive ints, or are not integers at that output stride.

    Example:
        >>> scaled_dilations((6, 12, 18), 8), scaled_dilations((6, 12, 18), 32), scaled_dilations((1, 1, 1), 32)
        ((12, 24, 36), (3, 6, 9), (1, 1, 1))

    Reference:
        Chen et al. 2017, arXiv:1706.05587, section 3.3.
    """
    _check_dilations("ASPP", dilations)
    if output_stride is None or not is_integer(output_stride) or output_stride < 1:
        raise UserError(f"ASPP: output_stride={shown(output_stride)} is not an integer of at least 1; use 8, 16 or 32.")
    output_stride, dilations = int(output_stride), tuple(map(int, dilations))
    if any(dilation * REFERENCE_STRIDE % output_stride for dilation in dilations if dilation * REFERENCE_STRIDE > output_stride):
        raise UserError(
            f"ASPP: dilations={tuple(dilations)}, given for output stride {REFERENCE_STRIDE}, are not integers at "
            f"output_stride={output_stride}; use multiples of {output_stride // math.gcd(REFERENCE_STRIDE, output_stride)}."
        )
    return tuple(max(1, dilation * REFERENCE_STRIDE // output_stride) for dilation in dilations)


def _check_dilations(caller: str, dilations: Any) -> None:
    if not isinstance(dilations, Sequence) or not len(dilations) or not all(is_integer(d) and d >= 1 for d in dilations):
        raise UserError(f"{caller}: dilations={shown(dilations)} must be a tuple of ints of at least 1, such as (6, 12, 18).")


def _check_input(module: Any, x: jax.Array) -> jax.Array:
    """Refuse a module without dilations, and return its input as an array."""
    caller = type(module).__name__
    _check_dilations(caller, module.dilations)
    x = arguments.array(caller, "x", x, "floating-point")
    if not 3 <= x.ndim <= 5:
        raise UserError(f"{caller}: x of shape {x.shape} must be (batch, *space, channels) with 1, 2 or 3 spatial axes.")
    return x


@checked(norm=NORMS, activation=ACTIVATIONS)
class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: parallel branches view a map at several dilations and as a whole, and are then combined.

    The branches are a 1x1 convolution, a 3x3 convolution for each dilation, and a 1x1 convolution of the mean over space, each normalised
    and activated. They are concatenated along the channels, and a 1x1 convolution maps them to `features`.

    Attributes:
        features: Channels of each branch and of the output.
        dilations: Dilations of the 3x3 branches at output stride 16; see `scaled_dilations`.
        separable: Whether the 3x3 branches are separable convolutions (Chen et al. 2018, arXiv:1802.02611).
        image_pooling: Whether the mean over space is a branch; without it, the receptive field is bounded.
        dropout: Dropout rate after the last convolution.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`. With `image_pooling`, "batch" cannot train on a single example, whose
            mean is a single value per channel.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation.

    Example:
        >>> x = jnp.ones((2, 32, 32, 64))
        >>> layer = ASPP(features=16)
        >>> jax.eval_shape(lambda key: layer.init_with_output(key, x, train=False, output_stride=8)[0], jax.random.key(0)).shape
        (2, 32, 32, 16)

    Reference:
        Chen et al. 2017, arXiv:1706.05587, section 3.3.
    """

    features: int = 256
    dilations: tuple[int, ...] = (6, 12, 18)
    separable: bool = False
    image_pooling: bool = True
    dropout: float = 0.5
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, output_stride: int | None = REFERENCE_STRIDE, image_mean: jax.Array | None = None
    ) -> jax.Array:
        """Map (batch, *space, channels) to (batch, *space, features).

        Args:
            x: The map.
            train: Whether to apply dropout and to normalise by the statistics of the batch.
            output_stride: Output stride of the map, which scales the dilations.
            image_mean: The mean over space (batch, channels) of the complete map, if x is only a part of it.

        Raises:
            UserError: if the dilations are not integers at that output stride, or `image_mean` does not fit x.
        """
        x = _check_input(self, x)
        scaled = scaled_dilations(self.dilations, output_stride)
        ones, threes = _kernel_sizes(x)
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        branches = [ConvNormAct(self.features, ones, name="dense", **shared)(x, train=train)]
        for i, dilation in enumerate(scaled):
            branch = ConvNormAct(self.features, threes, dilation=dilation, separable=self.separable, name=f"dilated_{i}", **shared)
            branches.append(branch(x, train=train))
        if self.image_pooling:
            pooled = ConvNormAct(self.features, ones, name="pooled", **shared)(space_mean("ASPP", x, image_mean), train=train)
            branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        y = ConvNormAct(self.features, ones, name="project", **shared)(jnp.concatenate(branches, axis=-1), train=train)
        return Dropout(self.dropout)(y, train=train)


def _kernel_sizes(x: jax.Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel sizes of 1 and of 3 taps along each spatial axis."""
    return (1,) * (x.ndim - 2), (3,) * (x.ndim - 2)


def space_mean(caller: str, x: jax.Array, image_mean: jax.Array | None) -> jax.Array:
    """Return the mean over space with axes of length 1: computed from x, or given as (batch, channels).

    Args:
        caller: Name that error messages start with.
        x: (batch, *space, channels).
        image_mean: (batch, channels), or None to compute the mean.

    Raises:
        UserError: if `image_mean` does not fit x.
    """
    space = tuple(range(1, x.ndim - 1))
    x = arguments.array(caller, "x", x)
    if image_mean is None:
        return x.mean(space, keepdims=True)
    image_mean = arguments.array(caller, "image_mean", image_mean, "floating-point")
    if image_mean.shape != (x.shape[0], x.shape[-1]):
        raise UserError(f"{caller}: image_mean of shape {image_mean.shape} does not fit a map of shape {x.shape}; give (batch, channels).")
    return jnp.expand_dims(image_mean, space).astype(x.dtype)


@checked(norm=NORMS, activation=ACTIVATIONS)
class DenseASPP(nn.Module):
    """Densely connected dilated convolutions: each one sees the input and the outputs of all before it, so that many scales are sampled.

    Each layer is norm, activation, 1x1 convolution to `hidden_features`, norm, activation, dilated 3x3 convolution to `growth`, dropout.

    Attributes:
        growth: Growth rate: channels that each layer adds.
        hidden_features: Channels of the 1x1 convolutions.
        dilations: Dilations in samples of the map, whatever its output stride; those of the paper are for output stride 8.
        dropout: Dropout rate after each 3x3 convolution.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation.

    Example:
        >>> x = jnp.ones((2, 16, 16, 8))
        >>> layer = DenseASPP(growth=4, hidden_features=8, dilations=(1, 2))
        >>> jax.eval_shape(lambda key: layer.init_with_output(key, x, train=False)[0], jax.random.key(0)).shape
        (2, 16, 16, 16)

    Reference:
        Yang et al. 2018, "DenseASPP for Semantic Segmentation in Street Scenes", CVPR, section 3.
    """

    growth: int = 64
    hidden_features: int = 256
    dilations: tuple[int, ...] = (3, 6, 12, 18, 24)
    dropout: float = 0.1
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, channels) to (batch, *space, channels + growth * len(dilations))."""
        x = _check_input(self, x)
        ones, threes = _kernel_sizes(x)
        act, biased = activation(self.activation), self.norm == "none"
        for i, dilation in enumerate(self.dilations):
            y = act(Norm(self.norm, self.dtype, name=f"norm_{i}")(x, train=train))
            y = DilatedConv(self.hidden_features, ones, use_bias=biased, dtype=self.dtype, name=f"reduce_{i}")(y)
            y = act(Norm(self.norm, self.dtype, name=f"reduced_norm_{i}")(y, train=train))
            y = DilatedConv(self.growth, threes, dilation=dilation, dtype=self.dtype, name=f"dilated_{i}")(y)
            y = Dropout(self.dropout, name=f"dropout_{i}")(y, train=train)
            x = jnp.concatenate([x, y.astype(x.dtype)], axis=-1)
        return x


@checked()
class ContextModule(nn.Module):
    """The context module of Yu and Koltun: exponentially growing dilations at constant resolution, initialised to the identity.

    Seven 3x3 convolutions with ReLU are followed by a 1x1 convolution to the channels of the input; an output sees 67 samples along each
    axis. The module is appended to the class maps of a trained network: initially it passes non-negative values on unchanged.

    Attributes:
        dilations: Dilations of the 3x3 convolutions.
        multipliers: Channels of the 3x3 convolutions as multiples of the input's; the default is the basic module of the paper, and
            `ContextModule.large()` the large one.
        noise: Standard deviation of the initial weights outside the identity, relative to the weights of the identity. It breaks the
            symmetry between the copies of a channel, which would otherwise stay equal in training; use a positive value if a multiplier is
            above 1.
        dtype: Dtype of the computation.

    Example:
        >>> x = jnp.ones((1, 8, 8, 3))
        >>> layer = ContextModule()
        >>> bool((layer.apply(layer.init(jax.random.key(0), x), x) == x).all())
        True

    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, section 3, table 1.
    """

    dilations: tuple[int, ...] = (1, 1, 2, 4, 8, 16, 1)
    multipliers: tuple[int, ...] = (1, 1, 1, 1, 1, 1, 1)
    noise: float = 0.0
    dtype: DTypeLike | None = None

    @classmethod
    def large(cls, *, noise: float = 0.01, dtype: Any = None) -> "ContextModule":
        """Return the large module of the paper, with 2, 2, 4, 8, 16, 32 and 32 times the channels of the input."""
        return cls(multipliers=(2, 2, 4, 8, 16, 32, 32), noise=noise, dtype=dtype)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, *space, channels) to the same shape."""
        x = _check_input(self, x)
        per_layer = isinstance(self.multipliers, Sequence) and len(self.multipliers) == len(self.dilations)
        if not per_layer or not all(is_integer(multiplier) and multiplier >= 1 for multiplier in self.multipliers):
            raise UserError(
                f"ContextModule: multipliers={shown(self.multipliers)} must be ints of at least 1, one for each of "
                f"dilations={self.dilations}."
            )
        channels = x.shape[-1]
        ones, threes = _kernel_sizes(x)
        init = identity_init(channels, noise=self.noise)
        for i, (dilation, multiplier) in enumerate(zip(self.dilations, self.multipliers)):
            conv = DilatedConv(channels * multiplier, threes, dilation=dilation, dtype=self.dtype, kernel_init=init, name=f"dilated_{i}")
            x = nn.relu(conv(x))
        return DilatedConv(channels, ones, dtype=self.dtype, kernel_init=init, name="last")(x)


def identity_init(channels: int, *, noise: float = 0.0) -> Callable[..., jax.Array]:
    """Return an initializer of kernels that pass on `channels` maps, of which input and output may contain several copies each.

    The centre tap between two copies of the same map is channels / c_out; all other weights are normally distributed with standard
    deviation noise * channels / c_out. Without noise, a chain of such kernels from `channels` maps to `channels` maps is the identity.

    Args:
        channels: Number of maps; the input and output channels of the kernel are multiples of it.
        noise: Standard deviation relative to the centre tap.

    Returns:
        A function from (key, shape, dtype) to a kernel.

    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, section 3, equations 4 and 5.
    """
    channels = arguments.integer("identity_init", "channels", channels, minimum=1)
    noise = arguments.number("identity_init", "noise", noise, minimum=0)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        *window, c_in, c_out = shape
        weight = channels / c_out
        same = np.equal.outer(np.arange(c_in) * channels // c_in, np.arange(c_out) * channels // c_out)
        kernel = np.zeros(shape)
        kernel[tuple(taps // 2 for taps in window)] = weight * same
        if noise == 0:
            return jnp.asarray(kernel, dtype)
        return jnp.where(kernel == 0, noise * weight * jax.random.normal(key, shape, dtype), jnp.asarray(kernel, dtype))

    return init


@checked(norm=NORMS, activation=ACTIVATIONS)
class HybridDilatedBlock(nn.Module):
    """Hybrid dilated convolution: a residual block of 3x3 convolutions whose dilations avoid gridding, each normalised.

    The shortcut has a 1x1 convolution if the channels differ.

    Attributes:
        features: Output channels.
        dilations: Dilations of the convolutions. Dilations that leave holes in the receptive field, such as (2, 2, 2), are refused.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation.

    Example:
        >>> x = jnp.ones((2, 16, 16, 8))
        >>> layer = HybridDilatedBlock(features=12)
        >>> jax.eval_shape(lambda key: layer.init_with_output(key, x, train=False)[0], jax.random.key(0)).shape
        (2, 16, 16, 12)

    Reference:
        Wang et al. 2018, arXiv:1702.08502, section 3.2.
    """

    features: int
    dilations: tuple[int, ...] = (1, 2, 5)
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, c_in) to (batch, *space, features)."""
        x = _check_input(self, x)
        holes = _holes(self.dilations)
        if holes:
            raise UserError(
                f"HybridDilatedBlock: dilations={self.dilations} leave {holes} holes among the {2 * sum(self.dilations) + 1} samples of "
                "the receptive field; use dilations without holes, such as (1, 2, 5)."
            )
        ones, threes = _kernel_sizes(x)
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        y = x
        for i, dilation in enumerate(self.dilations):
            act = "none" if i == len(self.dilations) - 1 else self.activation
            y = ConvNormAct(self.features, threes, dilation=dilation, activation=act, name=f"dilated_{i}", **shared)(y, train=train)
        if x.shape[-1] != self.features:
            x = ConvNormAct(self.features, ones, activation="none", name="shortcut", **shared)(x, train=train)
        return activation(self.activation)(x + y)


def _holes(dilations: Sequence[int]) -> int:
    """Count the samples along one axis that no tap reaches, within the receptive field of a stack of 3-tap convolutions."""
    reached = {0}
    for dilation in dilations:
        reached = {sample + tap * dilation for sample in reached for tap in (-1, 0, 1)}
    return 2 * sum(dilations) + 1 - len(reached)
