"""Nodes of ONNX as runtimes know them best: their optimisers make one node of a convolution and what follows it only if they recognise it.

jax2onnx translates each operation of JAX by itself: `relu` becomes `Max`, and batch normalisation a subtraction, a product and a sum.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dilax.export.packages import required

Constants = Mapping[str, np.ndarray]


def rewrite(model: Any) -> None:
    """Rewrite the nodes of a model in place; the results stay the same."""
    numpy_helper = required("onnx.numpy_helper", "onnx")
    graph = model.graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        for added in _REWRITES.get(node.op_type, _keep)(node, constants):
            graph.initializer.append(numpy_helper.from_array(*added))
    remove_unused(graph)


def remove_unused(graph: Any) -> None:
    """Remove the constants of a graph that nothing uses."""
    if has_subgraphs(graph):  # which may use them
        return
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    for one in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(one)


def has_subgraphs(graph: Any) -> bool:
    """Whether a node of a graph, such as a loop, has a graph of its own."""
    return any(attribute.HasField("g") for node in graph.node for attribute in node.attribute)


Added = list[tuple[np.ndarray, str]]  # constants and their names


def _keep(node: Any, constants: Constants) -> Added:
    return []


def _max(node: Any, constants: Constants) -> Added:
    """Max(x, 0) is Relu(x)."""
    if len(node.input) == 2:
        for x, other in (node.input, reversed(node.input)):
            if _is_scalar(constants.get(other), np.float32) and constants[other].item() == 0.0:
                _become(node, "Relu", x)
                break
    return []


def _min(node: Any, constants: Constants) -> Added:
    """Min(x, a) is Clip(x) from above."""
    if len(node.input) == 2:
        for x, other in (node.input, reversed(node.input)):
            if _is_scalar(constants.get(other), np.float32):
                name = f"{node.output[0]}_most"
                _become(node, "Clip", x, "", name)
                return [(constants[other], name)]
    return []


def _subtract(node: Any, constants: Constants) -> Added:
    """The difference x - a is the sum of x and -a, which is added to the bias of a convolution."""
    array = constants.get(node.input[1])
    if array is None or array.dtype != np.float32:
        return []
    name = f"{node.output[0]}_negative"
    _become(node, "Add", node.input[0], name)
    return [(-array, name)]


def _gemm(node: Any, constants: Constants) -> Added:
    """Gemm with a bias of 0 is MatMul, to which optimisers add the bias that follows."""
    options = {one.name: one.i for one in node.attribute}
    bias = constants.get(node.input[2]) if len(node.input) == 3 else None
    if bias is not None and not bias.any() and not options.get("transA") and not options.get("transB") and _alpha(node) == 1.0:
        _become(node, "MatMul", *node.input[:2])
    return []


def _einsum(node: Any, constants: Constants) -> Added:
    """Einsum of a linear layer, as of sequences, is MatMul, which quantisers know."""
    (equation,) = (one.s.decode().replace(" ", "") for one in node.attribute if one.name == "equation")
    operands, _, result = equation.partition("->")
    x, _, kernel = operands.partition(",")
    if len(kernel) == 2 and x and kernel[0] == x[-1] and kernel[1] not in x and result == x[:-1] + kernel[1]:
        _become(node, "MatMul", *node.input)
    return []


def _alpha(node: Any) -> float:
    return next((one.f for one in node.attribute if one.name == "alpha"), 1.0)


def _is_scalar(array: np.ndarray | None, dtype: Any) -> bool:
    return array is not None and array.ndim == 0 and array.dtype == dtype


def _become(node: Any, kind: str, *inputs: str) -> None:
    """Change the kind of a node and its operands."""
    given = list(inputs)
    node.op_type = kind
    del node.attribute[:]
    del node.input[:]
    node.input.extend(given)


_REWRITES: dict[str, Callable[[Any, Constants], Added]] = {"Max": _max, "Min": _min, "Sub": _subtract, "Gemm": _gemm, "Einsum": _einsum}
