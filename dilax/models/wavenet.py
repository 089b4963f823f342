"""WaveNet (van den Oord et al. 2016, arXiv:1609.03499): gated residual units of dilated causal convolutions with skip connections."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.errors import UserError
from dilax.modules import DilatedConv
from dilax.streaming import Streamable

OUTPUTS = ("softmax", "mixture")


class GatedUnit(nn.Module):
    """A dilated causal convolution with conditions and the gate tanh(filter) * sigmoid(gate), mapped to a residual and a skip output.

    Attributes:
        features: Channels of filter and gate.
        skip_features: Channels of the skip output.
        kernel_size: Taps of the convolution.
        dilation: Dilation of the convolution.
        dtype: Dtype of the computation.
    """

    features: int
    skip_features: int
    kernel_size: int
    dilation: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, conditions: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Map (batch, time, channels), and conditions (batch, time or 1, any channels), to the next x and the skip output."""
        y = self._conv(2 * self.features, self.kernel_size, "conv")(x)
        for i, condition in enumerate(conditions):
            y = y + self._conv(2 * self.features, 1, f"condition{i}", use_bias=False)(condition)
        filtered, gate = jnp.split(y, 2, axis=-1)
        y = jnp.tanh(filtered) * nn.sigmoid(gate)
        return x + self._conv(x.shape[-1], 1, "residual")(y), self._conv(self.skip_features, 1, "skip")(y)

    def _conv(self, features: int, taps: int, name: str, use_bias: bool = True) -> DilatedConv:
        dilation = self.dilation if taps > 1 else 1
        return DilatedConv(features, (taps,), padding="CAUSAL", dilation=dilation, use_bias=use_bias, dtype=self.dtype, name=name)


@checked(vocabulary=0, outputs=OUTPUTS, local_features=0, global_features=0)
class WaveNet(Streamable):
    """A causal convolution, a `GatedUnit` for each dilation, and two 1x1 convolutions of the sum of their skip outputs.

    The outputs at t predict the sample at t + 1 from x up to t. Parameters are named `embedding` (with outputs="softmax"), `input`,
    `unit0` ..., `mix` and `head`.

    Attributes:
        vocabulary: Number of codes of a sample, with outputs="softmax".
        dilations: Dilation of each unit.
        kernel_size: Taps of the convolutions.
        features: Channels of the residual path, and of filter and gate.
        skip_features: Channels of the skip path.
        outputs: "softmax" for codes (batch, time) and logits over the vocabulary; "mixture" for waveforms (batch, time, 1) in -1..1 and
            mixtures of logistics, the arguments of `dilax.losses.logistic_mixture_loss`.
        mixtures: Number of logistics in a mixture.
        local_features: Channels of the local condition (batch, time, channels), such as a spectrogram upsampled to the rate of x; 0 for
            none.
        global_features: Channels of the global condition (batch, channels), such as a speaker embedding; 0 for none.
        dtype: Dtype of the computation; parameters and outputs stay float32.

    Example:
        >>> model, x = WaveNet(dilations=(1, 2, 4, 8)), jnp.zeros((2, 50), jnp.int32)
        >>> jax.eval_shape(lambda key: model.init_with_output(key, x, train=False)[0], jax.random.key(0)).shape
        (2, 50, 256)
    """

    vocabulary: int = 256
    dilations: tuple[int, ...] = tuple(2**i for i in range(10)) * 2
    kernel_size: int = 2
    features: int = 64
    skip_features: int = 128
    outputs: str = "softmax"
    mixtures: int = 10
    local_features: int = 0
    global_features: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, local_condition: jax.Array | None = None, global_condition: jax.Array | None = None
    ) -> jax.Array:
        """Map a sequence to a prediction of the next sample at every step, (batch, time, vocabulary or 3 * mixtures) in float32.

        Args:
            x: Codes (batch, time) or waveforms (batch, time, 1); see `outputs`.
            train: Unused: the network has neither dropout nor batch statistics.
            local_condition: (batch, time, local_features); the condition at t applies to the outputs at t.
            global_condition: (batch, global_features).

        Raises:
            UserError: if x or a condition does not fit the fields.
        """
        conditions = self._conditions(x, local_condition, global_condition)
        if self.outputs == "softmax":
            x = nn.Embed(self.vocabulary, self.features, dtype=self.dtype, name="embedding")(x)
            count = self.vocabulary
        else:
            count = 3 * self.mixtures
        x = DilatedConv(self.features, (self.kernel_size,), padding="CAUSAL", dtype=self.dtype, name="input")(x)
        skips: Any = None
        for i, dilation in enumerate(self.dilations):
            unit = GatedUnit(self.features, self.skip_features, self.kernel_size, dilation, self.dtype, name=f"unit{i}")
            x, skip = unit(x, conditions)
            skips = skip if skips is None else skips + skip
        y = nn.relu(DilatedConv(self.skip_features, (1,), dtype=self.dtype, name="mix")(nn.relu(skips)))
        return nn.Dense(count, name="head")(y.astype(jnp.float32))

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return a single code, or one sample of zeros, per sequence."""
        return jnp.zeros((batch_size, 1), jnp.int32) if self.outputs == "softmax" else jnp.zeros((batch_size, 1, 1), dtype)

    def stream_conditions(self, batch_size: int) -> dict[str, jax.Array]:
        """Return conditions of zeros for a single sample."""
        conditions = {}
        if self.local_features:
            conditions["local_condition"] = jnp.zeros((batch_size, 1, self.local_features))
        if self.global_features:
            conditions["global_condition"] = jnp.zeros((batch_size, self.global_features))
        return conditions

    def _conditions(self, x: jax.Array, local_condition: jax.Array | None, global_condition: jax.Array | None) -> list[jax.Array]:
        """Check the input and the conditions, and return the latter as arrays (batch, time or 1, channels)."""
        if self.outputs == "softmax" and not self.vocabulary:
            raise UserError("WaveNet: with outputs='softmax' vocabulary=0 leaves no code; give the number of codes, such as 256.")
        if not self.dilations:
            raise UserError("WaveNet: dilations=() must not be empty; give one per unit, such as (1, 2, 4, 8).")
        codes = x.ndim == 2 and jnp.issubdtype(x.dtype, jnp.integer)
        if self.outputs == "softmax" and not codes:
            raise UserError(f"WaveNet: x must be integer codes (batch, time), got {x.dtype} {x.shape}; see `dilax.audio.mu_law_encode`.")
        if self.outputs == "mixture" and not (x.ndim == 3 and x.shape[-1] == 1 and jnp.issubdtype(x.dtype, jnp.floating)):
            raise UserError(f"WaveNet: with outputs='mixture' x must be floats (batch, time, 1), got {x.dtype} {x.shape}.")
        conditions = []
        expected = (
            ("local", local_condition, (*x.shape[:2], self.local_features)),
            ("global", global_condition, (x.shape[0], self.global_features)),
        )
        for word, condition, shape in expected:
            if (condition is None) != (shape[-1] == 0) or (condition is not None and condition.shape != shape):
                given = "None" if condition is None else f"of shape {condition.shape}"
                requires = f"shape {shape}" if shape[-1] else "None"
                raise UserError(f"WaveNet: {word}_condition is {given}, but {word}_features={shape[-1]} requires {requires}.")
            if condition is not None:
                conditions.append(condition if word == "local" else condition[:, None])
        return conditions
