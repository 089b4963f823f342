"""Distillation: its gradient is that of an oracle, weight 0 is a run without it, it resumes to the bit, and what does not fit is refused."""

import functools
import itertools
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from selection import slow, with_slow
from task_cases import CASES
from tiny_runs import make_run, newest_state, refused, tiny

import dilax
from dilax import losses
from dilax.loading import leaves_with_paths, read_status
from train import estimate, evaluate, folder, loop, publish, replay
from train.build import Setup, build, describe, load_trained
from train.config import model_config, task_class
from train.data import Splits
from train.data.source import gather
from train.distil import open_teacher
from train.writers import read_history

KEY = jax.random.key(11)
WEIGHT, TEMPERATURE = 0.7, 3.0
TEMPORARY = tempfile.TemporaryDirectory(prefix="dilax-distil-", ignore_cleanup_errors=True)
ROOT = pathlib.Path(TEMPORARY.name)
# A case of each task with classes, and fields that make its teacher another network.
TEACHERS: dict[str, dict[str, Any]] = {
    "images": {"features": (5, 7)},
    "masks": {"features": (5, 7)},
    "series": {"features": (7, 7)},
    "text": {"features": (7, 7)},
    "recordings": {"features": 7},
}


def config_of(name: str, **changes: Any) -> ConfigDict:
    return CASES[name].config(ROOT / name, **changes)


@functools.cache
def teacher_of(name: str, *, same: bool = False) -> pathlib.Path:
    """The folder of a run with random weights, of a larger network or of the same."""
    config = config_of(name)
    if not same:
        config.model.update(TEACHERS[name])
    return make_run(config, ROOT / name / f"teacher-{same}", seed=5, scale=0.3)


def distilled(name: str, *, same: bool = False, **changes: Any) -> ConfigDict:
    given = {"distill_from": str(teacher_of(name, same=same)), "distill.weight": WEIGHT, "distill.temperature": TEMPERATURE}
    return config_of(name, **{**given, **changes})


@functools.cache
def splits_of(name: str) -> Splits:
    config = config_of(name)
    return task_class(config.task).open(config)


def setup_of(name: str, config: ConfigDict) -> Setup:
    spec = splits_of(name).spec
    return build(config, spec, teacher=open_teacher(config, spec))


def batch_of(name: str) -> dict[str, np.ndarray]:
    return gather(splits_of(name).train, np.arange(8))


def stepped(name: str, config: ConfigDict) -> tuple[Any, Any]:
    """The state after two steps of the pure function, and the sums of the second."""
    setup = setup_of(name, config)
    state, step, sums = setup.steps.init(setup.init()), jax.jit(setup.steps.train), None
    for _ in range(2):
        state, sums = step(state, batch_of(name), KEY, setup.steps.teacher and setup.steps.teacher.variables)
    return jax.device_get(state), jax.device_get(sums)


def objective(setup: Setup, name: str) -> tuple[Any, Any, Any]:
    """The loss per example as a function of the parameters, without augmentation; the parameters, and the batch."""
    batch = jax.tree.map(jnp.asarray, batch_of(name))
    if "target" in setup.task.augment(KEY, batch, 0):
        batch["target"] = jax.nn.one_hot(batch["label"], len(setup.spec.outputs))
    state, variables = setup.steps.init(setup.init()), setup.steps.teacher and setup.steps.teacher.variables

    def mean(params: Any) -> Any:
        return setup.steps.objective(params, state, state.collections, batch, KEY, 8, setup.steps.taught(variables, batch))[0]

    return mean, state.params, batch


def weight_0_is_no_distillation(name: str) -> None:
    plain, none = stepped(name, config_of(name)), stepped(name, distilled(name, same=False, **{"distill.weight": 0.0}))
    for (path, a), (_, b) in zip(leaves_with_paths(plain), leaves_with_paths(none), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


def nothing_is_learned_from_oneself(name: str) -> None:
    setup = setup_of(name, distilled(name, same=True, **{"distill.weight": 1.0}))
    mean, params, _ = objective(setup, name)
    theirs = jax.tree.map(jnp.asarray, setup.steps.teacher.variables["params"]) if setup.steps.teacher else None
    value, gradient = jax.jit(jax.value_and_grad(mean))(theirs)
    assert abs(value) < 1e-5
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-5
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(jax.jit(jax.grad(mean))(params))) > 1e-4


def log_softmax(logits: np.ndarray) -> np.ndarray:
    below = logits - logits.max(-1, keepdims=True)
    return below - np.log(np.exp(below).sum(-1, keepdims=True))


def the_gradient_is_that_of_the_definition(name: str) -> None:
    """d/ds T^2 KL(softmax(t / T) || softmax(s / T)) = T (softmax(s / T) - softmax(t / T)), in float64 and by hand."""
    mean, params, batch = objective(setup_of(name, distilled(name)), name)
    hard, *_ = objective(plain := setup_of(name, config_of(name)), name)
    model, variables = plain.steps.model, plain.init()

    def logits(params: Any) -> jax.Array:
        x = plain.spec.prepare(batch["image"]) if "image" in batch else batch["input"]
        y: Any = model.apply({**variables, "params": params}, x, train=False)
        if name != "series":
            return y
        valid = (np.arange(y.shape[1]) < np.asarray(batch["length"])[:, None])[..., None].astype(np.float32)
        return (y * valid).sum(1) / valid.sum(1)

    ours, pullback = jax.vjp(jax.jit(logits), params)
    images = batch["image"] if "image" in batch else batch["input"]
    theirs = np.asarray(dilax.load(teacher_of(name)).outputs(images), np.float64)
    if name == "series":
        valid = (np.arange(theirs.shape[1]) < np.asarray(batch["length"])[:, None])[..., None]
        theirs = (theirs * valid).sum(1) / valid.sum(1)
    s, t = (log_softmax(np.asarray(logits, np.float64) / TEMPERATURE) for logits in (ours, theirs))
    counted = {"masks": lambda: np.asarray(batch["label"]) != 255, "text": lambda: np.asarray(batch["counted"])}
    where = counted[name]() if name in counted else np.ones(s.shape[:-1], bool)
    positions = tuple(range(1, where.ndim))
    shares = where / where.sum(positions, keepdims=True) / len(where)
    divergence = TEMPERATURE**2 * (np.exp(t) * (t - s)).sum(-1)
    value, gradient = jax.jit(jax.value_and_grad(mean))(params)
    hard_value, hard_gradient = jax.jit(jax.value_and_grad(hard))(params)
    np.testing.assert_allclose(value, (1 - WEIGHT) * hard_value + WEIGHT * (shares * divergence).sum(), rtol=1e-4)
    pull = WEIGHT * TEMPERATURE * shares[..., None] * (np.exp(s) - np.exp(t))
    (soft,) = pullback(jnp.asarray(pull, jnp.float32))
    for (path, got), (_, a), (_, b) in zip(*map(leaves_with_paths, (gradient, hard_gradient, soft)), strict=True):
        np.testing.assert_allclose(got, (1 - WEIGHT) * a + b, rtol=2e-3, atol=1e-5, err_msg=path)


LAWS = (weight_0_is_no_distillation, nothing_is_learned_from_oneself, the_gradient_is_that_of_the_definition)


@pytest.mark.parametrize("name", with_slow(TEACHERS, kept=("images", "text")))
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws(law, name):
    if (law, name) == (the_gradient_is_that_of_the_definition, "recordings"):
        pytest.skip("the definition written here knows nothing of masks inside a network")
    law(name)


def test_the_cases_are_of_every_task_with_classes():
    with_classes = set()
    for name in CASES:
        config = config_of(name)
        if task_class(config.task)(config, splits_of(name).spec).has_classes():
            with_classes.add(config.task)
    assert with_classes - {"waveform", "sequence_prediction"} == {CASES[name].task for name in TEACHERS}
    assert {"waveform", "sequence_prediction"} < with_classes  # of codes; they share all code with language models


@pytest.mark.parametrize(
    "changes", [{"mesh.data": 4, "mesh.fsdp": 2, "optim.accumulate": 2}, *slow({"mesh.data": -1}, {"parallel": "pmap"})], ids=str
)
def test_eight_devices_equal_one(changes):
    parts = {key: value for key, value in changes.items() if key == "optim.accumulate"}
    one, setup = (setup_of("images", distilled("images", batch_size=16, **given)) for given in (parts, changes))
    assert one.steps.teacher is not None
    batch = jax.tree.map(lambda a: np.concatenate([a, a]), batch_of("images"))
    reference, step, sums = one.steps.init(one.init()), jax.jit(one.steps.train), None
    state, got = setup.parallel.put(setup.steps.init(setup.init())), None
    for _ in range(2):
        reference, sums = step(reference, batch, KEY, one.steps.teacher.variables)
        state, got = setup.parallel.train(state, setup.parallel.put_batch(batch), KEY)
    for ours, theirs in ((setup.parallel.get(got), sums), (setup.parallel.get(state).params, reference.params)):
        for (path, a), (_, b) in zip(leaves_with_paths(ours), leaves_with_paths(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=path)


def test_each_network_gets_its_own_colours():
    """The teacher was trained on images with another mean and deviation; the augmented batch is standardised for it as in its training."""
    other = config_of("images", **{"data.mean": (0.3,), "data.std": (0.2,)})
    place = make_run(other, ROOT / "images" / "colours", seed=6, scale=0.3)
    setup = setup_of("images", config_of("images", distill_from=str(place)))
    assert setup.steps.teacher is not None
    batch = jax.tree.map(jnp.asarray, batch_of("images"))
    expected = dilax.load(place).outputs(batch["image"])
    taught: Any = setup.steps.taught(setup.steps.teacher.variables, batch)
    np.testing.assert_allclose(taught, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[pathlib.Path, ConfigDict, pathlib.Path]:
    """The folder of a distilled run of digits with batch statistics, dropout and averages; its config, and the folder of its teacher."""
    root = tmp_path_factory.mktemp("distilled")
    larger = tiny()
    larger.model = ConfigDict(model_config("dilated_cnn", features=(8, 8), dilations=(1, 2), pools=(2, 1)))
    teacher = make_run(larger, root / "teacher", seed=3, scale=0.3)
    config = tiny(**{"distill_from": str(teacher), "distill.weight": WEIGHT, "total_epochs": 1.0})
    assert loop.run(config, root / "run") == 0
    return root / "run", config, teacher


def test_a_run_that_is_resumed_is_the_unbroken_one_to_the_bit(run, tmp_path, monkeypatch):
    workdir, config, _ = run
    batches = loop.train_batches

    def broken(*args: Any, **kwargs: Any) -> Any:
        yield from itertools.islice(batches(*args, **kwargs), 10)
        raise RuntimeError("broken off")

    monkeypatch.setattr(loop, "train_batches", broken)
    with pytest.raises(RuntimeError, match="broken off"):
        loop.run(config, tmp_path / "run")
    monkeypatch.setattr(loop, "train_batches", batches)
    assert loop.run(config, tmp_path / "run") == 0
    (step, state), (last, expected) = newest_state(tmp_path / "run"), newest_state(workdir)
    assert step == last
    for a, b in zip(state, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all("train/distillation" in line for line in read_history(workdir) if "train/loss" in line)


def test_a_run_is_used_without_its_teacher(run):
    workdir, _, teacher = run
    moved = teacher.with_name("moved")
    teacher.rename(moved)
    try:
        trained = load_trained(workdir)
        splits = type(trained.setup.task).open(trained.setup.config)
        assert 0 <= evaluate.evaluate(trained, splits, "test")["accuracy"] <= 1
        assert dilax.load(workdir).outputs(splits.test[0]["image"][None]).shape == (1, 10)
    finally:
        moved.rename(teacher)


def test_another_teacher_is_another_run(run, tmp_path):
    workdir, config, teacher = run
    copied = shutil.copytree(workdir, tmp_path / "run")
    folder.write_status(copied, finished=False, teacher=read_status(copied)["teacher"] ^ 1)
    more = ConfigDict({**config.to_dict(), "total_epochs": 2.0})
    assert refused(lambda: loop.run(more, copied)) == (
        f"the run in {copied} has learned from other weights than those that are now in its config.distill_from; restore them there, or "
        "begin anew with --restart."
    )
    text = refused(lambda: loop.run(config, teacher, restart=True))
    assert text == f"--restart would move {teacher} aside, which config.distill_from names; give another --workdir."


def test_a_step_is_taken_again_and_estimated_with_its_teacher(run):
    workdir, config, teacher = run
    assert replay.replay(workdir, 9)[-1] == "all values of this step are finite."
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(dilax.load(teacher).variables))
    assert f"teacher {size / 2**20:>28,.2f} MiB".split() == [
        *next(line for line in estimate.estimate(config).splitlines() if line.strip().startswith("teacher")).split()
    ]


def test_published_weights_teach_as_their_run(tmp_path):
    pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    publish.publish(teacher_of("series"), tmp_path / "out")
    one, other = (
        open_teacher(config_of("series", distill_from=str(place)), splits_of("series").spec)
        for place in (teacher_of("series"), tmp_path / "out")
    )
    assert one is not None and other is not None
    assert (one.checksum, one.model, one.task.config.sequence.pool) == (other.checksum, other.model, "mean")
    assert "distilled from tcn of " in describe(setup_of("series", config_of("series", distill_from=str(tmp_path / "out"))))


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    def message(name: str, place: Any, **changes: Any) -> str:
        config = config_of(name, distill_from=str(place), **changes)
        return refused(lambda: open_teacher(config, task_class(config.task).open(config).spec))

    series, images = teacher_of("series"), teacher_of("images")
    assert message("sums", series) == (
        f"config.distill_from={series}: what config.task='sequence_prediction' predicts on data.name='adding' are not classes with "
        "probabilities, which distillation compares; leave it out."
    )
    assert all("are not classes" in message(name, series) for name in ("table", "rolls", "mixtures"))
    assert message("images", series).startswith(
        f"config.distill_from={series} was trained on the task sequence_classification, and config.task is 'classification'; give a run of"
    )
    assert message("images", images, **{"data.image_size": 8}) == (
        f"config.distill_from={images} was trained on inputs of shape (10, 10, 3), and those here have (8, 8, 3): give a run on the same "
        "data, prepared in the same way."
    )
    assert "has the classes dark, light, and the data here light, dark" in message("images", images, **{"data.classes": (1, 0)})
    assert "does not hold a trained run" in message("images", tmp_path)
    status = shutil.copytree(series, tmp_path / "series")
    data = {**read_status(status)["data"], "mean": [0.5], "std": [2.0]}
    folder.write_status(status, data=data)
    assert "with another mean, by which those here were not standardised; was trained on inputs with another deviation" in message(
        "series", status
    )
    with pytest.raises(dilax.UserError, match=r"config\.distill\.weight=0.7 is not read with config.distill_from=''"):
        build(config_of("images", **{"distill.weight": 0.7}), splits_of("images").spec)


def test_the_loss_refuses_what_does_not_fit_and_ignores_what_does_not_count():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    mask = jnp.array([[True, False, True], [False, False, False]])
    found = losses.distillation_loss(logits, logits[..., ::-1], mask=mask, temperature=2.0)
    changed = losses.distillation_loss(logits.at[0, 1].set(99.0), logits[..., ::-1], mask=mask, temperature=2.0)
    np.testing.assert_array_equal(found, changed)
    assert found[0] > 0 and found[1] == 0
    for call, text in (
        (lambda: losses.distillation_loss(logits, logits[:1]), "distillation_loss: logits of shape (2, 3, 4) do not match those of the"),
        (lambda: losses.distillation_loss(logits, logits, temperature=0.0), "distillation_loss: temperature=0.0 is not above 0; use 1 or"),
        (lambda: losses.distillation_loss(logits, logits, mask=mask[:, :2]), "distillation_loss: mask of shape (2, 2) does not fit x of"),
    ):
        assert refused(call).startswith(text)
