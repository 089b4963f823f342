"""A small fully convolutional network: the baseline of segmentation on small images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dilax.blocks import ConvNormAct, Dropout
from dilax.errors import UserError
from dilax.modules import DilatedConv

STRIDES, HEADS = (1, 2, 4, 8), ("pixels", "global")


class DilatedFCN(nn.Module):
    """Conv-norm-act layers with a dilation each, a 1x1 convolution to logits, bilinear enlargement to the size of the input.

    The first layers halve the map until the output stride is reached. A layer that changes neither size nor channels adds its input
    (He et al. 2016). Neither dilations nor the output stride change the parameters, nor does the head those before it: so dilations
    all 1 give the same network without dilation, and head="global" a classifier to pretrain it as.

    Attributes:
        num_classes: Outputs, per pixel or image.
        features: Channels of each layer.
        dilations: Dilation of each layer, an int or a pair.
        output_stride: Input size over size of the last map: 1, 2, 4 or 8.
        separable: Whether layers after the first are separable.
        kernel_size: Taps of every layer.
        head: "pixels", or "global" for the logits of whole images, from the mean of the last map.
        dropout: Rate before the head.
        norm: As `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        axis_name: Device axis under pmap, as `dilax.blocks.Norm`.
        dtype: Of the computation; parameters and logits stay float32.
    """

    num_classes: int = 2
    features: tuple[int, ...] = (32, 64, 64, 64, 64, 64, 64)
    dilations: tuple[Any, ...] = (1, 1, 1, 2, 4, 8, 1)
    output_stride: int = 4
    separable: bool = False
    kernel_size: tuple[int, int] = (3, 3)
    head: str = "pixels"
    dropout: float = 0.0
    norm: str = "batch"
    activation: str = "relu"
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, height, width, num_classes), or (batch, num_classes)."""
        _check(self, x)
        size = x.shape[1:3]
        halvings = self.output_stride.bit_length() - 1
        for i, (features, dilation) in enumerate(zip(self.features, self.dilations)):
            y = ConvNormAct(
                features,
                self.kernel_size,
                stride=2 if i < halvings else 1,
                dilation=dilation,
                separable=self.separable and i > 0,
                norm=self.norm,
                activation=self.activation,
                axis_name=self.axis_name,
                dtype=self.dtype,
            )(x, train=train)
            x = x + y if x.shape == y.shape else y
        x = Dropout(self.dropout, self.axis_name)(x, train=train)
        if self.head == "global":
            return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)).astype(jnp.float32))
        logits = DilatedConv(self.num_classes, (1, 1), name="head")(x.astype(jnp.float32))
        return jax.image.resize(logits, (len(logits), *size, self.num_classes), "linear", antialias=False)


def _check(model: DilatedFCN, x: jax.Array) -> None:
    if x.ndim != 4:
        raise UserError(f"DilatedFCN: x of shape {x.shape} must be (batch, height, width, channels); add the missing axes.")
    if len(model.features) != len(model.dilations):
        raise UserError(f"DilatedFCN: features={model.features} and dilations={model.dilations} must have equal lengths.")
    if model.output_stride not in STRIDES or 2 ** len(model.features) < model.output_stride:
        raise UserError(
            f"DilatedFCN: output_stride={model.output_stride} cannot be reached by {len(model.features)} layers; use one of {STRIDES}."
        )
    if model.head not in HEADS:
        raise UserError(f"DilatedFCN: head={model.head!r} is unknown; use one of {HEADS}.")
