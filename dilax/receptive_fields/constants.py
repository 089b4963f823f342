"""Arrays that do not depend on the input. They are computed only where their values determine what an output sees."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from dilax.receptive_fields.jaxprs import ELEMENTWISE, Literal, evaluate, is_known


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """An array that does not depend on the input.

    Attributes:
        value: Computes the array; returns None if it is unknown, such as the weights of a model that is being traced.
        is_uniform: Given an axis and a mask of positions along it, returns whether the array has the same value at all of them.
    """

    value: Callable[[], Any]
    is_uniform: Callable[[int, np.ndarray], bool]


def from_value(array: Any) -> Constant:
    """Return the constant of an array; its value is unknown if the array is None or a tracer."""
    known = array if is_known(array) else None
    return Constant(lambda: known, lambda axis, mask: _is_uniform(known, axis, mask))


def from_equation(var: Any, eqn: Any, jaxpr: Any, constants: dict[Any, Any]) -> Constant:
    """Return the constant that an equation computes.

    Args:
        var: The output variable.
        eqn: The equation.
        jaxpr: The jaxpr that contains it.
        constants: The `Constant` of each variable of the jaxpr that does not depend on the input.
    """

    def is_uniform(axis: int, mask: np.ndarray) -> bool:
        if eqn.primitive.name == "broadcast_in_dim":
            source = dict(zip(eqn.params["broadcast_dimensions"], range(len(var.aval.shape)))).get(axis)
            if source is None or eqn.invars[0].aval.shape[source] == 1 or constants[eqn.invars[0]].is_uniform(source, mask):
                return True
        elif eqn.primitive.name in ELEMENTWISE and all(_operand_is_uniform(v, constants, axis, mask) for v in eqn.invars):
            return True
        return _is_uniform(_evaluate(var, jaxpr, constants), axis, mask)

    return Constant(lambda: _evaluate(var, jaxpr, constants), is_uniform)


def _operand_is_uniform(var: Any, constants: dict[Any, Any], axis: int, mask: np.ndarray) -> bool:
    shape = var.aval.shape
    return isinstance(var, Literal) or not shape or shape[axis] == 1 or constants[var].is_uniform(axis, mask)


def _is_uniform(array: Any, axis: int, mask: np.ndarray) -> bool:
    if array is None:
        return False
    selected = np.moveaxis(np.asarray(array), axis, 0)[mask]
    return bool((selected == selected[:1]).all())


def _evaluate(var: Any, jaxpr: Any, constants: dict[Any, Any]) -> Any:
    """Evaluate a variable; None if a value is unknown."""
    return evaluate(jaxpr, var, lambda v: constants[v].value())
