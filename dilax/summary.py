"""Summarise a model as a table: output shape, parameters, multiply-adds and receptive field of each layer."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import VariableDict

from dilax.arguments import takes_train
from dilax.errors import UserError
from dilax.pruning import multiply_adds_of
from dilax.receptive_fields import ReceptiveField, receptive_fields


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that has parameters of its own.

    Attributes:
        path: Names of the modules that lead to it.
        kind: Name of its class.
        output_shape: Shape of its output, without the batch axis.
        parameters: Number of its parameters.
        multiply_adds: Multiply-adds for one example. Taps that read padding are counted, as is usual in papers.
        receptive_field: The receptive field of its output with respect to the input of the model, one per spatial axis.
    """

    path: tuple[str, ...]
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: tuple[ReceptiveField, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer while a model is traced.

    Attributes:
        layer: The layer, outside of its model.
        path: Names of the modules that lead to it.
        arguments: Its positional and its named arguments.
        output: What it returned.
        encloses: Whether it has called other layers.
    """

    layer: nn.Module
    path: tuple[str, ...]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    output: Any
    encloses: bool

    def apply(self, variables: VariableDict, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """Run the layer alone, with variables as `variables_at` returns them."""
        args, kwargs = arguments
        return self.layer.apply(variables, *args, **kwargs)


@contextlib.contextmanager
def recorded_calls(caller: str, variables: VariableDict) -> Iterator[list[Call]]:
    """Record the calls of the layers that have parameters of their own among `variables`, in the order in which they end.

    Raises:
        UserError: if a layer runs inside `flax.linen.scan` or `vmap`, where it sees parts of its parameters.
    """
    calls: list[Call] = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        before, module = len(calls), context.module
        y = call(*args, **kwargs)
        own = own_parameters(variables, module.path) if context.method_name == "__call__" else {}
        if own:
            _check_shapes(caller, module, own)
            calls.append(Call(module.unbind()[0], module.path, (args, kwargs), y, len(calls) > before))
        return y

    with nn.intercept_methods(record):
        yield calls


def _check_shapes(caller: str, module: nn.Module, own: Mapping[str, Any]) -> None:
    """Refuse a layer that sees parts of its parameters alone."""
    seen = module.variables["params"]
    if any(name in seen and seen[name].shape != leaf.shape for name, leaf in own.items()):
        raise UserError(
            f"{caller}: the layer {'/'.join(module.path)!r} holds the parameters of several layers in one array, as flax.linen.scan and "
            "vmap make them, and cannot be looked at alone; make the layers one by one."
        )


def variables_at(variables: VariableDict, path: Sequence[str]) -> dict[str, Any]:
    """Return the variables of the module at `path`, by collection, with those of its submodules."""
    found = {}
    for collection, node in variables.items():
        for name in path:
            node = node.get(name, {}) if isinstance(node, Mapping) else {}
        if node:
            found[collection] = node
    return found


def own_parameters(variables: VariableDict, path: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of the module at `path`, without those of its submodules."""
    node = variables_at(variables, path).get("params", {})
    return {name: leaf for name, leaf in node.items() if hasattr(leaf, "shape")} if isinstance(node, Mapping) else {}


def layers(model: nn.Module, x: jax.Array | jax.ShapeDtypeStruct, *, variables: VariableDict | None = None) -> list[Layer]:
    """Return the layers of a model that have parameters, in the order in which they run. The model is traced, not computed.

    Args:
        model: A Flax module.
        x: Its input, (batch, *space, channels), or (batch, time) for codes; only the shape and dtype are used.
        variables: Its variables, or their shapes; None for those that its `init` creates.

    Raises:
        UserError: if the receptive field cannot be analysed, or layers are inside `flax.linen.scan` or `vmap`.
    """
    return [layer for layer, _ in layers_of_calls("layers", model, x, variables=variables)]


def layers_of_calls(
    caller: str, model: nn.Module, x: jax.Array | jax.ShapeDtypeStruct, *, variables: VariableDict | None = None
) -> list[tuple[Layer, Call]]:
    """Return what `layers` does for a caller that errors name, with the calls, which hold shapes for one example."""
    options: dict[str, Any] = {"train": False} if takes_train(model) else {}
    x = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    if variables is None:
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, **options), x)
    shapes: Any = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    found: list[Call] = []
    # The analysis follows axes of space, which codes (batch, time) lack: they are taken for a sequence of one channel.
    codes = len(x.shape) == 2 and jnp.issubdtype(x.dtype, jnp.integer)

    def outputs(given: jax.Array) -> list[jax.Array]:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        with recorded_calls(caller, shapes) as calls:
            model.apply(zeros, given[..., 0].astype(x.dtype) if codes else given, **options)
        found[:] = [dataclasses.replace(call, arguments=_shapes(call.arguments), output=_shapes(call.output)) for call in calls]
        return [jax.tree.leaves(call.output)[0] for call in calls]

    fields = receptive_fields(outputs, jax.ShapeDtypeStruct((*x.shape, 1), jnp.float32) if codes else x)
    return [(_layer(call, shapes, field), call) for call, field in zip(found, fields)]


def summary(model: nn.Module, x: jax.Array | jax.ShapeDtypeStruct) -> str:
    """Return a table of the `layers` of a model as text, with totals.

    Args:
        model: A Flax module.
        x: Its input, (batch, *space, channels), or (batch, time) for codes; only the shape and dtype are used.

    Raises:
        UserError: if the receptive field cannot be analysed.

    Example:
        >>> import jax, dilax
        >>> print(summary(dilax.models.create("separable_cnn_single_layer"), jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")))
        layer                          kind           output  parameters  multiply-adds  receptive field
        ConvNormAct_0/SeparableConv_0  SeparableConv  8x8x64         283         14,016  3x3
        head                           Dense          10             650            640  global
        total                                                        933         14,656
    """
    table = [layer for layer, _ in layers_of_calls("summary", model, x)]
    parameters, multiply_adds = sum(layer.parameters for layer in table), sum(layer.multiply_adds for layer in table)
    head = ("layer", "kind", "output", "parameters", "multiply-adds", "receptive field")
    total = ("total", "", "", f"{parameters:,}", f"{multiply_adds:,}", "")
    return aligned([head, *(words_of(layer) for layer in table), total], right={3, 4})


def words_of(layer: Layer) -> tuple[str, str, str, str, str, str]:
    """Return the path, the class, the output, the parameters, the multiply-adds and the receptive field of a layer as words."""
    path, shape = "/".join(layer.path), "x".join(map(str, layer.output_shape))
    return path, layer.kind, shape, f"{layer.parameters:,}", f"{layer.multiply_adds:,}", format_field(layer.receptive_field)


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int]) -> str:
    """Return rows of words as lines of columns two blanks apart; those with the numbers `right` are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(n) if i in right else cell.ljust(n) for i, (cell, n) in enumerate(zip(row, widths))) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def format_field(fields: Sequence[ReceptiveField]) -> str:
    """Return the sizes of a receptive field as text, such as 3x3; an axis that is seen whole is "global"."""
    if all(field.size is None for field in fields):
        return "global"
    return "x".join("global" if field.size is None else str(field.size) for field in fields)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf, tree)


def _layer(call: Call, variables: VariableDict, field: tuple[ReceptiveField, ...]) -> Layer:
    own, others = own_parameters(variables, call.path), variables_at(variables, call.path)
    others["params"] = {name: node for name, node in others["params"].items() if name not in own}

    def run(own: Any, others: Any, arguments: Any) -> Any:
        return call.apply({**others, "params": {**others["params"], **own}}, arguments)

    multiply_adds = multiply_adds_of(run, own, others, call.arguments)
    output = jax.tree.leaves(call.output)[0]
    size = sum(leaf.size for leaf in own.values())
    return Layer(call.path, type(call.layer).__name__, tuple(output.shape[1:]), size, multiply_adds, field)
