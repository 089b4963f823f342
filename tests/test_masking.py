"""Sequences of different lengths in a padded batch: padding never affects a result."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, random_input
from selection import with_slow

from dilax import models
from dilax.blocks import NORMS, Norm, masked

LENGTHS = np.array([17, 5, 12, 1])
MASK = jnp.asarray(np.arange(17)[None] < LENGTHS[:, None])
X = random_input((4, 17, 3))
CODES = jnp.asarray(np.random.default_rng(1).integers(0, 7, (4, 17)), jnp.int32)
SMALL: Any = dict(features=6, kernel_size=4, stride=2, bottleneck_features=5, hidden_features=7, skip_features=4, blocks=2, repeats=1)
# The model, a padded batch, and whether it has outputs at every step.
CASES: dict[str, tuple[Any, jax.Array, bool]] = {
    "tcn": (models.create("tcn", out_features=2, kernel_size=3, features=(4, 6)), X, True),
    "tcn, looking ahead": (models.create("tcn", out_features=2, kernel_size=3, features=(4, 6), causal=False), X, True),
    "conv_tasnet": (models.create("conv_tasnet", **SMALL), X[..., :1], True),
    "conv_tasnet, causal": (models.create("conv_tasnet", causal=True, **SMALL | dict(blocks=1)), X[..., :1], True),
    "conv_tasnet, wide frames": (
        models.create("conv_tasnet", norm="batch", **SMALL | dict(kernel_size=9, stride=3, blocks=1)),
        X[..., :1],
        True,
    ),
    "gated_dilated_cnn, max": (models.create("gated_dilated_cnn", features=4, dilations=(3,)), X, False),
    "gated_dilated_cnn, mean": (
        models.create("gated_dilated_cnn", features=4, dilations=(2,), pooling="mean", norm="batch", dropout=0.2),
        X,
        False,
    ),
    "gated_dilated_cnn of codes": (models.create("gated_dilated_cnn", dilations=(2,), pooling="both", vocabulary=7), CODES, False),
    "ms_tcn": (models.create("ms_tcn", out_features=3, stages=2, features=4, dilations=(1, 4), dropout=0.2), X, True),
    "id_cnn": (models.create("id_cnn", features=4, dilations=(1, 2), iterations=2, dropout=0.2), X, True),
    "id_cnn of codes": (models.create("id_cnn", features=4, dilations=(2,), vocabulary=7, embedding_features=3), CODES, True),
    "separable_tcn, looking ahead": (
        models.create("separable_tcn", out_features=2, features=4, dilations=(1, 3), causal=False, dropout=0.2),
        X,
        True,
    ),
    "separable_tcn, over all of time": (
        models.create("separable_tcn", out_features=2, features=4, dilations=(2,), norm="global", causal=False),
        X,
        True,
    ),
    "separable_tcn": (models.create("separable_tcn", out_features=2, features=4, dilations=(2,)), X, True),
    "tcn of codes": (models.create("tcn", kernel_size=2, features=(4,), causal=False, vocabulary=7, embedding_features=3), CODES, True),
}
REPEATS = (
    "conv_tasnet, causal",
    "id_cnn of codes",
    "separable_tcn, looking ahead",
    "separable_tcn",
    "tcn of codes",
)


def variables_of(model: Any, x: jax.Array) -> Any:
    """Random variables, including the running statistics."""
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [jnp.asarray(np.abs(random_input(leaf.shape, i)) * 0.3 + 0.05) for i, leaf in enumerate(leaves)])


@pytest.mark.parametrize("name", with_slow(CASES, repeats=REPEATS))
def test_a_padded_sequence_equals_the_sequence_alone(name):
    model, x, steps = CASES[name]
    variables = variables_of(model, x)
    apply = jax.jit(functools.partial(model.apply, train=False))
    together = apply(variables, x, mask=MASK)
    for i, length in enumerate(LENGTHS):
        alone = apply(variables, x[i : i + 1, :length], mask=MASK[i : i + 1, :length])
        chex.assert_trees_all_close(together[i : i + 1, :length] if steps else together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(apply(variables, x), apply(variables, x, mask=jnp.ones_like(MASK)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", with_slow(CASES, repeats=REPEATS))
def test_nothing_leaks_from_the_padding_in_training(name):
    """The padding affects neither the loss, nor its gradients, nor the running statistics."""
    model, x, steps = CASES[name]
    variables = variables_of(model, x)

    @jax.jit
    def trained(x: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            rngs = {"dropout": KEY}
            y, updates = model.apply({**variables, "params": params}, x, train=True, mask=MASK, mutable=["batch_stats"], rngs=rngs)
            return jnp.sum((masked(y, MASK) if steps else y) * random_input(y.shape, 2)), updates

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    noise = CODES[::-1] if jnp.issubdtype(x.dtype, jnp.integer) else 100 * random_input(x.shape, 3)
    other = jnp.where(MASK.reshape(*MASK.shape, *(1,) * (x.ndim - 2)), x, noise)
    assert not bool((other == x).all())
    chex.assert_trees_all_close(trained(x), trained(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NORMS)
def test_norm_ignores_masked_samples(kind):
    """Against the statistics of the valid samples, computed by numpy."""
    norm = Norm(kind)
    variables = norm.init(KEY, X, train=False)
    y, updates = norm.apply(variables, X, train=True, mask=MASK, mutable=["batch_stats"])
    rows = np.concatenate([X[i, :length] for i, length in enumerate(LENGTHS)])
    if kind == "batch":
        chex.assert_trees_all_close(y[2, :12], (np.asarray(X[2, :12]) - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(updates["batch_stats"]["BatchNorm_0"]["mean"], 0.1 * rows.mean(0), rtol=1e-4)
    elif kind == "global":
        real = np.asarray(X[2, :12])
        chex.assert_trees_all_close(y[2, :12], (real - real.mean()) / np.sqrt(real.var() + 1e-8), rtol=1e-4, atol=1e-5)
    else:
        alone = norm.apply(variables, X[2:3, :12], train=True, mutable=["batch_stats"])[0]
        chex.assert_trees_all_close(y[2:3, :12], alone, rtol=1e-4, atol=1e-5)
