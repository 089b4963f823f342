"""Implementations of a convolution and its two gradients, and the rule that selects one.

registry.py     `LOWERINGS`, `select_lowering`, `use_lowering`, `supports`
primitives.py   a convolution and its gradients as JAX primitives
xla.py          "lax": XLA's own convolution
taps.py         "taps": depthwise convolutions and small groups, elementwise
split.py        "split": wide groups, one dense convolution per group
products.py     "products": one matrix product per tap
patches.py      "patches": patches and a single matrix product, block by block
planes.py       "planes": 3-D convolutions as 2-D ones, one for each tap along the first axis
onednn.py       "onednn": the convolutions of oneDNN, if `dilax-onednn` is installed
"""

import jax

from dilax import rounding, whole
from dilax.lowerings import primitives, registry, xla
from dilax.lowerings.onednn import status as onednn_status
from dilax.lowerings.onednn import version as onednn_version
from dilax.lowerings.registry import LOWERINGS, OPERATIONS, PLATFORMS, Lowering, select_lowering, supports, use_lowering
from dilax.plan import ConvPlan

__all__ = [
    "LOWERINGS",
    "OPERATIONS",
    "PLATFORMS",
    "Lowering",
    "convolve",
    "convolve_transpose",
    "onednn_status",
    "onednn_version",
    "select_lowering",
    "supports",
    "use_lowering",
]


def convolve(x: jax.Array, kernel: jax.Array, plan: ConvPlan, lowering: str) -> jax.Array:
    """Compute the convolution of a plan.

    Args:
        x: (batch, *space, c_in).
        kernel: (*kernel_size, c_in // groups, c_out), of the dtype of x.
        plan: The plan of the convolution.
        lowering: A key of `LOWERINGS`, or "auto" for the lowering of `use_lowering` or else of `select_lowering` on each platform.

    Returns:
        (batch, *output_size, c_out).
    """
    x, kernel = rounding.in_scope(x, kernel, output_axis=-1)
    return _conv(x, kernel, plan=plan, lowering=lowering)


def convolve_transpose(y: jax.Array, kernel: jax.Array, plan: ConvPlan, lowering: str) -> jax.Array:
    """Compute the transpose of the convolution of a plan with respect to its input.

    Args:
        y: (batch, *output_size, c_out).
        kernel: (*kernel_size, c_in // groups, c_out), of the dtype of y.
        plan: The plan of the convolution.
        lowering: See `convolve`.

    Returns:
        (batch, *space, c_in).
    """
    y, kernel = rounding.in_scope(y, kernel, output_axis=-2)
    return _conv_transpose(y, kernel, plan=plan, lowering=lowering)


def _output(x: jax.Array, kernel: jax.Array, *, plan: ConvPlan, lowering: str) -> jax.Array:
    lowering = _resolve(lowering, plan)
    if lowering == "lax":
        return LOWERINGS["lax"].output(x, kernel, plan)
    return primitives.bind("output", x, kernel, plan, lowering)


def _input_gradient(y: jax.Array, kernel: jax.Array, *, plan: ConvPlan, lowering: str) -> jax.Array:
    lowering = _resolve(lowering, plan)
    if lowering == "lax":
        return xla.input_gradient(*primitives.vary_alike(y, kernel), plan)
    return primitives.bind("input_gradient", y, kernel, plan, lowering)


_conv = whole.define("dilax_conv", _output)
_conv_transpose = whole.define("dilax_conv_transpose", _input_gradient)


def _resolve(lowering: str, plan: ConvPlan) -> str:
    """Resolve a lowering in its scope; for symbolic sizes, "auto" becomes "lax", which alone supports them."""
    lowering = registry.in_scope(lowering, plan)
    return "lax" if lowering == "auto" and plan.symbolic else lowering
