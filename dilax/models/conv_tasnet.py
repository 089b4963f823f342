"""Conv-TasNet (Luo & Mesgarani 2019, arXiv:1809.07454): a mixture of sources parted by masks on learned frames of the waveform."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dilax.blocks import NORMS, Norm, masked
from dilax.errors import UserError, did_you_mean
from dilax.modules import DepthwiseConv
from dilax.streaming import Flow, Layer, Ring, Streamable, new_ring, turn

MASK_ACTIVATIONS = {"sigmoid": nn.sigmoid, "relu": nn.relu}
_LOOK_AHEAD = ("group", "global")  # norms that see all of a sequence


def pieces_of(x: jax.Array, size: int) -> jax.Array:
    """Cut x (batch, time) into (batch, pieces, size), the last filled up with zeros."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size))).reshape(x.shape[0], -1, size)


def windows_of(pieces: jax.Array, count: int) -> jax.Array:
    """Join every `count` neighbours of (batch, pieces, size): (batch, pieces + count - 1, count * size), with zeros before and behind."""
    padded = jnp.pad(pieces, ((0, 0), (count - 1, count - 1), (0, 0)))
    return jnp.concatenate([padded[:, i : i + pieces.shape[1] + count - 1] for i in range(count)], axis=-1)


class Frames(Layer):
    """A waveform as overlapping frames: frame p ends with the piece p of `stride` samples, the last frames with zeros behind the end.

    Fed in chunks, the frames come with the pieces they end with.

    Attributes:
        kernel_size: Samples in a frame, a multiple of the stride.
        stride: Samples from frame to frame.
    """

    kernel_size: int
    stride: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, time, 1) to (batch, ceil(time / stride) + kernel_size / stride - 1, kernel_size)."""
        return windows_of(pieces_of(x[..., 0], self.stride), self.kernel_size // self.stride)

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Return a ring of the pieces before."""
        if flow.old is not None and x.shape[1] % self.stride:
            raise UserError(
                f"{flow.caller}: a chunk of {x.shape[1]} samples is no multiple of stride={self.stride}; "
                "feed chunks that are, the last filled up with zeros."
            )
        flow.require_no_latency(self)
        flow.strided |= self.stride > 1
        return new_ring(x.shape[0], self.kernel_size // self.stride - 1, (self.stride,), x.dtype)

    def step(self, x: jax.Array, state: Ring, flow: Flow) -> tuple[jax.Array, Ring]:
        """Return the frames that a chunk ends, and the ring after it."""
        reads, after = turn(state, pieces_of(x[..., 0], self.stride), range(self.kernel_size // self.stride - 1, -1, -1))
        return jnp.concatenate(reads, axis=-1), after


class OverlapAdd(Layer):
    """The waveforms of which `Frames` are made: the sum of the frames, each in its place; in chunks, kernel_size - stride samples late.

    Attributes:
        stride: Samples from frame to frame.
    """

    stride: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, frames, sources, kernel_size) to (batch, (frames - kernel_size / stride + 1) * stride, sources)."""
        count = x.shape[-1] // self.stride
        return self._added([x[:, count - 1 - i : x.shape[1] - i] for i in range(count)])

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Return a ring of the frames whose ends are still to come."""
        flow.latency += x.shape[-1] - self.stride
        return new_ring(x.shape[0], x.shape[-1] // self.stride - 1, x.shape[2:], x.dtype)

    def step(self, x: jax.Array, state: Ring, flow: Flow) -> tuple[jax.Array, Ring]:
        """Return the samples that no later frame covers, and the ring after the chunk."""
        reads, after = turn(state, x, range(x.shape[-1] // self.stride))
        return self._added(reads), after

    def _added(self, reads: list[jax.Array]) -> jax.Array:
        """Add the pieces: the first of the last frame, the second of the frame before it, and so on."""
        parts = [read[..., i * self.stride : (i + 1) * self.stride] for i, read in enumerate(reads)]
        y = functools.reduce(jnp.add, parts)
        return jnp.swapaxes(y, 2, 3).reshape(y.shape[0], -1, y.shape[2])


class SeparableBlock(nn.Module):
    """1x1 convolution, PReLU, norm, dilated depthwise convolution, PReLU, norm, and 1x1 convolutions to residual and skip (figure 1c).

    Attributes:
        hidden_features: Channels between the 1x1 convolutions.
        skip_features: Channels of the skip output.
        kernel_size: Taps.
        dilation: Of the depthwise convolution.
        residual: Whether there is a residual output; the last block of a network has none.
        causal: Whether no output sees a later input; else the padding is "SAME".
        norm: As `dilax.blocks.Norm`.
        dtype: Of the computation.
    """

    hidden_features: int
    skip_features: int
    kernel_size: int
    dilation: int
    residual: bool = True
    causal: bool = False
    norm: str = "global"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Map (batch, frames, channels) to the next x and the skip output (batch, frames, skip_features); mask is bool (batch, frames)."""
        y = self._normalised(nn.Dense(self.hidden_features, dtype=self.dtype, name="expand")(x), 1, train, mask)
        padding = "CAUSAL" if self.causal else "SAME"
        conv = DepthwiseConv((self.kernel_size,), dilation=self.dilation, padding=padding, dtype=self.dtype, name="conv")
        y = self._normalised(conv(y if self.causal else masked(y, mask)), 2, train, mask)
        if self.residual:
            x = x + nn.Dense(x.shape[-1], dtype=self.dtype, name="residual_out")(y)
        return x, nn.Dense(self.skip_features, dtype=self.dtype, name="skip_out")(y)

    def _normalised(self, y: jax.Array, place: int, train: bool, mask: jax.Array | None) -> jax.Array:
        y = prelu(f"prelu{place}")(y)
        return Norm(self.norm, self.dtype, name=f"norm{place}")(y, train=train, mask=mask)


def prelu(name: str) -> nn.PReLU:
    """One learned slope, at first that of He et al. 2015 (arXiv:1502.01852)."""
    return nn.PReLU(negative_slope_init=0.25, name=name)


class ConvTasNet(Streamable):
    """Frames of a mixture, encoded by `features` filters; a mask on them for each source; the masked features decoded and added.

    The masks come from `repeats` times `blocks` blocks with the dilations 1, 2, 4, ..., of which each sums up to a skip output; they see
    1 + repeats * (block_kernel_size - 1) * (2^blocks - 1) frames. The defaults are the paper's best network that is not causal, with
    4,984,881 parameters, as many as torchaudio's `conv_tasnet_base`; there as here an example is normalised as a whole.

    A causal network streams in chunks that are multiples of the stride, kernel_size - stride samples late: a sample is the sum of all
    frames that cover it. So the source at t is estimated from the mixture up to t + kernel_size - 1 at most.

    Parameters are named `encoder`, `input_norm`, `input`, `block0/expand`, `block0/conv` ..., `prelu`, `masks` and `decoder`.

    Attributes:
        sources: Of a mixture.
        features: Of the frames, between encoder and decoder (the paper's N).
        kernel_size: Samples in a frame (L), a multiple of the stride.
        stride: Samples from frame to frame; the paper's is half the kernel.
        bottleneck_features: Channels of the residual path (B).
        hidden_features: Channels in a block (H).
        skip_features: Channels of the skip path (Sc).
        block_kernel_size: Taps in a block (P).
        blocks: Blocks in a repeat (X).
        repeats: Of the row of dilations (R).
        causal: Whether no frame sees a later one.
        norm: As `dilax.blocks.Norm`; None is "cumulative" in a causal network, else "global".
        mask_activation: "sigmoid" or "relu".
        dtype: Of the computation; parameters and outputs stay float32.

    Example:
        >>> model, x = ConvTasNet(blocks=4, repeats=1), jnp.zeros((2, 1000, 1))
        >>> jax.eval_shape(lambda key: model.init_with_output(key, x, train=False)[0], jax.random.key(0)).shape
        (2, 1000, 2)
    """

    sources: int = 2
    features: int = 512
    kernel_size: int = 16
    stride: int = 8
    bottleneck_features: int = 128
    hidden_features: int = 512
    skip_features: int = 128
    block_kernel_size: int = 3
    blocks: int = 8
    repeats: int = 3
    causal: bool = False
    norm: str | None = None
    mask_activation: str = "sigmoid"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map mixtures (batch, time, 1) to their sources (batch, time, sources) in float32.

        Args:
            x: The mixtures.
            train: Whether norm="batch" uses the statistics of the batch.
            mask: bool (batch, time), False behind the end of a shorter mixture, which no output before it then sees.

        Raises:
            UserError: if x is no mixture, or a field does not fit.
        """
        self._check(x)
        frames = None
        if mask is not None:
            frames = windows_of(pieces_of(mask, self.stride), self.kernel_size // self.stride).any(-1)
            frames |= ~frames.any(1, keepdims=True)  # statistics of nothing are not finite: an empty mixture is one of silence
            x = masked(x, mask)
        encoder = nn.Dense(self.features, use_bias=False, dtype=self.dtype, name="encoder")
        encoded = encoder(Frames(self.kernel_size, self.stride, name="frames")(x))
        masks = MASK_ACTIVATIONS[self.mask_activation](self._masks(encoded, train, frames))
        decoder = nn.Dense(self.kernel_size, use_bias=False, name="decoder")
        y = decoder((masks * encoded[:, :, None]).astype(jnp.float32))
        return OverlapAdd(self.stride, name="overlap_add")(y)[:, : x.shape[1]]

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        """Return the shortest chunk, of `stride` samples."""
        return jnp.zeros((batch_size, self.stride, 1), dtype)

    def _masks(self, encoded: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """Map (batch, frames, features) to what the activation makes masks, (batch, frames, sources, features)."""
        norm = self.norm or ("cumulative" if self.causal else "global")
        shared: dict[str, Any] = dict(causal=self.causal, norm=norm, dtype=self.dtype)
        y = Norm(norm, self.dtype, name="input_norm")(encoded, train=train, mask=mask)
        y = nn.Dense(self.bottleneck_features, dtype=self.dtype, name="input")(y)
        skips: Any = None
        for i in range(self.repeats * self.blocks):
            dilation, residual = 2 ** (i % self.blocks), i < self.repeats * self.blocks - 1
            block = SeparableBlock(
                self.hidden_features, self.skip_features, self.block_kernel_size, dilation, residual, name=f"block{i}", **shared
            )
            y, skip = block(y, train=train, mask=mask)
            skips = skip if skips is None else skips + skip
        y = nn.Dense(self.sources * self.features, dtype=self.dtype, name="masks")(prelu("prelu")(skips))
        return y.reshape(*y.shape[:2], self.sources, self.features)

    def _check(self, x: jax.Array) -> None:
        if x.ndim != 3 or x.shape[-1] != 1 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(f"ConvTasNet: x must be floats (batch, time, 1), got {x.dtype} {x.shape}.")
        if self.stride < 1 or self.kernel_size < 1 or self.kernel_size % self.stride:
            raise UserError(f"ConvTasNet: kernel_size={self.kernel_size} must be a multiple of stride={self.stride}, such as 16 of 8.")
        if self.blocks < 1 or self.repeats < 1:
            raise UserError(f"ConvTasNet: blocks={self.blocks} and repeats={self.repeats} make no network; give at least 1 of each.")
        if self.mask_activation not in MASK_ACTIVATIONS:
            hint = did_you_mean(str(self.mask_activation), MASK_ACTIVATIONS)
            raise UserError(f"ConvTasNet: mask_activation={self.mask_activation!r} is unknown; use one of {tuple(MASK_ACTIVATIONS)}.{hint}")
        if self.causal and self.norm in _LOOK_AHEAD:
            causal = tuple(name for name in NORMS if name not in _LOOK_AHEAD)
            raise UserError(f"ConvTasNet: norm={self.norm!r} looks at the whole sequence, and causal=True forbids it; use one of {causal}.")
