"""A small fully convolutional network: the baseline for segmentation of small images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked, settled
from dilax.blocks import ACTIVATIONS, DEGRIDDINGS, NORMS, ConvNormAct, Dropout
from dilax.errors import UserError
from dilax.geometry import IntOrTuple
from dilax.models.backbone import check_image
from dilax.models.segmenter import logits
from dilax.resizing import resize

HEADS = ("pixels", "global")


@checked(head=HEADS, norm=NORMS, activation=ACTIVATIONS, degridding=DEGRIDDINGS)
class DilatedFCN(nn.Module):
    """Conv-norm-act layers, each with a stride and a dilation, and 1x1 convolutions to logits, upsampled to the size of the input.

    A layer that changes neither size nor channels has a residual connection (He et al. 2016). The logits of the last map before each stride
    are added to those of the final map, for sharp boundaries (Long et al. 2015, arXiv:1411.4038). The parameters do not depend on the
    dilations, and those of the layers do not depend on the head: with dilations of 1 it is the same network without dilation, and with
    head="global" a classifier to pretrain the layers.

    Attributes:
        num_classes: Number of outputs per pixel or image.
        features: Channels of each layer.
        strides: Stride of each layer, an int.
        dilations: Dilation of each layer, an int or a pair.
        separable: Whether the layers after the first are separable.
        kernel_size: Taps of every layer.
        head: "pixels", or "global" for logits of whole images, from the mean of the last map.
        dropout: Dropout rate on the last map, before the head.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and logits stay float32.
        degridding: One of `dilax.blocks.DEGRIDDINGS`, for all dilated layers, which are then not separable; see
            `dilax.blocks.degridded_conv`.
    """

    num_classes: int = 2
    features: tuple[int, ...] = (32, 64, 64, 64, 64, 64, 64)
    strides: tuple[int, ...] = (2, 2, 1, 1, 1, 1, 1)
    dilations: tuple[IntOrTuple, ...] = (1, 1, 1, 2, 4, 8, 1)
    separable: bool = False
    kernel_size: tuple[int, int] = (3, 3)
    head: str = "pixels"
    dropout: float = 0.0
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None
    degridding: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, height, width, num_classes), or (batch, num_classes)."""
        _check(self, x)
        size, skips = x.shape[1:3], []
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype, degridding=self.degridding)
        for i, (features, stride, dilation) in enumerate(zip(self.features, self.strides, self.dilations)):
            if stride > 1 and i > 0:
                skips.append(x)
            layer = ConvNormAct(features, self.kernel_size, stride=stride, dilation=dilation, separable=self.separable and i > 0, **shared)
            y = layer(x, train=train)
            x = Shortcut()(x, y)
        x = Dropout(self.dropout)(x, train=train)
        if self.head == "global":
            return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)).astype(jnp.float32))
        return PixelHead(self.num_classes, name="head")((x, *reversed(skips)), size)


class Shortcut(nn.Module):
    """x + y, or y alone.

    Attributes:
        add: Whether x is added; None if it is wherever shapes are equal.
    """

    add: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Map the input and the output of a layer to its result."""
        return x + y if settled(self, "add", x.shape == y.shape) else y


class PixelHead(nn.Module):
    """A 1x1 convolution to logits of each map, from deep to shallow; each sum is upsampled to the next map, and the last one to `size`.

    Attributes:
        num_classes: Number of outputs.
    """

    num_classes: int

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...], size: tuple[int, ...]) -> jax.Array:
        """Map arrays (batch, *space, channels) of increasing sizes to (batch, *size, num_classes), in float32."""
        total = logits(self.num_classes, maps[0], name="logits_0")
        for i, x in enumerate(maps[1:], start=1):
            total = resize(total, x.shape[1:-1]) + logits(self.num_classes, x, name=f"logits_{i}")
        return resize(total, size)


def _check(model: DilatedFCN, x: jax.Array) -> None:
    check_image("DilatedFCN", x)
    if not len(model.features) == len(model.strides) == len(model.dilations) > 0:
        raise UserError(
            f"DilatedFCN: features={model.features}, strides={model.strides} and dilations={model.dilations} must have equal lengths."
        )
