"""Fully convolutional networks on a dilated backbone: FCN (Long et al. 2015, arXiv:1411.4038) and LR-ASPP."""

from typing import Any

import flax.linen as nn
import jax

from dilax.annotated import checked
from dilax.blocks import ConvNormAct
from dilax.context import space_mean
from dilax.models import resnet
from dilax.models.segmenter import HEAD_RULES, FCNHead, Maps, Segmenter, logits
from dilax.modules import DilatedConv
from dilax.resizing import resize
from dilax.state_dicts import Rules, beneath

# For torchvision's state dicts on a ResNet.
RULES: Rules = (
    *beneath("backbone", "backbone", resnet.RULES),
    *beneath("classifier", "classifier", HEAD_RULES),
    *beneath("aux_classifier", "aux_classifier", HEAD_RULES),
)


class FCN(Segmenter):
    """`FCNHead`, named `classifier`, on the last map of a backbone, as in torchvision.

    For the attributes see `dilax.models.Segmenter`.
    """

    def head(self, maps: Maps, *, train: bool, output_stride: int | None, image_mean: jax.Array | None) -> jax.Array:
        """Map the last map to logits of its size."""
        return FCNHead(self.num_classes, self.dropout, self.norm, self.dtype, name="classifier")(maps[-1], train=train)


@checked()
class LRASPP(Segmenter):
    """Lite reduced ASPP: the last map is gated by its mean over space, and its logits are added to those of the second map.

    Attributes:
        output_stride: See `dilax.models.Segmenter`; the default is 16 here.
        dropout: Unused: the head has no dropout.
        head_features: Channels of the gated map.

    For all other attributes see `dilax.models.Segmenter`.

    Reference:
        Howard et al. 2019, arXiv:1905.02244, section 6.4; with a global mean, as in torchvision.
    """

    output_stride: int | None = 16
    head_features: int = 128

    def head(self, maps: Maps, *, train: bool, output_stride: int | None, image_mean: jax.Array | None) -> jax.Array:
        """Map the second and the last map to logits of the size of the second."""
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        low, high = maps[1], maps[-1]
        y = ConvNormAct(self.head_features, (1, 1), name="conv", **shared)(high, train=train)
        gate = DilatedConv(self.head_features, (1, 1), use_bias=False, dtype=self.dtype, name="gate")
        y = resize(y * nn.sigmoid(gate(space_mean("LRASPP", high, image_mean))), low.shape[1:-1])
        return logits(self.num_classes, y) + logits(self.num_classes, low, name="low_logits")
