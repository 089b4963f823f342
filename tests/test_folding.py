"""Test that folding keeps the outputs of every model and block, and gives the variables that the folded model would create."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, random_input

from dilax import blocks, models
from dilax.errors import UserError
from dilax.folding import fold_batch_norm

X = random_input((2, 8, 9, 4))
CONV_NORM_ACT = blocks.ConvNormAct(5, dilation=2)
DRN: dict[str, Any] = dict(stage_features=(2, 3, 4, 4, 5, 6, 5, 4), blocks=(1, 1, 1, 1, 1, 1, 1, 1))
MOBILENET: dict[str, Any] = dict(
    stage_features=(2, 3, 4, 4, 5, 6, 6), blocks=(1, 1, 2, 1, 1, 1, 1), stem_features=3, last_features=8, expansion=2
)
BACKBONE = functools.partial(models.ResNet, stage_features=(4, 4, 6, 8), blocks=(1, 1, 1, 1), bottleneck=False)
CASES: dict[str, Any] = {
    "conv": CONV_NORM_ACT,
    "conv, groups": blocks.ConvNormAct(6, groups=2, stride=2, activation="none"),
    "separable conv": blocks.ConvNormAct(5, separable=True, padding="CAUSAL"),
    "residual": blocks.SeparableResidual(6, stride=2, squeeze_excite=True),
    "dilated_cnn": models.create("dilated_cnn", features=(4, 6), dilations=(1, (2, 1)), pools=(2, 1), hidden=(5,), dropout=0.2),
    "dilated_cnn_mnist": models.create("dilated_cnn_mnist", norm="batch"),
    "dilated_cnn_rgb": models.create("dilated_cnn_rgb", norm="batch"),
    "separable_cnn": models.create("separable_cnn", stem_features=4, features=(6, 8), blocks=(2, 1), squeeze_excite=True),
    "separable_cnn_single_layer": models.create("separable_cnn_single_layer", norm="batch", dilations=(2,)),
    "dilated_fcn": models.create("dilated_fcn", features=(4, 6), strides=(2, 1), dilations=(1, 2)),
    "resnet50, frozen": models.create("resnet50", stage_features=(2, 2, 3, 3), blocks=(1, 1, 1, 1), norm="frozen"),
    "drn_c_26": models.create("drn_c_26", **DRN),
    "mobilenet_v2": models.create("mobilenet_v2", **MOBILENET),
    "xception": models.create(
        "xception", stem_features=(3, 4), entry_features=(4, 5, 6), middle_blocks=1, exit_features=(6, 5, 7, 4, 6, 8)
    ),
    "fcn_resnet50": models.create("fcn_resnet50", backbone=BACKBONE, aux_head=True),
    "deeplabv3_resnet50": models.create("deeplabv3_resnet50", backbone=BACKBONE, head_features=5),
    "deeplabv3plus_resnet18": models.create("deeplabv3plus_resnet18", backbone=BACKBONE, head_features=5, low_features=3),
    "lraspp_mobilenet_v2": models.create("lraspp_mobilenet_v2", backbone=BACKBONE, head_features=5),
    "drn_c_26_segmenter": models.create("drn_c_26_segmenter", backbone=functools.partial(models.DRN, architecture="C", **DRN)),
    "unet_dilated": models.create("unet_dilated", backbone=functools.partial(models.UNetEncoder, stage_features=(4, 6))),
}


def trained(model: Any, x: jax.Array = X) -> Any:
    """Return variables that all differ from their initial values: variances from 1e-6, where epsilon dominates, to 4, and large means."""
    rng = np.random.default_rng(2)

    def leaf(path: Any, value: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name == "var":
            values = 10 ** rng.uniform(-6, 0.6, value.shape)
        elif name == "scale":
            values = rng.uniform(-1.5, 1.5, value.shape)
        elif name in ("mean", "bias"):
            values = rng.normal(0.3, 1.0, value.shape)
        else:
            values = rng.normal(0, np.prod(value.shape[:-1]) ** -0.5, value.shape)
        return jnp.asarray(values, value.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(lambda: model.init(KEY, x, train=False)))


def run(model: Any, variables: Any, x: jax.Array = X) -> Any:
    return jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, x)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    expected = np.asarray(expected, np.float32)
    np.testing.assert_allclose(np.asarray(actual, np.float32), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_every_model_class_is_covered():
    without = {models.TCN, models.WaveNet, models.ByteNet, models.ConvTasNet, models.GatedDilatedCNN}  # without batch normalisation
    without |= {models.SeparableTCN}  # cannot be folded: two convolutions and two norms in a scope
    assert {type(models.create(name)) for name in models.names()} - without <= {type(model) for model in CASES.values()}


@pytest.mark.parametrize("model", CASES.values(), ids=CASES)
def test_the_folded_model_is_the_same_function(model):
    variables = trained(model)
    before = jax.tree.map(np.array, variables)
    folded, folded_variables = fold_batch_norm(model, variables)
    assert_close(run(folded, folded_variables), run(model, variables))
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    # Exactly what the folded model would create: no batch_stats, and a bias for every convolution.
    template = jax.eval_shape(lambda: folded.init(KEY, X, train=False))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), folded_variables) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), template
    )


@pytest.mark.parametrize("model", [CASES["separable conv"], CASES["dilated_cnn"]], ids=["block", "model"])
def test_bfloat16_computation(model):
    variables = trained(model)
    half = model.clone(dtype=jnp.bfloat16)
    folded, folded_variables = fold_batch_norm(half, variables)
    assert folded.dtype == jnp.bfloat16
    assert_close(run(folded, folded_variables, X.astype(jnp.bfloat16)), run(model, variables), 0.05)


def test_bfloat16_parameters_are_folded_in_float32():
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), trained(CONV_NORM_ACT))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
    _, halves = fold_batch_norm(CONV_NORM_ACT, variables)
    _, expected = fold_batch_norm(CONV_NORM_ACT, wide)
    assert {leaf.dtype for leaf in jax.tree.leaves(halves)} == {jnp.dtype("bfloat16")}
    jax.tree.map(lambda half, full: assert_close(half, full, 2**-8), halves, expected)


def test_the_epsilon_of_norm_is_used(monkeypatch):
    variables = trained(CONV_NORM_ACT)
    monkeypatch.setattr(nn.BatchNorm, "__init__", with_epsilon(nn.BatchNorm.__init__))
    folded, folded_variables = fold_batch_norm(CONV_NORM_ACT, variables)
    assert_close(run(folded, folded_variables), run(CONV_NORM_ACT, variables))


def with_epsilon(init: Any) -> Any:
    return lambda self, *args, **options: init(self, *args, **{**options, "epsilon": 0.1})


def test_other_collections_are_kept():
    variables = {**trained(CONV_NORM_ACT), "constants": {"a": jnp.ones(2)}}
    _, folded = fold_batch_norm(CONV_NORM_ACT, variables)
    assert sorted(folded) == ["constants", "params"]


def test_a_large_shift_does_not_reduce_the_precision_of_the_scale():
    variables = trained(CONV_NORM_ACT)
    _, plain = fold_batch_norm(CONV_NORM_ACT, variables)
    variables["params"]["Norm_0"]["BatchNorm_0"]["bias"] += 1e6
    _, shifted = fold_batch_norm(CONV_NORM_ACT, variables)
    np.testing.assert_array_equal(shifted["params"]["DilatedConv_0"]["kernel"], plain["params"]["DilatedConv_0"]["kernel"])


def without_conv(variables: Any) -> Any:
    params = {name: inner for name, inner in variables["params"].items() if name != "DilatedConv_0"}
    return {**variables, "params": params}


def with_dense(variables: Any) -> Any:
    return {**variables, "params": {**variables["params"], "Dense_0": {"kernel": jnp.ones((2, 2))}}}


def nested(variables: Any, name: str) -> Any:
    return {collection: {name: tree} for collection, tree in variables.items()}


TRAINED = trained(CONV_NORM_ACT)
ERRORS = {
    "no norm": (
        lambda: fold_batch_norm(blocks.SqueezeExcite(), {}),
        "fold_batch_norm: SqueezeExcite has no field `norm`; give a model or a block of dilax with norm='batch'.",
    ),
    "group": (
        lambda: fold_batch_norm(CONV_NORM_ACT.clone(norm="group"), TRAINED),
        "fold_batch_norm: norm='group' is not a constant scale and shift per channel; only norm='batch' and norm='frozen' can be folded.",
    ),
    "none": (
        lambda: fold_batch_norm(CONV_NORM_ACT.clone(norm="none"), TRAINED),
        "fold_batch_norm: norm='none' is not a constant scale and shift per channel; only norm='batch' and norm='frozen' can be folded.",
    ),
    "no statistics": (
        lambda: fold_batch_norm(CONV_NORM_ACT, {"params": TRAINED["params"]}),
        "fold_batch_norm: variables have no batch_stats for 'Norm_0'; give all collections of the trained model, not only params.",
    ),
    "no statistics of one": (
        lambda: fold_batch_norm(CONV_NORM_ACT, {"params": {"A": TRAINED["params"]}, "batch_stats": {}}),
        "fold_batch_norm: variables have no batch_stats for 'A/Norm_0'; give all collections of the trained model, not only params.",
    ),
    "no convolution": (
        lambda: fold_batch_norm(CONV_NORM_ACT, nested(without_conv(TRAINED), "A")),
        "fold_batch_norm: the scope of 'A/Norm_0' holds no convolution; a norm can be folded only where its scope holds exactly one convolution, as in ConvNormAct.",
    ),
    "another layer": (
        lambda: fold_batch_norm(CONV_NORM_ACT, with_dense(TRAINED)),
        "fold_batch_norm: the scope of 'Norm_0' also holds Dense_0, DilatedConv_0; a norm can be folded only where its scope holds exactly one convolution, as in ConvNormAct.",
    ),
    "statistics elsewhere": (
        lambda: fold_batch_norm(CONV_NORM_ACT, {"params": {"BatchNorm_0": {}}, "batch_stats": {"BatchNorm_0": {"mean": jnp.ones(2)}}}),
        "fold_batch_norm: the statistics 'BatchNorm_0/mean' do not belong to a Norm_0 after a convolution; they cannot be folded.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, text = ERRORS[name]
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value) == text
