"""Segmentation networks: parameter counts, a list of laws for all of them, properties of single networks, errors."""

import functools
import inspect
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segmentation_oracle as oracle
from contract import KEY, check_training, random_input
from test_backbones import COUNTS as BACKBONES
from test_context import filled, quick_compiler  # noqa: F401

import dilax
from dilax import models
from dilax.blocks import ConvNormAct
from dilax.models.backbone import stages
from dilax.models.segmenter import Segmenter

COUNTS = {  # (model, aux_head): parameters with 21 classes
    ("fcn_resnet50", False): 32_957_013,
    ("fcn_resnet101", False): 51_949_141,
    ("deeplabv3_resnet50", False): 39_638_869,
    ("deeplabv3_resnet50", True): 42_004_074,
    ("deeplabv3_resnet101", False): 58_630_997,
    ("deeplabv3plus_resnet50", False): 26_682_725,
    # The published count of the classifier with 1000 classes, with a different number of classes.
    ("drn_c_26_segmenter", False): 21_126_584 - 513 * 1000 + 513 * 21,
    ("drn_d_22_segmenter", False): 16_393_752 - 513 * 1000 + 513 * 21,
    # By hand: the backbone without its last convolution and head has 3,504,872 - 1,281,000 - 412,160 parameters.
    ("lraspp_mobilenet_v2", False): 1_811_712 + 320 * 128 + 256 + 320 * 128 + 129 * 21 + 33 * 21,
    # By hand: two convolutions a level of 32, 64, 128 and 256, four dilated of 256, the same levels up again, each with scale and bias.
    ("unet_dilated", False): 4_310_293,
}
DRNS = [name for name in BACKBONES if name.startswith("drn")]
NAMES = sorted({*(name for name, _ in COUNTS), *(f"deeplabv3plus_{name}" for name in BACKBONES), *(f"{name}_segmenter" for name in DRNS)})
# The others consist of the same parts, and take long to trace.
TRACED = [f"deeplabv3plus_{name}" for name in ("densenet121", "drn_d_22", "efficientnet_b0", "mobilenet_v2", "resnet18", "xception_slim")]


class Tiny(nn.Module):
    """A backbone with one convolution per stage, which compiles quickly."""

    multi_grid: tuple[int, ...] = (1,)
    norm: str = "batch"
    dtype: Any = None

    @nn.compact
    def features(self, x: jax.Array, *, train: bool, output_stride: int | None = None) -> tuple[jax.Array, ...]:
        maps = []
        for width, stage in zip((4, 5, 6, 8), stages((4, 2, 2, 2), 1, output_stride or 32)):
            # The convolution with the stride keeps the dilation of the stage before, as in a real backbone.
            dilation = stage.before * self.multi_grid[-1]
            x = ConvNormAct(width, (3, 3), stage.stride, "TORCH", dilation, norm=self.norm, dtype=self.dtype)(x, train=train)
            maps.append(x)
        return tuple(maps)


HEAD = dict(head_features=8, dropout=0.0)
SLIM: dict[str, Segmenter] = {
    "segmenter": Segmenter(Tiny, 7, aux_head=True, dropout=0.0),
    "fcn": models.FCN(Tiny, 7, dropout=0.0),
    "lraspp": models.LRASPP(Tiny, 7, **HEAD),  # pyright: ignore
    "deeplabv3": models.DeepLabV3(Tiny, 7, dilations=(4,), multi_grid=(1, 2), **HEAD),  # pyright: ignore
    "deeplabv3plus": models.DeepLabV3Plus(Tiny, 7, dilations=(4,), low_features=5, **HEAD),  # pyright: ignore
    "unet": models.UNet(functools.partial(models.UNetEncoder, stage_features=(4, 6)), 7, aux_head=True, multi_grid=(1, 2), dropout=0.0),
}
STRIDES = {name: (2, 1) if name == "unet" else (32, 16) for name in SLIM}
POOLED = ("lraspp", "deeplabv3", "deeplabv3plus")
X = random_input((3, 37, 42, 2))


@functools.cache
def variables_of(name: str) -> Any:
    return filled(SLIM[name], X)


def test_every_segmentation_model_is_tested():
    classes = {name: getattr(maker, "func", maker) for name, maker in models.MODELS.items()}
    assert sorted(name for name, maker in classes.items() if inspect.isclass(maker) and issubclass(maker, Segmenter)) == NAMES


@pytest.mark.parametrize(("name", "aux_head"), sorted({*((name, False) for name in TRACED), *COUNTS}))
def test_every_name_gives_logits_at_the_size_of_the_input(name, aux_head):
    model, x = models.create(name, aux_head=aux_head), jnp.zeros((2, 65, 72, 3))
    logits, variables = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))
    assert (logits.shape, logits.dtype) == ((2, 65, 72, 21), jnp.float32)
    if (name, aux_head) in COUNTS:
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[name, aux_head]


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_parameters_are_the_same_at_every_output_stride(stride):
    model, x = models.create("deeplabv3plus_resnet18", num_classes=5), jnp.zeros((1, 65, 72, 3))
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    chex.assert_trees_all_equal_shapes(shapes, jax.eval_shape(lambda: model.init(KEY, x, train=False, output_stride=stride)))


@pytest.mark.parametrize("name", SLIM)
def test_evaluation(name):
    model, variables = SLIM[name], variables_of(name)
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    logits: Any = apply(X)
    assert logits.shape == (3, 37, 42, 7)
    assert logits.dtype == jnp.float32
    # Examples are independent of each other.
    np.testing.assert_array_equal(apply(X.at[0].multiply(2))[1:], logits[1:])
    half: Any = jax.jit(lambda x: model.clone(dtype=jnp.bfloat16).apply(variables, x, train=False))(X.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, logits, atol=0.1 * float(jnp.abs(logits).max()) + 0.02)


@pytest.mark.parametrize("name", SLIM)
def test_features_are_the_maps_of_the_backbone(name):
    model, natural = SLIM[name], {"unet": (1, 2)}.get(name, (4, 8, 16, 32))
    for given in (None, *STRIDES[name]):
        maps: Any = jax.eval_shape(
            lambda v: model.apply(v, X, train=False, output_stride=given, method="features"),  # noqa: B023
            variables_of(name),
        )
        strides = [min(stride, given or model.output_stride or 2) for stride in natural]
        assert [m.shape[:3] for m in maps] == [(3, -(-37 // stride), -(-42 // stride)) for stride in strides]


@pytest.mark.parametrize("name", [name for name in SLIM if name != "unet"])
def test_logits_are_those_of_the_oracle(name):
    model, variables, x = SLIM[name], variables_of(name), X[:1, :24, :34]
    layers = oracle.Layers(jax.tree.map(np.asarray, variables))
    for stride in STRIDES[name]:
        given: dict[str, Any] = dict(train=False, output_stride=stride)
        logits: Any = jax.jit(lambda x: model.apply(variables, x, **given))(x)  # noqa: B023
        maps: Any = jax.jit(lambda x: model.apply(variables, x, method="features", **given))(x)  # noqa: B023
        maps = [np.asarray(actual, np.float64) for actual in maps]
        expected = oracle.resized(getattr(oracle, name)(layers, maps, stride), x.shape[1:-1])
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


class Both:
    """A model whose two outputs in training are stacked, for `check_training`."""

    def __init__(self, model: Any):
        self.model = model

    def apply(self, *args: Any, **given: Any) -> Any:
        results, updates = self.model.apply(*args, **given)
        if self.model.aux_head:
            logits, aux_logits = results
            assert logits.shape == aux_logits.shape
            assert aux_logits.dtype == jnp.float32
            results = jnp.stack(results)
        return results, updates


@pytest.mark.parametrize("name", [name for name in SLIM if SLIM[name].aux_head])
def test_auxiliary_logits_are_those_of_the_oracle(name):
    model, variables, x = SLIM[name].clone(norm="frozen"), variables_of(name), X[:1, :24, :34]
    logits, aux_logits = jax.jit(lambda x: model.apply(variables, x, train=True))(x)
    maps: Any = jax.jit(lambda x: model.apply(variables, x, train=False, method="features"))(x)
    expected = oracle.resized(
        oracle.auxiliary(oracle.Layers(jax.tree.map(np.asarray, variables)), [np.asarray(actual, np.float64) for actual in maps]), (24, 34)
    )
    np.testing.assert_allclose(aux_logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.abs(logits - aux_logits).max() > 1e-3


# The head of FCN is the auxiliary head of the others.
@pytest.mark.parametrize("name", [name for name in SLIM if name != "fcn"])
def test_training_reaches_every_parameter(name):
    check_training(Both(SLIM[name]), variables_of(name), X)  # pyright: ignore


@pytest.mark.parametrize("name", SLIM)
def test_output_stride_of_a_call(name):
    model, variables, (coarse, fine) = SLIM[name], variables_of(name), STRIDES[name]

    def program(model: Any, **given: Any) -> str:
        return str(jax.make_jaxpr(lambda v: model.apply(v, X, train=False, **given))(variables))

    assert program(model.clone(output_stride=coarse)) == program(model, output_stride=coarse)
    assert program(model, output_stride=fine) != program(model, output_stride=coarse)


@pytest.mark.parametrize("name", SLIM)
def test_a_given_image_mean_equals_the_computed_one(name):
    model, variables = SLIM[name], variables_of(name)
    computed: Any = jax.jit(lambda x: model.apply(variables, x, train=False))(X)
    maps: Any = jax.jit(lambda x: model.apply(variables, x, train=False, method="features"))(X)
    mean = maps[-1].mean((1, 2))
    given: Any = jax.jit(lambda x, mean: model.apply(variables, x, train=False, image_mean=mean))
    np.testing.assert_allclose(given(X, mean), computed, rtol=0, atol=1e-5 * float(jnp.abs(computed).max()))
    # A network without a mean over space does not depend on it.
    assert (np.abs(given(X, mean + 1) - computed).max() > 1e-4) == (name in POOLED)


def test_dropout_acts_only_in_training():
    model, variables = SLIM["segmenter"].clone(dropout=0.5, norm="frozen"), variables_of("segmenter")
    train: Any = jax.jit(lambda x, key: model.apply(variables, x, train=True, rngs={"dropout": key}))
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(train(X, KEY), train(X, jax.random.key(1))))
    # With frozen statistics, training equals evaluation except for dropout.
    evaluated: Any = jax.jit(lambda x: model.apply(variables, x, train=False))(X)
    trained: Any = jax.jit(lambda x: model.clone(dropout=0.0).apply(variables, x, train=True))(X)
    np.testing.assert_allclose(trained[0], evaluated, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "layer", "none"])
def test_norm_is_that_of_all_parts(norm):
    model = SLIM["deeplabv3plus"].clone(norm=norm)
    shapes: Any = jax.eval_shape(lambda: model.init(KEY, X, train=False))
    actual = {key.key for path, _ in jax.tree_util.tree_leaves_with_path(shapes) for key in path}
    assert "batch_stats" not in shapes
    assert {key for key in actual if key in ("BatchNorm_0", "GroupNorm_0", "LayerNorm_0")} == {
        "group": {"GroupNorm_0"},
        "layer": {"LayerNorm_0"},
        "none": set(),
    }[norm]


def dilations_in(model: Any, **given: Any) -> set[tuple[int, ...]]:
    """Dilations of all convolutions larger than 1x1 in the program of a model."""
    variables = jax.eval_shape(lambda: model.init(KEY, X, train=False))
    jaxpr = jax.make_jaxpr(lambda v: model.apply(v, X, train=False, **given))(variables).jaxpr
    actual = set()

    def walk(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            plan = eqn.params.get("plan")
            if plan is not None and max(plan.kernel_size) > 1:
                actual.add(plan.dilation)
            elif eqn.primitive.name == "conv_general_dilated" and max(eqn.invars[1].aval.shape[:2]) > 1:
                actual.add(tuple(eqn.params["rhs_dilation"]))
            for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    walk(getattr(inner, "jaxpr", inner))

    walk(jaxpr)
    return actual


@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3plus"])
def test_dilation_can_be_switched_off(name):
    plain = SLIM[name].clone(dilations=(1,), output_stride=32, multi_grid=(1,))
    assert dilations_in(plain) == {(1, 1)}
    dense = plain.clone(dilations=(6, 12))
    assert {(3, 3), (6, 6)} <= dilations_in(dense)
    assert {(12, 12), (24, 24)} <= dilations_in(dense, output_stride=8)


def test_dilation_of_the_unet_can_be_switched_off():
    assert dilations_in(SLIM["unet"].clone(multi_grid=(1, 1))) == {(1, 1)}
    assert dilations_in(SLIM["unet"]) == {(1, 1), (2, 2)}


UNET = SLIM["unet"].clone(backbone=functools.partial(models.UNetEncoder, stage_features=(3, 4, 5)), aux_head=False)


def test_unet_encoder_is_the_same_at_every_output_stride():
    """Law 6: the maps at the natural output stride are subsamplings of those at smaller ones."""
    x = random_input((2, 12, 13, 2))
    variables = filled(UNET, x)
    run = jax.jit(lambda x: {s: UNET.apply(variables, x, train=False, output_stride=s, method="features") for s in (4, 2, 1)})
    maps: Any = run(x)
    for stride, actual in maps.items():
        for level, (coarse, fine) in enumerate(zip(maps[4], actual)):
            step = 2**level // min(2**level, stride)
            np.testing.assert_allclose(fine[:, ::step, ::step], coarse, atol=1e-5)


@pytest.mark.parametrize("stride", [4, 1])
def test_unet_is_that_of_the_oracle(stride):
    x = random_input((2, 12, 16, 2))
    variables = filled(UNET, x)
    logits: Any = jax.jit(lambda x: UNET.apply(variables, x, train=False, output_stride=stride))(x)
    expected = oracle.unet(oracle.Layers(jax.tree.map(np.asarray, variables)), np.asarray(x, np.float64), stride)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("space", [(13,), (6, 7, 8), (1, 9)])
def test_unet_of_any_rank_and_size(space):
    model, x = models.create("unet_dilated", num_classes=7), random_input((2, *space, 3))
    logits, _ = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))
    assert logits.shape == (2, *space, 7)


def test_unet_keeps_pixels_aligned_at_odd_sizes():
    """A part of an image that starts at a multiple of the output stride gives that part of the result, whatever the sizes."""
    model, variables, x = SLIM["unet"], variables_of("unet"), random_input((1, 57, 59, 2))
    run = jax.jit(lambda x: model.apply(variables, x, train=False))
    whole, part = run(x), run(x[:, 4:, 6:])
    np.testing.assert_allclose(part[:, 24:, 24:], whole[:, 28:, 30:], atol=1e-5)


ONE = random_input((1, 33, 35, 2))


def run(model: Any, x: jax.Array = X, train: bool = False, **given: Any) -> Any:
    variables = {"params": {}} if x.ndim != 4 else None

    def call() -> Any:
        shapes = variables or jax.eval_shape(lambda: model.init(KEY, X, train=False))
        mutable = ["batch_stats"] if train else False
        return jax.eval_shape(lambda v: model.apply(v, x, train=train, mutable=mutable, **given), shapes)

    return call


CASES = {
    "batch statistics of one image": (
        run(SLIM["deeplabv3"], ONE, train=True),
        "Norm: an input of shape (1, 1, 1, 8) has a single value per channel, for which batch statistics are undefined; "
        "use a larger batch, or norm='group' or 'frozen'.",
    ),
    "no image": (
        run(models.create("fcn_resnet50"), X[0]),
        "ResNet: x of shape (37, 42, 2) must be (batch, height, width, channels); add the missing axes.",
    ),
    "output stride 4": (
        run(models.create("fcn_resnet50"), output_stride=4),
        "ResNet: output_stride=4 is not supported; use one of (8, 16, 32).",
    ),
    "output stride 12": (
        run(models.create("deeplabv3plus_resnet50"), output_stride=12),
        "ResNet: output_stride=12 is not supported; use one of (8, 16, 32).",
    ),
    "image mean of another width": (
        run(SLIM["deeplabv3"], image_mean=jnp.ones((3, 9))),
        "ASPP: image_mean of shape (3, 9) does not fit a map of shape (3, 5, 6, 8); give (batch, channels).",
    ),
    "image mean of another batch": (
        run(SLIM["lraspp"], image_mean=jnp.ones((2, 8))),
        "LRASPP: image_mean of shape (2, 8) does not fit a map of shape (3, 3, 3, 8); give (batch, channels).",
    ),
    "uneven dilations": (
        run(SLIM["deeplabv3"].clone(dilations=(2, 3)), output_stride=32),
        "ASPP: dilations=(2, 3), given for output stride 16, are not integers at output_stride=32; use multiples of 2.",
    ),
    "unet at a stride it has not": (
        run(SLIM["unet"], output_stride=8),
        "UNet: output_stride=8 is not supported with 2 levels; use one of (1, 2).",
    ),
    "unet of one level": (
        run(models.UNet(functools.partial(models.UNetEncoder, stage_features=(8,)))),
        "UNet: stage_features=(8,) must have at least two entries, such as (32, 64).",
    ),
    "unet without space": (
        run(SLIM["unet"], X[0, 0]),
        "UNet: x of shape (42, 2) must be (batch, *space, channels) with 1, 2 or 3 spatial axes.",
    ),
    "a backbone that is made already": (
        run(models.FCN(models.ResNet())),  # pyright: ignore[reportArgumentType]
        "FCN: backbone=ResNet(...) is not a class; give a class such as dilax.models.ResNet, or "
        "functools.partial(dilax.models.ResNet, blocks=(2, 2, 2, 2), bottleneck=False).",
    ),
    "unet grid": (
        run(SLIM["unet"].clone(multi_grid=())),
        "UNet: multi_grid=() must be a tuple of ints of at least 1, such as (1, 2, 4).",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_errors(name):
    call, text = CASES[name]
    with pytest.raises(dilax.UserError) as caught:
        call()
    assert str(caught.value) == text
