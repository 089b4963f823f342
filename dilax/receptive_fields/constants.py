"""Arrays that do not depend on the input: computed only where their values say what an output sees."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core

# Each output depends on the inputs at its own place alone. Named one by one: cumsum and sort keep the shape, too.
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
        value: Computes it; None if it is not known, as the weights of a model that is traced.
        level: Tells whether it is the same all along an axis, at the places given as a mask.
    """

    value: Callable[[], Any]
    level: Callable[[int, np.ndarray], bool]


def given(array: Any) -> Constant:
    """A constant whose values are at hand, unless they are traced (None or a tracer)."""
    known = None if isinstance(array, Tracer) else array
    return Constant(lambda: known, lambda axis, where: _level(known, axis, where))


def made(var: Any, eqn: Any, jaxpr: Any, known: dict[Any, Any]) -> Constant:
    """A constant that an equation makes.

    Args:
        var: Its variable.
        eqn: The equation.
        jaxpr: Where it stands.
        known: The `Constant` of each variable there that does not depend on the input.
    """

    def level(axis: int, where: np.ndarray) -> bool:
        if eqn.primitive.name == "broadcast_in_dim":
            source = dict(zip(eqn.params["broadcast_dimensions"], range(len(var.aval.shape)))).get(axis)
            if source is None or eqn.invars[0].aval.shape[source] == 1 or known[eqn.invars[0]].level(source, where):
                return True
        elif eqn.primitive.name in ELEMENTWISE and all(_level_operand(v, known, axis, where) for v in eqn.invars):
            return True
        return _level(_evaluated(var, jaxpr, known), axis, where)

    return Constant(lambda: _evaluated(var, jaxpr, known), level)


def _level_operand(var: Any, known: dict[Any, Any], axis: int, where: np.ndarray) -> bool:
    shape = var.aval.shape
    return isinstance(var, core.Literal) or not shape or shape[axis] == 1 or known[var].level(axis, where)


def _level(array: Any, axis: int, where: np.ndarray) -> bool:
    if array is None:
        return False
    kept = np.moveaxis(np.asarray(array), axis, 0)[where]
    return bool((kept == kept[:1]).all())


def _evaluated(var: Any, jaxpr: Any, known: dict[Any, Any]) -> Any:
    """Run the equations that lead to a variable, compiled at once: one by one, each would be a program."""
    eqns: list[Any] = []
    wanted = {var: None}
    for eqn in reversed(jaxpr.eqns):
        if any(v in wanted for v in eqn.outvars):
            eqns.insert(0, eqn)
            wanted.update((v, None) for v in eqn.invars if not isinstance(v, core.Literal))
    made_here = {v for eqn in eqns for v in eqn.outvars}
    outside = [v for v in wanted if v not in made_here]
    values = [known[v].value() for v in outside]
    if any(value is None for value in values):
        return None
    part = jaxpr.replace(constvars=[], invars=outside, outvars=[var], eqns=eqns)
    # Compiled ahead, so that it also runs while something else is traced.
    (found,) = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(part, []))).lower(*values).compile()(*values)
    return found
