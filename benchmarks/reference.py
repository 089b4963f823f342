"""What the contenders of the benchmarks are compared with: XLA's own convolution in float64, which none of them runs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import dilax
from benchmarks.cases import Case


def in_float64(function: Callable[..., Any], *inputs: Any) -> Any:
    """Return what a function of JAX computes in float64 with XLA's own convolutions, as NumPy arrays.

    Args:
        function: The function.
        inputs: Its arguments, trees of arrays; those of floats are converted to float64.
    """

    def wide(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jnp.asarray(leaf, np.float64 if jnp.issubdtype(leaf.dtype, np.floating) else leaf.dtype)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), dilax.use_lowering("lax"):
        results = jax.jit(lambda *inputs: function(*inputs))(*jax.tree.map(wide, inputs))  # a new function: see `use_lowering`
        return jax.tree.map(np.asarray, results)


def convolution(case: Case, measure: str) -> list[np.ndarray]:
    """Return the output of a case and, if the measure is "gradients", both gradients, for inputs that are rounded to its dtype."""
    plan, space = case.plan(), "DHW"[-case.rank :]

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=plan.stride,
            padding=plan.padding,
            rhs_dilation=plan.dilation,
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
            feature_group_count=plan.groups,
        )

    def gradients(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(forward, x, kernel)
        return y, *pullback(cotangent)

    x, kernel, cotangent = (np.asarray(jnp.asarray(array, case.dtype), np.float32) for array in case.arrays())
    return list(in_float64(gradients, x, kernel, cotangent) if measure == "gradients" else (in_float64(forward, x, kernel),))
