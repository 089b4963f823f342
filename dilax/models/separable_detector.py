"""A detector of depthwise-separable dilated convolutions on a single map, small enough to be trained on a CPU.

One map with a dilated encoder in place of a pyramid is the idea of YOLOF (Chen et al. 2021, arXiv:2103.09460, section 4.1): dilated
convolutions of several rates see objects of all sizes at one stride. Boxes are predicted as in FCOS (Tian et al. 2019, arXiv:1904.01355).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, NORMS, ConvNormAct, SeparableResidual
from dilax.boxes import MAX_LOG_RATIO, decode_ltrb
from dilax.models.backbone import check_image, check_lengths
from dilax.models.detector import PRIOR_BIAS, Level, Outputs, PointDetector, flattened, point_level
from dilax.modules import DilatedConv


@checked(norm=NORMS, activation=ACTIVATIONS)
class SeparableDetector(PointDetector):
    """A separable backbone, residual blocks of several dilations on its last map, and two small heads.

    The stem and each stage halve the size. Raw boxes are logarithms of distances in cells. Parameters are named `stem`, `stage0_block0`
    ..., `encoder0` ..., `class_head0` ..., `box_head0` ..., `logits`, `boxes` and `centreness`.

    Attributes:
        num_classes: Number of classes, without the background.
        stem_features: Channels of the stem.
        stage_features: Channels of each stage.
        blocks: Blocks of each stage.
        features: Channels of the encoder and of the heads.
        dilations: Dilation of each block of the encoder.
        head_blocks: Separable convolutions of each head.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and outputs stay float32.

    Example:
        >>> model, x = SeparableDetector(num_classes=3), jnp.ones((1, 240, 320, 3))
        >>> outputs = jax.eval_shape(lambda key: model.init_with_output(key, x, train=False)[0], jax.random.key(0))
        >>> {name: output.shape for name, output in outputs.items()}
        {'boxes': (1, 1200, 4), 'centreness': (1, 1200), 'logits': (1, 1200, 3)}
    """

    num_classes: int = 20
    stem_features: int = 16
    stage_features: tuple[int, ...] = (32, 64)
    blocks: tuple[int, ...] = (1, 2)
    features: int = 96
    dilations: tuple[int, ...] = (2, 4, 6, 8)
    head_blocks: int = 2
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Outputs:
        """Map images (batch, height, width, channels) to raw outputs; see `Detector`."""
        check_image("SeparableDetector", x)
        check_lengths("SeparableDetector", len(self.stage_features), stage_features=self.stage_features, blocks=self.blocks)
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        x = ConvNormAct(self.stem_features, stride=2, name="stem", **shared)(x, train=train)
        for stage, (features, blocks) in enumerate(zip(self.stage_features, self.blocks)):
            for index in range(blocks):
                x = SeparableResidual(features, 1 if index else 2, name=f"stage{stage}_block{index}", **shared)(x, train=train)
        for i, dilation in enumerate(self.dilations):
            x = SeparableResidual(self.features, dilation=dilation, name=f"encoder{i}", **shared)(x, train=train)
        of_class, of_box = x, x
        for i in range(self.head_blocks):
            of_class = ConvNormAct(self.features, separable=True, name=f"class_head{i}", **shared)(of_class, train=train)
            of_box = ConvNormAct(self.features, separable=True, name=f"box_head{i}", **shared)(of_box, train=train)
        of_class, of_box = of_class.astype(jnp.float32), of_box.astype(jnp.float32)
        return {
            "boxes": flattened(DilatedConv(4, (1, 1), name="boxes")(of_box), 4),
            "centreness": flattened(DilatedConv(1, (1, 1), name="centreness")(of_box), 1)[..., 0],
            "logits": flattened(DilatedConv(self.num_classes, (1, 1), bias_init=PRIOR_BIAS, name="logits")(of_class), self.num_classes),
        }

    @nn.nowrap
    def levels(self, image_size: tuple[int, int]) -> list[Level]:
        """Return the single level."""
        return [point_level(image_size, 2 ** (1 + len(self.stage_features)))]

    @nn.nowrap
    def decode(self, boxes: jax.Array, anchors: jax.Array) -> jax.Array:
        """Map logarithms of distances (..., 4) in sizes of the anchor to corners in pixels."""
        return decode_ltrb(jnp.exp(jnp.minimum(boxes, MAX_LOG_RATIO)), anchors)
