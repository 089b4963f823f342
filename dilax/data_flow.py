"""Which normalisations directly follow which layers of a model, and whether another model is the same without them, from the jaxprs."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from dilax.arguments import takes_train
from dilax.errors import UserError

_MARK = "dilax:"
# Operations that run a jaxpr once, on their operands. Loops and branches are not followed: what is normalised within one is not found.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "custom_jvp_call", "custom_vjp_call"}


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer or of a normalisation.

    Attributes:
        is_norm: Whether it is one of the normalisations.
        path: Path of the module, its names joined by slashes.
    """

    is_norm: bool
    path: str


@dataclasses.dataclass(frozen=True)
class Value:
    """How a value is computed.

    Attributes:
        key: Equal for values that are computed in the same way.
        origin: What computes it, for messages.
        raw: Paths of the layers whose outputs it depends on before their normalisation.
        layer: Path of the layer whose output it is; None for other values.
        before: The input of that layer.
    """

    key: int
    origin: str
    raw: frozenset[str] = frozenset()
    layer: str | None = None
    before: "Value | None" = None


@dataclasses.dataclass
class Flow:
    """What a model computes.

    Attributes:
        pairs: Path of each normalisation that was called -> the layers whose outputs it normalises.
        others: Path of each normalisation that was called on something else -> what computes that.
        key: Equal for models that compute the same.
        raw: Paths of the layers whose outputs are also used without normalisation.
        norms: Path of each normalisation that was called -> the module, unbound.
    """

    pairs: dict[str, set[str]]
    others: dict[str, str]
    key: int = 0
    raw: frozenset[str] = frozenset()
    norms: dict[str, nn.Module] = dataclasses.field(default_factory=dict)


def trace(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: Any,
    *,
    is_layer: Callable[[nn.Module], bool],
    is_norm: Callable[[nn.Module], bool],
    changed: Collection[str] = (),
    train: bool = False,
) -> Flow:
    """Trace a model, and follow what it computes.

    A normalisation of the output of a layer has the key of that layer in a model in which the layer is `changed`. So the model without
    normalisation, its layers changed, has the same key exactly if each of these layers is normalised wherever it is used.

    Args:
        model: A Flax module.
        variables: Its variables, or their shapes.
        x: Its input; only the shape and dtype are used.
        is_layer: Whether a module is a layer that is looked for.
        is_norm: Whether a module is a normalisation that is looked for.
        changed: Paths of the layers whose parameters are not the original ones.
        train: Whether to follow the model in training, where further layers may run; normalisations are those of inference.

    Raises:
        UserError: if a normalisation uses the statistics of the batch in inference.
    """
    calls: list[Call] = []
    norms: dict[str, nn.Module] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        wanted = isinstance(module, nn.Module) and context.method_name == "__call__" and args and (is_norm(module) or is_layer(module))
        if not wanted:
            return call(*args, **kwargs)
        number, path = len(calls), "/".join(module.path)
        if kwargs.get("train") and not train:
            raise UserError(f"fold_batch_norm: {path!r} is called with train=True in inference, too; pass it the `train` of the model.")
        if is_norm(module):
            kwargs, norms[path] = {**kwargs, "train": False}, module.clone(parent=None)
        calls.append(Call(is_norm(module), path))
        for leaf_path, leaf in _leaves(module.variables):
            collection, _, name = leaf_path.partition("/")
            checkpoint_name(leaf, f"{_MARK}{number}:{collection}/{path}/{name}")
        y = call(checkpoint_name(args[0], f"{_MARK}{number}:in"), *args[1:], **kwargs)
        return checkpoint_name(y, f"{_MARK}{number}:out")

    def run(variables: Any, x: jax.Array) -> Any:
        with nn.intercept_methods(intercept):
            rngs, mutable = ({"params": jax.random.key(0)}, ["batch_stats"]) if train else (None, False)
            y: Any = model.apply(variables, x, **options(model, train=train), rngs=rngs, mutable=mutable)
            return y[0] if train else y

    closed = jax.make_jaxpr(run)(dict(variables), x)
    walk = _Walk(calls, changed)
    walk.flow.norms = norms
    inputs = [Value(hash((leaf, walk.is_changed(leaf))), f"the variable {leaf!r}") for leaf, _ in _leaves(variables)]
    outputs = walk.run(closed.jaxpr, closed.consts, [*inputs, Value(hash("x"), "the input of the model")])
    walk.flow.key = hash(tuple(value.key for value in outputs))
    walk.flow.raw = frozenset().union(*(value.raw for value in outputs))
    for number, call in enumerate(calls):
        if call.is_norm and number not in walk.seen:
            walk.flow.others[call.path] = "a value within a loop, a branch or a mapped function"
    return walk.flow


def options(model: nn.Module, *, train: bool = False) -> dict[str, Any]:
    """Return the options with which a model is called."""
    return {"train": train} if takes_train(model) else {}


class _Walk:
    """One pass through the jaxpr of a model."""

    def __init__(self, calls: list[Call], changed: Collection[str]) -> None:
        self.calls, self.changed, self.flow = calls, changed, Flow({}, {})
        self.starts: dict[int, Value] = {}
        self.computed: set[int] = set()  # the calls whose variables are not plainly those of the model
        self.seen: set[int] = set()

    def is_changed(self, leaf: str) -> bool:
        """Whether a variable is a parameter of a changed layer."""
        return leaf.partition("/")[2].rpartition("/")[0] in self.changed

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """Follow a jaxpr from its inputs to its outputs."""
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(_constant, consts), *inputs], strict=True))

        def read(var: Any) -> Value:
            return _constant(var.val) if isinstance(var, core.Literal) else env[var]

        for eqn in jaxpr.eqns:
            operands = [read(var) for var in eqn.invars]
            env.update(zip(eqn.outvars, self._equation(eqn, operands)))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if name == "name" and eqn.params["name"].startswith(_MARK):
            number, _, what = eqn.params["name"].removeprefix(_MARK).partition(":")
            return [self._mark(int(number), what, operands[0], str(eqn.outvars[0].aval))]
        inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params), None)
        if name in _CALLS and inner is not None:
            jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            return self.run(jaxpr, consts, operands[len(operands) - len(jaxpr.invars) :])
        _refuse_callback(eqn)
        settings = re.sub("0x[0-9a-f]+", "", str(sorted(eqn.params.items(), key=lambda item: item[0]))), _constants_of(eqn.params)
        keys = tuple(operand.key for operand in operands)
        raw = frozenset().union(*(operand.raw for operand in operands))
        return [
            Value(hash((name, settings, keys, i, str(var.aval))), f"the output of the operation {name!r}", raw)
            for i, var in enumerate(eqn.outvars)
        ]

    def _mark(self, number: int, what: str, value: Value, aval: str) -> Value:
        """Return what a mark of `trace` makes of a value."""
        call = self.calls[number]
        if what == "in":
            self.starts[number] = value
        elif what != "out":
            if value.key != hash((what, self.is_changed(what))):
                self.computed.add(number)
        elif call.is_norm:
            return self._normalised(number, call, value, aval)
        else:
            start, origin = self.starts[number], f"the output of the layer {call.path!r}"
            if number in self.computed:
                return Value(value.key, f"{origin} with computed parameters", value.raw | start.raw)
            done = call.path in self.changed
            raw = start.raw if done else start.raw | {call.path}
            return Value(hash((call.path, done, start.key, aval)), origin, raw, call.path, start)
        return value

    def _normalised(self, number: int, call: Call, value: Value, aval: str) -> Value:
        self.seen.add(number)
        start = self.starts[number]
        if start.layer is None or start.before is None or number in self.computed:
            self.flow.others[call.path] = start.origin if start.layer is None else f"{start.origin}, with computed statistics,"
            return value
        self.flow.pairs.setdefault(call.path, set()).add(start.layer)
        return Value(hash((start.layer, True, start.before.key, aval)), f"the output of the normalisation {call.path!r}", start.before.raw)


def _leaves(variables: Mapping[str, Any]) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _refuse_callback(eqn: Any) -> None:
    """Refuse a call of Python whose results are used."""
    name = eqn.primitive.name
    if "callback" in name and eqn.outvars:
        raise UserError(f"fold_batch_norm: the model calls Python by {name!r}, which cannot be compared; take that out of the model.")


def _constants_of(settings: Any) -> tuple[int, ...]:
    """Return the keys of all arrays in the settings of an operation, which are not, or not fully, printed."""
    keys: list[int] = []
    for leaf in jax.tree.leaves(settings, is_leaf=lambda value: isinstance(value, core.Jaxpr | core.ClosedJaxpr)):
        jaxpr = getattr(leaf, "jaxpr", leaf)
        if isinstance(jaxpr, core.Jaxpr):
            keys.extend(_constant(value).key for value in getattr(leaf, "consts", ()))
            for eqn in jaxpr.eqns:
                _refuse_callback(eqn)
                keys.extend(_constants_of(eqn.params))
        elif isinstance(leaf, np.ndarray | jax.Array):
            keys.append(_constant(leaf).key)
    return tuple(keys)


def _constant(value: Any) -> Value:
    is_key = jax.numpy.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(value) if is_key else value)
    return Value(hash((array.dtype.name, array.shape, array.tobytes())), "a constant")
