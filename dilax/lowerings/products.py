"""Dense convolutions as one matrix product per tap, restricted to the outputs for which the tap reads a sample rather than padding.

Nothing is padded, and no patches are extracted. This is fastest where a single product is large, above all for 1x1 convolutions, which
XLA's CPU backend treats like any other (the kernel gradient of 128x32x32x32 to 64 channels took 311 ms through `lax` and 13 ms as a
product), and where most taps are in the padding (60 % of all multiply-adds with dilation 18 on a map of 33x33).
"""

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from dilax.plan import ConvPlan
from dilax.precision import wide_dtype

# Each tap is compiled as a separate product.
MAX_TAPS = 64

Slices = tuple[slice, ...]


def supports(plan: ConvPlan) -> bool:
    """Return whether there is a single group, and not too many taps."""
    return plan.groups == 1 and plan.taps <= MAX_TAPS


def output(x: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """For each tap, slice x, multiply, and add to the outputs that read these samples."""
    total = None
    for tap, inputs, outputs in _valid_taps(plan):
        part = _product(x[inputs], kernel[tap], ((x.ndim - 1,), (0,)), plan)
        padded = pad_to(part, outputs, plan.output_size)
        total = padded if total is None else total + padded
    return lax.full_like(x, 0, shape=plan.y_shape) if total is None else total.astype(x.dtype)


def input_gradient(y: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """For each tap, slice y, multiply, and add to the inputs that these outputs read."""
    total = None
    for tap, inputs, outputs in _valid_taps(plan):
        part = _product(y[outputs], kernel[tap], ((y.ndim - 1,), (1,)), plan)
        padded = pad_to(part, inputs, plan.input_size)
        total = padded if total is None else total + padded
    return lax.full_like(y, 0, shape=plan.x_shape) if total is None else total.astype(y.dtype)


def kernel_gradient(x: jax.Array, y: jax.Array, plan: ConvPlan) -> jax.Array:
    """For each tap, multiply the samples that it reads by y."""
    axes = tuple(range(x.ndim - 1))
    gradients = {tap: _product(x[inputs], y[outputs], (axes, axes), plan) for tap, inputs, outputs in _valid_taps(plan)}
    zeros = lax.full_like(x, 0, shape=(plan.c_in, plan.c_out))
    taps = itertools.product(*map(range, plan.kernel_size))
    return jnp.stack([gradients.get(tap, zeros).astype(x.dtype) for tap in taps]).reshape(plan.kernel_shape)


def useful_fraction(plan: ConvPlan) -> float:
    """Return the fraction of multiply-adds that read a sample rather than padding."""
    fraction = 1.0
    for axis, (k, o) in enumerate(zip(plan.kernel_size, plan.output_size)):
        ranges = [valid_outputs(plan, axis, t) for t in range(k)]
        fraction *= sum(max(0, stop - start) for start, stop in ranges) / (k * o)
    return fraction


def valid_outputs(plan: ConvPlan, axis: int, t: int) -> tuple[int, int]:
    """Return the range (start, stop) of outputs along an axis for which tap t reads a sample; empty if stop <= start."""
    # Output q reads input q * stride + shift.
    shift, stride = t * plan.dilation[axis] - plan.padding[axis][0], plan.stride[axis]
    return max(0, -(shift // stride)), min(plan.output_size[axis], (plan.input_size[axis] - 1 - shift) // stride + 1)


def _valid_taps(plan: ConvPlan) -> Iterator[tuple[tuple[int, ...], Slices, Slices]]:
    """Yield each tap that reads any sample, with slices of the inputs that it reads and of the outputs for which it does."""
    for tap in itertools.product(*map(range, plan.kernel_size)):
        ranges = [valid_outputs(plan, axis, t) for axis, t in enumerate(tap)]
        if any(stop <= start for start, stop in ranges):
            continue
        shifts = [t * d - lo for t, d, (lo, _) in zip(tap, plan.dilation, plan.padding)]
        inputs = [slice(a * s + shift, (b - 1) * s + shift + 1, s) for (a, b), shift, s in zip(ranges, shifts, plan.stride)]
        yield tap, (slice(None), *inputs), (slice(None), *(slice(a, b) for a, b in ranges))


def _product(a: jax.Array, b: jax.Array, contract: tuple[tuple[int, ...], tuple[int, ...]], plan: ConvPlan) -> jax.Array:
    """Multiply matrices, summing 16-bit floats in 32 bits; batch and space are merged, so that it is a single plain product."""
    wide = wide_dtype(a.dtype)
    shape = a.shape[:-1]
    if contract[0] == (a.ndim - 1,):
        a, contract = a.reshape(math.prod(shape), a.shape[-1]), ((1,), contract[1])
        return lax.dot_general(a, b, (contract, ((), ())), plan.precision, wide).reshape(*shape, -1)
    a, b = a.reshape(math.prod(shape), a.shape[-1]), b.reshape(math.prod(shape), b.shape[-1])
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), plan.precision, wide)


def pad_to(part: jax.Array, slices: Slices, size: tuple[int, ...]) -> jax.Array:
    """Pad an array with zeros to `size`, so that it is at the given slices of the result; axes without a slice stay as they are."""
    config = [(where.start, n - where.stop, (where.step or 1) - 1) for where, n in zip(slices[1:], size)]
    if not any(map(any, config)):
        return part
    return lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *config, *[(0, 0, 0)] * (part.ndim - len(config) - 1)])
