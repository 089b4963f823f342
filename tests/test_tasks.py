"""The contract of a task, over all kinds of data of all tasks (see `train.tasks.base.Task`)."""

import argparse
import csv
import functools
import io
import json
import pathlib
import re
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import nibabel  # pyright: ignore[reportMissingImports]
import numpy as np
import pytest
import soxr
from PIL import Image
from selection import slow, with_slow
from task_cases import CASES, WORDS, Case

import dilax
from dilax import DataSpec
from dilax.errors import UserError
from dilax.loading import leaves_with_paths
from train import loop, predict
from train.build import Setup, Trained, build, load_trained
from train.config import from_json, keys_of, task_class, to_json
from train.data import Splits
from train.data.readers import images as reader
from train.data.readers import series, sound
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


@functools.cache
def variables_of(name: str) -> Any:
    return opened(name)[2].init()


@functools.cache
def evaluation_of(name: str) -> Any:
    """The evaluation step, compiled for one device."""
    return jax.jit(opened(name)[2].steps.evaluate)


def scores_of(name: str, batch: dict[str, Any], mask: np.ndarray) -> Scores:
    sums, kept = jax.device_get(evaluation_of(name)(variables_of(name), {**batch, "mask": mask}))
    return Scores(sums, {field: rows[mask] for field, rows in kept.items()})


def sums_of(name: str, batch: dict[str, Any], mask: np.ndarray) -> dict[str, np.ndarray]:
    return scores_of(name, batch, mask).sums


def assert_close(got: Any, expected: Any, tolerance: float = 1e-4) -> None:
    for (path, a), (_, b) in zip(leaves_with_paths(got), leaves_with_paths(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=path)


# Of each task, the cases that are trained by default; the others run with -m slow.
TRAINED = ("images", "masks", "boxes", "photographs", "sounds", "texts", "recordings", "tags", "table", "text", "waves", "mixtures")
UNTRAINED = {*CASES} - {*TRAINED}


def test_every_task_has_a_case():
    assert {case.task for case in CASES.values()} == {CASES[name].task for name in TRAINED} == set(TASKS)
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
    task, model, variables = setup.task, setup.steps.model, variables_of(name)
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
    batch = batch_of(opened(name)[1])
    damaged = {field: np.concatenate([values[:5], damage(values[5:])]) for field, values in batch.items()}
    mask = np.arange(8) < 5
    assert_close(sums_of(name, damaged, mask), sums_of(name, batch, mask), 1e-6)


def damage(values: np.ndarray) -> np.ndarray:
    """Other values of the same kind."""
    if values.dtype.kind == "f":
        return np.where(np.arange(values.size).reshape(values.shape) % 2, np.float32(3e4), np.float32(np.nan))
    return np.zeros_like(values) if values.dtype != np.int32 else np.ones_like(values)


@pytest.mark.parametrize(
    "name", [name for name in CASES if CASES[name].data in ("ucr:toy", "wav", "text", "piano", "mixtures", "csv", "recordings", "conll")]
)
def test_padded_steps_never_count(name):
    case, splits, _ = opened(name)
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
    everything = np.ones(8, bool)
    assert_close(sums_of(name, damaged, everything), sums_of(name, batch, everything), 1e-5)


def put(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Put other values at those steps."""
    changed = values.copy()
    changed[places] = 1 if values.dtype.kind == "i" else 17.0
    return changed


@pytest.mark.parametrize("name", with_slow(CASES, kept=("images", "boxes", "text")))
def test_parts_of_a_batch_give_the_step_of_the_whole(name):
    case, splits, setup = opened(name)
    results = []
    for parts in (1, 4):
        config = case.config(folder_of(name), **{"optim.accumulate": parts, "optim.name": "sgd", "optim.clip_norm": 1.0})
        config_steps = type(setup.steps)(setup.steps.model, task_class(case.task)(config, splits.spec), setup.steps.tx, config)
        state = config_steps.init(variables_of(name))
        results.append(jax.jit(config_steps.train)(state, batch_of(splits), KEY))
    (whole, sums), (parted, sums_of_parts) = results
    assert_close(sums_of_parts, sums, 2e-4)
    assert_close(parted.params, whole.params, 2e-4)


@pytest.mark.parametrize("name", CASES)
def test_metrics_of_two_halves_are_those_of_the_whole(name):
    _, splits, setup = opened(name)
    batch = batch_of(splits)
    first, second = (scores_of(name, batch, mask) for mask in (np.arange(8) < 3, np.arange(8) >= 3))
    whole = scores_of(name, batch, np.ones(8, bool))
    sums = {field: np.asarray(first.sums[field] + second.sums[field]) for field in whole.sums}
    kept = {field: np.concatenate([first.kept[field], second.kept[field]]) for field in whole.kept}
    metrics = setup.task.metrics(whole)
    assert setup.task.metrics(Scores(sums, kept)) == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    assert setup.task.best_by in metrics


@pytest.mark.parametrize("name", with_slow(CASES, kept=TRAINED))
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
    jax.tree.map(np.testing.assert_array_equal, loaded.outputs(batch[field], length=batch.get("length")), expected)


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


@pytest.mark.parametrize("name", with_slow(PREDICTED, repeats=UNTRAINED & {*PREDICTED}))
def test_predict_gives_its_lines(name):
    workdir, run = trained(name)
    lines = list(run.setup.task.predict(run.inference, flags(name, workdir, *steps_of(name), *inputs_of(name))))
    assert (
        len("\n".join(lines).splitlines()) == CASES[name].lines + (1 if name == "text" and "\n" in "".join(lines) else 0) or name == "text"
    )
    for line in lines:
        for cell in line.split("\t")[1:]:
            if cell.endswith((".png", ".wav", ".nii.gz")):
                assert pathlib.Path(cell).stat().st_size > 40


@pytest.mark.parametrize("name", ["images", "sounds", "texts", *slow("series")])
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


@pytest.mark.parametrize("name", with_slow(PREDICTED, repeats=UNTRAINED & {*PREDICTED}))
def test_a_wrong_input_is_one_line(name):
    workdir, run = trained(name)
    (folder_of(name) / "words.txt").write_text(WORDS)
    word, text = CASES[name].wrong
    given = str(folder_of(name) / word) if word else ""
    with pytest.raises(UserError) as error:
        list(run.setup.task.predict(run.inference, flags(name, workdir, *steps_of(name), given)))
    assert str(error.value).startswith(text.format(given))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", with_slow(CASES, kept=TRAINED))
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


def test_a_folder_for_texts_with_tags_is_refused():
    workdir, run = trained("tags")
    args = flags("tags", workdir, *inputs_of("tags"))
    assert list(run.setup.task.predict(run.inference, args))
    args.out, args.replace = folder_of("tags") / "out", False  # as --out sets them
    with pytest.raises(UserError, match=r"^--out=.*: texts with their tags are printed, and no file is written; leave it out\.$"):
        list(run.setup.task.predict(run.inference, args))


@pytest.mark.parametrize("name", ["masks", "waves", "mixtures"])
def test_a_folder_that_cannot_be_written_is_one_line(name):
    workdir, run = trained(name)
    args = flags(name, workdir, *steps_of(name), inputs_of(name)[0])
    args.out = folder_of(name) / "file"
    args.out.write_text("")
    with pytest.raises(UserError, match=r"^--out=.*file cannot be written: .*file is not a folder; give another folder\.$"):
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


def raw_inputs(name: str) -> list[tuple[Any, ...]]:
    """For each input of the case, what `Inference.predict` may be given for it: a path, or the same in memory."""
    if name == "text":
        return [(prompt,) for prompt in inputs_of(name)]
    files = list(map(pathlib.Path, inputs_of(name)))
    if name == "series":
        return [(one, one[:, 0].tolist()) for one in series.read_ts(files[0])[0]]
    if name == "texts":
        return [(file.read_text(), file) for file in files]
    if name == "recordings":
        return [(np.load(file).T, np.load(file).T.tolist()) for file in files]
    if name == "tags":
        return [(line,) for line in files[0].read_text().splitlines() if line]
    if name == "table":
        return [(np.loadtxt(file, delimiter=",", skiprows=1),) for file in files]
    if name == "volumes":
        return [(str(file), file) for file in files]
    if files[0].suffix == ".wav":
        return [(str(file), file, sound.read_sound(file)[0]) for file in files]
    return [(str(file), Image.open(file), np.asarray(Image.open(file)), jnp.asarray(np.asarray(Image.open(file)))) for file in files]


def predicted_lines(name: str) -> list[str]:
    workdir, run = trained(name)
    return list(run.setup.task.predict(run.inference, flags(name, workdir, *steps_of(name), *inputs_of(name))))


def as_the_command_line(name: str, result: Any, line: str) -> None:
    """Check a result of `Inference.predict` against the line that the command prints for the same input."""
    cells = line.split("\t")
    if CASES[name].task in ("classification", "sequence_classification"):
        ((label, probability),) = result
        assert label == cells[1] and probability == pytest.approx(float(cells[2]), abs=2e-4)
    elif name == "recordings":
        rows = [",".join(map(str, segment)) for segment in result]
        assert pathlib.Path(cells[2]).read_text().splitlines() == ["start,end,label", *rows]
        written = pathlib.Path(cells[1]).read_text().split()
        assert written == [label for start, end, label in result for _ in range(start, end)]
    elif name == "tags":
        line = re.sub(r"\[(.*?): \w+\]", r"\1", cells[1])
        assert re.findall(r"\[(.*?): (\w+)\]", cells[1]) == [(line[start:end], kind) for start, end, kind in result]
    elif name == "masks":
        np.testing.assert_array_equal(result, np.asarray(Image.open(cells[1].replace("_overlay", "_mask"))))
    elif name == "boxes":
        listed = json.loads(pathlib.Path(cells[1].replace(".png", ".json")).read_text())["objects"]
        assert [label for label, *_ in result] == [one["class"] for one in listed]
        for (_, value, box), one in zip(result, listed):
            np.testing.assert_allclose([value, *box], [one["score"], *one["box"]], atol=0.01)
    elif name == "photographs":
        np.testing.assert_array_equal(result[..., 0], np.asarray(Image.open(cells[1])))
    elif name == "volumes":
        np.testing.assert_array_equal(result, np.asarray(nibabel.load(cells[1]).dataobj))  # pyright: ignore
    elif name == "mixtures":
        np.testing.assert_allclose(result, np.stack([sound.read_sound(pathlib.Path(cell))[0] for cell in cells[1:]], 1), atol=1e-4)
    elif name == "waves":
        np.testing.assert_allclose(result, sound.read_sound(pathlib.Path(cells[1]))[0], atol=1e-4)
    else:
        assert result == line


@pytest.mark.parametrize("name", with_slow(PREDICTED, repeats=UNTRAINED & {*PREDICTED}))
def test_predict_in_python_equals_the_command_line(name, monkeypatch):
    workdir, _ = trained(name)
    monkeypatch.chdir(workdir.parent)
    loaded, options = dilax.load("run"), {"steps": 7} if steps_of(name) else {}
    assert loaded.class_names == loaded.spec.outputs
    raw, lines = raw_inputs(name), predicted_lines(name)
    if name == "text":  # a drawn text may hold line ends, but a line of predict is one text
        assert len(raw) == len(lines)
    if name == "table":
        expected = [[float(cell) for cell in line.split(",")] for line in lines[1:]]
        np.testing.assert_allclose(loaded.predict(raw[0][0], **options), expected, rtol=1e-4)
        return
    for ways, line in zip(raw[:3], lines, strict=len(raw) < 3):
        for one in ways:
            as_the_command_line(name, loaded.predict(one, **options), line)
    for result, line in zip(loaded.predict([ways[0] for ways in raw], **options), lines, strict=True):
        as_the_command_line(name, result, line)


def test_images_of_any_form_are_prepared_as_in_training():
    """Larger, grey, and in a batch; the oracle is the reader of the training data."""
    workdir, run = trained("images")
    loaded, image = dilax.load(workdir), np.random.default_rng(5).integers(0, 256, (23, 40, 3), np.uint8)
    fitted = reader.fit(image, 10)
    assert loaded.predict(image) == loaded.classify(fitted[None])
    assert loaded.predict(np.stack([image, image[::-1]])) == [loaded.predict(image), loaded.predict(image[::-1])]
    grey = np.asarray(Image.fromarray(image).convert("L"))
    assert loaded.predict(grey) == loaded.predict(grey[..., None]) == loaded.predict(np.stack([grey] * 3, -1))
    assert loaded.predict(image, top=2) == run.inference.rank(fitted[None], top=2)[0]
    assert sum(p for _, p in loaded.predict(image, top=2)) == pytest.approx(1)


def test_sounds_of_another_rate_are_converted():
    workdir, _ = trained("sounds")
    loaded, samples = dilax.load(workdir), sound.read_sound(pathlib.Path(inputs_of("sounds")[0]))[0]
    stereo = np.stack([samples, samples], 1)
    assert loaded.predict(stereo) == loaded.predict(samples)
    twice = soxr.resample(samples, 8000, 16000).clip(-1, 1)
    ((label, probability),) = loaded.predict(twice, rate=16000)
    assert (label, probability) == (loaded.predict(samples)[0][0], pytest.approx(loaded.predict(samples)[0][1], abs=0.05))


WRONG = {
    "an address": ("images", ("https://example.org/a.png",), {}, "is an address, and only files on this machine are read"),
    "a folder": ("images", (".",), {}, "is a folder; give a PNG, JPEG or other image file."),
    "nothing": ("images", ("gone.png",), {}, "gone.png does not exist; give a PNG, JPEG or other image file."),
    "floats": ("images", (np.ones((9, 9, 3)),), {}, "an image of dtype float64 must be uint8, from 0 to 255"),
    "channels": ("images", (np.ones((9, 9, 2), np.uint8),), {}, "an image of shape (9, 9, 2) must be (height, width) or"),
    "too many": ("images", (np.ones((9, 9, 3), np.uint8),), {"top": 3}, "top=3 is not a number of classes; the run has 2, so give 1 to 2."),
    "none": ("images", (np.ones((9, 9, 3), np.uint8),), {"top": 0}, "predict: top=0 is below 1; use 1 or more."),
    "option": (
        "images",
        (np.ones((9, 9, 3), np.uint8),),
        {"steps": 3},
        "predict: steps=3 does not apply to a run of the task classification",
    ),
    "top of masks": (
        "masks",
        (np.ones((9, 9, 3), np.uint8),),
        {"top": 1},
        "predict: top=1 does not apply to a run of the task segmentation",
    ),
    "integers": ("sounds", (np.ones(900, np.int16),), {}, "a sound of shape (900,) and dtype int16 must be floats"),
    "loud": ("sounds", (np.full(900, 3.0),), {}, "a sound has samples up to 3; scale them to -1..1."),
    "not a number": ("sounds", (np.full(900, np.nan),), {}, "a sound has a sample that is not a finite number at 0.000 s; repair it."),
    "a long sound": ("sounds", (np.zeros(80000),), {}, "the input has 997 steps, and the run takes"),
    "bytes": ("texts", (b"words",), {}, "predict: a bytes is not a text; give a string"),
    "no text": ("text", ("",), {}, "the text is empty; give at least one character."),
    "columns": ("table", (np.ones((9, 3)),), {}, "predict: a table of 3 columns does not fit the run, which has warm, wet."),
    "gaps": ("table", ([[1.0, np.nan]],), {}, "predict: a table of shape (1, 2) must be (time, columns), of finite numbers."),
    "words": ("table", ("table.csv",), {}, "predict: a table must be an array (time, columns) of numbers, not a str."),
    "made up": ("sums", (np.ones((9, 1)),), {}, "predict: a run on data.name='adding' cannot predict from your own inputs."),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_in_python_is_one_line(case, tmp_path, monkeypatch):
    name, given, options, text = WRONG[case]
    loaded = dilax.load(trained(name)[0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        loaded.predict(*given, **options)
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", with_slow(PREDICTED, repeats=UNTRAINED & {*PREDICTED}))
def test_lines_are_csv_with_names(name):
    workdir, run = trained(name)
    words = [*steps_of(name), *inputs_of(name), "--csv"]
    rows = list(csv.DictReader("\n".join(run.setup.task.predict(run.inference, flags(name, workdir, *words))).splitlines(keepends=True)))
    if name == "table":
        assert len(rows) == 7 and set(rows[0]) == {"warm", "wet"}
        return
    if name == "text":
        assert [row["input"] for row in rows] == inputs_of(name) and all(row["continued"].startswith(row["input"]) for row in rows)
        return
    lines = [line.split("\t") for line in predicted_lines(name)]
    assert [list(row.values()) for row in rows] == lines


def test_csv_of_several_tables_says_which():
    workdir, run = trained("table")
    path = inputs_of("table")[0]
    lines = list(run.setup.task.predict(run.inference, flags("table", workdir, "--steps=2", "--csv", path, path)))
    assert lines[0] == "input,warm,wet" and [line.split(",")[0] for line in lines[1:]] == [path] * 4


@pytest.mark.parametrize("name", ["images", "sounds", "texts", *slow("pixels", "series")])
def test_top_prints_the_most_probable_classes(name):
    workdir, run = trained(name)
    words, task = inputs_of(name)[:1], run.setup.task
    for line in task.predict(run.inference, flags(name, workdir, "--top=2", *words)):
        _, first, p, second, q = line.split("\t")
        assert {first, second} == set(run.setup.spec.outputs) and float(p) >= float(q)
        assert float(p) + float(q) == pytest.approx(1, abs=2e-4)
    for top in (0, 3):
        with pytest.raises(UserError, match=rf"^--top={top} is not a number of classes; the run has 2, so give 1 to 2\.$"):
            list(task.predict(run.inference, flags(name, workdir, f"--top={top}", *words)))


@pytest.mark.parametrize("name", with_slow(PREDICTED, repeats=UNTRAINED & {*PREDICTED}))
def test_a_folder_stands_for_its_files(name):
    _, run = trained(name)
    data, suffixes = folder_of(name) / "data", run.setup.task.input_suffixes()
    if not suffixes:
        assert predict.files_of(["the rain", "http://x"], suffixes) == ["the rain", "http://x"]
        return
    expected = sorted(str(path) for path in data.rglob("*") if path.name.endswith(tuple(suffixes)))
    assert len(expected) > (name != "table")
    assert predict.files_of([str(data), expected[0]], suffixes) == [*expected, expected[0]]
    empty = folder_of(name) / "empty"
    empty.mkdir(exist_ok=True)
    with pytest.raises(UserError, match="is a folder without files that the run reads"):
        predict.files_of([str(empty)], suffixes)
    with pytest.raises(UserError, match=r"^https://x/a\.png is an address, and only files on this machine are read; download it"):
        predict.files_of(["https://x/a.png"], suffixes)


@pytest.mark.parametrize("name", ["images", "table"])
def test_a_run_is_loaded_from_a_relative_path(name, monkeypatch):
    workdir, run = trained(name)
    monkeypatch.chdir(workdir.parent)
    for again in (load_trained(pathlib.Path("run")).inference, dilax.load("./run"), dilax.load(pathlib.Path("run"))):
        jax.tree.map(np.testing.assert_array_equal, again.variables, run.inference.variables)
