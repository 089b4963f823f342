"""Summarise a model as a table: output shape, parameters, multiply-adds and receptive field of each layer."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
from flax.typing import VariableDict

from dilax.modules import DilatedConvTranspose, MultiDilationConv
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


def layers(model: nn.Module, x: jax.Array | jax.ShapeDtypeStruct) -> list[Layer]:
    """Return the layers of a model that have parameters, in the order in which they run. The model is traced, not computed.

    Args:
        model: A Flax module whose `__call__` takes `(x, *, train)`.
        x: Its input, (batch, *space, channels); only the shape and dtype are used.

    Raises:
        UserError: if the receptive field cannot be analysed.
    """
    x = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    calls: list[tuple[nn.Module, Any, Any]] = []

    def outputs(x: jax.Array) -> list[jax.Array]:
        calls.clear()
        zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), variables)
        with nn.intercept_methods(record):
            model.apply(zeros, x, train=False)
        return [y for _, _, y in calls]

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        if context.method_name == "__call__" and _direct_parameters(variables, context.module.path):
            calls.append((context.module, args[0], y))
        return y

    fields = receptive_fields(outputs, x)
    return [_layer(module, x, y, variables, field) for (module, x, y), field in zip(calls, fields)]


def summary(model: nn.Module, x: jax.Array | jax.ShapeDtypeStruct) -> str:
    """Return a table of the `layers` of a model as text, with totals.

    Args:
        model: A Flax module whose `__call__` takes `(x, *, train)`.
        x: Its input, (batch, *space, channels); only the shape and dtype are used.

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
    rows = [("layer", "kind", "output", "parameters", "multiply-adds", "receptive field")]
    table = layers(model, x)
    for layer in table:
        path, shape = "/".join(layer.path), "x".join(map(str, layer.output_shape))
        rows.append((path, layer.kind, shape, f"{layer.parameters:,}", f"{layer.multiply_adds:,}", _format_field(layer.receptive_field)))
    parameters, multiply_adds = sum(layer.parameters for layer in table), sum(layer.multiply_adds for layer in table)
    rows.append(("total", "", "", f"{parameters:,}", f"{multiply_adds:,}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if i in (3, 4) else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _direct_parameters(variables: VariableDict, path: tuple[str, ...]) -> dict[str, Any]:
    """Return the parameters of the module at `path`, without those of its submodules."""
    node = variables["params"]
    for name in path:
        node = node.get(name, {})
    return {name: leaf for name, leaf in node.items() if hasattr(leaf, "shape")}


def _layer(module: nn.Module, x: Any, y: Any, variables: VariableDict, field: tuple[ReceptiveField, ...]) -> Layer:
    parameters = _direct_parameters(variables, module.path)
    # A kernel is applied once per output position; in a transposed convolution, once per input position.
    positions = math.prod((x if isinstance(module, DilatedConvTranspose) else y).shape[1:-1])
    repeats = len(module.dilations) if isinstance(module, MultiDilationConv) and module.share_kernel else 1
    multiply_adds = repeats * positions * sum(leaf.size for name, leaf in parameters.items() if "kernel" in name and name != "kernel_scale")
    size = sum(leaf.size for leaf in parameters.values())
    return Layer(module.path, type(module).__name__, tuple(y.shape[1:]), size, multiply_adds, field)


def _format_field(fields: tuple[ReceptiveField, ...]) -> str:
    if all(field.size is None for field in fields):
        return "global"
    return "x".join("global" if field.size is None else str(field.size) for field in fields)
