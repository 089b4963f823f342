"""What segmentation networks share: a backbone at the output stride asked for, logits at the size of the input, an auxiliary head."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dilax.blocks import ConvNormAct, Dropout
from dilax.errors import UserError
from dilax.models.resnet import ResNet
from dilax.modules import DilatedConv
from dilax.resizing import resize
from dilax.state_dicts import Rules, conv_norm

Maps = tuple[jax.Array, ...]


class Segmenter(nn.Module):
    """A backbone, a 1x1 convolution to logits, bilinear enlargement to the size of the input; subclasses have larger heads.

    On a DRN this is the network of Yu et al. 2017 (arXiv:1705.09914, section 5). Its own code enlarges by a transposed convolution, which
    is the same but for the outermost pixels, where it fades to 0.

    Attributes:
        backbone: Makes the backbone from `norm`, `multi_grid` and `dtype`: its class, or a `functools.partial` of it with
            other fields set. Its parameters stand under `backbone`.
        num_classes: Outputs per pixel.
        aux_head: Whether an `FCNHead`, named `aux_classifier`, reads the last but one stage.
        output_stride: Input size over size of the backbone's last map, unless the call says another: 8, 16 or 32; None is the natural one
            of the backbone.
        dropout: Rate before the last convolution; the auxiliary head's is 0.1, or this if it is less.
        multi_grid: Factors of the dilations in the backbone's last stage.
        norm: As `dilax.blocks.Norm`; for backbone and heads.
        dtype: Of the computation; parameters and logits stay float32.
    """

    backbone: Callable[..., nn.Module] = ResNet
    num_classes: int = 21
    aux_head: bool = False
    output_stride: int | None = 8
    dropout: float = 0.1
    multi_grid: tuple[int, ...] = (1,)
    norm: str = "batch"
    dtype: Any = None

    def setup(self) -> None:
        """Make the backbone, which `features` and `__call__` share."""
        if not callable(self.backbone) or isinstance(self.backbone, nn.Module):
            raise UserError(
                f"{type(self).__name__}: backbone={type(self.backbone).__name__} is no class of backbones; give one, such as "
                "dilax.models.ResNet, or functools.partial(dilax.models.ResNet, blocks=(2, 2, 2, 2), bottleneck=False)."
            )
        self.encoder: Any = self.backbone(norm=self.norm, multi_grid=self.multi_grid, dtype=self.dtype, name="backbone")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, output_stride: int | None = None, image_mean: jax.Array | None = None) -> Any:
        """Map images to logits at their size.

        Args:
            x: (batch, height, width, channels).
            train: Whether to drop values and to use the statistics of the batch.
            output_stride: Input size over size of the backbone's last map: 8, 16 or 32; None is the field.
            image_mean: (batch, channels of the last map), the mean over space of the last of `features`, where x is but a part of an image
                and that of the whole is known. What the network does not average over space does not use it.

        Returns:
            (batch, height, width, num_classes) in float32. With `aux_head` and `train`, a pair of such: the auxiliary head's is second.

        Raises:
            UserError: if x, a field, the output stride or image_mean does not fit.
        """
        stride = self.output_stride if output_stride is None else output_stride
        maps = self.features(x, train=train, output_stride=stride)
        logits = resize(self.head(maps, train=train, output_stride=stride, image_mean=image_mean), x.shape[1:-1])
        if not self.aux_head or not (train or self.is_initializing()):
            return logits
        aux = FCNHead(self.num_classes, min(self.dropout, 0.1), self.norm, self.dtype, name="aux_classifier")
        aux_logits = resize(aux(maps[-2], train=train), x.shape[1:-1])
        return (logits, aux_logits) if train else logits

    def features(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> Maps:
        """Map images to the maps of the backbone's stages, shallow to deep; the head reads the last."""
        return self.encoder.features(x, train=train, output_stride=self.output_stride if output_stride is None else output_stride)

    def head(self, maps: Maps, *, train: bool, output_stride: int | None, image_mean: jax.Array | None) -> jax.Array:
        """Map the stages to logits (batch, height, width, num_classes) of any smaller size, in float32."""
        return logits(self.num_classes, Dropout(self.dropout)(maps[-1], train=train))


# Of torchvision's `FCNHead`.
HEAD_RULES: Rules = (*conv_norm("0", "1", "conv"), ("4", "logits"))


class FCNHead(nn.Module):
    """A 3x3 convolution to a quarter of the channels, normalisation, ReLU, dropout, a 1x1 convolution to logits in float32.

    Attributes:
        num_classes: Outputs.
        dropout: Rate.
        norm: As `dilax.blocks.Norm`.
        dtype: Of the computation.
    """

    num_classes: int
    dropout: float = 0.1
    norm: str = "batch"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, channels) to (batch, *space, num_classes)."""
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        x = ConvNormAct(max(1, x.shape[-1] // 4), (3,) * (x.ndim - 2), name="conv", **shared)(x, train=train)
        x = Dropout(self.dropout)(x, train=train)
        return logits(self.num_classes, x)


def logits(num_classes: int, x: jax.Array, *, name: str = "logits") -> jax.Array:
    """Map (batch, *space, channels) to (batch, *space, num_classes) by a 1x1 convolution of that name, in float32."""
    return DilatedConv(num_classes, (1,) * (x.ndim - 2), name=name)(x.astype(jnp.float32))
