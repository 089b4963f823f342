"""Iterated dilated convolutions (Strubell et al. 2017, arXiv:1702.02098): one block applied several times, a tag for every word."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import Dropout, embed_sequence, masked
from dilax.context import identity_init
from dilax.crf import chain_scores
from dilax.errors import UserError
from dilax.modules import DilatedConv
from dilax.pooling import pool_sequence
from dilax.tagging import SHAPES

_BYTES, _EMBEDDED, _SHAPE_FEATURES = 257, 24, 16


class CharacterCNN(nn.Module):
    """Two dilated convolutions over the bytes of each word, and their maximum.

    Attributes:
        features: Channels of the convolutions.
        dropout: Dropout rate of the embedded bytes.
        dtype: Dtype of the computation.
    """

    features: int
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, codes: jax.Array, *, train: bool) -> jax.Array:
        """Map bytes plus 1, 0 after the end of a word, (batch, time, characters), to (batch, time, features)."""
        batch, time, characters = codes.shape
        x = nn.Embed(_BYTES, _EMBEDDED, embedding_init=nn.initializers.normal(0.5), dtype=self.dtype, name="embedding")(codes)
        x = Dropout(self.dropout)(x, train=train).reshape(batch * time, characters, _EMBEDDED)
        present = codes.reshape(batch * time, characters) > 0
        for i, dilation in enumerate((1, 2)):
            x = DilatedConv(self.features, (3,), dilation=dilation, dtype=self.dtype, name=f"conv{i}")(masked(x, present))
            x = nn.relu(x)
        return pool_sequence(x, kind="max", mask=present).reshape(batch, time, self.features)


class IteratedBlock(nn.Module):
    """Dilated convolutions, one after the other, each with ReLU; initialised as the identity.

    Attributes:
        kernel_size: Taps of the convolutions.
        dilations: Their dilations.
        dtype: Dtype of the computation.
    """

    kernel_size: int
    dilations: tuple[int, ...]
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to the same shape; for the mask see `IDCNN`."""
        features = x.shape[-1]
        shared: dict[str, Any] = dict(kernel_init=identity_init(features, noise=0.01), dtype=self.dtype)
        for i, dilation in enumerate(self.dilations):
            conv = DilatedConv(features, (self.kernel_size,), dilation=dilation, name=f"conv{i}", **shared)
            x = nn.relu(conv(masked(x, mask)))
        return x


@checked(vocabulary=0, character_features=0)
class IDCNN(nn.Module):
    """An `IteratedBlock` whose parameters all iterations share, and a linear layer at every step.

    An output sees 1 + (kernel_size - 1) * (1 + iterations * sum(dilations)) steps. Parameters are named `embedding`, `shapes`,
    `characters/conv0` ..., `input`, `block/conv0` ..., `head` and `transitions`. The outputs of every iteration, the last of which is the
    result, are sown as "stages" into the collection "intermediates", for a loss at each of them.

    Attributes:
        out_features: Number of classes.
        features: Channels of all layers.
        kernel_size: Taps of the convolutions.
        dilations: Dilation of each convolution of the block.
        iterations: How often the block is applied.
        crf: Whether transitions between classes are scored, too: the outputs are then those of `dilax.crf.chain_scores`.
        dropout: Dropout rate of what is embedded, and before the linear layer.
        vocabulary: Number of symbols, if the input is integer codes; 0 for floats (batch, time, channels).
        embedding_features: Channels of an embedded symbol.
        character_features: Channels that are computed of the characters of words; 0 ignores characters.
        dtype: Dtype of the computation; parameters and outputs stay float32.

    Example:
        >>> model, codes = IDCNN(out_features=3, vocabulary=1000), jnp.zeros((2, 50, 18), jnp.int32)
        >>> jax.eval_shape(lambda key: model.init_with_output(key, codes, train=False)[0], jax.random.key(0)).shape
        (2, 50, 3)
    """

    out_features: int = 3
    features: int = 128
    kernel_size: int = 3
    dilations: tuple[int, ...] = (1, 2, 4, 1)
    iterations: int = 3
    crf: bool = False
    dropout: float = 0.0
    vocabulary: int = 0
    embedding_features: int = 100
    character_features: int = 50
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map words to logits (batch, time, out_features), or scores (batch, time, out_features, out_features), in float32.

        Args:
            x: Words as `dilax.tagging.encode_words` codes them, (batch, time, 2 + characters); codes (batch, time) of symbols alone; or
                floats (batch, time, channels).
            train: Whether to apply dropout.
            mask: bool (batch, time), False after the end of a shorter sequence: no valid output depends on those steps.

        Raises:
            UserError: if x has the wrong shape or dtype, or there are no dilations.
        """
        if not self.dilations:
            raise UserError("IDCNN: dilations=() must not be empty; give one per convolution, such as (1, 2, 4, 1).")
        x = Dropout(self.dropout)(self._embedded(x, train), train=train)
        x = x if self.dtype is None else x.astype(self.dtype)
        x = nn.relu(DilatedConv(self.features, (self.kernel_size,), dtype=self.dtype, name="input")(masked(x, mask)))
        block, head = IteratedBlock(self.kernel_size, self.dilations, self.dtype, name="block"), nn.Dense(self.out_features, name="head")
        shape = (self.out_features, self.out_features)
        transitions = self.param("transitions", nn.initializers.zeros_init(), shape, jnp.float32) if self.crf else None
        y = x
        for _ in range(self.iterations):
            x = block(x, mask=mask)
            y = head(Dropout(self.dropout)(x, train=train).astype(jnp.float32))
            y = y if transitions is None else chain_scores(y, transitions)
            self.sow("intermediates", "stages", y)
        return y

    def _embedded(self, x: jax.Array, train: bool) -> jax.Array:
        """Return floats (batch, time, channels)."""
        words = self.vocabulary > 0 and x.ndim == 3 and jnp.issubdtype(x.dtype, jnp.integer)
        if not words:
            return embed_sequence("IDCNN", x, vocabulary=self.vocabulary, features=self.embedding_features)
        if x.shape[2] < 3:
            raise UserError(f"IDCNN: words of shape {x.shape} must be (batch, time, 2 + characters); see `dilax.tagging.encode_words`.")
        parts = [
            embed_sequence("IDCNN", x[..., 0], vocabulary=self.vocabulary, features=self.embedding_features),
            nn.Embed(len(SHAPES), _SHAPE_FEATURES, embedding_init=nn.initializers.normal(0.5), name="shapes")(x[..., 1]),
        ]
        if self.character_features:
            parts.append(CharacterCNN(self.character_features, self.dropout, self.dtype, name="characters")(x[..., 2:], train=train))
        return jnp.concatenate([part.astype(jnp.float32) for part in parts], -1)
