"""Programs in fewer bits: kernels in int8 with a scale for each channel, the same inputs and outputs, and results that are near."""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from contract import KEY, random_input
from tiny_runs import refused

import dilax
from dilax.blocks import SeparableResidual
from dilax.export import QUANTISED, Port, export, kernel_dtypes, load_exported, onnx_quantised, quantise, read_metadata

NEEDS = {
    "onnx": ("jax2onnx", "onnx", "onnxruntime"),
    "tflite": ("litert_converter", "ai_edge_litert", "ai_edge_quantizer"),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:::jax2onnx|onnx|onnxruntime|ai_edge_litert|ai_edge_quantizer|litert_converter"),
    pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`"),
]
BATCH = 4


def needs(fmt: str) -> None:
    for package in NEEDS[fmt]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e .[{fmt}]")


def uneven(*shape: int) -> np.ndarray:
    """A kernel whose output channels differ in size a thousandfold, so that one scale for all would leave nothing of the smallest."""
    return np.asarray(
        random_input(shape, sum(shape)) * np.float32(10.0) ** -(np.arange(shape[-1], dtype=np.float32) % 4).reshape(1, 1, 1, -1)
    )


def made(module: Any, x: np.ndarray) -> Any:
    """A function of a module with random statistics."""
    shapes = jax.eval_shape(lambda: module.init(KEY, x, train=False))
    rng = np.random.default_rng(5)
    variables = jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)
    variables["batch_stats"] = jax.tree.map(lambda leaf: np.abs(leaf) + np.float32(0.5), variables["batch_stats"])
    return lambda x: module.apply(variables, x, train=False)


# Name -> function, the same in NumPy if it is one convolution, shape of an example, number of kernels.
KERNELS: dict[str, Any] = {"dense": uneven(3, 3, 3, 8), "depthwise": uneven(3, 3, 1, 8), "groups": uneven(3, 3, 2, 8)}
LINEAR = np.asarray(random_input((8, 9), 14))
CASES: dict[str, tuple[Any, Any, tuple[int, ...], int]] = {
    "dense": (
        lambda x: dilax.dilated_conv(x, KERNELS["dense"], dilation=2),
        functools.partial(reference.conv, kernel=KERNELS["dense"], dilation=2),
        (9, 8, 3),
        1,
    ),
    "depthwise": (
        lambda x: dilax.depthwise_conv(x, KERNELS["depthwise"], dilation=3),
        functools.partial(reference.conv, kernel=KERNELS["depthwise"], dilation=3, groups=4),
        (9, 8, 4),
        1,
    ),
    "groups": (
        lambda x: dilax.dilated_conv(x, KERNELS["groups"], dilation=2, groups=2),
        functools.partial(reference.conv, kernel=KERNELS["groups"], dilation=2, groups=2),
        (9, 8, 4),
        1,
    ),
    "linear, sequence": (lambda x: jax.nn.relu(x @ LINEAR) @ LINEAR.T, None, (9, 8), 2),
    "separable, residual": (made(SeparableResidual(9), np.zeros((1, 9, 8, 9), np.float32)), None, (9, 8, 9), 4),
    "cnn": (
        made(
            dilax.models.create("dilated_cnn", num_classes=5, features=(6, 8), dilations=(1, 2), pools=(2, 1)),
            np.zeros((1, 12, 12, 3), np.float32),
        ),
        None,
        (12, 12, 3),
        3,
    ),
}


def images(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.0, 2.0, (BATCH, *shape)).astype(np.float32)


@functools.cache
def programs(name: str, fmt: str, dtype: str) -> tuple[bytes, bytes]:
    """A program in float32, and in fewer bits."""
    function, _, shape, _ = CASES[name]
    batch = "batch" if fmt == "onnx" else BATCH
    data = export(function, [Port("x", (batch, *shape), "float32")], format=fmt, outputs=("y",), metadata={"author": "me"})
    return data, quantise(data, format=fmt, dtype=dtype, calibration=[images(shape, seed) for seed in range(8)])


PAIRS = [(fmt, dtype) for fmt, dtypes in QUANTISED.items() for dtype in dtypes]
# The largest difference, as a fraction of the range, that each dtype may make in a program of several layers.
NEAR = {"int8": 0.05, "float16": 2e-3, "bfloat16": 2e-2}


@pytest.mark.parametrize(("fmt", "dtype"), PAIRS)
@pytest.mark.parametrize("name", CASES)
def test_a_smaller_program_gives_nearly_the_same(name, fmt, dtype):
    needs(fmt)
    function, _, shape, kernels = CASES[name]
    data, small = programs(name, fmt, dtype)
    x = images(shape, 100)
    (actual,), wanted = load_exported(small, format=fmt)(x), np.asarray(function(x))
    assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
    assert 0 < np.abs(actual - wanted).max() <= NEAR[dtype] * np.ptp(wanted)
    other = "float32" if dtype == "int8" else "int8"
    assert kernel_dtypes(small, format=fmt) == {other: 0, "int8" if dtype == "int8" else "float32": kernels}
    assert kernel_dtypes(data, format=fmt) == {"int8": 0, "float32": kernels}
    assert read_metadata(small, format=fmt) == {"author": "me"}
    if fmt == "onnx":
        assert load_exported(small, format=fmt)(x[:1])[0].shape == (1, *wanted.shape[1:])  # the batch may still vary


@pytest.mark.parametrize("fmt", QUANTISED)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1]])
def test_kernels_have_a_scale_for_each_channel(name, fmt):
    """The stored kernels, times their scales, are near the kernels channel by channel, however small a channel is."""
    needs(fmt)
    _, slow, shape, _ = CASES[name]
    _, small = programs(name, fmt, "int8")
    x = images(shape, 3)
    stored = stored_kernel(small, fmt)
    kernel = np.moveaxis(KERNELS[name], -1, 0).reshape(KERNELS[name].shape[-1], -1)
    assert stored.shape[0] == kernel.shape[0]
    largest = np.abs(kernel).max(1)
    np.testing.assert_array_less(np.abs(np.abs(stored).max(1) - largest), 1e-2 * largest)
    # And the results are those of a convolution with such kernels.
    (actual,), wanted = load_exported(small, format=fmt)(x), slow(x)
    if fmt == "tflite":  # its ranges are moving averages of those of the batches, without the largest values
        wanted = wanted.clip(actual.min(), actual.max())
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=0.03 * np.ptp(wanted))


@pytest.mark.parametrize("fmt", QUANTISED)
def test_products_that_are_no_layers_keep_their_meaning(fmt):
    """In TFLite, a resize between corners is two products with a constant on the left."""
    needs(fmt)
    function = lambda x: dilax.resize(dilax.dilated_conv(x, KERNELS["dense"]), (25, 21), align_corners=True)  # noqa: E731
    x = images((13, 11, 3), 100)
    data = export(function, [Port("x", x.shape, "float32")], format=fmt, outputs=("y",))
    small = quantise(data, format=fmt, dtype="int8", calibration=[x])
    (actual,), wanted = load_exported(small, format=fmt)(x), np.asarray(function(x))
    assert 0 < np.abs(actual - wanted).max() <= 0.03 * np.ptp(wanted)
    assert kernel_dtypes(small, format=fmt) == {"int8": 3 if fmt == "tflite" else 1, "float32": 0}


def stored_kernel(data: bytes, fmt: str) -> np.ndarray:
    """The one kernel of a program, (output channels, all else), as its integers and scales say."""
    if fmt == "onnx":
        onnx = __import__("onnx")
        model = onnx.load_model_from_string(data)
        arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
        (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
        (widen,) = [node for node in model.graph.node if node.output[0] == conv.input[1]]
        integers, scales = (arrays[name] for name in widen.input[:2])
        assert widen.op_type == "DequantizeLinear" and integers.dtype == np.int8 and np.abs(integers).max() <= 64
        return (integers * scales.reshape(-1, 1, 1, 1)).reshape(len(integers), -1)
    litert = importlib.import_module("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(model_content=data, experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    (node,) = [one for one in interpreter._get_ops_details() if one["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    tensor = next(one for one in interpreter.get_tensor_details() if one["index"] == node["inputs"][1])
    integers, found = interpreter.get_tensor(tensor["index"]), tensor["quantization_parameters"]
    assert integers.dtype == np.int8
    axis = found["quantized_dimension"]
    return (np.moveaxis(integers, axis, 0).reshape(integers.shape[axis], -1)) * found["scales"][:, None]


@pytest.mark.parametrize("dtype", QUANTISED["onnx"])
def test_large_programs_are_much_smaller(dtype):
    needs("onnx")
    kernel = random_input((3, 3, 64, 64), 1)
    data = export(lambda x: dilax.dilated_conv(x, kernel, dilation=2), [Port("x", ("batch", 9, 9, 64), "float32")], format="onnx")
    small = quantise(data, format="onnx", dtype=dtype, calibration=[np.asarray(random_input((2, 9, 9, 64)))])
    assert len(small) < (0.3 if dtype == "int8" else 0.52) * len(data)


def test_the_layers_of_a_network_are_one_node_each():
    """Normalisation and activations are part of the convolutions, in float32 as in int8."""
    needs("onnx")
    onnx = importlib.import_module("onnx")
    data, small = programs("cnn", "onnx", "int8")
    kinds = [
        [node.op_type for node in onnx.load_model_from_string(onnx_quantised.optimised(one, "EXTENDED")).graph.node]
        for one in (data, small)
    ]
    assert [kinds[0].count(kind) for kind in ("FusedConv", "Conv", "Relu", "Mul", "Sub", "Max")] == [2, 0, 0, 0, 0, 0]
    assert [kinds[1].count(kind) for kind in ("QLinearConv", "QGemm", "Relu", "Mul", "Sub", "Max")] == [2, 1, 0, 0, 0, 0]


def test_numbers_that_float16_does_not_hold_are_refused():
    needs("onnx")
    kernel = jnp.full((3, 8, 8), 1e5)
    data = export(lambda x: dilax.dilated_conv(x, kernel), [Port("x", (1, 9, 8), "float32")], format="onnx")
    assert refused(lambda: quantise(data, format="onnx", dtype="float16")) == (
        "quantise: 'float16' does not hold 1e+05, which is in the program; use 'bfloat16'."
    )
    quantise(data, format="onnx", dtype="bfloat16")


def test_a_program_without_kernels_is_refused():
    needs("onnx")
    data = export(lambda x: x + 1, [Port("x", (1, 9, 8), "float32")], format="onnx")
    x = np.ones((1, 9, 8), np.float32)
    assert refused(lambda: quantise(data, format="onnx", dtype="int8", calibration=[x])) == (
        "quantise: the program has no convolution and no matrix product; there is nothing to compute in int8."
    )
    assert refused(lambda: quantise(data, format="onnx", dtype="float16")) == (
        "quantise: the program has no array of 64 numbers in float32 or more; there is nothing to make smaller."
    )


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "a format": (
        dict(format="stablehlo"),
        "quantise: format 'stablehlo' is not changed once it is written; use 'onnx' or 'tflite'.",
    ),
    "an unknown format": (dict(format="onx"), "quantise: format='onx' is unknown; use one of ('onnx', 'tflite'). Did you mean \"onnx\"?"),
    "a dtype": (
        dict(dtype="int4"),
        "quantise: dtype='int4' is unknown; use one of ('int8', 'float16', 'bfloat16'). Did you mean \"int8\"?",
    ),
    "a pair": (
        dict(format="tflite", dtype="bfloat16"),
        "quantise: format 'tflite' has no 'bfloat16'; use one of ('int8', 'float16'), or format 'onnx'.",
    ),
    "no bytes": (
        dict(data="model.onnx"),
        "quantise: data='model.onnx' is not bytes; give what `export` returned, or the content of its file.",
    ),
    "one array": (
        dict(calibration=np.ones((2, 9, 8, 3))),
        "quantise: calibration=<array of shape (2, 9, 8, 3), dtype float64> is not a list of batches; give one, such as [images].",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_wrong_arguments_are_refused(case):
    changes, message = ARGUMENTS[case]
    arguments: dict[str, Any] = {"data": b"", "format": "onnx", "dtype": "int8", "calibration": [], **changes}
    assert refused(lambda: quantise(arguments.pop("data"), **arguments)) == message


def test_calibration_must_fit():
    needs("onnx")
    data, _ = programs("dense", "onnx", "int8")
    assert refused(lambda: quantise(data, format="onnx", dtype="int8")) == (
        "quantise: dtype='int8' needs calibration, and it is empty; give batches of examples of the training data."
    )
    wrong = np.ones((2, 9, 8, 4), np.float32)
    assert refused(lambda: quantise(data, format="onnx", dtype="int8", calibration=[wrong])).startswith(
        "load_exported: the onnx program does not take <array of shape (2, 9, 8, 4), dtype float32>"
    )
    good = images((9, 8, 3), 0)
    assert refused(lambda: quantise(data, format="onnx", dtype="int8", calibration=[good, wrong])).startswith(
        "load_exported: the onnx program does not take <array of shape (2, 9, 8, 4), dtype float32>"
    )


@pytest.mark.parametrize("fmt", QUANTISED)
def test_damaged_programs_are_refused(fmt):
    needs(fmt)
    for call in (lambda: quantise(b"no program", format=fmt, dtype="float16"), lambda: kernel_dtypes(b"no program", format=fmt)):
        assert "is not a" in refused(call)
