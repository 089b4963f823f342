"""ResNet (He et al. 2016, arXiv:1512.03385) with the padding of torchvision, at any output stride with the same parameters.

With `squeeze_excite` it is the SE-ResNet of Hu et al. 2018 (arXiv:1709.01507).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, NORMS, BasicBlock, Bottleneck, ConvNormAct, SqueezeExcite
from dilax.models.backbone import block_geometry, check_image, check_lengths, check_multi_grid, classify, output_stride_or, stages
from dilax.pooling import max_pool
from dilax.state_dicts import Rules, conv_norm

SQUEEZE_RATIO = 16  # Hu et al. 2018, section 4
# For the state dicts of torchvision and timm.
RULES: Rules = (
    *conv_norm("conv1", "bn1", "stem"),
    *conv_norm(r"layer(\d)\.(\d+)\.conv(\d)", r"layer(\d)\.(\d+)\.bn(\d)", r"layer\1_block\2/conv\3"),
    *conv_norm(r"layer(\d)\.(\d+)\.downsample\.0", r"layer(\d)\.(\d+)\.downsample\.1", r"layer\1_block\2/shortcut"),
    (r"layer(\d)\.(\d+)\.se\.fc1", r"layer\1_block\2/excite/Dense_0"),
    (r"layer(\d)\.(\d+)\.se\.fc2", r"layer\1_block\2/excite/Dense_1"),
    ("fc", "head"),
)


@checked(blocks=0, norm=NORMS, activation=ACTIVATIONS)
class ResNet(nn.Module):
    """Residual network; the defaults are ResNet-50, with the stride of a bottleneck in its 3x3 convolution.

    Parameters are named `stem`, `layer1_block0/conv1` ... `layer4_block2/conv3`, `layer1_block0/shortcut` and `head`; `RULES` maps
    torchvision's names to them. Each of them except the head is a `dilax.blocks.ConvNormAct`, with `DilatedConv_0/kernel` and
    `Norm_0/BatchNorm_0`.

    Attributes:
        num_classes: Number of outputs.
        blocks: Blocks of each of the four stages.
        stage_features: Channels of each stage; the stem has those of the first stage.
        bottleneck: Whether blocks are `dilax.blocks.Bottleneck`, whose outputs have 4 times the channels, rather than `BasicBlock`.
        multi_grid: Factors of the dilations of the last stage's blocks, repeated cyclically (Chen et al. 2017, arXiv:1706.05587, section
            3.2).
        squeeze_excite: Whether the residual branch of each block ends in a `dilax.blocks.SqueezeExcite` with one hidden unit per 16
            channels, named `excite`.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stage_features: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = True
    multi_grid: tuple[int, ...] = (1,)
    squeeze_excite: bool = False
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
        """Map images (batch, height, width, channels) to the outputs of the four stages, shallow to deep.

        Args:
            x: The images.
            train: Whether normalisation uses the statistics of the batch.
            output_stride: Input size divided by the size of the last map: 8, 16 or 32 (or None). The maps have strides 4, 8, 16 and 32, but
                at most this. With the same parameters, the maps at 32 are a subsampling of those at 8 and 16 (except with norm="group",
                which computes statistics over space, or norm="batch" in training). For this, squeeze-and-excitation averages over those
                samples that the map at 32 has, whereas timm averages over all samples of the finer map.

        Raises:
            UserError: if x is not a batch of images, or a field or the output stride is not supported.
        """
        check_image("ResNet", x)
        check_lengths("ResNet", 4, stage_features=self.stage_features, blocks=self.blocks)
        check_multi_grid("ResNet", self.multi_grid)
        plan = stages((1, 2, 2, 2), 4, output_stride_or(32, output_stride, "ResNet"))
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        x = ConvNormAct(self.stage_features[0], (7, 7), 2, padding="TORCH", name="stem", **shared)(x, train=train)
        x = max_pool(x, 3, stride=2, padding=1)
        block = Bottleneck if self.bottleneck else BasicBlock
        maps = []
        for layer, (features, blocks, stage) in enumerate(zip(self.stage_features, self.blocks, plan), start=1):
            for index in range(blocks):
                stride, dilation = block_geometry(stage, index, grid=self.multi_grid if layer == 4 else (1,))
                project = index == 0 and (layer > 1 or self.bottleneck)
                excite = functools.partial(SqueezeExcite, SQUEEZE_RATIO, stride=stage.dilation) if self.squeeze_excite else None
                name = f"layer{layer}_block{index}"
                x = block(features, stride, dilation, project, excite=excite, name=name, **shared)(x, train=train)
            maps.append(x)
        return tuple(maps)
