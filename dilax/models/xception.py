"""The modified aligned Xception of DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611, figure 4), at any output stride."""

from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, NORMS, ConvNormAct, activation
from dilax.errors import UserError
from dilax.models.backbone import check_image, check_multi_grid, classify, output_stride_or, stages

STRIDES = (2, 2, 2, 1, 2, 1)  # entry 1 to 3, middle, exit 1 and 2


class XceptionBlock(nn.Module):
    """Three separable 3x3 convolutions, the last with the stride; their depthwise and pointwise convolutions are each normalised.

    Attributes:
        features: Output channels of each separable convolution.
        stride: Stride of the third convolution and of the shortcut.
        dilation: Dilation of each convolution.
        shortcut: "project" for a 1x1 convolution, "identity", or "none". With the first two, an activation precedes each separable
            convolution; with "none", it follows each depthwise and pointwise convolution.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation.
    """

    features: tuple[int, ...]
    stride: int = 1
    dilation: tuple[int, ...] = (1, 1, 1)
    shortcut: str = "identity"
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, height, width, c_in) to (batch, height_out, width_out, features[-1])."""
        act = activation(self.activation)
        shared: dict[str, Any] = dict(padding="TORCH", norm=self.norm, dtype=self.dtype)
        after: dict[str, Any] = dict(activation=self.activation if self.shortcut == "none" else "none", **shared)
        y = x
        for i, (features, dilation) in enumerate(zip(self.features, self.dilation), start=1):
            y, stride = y if self.shortcut == "none" else act(y), self.stride if i == 3 else 1
            y = ConvNormAct(y.shape[-1], (3, 3), stride, dilation=dilation, groups=y.shape[-1], name=f"depthwise{i}", **after)(
                y, train=train
            )
            y = ConvNormAct(features, (1, 1), name=f"pointwise{i}", **after)(y, train=train)
        if self.shortcut == "none":
            return y
        if self.shortcut == "project":
            x = ConvNormAct(self.features[-1], (1, 1), self.stride, activation="none", name="shortcut", **shared)(x, train=train)
        return x + y


@checked(middle_blocks=0, norm=NORMS, activation=ACTIVATIONS)
class Xception(nn.Module):
    """Separable residual network: two convolutions, three entry blocks, a number of middle blocks, two exit blocks.

    The default of 8 middle blocks is Xception-41; `middle_blocks=16` is the Xception-65 of the paper. Parameters are named `stem1`,
    `stem2`, `entry1/depthwise1`, `entry1/pointwise1`, `entry1/shortcut`, ... `middle1` ..., `exit1`, `exit2` and `head`. Each of them
    except the head is a `dilax.blocks.ConvNormAct`.

    Attributes:
        num_classes: Number of outputs.
        stem_features: Channels of the first two convolutions.
        entry_features: Channels of each entry block; the middle blocks have those of the last one.
        middle_blocks: Number of middle blocks.
        exit_features: Channels of the three separable convolutions in each of the two exit blocks.
        multi_grid: Factors of the dilations of the last three separable convolutions, repeated cyclically.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 1000
    stem_features: tuple[int, int] = (32, 64)
    entry_features: tuple[int, int, int] = (128, 256, 728)
    middle_blocks: int = 8
    exit_features: tuple[int, ...] = (728, 1024, 1024, 1536, 1536, 2048)
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
        """Map images (batch, height, width, channels) to the outputs of entry 1, entry 2, the last middle and exit 2, shallow to deep.

        Only the last map has passed an activation; the others are the residual sums between the blocks.

        Args:
            x: The images.
            train: Whether normalisation uses the statistics of the batch.
            output_stride: 8, 16 or 32 (or None); the maps have strides 4, 8, 16 and 32, but at most this, as in `dilax.models.ResNet`.

        Raises:
            UserError: if x is not a batch of images, or a field or the output stride is not supported.
        """
        self._check(x)
        plan = stages(STRIDES, 2, output_stride_or(32, output_stride, "Xception"))
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        for i, (features, stride) in enumerate(zip(self.stem_features, (2, 1)), start=1):
            x = ConvNormAct(features, (3, 3), stride, "TORCH", name=f"stem{i}", **shared)(x, train=train)
        entry = []
        for i, (features, stage) in enumerate(zip(self.entry_features, plan), start=1):
            # The stride is in the last convolution of a block, so the whole block has the dilation of the stage before.
            x = XceptionBlock((features,) * 3, stage.stride, (stage.before,) * 3, "project", name=f"entry{i}", **shared)(x, train=train)
            entry.append(x)
        for i in range(1, self.middle_blocks + 1):
            x = XceptionBlock((self.entry_features[-1],) * 3, 1, (plan[3].before,) * 3, name=f"middle{i}", **shared)(x, train=train)
        first, last = plan[4:]
        y = XceptionBlock(self.exit_features[:3], first.stride, (first.before,) * 3, "project", name="exit1", **shared)(x, train=train)
        grid = tuple(last.before * self.multi_grid[i % len(self.multi_grid)] for i in range(3))
        y = XceptionBlock(self.exit_features[3:], 1, grid, "none", name="exit2", **shared)(y, train=train)
        return entry[0], entry[1], x, y

    def _check(self, x: jax.Array) -> None:
        check_image("Xception", x)
        check_multi_grid("Xception", self.multi_grid)
        for field, count in (("stem_features", 2), ("entry_features", 3), ("exit_features", 6)):
            if len(getattr(self, field)) != count:
                raise UserError(f"Xception: {field}={getattr(self, field)} must have {count} entries.")
