"""`train.prune`: a run with a smaller network, which is evaluated, predicts, is published and fine-tuned from like any other."""

import functools
import json
import os
import pathlib
import sys
import tempfile
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from selection import with_slow
from task_cases import CASES
from tiny_runs import files_of, make_run, refused, tiny

import dilax
from dilax import inference, loading
from train import convert, export, folder, loop, main, profile, prune, publish, transfer
from train.build import build, load_trained
from train.config import check, default_config, from_json, model_config, to_json
from train.data.source import gather
from train.evaluate import evaluate

TEMPORARY = tempfile.TemporaryDirectory(prefix="dilax-prune-", ignore_cleanup_errors=True)
ROOT = pathlib.Path(TEMPORARY.name)
# Of which kinds of data networks are pruned, with normalisations that do not combine channels.
RUNS = {"images": "batch", "texts": "batch", "waves": None, "mixtures": None}
OPTIONS: dict[str, Any] = dict(ratio=0.4, multiple_of=1)


def config_of(name: str, **changes: Any) -> ConfigDict:
    return CASES[name].config(ROOT / name, **({"model.norm": RUNS[name]} if RUNS[name] else {}), **changes)


@functools.cache
def made(name: str) -> tuple[pathlib.Path, pathlib.Path, str]:
    """The folders of a run and of the pruned one, and what was printed."""
    workdir, out = make_run(config_of(name), ROOT / name / "run"), ROOT / name / "pruned"
    before = files_of(workdir)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "prune: layers that keep all channels", UserWarning)
        line = prune.prune(workdir, out, **OPTIONS)
    assert files_of(workdir) == before
    return workdir, out, line


def identical(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def it_is_the_network_that_prune_returns(workdir: pathlib.Path, out: pathlib.Path, line: str) -> None:
    trained = load_trained(workdir)
    model, variables = trained.setup.steps.model, dict(trained.inference.variables)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "prune: layers that keep all channels", UserWarning)
        smaller, cut = dilax.prune(model, variables, trained.setup.example, **OPTIONS)
    for found in (load_trained(out).inference, dilax.load(out)):
        assert found.model == smaller
        identical(found.variables, {"batch_stats": {}, **cut})
    saved = json.loads((out / "config.json").read_text())["model"]["changes"]
    assert saved == json.loads((out / "run.json").read_text())["model"]["changes"] == {k: dict(v) for k, v in smaller.changes.items()}
    assert from_json(to_json(folder.read_run(out)[0])) == folder.read_run(out)[0]


def the_line_says_what_has_changed(workdir: pathlib.Path, out: pathlib.Path, line: str) -> None:
    trained = [load_trained(place) for place in (workdir, out)]
    task = trained[0].setup.task
    splits = type(task).open(trained[0].setup.config, trained[0].setup.spec)
    scores = [evaluate(each, splits, "validation")[task.best_by] for each in trained]
    work = [dilax.multiply_adds(each.inference.model, each.inference.variables, each.setup.example) for each in trained]
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(each.inference.variables["params"])) for each in trained]
    assert line == (
        f"{out}: multiply-adds {work[0]:,} -> {work[1]:,} ({100 * work[1] / work[0]:.0f}%), parameters {sizes[0]:,} -> {sizes[1]:,} "
        f"({100 * sizes[1] / sizes[0]:.0f}%), validation/{task.best_by} {scores[0]:.4f} -> {scores[1]:.4f}"
    )
    assert work[1] < 0.9 * work[0] and sizes[1] < 0.9 * sizes[0]


def it_is_published_and_comes_back(workdir: pathlib.Path, out: pathlib.Path, line: str) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors")
    place, again = out.with_name("published"), out.with_name("again")
    publish.publish(out, place)
    convert.convert("dilax", place, again)
    expected = dilax.load(out)
    for found in (dilax.load(place), dilax.load(again), load_trained(again).inference):
        assert (found.model, found.spec, found.task, found.pool) == (expected.model, expected.spec, expected.task, expected.pool)
        identical(found.variables, expected.variables)


def the_model_is_given_what_the_original_takes(workdir: pathlib.Path, out: pathlib.Path, line: str) -> None:
    """The mask of a padded batch, and x in its dtype; and its fields can be read."""
    before, after = load_trained(workdir), load_trained(out)
    source = type(before.setup.task).open(before.setup.config, before.setup.spec).test
    batch: dict[str, Any] = jax.tree.map(jnp.asarray, gather(source, np.arange(2)))
    given = [each.setup.task.inputs(batch, each.setup.steps.model) for each in (before, after)]
    identical(given[1], given[0])
    original: Any = before.setup.steps.model
    for name in original.__dataclass_fields__:
        if name not in ("parent", "name", "features"):  # a backbone has a method of that name
            assert getattr(after.setup.steps.model, name) == getattr(original, name)


LAWS = (
    it_is_the_network_that_prune_returns,
    the_line_says_what_has_changed,
    it_is_published_and_comes_back,
    the_model_is_given_what_the_original_takes,
)


@pytest.mark.parametrize("name", with_slow(RUNS, repeats=("mixtures",)))
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws(law, name):
    law(*made(name))


def test_padding_does_not_count():
    """In a pruned network that looks ahead, as in the original one."""
    found = load_trained(made("texts")[1]).inference
    x = jnp.asarray(np.random.default_rng(0).integers(0, 5, (2, 9)))
    length = jnp.array([6, 9])
    arguments: dict[str, Any] = inference.model_arguments(found.model, x, length)
    padded = found.model.apply(found.variables, **arguments, train=False)
    alone = found.model.apply(found.variables, x[:1, :6], train=False)
    np.testing.assert_allclose(padded[0], alone[0], rtol=1e-5, atol=1e-5)


def test_a_pruned_network_is_fed_in_chunks_of_its_stride_and_continues_sounds():
    mixtures, waves = dilax.load(made("mixtures")[1]), dilax.load(made("waves")[1])
    assert getattr(mixtures.model, "stride") == 8  # noqa: B009
    assert waves.predict(np.zeros(100, np.float32), steps=5).shape == (105,)


def test_it_is_fine_tuned_from_with_the_config_of_the_original(tmp_path):
    _, out, _ = made("images")
    config, note = transfer.as_pruned(config_of("images", init_from=str(out), report=False))
    assert note == f"note: {out} has been pruned, and config.model gets the same numbers of channels."
    assert loop.run(config, tmp_path / "tuned") == 0
    count = len(jax.tree.leaves(load_trained(out).inference.variables))
    assert (tmp_path / "tuned" / "init_from.txt").read_text().startswith(f"init_from {out}: loaded {count} of {count} leaves")
    tuned = load_trained(tmp_path / "tuned")
    assert tuned.setup.steps.model == load_trained(out).setup.steps.model
    # The same command resumes it, and a network that is not pruned like that is another one.
    assert "holds a finished run" in refused(lambda: loop.run(config, tmp_path / "tuned"))
    said = refused(lambda: loop.run(config_of("images", init_from=str(out), report=False), tmp_path / "tuned"))
    assert "of another config (model.changes.ConvNormAct_0.features: 3 -> None; " in said
    remedy = "It has been pruned: train with train.main, or set config.model.changes to what its config.json says."
    assert refused(lambda: loop.run(config_of("images", init_from=str(out)), tmp_path / "wrong")).endswith(remedy)


def test_what_is_not_taken_from_another_run(tmp_path):
    workdir, out, _ = made("images")
    for init_from in ("", str(workdir), str(tmp_path / "none")):
        config = config_of("images", init_from=init_from)
        assert transfer.as_pruned(config) == (config, "")
    once = transfer.as_pruned(config_of("images", init_from=str(out)))[0]
    assert transfer.as_pruned(once) == (once, "")


def test_a_pruned_backbone_goes_into_a_model(tmp_path):
    """Its changes get the path of the module; everything else adapts to its outputs."""
    workdir = tmp_path / "backbone"
    changes = {"stem/DilatedConv_0": {"features": 8}, "layer1_0/conv1/DilatedConv_0": {"features": 5}}
    folder_status = {"model": {"name": "resnet18", "changes": changes}, "data": dilax.DataSpec("x", (8, 8, 3), ("a",)).to_json()}
    workdir.mkdir()
    folder.write_status(workdir, **folder_status)
    config = default_config("x", task="segmentation")
    config.model = ConfigDict(model_config("deeplabv3plus_resnet18"))
    config.init_from, config.init_into = str(workdir), "backbone"
    pruned, _ = transfer.as_pruned(config)
    given: Any = pruned.model
    assert given.changes.to_dict() == {f"backbone/{path}": fields for path, fields in changes.items()}


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["prune", *map(str, words)])
    prune.main()


def test_the_command(tmp_path, monkeypatch, capsys):
    workdir, out = make_run(tiny(**{"data.validation": 0.0}), tmp_path / "run"), tmp_path / "half"
    command(monkeypatch, f"--workdir={workdir}", f"--out={out}", "--multiple_of=1")
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: multiply-adds ") and first.endswith(", no validation split to score") and rest == []
    work = [int(word.replace(",", "")) for word in (first.split()[2], first.split()[4])]
    assert work[1] <= 0.5 * work[0]
    assert second.startswith(f"fine-tune it: python -m train.main --config {workdir / 'config.json'} --config.init_from={out} ")
    # `train.main` takes the network from there, without a word about it in the config.
    original = config_of("images")
    original.init_from = str(made("images")[1])
    (tmp_path / "config.json").write_text(to_json(original))
    monkeypatch.setattr(sys, "argv", ["main", f"--config={tmp_path / 'config.json'}", "--summary"])
    assert main.main() == 0
    said = capsys.readouterr()
    assert said.err == f"note: {original.init_from} has been pruned, and config.model gets the same numbers of channels.\n"
    parameters = sum(leaf.size for leaf in jax.tree.leaves(dilax.load(original.init_from).variables["params"]))
    assert said.out.splitlines()[-1].split()[:2] == ["total", f"{parameters:,}"]
    # It is pruned again, and neither folder is trained in.
    command(monkeypatch, f"--workdir={out}", f"--out={tmp_path / 'quarter'}", "--flops=0.7", "--multiple_of=1")
    assert isinstance(dilax.load(tmp_path / "quarter").model, dilax.Pruned)
    more = folder.read_run(out)[0]
    more.total_epochs = 50.0
    assert refused(lambda: loop.run(more, out)) == (
        f"{out} holds weights that were not trained there; start another run from them, with --config.init_from={out} and another --workdir."
    )


@pytest.mark.parametrize(("program", "words", "flag"), [
    (prune, [], "out"),
    (publish, [], "out"),
    (profile, ["--repeats=1"], "out"),
    (export, ["--format=stablehlo"], "out"),
    (convert, ["--from=dilax", "PUBLISHED"], "workdir"),
    (convert, ["--from=torchvision:resnet18", "weights.pth"], "workdir"),
])  # fmt: skip
def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(program, words, flag, tmp_path, monkeypatch):
    workdir, _, _ = made("images")
    if program is convert:
        publish.publish(workdir, tmp_path / "published")
        words = [word.replace("PUBLISHED", str(tmp_path / "published")) for word in words]
    (tmp_path / "file").write_text("mine")
    works = ((dilax, "prune"), (dilax, "profile"), (dilax, "load_weights"), (publish, "read_best"), (export, "portable"))
    for module, work in (*works, (convert, "read_variables")):
        monkeypatch.setattr(module, work, lambda *_, **__: pytest.fail("the work was done before"))
    run = [] if program is convert else [f"--workdir={workdir}"]
    (locked := tmp_path / "locked").mkdir()
    (locked / "empty").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: pathlib.Path(path) != locked)
    problems = {tmp_path / "file" / "new": f"{tmp_path / 'file'} is not a folder", locked / "new": f"{locked} is not writable"}
    if program in (prune, publish, convert):  # which write beside an empty folder, and replace it
        problems[locked / "empty"] = f"{locked} is not writable"
    for out, problem in problems.items():
        monkeypatch.setattr(sys, "argv", ["program", *run, *words, f"--{flag}={out}"])
        assert refused(program.main) == f"--{flag}={out} cannot be written: {problem}; give another folder."
    assert [path.name for path in locked.iterdir()] == ["empty"]


def test_mistakes(tmp_path, monkeypatch, capsys):
    workdir, out, _ = made("images")
    before = files_of(out)
    for words, text in (
        ([f"--out={out}"], f"--out={out} holds files already; give an empty or a new folder."),
        ([f"--out={out / 'run.json'}"], f"--out={out / 'run.json'} holds files already; give an empty or a new folder."),
        ([f"--out={tmp_path / 'new'}", "--flops=2"], "prune: flops=2.0 is not between 0 and 1; give a share such as 0.5."),
        ([f"--out={tmp_path / 'new'}", "--multiple_of=0"], "prune: multiple_of=0 is below 1; use 1 or more."),
        ([f"--out={tmp_path / 'new'}", f"--workdir={tmp_path}"], f"--workdir={tmp_path} does not hold a run; "),
        ([f"--out={tmp_path / 'new'}", "--by=scale", f"--workdir={made('waves')[0]}"], "prune: by='scale' needs layers that "),
    ):
        assert refused(lambda words=words: command(monkeypatch, f"--workdir={workdir}", *words)).startswith(text)
    with pytest.raises(SystemExit, match="2"):
        command(monkeypatch, f"--workdir={workdir}", f"--out={tmp_path / 'new'}", "--flops=0.5", "--ratio=0.5")
    assert "not allowed with argument" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [] and files_of(out) == before


def test_layers_that_are_kept_are_named_in_a_line(tmp_path, monkeypatch, capsys):
    workdir = made("mixtures")[0]
    command(monkeypatch, f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--ratio=0.4", "--multiple_of=1")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: prune: layers that keep all channels: 'block0/conv', ")


CHANGES: dict[str, tuple[Any, str]] = {
    "a number": (3, "config.model.changes=3 is not a dict; give {module: {field: value}}, as train.prune writes it."),
    "a value": ({"head": 3}, "config.model.changes['head']=3 is not a dict; give {module: {field: value}}, as train.prune writes it."),
    "a module": (
        {"ConvNormAct_9/DilatedConv_0": {"features": 3}},
        "Pruned: changes name the module 'ConvNormAct_9/DilatedConv_0', which DilatedCNN does not have; give the path of one that it calls. "
        'Did you mean "ConvNormAct_1/DilatedConv_0"?',
    ),
    "a field": (
        {"head": {"feature": 3}},
        "Pruned: changes of 'head' name the field 'feature', and what can be changed of a Dense is features, use_bias, ",
    ),
    "a text": ({"head": {"features": "3"}}, "Pruned: changes['head']['features']='3' does not fit the field features; give an integer of "),
    "zero": ({"head": {"features": 0}}, "Pruned: changes['head']['features']=0 does not fit the field features; give an integer of "),
    "a flag": ({"head": {"use_bias": 1}}, "Pruned: changes['head']['use_bias']=1 does not fit the field use_bias; give a value like True."),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_that_do_not_fit(name):
    changes, text = CHANGES[name]
    config = tiny()
    config.model.changes = changes
    spec = dilax.DataSpec("x", (8, 8, 1), tuple("0123456789"), 100)

    def make() -> None:
        check(config)
        build(config, spec)

    assert refused(make).startswith(text)
    if isinstance(changes, dict) and name != "a value":
        described = {**config.model.to_dict(), "num_classes": 10}
        assert refused(lambda: loading.shapes_of(loading.make_model(described), spec)).startswith(text)
