"""The receptive field of any JAX function, read from its jaxpr."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

from dilax import arguments
from dilax.arguments import check_function
from dilax.errors import UserError
from dilax.receptive_fields import jaxprs, rules
from dilax.receptive_fields.constants import from_equation, from_value
from dilax.receptive_fields.reach import Reach, ReceptiveField
from dilax.receptive_fields.views import Axis, Operand, View, global_view, merge_views, with_constant
from dilax.receptive_fields.windows import idle_taps_warning

# Iterations of a loop that are followed; axes that still see more after them are taken to be seen whole.
MAX_ITERATIONS = 256


def receptive_field(fn: Callable[[jax.Array], jax.Array], x: jax.Array | jax.ShapeDtypeStruct) -> tuple[ReceptiveField, ...]:
    """Return the receptive field of a function of one array, read from its jaxpr.

    Convolutions of every kind, pooling, padding, slicing, concatenation, stacking, tiling, reshapes, products over channels, elementwise
    operations, and resizing, gathering and scattering by constants are followed exactly, axis by axis and output by output. Holes are found
    as well as extents, and the outputs of a transposed convolution or a resize may see different sets. Only constant matrices and indices
    that are created inside the function are computed. Reductions, attention, cumulative sums and dense layers over space see the whole
    axis. Where it is uncertain what an output sees, it counts as the whole axis. Channels are not distinguished: an output sees what any of
    its channels sees, even if it is computed from only some of the channels.

    Args:
        fn: Maps (batch, *space, channels) to an array.
        x: Its input; only the shape and dtype are used.

    Returns:
        One `ReceptiveField` per spatial axis of x. It describes outputs away from the border, where padding counts as samples outside the
        input, and holds for this input size: "SAME" padding of a strided layer, and with it the offset, may differ at another size.

    Raises:
        UserError: if the function applies an operation to the spatial axes that the analysis does not support, or does not return one array
            that depends on x.

    Warns:
        UserWarning: if some taps of a convolution only ever read padding, because x is too small for their dilation.

    Example:
        >>> from dilax.functional import dilated_conv
        >>> receptive_field(lambda x: dilated_conv(x, jax.numpy.ones((3, 1, 1)), dilation=4), jax.numpy.ones((1, 32, 1)))
        (ReceptiveField(size=9, stride=1, offset=-4, coverage=0.333),)

    Reference:
        Araujo et al. 2019, doi:10.23915/distill.00021, for size, stride and offset.
    """
    x = arguments.image("receptive_field", "x", x)
    view, messages = _trace_one(fn, x)
    for message in messages:
        warnings.warn(message, UserWarning, stacklevel=2)
    return tuple(view.field(axis) for axis in range(len(x.shape) - 2))


def receptive_fields(fn: Callable[[jax.Array], Any], x: jax.Array | jax.ShapeDtypeStruct) -> list[tuple[ReceptiveField, ...]]:
    """Return the receptive fields of a function that returns a pytree, as `receptive_field` does, but without warnings.

    Args:
        fn: Maps (batch, *space, channels) to a pytree of arrays.
        x: Its input; only the shape and dtype are used.

    Returns:
        For each leaf, in the order of `jax.tree.leaves`, one `ReceptiveField` per spatial axis of x; an empty tuple if the leaf does not
        depend on x.

    Raises:
        UserError: as `receptive_field`.
    """
    x = arguments.image("receptive_field", "x", x)
    space = range(len(x.shape) - 2)
    return [tuple(view.field(axis) for axis in space) if isinstance(view, View) else () for view in _trace(fn, x)[0]]


def reaches(fn: Callable[[jax.Array], jax.Array], x: jax.Array | jax.ShapeDtypeStruct) -> tuple[Reach | None, ...]:
    """Return the sets of inputs from which `receptive_field` is derived.

    Args:
        fn: Maps (batch, *space, channels) to an array.
        x: Its input; only the shape and dtype are used.

    Returns:
        One `Reach` per spatial axis of x; None if the whole axis is seen.
    """
    view, _ = _trace_one(fn, x)
    return tuple(view.reach(axis) for axis in range(len(x.shape) - 2))


def _trace_one(fn: Callable[[jax.Array], Any], x: Any) -> tuple[View, list[str]]:
    """Return what the array that the function returns sees, and the warnings."""
    views, messages = _trace(fn, x)
    if len(views) != 1:
        raise UserError(f"receptive_field: fn returns {len(views)} arrays, not one; give a function that returns the one of interest.")
    if not isinstance(views[0], View):
        raise UserError("receptive_field: what fn returns does not depend on x; give a function that computes it from x.")
    return views[0], messages


def _trace(fn: Callable[[jax.Array], Any], x: Any) -> tuple[list[Operand], list[str]]:
    """Return what each leaf that the function returns sees, and the warnings."""
    check_function("receptive_field", fn)
    closed = jaxprs.trace(fn, x)
    start = View((None, *(Axis(axis, size, size) for axis, size in enumerate(x.shape[1:-1])), None))
    messages: dict[str, None] = {}
    return _run(closed.jaxpr, [*map(from_value, closed.consts)], [start], messages), list(messages)


def _run(jaxpr: Any, consts: Sequence[Operand], inputs: Sequence[Operand], messages: dict[str, None]) -> list[Operand]:
    """Propagate views and constants through a jaxpr."""
    env: dict[Any, Operand] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs]))

    def read(var: Any) -> Operand:
        return from_value(var.val) if isinstance(var, jaxprs.Literal) else env[var]

    for eqn in jaxpr.eqns:
        operands = [read(var) for var in eqn.invars]
        if any(isinstance(operand, View) for operand in operands):
            env.update(zip(eqn.outvars, _run_equation(eqn, operands, messages)))
        else:
            env.update((var, from_equation(var, eqn, jaxpr, env)) for var in eqn.outvars)
    return [read(var) for var in jaxpr.outvars]


def _run_equation(eqn: Any, operands: list[Operand], messages: dict[str, None]) -> list[Operand]:
    name = eqn.primitive.name
    if name in CONTROL_FLOW:
        return CONTROL_FLOW[name](eqn, operands, messages)
    inner = None if name in rules.RULES else jaxprs.called_jaxpr(eqn)
    if inner is not None:
        return _run_inner(inner, operands, messages)
    message = idle_taps_warning(eqn, operands)
    if message is not None:
        messages[message] = None
    return rules.apply(eqn, operands)


def _run_inner(inner: Any, operands: list[Operand], messages: dict[str, None]) -> list[Operand]:
    """Propagate through a jaxpr that is a parameter of an equation; its arguments are the last operands."""
    jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
    return _run(jaxpr, [*map(from_value, consts)], operands[len(operands) - len(jaxpr.invars) :], messages)


def _cond(eqn: Any, operands: list[Operand], messages: dict[str, None]) -> list[Operand]:
    """Merge all branches, since any of them may be taken."""
    if isinstance(operands[0], View):
        return [global_view(var.aval.shape) for var in eqn.outvars]
    branches = [_run_inner(branch, operands[1:], messages) for branch in eqn.params["branches"]]
    return [_merge_all(outputs, var.aval.shape) for outputs, var in zip(zip(*branches), eqn.outvars)]


def _scan(eqn: Any, operands: list[Operand], messages: dict[str, None]) -> list[Operand]:
    """Follow the iterations, in each of which the carry sees more. The axis that is scanned over is seen whole."""
    p, (consts, carried) = eqn.params, jaxprs.scan_parts(eqn)
    fixed, carry = operands[:consts], operands[consts : consts + carried]
    slices = [View(x.axes[1:]) if isinstance(x, View) else from_value(None) for x in operands[consts + carried :]]
    rows: list[list[Operand]] = []

    def body(carry: list[Operand]) -> list[Operand]:
        outputs = _run_inner(p["jaxpr"], [*fixed, *carry, *slices], messages)
        rows.append(outputs[carried:])
        return outputs[:carried]

    shapes = [var.aval.shape for var in eqn.outvars]
    carry = [*map(_copy, _iterate(body, carry, shapes, p["length"]))]
    stacked = [_merge_all(column, shape[1:]) for column, shape in zip(zip(*rows), shapes[carried:])]
    return [*carry, *(View((None, *row.axes)) if isinstance(row, View) else row for row in stacked)]


def _while(eqn: Any, operands: list[Operand], messages: dict[str, None]) -> list[Operand]:
    """Merge any number of iterations; everything is seen if that number depends on the input."""
    p = eqn.params
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    shapes = [var.aval.shape for var in eqn.outvars]

    def body(carry: list[Operand]) -> list[Operand]:
        outputs = _run_inner(p["body_jaxpr"], [*operands[first:second], *carry], messages)
        return [_merge_all(pair, shape) for *pair, shape in zip(carry, outputs, shapes)]

    carry = [*map(_copy, _iterate(body, operands[second:], shapes, None))]
    (condition,) = _run_inner(p["cond_jaxpr"], [*operands[:first], *carry], messages)
    return [*map(global_view, shapes)] if isinstance(condition, View) else carry


def _iterate(body: Callable[[list[Operand]], list[Operand]], carry: list[Operand], shapes: list[Any], length: int | None) -> list[Operand]:
    """Return the carry after a loop of `length` iterations (None: unknown), which ends early once nothing changes."""
    done = 0
    while length is None or done < length:
        # The value of a constant that is carried is known before the first iteration only.
        before = [value if isinstance(value, View) else from_value(None) for value in carry]
        carry = body(before)
        if all(a == b if isinstance(b, View) else not isinstance(a, View) for a, b in zip(before, carry)):
            return carry
        if done >= (8 if length is None else MAX_ITERATIONS):
            carry = [b if a == b or not isinstance(b, View) else _widen(a, b, shape) for a, b, shape in zip(before, carry, shapes)]
        done += 1
    return carry


def _widen(before: Operand, after: View, shape: Any) -> View:
    """Return a view in which axes that still change are seen whole."""
    if not isinstance(before, View):
        return global_view(shape)
    return View(tuple(a if a == b else None for a, b in zip(before.axes, after.axes)))


def _merge_all(outputs: Sequence[Operand], shape: Any) -> Operand:
    """Return what an array sees that is one of several."""
    views = [output for output in outputs if isinstance(output, View)]
    if not views:
        return from_value(None)
    merged = functools.reduce(lambda a, b: merge_views(a, b, shape), views[1:], _copy(views[0]))
    for output in outputs:
        if not isinstance(output, View):
            merged = with_constant(merged, output, shape, shape)
    return merged


def _copy(operand: Any) -> Any:
    """Return a view that is not mistaken for that of the same array, as which `rules` would recognise its slices."""
    return View(operand.axes) if isinstance(operand, View) else operand


CONTROL_FLOW: dict[str, Callable[[Any, list[Operand], dict[str, None]], list[Operand]]] = {"cond": _cond, "scan": _scan, "while": _while}
