"""Depthwise and grouped convolutions without a matrix product: shifted slices, multiplied and added elementwise.

XLA's CPU backend runs grouped convolutions in a naive loop, but fuses a sum of shifted slices into one pass of vector instructions. A
convolution whose groups have i inputs and o outputs is i depthwise convolutions: the j-th takes the j-th channel of every group, repeated
o times.

The kernel gradient has one sum over all places per tap. XLA's own reduction over leading axes reads with large strides, and one kernel
per tap reads both maps again each time. Here a variadic `lax.reduce` over a short axis (4 to 8 places) forms the sums of several taps in
one pass; XLA unrolls the short axis and vectorises over the rest. Further such folds, each of a map 4 to 8 times smaller, do the rest.
There is no loop over examples, so nothing gathers a batch that is spread over devices.

Measured on 2 cores with AVX2, milliseconds, kernel gradient of 128x32x32x32, 3x3, dilation 2: 7, where a loop over images took 32,
automatic differentiation of the sum of slices 69 and torch 42.
"""

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from dilax.plan import ConvPlan

# Beyond so many multiply-adds per output XLA compiles for seconds, and a loop over taps is no longer what the time goes into.
MOST_TERMS = 64
# Sums that one kernel forms side by side: more than about nine spill the vector registers.
MOST_SUMS = 9


def supports(plan: ConvPlan) -> bool:
    """Groups, and few multiply-adds per output."""
    return plan.groups > 1 and plan.taps * plan.c_in // plan.groups <= MOST_TERMS


def output(x: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """Pad once, multiply shifted slices by the kernel's taps, add."""
    terms = []
    for j in range(plan.c_in // plan.groups):
        slices = _slices(_padded(_channel(x, j, plan), plan), plan)
        terms += [_wide(part) * _weights(kernel[(*tap, j)], plan) for tap, part in zip(_taps(plan), slices)]
    return functools.reduce(operator.add, terms).astype(x.dtype)


def input_gradient(y: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """The same on y, spread by the stride, with the kernel mirrored."""
    # x at p saw y at (p + lo - t * d) / stride, which runs from lo - (k - 1) * d to n - 1 + lo; crop or pad y to just that.
    axes = zip(plan.input_size, plan.kernel_size, plan.stride, plan.padding, plan.dilation, plan.output_size)
    config = [((k - 1) * d - lo, n - 1 + lo - (o - 1) * s, s - 1) for n, k, s, (lo, _), d, o in axes]
    config = [(0, 0, 0), *config, (0, 0, 0)]
    outputs = plan.c_out // plan.groups
    # One array per output of a group, each with one channel per group: a sum over neighbouring channels would not be vectorised.
    spread = [lax.pad(y[..., o::outputs], jnp.zeros((), y.dtype), config) for o in range(outputs)]
    spread = lax.optimization_barrier(spread)
    starts = [[(k - 1 - t) * d for t, k, d in zip(tap, plan.kernel_size, plan.dilation)] for tap in _taps(plan)]
    places = [[slice(start, start + n) for start, n in zip(corner, plan.input_size)] for corner in starts]
    channels = []
    for j in range(plan.c_in // plan.groups):
        terms = [
            _wide(spread[o][(slice(None), *place)]) * _weights(kernel[(*tap, j, slice(o, None, outputs))], plan)
            for o in range(outputs)
            for tap, place in zip(_taps(plan), places)
        ]
        channels.append(functools.reduce(operator.add, terms).astype(y.dtype))
    return jnp.stack(channels, axis=-1).reshape(plan.x_shape) if len(channels) > 1 else channels[0]


def kernel_gradient(x: jax.Array, y: jax.Array, plan: ConvPlan) -> jax.Array:
    """Sums over all places of the shifted slices times y."""
    rows = []
    for j in range(plan.c_in // plan.groups):
        slices = list(_slices(_padded(_channel(x, j, plan), plan), plan))
        per_pass = plan.kernel_size[-1] if plan.kernel_size[-1] <= MOST_SUMS else MOST_SUMS
        sums = [_sums_of_products(slices[i : i + per_pass], y) for i in range(0, len(slices), per_pass)]
        rows.append(jnp.concatenate(sums).reshape(*plan.kernel_size, plan.c_out))
    return jnp.stack(rows, axis=-2).astype(x.dtype)


def _taps(plan: ConvPlan) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, plan.kernel_size)))


def _wide(x: jax.Array) -> jax.Array:
    """Products of 16-bit numbers are summed in 32 bits."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def _weights(row: jax.Array, plan: ConvPlan) -> jax.Array:
    """One weight per channel, to multiply a map by."""
    return _wide(row).reshape((1,) * (plan.rank + 1) + (-1,))


def _channel(x: jax.Array, j: int, plan: ConvPlan) -> jax.Array:
    """Channel j of every group, once for each output of that group: (batch, *space, c_out)."""
    inputs, outputs = plan.c_in // plan.groups, plan.c_out // plan.groups
    return jnp.repeat(x[..., j::inputs] if inputs > 1 else x, outputs, axis=-1) if inputs * outputs > 1 else x


def _padded(x: jax.Array, plan: ConvPlan) -> jax.Array:
    # Without the barrier XLA may compute the padding anew in each of the kernels that read it.
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), *plan.padding, (0, 0)))) if any(map(any, plan.padding)) else x


def _slices(x: jax.Array, plan: ConvPlan):
    """For every tap, what it multiplies: (batch, *output_size, channels)."""
    for tap in _taps(plan):
        starts = [t * d for t, d in zip(tap, plan.dilation)]
        places = [slice(start, start + (o - 1) * s + 1, s) for start, o, s in zip(starts, plan.output_size, plan.stride)]
        yield x[(slice(None), *places)]


def _sums_of_products(slices: list[jax.Array], y: jax.Array) -> jax.Array:
    """Sum slice * y over all but the last axis, for every slice: (len(slices), channels).

    The folds leave the batch axis alone: a variadic reduction over an axis that is spread over devices would gather it.
    """
    axis = max(range(1, y.ndim - 1), key=lambda axis: (_short(y.shape[axis]), -axis))
    y, *slices = [_filled(part, axis) for part in (y, *slices)]
    sums = _fold([_split(part, axis) * _split(y, axis) for part in slices], axis)
    sums = [part.reshape(y.shape[0], -1, y.shape[-1]) for part in sums]
    while _short(sums[0].shape[1]) > 1:
        sums = _fold([_split(part, 1) for part in sums], 1)
    return lax.optimization_barrier(jnp.stack(sums)).sum((1, 2))


def _short(n: int) -> int:
    """The largest divisor of n that XLA unrolls."""
    return max(u for u in range(1, 9) if n % u == 0)


def _filled(x: jax.Array, axis: int) -> jax.Array:
    """Zeros at the end of an axis whose length has no divisor to fold it by."""
    n = x.shape[axis]
    missing = -n % 8 if n > 8 and _short(n) < 4 else 0
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x


def _split(x: jax.Array, axis: int) -> jax.Array:
    """An axis as (short, rest)."""
    n = x.shape[axis]
    return _wide(x).reshape(*x.shape[:axis], _short(n), n // _short(n), math.prod(x.shape[axis + 1 :]))


def _fold(parts: list[jax.Array], axis: int) -> list[jax.Array]:
    """Sum all parts over one axis in one pass."""
    zeros = [jnp.zeros((), parts[0].dtype)] * len(parts)
    total = lax.reduce(parts, zeros, lambda a, b: [p + q for p, q in zip(a, b)], (axis,))
    return list(lax.optimization_barrier(total))
