"""ByteNet (Kalchbrenner et al. 2016, arXiv:1610.10099): dilated residual blocks over characters, with or without a source sequence."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import Dropout, Norm, embed_sequence, masked
from dilax.causal import Delay
from dilax.errors import UserError
from dilax.geometry import time_padding
from dilax.modules import DilatedConv
from dilax.streaming import Streamable

_SETS = (1, 2, 4, 8, 16) * 3


class ByteNetBlock(nn.Module):
    """Residual block: a dilated convolution of half the channels between two 1x1 convolutions, each after layer norm and ReLU (figure 3).

    Attributes:
        kernel_size: Taps of the dilated convolution.
        dilation: Dilation of the convolution.
        causal: Whether the convolution is causal.
        dropout: Rate of spatial dropout before the sum.
        dtype: Dtype of the computation.
    """

    kernel_size: int
    dilation: int
    causal: bool = True
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to the same shape; for the mask see `ByteNet.encode`."""
        padding, half = "CAUSAL" if self.causal else "SAME", x.shape[-1] // 2
        y = nn.Dense(half, dtype=self.dtype, name="reduce")(self._act(x, 0))
        y = masked(self._act(y, 1), None if self.causal else mask)
        y = DilatedConv(half, (self.kernel_size,), padding=padding, dilation=self.dilation, dtype=self.dtype, name="conv")(y)
        y = nn.Dense(x.shape[-1], dtype=self.dtype, name="expand")(self._act(y, 2))
        lookahead = time_padding(self.kernel_size, padding=padding, dilation=self.dilation)[1]
        return Delay(lookahead, name="delay")(x) + Dropout(self.dropout, spatial=True)(y, train=train)

    def _act(self, x: jax.Array, number: int) -> jax.Array:
        return nn.relu(Norm("layer", dtype=self.dtype, name=f"norm{number}")(x, train=False))


class ByteNetStack(nn.Module):
    """An embedding of codes, followed by a `ByteNetBlock` for each dilation; for the attributes see `ByteNet`."""

    vocabulary: int
    features: int
    kernel_size: int
    dilations: tuple[int, ...]
    causal: bool
    dropout: float
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map codes (batch, time) and a condition (batch, time, features), added to their embeddings, to (batch, time, features)."""
        x = embed_sequence("ByteNet", x, vocabulary=self.vocabulary, features=self.features)
        x = x if self.dtype is None else x.astype(self.dtype)
        x = x if condition is None else x + condition.astype(x.dtype)
        shared: dict[str, Any] = dict(causal=self.causal, dropout=self.dropout, dtype=self.dtype)
        for i, dilation in enumerate(self.dilations):
            x = ByteNetBlock(self.kernel_size, dilation, name=f"block{i}", **shared)(x, train=train, mask=mask)
        return nn.relu(Norm("layer", dtype=self.dtype, name="last_norm")(x, train=False))


@checked(source_vocabulary=0)
class ByteNet(Streamable):
    """A causal decoder, whose outputs at t predict the code at t + 1, and optionally a non-causal encoder of a source sequence.

    An output sees 1 + (kernel_size - 1) * sum(dilations) codes. The target is unfolded dynamically (section 3.2): the representation of the
    source at t is added to the embedding of the target at t. Nothing is added after the end of the source, so the target may be longer or
    shorter than the source. Parameters are named `decoder/embedding`, `decoder/block0/conv` ..., `mix`, `head`, and `encoder/...`.

    Attributes:
        vocabulary: Number of symbols of the target.
        features: Channels between the blocks (the paper's 2d), an even number.
        kernel_size: Taps of the dilated convolutions.
        dilations: Dilation of each block; the paper repeats (1, 2, 4, 8, 16) six times.
        source_vocabulary: Number of symbols of the source; 0 for a language model without a source.
        dropout: Rate of spatial dropout in the blocks.
        dtype: Dtype of the computation; parameters and outputs stay float32.

    Example:
        >>> model, x = ByteNet(features=32), jnp.zeros((2, 50), jnp.int32)
        >>> jax.eval_shape(lambda key: model.init_with_output(key, x, train=False)[0], jax.random.key(0)).shape
        (2, 50, 256)
    """

    vocabulary: int = 256
    features: int = 256
    kernel_size: int = 3
    dilations: tuple[int, ...] = _SETS
    source_vocabulary: int = 0
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Create encoder, decoder and head."""
        if not self.dilations or self.features < 2 or self.features % 2:
            raise UserError(
                f"ByteNet: features={self.features} must be an even number of at least 2, and dilations={self.dilations} must not be "
                "empty; use (1, 2, 4, 8, 16), for instance."
            )
        shared: dict[str, Any] = dict(
            features=self.features,
            kernel_size=self.kernel_size,
            dilations=self.dilations,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        self.decoder = ByteNetStack(self.vocabulary, causal=True, **shared)
        if self.source_vocabulary:
            self.encoder = ByteNetStack(self.source_vocabulary, causal=False, **shared)
        self.mix = nn.Dense(self.features, dtype=self.dtype)
        self.head = nn.Dense(self.vocabulary)

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        source: jax.Array | None = None,
        source_mask: jax.Array | None = None,
        condition: jax.Array | None = None,
    ) -> jax.Array:
        """Map codes (batch, time) to logits (batch, time, vocabulary) of the next code at every step, in float32.

        Args:
            x: Codes of the target.
            train: Whether to apply dropout.
            source: Codes (batch, source time); required with a `source_vocabulary`, unless there is a condition.
            source_mask: See `encode`.
            condition: (batch, time, features), the result of `encode` and `unfold`, in place of the source: for streaming and sampling.

        Raises:
            UserError: if x does not consist of codes (batch, time), a source is missing, or it is not used.
        """
        if (source is not None) + (condition is not None) != bool(self.source_vocabulary):
            requires = "either a source or a condition" if self.source_vocabulary else "neither a source nor a condition"
            raise UserError(f"ByteNet: source_vocabulary={self.source_vocabulary} requires {requires}.")
        if source is not None:
            condition = unfold(self.encode(source, source_mask, train=train), x.shape[1])
        if condition is not None and condition.shape != (*x.shape[:2], self.features):
            raise UserError(
                f"ByteNet: a condition of shape {condition.shape} must have shape {(*x.shape[:2], self.features)}; see `unfold`."
            )
        y = self.decoder(x, condition, train=train)
        return self.head(nn.relu(self.mix(y)).astype(jnp.float32))

    def encode(self, source: jax.Array, source_mask: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """Encode a source to its representation (batch, source time, features), with zeros where its mask is False.

        Args:
            source: Codes (batch, source time).
            source_mask: bool (batch, source time), False after the end of a shorter source; these codes are ignored.
            train: Whether to apply dropout.
        """
        return masked(self.encoder(source, train=train, mask=source_mask), source_mask)

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return a single code per sequence."""
        return jnp.zeros((batch_size, 1), jnp.int32)

    def stream_conditions(self, batch_size: int) -> dict[str, jax.Array]:
        """Return a condition of zeros for a single code, if there is a source."""
        return {"condition": jnp.zeros((batch_size, 1, self.features))} if self.source_vocabulary else {}


def unfold(representation: jax.Array, time: int) -> jax.Array:
    """Cut the representation of a source, or pad it with zeros, to the length of the target.

    Args:
        representation: (batch, source time, features), see `ByteNet.encode`.
        time: Length of the target.

    Returns:
        (batch, time, features).

    Example:
        >>> unfold(jnp.ones((1, 2, 3)), 4)[0, :, 0].tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    missing = max(0, time - representation.shape[1])
    return jnp.pad(representation, ((0, 0), (0, missing), (0, 0)))[:, :time]
