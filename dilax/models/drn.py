"""Dilated residual networks (Yu, Koltun & Funkhouser 2017, arXiv:1705.09914): ImageNet classifiers that keep maps at output stride 8."""

from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, NORMS, BasicBlock, Bottleneck, ConvNormAct
from dilax.models.backbone import check_image, check_lengths, check_multi_grid, classify, output_stride_or
from dilax.state_dicts import IGNORED, Rules, beneath, conv_norm

ARCHITECTURES = ("C", "D")
STRIDES = (1, 2, 2, 2, 1, 1, 1, 1)
DILATIONS = (1, 1, 1, 1, 2, 4, 2, 1)  # at stride 8
PLAIN = (1, 2, 7, 8)  # levels of D without residual blocks


def _levels(names: tuple[str, ...]) -> Rules:
    """Return the rules of the eight levels, given their names in the authors' state dict."""
    rules: Rules = ()
    for level, name in enumerate(names, start=1):
        block, path = rf"{name}\.(\d+)", rf"layer{level}_block\1"
        rules += conv_norm(rf"{block}\.conv(\d)", rf"{block}\.bn(\d)", rf"{path}/conv\2")
        rules += conv_norm(rf"{block}\.downsample\.0", rf"{block}\.downsample\.1", f"{path}/shortcut")
        if level in PLAIN:
            rules += conv_norm(rf"{name}\.0", rf"{name}\.1", f"layer{level}_conv0")
    return rules


_LAYERS = tuple(f"layer{level}" for level in range(1, 9))
# For the authors' state dicts of the classifiers, C and D, and of the segmenters on them, whose backbone is a list of modules.
RULES: Rules = (*conv_norm("conv1", "bn1", "stem"), *conv_norm(r"layer0\.0", r"layer0\.1", "stem"), *_levels(_LAYERS), ("fc", "head"))
_SEGMENTER_HEAD: Rules = (("seg", "logits"), ("up", IGNORED))  # "up" is a fixed bilinear upsampling
C_SEGMENTER_RULES: Rules = (
    *beneath("base", "backbone", (*conv_norm("0", "1", "stem"), *_levels(tuple(str(level + 2) for level in range(1, 9))))),
    *_SEGMENTER_HEAD,
)
D_SEGMENTER_RULES: Rules = (
    *beneath("base", "backbone", (*conv_norm(r"0\.0", r"0\.1", "stem"), *_levels(tuple(str(level) for level in range(1, 9))))),
    *_SEGMENTER_HEAD,
)


@checked(blocks=0, architecture=ARCHITECTURES, norm=NORMS, activation=ACTIVATIONS)
class DRN(nn.Module):
    """Eight levels: 1 to 4 reduce the map to stride 8, 5 and 6 have dilations 2 and 4, and 7 and 8, with dilations 2 and 1, degrid it.

    Levels 3 to 6 consist of residual blocks. In DRN-C, so do levels 1 and 2, and levels 7 and 8 are `BasicBlock`s without the shortcut; in
    DRN-D these four levels are plain convolutions. The defaults are DRN-D-22.

    Parameters are named `stem`, `layer3_block0/conv1`, `layer3_block0/shortcut`, `layer7_conv0` (a plain convolution of D) and `head`;
    `RULES` maps the authors' names to them. Each of them except the head is a `dilax.blocks.ConvNormAct`.

    Attributes:
        num_classes: Number of outputs.
        architecture: "C" or "D".
        blocks: Blocks, or plain convolutions, of each of the eight levels.
        stage_features: Channels of each level; the stem has those of the first level.
        bottleneck: Whether the blocks of levels 3 to 6 are `dilax.blocks.Bottleneck`, whose outputs have 4 times the channels.
        multi_grid: Factors of the dilations of the blocks of level 6, the last residual level, repeated cyclically.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 1000
    architecture: str = "D"
    blocks: tuple[int, ...] = (1, 1, 2, 2, 2, 2, 1, 1)
    stage_features: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 512, 512)
    bottleneck: bool = False
    multi_grid: tuple[int, ...] = (1,)
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Create the head, which `features` does not use."""
        self.head = nn.Dense(self.num_classes)

    def __call__(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, num_classes); for `output_stride` see `features`."""
        return classify(self.head, self.features(x, train=train, output_stride=output_stride)[-1])

    @nn.compact
    def features(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> tuple[jax.Array, ...]:
        """Map images (batch, height, width, channels) to the outputs of levels 3 to 8, shallow to deep.

        Args:
            x: The images.
            train: Whether normalisation uses the statistics of the batch.
            output_stride: Input size divided by the size of the last map. At 8 (or None), the network of the paper, the maps have strides
                4, 8, 8, 8, 8 and 8. At 16 the map is subsampled before level 5, and at 32 also before level 6, and the dilations are
                divided accordingly: the strides are 4, 8, 16, 16, 16, 16 and 4, 8, 16, 32, 32, 32. Since levels 5 and 6 are dilated from
                their first convolution on, their maps are a subsampling of those at stride 8, with the same parameters; so is the map of
                level 7 at 16. Level 8, and level 7 at 32, would read samples that the coarser map does not have; there they are dense
                convolutions of the coarser map instead.

        Raises:
            UserError: if x is not a batch of images, or a field or the output stride is not supported.
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
            # From level 5 on, the paper's dilations are in samples at stride 8.
            dilation = max(1, dilation * 8 // max(8, reached))
            for index in range(self.blocks[level - 1]):
                x = self._block(level, index, x.shape[-1], stride, dilation, shared)(x, train=train)
            maps.append(x)
        return tuple(maps[2:])

    def _block(self, level: int, index: int, channels: int, stride: int, dilation: int, shared: dict[str, Any]) -> nn.Module:
        """Create block or plain convolution `index` of a level for an input with `channels` channels."""
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
