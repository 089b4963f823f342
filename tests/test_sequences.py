"""Tasks and data of sequences: losses, metrics and steps over the valid steps alone; windows, made-up data and mistakes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reading import check_call
from selection import with_slow
from test_segments import OVERLAPS, slow

from dilax import DataSpec
from train.build import Setup, build
from train.config import check, default_config, model_config
from train.data.source import Table
from train.score import score
from train.tasks import TASKS

RNG = np.random.default_rng(0)
LENGTHS = np.array([9, 4, 1, 7, 9, 2, 5, 6], np.int32)
TIME = 9
SMALL: dict[str, dict[str, Any]] = {
    "tcn": dict(kernel_size=2, features=(4, 4)),
    "wavenet": dict(dilations=(1, 2), features=4, skip_features=4),
}


def config_of(task: str, model: Any = "tcn", fields: Any = None, **changes: Any) -> Any:
    config = default_config("test", task=task)
    config.model = model_config(model, **SMALL.get(model, {}), **(fields or {}))
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
    "labels": ("sequence_labelling", {}, floats(8, TIME, 2), codes(8, TIME), 5, 0),
    "language": ("language_model", {}, codes(8, TIME), codes(8, TIME), 5, 5),
    "waves": ("waveform", {}, codes(8, TIME), codes(8, TIME), 5, 5),
    "waves, mixture": (
        "waveform",
        {"model": "wavenet", "fields": dict(outputs="mixture", mixtures=2)},
        floats(8, TIME, 1).clip(-1, 1),
        floats(8, TIME, 1).clip(-1, 1),
        1,
        0,
    ),
    "sources": ("separation", {}, floats(8, TIME, 1), floats(8, TIME, 2), 2, 0),
}


def batch_of(name: str) -> dict[str, np.ndarray]:
    task, _, x, y, _, _ = CASES[name]
    batch = {"input": x, "label": y, "length": LENGTHS}
    return batch if task in ("sequence_classification", "separation") else {**batch, "counted": COUNTED}


@functools.cache
def setup_of(name: str, **changes: Any) -> Setup:
    """A case, built once, so that tests share its compiled programs."""
    task, given, x, _, outputs, symbols = CASES[name]
    names = tuple(map(str, range(max(outputs, symbols))))
    spec = DataSpec("test", x.shape[1:], names[:outputs], 80, symbols=names[:symbols])
    return build(config_of(task, **given, **changes), spec)


def damaged(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with other values wherever they must not be read."""
    other = dict(batch)
    padding = np.arange(TIME)[None] >= LENGTHS[:, None]
    unread = {"input": padding, "label": ~batch.get("counted", ~padding)}
    for key in ("input", "label") if batch["label"].ndim > 1 else ("input",):
        noise = codes(*batch[key].shape) if batch[key].dtype == np.int32 else 50 * floats(*batch[key].shape)
        where = unread[key].reshape(8, TIME, *(1,) * (batch[key].ndim - 2))
        other[key] = np.where(where, noise, batch[key])
        assert not np.array_equal(other[key], batch[key])
    return other


@pytest.mark.parametrize(
    "name", with_slow(CASES, repeats=("classes, last", "classes, mean, looking ahead", "codes", "language", "waves", "sources"))
)
def test_steps_that_are_not_scored_never_count(name):
    """Neither in training nor in the metrics."""
    setup, batch = setup_of(name), batch_of(name)
    step, variables = jax.jit(setup.steps.train), setup.init()
    state, results = setup.steps.init(variables), []
    for one in (batch, damaged(batch)):
        after, sums = step(state, one, jax.random.key(0))
        masked = setup.parallel.put_batch({**one, "mask": np.arange(8) < 7})
        scored, _ = setup.parallel.evaluate(setup.parallel.put(variables), masked)
        results.append(jax.device_get((after.params, sums, setup.parallel.get(scored))))
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1])):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert float(results[0][1]["count"]) == 8


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def logistic_mixture(outputs: np.ndarray, x: float) -> float:
    """Nats of a sample of 16 bits under a mixture of logistics; its likelihood is an integral over one level."""
    logits, means, log_scales = np.split(outputs, 3)
    bounds = np.array([-np.inf if x < -0.999 else x - 1 / 65535, np.inf if x > 0.999 else x + 1 / 65535])
    with np.errstate(over="ignore"):
        below, above = 1 / (1 + np.exp(-(bounds[:, None] - means) / np.exp(log_scales)))
    return -float(np.log((np.exp(log_softmax(logits)) * (above - below)).sum()))


def oracle(name: str, outputs: np.ndarray, batch: dict[str, np.ndarray]) -> dict[str, float]:
    """The metrics, one sequence and one step after the other."""
    task, changes, _, _, _, _ = CASES[name]
    if task == "separation":
        return separation_oracle(outputs, batch)
    losses, right = [], []
    for y, label, length, counted in zip(outputs, batch["label"], batch["length"], batch.get("counted", batch["length"])):
        if task == "sequence_classification":
            valid = y[:length]
            pool = changes.get("sequence.pool", "last")
            logits = {"last": valid[-1], "mean": valid.mean(0), "max": valid.max(0)}[pool]
            losses.append(-log_softmax(logits)[label])
            right.append(logits.argmax() == label)
            continue
        for t in np.flatnonzero(counted):
            if name == "numbers":
                losses.append(((y[t] - label[t]) ** 2).mean())
            elif name == "bits":
                p = 1 / (1 + np.exp(-y[t]))
                losses.append(-(label[t] * np.log(p) + (1 - label[t]) * np.log(1 - p)).sum())
            elif name == "waves, mixture":
                losses.append(logistic_mixture(y[t], label[t, 0]))
            else:
                losses.append(-log_softmax(y[t])[label[t]])
                right.append(y[t].argmax() == label[t])
    loss = float(np.mean(losses))
    if name == "labels":
        return {**segment_oracle(outputs.argmax(-1), batch), "accuracy": float(np.mean(right)), "loss": loss}
    bits = {"language": "bits_per_character", "waves": "bits_per_sample", "waves, mixture": "bits_per_sample"}
    named = {"numbers": {"mse": loss}, "bits": {"nll": loss}, **{case: {word: loss / np.log(2)} for case, word in bits.items()}}
    return {"loss": loss, **named.get(name, {}), **({"accuracy": float(np.mean(right))} if right else {})}


def segment_oracle(found: np.ndarray, batch: dict[str, np.ndarray]) -> dict[str, float]:
    ours, theirs = (np.where(batch["counted"], classes, -1) for classes in (found, batch["label"]))  # what is not scored is in no segment
    edits, counts = zip(*(slow(a, b, -1) for a, b in zip(ours, theirs)))
    totals = np.sum(counts, 0)
    f1 = {f"f1_{100 * overlap:.0f}": float(2 * n / (2 * n + wrong + missed)) for overlap, (n, wrong, missed) in zip(OVERLAPS[:3], totals)}
    return {**f1, "edit": float(np.mean(edits))}


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
def test_metrics_equal_the_loop_over_single_steps(name):
    """A batch of 8 on 8 devices, and a last one that is padded."""
    setup, batch = setup_of(name), batch_of(name)
    examples = {key: np.concatenate([values, values[:3]]) for key, values in batch.items()}
    variables = jax.tree.map(lambda leaf: jnp.asarray(floats(*leaf.shape)), setup.shapes)
    metrics, _ = score(setup, setup.parallel.put(variables), Table(examples))
    outputs = setup.inference(variables).outputs(batch["input"], length=batch["length"])
    outputs = np.concatenate([outputs, outputs[:3]]).astype(np.float64)
    expected = oracle(name, outputs, examples)
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=2e-4)
    assert setup.task.best_by in metrics


@pytest.mark.parametrize("kind", with_slow(("jit", "pmap"), kept=("jit",)))
@pytest.mark.parametrize(("name", "parts"), [("classes, mean", 2), ("codes", 2), ("classes, statistics of the batch", 1)])
def test_parts_and_devices_do_not_change_a_step(name, parts, kind):
    batch = {key: np.concatenate([values, values[::-1]]) for key, values in batch_of(name).items()}
    one, many = setup_of(name, batch_size=16), setup_of(name, batch_size=16, parallel=kind, **{"optim.accumulate": parts})
    alone = one_step(name, one, batch)
    state, _ = many.parallel.train(many.parallel.put(many.steps.init(many.init())), many.parallel.put_batch(batch), jax.random.key(0))
    spread = many.parallel.get(state)
    for a, b in zip(jax.tree.leaves((alone.params, alone.collections)), jax.tree.leaves((spread.params, spread.collections))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


STATES: dict[str, Any] = {}


def one_step(name: str, setup: Setup, batch: dict[str, np.ndarray]) -> Any:
    """The state after a step of the whole batch on one device."""
    if name not in STATES:
        STATES[name], _ = jax.jit(setup.steps.train)(setup.steps.init(setup.init()), batch, jax.random.key(0))
    return STATES[name]


def with_key(config: Any, key: str, value: Any) -> Any:
    """The config with a key that its task does not have."""
    section, _, field = key.partition(".")
    config.update({section: {field: value}})
    return config


MISTAKES: dict[str, tuple[Any, str]] = {
    "a key of images": (
        lambda: check(with_key(config_of("sequence_prediction"), "data.per_class", 3)),
        "config.data.per_class is a key of config.task='classification' or 'sequence_classification', not of "
        "config.task='sequence_prediction'; remove it, or set the task in the config file, with default_config('test', task=...).",
    ),
    "a key of images, for series": (
        lambda: check(config_of("sequence_classification", **{"data.name": "ucr:GunPoint", "data.per_class": 3})),
        "config.data.per_class=3 is not read with config.data.name='ucr:GunPoint'; it is read with 'digits' or 'digits8x8' or 'folder' or a set of TFDS: "
        "remove it, or change config.data.name.",
    ),
    "mixed sounds": (
        lambda: check(config_of("sequence_classification", **{"data.name": "wav", "augment.mixup": 0.2})),
        "config.augment.mixup=0.2 is not read with config.data.name='wav'; it is read with 'digits' or 'digits8x8' or 'folder' or a set of TFDS: "
        "remove it, or change config.data.name.",
    ),
    "a mean of colours, for sounds": (
        lambda: check(config_of("sequence_classification", **{"data.name": "wav", "data.mean": (0.2,)})),
        "config.data.mean=(0.2,) is not read with config.data.name='wav'; it is read with 'digits' or 'digits8x8' or 'folder' or a set of TFDS: "
        "remove it, or change config.data.name.",
    ),
    "an order of pixels, for texts": (
        lambda: check(config_of("sequence_classification", **{"data.name": "text", "sequence.permute": True})),
        "config.sequence.permute=True is not read with config.data.name='text'; it is read with 'digits' or 'digits8x8' or 'folder' or a set of TFDS: "
        "remove it, or change config.data.name.",
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
        "config.model.causal=False shows the network what config.task='language_model' on data.name='text' asks it to predict; "
        "leave it True.",
    ),
    "a model that may look ahead": (
        lambda: check(config_of("sequence_prediction", "unet_dilated", **{"data.name": "csv"})),
        "config.model.name='unet_dilated' is not a causal model for config.task='sequence_prediction' on data.name='csv'; "
        "use one of ('separable_tcn', 'tcn').",
    ),
    "a model of codes for rows": (
        lambda: check(config_of("sequence_prediction", "bytenet", **{"data.name": "piano", "sequence.loss": "binary"})),
        "config.model.name='bytenet' is not a causal model for config.task='sequence_prediction' on data.name='piano'; "
        "use one of ('separable_tcn', 'tcn').",
    ),
    "augmented codes": (
        lambda: check(with_key(config_of("language_model"), "augment.flip", True)),
        "config.augment.flip is a key of config.task='classification' or 'segmentation' or 'detection' or 'sequence_classification' or "
        "'restoration', not of config.task='language_model'; remove it, or set the task in the config file, with default_config('test', task=...).",
    ),
    "a model of images": (
        lambda: build(config_of("sequence_prediction", "dilated_cnn"), DataSpec("test", (9, 3), ("a", "b"), 80)),
        "DilatedCNN: x of shape (1, 9, 3) must be (batch, height, width, channels); add the missing axes.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line(name):
    check_call(*MISTAKES[name])


def test_every_sequence_task_is_here():
    of_images = {"classification", "segmentation", "detection", "restoration"}
    assert {case[0] for case in CASES.values()} == TASKS.keys() - of_images
