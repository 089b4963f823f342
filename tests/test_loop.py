"""Whole runs: killed and resumed to the bit, damaged checkpoints, best and last, NaN, signals, transfer, the other jobs."""

import copy
import functools
import json
import pathlib
import re
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
import tiny_runs
from selection import slow, with_slow
from tiny_runs import finish, flip_a_bit, newest_state, refused, remove_description, start, start_main, tiny, truncate

import dilax
from dilax import DataSpec, loading
from dilax.errors import UserError
from dilax.loading import read_status, read_variables
from train import evaluate, folder, loop, predict, transfer
from train.build import build, load_trained
from train.config import check
from train.writers import read_history


@pytest.fixture
def copied(unbroken, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(unbroken, tmp_path / "copy"))


def metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """All lines of metrics but for times."""
    return [{k: v for k, v in line.items() if not k.endswith(("_seconds", "_per_second"))} for line in read_history(workdir)]


def assert_same_run(workdir: pathlib.Path, unbroken: pathlib.Path) -> None:
    (step, state), (last, expected) = newest_state(workdir), newest_state(unbroken)
    assert step == last == 44
    for a, b in zip(state, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics(workdir) == metrics(unbroken)


KILLS = {
    "mid-epoch": lambda workdir: len(read_history(workdir)) >= 2,
    "mid-save": lambda workdir: any((workdir / "checkpoints").glob("*tmp*")) and any((workdir / "checkpoints").glob("7/")),
}


@pytest.mark.parametrize("when", with_slow(KILLS, kept=("mid-save",)))
def test_killed_and_resumed_equals_unbroken_to_the_bit(when, config_file, unbroken, tmp_path, capsys):
    workdir = tmp_path / "killed"
    process = start_main(config_file, workdir)
    tiny_runs.wait_for(lambda: KILLS[when](workdir), process)
    process.kill()
    process.communicate()
    assert not read_status(workdir)["finished"]
    assert loop.run(tiny(), workdir) == 0
    if when == "mid-save":
        assert "resuming" in capsys.readouterr().out
    assert_same_run(workdir, unbroken)


STOPPED = r"stopped at step \d+ of 44, saved in .*; run the same command again to resume"


def test_interrupted_and_resumed_by_the_same_command(config_file, unbroken, tmp_path):
    workdir = tmp_path / "stopped"
    process = start_main(config_file, workdir)
    tiny_runs.wait_for(lambda: len(read_history(workdir)) >= 1, process)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err) == (128 + signal.SIGINT, "")
    assert re.search(STOPPED, out)
    code, out, err = finish(start_main(config_file, workdir))
    assert (code, err) == (0, "")
    assert f"resuming {workdir} at step" in out and "test/accuracy" in out
    assert_same_run(workdir, unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, *slow(signal.SIGHUP)])
def test_terminated_saves_and_resumes(number, unbroken, tmp_path, monkeypatch, capsys):
    scalars, workdir = loop.Writer.scalars, tmp_path / "terminated"

    def terminate(self: loop.Writer, step: int, values: dict[str, float]) -> None:
        scalars(self, step, values)
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Writer, "scalars", terminate)
        assert loop.run(tiny(), workdir) == 128 + number
    assert re.search(STOPPED, capsys.readouterr().out)
    assert newest_state(workdir)[0] == 6  # the step after the first line of metrics
    assert loop.run(tiny(), workdir) == 0
    assert_same_run(workdir, unbroken)


@pytest.mark.parametrize("name", ["test/accuracy", *slow("validation/accuracy")])
def test_terminated_in_the_last_step_or_the_report(name, unbroken, tmp_path, monkeypatch, capsys):
    """All is saved by then: the test and the report are left to the same command, which need not train."""
    scalars, workdir = loop.Writer.scalars, tmp_path / "terminated"

    def terminate(self: loop.Writer, step: int, values: dict[str, float]) -> None:
        scalars(self, step, values)
        if step == 44 and name in values:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Writer, "scalars", terminate)
        assert loop.run(tiny(), workdir) == 128 + signal.SIGTERM
    assert capsys.readouterr().out.count(f"stopped at step 44 of 44, saved in {workdir}; run the same command again to resume.") == 1
    assert read_status(workdir)["step"] == 44 and not read_status(workdir)["finished"]
    assert loop.run(tiny(), workdir) == 0
    assert_same_run(workdir, unbroken)


def test_metrics_file(unbroken):
    lines = read_history(unbroken)
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    assert steps[-1] == 44
    assert {"test/accuracy", "test/loss", "best_step", "total_seconds"} <= lines[-1].keys()
    assert {"train/loss", "train/accuracy", "train/learning_rate", "train/examples_per_second"} <= lines[0].keys()
    validations = [line for line in lines if "validation/accuracy" in line]
    assert [line["step"] for line in validations] == [20, 40, 44]
    best = max(validations, key=lambda line: (line["validation/accuracy"], -line["validation/loss"]))
    assert lines[-1]["best_step"] == best["step"]
    assert sum("test/accuracy" in line for line in lines) == 1
    assert read_status(unbroken)["finished"]
    assert any((unbroken / "tensorboard").iterdir())


def test_checkpoints_kept(unbroken):
    assert sorted(int(p.name) for p in (unbroken / "checkpoints").iterdir()) == [42, 44]
    assert len(list((unbroken / "best").iterdir())) == 1


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove_description])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(damage, copied, capsys):
    damage(copied / "checkpoints" / "44")
    assert newest_state(copied)[0] == 42
    warning = (
        r"warning: checkpoint 44 in .*/checkpoints cannot be used \(.+\); moved to .*corrupt-checkpoints-44; trying the one before\.\n"
    )
    assert re.search(warning, capsys.readouterr().err)
    assert (copied / "corrupt-checkpoints-44").is_dir()


def test_a_finished_run_is_not_overwritten(copied):
    before = tiny_runs.files_of(copied)
    text = refused(lambda: loop.run(tiny(), copied))
    assert "holds a finished run (test/accuracy" in text
    assert "pass --config.total_epochs=4.4 to train it further, --restart to begin anew" in text
    text = refused(lambda: loop.run(tiny(**{"optim.weight_decay": 0.5}), copied))
    assert "holds a run of another config (optim.weight_decay: 0.0001 -> 0.5)" in text
    assert tiny_runs.files_of(copied) == before


def test_train_further_and_restart(copied, capsys):
    assert loop.run(tiny(total_epochs=2.6), copied) == 0
    assert "resuming" in capsys.readouterr().out
    assert read_history(copied)[-1]["step"] == 53
    assert loop.run(tiny(total_epochs=0.1), copied, restart=True) == 0
    assert "resuming" not in capsys.readouterr().out
    assert read_history(copied)[-1]["step"] == 2
    assert read_history(copied.with_name("copy-old-1"))[-1]["step"] == 53


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for restart in (False, True):
        text = refused(lambda restart=restart: loop.run(tiny(), tmp_path, restart=restart))
        assert text == f"--workdir={tmp_path} holds files but not a run, such as thesis.txt; give an empty or a new folder."
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert re.search(r"--workdir=.* cannot be written: .*; give another\.$", refused(lambda: loop.run(tiny(), tmp_path / "file" / "run")))


def test_a_checkpoint_of_another_model(copied):
    config = json.loads((copied / folder.CONFIG).read_text())
    config["model"]["features"] = [4, 7]
    (copied / folder.CONFIG).write_text(json.dumps(config))
    text = refused(lambda: load_trained(copied))
    assert "is of another model or optimiser: it batch_stats/ConvNormAct_1/Norm_0/BatchNorm_0/mean is [6], not [7];" in text
    assert "params/ConvNormAct_1/DilatedConv_0/kernel is [3, 3, 4, 6], not [3, 3, 4, 7]" in text


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    assert loop.run(tiny(**{"optim.lr": 1e17, "optim.name": "sgd", "checkpoint_every_steps": 1}), tmp_path / "run") == 1
    match = re.fullmatch(
        r"error: the loss, its gradient or the parameters are not finite at step (\d+); the last good checkpoint is step (\d+) in "
        r".*checkpoints\. Resume with a lower --config\.optim\.lr or with --config\.optim\.clip_norm=1; "
        r"`python -m train\.replay --workdir .*run` says where it began\.\n",
        capsys.readouterr().err,
    )
    assert match is not None
    assert int(match[2]) == int(match[1]) - 1
    assert not read_status(tmp_path / "run")["finished"]


@pytest.mark.parametrize("norm", ["none", "group"])
def test_a_model_without_running_statistics(norm, tmp_path):
    workdir = tmp_path / "run"
    assert loop.run(tiny(**{"model.norm": norm, "total_epochs": 0.2}), workdir) == 0
    assert not any(path.name.startswith("corrupt") for path in workdir.iterdir())
    assert load_trained(workdir).inference.variables["batch_stats"] == {}


def test_fewer_epochs_than_done_are_refused(copied):
    folder.write_status(copied, finished=False)
    text = refused(lambda: loop.run(tiny(total_epochs=1.0), copied))
    assert "is at step 44 already, beyond config.total_epochs=1 (step 20); pass more." in text


def test_reading_a_run_leaves_its_unfinished_saves_alone(copied):
    unfinished = copied / "best" / "60.orbax-checkpoint-tmp"
    unfinished.mkdir()
    read_variables(copied)
    assert unfinished.is_dir()
    best = next(path for path in (copied / "best").iterdir() if path.name.isdigit())
    truncate(best)
    assert "is damaged" in refused(lambda: read_variables(copied))
    assert best.is_dir()


def test_a_model_can_be_read_while_its_run_replaces_it(copied, monkeypatch):
    """A newer save comes while the older one is read, which is deleted then."""
    (best,) = (path for path in (copied / "best").iterdir() if path.name.isdecimal())
    expected, newer, read = read_variables(copied), best.with_name("99"), loading._read_save

    def replace(reader, save: pathlib.Path, run: str):
        if save == best:
            best.rename(newer)
        return read(reader, save, run)

    monkeypatch.setattr(loading, "_read_save", replace)
    monkeypatch.setattr(loading, "check_description", lambda meta, step, run: None)  # it is still called that of the older step
    jax.tree.map(np.testing.assert_array_equal, read_variables(copied), expected)


def test_all_checkpoints_damaged_is_an_error(copied):
    folder.write_status(copied, finished=False)
    history = read_history(copied)
    for step in (42, 44):
        truncate(copied / "checkpoints" / str(step))
    text = (
        f"no checkpoint {{}}in {copied / 'checkpoints'} could be read; restore one there, pass --restart to begin anew (the run so far is "
        "moved aside), or give another --workdir."
    )
    assert refused(lambda: loop.run(tiny(), copied)) == text.format("")
    assert refused(lambda: loop.run(tiny(), copied)) == text.format("of step 44 ")  # they have been moved aside
    assert read_history(copied) == history


def test_restart_moves_nothing_before_all_else_is_right(unbroken):
    before = sorted(path.name for path in unbroken.parent.iterdir())
    refused(lambda: loop.run(tiny(**{"data.classes": (1, 99)}), unbroken, restart=True))
    text = refused(lambda: loop.run(tiny(init_from=str(unbroken)), unbroken, restart=True))
    assert f"--restart would move {unbroken} aside, which config.init_from names; give another --workdir." in text
    text = refused(lambda: loop.run(tiny(init_from=f"{unbroken}/../{unbroken.name}"), unbroken, restart=True))
    assert f"--restart would move {unbroken} aside" in text
    assert "does not hold a trained run" in refused(lambda: loop.run(tiny(init_from=str(unbroken.parent / "none")), unbroken, restart=True))
    assert sorted(path.name for path in unbroken.parent.iterdir()) == before


def test_a_run_killed_before_its_config_was_written_starts_again(unbroken, tmp_path, monkeypatch, capsys):
    """run.json and init_from.txt are there, config.json is not."""
    config, workdir = tiny(init_from=str(unbroken), total_epochs=0.1), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_config", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.run(config, workdir)
    assert {path.name for path in workdir.iterdir()} == {"run.json", "init_from.txt", "checkpoints", "best"}
    for name in ("config.json.part", "lock"):  # a kill may also leave these
        (workdir / name).write_text("")
    (workdir / "probe").mkdir()
    assert "does not hold a run" in refused(lambda: load_trained(workdir))
    assert loop.run(config, workdir) == 0
    assert "resuming" not in capsys.readouterr().out
    assert read_status(workdir)["finished"]


def test_a_folder_of_an_earlier_version_is_refused(copied, monkeypatch, capsys):
    tiny_runs.make_earlier_form(copied)
    before = tiny_runs.files_of(copied)
    text = f"{copied} holds a run of an earlier version of dilax, which this version cannot read; train it again in another folder."
    for call in (lambda: loop.run(tiny(), copied), lambda: load_trained(copied), lambda: dilax.load(copied)):
        assert refused(call) == text
    assert refused(lambda: loop.run(tiny(init_from=str(copied)), copied.with_name("new"))) == text
    # Whatever flags and inputs the run would take, what is wrong is the folder.
    for module, words in ((evaluate, ["--scales=1"]), (predict, ["image.png"]), (predict, ["--stream"])):
        monkeypatch.setattr(sys, "argv", [module.__name__, f"--workdir={copied}", *words])
        assert refused(module.main) == text
    assert tiny_runs.files_of(copied) == before


def test_checkpoints_that_tie_are_separated_by_their_loss(tmp_path):
    """A validation split of so few examples that their accuracy says little, scored often."""
    assert loop.run(tiny(**{"data.validation": 0.003, "eval_every_epochs": 0.1}), tmp_path / "run") == 0
    lines = read_history(tmp_path / "run")
    ranked = [(line["validation/accuracy"], -line["validation/loss"], line["step"]) for line in lines if "validation/loss" in line]
    highest = [step for accuracy, _, step in ranked if accuracy == max(ranked)[0]]
    assert len(highest) > 1
    assert lines[-1]["best_step"] == max(ranked)[2] != highest[0]
    task, nothing = build(tiny(), tiny_runs.digits().spec).task, (-np.inf, -np.inf)
    assert task.rank({}) == nothing < task.rank({"validation/accuracy": 0.1, "validation/loss": 9.0})
    lower = copy.copy(task)
    lower.best_by, lower.lower_is_better = "mse", True
    assert lower.rank({}) == nothing < lower.rank({"validation/mse": 2.0, "validation/loss": 2.0}) < lower.rank({"validation/mse": 1.0})


def test_no_validation_keeps_the_last(tmp_path):
    assert loop.run(tiny(**{"data.validation": 0.0, "total_epochs": 0.5}), tmp_path / "run") == 0
    last = read_history(tmp_path / "run")[-1]
    assert last["best_step"] == last["step"] == 11  # round(0.5 * 1437 / 64)
    assert not any("validation/accuracy" in line for line in read_history(tmp_path / "run"))


def train_losses(workdir: pathlib.Path) -> list[float]:
    return [line["train/loss"] for line in read_history(workdir) if "train/loss" in line]


def test_pmap_runs_agree_with_jit_and_resume_it(unbroken, copied, tmp_path, capsys):
    config = tiny(parallel="pmap")
    assert loop.run(config, tmp_path / "pmap") == 0
    np.testing.assert_allclose(train_losses(tmp_path / "pmap"), train_losses(unbroken), rtol=1e-3)
    shutil.rmtree(copied / "checkpoints" / "44")
    folder.write_status(copied, finished=False)
    capsys.readouterr()
    assert loop.run(config, copied) == 0  # a jit run is continued under pmap
    assert f"resuming {copied} at step 42 of 44" in capsys.readouterr().out


def test_a_run_of_plain_convolutions_agrees(unbroken, tmp_path):
    assert refused(lambda: check(tiny(lowering="laxx"))) == (
        "config.lowering='laxx' is unknown; use one of ('auto', 'lax', 'taps', 'split', 'products', 'patches', 'planes', 'onednn'). Did you mean \"lax\"?"
    )
    assert loop.run(tiny(lowering="lax"), tmp_path / "lax") == 0
    np.testing.assert_allclose(train_losses(tmp_path / "lax"), train_losses(unbroken), rtol=1e-3)
    folder.write_status(tmp_path / "lax", finished=False)
    with folder.open_folder(tiny(lowering="auto"), tmp_path / "lax"):  # it may change when a run is resumed
        pass


def test_transfer(unbroken, tmp_path, capsys):
    changes = {"init_from": str(unbroken), "head_reset": True, "total_epochs": 0.1, "data.classes": (1, 4), "frozen": ("^ConvNormAct_0/",)}
    assert loop.run(tiny(**changes), tmp_path / "tuned") == 0
    out = capsys.readouterr().out
    assert "loaded 10 of 12 leaves" in out
    assert "initialised params/head/kernel" in out
    source, tuned = (read_variables(path)["params"]["ConvNormAct_0"]["DilatedConv_0"]["kernel"] for path in (unbroken, tmp_path / "tuned"))
    np.testing.assert_array_equal(source, tuned)


ones = functools.partial(np.ones, dtype=np.float32)
TARGET = {"params": {"a": ones((2, 3)), "head": {"kernel": ones((3, 4))}}, "batch_stats": {"m": ones(2)}}
MERGES = {
    "shape": (
        {"params": {"a": ones((2, 4)), "head": TARGET["params"]["head"]}, "batch_stats": TARGET["batch_stats"]},
        "params/a has shape (2, 4), not (2, 3)",
    ),
    "missing": ({"params": TARGET["params"]}, "batch_stats/m is missing"),
    "extra": ({**TARGET, "params": {**TARGET["params"], "b": ones(1)}}, "skipped params/b: not in this model"),
}


@pytest.mark.parametrize("name", MERGES)
def test_merge_refuses_what_is_not_named(name):
    source, words = MERGES[name]
    assert words in refused(lambda: transfer.merge(TARGET, source, (), "x"))
    path = words.split()[1 if name == "extra" else 0].rstrip(":")
    merged, report = transfer.merge(TARGET, source, (path,), "x")
    assert path in report
    assert jax.tree.structure(merged) == jax.tree.structure(TARGET)


@pytest.mark.parametrize("restart", [False, True])
def test_init_from_nothing_leaves_nothing(restart, tmp_path):
    text = refused(lambda: loop.run(tiny(init_from=str(tmp_path / "none")), tmp_path / "run", restart=restart))
    assert "does not hold a trained run (it has no best/); train one there, or give the folder of another run." in text
    assert not tiny_runs.files_of(tmp_path) and not list((tmp_path / "run").glob("*"))


def test_data_that_cannot_be_read_leaves_nothing(tmp_path, monkeypatch):
    def damaged(splits):
        raise UserError("a.png cannot be read")

    monkeypatch.setattr(loop, "fingerprint", damaged)  # which reads records of a set that is streamed
    assert refused(lambda: loop.run(tiny(), tmp_path / "run")) == "a.png cannot be read"
    assert not list((tmp_path / "run").iterdir())


DIFFERENT = {
    "classes": (DataSpec("x", (8, 8, 1), ("cat", "dog")), DataSpec("x", (8, 8, 1), ("dog", "cat")), "has other outputs, whose parameters"),
    "symbols": (
        DataSpec("x", (9,), ("a",), symbols=("a", "b")),
        DataSpec("x", (9,), ("a",), symbols=("b", "c")),
        "was trained on other symbols",
    ),
    "rate": (
        DataSpec("x", (9, 1), ("a",), sample_rate=8000),
        DataSpec("x", (9, 1), ("a",), sample_rate=16000),
        "sounds of 8000 samples per",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_though_it_fits_is_named(name):
    theirs, ours, words = DIFFERENT[name]
    (found,) = transfer._differences(theirs, ours, head=True)
    assert words in found
    assert transfer._differences(ours, ours, head=True) == []
    assert transfer._differences(theirs, ours, head=False) == ([] if name == "classes" else [found])


@pytest.mark.parametrize("restart", [False, True])
def test_another_run_is_read_once(restart, unbroken, tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(transfer, "read_variables", lambda path: reads.append(path) or read_variables(path))
    assert loop.run(tiny(init_from=str(unbroken), total_epochs=0.1), tmp_path / "run", restart=restart) == 0
    assert reads == [unbroken]


def test_evaluate(unbroken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={unbroken}"])
    evaluate.main()
    last, rows = read_history(unbroken)[-1], [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in rows] == ["test/accuracy", "test/loss"]
    for name, value in rows:
        assert re.fullmatch(r"\d\.\d{4}", value)
        assert float(value) == pytest.approx(last[name], abs=1e-3)
    code, out, err = finish(start("-m", "train.evaluate", f"--workdir={tmp_path}"))
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: --workdir=.* does not hold a run; train one with .*\n", err)


def test_predict(unbroken, tmp_path, monkeypatch, capsys):
    from PIL import Image

    image = tiny_runs.digits().test[3]["image"]
    paths = [tmp_path / "digit.png", tmp_path / "colour.jpg"]
    Image.fromarray(image[..., 0]).save(paths[0])
    Image.new("RGB", (30, 20)).save(paths[1])
    monkeypatch.setattr(sys, "argv", ["predict", f"--workdir={unbroken}", *map(str, paths)])
    predict.main()
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == list(map(str, paths))
    # What dilax.load gives to a user says the same.
    ((name, probability),) = dilax.load(unbroken).classify(image[None])
    assert rows[0][1] == name
    assert float(rows[0][2]) == pytest.approx(probability, abs=1e-4)
    (tmp_path / "text.png").write_text("not an image")
    for bad, words in ((tmp_path / "text.png", "cannot be read as an image"), (tmp_path / "gone.png", "does not exist")):
        monkeypatch.setattr(sys, "argv", ["predict", f"--workdir={unbroken}", str(paths[0]), str(bad)])
        text = refused(predict.main)
        assert text.startswith(str(bad)) and words in text
    assert capsys.readouterr().out == ""
