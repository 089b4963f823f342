"""The receptive field of any JAX function, read from its jaxpr: which inputs an output can see."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from dilax.receptive_fields import rules
from dilax.receptive_fields.constants import given, made
from dilax.receptive_fields.reach import Reach, ReceptiveField
from dilax.receptive_fields.views import Axis, Operand, View, either, whole
from dilax.receptive_fields.windows import idle_taps

# Turns of a loop that are followed; axes that still see more after them are seen as a whole.
MOST_TURNS = 256


def receptive_field(fn: Callable[[jax.Array], jax.Array], x: Any) -> tuple[ReceptiveField, ...]:
    """Analyse a function of one array.

    Convolutions of every kind, pooling, padding, slices, joins, resizing and gathers by constants, reshapes, products over channels, and
    what is elementwise are followed exactly, axis by axis and output by output: holes are found as well as extents, and a transposed
    convolution or a resize may give neighbouring outputs unlike sets. Nothing is computed but the constant matrices and indices that are
    made inside the function. Reductions, attention, cumulative sums and dense layers over space see the whole axis. Channels are not told
    apart: an output sees what any of its channels sees, and so does what is made of some of them.

    Args:
        fn: Maps (batch, *space, channels) to an array.
        x: Its input, or a `jax.ShapeDtypeStruct`; only shape and dtype are read.

    Returns:
        One `ReceptiveField` per spatial axis of x. They describe outputs away from the border; samples outside the input are padding. They
        hold for this size: "SAME" padding of a strided layer, and so the offset, may be another at another size.

    Raises:
        UserError: if the function does something to the spatial axes that the analysis does not know.

    Warns:
        UserWarning: if taps of a convolution only ever see padding, because x is too small for their dilation.

    Example:
        >>> from dilax.functional import dilated_conv
        >>> receptive_field(lambda x: dilated_conv(x, jax.numpy.ones((3, 1, 1)), dilation=4), jax.numpy.ones((1, 32, 1)))
        (ReceptiveField(size=9, stride=1, offset=-4, coverage=0.333),)

    Reference:
        Araujo et al. 2019, doi:10.23915/distill.00021, for size, stride and offset.
    """
    found, notes = _analysed(fn, x)
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return found[0]


def receptive_fields(fn: Callable[[jax.Array], Any], x: Any) -> list[tuple[ReceptiveField, ...]]:
    """As `receptive_field`, for a function that returns a tree, and without warnings.

    One entry per leaf, in the order of `jax.tree.leaves`. A leaf that does not depend on x has an empty tuple.
    """
    return _analysed(fn, x)[0]


def reaches(fn: Callable[[jax.Array], jax.Array], x: Any) -> tuple[Reach | None, ...]:
    """The sets behind `receptive_field`, one per spatial axis; None is the whole axis."""
    (view,), _ = _views(fn, x)
    assert isinstance(view, View)
    return tuple(view.reach(axis) for axis in range(len(x.shape) - 2))


def _analysed(fn: Callable[[jax.Array], Any], x: Any) -> tuple[list[tuple[ReceptiveField, ...]], list[str]]:
    views, notes = _views(fn, x)
    space = range(len(x.shape) - 2)
    return [tuple(view.field(axis) for axis in space) if isinstance(view, View) else () for view in views], notes


def _views(fn: Callable[[jax.Array], Any], x: Any) -> tuple[list[Operand], list[str]]:
    """What each leaf that the function returns sees, and the warnings."""
    closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(x.shape, x.dtype))
    start = View((None, *(Axis(axis, size, size) for axis, size in enumerate(x.shape[1:-1])), None))
    notes: dict[str, None] = {}
    return _run(closed.jaxpr, [*map(given, closed.consts)], [start], notes), list(notes)


def _run(jaxpr: Any, consts: Sequence[Operand], inputs: Sequence[Operand], notes: dict[str, None]) -> list[Operand]:
    """Follow views and constants through a jaxpr."""
    known: dict[Any, Operand] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs]))

    def read(var: Any) -> Operand:
        return given(var.val) if isinstance(var, core.Literal) else known[var]

    for eqn in jaxpr.eqns:
        operands = [read(var) for var in eqn.invars]
        if any(isinstance(operand, View) for operand in operands):
            known.update(zip(eqn.outvars, _equation(eqn, operands, notes)))
        else:
            known.update((var, made(var, eqn, jaxpr, known)) for var in eqn.outvars)
    return [read(var) for var in jaxpr.outvars]


def _equation(eqn: Any, operands: list[Operand], notes: dict[str, None]) -> list[Operand]:
    name = eqn.primitive.name
    if name in LOOPS:
        return LOOPS[name](eqn, operands, notes)
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params and name not in rules.RULES:
            return _inside(eqn.params[key], operands, notes)
    note = idle_taps(eqn, operands)
    if note is not None:
        notes[note] = None
    return rules.apply(eqn, operands)


def _inside(inner: Any, operands: list[Operand], notes: dict[str, None]) -> list[Operand]:
    """The outputs of a jaxpr that is the parameter of an equation; its arguments are the last operands."""
    jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
    return _run(jaxpr, [*map(given, consts)], operands[len(operands) - len(jaxpr.invars) :], notes)


def _cond(eqn: Any, operands: list[Operand], notes: dict[str, None]) -> list[Operand]:
    """All branches at once; which one is taken may depend on anything."""
    if isinstance(operands[0], View):
        return [whole(var.aval.shape) for var in eqn.outvars]
    branches = [_inside(branch, operands[1:], notes) for branch in eqn.params["branches"]]
    return [_any_of(outputs, var.aval.shape) for outputs, var in zip(zip(*branches), eqn.outvars)]


def _scan(eqn: Any, operands: list[Operand], notes: dict[str, None]) -> list[Operand]:
    """Turn by turn: what is carried sees more each time. The axis that is scanned is seen as a whole."""
    p = eqn.params
    fixed, carried = operands[: p["num_consts"]], operands[p["num_consts"] : p["num_consts"] + p["num_carry"]]
    slices = [View(x.axes[1:]) if isinstance(x, View) else given(None) for x in operands[p["num_consts"] + p["num_carry"] :]]
    made_here: list[list[Operand]] = []

    def turn(state: list[Operand]) -> list[Operand]:
        outputs = _inside(p["jaxpr"], [*fixed, *state, *slices], notes)
        made_here.append(outputs[p["num_carry"] :])
        return outputs[: p["num_carry"]]

    shapes = [var.aval.shape for var in eqn.outvars]
    carried = _repeated(turn, carried, shapes, p["length"])
    stacked = [_any_of(rows, shape[1:]) for rows, shape in zip(zip(*made_here), shapes[p["num_carry"] :])]
    return [*carried, *(View((None, *row.axes)) if isinstance(row, View) else row for row in stacked)]


def _while(eqn: Any, operands: list[Operand], notes: dict[str, None]) -> list[Operand]:
    """After any number of turns, unless that depends on the input."""
    p = eqn.params
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    shapes = [var.aval.shape for var in eqn.outvars]

    def turn(state: list[Operand]) -> list[Operand]:
        outputs = _inside(p["body_jaxpr"], [*operands[first:second], *state], notes)
        return [_any_of(pair, shape) for *pair, shape in zip(state, outputs, shapes)]

    state = _repeated(turn, operands[second:], shapes, None)
    (again,) = _inside(p["cond_jaxpr"], [*operands[:first], *state], notes)
    return [*map(whole, shapes)] if isinstance(again, View) else state


def _repeated(turn: Callable[[list[Operand]], list[Operand]], state: list[Operand], shapes: list[Any], turns: int | None) -> list[Operand]:
    """What is carried by a loop in the end: until nothing changes or the turns are over (None: no one knows how many)."""
    done = 0
    while turns is None or done < turns:
        # Their values in later turns are others.
        before = [value if isinstance(value, View) else given(None) for value in state]
        state = turn(before)
        if all(a == b or not isinstance(b, View) for a, b in zip(before, state)):
            return state
        if done >= (8 if turns is None else MOST_TURNS):
            state = [b if a == b or not isinstance(b, View) else _settled(a, b, shape) for a, b, shape in zip(before, state, shapes)]
        done += 1
    return state


def _settled(before: Operand, after: View, shape: Any) -> View:
    """A view whose axes that still change are seen as a whole."""
    if not isinstance(before, View):
        return whole(shape)
    return View(tuple(a if a == b else None for a, b in zip(before.axes, after.axes)))


def _any_of(outputs: Sequence[Operand], shape: Any) -> Operand:
    views = [output for output in outputs if isinstance(output, View)]
    found = views[0] if views else given(None)
    for view in views[1:]:
        found = either(found, view, shape) if isinstance(found, View) else view
    return found


LOOPS: dict[str, Callable[[Any, list[Operand], dict[str, None]], list[Operand]]] = {"cond": _cond, "scan": _scan, "while": _while}
