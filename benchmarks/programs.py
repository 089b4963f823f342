"""The contenders of `benchmarks.ops`: every lowering of dilax, "auto", and torch in two layouts, as programs that are ready to be timed."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dilax
from benchmarks import common, memory, native
from benchmarks.cases import CASES, Case
from benchmarks.contest import Program
from dilax import lowerings

TORCH_LAYOUTS = ("torch contiguous", "torch channels_last")
# "auto" as it is without the native part, and with it.
AUTO, NATIVE = "auto", "auto+native"


def contenders(case: Case) -> list[str]:
    """Return the names of what is measured: "lax", the other lowerings that support the case, "auto", and torch in its layouts."""
    names = [name for name in lowerings.LOWERINGS if lowerings.supports(name, case.plan())]
    return [*names, AUTO, *((NATIVE,) if native.installed() else ()), *(() if common.without_torch() else TORCH_LAYOUTS)]


def program(case: Case, measure: str, contender: str) -> Program:
    """Return a contender by name, compiled and with its inputs bound."""
    make = torch_program if contender in TORCH_LAYOUTS else jax_program
    return make(case, measure, contender)


def named_program(name: str, measure: str, contender: str) -> Program:
    """Return a contender of the case of that name."""
    return program(next(case for case in CASES if case.name == name), measure, contender)


def peak_bytes(case: Case, measure: str, contender: str) -> int | None:
    """Return the memory that one run of a contender uses beyond its inputs; see `memory.peak_bytes`."""
    return memory.peak_bytes("benchmarks.programs:named_program", case.name, measure, contender)


def jax_program(case: Case, measure: str, contender: str) -> Program:
    """Return one lowering, or "auto" with or without the native part, as a compiled program."""
    lowering = AUTO if contender == NATIVE else contender
    options: Any = dict(stride=case.stride, padding=case.padding, dilation=case.dilation, groups=case.groups, lowering=lowering)
    forward = functools.partial(dilax.dilated_conv, **options)

    def gradients(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(forward, x, kernel)
        return y, *pullback(cotangent)

    inputs = [jnp.asarray(array, case.dtype) for array in case.arrays()]
    if measure == "gradients":
        return compiled_program(contender, gradients, *inputs)
    return compiled_program(contender, lambda x, kernel: (forward(x, kernel),), *inputs[:2])


def compiled_program(contender: str, function: Any, *inputs: Any) -> Program:
    """Return a function of JAX, whose result is a tuple of arrays, compiled for its inputs in the scope of the contender's name."""
    with native.scope(contender):
        start = time.perf_counter()
        compiled = jax.jit(lambda *inputs: function(*inputs)).lower(*inputs).compile()
        compile_s = time.perf_counter() - start
    sizes = compiled.memory_analysis()
    return Program(
        lambda: jax.block_until_ready(compiled(*inputs)),
        lambda results: [np.asarray(result, np.float32) for result in results],
        compile_s,
        sizes.temp_size_in_bytes + sizes.output_size_in_bytes if sizes else None,
    )


def torch_program(case: Case, measure: str, layout: str) -> Program:
    """Return torch's convolution in one layout, in which its inputs and results are stored, too."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(common.cores())
    plan, channels_last = case.plan(), layout == "torch channels_last"
    as_image = channels_last and case.rank == 1  # channels_last exists for images and volumes only
    one = (1,) if as_image else ()
    rank = case.rank + len(one)
    memory_format = torch.contiguous_format
    if channels_last:
        memory_format = torch.channels_last if rank == 2 else torch.channels_last_3d

    def tensor(array: np.ndarray, order: tuple[int, ...]) -> Any:
        permuted = torch.from_numpy(array).to(getattr(torch, case.dtype)).permute(order)
        return (permuted.unsqueeze(2) if as_image else permuted).contiguous(memory_format=memory_format)

    x_order, kernel_order = (0, -1, *range(1, case.rank + 1)), (-1, -2, *range(case.rank))
    x, kernel, cotangent = (tensor(array, order) for array, order in zip(case.arrays(), (x_order, kernel_order, x_order)))
    pairs = ((0, 0),) * len(one) + plan.padding
    symmetric = all(lo == hi for lo, hi in pairs)
    pads = [number for pair in reversed(pairs) for number in pair]
    options: Any = dict(stride=one + plan.stride, dilation=one + plan.dilation, groups=case.groups)
    options["padding"] = tuple(lo for lo, _ in pairs) if symmetric else 0
    convolve = [functional.conv1d, functional.conv2d, functional.conv3d][rank - 1]

    def forward() -> Any:
        return convolve(x if symmetric else functional.pad(x, pads), kernel, **options)

    def run() -> tuple[Any, ...]:
        if measure == "gradients":
            y = forward()
            return y.detach(), *torch.autograd.grad(y, (x, kernel), cotangent)
        with torch.no_grad():
            return (forward(),)

    def to_numpy(results: tuple[Any, ...]) -> list[np.ndarray]:
        arrays = [(result.squeeze(2) if as_image else result).float().numpy() for result in results]
        moved = [np.moveaxis(array, 1, -1) for array in arrays]
        return [*moved[:2], arrays[2].transpose(*range(2, case.rank + 2), 1, 0)] if len(arrays) > 2 else moved

    for operand in (x, kernel) if measure == "gradients" else ():
        operand.requires_grad_()
    return Program(run, to_numpy)
