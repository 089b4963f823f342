"""Test that a pruned model equals the original one with the removed channels set to 0, for every model; and what is removed."""

import contextlib
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, multiply_adds_by_shapes, random_input
from networks import EFFICIENTNET, MOBILENET_V3
from selection import with_slow

import dilax
from dilax import blocks, models
from dilax.errors import UserError
from dilax.pruning import Pruned, multiply_adds, prune

IMAGE, SEQUENCE, SOUND = random_input((2, 17, 19, 3)), random_input((2, 21, 4)), random_input((2, 64, 1))
CODES = jnp.asarray(np.random.default_rng(3).integers(0, 7, (2, 12)))
TASNET: dict[str, Any] = dict(
    features=12, kernel_size=8, stride=4, bottleneck_features=6, hidden_features=8, skip_features=5, blocks=2, repeats=2, norm="batch"
)
BACKBONE = functools.partial(models.ResNet, stage_features=(4, 6, 6, 8), blocks=(2, 1, 1, 1), bottleneck=False)
DRN: dict[str, Any] = dict(stage_features=(4, 5, 4, 4, 6, 6, 5, 4), blocks=(1, 1, 1, 2, 1, 1, 1, 1))
MOBILENET: dict[str, Any] = dict(
    stage_features=(4, 6, 4, 4, 6, 6, 6), blocks=(1, 2, 2, 1, 1, 1, 1), stem_features=4, last_features=8, expansion=2
)
DENSENET: dict[str, Any] = dict(blocks=(1, 2, 1, 1), growth_features=4, stem_features=6, expansion=2)
CASES: dict[str, tuple[Any, jax.Array]] = {
    "dilated_cnn": (models.create("dilated_cnn", features=(6, 8), dilations=(1, (2, 1)), pools=(2, 1), hidden=(5,), dropout=0.2), IMAGE),
    "dilated_cnn_mnist": (models.create("dilated_cnn_mnist", norm="none"), random_input((2, 8, 8, 1))),
    "separable_cnn": (models.create("separable_cnn", stem_features=8, features=(8, 8), blocks=(2, 1), squeeze_excite=True), IMAGE),
    "dilated_fcn": (models.create("dilated_fcn", features=(4, 6, 6), strides=(2, 2, 1), dilations=(1, 2, 1), separable=True), IMAGE),
    "dilated_fcn, as many as channels of x": (models.create("dilated_fcn", features=(5, 5), strides=(1, 1), dilations=(1, 2)), IMAGE),
    "resnet18": (models.create("resnet18", stage_features=(4, 6, 6, 8)), IMAGE),
    "resnet50": (models.create("resnet50", stage_features=(4, 4, 3, 4), blocks=(1, 2, 1, 1), norm="frozen"), IMAGE),
    "drn_c_26": (models.create("drn_c_26", **DRN), IMAGE),
    "mobilenet_v2": (models.create("mobilenet_v2", **MOBILENET), IMAGE),
    "mobilenet_v3_large": (models.create("mobilenet_v3_large", **MOBILENET_V3), IMAGE),
    "efficientnet_b0": (models.create("efficientnet_b0", **EFFICIENTNET), IMAGE),
    "densenet121": (models.create("densenet121", **DENSENET), random_input((2, 29, 31, 3))),
    "xception": (
        models.create("xception", stem_features=(4, 4), entry_features=(4, 5, 6), middle_blocks=1, exit_features=(6, 5, 7, 4, 6, 8)),
        IMAGE,
    ),
    "fcn_resnet50": (models.create("fcn_resnet50", backbone=BACKBONE, aux_head=True), IMAGE),
    "deeplabv3_resnet50": (models.create("deeplabv3_resnet50", backbone=BACKBONE, head_features=5), IMAGE),
    "deeplabv3plus_resnet18": (models.create("deeplabv3plus_resnet18", backbone=BACKBONE, head_features=5, low_features=4), IMAGE),
    "lraspp_mobilenet_v2": (models.create("lraspp_mobilenet_v2", backbone=BACKBONE, head_features=6), IMAGE),
    "unet_dilated": (models.create("unet_dilated", backbone=functools.partial(models.UNetEncoder, stage_features=(4, 6))), IMAGE),
    "tcn": (models.TCN(3, kernel_size=3, features=(5, 5, 6), dropout=0.1), SEQUENCE),
    "tcn, codes": (models.TCN(3, kernel_size=2, features=(6, 6), vocabulary=7, embedding_features=6), CODES),
    "separable_tcn": (models.SeparableTCN(3, features=6, kernel_size=3, dilations=(1, 2)), SEQUENCE),
    "wavenet": (models.WaveNet(vocabulary=7, dilations=(1, 2), features=6, skip_features=5), CODES),
    "wavenet, mixture": (models.WaveNet(outputs="mixture", mixtures=2, dilations=(1, 2), features=6, skip_features=5), SOUND),
    "bytenet": (models.ByteNet(vocabulary=7, dilations=(1, 2), features=8), CODES),
    "conv_tasnet": (models.ConvTasNet(**TASNET), SOUND),
    "conv_tasnet, causal": (models.ConvTasNet(**{**TASNET, "norm": None}, causal=True), SOUND),
    "gated_dilated_cnn": (models.GatedDilatedCNN(3, features=6, dilations=(1, 2), norm="batch"), SEQUENCE),
}


# Models of which some layers keep all channels -> what the warning says of them.
SUMS = "the operation 'reduce_sum' combines all of them"
MASKS = "'encoder': the operation 'mul' combines them with values that are not channels; 'masks': a reshape mixes several axes of them"
KEPT = {"bytenet": SUMS, "conv_tasnet": MASKS, "conv_tasnet, causal": f"{SUMS}; {MASKS}"}


def distinct(model: Any, x: jax.Array) -> Any:
    """Return variables of which no two entries of an array are equal."""
    rng = np.random.default_rng(2)

    def leaf(path: Any, value: jax.ShapeDtypeStruct) -> jax.Array:
        unit = ((rng.permutation(value.size) + 0.5) / value.size).reshape(value.shape)
        if path[-1].key in ("var", "scale", "kernel_scale"):
            values = 0.5 + unit
        elif path[-1].key in ("mean", "bias"):
            values = unit - 0.4
        else:
            values = (unit - 0.5) * (12 / np.prod(value.shape[:-1])) ** 0.5
        return jnp.asarray(values, value.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(lambda: model.init(KEY, x, train=False)))


def masked(variables: Any, pruned: Any) -> Any:
    """Set to 0 what lacks in the pruned variables: entries along the last axis, the outputs of layers, none of which are found there."""
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(pruned)}

    def leaf(path: Any, value: Any) -> jax.Array:
        # The lengths of weight normalisation are adjusted; the kernel says which are left.
        name = jax.tree_util.keystr(path)
        source = value
        if name.endswith("['kernel_scale']"):
            name = name.replace("kernel_scale", "kernel")
            source = functools.reduce(lambda tree, key: tree[key.key], (*path[:-1], jax.tree_util.DictKey("kernel")), variables)
        found, value = np.isin(np.asarray(source), np.asarray(flat[name])), np.asarray(value)
        outputs = (-2, -1) if "Transpose" in name and value.ndim > 1 else (-1,) if value.ndim else ()
        for axis in outputs:
            kept = np.moveaxis(found, axis, -1).reshape(-1, found.shape[axis]).any(0)
            value = np.moveaxis(np.where(kept, np.moveaxis(value, axis, -1), 0), -1, axis)
        return jnp.asarray(value)

    return jax.tree_util.tree_map_with_path(leaf, variables)


def run(model: Any, variables: Any, x: jax.Array, **options: Any) -> Any:
    return jax.jit(lambda variables, x: model.apply(variables, x, train=False, **options))(variables, x)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


REPEATS = (
    *("xception", "mobilenet_v2", "efficientnet_b0", "fcn_resnet50", "deeplabv3_resnet50", "resnet18", "drn_c_26", "conv_tasnet"),
    *("resnet50", "lraspp_mobilenet_v2", "dilated_fcn", "bytenet"),
)


@pytest.mark.parametrize("case", with_slow(CASES, repeats=REPEATS))
def test_a_pruned_model_is_the_original_with_channels_set_to_zero(case):
    model, x = CASES[case]
    variables = distinct(model, x)
    before = jax.tree.map(np.array, variables)
    with pytest.warns(UserWarning, match=re.escape(KEPT[case])) if case in KEPT else contextlib.nullcontext():
        smaller, pruned = prune(model, variables, x, ratio=0.4)
    expected = run(model, masked(variables, pruned), x)
    assert_close(run(smaller, pruned, x), expected)
    assert np.ptp(expected) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert shapes(pruned) == shapes(jax.eval_shape(lambda: smaller.init(KEY, x, train=False)))
    assert multiply_adds(smaller, pruned, x) < (0.9 if case in KEPT else 0.85) * multiply_adds(model, variables, x)
    assert hash(smaller) == hash(smaller.clone()) and smaller == Pruned(model, smaller.changes)


LEARNING = ("dilated_cnn", "separable_cnn", "fcn_resnet50", "tcn")


@pytest.mark.parametrize("case", LEARNING)
def test_a_pruned_model_learns(case):
    model, x = CASES[case]
    smaller, variables = prune(model, distinct(model, x), x, flops=0.5)

    def loss(params: Any) -> jax.Array:
        every = {**variables, "params": params}
        y, _ = smaller.apply(every, x, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])
        return jnp.stack([jnp.square(leaf).mean() for leaf in jax.tree.leaves(y)]).sum()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert shapes(gradients) == shapes(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


class Network(nn.Module):
    """A network of a user: a function of itself and of x, in which it makes its layers."""

    body: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.body(self, x)


def grouped(module: nn.Module, x: jax.Array) -> jax.Array:
    y = dilax.DilatedConv(8, (3, 3), groups=2, name="groups")(nn.relu(dilax.DilatedConv(8, (1, 1), name="first")(x)))
    y = nn.Conv(16, (3, 3), feature_group_count=8, name="depthwise")(y)
    return nn.Dense(2, name="head")(jnp.tanh(y).mean((1, 2)))


def gated(module: nn.Module, x: jax.Array) -> jax.Array:
    return nn.Dense(2)(nn.glu(nn.Conv(12, (3, 3))(x)))


def transposed(module: nn.Module, x: jax.Array) -> jax.Array:
    y = dilax.DilatedConvTranspose(6, (2, 2), stride=2)(dilax.DilatedConv(8, (1, 1))(x))
    y = dilax.DilatedConvTranspose(6, (2, 2), groups=6)(nn.relu(y))
    return dilax.DilatedConv(3, (1, 1))(dilax.DilatedConvTranspose(8, (2, 2), groups=2)(y))


def shared_layer(module: nn.Module, x: jax.Array) -> jax.Array:
    layer = nn.Conv(6, (3, 3))
    y = nn.Conv(6, (1, 1))(x)
    return nn.Dense(2)(layer(nn.relu(layer(y))))


def multi_dilation(module: nn.Module, x: jax.Array) -> jax.Array:
    y = dilax.MultiDilationConv(6, (3, 3), dilations=(1, 2), merge="sum")(nn.Conv(8, (1, 1))(x))
    return nn.Dense(2)(dilax.max_pool(nn.relu(y), 2).reshape(y.shape[0], -1))


def degridded(module: nn.Module, x: jax.Array) -> jax.Array:
    y = dilax.SmoothedConv(8, (3, 3), dilation=2)(nn.Conv(8, (1, 1))(x))
    y = dilax.SmoothedConv(8, (3, 3), dilation=2, smoothing="separable_shared")(nn.relu(y))
    return nn.Dense(2)(dilax.DCLSConv(8, (5, 5), 3, groups=8)(nn.relu(y)))


def joined(module: nn.Module, x: jax.Array) -> jax.Array:
    y = jnp.concatenate([nn.Conv(4, (1, 1))(x), x, dilax.DepthwiseConv((3, 3), 2)(nn.Conv(4, (1, 1))(x))], axis=-1)
    return nn.Dense(2)(dilax.resize(nn.max_pool(nn.relu(y), (2, 2), (2, 2)), (7, 7)))


def stacked(module: nn.Module, x: jax.Array) -> jax.Array:
    """Of operations that are composed of others in older versions of JAX."""
    y = nn.relu(nn.Conv(8, (1, 1))(x))
    once, twice = jnp.stack([y, 2 * nn.Conv(8, (1, 1))(x)], axis=1).swapaxes(0, 1)
    return nn.Dense(2)(jnp.tile(once * twice, (1, 2, 1, 1)))


def looped(module: nn.Module, x: jax.Array) -> jax.Array:
    y = nn.Conv(8, (1, 1))(x)
    scale = module.param("loop_scale", nn.initializers.ones_init(), y.shape[-1:])[None, None, None]
    y, steps = jax.lax.scan(lambda y, _: (jnp.tanh(y * scale), y[:, 0]), y, None, length=3)
    y = jax.lax.cond(x.sum() > 0, nn.relu, lambda y: 2 * y, y)
    return nn.Dense(2)(y) + nn.Dense(2)(steps.mean((0, 2)))[:, None, None]


NETWORKS = {
    body.__name__: Network(body) for body in (grouped, gated, transposed, shared_layer, multi_dilation, degridded, joined, stacked, looped)
}


@pytest.mark.parametrize("case", NETWORKS)
def test_networks_of_users(case):
    model = NETWORKS[case]
    variables = _distinct_plain(model, IMAGE)
    smaller, pruned = prune(model, variables, IMAGE, ratio=0.5)
    y = jax.jit(lambda variables: smaller.apply(variables, IMAGE, train=False))(pruned)
    expected = jax.jit(lambda variables: model.apply(variables, IMAGE))(masked(variables, pruned))
    assert_close(y, expected)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (pruned, variables)]
    assert sizes[0] < 0.7 * sizes[1]


def _distinct_plain(model: Any, x: jax.Array) -> Any:
    rng = np.random.default_rng(2)
    template = jax.eval_shape(lambda: model.init(KEY, x))
    return jax.tree.map(
        lambda leaf: jnp.asarray((rng.permutation(leaf.size).reshape(leaf.shape) + 0.5) / leaf.size - 0.45, leaf.dtype), template
    )


def test_the_weakest_channels_are_removed():
    model = Network(lambda module, x: nn.Dense(2)(nn.relu(blocks.ConvNormAct(4, (1, 1), name="block")(x, train=False))))
    variables = _distinct_plain(model, IMAGE)
    block = variables["params"]["block"]
    block["DilatedConv_0"]["kernel"] = jnp.asarray([[[[3.0, -1, 2, -4]] * 3]])
    block["Norm_0"]["BatchNorm_0"]["scale"] = jnp.asarray([0.1, 3, -2, 0.2])
    for by, expected in (("magnitude", [3, -4]), ("scale", [-1, 2])):
        _, pruned = prune(model, variables, IMAGE, ratio=0.5, by=by)
        assert pruned["params"]["block"]["DilatedConv_0"]["kernel"][0, 0, 0].tolist() == expected


@pytest.mark.parametrize("flops", [0.25, 0.5, 0.8])
def test_the_target_is_reached_and_not_missed_by_much(flops):
    model = models.create("separable_cnn", stem_features=16, features=(32, 32), blocks=(1, 1))
    variables = distinct(model, IMAGE)
    smaller, pruned = prune(model, variables, IMAGE, flops=flops)
    assert flops - 0.08 < multiply_adds(smaller, pruned, IMAGE) / multiply_adds(model, variables, IMAGE) <= flops


def test_numbers_of_channels_are_multiples():
    model = models.create("separable_cnn", stem_features=6, features=(16, 20), blocks=(1, 1))
    _, pruned = prune(model, distinct(model, IMAGE), IMAGE, ratio=0.55, multiple_of=8)
    stem, *blocks_ = (pruned["params"][name] for name in ("ConvNormAct_0", "SeparableResidual_0", "SeparableResidual_1"))
    assert stem["DilatedConv_0"]["kernel"].shape[-1] == 6
    assert [block["ConvNormAct_0"]["SeparableConv_0"]["pointwise_kernel"].shape[-1] for block in blocks_] == [8, 16]


@pytest.mark.parametrize("case", ["dilated_cnn", "separable_cnn", "unet_dilated", "tcn"])
def test_multiply_adds_are_those_of_the_shapes_of_the_layers(case):
    model, x = CASES[case]
    expected = sum(multiply_adds_by_shapes(model, x).values())
    assert multiply_adds(model, jax.eval_shape(lambda: model.init(KEY, x, train=False)), x) == expected


def test_a_pruned_model_is_pruned_again():
    model, x = CASES["separable_cnn"]
    variables = distinct(model, x)
    once, first = prune(model, variables, x, ratio=0.25)
    twice, second = prune(once, first, x, ratio=0.4)
    assert isinstance(once.model, models.SeparableCNN) and isinstance(twice.model, models.SeparableCNN)
    assert_close(run(twice, second, x), run(model, masked(variables, second), x))


def test_a_pruned_model_is_fed_in_chunks():
    model, x = CASES["tcn"]
    smaller, variables = prune(model, distinct(model, x), x, ratio=0.4)
    dilax.check_streamable(smaller, variables, x)


def test_a_pruned_model_is_exported():
    model, x = CASES["dilated_cnn"]
    smaller, variables = prune(model, distinct(model, x), x, ratio=0.4)
    exported = jax.export.export(jax.jit(lambda x: smaller.apply(variables, x, train=False)))(jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert_close(exported.call(x), run(smaller, variables, x))


def test_a_pruned_model_is_summarised_and_its_features_are_read():
    model, x = CASES["deeplabv3_resnet50"]
    smaller, variables = prune(model, distinct(model, x), x, ratio=0.4)
    maps: Any = smaller.apply(variables, x, train=False, method="features")
    assert [map.shape[-1] for map in maps] == [3, 4, 4, 5]
    table = {"/".join(layer.path): layer for layer in dilax.summary.layers(smaller, jax.ShapeDtypeStruct((1, 64, 64, 3), "float32"))}
    assert table["backbone/stem/DilatedConv_0"].output_shape[-1] == 3


def test_shapes_are_enough_for_the_input_and_dtypes_are_kept():
    model = Network(lambda module, x: nn.Dense(2)(nn.relu(dilax.DilatedConv(6, (3, 3))(x))))
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), _distinct_plain(model, IMAGE))
    _, pruned = prune(model, variables, jax.ShapeDtypeStruct(IMAGE.shape, jnp.bfloat16), ratio=0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(pruned)} == {jnp.dtype("bfloat16")}


def test_layers_that_combine_all_channels_keep_them_and_are_named():
    model = models.create("dilated_cnn", features=(8, 8), dilations=(1, 1), pools=(1, 1), norm="layer", hidden=(6,))
    variables = distinct(model, IMAGE)
    with pytest.warns(UserWarning, match="keep all channels") as caught:
        smaller, pruned = prune(model, variables, IMAGE, ratio=0.5)
    assert str(caught[0].message) == (
        "prune: layers that keep all channels: 'ConvNormAct_0/DilatedConv_0', 'ConvNormAct_1/DilatedConv_0': the operation 'reduce_sum' "
        "combines all of them."
    )
    assert pruned["params"]["Dense_0"]["kernel"].shape == (8, 3)
    assert_close(run(smaller, pruned, IMAGE), run(model, masked(variables, pruned), IMAGE))


class Fixed(nn.Module):
    """A layer of a user that has another name for its number of outputs."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.param("kernel", nn.initializers.normal(), (x.shape[-1], self.units))


def test_layers_without_features_keep_their_channels():
    model = Network(lambda module, x: nn.Dense(2, name="head")(nn.Dense(4, name="hidden")(Fixed(6, name="fixed")(x.mean((1, 2))))))
    with pytest.warns(UserWarning, match="'fixed': the model determines the shape of a variable in another way"):
        _, pruned = prune(model, _distinct_plain(model, IMAGE), IMAGE, ratio=0.5)
    assert [pruned["params"][name]["kernel"].shape for name in ("fixed", "hidden", "head")] == [(3, 6), (6, 2), (2, 2)]


def test_a_function_that_depends_on_the_number_of_channels_is_refused():
    def body(module: nn.Module, x: jax.Array) -> jax.Array:
        y = nn.Dense(6)(x)
        z = nn.Dense(5)(nn.relu(y))
        return nn.Dense(2)(y + z if y.shape == z.shape else z)

    model = Network(body)
    with pytest.raises(UserError, match=r"^prune: Network decides by the number of channels what to compute"):
        prune(model, _distinct_plain(model, IMAGE), IMAGE, ratio=0.34)


DEPENDS = models.create("dilated_cnn", features=(4,), dilations=(1,), pools=(1,))
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "prune: ratio=None and flops=None: give one of them, such as flops=0.5, and not both."),
    "both": (dict(ratio=0.5, flops=0.5), "prune: ratio=0.5 and flops=0.5: give one of them, such as flops=0.5, and not both."),
    "ratio": (dict(ratio=1), "prune: ratio=1.0 is not between 0 and 1; give a share such as 0.5."),
    "flops": (dict(flops=-0.5), "prune: flops=-0.5 is not between 0 and 1; give a share such as 0.5."),
    "text": (dict(flops="half"), "prune: flops='half' is not a finite number; give an int or a float."),
    "by": (dict(ratio=0.5, by="scales"), "prune: by='scales' is unknown; use one of ('magnitude', 'scale'). Did you mean \"scale\"?"),
    "unreachable": (
        dict(flops=0.01),
        "prune: flops=0.01 cannot be reached: with 1 left of the channels of each layer that can be pruned, 0.25 of the multiply-adds remain; "
        "use a larger share.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        prune(DEPENDS, distinct(DEPENDS, IMAGE), IMAGE, **options)
    assert str(error.value) == message


def test_other_mistakes():
    variables = distinct(DEPENDS, IMAGE)
    with pytest.raises(UserError, match=r"^prune: model=3 is not a Flax module"):
        prune(3, variables, IMAGE, ratio=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"^prune: DilatedCNN does not run with these variables and this x"):
        prune(DEPENDS, {"params": variables["params"]}, IMAGE, ratio=0.5)
    with pytest.raises(UserError, match=r"^prune: no channel of Dense can be removed"):
        prune(nn.Dense(2), nn.Dense(2).init(KEY, IMAGE), IMAGE, ratio=0.5)
    model, x = CASES["dilated_cnn_mnist"]
    with pytest.raises(UserError, match=r"^prune: by='scale' needs layers that a normalisation with a scale follows"):
        prune(model, distinct(model, x), x, ratio=0.5, by="scale")
    smaller = Pruned(DEPENDS, {})
    with pytest.raises(UserError, match=r"^Pruned: DilatedCNN has no method `features`"):
        smaller.apply(variables, IMAGE, train=False, method="features")
    with pytest.raises(UserError, match=r"^Pruned: DilatedCNN is not a dilax.streaming.Streamable"):
        smaller.apply(variables, 1, method="init_stream")


@pytest.mark.parametrize("case", ["separable_cnn"])
def test_normalisation_is_folded_into_a_pruned_model(case):
    model, x = CASES[case]
    smaller, variables = prune(model, distinct(model, x), x, ratio=0.4)
    folded, folded_variables = dilax.fold_batch_norm(smaller, variables)
    assert "batch_stats" not in folded_variables
    assert_close(run(folded, folded_variables, x), run(smaller, variables, x))
