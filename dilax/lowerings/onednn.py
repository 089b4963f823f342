"""The convolutions of oneDNN, on which PyTorch builds on CPUs, as a custom call of XLA.

They are a distribution of their own, `dilax-onednn` in the folder native/, since building it takes a C++ compiler; without it, `supports`
is False for every plan. Depthwise convolutions with one output per channel and at least 8 channels are computed by a loop of that package
instead of oneDNN. XLA can neither partition nor export a custom call: this lowering is taken where a program runs on one CPU, and for the
part of each device, and nowhere else.
"""

import dataclasses
import functools
import importlib
import math
import os
from typing import Any

import jax

from dilax.plan import ConvPlan

# The version of the calls that this module makes.
INTERFACE = 3
# The numbers by which the package knows the operations.
OPERATIONS = {"output": 0, "input_gradient": 1, "kernel_gradient": 2}
DTYPES = ("float32", "bfloat16", "float16")
# The name of the package's own loop for depthwise convolutions.
LOOP = "direct:dw"
# oneDNN computes some offsets in 32 bits; no array may have more bytes in float32.
MAX_SIZE = (2**31 - 1) // 4
# From this dilation on, outputs and input gradients in rows of one dilation were faster, by 1.1 to 1.6 times with AVX-512 and with AVX2.
LARGE_DILATION = 128
# Kernel gradients from patches were slower than in such rows by 1.5 to 3.6 times with as many channels per group, and faster with 128.
FEW_CHANNELS = 32
# The environment variable that switches it off with the value 0.
SWITCH = "DILAX_NATIVE"
INSTALL = "install it with pip install ./native from a checkout (Linux on x86-64)."


def _package() -> tuple[Any, str]:
    """Return the package, or None, and a line that says whether it is used, and if not, why."""
    if os.environ.get(SWITCH) == "0":
        return None, f"dilax-onednn is switched off by {SWITCH}=0; unset that."
    return _imported()


@functools.cache
def _imported() -> tuple[Any, str]:
    try:
        package = importlib.import_module("dilax_onednn")
        if package.INTERFACE != INTERFACE:
            raise ImportError(f"it is version {package.__version__}, which belongs to another version of dilax")
    except Exception as error:  # of many kinds, such as a missing library; the other lowerings do without it
        if isinstance(error, ModuleNotFoundError) and error.name == "dilax_onednn":
            return None, f"dilax-onednn is not installed; {INSTALL}"
        return None, f"dilax-onednn cannot be used ({error}); {INSTALL}"
    return package, f"dilax-onednn {package.__version__} is used on CPUs: oneDNN {package.ONEDNN}, {package.instruction_set()}."


def status() -> str:
    """Return a line that says whether oneDNN is used, and if not, why."""
    return _package()[1]


def version() -> str:
    """Return the version of oneDNN that is used for convolutions on this process's devices, or an empty string."""
    package = _package()[0] if jax.default_backend() == "cpu" else None
    return package.ONEDNN if package else ""


def is_installed() -> bool:
    """Return whether `dilax-onednn` is installed and can be used."""
    return _package()[0] is not None


def supports(plan: ConvPlan) -> bool:
    """Return whether `dilax-onednn` is installed and has optimised implementations of the output and both gradients."""
    if not is_installed() or plan.symbolic or plan.dtype not in DTYPES:
        return False
    shapes = (plan.x_shape, plan.kernel_shape, plan.y_shape)
    if any(0 in shape or math.prod(shape) > MAX_SIZE for shape in shapes) or min(map(min, plan.padding)) < 0:
        return False
    return all(_implementation(operation, plan) for operation in OPERATIONS)


def is_specialised(operation: str, plan: ConvPlan) -> bool:
    """Return whether the implementation for a plan that oneDNN supports suits its kind on this processor.

    For depthwise convolutions that is one for depthwise convolutions, for others any but that which multiplies patches.
    """
    found = _implementation(operation, plan)
    return found is not None and ("dw" in found[1] if plan.groups == plan.c_in > 1 else "gemm" not in found[1])


def output(x: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """Convolve."""
    return _run("output", x, kernel, plan)


def input_gradient(y: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """Compute the gradient with respect to x."""
    return _run("input_gradient", y, kernel, plan)


def kernel_gradient(x: jax.Array, y: jax.Array, plan: ConvPlan) -> jax.Array:
    """Compute the gradient with respect to the kernel."""
    return _run("kernel_gradient", x, y, plan)


def _implementation(operation: str, plan: ConvPlan) -> tuple[str, str] | None:
    """Return the dtype in which an operation is computed, and the name of what computes it on this processor, or None if nothing does.

    The dtype is the plan's, or else float32: for float16, and for bfloat16 where its implementation is of no use.
    """
    for dtype in ("bfloat16", "float32") if plan.dtype == "bfloat16" else ("float32",):
        name = _package()[0].implementation(dtype, _sizes(operation, plan))
        if name is not None and _is_useful(name, dtype, operation, plan):
            return dtype, name
    return None


def _is_useful(name: str, dtype: str, operation: str, plan: ConvPlan) -> bool:
    """Return whether an implementation is optimised and, in bfloat16, to be used instead of that in float32."""
    if name.startswith("ref"):
        return False
    if dtype != "bfloat16" or operation == "output" or name == LOOP:
        return True
    if operation == "kernel_gradient":
        return False  # some of these divide by zero, which ends the process; in another, threads race: it was wrong by up to 1e35
    return plan.groups == 1  # those of grouped convolutions are often slower


def _run(operation: str, a: jax.Array, b: jax.Array, plan: ConvPlan) -> jax.Array:
    computed = _in_rows(operation, plan)
    found = _implementation(operation, computed)
    assert found, "`supports` comes first"
    operands = (array.astype(found[0]) for array in (a, b))
    return _package()[0].convolve(*operands, plan.result_shape(operation), _sizes(operation, computed)).astype(a.dtype)


def _in_rows(operation: str, plan: ConvPlan) -> ConvPlan:
    """Return the plan by which an operation is computed: that in rows of one dilation, where this is faster, or the plan itself.

    Along one axis, samples only meet others at multiples of the dilation from them. If the length and the padding are such multiples, the
    same memory is an image with rows of one dilation each, which is convolved along its columns without dilation.
    """
    length, dilation, (lo, hi) = plan.input_size[0], plan.dilation[0], plan.padding[0]
    if plan.rank > 1 or dilation == 1 or plan.stride[0] > 1 or any(size % dilation for size in (length, lo, hi)):
        return plan
    rows = dataclasses.replace(
        plan,
        input_size=(length // dilation, dilation),
        kernel_size=(*plan.kernel_size, 1),
        stride=(1, 1),
        padding=((lo // dilation, hi // dilation), (0, 0)),
        dilation=(1, 1),
    )
    found, of_rows = _implementation(operation, plan), _implementation(operation, rows)
    if found is None or of_rows is None or found[0] != of_rows[0] or LOOP in (found[1], of_rows[1]):
        return plan
    if operation == "kernel_gradient":
        few = max(plan.c_in, plan.c_out) <= FEW_CHANNELS * plan.groups
        return rows if few and not is_specialised(operation, plan) and is_specialised(operation, rows) else plan
    return rows if dilation >= LARGE_DILATION else plan


def _sizes(operation: str, plan: ConvPlan) -> tuple[int, ...]:
    """Return all sizes in the order of `dilax_onednn.convolve`."""
    lo, hi = zip(*plan.padding)
    per_axis = (*plan.input_size, *plan.kernel_size, *plan.output_size, *plan.stride, *plan.dilation, *lo, *hi)
    return (OPERATIONS[operation], plan.batch, plan.c_in, plan.c_out, plan.groups, *per_axis)
