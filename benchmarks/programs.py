"""The contenders of `benchmarks.ops`: every lowering of dilax, and torch in two layouts, as programs that are ready to be timed."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dilax
from benchmarks import common
from benchmarks.cases import Case
from dilax import lowerings

TORCH_LAYOUTS = ("torch contiguous", "torch channels_last")


@dataclasses.dataclass(frozen=True)
class Program:
    """A contender that is ready to run.

    Attributes:
        run: Runs it, blocks until it is done, and returns all results.
        to_numpy: Converts the results to float32 arrays in JAX's layout.
        compile_s: Seconds that it took to compile; 0 for torch.
        memory_bytes: Memory for temporaries and outputs according to XLA; None if unknown.
    """

    run: Callable[[], tuple[Any, ...]]
    to_numpy: Callable[[tuple[Any, ...]], list[np.ndarray]]
    compile_s: float = 0.0
    memory_bytes: int | None = None


def contenders(case: Case) -> list[str]:
    """Return the names of what is measured: "lax", the other lowerings that support the case, "auto", and torch in its layouts."""
    names = [name for name in lowerings.LOWERINGS if lowerings.supports(name, case.plan())]
    return [*names, "auto", *(() if common.without_torch() else TORCH_LAYOUTS)]


def program(case: Case, measure: str, contender: str) -> Program:
    """Return a contender by name, compiled and with its inputs bound."""
    make = torch_program if contender in TORCH_LAYOUTS else jax_program
    return make(case, measure, contender)


def jax_program(case: Case, measure: str, lowering: str) -> Program:
    """Return one lowering, or "auto", as a compiled program."""
    options: Any = dict(stride=case.stride, padding=case.padding, dilation=case.dilation, groups=case.groups, lowering=lowering)
    forward = functools.partial(dilax.dilated_conv, **options)

    def gradients(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(forward, x, kernel)
        return y, *pullback(cotangent)

    inputs = [jnp.asarray(array, case.dtype) for array in case.arrays()]
    function, inputs = (gradients, inputs) if measure == "gradients" else (lambda x, kernel: (forward(x, kernel),), inputs[:2])
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*inputs).compile()
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    return Program(
        lambda: jax.block_until_ready(compiled(*inputs)),
        lambda results: [np.asarray(result, np.float32) for result in results],
        compile_s,
        memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else None,
    )


def torch_program(case: Case, measure: str, layout: str) -> Program:
    """Return torch's convolution in one layout, in which its inputs and results are stored, too."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(int(common.environment()["cores"]))
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
