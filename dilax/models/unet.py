"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with dilated convolutions at its lowest level, for biomedical images and volumes."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import NORMS, ConvNormAct, Dropout
from dilax.errors import UserError
from dilax.geometry import is_integer
from dilax.models.backbone import check_multi_grid, stages
from dilax.models.segmenter import Maps, Segmenter, logits
from dilax.pooling import max_pool
from dilax.resizing import resize


@checked(norm=NORMS)
class UNetEncoder(nn.Module):
    """Levels of two 3x3 convolutions, each at half the size of the one above; the lowest also has dilated convolutions.

    Attributes:
        stage_features: Channels of each level.
        multi_grid: Dilations of a chain of convolutions at the lowest level; their outputs are added to its map (Zhou et al. 2018,
            "D-LinkNet", CVPR Workshops).
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dtype: Dtype of the computation.
    """

    stage_features: tuple[int, ...] = (32, 64, 128, 256)
    multi_grid: tuple[int, ...] = (1, 2, 4, 8)
    norm: str = "batch"
    dtype: DTypeLike | None = None

    @nn.compact
    def features(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> Maps:
        """Map (batch, *space, channels) to the map of each level, the first of which has the size of x.

        Args:
            x: Images, sequences or volumes.
            train: Whether normalisation uses the statistics of the batch.
            output_stride: Input size divided by the size of the last map, a power of 2; None for 2 per level. If it is less, the lowest
                levels keep the size of the map and are dilated instead; subsampled, their maps are the same.

        Raises:
            UserError: if x, a field or the output stride does not fit.
        """
        self._check(x, output_stride)
        rank = x.ndim - 2
        natural = 2 ** (len(self.stage_features) - 1)
        plan = stages((1,) + (2,) * (len(self.stage_features) - 1), 1, natural if output_stride is None else output_stride)
        shared: dict[str, Any] = dict(kernel_size=(3,) * rank, norm=self.norm, dtype=self.dtype)
        maps = []
        for level, (width, stage) in enumerate(zip(self.stage_features, plan)):
            if level:
                x = max_pool(x, 2, stride=stage.stride, padding=((0, stage.before),) * rank, dilation=stage.before)
            for i in range(2):
                x = ConvNormAct(width, dilation=stage.dilation, name=f"level{level}_conv{i}", **shared)(x, train=train)
            maps.append(x)
        y = x
        for i, factor in enumerate(self.multi_grid):
            y = ConvNormAct(self.stage_features[-1], dilation=factor * plan[-1].dilation, name=f"dilated_{i}", **shared)(y, train=train)
            x = x + y
        return (*maps[:-1], x)

    def _check(self, x: jax.Array, output_stride: int | None) -> None:
        if not 3 <= x.ndim <= 5:
            raise UserError(f"UNet: x of shape {x.shape} must be (batch, *space, channels) with 1, 2 or 3 spatial axes.")
        if len(self.stage_features) < 2:
            raise UserError(f"UNet: stage_features={self.stage_features} must have at least two entries, such as (32, 64).")
        check_multi_grid("UNet", self.multi_grid)
        allowed = tuple(2**level for level in range(len(self.stage_features)))
        if output_stride is not None and (not is_integer(output_stride) or output_stride not in allowed):
            raise UserError(
                f"UNet: output_stride={output_stride!r} is not supported with {len(self.stage_features)} levels; use one of {allowed}."
            )


class UNet(Segmenter):
    """`UNetEncoder`, and a decoder that doubles its map level by level and concatenates it with the map of the encoder, up to full size.

    It takes images, sequences (batch, length, channels) and volumes (batch, depth, height, width, channels) of any size.

    Attributes:
        backbone: `UNetEncoder`, or a `functools.partial` of it with other `stage_features`.
        output_stride: See `UNetEncoder.features`.
        dropout: Dropout rate between encoder and decoder.
        multi_grid: Dilations at the lowest level, see `UNetEncoder`; (1, 1, 1, 1) for no dilation.

    For all other attributes see `dilax.models.Segmenter`.
    """

    backbone: Callable[..., nn.Module] = UNetEncoder
    output_stride: int | None = None
    multi_grid: tuple[int, ...] = (1, 2, 4, 8)

    def head(self, maps: Maps, *, train: bool, output_stride: int | None, image_mean: jax.Array | None) -> jax.Array:
        """Map the levels to logits of the size of the first."""
        y = Dropout(self.dropout)(maps[-1], train=train)
        shared: dict[str, Any] = dict(kernel_size=(3,) * (y.ndim - 2), norm=self.norm, dtype=self.dtype)
        for level in reversed(range(len(maps) - 1)):
            dilation = 1 if output_stride is None else max(1, 2**level // output_stride)
            y = jnp.concatenate([maps[level], upsample(y, maps[level].shape)], axis=-1)
            for i in range(2):
                conv = ConvNormAct(maps[level].shape[-1], dilation=dilation, name=f"up{level}_conv{i}", **shared)
                y = conv(y, train=train)
        return logits(self.num_classes, y)


def upsample(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Double the spatial axes that are shorter than those of `shape`, and crop the result, so that pixels stay aligned at odd sizes."""
    sizes = tuple(old if old == new else 2 * old for old, new in zip(x.shape[1:-1], shape[1:-1]))
    return lax.slice(resize(x, sizes), (0,) * x.ndim, (x.shape[0], *shape[1:-1], x.shape[-1]))
