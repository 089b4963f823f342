"""All lowerings by name, the rule that selects one, and the scope that overrides the rule."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from dilax import arguments
from dilax.errors import UserError, shown
from dilax.lowerings import onednn, patches, planes, products, split, taps, xla
from dilax.plan import ConvPlan

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OPERATIONS = ("output", "input_gradient", "kernel_gradient")

Operation = Callable[[jax.Array, jax.Array, ConvPlan], jax.Array]


@dataclasses.dataclass(frozen=True)
class Lowering:
    """An implementation of a convolution and its two gradients.

    The arrays are x (batch, *space, c_in), kernel (*kernel_size, c_in // groups, c_out) and y (batch, *output_size, c_out), all of the same
    dtype.

    Attributes:
        output: Function from (x, kernel, plan) to y.
        input_gradient: Function from (y, kernel, plan) to x, the transpose of `output` with respect to x; None for XLA's own.
        kernel_gradient: Function from (x, y, plan) to the kernel, the transpose of `output` with respect to it; None for XLA's own.
        supports: Function from a plan to whether it can be computed.
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
    "planes": _lowering(planes),
    "onednn": _lowering(onednn),
}


def check_name(caller: str, argument: str, name: str) -> None:
    """Check that a name is "auto" or a key of `LOWERINGS`, and installed."""
    arguments.word(caller, argument, name, ("auto", *LOWERINGS))
    if name == "onednn" and not onednn.is_installed():
        raise UserError(f"{caller}: {argument}='onednn' cannot be used: {onednn.status()}")


def supports(name: str, plan: ConvPlan) -> bool:
    """Return whether a lowering, a key of `LOWERINGS`, can compute a plan; only "lax" supports symbolic sizes."""
    return name == "lax" or (not plan.symbolic and LOWERINGS[name].supports(plan))


def select_lowering(plan: ConvPlan, *, platform: str = "cpu", operation: str = "output", several: bool = False, native: bool = True) -> str:
    """Return the lowering that `lowering="auto"` selects outside of `use_lowering`.

    On GPU and TPU, and for symbolic sizes, this is "lax". Over several TPUs, it is "split" or else "taps" for grouped convolutions other
    than depthwise ones with one output per channel, since XLA would gather their input.

    On a CPU, it is "onednn" if `dilax-onednn` is installed and supports the plan, with these exceptions:

    - depthwise convolutions with several outputs per channel, or of fewer than 8 channels, unless oneDNN has a specialised implementation;
    - for dense convolutions with at least 64 input and output channels and 40 % of their multiply-adds on padding, kernel gradients that
      oneDNN computes from patches;
    - outputs in bfloat16 of dense convolutions with at least 512 input channels and 15 % of their multiply-adds on padding;
    - input gradients of dense convolutions with a stride and at most 4 input channels, or 2 in bfloat16.

    For these, and where oneDNN cannot be used, the first rule that applies selects

    - for grouped convolutions: "taps" with at most 64 multiply-adds per output (above all depthwise convolutions), "split" for wider groups
      if there are at most 32;
    - for kernels of one tap without padding: "products";
    - for 3-D convolutions: "planes";
    - for outputs and input gradients with at least 32 input and output channels: "products" with a stride, or if at least 15 % of the
      multiply-adds would be on padding, as with large dilations on small maps;
    - for kernel gradients with at least 64 input and output channels: "products" if as many multiply-adds would be on padding, or for 2-D
      convolutions with at most 8192 output positions over the batch;
    - for other kernel gradients of 2-D convolutions, and of 1-D convolutions with fewer than 8 input channels: "patches";
    - otherwise "lax".

    The thresholds were measured on 2 cores by `python -m benchmarks.ops`, with AVX2, and those of oneDNN for convolutions that
    are not depthwise with AVX-512 and AMX; `autotune` measures on other machines.

    Args:
        plan: The plan of the convolution.
        platform: "cpu", "cuda", "rocm", "tpu", or "other", which always selects "lax".
        operation: "output", "input_gradient" or "kernel_gradient".
        several: Whether XLA partitions the operation over several devices by itself. This matters on TPUs, and on CPUs for "onednn", which
            is not selected then; otherwise, a lowering is selected for the part of each device.
        native: Whether oneDNN is used where it is installed. It is not in programs that `jax.export` writes, or that XLA partitions by
            itself.

    Returns:
        A key of `LOWERINGS`.

    Raises:
        UserError: if the platform or the operation is unknown.

    Example:
        >>> plan = ConvPlan(1, (64,), 8, 8, (3,), (1,), ((2, 2),), (2,), 8, "float32")
        >>> select_lowering(plan), select_lowering(plan, platform="tpu")
        ('taps', 'lax')
    """
    if not isinstance(plan, ConvPlan):
        raise UserError(f"select_lowering: plan={shown(plan)} is not a `dilax.ConvPlan`; give one.")
    arguments.word("select_lowering", "platform", platform, (*PLATFORMS, "other"))
    arguments.word("select_lowering", "operation", operation, OPERATIONS)
    arguments.flag("select_lowering", "several", several)
    arguments.flag("select_lowering", "native", native)
    if plan.symbolic:
        return "lax"
    candidates: tuple[str, ...] = ()
    if platform == "tpu" and several and plan.groups > 1 and not plan.groups == plan.c_in == plan.c_out:
        candidates = ("split", "taps")
    elif platform == "cpu":
        if native and not several and supports("onednn", plan) and _suits_onednn(plan, operation):
            return "onednn"
        candidates = _candidates(plan, operation)
    return next((name for name in candidates if supports(name, plan)), "lax")


_SCOPE = contextvars.ContextVar("dilax_lowering", default="auto")


@contextlib.contextmanager
def use_lowering(name: str) -> Iterator[None]:
    """Set what `lowering="auto"` means for every convolution traced inside the scope.

    This applies to functions, modules and models, including transposed convolutions, and to the output and both gradients: the gradients
    of a convolution use the lowering with which it was traced, wherever they are computed. With "lax", a model consists of plain
    `lax.conv_general_dilated` calls, and its pooling and resizing of plain slices and products, which exporters and other compilers
    understand. A convolution that the lowering does not support falls back to "auto", and an explicit `lowering=` argument takes precedence
    over the scope. Scopes nest, and the innermost one applies.

    The scope is read while a function is traced. A function compiled by `jax.jit` keeps the lowering of its first trace as long as that is
    cached: enter the scope inside the function, or jit a new function (or call `jax.clear_caches()`) for each scope.

    Args:
        name: A key of `LOWERINGS`, or "auto" to restore the rule of `select_lowering`.

    Raises:
        UserError: if the name is unknown, or is "onednn" and that is not installed.

    Example:
        >>> import jax.numpy as jnp, dilax
        >>> with dilax.use_lowering("lax"):
        ...     y = dilax.dilated_conv(jnp.ones((1, 7, 1)), jnp.ones((3, 1, 1)), dilation=2)
        >>> y.shape
        (1, 7, 1)
    """
    check_name("use_lowering", "name", name)
    token = _SCOPE.set(name)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def scope() -> str:
    """Return the name of the innermost `use_lowering` scope."""
    return _SCOPE.get()


def in_scope(lowering: str, plan: ConvPlan) -> str:
    """Resolve a lowering in the innermost `use_lowering` scope, which replaces "auto" if it supports the plan."""
    name = scope()
    return name if lowering == "auto" != name and supports(name, plan) else lowering


def _candidates(plan: ConvPlan, operation: str) -> tuple[str, ...]:
    """The lowerings that the rule prefers to "lax", best first."""
    if plan.groups > 1:
        return ("taps", "split")
    if _one_tap(plan):
        return ("products",)
    if plan.rank == 3:
        return ("planes",)
    wide = min(plan.c_in, plan.c_out)
    if operation != "kernel_gradient":
        return ("products",) if wide >= 32 and (_much_padding(plan) or max(plan.stride) > 1) else ()
    few = plan.rank > 1 and plan.batch * math.prod(plan.output_size) <= 8192
    if wide >= 64 and (few or _much_padding(plan)):
        return ("products",)
    return ("patches",) if plan.rank > 1 or plan.c_in < 8 else ()


def _suits_onednn(plan: ConvPlan, operation: str) -> bool:
    """Whether oneDNN, which supports the plan, is the fastest."""
    gradient = operation == "kernel_gradient"
    if plan.c_in == plan.groups > 1 and supports("taps", plan):
        return onednn.is_specialised(operation, plan)
    if plan.groups > 1:
        return True
    if gradient:
        return onednn.is_specialised(operation, plan) or min(plan.c_in, plan.c_out) < 64 or products.useful_fraction(plan) > 0.6
    if operation == "input_gradient":
        return max(plan.stride) == 1 or plan.c_in > (2 if plan.dtype == "bfloat16" else 4)
    return plan.dtype != "bfloat16" or plan.c_in < 512 or not _much_padding(plan)


def _one_tap(plan: ConvPlan) -> bool:
    return plan.taps == 1 and not any(map(any, plan.padding))


def _much_padding(plan: ConvPlan) -> bool:
    return products.useful_fraction(plan) <= 0.85
