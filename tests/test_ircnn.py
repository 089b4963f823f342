"""The denoiser of IRCNN and its separable form: parameter counts by hand, and the laws of a model whose outputs are images."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from contract import KEY, check_receptive_field, check_summary, check_training, positive, random_input

import dilax
from dilax import models
from dilax.errors import UserError

SMALL: dict[str, Any] = dict(features=5, dilations=(1, 2, (3, 1), 1))
CASES = {
    "dense": models.create("ircnn", **SMALL),
    "dense, batch": models.create("ircnn", **SMALL, norm="batch"),
    "separable": models.create("separable_ircnn", **SMALL),
    "separable, batch": models.create("separable_ircnn", **SMALL, norm="batch"),
}
X = random_input((3, 17, 15, 2))


def filled(model: Any, x: jax.Array = X) -> Any:
    """Variables that all differ from their initial values; with biases above 0, by which no layer is silent."""
    rng = np.random.default_rng(3)

    def leaf(value: jax.ShapeDtypeStruct) -> jax.Array:
        kernel = rng.normal(0, max(1, np.prod(value.shape[:-1])) ** -0.5, value.shape)
        return jnp.asarray(kernel if len(value.shape) > 1 else rng.uniform(0.1, 1.0, value.shape), value.dtype)

    return jax.tree.map(leaf, jax.eval_shape(lambda: model.init(KEY, x, train=False)))


def parameters(model: Any, channels: int) -> int:
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 24, 24, channels)), train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def test_parameters_are_those_of_the_paper():
    first, between, last = 9 * 64 + 64, 9 * 64 * 64 + 64, 9 * 64 + 1
    assert parameters(models.create("ircnn"), 1) == first + 5 * between + last == 185_857
    assert parameters(models.create("ircnn"), 3) == 185_857 + 2 * 9 * 64 + 2 * (9 * 64 + 1)
    # In place of the bias of each layer between, scale and bias of its normalisation.
    assert parameters(models.create("ircnn", norm="batch"), 1) == 185_857 + 5 * 64
    assert parameters(models.create("separable_ircnn"), 1) == first + 5 * (9 * 64 + 64 * 64 + 64) + last
    assert parameters(models.create("ircnn", dilations=(1,) * 7), 1) == 185_857


@pytest.mark.parametrize("name", CASES)
def test_contract(name):
    model = CASES[name]
    variables = filled(model)
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    y: Any = apply(X)
    assert (y.shape, y.dtype) == (X.shape, jnp.float32)
    chex.assert_trees_all_close(apply(X[1:]), y[1:], atol=1e-5)
    check_training(model, variables, X)
    check_summary(model, variables, X)
    half: Any = jax.jit(lambda x: model.clone(dtype=jnp.bfloat16).apply(variables, x, train=False))(X.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    chex.assert_trees_all_close(half, y, atol=0.1 * float(jnp.abs(y).max()) + 0.02)


def test_it_equals_the_reference():
    model = CASES["dense"]
    variables = filled(model)
    layers, y = variables["params"], np.asarray(X, np.float64)
    for i, dilation in enumerate(SMALL["dilations"]):
        layer = layers["residual"] if i == 3 else layers[f"ConvNormAct_{i}"]["DilatedConv_0"]
        y = reference.conv(y, np.asarray(layer["kernel"]), dilation=dilation, padding="SAME") + np.asarray(layer["bias"])
        y = y if i == 3 else np.maximum(y, 0)
    np.testing.assert_allclose(model.apply(variables, X, train=False), np.asarray(X) - y, rtol=1e-4, atol=1e-4)  # pyright: ignore


@pytest.mark.parametrize("name", ["dense", "separable, batch"])
def test_receptive_field_equals_an_impulse(name):
    model = CASES[name]
    variables = positive(filled(model))
    assert check_receptive_field(lambda x: model.apply(variables, x, train=False), (1, 31, 29, 2)) > 0


def test_receptive_field_of_the_paper():
    model, x = models.create("ircnn"), jax.ShapeDtypeStruct((1, 80, 80, 1), jnp.float32)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(lambda: model.init(KEY, jnp.zeros(x.shape), train=False)))
    assert [field.size for field in dilax.receptive_field(lambda x: model.apply(zeros, x, train=False), x)] == [33, 33]  # pyright: ignore


@pytest.mark.parametrize("name", ["dense", "separable, batch"])
def test_tiles_equal_the_whole(name):
    model, x = CASES[name], random_input((1, 61, 47, 2), 4)
    variables = filled(model)
    whole = model.apply(variables, x, train=False)
    np.testing.assert_allclose(dilax.tiled(lambda x: model.apply(variables, x, train=False), (20, 24))(x), whole, rtol=1e-5, atol=1e-5)  # pyright: ignore


def test_it_is_a_residual_network():
    """Without its last layer it returns the image as it is."""
    variables = filled(CASES["separable"])
    params = {**variables["params"], "residual": jax.tree.map(jnp.zeros_like, variables["params"]["residual"])}
    np.testing.assert_array_equal(CASES["separable"].apply({"params": params}, X, train=False), X)


@pytest.mark.parametrize(
    ("fields", "x", "text"),
    [
        ({"dilations": (1,)}, X, "IRCNN: dilations=(1,) must have an entry for the first and one for the last layer, or more."),
        ({}, X[0], "IRCNN: x of shape (17, 15, 2) must be (batch, height, width, channels); add the missing axes."),
    ],
)
def test_mistakes_are_one_line(fields, x, text):
    with pytest.raises(UserError) as error:
        models.create("ircnn", **fields).init(KEY, x, train=False)
    assert str(error.value) == text
