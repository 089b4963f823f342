"""MeshNet (Fedorov et al. 2017, arXiv:1612.00940): few channels at full resolution, and dilation for context."""

from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, NORMS, ConvNormAct, Dropout
from dilax.errors import UserError
from dilax.models.segmenter import logits


@checked(norm=NORMS, activation=ACTIVATIONS)
class MeshNet(nn.Module):
    """A stack of dilated convolutions of 3 taps per axis, and a 1x1x1 convolution to logits.

    It labels every voxel of a volume without ever reducing the resolution: the dilations of the paper (table 1) see 37 voxels along each
    axis. Images and sequences are taken as well. The parameters do not depend on the dilations.

    Attributes:
        num_classes: Number of outputs per voxel.
        features: Channels of each layer; the paper has 21.
        dilations: Dilation of each layer.
        dropout: Dropout rate after each layer.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 3
    features: int = 21
    dilations: tuple[int, ...] = (1, 1, 1, 2, 4, 8, 1)
    dropout: float = 0.0
    norm: str = "batch"
    activation: str = "relu"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, channels), 1 to 3 axes of space, to logits (batch, *space, num_classes) in float32.

        Raises:
            UserError: if x or a field does not fit.
        """
        if not 3 <= x.ndim <= 5:
            raise UserError(f"MeshNet: x of shape {x.shape} must be (batch, *space, channels) with 1, 2 or 3 spatial axes.")
        if not self.dilations:
            raise UserError("MeshNet: dilations=() leaves no layer; give one dilation for each, such as (1, 2, 4).")
        shared: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        for dilation in self.dilations:
            x = ConvNormAct(self.features, (3,) * (x.ndim - 2), dilation=dilation, **shared)(x, train=train)
            x = Dropout(self.dropout)(x, train=train)
        return logits(self.num_classes, x)
