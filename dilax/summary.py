"""A model as a table: each layer's output shape, parameters, multiply-adds, and the receptive field so far."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax

from dilax.modules import DilatedConvTranspose, MultiDilationConv
from dilax.receptive_fields import ReceptiveField, receptive_fields


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer that holds parameters.

    Attributes:
        path: Names of the modules down to it.
        kind: Its class.
        output_shape: Without the batch axis.
        parameters: Numbers learned in it.
        multiply_adds: For one example, taps that lie in the padding counted, as papers do.
        receptive_field: One per spatial axis, of its output.
    """

    path: tuple[str, ...]
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: tuple[ReceptiveField, ...]


def layers(model: nn.Module, x: Any) -> list[Layer]:
    """List the layers of a model in the order they run, without computing anything.

    Args:
        model: A Flax module whose `__call__` takes `(x, *, train)`.
        x: Its input (batch, *space, channels), or a `jax.ShapeDtypeStruct`.

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
        if context.method_name == "__call__" and _own_parameters(variables, context.module.path):
            calls.append((context.module, args[0], y))
        return y

    fields = receptive_fields(outputs, x)
    return [_layer(module, given, y, variables, field) for (module, given, y), field in zip(calls, fields)]


def summary(model: nn.Module, x: Any) -> str:
    """Return the table of `layers` as text, with totals; arguments and errors as there.

    Example:
        >>> import jax, dilax
        >>> print(summary(dilax.models.create("separable_cnn_single_layer"), jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")))
        layer                          kind           output  parameters  multiply-adds  receptive field
        ConvNormAct_0/SeparableConv_0  SeparableConv  8x8x64         283         14,016  3x3
        head                           Dense          10             650            640  global
        total                                                        933         14,656
    """
    rows = [("layer", "kind", "output", "parameters", "multiply-adds", "receptive field")]
    found = layers(model, x)
    for layer in found:
        shape = "x".join(map(str, layer.output_shape))
        rows.append(
            ("/".join(layer.path), layer.kind, shape, f"{layer.parameters:,}", f"{layer.multiply_adds:,}", _words(layer.receptive_field))
        )
    parameters, multiply_adds = sum(layer.parameters for layer in found), sum(layer.multiply_adds for layer in found)
    rows.append(("total", "", "", f"{parameters:,}", f"{multiply_adds:,}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if i in (3, 4) else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _own_parameters(variables: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """The parameters of the module at `path` itself, those of modules inside it left out."""
    node = variables["params"]
    for name in path:
        node = node.get(name, {})
    return {name: leaf for name, leaf in node.items() if hasattr(leaf, "shape")}


def _layer(module: nn.Module, x: Any, y: Any, variables: Any, field: tuple[ReceptiveField, ...]) -> Layer:
    own = _own_parameters(variables, module.path)
    # A kernel meets every output position once; in a transposed convolution, every input position.
    positions = math.prod((x if isinstance(module, DilatedConvTranspose) else y).shape[1:-1])
    repeats = len(module.dilations) if isinstance(module, MultiDilationConv) and module.share_kernel else 1
    multiply_adds = repeats * positions * sum(leaf.size for name, leaf in own.items() if "kernel" in name)
    return Layer(module.path, type(module).__name__, tuple(y.shape[1:]), sum(leaf.size for leaf in own.values()), multiply_adds, field)


def _words(fields: tuple[ReceptiveField, ...]) -> str:
    if all(field.size is None for field in fields):
        return "global"
    return "x".join("global" if field.size is None else str(field.size) for field in fields)
