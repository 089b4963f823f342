"""`use_lowering`: what lowering="auto" means inside the scope, in every function, module and model, and in their gradients."""

import re
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, random_input
from jax import export
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from selection import with_slow

import dilax

X, K = random_input((2, 9, 8, 4)), random_input((3, 3, 4, 6), 1)
DEPTHWISE = random_input((3, 3, 1, 4), 2)

FUNCTIONS: dict[str, Any] = {
    "dense": lambda x, kernel, depthwise, **options: dilax.dilated_conv(x, kernel, dilation=2, **options),
    "depthwise": lambda x, kernel, depthwise, **options: dilax.depthwise_conv(x, depthwise, dilation=2, **options),
    "separable": lambda x, kernel, depthwise, **options: dilax.separable_conv(x, depthwise, kernel[:1, :1], dilation=2, **options),
    "transposed": lambda x, kernel, depthwise, **options: dilax.dilated_conv_transpose(x, kernel.swapaxes(2, 3), stride=2, **options),
}
MODULES: dict[str, Any] = {
    "DilatedConv": lambda **options: dilax.DilatedConv(6, (3, 3), dilation=2, **options),
    "DepthwiseConv": lambda **options: dilax.DepthwiseConv((3, 3), multiplier=2, **options),
    "SeparableConv": lambda **options: dilax.SeparableConv(6, (3, 3), **options),
    "DilatedConvTranspose": lambda **options: dilax.DilatedConvTranspose(6, (3, 3), stride=2, **options),
    "MultiDilationConv": lambda **options: dilax.MultiDilationConv(6, (3, 3), dilations=(1, 2), **options),
    "SmoothedConv": lambda **options: dilax.SmoothedConv(6, (3, 3), dilation=2, smoothing="separable_shared", **options),
    "DCLSConv": lambda **options: dilax.DCLSConv(6, (5, 5), kernel_count=4, **options),
}
IMAGES = random_input((1, 32, 32, 3))
CODES = jnp.asarray(np.random.default_rng(0).integers(0, 8, (1, 16)), jnp.int32)
MODELS: dict[str, Any] = {
    "separable_cnn": (dict(stem_features=4, features=(4, 6), blocks=(1, 1)), IMAGES),
    "mobilenet_v2": (dict(blocks=(1,) * 7), IMAGES),
    "deeplabv3plus_resnet18": (dict(num_classes=3), IMAGES),
    "wavenet": (dict(dilations=(1, 2), features=4, skip_features=4, vocabulary=8), CODES),
    "conv_tasnet": (dict(features=6, blocks=2, repeats=1), random_input((1, 64, 1))),
}


def convolutions(jaxpr: Any) -> list[str]:
    """The primitives of all convolutions in a jaxpr, including those of inner functions."""
    return re.findall(r"\b(dilated_conv\w*|conv_general_dilated)\[", str(jaxpr))


def program(fn, *args) -> str:
    """Stablehlo of a fresh trace of fn."""
    return jax.jit(lambda *args: fn(*args)).lower(*args).as_text()


def with_gradients(fn):
    """A function from the arguments to the output and its gradient with respect to each of them."""
    return lambda *args: jax.value_and_grad(lambda *args: (fn(*args) ** 2).sum(), argnums=tuple(range(len(args))))(*args)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_program_of_a_function_is_that_of_lax(name):
    run = with_gradients(FUNCTIONS[name])
    expected = program(with_gradients(lambda *args: FUNCTIONS[name](*args, lowering="lax")), X, K, DEPTHWISE)
    assert program(run, X, K, DEPTHWISE) != expected
    with dilax.use_lowering("lax"):
        assert program(run, X, K, DEPTHWISE) == expected
        assert set(convolutions(jax.make_jaxpr(run)(X, K, DEPTHWISE))) == {"conv_general_dilated"}
    assert program(run, X, K, DEPTHWISE) != expected


@pytest.mark.parametrize("name", MODULES)
def test_the_program_of_a_module_is_that_of_lax(name):
    def run(module, variables, x):
        return with_gradients(module.apply)(variables, x)

    auto, lax = MODULES[name](), MODULES[name](lowering="lax")
    variables = auto.init(KEY, X)
    expected = program(lambda variables, x: run(lax, variables, x), variables, X)
    with dilax.use_lowering("lax"):
        assert program(lambda variables, x: run(auto, variables, x), variables, X) == expected


@pytest.mark.parametrize("name", with_slow(MODELS, repeats=("mobilenet_v2",)))
def test_a_model_is_made_of_plain_convolutions(name):
    fields, x = MODELS[name]
    model = dilax.models.create(name, **fields)
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def loss(params):
        outputs: Any = model.apply({**variables, "params": params}, x, train=False)
        return jnp.square(outputs).sum()

    ours = convolutions(jax.make_jaxpr(jax.grad(loss))(variables["params"]))
    assert any(actual.startswith("dilated_conv") for actual in ours)
    with dilax.use_lowering("lax"):
        lax = convolutions(jax.make_jaxpr(jax.grad(loss))(variables["params"]))
    assert len(lax) == len(ours) and set(lax) == {"conv_general_dilated"}


def test_pooling_and_resizing_are_made_of_plain_operations():
    def apply(x):
        return dilax.resize(dilax.max_pool(dilax.dilated_conv(x, jnp.ones((3, 3, 2, 2))), 3, stride=2, padding="SAME"), 7)

    x = jax.random.normal(KEY, (2, 8, 8, 2))
    # For devices that are not there, which only plain operations can be lowered for.
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(AbstractMesh((4,), ("data",)), P()))
    with dilax.use_lowering("lax"):
        jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: apply(x).sum()))(x))
        exported = export.export(jax.jit(lambda x: apply(x)), platforms=("tpu",))(shape)
        np.testing.assert_allclose(apply(x), jax.jit(lambda x: apply(x))(x), rtol=1e-5)
    assert "dilax_" not in jaxpr and "dilated_conv" not in jaxpr.replace("conv_general_dilated", "")
    assert exported.nr_devices == 4


def test_a_gradient_inside_jit_is_that_of_the_scope():
    def run(x, kernel):
        with dilax.use_lowering("products"):
            return jax.grad(lambda x, kernel: (dilax.dilated_conv(x, kernel) ** 2).sum(), argnums=(0, 1))(x, kernel)

    text = str(jax.make_jaxpr(jax.jit(run))(X, K))
    assert text.count("lowering=products") == 3 and "lowering=auto" not in text
    expected = jax.grad(lambda x, kernel: (dilax.dilated_conv(x, kernel, lowering="lax") ** 2).sum(), argnums=(0, 1))(X, K)
    for actual, wanted in zip(jax.jit(run)(X, K), expected):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_an_unsupported_convolution_falls_back_to_auto():
    with dilax.use_lowering("taps"):  # for grouped convolutions only
        assert "lowering=taps" in str(jax.make_jaxpr(dilax.depthwise_conv)(X, DEPTHWISE))
        assert "lowering=auto" in str(jax.make_jaxpr(dilax.dilated_conv)(X, K))
        np.testing.assert_allclose(dilax.dilated_conv(X, K), dilax.dilated_conv(X, K, lowering="lax"), rtol=1e-4, atol=1e-5)


def test_an_argument_takes_precedence_and_scopes_nest():
    def lowering_of(**options):
        return re.findall(r"lowering=(\w+)", str(jax.make_jaxpr(lambda x, k: dilax.dilated_conv(x, k, **options))(X, K)))

    with dilax.use_lowering("products"):
        assert lowering_of(lowering="patches") == ["patches"]
        with dilax.use_lowering("lax"):
            assert lowering_of() == []
        with dilax.use_lowering("auto"):
            assert lowering_of() == ["auto"]
        assert lowering_of() == ["products"]
    assert lowering_of() == ["auto"]


def test_a_scope_ends_on_an_error_and_is_local_to_its_thread():
    seen = []

    def fail():
        with dilax.use_lowering("lax"):
            other = threading.Thread(target=lambda: seen.append(convolutions(jax.make_jaxpr(dilax.dilated_conv)(X, K))))
            other.start()
            other.join()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [["dilated_conv"]] == [convolutions(jax.make_jaxpr(dilax.dilated_conv)(X, K))]


def test_the_scope_is_read_when_a_function_is_traced():
    run = jax.jit(lambda x, kernel: dilax.dilated_conv(x, kernel))
    assert convolutions(run.trace(X, K).jaxpr) == ["dilated_conv"]
    with dilax.use_lowering("lax"):
        assert convolutions(run.trace(X, K).jaxpr) == ["dilated_conv"]  # the lowering of its first trace
        assert convolutions(run.trace(X[:1], K).jaxpr) == ["conv_general_dilated"]
        assert convolutions(jax.jit(lambda x, kernel: dilax.dilated_conv(x, kernel)).trace(X, K).jaxpr) == ["conv_general_dilated"]


def test_an_unknown_lowering_is_refused():
    with pytest.raises(dilax.UserError) as error, dilax.use_lowering("product"):
        pass
    assert str(error.value) == (
        "use_lowering: name='product' is unknown; use one of ('auto', 'lax', 'taps', 'split', 'products', 'patches', 'planes', 'onednn'). "
        'Did you mean "products"?'
    )
