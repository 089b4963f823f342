"""Ring buffers of past samples, and causal convolutions along time computed from them, step by step.

A new sample overwrites the oldest one, so a step costs the same whatever the dilation.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from dilax.functional import dilated_conv


class Ring(NamedTuple):
    """The last samples of a sequence.

    Attributes:
        samples: (batch, length, *rest), initially zeros.
        position: int32 (), where the next sample is written: the position of the oldest one.
    """

    samples: jax.Array
    position: jax.Array


def new_ring(batch: int, lookback: int, rest: tuple[int, ...], dtype: DTypeLike) -> Ring:
    """Return a ring of zeros, as of causal padding, from which samples up to `lookback` in the past can be read.

    Args:
        batch: Number of sequences.
        lookback: Largest shift that `advance_ring` is going to read.
        rest: Shape of a sample, such as (channels,).
        dtype: Dtype of the samples.
    """
    # One sample more than the lookback: a new sample is written before others are read, so that a compiled loop of steps works in place.
    return Ring(jnp.zeros((batch, lookback + 1 if lookback else 0, *rest), dtype), jnp.zeros((), jnp.int32))


def advance_ring(ring: Ring, chunk: jax.Array, shifts: Sequence[int]) -> tuple[list[jax.Array], Ring]:
    """Append a chunk to a ring, and read the samples that lie `shift` samples before each sample of the chunk, for every shift.

    Args:
        ring: The samples before the chunk; its dtype does not change.
        chunk: (batch, n, *rest), of the dtype that is returned.
        shifts: Numbers of samples, from 0 to the lookback of the ring.

    Returns:
        An array (batch, n, *rest) for each shift, and the next ring.
    """
    advanced = _append(ring, chunk)
    if chunk.shape[1] > 1:
        return [_shifted(ring, chunk, shift) for shift in shifts], advanced
    length, dtype = ring.samples.shape[1], chunk.dtype
    reads = [_wrap(advanced.position + (length - 1 - shift), length) if shift else None for shift in shifts]
    return [chunk if at is None else lax.dynamic_slice_in_dim(advanced.samples, at, 1, axis=1).astype(dtype) for at in reads], advanced


def _shifted(ring: Ring, chunk: jax.Array, shift: int) -> jax.Array:
    count, length = chunk.shape[1], ring.samples.shape[1]
    old = min(shift, count)
    if old == 0:
        return chunk
    past = jnp.take(ring.samples, _wrap(ring.position + (length - shift) + _range(old), length), axis=1, mode="clip").astype(chunk.dtype)
    return past if old == count else jnp.concatenate([past, chunk[:, : count - shift]], axis=1)


def _append(ring: Ring, chunk: jax.Array) -> Ring:
    count, length, chunk = chunk.shape[1], ring.samples.shape[1], chunk.astype(ring.samples.dtype)
    if length == 0:
        return ring
    if count >= length:
        return Ring(chunk[:, count - length :], jnp.zeros_like(ring.position))
    if count == 1:
        samples = lax.dynamic_update_slice_in_dim(ring.samples, chunk, ring.position, axis=1)
    else:
        samples = ring.samples.at[:, _wrap(ring.position + _range(count), length)].set(chunk)
    return Ring(samples, _wrap(ring.position + count, length))


def _wrap(positions: jax.Array, length: int) -> jax.Array:
    """Wrap positions around the end of a ring; they stay int32 even if 64-bit types are enabled."""
    return lax.rem(positions, np.int32(length))


def _range(n: int) -> jax.Array:
    return jnp.arange(n, dtype=jnp.int32)


def conv_step(
    chunk: jax.Array,
    kernel: jax.Array,
    ring: Ring,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    precision: lax.PrecisionLike = None,
) -> tuple[jax.Array, Ring]:
    """Return the next outputs of a causal convolution along time: `dilated_conv` with padding="CAUSAL", for a chunk of its input.

    Args:
        chunk: (batch, n, c_in), where n is a multiple of the stride.
        kernel: (taps, c_in // groups, c_out).
        ring: The input before the chunk, with a lookback of at least (taps - 1) * dilation.
        stride: Samples between neighbouring outputs.
        dilation: Samples between neighbouring taps.
        groups: Number of independent channel groups.
        precision: As in `jax.lax.conv_general_dilated`.

    Returns:
        (batch, n // stride, c_out), with float16 and bfloat16 summed in float32, and the next ring.
    """
    taps, wide = kernel.shape[0], _wide(chunk.dtype)
    reads, ring = advance_ring(ring, chunk, [(taps - 1 - tap) * dilation for tap in range(taps)])
    kernel = kernel.astype(wide)
    parts = [_product(x[:, ::stride].astype(wide), kernel[tap], groups, precision) for tap, x in enumerate(reads)]
    return functools.reduce(jnp.add, parts).astype(chunk.dtype), ring


def _wide(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which products are summed."""
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


def _product(x: jax.Array, matrix: jax.Array, groups: int, precision: lax.PrecisionLike) -> jax.Array:
    """Multiply x (batch, n, c_in) by a matrix (c_in // groups, c_out), group by group."""
    if groups == 1:
        return jnp.einsum("bnc,co->bno", x, matrix, precision=precision)
    if matrix.shape[0] == 1:
        multiplier = matrix.shape[1] // x.shape[-1]
        return (jnp.repeat(x, multiplier, axis=-1) if multiplier > 1 else x) * matrix[None]
    grouped = x.reshape(*x.shape[:2], groups, -1)
    y = jnp.einsum("bngc,cgo->bngo", grouped, matrix.reshape(matrix.shape[0], groups, -1), precision=precision)
    return y.reshape(*x.shape[:2], -1)


def conv_step_nd(
    chunk: jax.Array,
    kernel: jax.Array,
    ring: Ring,
    *,
    stride: tuple[int, ...],
    padding: tuple[Any, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
    precision: lax.PrecisionLike = None,
) -> tuple[jax.Array, Ring]:
    """Return the next outputs of a convolution with further spatial axes, of which every chunk is complete; otherwise as `conv_step`.

    Args:
        chunk: (batch, n, *space, c_in).
        kernel: (*kernel_size, c_in // groups, c_out).
        ring: The input before the chunk.
        stride: One per axis, time first.
        padding: One per axis, time first; that of time is causal.
        dilation: One per axis, time first.
        groups: Number of independent channel groups.
        precision: As in `jax.lax.conv_general_dilated`.
    """
    taps, count = kernel.shape[0], chunk.shape[1]
    reads, ring = advance_ring(ring, chunk, [(taps - 1 - tap) * dilation[0] for tap in range(taps)])
    stacked = jnp.stack([x[:, :: stride[0]] for x in reads], axis=2)
    y = dilated_conv(
        stacked.reshape(-1, *stacked.shape[2:]),
        kernel,
        stride=(1, *stride[1:]),
        padding=("VALID", *padding[1:]),
        dilation=(1, *dilation[1:]),
        groups=groups,
        precision=precision,
    )
    return y.reshape(chunk.shape[0], count // stride[0], *y.shape[2:]), ring


def conv_transpose_step(
    chunk: jax.Array, kernel: jax.Array, ring: Ring, *, stride: int = 1, dilation: int = 1, precision: lax.PrecisionLike = None
) -> tuple[jax.Array, Ring]:
    """Return the next outputs of a causal transposed convolution.

    y[m] = sum over p, t with p * stride + t * dilation = m of x[p] kernel[t]

    Args:
        chunk: (batch, n, c_in).
        kernel: (taps, c_out, c_in).
        ring: The input before the chunk, with a lookback of at least (taps - 1) * dilation // stride.
        stride: Outputs per input.
        dilation: Output samples between neighbouring taps.
        precision: As in `jax.lax.conv_general_dilated`.

    Returns:
        (batch, n * stride, c_out), with float16 and bfloat16 summed in float32, and the next ring.
    """
    batch, count, _ = chunk.shape
    wide = _wide(chunk.dtype)
    kernel = kernel.astype(wide)
    offsets = [divmod(tap * dilation, stride) for tap in range(kernel.shape[0])]
    reads, ring = advance_ring(ring, chunk, [shift for shift, _ in offsets])
    phases: list[jax.Array] = [jnp.zeros((batch, count, kernel.shape[1]), wide)] * stride
    for tap, (x, (_, phase)) in enumerate(zip(reads, offsets)):
        phases[phase] = phases[phase] + jnp.einsum("bnc,oc->bno", x.astype(wide), kernel[tap], precision=precision)
    return jnp.stack(phases, axis=2).reshape(batch, count * stride, -1).astype(chunk.dtype), ring
