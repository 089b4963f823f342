"""Multi-stage temporal convolutional network (Farha & Gall 2019, arXiv:1903.01945): a class for every step, refined stage by stage."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import Dropout, embed_sequence, masked
from dilax.causal import Delay
from dilax.errors import UserError
from dilax.geometry import time_padding
from dilax.modules import DilatedConv
from dilax.streaming import Streamable

# That of PyTorch, in which the authors' code is written. From a larger one the sums of ten layers begin far from zero.
_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class DilatedResidualLayer(nn.Module):
    """x + dropout(linear(relu(dilated convolution of x))) (the paper's figure 2).

    Attributes:
        kernel_size: Taps of the convolution.
        dilation: Dilation of the convolution.
        dropout: Dropout rate.
        causal: Whether the convolution is causal; otherwise its padding is "SAME".
        dtype: Dtype of the computation.
    """

    kernel_size: int
    dilation: int
    dropout: float = 0.0
    causal: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to the same shape; for the mask see `MSTCN`."""
        padding, features = "CAUSAL" if self.causal else "SAME", x.shape[-1]
        shared: dict[str, Any] = dict(kernel_init=_INIT, dtype=self.dtype)
        conv = DilatedConv(features, (self.kernel_size,), padding=padding, dilation=self.dilation, name="conv", **shared)
        y = nn.relu(conv(x if self.causal else masked(x, mask)))
        y = Dropout(self.dropout)(nn.Dense(features, name="linear", **shared)(y), train=train)
        lookahead = time_padding(self.kernel_size, padding=padding, dilation=self.dilation)[1]
        return Delay(lookahead, name="delay")(x) + y


class Stage(nn.Module):
    """A linear layer, a `DilatedResidualLayer` for each dilation, and another linear layer, whose outputs are in float32.

    Attributes:
        out_features: Number of outputs at every step.
        features: Channels of the layers.
        kernel_size: Taps of the convolutions.
        dilations: Dilation of each layer.
        dropout: Dropout rate of the layers.
        causal: As that of the layers.
        dtype: Dtype of the computation.
    """

    out_features: int
    features: int
    kernel_size: int
    dilations: tuple[int, ...]
    dropout: float = 0.0
    causal: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, time, channels) to (batch, time, out_features); for the mask see `MSTCN`."""
        x = nn.Dense(self.features, kernel_init=_INIT, dtype=self.dtype, name="input")(x)
        shared: dict[str, Any] = dict(dropout=self.dropout, causal=self.causal, dtype=self.dtype)
        for i, dilation in enumerate(self.dilations):
            x = DilatedResidualLayer(self.kernel_size, dilation, name=f"layer{i}", **shared)(x, train=train, mask=mask)
        return nn.Dense(self.out_features, kernel_init=_INIT, name="head")(x.astype(jnp.float32))


@checked()
class MSTCN(Streamable):
    """Stages of dilated residual layers; each stage but the first refines the class probabilities of the one before.

    An output sees 1 + (kernel_size - 1) * stages * sum(dilations) steps. Parameters are named `stage0/input`, `stage0/layer0/conv`,
    `stage0/layer0/linear` ... and `stage0/head`. The outputs of every stage, the last of which is the result, are sown as "stages" into the
    collection "intermediates", for a loss at each of them.

    Attributes:
        out_features: Number of classes.
        stages: Number of stages; 1 refines nothing.
        features: Channels of all layers.
        kernel_size: Taps of the convolutions.
        dilations: Dilation of each layer of a stage.
        dropout: Dropout rate of the layers.
        causal: Whether no output sees a later step; otherwise a network looks as far ahead as back, as in the paper.
        dtype: Dtype of the computation; parameters and outputs stay float32.

    Example:
        >>> model, x = MSTCN(out_features=18), jnp.ones((2, 300, 64))
        >>> jax.eval_shape(lambda key: model.init_with_output(key, x, train=False)[0], jax.random.key(0)).shape
        (2, 300, 18)
    """

    out_features: int = 2
    stages: int = 4
    features: int = 64
    kernel_size: int = 3
    dilations: tuple[int, ...] = tuple(2**i for i in range(10))
    dropout: float = 0.5
    causal: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map features (batch, time, channels) to the logits of the last stage, (batch, time, out_features) in float32.

        Args:
            x: The sequences.
            train: Whether to apply dropout.
            mask: bool (batch, time), False after the end of a shorter sequence: no valid output depends on those steps. Causal networks do
                not need it.

        Raises:
            UserError: if x is not floating-point of shape (batch, time, channels), or there are no dilations.
        """
        if not self.dilations:
            raise UserError("MSTCN: dilations=() must not be empty; give one per layer, such as (1, 2, 4, 8).")
        x = embed_sequence("MSTCN", x, vocabulary=0, features=0)
        x = x if self.dtype is None else x.astype(self.dtype)
        y = x
        for i in range(self.stages):
            stage = Stage(
                self.out_features,
                self.features,
                self.kernel_size,
                self.dilations,
                self.dropout,
                self.causal,
                self.dtype,
                name=f"stage{i}",
            )
            y = stage(x, train=train, mask=mask)
            self.sow("intermediates", "stages", y)
            x = nn.softmax(y).astype(x.dtype)
        return y

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return one step of zeros."""
        return jnp.zeros((batch_size, 1, self.variables["params"]["stage0"]["input"]["kernel"].shape[0]), dtype)
