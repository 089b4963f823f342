"""Smaller programs in TFLite, by ai-edge-quantizer: int8, and kernels in float16."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dilax.errors import UserError, reason
from dilax.export import tflite
from dilax.export.packages import required
from dilax.export.ports import appended, read_appended

KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")
# They stay as they are: the inputs and outputs of the program, and shares, for which 256 levels are few.
_KEPT = ("INPUT", "OUTPUT", "SOFTMAX")


def int8(data: bytes, calibration: Sequence[Sequence[np.ndarray]]) -> bytes:
    """Return a program with int8 kernels, one scale per output channel, and int8 activations."""
    recipes = required("ai_edge_quantizer.recipe", "tflite")
    if not (names := read_appended(data).get("inputs")):
        raise UserError("quantise: the data is not a program that dilax.export wrote; give one of that format.")
    quantizer = _quantizer(data, recipes.static_wi8_ai8())
    quantizer.update_quantization_recipe(".*", "BATCH_MATMUL", op_config=_one_scale())
    for kind in _KEPT:
        quantizer.update_quantization_recipe(".*", kind, algorithm_key="no_quantize")
    batches = [dict(zip(names, batch, strict=True)) for batch in calibration]
    with _in_our_words():
        ranges = quantizer.calibrate({tflite.SIGNATURE: batches})
        return _with_names(quantizer.quantize(ranges).quantized_model, data)


def _one_scale() -> Any:
    """Return the config of products whose arrays have one scale each.

    A constant on the left, as of a resize, would get a scale for each index that the product sums over; LiteRT applies the first to all.
    """
    types = required("ai_edge_quantizer.qtyping", "tflite")
    activations, weights = (types.TensorQuantizationConfig(num_bits=8, symmetric=symmetric) for symmetric in (False, True))
    return types.OpQuantizationConfig(activations, weights, types.ComputePrecision.INTEGER)


def half(data: bytes) -> bytes:
    """Return a program that stores its kernels in float16; the runtime widens them."""
    quantizer = _quantizer(data)
    quantizer.add_weight_only_config(".*", "*", 16, algorithm_key="float_casting")
    with _in_our_words():
        return _with_names(quantizer.quantize().quantized_model, data)


def kernels(data: bytes) -> dict[str, int]:
    """Return how many convolutions and matrix products LiteRT computes in int8, and how many in float32."""
    litert = required("ai_edge_litert.interpreter", "tflite")
    tflite.load(data)  # refuses what is not such a program
    # The reference implementations, which are not hidden in a delegate.
    interpreter = litert.Interpreter(model_content=data, experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF)
    dtypes = {one["index"]: np.dtype(one["dtype"]).name for one in interpreter.get_tensor_details()}
    found = [dtypes[one["outputs"][0]] for one in interpreter._get_ops_details() if one["op_name"] in KERNELS]
    return {dtype: found.count(dtype) for dtype in ("int8", "float32")}


def _quantizer(data: bytes, recipe: Any = None) -> Any:
    return required("ai_edge_quantizer.quantizer", "tflite").Quantizer(bytearray(data), recipe)


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """Raise errors of the quantiser in one line, and keep what it prints from the output of the program around it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except Exception as error:  # it raises ValueError, RuntimeError and KeyError, among others
            raise UserError(f"quantise: ai-edge-quantizer cannot quantise this program ({reason(error)}); use format 'onnx'.") from error


def _with_names(model: Any, original: bytes) -> bytes:
    """Append the names and the metadata of the original program."""
    return appended(bytes(model), read_appended(original))
