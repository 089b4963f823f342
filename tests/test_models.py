"""All models except backbones and segmentation networks: the contract, parameter counts, and properties of single models."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, check_model, check_receptive_field, positive, random_input
from test_backbones import COUNTS as BACKBONES
from test_segmentation_models import NAMES as SEGMENTERS

from dilax import blocks, models
from dilax.errors import UserError

SMALL = {
    "dilated_cnn": dict(features=(4, 6, 8), dilations=(1, (2, 1), 2), pools=(1, 2, 1), dropout=0.2, hidden=(5,)),
    "dilated_cnn_mnist": dict(dropout=0.3),
    "dilated_cnn_rgb": {},
    "separable_cnn": dict(stem_features=4, features=(6, 8), blocks=(2, 1), squeeze_excite=True, dropout=0.2),
    "separable_cnn_single_layer": dict(dilations=(2,)),
}
COUNTS = {  # (model, fields, input channels): parameters, counted by hand
    ("dilated_cnn_mnist", 1): 320 + 9248 + 50208 + 330,
    ("dilated_cnn_rgb", 3): 1792 + 36928 + 73856 + 147584 + 1290,
    ("separable_cnn_single_layer", 3): 27 + 3 * 64 + 64 + 650,
}


DETECTORS = (
    *("fcos_resnet18_fpn", "fcos_resnet50_fpn", "retinanet_resnet18_fpn", "retinanet_resnet50_fpn"),
    *("separable_detector", "trident_resnet50", "yolof_resnet18", "yolof_resnet50"),
)
RESTORERS = ("ircnn", "separable_ircnn")  # tested in test_ircnn.py
VOLUMES = ("highres3dnet", "meshnet")  # tested in test_volume_models.py
SEQUENCES = ("bytenet", "conv_tasnet", "gated_dilated_cnn", "id_cnn", "ms_tcn", "separable_tcn", "tcn", "wavenet")  # tested in other files


def test_every_model_is_tested():
    tested = [*SMALL, *BACKBONES, *SEGMENTERS, *SEQUENCES, *DETECTORS, *RESTORERS, *VOLUMES, "dilated_fcn"]
    assert sorted(tested) == models.names() == sorted(models.MODELS)


@pytest.mark.parametrize("name", SMALL)
def test_contract(name):
    x = random_input((3, 12, 13, 2))
    check_model(models.create(name, num_classes=7, **SMALL[name]), x, 7)


@pytest.mark.parametrize("name", models.names())
def test_train_is_required(name):
    with pytest.raises(TypeError, match="train"):
        models.create(name).init(KEY, random_input((2, 12, 12, 3)))


@pytest.mark.parametrize(("name", "channels"), COUNTS)
def test_parameter_counts(name, channels):
    model = models.create(name)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 28, 28, channels)), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == COUNTS[name, channels]


def test_default_separable_cnn_has_between_03_and_1_million_parameters():
    shapes = jax.eval_shape(lambda: models.create("separable_cnn").init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))
    assert 300_000 <= sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) <= 1_000_000


# Parts of the models with a bounded receptive field, on a sufficiently large input.
TRUNKS = {
    "dilated_cnn": (dict(features=(3, 3, 3), dilations=(1, (2, 1), 2), pools=(1, 2, 1), norm="none"), 3),
    "separable_cnn": (dict(stem_features=3, features=(3, 4), blocks=(2, 1), norm="batch"), 3),
}


@pytest.mark.parametrize("name", TRUNKS)
def test_receptive_field_of_the_trunk(name):
    fields, _ = TRUNKS[name]
    model = models.create(name, **fields)
    shape = (1, 61, 67, 2)
    variables = positive(model.init(KEY, jnp.zeros(shape), train=False))

    def trunk(x):
        keep = lambda module, _: isinstance(module, blocks.ConvNormAct | blocks.SeparableResidual)  # noqa: E731
        _, state = model.apply(variables, x, train=False, capture_intermediates=keep, mutable=["intermediates"])
        intermediates = state["intermediates"]
        last = [key for key in intermediates if key.startswith("SeparableResidual" if name == "separable_cnn" else "ConvNormAct")][-1]
        return intermediates[last]["__call__"][0]

    check_receptive_field(trunk, shape)


@pytest.mark.parametrize("kind", ["batch", "group", "layer", "none"])
def test_norms(kind):
    x = random_input((4, 5, 6, 12)) * 3 + 2
    norm = blocks.Norm(kind)
    variables = norm.init(KEY, x, train=False)
    y, _ = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    axes = {"batch": (0, 1, 2), "group": None, "layer": (3,), "none": None}[kind]
    if kind == "none":
        np.testing.assert_array_equal(y, x)
    elif kind == "group":
        grouped = np.asarray(y).reshape(4, 30, 6, 2)
        np.testing.assert_allclose(grouped.mean((1, 3)), 0, atol=1e-5)
    else:
        np.testing.assert_allclose(np.asarray(y).mean(axes), 0, atol=1e-5)
        np.testing.assert_allclose(np.asarray(y).std(axes), 1, atol=1e-3)


def test_dropout_of_an_example_depends_only_on_its_index():
    x, drop = jnp.ones((8, 50)), blocks.Dropout(0.4)
    apply: Any = lambda x: drop.apply({}, x, train=True, rngs={"dropout": KEY})  # noqa: E731
    whole = apply(x)
    np.testing.assert_array_equal(apply(x[:3]), whole[:3])
    assert abs(float((whole == 0).mean()) - 0.4) < 0.1
    np.testing.assert_allclose(float(whole.max()), 1 / 0.6, rtol=1e-6)
    assert not np.array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(drop.apply({}, x, train=False), x)


class Statistics(nn.Module):
    """The blocks that depend on the whole batch."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        y = blocks.Norm("batch")(x, train=True, mask=mask)
        return blocks.Dropout(0.4)(y, train=True)


@pytest.mark.parametrize("masks", [False, True])
def test_a_batch_split_over_devices_is_one_batch_inside_batch_axis(masks):
    x = random_input((8, 6, 3)) * 3 + 2
    mask = jnp.asarray(np.random.default_rng(1).random((8, 6)) < 0.7) if masks else None
    module = Statistics()
    variables = module.init({"params": KEY, "dropout": KEY}, x)

    def run(x, mask):
        return module.apply(variables, x, mask, rngs={"dropout": KEY}, mutable=["batch_stats"])

    def inside(x, mask):
        with blocks.batch_axis("devices"):
            return run(x, mask)

    whole, statistics = run(x, mask)
    spread = jax.tree.map(lambda leaf: leaf.reshape(8, 1, *leaf.shape[1:]), (x, mask))
    apart, alone = jax.pmap(run, axis_name="devices")(*spread)
    together, shared = jax.pmap(inside, axis_name="devices")(*spread)
    chex.assert_trees_all_close(together.reshape(x.shape), whole, atol=1e-5)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[3], shared), statistics, atol=1e-5)
    assert np.abs(apart.reshape(x.shape) - whole).max() > 0.1
    assert max(np.abs(leaf[3] - leaf[4]).max() for leaf in jax.tree.leaves(alone)) > 0.01


OUTPUTS = {
    "bytenet": "vocabulary",
    "conv_tasnet": "sources",
    "id_cnn": "out_features",
    "ms_tcn": "out_features",
    "separable_tcn": "out_features",
    "tcn": "out_features",
    "wavenet": "vocabulary",
}


@pytest.mark.parametrize("name", models.names())
def test_the_field_of_the_outputs(name):
    # A restored image has the channels of the image that is given.
    assert models.output_fields(name) == (() if name in RESTORERS else (OUTPUTS.get(name, "num_classes"),))


def test_the_field_of_the_outputs_sets_their_number():
    codes = jnp.zeros((1, 64), jnp.int32)
    for name in SEQUENCES:
        symbols = models.symbol_fields(name)
        fields = dict.fromkeys((*models.output_fields(name), *symbols), 7)
        x = codes if symbols else jnp.zeros((1, 64, 1))
        y = jax.eval_shape(lambda name=name, fields=fields, x=x: models.create(name, **fields).init_with_output(KEY, x, train=False)[0])
        assert y.shape[-1] == 7
    assert {name for name in models.names() if models.symbol_fields(name)} == {"bytenet", "gated_dilated_cnn", "id_cnn", "tcn", "wavenet"}


@pytest.mark.parametrize("function", [models.output_fields, models.symbol_fields, models.create])
def test_an_unknown_model_is_refused(function):
    with pytest.raises(UserError) as error:
        function("tcnn")
    text = f"models.{function.__name__}: unknown model 'tcnn'; dilax.models.names() lists them. Did you mean \"tcn\"?"
    assert str(error.value) == text
