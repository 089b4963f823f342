"""Small dilated networks for small images: a plain network, and a depthwise-separable residual network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, NORMS, ConvNormAct, Dropout, SeparableResidual, activation
from dilax.errors import UserError
from dilax.geometry import IntOrTuple, is_integer
from dilax.models.backbone import check_image
from dilax.pooling import max_pool

HEADS = ("global", "flatten")


@checked(head=HEADS, norm=NORMS, activation=ACTIVATIONS)
class DilatedCNN(nn.Module):
    """A stack of conv-norm-act layers, each with its own dilation, and a dense head.

    Attributes:
        num_classes: Number of outputs.
        features: Channels of each layer.
        dilations: Dilation of each layer, an int or a pair.
        pools: Window and stride of the max-pooling after each layer; 1 for none.
        kernel_size: Taps of every layer.
        hidden: Units of the dense layers before the last one.
        head: "global" averages over space before the dense layers, "flatten" keeps every position.
        dropout: Dropout rate before each dense layer.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 10
    features: tuple[int, ...] = (32, 32, 64, 64, 128)
    dilations: tuple[IntOrTuple, ...] = (1, 2, 1, 2, 2)
    pools: tuple[int, ...] = (1, 2, 1, 2, 1)
    kernel_size: tuple[int, int] = (3, 3)
    hidden: tuple[int, ...] = ()
    head: str = "global"
    dropout: float = 0.0
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None

    @classmethod
    def mnist(
        cls,
        *,
        num_classes: int = 10,
        dropout: float = 0.0,
        norm: str = "none",
        dtype: DTypeLike | None = None,
    ) -> "DilatedCNN":
        """Return the classic tutorial network: conv 3x3x32, pool 2, dilated conv 3x3x32, pool 2, dense 32, dense."""
        return cls(
            num_classes=num_classes,
            features=(32, 32),
            dilations=(1, 2),
            pools=(2, 2),
            hidden=(32,),
            head="flatten",
            dropout=dropout,
            norm=norm,
            dtype=dtype,
        )

    @classmethod
    def rgb(
        cls,
        *,
        num_classes: int = 10,
        dropout: float = 0.0,
        norm: str = "none",
        dtype: DTypeLike | None = None,
    ) -> "DilatedCNN":
        """Return conv 3x3x64, dilated conv 3x3x64, conv 3x3x128, dilated conv 3x3x128, global average, dense, with a dilation of 2."""
        return cls(
            num_classes=num_classes,
            features=(64, 64, 128, 128),
            dilations=(1, 2, 1, 2),
            pools=(1, 1, 1, 1),
            dropout=dropout,
            norm=norm,
            dtype=dtype,
        )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, num_classes)."""
        check_image("DilatedCNN", x)
        if not len(self.features) == len(self.dilations) == len(self.pools):
            raise UserError(
                f"DilatedCNN: features={self.features}, dilations={self.dilations} and pools={self.pools} must have equal lengths."
            )
        for features, dilation, pool in zip(self.features, self.dilations, self.pools):
            x = ConvNormAct(
                features,
                self.kernel_size,
                dilation=dilation,
                norm=self.norm,
                activation=self.activation,
                dtype=self.dtype,
            )(x, train=train)
            x = _pool(x, pool)
        return _head(self, x, train)


@checked(head=HEADS, norm=NORMS, activation=ACTIVATIONS)
class SeparableCNN(nn.Module):
    """A depthwise-separable residual network: a stem, stages of `SeparableResidual` blocks, global average, dense.

    The first block of each stage except the first halves the map; the dilations are repeated cyclically over the blocks of a stage.

    Attributes:
        num_classes: Number of outputs.
        stem_features: Channels of the first convolution.
        separable_stem: Whether the first convolution is separable, with the first dilation; otherwise it is dense and not dilated.
        features: Channels of each stage.
        blocks: Blocks of each stage.
        dilations: Dilations of successive blocks of a stage, repeated cyclically.
        squeeze_excite: Whether blocks end in a `SqueezeExcite`.
        hidden: Units of the dense layers before the last one.
        head: See `DilatedCNN`.
        dropout: Dropout rate before each dense layer.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 10
    stem_features: int = 32
    separable_stem: bool = False
    features: tuple[int, ...] = (64, 128, 256)
    blocks: tuple[int, ...] = (2, 2, 2)
    dilations: tuple[int, ...] = (1, 2)
    squeeze_excite: bool = False
    hidden: tuple[int, ...] = ()
    head: str = "global"
    dropout: float = 0.0
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None

    @classmethod
    def single_layer(
        cls,
        *,
        num_classes: int = 10,
        dilations: tuple[int, ...] = (1,),
        dropout: float = 0.0,
        norm: str = "none",
        dtype: DTypeLike | None = None,
    ) -> "SeparableCNN":
        """Return the textbook baseline: one separable 3x3 convolution to 64 features, global average, dense."""
        return cls(
            num_classes=num_classes,
            stem_features=64,
            separable_stem=True,
            features=(),
            blocks=(),
            dilations=dilations,
            dropout=dropout,
            norm=norm,
            dtype=dtype,
        )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, num_classes)."""
        check_image("SeparableCNN", x)
        if len(self.features) != len(self.blocks) or not self.dilations:
            raise UserError(
                f"SeparableCNN: features={self.features} and blocks={self.blocks} must have equal lengths, one entry per stage, "
                f"and dilations={self.dilations} must not be empty."
            )
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        stem_dilation = self.dilations[0] if self.separable_stem else 1
        x = ConvNormAct(self.stem_features, dilation=stem_dilation, separable=self.separable_stem, **shared)(x, train=train)
        for stage, (features, blocks) in enumerate(zip(self.features, self.blocks)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                dilation = self.dilations[block % len(self.dilations)]
                x = SeparableResidual(features, stride, dilation, self.squeeze_excite, **shared)(x, train=train)
        return _head(self, x, train)


def _pool(x: jax.Array, window: int) -> jax.Array:
    """Max-pool windows side by side; rows and columns that do not fill a window are dropped."""
    if not is_integer(window) or not 1 <= window <= min(x.shape[1:3]):
        raise UserError(
            f"DilatedCNN: a pool of {window!r} does not fit a map of {x.shape[1:3]}; use an int from 1, for none, to the size of the map."
        )
    return max_pool(x, window)


def _head(model: DilatedCNN | SeparableCNN, x: jax.Array, train: bool) -> jax.Array:
    """Apply the head: global average or flattening, hidden dense layers, and logits in float32."""
    x = x.mean((1, 2)) if model.head == "global" else x.reshape(x.shape[0], -1)
    for units in model.hidden:
        x = Dropout(model.dropout)(x, train=train)
        x = activation(model.activation)(nn.Dense(units, dtype=model.dtype)(x))
    x = Dropout(model.dropout)(x, train=train)
    return nn.Dense(model.num_classes, name="head")(x.astype(jnp.float32))
