"""Dilated residual networks (Yu, Koltun & Funkhouser 2017, arXiv:1705.09914): ImageNet classifiers whose maps stay at stride 8."""

from typing import Any

import flax.linen as nn
import jax

from dilax.blocks import BasicBlock, Bottleneck, ConvNormAct
from dilax.errors import UserError, did_you_mean
from dilax.models.backbone import check_image, check_lengths, check_multi_grid, classify, output_stride_or
from dilax.state_dicts import IGNORED, Rules, beneath, conv_norm

ARCHITECTURES = ("C", "D")
STRIDES = (1, 2, 2, 2, 1, 1, 1, 1)
DILATIONS = (1, 1, 1, 1, 2, 4, 2, 1)  # at stride 8
PLAIN = (1, 2, 7, 8)  # levels of D without residual blocks


def _levels(names: tuple[str, ...]) -> Rules:
    """Rules of the eight levels, where the authors' state dict calls them so."""
    rules: Rules = ()
    for level, name in enumerate(names, start=1):
        block, path = rf"{name}\.(\d+)", rf"layer{level}_block\1"
        rules += conv_norm(rf"{block}\.conv(\d)", rf"{block}\.bn(\d)", rf"{path}/conv\2")
        rules += conv_norm(rf"{block}\.downsample\.0", rf"{block}\.downsample\.1", f"{path}/shortcut")
        if level in PLAIN:
            rules += conv_norm(rf"{name}\.0", rf"{name}\.1", f"layer{level}_conv0")
    return rules


_LAYERS = tuple(f"layer{level}" for level in range(1, 9))
# Of the authors' state dicts: of the classifiers, C and D, and of the segmenters on them, whose backbone is a list of modules.
RULES: Rules = (*conv_norm("conv1", "bn1", "stem"), *conv_norm(r"layer0\.0", r"layer0\.1", "stem"), *_levels(_LAYERS), ("fc", "head"))
_UPON: Rules = (("seg", "logits"), ("up", IGNORED))  # a fixed bilinear enlargement
C_SEGMENTER_RULES: Rules = (
    *beneath("base", "backbone", (*conv_norm("0", "1", "stem"), *_levels(tuple(str(level + 2) for level in range(1, 9))))),
    *_UPON,
)
D_SEGMENTER_RULES: Rules = (
    *beneath("base", "backbone", (*conv_norm(r"0\.0", r"0\.1", "stem"), *_levels(tuple(str(level) for level in range(1, 9))))),
    *_UPON,
)


class DRN(nn.Module):
    """Eight levels: 1 to 4 shrink the map to stride 8, 5 and 6 have dilations 2 and 4, and 7 and 8, with 2 and 1, smooth out the gridding.

    Levels 3 to 6 are residual. In DRN-C levels 1 and 2 are, too, and 7 and 8 are `BasicBlock`s without the short cut; in DRN-D these four
    are plain convolutions. The defaults are DRN-D-22.

    Parameters are named `stem`, `layer3_block0/conv1`, `layer3_block0/shortcut`, `layer7_conv0` (a plain convolution of D) and `head`;
    `RULES` says what the authors call them. Each but the head is a `dilax.blocks.ConvNormAct`.

    Attributes:
        num_classes: Outputs.
        architecture: "C" or "D".
        blocks: Blocks, or plain convolutions, of each of the eight levels.
        stage_features: Channels of each level; those of the stem are the first level's.
        bottleneck: Whether the blocks of levels 3 to 6 are `dilax.blocks.Bottleneck`, whose outputs have 4 times the channels.
        multi_grid: Factors of the dilations of level 6's blocks, the last residual ones, in turn.
        norm: As `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Of the computation; parameters and logits stay float32.
    """

    num_classes: int = 1000
    architecture: str = "D"
    blocks: tuple[int, ...] = (1, 1, 2, 2, 2, 2, 1, 1)
    stage_features: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 512, 512)
    bottleneck: bool = False
    multi_grid: tuple[int, ...] = (1,)
    norm: str = "batch"
    activation: str = "relu"
    dtype: Any = None

    def setup(self) -> None:
        """Make the head, which `features` does without."""
        self.head = nn.Dense(self.num_classes)

    def __call__(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, num_classes); `output_stride` as `features`."""
        return classify(self.head, self.features(x, train=train, output_stride=output_stride)[-1])

    @nn.compact
    def features(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> tuple[jax.Array, ...]:
        """Map images (batch, height, width, channels) to the outputs of levels 3 to 8, shallow to deep.

        Args:
            x: The images.
            train: Whether normalisation uses the statistics of the batch.
            output_stride: Input size over size of the last map. At 8 (also None), the network of the paper, the maps have strides 4, 8, 8,
                8, 8 and 8. At 16 the map is sub-sampled before level 5, at 32 once more before level 6, and the dilations are divided by
                as much: strides 4, 8, 16, 16, 16, 16 and 4, 8, 16, 32, 32, 32. Since levels 5 and 6 are dilated from their first
                convolution on, their maps are those at stride 8, sub-sampled, with the same parameters; at 16 so is that of level 7. Level
                8, and 7 at 32, see neighbours that the coarser map does not hold: there they are dense convolutions of that map instead.

        Raises:
            UserError: if x is no batch of images, or a field or the output stride is not supported.
        """
        self._check(x)
        reached, target = 1, output_stride_or(8, output_stride, "DRN")
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        x = ConvNormAct(self.stage_features[0], (7, 7), padding="TORCH", name="stem", **shared)(x, train=train)
        maps = []
        for level, (stride, dilation) in enumerate(zip(STRIDES, DILATIONS), start=1):
            reached *= stride
            if level in (5, 6) and reached < target:
                x = x[:, ::2, ::2]
                reached *= 2
            # From level 5 on, a dilation of the paper is counted in samples at stride 8.
            dilation = max(1, dilation * 8 // max(8, reached))
            for index in range(self.blocks[level - 1]):
                x = self._block(level, index, x.shape[-1], stride, dilation, shared)(x, train=train)
            maps.append(x)
        return tuple(maps[2:])

    def _block(self, level: int, index: int, channels: int, stride: int, dilation: int, shared: dict[str, Any]) -> nn.Module:
        """Block or plain convolution `index` of a level, for an input of so many channels."""
        width, stride = self.stage_features[level - 1], stride if index == 0 else 1
        if self.architecture == "D" and level in PLAIN:
            return ConvNormAct(width, (3, 3), stride, "TORCH", dilation, name=f"layer{level}_conv{index}", **shared)
        factor = self.multi_grid[index % len(self.multi_grid)] if level == 6 else 1
        dilations, name = (dilation * factor, dilation * factor), f"layer{level}_block{index}"
        if self.bottleneck and level not in PLAIN:
            return Bottleneck(width, stride, dilations, stride > 1 or channels != 4 * width, name=name, **shared)
        return BasicBlock(width, stride, dilations, stride > 1 or channels != width, residual=level < 7, name=name, **shared)

    def _check(self, x: jax.Array) -> None:
        check_image("DRN", x)
        check_lengths("DRN", 8, stage_features=self.stage_features, blocks=self.blocks)
        check_multi_grid("DRN", self.multi_grid)
        if self.architecture not in ARCHITECTURES:
            hint = did_you_mean(str(self.architecture).upper(), ARCHITECTURES)
            raise UserError(f"DRN: architecture={self.architecture!r} is unknown; use one of {ARCHITECTURES}.{hint}")
