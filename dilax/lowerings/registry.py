"""Every lowering by its name, and the rule that chooses among them."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from dilax.errors import UserError, did_you_mean
from dilax.lowerings import patches, products, split, taps, xla
from dilax.plan import ConvPlan

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OPERATIONS = ("output", "input_gradient", "kernel_gradient")

Operation = Callable[[jax.Array, jax.Array, ConvPlan], jax.Array]


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

    output: Operation
    input_gradient: Operation | None = None
    kernel_gradient: Operation | None = None
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


def select_lowering(plan: ConvPlan, *, platform: str = "cpu", operation: str = "output") -> str:
    """Return the lowering that `lowering="auto"` takes, outside of any `use_lowering` scope.

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
        operation: "output", "input_gradient" or "kernel_gradient": what is computed of it.

    Returns:
        A key of `LOWERINGS`.

    Raises:
        UserError: if the platform or the operation is unknown.
    """
    for word, known, given in (("platform", (*PLATFORMS, "other"), platform), ("operation", OPERATIONS, operation)):
        if given not in known:
            raise UserError(f"select_lowering: unknown {word} {given!r}; use one of {known}.{did_you_mean(str(given), known)}")
    if platform != "cpu" or plan.symbolic:
        return "lax"
    return next((name for name in _wanted(plan, operation) if supports(name, plan)), "lax")


_SCOPE = contextvars.ContextVar("dilax_lowering", default="auto")


@contextlib.contextmanager
def use_lowering(name: str) -> Iterator[None]:
    """Set what `lowering="auto"` means for every convolution traced inside the scope.

    It holds for functions, modules and models alike, transposed convolutions included, and for the output and both gradients: the
    gradients of a convolution take the lowering it was traced with, wherever they are computed. With "lax" a model is made of plain
    `lax.conv_general_dilated` calls, which is what an exporter or another compiler reads. A convolution that the named lowering does not
    support keeps the choice of "auto", and an explicit `lowering=` argument always wins. Scopes nest; the innermost counts.

    The scope is read while a function is traced. A function compiled by `jax.jit` keeps the lowering of its first trace for as long as it
    is cached, so enter the scope inside the function, or jit a new function (or call `jax.clear_caches()`) for each scope.

    Args:
        name: A key of `LOWERINGS`, or "auto" to restore the rule of `select_lowering`.

    Raises:
        UserError: if the name is unknown.

    Example:
        >>> import jax.numpy as jnp, dilax
        >>> with dilax.use_lowering("lax"):
        ...     y = dilax.dilated_conv(jnp.ones((1, 7, 1)), jnp.ones((3, 1, 1)), dilation=2)
        >>> y.shape
        (1, 7, 1)
    """
    known = ("auto", *LOWERINGS)
    if name not in known:
        raise UserError(f"use_lowering: unknown lowering {name!r}; use one of {known}.{did_you_mean(str(name), known)}")
    token = _SCOPE.set(name)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def in_scope(lowering: str, plan: ConvPlan) -> str:
    """Return the lowering that stands for `lowering` in the innermost `use_lowering` scope; it differs only from "auto"."""
    scope = _SCOPE.get()
    return scope if lowering == "auto" != scope and supports(scope, plan) else lowering


def _wanted(plan: ConvPlan, operation: str) -> tuple[str, ...]:
    """What the rule names, best first; "lax" where none of it can be done."""
    if plan.groups > 1:
        return ("taps", "split")
    if _one_tap(plan):
        return ("products",)
    if plan.rank == 3:
        return ("patches",)
    wide = min(plan.c_in, plan.c_out)
    if operation != "kernel_gradient":
        return ("products",) if wide >= 32 and (_meets_padding(plan) or max(plan.stride) > 1) else ()
    few = plan.rank > 1 and plan.batch * math.prod(plan.output_size) <= 8192
    if wide >= 64 and (few or _meets_padding(plan)):
        return ("products",)
    return ("patches",) if plan.rank > 1 or plan.c_in < 8 else ()


def _one_tap(plan: ConvPlan) -> bool:
    return plan.taps == 1 and not any(map(any, plan.padding))


def _meets_padding(plan: ConvPlan) -> bool:
    return products.useful(plan) <= 0.85
