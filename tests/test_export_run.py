"""`train.export`: a run as a file of another runtime, tested there on the test split before it is kept."""

import importlib.util
import json
import pathlib
import sys
from typing import Any, cast

import numpy as np
import pytest
from task_cases import CASES
from tiny_runs import refused

from dilax import export as formats
from train import export, loop
from train.build import load_trained
from train.evaluate import evaluate
from train.tasks import TASKS

PACKAGES = {"stablehlo": ("flatbuffers",), "onnx": ("jax2onnx", "onnx", "onnxruntime"), "tflite": ("litert_converter", "ai_edge_litert")}
IMAGES = ("classification", "segmentation")


def run_of(name: str, folder: pathlib.Path) -> pathlib.Path:
    config = CASES[name].config(folder)
    config.report = False
    assert loop.run(config, folder / "run") == 0
    return folder / "run"


def cases_of(task: str) -> list[str]:
    return [name for name, case in CASES.items() if case.task == task]


@pytest.fixture(scope="module", params=IMAGES)
def workdir(request, tmp_path_factory) -> pathlib.Path:
    return run_of(cases_of(request.param)[0], tmp_path_factory.mktemp(request.param))


@pytest.fixture
def command(monkeypatch):
    """Runs `train.export` with flags and returns its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
        return export.main()

    return run


@pytest.mark.parametrize("batch", ["", "3"])
@pytest.mark.parametrize("format", formats.FORMATS)
def test_the_file_scores_as_the_run_does(workdir, command, format, batch, tmp_path, capsys):
    missing = [name for name in PACKAGES[format] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    words = [f"--workdir={workdir}", f"--format={format}", f"--out={tmp_path / 'out'}", *[f"--batch={batch}"] * bool(batch)]
    assert command(*words) == 0
    trained = load_trained(workdir)
    setup = trained.setup
    splits = type(setup.task).open(setup.config, setup.spec)
    metric = setup.task.best_by
    expected = evaluate(trained, splits, "test")[metric]
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["test"][metric] == pytest.approx(expected, abs=1e-6) and about["test"]["difference"] <= 1e-4
    assert about["test"]["examples"] == len(splits.test) and about["classes"] == list(setup.spec.outputs)
    printed = capsys.readouterr().out
    assert printed.startswith(f"model{formats.FORMATS[format]}: ") and f"{metric} {expected:.4f} (JAX {expected:.4f})" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([f"model{formats.FORMATS[format]}", "model.json"])
    data = (tmp_path / "out" / about["file"]).read_bytes()
    count = int(batch) if batch else 1
    images = np.stack([splits.test[i]["image"] for i in range(count)])
    (answer,) = formats.load_exported(data, format=format)(images)
    if setup.task.name == "classification":
        np.testing.assert_allclose(answer, trained.inference.probabilities(images), rtol=0, atol=1e-5)
    else:
        assert (answer == trained.inference.segment(images)).mean() > 0.999


def test_a_file_that_differs_is_not_written(workdir, command, monkeypatch, tmp_path, capsys):
    original = formats.load_exported

    def load(data, *, format):
        run = original(data, format=format)
        return lambda *arrays: tuple(result + np.asarray(1e-2 if result.dtype.kind == "f" else 1, result.dtype) for result in run(*arrays))

    monkeypatch.setattr(export.export, "load_exported", load)
    assert command(f"--workdir={workdir}", "--format=stablehlo", f"--out={tmp_path / 'out'}") == 1
    assert "model.stablehlo was not written, since its results differ from those of JAX by more than 0.0001" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_errors_are_one_line_and_leave_nothing(workdir, command, tmp_path, capsys):
    (tmp_path / "model.stablehlo").write_bytes(b"mine")
    message = refused(lambda: command(f"--workdir={workdir}", "--format=stablehlo", f"--out={tmp_path}"))
    assert message == f"--out: {tmp_path / 'model.stablehlo'} is there already; remove it, or give another folder."
    for words, line in (
        (["--format=stablehlo", "--batch=0"], '--batch=0 is not a number of examples; give 1 or more, or "any".'),
        (["--format=stablehlo", "--batch=many"], '--batch=many is not a number of examples; give 1 or more, or "any".'),
        (["--format=pickle"], "argument --format: invalid choice: 'pickle'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(f"--workdir={workdir}", f"--out={tmp_path}", *words)
        assert line in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.stablehlo", b"mine")]
    assert "does not hold a run" in refused(lambda: command(f"--workdir={tmp_path}", "--format=stablehlo"))


@pytest.mark.parametrize("task", [name for name in TASKS if name not in IMAGES])
def test_other_tasks_are_refused(task):
    made = object.__new__(TASKS[task])
    assert refused(lambda: made.portable(cast(Any, None))).startswith(f"a run of the task {task} cannot be exported by train.export")
