"""Dense 3-D convolutions as 2-D ones: each tap along the first axis is a convolution of all planes, whose results are added.

XLA's CPU backend has no fast 3-D convolution, but a fast 2-D one. A tap is restricted to the planes for which it reads a sample rather than
padding.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from dilax.lowerings import patches, xla
from dilax.lowerings.products import Slices, pad_to, valid_outputs
from dilax.plan import ConvPlan
from dilax.precision import wide_dtype

# Each tap along the first axis is compiled as a separate convolution.
MAX_TAPS = 16


def supports(plan: ConvPlan) -> bool:
    """Return whether there are three axes, a single group, and not too many taps along the first axis."""
    return plan.rank == 3 and plan.groups == 1 and plan.kernel_size[0] <= MAX_TAPS


def output(x: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """For each tap, convolve the planes that it reads, and add to the outputs that read them."""
    total = lax.full_like(x, 0, wide_dtype(x.dtype), plan.y_shape)
    for t, inputs, outputs, plane in _valid_taps(plan, wide_dtype(x.dtype)):
        part = xla.output(_as_batch(x[inputs], plane), kernel[t].astype(plane.dtype), plane)
        total += pad_to(part.reshape(plan.batch, -1, *part.shape[1:]), outputs, plan.output_size)
    return total.astype(x.dtype)


def input_gradient(y: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """For each tap, transpose the convolution of the planes that it reads."""
    total = lax.full_like(y, 0, wide_dtype(y.dtype), plan.x_shape)
    for t, inputs, outputs, plane in _valid_taps(plan, wide_dtype(y.dtype)):
        part = xla.input_gradient(_as_batch(y[outputs], plane), kernel[t].astype(plane.dtype), plane)
        total += pad_to(part.reshape(plan.batch, -1, *part.shape[1:]), inputs, plan.input_size)
    return total.astype(y.dtype)


def kernel_gradient(x: jax.Array, y: jax.Array, plan: ConvPlan) -> jax.Array:
    """For each tap, the kernel gradient of the convolution of the planes that it reads."""
    gradients = [lax.full_like(x, 0, shape=plan.kernel_shape[1:])] * plan.kernel_size[0]
    for t, inputs, outputs, plane in _valid_taps(plan, x.dtype):
        gradient = patches.kernel_gradient if patches.supports(plane) else xla.kernel_gradient
        gradients[t] = gradient(_as_batch(x[inputs], plane), _as_batch(y[outputs], plane), plane)
    return jnp.stack(gradients)


def _valid_taps(plan: ConvPlan, dtype: jax.typing.DTypeLike) -> Iterator[tuple[int, Slices, Slices, ConvPlan]]:
    """Yield each tap along the first axis that reads any plane, slices of the inputs and the outputs, and the plan of its convolution."""
    names = ("input_size", "kernel_size", "stride", "padding", "dilation")
    others = {name: getattr(plan, name)[1:] for name in names}
    for t in range(plan.kernel_size[0]):
        start, stop = valid_outputs(plan, 0, t)
        if stop <= start:
            continue
        stride, shift = plan.stride[0], t * plan.dilation[0] - plan.padding[0][0]
        inputs = (slice(None), slice(start * stride + shift, (stop - 1) * stride + shift + 1, stride))
        plane = dataclasses.replace(plan, batch=plan.batch * (stop - start), dtype=str(jnp.dtype(dtype)), **others)
        yield t, inputs, (slice(None), slice(start, stop)), plane


def _as_batch(x: jax.Array, plane: ConvPlan) -> jax.Array:
    """Merge the first axis of space into the batch, and convert to the dtype of the plan."""
    return x.reshape(-1, *x.shape[2:]).astype(plane.dtype)
