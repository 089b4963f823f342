"""YOLOF, a detector on a single map with a dilated encoder (Chen et al. 2021, arXiv:2103.09460)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dilax.anchors import anchor_shapes, grid_anchors, match_nearest
from dilax.annotated import checked
from dilax.blocks import NORMS, ConvNormAct
from dilax.boxes import decode_boxes
from dilax.detection_losses import giou_loss
from dilax.models.backbone import check_image, make_backbone, output_stride_or
from dilax.models.detector import PRIOR_BIAS, Detector, Level, Outputs, flattened, map_size
from dilax.models.resnet import ResNet
from dilax.modules import DilatedConv

MAX_SHIFT = 32.0  # pixels by which the centre of a box may lie away from that of its anchor


class DilatedBlock(nn.Module):
    """Residual block of 1x1, dilated 3x3 and 1x1 convolutions, each normalised and activated (figure 5 of the paper).

    Attributes:
        dilation: Dilation of the 3x3 convolution.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dtype: Dtype of the computation.
    """

    dilation: int
    norm: str = "batch"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, rows, columns, channels) to the same shape."""
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        inner = max(1, x.shape[-1] // 4)
        y = ConvNormAct(inner, (1, 1), name="conv1", **shared)(x, train=train)
        y = ConvNormAct(inner, (3, 3), dilation=self.dilation, name="conv2", **shared)(y, train=train)
        return x + ConvNormAct(x.shape[-1], (1, 1), name="conv3", **shared)(y, train=train)


@checked(norm=NORMS)
class YOLOF(Detector):
    """A backbone, a dilated encoder on its last map, and two heads; objectness is learned without a target of its own.

    The encoder projects the map and adds residual blocks of growing dilations, so that one map has receptive fields of many sizes. Each
    cell has one square anchor for each of `anchor_sizes`. Each box is matched with the same number of anchors, whatever its size. The logit
    of a class is that of the event that the class and the objectness, which the box head predicts, are both true.

    Parameters are under `backbone`, `project`, `smooth`, `encoder0` ..., `class_head0` ..., `box_head0` ..., `logits`, `boxes` and
    `objectness`.

    Attributes:
        backbone: A class of backbones, or a `functools.partial` of one that sets other fields; it is called with `norm` and `dtype`.
        num_classes: Number of classes, without the background.
        features: Channels of the encoder and of the heads.
        dilations: Dilation of each block of the encoder.
        anchor_sizes: Sides of the anchors in pixels.
        output_stride: Input size divided by the size of the map: 32, or 16 or 8 with a dilated backbone.
        norm: Normalisation, one of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dtype: Dtype of the computation; parameters and outputs stay float32.
    """

    backbone: Callable[..., nn.Module] = ResNet
    num_classes: int = 80
    features: int = 512
    dilations: tuple[int, ...] = (2, 4, 6, 8)
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    output_stride: int = 32
    norm: str = "batch"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Outputs:
        """Map images (batch, height, width, channels) to raw outputs; see `Detector`."""
        check_image("YOLOF", x)
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        stride = output_stride_or(32, self.output_stride, "YOLOF")
        x = make_backbone("YOLOF", self.backbone, **shared).features(x, train=train, output_stride=stride)[-1]
        x = ConvNormAct(self.features, (1, 1), activation="none", name="project", **shared)(x, train=train)
        x = ConvNormAct(self.features, (3, 3), activation="none", name="smooth", **shared)(x, train=train)
        for i, dilation in enumerate(self.dilations):
            x = DilatedBlock(dilation, name=f"encoder{i}", **shared)(x, train=train)
        of_class, of_box = x, x
        for i in range(2):
            of_class = ConvNormAct(self.features, (3, 3), name=f"class_head{i}", **shared)(of_class, train=train)
        for i in range(4):
            of_box = ConvNormAct(self.features, (3, 3), name=f"box_head{i}", **shared)(of_box, train=train)
        of_class, of_box, anchors = of_class.astype(jnp.float32), of_box.astype(jnp.float32), len(self.anchor_sizes)
        last: dict[str, Any] = dict(kernel_size=(3, 3), kernel_init=nn.initializers.normal(0.01))
        classes = DilatedConv(anchors * self.num_classes, bias_init=PRIOR_BIAS, name="logits", **last)(of_class)
        objectness = flattened(DilatedConv(anchors, name="objectness", **last)(of_box), 1)
        return {
            "boxes": flattened(DilatedConv(anchors * 4, name="boxes", **last)(of_box), 4),
            "logits": _both(flattened(classes, self.num_classes), objectness),
        }

    @nn.nowrap
    def levels(self, image_size: tuple[int, int]) -> list[Level]:
        """Return the single level."""
        shapes = anchor_shapes([float(size) for size in self.anchor_sizes], (1.0,))
        return [Level(grid_anchors(map_size(image_size, self.output_stride), stride=self.output_stride, shapes=shapes))]

    @nn.nowrap
    def matches(self, predicted: jax.Array, boxes: jax.Array, mask: jax.Array, levels: list[Level]) -> jax.Array:
        """Match the nearest anchors and predictions."""
        return match_nearest(boxes, mask, np.concatenate([level.anchors for level in levels]), predicted)

    @nn.nowrap
    def decode(self, boxes: jax.Array, anchors: jax.Array) -> jax.Array:
        """Map shifts and logarithms of ratios (..., 4) to corners in pixels; the centre is shifted by at most 32 pixels."""
        limit = MAX_SHIFT / (anchors[..., 2:] - anchors[..., :2])
        return decode_boxes(jnp.concatenate([jnp.clip(boxes[..., :2], -limit, limit), boxes[..., 2:]], -1), anchors)

    @nn.nowrap
    def box_losses(self, outputs: Outputs, predicted: jax.Array, targets: jax.Array, anchors: jax.Array) -> Outputs:
        """Return 1 minus the generalised intersection over union, (batch, cells)."""
        return {"boxes": giou_loss(predicted, targets)}


def _both(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return the logits of independent events being true together, of logits of each; the second one broadcasts to the first."""
    second = jnp.broadcast_to(second, first.shape)
    # sigmoid(a) * sigmoid(b) = e^(a + b) / (1 + e^a + e^b + e^(a + b))
    return first + second - jnp.logaddexp(jnp.logaddexp(first, second), 0.0)
