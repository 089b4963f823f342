"""EfficientNet (Tan & Le 2019, arXiv:1905.11946) with the padding of torchvision, at any output stride with the same parameters."""

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, NORMS, ConvNormAct, Dropout, SqueezeExcite
from dilax.errors import UserError
from dilax.models.backbone import (
    block_geometry,
    check_image,
    check_lengths,
    check_multi_grid,
    global_average,
    output_stride_or,
    stages,
)
from dilax.models.mobilenet import InvertedResidual, scaled
from dilax.state_dicts import Rules, conv_norm

KERNEL_SIZES = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
LAST = (2, 3, 5, 7)  # the last stages at strides 4, 8, 16 and 32


def _block_rules(stages: str, depthwise: int) -> Rules:
    """Return the rules for the blocks of some stages, whose depthwise convolution has that number among their layers."""
    block = rf"features\.([{stages}])\.(\d+)\.block"
    layers = {depthwise - 1: "expand", depthwise: "depthwise", depthwise + 2: "project"}
    convs = (conv_norm(rf"{block}\.{i}\.0", rf"{block}\.{i}\.1", rf"stage\1_block\2/{layer}") for i, layer in layers.items() if i >= 0)
    gates = ((rf"{block}\.{depthwise + 1}\.fc{i + 1}", rf"stage\1_block\2/excite/Dense_{i}") for i in range(2))
    return (*itertools.chain(*convs), *gates)


# For torchvision's state dicts. The blocks of the first stage do not expand their input.
RULES: Rules = (
    *conv_norm(r"features\.0\.0", r"features\.0\.1", "stem"),
    *conv_norm(r"features\.8\.0", r"features\.8\.1", "last"),
    *_block_rules("1", 0),
    *_block_rules("2-7", 1),
    (r"classifier\.1", "head"),
)


@checked(blocks=0, norm=NORMS, activation=ACTIVATIONS)
class EfficientNet(nn.Module):
    """Inverted residual blocks with squeeze-and-excitation, in seven stages; the defaults are EfficientNet-B0.

    B1 to B4 have the factors of width and depth (1.0, 1.1), (1.1, 1.2), (1.2, 1.4) and (1.4, 1.8). There is no stochastic depth. Parameters
    are named `stem`, `stage1_block0/depthwise`, `stage1_block0/excite`, `stage1_block0/project`, `stage2_block0/expand` ...
    `stage7_block0/project`, `last` and `head`; `RULES` maps torchvision's names to them.

    Attributes:
        num_classes: Number of outputs.
        blocks: Blocks of each stage.
        stage_features: Output channels of each stage.
        stem_features: Channels of the first convolution.
        last_features: Channels of the 1x1 convolution before the head, which `features` does not include.
        expansion: Expansion of the blocks in all stages except the first, where it is 1.
        width_multiplier: Factor of all channels, which are rounded to multiples of 8.
        depth_multiplier: Factor of the blocks of each stage, which are rounded up.
        dropout: Dropout rate before the head.
        multi_grid: Factors of the dilations of the blocks at stride 32, in the last two stages, repeated cyclically.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    stage_features: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    stem_features: int = 32
    last_features: int = 1280
    expansion: int = 6
    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    dropout: float = 0.2
    multi_grid: tuple[int, ...] = (1,)
    norm: str = "batch"
    activation: str = "silu"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Create the layers after the features."""
        wide = scaled(self.last_features, self.width_multiplier)
        self.last = ConvNormAct(wide, (1, 1), norm=self.norm, activation=self.activation, dtype=self.dtype)
        self.drop = Dropout(self.dropout)
        self.head = nn.Dense(self.num_classes)

    def __call__(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, num_classes); for `output_stride` see `features`."""
        x = self.last(self.features(x, train=train, output_stride=output_stride)[-1], train=train)
        return self.head(self.drop(global_average(x), train=train))

    @nn.compact
    def features(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> tuple[jax.Array, ...]:
        """Map images (batch, height, width, channels) to the outputs of the second, third, fifth and last stage, shallow to deep.

        Args:
            x: The images.
            train: Whether normalisation uses the statistics of the batch.
            output_stride: 8, 16 or 32 (or None); the maps have strides 4, 8, 16 and 32, but at most this. With the same parameters, those
                at 32 are a subsampling of those at 8 and 16; see `dilax.models.MobileNetV3.features`.

        Raises:
            UserError: if x is not a batch of images, or a field or the output stride is not supported.
        """
        self._check(x)
        plan = stages(STRIDES, 2, output_stride_or(32, output_stride, "EfficientNet"))
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        x = ConvNormAct(scaled(self.stem_features, self.width_multiplier), (3, 3), 2, "TORCH", name="stem", **shared)(x, train=train)
        maps, grid = [], itertools.cycle(self.multi_grid)
        for number, (channels, blocks, stage) in enumerate(zip(self.stage_features, self.blocks, plan), start=1):
            features, expansion = scaled(channels, self.width_multiplier), 1 if number == 1 else self.expansion
            for index in range(math.ceil(blocks * self.depth_multiplier)):
                stride, (dilation, _) = block_geometry(stage, index)
                block = InvertedResidual(
                    features,
                    expansion * x.shape[-1],
                    expand=expansion != 1,
                    kernel_size=KERNEL_SIZES[number - 1],
                    stride=stride,
                    dilation=dilation * (next(grid) if number > LAST[-2] else 1),
                    residual=(index > 0 or STRIDES[number - 1] == 1) and x.shape[-1] == features,
                    excite=functools.partial(
                        SqueezeExcite, hidden=max(1, x.shape[-1] // 4), activation=self.activation, stride=stage.dilation
                    ),
                    name=f"stage{number}_block{index}",
                    **shared,
                )
                x = block(x, train=train)
            if number in LAST:
                maps.append(x)
        return tuple(maps)

    def _check(self, x: jax.Array) -> None:
        check_image("EfficientNet", x)
        check_lengths("EfficientNet", 7, stage_features=self.stage_features, blocks=self.blocks)
        check_multi_grid("EfficientNet", self.multi_grid)
        for field in ("width_multiplier", "depth_multiplier"):
            if not getattr(self, field) > 0:
                raise UserError(f"EfficientNet: {field}={getattr(self, field)} must be positive; use 1.1, for instance.")
