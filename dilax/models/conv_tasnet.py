"""Conv-TasNet (Luo & Mesgarani 2019, arXiv:1809.07454): source separation by masking a learned representation of the waveform."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import NORMS, Norm, masked
from dilax.errors import UserError
from dilax.modules import DepthwiseConv
from dilax.streaming import Flow, Layer, Ring, Streamable, advance_ring, new_ring

MASK_ACTIVATIONS = {"sigmoid": nn.sigmoid, "relu": nn.relu}
_NOT_CAUSAL = ("group", "global")  # norms with statistics over the whole sequence


def split_segments(x: jax.Array, size: int) -> jax.Array:
    """Split x (batch, time) into segments (batch, segments, size); the last one is padded with zeros."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size))).reshape(x.shape[0], -1, size)


def overlapping_frames(segments: jax.Array, count: int) -> jax.Array:
    """Join every `count` neighbouring segments, with zeros before the first and after the last.

    Args:
        segments: (batch, segments, size).
        count: Segments per frame.

    Returns:
        (batch, segments + count - 1, count * size).
    """
    padded = jnp.pad(segments, ((0, 0), (count - 1, count - 1), (0, 0)))
    return jnp.concatenate([padded[:, i : i + segments.shape[1] + count - 1] for i in range(count)], axis=-1)


class Frames(Layer):
    """Split a waveform into overlapping frames: frame p ends with segment p of `stride` samples; the last frames are padded with zeros.

    Fed in chunks, each frame is returned with the segment that it ends with.

    Attributes:
        kernel_size: Samples per frame, a multiple of the stride.
        stride: Samples between the starts of neighbouring frames.
    """

    kernel_size: int
    stride: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, time, 1) to (batch, ceil(time / stride) + kernel_size / stride - 1, kernel_size)."""
        return overlapping_frames(split_segments(x[..., 0], self.stride), self.kernel_size // self.stride)

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Return a ring of the previous segments."""
        if flow.old is not None and x.shape[1] % self.stride:
            raise UserError(
                f"{flow.caller}: a chunk of {x.shape[1]} samples is not a multiple of stride={self.stride}; "
                "feed multiples of it, the last chunk padded with zeros."
            )
        flow.require_no_latency(self)
        flow.strided |= self.stride > 1
        return new_ring(x.shape[0], self.kernel_size // self.stride - 1, (self.stride,), x.dtype)

    def step(self, x: jax.Array, state: Ring, flow: Flow) -> tuple[jax.Array, Ring]:
        """Return the frames that end in a chunk, and the next ring."""
        shifts = range(self.kernel_size // self.stride - 1, -1, -1)
        segments, ring = advance_ring(state, split_segments(x[..., 0], self.stride), shifts)
        return jnp.concatenate(segments, axis=-1), ring


class OverlapAdd(Layer):
    """Overlap-add: sum `Frames`, each at its own position, to waveforms. Fed in chunks, the outputs are kernel_size - stride samples late.

    Attributes:
        stride: Samples between the starts of neighbouring frames.
    """

    stride: int

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, frames, sources, kernel_size) to (batch, (frames - kernel_size / stride + 1) * stride, sources)."""
        count = x.shape[-1] // self.stride
        return self._sum_segments([x[:, count - 1 - i : x.shape[1] - i] for i in range(count)])

    def start(self, x: jax.Array, flow: Flow) -> Ring:
        """Return a ring of the frames that overlap later ones."""
        flow.latency += x.shape[-1] - self.stride
        return new_ring(x.shape[0], x.shape[-1] // self.stride - 1, x.shape[2:], x.dtype)

    def step(self, x: jax.Array, state: Ring, flow: Flow) -> tuple[jax.Array, Ring]:
        """Return the samples that no later frame overlaps, and the next ring."""
        frames, ring = advance_ring(state, x, range(x.shape[-1] // self.stride))
        return self._sum_segments(frames), ring

    def _sum_segments(self, frames: list[jax.Array]) -> jax.Array:
        """Sum the first segment of the last frame, the second segment of the frame before it, and so on."""
        parts = [frame[..., i * self.stride : (i + 1) * self.stride] for i, frame in enumerate(frames)]
        y = functools.reduce(jnp.add, parts)
        return jnp.swapaxes(y, 2, 3).reshape(y.shape[0], -1, y.shape[2])


class SeparableBlock(nn.Module):
    """1x1 convolution, PReLU, norm, dilated depthwise convolution, PReLU, norm, and 1x1 convolutions to residual and skip (figure 1c).

    Attributes:
        hidden_features: Channels between the 1x1 convolutions.
        skip_features: Channels of the skip output.
        kernel_size: Taps of the depthwise convolution.
        dilation: Dilation of the depthwise convolution.
        residual: Whether there is a residual output; the last block of a network has none.
        causal: Whether the convolution is causal; otherwise its padding is "SAME".
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        dtype: Dtype of the computation.
    """

    hidden_features: int
    skip_features: int
    kernel_size: int
    dilation: int
    residual: bool = True
    causal: bool = False
    norm: str = "global"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Map (batch, frames, channels) to the next x and the skip output (batch, frames, skip_features); mask is bool (batch, frames)."""
        y = self._act_norm(nn.Dense(self.hidden_features, dtype=self.dtype, name="expand")(x), 1, train, mask)
        padding = "CAUSAL" if self.causal else "SAME"
        conv = DepthwiseConv((self.kernel_size,), dilation=self.dilation, padding=padding, dtype=self.dtype, name="conv")
        y = self._act_norm(conv(y if self.causal else masked(y, mask)), 2, train, mask)
        if self.residual:
            x = x + nn.Dense(x.shape[-1], dtype=self.dtype, name="residual_out")(y)
        return x, nn.Dense(self.skip_features, dtype=self.dtype, name="skip_out")(y)

    def _act_norm(self, y: jax.Array, number: int, train: bool, mask: jax.Array | None) -> jax.Array:
        y = prelu(f"prelu{number}")(y)
        return Norm(self.norm, self.dtype, name=f"norm{number}")(y, train=train, mask=mask)


def prelu(name: str) -> nn.PReLU:
    """Return a PReLU with a single learned slope, initially 0.25 as in He et al. 2015 (arXiv:1502.01852)."""
    return nn.PReLU(negative_slope_init=0.25, name=name)


@checked(norm=NORMS, mask_activation=MASK_ACTIVATIONS)
class ConvTasNet(Streamable):
    """Encode the frames of a mixture by `features` filters, mask them for each source, and decode and overlap-add the masked features.

    The masks are computed from the sum of the skip outputs of `repeats` times `blocks` blocks with the dilations 1, 2, 4, ...; they see
    1 + repeats * (block_kernel_size - 1) * (2^blocks - 1) frames. The defaults are the paper's best non-causal network, with 4,984,881
    parameters like torchaudio's `conv_tasnet_base`; as there, each example is normalised as a whole.

    A causal network is fed in chunks that are multiples of the stride. Its outputs are kernel_size - stride samples late, since a sample is
    the sum of all frames that cover it: the sources at t are estimated from the mixture up to at most t + kernel_size - 1.

    Parameters are named `encoder`, `input_norm`, `input`, `block0/expand`, `block0/conv` ..., `prelu`, `masks` and `decoder`.

    Attributes:
        sources: Number of sources of a mixture.
        features: Channels between encoder and decoder (the paper's N).
        kernel_size: Samples per frame (L), a multiple of the stride.
        stride: Samples between the starts of neighbouring frames; half of `kernel_size` in the paper.
        bottleneck_features: Channels of the residual path (B).
        hidden_features: Channels within a block (H).
        skip_features: Channels of the skip path (Sc).
        block_kernel_size: Taps within a block (P).
        blocks: Blocks per repeat (X).
        repeats: Repeats of the sequence of dilations (R).
        causal: Whether no frame sees a later one.
        norm: One of `dilax.blocks.NORMS`, see `dilax.blocks.Norm`; None is "cumulative" in a causal network, else "global".
        mask_activation: "sigmoid" or "relu".
        dtype: Dtype of the computation; parameters and outputs stay float32.

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
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map mixtures (batch, time, 1) to their sources (batch, time, sources) in float32.

        Args:
            x: The mixtures.
            train: Whether norm="batch" uses the statistics of the batch.
            mask: bool (batch, time), False after the end of a shorter mixture: no valid output depends on those samples.

        Raises:
            UserError: if x has the wrong shape or dtype, or a field is invalid.
        """
        self._check(x)
        frames = None
        if mask is not None:
            frames = overlapping_frames(split_segments(mask, self.stride), self.kernel_size // self.stride).any(-1)
            frames |= ~frames.any(1, keepdims=True)  # statistics of no samples are not finite: an empty mixture counts as silence
            x = masked(x, mask)
        encoder = nn.Dense(self.features, use_bias=False, dtype=self.dtype, name="encoder")
        encoded = encoder(Frames(self.kernel_size, self.stride, name="frames")(x))
        masks = MASK_ACTIVATIONS[self.mask_activation](self._masks(encoded, train, frames))
        decoder = nn.Dense(self.kernel_size, use_bias=False, name="decoder")
        y = decoder((masks * encoded[:, :, None]).astype(jnp.float32))
        return OverlapAdd(self.stride, name="overlap_add")(y)[:, : x.shape[1]]

    def stream_input(self, batch_size: int, dtype: DTypeLike) -> jax.Array:
        """Return the shortest possible chunk, `stride` samples of zeros."""
        return jnp.zeros((batch_size, self.stride, 1), dtype)

    def _masks(self, encoded: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """Map (batch, frames, features) to masks before their activation, (batch, frames, sources, features)."""
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
        if self.kernel_size % self.stride:
            raise UserError(
                f"ConvTasNet: kernel_size={self.kernel_size} must be a multiple of stride={self.stride}; use 16 and 8, for instance."
            )
        if self.causal and self.norm in _NOT_CAUSAL:
            causal = tuple(name for name in NORMS if name not in _NOT_CAUSAL)
            raise UserError(
                f"ConvTasNet: norm={self.norm!r} looks at the whole sequence, which causal=True does not allow; use one of {causal}."
            )
