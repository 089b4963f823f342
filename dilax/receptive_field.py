"""The receptive field of any JAX function, read from its jaxpr: which inputs an output can see.

Along one axis, output o sees the inputs o * stride + offset ... o * stride + offset + size - 1 (Araujo et al. 2019,
doi:10.23915/distill.00021); those outside the input are padding. The analysis follows outputs away from the border.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from dilax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """What an output sees along one axis.

    Attributes:
        size: Samples from the first to the last seen; None if every output sees the whole axis (a global reduction, a dense layer).
        stride: Samples between what neighbouring outputs see.
        offset: First sample that output 0 sees; negative in the padding.
    """

    size: int | None
    stride: int = 1
    offset: int = 0


GLOBAL = ReceptiveField(size=None)
# Each output depends on the inputs at its own place alone. Named one by one: cumsum and sort keep the shape, too.
ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos
    cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min
    mul name ne neg nextafter not optimization_barrier or population_count pow real reduce_precision rem round rsqrt select_n
    sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905
)


def receptive_field(fn: Callable[[jax.Array], jax.Array], x: Any) -> tuple[ReceptiveField, ...]:
    """Analyse a function of one array.

    Args:
        fn: Maps (batch, *space, channels) to an array.
        x: Its input, or a `jax.ShapeDtypeStruct`; only shape and dtype are read.

    Returns:
        One `ReceptiveField` per spatial axis of x.

    Raises:
        UserError: if the function does something to the spatial axes that the analysis does not know.

    Example:
        >>> from dilax.functional import dilated_conv
        >>> receptive_field(lambda x: dilated_conv(x, jax.numpy.ones((3, 1, 1)), dilation=4), jax.numpy.ones((1, 32, 1)))
        (ReceptiveField(size=9, stride=1, offset=-4),)
    """
    return receptive_fields(fn, x)[0]


def receptive_fields(fn: Callable[[jax.Array], Any], x: Any) -> list[tuple[ReceptiveField, ...]]:
    """As `receptive_field`, for a function that returns a tree: one entry per leaf, in the order of `jax.tree.leaves`.

    A leaf that does not depend on x has an empty tuple.
    """
    rank = len(x.shape) - 2
    closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(x.shape, x.dtype))
    start = View((None, *((axis, ReceptiveField(1)) for axis in range(rank)), None))
    views = _run(closed.jaxpr, [None] * len(closed.jaxpr.constvars), [start])
    return [() if view is None else tuple(view.along(axis) for axis in range(rank)) for view in views]


@dataclasses.dataclass(frozen=True)
class View:
    """What an array sees of the input: for each of its axes, None or (axis of the input's space, ReceptiveField along it).

    An axis of the input that no axis of the array stands for is seen as a whole.
    """

    axes: tuple[tuple[int, ReceptiveField] | None, ...]

    def along(self, axis: int) -> ReceptiveField:
        """The receptive field along one axis of the input's space."""
        return next((entry[1] for entry in self.axes if entry is not None and entry[0] == axis), GLOBAL)


Views = list[View | None]


def _run(jaxpr: Any, consts: Sequence[View | None], inputs: Sequence[View | None]) -> Views:
    """Follow views through a jaxpr; None is an array that does not depend on the input."""
    known: dict[Any, View | None] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs]))

    def read(var: Any) -> View | None:
        return None if isinstance(var, core.Literal) else known[var]

    for eqn in jaxpr.eqns:
        views = [read(var) for var in eqn.invars]
        outputs: Views = [None] * len(eqn.outvars) if all(view is None for view in views) else _equation(eqn, views)
        known.update(zip(eqn.outvars, outputs))
    return [read(var) for var in jaxpr.outvars]


def _equation(eqn: Any, views: Views) -> Views:
    name = eqn.primitive.name
    if name == "cond":
        branches = [_run(branch.jaxpr, [None] * len(branch.jaxpr.constvars), views[1:]) for branch in eqn.params["branches"]]
        return [_union(outputs) for outputs in zip(*branches)]
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params and name not in ("scan", "while", "reduce"):
            inner = eqn.params[key]
            inner = getattr(inner, "jaxpr", inner)
            return _run(inner, [None] * len(inner.constvars), views[-len(inner.invars) :])
    if name in RULES:
        return [RULES[name](eqn, views)] * len(eqn.outvars)
    shape = eqn.outvars[0].aval.shape
    if name in ELEMENTWISE and all(view is None or _fits(var.aval.shape, shape) for var, view in zip(eqn.invars, views)):
        return [_union([_stretch(var.aval.shape, shape, view) for var, view in zip(eqn.invars, views)])] * len(eqn.outvars)
    raise UserError(f"receptive_field: the operation {name!r} is not known to the analysis; analyse the parts before and after it.")


def _fits(shape: tuple[int, ...], result: tuple[int, ...]) -> bool:
    return len(shape) == len(result) and all(n in (1, m) for n, m in zip(shape, result))


def _stretch(shape: tuple[int, ...], result: tuple[int, ...], view: View | None) -> View | None:
    """The view of an operand whose axes of length 1 are repeated: all places there see the same."""
    return view and View(tuple(entry if n == m else None for n, m, entry in zip(shape, result, view.axes)))


def _union(views: Sequence[View | None]) -> View | None:
    """The view of an elementwise operation on arrays of one shape."""
    seen = [view for view in views if view is not None]
    if not seen:
        return None
    return View(tuple(functools.reduce(_join, entries) for entries in zip(*(view.axes for view in seen))))


def _join(a: tuple[int, ReceptiveField] | None, b: tuple[int, ReceptiveField] | None) -> tuple[int, ReceptiveField] | None:
    """Both at once along one axis; where they do not run side by side, the axis is seen as a whole (None)."""
    if a is None or b is None or a[0] != b[0] or a[1].stride != b[1].stride or a[1].size is None or b[1].size is None:
        return None
    first = min(a[1].offset, b[1].offset)
    last = max(a[1].offset + a[1].size, b[1].offset + b[1].size)
    return a[0], ReceptiveField(last - first, a[1].stride, first)


def _window(entry: Any, taps: int, stride: int, lo: int, dilation: int) -> Any:
    """An axis after a sliding window."""
    if entry is None or entry[1].size is None:
        return entry
    axis, field = entry
    size = field.size + (taps - 1) * dilation * field.stride
    return axis, ReceptiveField(size, field.stride * stride, field.offset - lo * field.stride)


def _conv(eqn: Any, views: Views) -> View:
    numbers = eqn.params["dimension_numbers"]
    if views[1] is not None:
        raise UserError("receptive_field: a convolution's kernel depends on the input; its receptive field is not defined.")
    entries: list[Any] = [None] * len(numbers.out_spec)
    assert views[0] is not None
    for i, (source, target, window) in enumerate(zip(numbers.lhs_spec[2:], numbers.out_spec[2:], numbers.rhs_spec[2:])):
        if eqn.params["lhs_dilation"][i] != 1:
            raise UserError("receptive_field: transposed convolutions with a stride are not known to the analysis yet.")
        entries[target] = _window(
            views[0].axes[source],
            eqn.invars[1].aval.shape[window],
            eqn.params["window_strides"][i],
            eqn.params["padding"][i][0],
            eqn.params["rhs_dilation"][i],
        )
    return View(tuple(entries))


def _dilated_conv(eqn: Any, views: Views) -> View:
    """The convolution of dilax, which is a primitive of its own where a lowering other than XLA's may compute it."""
    plan = eqn.params["plan"]
    return _along_space(views, plan.kernel_size, plan.stride, [lo for lo, _ in plan.padding], plan.dilation)


def _dilated_conv_transpose(eqn: Any, views: Views) -> View:
    plan = eqn.params["plan"]
    if max(plan.stride) != 1:
        raise UserError("receptive_field: transposed convolutions with a stride are not known to the analysis yet.")
    before = [(k - 1) * d - lo for k, d, (lo, _) in zip(plan.kernel_size, plan.dilation, plan.padding)]
    return _along_space(views, plan.kernel_size, plan.stride, before, plan.dilation)


def _along_space(views: Views, *windows: Any) -> View:
    if views[1] is not None:
        raise UserError("receptive_field: a convolution's kernel depends on the input; its receptive field is not defined.")
    _, *space, _ = _first(views).axes
    return View((None, *(_window(entry, k, s, lo, d) for entry, k, s, lo, d in zip(space, *windows)), None))


def _reduce_window(eqn: Any, views: Views) -> View:
    view = _first(views)
    p = eqn.params
    if any(d != 1 for d in p["base_dilation"]):
        raise UserError("receptive_field: a reduce_window with base_dilation is not known to the analysis yet.")
    windows = zip(view.axes, p["window_dimensions"], p["window_strides"], (lo for lo, _ in p["padding"]), p["window_dilation"])
    return View(tuple(_window(*window) for window in windows))


def _pad(eqn: Any, views: Views) -> View:
    entries = []
    for entry, (lo, _, interior) in zip(_first(views).axes, eqn.params["padding_config"]):
        if entry is not None and interior:
            raise UserError("receptive_field: interior padding is not known to the analysis yet.")
        entries.append(_window(entry, 1, 1, lo, 1))
    return View(tuple(entries))


def _slice(eqn: Any, views: Views) -> View:
    starts = eqn.params["start_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    return View(tuple(_window(entry, 1, stride, -start, 1) for entry, start, stride in zip(_first(views).axes, starts, strides)))


def _concatenate(eqn: Any, views: Views) -> View | None:
    axis, place, shifted = eqn.params["dimension"], 0, []
    for var, view in zip(eqn.invars, views):
        if view is not None:
            entries = list(view.axes)
            entries[axis] = _window(entries[axis], 1, 1, place, 1)
            shifted.append((var.aval.shape[axis], View(tuple(entries))))
        place += var.aval.shape[axis]
    if any(view.axes[axis] is not None for _, view in shifted):
        # Along space: the widest piece is the inside, the others are a border made of copies (jnp.pad's modes).
        width, widest = max(shifted, key=lambda piece: piece[0])
        sizes = [0 if view.axes[axis] is None else view.axes[axis][1].size or math.inf for _, view in shifted]
        if 2 * width <= place or max(sizes) > (widest.axes[axis][1].size or math.inf if widest.axes[axis] else 0):
            raise UserError("receptive_field: pieces of unlike receptive fields are joined along space; analyse each piece by itself.")
        return widest
    return _union([view for _, view in shifted])


def _reduce(eqn: Any, views: Views) -> View:
    return View(tuple(entry for i, entry in enumerate(_first(views).axes) if i not in eqn.params["axes"]))


def _broadcast(eqn: Any, views: Views) -> View:
    entries: list[Any] = [None] * len(eqn.params["shape"])
    for entry, target in zip(_first(views).axes, eqn.params["broadcast_dimensions"]):
        entries[target] = entry
    return View(tuple(entries))


def _transpose(eqn: Any, views: Views) -> View:
    return View(tuple(_first(views).axes[i] for i in eqn.params["permutation"]))


def _squeeze(eqn: Any, views: Views) -> View:
    return View(tuple(entry for i, entry in enumerate(_first(views).axes) if i not in eqn.params["dimensions"]))


def _reshape(eqn: Any, views: Views) -> View:
    """Keep the axes whose length and place in memory stay; an axis that is merged or split is seen as a whole."""
    old, new = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    places = {(n, math.prod(old[i:])): entry for i, (n, entry) in enumerate(zip(old, _first(views).axes))}
    return View(tuple(places.get((n, math.prod(new[i:]))) for i, n in enumerate(new)))


def _dot(eqn: Any, views: Views) -> View | None:
    (contract, batch), results = eqn.params["dimension_numbers"], []
    total = len(eqn.outvars[0].aval.shape)
    for side, view in enumerate(views):
        if view is None:
            continue
        free = [i for i in range(len(view.axes)) if i not in contract[side] and i not in batch[side]]
        first = len(batch[side]) if side == 0 else total - len(free)
        entries: list[Any] = [None] * total
        entries[: len(batch[side])] = [view.axes[i] for i in batch[side]]
        entries[first : first + len(free)] = [view.axes[i] for i in free]
        results.append(View(tuple(entries)))
    return _union(results)


def _rev(eqn: Any, views: Views) -> View:
    """A mirrored axis runs against the input; it is seen as a whole (as a border, `_concatenate` leaves it out)."""
    return View(tuple(None if i in eqn.params["dimensions"] else entry for i, entry in enumerate(_first(views).axes)))


def _first(views: Views) -> View:
    return next(view for view in views if view is not None)


RULES: dict[str, Callable[[Any, Views], View | None]] = {
    "conv_general_dilated": _conv,
    "dilated_conv": _dilated_conv,
    "dilated_conv_input_gradient": _dilated_conv_transpose,
    "pad": _pad,
    "slice": _slice,
    "concatenate": _concatenate,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "dot_general": _dot,
    "rev": _rev,
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window"), _reduce_window),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"), _reduce),
}
