"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) with the padding of torchvision, at any output stride with the same parameters."""

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, BATCH_EPSILON, NORMS, ConvNormAct, Dropout
from dilax.errors import UserError
from dilax.models.backbone import block_geometry, check_image, check_lengths, check_multi_grid, global_average, output_stride_or, stages

STRIDES = (1, 2, 2, 2, 1, 2, 1)
LAST = (2, 3, 5, 7)  # the last groups at strides 4, 8, 16 and 32


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a depthwise convolution, and a 1x1 convolution without activation.

    Attributes:
        features: Output channels.
        inner: Channels of the depthwise convolution.
        expand: Whether there is the first convolution; otherwise the input has the inner channels.
        kernel_size: Taps of the depthwise convolution along each axis.
        stride: Stride of the depthwise convolution.
        dilation: Dilation of the depthwise convolution.
        residual: Whether to add the input. This is explicit rather than inferred from the shapes, so that the network stays the same where
            a stride is replaced by a dilation.
        excite: Makes the `dilax.blocks.SqueezeExcite` after the depthwise convolution; None for none.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        epsilon: See `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation.
    """

    features: int
    inner: int
    expand: bool = True
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    residual: bool = False
    excite: Callable[..., Any] | None = None
    norm: str = "batch"
    epsilon: float = BATCH_EPSILON
    activation: str = "relu6"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, height, width, c_in) to (batch, height_out, width_out, features)."""
        shared: dict[str, Any] = dict(padding="TORCH", norm=self.norm, epsilon=self.epsilon, dtype=self.dtype)
        act: dict[str, Any] = dict(activation=self.activation, **shared)
        depthwise: dict[str, Any] = dict(stride=self.stride, dilation=self.dilation, groups=self.inner, **act)
        y = ConvNormAct(self.inner, (1, 1), name="expand", **act)(x, train=train) if self.expand else x
        y = ConvNormAct(self.inner, (self.kernel_size,) * 2, name="depthwise", **depthwise)(y, train=train)
        if self.excite is not None:
            y = self.excite(dtype=self.dtype, name="excite")(y)
        y = ConvNormAct(self.features, (1, 1), activation="none", name="project", **shared)(y, train=train)
        return x + y if self.residual else y


@checked(blocks=0, norm=NORMS, activation=ACTIVATIONS)
class MobileNetV2(nn.Module):
    """Inverted residual blocks with linear bottlenecks, in seven groups.

    Parameters are named `stem`, `block1/depthwise`, `block1/project`, `block2/expand` ... `block17/project`, `last` and `head`; in
    torchvision they are `features.0`, `features.1.conv` ... `features.17.conv`, `features.18` and `classifier.1`. Each of them except the
    head is a `dilax.blocks.ConvNormAct`.

    Attributes:
        num_classes: Number of outputs.
        blocks: Blocks of each group.
        stage_features: Output channels of each group.
        stem_features: Channels of the first convolution.
        last_features: Channels of the 1x1 convolution before the head, which `features` does not include.
        expansion: Expansion of the blocks in all groups except the first, where it is 1.
        width_multiplier: Factor of all channels, which are rounded to multiples of 8; it applies to `last_features` only if above 1.
        dropout: Dropout rate before the head.
        multi_grid: Factors of the dilations of the blocks at stride 32, in the last two groups, repeated cyclically.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    stage_features: tuple[int, ...] = (16, 24, 32, 64, 96, 160, 320)
    stem_features: int = 32
    last_features: int = 1280
    expansion: int = 6
    width_multiplier: float = 1.0
    dropout: float = 0.2
    multi_grid: tuple[int, ...] = (1,)
    norm: str = "batch"
    activation: str = "relu6"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Create the layers after the features."""
        wide = scaled(self.last_features, max(1.0, self.width_multiplier))
        self.last = ConvNormAct(wide, (1, 1), norm=self.norm, activation=self.activation, dtype=self.dtype)
        self.drop = Dropout(self.dropout)
        self.head = nn.Dense(self.num_classes)

    def __call__(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> jax.Array:
        """Map images (batch, height, width, channels) to logits (batch, num_classes); for `output_stride` see `features`."""
        x = self.last(self.features(x, train=train, output_stride=output_stride)[-1], train=train)
        return self.head(self.drop(global_average(x), train=train))

    @nn.compact
    def features(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> tuple[jax.Array, ...]:
        """Map images (batch, height, width, channels) to the outputs of the second, third, fifth and last group, shallow to deep.

        Args:
            x: The images.
            train: Whether normalisation uses the statistics of the batch.
            output_stride: 8, 16 or 32 (or None); the maps have strides 4, 8, 16 and 32, but at most this, as in `dilax.models.ResNet`.

        Raises:
            UserError: if x is not a batch of images, or a field or the output stride is not supported.
        """
        self._check(x)
        plan = stages(STRIDES, 2, output_stride_or(32, output_stride, "MobileNetV2"))
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        x = ConvNormAct(scaled(self.stem_features, self.width_multiplier), (3, 3), 2, "TORCH", name="stem", **shared)(x, train=train)
        maps, number, grid = [], 0, itertools.cycle(self.multi_grid)
        for group, (channels, blocks, stage) in enumerate(zip(self.stage_features, self.blocks, plan), start=1):
            features, expansion = scaled(channels, self.width_multiplier), 1 if group == 1 else self.expansion
            for index in range(blocks):
                number += 1
                stride, (dilation, _) = block_geometry(stage, index)
                if group > LAST[-2]:
                    dilation *= next(grid)
                residual = (index > 0 or STRIDES[group - 1] == 1) and x.shape[-1] == features
                block = InvertedResidual(
                    features,
                    expansion * x.shape[-1],
                    expansion != 1,
                    stride=stride,
                    dilation=dilation,
                    residual=residual,
                    name=f"block{number}",
                    **shared,
                )
                x = block(x, train=train)
            if group in LAST:
                maps.append(x)
        return tuple(maps)

    def _check(self, x: jax.Array) -> None:
        check_image("MobileNetV2", x)
        check_lengths("MobileNetV2", 7, stage_features=self.stage_features, blocks=self.blocks)
        check_multi_grid("MobileNetV2", self.multi_grid)
        if not self.width_multiplier > 0:
            raise UserError(f"MobileNetV2: width_multiplier={self.width_multiplier} must be positive; use 0.5, for instance.")


def scaled(channels: int, factor: float) -> int:
    """Scale channels to multiples of 8, see `rounded`; a factor of 1 leaves them unchanged."""
    return channels if factor == 1 else rounded(channels * factor)


def rounded(channels: float) -> int:
    """Return the nearest multiple of 8, of at least 8, that is at most 10 % too small."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
