"""Exported programs: in each format, every kind of model and operation gives the results of JAX, with a node for each convolution."""

import dataclasses
import functools
import importlib.util
import pathlib
import re
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, random_input
from jax.interpreters import partial_eval
from selection import with_slow
from test_backbones import DENSENET, DRN, EFFICIENTNET, MOBILENET, MOBILENET_V3, XCEPTION

import dilax
from dilax import models
from dilax.errors import UserError
from dilax.export import FORMATS, Port, export, load_exported, read_metadata

NEEDS = {
    "stablehlo": ("flatbuffers",),
    "onnx": ("jax2onnx", "onnx", "onnxruntime"),
    "tflite": ("litert_converter", "ai_edge_litert"),
}
RNG = np.random.default_rng(11)
# Warnings of these packages about themselves.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:jax2onnx|onnx|onnxruntime|ai_edge_litert|litert_converter")]


def needs(fmt: str) -> None:
    for package in NEEDS[fmt]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e .[{fmt}]")


RESNET = dict(stage_features=(4, 4, 6, 8), blocks=(1, 1, 1, 1))
IMAGE, LARGER, SEQUENCE, CODES = ("batch", 21, 24, 3), ("batch", 33, 30, 3), ("batch", 37, 3), ("batch", 21)
TCN = dict(kernel_size=3, features=(4, 4))
SMALL: dict[str, dict[str, Any]] = {  # by class
    "ByteNet": dict(vocabulary=6, features=8, dilations=(1, 2)),
    "ConvTasNet": dict(features=6, kernel_size=6, stride=3, bottleneck_features=4, hidden_features=5, skip_features=4, blocks=2, repeats=1),
    "DilatedCNN": dict(features=(4, 6, 8), dilations=(1, (2, 1), 2), pools=(1, 2, 1), hidden=(5,)),
    "SeparableCNN": dict(stem_features=4, features=(6, 8), blocks=(2, 1), squeeze_excite=True),
    "DilatedFCN": dict(features=(4, 4, 5), strides=(2, 1, 1), dilations=(1, 2, 4)),
    "DRN": DRN,
    "DenseNet": DENSENET,
    "EfficientNet": EFFICIENTNET,
    "HighRes3DNet": dict(features=(4, 4, 6, 6, 5), blocks=(1, 1, 1)),
    "IRCNN": dict(features=4, dilations=(1, 2, 1)),
    "MeshNet": dict(features=4, dilations=(1, 2)),
    "GatedDilatedCNN": dict(features=4, dilations=(1, 2), vocabulary=6, embedding_features=4),
    "IDCNN": dict(features=4, dilations=(1, 2), iterations=2, vocabulary=6, embedding_features=4),
    "MSTCN": dict(stages=2, features=4, dilations=(1, 2)),
    "MobileNetV2": MOBILENET,
    "MobileNetV3": MOBILENET_V3,
    "ResNet": RESNET,
    "SeparableTCN": dict(features=4, dilations=(1, 2)),
    "TCN": TCN,
    "UNet": dict(backbone=functools.partial(models.UNetEncoder, stage_features=(4, 6)), multi_grid=(1, 2)),
    "WaveNet": dict(dilations=(1, 2), features=4, skip_features=4, vocabulary=6),
    "Xception": XCEPTION,
    "DeepLabV3": dict(dilations=(4,), head_features=6),
    "DeepLabV3Plus": dict(dilations=(4,), head_features=6, low_features=3),
    "LRASPP": dict(head_features=6),
    "SeparableDetector": dict(stem_features=4, stage_features=(4, 6), blocks=(1, 1), features=6, dilations=(1, 2)),
    "FCOS": dict(backbone=functools.partial(models.ResNet, **RESNET), features=4),
    "RetinaNet": dict(backbone=functools.partial(models.ResNet, **RESNET), features=4),
    "YOLOF": dict(backbone=functools.partial(models.ResNet, **RESNET), features=8, dilations=(1, 2), anchor_sizes=(32,)),
    "TridentDetector": dict(backbone=functools.partial(models.ResNet, **RESNET), features=4, trident_blocks=1),
    "FCN": {},
    "Segmenter": {},
}
ARCHITECTURES = (  # for the default run: small ones of each kind, which have the layers of the others
    "conv_tasnet",
    "dilated_cnn",
    "gated_dilated_cnn",
    "resnet18",
    "separable_cnn",
    "tcn",
    "unet_dilated",
    "wavenet",
)
# What a format cannot express, and the message that says so.
REFUSED: dict[tuple[str, str], str] = {
    # litert-converter makes a result of another size.
    ("tflite", "transposed"): (
        "export: format 'tflite' does not keep the meaning of the function: output 'y' is <array of shape (2, 12, 14, 2), dtype float32> and "
        "should be <array of shape (2, 10, 12, 2), dtype float32>; use format 'stablehlo'."
    ),
    (
        "tflite",
        "transposed, torch",
    ): "export: format 'tflite' cannot express the operation 'convolution'; use format 'onnx' or 'stablehlo'.",
}


def class_of(name: str) -> Any:
    made = models.MODELS[name]
    return made.func if isinstance(made, functools.partial) else getattr(made, "__self__", made)


def small(name: str) -> Any:
    """A model of few features."""
    made = models.MODELS[name]
    fields = dict(SMALL[class_of(name).__name__])
    if isinstance(made, functools.partial) and "backbone" in made.keywords:
        inner = made.keywords["backbone"]
        kind = inner.func if isinstance(inner, functools.partial) else inner
        fields["backbone"] = functools.partial(inner, **SMALL[kind.__name__])
    elif issubclass(class_of(name), models.FCN | models.DeepLabV3) and "backbone" not in fields:
        fields["backbone"] = functools.partial(models.ResNet, **RESNET)
    if name in ("dilated_cnn_mnist", "dilated_cnn_rgb", "separable_cnn_single_layer"):
        fields = {}
    outputs = models.output_fields(name)
    return models.create(name, **({field: 5 for field in outputs if field not in fields} | fields))


def port_of(name: str) -> Port:
    if models.symbol_fields(name) and name != "tcn":
        return Port("x", CODES, "int32")
    if name == "conv_tasnet":
        return Port("x", ("batch", 37, 1), "float32")
    image = LARGER if "densenet" in name else IMAGE
    return Port("x", SEQUENCE if name in ("ms_tcn", "tcn", "separable_tcn") else image, "float32")


def random_inputs(ports: tuple[Port, ...], sizes: dict[str, int]) -> list[np.ndarray]:
    shapes = [tuple(sizes[n] if isinstance(n, str) else n for n in port.shape) for port in ports]
    draws = [RNG.normal(size=shape) if port.dtype == "float32" else RNG.integers(0, 5, shape) for port, shape in zip(ports, shapes)]
    return [np.asarray(draw, port.dtype) for draw, port in zip(draws, ports)]


@functools.cache
def model_function(name: str) -> Any:
    """A function of the model with random weights and statistics, which 0 and 1 would not tell apart."""
    model = small(name)
    (x,) = random_inputs((port_of(name),), {"batch": 1})
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    rng = np.random.default_rng(3)
    scale = lambda leaf: 1.0 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))  # noqa: E731
    variables = jax.tree.map(lambda leaf: np.asarray(rng.normal(0.0, scale(leaf), leaf.shape), leaf.dtype), shapes)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(lambda leaf: np.abs(leaf) + np.float32(0.5), variables["batch_stats"])
    return lambda x: model.apply(variables, x, train=False)


def weights(*shape: int) -> jax.Array:
    return random_input(shape, sum(shape)) / 3


def conv(*shape: int, **options: Any) -> Any:
    kernel = weights(*shape)
    return lambda x: dilax.dilated_conv(x, kernel, **options)


def transposed(*shape: int, **options: Any) -> Any:
    kernel = weights(*shape)
    return lambda x: dilax.dilated_conv_transpose(x, kernel, **options)


def depthwise(*shape: int, **options: Any) -> Any:
    kernel = weights(*shape)
    return lambda x: dilax.depthwise_conv(x, kernel, **options)


FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "1-D": (conv(3, 2, 4, dilation=3, padding="CAUSAL"), ("batch", 17, 2)),
    "2-D": (conv(3, 2, 2, 4, dilation=(2, 3), stride=(1, 2)), ("batch", 9, 11, 2)),
    "3-D": (conv(3, 1, 2, 2, 3, dilation=2), ("batch", 5, 6, 7, 2)),
    "strided": (conv(3, 3, 2, 4, stride=2, padding=((0, 1), (2, 0))), ("batch", 9, 12, 2)),
    "groups": (conv(3, 3, 2, 6, dilation=2, groups=2), ("batch", 9, 8, 4)),
    "depthwise": (depthwise(3, 3, 1, 8, dilation=2), ("batch", 9, 8, 4)),
    "reflected": (conv(3, 3, 2, 4, padding_mode="reflect"), ("batch", 9, 8, 2)),
    "transposed": (transposed(3, 3, 2, 4, stride=2), ("batch", 5, 6, 4)),
    "transposed, torch": (transposed(3, 2, 4, stride=2, padding="TORCH", dilation=2), ("batch", 5, 4)),
    "transposed, groups": (transposed(4, 4, 1, 4, stride=2, groups=2), ("batch", 5, 6, 4)),
    "max_pool": (lambda x: dilax.max_pool(x, 3, stride=2, padding="SAME"), ("batch", 9, 8, 2)),
    "max_pool, dilated": (lambda x: dilax.max_pool(x, (2, 5), stride=1, dilation=2, padding="SAME"), ("batch", 9, 12, 2)),
    "avg_pool": (lambda x: dilax.avg_pool(x, 3, stride=2, padding="SAME"), ("batch", 9, 8, 2)),
    "avg_pool, samples alone": (lambda x: dilax.avg_pool(x, 3, stride=1, padding="SAME", count_padding=False), ("batch", 9, 2)),
    "resize up": (lambda x: dilax.resize(x, (20, 17)), ("batch", 9, 8, 2)),
    "resize down": (lambda x: dilax.resize(x, (3, 4)), ("batch", 9, 8, 2)),
    "resize, corners": (lambda x: dilax.resize(x, 21, align_corners=True), ("batch", 9, 2)),
    "resize, nearest": (lambda x: dilax.resize(x, (14, 10), method="nearest"), ("batch", 10, 14, 2)),
}
# How many nodes of a kind a function has in ONNX; the others have none of these.
NODES = {
    **dict.fromkeys(("1-D", "2-D", "3-D", "strided", "groups", "depthwise", "reflected"), "Conv"),
    **dict.fromkeys(("transposed", "transposed, torch", "transposed, groups"), "ConvTranspose"),
    **dict.fromkeys(("max_pool", "max_pool, dilated"), "MaxPool"),
    **dict.fromkeys(("avg_pool", "avg_pool, samples alone"), "AveragePool"),
    **dict.fromkeys(("resize up", "resize down", "resize, corners", "resize, nearest"), "Resize"),
}

# The operation of TFLite that a function becomes, beside padding, and rows for sequences.
TFLITE = {
    "max_pool": "MAX_POOL_2D",
    "avg_pool": "AVERAGE_POOL_2D",
    "avg_pool, samples alone": "AVERAGE_POOL_2D",
    "resize up": "RESIZE_BILINEAR",
    "resize down": "RESIZE_BILINEAR",
}


def fixed(port: Port, fmt: str) -> Port:
    """A port whose sizes a format can take: those of TFLite do not vary."""
    return Port(port.name, tuple(2 if n == "batch" and fmt == "tflite" else n for n in port.shape), port.dtype)


@functools.cache
def reference(function: Any, port: Port) -> tuple[np.ndarray, np.ndarray]:
    """A random input of two examples, and the results of JAX, with the lowerings that it takes by itself."""
    (x,) = random_inputs((port,), {"batch": 2})
    return x, np.asarray(jax.jit(lambda x: function(x))(x))


def check(function: Any, port: Port, fmt: str, case: str) -> bytes:
    """Check that an exported program gives the results of the function, and return it."""
    needs(fmt)
    port = fixed(port, fmt)
    if message := REFUSED.get((fmt, case)):
        with pytest.raises(UserError) as error:
            export(function, [port], format=fmt, outputs=("y",))
        assert str(error.value).startswith(message)
        return check(function, fixed(port, "tflite"), fmt, "with fixed sizes") if fmt == "onnx" else b""
    data = export(function, [port], format=fmt, outputs=("y",), metadata={"author": "me", "note": "ä\n2"})
    assert read_metadata(data, format=fmt) == {"author": "me", "note": "ä\n2"}
    run = load_exported(data, format=fmt)
    x, wanted = reference(function, port if "batch" in port.shape else Port("x", ("batch", *port.shape[1:]), port.dtype))
    (actual,) = run(x)
    assert actual.dtype == wanted.dtype and actual.shape == wanted.shape
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-4 * np.ptp(wanted))
    return data


def plain_convolutions(function: Any, port: Port) -> list[tuple[tuple[int, ...], int]]:
    """(dilation, groups) of each convolution that XLA is given."""
    (x,) = random_inputs((port,), {"batch": 1})
    with dilax.use_lowering("lax"):
        jaxpr = jax.make_jaxpr(lambda x: function(x))(x).jaxpr
    text = str(partial_eval.dce_jaxpr(jaxpr, [True])[0])  # the last layer of a WaveNet has a part that nothing uses
    found = re.findall(r"conv_general_dilated\[(.*?)\n\s*\]", text, re.DOTALL)
    assert len(found) == text.count("conv_general_dilated[")
    dilations = [re.search(r"rhs_dilation=\(([\d, ]+)\)", one) for one in found]
    groups = [re.search(r"feature_group_count=(\d+)", one) for one in found]
    return sorted((tuple(int(n) for n in d[1].split(",") if n.strip()), int(g[1])) for d, g in zip(dilations, groups) if d and g)


def onnx_nodes(data: bytes) -> list[Any]:
    return list(__import__("onnx").load_model_from_string(data).graph.node)


def check_onnx_convolutions(data: bytes, function: Any, port: Port) -> None:
    nodes = [{a.name: a for a in node.attribute} for node in onnx_nodes(data) if node.op_type == "Conv"]
    assert sorted((tuple(a["dilations"].ints), a["group"].i) for a in nodes) == plain_convolutions(function, port)


def tflite_operations(data: bytes) -> list[str]:
    interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(
        model_content=data, experimental_op_resolver_type=importlib.import_module("ai_edge_litert.interpreter").OpResolverType.BUILTIN_REF
    )
    return [one["op_name"] for one in interpreter._get_ops_details()]


def check_tflite_convolutions(data: bytes, function: Any, port: Port) -> None:
    names = tflite_operations(data)
    assert names.count("CONV_2D") + names.count("DEPTHWISE_CONV_2D") == len(plain_convolutions(function, port)), names


CHECKS = {"onnx": check_onnx_convolutions, "tflite": check_tflite_convolutions}
CASES = with_slow(models.names(), repeats=[name for name in models.names() if name not in ARCHITECTURES])


def test_the_table_has_every_class():
    assert {class_of(name).__name__ for name in models.names()} == set(SMALL)
    assert set(ARCHITECTURES) <= set(models.names())


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_a_model_gives_the_results_of_jax(fmt, name):
    data = check(model_function(name), port_of(name), fmt, name)
    if data and fmt in CHECKS:
        CHECKS[fmt](data, model_function(name), port_of(name))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_gives_the_results_of_jax(fmt, name):
    function, shape = FUNCTIONS[name]
    data = check(function, Port("x", shape, "float32"), fmt, name)
    if data and fmt == "onnx":
        kinds = [node.op_type for node in onnx_nodes(data)]
        assert [kind for kind in kinds if kind in NODES.values()] == [NODES[name]]
        assert "Slice" not in kinds or name == "reflected"
    if data and fmt == "tflite" and name in TFLITE:
        assert [one for one in tflite_operations(data) if one not in ("PAD", "PADV2", "RESHAPE")] == [TFLITE[name]]


def test_stablehlo_runs_in_a_process_with_jax_alone(tmp_path):
    needs("stablehlo")
    function = model_function("dilated_cnn")
    data = export(function, [Port("x", IMAGE, "float32")], format="stablehlo")
    # The check of the sizes is the only custom call.
    assert set(re.findall(r"custom_call @(\w+)", jax.export.deserialize(bytearray(data)).mlir_module())) == {"shape_assertion"}
    (x,) = random_inputs((Port("x", IMAGE, "float32"),), {"batch": 3})
    (tmp_path / "model").write_bytes(data)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys; sys.modules['dilax'] = sys.modules['flax'] = None; import numpy as np; from jax import export;"
        "program = export.deserialize(bytearray(open('model', 'rb').read())); assert set(program.platforms) == {'cpu', 'cuda', 'tpu'};"
        "np.save('y.npy', program.call(np.load('x.npy'))[0])"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), function(x), rtol=1e-4, atol=1e-5)


def test_stablehlo_takes_any_height_and_width():
    needs("stablehlo")
    function = model_function("unet_dilated")
    run = load_exported(export(function, [Port("x", ("batch", "height", "width", 3), "float32")], format="stablehlo"), format="stablehlo")
    for sizes in ({"batch": 1, "height": 32, "width": 20}, {"batch": 2, "height": 17, "width": 31}):
        (x,) = random_inputs((Port("x", ("batch", "height", "width", 3), "float32"),), sizes)
        np.testing.assert_allclose(run(x)[0], function(x), rtol=1e-3, atol=1e-4)


SPACE = Port("x", ("batch", "height", "width", 3), "float32")
KERNEL, WIDER = weights(3, 3, 3, 4), weights(3, 3, 4, 4)
# Functions of images of any size, and why ONNX cannot express those that it cannot.
ANY_SIZE: dict[str, tuple[Any, str]] = {
    "dilations": (lambda x: jax.nn.relu(dilax.dilated_conv(jax.nn.relu(conv(3, 3, 3, 4)(x)), WIDER, dilation=4)), ""),
    "stride": (lambda x: dilax.dilated_conv(x, KERNEL, stride=2, padding="TORCH"), ""),
    "pool and resize": (lambda x: dilax.resize(dilax.max_pool(x, 3, stride=1, padding=1), (2 * x.shape[1], 3 * x.shape[2])), ""),
    "mean": (lambda x: x - dilax.dilated_conv(x, KERNEL).mean((1, 2, 3), keepdims=True), ""),
    "padding": (
        lambda x: dilax.dilated_conv(x, KERNEL, stride=2),
        "export: in ONNX, the padding or size of a convolution cannot depend on sizes that vary; give ints for the spatial axes.",
    ),
    "size": (
        lambda x: dilax.resize(dilax.dilated_conv(x, KERNEL, stride=2, padding="TORCH"), x.shape[1:3]),
        "export: in ONNX, the padding or size of a resize cannot depend on sizes that vary; give ints for the spatial axes.",
    ),
}


@pytest.mark.parametrize("case", ANY_SIZE)
def test_onnx_takes_any_height_and_width_or_says_why_not(case):
    needs("onnx")
    function, message = ANY_SIZE[case]
    if message:
        with pytest.raises(UserError) as error:
            export(function, [SPACE], format="onnx")
        assert str(error.value) == message
        return
    run = load_exported(export(function, [SPACE], format="onnx"), format="onnx")
    for sizes in ({"batch": 1, "height": 11, "width": 20}, {"batch": 5, "height": 24, "width": 7}):
        (x,) = random_inputs((SPACE,), sizes)
        np.testing.assert_allclose(run(x)[0], function(x), rtol=1e-4, atol=1e-4)


def test_a_program_with_other_results_is_refused(monkeypatch):
    needs("onnx")
    x = Port("x", ("batch", 9, 8, 2), "float32")
    # As if the dilation were lost on the way, at the same size.
    monkeypatch.setattr("dilax.export.onnx_operations._attributes", lambda plan: dict(dilations=[1, 1]))
    monkeypatch.setattr("dilax.export.onnx_operations._pads", lambda *_: [1, 1, 1, 1])
    message = r"^export: format 'onnx' does not keep the meaning of the function: output 'output' differs by \d\.\de[+-]\d\d of its range"
    with pytest.raises(UserError, match=message + r" at sizes {'batch': 1}; give ints"):
        export(conv(3, 3, 2, 4, dilation=2), [x], format="onnx")


def test_sizes_of_tflite_are_fixed():
    needs("tflite")
    with pytest.raises(UserError) as error:
        export(lambda x: x, [SPACE], format="tflite")
    assert str(error.value) == "export: format 'tflite' needs fixed sizes, and ('batch', 'height', 'width') vary; give ints."


class Odd(nn.Module):
    """An operation that a format does not have."""

    fmt: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.fmt == "onnx":
            return jax.ffi.ffi_call("nobody", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)
        return FUNCTIONS["transposed, torch"][0](x)


class WithOdd(nn.Module):
    fmt: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Odd(self.fmt, name="inner")(nn.Dense(4)(x))


@pytest.mark.parametrize(("fmt", "operation"), [("onnx", "ffi_call"), ("tflite", "convolution")])
def test_the_operation_and_the_layer_that_cannot_be_expressed_are_named(fmt, operation):
    needs(fmt)
    model, x = WithOdd(fmt), jnp.ones((2, 5, 4))
    variables = {"params": {"Dense_0": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}}
    with pytest.raises(UserError) as error:
        export(lambda x: model.apply(variables, x), [Port("x", x.shape, "float32")], format=fmt)
    assert str(error.value).startswith(f"export: format '{fmt}' cannot express the operation '{operation}' of WithOdd/inner"), str(
        error.value
    )


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_result_may_be_an_input_or_given_twice(fmt):
    needs(fmt)
    data = export(lambda x, y: (x, 2 * y, x), [X, dataclasses.replace(X, name="y")], format=fmt, outputs=("a", "b", "c"))
    x, y = random_inputs((X, X), {})
    for found, wanted in zip(load_exported(data, format=fmt)(x, y), (x, 2 * y, x), strict=True):
        np.testing.assert_array_equal(found, wanted)


X = Port("x", (1, 4, 2), "float32")


# A loop without steps has a result of another size in ONNX, and is refused.
@pytest.mark.parametrize(("fmt", "length"), [(fmt, length) for fmt in FORMATS for length in (0, 1, 2, 4) if length or fmt != "onnx"])
def test_a_loop_of_known_length_gives_the_results_of_jax(fmt, length):
    def step(total: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        inner, _ = jax.lax.scan(lambda y, _: (0.5 * y + now, None), total, length=3)
        return inner, inner.argmax(1).astype(jnp.int32)

    def function(x: jax.Array) -> tuple[jax.Array, ...]:
        total, places = jax.jit(lambda x: jax.lax.scan(step, x[:, 0], x.swapaxes(0, 1)[:length]))(x)
        return total, places.sum(0)

    needs(fmt)
    (x,) = random_inputs((X,), {})
    found = load_exported(export(function, [X], format=fmt, outputs=("total", "places")), format=fmt)(x)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, function(jnp.asarray(x)))


def test_a_loop_of_unknown_length_or_very_many_steps_is_refused():
    needs("tflite")
    with pytest.raises(UserError) as error:
        export(lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x), [X], format="tflite")
    assert str(error.value).startswith("export: format 'tflite' cannot express the function (with a loop of unknown length, ")
    with pytest.raises(UserError) as error:
        export(lambda x: jax.lax.fori_loop(0, 99, lambda _, y: jax.lax.fori_loop(0, 99, lambda _, z: z + 1, y), x), [X], format="tflite")
    assert str(error.value) == (
        "export: format 'tflite' cannot express loops, and one of 9801 steps is too long to write out; use format 'onnx' or 'stablehlo'."
    )


@pytest.mark.parametrize("fmt", FORMATS)
def test_several_inputs_and_outputs_keep_their_order(fmt):
    needs(fmt)
    ports = [Port("zeta", (2, 9, 2), "float32"), Port("alpha", (2, 9, 2), "float32")]

    def function(zeta: jax.Array, alpha: jax.Array) -> tuple[jax.Array, ...]:
        y = dilax.dilated_conv(zeta, weights(3, 2, 2)) - 2 * alpha
        return y, y.sum((1, 2))

    data = export(function, ports, format=fmt, outputs=("z", "a"))
    zeta, alpha = random_inputs(tuple(ports), {})
    for actual, wanted in zip(load_exported(data, format=fmt)(zeta, alpha), function(jnp.asarray(zeta), jnp.asarray(alpha)), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_program_that_is_damaged_or_given_wrong_arrays_is_refused(fmt):
    needs(fmt)
    for data in (b"", b"no program", pathlib.Path(__file__).read_bytes()):
        with pytest.raises(UserError, match=r"^load_exported: the data is not a"):
            load_exported(data, format=fmt)
        with pytest.raises(UserError, match=r"^read_metadata: the data is not a"):
            read_metadata(data, format=fmt)
    run = load_exported(export(lambda x: x + 1, [Port("x", (2, 3), "float32")], format=fmt), format=fmt)
    with pytest.raises(UserError, match=r"^load_exported: the program takes 1 arrays, got 2; give one for each input\.$"):
        run(np.ones((2, 3)), 1)
    with pytest.raises(UserError, match=r"^load_exported: the .* program does not take <array of shape \(2, 4\)"):
        run(np.ones((2, 4), np.float32))


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "a module": (
        dict(function=3),
        "export: function=3 is not a function; give one of arrays, such as lambda x: model.apply(variables, x, train=False).",
    ),
    "a format": (dict(format="onx"), "export: format='onx' is unknown; use one of"),
    "no inputs": (
        dict(inputs=[]),
        "export: inputs=[] is not a list with an entry or more; give one, such as [Port('x', (1, 32, 32, 3), 'float32')].",
    ),
    "a shape": (
        dict(inputs=[(1, 2)]),
        "export: inputs has (1, 2), which is not a Port; give one, such as Port('x', (1, 32, 32, 3), 'float32').",
    ),
    "a size": (
        dict(inputs=[Port("x", (0, 2), "float32")]),
        "export: input 'x' has shape (0, 2); give a tuple of ints of at least 1, or names such as 'batch'.",
    ),
    "a name": (
        dict(outputs=("a b",)),
        "export: outputs has the name 'a b', which is not an identifier; use letters, digits and underscores.",
    ),
    "a name twice": (dict(outputs=("x",)), "export: 'x' names two inputs or outputs; give each a name of its own."),
    "no list of examples": (dict(examples=3), "export: examples=3 is not a list; give one of tuples with an array for each input."),
    "an example too short": (
        dict(examples=[()]),
        "export: examples has (), which is not a tuple with an array for each of 1 inputs.",
    ),
    "an example of another size": (
        dict(examples=[(np.zeros((1, 4, 3), np.float32),)]),
        "export: examples has <array of shape (1, 4, 3), dtype float32> for the input 'x', which is float32 (1, 4, 2).",
    ),
    "an example of another dtype": (
        dict(examples=[(np.zeros((1, 4, 2)),)]),
        "export: examples has <array of shape (1, 4, 2), dtype float64> for the input 'x', which is float32 (1, 4, 2).",
    ),
    "a dtype": (
        dict(inputs=[Port("x", (2,), "float")]),
        "export: input 'x' has dtype float64, which JAX computes in float32; give 'float32'.",
    ),
    "no dtype": (dict(inputs=[Port("x", (2,), "image")]), "export: input 'x' has dtype 'image'; give one such as 'float32'."),
    "metadata": (
        dict(metadata={"a": 1}),
        "export: metadata={'a': 1} is not a mapping from str to str; give one, such as {'author': 'me'}.",
    ),
    "outputs": (
        dict(outputs=("a", "b")),
        "export: the function returns 1 arrays, and outputs=('a', 'b') has 2 names; give one for each.",
    ),
    "a size that varies": (
        dict(function=lambda x: x[: int(x.shape[0])], inputs=[Port("x", ("n", 2), "float32")]),
        "export: the function cannot be traced for sizes ('n',) that vary (",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_mistake_is_refused(case):
    changes, message = ARGUMENTS[case]
    with pytest.raises(UserError) as error:
        export(**{**dict(function=lambda x: x, inputs=[X], format="stablehlo"), **changes})
    assert str(error.value) == message or (message[-1] in "(f" and str(error.value).startswith(message)), str(error.value)


def test_a_function_that_is_wrong_by_itself_raises_its_own_error():
    with pytest.raises(UserError, match=r"^dilated_conv: "):
        export(conv(3, 5, 4), [Port("x", ("batch", 9, 2), "float32")], format="stablehlo")


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_missing_package_is_named(fmt, monkeypatch):
    package = NEEDS[fmt][0]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        export(lambda x: x, [X], format=fmt)
    assert re.fullmatch(
        rf"export: format '{fmt}' needs {package}, which cannot be imported \(.*\); install the extra of that name: "
        rf'pip install -e "\.\[{fmt}\]"\.',
        str(error.value),
    )
