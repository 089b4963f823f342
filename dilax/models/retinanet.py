"""RetinaNet (Lin et al. 2017, arXiv:1708.02002) on any backbone, as in torchvision."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dilax.anchors import anchor_shapes, grid_anchors, match_overlap
from dilax.annotated import checked
from dilax.blocks import NORMS
from dilax.boxes import decode_boxes, encode_boxes
from dilax.detection_losses import smooth_l1_loss
from dilax.models import pyramid
from dilax.models.backbone import check_image, make_backbone
from dilax.models.detector import Detector, Level, Outputs, flattened
from dilax.models.resnet import ResNet
from dilax.state_dicts import Rules

ASPECT_RATIOS = (0.5, 1.0, 2.0)
ANCHORS = 9  # of a cell: three sizes of three aspect ratios
_HEADS = (("classification_head", "class_head"), ("regression_head", "box_head"))
# For torchvision's state dicts; in older files the activations between the convolutions are counted, too.
RULES: Rules = (
    *pyramid.RULES,
    *((rf"head\.{theirs}\.conv\.(\d)\.0", rf"{ours}/conv\1") for theirs, ours in _HEADS),
    *((rf"head\.{theirs}\.conv\.{2 * i}", f"{ours}/conv{i}") for theirs, ours in _HEADS for i in range(4)),
)


@checked(norm=NORMS)
class RetinaNet(Detector):
    """A backbone, a feature pyramid at strides 8 to 128, and two heads of four convolutions that all levels share.

    Each cell has 9 anchors, whose sizes are 1, 2^(1/3) and 2^(2/3) times the one of `anchor_sizes` and whose aspect ratios are 1:2, 1:1
    and 2:1. Parameters are under `backbone`, `pyramid`, `class_head` and `box_head`.

    Attributes:
        backbone: A class of backbones, or a `functools.partial` of one that sets other fields; it is called with `norm` and `dtype`.
        num_classes: Number of classes. torchvision counts the background as the first of its 91.
        features: Channels of the pyramid and of the heads.
        anchor_sizes: Smallest anchor of each level, as the square root of its area in pixels.
        norm: Normalisation of the backbone, one of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dtype: Dtype of the computation; parameters and outputs stay float32.
    """

    backbone: Callable[..., nn.Module] = ResNet
    num_classes: int = 91
    features: int = 256
    anchor_sizes: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    norm: str = "batch"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Outputs:
        """Map images (batch, height, width, channels) to raw outputs; see `Detector`."""
        check_image("RetinaNet", x)
        backbone = make_backbone("RetinaNet", self.backbone, norm=self.norm, dtype=self.dtype)
        maps = pyramid.last_maps("RetinaNet", backbone.features(x, train=train), x.shape[1:3])
        levels = pyramid.FeaturePyramid(self.features, self.dtype, name="pyramid")(maps)
        class_head = pyramid.Tower((("logits", ANCHORS * self.num_classes),), dtype=self.dtype, name="class_head")
        box_head = pyramid.Tower((("boxes", ANCHORS * 4),), dtype=self.dtype, name="box_head")
        return {
            "boxes": jnp.concatenate([flattened(box_head(level)["boxes"], 4) for level in levels], 1),
            "logits": jnp.concatenate([flattened(class_head(level)["logits"], self.num_classes) for level in levels], 1),
        }

    @nn.nowrap
    def levels(self, image_size: tuple[int, int]) -> list[Level]:
        """Return the five levels, with the anchors of torchvision."""
        levels = []
        for side, (size, stride) in zip(self.anchor_sizes, pyramid.level_strides(image_size), strict=True):
            shapes = anchor_shapes([float(int(side * 2 ** (third / 3))) for third in range(3)], ASPECT_RATIOS)
            levels.append(Level(grid_anchors(size, stride=stride, shapes=shapes)))
        return levels

    @nn.nowrap
    def matches(self, predicted: jax.Array, boxes: jax.Array, mask: jax.Array, levels: list[Level]) -> jax.Array:
        """Match by overlap."""
        return match_overlap(boxes, mask, np.concatenate([level.anchors for level in levels]))

    @nn.nowrap
    def decode(self, boxes: jax.Array, anchors: jax.Array) -> jax.Array:
        """Map shifts and logarithms of ratios (..., 4) to corners in pixels."""
        return decode_boxes(boxes, anchors)

    @nn.nowrap
    def box_losses(self, outputs: Outputs, predicted: jax.Array, targets: jax.Array, anchors: jax.Array) -> Outputs:
        """Return the absolute differences of the coded boxes, summed over the coordinates, (batch, cells)."""
        return {"boxes": smooth_l1_loss(outputs["boxes"], encode_boxes(targets, anchors), beta=0).sum(-1)}
