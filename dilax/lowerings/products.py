"""Dense convolutions as one matrix product per tap, each of just the outputs for which that tap reads a sample and not the padding.

Nothing is padded and no patches are made. It wins where a product is large by itself, 1x1 convolutions first of all (XLA's CPU backend
treats them as any other: the kernel gradient of 128x32x32x32 to 64 took 311 ms through `lax` and 13 as a product), and where taps lie
mostly in the padding (dilation 18 on a map of 33x33: 60 % of all multiply-adds).
"""

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from dilax.plan import ConvPlan

# Each tap is a product of its own to compile.
MOST_TAPS = 64

Slices = tuple[slice, ...]


def supports(plan: ConvPlan) -> bool:
    """One group, few taps."""
    return plan.groups == 1 and plan.taps <= MOST_TAPS


def output(x: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """For each tap: slice x, multiply, add to the outputs it reaches."""
    total = None
    for tap, inputs, outputs in _reaches(plan):
        part = _product(x[inputs], kernel[tap], ((x.ndim - 1,), (0,)), plan)
        placed = _placed(part, outputs, plan.output_size)
        total = placed if total is None else total + placed
    return jnp.zeros(plan.y_shape, x.dtype) if total is None else total.astype(x.dtype)


def input_gradient(y: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """For each tap: slice y, multiply, add to the inputs it reads."""
    total = None
    for tap, inputs, outputs in _reaches(plan):
        part = _product(y[outputs], kernel[tap], ((y.ndim - 1,), (1,)), plan)
        placed = _placed(part, inputs, plan.input_size)
        total = placed if total is None else total + placed
    return jnp.zeros(plan.x_shape, y.dtype) if total is None else total.astype(y.dtype)


def kernel_gradient(x: jax.Array, y: jax.Array, plan: ConvPlan) -> jax.Array:
    """For each tap: the product of what it read with y."""
    every = tuple(range(x.ndim - 1))
    found = {tap: _product(x[inputs], y[outputs], (every, every), plan) for tap, inputs, outputs in _reaches(plan)}
    nothing = jnp.zeros((plan.c_in, plan.c_out), x.dtype)
    taps = itertools.product(*map(range, plan.kernel_size))
    return jnp.stack([found.get(tap, nothing).astype(x.dtype) for tap in taps]).reshape(plan.kernel_shape)


def useful(plan: ConvPlan) -> float:
    """Share of the multiply-adds that read a sample and not the padding."""
    share = 1.0
    for axis, (k, o) in enumerate(zip(plan.kernel_size, plan.output_size)):
        reached = [_reach(plan, axis, t) for t in range(k)]
        share *= sum(max(0, last - first) for first, last in reached) / (k * o)
    return share


def _reach(plan: ConvPlan, axis: int, t: int) -> tuple[int, int]:
    """First output along an axis whose tap t reads a sample, and the one after the last; none if they are not in order."""
    # Output q reads input q * stride + shift.
    shift, stride = t * plan.dilation[axis] - plan.padding[axis][0], plan.stride[axis]
    return max(0, -(shift // stride)), min(plan.output_size[axis], (plan.input_size[axis] - 1 - shift) // stride + 1)


def _reaches(plan: ConvPlan) -> Iterator[tuple[tuple[int, ...], Slices, Slices]]:
    """Every tap that reads a sample at all, with the inputs it reads and the outputs it reads them for."""
    for tap in itertools.product(*map(range, plan.kernel_size)):
        reached = [_reach(plan, axis, t) for axis, t in enumerate(tap)]
        if any(last <= first for first, last in reached):
            continue
        shifts = [t * d - lo for t, d, (lo, _) in zip(tap, plan.dilation, plan.padding)]
        inputs = [slice(a * s + shift, (b - 1) * s + shift + 1, s) for (a, b), shift, s in zip(reached, shifts, plan.stride)]
        yield tap, (slice(None), *inputs), (slice(None), *(slice(a, b) for a, b in reached))


def _product(a: jax.Array, b: jax.Array, contract: tuple[tuple[int, ...], tuple[int, ...]], plan: ConvPlan) -> jax.Array:
    """A matrix product, 16-bit numbers summed in 32 bits; space and batch are merged so that it is one plain product."""
    wide = jnp.float32 if jnp.finfo(a.dtype).bits < 32 else a.dtype
    shape = a.shape[:-1]
    if contract[0] == (a.ndim - 1,):
        a, contract = a.reshape(math.prod(shape), a.shape[-1]), ((1,), contract[1])
        return lax.dot_general(a, b, (contract, ((), ())), plan.precision, wide).reshape(*shape, -1)
    a, b = a.reshape(math.prod(shape), a.shape[-1]), b.reshape(math.prod(shape), b.shape[-1])
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), plan.precision, wide)


def _placed(part: jax.Array, places: Slices, size: tuple[int, ...]) -> jax.Array:
    """Zeros of `size`, with part at its places."""
    config = [(place.start, n - place.stop, (place.step or 1) - 1) for place, n in zip(places[1:], size)]
    if not any(map(any, config)):
        return part
    return lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *config, (0, 0, 0)])
