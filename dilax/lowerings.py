"""The ways to compute one convolution, all of one signature, and the rule that chooses among them.

A lowering takes `(x, kernel, plan)`: x (batch, *space, c_in) and kernel (*window, c_in // groups, c_out) of one dtype, and the `ConvPlan`
that describes them; it returns (batch, *plan.output_size, c_out). The choice is made per platform when a program is lowered, so it also
holds for exported programs and for machines with several backends.
"""

from collections.abc import Callable

import jax
from jax import lax

from dilax.errors import UserError
from dilax.geometry import ConvPlan

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Lowering = Callable[[jax.Array, jax.Array, ConvPlan], jax.Array]


def lax_convolution(x: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """XLA's own convolution.

    It sums float16 and bfloat16 products in float32 and rounds once, on CPU as on GPU and TPU (measured on CPU: relative error within the
    rounding of the output, values and gradients), so nothing is cast here; `preferred_element_type` would break its gradient.
    """
    space = "DHW"[-plan.rank :]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=plan.stride,
        padding=plan.padding,
        rhs_dilation=plan.dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=plan.groups,
        precision=plan.precision,
    )


LOWERINGS: dict[str, Lowering] = {"lax": lax_convolution}


def select_lowering(plan: ConvPlan, platform: str = "cpu") -> str:
    """Say which lowering `lowering="auto"` takes.

    - Everywhere: "lax".

    Args:
        plan: The convolution.
        platform: "cpu", "cuda", "rocm" or "tpu".

    Returns:
        A key of `LOWERINGS`.

    Raises:
        UserError: if the platform is unknown.
    """
    del plan
    if platform not in PLATFORMS:
        raise UserError(f"select_lowering: unknown platform {platform!r}; use one of {PLATFORMS}.")
    return "lax"


def convolve(x: jax.Array, kernel: jax.Array, plan: ConvPlan, lowering: str) -> jax.Array:
    """Run `plan` by the lowering of that name, or by each platform's own choice when it is "auto"."""
    if lowering != "auto":
        return LOWERINGS[lowering](x, kernel, plan)
    chosen = {platform: select_lowering(plan, platform) for platform in PLATFORMS}
    if len(set(chosen.values())) == 1:
        return LOWERINGS[chosen["cpu"]](x, kernel, plan)
    branches = {platform: lambda x, kernel, run=LOWERINGS[name]: run(x, kernel, plan) for platform, name in chosen.items()}
    return lax.platform_dependent(x, kernel, **branches)
