"""Write models and functions as programs that run without dilax: StableHLO, ONNX and TFLite.

ports.py       `Port`, checks of the arguments and of the program that is written
packages.py    the packages that a format needs
streams.py     `stream_step`: one step of a network that is fed in chunks
stablehlo.py   for JAX on CPU, CUDA and TPU
onnx.py        for onnxruntime and many others; onnx_operations.py has the nodes of our operations, onnx_rewrites.py those that are fused
tflite.py      for LiteRT, on phones and other small devices
quantised.py   the programs in fewer bits; onnx_quantised.py and tflite_quantised.py do it
"""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from dilax import arguments
from dilax.errors import UserError, shown
from dilax.export import onnx, stablehlo, tflite
from dilax.export.ports import Port, checked_program
from dilax.export.quantised import QUANTISED, kernel_dtypes, quantise
from dilax.export.streams import StreamStep, stream_step

# Each format, and the suffix of its files.
FORMATS = {"stablehlo": ".stablehlo", "onnx": ".onnx", "tflite": ".tflite"}
_MODULES: dict[str, ModuleType] = {"stablehlo": stablehlo, "onnx": onnx, "tflite": tflite}

__all__ = [
    "FORMATS",
    "QUANTISED",
    "Port",
    "StreamStep",
    "export",
    "kernel_dtypes",
    "load_exported",
    "quantise",
    "read_metadata",
    "stream_step",
]


def export(
    function: Callable[..., Any],
    inputs: Sequence[Port],
    *,
    format: str,
    outputs: Sequence[str] = ("output",),
    metadata: Mapping[str, str] = {},
    examples: Sequence[Sequence[Any]] = (),
) -> bytes:
    """Return a function as a program of another runtime.

    What the function closes over, such as the variables of a model, is stored in the program. It is traced inside
    `use_lowering("lax")`, so that the convolutions are those of the runtime.

    - "stablehlo" runs in JAX on CPU, CUDA and TPU: `jax.export.deserialize(data).call(*arrays)`.
    - "onnx" has a node for each convolution, pooling and resize. It is run in onnxruntime and compared with the function, at several sizes
      if some vary: those of space may vary only where the results agree.
    - "tflite" has fixed sizes. It is run in LiteRT and compared with the function. Convolutions are operations of TFLite; pooling and
      resizing consist of slices and products.

    Args:
        function: Function of arrays, in the order of `inputs`, to an array or a tuple of arrays, such as
            `lambda x: model.apply(variables, x, train=False)`.
        inputs: The inputs. A size that is a str may be different in each run.
        format: A key of `FORMATS`.
        outputs: Names of the results.
        metadata: Texts to store in the program, for `read_metadata`.
        examples: Inputs to compare the results of the program on, a tuple of arrays each; () draws random ones. Give some if the function
            is meaningful for certain inputs only.

    Returns:
        The content of a file, whose suffix is `FORMATS[format]`.

    Raises:
        UserError: if an argument is invalid, a package that the format needs is missing, or the format cannot express the function.

    Example:
        >>> import jax.numpy as jnp, dilax
        >>> blur = lambda x: dilax.dilated_conv(x, jnp.full((3, 1, 1), 1 / 3), dilation=2)
        >>> data = export(blur, [Port("x", ("batch", 8, 1), "float32")], format="stablehlo")
        >>> (y,) = load_exported(data, format="stablehlo")(np.ones((2, 8, 1), np.float32))
        >>> y.shape
        (2, 8, 1)
    """
    arguments.word("export", "format", format, FORMATS)
    return _MODULES[format].write(checked_program(function, inputs, outputs, metadata, examples))


def load_exported(data: bytes, *, format: str) -> Callable[..., tuple[np.ndarray, ...]]:
    """Load a program that `export` returned, to run it in the runtime of its format.

    Args:
        data: The content of the file.
        format: A key of `FORMATS`. The runtime is JAX for "stablehlo", onnxruntime for "onnx", and LiteRT for "tflite", each on the CPU
            except JAX.

    Returns:
        Function of arrays, in the order of the inputs, to a tuple of arrays.

    Raises:
        UserError: if the data is not a program of that format, or a package that the format needs is missing.

    Example:
        >>> data = export(lambda x: x + 1, [Port("x", (3,), "float32")], format="stablehlo")
        >>> load_exported(data, format="stablehlo")(np.zeros(3, np.float32))[0].tolist()
        [1.0, 1.0, 1.0]
    """
    return _MODULES[_checked("load_exported", data, format)].load(bytes(data))


def read_metadata(data: bytes, *, format: str) -> dict[str, str]:
    """Return the metadata of a program that `export` returned.

    Args:
        data: The content of the file.
        format: A key of `FORMATS`.

    Raises:
        UserError: if the data is not a program of that format, or a package that the format needs is missing.

    Example:
        >>> data = export(lambda x: x + 1, [Port("x", (3,), "float32")], format="stablehlo", metadata={"author": "me"})
        >>> read_metadata(data, format="stablehlo")
        {'author': 'me'}
    """
    return _MODULES[_checked("read_metadata", data, format)].metadata(bytes(data))


def _checked(caller: str, data: Any, format: Any) -> str:
    arguments.word(caller, "format", format, FORMATS)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UserError(f"{caller}: data={shown(data)} is not bytes; give the content of a file, as by pathlib.Path(...).read_bytes().")
    return format
