"""DeepLabV3 (Chen et al. 2017, arXiv:1706.05587) and DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611) on any backbone."""

from typing import Any

import jax
import jax.numpy as jnp

from dilax.annotated import checked
from dilax.blocks import ConvNormAct
from dilax.context import ASPP
from dilax.models import resnet
from dilax.models.segmenter import HEAD_RULES, Maps, Segmenter, logits
from dilax.resizing import resize
from dilax.state_dicts import Rules, beneath, conv_norm

_ASPP: Rules = (
    *conv_norm(r"convs\.0\.0", r"convs\.0\.1", "dense"),
    *(rule for i in range(3) for rule in conv_norm(rf"convs\.{i + 1}\.0", rf"convs\.{i + 1}\.1", f"dilated_{i}")),
    *conv_norm(r"convs\.4\.1", r"convs\.4\.2", "pooled"),
    *conv_norm(r"project\.0", r"project\.1", "project"),
)
# For torchvision's state dicts of DeepLabV3 on a ResNet.
RULES: Rules = (
    *beneath("backbone", "backbone", resnet.RULES),
    *beneath(r"classifier\.0", "aspp", _ASPP),
    *conv_norm(r"classifier\.1", r"classifier\.2", "conv"),
    (r"classifier\.4", "logits"),
    *beneath("aux_classifier", "aux_classifier", HEAD_RULES),
)


@checked()
class DeepLabV3(Segmenter):
    """`dilax.ASPP` on the last map of a backbone, a 3x3 convolution and a 1x1 convolution, as in torchvision.

    For a baseline without dilation, use `output_stride=32, dilations=(1, 1, 1)`.

    Attributes:
        dropout: Dropout rate after `ASPP`.
        dilations: Dilations of `ASPP` at output stride 16; they are 12, 24 and 36 at the default output stride of 8.
        image_pooling: See `dilax.ASPP`.
        head_features: Channels of `ASPP` and of the 3x3 convolution.

    For all other attributes see `dilax.models.Segmenter`.
    """

    dropout: float = 0.5
    dilations: tuple[int, ...] = (6, 12, 18)
    image_pooling: bool = True
    head_features: int = 256

    def head(self, maps: Maps, *, train: bool, output_stride: int | None, image_mean: jax.Array | None) -> jax.Array:
        """Map the last map to logits of its size."""
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        aspp = ASPP(self.head_features, self.dilations, False, self.image_pooling, self.dropout, name="aspp", **shared)
        y = aspp(maps[-1], train=train, output_stride=output_stride, image_mean=image_mean)
        y = ConvNormAct(self.head_features, name="conv", **shared)(y, train=train)
        return logits(self.num_classes, y)


@checked()
class DeepLabV3Plus(Segmenter):
    """Separable `dilax.ASPP` on the last map, upsampled and concatenated with the first map of the backbone for sharp boundaries.

    A separable 3x3 convolution follows `ASPP`; the map of stride 4 is reduced to `low_features`; a separable 3x3 convolution combines both,
    and a 1x1 convolution maps them to logits. For a baseline without dilation, use `output_stride=32, dilations=(1, 1, 1)`.

    Attributes:
        output_stride: See `dilax.models.Segmenter`; the default is 16 here.
        dropout: Dropout rate after `ASPP`.
        dilations: Dilations of `ASPP` at output stride 16.
        image_pooling: See `dilax.ASPP`.
        head_features: Channels of `ASPP` and of the separable convolutions.
        low_features: Channels to which the first map is reduced.

    For all other attributes see `dilax.models.Segmenter`.
    """

    output_stride: int | None = 16
    dropout: float = 0.5
    dilations: tuple[int, ...] = (6, 12, 18)
    image_pooling: bool = True
    head_features: int = 256
    low_features: int = 48

    def head(self, maps: Maps, *, train: bool, output_stride: int | None, image_mean: jax.Array | None) -> jax.Array:
        """Map the first and the last map to logits of the size of the first."""
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        aspp = ASPP(self.head_features, self.dilations, True, self.image_pooling, self.dropout, name="aspp", **shared)
        y = aspp(maps[-1], train=train, output_stride=output_stride, image_mean=image_mean)
        y = ConvNormAct(self.head_features, separable=True, name="conv", **shared)(y, train=train)
        low = ConvNormAct(self.low_features, (1, 1), name="low", **shared)(maps[0], train=train)
        y = jnp.concatenate([resize(y, low.shape[1:-1]), low], axis=-1)
        y = ConvNormAct(self.head_features, separable=True, name="mix", **shared)(y, train=train)
        return logits(self.num_classes, y)
