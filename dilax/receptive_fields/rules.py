"""What the result of each JAX operation sees, given what its operands see."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

from dilax.errors import UserError
from dilax.receptive_fields import contractions
from dilax.receptive_fields.constants import ELEMENTWISE, Constant
from dilax.receptive_fields.reach import repeat, window
from dilax.receptive_fields.views import Axis, Operand, View, elementwise, global_view, maximum, merge_views, through, with_constant
from dilax.receptive_fields.windows import conv_windows

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
        return [*views] if isinstance(views, list) else [views] * len(results)
    if name in ELEMENTWISE and all(not shape or _broadcasts_to(shape, results[0]) for shape in shapes):
        return [elementwise(operands, shapes, results[0])] * len(results)
    if not any(axis for operand in operands if isinstance(operand, View) for axis in operand.axes):
        return [global_view(shape) for shape in results]
    raise UserError(f"receptive_field: the operation {name!r} is not supported; analyse the parts before and after it.")


def _broadcasts_to(shape: Shape, result: Shape) -> bool:
    return len(shape) == len(result) and all(n in (1, m) for n, m in zip(shape, result))


def _result_shape(eqn: Any) -> Shape:
    return eqn.outvars[0].aval.shape


def _axes(operand: Operand) -> tuple[Axis | None, ...]:
    assert isinstance(operand, View)
    return operand.axes


def _conv(eqn: Any, operands: list[Operand]) -> View:
    """All convolutions: those of XLA, and those of dilax, which are primitives of their own."""
    x, kernel = operands
    if isinstance(kernel, View):
        raise UserError("receptive_field: a convolution's kernel depends on the input; its receptive field is not defined.")
    axes: list[Axis | None] = [None] * len(_result_shape(eqn))
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


def _slice_view(view: Operand, starts: Any, strides: Any, sizes: Shape) -> View:
    steps = [window(1, stride, -start) for start, stride in zip(starts, strides)]
    return View(tuple(through(axis, step, size) for axis, step, size in zip(_axes(view), steps, sizes)))


def _slice(eqn: Any, operands: list[Operand]) -> View:
    starts = eqn.params["start_indices"]
    return _slice_view(operands[0], starts, eqn.params["strides"] or (1,) * len(starts), _result_shape(eqn))


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
        views.append(_slice_view(operands[0], starts, (1,) * len(starts), var.aval.shape))
    return views


def _concatenate(eqn: Any, operands: list[Operand]) -> View:
    along, result = eqn.params["dimension"], _result_shape(eqn)
    widths = [var.aval.shape[along] for var in eqn.invars]
    shifted, trimmed = [], (0, 0)
    for start, width, piece in zip(itertools.accumulate(widths, initial=0), widths, operands):
        if isinstance(piece, View) and width:
            axes = [through(axis, window(1, 1, start), result[along]) if i == along else axis for i, axis in enumerate(piece.axes)]
            shifted.append((start, width, View(tuple(axes))))
            trimmed = maximum(trimmed, axis.trimmed) if (axis := piece.axes[along]) else trimmed
    if not shifted:
        return global_view(result)
    if any(view.axes[along] is not None for *_, view in shifted):
        return _concatenate_in_space(along, result, shifted, trimmed)
    merged = shifted[0][2]
    for *_, view in shifted[1:]:
        merged = merge_views(merged, view, result)
    for var, operand in zip(eqn.invars, operands):
        if isinstance(operand, Constant):
            merged = with_constant(merged, operand, var.aval.shape, result)
    return merged


def _concatenate_in_space(along: int, result: Shape, pieces: list[tuple[int, int, View]], trimmed: tuple[int, int]) -> View:
    """Return the view of pieces (start, width, view) that are concatenated along space.

    Either they are parts of one array, put back in their places, and nothing is trimmed beyond what was trimmed in them. Or the widest
    piece is the inside and the others are a border made of copies, as in the modes of jnp.pad.
    """
    start, width, widest = max(pieces, key=lambda piece: piece[1])
    others = [piece for piece in pieces if piece[2] is not widest]
    middle = widest.axes[along]
    reaches = [[axis and axis.reach for axis in view.axes] for *_, view in pieces]
    if middle and all(reach == reaches[0] for reach in reaches) and sum(width for _, width, _ in pieces) == result[along]:
        restored = dataclasses.replace(middle, trimmed=trimmed)
        return View(tuple(restored if i == along else axis for i, axis in enumerate(widest.axes)))
    borders = [view.axes[along] for *_, view in others if view.axes[along]]
    if 2 * width <= result[along] or middle is None or any(_extent(axis) > _extent(middle) for axis in borders):
        raise UserError(
            "receptive_field: arrays with different receptive fields are concatenated along space; analyse each of them separately."
        )
    wraps = any(_wraps_around(view.axes[along], first, first + n, first < start) for first, n, view in others)
    return View(tuple(axis.without_equivariance() if axis and wraps and i == along else axis for i, axis in enumerate(widest.axes)))


def _extent(axis: Axis | None) -> int:
    return max((bits.bit_length() for _, bits in axis.reach.sets), default=0) if axis else 0


def _wraps_around(axis: Axis | None, start: int, stop: int, left: bool) -> bool:
    """Return whether a border sees the opposite half of the input, as wrap-around padding does: it then depends on the input's length."""
    if axis is None:
        return False
    ends = [axis.reach.at(start), axis.reach.at(stop - 1)]
    middle = axis.samples / 2
    return any(first >= middle if left else first + bits.bit_length() <= middle for first, bits in ends if bits)


def _reduce(eqn: Any, operands: list[Operand]) -> View:
    reduced = eqn.params["axes"] if "axes" in eqn.params else eqn.params["dimensions"]
    shape = eqn.invars[0].aval.shape
    view = elementwise(operands, [var.aval.shape for var in eqn.invars], shape)
    return View(tuple(axis for i, axis in enumerate(view.axes) if i not in reduced))


def _global_along(eqn: Any, operands: list[Operand]) -> View:
    """Operations that combine all positions along some axes and keep the shape."""
    p, shape = eqn.params, _result_shape(eqn)
    along = {len(shape) - 1 - i for i in range(len(p["fft_lengths"]))} if "fft_lengths" in p else {p.get("axis", p.get("dimension"))}
    view = elementwise(operands, [var.aval.shape for var in eqn.invars], eqn.invars[0].aval.shape)
    return View(tuple(None if i in along else axis for i, axis in enumerate(view.axes)))


def _broadcast(eqn: Any, operands: list[Operand]) -> View:
    axes: list[Axis | None] = [None] * len(_result_shape(eqn))
    for axis, n, target in zip(_axes(operands[0]), eqn.invars[0].aval.shape, eqn.params["broadcast_dimensions"]):
        axes[target] = axis if n == _result_shape(eqn)[target] else None
    return View(tuple(axes))


def _transpose(eqn: Any, operands: list[Operand]) -> View:
    return View(tuple(_axes(operands[0])[i] for i in eqn.params["permutation"]))


def _squeeze(eqn: Any, operands: list[Operand]) -> View:
    return View(tuple(axis for i, axis in enumerate(_axes(operands[0])) if i not in eqn.params["dimensions"]))


def _rev(eqn: Any, operands: list[Operand]) -> View:
    """A reversed axis runs against the input and is seen whole (`_concatenate_in_space` then ignores it as a border)."""
    return View(tuple(None if i in eqn.params["dimensions"] else axis for i, axis in enumerate(_axes(operands[0]))))


def _reshape(eqn: Any, operands: list[Operand]) -> View:
    """An axis becomes the new axis that starts where it started: unchanged, repeated (merged with later axes), or in windows (split)."""
    old, new = eqn.invars[0].aval.shape, _result_shape(eqn)
    axes: list[Axis | None] = [None] * len(new)
    if 0 in old:
        return View(tuple(axes))
    ones_old, ones_new = _unit_axes(old), _unit_axes(new)
    starts = {math.prod(new[:i]): i for i, n in enumerate(new) if n > 1}
    for i, axis in enumerate(_axes(operands[0])):
        before, after = math.prod(old[:i]), math.prod(old[i + 1 :])
        if axis is None:
            continue
        if old[i] == 1 and len(ones_old[before]) == len(ones_new.get(before, ())):
            axes[ones_new[before][ones_old[before].index(i)]] = axis
        elif old[i] > 1 and before in starts:
            target = starts[before]
            stride = math.prod(new[target + 1 :])
            common = math.gcd(after, stride)
            finer = through(axis, repeat(after // common), old[i] * (after // common))
            axes[target] = through(finer, window(stride // common, stride // common), new[target])
    return View(tuple(axes))


def _unit_axes(shape: Shape) -> dict[int, list[int]]:
    """Return the axes of length 1, keyed by the product of the axes before them."""
    axes: dict[int, list[int]] = {}
    for i, n in enumerate(shape):
        if n == 1:
            axes.setdefault(math.prod(shape[:i]), []).append(i)
    return axes


RULES: dict[str, Callable[[Any, list[Operand]], View | list[View]]] = {
    "conv_general_dilated": _conv,
    "dilated_conv": _conv,
    "dilated_conv_input_gradient": _conv,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "concatenate": _concatenate,
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
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "fft"), _global_along),
}
