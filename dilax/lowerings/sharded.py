"""A convolution and its two gradients on arrays that are spread over devices.

Batch and space may be spread, and so may the channels, without groups or with one per channel. For its part of the output, a device needs a
window of the input: its own samples and those of its neighbours within the reach of the kernel. The input gradient is the transpose: what a
device computes for samples of its neighbours is sent back and added. The kernel gradient is summed over the devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from dilax import partitioning
from dilax.geometry import effective_kernel_size
from dilax.partitioning import Rule, Shards
from dilax.plan import ConvPlan

Windows = dict[int, tuple[int, list[int], int]]
Compute = Callable[[str, jax.Array, jax.Array, ConvPlan, str], jax.Array]


def rule(operands: tuple[str, str, str], *_: Any, plan: ConvPlan, lowering: str) -> Rule | None:
    """Return the rule of an operation on two of "x", "kernel" and "y" whose result is the third; None for sizes unknown or 0."""
    if plan.symbolic or 0 in (plan.batch, plan.c_in, plan.c_out):
        return None
    space = tuple(f"s{axis}" for axis in range(plan.rank))
    taps = tuple(f"k{axis}" for axis in range(plan.rank))
    whole = set(taps)
    if plan.groups == 1:
        channels = {"x": "i", "kernel": "o", "y": "o"}
    elif plan.groups == plan.c_in == plan.c_out:
        channels = dict.fromkeys(("x", "kernel", "y"), "o")
        whole |= {"i"}
    else:
        # Offered an axis that stands for groups and their channels, XLA may shard each by a part of one mesh axis, which no
        # PartitionSpec can express.
        channels = {"x": "x", "kernel": "o", "y": "o"}
        whole |= set("ixo")
    axes = {name: (*taps, "i", last) if name == "kernel" else ("b", *space, last) for name, last in channels.items()}
    first, second, result = (axes[name] for name in operands)
    return Rule((first, second), (result,), even={"i": plan.c_in, "o": plan.c_out}, whole=frozenset(whole))


def compute(
    operation: str, apply: Compute, a: jax.Array, b: jax.Array, *, plan: ConvPlan, lowering: str, shards: dict[str, Shards]
) -> jax.Array:
    """Compute this device's part of the result of an operation."""
    windows = _windows(plan, shards)
    part = _part(plan, windows, shards)

    def extended(x: jax.Array) -> jax.Array:
        for axis, (size, starts, length) in windows.items():
            x = partitioning.window(x, axis, shards[f"s{axis - 1}"], size, starts, length)
        return x

    def valid(array: jax.Array, name: str) -> jax.Array:
        """Replace what is beyond the end of the batch, and for y of space, by 0, which adds nothing to a gradient."""
        sizes = {0: plan.batch} | ({axis: plan.output_size[axis - 1] for axis in windows} if name == "y" else {})
        for axis, size in sizes.items():
            array = partitioning.valid(array, axis, shards[f"s{axis - 1}" if axis else "b"], size)
        return array

    if operation == "output":
        return partitioning.total(apply(operation, extended(a), b, part, lowering), [shards["i"]])
    if operation == "input_gradient":
        x = apply(operation, valid(a, "y"), b, part, lowering)
        x = partitioning.total(x, [shards["o"]] if plan.groups == 1 else [])
        held = [shards["b"].length(plan.batch), *x.shape[1:]]
        for axis in windows:
            held[axis] = shards[f"s{axis - 1}"].length(plan.input_size[axis - 1])
        return jax.linear_transpose(extended, jax.ShapeDtypeStruct(tuple(held), x.dtype))(x)[0]
    kernel = apply(operation, extended(valid(a, "x")), valid(b, "y"), part, lowering)
    return partitioning.total(kernel, [shards["b"], *(shards[f"s{axis - 1}"] for axis in windows)])


def _windows(plan: ConvPlan, shards: dict[str, Shards]) -> Windows:
    """Return for each spatial axis of x that is spread: its size, and where the window of each shard starts and how long it is."""
    spans = effective_kernel_size(plan.kernel_size, plan.dilation)
    windows = {}
    for axis, (size, out, stride, (lo, _), span) in enumerate(zip(plan.input_size, plan.output_size, plan.stride, plan.padding, spans)):
        spread = shards[f"s{axis}"]
        if spread.count > 1:
            length = spread.length(out)
            starts = [shard * length * stride - lo for shard in range(spread.count)]
            windows[axis + 1] = (size, starts, (length - 1) * stride + span)
    return windows


def _part(plan: ConvPlan, windows: Windows, shards: dict[str, Shards]) -> ConvPlan:
    """Return the plan of one device, whose input holds the windows."""
    sizes, padding = list(plan.input_size), list(plan.padding)
    for axis, (_, _, length) in windows.items():
        sizes[axis - 1], padding[axis - 1] = length, (0, 0)
    return dataclasses.replace(
        plan,
        batch=shards["b"].length(plan.batch),
        input_size=tuple(sizes),
        padding=tuple(padding),
        c_in=plan.c_in // shards["i" if plan.groups == 1 else "o"].count,
        c_out=plan.c_out // shards["o"].count,
        groups=plan.groups // (1 if plan.groups == 1 else shards["o"].count),
    )
