"""FCOS (Tian et al. 2019, arXiv:1904.01355) on any backbone, as in torchvision."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.anchors import anchor_shapes, grid_anchors
from dilax.annotated import checked
from dilax.blocks import NORMS
from dilax.models import pyramid
from dilax.models.backbone import check_image, make_backbone
from dilax.models.detector import Level, Outputs, PointDetector, flattened
from dilax.models.resnet import ResNet
from dilax.state_dicts import Rules

_HEADS = (("classification_head", "class_head"), ("regression_head", "box_head"))
# For torchvision's state dicts, which count convolutions, normalisations and activations.
RULES: Rules = (
    *pyramid.RULES,
    *((rf"head\.{theirs}\.conv\.{3 * i}", f"{ours}/conv{i}") for theirs, ours in _HEADS for i in range(4)),
    *((rf"head\.{theirs}\.conv\.{3 * i + 1}", f"{ours}/norm{i}") for theirs, ours in _HEADS for i in range(4)),
    (r"head\.regression_head\.bbox_ctrness", "box_head/centreness"),
)


@checked(norm=NORMS)
class FCOS(PointDetector):
    """A backbone, a feature pyramid at strides 8 to 128, and two heads of four convolutions that all levels share.

    Raw boxes are distances in strides, at least 0. Parameters are under `backbone`, `pyramid`, `class_head` and `box_head`.

    Attributes:
        backbone: A class of backbones, or a `functools.partial` of one that sets other fields; it is called with `norm` and `dtype`.
        num_classes: Number of classes. torchvision counts the background as the first of its 91.
        features: Channels of the pyramid and of the heads.
        norm: Normalisation of the backbone, one of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`. The heads have group normalisation.
        dtype: Dtype of the computation; parameters and outputs stay float32.
    """

    backbone: Callable[..., nn.Module] = ResNet
    num_classes: int = 91
    features: int = 256
    norm: str = "batch"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Outputs:
        """Map images (batch, height, width, channels) to raw outputs; see `PointDetector`."""
        check_image("FCOS", x)
        backbone = make_backbone("FCOS", self.backbone, norm=self.norm, dtype=self.dtype)
        maps = pyramid.last_maps("FCOS", backbone.features(x, train=train), x.shape[1:3])
        levels = pyramid.FeaturePyramid(self.features, self.dtype, name="pyramid")(maps)
        shared: dict[str, Any] = dict(group_norm=True, dtype=self.dtype)
        class_head = pyramid.Tower((("logits", self.num_classes),), name="class_head", **shared)
        box_head = pyramid.Tower((("boxes", 4), ("centreness", 1)), name="box_head", **shared)
        of_box, of_class = [box_head(level) for level in levels], [class_head(level) for level in levels]
        return {
            "boxes": jnp.concatenate([nn.relu(flattened(one["boxes"], 4)) for one in of_box], 1),
            "centreness": jnp.concatenate([flattened(one["centreness"], 1) for one in of_box], 1)[..., 0],
            "logits": jnp.concatenate([flattened(one["logits"], self.num_classes) for one in of_class], 1),
        }

    @nn.nowrap
    def levels(self, image_size: tuple[int, int]) -> list[Level]:
        """Return the five levels, with the anchors of torchvision."""
        shapes = [anchor_shapes((float(stride),), (1.0,)) for stride in pyramid.STRIDES]
        sizes = pyramid.level_strides(image_size)
        return [Level(grid_anchors(size, stride=stride, shapes=shape)) for shape, (size, stride) in zip(shapes, sizes, strict=True)]
