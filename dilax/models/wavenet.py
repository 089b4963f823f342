"""WaveNet (van den Oord et al. 2016, arXiv:1609.03499): gated residual units of dilated causal convolutions that share skip outputs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dilax.errors import UserError, did_you_mean
from dilax.modules import DilatedConv
from dilax.streaming import Streamable

OUTPUTS = ("softmax", "mixture")


class GatedUnit(nn.Module):
    """tanh(filter) * sigmoid(gate) of a dilated causal convolution and its conditions, to a residual and a skip output.

    Attributes:
        features: Channels of filter and gate.
        skip_features: Channels of the skip output.
        kernel_size: Taps.
        dilation: Of the convolution.
        dtype: Of the computation.
    """

    features: int
    skip_features: int
    kernel_size: int
    dilation: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, conditions: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Map (batch, time, channels), and conditions (batch, time or 1, any channels), to the next x and to the skip output."""
        y = self._conv(2 * self.features, self.kernel_size, "conv")(x)
        for i, condition in enumerate(conditions):
            y = y + self._conv(2 * self.features, 1, f"condition{i}", use_bias=False)(condition)
        filtered, gate = jnp.split(y, 2, axis=-1)
        y = jnp.tanh(filtered) * nn.sigmoid(gate)
        return x + self._conv(x.shape[-1], 1, "residual")(y), self._conv(self.skip_features, 1, "skip")(y)

    def _conv(self, features: int, taps: int, name: str, use_bias: bool = True) -> DilatedConv:
        dilation = self.dilation if taps > 1 else 1
        return DilatedConv(features, (taps,), padding="CAUSAL", dilation=dilation, use_bias=use_bias, dtype=self.dtype, name=name)


class WaveNet(Streamable):
    """A causal convolution, a `GatedUnit` for each dilation, and two 1x1 convolutions of the sum of their skip outputs.

    The outputs at t are for the sample at t + 1: they see x up to t. Parameters are named `embedding`, or `input`, `unit0` ..., `mix` and
    `head`.

    Attributes:
        vocabulary: Levels of a sample, with outputs="softmax".
        dilations: Of the units.
        kernel_size: Taps.
        features: Channels of the residual path and of filter and gate.
        skip_features: Channels of the skip path.
        outputs: "softmax": x is codes (batch, time) and the outputs are logits over the vocabulary; "mixture": x is a waveform (batch,
            time, 1) in -1..1 and the outputs are those that `dilax.losses.logistic_mixture_loss` takes.
        mixtures: Logistics in a mixture.
        local_features: Channels of the local condition, (batch, time, channels), such as a spectrogram brought to the rate of x; 0 is none.
        global_features: Channels of the global condition, (batch, channels), such as a speaker's embedding; 0 is none.
        dtype: Of the computation; parameters and outputs stay float32.

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
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, local_condition: jax.Array | None = None, global_condition: jax.Array | None = None
    ) -> jax.Array:
        """Map a sequence to the outputs for its next sample at every step, (batch, time, outputs) in float32.

        Args:
            x: As `outputs` says.
            train: Not used: there is nothing random and no statistic.
            local_condition: (batch, time, local_features); that at t goes with the outputs at t.
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

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        """Return one sample."""
        return jnp.zeros((batch_size, 1), jnp.int32) if self.outputs == "softmax" else jnp.zeros((batch_size, 1, 1), dtype)

    def stream_conditions(self, batch_size: int) -> dict[str, jax.Array]:
        """Return conditions of zeros for one sample."""
        conditions = {}
        if self.local_features:
            conditions["local_condition"] = jnp.zeros((batch_size, 1, self.local_features))
        if self.global_features:
            conditions["global_condition"] = jnp.zeros((batch_size, self.global_features))
        return conditions

    def _conditions(self, x: jax.Array, local_condition: jax.Array | None, global_condition: jax.Array | None) -> list[jax.Array]:
        """The conditions as (batch, time or 1, channels), checked."""
        if self.outputs not in OUTPUTS:
            hint = did_you_mean(str(self.outputs), OUTPUTS)
            raise UserError(f"WaveNet: outputs={self.outputs!r} is unknown; use one of {OUTPUTS}.{hint}")
        if not self.dilations:
            raise UserError("WaveNet: dilations=() makes no network; give one for each unit, such as (1, 2, 4, 8).")
        codes = x.ndim == 2 and jnp.issubdtype(x.dtype, jnp.integer)
        if self.outputs == "softmax" and not codes:
            raise UserError(f"WaveNet: x must be integer codes (batch, time), got {x.dtype} {x.shape}; see mu_law_encode.")
        if self.outputs == "mixture" and not (x.ndim == 3 and x.shape[-1] == 1 and jnp.issubdtype(x.dtype, jnp.floating)):
            raise UserError(f"WaveNet: with outputs='mixture' x must be floats (batch, time, 1), got {x.dtype} {x.shape}.")
        found = []
        wanted = (
            ("local", local_condition, (*x.shape[:2], self.local_features)),
            ("global", global_condition, (x.shape[0], self.global_features)),
        )
        for word, given, shape in wanted:
            if (given is None) != (shape[-1] == 0) or (given is not None and given.shape != shape):
                what = "none" if given is None else f"shape {given.shape}"
                needs = f"shape {shape}" if shape[-1] else "none"
                raise UserError(f"WaveNet: {word}_condition has {what}, and {word}_features={shape[-1]} needs {needs}.")
            if given is not None:
                found.append(given if word == "local" else given[:, None])
        return found
