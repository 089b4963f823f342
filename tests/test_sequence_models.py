"""Properties of single sequence models: ByteNet against loops, its encoder and masks; parameter counts and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, check_receptive_field, check_training, positive, random_input

import dilax
from dilax import models
from dilax.errors import UserError
from dilax.models.bytenet import unfold

RNG = np.random.default_rng(0)
BYTENET: Any = models.ByteNet(9, 6, 3, (1, 2), source_vocabulary=5, dropout=0.2)
SEPARABLE: Any = models.SeparableTCN(3, 4, 3, (1, 2), dropout=0.2)
X, SOURCE = (jnp.asarray(RNG.integers(0, n, shape), jnp.int32) for n, shape in ((9, (2, 11)), (5, (2, 7))))
MASK = jnp.asarray(np.arange(7)[None] < np.array([[7], [4]]))


def random_variables(model: Any, *args: Any, **kwargs: Any) -> Any:
    shapes = jax.eval_shape(lambda: model.init(KEY, *args, train=False, **kwargs))
    return jax.tree.map(lambda a: jnp.asarray(np.abs(RNG.normal(0.1, 0.5, a.shape)), a.dtype), shapes)


def loops(p: Any, codes: np.ndarray, condition: np.ndarray | None, dilations: tuple[int, ...], ahead: int) -> np.ndarray:
    """A stack over one sequence of codes, one output after the other; `ahead` of the three taps look ahead."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    x = p["embedding"]["embedding"][codes] + (0 if condition is None else condition)

    def act(x: np.ndarray, norm: Any) -> np.ndarray:
        scale, bias = norm["LayerNorm_0"]["scale"], norm["LayerNorm_0"]["bias"]
        return np.maximum((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias, 0)

    for i, dilation in enumerate(dilations):
        b = p[f"block{i}"]
        y = act(act(x, b["norm0"]) @ b["reduce"]["kernel"] + b["reduce"]["bias"], b["norm1"])
        z = np.tile(b["conv"]["bias"], (len(y), 1))
        for t in range(len(y)):
            for tap in range(3):
                at = t + (tap - 2 + ahead) * dilation
                if 0 <= at < len(y):
                    z[t] += y[at] @ b["conv"]["kernel"][tap]
        x = x + act(z, b["norm2"]) @ b["expand"]["kernel"] + b["expand"]["bias"]
    return act(x, p["last_norm"])


def test_bytenet_equals_loops():
    """The source ends where its mask does; its representation is added to the target, followed by zeros."""
    variables = random_variables(BYTENET, X, source=SOURCE)
    actual = BYTENET.apply(variables, X, train=False, source=SOURCE, source_mask=MASK)
    p = variables["params"]
    for i, length in enumerate((7, 4)):
        condition = np.zeros((11, 6))
        condition[:length] = loops(p["encoder"], np.asarray(SOURCE[i, :length]), None, (1, 2), 1)
        y = loops(p["decoder"], np.asarray(X[i]), condition, (1, 2), 0)
        y = np.maximum(y @ np.asarray(p["mix"]["kernel"]) + np.asarray(p["mix"]["bias"]), 0)
        np.testing.assert_allclose(actual[i], y @ np.asarray(p["head"]["kernel"]) + np.asarray(p["head"]["bias"]), rtol=1e-4, atol=1e-5)


def test_a_source_equals_its_condition():
    variables = random_variables(BYTENET, X, source=SOURCE)
    condition = unfold(BYTENET.apply(variables, SOURCE, MASK, method="encode"), 11)
    given = BYTENET.apply(variables, X, train=False, condition=condition)
    np.testing.assert_allclose(given, BYTENET.apply(variables, X, train=False, source=SOURCE, source_mask=MASK), rtol=1e-5)
    drawn = dilax.sample(BYTENET, variables, KEY, X[:, :3], 8, conditions={"condition": condition})
    assert drawn.shape == (2, 8)
    assert unfold(condition, 4).shape == (2, 4, 6)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_gradients_reach_every_parameter(dtype):
    alone: Any = models.ByteNet(9, 6, 3, (1, 2), dropout=0.2, dtype=dtype)
    for model, x in ((alone, X), (SEPARABLE.clone(dtype=dtype), random_input((2, 11, 5)))):
        variables = jax.jit(lambda key, model=model, x=x: model.init(key, x, train=False))(KEY)
        assert model.apply(variables, x, train=False).dtype == jnp.float32
        if dtype is None:
            check_training(model, variables, x)


@pytest.mark.parametrize(("causal", "behind", "ahead"), [(True, 2 * 3, 0), (False, 3, 3)])
def test_what_an_output_sees(causal, behind, ahead):
    model = SEPARABLE.clone(causal=causal, norm="none")
    variables = positive(random_variables(model, jnp.zeros((1, 40, 2))))
    fn = lambda x: model.apply(variables, x, train=False)  # noqa: E731
    (field,) = dilax.receptive_field(fn, jax.ShapeDtypeStruct((1, 40, 2), jnp.float32))
    assert (field.left, field.right) == (behind, ahead)
    check_receptive_field(fn, (1, 40, 2))
    dilax.check_causal(fn, random_input((2, 20, 2))) if causal else None


def test_counts():
    """Counted by hand: embedding, blocks (three norms, 1x1 down, convolution, 1x1 up), last norm, mix and head of ByteNet."""
    shapes = jax.eval_shape(lambda: models.ByteNet(50, 8, 3, (1, 2)).init(KEY, X, train=False))
    block = 2 * 8 + 2 * 4 + 2 * 4 + (8 * 4 + 4) + (3 * 4 * 4 + 4) + (4 * 8 + 8)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 50 * 8 + 2 * block + 16 + (64 + 8) + (8 * 50 + 50)
    shapes = jax.eval_shape(lambda: models.SeparableTCN(12, 16, 5, (1, 2)).init(KEY, random_input((1, 9, 40)), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 40 * 16 + 32 + 2 * (5 * 16 + 32 + 256 + 32) + (16 * 12 + 12)


MISTAKES = [
    (models.ByteNet(9, 5, 3, (1,)), X, {}, "ByteNet: features=5 must be an even number of at least 2, and dilations=(1,) must not be empty; use (1, 2, 4, 8, 16), for instance."),
    (models.ByteNet(9, 4, 3, (1,)), X, {"source": SOURCE}, "ByteNet: source_vocabulary=0 requires neither a source nor a condition."),
    (
        models.WaveNet(0, (1,), features=4),
        X,
        {},
        "WaveNet: with outputs='softmax' vocabulary=0 leaves no code; give the number of codes, such as 256.",
    ),
    (BYTENET, X, {}, "ByteNet: source_vocabulary=5 requires either a source or a condition."),
    (BYTENET, X, {"condition": jnp.ones((2, 7, 6))}, "ByteNet: a condition of shape (2, 7, 6) must have shape (2, 11, 6); see `unfold`."),
    (models.ByteNet(), random_input((2, 9, 1)), {}, "ByteNet: with vocabulary=256 x must be integer codes (batch, time), got float32 (2, 9, 1)."),
    (models.SeparableTCN(dilations=()), random_input((2, 9, 4)), {}, "SeparableTCN: dilations=() must not be empty; give one per block, such as (1, 2, 4, 8)."),
    (
        models.SeparableTCN(norm="global"),
        random_input((2, 9, 4)),
        {},
        "SeparableTCN: norm='global' looks at the whole sequence, which causal=True does not allow; use 'batch', 'layer' or "
        "'cumulative', or causal=False.",
    ),
    (models.SeparableTCN(), X, {}, "SeparableTCN: x must be floats (batch, time, channels), got int32 (2, 11); set `vocabulary` for integer codes."),
]  # fmt: skip


@pytest.mark.parametrize(("model", "x", "given", "words"), MISTAKES)
def test_error_texts(model, x, given, words):
    with pytest.raises(UserError) as caught:
        model.init(KEY, x, train=False, **given)
    assert str(caught.value) == words
