"""Programs of other runtimes in fewer bits: int8 by calibration, or kernels in half precision."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from dilax import arguments
from dilax.errors import UserError, shown
from dilax.export import onnx, onnx_quantised, tflite, tflite_quantised
from dilax.export.ports import Run

# Each format whose programs can be quantised, and to what.
QUANTISED = {"onnx": ("int8", "float16", "bfloat16"), "tflite": ("int8", "float16")}
Batches = Sequence[Sequence[np.ndarray]]
_WAYS: dict[tuple[str, str], Callable[[bytes, Batches], bytes]] = {
    ("onnx", "int8"): onnx_quantised.int8,
    ("onnx", "float16"): lambda data, _: onnx_quantised.half(data, "float16"),
    ("onnx", "bfloat16"): lambda data, _: onnx_quantised.half(data, "bfloat16"),
    ("tflite", "int8"): tflite_quantised.int8,
    ("tflite", "float16"): lambda data, _: tflite_quantised.half(data),
}
_LOADERS: dict[str, Callable[[bytes], Run]] = {"onnx": onnx.load, "tflite": tflite.load}
_KERNELS = {"onnx": onnx_quantised.kernels, "tflite": tflite_quantised.kernels}


def quantise(data: bytes, *, format: str, dtype: str, calibration: Iterable[Any] = ()) -> bytes:
    """Return a program that `export` returned with its kernels in fewer bits.

    - "int8": convolutions and matrix products are computed in 8 bits. Kernels, those of depthwise convolutions included, have a scale for
      each output channel, activations one for each array. The ranges of activations come from the calibration batches, in ONNX as the least
      and the greatest value and in TFLite as moving averages of these, so the batches must look like what the program will be given:
      examples of the training data, prepared in the same way.
    - "float16" and "bfloat16": kernels are stored in 16 bits, which halves the file. The results are computed in float32 as before, on a
      CPU at the same speed.

    Outputs differ from those of the program by more than rounding: measure what it is good for, such as its accuracy, before it is used.

    Args:
        data: The content of the file.
        format: "onnx" or "tflite".
        dtype: One of `QUANTISED[format]`.
        calibration: For "int8", batches: each an array, or a tuple of arrays in the order of the inputs. Some hundred examples are enough.

    Returns:
        The content of the smaller file, with the same inputs, outputs and metadata.

    Raises:
        UserError: if an argument is invalid, a package that the format needs is missing, or the format does not have the dtype.

    Example:
        >>> import jax.numpy as jnp, dilax
        >>> from dilax.export import Port, export, kernel_dtypes
        >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)
        >>> x = np.random.default_rng(1).normal(size=(2, 9, 9, 4)).astype(np.float32)
        >>> function = lambda x: dilax.dilated_conv(x, kernel, dilation=2)
        >>> data = export(function, [Port("x", (2, 9, 9, 4), "float32")], format="onnx")          # doctest: +SKIP
        >>> kernel_dtypes(quantise(data, format="onnx", dtype="int8", calibration=[x]), format="onnx")  # doctest: +SKIP
        {'int8': 1, 'float32': 0}

    Reference:
        Jacob et al. 2018, arXiv:1712.05877.
    """
    _check(data, "quantise", format)
    arguments.word("quantise", "dtype", dtype, QUANTISED["onnx"])
    if dtype not in QUANTISED[format]:
        raise UserError(f"quantise: format {format!r} has no {dtype!r}; use one of {QUANTISED[format]}, or format 'onnx'.")
    batches = _batches(calibration)
    run = _LOADERS[format](bytes(data))  # refuses what is not such a program
    if dtype == "int8":
        if not batches:
            raise UserError("quantise: dtype='int8' needs calibration, and it is empty; give batches of examples of the training data.")
        for batch in batches:
            run(*batch)  # refuses arrays that do not fit
    return _WAYS[format, dtype](bytes(data), batches)


def kernel_dtypes(data: bytes, *, format: str) -> dict[str, int]:
    """Return how many convolutions and matrix products the runtime of a program computes in int8, and how many in float32.

    They are counted in the program as the runtime has optimised it to run on this machine.

    Args:
        data: The content of the file.
        format: "onnx" or "tflite".

    Returns:
        {"int8": number, "float32": number}.

    Raises:
        UserError: if the data is not a program of that format, or a package that the format needs is missing.

    Example:
        >>> kernel_dtypes(data, format="onnx")                                                    # doctest: +SKIP
        {'int8': 5, 'float32': 0}
    """
    _check(data, "kernel_dtypes", format)
    return _KERNELS[format](bytes(data))


def _check(data: Any, caller: str, format: Any) -> None:
    if format == "stablehlo":
        raise UserError(f"{caller}: format 'stablehlo' is not changed once it is written; use 'onnx' or 'tflite'.")
    arguments.word(caller, "format", format, tuple(_LOADERS))
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UserError(f"{caller}: data={shown(data)} is not bytes; give what `export` returned, or the content of its file.")


def _batches(calibration: Any) -> list[list[np.ndarray]]:
    if isinstance(calibration, str) or not isinstance(calibration, Iterable) or hasattr(calibration, "shape"):
        raise UserError(f"quantise: calibration={shown(calibration)} is not a list of batches; give one, such as [images].")
    return [[np.asarray(array) for array in (batch if isinstance(batch, list | tuple) else [batch])] for batch in calibration]
