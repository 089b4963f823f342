"""How the labels of channels pass through each JAX operation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dilax.pruning.labels import Axes, Channels, Labels, Value, positions
from dilax.receptive_fields.jaxprs import ELEMENTWISE

Rule = Callable[[Channels, Any, list[Value]], list[Axes]]


def apply(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    """Return the labels of the results of an equation that does not contain a jaxpr, and note what it couples."""
    name = eqn.primitive.name
    return RULES.get(name, _elementwise if name in ELEMENTWISE else unknown)(channels, eqn, operands)


def unknown(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    """Lock all that an operation reads."""
    for operand in operands:
        for labels in operand.axes:
            channels.lock(labels, f"the operation {eqn.primitive.name!r} is not followed")
    return [positions(getattr(var.aval, "shape", ())) for var in eqn.outvars]


def _shape(eqn: Any) -> tuple[int, ...]:
    return eqn.outvars[0].aval.shape


def _elementwise(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    arrays = [operand.axes for operand in operands if operand.axes]
    why = f"the operation {eqn.primitive.name!r} combines them with values that are not channels"
    axes = tuple(channels.merge(axis, why) for axis in zip(*arrays, strict=True))
    return [axes for _ in eqn.outvars]


_READS = "a kernel reads them together with values that are not channels"


def _conv(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    """A convolution of ours or of XLA."""
    (x, kernel), shape, sizes = operands, _shape(eqn), eqn.invars[1].aval.shape
    if eqn.primitive.name == "dilated_conv":
        batch, channel, target, groups = 0, -1, (0, len(shape) - 1), eqn.params["plan"].groups
        *windows, kernel_in, kernel_out = kernel.axes
    else:
        numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
        if eqn.params["batch_group_count"] != 1:
            return unknown(channels, eqn, operands)
        (batch, channel), target = numbers.lhs_spec[:2], numbers.out_spec[:2]
        kernel_out, kernel_in, *windows = (kernel.axes[i] for i in numbers.rhs_spec)
    for labels in windows:
        channels.lock(labels)
    channels.count(math.prod(shape) // shape[target[1]] * math.prod(sizes), operands)
    channels.produce(kernel_out, kernel)
    _group(channels, x.axes[channel], kernel_in, kernel_out, groups)
    results = list(positions(shape))
    results[target[0]], results[target[1]] = x.axes[batch], kernel_out
    return [tuple(results)]


def _group(channels: Channels, x: Labels, kernel_in: Labels, kernel_out: Labels, groups: int) -> None:
    """Couple the channels of the input of a convolution with those of its kernel."""
    if groups == 1 or x is None:
        return channels.couple(x, kernel_in, _READS)
    rows, outs = x.reshape(groups, -1), None if kernel_out is None else kernel_out.reshape(groups, -1)
    if rows.shape[1] == 1:  # depthwise: a group is removed as a whole
        return channels.couple(outs, rows, _READS)
    # The same channels are removed of each group, so that the groups stay equal.
    for labels in (rows, outs):
        channels.couple(labels, None if labels is None else labels[:1], _READS)
    return channels.couple(rows[0], kernel_in, _READS)


def _transposed(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    """A transposed convolution: its input has the channels of the last axis of the kernel (*window, out / groups, in)."""
    (x, kernel), groups = operands, eqn.params["plan"].groups
    *windows, out, into = kernel.axes
    for labels in windows:
        channels.lock(labels)
    channels.couple(x.axes[-1], into, _READS)
    if groups > 1 and into is not None:
        rows = into.reshape(groups, -1)
        depthwise = out is None
        channels.couple(rows, rows[:, :1] if depthwise else rows[:1], _READS)
        out = rows[:, 0] if depthwise else np.tile(out, groups)
    channels.produce(out, kernel)
    channels.count(math.prod(eqn.invars[0].aval.shape[:-1]) * math.prod(eqn.invars[1].aval.shape), operands)
    return [(x.axes[0], *positions(_shape(eqn))[1:-1], out)]


def _dot_general(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    (contract, batch), shapes = eqn.params["dimension_numbers"], [var.aval.shape for var in eqn.invars]
    a, b = (operand.axes for operand in operands)
    for i, j in zip(*contract):
        channels.couple(a[i], b[j], "a product sums over them together with values that are not channels")
    free = [[i for i in range(len(shapes[k])) if i not in (*contract[k], *batch[k])] for k in (0, 1)]
    for operand, own in zip(operands, free):
        for i in own:
            channels.produce(operand.axes[i], operand)
    channels.count(math.prod(_shape(eqn)) * math.prod(shapes[0][i] for i in contract[0]), operands)
    shared = [channels.merge((a[i], b[j]), "a product combines them with values that are not channels") for i, j in zip(*batch)]
    return [(*shared, *(a[i] for i in free[0]), *(b[j] for j in free[1]))]


def _reshape(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    """Split and merge axes, one block of axes after the other that has as many entries before as after."""
    old, new, axes = eqn.invars[0].aval.shape, _shape(eqn), operands[0].axes
    if 0 in old or eqn.params["dimensions"] is not None:
        return unknown(channels, eqn, operands)
    results: list[Labels] = [None] * len(new)
    i = j = 0
    while i < len(old) and j < len(new):
        first, target, size, wanted = i, j, old[i], new[j]
        while size != wanted:
            if size < wanted:
                i += 1
                size *= old[i]
            else:
                j += 1
                wanted *= new[j]
        i, j = i + 1, j + 1
        results[target:j] = _regroup(channels, axes[first:i], old[first:i], new[target:j])
    return [tuple(results)]


def _regroup(channels: Channels, axes: Axes, old: Sequence[int], new: Sequence[int]) -> list[Labels]:
    """Return the labels of axes with the entries of others, in the same order."""
    fixed, why = list(positions(new)), "a reshape mixes several axes of them"
    labelled = [i for i, labels in enumerate(axes) if labels is not None and labels.any()]
    if len(labelled) != 1:
        for i in labelled:
            channels.lock(axes[i], why)
        return [None] * len(new) if all(labels is None for labels in axes) else fixed
    labels: Any = axes[labelled[0]]
    spread = np.broadcast_to(labels.reshape([-1 if i == labelled[0] else 1 for i in range(len(old))]), old).reshape(new)
    for j, n in enumerate(new):
        along = np.moveaxis(spread, j, 0).reshape(n, -1)
        if (along == along[:, :1]).all():
            return [*fixed[:j], along[:, 0], *fixed[j + 1 :]]
    channels.lock(labels, why)
    return fixed


def _broadcast(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    shape = _shape(eqn)
    results: list[Labels] = [None] * len(shape)
    for labels, n, target in zip(operands[0].axes, eqn.invars[0].aval.shape, eqn.params["broadcast_dimensions"]):
        results[target] = labels if n == shape[target] else None
    return [tuple(results)]


def _transpose(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    return [tuple(operands[0].axes[i] for i in eqn.params["permutation"])]


def _squeeze(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    return [tuple(labels for i, labels in enumerate(operands[0].axes) if i not in eqn.params["dimensions"])]


def _reduce(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    axes = eqn.params["axes"]
    for axis in axes:
        channels.lock(operands[0].axes[axis], f"the operation {eqn.primitive.name!r} combines all of them")
    return [tuple(labels for i, labels in enumerate(operands[0].axes) if i not in axes)]


def _along(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    """Cumulative operations, along one axis."""
    axis, results = eqn.params["axis"], list(operands[0].axes)
    channels.lock(results[axis], f"the operation {eqn.primitive.name!r} combines all of them")
    results[axis] = positions(_shape(eqn))[axis]
    return [tuple(results)]


def _reduce_window(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    sizes, results = eqn.invars[0].aval.shape, list(operands[0].axes)
    for i, (taps, fixed) in enumerate(zip(eqn.params["window_dimensions"], positions(_shape(eqn)))):
        if taps != 1 or _shape(eqn)[i] != sizes[i]:
            channels.lock(results[i], f"the operation {eqn.primitive.name!r} combines several of them")
            results[i] = fixed
    return [tuple(results)]


def _pad(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    results: list[Labels] = []
    for labels, (lo, hi, inner), n in zip(operands[0].axes, eqn.params["padding_config"], eqn.invars[0].aval.shape):
        if (lo, hi, inner) != (0, 0, 0):
            spread = np.zeros(max(0, n + (n - 1) * inner), np.int64)
            spread[:: inner + 1] = 0 if labels is None else labels
            padded = np.pad(spread, (max(lo, 0), max(hi, 0)))
            labels = padded[max(-lo, 0) : len(padded) - max(-hi, 0)]
        results.append(labels)
    return [tuple(results)]


def _slice(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    p = eqn.params
    steps = zip(operands[0].axes, p["start_indices"], p["limit_indices"], p["strides"] or (1,) * len(p["start_indices"]))
    return [tuple(None if labels is None else labels[start:limit:stride] for labels, start, limit, stride in steps)]


def _dynamic_slice(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    results: list[Labels] = []
    for labels, n, m, fixed in zip(operands[0].axes, eqn.invars[0].aval.shape, _shape(eqn), positions(_shape(eqn))):
        if n != m:
            channels.lock(labels, "the operation 'dynamic_slice' takes some of them")
        results.append(labels if n == m else fixed)
    return [tuple(results)]


def _dynamic_update_slice(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    (x, update, *_), why = operands, "the operation 'dynamic_update_slice' replaces some of them"
    results: list[Labels] = []
    for labels, part, n, m in zip(x.axes, update.axes, _shape(eqn), eqn.invars[1].aval.shape):
        if n == m:
            results.append(channels.merge((labels, part), why))
            continue
        channels.lock(labels, why)
        channels.lock(part, why)
        results.append(np.zeros(n, np.int64))
    return [tuple(results)]


def _split(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    axis, axes = eqn.params["axis"], operands[0].axes
    labels = axes[axis]
    parts = [None] * len(eqn.outvars) if labels is None else np.split(labels, np.cumsum(eqn.params["sizes"])[:-1])
    return [(*axes[:axis], part, *axes[axis + 1 :]) for part in parts]


def _unstack(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    axis, axes = eqn.params["axis"], operands[0].axes
    channels.lock(axes[axis], "an unstacking takes them apart")
    return [(*axes[:axis], *axes[axis + 1 :]) for _ in eqn.outvars]


def _stack(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    axis, why = eqn.params["axis"], "they are stacked with values that are not channels"
    axes = [channels.merge(labels, why) for labels in zip(*(operand.axes for operand in operands), strict=True)]
    return [(*axes[:axis], np.zeros(len(operands), np.int64), *axes[axis:])]


def _tile(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    return [tuple(labels if labels is None else np.tile(labels, n) for labels, n in zip(operands[0].axes, eqn.params["reps"], strict=True))]


def _concatenate(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    along, results = eqn.params["dimension"], []
    for i, axes in enumerate(zip(*(operand.axes for operand in operands), strict=True)):
        if i != along:
            results.append(channels.merge(axes, "they are joined with values that are not channels"))
        elif all(labels is None for labels in axes):
            results.append(np.zeros(_shape(eqn)[i], np.int64))
        else:
            sizes = [var.aval.shape[i] for var in eqn.invars]
            results.append(np.concatenate([np.zeros(n, np.int64) if labels is None else labels for labels, n in zip(axes, sizes)]))
    return [tuple(results)]


def _rev(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    along = eqn.params["dimensions"]
    return [tuple(labels[::-1] if labels is not None and i in along else labels for i, labels in enumerate(operands[0].axes))]


def _iota(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    return [tuple(labels if i == eqn.params["dimension"] else None for i, labels in enumerate(positions(_shape(eqn))))]


def _gather(channels: Channels, eqn: Any, operands: list[Value]) -> list[Axes]:
    """Entries that indices choose, as rows of the table of an embedding; axes that are taken whole keep their labels."""
    table, indices = operands
    numbers, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.invars[0].aval.shape
    results, chosen = list(positions(_shape(eqn))), numbers.collapsed_slice_dims
    # Axes that table and indices share, as in `take_along_axis`; those of the result that are not of slices are those of the indices.
    shared = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims))
    batch = [target for target in range(len(results)) if target not in numbers.offset_dims]
    for i, j in shared.items():
        results[batch[j]] = channels.merge((table.axes[i], indices.axes[j]), "indices choose some of them")
    for target, i in zip(numbers.offset_dims, (i for i in range(len(shape)) if i not in (*chosen, *shared))):
        if sizes[i] == shape[i]:
            results[target] = table.axes[i]
            channels.produce(table.axes[i], table)
        else:
            channels.lock(table.axes[i], "indices choose some of them")
    for labels in (*(table.axes[i] for i in chosen), *(labels for j, labels in enumerate(indices.axes) if j not in shared.values())):
        channels.lock(labels, "indices choose some of them")
    return [tuple(results)]


RULES: dict[str, Rule] = {
    "dilated_conv": _conv,
    "conv_general_dilated": _conv,
    "dilated_conv_input_gradient": _transposed,
    "dot_general": _dot_general,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "split": _split,
    "concatenate": _concatenate,
    "unstack": _unstack,
    "stack": _stack,
    "tile": _tile,
    "rev": _rev,
    "iota": _iota,
    "gather": _gather,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"), _reduce),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _reduce_window),
}
