"""Ring buffers of past samples, and causal convolutions along time computed from them, step by step.

A new sample overwrites the oldest one, so a step costs the same whatever the dilation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from dilax.errors import UserError
from dilax.functional import dilated_conv, dilated_conv_transpose


class Ring(NamedTuple):
    """The last samples of a sequence.

    Attributes:
        samples: (batch, length, *rest), initially zeros.
        position: int32 (), where the next sample is written: the position of the oldest one. None if that is always the first one: the
            samples are in order, and each chunk moves them; see `in_order`.
    """

    samples: jax.Array
    position: jax.Array | None


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


def in_order(state: Any) -> Any:
    """Return a state whose rings hold their samples in order, the oldest first, and keep them so.

    A step then moves all samples instead of overwriting one, with no index that depends on the data, as programs of other runtimes need it,
    which copy their state at each step in any case; see `dilax.export.stream_step`.

    Args:
        state: A state of `Streamable`, or of one layer.

    Returns:
        The state in another form, with the same outputs.

    Example:
        >>> ring = Ring(jnp.asarray([[7.0, 8.0, 5.0, 6.0]]), jnp.asarray(2))
        >>> in_order({"conv": ring})["conv"].samples.tolist()
        [[5.0, 6.0, 7.0, 8.0]]
    """

    def ordered(part: Any) -> Any:
        if not isinstance(part, Ring) or part.position is None:
            return part
        return Ring(jnp.roll(part.samples, -part.position, axis=1), None)

    return jax.tree.map(ordered, state, is_leaf=lambda part: isinstance(part, Ring))


def advance_ring(ring: Ring, chunk: jax.Array, shifts: Sequence[int]) -> tuple[list[jax.Array], Ring]:
    """Append a chunk to a ring, and read the samples that lie `shift` samples before each sample of the chunk, for every shift.

    Args:
        ring: The samples before the chunk; its dtype does not change.
        chunk: (batch, n, *rest), of the dtype that is returned.
        shifts: Numbers of samples, from 0 to the lookback of the ring.

    Returns:
        An array (batch, n, *rest) for each shift, and the next ring.

    Raises:
        UserError: if a shift is larger than the lookback of the ring, or the chunk does not fit it.
    """
    lookback = max(shifts, default=0)
    _check("advance_ring", chunk, ring, lookback)
    if ring.position is None:
        joined, advanced = _join(ring, chunk, lookback)
        starts = [joined.shape[1] - chunk.shape[1] - shift for shift in shifts]
        return [lax.slice_in_dim(joined, start, start + chunk.shape[1], axis=1) for start in starts], advanced
    advanced = _append(ring, chunk)
    if chunk.shape[1] > 1:
        return [_shifted(ring, chunk, shift) for shift in shifts], advanced
    length, dtype = ring.samples.shape[1], chunk.dtype
    reads = [_wrap(_position(advanced) + (length - 1 - shift), length) if shift else None for shift in shifts]
    return [chunk if at is None else lax.dynamic_slice_in_dim(advanced.samples, at, 1, axis=1).astype(dtype) for at in reads], advanced


def _check(caller: str, chunk: jax.Array, ring: Ring, lookback: int, stride: int = 1) -> None:
    """Refuse what would be read from the wrong place: samples that the ring does not hold, or half a stride."""
    held = max(ring.samples.shape[1] - 1, 0)
    if lookback > held:
        raise UserError(f"{caller}: the ring holds {held} past samples, but {lookback} are read; make it by new_ring with that lookback.")
    if chunk.shape[1] % stride:
        raise UserError(f"{caller}: a chunk of {chunk.shape[1]} samples is not a multiple of the stride {stride}; feed multiples of it.")
    if (chunk.shape[0], *chunk.shape[2:]) != (ring.samples.shape[0], *ring.samples.shape[2:]):
        raise UserError(
            f"{caller}: a chunk of shape {chunk.shape} does not fit a ring of shape {ring.samples.shape}; both are (batch, n, *rest)."
        )


def _shifted(ring: Ring, chunk: jax.Array, shift: int) -> jax.Array:
    count, length = chunk.shape[1], ring.samples.shape[1]
    old = min(shift, count)
    if old == 0:
        return chunk
    past = jnp.take(ring.samples, _wrap(_position(ring) + (length - shift) + _range(old), length), axis=1, mode="clip").astype(chunk.dtype)
    return past if old == count else jnp.concatenate([past, chunk[:, : count - shift]], axis=1)


def _position(ring: Ring) -> jax.Array:
    """Return the position of a ring whose samples are not in order."""
    assert ring.position is not None
    return ring.position


def _append(ring: Ring, chunk: jax.Array) -> Ring:
    count, length, chunk = chunk.shape[1], ring.samples.shape[1], chunk.astype(ring.samples.dtype)
    if length == 0:
        return ring
    if count >= length:
        return Ring(chunk[:, count - length :], jnp.zeros_like(_position(ring)))
    if count == 1:
        samples = lax.dynamic_update_slice_in_dim(ring.samples, chunk, _position(ring), axis=1)
    else:
        samples = ring.samples.at[:, _wrap(_position(ring) + _range(count), length)].set(chunk)
    return Ring(samples, _wrap(_position(ring) + count, length))


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
    lowering: str = "auto",
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
        lowering: As in `dilated_conv`.

    Returns:
        (batch, n // stride, c_out), with float16 and bfloat16 summed in float32, and the next ring.

    Raises:
        UserError: if the ring holds too few samples, or the chunk does not fit it or the stride.
    """
    _check("conv_step", chunk, ring, (kernel.shape[0] - 1) * dilation, stride)
    wide = _wide(chunk.dtype)
    kernel = kernel.astype(wide)
    if _is_joined(ring, chunk, kernel.shape[0]):
        joined, ring = _join(ring, chunk, (kernel.shape[0] - 1) * dilation)
        options: Any = dict(stride=stride, dilation=dilation, groups=groups, precision=precision, lowering=lowering)
        y = dilated_conv(joined.astype(wide), kernel, padding="VALID", **options)
    else:
        windows, ring = _windows(ring, chunk, _shifts(kernel.shape[0], dilation), stride)
        y = _contract(windows.astype(wide), kernel, groups, precision)
    return y.astype(chunk.dtype), ring


def _shifts(taps: int, dilation: int) -> np.ndarray:
    """How many samples back each tap looks."""
    return np.arange(taps - 1, -1, -1, dtype=np.int32) * dilation


def _is_joined(ring: Ring, chunk: jax.Array, taps: int) -> bool:
    """Whether a chunk is long enough for joining the ring to it to cost no more than reading one sample per tap and output.

    One convolution is then compiled, and not a product for each tap. Samples that are in order are moved in any case.
    """
    return ring.position is None or (chunk.shape[1] > 1 and ring.samples.shape[1] <= taps * chunk.shape[1])


def _join(ring: Ring, chunk: jax.Array, lookback: int) -> tuple[jax.Array, Ring]:
    """Return the chunk after the `lookback` samples before it, (batch, lookback + n, *rest), and the next ring."""
    length = ring.samples.shape[1]
    if length == 0:
        return chunk, ring
    if ring.position is None:
        past = ring.samples[:, 1:]
    else:
        past = jnp.take(ring.samples, _wrap(ring.position + 1 + _range(length - 1), length), axis=1, mode="clip")
    joined = jnp.concatenate([past.astype(chunk.dtype), chunk], axis=1)
    newest = joined[:, joined.shape[1] - length :].astype(ring.samples.dtype)
    return joined[:, length - 1 - lookback :], Ring(newest, None if ring.position is None else jnp.zeros_like(ring.position))


def _windows(ring: Ring, chunk: jax.Array, shifts: np.ndarray, stride: int = 1) -> tuple[jax.Array, Ring]:
    """Return the samples that lie `shift` samples before every `stride`-th one of a chunk, and the next ring.

    Returns:
        (batch, n // stride, shifts, *rest), and the next ring.
    """
    count, length, advanced = chunk.shape[1], ring.samples.shape[1], _append(ring, chunk)
    if length == 0:  # no shift looks back
        return jnp.repeat(jnp.expand_dims(chunk[:, ::stride], 2), len(shifts), axis=2), advanced
    times = np.arange(0, count, stride, dtype=np.int32)[:, None] - shifts  # 0 is the first sample of the chunk
    # The ring after a single sample still holds the whole lookback, and only where nothing reads the one before does a loop work in place.
    held, last = (advanced, 1) if count == 1 else (ring, 0)
    past = jnp.take(held.samples, _wrap(held.position + (length - last + np.minimum(times, last - 1)), length), axis=1, mode="clip")
    new = jnp.take(chunk, np.maximum(times, 0), axis=1, mode="clip")
    is_new = jnp.asarray(times >= 0).reshape(1, *times.shape, *(1,) * (chunk.ndim - 2))
    return jnp.where(is_new, new, past.astype(chunk.dtype)), advanced


def _wide(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which products are summed."""
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


def _contract(windows: jax.Array, kernel: jax.Array, groups: int, precision: lax.PrecisionLike) -> jax.Array:
    """Multiply windows (batch, n, taps, c_in) by a kernel (taps, c_in // groups, c_out), and sum over taps and the channels of a group."""
    if groups == 1:
        return jnp.einsum("bntc,tco->bno", windows, kernel, precision=precision)
    if kernel.shape[1] == 1:
        multiplier = kernel.shape[2] // windows.shape[-1]
        repeated = jnp.repeat(windows, multiplier, axis=-1) if multiplier > 1 else windows
        return (repeated * kernel[None, None, :, 0]).sum(2)
    grouped = windows.reshape(*windows.shape[:3], groups, -1)
    y = jnp.einsum("bntgc,tcgo->bngo", grouped, kernel.reshape(*kernel.shape[:2], groups, -1), precision=precision)
    return y.reshape(*windows.shape[:2], -1)


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
    lowering: str = "auto",
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
        lowering: As in `dilated_conv`.
    """
    taps, count = kernel.shape[0], chunk.shape[1]
    _check("conv_step_nd", chunk, ring, (taps - 1) * dilation[0], stride[0])
    options: Any = dict(padding=("VALID", *padding[1:]), groups=groups, precision=precision, lowering=lowering)
    if _is_joined(ring, chunk, taps):
        joined, ring = _join(ring, chunk, (taps - 1) * dilation[0])
        return dilated_conv(joined, kernel, stride=stride, dilation=dilation, **options), ring
    windows, ring = _windows(ring, chunk, _shifts(taps, dilation[0]), stride[0])
    flat = windows.reshape(-1, *windows.shape[2:])
    y = dilated_conv(flat, kernel, stride=(1, *stride[1:]), dilation=(1, *dilation[1:]), **options)
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
    wide, taps = _wide(chunk.dtype), kernel.shape[0]
    _check("conv_transpose_step", chunk, ring, (taps - 1) * dilation // stride)
    kernel = kernel.astype(wide)
    shifts, phases = np.divmod(np.arange(taps, dtype=np.int32) * dilation, stride)
    if _is_joined(ring, chunk, taps):
        lookback = int(shifts[-1])
        joined, ring = _join(ring, chunk, lookback)
        size = (lookback + count) * stride
        excess = max(0, (taps - 1) * dilation + 1 - stride)
        options: Any = dict(stride=stride, dilation=dilation, padding=((0, excess),), output_size=size, precision=precision)
        y = dilated_conv_transpose(joined.astype(wide), kernel, **options)[:, lookback * stride :]
    else:
        windows, ring = _windows(ring, chunk, shifts)
        products = jnp.einsum("bntc,toc->bnto", windows.astype(wide), kernel, precision=precision)
        one_hot = jnp.asarray(phases[:, None] == np.arange(stride), wide)
        y = jnp.einsum("bnto,ts->bnso", products, one_hot, precision=lax.Precision.HIGHEST)
    return y.reshape(batch, count * stride, -1).astype(chunk.dtype), ring
