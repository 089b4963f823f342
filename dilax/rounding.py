"""Kernels and activations rounded to the values that an int8 runtime has, in floating point, with gradients as if they were not."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

# Kernels are symmetric, with 7 of the 8 bits, as `dilax.export.quantise` writes them for onnxruntime; activations begin at any number.
KERNEL_LEVELS, ACTIVATION_LEVELS = 64, 255
_ON = contextvars.ContextVar("dilax_rounding", default=False)


@contextlib.contextmanager
def scope(on: bool) -> Iterator[None]:
    """Round, or do not, in every convolution traced inside."""
    token = _ON.set(on)
    try:
        yield
    finally:
        _ON.reset(token)


def in_scope(x: jax.Array, kernel: jax.Array, *, output_axis: int) -> tuple[jax.Array, jax.Array]:
    """Return the operands of a convolution or product as the innermost scope has them.

    Args:
        x: (batch, ..., c_in).
        kernel: Its kernel.
        output_axis: The axis of its output channels.
    """
    return (round_activations(x), round_kernel(kernel, output_axis)) if _ON.get() else (x, kernel)


def round_kernel(kernel: jax.Array, output_axis: int) -> jax.Array:
    """Round a kernel to -64..64 steps, the size of which is chosen for each output channel; 0 stays 0."""
    axes = tuple(axis for axis in range(kernel.ndim) if axis != output_axis % kernel.ndim)
    step = _positive(jnp.abs(kernel).max(axes, keepdims=True, initial=0) / KERNEL_LEVELS)
    return _straight_through(kernel, jnp.round(kernel / step) * step)


def round_activations(x: jax.Array) -> jax.Array:
    """Round activations (batch, ...) to 256 values between the least and the greatest of each example; 0 stays 0.

    A runtime has one range for all examples. That of each example does not depend on how a batch is split over devices or accumulated.
    """
    axes = tuple(range(1, x.ndim)) or (0,)
    low, high = x.min(axes, keepdims=True, initial=0), x.max(axes, keepdims=True, initial=0)
    step = _positive((high - low) / ACTIVATION_LEVELS)
    zero = jnp.round(-low / step)
    level = jnp.clip(jnp.round(x / step) + zero, 0, ACTIVATION_LEVELS)
    return _straight_through(x, (level - zero) * step)


def _positive(step: jax.Array) -> jax.Array:
    """Replace steps of 0, those of arrays of zeros."""
    return jnp.where(step > 0, step, jnp.ones_like(step))


def _straight_through(x: jax.Array, rounded: jax.Array) -> jax.Array:
    """Return the rounded array with the gradient of x (Bengio et al. 2013, arXiv:1308.3432)."""
    return x + lax.stop_gradient(rounded - x)
