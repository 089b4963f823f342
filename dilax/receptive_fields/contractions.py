"""Matrix products and gathers. Along space, constant matrices and indices are evaluated."""

import math
from typing import Any

import numpy as np

from dilax.receptive_fields.bands import MAX_ELEMENTS, index_reach, matrix_reach
from dilax.receptive_fields.constants import Constant
from dilax.receptive_fields.views import AnyAxis, Operand, View, beside_constant, global_view, merge_views, through


def dot_general(eqn: Any, operands: list[Operand]) -> View:
    """Return the view of a product, whose axes are the batch axes, then the free axes of either operand."""
    contract, batch = eqn.params["dimension_numbers"]
    shapes, result = [var.aval.shape for var in eqn.invars], eqn.outvars[0].aval.shape
    free = [[i for i in range(len(shape)) if i not in contract[side] and i not in batch[side]] for side, shape in enumerate(shapes)]
    offsets = [len(batch[0]), len(batch[0]) + len(free[0])]
    merged: View | None = None
    for side, operand in enumerate(operands):
        if isinstance(operand, Constant):
            continue
        axes: list[AnyAxis] = [None] * len(result)
        axes[: len(batch[side])] = [operand.axes[i] for i in batch[side]]
        axes[offsets[side] : offsets[side] + len(free[side])] = [operand.axes[i] for i in free[side]]
        other = 1 - side
        if isinstance(operands[other], Constant):
            axes = _check_equivariance(axes, batch[other], shapes[other], operands[other])
            summed = [(i, j) for i, j in zip(contract[side], contract[other]) if operand.axes[i] is not None]
            wide = [i for i in free[other] if shapes[other][i] > 1]
            if len(summed) == 1 and len(wide) <= 1 and free[other]:
                target = wide[0] if wide else free[other][0]
                axis = operand.axes[summed[0][0]]
                axes[offsets[other] + free[other].index(target)] = _product(axis, operands[other], shapes[other], target, summed[0][1])
        view = View(tuple(axes))
        merged = view if merged is None else merge_views(merged, view, result)
    return merged or global_view(result)


def _check_equivariance(axes: list[AnyAxis], batch: Any, shape: tuple[int, ...], constant: Any) -> list[AnyAxis]:
    """Return the axes, of which the batch axes along which the constant varies are not shift-equivariant."""
    checked = [beside_constant(axis, constant, i, shape[i]) for axis, i in zip(axes, batch)]
    return [*checked, *axes[len(checked) :]]


def _product(axis: AnyAxis, constant: Any, shape: tuple[int, ...], rows: int, columns: int) -> AnyAxis:
    """Return an axis after it is multiplied by a constant matrix; None if the constant is not a matrix or its values are unknown."""
    others = math.prod(shape) // (shape[rows] * shape[columns])
    if others != 1 or math.prod(shape) > MAX_ELEMENTS or (matrix := constant.value()) is None:
        return None
    matrix = np.asarray(matrix).transpose(rows, columns, *(i for i in range(len(shape)) if i not in (rows, columns)))
    reach = matrix_reach(matrix.reshape(shape[rows], shape[columns]))
    return None if reach is None else through(axis, reach, shape[rows])


def gather(eqn: Any, operands: list[Operand]) -> View:
    """Return the view of a gather: axes taken whole are kept, and an axis that is indexed by a constant list sees what the list says.

    What is read from a constant at positions that depend on the input sees what those see.
    """
    x, indices = operands
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, result = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    axes: list[AnyAxis] = [None] * len(result)
    if isinstance(indices, View):
        if isinstance(x, View) or numbers.operand_batching_dims:
            return global_view(result)
        # A table, such as that of an embedding, is read at every position alike.
        for target, axis in zip((i for i in range(len(result)) if i not in numbers.offset_dims), indices.axes):
            axes[target] = axis
        return View(tuple(axes))
    assert isinstance(x, View)
    kept = [i for i in range(len(shape)) if i not in numbers.collapsed_slice_dims and i not in numbers.operand_batching_dims]
    for i, target in zip(kept, numbers.offset_dims):
        axes[target] = x.axes[i] if sizes[i] == shape[i] else None
    indexed = [i for i in range(len(result)) if i not in numbers.offset_dims]
    if len(numbers.start_index_map) == 1 and len(indexed) == 1 and numbers.collapsed_slice_dims == numbers.start_index_map:
        (source,) = numbers.start_index_map
        values = indices.value() if x.axes[source] is not None else None
        if values is not None:
            clipped = "clip" in str(eqn.params["mode"]).lower()
            values = np.asarray(values).reshape(-1)
            reach = index_reach(values.clip(0, shape[source] - 1) if clipped else values, shape[source])
            axes[indexed[0]] = None if reach is None else through(x.axes[source], reach, result[indexed[0]])
    return View(tuple(axes))
