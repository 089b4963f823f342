"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244) with the padding of torchvision, at any output stride with the same parameters."""

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import NORMS, ConvNormAct, Dropout, SqueezeExcite
from dilax.errors import UserError
from dilax.models.backbone import block_geometry, check_image, check_multi_grid, global_average, output_stride_or, stages
from dilax.models.mobilenet import InvertedResidual, rounded
from dilax.state_dicts import Rules, conv_norm

EPSILON = 1e-3  # of all normalisations
# For torchvision's state dicts.
RULES: Rules = (
    *conv_norm(r"features\.0\.0", r"features\.0\.1", "stem"),
    *conv_norm(r"features\.1\.block\.0\.0", r"features\.1\.block\.0\.1", "block1/depthwise"),
    *conv_norm(r"features\.1\.block\.1\.0", r"features\.1\.block\.1\.1", "block1/project"),
    *conv_norm(r"features\.(\d+)\.block\.0\.0", r"features\.(\d+)\.block\.0\.1", r"block\1/expand"),
    *conv_norm(r"features\.(\d+)\.block\.1\.0", r"features\.(\d+)\.block\.1\.1", r"block\1/depthwise"),
    (r"features\.(\d+)\.block\.[12]\.fc1", r"block\1/excite/Dense_0"),
    (r"features\.(\d+)\.block\.[12]\.fc2", r"block\1/excite/Dense_1"),
    *conv_norm(r"features\.(\d+)\.block\.[23]\.0", r"features\.(\d+)\.block\.[23]\.1", r"block\1/project"),
    *conv_norm(r"features\.\d+\.0", r"features\.\d+\.1", "last"),
    (r"classifier\.0", "hidden"),
    (r"classifier\.3", "head"),
)


@checked(norm=NORMS)
class MobileNetV3(nn.Module):
    """Inverted residual blocks, some with squeeze-and-excitation; the defaults are MobileNetV3-Large.

    Parameters are named `stem`, `block1/depthwise`, `block1/project`, `block2/expand` ... `block15/project`, `block4/excite`, ..., `last`,
    `hidden` and `head`; `RULES` maps torchvision's names to them. The first six blocks have ReLU, all other layers the hard SiLU. The
    normalisations add 0.001 to the variance, as those of torchvision do.

    Attributes:
        num_classes: Number of outputs.
        kernel_sizes: Taps of the depthwise convolution of each block, along each axis.
        inner_features: Channels of the depthwise convolution of each block.
        block_features: Output channels of each block.
        strides: Stride of each block at the natural output stride; four are 2.
        squeeze_excite_blocks: Numbers of the blocks with a `dilax.blocks.SqueezeExcite`, counted from 1.
        relu_blocks: Number of blocks, from the first one on, that have ReLU.
        stem_features: Channels of the first convolution.
        last_features: Channels of the 1x1 convolution after the blocks, which `features` does not include.
        head_features: Units of the dense layer before the head.
        dropout: Dropout rate before the head.
        multi_grid: Factors of the dilations of the blocks at stride 32, repeated cyclically.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 1000
    kernel_sizes: tuple[int, ...] = (3, 3, 3, 5, 5, 5, 3, 3, 3, 3, 3, 3, 5, 5, 5)
    inner_features: tuple[int, ...] = (16, 64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960)
    block_features: tuple[int, ...] = (16, 24, 24, 40, 40, 40, 80, 80, 80, 80, 112, 112, 160, 160, 160)
    strides: tuple[int, ...] = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1)
    squeeze_excite_blocks: tuple[int, ...] = (4, 5, 6, 11, 12, 13, 14, 15)
    relu_blocks: int = 6
    stem_features: int = 16
    last_features: int = 960
    head_features: int = 1280
    dropout: float = 0.2
    multi_grid: tuple[int, ...] = (1,)
    norm: str = "batch"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Create the layers after the features."""
        self.last = ConvNormAct(self.last_features, (1, 1), norm=self.norm, activation="hard_silu", dtype=self.dtype, epsilon=EPSILON)
        self.dense = nn.Dense(self.head_features, name="hidden")
        self.drop = Dropout(self.dropout)
        self.head = nn.Dense(self.num_classes)

    def __call__(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, num_classes); for `output_stride` see `features`."""
        x = self.last(self.features(x, train=train, output_stride=output_stride)[-1], train=train)
        return self.head(self.drop(nn.hard_silu(self.dense(global_average(x))), train=train))

    @nn.compact
    def features(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> tuple[jax.Array, ...]:
        """Map images (batch, height, width, channels) to the outputs of the last blocks at strides 4, 8, 16 and 32, shallow to deep.

        Args:
            x: The images.
            train: Whether normalisation uses the statistics of the batch.
            output_stride: 8, 16 or 32 (or None); the maps have strides 4, 8, 16 and 32, but at most this. With the same parameters, those
                at 32 are a subsampling of those at 8 and 16, as in `dilax.models.ResNet`. For this, squeeze-and-excitation averages over
                those samples that the map at 32 has, whereas torchvision and timm average over all samples of the finer map.

        Raises:
            UserError: if x is not a batch of images, or a field or the output stride is not supported.
        """
        self._check(x)
        plan = stages(self.strides, 2, output_stride_or(32, output_stride, "MobileNetV3"))
        shared: dict[str, Any] = dict(norm=self.norm, epsilon=EPSILON, dtype=self.dtype)
        x = ConvNormAct(self.stem_features, (3, 3), 2, "TORCH", activation="hard_silu", name="stem", **shared)(x, train=train)
        maps, grid = [], itertools.cycle(self.multi_grid)
        halvings = [index for index, stride in enumerate(self.strides) if stride == 2]
        for index, stage in enumerate(plan):
            if index in halvings[1:]:
                maps.append(x)
            features, inner = self.block_features[index], self.inner_features[index]
            stride, (dilation, _) = block_geometry(stage, 0)
            excite = functools.partial(SqueezeExcite, hidden=rounded(inner // 4), gate="hard_sigmoid", stride=stage.dilation)
            block = InvertedResidual(
                features,
                inner,
                expand=inner != x.shape[-1],
                kernel_size=self.kernel_sizes[index],
                stride=stride,
                dilation=dilation * (next(grid) if index >= halvings[-1] else 1),
                residual=self.strides[index] == 1 and x.shape[-1] == features,
                excite=excite if index + 1 in self.squeeze_excite_blocks else None,
                activation="relu" if index < self.relu_blocks else "hard_silu",
                name=f"block{index + 1}",
                **shared,
            )
            x = block(x, train=train)
        return (*maps, x)

    def _check(self, x: jax.Array) -> None:
        check_image("MobileNetV3", x)
        check_multi_grid("MobileNetV3", self.multi_grid)
        fields = {name: getattr(self, name) for name in ("kernel_sizes", "inner_features", "block_features", "strides")}
        if len({len(entries) for entries in fields.values()}) > 1:
            given = ", ".join(f"{name} has {len(entries)}" for name, entries in fields.items())
            raise UserError(f"MobileNetV3: {given} entries; give one entry for each block.")
        if sorted(self.strides) != [1] * (len(self.strides) - 4) + [2] * 4:
            raise UserError(f"MobileNetV3: strides={self.strides} must be 2 in four blocks, and 1 in all others.")
