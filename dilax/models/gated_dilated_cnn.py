"""Classification of sequences by gated dilated convolutions.

The network follows Strubell et al. 2017 (arXiv:1702.02098), who label words by a stack of dilated convolutions, with the gates of Dauphin
et al. 2017 (arXiv:1612.08083). It is identical to neither: both have an output for every word, and the former applies its stack several
times.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import NORMS, Dropout, Norm, embed_sequence, masked
from dilax.errors import UserError
from dilax.modules import DilatedConv
from dilax.pooling import pool_sequence

POOLINGS = ("max", "mean", "both")


class GatedBlock(nn.Module):
    """x + dropout(a * sigmoid(b)), where a dilated convolution of the normalised x gives a and b (Dauphin et al. 2017, equation 1).

    Attributes:
        kernel_size: Taps of the convolution.
        dilation: Dilation of the convolution.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dropout: Rate of spatial dropout.
        dtype: Dtype of the computation.
    """

    kernel_size: int
    dilation: int
    norm: str = "layer"
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to the same shape; for the mask see `GatedDilatedCNN`."""
        y = masked(Norm(self.norm, self.dtype, name="norm")(x, train=train, mask=mask), mask)
        conv = DilatedConv(2 * x.shape[-1], (self.kernel_size,), dilation=self.dilation, dtype=self.dtype, name="conv")
        return x + Dropout(self.dropout, spatial=True)(nn.glu(conv(y)), train=train)


@checked(pooling=POOLINGS, norm=NORMS, vocabulary=0)
class GatedDilatedCNN(nn.Module):
    """A `GatedBlock` for each dilation, with "SAME" padding, followed by pooling over time and a linear layer to the logits of a sequence.

    Before pooling, a step sees 1 + (kernel_size - 1) * sum(dilations) steps. Parameters are named `embedding`, `input`, `block0/norm`,
    `block0/conv` ..., `last_norm` and `head`.

    Attributes:
        num_classes: Number of outputs.
        features: Channels of every block; an input with a different number of channels is first mapped to it by a linear layer.
        kernel_size: Taps of every block.
        dilations: Dilation of each block.
        pooling: "max", "mean" or, concatenated, "both", over the valid steps.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dropout: Dropout rate, spatial in the blocks and ordinary before the linear layer.
        vocabulary: Number of symbols, if the input is integer codes (batch, time); 0 for floats.
        embedding_features: Channels of an embedded symbol.
        dtype: Dtype of the computation; parameters and logits stay float32.

    Example:
        >>> model, codes = GatedDilatedCNN(num_classes=4, vocabulary=1000), jnp.zeros((2, 50), jnp.int32)
        >>> jax.eval_shape(lambda key: model.init_with_output(key, codes, train=False)[0], jax.random.key(0)).shape
        (2, 4)
    """

    num_classes: int = 2
    features: int = 128
    kernel_size: int = 3
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    pooling: str = "max"
    norm: str = "layer"
    dropout: float = 0.0
    vocabulary: int = 0
    embedding_features: int = 128
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels), or codes (batch, time), to logits (batch, num_classes) in float32.

        Args:
            x: The sequences.
            train: Whether to apply dropout.
            mask: bool (batch, time), False after the end of a shorter sequence; its logits are then those of the sequence without padding.

        Raises:
            UserError: if x has the wrong shape or dtype, or a field is invalid.
        """
        if not self.dilations:
            raise UserError("GatedDilatedCNN: dilations=() must not be empty; give one per block, such as (1, 2, 4, 8).")
        channels = self.embedding_features if self.vocabulary else x.shape[-1]
        x = embed_sequence("GatedDilatedCNN", x, vocabulary=self.vocabulary, features=self.embedding_features)
        x = x if self.dtype is None else x.astype(self.dtype)
        if channels != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="input")(x)
        shared: dict[str, Any] = dict(norm=self.norm, dtype=self.dtype)
        for i, dilation in enumerate(self.dilations):
            block = GatedBlock(self.kernel_size, dilation, dropout=self.dropout, name=f"block{i}", **shared)
            x = block(x, train=train, mask=mask)
        x = Norm(self.norm, self.dtype, name="last_norm")(x, train=train, mask=mask)
        pooled = Dropout(self.dropout)(self._pool(x.astype(jnp.float32), mask), train=train)
        return nn.Dense(self.num_classes, name="head")(pooled)

    def _pool(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        kinds = ("max", "mean") if self.pooling == "both" else (self.pooling,)
        return jnp.concatenate([pool_sequence(x, kind=kind, mask=mask) for kind in kinds], axis=-1)
