"""A temporal network of depthwise-separable dilated convolutions, small enough for keyword spotting.

The network follows Coucke et al. 2018 (arXiv:1811.07684), who spot keywords by dilated causal convolutions of log-mel frames, which are
gated and not separable there. The blocks are those of Luo & Mesgarani 2019 (arXiv:1809.07454, section II-C) without skip outputs.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, NORMS, Dropout, Norm, activation, embed_sequence, masked
from dilax.causal import Delay
from dilax.errors import UserError
from dilax.geometry import time_padding
from dilax.modules import DepthwiseConv
from dilax.streaming import Streamable


class SeparableTemporalBlock(nn.Module):
    """Residual block: a dilated depthwise convolution and a linear layer over the channels, each normalised and activated.

    Attributes:
        kernel_size: Taps of the depthwise convolution.
        dilation: Dilation of the depthwise convolution.
        causal: Whether the convolution is causal; otherwise its padding is "SAME".
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dropout: Rate of spatial dropout between convolution and linear layer.
        dtype: Dtype of the computation.
    """

    kernel_size: int
    dilation: int
    causal: bool = True
    norm: str = "batch"
    activation: str = "relu"
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to the same shape; for the mask see `SeparableTCN`."""
        padding, act, bias = "CAUSAL" if self.causal else "SAME", activation(self.activation), self.norm == "none"
        shared: dict[str, Any] = dict(use_bias=bias, dtype=self.dtype)
        conv = DepthwiseConv((self.kernel_size,), padding=padding, dilation=self.dilation, name="depthwise", **shared)
        y = conv(x if self.causal else masked(x, mask))
        y = act(Norm(self.norm, self.dtype, name="norm1")(y, train=train, mask=mask))
        y = nn.Dense(x.shape[-1], name="pointwise", **shared)(Dropout(self.dropout, spatial=True)(y, train=train))
        y = act(Norm(self.norm, self.dtype, name="norm2")(y, train=train, mask=mask))
        lookahead = time_padding(self.kernel_size, padding=padding, dilation=self.dilation)[1]
        return Delay(lookahead, name="delay")(x) + y


@checked(norm=NORMS, activation=ACTIVATIONS)
class SeparableTCN(Streamable):
    """A linear layer at every step, a `SeparableTemporalBlock` for each dilation, and another linear layer at every step.

    An output sees 1 + (kernel_size - 1) * sum(dilations) steps. Parameters are named `input`, `input_norm`, `block0/depthwise`,
    `block0/pointwise` ... and `head`.

    Attributes:
        out_features: Number of outputs at every step.
        features: Channels of every block.
        kernel_size: Taps of every depthwise convolution.
        dilations: Dilation of each block.
        causal: Whether no output sees a later step; a non-causal network looks as far ahead as back.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        dropout: Rate of spatial dropout in the blocks.
        dtype: Dtype of the computation; parameters and outputs stay float32.

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
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to (batch, time, out_features) in float32.

        Args:
            x: Floating-point sequences, such as log-mel frames.
            train: Whether to apply dropout and to normalise by the statistics of the batch.
            mask: bool (batch, time), False after the end of a shorter sequence: no valid output and no statistic depends on those steps.

        Raises:
            UserError: if x is not floating-point of shape (batch, time, channels), or a field is invalid.
        """
        if not self.dilations:
            raise UserError("SeparableTCN: dilations=() must not be empty; give one per block, such as (1, 2, 4, 8).")
        if self.causal and self.norm in ("group", "global"):
            raise UserError(
                f"SeparableTCN: norm={self.norm!r} looks at the whole sequence, which causal=True does not allow; "
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

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return one step of zeros."""
        return jnp.zeros((batch_size, 1, self.variables["params"]["input"]["kernel"].shape[0]), dtype)
