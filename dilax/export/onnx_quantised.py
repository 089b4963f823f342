"""Smaller programs in ONNX: int8 by the quantiser of onnxruntime, and kernels in half precision."""

import collections
import itertools
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dilax.errors import UserError, reason
from dilax.export.onnx_rewrites import has_subgraphs, remove_unused
from dilax.export.packages import required

# The nodes with a kernel, and the other nodes that are computed in int8 between two of them.
KERNELS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BETWEEN = (
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Concat", "Pad"),
    *("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice"),
)
# What onnxruntime computes with a kernel, by its dtype.
_INT8 = {"QLinearConv", "ConvInteger", "QLinearConvTranspose", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
_FLOAT = {*KERNELS, "FusedConv", "FusedGemm", "FusedMatMul", "Einsum"}
_SMALLEST = 64  # numbers in a constant that is worth a node that widens it

Batch = Sequence[np.ndarray]


def int8(data: bytes, calibration: Sequence[Batch]) -> bytes:
    """Return a program with int8 kernels, one scale per output channel, and 8-bit activations.

    What comes before the first kernel and after the last one, such as the preparation of an image and a softmax, stays in float32. Kernels
    have 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which would overflow (onnxruntime issue 12072).
    """
    onnx, quantization = required("onnx", "onnx"), required("onnxruntime.quantization", "onnx")
    original = onnx.load_model_from_string(data)
    model = onnx.load_model_from_string(optimised(data, "BASIC"))
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # without which the quantiser asks for that
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"  # the quantiser knows nodes by their names
    _flatten_biases(model)
    if not (chosen := between_kernels(model)):
        raise UserError("quantise: the program has no convolution and no matrix product; there is nothing to compute in int8.")
    names = [port.name for port in original.graph.input]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        quantization.quantize_static(
            model,
            path,
            _Reader([dict(zip(names, batch, strict=True)) for batch in calibration]),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[*KERNELS, *BETWEEN],
            nodes_to_quantize=chosen,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        quantised = onnx.load(path)
    return _finished(quantised, original)


class _Reader:
    """Batches as the quantiser reads them."""

    def __init__(self, batches: Sequence[dict[str, np.ndarray]]) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def half(data: bytes, dtype: str) -> bytes:
    """Return a program that stores large constants in half precision; the runtime widens them when it loads the program."""
    onnx, numpy_helper = required("onnx", "onnx"), required("onnx.numpy_helper", "onnx")
    original = onnx.load_model_from_string(data)
    model = onnx.load_model_from_string(data)
    nodes = []
    for one in model.graph.initializer:
        array = numpy_helper.to_array(one)
        if array.dtype != np.float32 or array.size < _SMALLEST:
            continue
        with np.errstate(over="ignore"):
            narrow = array.astype(jnp.dtype(dtype))
        if not np.isfinite(narrow.astype(np.float32)).all() and np.isfinite(array).all():
            raise UserError(f"quantise: {dtype!r} does not hold {np.abs(array).max():.3g}, which is in the program; use 'bfloat16'.")
        wide, one.name = one.name, f"{one.name}_{dtype}"
        one.CopyFrom(numpy_helper.from_array(narrow, one.name))
        nodes.append(onnx.helper.make_node("Cast", [one.name], [wide], name=f"widen_{wide}", to=onnx.TensorProto.FLOAT))
    if not nodes:
        raise UserError(f"quantise: the program has no array of {_SMALLEST} numbers in float32 or more; there is nothing to make smaller.")
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    return _finished(model, original)


def kernels(data: bytes) -> dict[str, int]:
    """Return how many convolutions and matrix products onnxruntime computes in int8, and how many in float32."""
    model = required("onnx", "onnx").load_model_from_string(optimised(data, "EXTENDED"))
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    return {"int8": sum(kinds[kind] for kind in _INT8), "float32": sum(kinds[kind] for kind in _FLOAT)}


def optimised(data: bytes, level: str) -> bytes:
    """Return a program as onnxruntime optimises it.

    Args:
        data: The program.
        level: "BASIC" for what every runtime understands, "EXTENDED" for what onnxruntime runs on a CPU.
    """
    runtime = required("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(path)
        try:
            runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # those of onnxruntime have no common class
            raise UserError(f"quantise: the data is not an ONNX program that onnxruntime runs ({reason(error)}).") from error
        return path.read_bytes()


def between_kernels(model: Any) -> list[str]:
    """Return the names of the nodes that have a kernel, or that lie on a way from one kernel to another."""
    after, before = set[str](), set[str]()  # arrays
    for node in model.graph.node:
        if node.op_type in KERNELS or any(name in after for name in node.input):
            after.update(node.output)
    for node in reversed(model.graph.node):
        if node.op_type in KERNELS or any(name in before for name in node.output):
            before.update(node.input)
    return [
        node.name
        for node in model.graph.node
        if node.op_type in KERNELS or (any(name in after for name in node.input) and any(name in before for name in node.output))
    ]


def _flatten_biases(model: Any) -> None:
    """Give the bias of each Gemm one axis, which the quantiser takes for granted."""
    numpy_helper, graph = required("onnx.numpy_helper", "onnx"), model.graph
    biases = {node.input[2] for node in graph.node if node.op_type == "Gemm" and len(node.input) == 3}
    for one in graph.initializer:
        if one.name in biases:
            one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).reshape(-1), one.name))
    del graph.value_info[:]  # the shapes that are known of them


def _finished(model: Any, original: Any) -> bytes:
    """Return the bytes of a program with the metadata of the original one, and without what only the quantiser needs."""
    onnx = required("onnx", "onnx")
    del model.graph.value_info[:]
    remove_unused(model.graph)
    shorten(model.graph)
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    model.producer_name = original.producer_name
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def shorten(graph: Any) -> None:
    """Rename nodes and arrays inside a graph by numbers: the quantiser names them after what they were made of, which takes space."""
    if has_subgraphs(graph):  # which may use these names
        return
    kept = {one.name for one in (*graph.input, *graph.output)}
    free = (name for number in itertools.count() if (name := f"t{number}") not in kept)
    new = {"": "", **{name: name for name in kept}}

    def short(name: str) -> str:
        if name not in new:
            new[name] = next(free)
        return new[name]

    for one in graph.initializer:
        one.name = short(one.name)
    for number, node in enumerate(graph.node):
        node.name, node.doc_string = f"n{number}", ""
        for names in (node.input, node.output):
            given = [short(name) for name in names]
            del names[:]
            names.extend(given)
