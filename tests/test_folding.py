"""Test that folding keeps the outputs of every model and block, and gives the variables that the folded model would create."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, random_input
from networks import EFFICIENTNET, MOBILENET_V3
from reading import check_call
from selection import with_slow

import dilax
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
    "meshnet": models.create("meshnet", features=4, dilations=(1, 2)),
    "dilated_cnn_mnist": models.create("dilated_cnn_mnist", norm="batch"),
    "dilated_cnn_rgb": models.create("dilated_cnn_rgb", norm="batch"),
    "separable_cnn": models.create("separable_cnn", stem_features=4, features=(6, 8), blocks=(2, 1), squeeze_excite=True),
    "separable_cnn_single_layer": models.create("separable_cnn_single_layer", norm="batch", dilations=(2,)),
    "dilated_fcn": models.create("dilated_fcn", features=(4, 6), strides=(2, 1), dilations=(1, 2)),
    "ircnn": models.create("ircnn", features=4, dilations=(1, 2, 1), norm="batch"),
    "separable_ircnn": models.create("separable_ircnn", features=4, dilations=(1, 2, 1), norm="batch"),
    "resnet50, frozen": models.create("resnet50", stage_features=(2, 2, 3, 3), blocks=(1, 1, 1, 1), norm="frozen"),
    "drn_c_26": models.create("drn_c_26", **DRN),
    "mobilenet_v2": models.create("mobilenet_v2", **MOBILENET),
    "mobilenet_v3_large": models.create("mobilenet_v3_large", **MOBILENET_V3),  # of another epsilon
    "efficientnet_b0": models.create("efficientnet_b0", **EFFICIENTNET),
    "xception": models.create(
        "xception", stem_features=(3, 4), entry_features=(4, 5, 6), middle_blocks=1, exit_features=(6, 5, 7, 4, 6, 8)
    ),
    "fcn_resnet50": models.create("fcn_resnet50", backbone=BACKBONE, aux_head=True),
    "deeplabv3_resnet50": models.create("deeplabv3_resnet50", backbone=BACKBONE, head_features=5),
    "deeplabv3plus_resnet18": models.create("deeplabv3plus_resnet18", backbone=BACKBONE, head_features=5, low_features=3),
    "lraspp_mobilenet_v2": models.create("lraspp_mobilenet_v2", backbone=BACKBONE, head_features=5),
    "drn_c_26_segmenter": models.create("drn_c_26_segmenter", backbone=functools.partial(models.DRN, architecture="C", **DRN)),
    "separable_tcn": models.SeparableTCN(3, features=5, kernel_size=3, dilations=(1, 2)),
    "separable_detector": models.SeparableDetector(3, 4, (4, 6), (1, 1), 6, (1, 2), 1),
    "fcos": models.FCOS(BACKBONE, 3, 4),
    "retinanet": models.RetinaNet(BACKBONE, 3, 4),
    "yolof": models.YOLOF(BACKBONE, 3, 8, (1, 2), (32,)),
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


def input_of(model: Any) -> jax.Array:
    return random_input((2, 9, 4)) if isinstance(model, models.SeparableTCN) else X


def run(model: Any, variables: Any, x: jax.Array = X) -> Any:
    return jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, x)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        theirs = np.asarray(theirs, np.float32)
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


def test_every_model_class_is_covered():
    # Without batch normalisation.
    without = {models.TCN, models.WaveNet, models.ByteNet, models.ConvTasNet, models.GatedDilatedCNN, models.MSTCN, models.IDCNN}
    # Normalisations before convolutions, and one that follows several convolutions with one kernel, see below.
    refused = {models.DenseNet, models.HighRes3DNet, models.TridentDetector}
    assert {type(models.create(name)) for name in models.names()} - without - refused <= {type(model) for model in CASES.values()}


def test_branches_that_share_a_kernel_are_refused():
    model = models.TridentDetector(BACKBONE, 3, 4, 1)
    with pytest.raises(UserError) as error:
        fold_batch_norm(model, trained(model))
    assert str(error.value) == (
        "fold_batch_norm: 'trident0/norm2' normalises the output of the operation 'reshape'; a norm can be folded only where it directly "
        "follows a convolution or a linear layer, as in ConvNormAct."
    )


REPEATS = ("xception", "retinanet", "yolof", "mobilenet_v2", "efficientnet_b0", "lraspp_mobilenet_v2", "fcn_resnet50", "drn_c_26", "fcos")


@pytest.mark.parametrize("name", with_slow(CASES, repeats=(*REPEATS, "deeplabv3_resnet50", "drn_c_26_segmenter")))
def test_the_folded_model_is_the_same_function(name):
    model = CASES[name]
    x = input_of(model)
    variables = trained(model, x)
    before = jax.tree.map(np.array, variables)
    folded, folded_variables = fold_batch_norm(model, variables)
    assert_close(run(folded, folded_variables, x), run(model, variables, x))
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    # Exactly what the folded model would create: no batch_stats, and a bias for every convolution.
    template = jax.eval_shape(lambda: folded.init(KEY, x, train=False))
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


class Network(nn.Module):
    """A network of a user: a function of itself and of x, in which it makes its layers."""

    body: Any
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.body(self, x)

    def conv(self, x: jax.Array, **options: Any) -> jax.Array:
        return self.layer(**options)(x)

    def layer(self, **options: Any) -> Any:
        options = {"use_bias": self.norm == "none"} | options
        return dilax.DilatedConv(4, (3, 3), **options)

    def normed(self, x: jax.Array, **options: Any) -> jax.Array:
        return blocks.Norm(self.norm, **options)(x, train=False)


def both_shared(net: Network, x: jax.Array) -> jax.Array:
    layer, norm = net.layer(), blocks.Norm(net.norm)
    return norm(layer(nn.relu(norm(layer(x), train=False))), train=False)


def norm_shared(net: Network, x: jax.Array) -> jax.Array:
    norm = blocks.Norm(net.norm)
    return norm(net.conv(nn.relu(norm(net.conv(x), train=False))), train=False)


def crossed(net: Network, x: jax.Array) -> jax.Array:
    first, second = net.conv(x), net.conv(x, dilation=2)
    return nn.relu(net.normed(second)) + net.normed(first)


def mixed(net: Network, x: jax.Array) -> jax.Array:
    biased = net.norm == "none"
    x = nn.relu(net.normed(nn.Conv(5, (3, 3), use_bias=biased)(net.normed(net.conv(x)))))
    return blocks.Norm("layer")(net.normed(nn.Dense(3)(jax.jit(nn.relu)(x))), train=False)


def remat(net: Network, x: jax.Array) -> jax.Array:
    return nn.remat(lambda net, x: nn.relu(net.normed(net.conv(x))))(net, x) + x


def towers(net: Network, x: jax.Array) -> jax.Array:
    """Three blocks whose variables are stacked."""
    axes: dict[str, Any] = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
    return nn.vmap(lambda block, x: block(x, train=False), **axes)(blocks.ConvNormAct(4, norm=net.norm), jnp.stack([x] * 3)).sum(0)


def called_back(net: Network, x: jax.Array) -> jax.Array:
    """A function of Python whose code is not part of the jaxpr."""
    y, factor = net.normed(net.conv(x)), np.float32(3 if net.norm == "none" else 2)
    return jax.lax.map(lambda row: jax.pure_callback(lambda v: v * factor, row, row, vmap_method="sequential"), y)


def with_table(net: Network, x: jax.Array) -> jax.Array:
    """A loop that reads a table which is not printed with it."""
    y, table = net.normed(net.conv(x)), np.arange(4.0, dtype=np.float32) + (net.norm == "none")
    return jax.lax.fori_loop(0, 2, jax.jit(lambda _, y: y + jnp.asarray(table)[None, None, None]), y)


FOLDED = {
    "two convolutions and two norms in a scope": lambda net, x: net.normed(net.conv(nn.relu(net.normed(net.conv(x))))),
    "norms in another order than their convolutions": crossed,
    "weight normalisation": lambda net, x: net.normed(net.conv(x, weight_norm=True)),
    "layers of Flax": mixed,
    "convolution and norm are used twice": both_shared,
    "a norm for two convolutions": norm_shared,
    "remat": remat,
    "with a bias": lambda net, x: net.normed(net.conv(x, use_bias=True)),
    "in the middle of others": lambda net, x: net.conv(net.normed(net.conv(nn.relu(net.conv(x, use_bias=True)))), use_bias=True),
}


@pytest.mark.parametrize("body", FOLDED.values(), ids=FOLDED)
@pytest.mark.parametrize("given", [False, True])
def test_networks_of_users(body, given):
    net = Network(body)
    variables = trained_without_train(net)
    folded, folded_variables = fold_batch_norm(net, variables, X if given else None)
    assert list(folded_variables) == ["params"]
    assert_close(folded.apply(folded_variables, X), net.apply(variables, X))


def trained_without_train(net: Network) -> Any:
    rng = np.random.default_rng(3)
    shapes: Any = jax.eval_shape(lambda: net.init(KEY, X))
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 + rng.random(leaf.shape), leaf.dtype) * 0.7, shapes)


class ReluConv(dilax.DilatedConv):
    """A convolution that does more than `DilatedConv`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(super().__call__(x))


def shared_once(net: Network, x: jax.Array) -> jax.Array:
    layer = net.layer()
    return net.normed(layer(nn.relu(layer(x))))


def two_norms(net: Network, x: jax.Array) -> jax.Array:
    layer = net.layer()
    return net.normed(layer(nn.relu(net.normed(layer(x)))))


def skipped(net: Network, x: jax.Array) -> jax.Array:
    y = net.conv(x)
    return net.normed(y) + y


def tied(net: Network, x: jax.Array) -> jax.Array:
    layer = net.layer()
    y = net.normed(layer(x))
    return dilax.dilated_conv(y, layer.variables["params"]["kernel"])


def scanned(net: Network, x: jax.Array) -> jax.Array:
    step = nn.scan(lambda net, x, _: (net.normed(net.conv(x)), None), variable_axes={True: 0}, split_rngs={"params": True}, length=2)
    return step(net, x, None)[0]


WHERE = "; a norm can be folded only where it directly follows a convolution or a linear layer, as in ConvNormAct."
ONLY = "; it must differ only in its normalisation"
REFUSED = {
    "before": (lambda net, x: net.conv(net.normed(x)), "'Norm_0' normalises the input of the model" + WHERE),
    "before, behind an activation": (
        lambda net, x: net.conv(nn.relu(net.normed(net.conv(x, use_bias=True) * 2))),
        "'Norm_0' normalises the output of the operation 'mul'" + WHERE,
    ),
    "behind an activation": (
        lambda net, x: net.normed(nn.relu(net.conv(x))),
        "'Norm_0' normalises the output of the operation 'max'" + WHERE,
    ),
    "behind tanh": (lambda net, x: net.normed(nn.tanh(net.conv(x))), "'Norm_0' normalises the output of the operation 'tanh'" + WHERE),
    "behind a sum": (lambda net, x: net.normed(net.conv(x) + x), "'Norm_0' normalises the output of the operation 'add'" + WHERE),
    "behind a concatenation": (
        lambda net, x: net.normed(jnp.concatenate([net.conv(x), net.conv(x)], -1)),
        "'Norm_0' normalises the output of the operation 'concatenate'" + WHERE,
    ),
    "behind a norm": (
        lambda net, x: net.normed(net.normed(net.conv(x))),
        "'Norm_1' normalises the output of the normalisation 'Norm_0'" + WHERE,
    ),
    "behind a transposed convolution": (
        lambda net, x: net.normed(dilax.DilatedConvTranspose(4, (3, 3), use_bias=False)(net.conv(x, use_bias=True))),
        "'Norm_0' normalises the output of the operation",
    ),
    "behind a subclass": (
        lambda net, x: net.normed(ReluConv(4, (3, 3), use_bias=net.norm == "none")(x)),
        "'Norm_0' normalises the output of the operation 'max'" + WHERE,
    ),
    "behind weight normalisation of Flax": (
        lambda net, x: net.normed(nn.WeightNorm(nn.Conv(4, (3, 3), use_bias=net.norm == "none"))(x)),
        "'Norm_0' normalises the output of the layer 'Conv_0' with computed parameters" + WHERE,
    ),
    "the output is also used without it": (
        skipped,
        "the output of the layer 'DilatedConv_0' is also used without 'Norm_0', which can then not be folded into it.",
    ),
    "one of two uses": (
        shared_once,
        "the output of the layer 'DilatedConv_0' is also used without 'Norm_0', which can then not be folded into it.",
    ),
    "two norms": (two_norms, "the layer 'DilatedConv_0' is followed by two norms, 'Norm_0' and 'Norm_1'; use a layer for each."),
    "a kernel that is used elsewhere": (
        tied,
        "Network with norm='none' is not the same function without its normalisation, or uses the parameters of a layer in more than one "
        f"place{ONLY}.",
    ),
    "another function": (
        lambda net, x: net.conv(x) if net.norm == "none" else nn.relu(net.normed(net.conv(x))),
        "Network with norm='none' is not the same function without its normalisation, or uses the parameters of a layer in more than one "
        f"place{ONLY}.",
    ),
    "no bias": (
        lambda net, x: net.normed(net.conv(x, use_bias=False)),
        "Network with norm='none' has no 'DilatedConv_0/bias' to hold the shift of 'Norm_0'; make the layer with "
        "use_bias=self.norm == 'none', or True.",
    ),
    "a norm of its own": (
        lambda net, x: blocks.ConvNormAct(4)(x, train=False),
        f"Network with norm='none' still has the variable 'ConvNormAct_0/Norm_0/BatchNorm_0/bias'{ONLY}: make each with Norm(self.norm).",
    ),
    "another layer": (
        lambda net, x: net.conv(x, use_bias=True) if net.norm == "none" else nn.Dense(4)(net.normed(net.conv(x))),
        f"Network with norm='none' no longer has the variable 'Dense_0/bias'{ONLY}: make each with Norm(self.norm).",
    ),
    "stacked variables": (
        towers,
        "the statistics 'ConvNormAct_0/Norm_0/BatchNorm_0/mean' have shape (3, 4), those of several layers in one array",
    ),
    "a call of Python": (called_back, "the model calls Python by 'pure_callback', which cannot be compared; take that out of the model."),
    "another table": (with_table, "Network with norm='none' is not the same function without its normalisation"),
    "a loop": (scanned, "'Norm_0' normalises a value within a loop, a branch or a mapped function" + WHERE),
    "batch normalisation of Flax": (
        lambda net, x: nn.BatchNorm(use_running_average=True)(net.conv(x)),
        "the statistics 'BatchNorm_0/mean' do not belong to a Norm after a convolution; they cannot be folded.",
    ),
    "batch statistics": (
        lambda net, x: blocks.Norm(net.norm)(net.conv(x), train=not net.is_initializing()),
        "'Norm_0' is called with train=True in inference, too; pass it the `train` of the model.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    body, text = REFUSED[name]
    net = Network(body)
    with pytest.raises(UserError) as caught:
        fold_batch_norm(net, trained_without_train(net))
    assert str(caught.value).startswith(f"fold_batch_norm: {text}")


def nested(variables: Any, name: str) -> Any:
    return {collection: {name: tree} for collection, tree in variables.items()}


DENSENET, IMAGE = models.DenseNet(blocks=(1, 0, 0, 0), growth_features=2, stem_features=16), random_input((1, 32, 32, 3))
TRAINED = trained(CONV_NORM_ACT)
ERRORS = {
    "no norm": (
        lambda: fold_batch_norm(blocks.SqueezeExcite(), {}),
        "fold_batch_norm: SqueezeExcite has no field `norm`; give a model or a block of dilax with norm='batch'.",
    ),
    "norms before convolutions": (
        lambda: fold_batch_norm(DENSENET, trained(DENSENET, IMAGE), IMAGE),
        "fold_batch_norm: 'block1_layer1/norm' normalises the output of the operation 'select_n'; a norm can be folded only where it directly "
        "follows a convolution or a linear layer, as in ConvNormAct.",
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
        lambda: fold_batch_norm(
            CASES["residual"], {**(v := trained(CASES["residual"])), "batch_stats": {**v["batch_stats"], "ConvNormAct_1": {}}}
        ),
        "fold_batch_norm: variables have no batch_stats for 'ConvNormAct_1/Norm_0'; give all collections of the trained model, not only params.",
    ),
    "variables of another model": (
        lambda: fold_batch_norm(CONV_NORM_ACT, nested(TRAINED, "A")),
        "fold_batch_norm: no input was found that fits ConvNormAct and its variables (it creates other parameters, such as "
        "'A/DilatedConv_0/kernel'); give one, or its shape and dtype, as x.",
    ),
    "no parameters": (
        lambda: fold_batch_norm(CONV_NORM_ACT, {}),
        "fold_batch_norm: no input was found that fits ConvNormAct and its variables (they hold no kernel); give one, or its shape and dtype, as x.",
    ),
    "another input": (
        lambda: fold_batch_norm(CONV_NORM_ACT, TRAINED, X[..., :3]),
        "fold_batch_norm: the variables are not those of the model for this input: 'DilatedConv_0/kernel' has shape (3, 3, 4, 5) in the "
        "variables, (3, 3, 3, 5) in the model; give the variables that its init(..., train=False) creates.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    check_call(*ERRORS[name])
