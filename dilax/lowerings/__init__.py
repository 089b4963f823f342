"""The ways to compute one convolution and its two derivatives, and the rule that chooses among them.

registry.py     `LOWERINGS`, `select_lowering`, `supports`
primitives.py   a convolution and its derivatives as JAX primitives
xla.py          "lax": XLA's own convolution
taps.py         "taps": depthwise and small groups, elementwise
split.py        "split": wide groups, one dense convolution each
products.py     "products": one matrix product per tap
patches.py      "patches": patches and one matrix product, block by block
"""

import jax

from dilax.lowerings import primitives, registry
from dilax.lowerings.registry import LOWERINGS, OPERATIONS, PLATFORMS, Lowering, select_lowering, supports, use_lowering
from dilax.plan import ConvPlan

__all__ = ["LOWERINGS", "OPERATIONS", "PLATFORMS", "Lowering", "convolve", "select_lowering", "supports", "use_lowering"]


def convolve(x: jax.Array, kernel: jax.Array, plan: ConvPlan, lowering: str) -> jax.Array:
    """Run `plan` by the lowering of that name, or by each platform's own choice when it is "auto" and no `use_lowering` says otherwise."""
    lowering = registry.in_scope(lowering, plan)
    if lowering == "auto" and all(
        registry.select_lowering(plan, platform=platform, operation=operation) == "lax"
        for platform in PLATFORMS
        for operation in OPERATIONS
    ):
        lowering = "lax"
    if lowering == "lax":
        return LOWERINGS["lax"].output(x, kernel, plan)
    return primitives.bind("output", x, kernel, plan, lowering)
