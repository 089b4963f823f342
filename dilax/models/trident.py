"""A one-stage detector of trident blocks: branches that share all weights and differ in dilation (Li et al. 2019, arXiv:1901.01892).

The paper builds on a two-stage detector. Here FCOS's heads (Tian et al. 2019, arXiv:1904.01355) predict the boxes of each branch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.anchors import match_centres
from dilax.annotated import checked
from dilax.blocks import NORMS, ConvNormAct, Norm
from dilax.boxes import area
from dilax.errors import UserError
from dilax.functional import dilated_conv
from dilax.models.backbone import check_image, make_backbone
from dilax.models.detector import Level, Outputs, PointDetector, flattened, point_level
from dilax.models.pyramid import Tower
from dilax.models.resnet import ResNet

STRIDE = 16


class TridentConv(nn.Module):
    """A convolution of several branches with one kernel, at the dilation of each branch.

    Attributes:
        features: Output channels.
        dilations: One per branch.
        dtype: Dtype of the computation.
    """

    features: int
    dilations: Sequence[int]
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, branches, rows, columns, channels) to (batch, branches, rows, columns, features)."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features), jnp.float32)
        kernel, x = kernel.astype(self.dtype or x.dtype), x.astype(self.dtype or x.dtype)
        return jnp.stack([dilated_conv(x[:, i], kernel, dilation=dilation) for i, dilation in enumerate(self.dilations)], 1)


class TridentBlock(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions, each normalised, of several branches that share all weights.

    Attributes:
        dilations: Dilation of the 3x3 convolution of each branch.
        norm: One of `dilax.blocks.NORMS`; the statistics are those of all branches together.
        dtype: Dtype of the computation.
    """

    dilations: Sequence[int]
    norm: str = "batch"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, branches, rows, columns, channels) to the same shape."""
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        inner, branches = max(1, x.shape[-1] // 4), x.shape[:2]
        flat = x.reshape(-1, *x.shape[2:])
        y = ConvNormAct(inner, (1, 1), name="conv1", **shared)(flat, train=train)
        y = TridentConv(inner, self.dilations, self.dtype, name="conv2")(y.reshape(*branches, *y.shape[1:]))
        y = nn.relu(Norm(self.norm, self.dtype, name="norm2")(y.reshape(-1, *y.shape[2:]), train=train))
        y = ConvNormAct(x.shape[-1], (1, 1), activation="none", name="conv3", **shared)(y, train=train)
        return nn.relu(flat + y).reshape(x.shape)


@checked(norm=NORMS, sizes=0)
class TridentDetector(PointDetector):
    """A backbone at stride 16, trident blocks, and two heads that all branches share; each branch predicts boxes of other sizes.

    The default is a ResNet-50 without its fourth stage, in which the last three blocks of the third are trident blocks.

    A branch of a larger dilation sees more and predicts larger boxes, by the same weights. In training, each branch learns the boxes whose
    size, the square root of their area, is in its range; of what it detects, boxes of other sizes are left out. Since all weights are
    shared, `model.clone(dilations=(2,), sizes=((0, 2000),))` is the fast approximation of the paper (section 3.3): a single branch, with
    the variables of all.

    Raw boxes are distances in cells, at least 0. `dilax.fold_batch_norm` refuses the normalisation of the shared kernels. Parameters are
    under `backbone`, `trident0` ..., `reduce`, `class_head` and `box_head`.

    Attributes:
        backbone: A class of backbones, or a `functools.partial` of one that sets other fields; it is called with `norm` and `dtype`. Its
            last map at output stride 16 is used.
        num_classes: Number of classes, without the background.
        features: Channels of the heads.
        trident_blocks: Number of trident blocks.
        dilations: Dilation of each branch.
        sizes: The smallest and the largest size of the boxes of each branch in pixels.
        norm: Normalisation of backbone and blocks, one of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dtype: Dtype of the computation; parameters and outputs stay float32.
    """

    backbone: Callable[..., nn.Module] = functools.partial(ResNet, blocks=(3, 4, 3, 0))
    num_classes: int = 80
    features: int = 256
    trident_blocks: int = 3
    dilations: tuple[int, ...] = (1, 2, 3)
    sizes: tuple[tuple[int, int], ...] = ((0, 90), (30, 160), (90, 2000))
    norm: str = "batch"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Outputs:
        """Map images (batch, height, width, channels) to raw outputs; see `PointDetector`."""
        check_image("TridentDetector", x)
        self._check_branches()
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        x = make_backbone("TridentDetector", self.backbone, **shared).features(x, train=train, output_stride=STRIDE)[-1]
        x = jnp.broadcast_to(x[:, None], (x.shape[0], len(self.dilations), *x.shape[1:]))
        for i in range(self.trident_blocks):
            x = TridentBlock(self.dilations, name=f"trident{i}", **shared)(x, train=train)
        batch, branches = x.shape[:2]
        x = ConvNormAct(self.features, (1, 1), name="reduce", **shared)(x.reshape(-1, *x.shape[2:]), train=train)
        tower: dict[str, Any] = dict(group_norm=True, dtype=self.dtype)
        of_class = Tower((("logits", self.num_classes),), name="class_head", **tower)(x)
        of_box = Tower((("boxes", 4), ("centreness", 1)), name="box_head", **tower)(x)

        def joined(one: jax.Array) -> jax.Array:
            return flattened(one.reshape(batch, branches * one.shape[1], *one.shape[2:]), one.shape[-1])

        return {
            "boxes": nn.relu(joined(of_box["boxes"])),
            "centreness": joined(of_box["centreness"])[..., 0],
            "logits": joined(of_class["logits"]),
        }

    @nn.nowrap
    def levels(self, image_size: tuple[int, int]) -> list[Level]:
        """Return a level for each branch, all of the same anchors."""
        anchors = point_level(image_size, STRIDE).anchors
        return [Level(anchors, (float(lowest), float(highest))) for lowest, highest in self.sizes]

    @nn.nowrap
    def matches(self, predicted: jax.Array, boxes: jax.Array, mask: jax.Array, levels: list[Level]) -> jax.Array:
        """Match by centres, in each branch the boxes of its range of sizes."""
        size = jnp.sqrt(area(boxes))
        fits = [mask & (size >= level.sizes[0]) & (size <= level.sizes[1]) for level in levels]
        return jnp.concatenate([match_centres(boxes, one, level.anchors) for one, level in zip(fits, levels)], 1)

    def _check_branches(self) -> None:
        if not self.dilations or len(self.dilations) != len(self.sizes):
            raise UserError(
                f"TridentDetector: dilations={self.dilations} and sizes={self.sizes} must have one entry per branch each, at least one."
            )
