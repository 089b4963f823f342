"""What the result of each JAX operation sees, given what its operands see."""

import itertools
from collections.abc import Callable
from typing import Any

from dilax.errors import UserError
from dilax.receptive_fields import contractions, joins, updates
from dilax.receptive_fields.constants import Constant
from dilax.receptive_fields.jaxprs import ELEMENTWISE
from dilax.receptive_fields.reach import MAX_PHASES, clip, ends, hull, listing, window
from dilax.receptive_fields.reshapes import reshape
from dilax.receptive_fields.views import AnyAxis, Axis, Operand, View, elementwise, global_view, single, spread, through
from dilax.receptive_fields.windows import conv_batch, conv_windows

Shape = tuple[int, ...]


def apply(eqn: Any, operands: list[Operand]) -> list[Operand]:
    """Return what the results of an equation see.

    Args:
        eqn: An equation of a jaxpr that does not contain a jaxpr itself.
        operands: What its operands see; at least one of them is a `View`.

    Raises:
        UserError: if the operation is not supported.
    """
    name = eqn.primitive.name
    shapes: list[Shape] = [var.aval.shape for var in eqn.invars]
    results: list[Shape] = [var.aval.shape for var in eqn.outvars]
    if name in RULES:
        views = RULES[name](eqn, operands)
        return [*views] if isinstance(views, list) else [View(views.axes, views.part) for _ in results]
    if name in ELEMENTWISE and all(not shape or _broadcasts_to(shape, results[0]) for shape in shapes):
        return [elementwise(operands, shapes, results[0]) for _ in results]
    if not any(axis for operand in operands if isinstance(operand, View) for axis in operand.axes):
        return [global_view(shape) for shape in results]
    raise UserError(f"receptive_field: the operation {name!r} is not supported; analyse the parts before and after it.")


def _broadcasts_to(shape: Shape, result: Shape) -> bool:
    return len(shape) == len(result) and all(n in (1, m) for n, m in zip(shape, result))


def _result_shape(eqn: Any) -> Shape:
    return eqn.outvars[0].aval.shape


def _axes(operand: Operand) -> tuple[AnyAxis, ...]:
    assert isinstance(operand, View)
    return operand.axes


def _conv(eqn: Any, operands: list[Operand]) -> View:
    """All convolutions: those of XLA, and those of dilax, which are primitives of their own."""
    x, kernel = operands
    if isinstance(kernel, View):
        raise UserError("receptive_field: a convolution's kernel depends on the input; its receptive field is not defined.")
    axes: list[AnyAxis] = [None] * len(_result_shape(eqn))
    for source, target in conv_batch(eqn):
        axes[target] = _axes(x)[source]
    for step in conv_windows(eqn):
        axes[step.target] = through(_axes(x)[step.source], step.reach(), step.outputs)
    return View(tuple(axes))


def _reduce_window(eqn: Any, operands: list[Operand]) -> View:
    p = eqn.params
    view = elementwise(operands, [var.aval.shape for var in eqn.invars], eqn.invars[0].aval.shape)
    steps = zip(
        p["window_dimensions"], p["window_strides"], (lo for lo, _ in p["padding"]), p["window_dilation"], p["base_dilation"], strict=True
    )
    return View(tuple(through(axis, window(*step), size) for axis, step, size in zip(view.axes, steps, _result_shape(eqn))))


def _pad(eqn: Any, operands: list[Operand]) -> View:
    if isinstance(operands[1], View):
        return global_view(_result_shape(eqn))
    steps = [window(1, 1, lo, 1, interior + 1) for lo, _, interior in eqn.params["padding_config"]]
    return View(tuple(through(axis, step, size) for axis, step, size in zip(_axes(operands[0]), steps, _result_shape(eqn))))


def _slice_view(view: Operand, shape: Shape, starts: Any, strides: Any, sizes: Shape) -> View:
    steps = [window(1, stride, -start) for start, stride in zip(starts, strides)]
    axes = tuple(through(axis, step, size) for axis, step, size in zip(_axes(view), steps, sizes))
    along = [i for i, (n, m) in enumerate(zip(shape, sizes)) if n != m]
    if len(along) != 1 or strides[along[0]] != 1:
        return View(axes)
    return View(axes, joins.part(view, along[0], starts[along[0]]))


def _slice(eqn: Any, operands: list[Operand]) -> View:
    starts, shape = eqn.params["start_indices"], eqn.invars[0].aval.shape
    return _slice_view(operands[0], shape, starts, eqn.params["strides"] or (1,) * len(starts), _result_shape(eqn))


def _dynamic_slice(eqn: Any, operands: list[Operand]) -> View:
    x, *starts = operands
    shape, sizes = eqn.invars[0].aval.shape, _result_shape(eqn)
    if isinstance(x, Constant):
        return global_view(sizes)
    axes = []
    for axis, operand, n, size in zip(x.axes, starts, shape, sizes):
        if isinstance(operand, View):
            return global_view(sizes)
        start = 0 if n == size or axis is None else operand.value()
        axes.append(None if start is None else through(axis, window(1, 1, -min(max(int(start), 0), n - size)), size))
    return View(tuple(axes))


def _split(eqn: Any, operands: list[Operand]) -> list[View]:
    along, views = eqn.params["axis"], []
    for start, var in zip(itertools.accumulate((0, *eqn.params["sizes"])), eqn.outvars):
        starts = [start if i == along else 0 for i in range(len(var.aval.shape))]
        views.append(_slice_view(operands[0], eqn.invars[0].aval.shape, starts, (1,) * len(starts), var.aval.shape))
    return views


def _reduce(eqn: Any, operands: list[Operand]) -> View:
    reduced = eqn.params["axes"] if "axes" in eqn.params else eqn.params["dimensions"]
    shape = eqn.invars[0].aval.shape
    view = elementwise(operands, [var.aval.shape for var in eqn.invars], shape)
    return View(tuple(axis for i, axis in enumerate(view.axes) if i not in reduced))


def _global_along(eqn: Any, operands: list[Operand]) -> View:
    """Operations that combine all positions along some axes and keep the others."""
    p, shape = eqn.params, _result_shape(eqn)
    if "fft_lengths" in p:
        along = {len(shape) - 1 - i for i in range(len(p["fft_lengths"]))}
    else:
        along = {next(p[key] for key in ("axis", "dimension", "reduction_dimension") if key in p) % len(shape)}
    view = elementwise(operands, [var.aval.shape for var in eqn.invars], eqn.invars[0].aval.shape)
    return View(tuple(None if i in along else axis for i, axis in enumerate(view.axes)))


def _broadcast(eqn: Any, operands: list[Operand]) -> View:
    axes: list[AnyAxis] = [None] * len(_result_shape(eqn))
    for axis, n, target in zip(_axes(operands[0]), eqn.invars[0].aval.shape, eqn.params["broadcast_dimensions"]):
        size = _result_shape(eqn)[target]
        axes[target] = axis if n == size else spread(axis, size)
    return View(tuple(axes))


def _transpose(eqn: Any, operands: list[Operand]) -> View:
    return View(tuple(_axes(operands[0])[i] for i in eqn.params["permutation"]))


def _squeeze(eqn: Any, operands: list[Operand]) -> View:
    return View(tuple(axis for i, axis in enumerate(_axes(operands[0])) if i not in eqn.params["dimensions"]))


def _rev(eqn: Any, operands: list[Operand]) -> View:
    """A reversed axis runs against the input, so that its outputs are listed; one of all samples is seen whole."""
    return View(tuple(_reversed(axis) if i in eqn.params["dimensions"] else axis for i, axis in enumerate(_axes(operands[0]))))


def _reversed(axis: AnyAxis) -> Axis | None:
    alone = single(axis)
    if alone is None or not 0 < alone.size <= MAX_PHASES:
        return None
    if clip(hull(ends(alone.reach.seen(i)) for i in range(alone.size)), alone.samples) == (0, alone.samples - 1):
        return None
    return alone.through(listing([place] for place in reversed(range(alone.size))), alone.size)


def _reshape(eqn: Any, operands: list[Operand]) -> View:
    if eqn.params["dimensions"] is not None:
        return global_view(_result_shape(eqn))
    return View(reshape(_axes(operands[0]), eqn.invars[0].aval.shape, _result_shape(eqn)))


RULES: dict[str, Callable[[Any, list[Operand]], View | list[View]]] = {
    "conv_general_dilated": _conv,
    "dilated_conv": _conv,
    "dilated_conv_input_gradient": _conv,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "concatenate": joins.concatenate,
    "stack": joins.stack,
    "unstack": joins.unstack,
    "tile": joins.tile,
    "dynamic_update_slice": updates.dynamic_update_slice,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "dot_general": contractions.dot_general,
    "gather": contractions.gather,
    "rev": _rev,
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window"), _reduce_window),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"), _reduce),
    **dict.fromkeys(("reduce", "reduce_xor"), _reduce),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"), updates.scatter),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "fft", "top_k", "approx_top_k"), _global_along),
}
