"""Blocks that gather context from far around without losing places: ASPP, DenseASPP, the context module, hybrid dilated convolutions.

They take maps of any number of spatial axes: windows have 3 taps, or 1, along each.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dilax.blocks import ConvNormAct, Dropout, Norm, activation
from dilax.errors import UserError
from dilax.geometry import is_integer
from dilax.modules import DilatedConv

# At this output stride the dilations of ASPP are stated.
STATED_AT = 16


def scaled_dilations(dilations: Sequence[int], output_stride: int | None) -> tuple[int, ...]:
    """Return dilations stated at output stride 16 as they are at another, so that they span as much of the image.

    Args:
        dilations: One per branch.
        output_stride: Input size over map size.

    Returns:
        dilation * 16 / output_stride, one per branch; what comes below 1 is 1.

    Raises:
        UserError: if the dilations are no tuple of ints from 1, or are not whole at that output stride.

    Example:
        >>> scaled_dilations((6, 12, 18), 8), scaled_dilations((6, 12, 18), 32), scaled_dilations((1, 1, 1), 32)
        ((12, 24, 36), (3, 6, 9), (1, 1, 1))

    Reference:
        Chen et al. 2017, arXiv:1706.05587, section 3.3.
    """
    _check_dilations("ASPP", dilations)
    if output_stride is None or not is_integer(output_stride) or output_stride < 1:
        raise UserError(f"ASPP: output_stride={output_stride!r} is not an integer of at least 1; use 8, 16 or 32.")
    if any(dilation * STATED_AT % output_stride for dilation in dilations if dilation * STATED_AT > output_stride):
        raise UserError(
            f"ASPP: dilations={tuple(dilations)}, stated at output stride {STATED_AT}, are not whole at output_stride={output_stride}; "
            f"use multiples of {output_stride // math.gcd(STATED_AT, output_stride)}."
        )
    return tuple(max(1, dilation * STATED_AT // output_stride) for dilation in dilations)


def _check_dilations(caller: str, dilations: Any) -> None:
    if not isinstance(dilations, Sequence) or not len(dilations) or not all(is_integer(d) and d >= 1 for d in dilations):
        raise UserError(f"{caller}: dilations={dilations!r} must be a tuple of ints of at least 1, such as (6, 12, 18).")


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: one map seen at several dilations and as a whole, side by side, then mixed.

    A 1x1 branch, one 3x3 branch per dilation, and the mean over space, each convolved, normalised and activated, are joined along the
    channels; a 1x1 convolution maps them to `features`.

    Attributes:
        features: Channels of each branch and of the result.
        dilations: Of the 3x3 branches, stated at output stride 16; see `scaled_dilations`.
        separable: Whether those branches are separable convolutions (Chen et al. 2018, arXiv:1802.02611).
        image_pooling: Whether the mean over space is a branch; without it an output sees a bounded part of the input.
        dropout: Rate after the last convolution.
        norm: As `dilax.blocks.Norm`. "batch" cannot train on a single example with `image_pooling`: its mean is one value per channel.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Of the computation.

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
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, output_stride: int | None = STATED_AT, image_mean: jax.Array | None = None
    ) -> jax.Array:
        """Map (batch, *space, channels) to (batch, *space, features).

        Args:
            x: The map.
            train: Whether to drop values and to use the statistics of the batch.
            output_stride: Of the map, to scale the dilations.
            image_mean: (batch, channels), the mean of the map over space where that is known from elsewhere: x is then but a part of it.

        Raises:
            UserError: if the dilations are not whole at that output stride, or image_mean does not fit x.
        """
        scaled = scaled_dilations(self.dilations, output_stride)
        ones, threes = _windows(x)
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


def _windows(x: jax.Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Windows of 1 and of 3 taps along each spatial axis."""
    return (1,) * (x.ndim - 2), (3,) * (x.ndim - 2)


def space_mean(caller: str, x: jax.Array, given: jax.Array | None) -> jax.Array:
    """The mean over space, axes kept, computed here or given as (batch, channels)."""
    space = tuple(range(1, x.ndim - 1))
    if given is None:
        return x.mean(space, keepdims=True)
    if given.shape != (x.shape[0], x.shape[-1]):
        raise UserError(f"{caller}: image_mean of shape {given.shape} does not fit a map of shape {x.shape}; give (batch, channels).")
    return jnp.expand_dims(given, space).astype(x.dtype)


class DenseASPP(nn.Module):
    """Dilated convolutions one after the other, each fed with the input and all results before: many scales, densely sampled.

    Each is norm, activation, 1x1 to `hidden_features`, norm, activation, 3x3 dilated to `growth`, dropout.

    Attributes:
        growth: Channels that each convolution adds.
        hidden_features: Channels of the 1x1 convolutions.
        dilations: In samples of the map, as they are; the paper's are for output stride 8.
        dropout: Rate after each 3x3 convolution.
        norm: As `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Of the computation.

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
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, channels) to (batch, *space, channels + growth * len(dilations))."""
        _check_dilations("DenseASPP", self.dilations)
        ones, threes = _windows(x)
        act, biased = activation(self.activation), self.norm == "none"
        for i, dilation in enumerate(self.dilations):
            y = act(Norm(self.norm, self.dtype, name=f"norm_{i}")(x, train=train))
            y = DilatedConv(self.hidden_features, ones, use_bias=biased, dtype=self.dtype, name=f"reduce_{i}")(y)
            y = act(Norm(self.norm, self.dtype, name=f"reduced_norm_{i}")(y, train=train))
            y = DilatedConv(self.growth, threes, dilation=dilation, dtype=self.dtype, name=f"dilated_{i}")(y)
            y = Dropout(self.dropout, name=f"dropout_{i}")(y, train=train)
            x = jnp.concatenate([x, y.astype(x.dtype)], axis=-1)
        return x


class ContextModule(nn.Module):
    """Yu and Koltun's context module: dilations that grow exponentially, from as many channels to as many, at first the identity.

    Seven 3x3 convolutions with a ReLU each, then a 1x1 convolution; an output sees 67 samples along each axis. It is put behind the
    class maps of a network that is already trained: at the start it hands on what it gets, where that is not negative.

    Attributes:
        dilations: Of the 3x3 convolutions.
        multipliers: Channels of those, in multiples of the input's; the default is the basic module, `ContextModule.large()` the large one.
        noise: Standard deviation of the initial weights that are not those of the identity, in multiples of the latter. It tells the
            copies of a channel apart, which would otherwise stay equal in training: more than 0 where a multiplier is above 1.
        dtype: Of the computation.

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
    dtype: Any = None

    @classmethod
    def large(cls, *, noise: float = 0.01, dtype: Any = None) -> "ContextModule":
        """The large module of the paper: 2, 2, 4, 8, 16, 32 and 32 times the channels of the input."""
        return cls(multipliers=(2, 2, 4, 8, 16, 32, 32), noise=noise, dtype=dtype)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, *space, channels) to the same shape."""
        _check_dilations("ContextModule", self.dilations)
        if len(self.multipliers) != len(self.dilations) or not all(
            is_integer(multiplier) and multiplier >= 1 for multiplier in self.multipliers
        ):
            raise UserError(
                f"ContextModule: multipliers={self.multipliers} must be ints of at least 1, one for each of dilations={self.dilations}."
            )
        channels = x.shape[-1]
        ones, threes = _windows(x)
        init = identity_init(channels, noise=self.noise)
        for i, (dilation, multiplier) in enumerate(zip(self.dilations, self.multipliers)):
            conv = DilatedConv(channels * multiplier, threes, dilation=dilation, dtype=self.dtype, kernel_init=init, name=f"dilated_{i}")
            x = nn.relu(conv(x))
        return DilatedConv(channels, ones, dtype=self.dtype, kernel_init=init, name="last")(x)


def identity_init(channels: int, *, noise: float = 0.0) -> Any:
    """Return the initializer of a kernel that hands on `channels` maps, of each of which its input and output hold several copies.

    The centre tap from a copy of a map to a copy of the same is channels / c_out, and all others are normal with standard deviation
    noise * channels / c_out: a chain of such kernels whose first input and last output have `channels` maps is the identity.

    Args:
        channels: Number of maps; input and output channels of the kernel are multiples of it.
        noise: Standard deviation in multiples of the centre tap.

    Reference:
        Yu & Koltun 2016, arXiv:1511.07122, section 3, equations 4 and 5.
    """

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


class HybridDilatedBlock(nn.Module):
    """x + 3x3 convolutions whose dilations together leave no holes (hybrid dilated convolution), each normalised.

    A 1x1 convolution stands on the short cut where the channels differ.

    Attributes:
        features: Output channels.
        dilations: Of the convolutions; refused if there are samples within their receptive field that none of their taps reaches, as with
            (2, 2, 2).
        norm: As `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Of the computation.

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
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, c_in) to (batch, *space, features)."""
        _check_dilations("HybridDilatedBlock", self.dilations)
        holes = _holes(self.dilations)
        if holes:
            raise UserError(
                f"HybridDilatedBlock: dilations={self.dilations} never reach {holes} of the {2 * sum(self.dilations) + 1} samples "
                "that they span; use dilations without such holes, as (1, 2, 5)."
            )
        ones, threes = _windows(x)
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        y = x
        for i, dilation in enumerate(self.dilations):
            act = "none" if i == len(self.dilations) - 1 else self.activation
            y = ConvNormAct(self.features, threes, dilation=dilation, activation=act, name=f"dilated_{i}", **shared)(y, train=train)
        if x.shape[-1] != self.features:
            x = ConvNormAct(self.features, ones, activation="none", name="shortcut", **shared)(x, train=train)
        return activation(self.activation)(x + y)


def _holes(dilations: Sequence[int]) -> int:
    """Samples along one axis, within the receptive field of 3-tap convolutions one after the other, that no tap reaches."""
    reached = {0}
    for dilation in dilations:
        reached = {place + tap * dilation for place in reached for tap in (-1, 0, 1)}
    return 2 * sum(dilations) + 1 - len(reached)
