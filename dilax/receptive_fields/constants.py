"""Arrays that do not depend on the input. They are computed only where their values determine what an output sees."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core

# Operations of which each output depends on the inputs at its own position only. Listed by name, since cumsum and sort keep the shape, too.
ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos
    cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min
    mul name ne neg nextafter not optimization_barrier or population_count pow pvary real reduce_precision rem round rsqrt select_n
    sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905
)


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
    known = None if isinstance(array, Tracer) else array
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
    return isinstance(var, core.Literal) or not shape or shape[axis] == 1 or constants[var].is_uniform(axis, mask)


def _is_uniform(array: Any, axis: int, mask: np.ndarray) -> bool:
    if array is None:
        return False
    selected = np.moveaxis(np.asarray(array), axis, 0)[mask]
    return bool((selected == selected[:1]).all())


def _evaluate(var: Any, jaxpr: Any, constants: dict[Any, Any]) -> Any:
    """Evaluate a variable by compiling the equations that lead to it into one program; None if a value is unknown."""
    eqns: list[Any] = []
    needed = {var: None}
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars):
            eqns.insert(0, eqn)
            needed.update((v, None) for v in eqn.invars if not isinstance(v, core.Literal))
    computed = {v for eqn in eqns for v in eqn.outvars}
    inputs = [v for v in needed if v not in computed]
    values = [constants[v].value() for v in inputs]
    if any(value is None for value in values):
        return None
    part = jaxpr.replace(constvars=[], invars=inputs, outvars=[var], eqns=eqns)
    # Compiled ahead of time, so that it also runs while another function is being traced.
    (result,) = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(part, []))).lower(*values).compile()(*values)
    return result
