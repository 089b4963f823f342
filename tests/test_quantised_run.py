"""`train.export --quantise`: a run in fewer bits, calibrated on its training split, and kept if its metric is."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
from task_cases import CASES

from dilax import export as formats
from train import export, loop, quantised
from train.build import load_trained
from train.data import train_batches

NEEDS = {
    "onnx": ("jax2onnx", "onnx", "onnxruntime"),
    "tflite": ("litert_converter", "ai_edge_litert", "ai_edge_quantizer"),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:::jax2onnx|onnx|onnxruntime|ai_edge_litert|ai_edge_quantizer|litert_converter"),
    pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`"),
]


def needs(fmt: str) -> None:
    if missing := [name for name in NEEDS[fmt] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")


@pytest.fixture(scope="module", params=("classification", "segmentation"))
def workdir(request, tmp_path_factory) -> pathlib.Path:
    name, folder = next(name for name, case in CASES.items() if case.task == request.param), tmp_path_factory.mktemp(request.param)
    config = CASES[name].config(folder)
    config.report = False
    assert loop.run(config, folder / "run") == 0
    return folder / "run"


@pytest.fixture
def command(monkeypatch):
    """Runs `train.export` with flags and returns its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
        return export.main()

    return run


@pytest.mark.parametrize(("fmt", "dtype"), [("onnx", "int8"), ("onnx", "bfloat16"), ("tflite", "int8")])
def test_the_file_is_written_with_its_figures(workdir, command, fmt, dtype, tmp_path, capsys, monkeypatch):
    needs(fmt)
    monkeypatch.setattr(quantised, "TOLERANCE", 0.2)  # the run has learned next to nothing, and its test split is small
    assert command(f"--workdir={workdir}", f"--format={fmt}", f"--quantise={dtype}", f"--out={tmp_path / 'out'}") == 0
    name = f"model.{dtype}{formats.FORMATS[fmt]}"
    about = json.loads((tmp_path / "out" / f"model.{dtype}.json").read_text())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([name, f"model.{dtype}.json"])
    assert (about["file"], about["quantised"]) == (name, dtype)
    data = (tmp_path / "out" / name).read_bytes()
    counts = formats.kernel_dtypes(data, format=fmt)
    used, other = ("int8", "float32") if dtype == "int8" else ("float32", "int8")
    assert counts[used] > 0 and counts[other] == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{name}: ") and f"kernels computed: {counts[used]} in {used})" in printed
    trained = load_trained(workdir)
    task = trained.setup.task
    metric = about["test"][task.best_by]
    assert f"{task.best_by} {metric:.4f} (JAX {about['test']['metric_jax']:.4f})" in printed
    assert abs(metric - about["test"]["metric_jax"]) <= 0.2
    splits = type(task).open(trained.setup.config, trained.setup.spec)
    image = splits.test[0]["image"][None]
    (answer,) = formats.load_exported(data, format=fmt)(image)
    if task.name == "classification":
        np.testing.assert_allclose(answer, trained.inference.probabilities(image), rtol=0, atol=0.1)
    else:
        assert (answer == trained.inference.segment(image)).mean() > 0.9


def test_calibration_is_on_examples_of_the_training_split(workdir, command, monkeypatch, tmp_path):
    needs("onnx")
    seen = []
    original = formats.quantise

    def quantise(data, **options):
        seen.extend(options["calibration"])
        return original(data, **options)

    monkeypatch.setattr(export.export, "quantise", quantise)
    monkeypatch.setattr(quantised, "TOLERANCE", 1.0)
    assert command(f"--workdir={workdir}", "--format=onnx", "--quantise=int8", "--batch=5", f"--out={tmp_path / 'out'}") == 0
    setup = load_trained(workdir).setup
    source = type(setup.task).open(setup.config, setup.spec).train
    assert len(seen) == -(-min(256, len(source)) // 5)
    for (images,), wanted in zip(seen, train_batches(source, 5, seed=setup.config.seed)):
        np.testing.assert_array_equal(images, wanted["image"])


def test_a_file_that_loses_too_much_is_not_written(workdir, command, monkeypatch, tmp_path, capsys):
    needs("onnx")
    monkeypatch.setattr(quantised, "TOLERANCE", -1.0)
    assert command(f"--workdir={workdir}", "--format=onnx", "--quantise=int8", f"--out={tmp_path / 'out'}") == 1
    name = load_trained(workdir).setup.task.best_by
    printed = capsys.readouterr().err
    assert f"model.int8.onnx was not written, since its {name} is " in printed
    assert printed.endswith("worse than that of JAX, and -1 is allowed; train with config.quantise='int8', or use float16.\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("fmt", "dtype"), [("stablehlo", "int8"), ("tflite", "bfloat16")])
def test_a_dtype_that_a_format_does_not_have_is_refused_at_once(command, fmt, dtype, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command(f"--workdir={tmp_path}", f"--format={fmt}", f"--quantise={dtype}")
    assert capsys.readouterr().err.endswith(
        f"error: --quantise={dtype} cannot be combined with --format={fmt}; use --format onnx: int8, float16, bfloat16; "
        "--format tflite: int8, float16.\n"
    )


def test_a_step_of_a_stream_is_refused_at_once(command, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command(f"--workdir={tmp_path}", "--format=onnx", "--quantise=int8", "--stream")
    assert capsys.readouterr().err.endswith(
        "error: --quantise=int8 cannot be combined with --stream, whose state it would round; leave one of them out.\n"
    )


def test_what_counts_as_worse():
    assert quantised.lost(False, 0.90, 0.92) == pytest.approx(0.02) and quantised.lost(True, 0.90, 0.92) == pytest.approx(-0.02)
