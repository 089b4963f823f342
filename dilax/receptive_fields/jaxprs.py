"""All that the analysis reads from JAX's own representation of functions, and how the supported versions of JAX differ in it.

| | jax 0.10 | jax 0.12 |
|---|---|---|
| scan | `num_consts` and `num_carry` | `ft_in` and `ft_out` instead; `scan_parts` reads neither, but the shapes |
| top_k | `axis`, `k` | `is_stable` in addition |
| elementwise operations | | `log2`, `one_minus_square` and `mulhi` in addition |
| `digitize`, `searchsorted` | composed of others | `call_hi_primitive`, whose `_prim.expand` composes them |
| `stack`, `unstack`, `tile` | composed of others | operations of their own |
| casts of sharded types | `reduced_vary_cast_p`, `vary_unreduced_cast_p` | the same names without `_p` |
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core

from dilax.partitioning import MEANINGS

Literal = core.Literal

# Operations of which each output depends on the inputs at its own position only. Listed by name, since cumsum and sort keep the shape, too.
ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil clamp clz complex conj
    convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag
    integer_pow is_finite layout_constraint le le_to lgamma log log1p log2 logistic lt lt_to max min mul mulhi name ne neg nextafter not
    one_minus_square optimization_barrier or polygamma population_count pow pvary real reduce_precision reduced_vary_cast
    reduced_vary_cast_p regularized_incomplete_beta rem reshard round rsqrt select_n sharding_constraint shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh vary_unreduced_cast vary_unreduced_cast_p xor zeta
    """.split()  # noqa: SIM905
)

# The parameters of operations that apply a jaxpr to their operands.
_JAXPR_PARAMETERS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class ScanParts(NamedTuple):
    """The operands and results of a scan, by number.

    Attributes:
        consts: Operands that every iteration reads; they come first.
        carry: Operands that an iteration hands on to the next; they come second, and first among the results.
    """

    consts: int
    carry: int


def is_known(array: Any) -> bool:
    """Return whether an array has values, rather than being traced."""
    return not isinstance(array, Tracer)


def trace(fn: Callable[..., Any], x: Any) -> Any:
    """Return the closed jaxpr of a function of one array."""
    return jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)))


def called_jaxpr(eqn: Any) -> Any:
    """Return the jaxpr that an equation applies to its last operands, or None if there is none of their shapes."""
    if meaning := _meaning(eqn):
        return jax.make_jaxpr(meaning)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars))
    inner = next((eqn.params[key] for key in _JAXPR_PARAMETERS if key in eqn.params), None)
    jaxpr = getattr(inner, "jaxpr", inner)
    if jaxpr is None or len(jaxpr.invars) > len(eqn.invars):
        return None
    last = eqn.invars[len(eqn.invars) - len(jaxpr.invars) :]
    # A part per device or per block (shard_map, pallas_call) has other shapes.
    matches = [*map(_shape, last)] == [*map(_shape, jaxpr.invars)] and [*map(_shape, eqn.outvars)] == [*map(_shape, jaxpr.outvars)]
    return inner if matches else None


def _meaning(eqn: Any) -> Callable[..., Any] | None:
    """Return the function that an operation composed of others stands for."""
    if eqn.primitive in MEANINGS:
        return functools.partial(MEANINGS[eqn.primitive], **eqn.params)
    composed = eqn.params.get("_prim")
    if composed is None:
        return None
    return lambda *operands: composed.expand(*jax.tree.unflatten(composed.in_tree, operands))


def scan_parts(eqn: Any) -> ScanParts:
    """Return the parts of a scan.

    What is scanned over has one more axis than what the body reads of it, and so have the results of all iterations.
    """
    body = eqn.params["jaxpr"].jaxpr
    xs = sum(len(_shape(outer)) > len(_shape(inner)) for outer, inner in zip(eqn.invars, body.invars))
    ys = sum(len(_shape(outer)) > len(_shape(inner)) for outer, inner in zip(eqn.outvars, body.outvars))
    carry = len(eqn.outvars) - ys
    return ScanParts(len(eqn.invars) - xs - carry, carry)


def evaluate(jaxpr: Any, var: Any, constants: Callable[[Any], Any]) -> Any:
    """Evaluate a variable of a jaxpr by compiling the equations that lead to it into one program.

    Args:
        jaxpr: The jaxpr.
        var: The variable.
        constants: Returns the value of a variable that is not the result of an equation, or None if that is unknown.

    Returns:
        The value, or None if one that is needed is unknown.
    """
    eqns: list[Any] = []
    needed = {var: None}
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars):
            eqns.insert(0, eqn)
            needed.update((v, None) for v in eqn.invars if not isinstance(v, Literal))
    computed = {v for eqn in eqns for v in eqn.outvars}
    inputs = [v for v in needed if v not in computed]
    values = [constants(v) for v in inputs]
    if any(value is None for value in values):
        return None
    part = jaxpr.replace(constvars=[], invars=inputs, outvars=[var], eqns=eqns)
    # Compiled ahead of time, so that it also runs while another function is being traced.
    (result,) = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(part, []))).lower(*values).compile()(*values)
    return result


def computed_arrays(closed: Any) -> list[Any]:
    """Return the shapes and dtypes of all arrays that a closed jaxpr reads and computes, within the jaxprs of its equations, too."""
    pending, avals = [closed], []
    while pending:
        inner = pending.pop()
        jaxpr = getattr(inner, "jaxpr", inner)
        avals.extend(var.aval for var in jaxpr.invars)
        avals.extend(var.aval for eqn in jaxpr.eqns for var in eqn.outvars)
        parameters = jax.tree.leaves([[*eqn.params.values()] for eqn in jaxpr.eqns], is_leaf=_is_jaxpr)
        pending.extend(filter(_is_jaxpr, parameters))
    return [aval for aval in avals if isinstance(getattr(aval, "dtype", None), np.dtype)]


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _shape(var: Any) -> Any:
    return getattr(var.aval, "shape", None)
