"""Labelling of sequences: its networks against loops, its losses step by step, the parts that a training step sees, and mistakes."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reading import check_call
from task_cases import CASES

from dilax import DataSpec, crf, models, plots
from dilax.context import identity_init
from dilax.losses import smoothing_loss
from dilax.tagging import allowed_transitions
from train.config import default_config, model_config
from train.data.readers import made_up
from train.tasks.actions import read_row
from train.tasks.sequence_labelling import SequenceLabelling

RNG = np.random.default_rng(4)
KEY = jax.random.key(5)


def random_variables(model: Any, x: jax.Array) -> Any:
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    return jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(0.1, 0.4, leaf.shape), leaf.dtype), shapes)


def dense(x: np.ndarray, p: Any) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def convolved(x: np.ndarray, p: Any, dilation: int, before: int) -> np.ndarray:
    """Three taps, `before` of which look back from each step; x outside its range is 0."""
    y = np.tile(p["bias"], (len(x), 1))
    for t in range(len(x)):
        for tap in range(3):
            at = t + (tap - before) * dilation
            if 0 <= at < len(x):
                y[t] += x[at] @ p["kernel"][tap]
    return y


@pytest.mark.parametrize("causal", [False, True])
def test_stages_equal_loops(causal):
    model: Any = models.MSTCN(3, stages=2, features=4, dilations=(1, 3), causal=causal)
    x = jnp.asarray(RNG.normal(size=(1, 8, 5)), jnp.float32)
    variables = random_variables(model, x)
    result, sown = jax.jit(lambda v: model.apply(v, x, train=False, mutable=["intermediates"]))(variables)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    y, found = np.asarray(x[0], np.float64), []
    for stage in (params["stage0"], params["stage1"]):
        y = dense(y, stage["input"])
        for layer, dilation in ((stage["layer0"], 1), (stage["layer1"], 3)):
            y = y + dense(np.maximum(convolved(y, layer["conv"], dilation, 2 if causal else 1), 0), layer["linear"])
        found.append(dense(y, stage["head"]))
        y = np.exp(found[-1]) / np.exp(found[-1]).sum(-1, keepdims=True)
    for ours, expected in zip(sown["intermediates"]["stages"], found, strict=True):
        np.testing.assert_allclose(ours[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result, sown["intermediates"]["stages"][-1])


def test_parameters_of_the_paper():
    """Four stages of ten layers of 64 features: 3 * 64 * 64 + 64 * 64 weights and 128 biases each."""
    shapes = jax.eval_shape(lambda: models.MSTCN(18).init(KEY, jnp.zeros((1, 9, 2048)), train=False))
    layers, heads = 40 * (4 * 64 * 64 + 128), 4 * (64 * 18 + 18)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == layers + heads + 2048 * 64 + 64 + 3 * (18 * 64 + 64)


def test_iterations_share_their_block_and_begin_as_the_identity():
    model: Any = models.IDCNN(3, features=4, dilations=(1, 2), iterations=3)
    x = jnp.asarray(RNG.normal(size=(1, 7, 5)), jnp.float32)
    variables = random_variables(model, x)
    _, sown = jax.jit(lambda v: model.apply(v, x, train=False, mutable=["intermediates"]))(variables)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    y = np.maximum(convolved(np.asarray(x[0], np.float64), params["input"], 1, 1), 0)
    for ours in sown["intermediates"]["stages"]:
        for name, dilation in (("conv0", 1), ("conv1", 2)):
            y = np.maximum(convolved(y, params["block"][name], dilation, 1), 0)
        np.testing.assert_allclose(ours[0], dense(y, params["head"]), rtol=1e-3, atol=1e-3)
    kernel = jax.jit(lambda: model.init(KEY, x, train=False))()["params"]["block"]["conv0"]["kernel"]
    np.testing.assert_allclose(kernel, identity_init(4)(KEY, (3, 4, 4)), atol=0.05)


def test_words_are_read_by_all_their_parts():
    """A change of a word's place in the vocabulary, of its shape or of a byte changes the outputs; one after the end of its bytes does not."""
    model: Any = models.IDCNN(
        3, features=4, dilations=(1,), iterations=1, vocabulary=9, embedding_features=3, character_features=4, crf=True
    )
    codes = jnp.asarray(np.concatenate([RNG.integers(1, 9, (1, 6, 2)), RNG.integers(1, 200, (1, 6, 4))], -1), jnp.int32)
    codes = codes.at[0, 2, 4:].set(0)
    run = jax.jit(lambda v, codes: model.apply(v, codes, train=False))
    variables = random_variables(model, codes)
    before = run(variables, codes)
    assert before.shape == (1, 6, 3, 3)
    for place in range(4):
        assert np.abs(run(variables, codes.at[0, 2, place].add(-1)) - before).max() > 1e-4, place
    transitions = variables["params"]["transitions"]
    emissions = before[:, :, 0] - transitions[None, None, 0]
    np.testing.assert_allclose(before, crf.chain_scores(emissions, transitions), rtol=1e-4, atol=1e-4)


def test_the_smoothing_loss_step_by_step():
    logits = RNG.normal(0, 4, (3, 6, 4)).astype(np.float32)
    mask = np.arange(6)[None] < np.array([[6], [3], [1]])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = jax.jit(lambda x: smoothing_loss(x, threshold=2.0, mask=jnp.asarray(mask)))(logits)
    for row, length, value in zip(log_p, (6, 3, 1), found):
        steps = [min(abs(row[t, c] - row[t - 1, c]), 2.0) ** 2 for t in range(1, length) for c in range(4)]
        assert float(value) == pytest.approx(np.mean(steps) if steps else 0.0, rel=1e-4)
    gradient = jax.jit(jax.grad(lambda x: smoothing_loss(x, threshold=100.0)[0]))(jnp.asarray(logits[:1]))
    assert np.abs(gradient[0, 0]).max() == 0 and np.abs(gradient[0, 1:]).max() > 0
    check_call(lambda: smoothing_loss(jnp.ones((2, 3))), "smoothing_loss: logits of shape (2, 3) must be (batch, time, classes).")


def task_of(spec: DataSpec, name: str, **changes: Any) -> SequenceLabelling:
    config = default_config("x", task="sequence_labelling")
    config.data.name = name
    config.update_from_flattened_dict(changes)
    config.model = model_config("ms_tcn")
    return SequenceLabelling(config, spec)


BATCH = {
    "input": np.arange(40, dtype=np.float32).reshape(2, 20, 1),
    "label": np.arange(40, dtype=np.int32).reshape(2, 20) % 3,
    "length": np.array([20, 4], np.int32),
    "counted": np.arange(20)[None] < np.array([[20], [4]]),
}


def test_the_loss_is_the_mean_over_the_stages():
    spec = DataSpec("x", (20, 1), ("a", "b", "c"))
    stages = tuple(jnp.asarray(RNG.normal(size=(2, 20, 3)), jnp.float32) for _ in range(3))
    found = jax.jit(task_of(spec, "actions", **{"sequence.smoothing": 0.3, "sequence.threshold": 1.5}).losses)(stages, BATCH)
    for i, length in enumerate(BATCH["length"]):
        losses = []
        for stage in stages:
            log_p = np.asarray(jax.nn.log_softmax(stage[i, :length]))
            smooth = np.minimum(np.abs(np.diff(log_p, axis=0)), 1.5) ** 2
            losses.append(-log_p[np.arange(length), BATCH["label"][i, :length]].mean() + 0.3 * smooth.mean())
        assert float(found[i]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_training_step_sees_a_part():
    task = task_of(DataSpec("x", (20, 1), ("a", "b", "c")), "actions", **{"sequence.crop": 8})
    starts, augment = set(), jax.jit(task.augment)
    for seed in range(12):
        part = augment(jax.random.key(seed), BATCH, 0)
        assert part["length"].tolist() == [8, 4] and part["counted"].sum(1).tolist() == [8, 4]
        first = int(part["input"][0, 0, 0])
        np.testing.assert_array_equal(part["input"][0, :, 0], np.arange(first, first + 8))
        np.testing.assert_array_equal(part["label"][0], np.arange(first, first + 8) % 3)
        np.testing.assert_array_equal(part["input"][1, :4, 0], np.arange(20, 24))
        starts.add(first)
    assert len(starts) > 4 and max(starts) <= 12


def test_a_part_of_a_sentence_begins_no_span_in_its_middle():
    task = task_of(
        DataSpec("x", (20, 3), ("O", "B-x", "I-x"), symbols=("<unknown>", "a")),
        "conll",
        **{"sequence.crop": 5, "sequence.word_dropout": 0.5},
    )
    labels = np.array([[1, *[2] * 19], [0] * 20], np.int32)
    batch = {**BATCH, "input": np.ones((2, 20, 3), np.int32), "label": labels}
    part = jax.jit(task.augment)(KEY, batch, 0)
    assert part["label"][0].tolist() == [1, 2, 2, 2, 2]
    assert set(np.unique(part["input"][..., 0]).tolist()) == {0, 1} and part["input"][..., 1:].min() == 1


def test_the_background_is_left_out():
    spec = DataSpec("x", (20, 1), ("a", "b", "c"))
    outputs = jax.nn.one_hot(np.roll(BATCH["label"], 1, 1), 3)
    batch = {**BATCH, "mask": np.ones(2, bool)}
    tasks = {name: task_of(spec, "actions", **{"sequence.background": name}) for name in ("", "b")}
    counts = {name: jax.jit(task.sums)(outputs, batch)["segments"] for name, task in tasks.items()}
    assert int(counts["b"][0, [0, 2]].sum()) < int(counts[""][0, [0, 2]].sum()) == 24


def test_made_up_actions_are_labelled_runs():
    first, again, other = (made_up.actions(3, 60, 1, seed) for seed in (0, 0, 1))
    for (x, labels), (same, _), (different, _) in zip(first, again, other):
        assert x.shape == (len(labels), 6) and 30 <= len(labels) <= 60
        np.testing.assert_array_equal(x, same)
        assert x.shape != different.shape or not np.array_equal(x, different)
        assert len(set(labels)) > 1
    check_call(
        lambda: made_up.actions(1, 23, 0), 'config.sequence.length=23 is too short for data.name="actions"; give 24 or more, or 0 for 200.'
    )


def test_segments_are_drawn_as_bars():
    figure = plots.segment_bars([[0, 0, 2], [1]], [[0, 2, 2], [1]], ("a", "b", "c"))
    colours = plots.mask_colours(3)
    for axes, pair in zip(figure.axes, (([0, 0, 2], [0, 2, 2]), ([1], [1]))):
        picture = np.asarray(axes.images[0].get_array())
        for line, row in zip(picture, pair):
            np.testing.assert_array_equal(line[: len(row)], colours[np.array(row)])
            assert (line[len(row) :] == 255).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]


def open_case(folder: pathlib.Path, name: str, **changes: Any) -> Any:
    return SequenceLabelling.open(CASES[name].config(folder, **changes))


def test_mistakes(tmp_path):
    check_call(
        lambda: open_case(tmp_path / "a", "recordings", **{"sequence.background": "rests"}),
        f"config.sequence.background='rests' is not a class of {tmp_path}/a/data (a fixed part of it is the test split); use one of rest, "
        "cut, mix, never, or ''. Did you mean \"rest\"?",
    )
    check_call(
        lambda: open_case(tmp_path / "b", "tags", **{"data.name": "connll"}),
        "config.data.name='connll' is not data for config.task='sequence_labelling'; use one of ('recordings', 'mat', 'actions', 'conll'). "
        'Did you mean "conll"?',
    )
    check_call(lambda: read_row("1,x", 3, 2), "line 3: '1,x' is not a row of numbers; give the 2 features of a step.")
    check_call(lambda: read_row("1", 3, 2), "line 3 has 1 numbers, not all finite or not 2; give the 2 features of a step.")


def test_what_may_follow_holds_in_training():
    """The likelihood of legal tags is that among legal tags alone."""
    names = ("O", "B-x", "I-x")
    task = task_of(DataSpec("x", (20, 3), names, symbols=("<unknown>", "a")), "conll")
    outputs = jnp.asarray(RNG.normal(size=(2, 20, 3, 3)), jnp.float32)
    batch = {**BATCH, "label": np.tile(np.arange(20) % 3, (2, 1)).astype(np.int32)}
    scores = jnp.where(jnp.asarray(allowed_transitions(names))[None, None], outputs, -jnp.inf)
    # -inf leaves illegal paths out of the sum, as it may where no gradient is taken.
    expected = -jax.jit(crf.log_likelihood)(jnp.maximum(scores, -1e6), batch["label"], batch["counted"]) / jnp.array([20.0, 4.0])
    np.testing.assert_allclose(jax.jit(task.losses)((outputs,), batch), expected, rtol=1e-4)
