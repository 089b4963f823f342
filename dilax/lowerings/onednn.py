"""The convolutions of oneDNN, on which PyTorch builds on CPUs, as a custom call of XLA.

They are a distribution of their own, `dilax-onednn` in the folder native/, since building it takes a C++ compiler; without it, `supports`
is False for every plan. XLA can neither partition nor export a custom call: this lowering is taken where a program runs on one CPU, and for
the part of each device, and nowhere else.
"""

import dataclasses
import functools
import importlib
import math
import os
from typing import Any

import jax
import jax.numpy as jnp

from dilax.plan import ConvPlan

# The version of the calls that this module makes.
INTERFACE = 1
# The numbers by which the package knows the operations.
OPERATIONS = {"output": 0, "input_gradient": 1, "kernel_gradient": 2}
DTYPES = ("float32", "bfloat16", "float16")
# oneDNN computes some offsets in 32 bits; no array may have more bytes in float32.
MAX_SIZE = (2**31 - 1) // 4
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
    wide = dataclasses.replace(plan, dtype="float32")
    flipped = _flipped(wide)
    backward = _implemented("output", flipped) if flipped else _implemented("input_gradient", wide)
    return backward and _implemented("output", wide) and _implemented("kernel_gradient", wide)


def output(x: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """Convolve; float16 in float32, and bfloat16 where oneDNN does not implement it."""
    return _call("output", x, kernel, plan, as_it_is=plan.dtype == "bfloat16")


def input_gradient(y: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """Convolve y with the flipped kernel if that is depthwise, or else use oneDNN's own gradient, in float32 where that is faster."""
    if (flipped := _flipped(plan)) is not None:
        return output(y, jnp.flip(kernel, range(plan.rank)), flipped)
    return _call("input_gradient", y, kernel, plan, as_it_is=plan.dtype == "bfloat16" and plan.groups == 1)


def kernel_gradient(x: jax.Array, y: jax.Array, plan: ConvPlan) -> jax.Array:
    """Use oneDNN's own gradient, in float32: with AMX, that of dense convolutions in bfloat16 took 5 to 20 times as long."""
    return _call("kernel_gradient", x, y, plan, as_it_is=False)


def _flipped(plan: ConvPlan) -> ConvPlan | None:
    """Return the plan of a depthwise convolution that computes the input gradient of another, or None.

    oneDNN's own gradient is up to 9 times slower with a dilation.
    """
    reach = [(k - 1) * d for k, d in zip(plan.kernel_size, plan.dilation)]
    padding = tuple((r - lo, r - hi) for r, (lo, hi) in zip(reach, plan.padding))
    if not plan.groups == plan.c_in == plan.c_out or max(plan.stride) > 1 or min(map(min, padding)) < 0:
        return None
    return dataclasses.replace(plan, input_size=plan.output_size, padding=padding)


def _implemented(operation: str, plan: ConvPlan) -> bool:
    """Return whether oneDNN has an optimised implementation on this processor."""
    name = _package()[0].implementation(plan.dtype, _sizes(operation, plan))
    return name is not None and not name.startswith("ref")


def _call(operation: str, a: jax.Array, b: jax.Array, plan: ConvPlan, *, as_it_is: bool) -> jax.Array:
    """Compute an operation in its own dtype if that is implemented, and else in float32."""
    shape = {"output": plan.y_shape, "input_gradient": plan.x_shape, "kernel_gradient": plan.kernel_shape}[operation]
    dtype = a.dtype if as_it_is and _implemented(operation, plan) else jnp.float32
    return _package()[0].convolve(a.astype(dtype), b.astype(dtype), shape, _sizes(operation, plan)).astype(a.dtype)


def _sizes(operation: str, plan: ConvPlan) -> tuple[int, ...]:
    """Return all sizes in the order of `dilax_onednn.convolve`."""
    lo, hi = zip(*plan.padding)
    per_axis = (*plan.input_size, *plan.kernel_size, *plan.output_size, *plan.stride, *plan.dilation, *lo, *hi)
    return (OPERATIONS[operation], plan.batch, plan.c_in, plan.c_out, plan.groups, *per_axis)
