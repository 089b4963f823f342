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
from dilax.receptive_fields.views import Axis, Operand, View, either, joined, laid_along, most, through, whole
from dilax.receptive_fields.windows import windows

Shape = tuple[int, ...]


def apply(eqn: Any, operands: list[Operand]) -> list[Operand]:
    """What the results of an equation see.

    Args:
        eqn: An equation of a jaxpr, without a jaxpr inside.
        operands: What its operands see; at least one of them a `View`.

    Raises:
        UserError: if the operation is not known.
    """
    name = eqn.primitive.name
    shapes: list[Shape] = [var.aval.shape for var in eqn.invars]
    results: list[Shape] = [var.aval.shape for var in eqn.outvars]
    if name in RULES:
        found = RULES[name](eqn, operands)
        return [*found] if isinstance(found, list) else [found] * len(results)
    if name in ELEMENTWISE and all(not shape or _fits(shape, results[0]) for shape in shapes):
        return [joined(operands, shapes, results[0])] * len(results)
    if not any(axis for operand in operands if isinstance(operand, View) for axis in operand.axes):
        return [whole(shape) for shape in results]
    raise UserError(f"receptive_field: the operation {name!r} is not known to the analysis; analyse the parts before and after it.")


def _fits(shape: Shape, result: Shape) -> bool:
    return len(shape) == len(result) and all(n in (1, m) for n, m in zip(shape, result))


def _shape(eqn: Any) -> Shape:
    return eqn.outvars[0].aval.shape


def _axes(operand: Operand) -> tuple[Axis | None, ...]:
    assert isinstance(operand, View)
    return operand.axes


def _conv(eqn: Any, operands: list[Operand]) -> View:
    """All convolutions: XLA's, and those of dilax, which are primitives of their own."""
    x, kernel = operands
    if isinstance(kernel, View):
        raise UserError("receptive_field: a convolution's kernel depends on the input; its receptive field is not defined.")
    axes: list[Axis | None] = [None] * len(_shape(eqn))
    for step in windows(eqn):
        axes[step.target] = through(_axes(x)[step.source], step.reach(), step.outputs)
    return View(tuple(axes))


def _reduce_window(eqn: Any, operands: list[Operand]) -> View:
    p = eqn.params
    view = joined(operands, [var.aval.shape for var in eqn.invars], eqn.invars[0].aval.shape)
    steps = zip(
        p["window_dimensions"], p["window_strides"], (lo for lo, _ in p["padding"]), p["window_dilation"], p["base_dilation"], strict=True
    )
    return View(tuple(through(axis, window(*step), size) for axis, step, size in zip(view.axes, steps, _shape(eqn))))


def _pad(eqn: Any, operands: list[Operand]) -> View:
    if isinstance(operands[1], View):
        return whole(_shape(eqn))
    steps = [window(1, 1, lo, 1, interior + 1) for lo, _, interior in eqn.params["padding_config"]]
    return View(tuple(through(axis, step, size) for axis, step, size in zip(_axes(operands[0]), steps, _shape(eqn))))


def _sliced(view: Operand, starts: Any, strides: Any, sizes: Shape) -> View:
    steps = [window(1, stride, -start) for start, stride in zip(starts, strides)]
    return View(tuple(through(axis, step, size) for axis, step, size in zip(_axes(view), steps, sizes)))


def _slice(eqn: Any, operands: list[Operand]) -> View:
    starts = eqn.params["start_indices"]
    return _sliced(operands[0], starts, eqn.params["strides"] or (1,) * len(starts), _shape(eqn))


def _dynamic_slice(eqn: Any, operands: list[Operand]) -> View:
    x, *places = operands
    shape, sizes = eqn.invars[0].aval.shape, _shape(eqn)
    if isinstance(x, Constant):
        return whole(sizes)
    axes = []
    for axis, place, n, size in zip(x.axes, places, shape, sizes):
        if isinstance(place, View):
            return whole(sizes)
        start = 0 if n == size or axis is None else place.value()
        axes.append(None if start is None else through(axis, window(1, 1, -min(max(int(start), 0), n - size)), size))
    return View(tuple(axes))


def _split(eqn: Any, operands: list[Operand]) -> list[View]:
    place, found = eqn.params["axis"], []
    for start, var in zip(itertools.accumulate((0, *eqn.params["sizes"])), eqn.outvars):
        starts = [start if i == place else 0 for i in range(len(var.aval.shape))]
        found.append(_sliced(operands[0], starts, (1,) * len(starts), var.aval.shape))
    return found


def _concatenate(eqn: Any, operands: list[Operand]) -> View:
    along, result = eqn.params["dimension"], _shape(eqn)
    widths = [var.aval.shape[along] for var in eqn.invars]
    shifted, trimmed = [], (0, 0)
    for start, width, piece in zip(itertools.accumulate(widths, initial=0), widths, operands):
        if isinstance(piece, View) and width:
            axes = [through(axis, window(1, 1, start), result[along]) if i == along else axis for i, axis in enumerate(piece.axes)]
            shifted.append((start, width, View(tuple(axes))))
            trimmed = most(trimmed, axis.trimmed) if (axis := piece.axes[along]) else trimmed
    if not shifted:
        return whole(result)
    if any(view.axes[along] is not None for *_, view in shifted):
        return _beside(along, result, shifted, trimmed)
    found = shifted[0][2]
    for *_, view in shifted[1:]:
        found = either(found, view, result)
    for var, operand in zip(eqn.invars, operands):
        if isinstance(operand, Constant):
            found = laid_along(found, operand, var.aval.shape, result)
    return found


def _beside(along: int, result: Shape, pieces: list[tuple[int, int, View]], trimmed: tuple[int, int]) -> View:
    """Pieces joined along space: the widest is the inside, the others are a border made of copies (jnp.pad's modes).

    Or they are parts of one array in their places, so that nothing more is trimmed than in them.
    """
    start, width, widest = max(pieces, key=lambda piece: piece[1])
    others = [piece for piece in pieces if piece[2] is not widest]
    middle = widest.axes[along]
    reaches = [[axis and axis.reach for axis in view.axes] for *_, view in pieces]
    if middle and all(reach == reaches[0] for reach in reaches) and sum(width for _, width, _ in pieces) == result[along]:
        whole_again = dataclasses.replace(middle, trimmed=trimmed)
        return View(tuple(whole_again if i == along else axis for i, axis in enumerate(widest.axes)))
    known = [view.axes[along] for *_, view in others if view.axes[along]]
    if 2 * width <= result[along] or middle is None or any(_size(axis) > _size(middle) for axis in known):
        raise UserError("receptive_field: pieces of unlike receptive fields are joined along space; analyse each piece by itself.")
    far = any(_comes_from_afar(view.axes[along], at, at + n, at < start) for at, n, view in others)
    return View(tuple(axis.pinned() if axis and far and i == along else axis for i, axis in enumerate(widest.axes)))


def _size(axis: Axis | None) -> int:
    return max((bits.bit_length() for _, bits in axis.reach.sets), default=0) if axis else 0


def _comes_from_afar(axis: Axis | None, start: int, stop: int, left: bool) -> bool:
    """Whether a border sees the other half of the input, as one that wraps around does: it is then another at another length."""
    if axis is None:
        return False
    ends = [axis.reach.at(start), axis.reach.at(stop - 1)]
    middle = axis.samples / 2
    return any(first >= middle if left else first + bits.bit_length() <= middle for first, bits in ends if bits)


def _reduce(eqn: Any, operands: list[Operand]) -> View:
    dropped = eqn.params["axes"] if "axes" in eqn.params else eqn.params["dimensions"]
    shape = eqn.invars[0].aval.shape
    view = joined(operands, [var.aval.shape for var in eqn.invars], shape)
    return View(tuple(axis for i, axis in enumerate(view.axes) if i not in dropped))


def _mixed(eqn: Any, operands: list[Operand]) -> View:
    """Operations that mix all places along some axes and keep the shape."""
    p, shape = eqn.params, _shape(eqn)
    along = {len(shape) - 1 - i for i in range(len(p["fft_lengths"]))} if "fft_lengths" in p else {p.get("axis", p.get("dimension"))}
    view = joined(operands, [var.aval.shape for var in eqn.invars], eqn.invars[0].aval.shape)
    return View(tuple(None if i in along else axis for i, axis in enumerate(view.axes)))


def _broadcast(eqn: Any, operands: list[Operand]) -> View:
    axes: list[Axis | None] = [None] * len(_shape(eqn))
    for axis, n, target in zip(_axes(operands[0]), eqn.invars[0].aval.shape, eqn.params["broadcast_dimensions"]):
        axes[target] = axis if n == _shape(eqn)[target] else None
    return View(tuple(axes))


def _transpose(eqn: Any, operands: list[Operand]) -> View:
    return View(tuple(_axes(operands[0])[i] for i in eqn.params["permutation"]))


def _squeeze(eqn: Any, operands: list[Operand]) -> View:
    return View(tuple(axis for i, axis in enumerate(_axes(operands[0])) if i not in eqn.params["dimensions"]))


def _rev(eqn: Any, operands: list[Operand]) -> View:
    """A mirrored axis runs against the input; it is seen as a whole (as a border, `_beside` leaves it out)."""
    return View(tuple(None if i in eqn.params["dimensions"] else axis for i, axis in enumerate(_axes(operands[0]))))


def _reshape(eqn: Any, operands: list[Operand]) -> View:
    """An axis lives on in the one that begins where it began: the same, repeated (merged with later ones), or in windows (split)."""
    old, new = eqn.invars[0].aval.shape, _shape(eqn)
    axes: list[Axis | None] = [None] * len(new)
    if 0 in old:
        return View(tuple(axes))
    ones_old, ones_new = _ones(old), _ones(new)
    starts = {math.prod(new[:i]): i for i, n in enumerate(new) if n > 1}
    for i, axis in enumerate(_axes(operands[0])):
        before, after = math.prod(old[:i]), math.prod(old[i + 1 :])
        if axis is None:
            continue
        if old[i] == 1 and len(ones_old[before]) == len(ones_new.get(before, ())):
            axes[ones_new[before][ones_old[before].index(i)]] = axis
        elif old[i] > 1 and before in starts:
            target = starts[before]
            each = math.prod(new[target + 1 :])
            common = math.gcd(after, each)
            finer = through(axis, repeat(after // common), old[i] * (after // common))
            axes[target] = through(finer, window(each // common, each // common), new[target])
    return View(tuple(axes))


def _ones(shape: Shape) -> dict[int, list[int]]:
    """Axes of length 1, by the product of those before them."""
    found: dict[int, list[int]] = {}
    for i, n in enumerate(shape):
        if n == 1:
            found.setdefault(math.prod(shape[:i]), []).append(i)
    return found


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
    "dot_general": contractions.dot,
    "gather": contractions.gather,
    "rev": _rev,
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window"), _reduce_window),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"), _reduce),
    **dict.fromkeys(("reduce", "reduce_xor"), _reduce),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "fft"), _mixed),
}
