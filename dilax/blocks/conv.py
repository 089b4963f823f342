"""Convolution blocks: conv-norm-act, squeeze-excite, residual blocks."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from dilax import arguments
from dilax.annotated import checked, settled
from dilax.blocks.norm import BATCH_EPSILON, NORMS, Norm
from dilax.errors import UserError
from dilax.geometry import IntOrTuple, Padding, effective_kernel_size
from dilax.modules import DilatedConv, SeparableConv
from dilax.pooling import max_pool
from dilax.smoothing import SMOOTHINGS, SmoothedConv
from dilax.spacings import DCLSConv, grid_positions

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "hard_silu": nn.hard_silu,
    "elu": nn.elu,
    "tanh": nn.tanh,
}
# What keeps a dilated convolution from gridding: nothing, smoothing before or after it, or positions that are learned.
DEGRIDDINGS = ("none", *SMOOTHINGS, "learnable_spacings")
GATES: dict[str, Callable[[jax.Array], jax.Array]] = {"sigmoid": nn.sigmoid, "hard_sigmoid": nn.hard_sigmoid}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return the activation function with that name, a key of `ACTIVATIONS`."""
    return ACTIVATIONS[arguments.word("activation", "name", name, ACTIVATIONS)]


def degridded_conv(
    features: int,
    kernel_size: IntOrTuple,
    degridding: str,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "SAME",
    dilation: IntOrTuple = 1,
    groups: int = 1,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    name: str | None = None,
) -> nn.Module:
    """Return a dilated convolution that is kept from gridding in one of several ways; without dilation, a `dilax.DilatedConv`.

    Args:
        features: Output channels.
        kernel_size: Taps, one per axis.
        degridding: "none" for `dilax.DilatedConv`; "group_interaction" or "separable_shared" for `dilax.SmoothedConv`;
            "learnable_spacings" for a bilinear `dilax.DCLSConv` whose weights start on the grid of the dilated convolution, in a kernel of
            its extent. All of them initially compute what the dilated convolution does.
        stride: See `dilax.dilated_conv`.
        padding: See `dilax.dilated_conv`.
        dilation: See `dilax.dilated_conv`.
        groups: See `dilax.dilated_conv`.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation.
        name: Name of the module.

    Example:
        >>> type(degridded_conv(8, (3, 3), "learnable_spacings", dilation=2)).__name__
        'DCLSConv'
    """
    arguments.word("degridded_conv", "degridding", degridding, DEGRIDDINGS)
    fields: dict[str, Any] = dict(stride=stride, padding=padding, groups=groups, use_bias=use_bias, dtype=dtype, name=name)
    span = kernel_size if degridding == "none" else effective_kernel_size(kernel_size, dilation)
    if span == kernel_size:
        return DilatedConv(features, kernel_size, dilation=dilation, **fields)
    if degridding in SMOOTHINGS:
        return SmoothedConv(features, kernel_size, dilation=dilation, smoothing=degridding, **fields)
    count = math.prod(kernel_size) if isinstance(kernel_size, tuple) else kernel_size  # which is then refused
    return DCLSConv(features, span, count, "bilinear", positions_init=grid_positions(kernel_size, dilation=dilation), **fields)


@checked(norm=NORMS, activation=(*ACTIVATIONS, "none"), degridding=DEGRIDDINGS)
class ConvNormAct(nn.Module):
    """Dilated convolution, normalisation, activation; the convolution has a bias only if no normalisation follows.

    Attributes:
        features: Output channels.
        kernel_size: Taps per axis; see `dilax.DilatedConv`.
        stride: See `dilax.dilated_conv`.
        padding: See `dilax.dilated_conv`.
        dilation: See `dilax.dilated_conv`.
        groups: See `dilax.dilated_conv`.
        separable: Whether to use a `dilax.SeparableConv`, which ignores `groups`.
        norm: One of `NORMS`; see `Norm`.
        activation: A key of `ACTIVATIONS`, or "none".
        dtype: Dtype of the computation.
        degridding: One of `DEGRIDDINGS`; see `degridded_conv`. Separable convolutions have none.
        epsilon: See `Norm`.
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
    dtype: DTypeLike | None = None
    degridding: str = "none"
    epsilon: float = BATCH_EPSILON

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, c_in) to (batch, *space_out, features)."""
        shared: dict[str, Any] = dict(
            stride=self.stride, padding=self.padding, dilation=self.dilation, use_bias=self.norm == "none", dtype=self.dtype
        )
        if self.separable and self.degridding != "none":
            raise UserError(f"ConvNormAct: separable=True has no degridding={self.degridding!r}; use 'none', or separable=False.")
        if self.separable:
            x = SeparableConv(self.features, self.kernel_size, **shared)(x)
        else:
            # One name for all, so that the parameters of a plain network fit one whose convolutions are smoothed.
            shared |= dict(groups=self.groups, name="DilatedConv_0")
            x = degridded_conv(self.features, self.kernel_size, self.degridding, **shared)(x)
        x = Norm(self.norm, self.dtype, self.epsilon)(x, train=train)
        return x if self.activation == "none" else activation(self.activation)(x)


@checked(activation=ACTIVATIONS, gate=GATES)
class SqueezeExcite(nn.Module):
    """Scale each channel by a gate that is computed from the spatial means of all channels (Hu et al. 2018, arXiv:1709.01507).

    Attributes:
        ratio: Reduction ratio: channels per hidden unit.
        dtype: Dtype of the computation.
        hidden: Number of hidden units; None is one per `ratio` channels.
        activation: A key of `ACTIVATIONS`, after the hidden units.
        gate: "sigmoid" or "hard_sigmoid".
        stride: Spacing of the samples that are averaged, along each axis. In a network in which strides of 2 are replaced by dilations, it
            is the product of those strides: the gates are then those of the network with its strides.
    """

    ratio: int = 4
    dtype: DTypeLike | None = None
    hidden: int | None = None
    activation: str = "relu"
    gate: str = "sigmoid"
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, *space, channels) to the same shape."""
        # Pooling subsamples, rather than a slice, because it stays on its device where an axis of space is split over several.
        samples = x if self.stride == 1 else max_pool(x, 1, stride=self.stride)
        y = samples.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
        y = activation(self.activation)(nn.Dense(self.hidden or max(1, x.shape[-1] // self.ratio), dtype=self.dtype)(y))
        return x * GATES[self.gate](nn.Dense(x.shape[-1], dtype=self.dtype)(y))


@checked(norm=NORMS, activation=ACTIVATIONS)
class SeparableResidual(nn.Module):
    """Residual block of two separable dilated convolutions, each normalised; a 1x1 convolution on the shortcut where shapes differ.

    Attributes:
        features: Output channels.
        stride: Stride of the first convolution and of the shortcut.
        dilation: Dilation of both convolutions.
        squeeze_excite: Whether the residual branch ends in a `SqueezeExcite`.
        norm: One of `NORMS`; see `Norm`.
        activation: A key of `ACTIVATIONS`.
        dtype: Dtype of the computation.
        project: Whether the shortcut has a 1x1 convolution, normalised; None if it is needed, because shapes differ.
    """

    features: int
    stride: int = 1
    dilation: IntOrTuple = 1
    squeeze_excite: bool = False
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None
    project: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, height, width, c_in) to (batch, height_out, width_out, features)."""
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        separable: dict[str, Any] = dict(dilation=self.dilation, separable=True, **shared)
        y = ConvNormAct(self.features, stride=self.stride, activation=self.activation, **separable)(x, train=train)
        y = ConvNormAct(self.features, activation="none", **separable)(y, train=train)
        if self.squeeze_excite:
            y = SqueezeExcite(dtype=self.dtype)(y)
        if settled(self, "project", x.shape != y.shape):
            x = ConvNormAct(self.features, (1, 1), stride=self.stride, activation="none", **shared)(x, train=train)
        return activation(self.activation)(x + y)


@checked(norm=NORMS, activation=ACTIVATIONS)
class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions, each normalised (He et al. 2016, arXiv:1512.03385, figure 5 left).

    Attributes:
        features: Output channels.
        stride: Stride of the first convolution and of the shortcut.
        dilation: Dilation of each convolution.
        project: Whether the shortcut has a 1x1 convolution, normalised. This is explicit rather than inferred from the shapes, so that
            the parameters stay the same where a stride is replaced by a dilation.
        residual: Whether there is a shortcut at all.
        norm: One of `NORMS`; see `Norm`.
        activation: A key of `ACTIVATIONS`.
        dtype: Dtype of the computation.
        excite: Makes the `SqueezeExcite` that ends the residual branch, such as the class itself; None for none.
    """

    features: int
    stride: int = 1
    dilation: tuple[int, int] = (1, 1)
    project: bool = False
    residual: bool = True
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None
    excite: Callable[..., Any] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, height, width, c_in) to (batch, height_out, width_out, features)."""
        shared: dict[str, Any] = dict(padding="TORCH", norm=self.norm, dtype=self.dtype)
        first, second = self.dilation
        y = ConvNormAct(self.features, (3, 3), self.stride, dilation=first, activation=self.activation, name="conv1", **shared)(
            x, train=train
        )
        y = ConvNormAct(self.features, (3, 3), dilation=second, activation="none", name="conv2", **shared)(y, train=train)
        if self.excite is not None:
            y = self.excite(dtype=self.dtype, name="excite")(y)
        if self.residual:
            if self.project:
                x = ConvNormAct(self.features, (1, 1), self.stride, activation="none", name="shortcut", **shared)(x, train=train)
            y = x + y
        return activation(self.activation)(y)


@checked(norm=NORMS, activation=ACTIVATIONS)
class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions, each normalised (He et al. 2016, arXiv:1512.03385, figure 5 right).

    The stride is in the 3x3 convolution.

    Attributes:
        features: Channels of the first two convolutions; the output has 4 times as many.
        stride: Stride of the 3x3 convolution and of the shortcut.
        dilation: The first is that of the 3x3 convolution; the second is unused, since only a 1x1 kernel follows.
        project: See `BasicBlock`.
        norm: One of `NORMS`; see `Norm`.
        activation: A key of `ACTIVATIONS`.
        dtype: Dtype of the computation.
        excite: See `BasicBlock`.
    """

    features: int
    stride: int = 1
    dilation: tuple[int, int] = (1, 1)
    project: bool = False
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None
    excite: Callable[..., Any] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, height, width, c_in) to (batch, height_out, width_out, 4 * features)."""
        shared: dict[str, Any] = dict(padding="TORCH", norm=self.norm, dtype=self.dtype)
        inner: dict[str, Any] = dict(activation=self.activation, **shared)
        y = ConvNormAct(self.features, (1, 1), name="conv1", **inner)(x, train=train)
        y = ConvNormAct(self.features, (3, 3), self.stride, dilation=self.dilation[0], name="conv2", **inner)(y, train=train)
        y = ConvNormAct(4 * self.features, (1, 1), activation="none", name="conv3", **shared)(y, train=train)
        if self.excite is not None:
            y = self.excite(dtype=self.dtype, name="excite")(y)
        if self.project:
            x = ConvNormAct(4 * self.features, (1, 1), self.stride, activation="none", name="shortcut", **shared)(x, train=train)
        return activation(self.activation)(x + y)
