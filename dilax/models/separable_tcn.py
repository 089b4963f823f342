"""A temporal network of depthwise separable dilated convolutions, small enough for keyword spotting.

After Coucke et al. 2018 (arXiv:1811.07684), who spot keywords by dilated causal convolutions over log-mel frames; theirs are gated and not
separable. The blocks are those of Luo & Mesgarani 2019 (arXiv:1809.07454, section II-C) without their skip outputs.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dilax.blocks import Dropout, Norm, activation, embed_sequence, masked
from dilax.causal import Delay
from dilax.errors import UserError
from dilax.geometry import time_padding
from dilax.modules import DepthwiseConv
from dilax.streaming import Streamable


class SeparableTemporalBlock(nn.Module):
    """x + a dilated depthwise convolution and a linear layer over the channels, each normalised and activated, with dropout between.

    Attributes:
        kernel_size: Taps.
        dilation: Of the depthwise convolution.
        causal: As `SeparableTCN`; so are norm, activation, dropout and dtype.
        norm: As `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dropout: Rate, whole channels at a time.
        dtype: Of the computation.
    """

    kernel_size: int
    dilation: int
    causal: bool = True
    norm: str = "batch"
    activation: str = "relu"
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to the same shape; mask as `SeparableTCN`."""
        padding, act, bias = "CAUSAL" if self.causal else "SAME", activation(self.activation), self.norm == "none"
        shared: dict[str, Any] = dict(use_bias=bias, dtype=self.dtype)
        conv = DepthwiseConv((self.kernel_size,), padding=padding, dilation=self.dilation, name="depthwise", **shared)
        y = conv(x if self.causal else masked(x, mask))
        y = act(Norm(self.norm, self.dtype, name="norm1")(y, train=train, mask=mask))
        y = nn.Dense(x.shape[-1], name="pointwise", **shared)(Dropout(self.dropout, spatial=True)(y, train=train))
        y = act(Norm(self.norm, self.dtype, name="norm2")(y, train=train, mask=mask))
        ahead = time_padding(self.kernel_size, padding=padding, dilation=self.dilation)[1]
        return Delay(ahead, name="delay")(x) + y


class SeparableTCN(Streamable):
    """A linear layer over the channels of every step, a `SeparableTemporalBlock` for each dilation, and a linear layer at every step.

    An output sees 1 + (kernel_size - 1) * sum(dilations) steps. Parameters are named `input`, `input_norm`, `block0/depthwise`,
    `block0/pointwise` ... and `head`.

    Attributes:
        out_features: Outputs at every step.
        features: Channels of every block.
        kernel_size: Taps of every depthwise convolution.
        dilations: Of each block.
        causal: Whether no output sees a later step; a network that is not sees as far ahead as back.
        norm: As `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dropout: Rate in the blocks.
        dtype: Of the computation; parameters and outputs stay float32.

    Example:
        >>> model, x = SeparableTCN(out_features=12), jnp.ones((2, 98, 40))
        >>> jax.eval_shape(lambda key: model.init_with_output(key, x, train=False)[0], jax.random.key(0)).shape
        (2, 98, 12)
    """

    out_features: int = 12
    features: int = 64
    kernel_size: int = 5
    dilations: tuple[int, ...] = (1, 2, 4, 8, 1, 2, 4, 8)
    causal: bool = True
    norm: str = "batch"
    activation: str = "relu"
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to (batch, time, out_features) in float32.

        Args:
            x: Floats, such as log-mel frames.
            train: Whether batch statistics are those of this batch, and channels are dropped.
            mask: bool (batch, time), False behind the end of a shorter sequence, which no output before it then sees, and no statistic.

        Raises:
            UserError: if x is not floats (batch, time, channels), or there is no dilation.
        """
        if not self.dilations:
            raise UserError("SeparableTCN: dilations=() makes no network; give one for each block, such as (1, 2, 4, 8).")
        if self.causal and self.norm in ("group", "global"):
            raise UserError(
                f"SeparableTCN: norm={self.norm!r} takes statistics over all of time, which a causal network must not see; "
                "use 'batch', 'layer' or 'cumulative', or causal=False."
            )
        x = embed_sequence("SeparableTCN", x, vocabulary=0, features=0)
        x = nn.Dense(self.features, use_bias=self.norm == "none", dtype=self.dtype, name="input")(x)
        x = activation(self.activation)(Norm(self.norm, self.dtype, name="input_norm")(x, train=train, mask=mask))
        shared: dict[str, Any] = dict(
            causal=self.causal, norm=self.norm, activation=self.activation, dropout=self.dropout, dtype=self.dtype
        )
        for i, dilation in enumerate(self.dilations):
            x = SeparableTemporalBlock(self.kernel_size, dilation, name=f"block{i}", **shared)(x, train=train, mask=mask)
        return nn.Dense(self.out_features, name="head")(x.astype(jnp.float32))

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        """Return one step of zeros."""
        return jnp.zeros((batch_size, 1, self.variables["params"]["input"]["kernel"].shape[0]), dtype)
