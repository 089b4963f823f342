"""Temporal convolutional network (Bai, Kolter & Koltun 2018, arXiv:1803.01271): residual blocks of dilated causal convolutions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dilax.blocks import Dropout, embed_sequence, masked
from dilax.causal import Delay
from dilax.errors import UserError
from dilax.geometry import time_padding
from dilax.modules import DilatedConv
from dilax.streaming import Streamable


class TemporalBlock(nn.Module):
    """x + two dilated convolutions with weight normalisation, each with ReLU and dropout, then ReLU (the paper's figure 1b).

    Attributes:
        features: Output channels; where the input has others, a 1x1 convolution stands on the short cut.
        kernel_size: Taps.
        dilation: Of both convolutions.
        dropout: Rate after each convolution.
        causal: Whether no output sees a later input; else the padding is "SAME".
        weight_norm: As `dilax.DilatedConv`.
        dtype: Of the computation.
    """

    features: int
    kernel_size: int
    dilation: int
    dropout: float = 0.0
    causal: bool = True
    weight_norm: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to (batch, time, features); mask as `TCN`."""
        padding, y = "CAUSAL" if self.causal else "SAME", x
        # That of the reference code in effect: it draws from N(0, 0.01), and weight normalisation restores what was there before.
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
        if x.shape[-1] != self.features:
            x = DilatedConv(self.features, (1,), kernel_init=init, dtype=self.dtype, name="shortcut")(x)
        ahead = 2 * time_padding(self.kernel_size, padding=padding, dilation=self.dilation)[1]
        return nn.relu(Delay(ahead, name="delay")(x) + y)


class TCN(Streamable):
    """A block for each entry of `features`, dilations 1, 2, 4, ..., and a linear layer at every step.

    An output sees 1 + 2 * (kernel_size - 1) * (2^blocks - 1) samples, none of them later. Parameters are named `block0/conv1`,
    `block0/conv2`, `block0/shortcut` ... and `head`, with `embedding` where there is a vocabulary.

    Attributes:
        out_features: Outputs at every step.
        kernel_size: Taps of every convolution.
        features: Channels of each block.
        dilations: Of each block; None is 1, 2, 4, ...
        dropout: Rate in the blocks, whole channels at a time.
        causal: As `TemporalBlock`. A network that is not sees as far ahead as back.
        weight_norm: As `dilax.DilatedConv`.
        vocabulary: Number of symbols: the input is then integer codes (batch, time); 0 is none.
        embedding_features: Channels of a symbol.
        dtype: Of the computation; parameters and outputs stay float32.

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
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels), or codes (batch, time), to (batch, time, out_features) in float32.

        Args:
            x: The sequences.
            train: Whether to drop channels.
            mask: bool (batch, time), False behind the end of a shorter sequence, which no output before it then sees; only a network that
                is not causal needs it.

        Raises:
            UserError: if x is neither, or there is not one dilation for each block.
        """
        x = embed_sequence("TCN", x, vocabulary=self.vocabulary, features=self.embedding_features)
        x = x if self.dtype is None else x.astype(self.dtype)
        dilations = self.dilations or tuple(2**i for i in range(len(self.features)))
        if not self.features or len(dilations) != len(self.features):
            raise UserError(f"TCN: features={self.features} and dilations={self.dilations} must have as many entries, at least one.")
        shared: dict[str, Any] = dict(dropout=self.dropout, causal=self.causal, weight_norm=self.weight_norm, dtype=self.dtype)
        for i, (features, dilation) in enumerate(zip(self.features, dilations)):
            x = TemporalBlock(features, self.kernel_size, dilation, name=f"block{i}", **shared)(x, train=train, mask=mask)
        return nn.Dense(self.out_features, kernel_init=nn.initializers.normal(0.01), name="head")(x.astype(jnp.float32))

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        """Return one sample of zeros, or one code."""
        if self.vocabulary:
            return jnp.zeros((batch_size, 1), jnp.int32)
        return jnp.zeros((batch_size, 1, self.variables["params"]["block0"]["conv1"]["kernel"].shape[-2]), dtype)
