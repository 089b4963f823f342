"""The training step: pure, the same on one device, on eight under jit and under pmap, in parts, and with frozen parameters."""

import functools
import itertools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from dilax import DataSpec
from dilax.errors import UserError
from dilax.loading import leaves_with_paths
from dilax.lowerings import onednn
from dilax.metrics import classification_sums
from train import optim
from train.build import Setup, build
from train.config import check, default_config, differences, from_json, model_config, to_json
from train.estimate import estimate
from train.interception import frozen_statistics, recomputed
from train.tasks.classification import Classification

KEY = jax.random.key(3)
SHAPE, CLASSES, BATCH = (12, 12, 1), 4, 32
SPEC = DataSpec("test", SHAPE, tuple("abcd"), 10 * BATCH)


def config_of(**changes: Any) -> ConfigDict:
    config = default_config("test")
    config.model = ConfigDict(model_config("dilated_cnn", features=(6, 8), dilations=(1, 2), pools=(2, 1), dropout=0.3))
    config.batch_size = BATCH
    config.optim.update(name="sgd", lr=0.05, warmup_epochs=0.0, ema_decay=0.9)
    config.update_from_flattened_dict(changes)
    return config


# All of augmentation at once, for the tests of parallelism; it costs seconds to compile.
AUGMENT = {
    "augment.crop_padding": 2,
    "augment.flip": True,
    "augment.rotate": 10.0,
    "augment.scale": 0.1,
    "augment.cutout": 3,
    "augment.mixup": 0.2,
    "augment.label_smoothing": 0.1,
}


def batches(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [
        {"image": rng.integers(0, 256, (BATCH, *SHAPE), np.uint8), "label": rng.integers(0, CLASSES, BATCH, np.int32)} for _ in range(count)
    ]


def train(config: ConfigDict, count: int = 3, setup: Setup | None = None) -> tuple[Any, list[dict[str, float]]]:
    """Take `count` steps; return the state and the sums of each."""
    setup = setup or build(config, SPEC)
    state, found = setup.parallel.put(setup.steps.init(setup.init())), []
    for batch in batches(count):
        state, sums = setup.parallel.train(state, setup.parallel.put_batch(batch), KEY)
        found.append(jax.tree.map(float, jax.device_get(setup.parallel.get(sums))))
    return jax.device_get(setup.parallel.get(state)), found


def one_device(config: ConfigDict) -> Any:
    """The pure step without any placement: what all others must equal."""
    setup = build(config, SPEC)
    state, found, step = setup.steps.init(setup.init()), [], jax.jit(setup.steps.train)
    for batch in batches(3):
        state, sums = step(state, batch, KEY)
        found.append(jax.tree.map(float, jax.device_get(sums)))
    return jax.device_get(state), found


@pytest.fixture(scope="module")
def reference():
    return one_device(config_of(**AUGMENT))


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    for (path, a), (_, b) in zip(leaves_with_paths(got), leaves_with_paths(expected)):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_eight_devices_equal_one(kind, reference):
    assert jax.device_count() == 8
    state, sums = train(config_of(parallel=kind, **AUGMENT))
    assert_same(sums, reference[1], 1e-4)
    assert_same(
        (state.params, state.average, state.average_stats, state.collections["batch_stats"]),
        (reference[0].params, reference[0].average, reference[0].average_stats, reference[0].collections["batch_stats"]),
        1e-3,
    )


def test_the_same_step_twice_is_the_same_to_the_bit(reference):
    again = one_device(config_of(**AUGMENT))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(reference)):
        np.testing.assert_array_equal(a, b)


def test_another_seed_is_another_run(reference):
    setup = build(config_of(**AUGMENT), SPEC)
    _, sums = jax.jit(setup.steps.train)(setup.steps.init(setup.init()), batches(1)[0], jax.random.key(4))
    assert abs(float(sums["loss"]) - reference[1][0]["loss"]) > 1e-3


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_evaluation_is_the_same_everywhere_and_ignores_padding(kind):
    setup = build(config_of(parallel=kind), SPEC)
    batch = {**batches(1)[0], "mask": np.arange(BATCH) < 19}
    sums, _ = setup.parallel.evaluate(setup.parallel.put(setup.init()), setup.parallel.put_batch(batch))
    sums = jax.device_get(setup.parallel.get(sums))
    logits = np.asarray(setup.inference(setup.init()).outputs(batch["image"]), np.float64)[:19]
    labels = batch["label"][:19]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(sums["loss"], -log_p[np.arange(19), labels].sum(), rtol=1e-4)
    assert sums["count"] == 19
    assert sums["accuracy"] == (logits.argmax(1) == labels).sum()
    confusion = np.zeros((CLASSES, CLASSES))
    np.add.at(confusion, (labels, logits.argmax(1)), 1)
    np.testing.assert_array_equal(sums["confusion"], confusion)


def test_padded_rows_may_hold_anything():
    logits = jnp.array([[1.0, 0.0], [jnp.nan, jnp.inf]])
    sums = classification_sums(logits, jnp.array([0, 0]), jnp.array([True, False]))
    np.testing.assert_allclose(sums["loss"], np.log(1 + np.exp(-1)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_parts_add_up(kind):
    """Without batch statistics and dropout, a batch in four parts gives the gradient of the whole."""
    calm = {"model.norm": "group", "model.dropout": 0.0, "parallel": kind}
    whole, sums = train(config_of(**calm))
    parts, sums_of_parts = train(config_of(**calm, **{"optim.accumulate": 4}))
    assert_same(parts.params, whole.params, 1e-4)
    assert_same(sums_of_parts, sums, 1e-4)


def test_bfloat16_keeps_float32_parameters():
    state, sums = train(config_of(dtype="bfloat16"))
    _, full = train(config_of())
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((state.params, state.average, state.collections["batch_stats"]))} == {"float32"}
    np.testing.assert_allclose([s["loss"] for s in sums], [s["loss"] for s in full], rtol=0.05)
    assert [s["loss"] for s in sums] != [s["loss"] for s in full]


@pytest.mark.parametrize("name", optim.OPTIMISERS)
def test_every_optimiser_lowers_the_loss(name):
    rate = {"sgd": 0.05, "lion": 3e-3}.get(name, 1e-2)
    config = config_of(**{"optim.name": name, "optim.lr": rate, "model.dropout": 0.0, "optim.clip_norm": 5.0})
    setup = build(config, SPEC)
    state, batch, losses = setup.steps.init(setup.init()), batches(1)[0], []
    step = jax.jit(setup.steps.train)
    for _ in range(12):
        state, sums = step(state, batch, KEY)
        losses.append(float(sums["loss"]))
    assert losses[-1] < 0.9 * losses[0]


def test_clipping_bounds_the_update():
    plain = {"optim.momentum": 0.0, "optim.weight_decay": 0.0, "optim.schedule": "constant"}
    config = config_of(**plain, **{"optim.clip_norm": 0.01})
    setup = build(config, SPEC)
    state = setup.steps.init(setup.init())
    after, sums = jax.jit(setup.steps.train)(state, batches(1)[0], KEY)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params))
    assert float(sums["gradient_norm"]) > 0.01  # of the gradient itself, before clipping
    np.testing.assert_allclose(float(moved), 0.05 * 0.01, rtol=1e-3)


def test_frozen_parameters_and_their_statistics_stay():
    config = config_of(frozen=("^ConvNormAct_0/",), **{"optim.name": "adamw", "optim.weight_decay": 0.1, "optim.clip_norm": 1.0})
    setup = build(config, SPEC)
    state, _ = train(config, setup=setup)
    for before, after in ((setup.init()["params"], state.params), (setup.init()["batch_stats"], state.collections["batch_stats"])):
        for (path, a), (_, b) in zip(leaves_with_paths(before), leaves_with_paths(after)):
            assert np.array_equal(a, b) == path.startswith("ConvNormAct_0/"), path


def test_rates_by_layer():
    plain = {"optim.momentum": 0.0, "optim.weight_decay": 0.0}
    setup = build(config_of(**plain), SPEC)
    start = setup.init()["params"]
    state, _ = train(config_of(**plain), 1)
    changed, _ = train(config_of(**plain, **{"optim.lr_multipliers": (("^head/", 0.5), ("kernel", 3.0))}), 1)
    for (path, a), (_, b), (_, c) in zip(leaves_with_paths(start), leaves_with_paths(state.params), leaves_with_paths(changed.params)):
        factor = 0.5 if path.startswith("head/") else 3.0 if "kernel" in path else 1.0
        np.testing.assert_allclose(c - a, factor * (b - a), rtol=1e-3, atol=1e-7, err_msg=path)


def test_ema_follows():
    config = config_of()
    setup = build(config, SPEC)
    state, average = setup.steps.init(setup.init()), setup.init()["params"]
    for i, batch in enumerate(batches(3)):
        state, _ = jax.jit(setup.steps.train)(state, batch, KEY)
        rate = min(0.9, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, p, rate=rate: rate * a + (1 - rate) * p, average, state.params)
    assert_same(state.average, average, 1e-5)
    assert state.variables()["params"] is state.average
    assert state.variables()["batch_stats"] is state.average_stats


def patterned(seed: int, count: int = BATCH) -> dict[str, np.ndarray]:
    """Images with a bright band that shows their class."""
    rng = np.random.default_rng(seed)
    labels, images = rng.integers(0, CLASSES, count, np.int32), rng.integers(0, 120, (count, *SHAPE))
    for image, label in zip(images, labels):
        image[3 * label : 3 * label + 3] += 60
    return {"image": images.astype(np.uint8), "label": labels}


@pytest.mark.parametrize(("decay", "rate", "count", "parts"), [(0.97, 0.1, 20, 1), (0.95, 0.2, 30, 1), (0.97, 0.1, 20, 2)])
def test_the_averaged_parameters_have_statistics_that_fit_them(decay, rate, count, parts):
    """They do about as well as with statistics taken anew over many examples, and better than with those of the last parameters."""
    plain = {"model.dropout": 0.0, "optim.schedule": "constant", "optim.accumulate": parts}
    setup = build(config_of(**plain, **{"optim.ema_decay": decay, "optim.lr": rate}), SPEC)
    state, step = setup.steps.init(setup.init()), jax.jit(setup.steps.train)
    for i in range(count):
        state, _ = step(state, patterned(i), KEY)
    inputs = setup.task.inputs(setup.task.augment(KEY, jax.tree.map(jnp.asarray, patterned(777, 256)), 0), setup.steps.model)
    anew: Any = {"params": state.average, **state.collections}
    refresh = jax.jit(lambda anew: setup.steps.model.apply(anew, **inputs, train=True, mutable=["batch_stats"])[1])
    for _ in range(60):
        anew = {**anew, **refresh(anew)}
    test = {**patterned(12345, 256), "mask": np.ones(256, bool)}
    evaluate = jax.jit(lambda variables: setup.steps.evaluate(variables, test)[0]["loss"] / 256)
    found, best, last = (float(evaluate(v)) for v in (state.variables(), anew, {"params": state.average, **state.collections}))
    assert found < 1.25 * best + 0.01
    assert found < (0.9 if parts == 1 else 1.0) * last


@pytest.mark.parametrize("patterns", [("^ConvNormAct_",), ("^ConvNormAct_.*(kernel|bias|scale)$",), ("kernel$", "Norm_0/.*(bias|scale)$")])
def test_frozen_layers_do_the_same_in_training_and_in_evaluation(patterns):
    """On data of another brightness than that of the running statistics, however the frozen parameters are named."""
    setup = build(config_of(frozen=patterns, **{"model.dropout": 0.0}), SPEC)
    state, step = setup.steps.init(setup.init()), jax.jit(setup.steps.train)
    batch = patterned(1)
    for i in range(3):
        before, (state, sums) = state, step(state, patterned(i + 1) if i < 2 else batch, KEY)
    assert_same(state.collections, setup.steps.init(setup.init()).collections, 0)
    assert_same(state.average_stats, state.collections["batch_stats"], 0)
    evaluated, _ = setup.steps.evaluate({"params": before.params, **before.collections}, {**batch, "mask": np.ones(BATCH, bool)})
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(float(sums[name]), float(evaluated[name]), rtol=1e-5)


def test_schedules():
    config = config_of(**{"optim.lr": 2.0, "optim.warmup_epochs": 1.0})
    for name, end in (("cosine", 0.0), ("linear", 0.0), ("constant", 2.0)):
        config.optim.schedule = name
        rate = optim.schedule(config.optim, 10, 50)
        rates = [float(np.asarray(rate(step))) for step in range(51)]
        assert 0 < rates[0] < rates[5] < rates[10] == 2.0
        np.testing.assert_allclose(rates[50], end, atol=1e-6)
        assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


BAD = {
    "batch on devices": ({"batch_size": 30}, "config.batch_size=30 cannot be spread over 8 devices; use a multiple, such as 24."),
    "batch in parts": (
        {"batch_size": 24, "optim.accumulate": 2},
        "config.batch_size=24 cannot be spread over 8 devices in 2 parts; use a multiple, such as 16.",
    ),
    "parts": (
        {"optim.accumulate": 5},
        "config.batch_size=32 cannot be run in config.optim.accumulate=5 parts; choose a divisor.",
    ),
    "optimiser": (
        {"optim.name": "adam"},
        "config.optim.name='adam' is unknown; use one of ('adamw', 'sgd', 'lamb', 'lion'). Did you mean \"adamw\"?",
    ),
    "schedule": (
        {"optim.schedule": "cosin"},
        "config.optim.schedule='cosin' is unknown; use one of ('cosine', 'linear', 'constant'). Did you mean \"cosine\"?",
    ),
    "frozen nothing": (
        {"frozen": ("Conv9",)},
        "config.frozen: 'Conv9' does not match any parameter; their paths look like ConvNormAct_0/DilatedConv_0/kernel, "
        "ConvNormAct_0/Norm_0/BatchNorm_0/bias, ConvNormAct_0/Norm_0/BatchNorm_0/scale.",
    ),
    "no regular expression": (
        {"frozen": ("(",)},
        "config.frozen: '(' is not a regular expression: missing ), unterminated subpattern at position 0.",
    ),
    "multipliers": (
        {"optim.lr_multipliers": ("head", 2.0)},
        "config.optim.lr_multipliers=('head', 2.0) must be pairs of a regular expression and a factor, such as (('head', 10.0),).",
    ),
    "parallel": ({"parallel": "pmapp"}, "config.parallel='pmapp' is unknown; use one of ('jit', 'pmap'). Did you mean \"pmap\"?"),
    "dtype": ({"dtype": "int8"}, "config.dtype='int8' is unknown; use one of ('float32', 'bfloat16', 'float16')."),
    "not a number": ({"total_epochs": float("nan")}, "config.total_epochs=nan is out of range; give a number above 0."),
    "negative padding": ({"augment.crop_padding": -1}, "config.augment.crop_padding=-1 is out of range; give a number of 0 or more."),
    "epochs": ({"total_epochs": 0.0}, "config.total_epochs=0.0 is out of range; give a number above 0."),
}


@pytest.mark.parametrize("name", BAD)
def test_error_texts(name):
    changes, text = BAD[name]
    with pytest.raises(UserError) as error:
        build(config_of(**changes), SPEC)
    assert str(error.value) == text


def test_mixup_needs_pairs():
    setup = build(config_of(batch_size=8, parallel="pmap", **AUGMENT), SPEC)
    batch = setup.parallel.put_batch({name: values[:8] for name, values in batches(1)[0].items()})
    state = setup.parallel.put(setup.steps.init(setup.init()))
    with pytest.raises(UserError, match="mixup: a batch of 1 on one device cannot be paired"):
        setup.parallel.train(state, batch, KEY)


def test_a_config_goes_through_json():
    config = config_of(frozen=("a", "b"), **{"optim.lr_multipliers": (("x", 2.0),)})
    again = from_json(to_json(config))
    assert differences(config, again) == []
    assert again.optim.lr_multipliers == (("x", 2.0),)
    again.optim.lr = 0.2
    assert differences(config, again) == ["optim.lr: 0.05 -> 0.2"]
    check(again)


def test_frozen_layers_cost_no_backward_pass_and_no_state():
    """A third of a step is forward, so that a step in which little is trained costs little more than that."""
    plain = {"model.features": (8, 8, 8, 8), "model.dilations": (1, 2, 1, 2), "model.pools": (1, 1, 1, 1), "optim.name": "adamw"}
    costs, states = [], []
    for frozen in ((), ("^ConvNormAct_",)):
        setup = build(config_of(frozen=frozen, **plain, **{"optim.ema_decay": 0.0}), SPEC)
        state = jax.eval_shape(setup.steps.init, setup.shapes)
        compiled = jax.jit(setup.steps.train).lower(state, batches(1)[0], KEY).compile()
        cost: Any = compiled.cost_analysis()
        costs.append(cost["flops"])
        states.append(sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)))
    assert costs[1] < 0.45 * costs[0]
    assert states[1] < 0.1 * states[0]


def test_frozen_parameters_are_not_clipped_with_the_others():
    """The norm is that of the trained parameters: freezing the rest does not change how they are clipped."""
    plain = {"optim.momentum": 0.0, "optim.weight_decay": 0.0, "optim.schedule": "constant", "optim.clip_norm": 1e-3}
    setup = build(config_of(frozen=("^ConvNormAct_",), **plain), SPEC)
    state = setup.steps.init(setup.init())
    after, sums = jax.jit(setup.steps.train)(state, batches(1)[0], KEY)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after.params["head"], state.params["head"]))
    np.testing.assert_allclose(float(moved), 0.05 * 1e-3, rtol=1e-3)
    gradient = jax.grad(lambda head: head_loss(setup, state, head))(state.params["head"])
    np.testing.assert_allclose(float(sums["gradient_norm"]), float(optax.tree.norm(gradient)), rtol=1e-3)


def head_loss(setup: Setup, state: Any, head: Any) -> Any:
    """The loss of the first step as a function of the head alone."""
    augment_key, loss_key = jax.random.split(jax.random.fold_in(KEY, 0))
    batch = setup.task.augment(augment_key, jax.tree.map(jnp.asarray, batches(1)[0]), 0)
    variables = {"params": {**state.params, "head": head}, **state.collections}
    (key,) = jax.random.split(loss_key, 1)
    with frozen_statistics(("^ConvNormAct_",)):
        loss = setup.task.loss(setup.steps.model, variables, batch, key)
    return loss.sums["loss"] / loss.count


def test_frozen_normalisation_uses_its_running_statistics():
    """So a frozen layer does the same in training and in evaluation."""
    setup = build(config_of(frozen=(".",), **{"model.dropout": 0.0}), SPEC)
    variables = setup.init()
    batch = setup.task.augment(KEY, jax.tree.map(jnp.asarray, batches(1)[0]), 0)
    with frozen_statistics((".",)):
        loss = setup.task.loss(setup.steps.model, variables, batch, KEY)
    outputs: Any = setup.steps.model.apply(variables, **setup.task.inputs(batch, setup.steps.model), train=False)
    expected = optax.softmax_cross_entropy(outputs, batch["target"]).sum()
    np.testing.assert_allclose(float(loss.sums["loss"]), float(expected), rtol=1e-5)


def saved_bytes(function: Any, *args: Any) -> int:
    """The bytes that the forward pass keeps for the backward pass."""
    kept = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize("patterns", [("^ConvNormAct_",), ("ConvNormAct_1", "head"), (".",)])
def test_what_is_computed_again_is_not_kept_and_changes_nothing(patterns):
    setup = build(config_of(remat=patterns), SPEC)
    variables = setup.init()
    batch = setup.task.augment(KEY, jax.tree.map(jnp.asarray, batches(1)[0]), 0)

    def loss(params: Any, remat: Any) -> Any:
        with recomputed(remat):
            loss = setup.task.loss(setup.steps.model, {**variables, "params": params}, batch, KEY)
        return loss.sums["loss"], loss.collections

    kept, kept_less = (saved_bytes(lambda params, remat=remat: loss(params, remat)[0], variables["params"]) for remat in ((), patterns))
    assert kept_less < 0.8 * kept
    gradients = [jax.jit(jax.value_and_grad(functools.partial(loss, remat=remat), has_aux=True)) for remat in ((), patterns)]
    plain, again = (gradient(variables["params"]) for gradient in gradients)
    chex.assert_trees_all_close(again, plain, rtol=1e-6, atol=1e-6)  # statistics and dropout included


def test_a_step_that_computes_again_is_the_same_step():
    plain, again = (train(config_of(remat=remat), 2) for remat in ((), (".",)))
    assert_same(again, plain, 1e-6)
    with pytest.raises(UserError, match=r"config.remat: 'stage' does not match any module; their paths look like "):
        build(config_of(remat=("stage",)), SPEC)


def test_the_estimate_of_a_step():
    config = config_of(**{"data.name": "digits8x8", "mesh.data": 2, "mesh.fsdp": 4, "model.features": (32, 64), "optim.name": "adamw"})
    lines = dict(re.findall(r"^  (.*?) +([\d.]+) MiB$", estimate(config), re.M))
    setup = build(config, Classification.open(config).spec)
    parameters = setup.shapes["params"]
    held = sum(leaf.size // 4 if leaf.size >= 4096 else leaf.size for leaf in jax.tree.leaves(parameters))  # what is large is spread
    assert float(lines["parameters"]) == round(4 * held / 2**20, 2)
    assert float(lines["optimiser state"]) == pytest.approx(2 * float(lines["parameters"]), abs=0.011)
    assert float(lines["in all"]) == pytest.approx(sum(float(size) for name, size in lines.items() if name != "in all"), abs=0.03)
    work = re.search(r"work per device and step: (\S+) floating-point operations, for 32 examples", estimate(config))
    uncounted = estimate(config).endswith("; those of the convolutions that dilax-onednn computes are not counted")
    assert uncounted == onednn.is_installed()
    assert work and float(work[1]) > (1e5 if uncounted else 1e6)


def test_a_config_can_ask_for_plain_convolutions():
    names = []
    for lowering in ("auto", "lax"):
        setup = build(config_of(lowering=lowering), SPEC)
        jaxpr = jax.make_jaxpr(setup.steps.train)(jax.eval_shape(setup.steps.init, setup.shapes), batches(1)[0], KEY)
        names.append("dilated_conv" in str(jaxpr))
    assert names == [True, False]
