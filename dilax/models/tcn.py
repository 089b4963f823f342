"""Temporal convolutional network (Bai, Kolter & Koltun 2018, arXiv:1803.01271): residual blocks of dilated causal convolutions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked, settled
from dilax.blocks import Dropout, embed_sequence, masked
from dilax.causal import Delay
from dilax.errors import UserError
from dilax.geometry import time_padding
from dilax.modules import DilatedConv
from dilax.streaming import Streamable


class TemporalBlock(nn.Module):
    """Residual block of two dilated convolutions with weight normalisation, each with ReLU and dropout (the paper's figure 1b).

    Attributes:
        features: Output channels.
        kernel_size: Taps of both convolutions.
        dilation: Dilation of both convolutions.
        dropout: Rate of spatial dropout after each convolution.
        causal: Whether the convolutions are causal; otherwise their padding is "SAME".
        weight_norm: See `dilax.DilatedConv`.
        dtype: Dtype of the computation.
        project: Whether the shortcut has a 1x1 convolution; None if it is needed, because the number of channels changes.
    """

    features: int
    kernel_size: int
    dilation: int
    dropout: float = 0.0
    causal: bool = True
    weight_norm: bool = True
    dtype: DTypeLike | None = None
    project: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to (batch, time, features); for the mask see `TCN`."""
        padding, y = "CAUSAL" if self.causal else "SAME", x
        # What the reference code amounts to: it draws from N(0, 0.01), but weight normalisation then restores PyTorch's own initial values.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        for name in ("conv1", "conv2"):
            conv = DilatedConv(
                self.features,
                (self.kernel_size,),
                padding=padding,
                dilation=self.dilation,
                weight_norm=self.weight_norm,
                kernel_init=init,
                dtype=self.dtype,
                name=name,
            )
            y = Dropout(self.dropout, spatial=True)(nn.relu(conv(y if self.causal else masked(y, mask))), train=train)
        if settled(self, "project", x.shape[-1] != self.features):
            x = DilatedConv(self.features, (1,), kernel_init=init, dtype=self.dtype, name="shortcut")(x)
        lookahead = 2 * time_padding(self.kernel_size, padding=padding, dilation=self.dilation)[1]
        return nn.relu(Delay(lookahead, name="delay")(x) + y)


@checked(vocabulary=0)
class TCN(Streamable):
    """A `TemporalBlock` for each entry of `features`, with dilations 1, 2, 4, ..., and a linear layer at every step.

    An output sees 1 + 2 * (kernel_size - 1) * (2^blocks - 1) samples, none of them later than itself. Parameters are named `block0/conv1`,
    `block0/conv2`, `block0/shortcut` ... and `head`, and `embedding` if there is a vocabulary.

    Attributes:
        out_features: Number of outputs at every step.
        kernel_size: Taps of every convolution.
        features: Channels of each block.
        dilations: Dilation of each block; None for 1, 2, 4, ...
        dropout: Rate of spatial dropout in the blocks.
        causal: Whether no output sees a later step; a non-causal network looks as far ahead as back.
        weight_norm: See `dilax.DilatedConv`.
        vocabulary: Number of symbols, if the input is integer codes (batch, time); 0 for floats.
        embedding_features: Channels of an embedded symbol.
        dtype: Dtype of the computation; parameters and outputs stay float32.

    Example:
        >>> model, x = TCN(out_features=1, kernel_size=7, features=(30,) * 8), jnp.ones((4, 100, 2))
        >>> jax.eval_shape(lambda key: model.init_with_output(key, x, train=False)[0], jax.random.key(0)).shape
        (4, 100, 1)
    """

    out_features: int = 1
    kernel_size: int = 7
    features: tuple[int, ...] = (30,) * 8
    dilations: tuple[int, ...] | None = None
    dropout: float = 0.0
    causal: bool = True
    weight_norm: bool = True
    vocabulary: int = 0
    embedding_features: int = 100
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels), or codes (batch, time), to (batch, time, out_features) in float32.

        Args:
            x: The sequences.
            train: Whether to apply dropout.
            mask: bool (batch, time), False after the end of a shorter sequence: no valid output depends on those steps. Causal networks do
                not need it.

        Raises:
            UserError: if x has the wrong shape or dtype, or there is not exactly one dilation per block.
        """
        x = embed_sequence("TCN", x, vocabulary=self.vocabulary, features=self.embedding_features)
        x = x if self.dtype is None else x.astype(self.dtype)
        dilations = self.dilations or tuple(2**i for i in range(len(self.features)))
        if not self.features or len(dilations) != len(self.features):
            raise UserError(
                f"TCN: features={self.features} and dilations={self.dilations} must have equal lengths of at least 1, one entry per block."
            )
        shared: dict[str, Any] = dict(dropout=self.dropout, causal=self.causal, weight_norm=self.weight_norm, dtype=self.dtype)
        for i, (features, dilation) in enumerate(zip(self.features, dilations)):
            x = TemporalBlock(features, self.kernel_size, dilation, name=f"block{i}", **shared)(x, train=train, mask=mask)
        return nn.Dense(self.out_features, kernel_init=nn.initializers.normal(0.01), name="head")(x.astype(jnp.float32))

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return one sample of zeros, or a single code, per sequence."""
        if self.vocabulary:
            return jnp.zeros((batch_size, 1), jnp.int32)
        return jnp.zeros((batch_size, 1, self.variables["params"]["block0"]["conv1"]["kernel"].shape[-2]), dtype)
