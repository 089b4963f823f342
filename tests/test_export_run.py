"""`train.export`: a run as a file of another runtime, tested there on the test split before it is kept."""

import dataclasses
import importlib.util
import json
import pathlib
import sys
from typing import Any, cast

import jax
import numpy as np
import pytest
from selection import with_slow
from task_cases import CASES
from tiny_runs import files_of, make_run, refused, tiny

from dilax import export as formats
from dilax.inputs import mel_frames, to_samples
from train import export, loop
from train.build import Trained, build, load_trained
from train.data.source import gather
from train.evaluate import evaluate
from train.tasks import TASKS, Task

PACKAGES = {"stablehlo": ("flatbuffers",), "onnx": ("jax2onnx", "onnx", "onnxruntime"), "tflite": ("litert_converter", "ai_edge_litert")}
# Cases that have the parts of others.
LIKE_OTHERS = ("sums", "codes", "pixels", "sounds", "series", "recordings")
STREAMED = ("series", "table", "rolls", "text", "waves", "mixtures")


def needs(format: str) -> None:
    if missing := [name for name in PACKAGES[format] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")


@pytest.fixture(scope="module")
def trained_of(tmp_path_factory):
    """A function that returns an untrained run of a case, whose variables are random and whose outputs therefore differ."""
    made: dict[str, Trained] = {}

    def trained(name: str) -> Trained:
        if name not in made:
            config = CASES[name].config(tmp_path_factory.mktemp(name))
            task = TASKS[config.task]
            setup = build(config, task.open(config).spec)
            rng = np.random.default_rng(5)
            variables = jax.tree.map(lambda leaf: np.asarray(leaf + rng.normal(0, 0.2, leaf.shape), leaf.dtype), setup.init())
            made[name] = Trained(setup, setup.inference(variables))
        return made[name]

    return trained


@pytest.fixture
def command(monkeypatch):
    """Runs `train.export` with flags, and on a given run instead of that in a folder, and returns its exit code."""

    def run(*words: object, trained: Trained | None = None) -> int:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, words), *["--workdir=."] * bool(trained)])
        if trained:
            monkeypatch.setattr(export, "load_trained", lambda *_: trained)
        return export.main()

    return run


def test_every_task_has_a_case():
    assert {case.task for case in CASES.values()} == set(TASKS) and set(LIKE_OTHERS) | set(STREAMED) <= set(CASES)


CHOICES = [
    (name, format, "--stream") if stream else (name, format, "")
    for name in CASES
    for format in formats.FORMATS
    for stream in ((False, True) if name in STREAMED else (False,))
]


@pytest.mark.parametrize(("name", "format", "stream"), with_slow(CHOICES, repeats=[one for one in CHOICES if one[0] in LIKE_OTHERS]))
def test_the_file_scores_as_the_run_does(trained_of, command, name, format, stream, tmp_path, capsys):
    needs(format)
    trained = trained_of(name)
    setup = trained.setup
    assert command(f"--format={format}", f"--out={tmp_path / 'out'}", *[stream] * bool(stream), trained=trained) == 0
    splits = type(setup.task).open(setup.config, setup.spec)
    metric, stem = setup.task.best_by, "stream" if stream else "model"
    expected = evaluate(trained, splits, "test")[metric]
    about = json.loads((tmp_path / "out" / f"{stem}.json").read_text())
    rounding = 0.05 if name == "photographs" else 1e-4  # dB: a program is given 8 bits, and gives 8 bits
    assert about["test"][metric] == pytest.approx(expected, abs=rounding) and about["test"]["difference"] <= 1e-5
    assert about["test"]["examples"] == len(splits.test) and about["classes"] == list(setup.spec.outputs)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{stem}{formats.FORMATS[format]}: ") and f"{metric} {about['test'][metric]:.4f} (JAX " in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([f"{stem}{formats.FORMATS[format]}", f"{stem}.json"])
    data = (tmp_path / "out" / about["file"]).read_bytes()
    texts = formats.read_metadata(data, format=format)
    assert texts["task"] == setup.task.name and json.loads(texts["classes"]) == about["classes"]
    spec = setup.spec
    for key, value in {"mean": spec.mean, "std": spec.std, "sample_rate": spec.sample_rate, "symbols": spec.symbols}.items():
        assert json.loads(texts.get(key, "null")) == about["inputs"][0].get(key) == json.loads(json.dumps(value or None))


def raw(name: str, folder: pathlib.Path, trained: Trained) -> Any:
    """Inputs as they are outside, and what `Inference.predict` makes of them."""
    source = type(trained.setup.task).open(trained.setup.config, trained.setup.spec).test
    inference = trained.inference
    if name == "series":
        one = gather(source, np.array([1]))
        values = inference.spec.unscale(one["input"][0, : one["length"][0]])
        return values.astype(np.float32), inference.predict(values, top=2)
    path = folder / "high" / "2.wav"
    frames = mel_frames([to_samples(path, None, inference.spec.sample_rate)], inference.spec.sample_rate, 8)[0]
    return frames, inference.predict(path, top=2)


@pytest.mark.parametrize("name", ["series", "sounds"])
def test_a_program_takes_sequences_in_their_own_units(trained_of, command, name, tmp_path):
    needs("stablehlo")
    trained = trained_of(name)
    assert command("--format=stablehlo", f"--out={tmp_path / 'out'}", trained=trained) == 0
    run = formats.load_exported((tmp_path / "out" / "model.stablehlo").read_bytes(), format="stablehlo")
    values, wanted = raw(name, pathlib.Path(trained.setup.config.data.dir), trained)
    # After the end there may be anything.
    x = np.full((1, *trained.setup.spec.input_shape), 1e3, np.float32)
    x[0, : len(values)] = values
    ((found,),) = run(x, np.array([len(values)], np.int32))
    names = trained.setup.spec.outputs
    assert dict(wanted) == pytest.approx(dict(zip(names, found.tolist())), abs=1e-5)


def test_rows_of_a_table_come_back_in_their_own_units(trained_of, command, tmp_path):
    needs("stablehlo")
    trained = trained_of("table")
    assert command("--format=stablehlo", f"--out={tmp_path / 'out'}", "--stream", trained=trained) == 0
    data = (tmp_path / "out" / "stream.stablehlo").read_bytes()
    run, about = formats.load_exported(data, format="stablehlo"), json.loads((tmp_path / "out" / "stream.json").read_text())
    assert about["stream"]["chunk"] == 1 and about["stream"]["latency"] == 0
    rows = np.random.default_rng(0).normal((10, 0), (3, 70), (20, 2)).astype(np.float32)
    ports = about["inputs"][1:]
    state = [np.full(port["shape"], part["initial"], port["dtype"]) for port, part in zip(ports, about["stream"]["state"])]
    for row in rows:
        prediction, *state = run(row[None, None], *state)
    wanted = trained.inference.predict(rows, steps=1)[0]
    np.testing.assert_allclose(prediction[0, 0], wanted, rtol=1e-4)


def test_outputs_that_are_late_come_to_their_places(trained_of, command, tmp_path):
    needs("stablehlo")
    trained = trained_of("series")
    config = trained.setup.config.copy_and_resolve_references()
    config.model.causal = False
    setup = build(config, trained.setup.spec)
    late = Trained(setup, setup.inference(trained.inference.variables))
    for words in ((), ("--chunk=4",)):
        out = tmp_path / f"out{len(words)}"
        assert command("--format=stablehlo", f"--out={out}", "--stream", *words, trained=late) == 0
        about = json.loads((out / "stream.json").read_text())
        assert about["stream"]["latency"] > 0 and about["stream"]["length"] == "state_clock_end" and about["test"]["difference"] < 1e-5
    message = refused(lambda: command("--format=stablehlo", f"--out={tmp_path / 'other'}", "--stream", "--batch=2", trained=late))
    assert message.startswith("--batch: outputs of this network are 4 samples late, so each sequence is fed alone; leave it out.")


def test_batch_normalisation_is_not_in_the_file(trained_of, command, tmp_path, capsys):
    needs("onnx")
    config = CASES["images"].config(tmp_path / "data")
    config.model.norm = "batch"
    setup = build(config, TASKS[config.task].open(config).spec)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda leaf: np.asarray(np.abs(leaf + rng.normal(0, 0.2, leaf.shape)), leaf.dtype), setup.init())
    trained = Trained(setup, setup.inference(variables))
    assert command("--format=onnx", f"--out={tmp_path / 'out'}", trained=trained) == 0
    program = __import__("onnx").load(tmp_path / "out" / "model.onnx")
    kinds = [node.op_type for node in program.graph.node]
    assert kinds.count("Conv") == len(config.model.features) and not {"BatchNormalization", "Sqrt"} & set(kinds)
    # Scaling of pixels and of softmax.
    assert kinds.count("Mul") <= 1, kinds
    assert "note:" not in capsys.readouterr().err


def run_of(name: str, folder: pathlib.Path) -> pathlib.Path:
    config = CASES[name].config(folder)
    config.report = False
    assert loop.run(config, folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    return run_of("images", tmp_path_factory.mktemp("images"))


def test_a_run_in_a_folder_is_written_there(workdir, command, capsys):
    needs("stablehlo")
    assert command(f"--workdir={workdir}", "--format=stablehlo", "--batch=3") == 0
    images = np.stack([record["image"] for record in map(_test_split(workdir).__getitem__, range(3))])
    (answer,) = formats.load_exported((workdir / "export" / "model.stablehlo").read_bytes(), format="stablehlo")(images)
    np.testing.assert_allclose(answer, load_trained(workdir).inference.probabilities(images), rtol=0, atol=1e-5)
    assert json.loads((workdir / "export" / "model.json").read_text())["inputs"][0]["shape"] == [3, *images.shape[1:]]
    assert command(f"--workdir={workdir}", "--format=stablehlo") == 0  # what the run itself has exported is replaced


def test_a_run_that_is_not_finished_says_so(trained_of, command, tmp_path, capsys):
    needs("stablehlo")
    for finished, said in ((True, ""), (False, "note: the run is not finished; the file has its best parameters so far.\n")):
        trained = dataclasses.replace(trained_of("images"), finished=finished)
        assert command("--format=stablehlo", f"--out={tmp_path / str(finished)}", trained=trained) == 0
        assert capsys.readouterr().err == said
    folder = make_run(tiny(), tmp_path / "run", finished=False)
    assert not load_trained(folder).finished


def _test_split(workdir: pathlib.Path) -> Any:
    setup = load_trained(workdir).setup
    return type(setup.task).open(setup.config, setup.spec).test


def test_a_file_that_differs_is_not_written(workdir, command, monkeypatch, tmp_path, capsys):
    original = formats.load_exported

    def load(data, *, format):
        run = original(data, format=format)
        return lambda *arrays: tuple(result + np.asarray(1e-2 if result.dtype.kind == "f" else 1, result.dtype) for result in run(*arrays))

    monkeypatch.setattr(export.export, "load_exported", load)
    assert command(f"--workdir={workdir}", "--format=stablehlo", f"--out={tmp_path / 'out'}") == 1
    assert "model.stablehlo was not written, since its results differ from those of JAX by more than 0.0001" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_and_its_description_are_replaced_together(workdir, command):
    needs("stablehlo")
    assert command(f"--workdir={workdir}", "--format=stablehlo", "--batch=3") == 0
    before = files_of(workdir / "export")
    scratch = workdir / "export" / "model.json.part"
    scratch.mkdir()  # where the description cannot be written
    message = refused(lambda: command(f"--workdir={workdir}", "--format=stablehlo", "--batch=2"))
    assert message.endswith("cannot be written: Is a directory; fix that and give the same command again.")
    scratch.rmdir()
    assert files_of(workdir / "export") == before


def test_errors_are_one_line_and_leave_nothing(workdir, command, trained_of, tmp_path, capsys):
    (tmp_path / "model.stablehlo").write_bytes(b"mine")
    message = refused(lambda: command(f"--workdir={workdir}", "--format=stablehlo", f"--out={tmp_path}"))
    assert message == f"--out: {tmp_path / 'model.stablehlo'} is there already; remove it, or give another folder."
    for words, line in (
        (["--format=stablehlo", "--batch=0"], '--batch=0 is not a number of examples; give 1 or more, or "any".'),
        (["--format=stablehlo", "--batch=many"], '--batch=many is not a number of examples; give 1 or more, or "any".'),
        (["--format=tflite", "--batch=any"], "--batch=any cannot be combined with --format=tflite, whose sizes are fixed; give a number."),
        (["--format=pickle"], "argument --format: invalid choice: 'pickle'"),
        (["--format=onnx", "--chunk=3"], "--chunk=3 is not a number of steps of --stream; give both, such as --stream --chunk=1."),
        (["--format=onnx", "--chunk=-1", "--stream"], "--chunk=-1 is not a number of steps of --stream; give both"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(f"--workdir={workdir}", f"--out={tmp_path}", *words)
        assert line in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.stablehlo", b"mine")]
    assert "does not hold a run" in refused(lambda: command(f"--workdir={tmp_path}", "--format=stablehlo"))
    for name, words, line in (
        ("images", [], "--stream: this run reads images, which are there as a whole; leave it out."),
        ("pixels", [], "--stream: this run reads images, which are there as a whole; leave it out."),
        ("texts", [], "stream_step: GatedDilatedCNN needs the whole sequence and cannot be fed in chunks; give a"),
        ("mixtures", ["--chunk=5"], "ConvTasNet.stream: a chunk of 5 samples is not a multiple of stride=8; feed multiples of it"),
    ):
        given = trained_of(name)
        out = f"--out={tmp_path / 'new'}"
        message = refused(lambda: command("--format=stablehlo", out, "--stream", *words, trained=given))  # noqa: B023
        assert message.startswith(line)
    assert not (tmp_path / "new").exists()


def test_a_task_without_an_answer_is_refused():
    made = cast(Any, Task)
    message = refused(lambda: made.answer(object.__new__(TASKS["classification"])))
    assert message.startswith("a run of the task classification cannot be exported by train.export, since the task does not say")
