"""Every lowering by its name, and the rule that chooses among them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from dilax.errors import UserError, did_you_mean
from dilax.geometry import ConvPlan
from dilax.lowerings import patches, products, split, taps, xla

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FACES = ("output", "input_gradient", "kernel_gradient")

Face = Callable[[jax.Array, jax.Array, ConvPlan], jax.Array]


@dataclasses.dataclass(frozen=True)
class Lowering:
    """One way to compute a convolution and its two derivatives.

    With x (batch, *space, c_in), kernel (*window, c_in // groups, c_out) and y (batch, *output_size, c_out), all of one dtype:

    Attributes:
        output: (x, kernel, plan) -> y.
        input_gradient: (y, kernel, plan) -> x, the transpose of `output` in x; None takes XLA's own.
        kernel_gradient: (x, y, plan) -> kernel, the transpose of `output` in the kernel; None takes XLA's own.
        supports: Whether it can compute a plan.
    """

    output: Face
    input_gradient: Face | None = None
    kernel_gradient: Face | None = None
    supports: Callable[[ConvPlan], bool] = lambda plan: True


def _lowering(module: Any) -> Lowering:
    return Lowering(module.output, module.input_gradient, module.kernel_gradient, module.supports)


LOWERINGS: dict[str, Lowering] = {
    "lax": Lowering(xla.output, xla.input_gradient, xla.kernel_gradient),
    "taps": _lowering(taps),
    "split": _lowering(split),
    "products": _lowering(products),
    "patches": _lowering(patches),
}


def supports(name: str, plan: ConvPlan) -> bool:
    """Whether the lowering of that name can compute `plan`; where a length is symbolic, only "lax" can."""
    return name == "lax" or (not plan.symbolic and LOWERINGS[name].supports(plan))


def select_lowering(plan: ConvPlan, platform: str = "cpu", face: str = "output") -> str:
    """Say which lowering `lowering="auto"` takes.

    On GPU and TPU, and where a length is symbolic: "lax". On a CPU:

    - groups with at most 64 multiply-adds per output (depthwise above all): "taps"; wider ones, up to 32 of them: "split";
    - windows of one tap, without padding: "products";
    - 3-D: "patches";
    - outputs and input gradients from 32 channels or more to 32 or more: "products" where at least 15 % of the multiply-adds would meet
      padding (large dilations on small maps), or with a stride;
    - kernel gradients from 64 channels or more to 64 or more: "products" where padding is met as above, and in 2-D with at most 8192
      places; all others in 2-D, and in 1-D those of fewer than 8 input channels: "patches";
    - all else: "lax".

    The thresholds were measured on 2 cores with AVX2 by `python -m benchmarks.ops`; `autotune` measures on another machine.

    Args:
        plan: The convolution.
        platform: "cpu", "cuda", "rocm" or "tpu"; on any other, "lax" is taken.
        face: "output", "input_gradient" or "kernel_gradient": what is computed of it.

    Returns:
        A key of `LOWERINGS`.

    Raises:
        UserError: if the platform or the face is unknown.
    """
    for word, known, given in (("platform", (*PLATFORMS, "other"), platform), ("face", FACES, face)):
        if given not in known:
            raise UserError(f"select_lowering: unknown {word} {given!r}; use one of {known}.{did_you_mean(str(given), known)}")
    if platform != "cpu" or plan.symbolic:
        return "lax"
    return next((name for name in _wanted(plan, face) if supports(name, plan)), "lax")


def _wanted(plan: ConvPlan, face: str) -> tuple[str, ...]:
    """What the rule names, best first; "lax" where none of it can be done."""
    if plan.groups > 1:
        return ("taps", "split")
    if _one_tap(plan):
        return ("products",)
    if plan.rank == 3:
        return ("patches",)
    wide = min(plan.c_in, plan.c_out)
    if face != "kernel_gradient":
        return ("products",) if wide >= 32 and (_meets_padding(plan) or max(plan.stride) > 1) else ()
    few = plan.rank > 1 and plan.batch * math.prod(plan.output_size) <= 8192
    if wide >= 64 and (few or _meets_padding(plan)):
        return ("products",)
    return ("patches",) if plan.rank > 1 or plan.c_in < 8 else ()


def _one_tap(plan: ConvPlan) -> bool:
    return plan.taps == 1 and not any(map(any, plan.padding))


def _meets_padding(plan: ConvPlan) -> bool:
    return products.useful(plan) <= 0.85
