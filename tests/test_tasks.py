"""The contract of a task, over all kinds of data of all tasks (see `train.tasks.base.Task`)."""

import argparse
import copy
import functools
import io
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from task_cases import CASES, WORDS, Case

import dilax
from dilax import DataSpec
from dilax.errors import UserError
from dilax.loading import leaves_with_paths
from train import loop
from train.build import Setup, Trained, build, load_trained
from train.config import from_json, keys_of, task_class, to_json
from train.data import Splits
from train.data.source import gather
from train.evaluate import evaluate
from train.score import score
from train.tasks import TASKS
from train.tasks.base import Scores

KEY = jax.random.key(7)
TEMPORARY = tempfile.TemporaryDirectory(prefix="dilax-tasks-", ignore_cleanup_errors=True)


def folder_of(name: str) -> pathlib.Path:
    return pathlib.Path(TEMPORARY.name) / name


@functools.cache
def opened(name: str) -> tuple[Case, Splits, Setup]:
    """A case with its data and its setup on one device's batch."""
    case = CASES[name]
    config = case.config(folder_of(name))
    splits = task_class(case.task).open(config)
    return case, splits, build(config, splits.spec)


@functools.cache
def trained(name: str) -> tuple[pathlib.Path, Trained]:
    """The folder of a finished run, and the run."""
    workdir = folder_of(name) / "run"
    assert loop.run(CASES[name].config(folder_of(name)), workdir) == 0
    return workdir, load_trained(workdir)


def batch_of(splits: Splits, count: int = 8) -> dict[str, np.ndarray]:
    return gather(splits.train, np.arange(count))


def sums_of(setup: Setup, variables: Any, batch: dict[str, Any], mask: np.ndarray) -> dict[str, np.ndarray]:
    return jax.device_get(setup.steps.evaluate(variables, {**batch, "mask": mask})[0])


def assert_close(got: Any, expected: Any, tolerance: float = 1e-4) -> None:
    for (path, a), (_, b) in zip(leaves_with_paths(got), leaves_with_paths(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=path)


def test_every_task_has_a_case():
    assert {case.task for case in CASES.values()} == set(TASKS)
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("name", CASES)
def test_data_is_as_described(name):
    _, splits, setup = opened(name)
    spec = splits.spec
    assert DataSpec.from_json(spec.to_json()) == spec
    assert spec.examples == len(splits.train) > 0
    for split in (splits.train, splits.validation, splits.test):
        assert split is not None
        batch = gather(split, np.arange(min(2, len(split))))
        inputs = setup.task.inputs(jax.tree.map(jnp.asarray, batch), setup.steps.model)
        assert inputs["x"].shape == (min(2, len(split)), *spec.input_shape)
        assert inputs["x"].dtype == spec.dtype


@pytest.mark.parametrize("name", CASES)
def test_a_config_holds_the_keys_of_its_task_alone(name):
    case, _, setup = opened(name)
    again = from_json(to_json(setup.config))
    assert to_json(again) == to_json(setup.config)
    sections = {key.partition(".")[0] for key in keys_of(case.task)}
    assert set(setup.config.keys()) == {*sections, "name", "task", "model"}


@pytest.mark.parametrize("name", CASES)
def test_loss_is_finite_and_trains_every_parameter(name):
    _, splits, setup = opened(name)
    task, model, variables = setup.task, setup.steps.model, setup.init()
    batch = task.augment(KEY, jax.tree.map(jnp.asarray, batch_of(splits)), 0)

    def mean_loss(params: Any) -> Any:
        loss = task.loss(model, {**variables, "params": params}, batch, KEY)
        return loss.sums["loss"] / loss.count, loss

    grads, loss = jax.jit(jax.grad(mean_loss, has_aux=True))(variables["params"])
    assert np.isfinite(float(loss.sums["loss"]))
    assert float(loss.count) > 0
    unused = [path for path, leaf in leaves_with_paths(grads) if not (np.isfinite(leaf).all() and np.abs(leaf).max() > 0)]
    # What the last unit of a WaveNet passes on goes nowhere.
    assert [path for path in unused if not path.startswith("unit1/residual")] == []


@pytest.mark.parametrize("name", CASES)
def test_padded_examples_never_count(name):
    _, splits, setup = opened(name)
    variables, batch = setup.init(), batch_of(splits)
    damaged = {field: np.concatenate([values[:5], damage(values[5:])]) for field, values in batch.items()}
    mask = np.arange(8) < 5
    assert_close(sums_of(setup, variables, damaged, mask), sums_of(setup, variables, batch, mask), 1e-6)


def damage(values: np.ndarray) -> np.ndarray:
    """Other values of the same kind."""
    if values.dtype.kind == "f":
        return np.where(np.arange(values.size).reshape(values.shape) % 2, np.float32(3e4), np.float32(np.nan))
    return np.zeros_like(values) if values.dtype != np.int32 else np.ones_like(values)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].data in ("ucr:toy", "wav", "text", "piano", "mixtures", "csv")])
def test_padded_steps_never_count(name):
    case, splits, setup = opened(name)
    batch = batch_of(splits)
    if "length" not in batch:
        pytest.skip("no padded steps")
    batch["length"] = np.minimum(batch["length"], batch["input"].shape[1] - 3)
    if "counted" in batch:
        batch["counted"] = batch["counted"] & (np.arange(batch["input"].shape[1])[None] < batch["length"][:, None])
    padding = np.arange(batch["input"].shape[1])[None] >= batch["length"][:, None]
    damaged = {**batch, "input": put(batch["input"], padding)}
    if "counted" in batch or case.task == "separation":
        damaged["label"] = put(batch["label"], padding)
    variables, everything = setup.init(), np.ones(8, bool)
    assert_close(sums_of(setup, variables, damaged, everything), sums_of(setup, variables, batch, everything), 1e-5)


def put(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Put other values at those steps."""
    changed = values.copy()
    changed[places] = 1 if values.dtype.kind == "i" else 17.0
    return changed


@pytest.mark.parametrize("name", CASES)
def test_parts_of_a_batch_give_the_step_of_the_whole(name):
    case, splits, _ = opened(name)
    results = []
    for parts in (1, 4):
        config = case.config(folder_of(name), **{"optim.accumulate": parts, "optim.name": "sgd", "optim.clip_norm": 1.0})
        steps = copy.copy(opened(name)[2].steps)
        config_steps = type(steps)(steps.model, task_class(case.task)(config, splits.spec), steps.tx, config)
        state = config_steps.init(opened(name)[2].init())
        results.append(jax.jit(config_steps.train)(state, batch_of(splits), KEY))
    (whole, sums), (parted, sums_of_parts) = results
    assert_close(sums_of_parts, sums, 2e-4)
    assert_close(parted.params, whole.params, 2e-4)


@pytest.mark.parametrize("name", CASES)
def test_metrics_of_two_halves_are_those_of_the_whole(name):
    _, splits, setup = opened(name)
    variables, batch = setup.init(), batch_of(splits)
    first, second = (sums_of(setup, variables, batch, mask) for mask in (np.arange(8) < 3, np.arange(8) >= 3))
    whole = sums_of(setup, variables, batch, np.ones(8, bool))
    together = {field: np.asarray(first[field] + second[field]) for field in whole}
    metrics = setup.task.metrics(Scores({field: np.asarray(value) for field, value in whole.items()}, {}))
    assert setup.task.metrics(Scores(together, {})) == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    assert setup.task.best_by in metrics


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_evaluated_reported_and_loaded(name):
    workdir, run = trained(name)
    status = dilax.loading.read_status(workdir)
    splits = type(run.setup.task).open(run.setup.config)
    metrics = evaluate(run, splits, "test")
    for key, value in status["metrics"].items():
        assert metrics[key.removeprefix("test/")] == pytest.approx(value, abs=1e-5)
    report = (workdir / "report" / "report.md").read_text()
    for picture in (workdir / "report").glob("*.png"):
        assert f"]({picture.name})" in report
        with Image.open(picture) as image:
            assert np.asarray(image).std() > 0
    assert report.count("](") == len(list((workdir / "report").glob("*.png"))) + len(list((workdir / "report").glob("*.wav")))
    # What dilax.load gives is the model of the run.
    loaded, batch = dilax.load(workdir), gather(splits.test, np.arange(min(2, len(splits.test))))
    field = "image" if "image" in batch else "input"
    expected = run.inference.outputs(batch[field], length=batch.get("length"))
    np.testing.assert_array_equal(loaded.outputs(batch[field], length=batch.get("length")), expected)


def flags(name: str, workdir: pathlib.Path, *words: str) -> argparse.Namespace:
    """The flags of prediction as the command line gives them."""
    parser = argparse.ArgumentParser()
    task_class(CASES[name].task).add_prediction_flags(parser)
    args = parser.parse_args(list(words))
    args.out, args.replace = workdir / "predictions", True
    return args


def streamed(name: str) -> io.BytesIO:
    """What the case reads from standard input."""
    content = CASES[name].streamed
    assert content is not None
    return io.BytesIO(content(folder_of(name)))


PREDICTED = [name for name, case in CASES.items() if case.inputs]


def inputs_of(name: str) -> list[str]:
    files = [folder_of(name) / "data" / word for word in CASES[name].inputs]
    return [str(file) if file.suffix else word for file, word in zip(files, CASES[name].inputs)]


def steps_of(name: str) -> list[str]:
    return ["--steps", "7"] if CASES[name].task in ("language_model", "waveform", "sequence_prediction") else []


@pytest.mark.parametrize("name", PREDICTED)
def test_predict_gives_its_lines(name):
    workdir, run = trained(name)
    lines = list(run.setup.task.predict(run.inference, flags(name, workdir, *steps_of(name), *inputs_of(name))))
    assert (
        len("\n".join(lines).splitlines()) == CASES[name].lines + (1 if name == "text" and "\n" in "".join(lines) else 0) or name == "text"
    )
    for line in lines:
        for cell in line.split("\t")[1:]:
            if cell.endswith((".png", ".wav")):
                assert pathlib.Path(cell).stat().st_size > 40


@pytest.mark.parametrize("name", ["series", "sounds", "texts", "images"])
def test_prediction_equals_evaluation(name):
    """The classes that predict prints for the test split have the accuracy of the evaluation."""
    _, run = trained(name)
    splits = type(run.setup.task).open(run.setup.config)
    batch = gather(splits.test, np.arange(len(splits.test)))
    field = "image" if "image" in batch else "input"
    answers = run.inference.classify(batch[field], length=batch.get("length"))
    right = np.mean([splits.spec.outputs[label] == answer for label, (answer, _) in zip(batch["label"], answers)])
    metrics, _ = score(run.setup, run.setup.parallel.put(run.inference.variables), splits.test)
    assert right == pytest.approx(metrics["accuracy"])


@pytest.mark.parametrize("name", PREDICTED)
def test_a_wrong_input_is_one_line(name):
    workdir, run = trained(name)
    (folder_of(name) / "words.txt").write_text(WORDS)
    word, text = CASES[name].wrong
    given = str(folder_of(name) / word) if word else ""
    with pytest.raises(UserError) as error:
        list(run.setup.task.predict(run.inference, flags(name, workdir, *steps_of(name), given)))
    assert str(error.value).startswith(text.format(given))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_streams_or_says_why_not(name):
    case, (workdir, run) = CASES[name], trained(name)
    args = flags(name, workdir, *steps_of(name)) if case.inputs else argparse.Namespace()
    if case.streamed is None:
        with pytest.raises(UserError, match=r"--stream|nothing to predict"):
            list(run.setup.task.stream(run.inference, io.BytesIO(b"1,2\n"), args))
        return
    if name == "texts":  # its model reads the whole text, a line at a time
        (answer,) = run.setup.task.stream(run.inference, streamed(name), args)
        (line,) = run.setup.task.predict(run.inference, flags(name, workdir, inputs_of(name)[0]))
        assert answer.decode().split("\t")[1] == line.split("\t")[1]
        return
    pieces = list(run.setup.task.stream(run.inference, streamed(name), args))
    assert len(pieces) > 0
    assert all(pieces)


def test_stream_of_sound_equals_predict():
    workdir, run = trained("sounds")
    (line,) = run.setup.task.predict(run.inference, flags("sounds", workdir, inputs_of("sounds")[0]))
    *_, last = run.setup.task.stream(run.inference, streamed("sounds"), flags("sounds", workdir))
    assert last.decode().split("\t")[1] == line.split("\t")[1]
    assert float(last.decode().split("\t")[2]) == pytest.approx(float(line.split("\t")[2]), abs=2e-4)


def test_stream_of_rows_equals_forecast():
    """The row after the last is that which predict gives first."""
    workdir, run = trained("table")
    lines = list(run.setup.task.predict(run.inference, flags("table", workdir, "--steps", "1", inputs_of("table")[0])))
    *_, last = run.setup.task.stream(run.inference, streamed("table"), flags("table", workdir))
    got, expected = ([float(cell) for cell in row.split(",")] for row in (last.decode(), lines[1]))
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["masks", "waves", "mixtures"])
def test_a_folder_that_cannot_be_written_is_one_line(name):
    workdir, run = trained(name)
    args = flags(name, workdir, *steps_of(name), inputs_of(name)[0])
    args.out = folder_of(name) / "file"
    args.out.write_text("")
    with pytest.raises(UserError, match=r"^--out=.*file cannot be written: File exists; give another folder\.$"):
        list(run.setup.task.predict(run.inference, args))


def test_codes_of_one_byte_are_codes():
    """uint8 is not always an image."""
    _, run = trained("text")
    codes = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(run.inference.outputs(codes.astype(np.uint8)), run.inference.outputs(codes.astype(np.int32)))


def test_sounds_of_another_rate_are_not_scored():
    _, run = trained("waves")
    splits = type(run.setup.task).open(run.setup.config)
    with pytest.raises(UserError, match="the data has 16000 samples per second, and the run was trained on 8000; resample the data"):
        evaluate(run, splits.with_spec(sample_rate=16000), "test")
