"""Matrix products and gathers: along space, constant matrices and indices are read."""

import math
from typing import Any

import numpy as np

from dilax.receptive_fields.bands import LARGEST, banded, picked
from dilax.receptive_fields.constants import Constant
from dilax.receptive_fields.views import Axis, Operand, View, either, through, whole


def dot(eqn: Any, operands: list[Operand]) -> View:
    """Batch axes, then those of each side that are not summed over."""
    contract, batch = eqn.params["dimension_numbers"]
    shapes, result = [var.aval.shape for var in eqn.invars], eqn.outvars[0].aval.shape
    free = [[i for i in range(len(shape)) if i not in contract[side] and i not in batch[side]] for side, shape in enumerate(shapes)]
    begins = [len(batch[0]), len(batch[0]) + len(free[0])]
    found: View | None = None
    for side, operand in enumerate(operands):
        if isinstance(operand, Constant):
            continue
        axes: list[Axis | None] = [None] * len(result)
        axes[: len(batch[side])] = [operand.axes[i] for i in batch[side]]
        axes[begins[side] : begins[side] + len(free[side])] = [operand.axes[i] for i in free[side]]
        other = 1 - side
        if isinstance(operands[other], Constant):
            axes = _pinned_along(axes, batch[other], shapes[other], operands[other])
            summed = [(i, j) for i, j in zip(contract[side], contract[other]) if operand.axes[i] is not None]
            wide = [i for i in free[other] if shapes[other][i] > 1]
            if len(summed) == 1 and len(wide) <= 1 and free[other]:
                target = wide[0] if wide else free[other][0]
                axis = operand.axes[summed[0][0]]
                axes[begins[other] + free[other].index(target)] = _mixed(axis, operands[other], shapes[other], target, summed[0][1])
        view = View(tuple(axes))
        found = view if found is None else either(found, view, result)
    return found or whole(result)


def _pinned_along(axes: list[Axis | None], batch: Any, shape: tuple[int, ...], constant: Any) -> list[Axis | None]:
    """Batch axes along which the constant is not the same everywhere do not commute with shifts."""
    pinned = [
        axis.pinned() if axis and shape[i] > 1 and not constant.level(i, axis.inside(shape[i])) else axis for axis, i in zip(axes, batch)
    ]
    return [*pinned, *axes[len(pinned) :]]


def _mixed(axis: Axis | None, constant: Any, shape: tuple[int, ...], rows: int, columns: int) -> Axis | None:
    """An axis summed over with the weights of a constant matrix; None if that is anything but a matrix."""
    others = math.prod(shape) // (shape[rows] * shape[columns])
    if others != 1 or math.prod(shape) > LARGEST or (matrix := constant.value()) is None:
        return None
    matrix = np.asarray(matrix).transpose(rows, columns, *(i for i in range(len(shape)) if i not in (rows, columns)))
    reach = banded(matrix.reshape(shape[rows], shape[columns]))
    return None if reach is None else through(axis, reach, shape[rows])


def gather(eqn: Any, operands: list[Operand]) -> View:
    """Whole axes are kept; one that is picked from by a list of constant indices sees what the list says."""
    x, indices = operands
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, result = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if isinstance(x, Constant) or isinstance(indices, View):
        return whole(result)
    axes: list[Axis | None] = [None] * len(result)
    kept = [i for i in range(len(shape)) if i not in numbers.collapsed_slice_dims and i not in numbers.operand_batching_dims]
    for i, target in zip(kept, numbers.offset_dims):
        axes[target] = x.axes[i] if sizes[i] == shape[i] else None
    listed = [i for i in range(len(result)) if i not in numbers.offset_dims]
    if len(numbers.start_index_map) == 1 and len(listed) == 1 and numbers.collapsed_slice_dims == numbers.start_index_map:
        (source,) = numbers.start_index_map
        places = indices.value() if x.axes[source] is not None else None
        if places is not None:
            clipped = "clip" in str(eqn.params["mode"]).lower()
            places = np.asarray(places).reshape(-1)
            reach = picked(places.clip(0, shape[source] - 1) if clipped else places, shape[source])
            axes[listed[0]] = None if reach is None else through(x.axes[source], reach, result[listed[0]])
    return View(tuple(axes))
