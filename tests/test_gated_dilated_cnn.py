"""The gated dilated network for classification of sequences: the contract, and a comparison with numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, check_model, check_receptive_field, check_summary, check_training, positive, random_input

from dilax import models
from dilax.errors import UserError
from dilax.models.gated_dilated_cnn import GatedBlock

CODES = jnp.asarray(np.random.default_rng(0).integers(0, 9, (3, 12)), jnp.int32)


@pytest.mark.parametrize(("pooling", "norm"), [("max", "layer"), ("both", "batch")])
def test_contract(pooling, norm):
    model = models.create("gated_dilated_cnn", num_classes=7, features=6, dilations=(1, 3), pooling=pooling, norm=norm, dropout=0.2)
    check_model(model, random_input((3, 12, 5)), 7)


def test_of_codes():
    model: Any = models.create(
        "gated_dilated_cnn", num_classes=4, features=6, vocabulary=9, embedding_features=5, pooling="mean", dtype=jnp.bfloat16
    )
    variables = model.init(KEY, CODES, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    logits = model.apply(variables, CODES, train=False)
    assert (logits.shape, logits.dtype) == ((3, 4), jnp.float32)
    check_training(model, variables, CODES)
    check_summary(model, variables, CODES)


def test_a_block_equals_the_paper():
    x = np.asarray(random_input((2, 9, 3)))
    block = GatedBlock(3, 2, norm="none")
    shapes = jax.eval_shape(lambda: block.init(KEY, jnp.asarray(x), train=False))
    variables = jax.tree.map(lambda leaf: random_input(leaf.shape, len(leaf.shape)), shapes)
    kernel, bias = (np.asarray(variables["params"]["conv"][name]) for name in ("kernel", "bias"))
    padded = np.pad(x, ((0, 0), (2, 2), (0, 0)))
    wide = sum(padded[:, 2 * tap : 2 * tap + 9] @ kernel[tap] for tap in range(3)) + bias
    expected = x + wide[..., :3] / (1 + np.exp(-wide[..., 3:]))
    actual: Any = block.apply(variables, jnp.asarray(x), train=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_receptive_field_of_the_blocks():
    model = models.create("gated_dilated_cnn", features=3, dilations=(1, 3), norm="none")
    shape = (1, 61, 3)
    variables = positive(model.init(KEY, jnp.zeros(shape), train=False))

    def trunk(x: jax.Array) -> Any:
        keep = lambda module, _: isinstance(module, GatedBlock)  # noqa: E731
        _, state = model.apply(variables, x, train=False, capture_intermediates=keep, mutable=["intermediates"])
        return state["intermediates"]["block1"]["__call__"][0]

    check_receptive_field(trunk, shape)


def test_both_poolings_are_concatenated():
    x, mask = random_input((3, 7, 4)), jnp.asarray(np.arange(7) < np.array([[7], [3], [1]]))
    head = {"head": {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}}
    model = models.create("gated_dilated_cnn", num_classes=8, features=4, dilations=(1,), pooling="both", norm="none")
    block = jax.tree.map(jnp.zeros_like, model.init(KEY, x, train=False)["params"]["block0"])
    pooled = [np.stack([fn(x[i, :n], 0) for i, n in enumerate((7, 3, 1))]) for fn in (jnp.max, jnp.mean)]
    actual: Any = model.apply({"params": {"block0": block, **head}}, x, train=False, mask=mask)
    np.testing.assert_allclose(actual, np.concatenate(pooled, 1), rtol=1e-5)


ERRORS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "pooling": (
        {"pooling": "men"},
        jnp.ones((2, 5, 3)),
        "GatedDilatedCNN: pooling='men' is unknown; use one of ('max', 'mean', 'both'). Did you mean \"mean\"?",
    ),
    "dilations": (
        {"dilations": ()},
        jnp.ones((2, 5, 3)),
        "GatedDilatedCNN: dilations=() must not be empty; give one per block, such as (1, 2, 4, 8).",
    ),
    "codes": (
        {},
        CODES,
        "GatedDilatedCNN: x must be floats (batch, time, channels), got int32 (3, 12); set `vocabulary` for integer codes.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_texts(name):
    fields, x, text = ERRORS[name]
    with pytest.raises(UserError) as error:
        models.create("gated_dilated_cnn", **fields).init(KEY, x, train=False)
    assert str(error.value) == text
