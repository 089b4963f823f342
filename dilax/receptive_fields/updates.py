"""What an array sees into which another is written: updates of slices, and scattering."""

import math
from typing import Any

import numpy as np

from dilax.receptive_fields.constants import Constant
from dilax.receptive_fields.reach import MAX_PHASES, listing
from dilax.receptive_fields.views import AnyAxis, Operand, View, beside_constant, global_view, merge_axes, through

Shape = tuple[int, ...]
# For each axis of the array, the positions to which those along the corresponding axis of the update are written, or None if they are
# unknown; and that axis of the update, or None if there is none.
Places = list[tuple[np.ndarray | None, int | None]]


def dynamic_update_slice(eqn: Any, operands: list[Operand]) -> View:
    """Return the view of an array of which a slice is replaced."""
    x, update, *starts = operands
    shape, update_shape = (var.aval.shape for var in eqn.invars[:2])
    if any(isinstance(start, View) for start in starts):
        return global_view(shape)
    places: Places = []
    for axis, (start, n, m) in enumerate(zip(starts, shape, update_shape)):
        value = start.value() if isinstance(start, Constant) and m < n else 0
        places.append((None if value is None else np.arange(m) + min(max(int(value), 0), n - m), axis))
    return _write(x, update, shape, places, replaces=True)


def scatter(eqn: Any, operands: list[Operand]) -> View:
    """Return the view of an array into which another is scattered, by whatever operation."""
    x, indices, update = operands
    numbers, (shape, indices_shape, update_shape) = eqn.params["dimension_numbers"], (var.aval.shape for var in eqn.invars)
    if isinstance(indices, View):
        return global_view(shape)
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    windows = dict(zip((i for i in range(len(shape)) if i not in gone), numbers.update_window_dims))
    scattered = [i for i in range(len(update_shape)) if i not in numbers.update_window_dims]
    values = indices.value()
    rows = None if values is None else np.asarray(values).reshape(math.prod(indices_shape[:-1]), indices_shape[-1])
    places: Places = []
    in_range = True
    for i, n in enumerate(shape):
        m = update_shape[windows[i]] if i in windows else 1
        starts = None
        if rows is not None and i in numbers.scatter_dims_to_operand_dims:
            starts = rows[:, numbers.scatter_dims_to_operand_dims.index(i)]
            # Out of range, an update is dropped or moved inside.
            in_range &= bool(((starts >= 0) & (starts <= n - m)).all())
            starts = starts.clip(0, n - m)
        if i in windows and (m == n or i not in numbers.scatter_dims_to_operand_dims):
            places.append((np.arange(m), windows[i]))
        elif starts is not None and len(starts) == 1 and i not in numbers.operand_batching_dims:
            places.append((np.arange(m) + starts[0], windows.get(i)))
        elif i in numbers.inserted_window_dims and starts is not None and len(scattered) == indices_shape[-1] == 1:
            places.append((starts, scattered[0]))
        else:
            places.append((None, None))
    replaces = eqn.primitive.name == "scatter" and eqn.params["update_jaxpr"] is None and in_range
    return _write(x, update, shape, places, replaces)


def _write(x: Operand, update: Operand, shape: Shape, places: Places, replaces: bool) -> View:
    """Return the view of an array into which another is written; with `replaces`, in place of what was there."""
    whole = [where is not None and len(where) == n and bool((where == np.arange(n)).all()) for n, (where, _) in zip(shape, places)]
    axes: list[AnyAxis] = []
    for i, (n, (where, target)) in enumerate(zip(shape, places)):
        own = x.axes[i] if isinstance(x, View) else None
        if replaces and where is not None and not whole[i] and sum(whole) == len(whole) - 1 and n <= MAX_PHASES:
            written = set(where.tolist())
            own = through(own, listing([] if position in written else [position] for position in range(n)), n)
        if isinstance(update, View):
            new = None if where is None or target is None else _placed(update.axes[target], where, whole[i], n)
            axes.append(merge_axes(own, new, n) if isinstance(x, View) else beside_constant(new, x, i, n))
        elif whole[i] and target is not None:
            axes.append(beside_constant(own, update, target, n))
        else:
            axes.append(own and own.without_equivariance())
    return View(tuple(axes))


def _placed(axis: AnyAxis, places: np.ndarray, everywhere: bool, size: int) -> AnyAxis:
    """Return an axis of `size` positions, to some of which the positions of another are written."""
    if everywhere or axis is None:
        return axis
    if size > MAX_PHASES:
        return None
    rows: list[list[int]] = [[] for _ in range(size)]
    for position, place in enumerate(places.tolist()):
        rows[place].append(position)
    return through(axis, listing(rows), size)
