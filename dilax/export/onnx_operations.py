"""The operations of `dilax.whole` as nodes of ONNX, registered with jax2onnx by the names of their primitives.

ONNX has channels second. A node is therefore between two transpositions, of which those between neighbours cancel out.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dilax.arguments import is_integer
from dilax.errors import UserError
from dilax.export.packages import required
from dilax.geometry import effective_kernel_size
from dilax.plan import ConvPlan
from dilax.pooling import Windows

# A function (graph, *operands, **options) to the result; arrays have channels second, and kernels are (c_out, c_in, *window).
Node = Callable[..., Any]


class Graph:
    """The graph that jax2onnx is building, as far as the operations need it.

    Args:
        context: The context that jax2onnx gives its plugins.
        input_shape: Shape of the first operand of the operation, channels last.
        shape: Shape of the result of the operation, channels last.
        dtype: Its dtype in ONNX.
    """

    def __init__(self, context: Any, input_shape: Sequence[Any], shape: Sequence[Any], dtype: Any) -> None:
        self.context, self.input_shape, self.shape, self.dtype = context, tuple(input_shape), tuple(shape), dtype

    def node(self, kind: str, operands: Sequence[Any], shape: Sequence[Any], **attributes: Any) -> Any:
        """Add a node with one result of a shape."""
        ir = required("onnx_ir", "onnx")
        name = self.context.fresh_name(f"dilax_{kind}")
        value = getattr(self.context.builder, kind)(*operands, _outputs=[name], **attributes)
        value.type = ir.TensorType(self.dtype)
        value.shape = ir.Shape([int(size) if is_integer(size) else str(size) for size in shape])
        return value

    def transposed(self, operand: Any, shape: Sequence[Any], axes: Sequence[int]) -> Any:
        """Transpose an operand, at once if it is known."""
        if operand.const_value is not None:
            return self.constant(np.transpose(operand.const_value.numpy(), axes))
        return self.node("Transpose", [operand], [shape[axis] for axis in axes], perm=list(axes))

    def constant(self, array: np.ndarray) -> Any:
        """Add a constant."""
        return self.context.bind_const_for_var(object(), np.ascontiguousarray(array))

    @property
    def channels_second(self) -> tuple[Any, ...]:
        """Shape of the result, channels second."""
        return (self.shape[0], self.shape[-1], *self.shape[1:-1])


def _conv(graph: Graph, x: Any, kernel: Any, *, plan: ConvPlan, lowering: str) -> Any:
    pads = _pads("convolution", plan.padding)
    return graph.node("Conv", [x, kernel], graph.channels_second, pads=pads, **_attributes(plan))


def _conv_transpose(graph: Graph, y: Any, kernel: Any, *, plan: ConvPlan, lowering: str) -> Any:
    spans = effective_kernel_size(plan.kernel_size, plan.dilation)
    # Several sizes convolve to the same one: what this one has more than the smallest.
    more = [
        n + lo + hi - span - (out - 1) * stride
        for n, (lo, hi), span, out, stride in zip(plan.input_size, plan.padding, spans, plan.output_size, plan.stride)
    ]
    options = dict(pads=_pads("transposed convolution", plan.padding), output_padding=_fixed("transposed convolution", more))
    return graph.node("ConvTranspose", [y, kernel], graph.channels_second, **options, **_attributes(plan))


def _attributes(plan: ConvPlan) -> dict[str, Any]:
    return dict(kernel_shape=list(plan.kernel_size), strides=list(plan.stride), dilations=list(plan.dilation), group=plan.groups)


def _max_pool(graph: Graph, x: Any, *, windows: Windows) -> Any:
    return graph.node("MaxPool", [x], graph.channels_second, **_windows("max_pool", windows))


def _avg_pool(graph: Graph, x: Any, *, windows: Windows, count_padding: bool) -> Any:
    return graph.node("AveragePool", [x], graph.channels_second, count_include_pad=int(count_padding), **_windows("avg_pool", windows))


def _windows(operation: str, windows: Windows) -> dict[str, Any]:
    taps, strides, padding, dilations = (list(values) for values in zip(*windows))
    return dict(kernel_shape=taps, strides=strides, pads=_pads(operation, padding), dilations=dilations)


def _resize(graph: Graph, x: Any, *, size: tuple[Any, ...], method: str, align_corners: bool) -> Any:
    # Scales rather than sizes, which would hold that of the batch, and that may vary.
    scales = np.asarray([1, 1, *(_scale(old, new) for old, new in zip(graph.input_shape[1:-1], size))], np.float32)
    places = "align_corners" if align_corners else "half_pixel"
    options: dict[str, Any] = dict(mode="linear") if method == "bilinear" else dict(mode="nearest", nearest_mode="round_prefer_ceil")
    return graph.node("Resize", [x, None, graph.constant(scales)], graph.channels_second, coordinate_transformation_mode=places, **options)


def _scale(old: Any, new: Any) -> np.float32:
    """Return the scale with which a runtime, which rounds down, makes `new` samples of `old`."""
    times, rest = divmod(new, old)
    if is_integer(times) and is_integer(rest) and rest == 0:
        return np.float32(times)
    old, new = _fixed("resize", [old, new])
    scale = np.float32(new / old)
    exact = int(np.float32(old) * scale) == int(old * float(scale)) == new  # runtimes multiply in single or in double precision
    return scale if exact else np.nextafter(scale, np.float32(np.inf))


def _pads(operation: str, pairs: Sequence[Sequence[Any]]) -> list[int]:
    """Return (lo, hi) pairs in the order of ONNX: first all lo."""
    return _fixed(operation, [pair[end] for end in (0, 1) for pair in pairs])


def _fixed(operation: str, values: Sequence[Any]) -> list[int]:
    """Return sizes as ints; refuse those that vary."""
    if not all(map(is_integer, values)):
        raise UserError(
            f"export: in ONNX, the padding or size of a {operation} cannot depend on sizes that vary; give ints for the spatial axes."
        )
    return [int(value) for value in values]


NODES: dict[str, Node] = {
    "dilax_conv": _conv,
    "dilax_conv_transpose": _conv_transpose,
    "dilax_max_pool": _max_pool,
    "dilax_avg_pool": _avg_pool,
    "dilax_resize_space": _resize,
}


@functools.cache
def register() -> None:
    """Register the operations with jax2onnx."""
    plugins = required("jax2onnx.plugins.plugin_system", "onnx")
    for name, node in NODES.items():
        _register(plugins, name, functools.partialmethod(_lower, node))
    plugins.import_all_plugins()  # before the one that takes the place of one of theirs
    _register(plugins, "pad", _pad)


def _register(plugins: Any, name: str, lower: Any) -> None:
    plugin = type(name, (plugins.PrimitiveLeafPlugin,), {"lower": lower})
    plugins.register_primitive(jaxpr_primitive=name, component=name, context="dilax", testcases=[])(plugin)


def _pad(plugin: Any, context: Any, equation: Any) -> Any:
    """Add the node of `jax.lax.pad`, which jax2onnx does not add for arrays of sizes that vary."""
    x, value = (context.get_value_for_var(variable) for variable in equation.invars)
    config = equation.params["padding_config"]
    if any(between for *_, between in config):
        raise UserError("export: format 'onnx' cannot express a padding between samples; use format 'stablehlo'.")
    graph = Graph(context, equation.invars[0].aval.shape, equation.outvars[0].aval.shape, x.type.dtype)
    pads = np.asarray(_pads("padding", [ends[:2] for ends in config]), np.int64)
    return graph.node("Pad", [x, graph.constant(pads), value], graph.shape, mode="constant")


def _lower(plugin: Any, node: Node, context: Any, equation: Any) -> Any:
    """Add the nodes of an equation; jax2onnx calls it, and binds the result."""
    values = [context.get_value_for_var(variable) for variable in equation.invars]
    shapes = [variable.aval.shape for variable in equation.invars]
    graph = Graph(context, shapes[0], equation.outvars[0].aval.shape, values[0].type.dtype)
    rank = len(shapes[0]) - 2
    space = range(1, 1 + rank)
    operands = [graph.transposed(values[0], shapes[0], [0, 1 + rank, *space])]
    if len(values) > 1:
        operands.append(graph.transposed(values[1], shapes[1], [1 + rank, rank, *range(rank)]))
    result = node(graph, *operands, **dict(equation.params["options"]))
    return graph.node("Transpose", [result], graph.shape, perm=[0, *(axis + 1 for axis in space), 1])
