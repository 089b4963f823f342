"""Shared parts of segmentation networks: a backbone at a given output stride, logits at the size of the input, an auxiliary head."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import NORMS, ConvNormAct, Dropout
from dilax.models.backbone import make_backbone
from dilax.models.resnet import ResNet
from dilax.modules import DilatedConv
from dilax.resizing import resize
from dilax.state_dicts import Rules, conv_norm

Maps = tuple[jax.Array, ...]


@checked(norm=NORMS)
class Segmenter(nn.Module):
    """A backbone, a 1x1 convolution to logits, and bilinear upsampling to the size of the input; subclasses have larger heads.

    On a DRN this is the network of Yu et al. 2017 (arXiv:1705.09914, section 5). Their code upsamples by a transposed convolution instead,
    which differs only in the outermost pixels, where it fades to 0.

    Attributes:
        backbone: A class of backbones, or a `functools.partial` of one that sets other fields; it is called with `norm`, `multi_grid` and
            `dtype`. The parameters are under `backbone`.
        num_classes: Number of outputs per pixel.
        aux_head: Whether an auxiliary `FCNHead`, named `aux_classifier`, reads the second-to-last map.
        output_stride: Default of the input size divided by the size of the backbone's last map: 8, 16 or 32; None is the natural output
            stride of the backbone.
        dropout: Dropout rate before the last convolution; in the auxiliary head it is at most 0.1.
        multi_grid: Factors of the dilations in the backbone's last stage.
        norm: Normalisation of backbone and heads, one of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    backbone: Callable[..., nn.Module] = ResNet
    num_classes: int = 21
    aux_head: bool = False
    output_stride: int | None = 8
    dropout: float = 0.1
    multi_grid: tuple[int, ...] = (1,)
    norm: str = "batch"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Create the backbone, which `features` and `__call__` share."""
        fields: dict[str, Any] = dict(norm=self.norm, multi_grid=self.multi_grid, dtype=self.dtype)
        self.encoder: Any = make_backbone(type(self).__name__, self.backbone, **fields)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, output_stride: int | None = None, image_mean: jax.Array | None = None) -> Any:
        """Map images to logits of the same size.

        Args:
            x: Images (batch, height, width, channels).
            train: Whether to apply dropout and to normalise by the statistics of the batch.
            output_stride: Input size divided by the size of the backbone's last map: 8, 16 or 32; None for the field of that name.
            image_mean: (batch, channels of the last map), the mean over space of the last of `features` for the complete image, if x is
                only a part of it. Heads that do not average over space ignore it.

        Returns:
            Logits (batch, height, width, num_classes) in float32. With `aux_head` and `train`, a pair of such arrays, the second of which
            is that of the auxiliary head.

        Raises:
            UserError: if x, a field, the output stride or `image_mean` is invalid.
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
        """Map images to the maps of the backbone, shallow to deep."""
        return self.encoder.features(x, train=train, output_stride=self.output_stride if output_stride is None else output_stride)

    def head(self, maps: Maps, *, train: bool, output_stride: int | None, image_mean: jax.Array | None) -> jax.Array:
        """Map the maps of the backbone to logits (batch, height, width, num_classes) of any size up to that of the input, in float32."""
        return logits(self.num_classes, Dropout(self.dropout)(maps[-1], train=train))


# For torchvision's `FCNHead`.
HEAD_RULES: Rules = (*conv_norm("0", "1", "conv"), ("4", "logits"))


class FCNHead(nn.Module):
    """A 3x3 convolution to a quarter of the channels, normalisation, ReLU, dropout, a 1x1 convolution to logits in float32.

    Attributes:
        num_classes: Number of outputs.
        dropout: Dropout rate.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dtype: Dtype of the computation.
    """

    num_classes: int
    dropout: float = 0.1
    norm: str = "batch"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, channels) to (batch, *space, num_classes)."""
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        x = ConvNormAct(max(1, x.shape[-1] // 4), (3,) * (x.ndim - 2), name="conv", **shared)(x, train=train)
        x = Dropout(self.dropout)(x, train=train)
        return logits(self.num_classes, x)


def logits(num_classes: int, x: jax.Array, *, name: str = "logits") -> jax.Array:
    """Map (batch, *space, channels) to (batch, *space, num_classes) by a 1x1 convolution with the given name, in float32."""
    return DilatedConv(num_classes, (1,) * (x.ndim - 2), name=name)(x.astype(jnp.float32))
