"""DenseNet (Huang et al. 2017, arXiv:1608.06993) with the padding of torchvision, at any output stride with the same parameters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, NORMS, ConvNormAct, Norm, activation
from dilax.errors import UserError
from dilax.geometry import is_integer
from dilax.models.backbone import Stage, check_image, check_multi_grid, classify, output_stride_or, stages
from dilax.modules import DilatedConv
from dilax.pooling import avg_pool, max_pool
from dilax.state_dicts import Rules, conv_norm

SMALLEST = 29  # pixels along each axis, of which the last stage has one
_LAYER = r"features\.denseblock(\d)\.denselayer(\d+)"
# For torchvision's state dicts; the published files have the older names such as "norm.1".
RULES: Rules = (
    *conv_norm(r"features\.conv0", r"features\.norm0", "stem"),
    (rf"{_LAYER}\.norm\.?1", r"block\1_layer\2/norm/BatchNorm_0"),
    *conv_norm(rf"{_LAYER}\.conv\.?1", rf"{_LAYER}\.norm\.?2", r"block\1_layer\2/reduce"),
    (rf"{_LAYER}\.conv\.?2", r"block\1_layer\2/conv"),
    (r"features\.transition(\d)\.norm", r"block\1_norm/BatchNorm_0"),
    (r"features\.transition(\d)\.conv", r"transition\1"),
    (r"features\.norm5", "block4_norm/BatchNorm_0"),
    ("classifier", "head"),
)


class DenseLayer(nn.Module):
    """Normalisation, activation, a 1x1 convolution, normalisation, activation and a 3x3 convolution, whose channels are appended to x.

    Attributes:
        features: Channels that are appended.
        reduced_features: Output channels of the 1x1 convolution.
        dilation: Dilation of the 3x3 convolution.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation.
    """

    features: int
    reduced_features: int
    dilation: int = 1
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, height, width, c_in) to (batch, height, width, c_in + features)."""
        y = activation(self.activation)(Norm(self.norm, self.dtype, name="norm")(x, train=train))
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        y = ConvNormAct(self.reduced_features, (1, 1), name="reduce", **shared)(y, train=train)
        conv: dict[str, Any] = dict(dilation=self.dilation, use_bias=self.norm == "none", dtype=self.dtype)
        return jnp.concatenate([x, DilatedConv(self.features, (3, 3), name="conv", **conv)(y)], axis=-1)


@checked(blocks=0, norm=NORMS, activation=ACTIVATIONS)
class DenseNet(nn.Module):
    """Four blocks, each layer of which reads the outputs of all layers before it; the defaults are DenseNet-121.

    Between the blocks, a 1x1 convolution halves the channels and an average pooling the map. Parameters are named `stem`,
    `block1_layer1/norm`, `block1_layer1/reduce`, `block1_layer1/conv` ... `block4_layer16/conv`, `block1_norm` ... `block4_norm`,
    `transition1` ... `transition3` and `head`; `RULES` maps torchvision's names to them. `dilax.fold_batch_norm` refuses a DenseNet: its
    normalisations come before the convolutions, where they cannot be folded.

    Attributes:
        num_classes: Number of outputs.
        blocks: Layers of each block.
        growth_features: Channels that each layer appends.
        stem_features: Channels of the first convolution.
        expansion: Output channels of the 1x1 convolutions, as a multiple of `growth_features`.
        multi_grid: Factors of the dilations of the last block's layers, repeated cyclically.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth_features: int = 32
    stem_features: int = 64
    expansion: int = 4
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
        """Map images (batch, height, width, channels) to the outputs of the four blocks, normalised and activated, shallow to deep.

        Args:
            x: The images, of at least 29 pixels along each axis.
            train: Whether normalisation uses the statistics of the batch.
            output_stride: 8, 16 or 32 (or None); the maps have strides 4, 8, 16 and 32, but at most this. With the same parameters, those
                at 32 are a subsampling of those at 8 and 16, as in `dilax.models.ResNet`. Pooling drops a last row or column of an odd
                number; at a finer output stride, it drops as many as the coarser map would leave without a partner.

        Raises:
            UserError: if x is not a batch of images of that size, or a field or the output stride is not supported.
        """
        self._check(x)
        plan = stages((1, 2, 2, 2), 4, output_stride_or(32, output_stride, "DenseNet"))
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        x = ConvNormAct(self.stem_features, (7, 7), 2, padding="TORCH", name="stem", **shared)(x, train=train)
        x = max_pool(x, 3, stride=2, padding=1)
        maps = []
        for block, (layers, stage) in enumerate(zip(self.blocks, plan), start=1):
            if block > 1:
                conv = DilatedConv(x.shape[-1] // 2, (1, 1), use_bias=self.norm == "none", dtype=self.dtype, name=f"transition{block - 1}")
                x = _halved(conv(maps[-1]), stage)
            for index in range(layers):
                dilation = stage.dilation * (self.multi_grid[index % len(self.multi_grid)] if block == 4 else 1)
                layer = DenseLayer(
                    self.growth_features, self.expansion * self.growth_features, dilation, name=f"block{block}_layer{index + 1}", **shared
                )
                x = layer(x, train=train)
            y = Norm(self.norm, self.dtype, name=f"block{block}_norm")(x, train=train)
            maps.append(activation(self.activation)(y))
        return tuple(maps)

    def _check(self, x: jax.Array) -> None:
        check_image("DenseNet", x)
        check_multi_grid("DenseNet", self.multi_grid)
        if len(self.blocks) != 4:
            raise UserError(f"DenseNet: blocks={self.blocks} must have 4 entries, one per block.")
        if any(is_integer(size) and size < SMALLEST for size in x.shape[1:3]):
            raise UserError(f"DenseNet: x of shape {x.shape} must have at least {SMALLEST} pixels along each axis; use larger images.")


def _halved(x: jax.Array, stage: Stage) -> jax.Array:
    """Average pairs of neighbours along both axes; where the stride is replaced by a dilation, at every sample.

    Samples `before` apart are then neighbours in the coarser map. Of an odd number of those, the last one belongs to no pair and is
    dropped, as in the coarser map. Other samples whose partner lies beyond the border stay as they are.
    """
    if stage.stride == 2:
        return avg_pool(x, 2)
    if not all(map(is_integer, x.shape[1:3])):
        raise UserError("DenseNet: images of symbolic size are supported at output stride 32 only; give a size in numbers.")
    step = stage.before
    kept = (min(size, 2 * step * (-(-size // step) // 2)) for size in x.shape[1:3])
    padding = tuple((0, length - size + step) for length, size in zip(kept, x.shape[1:3]))
    return avg_pool(x, 2, stride=1, padding=padding, dilation=step, count_padding=False)
