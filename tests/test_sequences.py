"""Tasks and data of sequences: what is scored, and that nothing behind an end is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.data.open_sequences import load_sequences

from dilax.errors import UserError
from train import data, run, sequences
from train.config import check, default_config, model_config
from train.data.readers.made_up import adding, copy_memory
from train.data.windows import Table, padded, windows
from train.evaluate import score
from train.tasks import TASKS

RNG = np.random.default_rng(0)
LENGTHS = np.array([9, 4, 1, 7, 9, 2, 5, 6], np.int32)
TIME = 9


def config_of(task: str, model: Any = "tcn", fields: Any = None, **changes: Any) -> Any:
    config = default_config("test")
    config.task = task
    small = {"tcn": dict(kernel_size=2, features=(4, 4)), "wavenet": dict(dilations=(1, 2), features=4, skip_features=4)}
    config.model = {"name": model, **model_config(model, **{**small.get(model, {}), **(fields or {})})}
    config.batch_size = 8
    config.optim.update(name="sgd", lr=0.05, warmup_epochs=0.0)
    config.update_from_flattened_dict(changes)
    return config


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def codes(*shape: int) -> np.ndarray:
    return RNG.integers(0, 5, shape).astype(np.int32)


COUNTED = (np.arange(TIME)[None] < LENGTHS[:, None]) & (RNG.random((8, TIME)) < 0.7)
# Task, changes of the config, inputs, labels, outputs, symbols.
CASES: dict[str, tuple[str, dict[str, Any], np.ndarray, np.ndarray, int, int]] = {
    "classes, last": ("sequence_classification", {}, floats(8, TIME, 2), codes(8), 5, 0),
    "classes, mean": ("sequence_classification", {"sequence.pool": "mean"}, floats(8, TIME, 2), codes(8), 5, 0),
    "classes, max, of codes": ("sequence_classification", {"sequence.pool": "max"}, codes(8, TIME), codes(8), 5, 5),
    "classes, mean, looking ahead": (
        "sequence_classification",
        {"sequence.pool": "mean", "model.causal": False},
        floats(8, TIME, 2),
        codes(8),
        5,
        0,
    ),
    "classes, statistics of the batch": (
        "sequence_classification",
        {"model": "separable_tcn", "fields": dict(features=4, dilations=(1, 2), causal=False), "sequence.pool": "mean"},
        floats(8, TIME, 2),
        codes(8),
        5,
        0,
    ),
    "numbers": ("sequence_prediction", {}, floats(8, TIME, 2), floats(8, TIME, 3), 3, 0),
    "bits": ("sequence_prediction", {"sequence.loss": "binary"}, floats(8, TIME, 2), (floats(8, TIME, 3) > 0).astype(np.float32), 3, 0),
    "codes": ("sequence_prediction", {"sequence.loss": "categorical"}, codes(8, TIME), codes(8, TIME), 5, 5),
    "language": ("language_model", {}, codes(8, TIME), codes(8, TIME), 5, 5),
    "waves": ("waveform", {}, codes(8, TIME), codes(8, TIME), 5, 5),
    "sources": ("separation", {}, floats(8, TIME, 1), floats(8, TIME, 2), 2, 0),
}


def batch_of(name: str) -> dict[str, np.ndarray]:
    task, _, x, y, _, _ = CASES[name]
    batch = {"input": x, "label": y, "length": LENGTHS}
    return batch if task in ("sequence_classification", "separation") else {**batch, "counted": COUNTED}


def made_of(name: str, **changes: Any) -> run.Setup:
    task, given, x, _, outputs, symbols = CASES[name]
    return run.setup(config_of(task, **given, **changes), outputs, x.shape[1:], 80, vocabulary=symbols)


def spoilt(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with other values wherever nothing is to be read."""
    other = dict(batch)
    behind = np.arange(TIME)[None] >= LENGTHS[:, None]
    unread = {"input": behind, "label": ~batch.get("counted", ~behind)}
    for key in ("input", "label") if batch["label"].ndim > 1 else ("input",):
        noise = codes(*batch[key].shape) if batch[key].dtype == np.int32 else 50 * floats(*batch[key].shape)
        where = unread[key].reshape(8, TIME, *(1,) * (batch[key].ndim - 2))
        other[key] = np.where(where, noise, batch[key])
        assert not np.array_equal(other[key], batch[key])
    return other


@pytest.mark.parametrize("name", CASES)
def test_nothing_behind_an_end_counts(name):
    """Neither in a step nor in the figures."""
    made, batch = made_of(name), batch_of(name)
    step, evaluate = jax.jit(made.steps.train), jax.jit(made.steps.evaluate)
    state, results = made.steps.init(made.init()), []
    for one in (batch, spoilt(batch)):
        after, sums = step(state, one, jax.random.key(0))
        counts = {**one, "mask": np.arange(8) < 7}
        results.append(jax.device_get((after.params, sums, evaluate(made.init(), counts))))
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1])):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert float(results[0][1]["count"]) == 8


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def oracle(name: str, outputs: np.ndarray, batch: dict[str, np.ndarray]) -> dict[str, float]:
    """The figures, one sequence and one step after the other."""
    task, changes, _, _, _, _ = CASES[name]
    if task == "separation":
        return separation_oracle(outputs, batch)
    losses, right = [], []
    for y, label, length, counted in zip(outputs, batch["label"], batch["length"], batch.get("counted", batch["length"])):
        if task == "sequence_classification":
            real = y[:length]
            pool = changes.get("sequence.pool", "last")
            logits = {"last": real[-1], "mean": real.mean(0), "max": real.max(0)}[pool]
            losses.append(-log_softmax(logits)[label])
            right.append(logits.argmax() == label)
            continue
        for t in np.flatnonzero(counted):
            if name == "numbers":
                losses.append(((y[t] - label[t]) ** 2).mean())
            elif name == "bits":
                p = 1 / (1 + np.exp(-y[t]))
                losses.append(-(label[t] * np.log(p) + (1 - label[t]) * np.log(1 - p)).sum())
            else:
                losses.append(-log_softmax(y[t])[label[t]])
                right.append(y[t].argmax() == label[t])
    loss = float(np.mean(losses))
    named = {"numbers": {"mse": loss}, "bits": {"nll": loss}, "language": {"bits_per_character": loss / np.log(2)}}
    named["waves"] = {"bits_per_sample": loss / np.log(2)}
    return {"loss": loss, **named.get(name, {}), **({"accuracy": float(np.mean(right))} if right else {})}


def separation_oracle(outputs: np.ndarray, batch: dict[str, np.ndarray]) -> dict[str, float]:
    def decibels(estimate: np.ndarray, target: np.ndarray) -> float:
        e, t = estimate - estimate.mean(), target - target.mean()
        if not e.any() or not t.any():
            return -80.0
        along = (e @ t) / (t @ t) * t
        shares = [part @ part / (e @ e) + 1e-8 for part in (along, e - along)]
        return 10 * np.log10(shares[0] / shares[1])

    best, before = [], []
    for y, label, x, length in zip(outputs, batch["label"], batch["input"], batch["length"]):
        ratios = [[decibels(y[:length, i], label[:length, j].astype(float)) for j in range(2)] for i in range(2)]
        best.append(max(ratios[0][0] + ratios[1][1], ratios[0][1] + ratios[1][0]) / 2)
        before.append(np.mean([decibels(x[:length, 0].astype(float), label[:length, j].astype(float)) for j in range(2)]))
    return {"si_sdr": float(np.mean(best)), "si_sdr_improvement": float(np.mean(best) - np.mean(before)), "loss": -float(np.mean(best))}


@pytest.mark.parametrize("name", CASES)
def test_figures_are_those_of_every_step_alone(name):
    """A batch of 8 on 8 devices, and a last one that is filled up."""
    made, batch = made_of(name), batch_of(name)
    twice = {key: np.concatenate([values, values[:3]]) for key, values in batch.items()}
    variables = jax.tree.map(lambda leaf: jnp.asarray(floats(*leaf.shape)), made.shapes)
    found, _ = score(made, made.parallel.put(variables), Table(twice))
    outputs = np.asarray(made.steps.outputs(variables, twice), np.float64)
    expected = oracle(name, outputs, twice)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4)
    assert made.steps.task.best_by in found


@pytest.mark.parametrize("kind", ["jit", "pmap"])
@pytest.mark.parametrize(("name", "parts"), [("classes, mean", 2), ("codes", 2), ("classes, statistics of the batch", 1)])
def test_parts_and_devices_do_not_change_a_step(name, parts, kind):
    changes = {"batch_size": 16, "optim.accumulate": parts, "parallel": kind}
    batch = {key: np.concatenate([values, values[::-1]]) for key, values in batch_of(name).items()}
    one, many = made_of(name, batch_size=16), made_of(name, **changes)
    alone, _ = jax.jit(one.steps.train)(one.steps.init(one.init()), batch, jax.random.key(0))
    state, _ = many.parallel.train(many.parallel.put(many.steps.init(many.init())), many.parallel.put_batch(batch), jax.random.key(0))
    spread = many.parallel.get(state)
    for a, b in zip(jax.tree.leaves((alone.params, alone.batch_stats)), jax.tree.leaves((spread.params, spread.batch_stats))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(4, 0, 0), (5, 2, 0), (3, 2, 0), (7, 6, 0), (30, 8, 0), (5, 2, 3), (6, 1, 2), (7, 3, 1)]
)
def test_windows_score_every_sample_but_the_first_once_or_as_often_as_they_overlap(length, context, stride):
    long = [np.arange(100, 117), np.arange(200, 208), np.array([300]), np.arange(400, 402)]
    cut = windows(long, length, context, "it", stride=stride, short=length > 17)
    seen: list[int] = []
    for i in range(len(cut)):
        record = cut[i]
        for x, y, counted, step in zip(record["input"], record["label"], record["counted"], range(length)):
            if step < record["length"]:
                assert y == x + 1
            else:
                assert not counted
            if counted:
                seen.append(int(y))
                before = min(context, int(y) % 100 - 1)
                assert step >= before
                np.testing.assert_array_equal(record["input"][step - before : step + 1], np.arange(x - before, x + 1))
    times = {n: seen.count(n) for one in long for n in one[1:]}
    assert sum(times.values()) == len(seen)
    assert min(times.values()) == 1
    stride = stride or length - context
    assert max(times.values()) == -(-(length - context) // stride)
    assert set(np.diff(cut.starts[cut.starts < 17])) <= {stride}
    both = cut.gather(np.array([0, len(cut) - 1]))
    np.testing.assert_array_equal(both["label"][1], cut[len(cut) - 1]["label"])


def test_adding_is_the_sum_of_the_two_marked():
    table = adding(50, 11, 3)
    for x, y, counted in zip(*(table.arrays[name] for name in ("input", "label", "counted"))):
        marked = np.flatnonzero(x[:, 1])
        assert (len(marked), marked[0] < 5, marked[1] >= 5) == (2, True, True)
        assert y[-1, 0] == pytest.approx(x[marked, 0].sum())
        assert counted.tolist() == [False] * 10 + [True]
    assert 0 <= table.arrays["input"].min() < 0.05 < 0.95 < table.arrays["input"].max() <= 1
    np.testing.assert_array_equal(adding(50, 11, 3).arrays["input"], table.arrays["input"])
    assert not np.array_equal(adding(50, 11, 4).arrays["input"], table.arrays["input"])


def test_copy_memory_says_again_what_it_saw():
    table = copy_memory(30, 6, 1)
    for x, y in zip(table.arrays["input"], table.arrays["label"]):
        assert len(x) == len(y) == 26
        assert set(x[:10]) <= set(range(1, 9))
        assert (x[10:15].tolist(), x[15:].tolist()) == ([0] * 5, [9] * 11)
        assert (y[:16].tolist(), y[16:].tolist()) == ([0] * 16, x[:10].tolist())
    assert set(np.unique(table.arrays["input"])) == set(range(10))


def test_pixels_are_a_sequence_row_by_row_or_in_one_order_for_all():
    images = jnp.arange(2 * 3 * 4 * 2.0).reshape(2, 3, 4, 2)
    np.testing.assert_array_equal(sequences.pixels(images, False)[1, 5], images[1, 1, 1])
    mixed = sequences.pixels(images, True)
    assert not np.array_equal(mixed, sequences.pixels(images, False))
    np.testing.assert_array_equal(np.sort(mixed, axis=1), sequences.pixels(images, False))
    np.testing.assert_array_equal(mixed[1] - mixed[0], jnp.full((12, 2), 24.0))


def test_digits_are_read_as_sequences():
    config = config_of("sequence_classification", **{"data.name": "digits8x8", "sequence.permute": True, "augment.crop_padding": 1})
    splits = data.open_splits(config)
    assert (splits.input_shape, len(splits.class_names)) == ((64, 1), 10)
    made = run.setup(config, 10, splits.input_shape, len(splits.train))
    batch = next(data.train_batches(splits.train, 8, seed=0))
    _, sums = jax.jit(made.steps.train)(made.steps.init(made.init()), batch, jax.random.key(0))
    assert 0 < float(sums["loss"]) / 8 < 10
    assert np.isfinite(list(score(made, made.parallel.put(made.init()), splits.test)[0].values())).all()


MISTAKES = {
    "no such data": (
        lambda: data.open_splits(config_of("language_model", **{"data.name": "txt"})),
        "config.data.name='txt' is no data for config.task='language_model'; use one of ('text', 'bible'). Did you mean \"text\"?",
    ),
    "no length": (
        lambda: data.open_splits(config_of("sequence_prediction", **{"data.name": "adding"})),
        "config.sequence.length=0 says no length for data.name='adding'; set it, such as 200.",
    ),
    "too short to add": (
        lambda: adding(3, 1, 0),
        'config.sequence.length=1 is too short for data.name="adding", which marks two steps; give 2 or more.',
    ),
    "a key of images": (
        lambda: data.open_splits(config_of("sequence_prediction", **{"data.name": "adding", "data.per_class": 3, "sequence.length": 9})),
        "config.data.per_class=3 has no meaning for data.name='adding'; leave it out.",
    ),
    "beyond the padded size": (
        lambda: padded([np.ones((3, 1)), np.ones((6, 1))], 5),
        "data: sequence 1 has 6 steps, and 1 to 5 fit; set config.sequence.length to the longest.",
    ),
    "an empty sequence": (
        lambda: padded([np.ones((0, 1))], 5),
        "data: sequence 0 has 0 steps, and 1 to 5 fit; set config.sequence.length to the longest.",
    ),
    "shorter than a window": (
        lambda: windows([np.arange(9), np.arange(5)], 9, 0, "the training split of text"),
        "the training split of text has at most 9 samples in one piece, and a window needs config.sequence.length + 1 = 10; "
        "make it less, or give more data.",
    ),
    "nothing to foretell": (
        lambda: windows([np.arange(1)], 9, 0, "the test split of csv", short=True),
        "the test split of csv has at most 1 samples in one piece, and 2 are needed; give more data.",
    ),
    "context of a whole window": (
        lambda: windows([np.arange(50)], 9, 9, "it"),
        "config.sequence.context=9 leaves nothing of windows of config.sequence.length=9; make it less.",
    ),
    "windows too far apart": (
        lambda: windows([np.arange(50)], 9, 4, "it", stride=6),
        "config.sequence.stride=6 leaves samples out between windows of config.sequence.length=9 of which config.sequence.context=4 are "
        "not scored; make it at most 5.",
    ),
    "a misspelt pool": (
        lambda: check(config_of("sequence_classification", **{"sequence.pool": "men"})),
        "config.sequence.pool='men' is unknown; use one of ('last', 'mean', 'max'). Did you mean \"mean\"?",
    ),
    "a loss of other data": (
        lambda: check(config_of("sequence_prediction", **{"data.name": "copy_memory"})),
        "config.sequence.loss='mse' does not fit data.name='copy_memory'; set it to 'categorical'.",
    ),
    "a model that sees the answer": (
        lambda: check(config_of("language_model", **{"model.causal": False, "data.name": "text"})),
        "config.model.causal=False shows the network what config.task='language_model' on data.name='text' asks it to tell; leave it True.",
    ),
    "a model that may look ahead": (
        lambda: check(config_of("sequence_prediction", "unet_dilated", **{"data.name": "csv"})),
        "config.model.name='unet_dilated' is no causal model of what config.task='sequence_prediction' on data.name='csv' asks it to tell; "
        "use one of ('separable_tcn', 'tcn').",
    ),
    "a model of codes for rows": (
        lambda: check(config_of("sequence_prediction", "bytenet", **{"data.name": "piano", "sequence.loss": "binary"})),
        "config.model.name='bytenet' is no causal model of what config.task='sequence_prediction' on data.name='piano' asks it to tell; "
        "use one of ('separable_tcn', 'tcn').",
    ),
    "a file beside the text of a package": (
        lambda: load_sequences(config_of("language_model", **{"data.name": "bible", "data.dir": "mine.txt"})),
        "config.data.dir='mine.txt' is not read with config.data.name='bible', the text of a package; set config.data.name to \"text\", "
        "or leave the folder out.",
    ),
    "augmented codes": (
        lambda: check(config_of("language_model", **{"augment.flip": True})),
        "config.augment.flip=True has no meaning for config.task='language_model'; leave it out.",
    ),
    "a model of images": (
        lambda: run.setup(config_of("sequence_prediction", "dilated_cnn"), 2, (9, 3), 80),
        "DilatedCNN: x of shape (1, 9, 3) must be (batch, height, width, channels); add the missing axes.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line(name):
    wrong, words = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        wrong()
    assert str(caught.value) == words


def test_every_task_is_here():
    assert {case[0] for case in CASES.values()} == {name for name in TASKS if name not in ("classification", "segmentation")}
