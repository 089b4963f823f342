"""Networks that label volumes at full resolution: parameters, an oracle, the outputs of MONAI, receptive fields, tiles, errors."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from contract import KEY, check_receptive_field, check_summary, check_training, positive, random_input
from foreign import random_state

import dilax
from dilax import models
from dilax.models import highres3dnet
from dilax.state_dicts import convert

with np.load(Path(__file__).parent / "golden" / "highres3dnet.npz") as file:
    GOLDEN = {name: file[name] for name in file.files}
ABOUT = json.loads(str(GOLDEN["about"]))
X = random_input((2, 5, 6, 7, 2))
SMALL: dict[str, Any] = {
    "meshnet": models.MeshNet(3, features=4, dilations=(1, 2), norm="group"),
    "highres3dnet": models.HighRes3DNet(3, features=(2, 3, 4, 3), dilations=(1, 2), blocks=(1, 1)),
}


@functools.cache
def variables_of(name: str) -> Any:
    """Random, and different for each leaf; variances are positive."""
    shapes = jax.eval_shape(lambda: SMALL[name].init(KEY, X, train=False))
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.2 + 0.3 * jnp.abs(random_input(leaf.shape, i)) for i, leaf in enumerate(leaves)])


def apply(name: str, x: jax.Array, **fields: Any) -> jax.Array:
    return jax.jit(lambda x: SMALL[name].clone(**fields).apply(variables_of(name), x, train=False))(x)


def parameters(model: Any, channels: int) -> int:
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 4, 4, 4, channels)), train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def test_parameters_are_those_of_the_papers():
    assert parameters(models.create("highres3dnet"), 1) == 821_904
    # Seven layers of 21 channels, each with the scale and the bias of its normalisation, and three classes.
    assert parameters(models.create("meshnet"), 1) == 27 * 21 + 6 * 27 * 21**2 + 7 * 2 * 21 + 22 * 3


def norm(x: np.ndarray, params: Any, groups: int) -> np.ndarray:
    """Group normalisation."""
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, var = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    return ((parts - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * np.asarray(params["scale"]) + np.asarray(params["bias"])


def test_meshnet_is_that_of_the_oracle():
    params, y = variables_of("meshnet")["params"], np.asarray(X)
    for i, dilation in enumerate((1, 2)):
        layer = params[f"ConvNormAct_{i}"]
        y = reference.conv(y, np.asarray(layer["DilatedConv_0"]["kernel"]), dilation=dilation)
        y = np.maximum(norm(y, layer["Norm_0"]["GroupNorm_0"], 4), 0)
    expected = y @ np.asarray(params["logits"]["kernel"])[0, 0, 0] + np.asarray(params["logits"]["bias"])
    np.testing.assert_allclose(apply("meshnet", X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", range(len(ABOUT)))
def test_highres3dnet_is_that_of_monai(case):
    about = ABOUT[case]
    blocks = tuple(about["blocks"])
    fields = dict(features=tuple(about["features"]), blocks=blocks, dilations=tuple(2**i for i in range(len(blocks))))
    model: Any = models.HighRes3DNet(about["classes"], activate_logits=True, **fields)  # pyright: ignore
    x = GOLDEN[f"x{case}"]
    template: Any = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    variables = convert(random_state(about["shapes"], case), highres3dnet.rules(blocks), template)
    found: Any = jax.jit(lambda x: model.apply(variables, x, train=False))(x)
    np.testing.assert_allclose(found, GOLDEN[f"y{case}"], rtol=1e-4, atol=1e-4)
    assert (found == 0).any()  # as MONAI activates the logits, and the authors do not
    plain: Any = jax.jit(lambda x: model.clone(activate_logits=False).apply(variables, x, train=False))(x)
    np.testing.assert_allclose(np.maximum(plain, 0), found, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_training_and_summary(name):
    check_training(SMALL[name], variables_of(name), X)
    check_summary(SMALL[name], variables_of(name), X)


@pytest.mark.parametrize("name", SMALL)
def test_logits_have_the_size_of_any_input_in_float32(name):
    model = models.create(name, num_classes=5, dtype=jnp.bfloat16)
    for space in ((13,), (6, 7), (5, 4, 3)):
        logits: Any = jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((2, *space, 3), jnp.bfloat16), train=False)[0])  # noqa: B023
        assert (logits.shape, logits.dtype) == ((2, *space, 5), jnp.float32)


@pytest.mark.parametrize("name", SMALL)
def test_receptive_field_in_three_dimensions(name):
    """Law 7, and the same by hand: each layer of three taps adds twice its dilation."""
    model, variables = SMALL[name].clone(norm="none"), variables_of(name)
    layers = {"meshnet": (1, 2), "highres3dnet": (1, 1, 1, 2, 2)}[name]
    shape = (1, 21, 3, 3, 2)
    variables = positive(jax.jit(lambda: model.init(KEY, jnp.zeros(shape), train=False))())
    first = jax.jit(lambda x: model.apply(variables, x, train=False))
    field = dilax.receptive_field(first, jnp.zeros((1, 21, 22, 23, 2)))
    assert [axis.size for axis in field] == [1 + 2 * sum(layers)] * 3
    assert check_receptive_field(first, (1, 21, 1, 1, 2), must=False) > 0


@pytest.mark.parametrize("name", SMALL)
def test_tiles_of_a_volume_are_exact(name):
    """Law 8."""
    model = SMALL[name] if name == "highres3dnet" else SMALL[name].clone(norm="none")
    x = random_input((1, 22, 17, 9, 2))
    variables = jax.jit(lambda: model.init(KEY, x, train=False))()
    run = lambda x: model.apply(variables, x, train=False)  # noqa: E731
    tiles = dilax.tiled(run, (8, 8, None), check=False)(x)
    np.testing.assert_allclose(tiles, jax.jit(run)(x), rtol=1e-4, atol=1e-5)


def test_dilation_does_not_change_the_parameters():
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(lambda m=model: m.init(KEY, X, train=False)))
        for model in (SMALL["meshnet"], SMALL["meshnet"].clone(dilations=(1, 1)))
    ]
    assert shapes[0] == shapes[1]
    assert np.abs(apply("meshnet", X) - apply("meshnet", X, dilations=(1, 1))).max() > 1e-2


ERRORS = {
    "meshnet without space": (
        models.MeshNet(),
        (2, 3),
        "MeshNet: x of shape (2, 3) must be (batch, *space, channels) with 1, 2 or 3 spatial axes.",
    ),
    "meshnet without layers": (
        models.MeshNet(dilations=()),
        (1, 4, 4, 4, 1),
        "MeshNet: dilations=() leaves no layer; give one dilation for each, such as (1, 2, 4).",
    ),
    "highres3dnet without space": (
        models.HighRes3DNet(),
        (2, 3),
        "HighRes3DNet: x of shape (2, 3) must be (batch, *space, channels) with 1, 2 or 3 spatial axes.",
    ),
    "lengths": (
        models.HighRes3DNet(dilations=(1, 2)),
        (1, 4, 4, 4, 1),
        "HighRes3DNet: features=(16, 16, 32, 64, 80), dilations=(1, 2) and blocks=(3, 3, 3) do not fit; give a dilation and a number of "
        "blocks for each group, and two features more.",
    ),
    "narrower": (
        models.HighRes3DNet(features=(16, 16, 8, 64, 80)),
        (1, 4, 4, 4, 1),
        "HighRes3DNet: features=(16, 16, 8, 64, 80) decrease, and a shortcut can only be padded with channels; keep or increase them up to "
        "the last but one.",
    ),
    "a volume for a network of images": (
        models.create("resnet18"),
        (1, 4, 5, 6, 1),
        "ResNet: x of shape (1, 4, 5, 6, 1) is a batch of volumes, and this model takes images (batch, height, width, channels); use one "
        "that takes volumes, such as meshnet, highres3dnet or unet_dilated.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    model, shape, text = ERRORS[name]
    with pytest.raises(dilax.UserError) as caught:
        jax.eval_shape(lambda: model.init(KEY, jnp.zeros(shape), train=False))
    assert str(caught.value) == text
