"""Backbones: counts of parameters, the same values at every output stride (law 6), receptive fields, frozen statistics, errors."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbone_oracle import (
    Units,
    densenet,
    drn_c,
    drn_d,
    efficientnet,
    mobilenet,
    mobilenet_v3,
    resnet18,
    resnet50,
    seresnet50,
    xception,
)
from contract import KEY, check_summary, check_training, random_input
from selection import with_slow

import dilax
from dilax import blocks, models
from dilax.errors import UserError
from dilax.models.xception import XceptionBlock

COUNTS = {  # with 1000 classes, as published with the weights; those of xception and xception_slim were counted by this code
    "densenet121": 7_978_856,
    "drn_c_26": 21_126_584,
    "drn_c_42": 31_234_744,
    "drn_d_22": 16_393_752,
    "drn_d_38": 26_501_912,
    "drn_d_54": 35_809_176,
    "drn_d_105": 54_801_304,
    "efficientnet_b0": 5_288_548,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "seresnet50": 28_088_024,
    "xception": 26_969_560,
    "xception_slim": 1_549_160,
}
RESNET = dict(stage_features=(4, 4, 6, 8), blocks=(1, 1, 2, 3))
DRN = dict(stage_features=(2, 3, 4, 4, 5, 6, 5, 4), blocks=(1, 1, 1, 1, 1, 2, 2, 1))
MOBILENET = dict(stage_features=(2, 3, 4, 4, 5, 6, 6), blocks=(1, 1, 2, 1, 1, 2, 1), stem_features=3, last_features=8, expansion=2)
MOBILENET_V3 = dict(
    kernel_sizes=(3, 3, 5, 5, 3, 5, 5),
    inner_features=(4, 6, 8, 9, 8, 9, 10),
    block_features=(4, 5, 6, 6, 6, 7, 7),
    strides=(1, 2, 2, 1, 2, 2, 1),
    squeeze_excite_blocks=(3, 4, 6, 7),
    relu_blocks=4,
    stem_features=4,
    last_features=8,
    head_features=9,
)
EFFICIENTNET = dict(stage_features=(3, 4, 5, 5, 6, 6, 7), blocks=(1, 1, 1, 2, 1, 2, 1), stem_features=4, last_features=8, expansion=2)
DENSENET = dict(blocks=(1, 2, 1, 2), growth_features=3, stem_features=4, expansion=2)
XCEPTION = dict(stem_features=(3, 4), entry_features=(4, 5, 6), middle_blocks=1, exit_features=(6, 5, 7, 4, 6, 8))
# Every kind of block with few channels; some stages have equal channels, where a shortcut inferred from shapes would be missing.
SLIM: dict[str, tuple[str, dict[str, Any], Any]] = {
    "resnet18": ("resnet18", RESNET, resnet18),
    "resnet50 with a grid": ("resnet50", dict(RESNET, stage_features=(2, 2, 3, 3), multi_grid=(1, 2, 4)), resnet50),
    "drn_c with a grid": ("drn_c_26", dict(DRN, multi_grid=(1, 3)), drn_c),
    "drn_d": ("drn_d_54", DRN, drn_d),
    "seresnet50": ("seresnet50", dict(stage_features=(4, 8, 8, 12), blocks=(1, 1, 2, 1)), seresnet50),
    "densenet with a grid": ("densenet121", dict(DENSENET, multi_grid=(1, 3)), densenet),
    "efficientnet with a grid": ("efficientnet_b0", dict(EFFICIENTNET, multi_grid=(1, 2)), efficientnet),
    "mobilenet_v3 with a grid": ("mobilenet_v3_large", dict(MOBILENET_V3, multi_grid=(1, 3)), mobilenet_v3),
    "mobilenet_v2 with a grid": ("mobilenet_v2", dict(MOBILENET, multi_grid=(2, 1, 3)), mobilenet),
    "xception with a grid": ("xception", dict(XCEPTION, multi_grid=(1, 2, 3)), xception),
}
FULL = {"resnet18 in full": ("resnet18", {}, None)}
STRIDES = {  # of the maps, for each output stride
    "resnet": {None: (4, 8, 16, 32), 32: (4, 8, 16, 32), 16: (4, 8, 16, 16), 8: (4, 8, 8, 8)},
    "drn": {None: (4, 8, 8, 8, 8, 8), 8: (4, 8, 8, 8, 8, 8), 16: (4, 8, 16, 16, 16, 16), 32: (4, 8, 16, 32, 32, 32)},
}
# Sizes of the maps of 75x66 pixels, where pooling drops rows and columns of odd numbers.
FLOORED = {
    "densenet with a grid": {
        32: [(19, 17), (9, 8), (4, 4), (2, 2)],
        16: [(19, 17), (9, 8), (4, 4), (4, 4)],
        8: [(19, 17), (9, 8), (8, 8), (8, 8)],
    }
}
# Number of a DRN's maps that are subsamplings at output strides 16 and 32: levels 3 to 7, and 3 to 6.
EXACT = {16: 5, 32: 4}


def family(name: str) -> str:
    return "drn" if name.startswith("drn") else "resnet"


def slim(name: str, **fields: Any) -> Any:
    model, own, _ = {**SLIM, **FULL}[name]
    return models.create(model, **{"num_classes": 5, **own, **fields})


def random_variables(model: Any, x: Any, seed: int = 0) -> Any:
    """Random parameters and running statistics, without compiling an initialisation."""
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros(x.shape), train=False))
    draw = np.random.default_rng(seed)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return draw.uniform(0.6, 1.5, shape.shape).astype(np.float32)
        scale = np.prod(shape.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.3
        return draw.normal(0, scale, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.cache
def maps_at(output_strides: tuple[int, ...], name: str) -> tuple[dict[int, list[np.ndarray]], Any, jax.Array]:
    """The maps at several output strides from a single compiled program, and the variables and images."""
    model, x = slim(name), random_input((2, 75, 66, 3))
    variables = random_variables(model, x)

    def run(variables: Any, x: jax.Array) -> Any:
        return {s: model.apply(variables, x, train=False, output_stride=s, method="features") for s in output_strides}

    maps = jax.jit(run)(variables, x)
    return {s: list(map(np.asarray, maps[s])) for s in output_strides}, variables, x


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = models.create(name)
    params = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[name]


@pytest.mark.parametrize("name", [*SLIM, *FULL])
def test_maps_are_subsamplings_of_those_at_finer_output_strides(name):
    """Law 6, for sizes that are not multiples of a stride."""
    strides, pairs, compared = STRIDES[family(name)], ((8, 32),) if name in FULL else ((8, 16), (8, 32), (16, 32)), 0
    maps, _, _ = maps_at((8, 32) if name in FULL else (8, 16, 32), name)
    for at, actual in maps.items():
        sizes = FLOORED.get(name, {}).get(at) or [(-(-75 // stride), -(-66 // stride)) for stride in strides[at]]
        assert [y.shape[1:3] for y in actual] == sizes
    for fine, coarse in pairs:
        exact = EXACT[coarse] if family(name) == "drn" else None
        for at_fine, at_coarse, small, large in zip(maps[fine], maps[coarse][:exact], strides[fine], strides[coarse]):
            step = large // small
            np.testing.assert_allclose(at_fine[:, ::step, ::step], at_coarse, rtol=0, atol=1e-5 * np.abs(at_coarse).max())
            assert at_coarse.std() > 0.02
            compared += step > 1
    assert compared >= (2 if name in FULL else 4)


@pytest.mark.parametrize("name", SLIM)
def test_maps_are_those_of_the_oracle(name):
    maps, variables, x = maps_at((8, 16, 32), name)
    wanted = SLIM[name][2](Units(variables), np.asarray(x, np.float64))
    for ours, theirs in zip(maps[8], wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", SLIM)
def test_natural_output_stride_in_half_precision(name):
    """The maps are in half precision and the logits are not; the features have all parameters except those of the head."""
    model, x = slim(name, dtype=jnp.bfloat16), jnp.zeros((1, 64, 96, 3), jnp.bfloat16)
    logits, variables = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))
    assert (logits.shape, logits.dtype) == ((1, 5), jnp.float32)
    maps, below = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False, method="features"))
    wanted = [(1, 64 // stride, 96 // stride) for stride in STRIDES[family(name)][None]]
    assert [y.shape[:3] for y in maps] == wanted
    assert {y.dtype for y in maps} == {jnp.dtype(jnp.bfloat16)}
    params = {key: value for key, value in variables["params"].items() if key not in ("head", "hidden", "last")}
    assert params == dict(below["params"])


FIELDS = {  # by hand: each 3x3 convolution adds 2 * dilation * the stride up to it
    "resnet18": ((32, 16, 8), 435),
    "resnet50": ((32, 16, 8), 427),
    "densenet121": ((32, 16, 8), 11 + 2 * 4 + 4 + 2 * 8 * 2 + 8 + 2 * 16 + 16 + 2 * 32 * 2),  # with fewer layers
    "efficientnet_b0": ((32, 16, 8), 851),
    "mobilenet_v2": ((32, 16, 8), 491),
    "mobilenet_v3_large": ((32, 16, 8), 595),
    "xception": ((32, 16, 8), 1147 - 7 * 3 * 2 * 16),  # with one of its middle blocks
    "drn_d_22": ((8,), 527),
    "drn_c_26": ((8,), 7 + 2 * 2 + 2 + 4 + (4 + 3 * 8) + (8 + 3 * 16) + 4 * 32 + 4 * 64 + 2 * 32 + 2 * 16),
}


def ungated(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Leave out squeeze-and-excitation, whose gates depend on the whole image; an interceptor for `flax.linen.intercept_methods`."""
    return args[0] if isinstance(context.module, blocks.SqueezeExcite) and context.method_name == "__call__" else call(*args, **kwargs)


@pytest.mark.parametrize("name", with_slow(FIELDS, repeats=("efficientnet_b0", "mobilenet_v2", "resnet50")))
def test_receptive_field_is_the_known_one_at_every_output_stride(name):
    output_strides, size = FIELDS[name]
    fields = {"xception": {"middle_blocks": 1}, "densenet121": {"blocks": (1, 2, 1, 2)}}
    model, shape = models.create(name, **fields.get(name, {})), (1, 513, 385, 3)
    variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros(shape), train=False))
    for output_stride in output_strides:

        def last(x: jax.Array, output_stride: int = output_stride) -> jax.Array:
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
            with nn.intercept_methods(ungated):
                maps: Any = model.apply(zeros, x, train=False, output_stride=output_stride, method="features")
            return maps[-1]

        fields = dilax.receptive_field(last, jax.ShapeDtypeStruct(shape, jnp.float32))
        assert [(field.size, field.stride) for field in fields] == [(size, output_stride)] * 2


TRAINED = {  # models for the contract, with empty stages, since a gradient takes seconds to compile
    "resnet50 with groups": slim("resnet50 with a grid", blocks=(0, 1, 0, 0), norm="group"),
    "drn_d": slim("drn_d", blocks=(1, 0, 0, 0, 0, 0, 0, 1)),
    "block with a gate": blocks.BasicBlock(4, project=True, excite=functools.partial(blocks.SqueezeExcite, activation="silu")),
    "densenet": slim("densenet with a grid", blocks=(0, 0, 0, 1), stem_features=16),
    "efficientnet": slim("efficientnet with a grid", blocks=(1, 1, 0, 0, 0, 0, 0), dropout=0.1),
    "mobilenet_v3": slim(
        "mobilenet_v3 with a grid",
        kernel_sizes=(3, 3, 5, 3),
        inner_features=(4, 6, 8, 10),
        block_features=(4, 6, 6, 5),
        strides=(2, 2, 2, 2),
        squeeze_excite_blocks=(1, 4),
        relu_blocks=2,
    ),
    "mobilenet_v2": slim("mobilenet_v2 with a grid", blocks=(0, 1, 0, 0, 0, 0, 0), dropout=0.1),
    "block of xception": XceptionBlock((4, 5, 6), 2, (1, 2, 3), "project"),
}


@pytest.mark.parametrize("name", with_slow(TRAINED, repeats=("mobilenet_v3", "mobilenet_v2", "efficientnet")))
def test_training_reaches_every_parameter(name):
    model, x = TRAINED[name], random_input((3, 43, 50, 3))
    variables = random_variables(model, x)
    check_training(model, variables, x)
    check_summary(model, variables, x)


def test_frozen_statistics():
    """In training it equals "batch" in evaluation with the same variables, and learns scale and bias."""
    x, batch, frozen = random_input((4, 5, 6, 7)) * 3 + 2, blocks.BasicBlock(7), blocks.BasicBlock(7, norm="frozen")
    variables = random_variables(batch, x)
    y, updates = frozen.apply(variables, x, train=True, mutable=["batch_stats"])
    in_evaluation: Any = batch.apply(variables, x, train=False)
    in_training, _ = batch.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, in_evaluation, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(y) - np.asarray(in_training)).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])

    def loss(params: Any) -> jax.Array:
        y: Any = frozen.apply({**variables, "params": params}, x, train=True)
        return (y**2).sum()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert [path for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if not np.abs(leaf).max() > 0] == []


def test_frozen_statistics_accept_a_single_value():
    norm, x = blocks.Norm("frozen"), jnp.full((1, 1, 1, 4), 3.0)
    y: Any = norm.apply(norm.init(KEY, x, train=True), x, train=True)
    np.testing.assert_allclose(y, x, rtol=1e-5)


def call(name: str, shape: tuple[Any, ...] = (1, 32, 32, 3), output_stride: Any = None, **fields: Any) -> Any:
    model = models.create(name, **fields)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return lambda: jax.eval_shape(lambda x: model.init(KEY, x, train=False, output_stride=output_stride), x)


ERRORS = {
    **{
        f"{name}, output stride {given!r}": (
            call(name, output_stride=given),
            f"{caller}: output_stride={given!r} is not supported; use one of (8, 16, 32).",
        )
        for name, caller, given in (
            ("resnet50", "ResNet", 4),
            ("drn_d_22", "DRN", 12),
            ("mobilenet_v2", "MobileNetV2", True),
            ("mobilenet_v3_large", "MobileNetV3", 64),
            ("efficientnet_b0", "EfficientNet", 4),
            ("densenet121", "DenseNet", 2),
            ("xception", "Xception", "16"),
        )
    },
    **{
        f"{name}, no image": (
            call(name, (32, 32, 3)),
            f"{caller}: x of shape (32, 32, 3) must be (batch, height, width, channels); add the missing axes.",
        )
        for name, caller in (
            ("resnet18", "ResNet"),
            ("drn_c_26", "DRN"),
            ("mobilenet_v2", "MobileNetV2"),
            ("mobilenet_v3_large", "MobileNetV3"),
            ("efficientnet_b0", "EfficientNet"),
            ("densenet121", "DenseNet"),
            ("xception", "Xception"),
        )
    },
    **{
        f"{name}, grid {grid!r}": (
            call(name, multi_grid=grid),
            f"{caller}: multi_grid={grid!r} must be a tuple of ints of at least 1, such as (1, 2, 4).",
        )
        for name, caller, grid in (
            ("resnet18", "ResNet", ()),
            ("drn_c_26", "DRN", 2),
            ("mobilenet_v2", "MobileNetV2", (1, 0)),
            ("mobilenet_v3_large", "MobileNetV3", ()),
            ("efficientnet_b0", "EfficientNet", ()),
            ("densenet121", "DenseNet", ()),
            ("xception", "Xception", (1, 1.5)),
        )
    },
    "three stages": (
        call("resnet18", blocks=(2, 2, 2)),
        "ResNet: stage_features=(64, 128, 256, 512) and blocks=(2, 2, 2) must have 4 entries each, one per stage.",
    ),
    "a third architecture": (
        call("drn_d_22", architecture="d"),
        "DRN: architecture='d' is unknown; use one of ('C', 'D'). Did you mean \"D\"?",
    ),
    "no width": (call("mobilenet_v2", width_multiplier=0.0), "MobileNetV2: width_multiplier=0.0 must be positive; use 0.5, for instance."),
    "no depth": (
        call("efficientnet_b0", depth_multiplier=-1.0),
        "EfficientNet: depth_multiplier=-1.0 must be positive; use 1.1, for instance.",
    ),
    "six stages": (
        call("efficientnet_b0", blocks=(1,) * 6),
        "EfficientNet: stage_features=(16, 24, 40, 80, 112, 192, 320) and blocks=(1, 1, 1, 1, 1, 1) must have 7 entries each, one per stage.",
    ),
    "blocks without kernels": (
        call("mobilenet_v3_large", kernel_sizes=(3, 3)),
        "MobileNetV3: kernel_sizes has 2, inner_features has 15, block_features has 15, strides has 15 entries; give one entry for each "
        "block.",
    ),
    "five strides": (
        call("mobilenet_v3_large", strides=(2,) * 5 + (1,) * 10),
        "MobileNetV3: strides=(2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1) must be 2 in four blocks, and 1 in all others.",
    ),
    "three dense blocks": (call("densenet121", blocks=(6, 12, 24)), "DenseNet: blocks=(6, 12, 24) must have 4 entries, one per block."),
    "a small image": (
        call("densenet121", (1, 28, 32, 3)),
        "DenseNet: x of shape (1, 28, 32, 3) must have at least 29 pixels along each axis; use larger images.",
    ),
    "a symbolic size": (
        call("densenet121", (1, *jax.export.symbolic_shape("n, 64", constraints=["n >= 64"]), 3), 16, blocks=(0,) * 4),
        "DenseNet: images of symbolic size are supported at output stride 32 only; give a size in numbers.",
    ),
    "four entry blocks": (call("xception", entry_features=(8, 8, 8, 8)), "Xception: entry_features=(8, 8, 8, 8) must have 3 entries."),
}


@pytest.mark.parametrize("name", ERRORS)
def test_one_line_errors(name):
    cause, text = ERRORS[name]
    with pytest.raises(UserError) as caught:
        cause()
    assert str(caught.value) == text


@pytest.mark.parametrize(("factor", "count"), [(0.5, 1_968_680), (1.4, 6_108_776)])
def test_width_multipliers_of_mobilenet_v2(factor, count):
    """1.97 and 6.11 million parameters, as published with the weights."""
    model = models.create("mobilenet_v2", width_multiplier=factor)
    params = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_folding():
    """Every normalisation follows a convolution, as folding requires, including the one after the features."""
    model, x = slim("mobilenet_v2 with a grid", blocks=(1, 1, 0, 0, 0, 0, 0)), random_input((2, 43, 50, 3))
    variables = random_variables(model, x)
    folded, without = dilax.fold_batch_norm(model, variables)
    assert "batch_stats" not in without
    run: Any = jax.jit(lambda v, w: (model.apply(v, x, train=False), folded.apply(w, x, train=False)))
    ours, theirs = run(variables, without)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
