"""Rings of past samples, and causal convolutions along time computed from them, step by step.

What enters a ring overwrites what is oldest, so a step costs the same whatever the dilation.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dilax.functional import dilated_conv


class Ring(NamedTuple):
    """The last samples of a sequence.

    Attributes:
        samples: (batch, length, *rest), zeros at first.
        place: int32 (), where the next one goes: that of the oldest.
    """

    samples: jax.Array
    place: jax.Array


def new_ring(batch: int, lookback: int, rest: tuple[int, ...], dtype: Any) -> Ring:
    """Return a ring of zeros, which causal padding is, from which samples up to `lookback` back can be read."""
    # One more: a single sample enters before others are read, so that the compiled loop of many steps writes in place.
    return Ring(jnp.zeros((batch, lookback + 1 if lookback else 0, *rest), dtype), jnp.zeros((), jnp.int32))


def turn(ring: Ring, chunk: jax.Array, shifts: Sequence[int]) -> tuple[list[jax.Array], Ring]:
    """Let a chunk enter, and return what lies `shift` samples before each of its samples, for every shift, and the ring after it.

    Args:
        ring: Of the samples before; it keeps its type.
        chunk: (batch, n, *rest), of the type that is returned.
        shifts: From 0 to the lookback of the ring.

    Returns:
        Arrays (batch, n, *rest), and the next ring.
    """
    after = _pushed(ring, chunk)
    if chunk.shape[1] > 1:
        return [_before(ring, chunk, shift) for shift in shifts], after
    length, dtype = ring.samples.shape[1], chunk.dtype
    reads = [_wrapped(after.place + (length - 1 - shift), length) if shift else None for shift in shifts]
    return [chunk if at is None else lax.dynamic_slice_in_dim(after.samples, at, 1, axis=1).astype(dtype) for at in reads], after


def _before(ring: Ring, chunk: jax.Array, shift: int) -> jax.Array:
    count, length = chunk.shape[1], ring.samples.shape[1]
    old = min(shift, count)
    if old == 0:
        return chunk
    past = jnp.take(ring.samples, _wrapped(ring.place + (length - shift) + _count(old), length), axis=1, mode="clip").astype(chunk.dtype)
    return past if old == count else jnp.concatenate([past, chunk[:, : count - shift]], axis=1)


def _pushed(ring: Ring, chunk: jax.Array) -> Ring:
    count, length, chunk = chunk.shape[1], ring.samples.shape[1], chunk.astype(ring.samples.dtype)
    if length == 0:
        return ring
    if count >= length:
        return Ring(chunk[:, count - length :], jnp.zeros_like(ring.place))
    if count == 1:
        samples = lax.dynamic_update_slice_in_dim(ring.samples, chunk, ring.place, axis=1)
    else:
        samples = ring.samples.at[:, _wrapped(ring.place + _count(count), length)].set(chunk)
    return Ring(samples, _wrapped(ring.place + count, length))


def _wrapped(places: jax.Array, length: int) -> jax.Array:
    """Places in a ring, int32 with 64 bits enabled, too."""
    return lax.rem(places, np.int32(length))


def _count(n: int) -> jax.Array:
    return jnp.arange(n, dtype=jnp.int32)


def conv_step(
    chunk: jax.Array, kernel: jax.Array, ring: Ring, *, stride: int = 1, dilation: int = 1, groups: int = 1, precision: Any = None
) -> tuple[jax.Array, Ring]:
    """Return the next outputs of a causal convolution along time: `dilated_conv` with padding "CAUSAL", for a chunk of its input.

    Args:
        chunk: (batch, n, c_in), n a multiple of the stride.
        kernel: (taps, c_in // groups, c_out).
        ring: Of the input before the chunk, with a lookback of (taps - 1) * dilation or more.
        stride: As `dilated_conv`, with ints for the one axis; so are dilation, groups and precision.
        dilation: Samples between neighbouring taps.
        groups: Of the channels.
        precision: Of the products.

    Returns:
        (batch, n // stride, c_out), float16 and bfloat16 summed in float32, and the ring after the chunk.
    """
    taps, wide = kernel.shape[0], _wide(chunk.dtype)
    reads, ring = turn(ring, chunk, [(taps - 1 - tap) * dilation for tap in range(taps)])
    kernel = kernel.astype(wide)
    parts = [_product(x[:, ::stride].astype(wide), kernel[tap], groups, precision) for tap, x in enumerate(reads)]
    return functools.reduce(jnp.add, parts).astype(chunk.dtype), ring


def _wide(dtype: Any) -> Any:
    """What products of a type are summed in."""
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


def _product(x: jax.Array, matrix: jax.Array, groups: int, precision: Any) -> jax.Array:
    """X (batch, n, c_in) times (c_in // groups, c_out), group by group."""
    if groups == 1:
        return jnp.einsum("bnc,co->bno", x, matrix, precision=precision)
    if matrix.shape[0] == 1:
        multiplier = matrix.shape[1] // x.shape[-1]
        return (jnp.repeat(x, multiplier, axis=-1) if multiplier > 1 else x) * matrix[None]
    grouped = x.reshape(*x.shape[:2], groups, -1)
    y = jnp.einsum("bngc,cgo->bngo", grouped, matrix.reshape(matrix.shape[0], groups, -1), precision=precision)
    return y.reshape(*x.shape[:2], -1)


def conv_step_nd(
    chunk: jax.Array, kernel: jax.Array, ring: Ring, *, stride: Any, padding: Any, dilation: Any, groups: int = 1, precision: Any = None
) -> tuple[jax.Array, Ring]:
    """As `conv_step`, with further spatial axes that are there whole; `stride`, `padding` and `dilation` are one per axis, time first."""
    taps, count = kernel.shape[0], chunk.shape[1]
    reads, ring = turn(ring, chunk, [(taps - 1 - tap) * dilation[0] for tap in range(taps)])
    windows = jnp.stack([x[:, :: stride[0]] for x in reads], axis=2)
    windows = windows.reshape(-1, *windows.shape[2:])
    y = dilated_conv(
        windows,
        kernel,
        stride=(1, *stride[1:]),
        padding=("VALID", *padding[1:]),
        dilation=(1, *dilation[1:]),
        groups=groups,
        precision=precision,
    )
    return y.reshape(chunk.shape[0], count // stride[0], *y.shape[2:]), ring


def conv_transpose_step(
    chunk: jax.Array, kernel: jax.Array, ring: Ring, *, stride: int = 1, dilation: int = 1, precision: Any = None
) -> tuple[jax.Array, Ring]:
    """Return the next outputs of a causal transposed convolution.

    y[m] = sum over p, t with p * stride + t * dilation = m of x[p] kernel[t]

    Args:
        chunk: (batch, n, c_in).
        kernel: (taps, c_out, c_in).
        ring: Of the input before the chunk, with a lookback of (taps - 1) * dilation // stride or more.
        stride: Outputs per input.
        dilation: Outputs between neighbouring taps.
        precision: Of the products.

    Returns:
        (batch, n * stride, c_out), float16 and bfloat16 summed in float32, and the ring after the chunk.
    """
    batch, count, _ = chunk.shape
    wide = _wide(chunk.dtype)
    kernel = kernel.astype(wide)
    places = [divmod(tap * dilation, stride) for tap in range(kernel.shape[0])]
    reads, ring = turn(ring, chunk, [shift for shift, _ in places])
    phases: list[Any] = [jnp.zeros((batch, count, kernel.shape[1]), wide)] * stride
    for tap, (x, (_, phase)) in enumerate(zip(reads, places)):
        phases[phase] = phases[phase] + jnp.einsum("bnc,oc->bno", x.astype(wide), kernel[tap], precision=precision)
    return jnp.stack(phases, axis=2).reshape(batch, count * stride, -1).astype(chunk.dtype), ring
