"""Whole runs: killed and resumed to the bit, damaged checkpoints, best and last, NaN, signals, transfer, the other jobs."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from dilax.errors import UserError
from train import checkpoint, loop, run, transfer
from train.config import default_config, from_json, model_config
from train.writers import read_history

ROOT = pathlib.Path(__file__).parents[1]
# One virtual device, as a user has: a killed process must equal an unbroken one on the same devices.
ENVIRONMENT = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}


def tiny(**changes: Any) -> ConfigDict:
    """8x8 digits, a network of a few hundred parameters, 44 steps."""
    config = default_config("tiny")
    config.data.name = "digits8x8"
    config.model = ConfigDict(model_config("dilated_cnn", features=(4, 6), dilations=(1, 2), pools=(2, 1), dropout=0.2))
    config.batch_size, config.total_epochs, config.log_every_steps, config.checkpoint_every_steps = 64, 2.2, 5, 7
    config.optim.update(lr=0.01, ema_decay=0.9)
    config.augment.crop_padding = 1
    config.report = False
    config.update_from_flattened_dict(changes)
    return config


CONFIG_FILE = """
import ast, sys
sys.path.insert(0, {tests!r})
from test_loop import tiny
def get_config(changes="{{}}"):
    return tiny(**ast.literal_eval(changes))
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(CONFIG_FILE.format(tests=str(ROOT / "tests")))
    return path


def command(config_file: pathlib.Path, workdir: pathlib.Path, *more: str, changes: str = "{}") -> list[str]:
    return [sys.executable, "-m", "train.main", f"--config={config_file}:{changes}", f"--workdir={workdir}", *more]


def start(*args: Any, **kwargs: Any) -> subprocess.Popen:
    return subprocess.Popen(command(*args, **kwargs), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def last_state(workdir: pathlib.Path) -> list[np.ndarray]:
    """Every number of the newest checkpoint, as it lies on disk."""
    config = from_json((workdir / run.CONFIG).read_text())
    made = run.setup(config, 10, (8, 8, 1), run.read_status(workdir)["examples"])
    with checkpoint.Store(workdir / checkpoint.CHECKPOINTS) as store:
        found = store.restore(jax.eval_shape(made.steps.init, made.shapes), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert found is not None
    assert found[0] == made.total_steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found[1])]


def wait_for(condition: Any, process: subprocess.Popen) -> None:
    end = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def same_figures(a: pathlib.Path, b: pathlib.Path) -> None:
    """The evaluations, which do not depend on where a window of training steps began, agree to the last digit."""

    def figures(workdir: pathlib.Path) -> list[dict]:
        lines = [{k: v for k, v in line.items() if not k.endswith(("_seconds", "_per_second"))} for line in read_history(workdir)]
        return [line for line in lines if not any(k.startswith("train/") for k in line)]

    assert figures(a) == figures(b)


@pytest.fixture(scope="module")
def unbroken(config_file, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    code, out, err = finish(start(config_file, workdir))
    assert (code, err) == (0, "")
    assert "test/accuracy" in out
    return workdir


KILLS = {
    "mid-epoch": lambda workdir: len(read_history(workdir)) >= 2,
    "mid-save": lambda workdir: any((workdir / "checkpoints").glob("*tmp*")) and any((workdir / "checkpoints").glob("7/")),
}


@pytest.mark.parametrize("when", KILLS)
def test_killed_and_resumed_equals_unbroken_to_the_bit(when, config_file, unbroken, tmp_path):
    workdir = tmp_path / "killed"
    process = start(config_file, workdir)
    wait_for(lambda: KILLS[when](workdir), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not run.read_status(workdir).get("finished")
    code, out, err = finish(start(config_file, workdir))
    assert (code, err) == (0, "")
    if when == "mid-save":
        assert "resuming" in out
    for a, b in zip(last_state(workdir), last_state(unbroken), strict=True):
        np.testing.assert_array_equal(a, b)
    same_figures(workdir, unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_say_how_to_resume(number, config_file, unbroken, tmp_path):
    workdir = tmp_path / "stopped"
    process = start(config_file, workdir)
    wait_for(lambda: len(read_history(workdir)) >= 1, process)
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, err) == (128 + number, "")
    assert re.search(r"stopped at step \d+ of 44, saved in .*; run the same command again to resume", out)
    code, out, _ = finish(start(config_file, workdir))
    assert code == 0
    assert "resuming" in out
    for a, b in zip(last_state(workdir), last_state(unbroken), strict=True):
        np.testing.assert_array_equal(a, b)


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
    assert run.read_status(unbroken)["finished"]
    assert any((unbroken / "tensorboard").iterdir())


def test_checkpoints_kept(unbroken):
    assert sorted(int(p.name) for p in (unbroken / "checkpoints").iterdir()) == [42, 44]
    assert len(list((unbroken / "best").iterdir())) == 1


def copy_of(workdir: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(workdir, tmp_path / "copy"))


def damage_flip(path: pathlib.Path) -> None:
    largest = max((p for p in (path / "tree").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 16
    largest.write_bytes(bytes(data))


def damage_cut(path: pathlib.Path) -> None:
    largest = max((p for p in (path / "tree").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:20])


def damage_remove(path: pathlib.Path) -> None:
    for file in (path / "meta").rglob("*"):
        if file.is_file():
            file.unlink()


@pytest.mark.parametrize("damage", [damage_flip, damage_cut, damage_remove])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(damage, unbroken, tmp_path, capsys):
    workdir = copy_of(unbroken, tmp_path)
    damage(workdir / "checkpoints" / "44")
    config = from_json((workdir / run.CONFIG).read_text())
    made = run.setup(config, 10, (8, 8, 1), run.read_status(workdir)["examples"])
    with checkpoint.Store(workdir / checkpoint.CHECKPOINTS, 2) as store:
        found = store.restore(jax.eval_shape(made.steps.init, made.shapes), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert found is not None
    assert found[0] == 42
    assert re.search(
        r"warning: checkpoint 44 is damaged .*; moved to .*corrupt-checkpoints-44; trying the one before", capsys.readouterr().err
    )
    assert (workdir / "corrupt-checkpoints-44").is_dir()


def refused(call: Any) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_finished_run_is_not_overwritten(unbroken, tmp_path):
    workdir = copy_of(unbroken, tmp_path)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    text = refused(lambda: loop.run(tiny(), workdir))
    assert "holds a finished run (test/accuracy" in text
    assert "pass --config.total_epochs=4.4 to train it further, --restart to begin anew" in text
    text = refused(lambda: loop.run(tiny(**{"optim.momentum": 0.5}), workdir))
    assert "holds a run of another config (optim.momentum: 0.9 -> 0.5)" in text
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_train_further_and_restart(config_file, unbroken, tmp_path):
    workdir = copy_of(unbroken, tmp_path)
    code, out, err = finish(start(config_file, workdir, "--config.total_epochs=2.6"))
    assert (code, err) == (0, "")
    assert "resuming" in out
    assert read_history(workdir)[-1]["step"] == 53
    code, out, err = finish(start(config_file, workdir, "--restart", "--config.total_epochs=0.2"))
    assert (code, err) == (0, "")
    assert "resuming" not in out
    assert read_history(workdir.with_name("copy-old-1"))[-1]["step"] == 53


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    assert "holds files but no run; give an empty or a new folder." in refused(lambda: loop.run(tiny(), tmp_path))


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert re.search(r"--workdir=.* cannot be written: .*; give another\.$", refused(lambda: loop.run(tiny(), tmp_path / "file" / "run")))


def test_a_checkpoint_of_another_model(unbroken, tmp_path):
    workdir = copy_of(unbroken, tmp_path)
    config = json.loads((workdir / run.CONFIG).read_text())
    config["model"]["features"] = [4, 7]
    (workdir / run.CONFIG).write_text(json.dumps(config))
    text = refused(lambda: run.load_trained(workdir))
    assert "is of another model or optimiser: it batch_stats/ConvNormAct_1/Norm_0/BatchNorm_0/mean is [6], not [7];" in text
    assert "params/ConvNormAct_1/DilatedConv_0/kernel is [3, 3, 4, 6], not [3, 3, 4, 7]" in text


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    code = loop.run(tiny(**{"optim.lr": 1e17, "optim.name": "sgd", "checkpoint_every_steps": 1, "batch_size": 64}), tmp_path / "run")
    error = capsys.readouterr().err
    assert code == 1
    assert re.search(
        r"error: the loss, its gradient or the parameters are not finite at step \d+; the last good checkpoint is step \d+ in .*checkpoints\. ",
        error,
    )
    stopped, good = map(int, re.findall(r"step (\d+)", error)[:2])
    assert good == stopped - 1
    assert not run.read_status(tmp_path / "run")["finished"]


@pytest.mark.parametrize("norm", ["none", "group"])
def test_a_model_without_running_statistics(norm, tmp_path):
    workdir = tmp_path / "run"
    assert loop.run(tiny(**{"model.norm": norm, "total_epochs": 0.2}), workdir) == 0
    assert not any(path.name.startswith("corrupt") for path in workdir.iterdir())
    assert run.load_trained(workdir).variables["batch_stats"] == {}


def test_fewer_epochs_than_done_are_refused(unbroken, tmp_path):
    workdir = copy_of(unbroken, tmp_path)
    run.write_status(workdir, finished=False)
    text = refused(lambda: loop.run(tiny(total_epochs=1.0), workdir))
    assert "is at step 44 already, beyond config.total_epochs=1 (step 20); pass more." in text


def test_reading_a_run_leaves_its_unfinished_saves_alone(unbroken, tmp_path):
    workdir = copy_of(unbroken, tmp_path)
    unfinished = workdir / "best" / "60.orbax-checkpoint-tmp"
    unfinished.mkdir()
    checkpoint.read_variables(workdir)
    assert unfinished.is_dir()
    best = next(path for path in (workdir / "best").iterdir() if path.name.isdigit())
    damage_cut(best)
    assert "is damaged" in refused(lambda: checkpoint.read_variables(workdir))
    assert best.is_dir()


def test_all_checkpoints_damaged_is_an_error(unbroken, tmp_path):
    workdir = copy_of(unbroken, tmp_path)
    run.write_status(workdir, finished=False)
    history = read_history(workdir)
    for step in (42, 44):
        damage_cut(workdir / "checkpoints" / str(step))
    assert "could be read, of the steps [44, 42]; pass --restart to begin anew." in refused(lambda: loop.run(tiny(), workdir))
    assert read_history(workdir) == history


def test_restart_moves_nothing_but_a_run(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("precious")
    assert "holds files but no run" in refused(lambda: loop.run(tiny(), tmp_path / "thesis", restart=True))


def test_restart_moves_nothing_before_all_else_is_right(unbroken):
    before = sorted(path.name for path in unbroken.parent.iterdir())
    refused(lambda: loop.run(tiny(**{"data.classes": (1, 99)}), unbroken, restart=True))
    text = refused(lambda: loop.run(tiny(init_from=str(unbroken)), unbroken, restart=True))
    assert f"--restart would move {unbroken} aside, which config.init_from names; give another --workdir." in text
    assert sorted(path.name for path in unbroken.parent.iterdir()) == before


def test_checkpoints_that_tie_are_told_apart_by_their_loss(tmp_path):
    """A validation split of so few examples that their accuracy says little, seen often."""
    assert loop.run(tiny(**{"data.validation": 0.003, "eval_every_epochs": 0.1}), tmp_path / "run") == 0
    lines = read_history(tmp_path / "run")
    found = [(line["validation/accuracy"], -line["validation/loss"], line["step"]) for line in lines if "validation/loss" in line]
    highest = [step for accuracy, _, step in found if accuracy == max(found)[0]]
    assert len(highest) > 1
    assert lines[-1]["best_step"] == max(found)[2] != highest[0]
    lower, none = run.setup(tiny(), 10, (8, 8, 1), 99).steps.task, (-np.inf, -np.inf)
    assert lower.rank({}) == none < lower.rank({"validation/accuracy": 0.1, "validation/loss": 9.0})
    least = dataclasses.replace(lower, best_by="mse", lower_is_better=True)
    assert least.rank({}) == none < least.rank({"validation/mse": 2.0, "validation/loss": 2.0}) < least.rank({"validation/mse": 1.0})


def test_no_validation_keeps_the_last(tmp_path):
    assert loop.run(tiny(**{"data.validation": 0.0, "total_epochs": 0.5}), tmp_path / "run") == 0
    last = read_history(tmp_path / "run")[-1]
    assert last["best_step"] == last["step"] == 11  # round(0.5 * 1437 / 64)
    assert not any("validation/accuracy" in line for line in read_history(tmp_path / "run"))


def test_pmap_runs_resume_and_agree_with_jit(tmp_path):
    short = {"total_epochs": 0.5}
    for kind in ("jit", "pmap"):
        assert loop.run(tiny(parallel=kind, **short), tmp_path / kind) == 0
    a, b = (read_history(tmp_path / kind) for kind in ("jit", "pmap"))
    np.testing.assert_allclose(
        [x["train/loss"] for x in a if "train/loss" in x], [x["train/loss"] for x in b if "train/loss" in x], rtol=1e-3
    )
    assert loop.run(tiny(parallel="pmap", total_epochs=0.8), tmp_path / "jit") == 0  # a jit run goes on under pmap


def test_transfer(unbroken, tmp_path, capsys):
    changes = {"init_from": str(unbroken), "head_reset": True, "total_epochs": 0.1, "data.classes": (1, 4), "frozen": ("^ConvNormAct_0/",)}
    assert loop.run(tiny(**changes), tmp_path / "tuned") == 0
    out = capsys.readouterr().out
    assert "loaded 10 of 12 leaves" in out
    assert "initialised anew params/head/kernel" in out
    source, tuned = checkpoint.read_variables(unbroken), checkpoint.read_variables(tmp_path / "tuned")
    path = ("ConvNormAct_0", "DilatedConv_0", "kernel")
    get = lambda tree: tree["params"][path[0]][path[1]][path[2]]  # noqa: E731
    np.testing.assert_array_equal(get(source), get(tuned))


ones = functools.partial(np.ones, dtype=np.float32)
TARGET = {"params": {"a": ones((2, 3)), "head": {"kernel": ones((3, 4))}}, "batch_stats": {"m": ones(2)}}
MERGES = {
    "shape": (
        {"params": {"a": ones((2, 4)), "head": TARGET["params"]["head"]}, "batch_stats": TARGET["batch_stats"]},
        "params/a has shape (2, 4), not (2, 3)",
    ),
    "missing": ({"params": TARGET["params"]}, "batch_stats/m is not in it"),
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


def test_init_from_nothing(tmp_path):
    text = refused(lambda: loop.run(tiny(init_from=str(tmp_path / "none")), tmp_path / "run"))
    assert "holds no trained run (there is no best/ in it)" in text
    assert not (tmp_path / "run" / run.CONFIG).exists()


def job(name: str, *args: Any) -> tuple[int, str, str]:
    arguments = [sys.executable, "-m", f"train.{name}", *map(str, args)]
    done = subprocess.run(arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_evaluate(unbroken, tmp_path):
    code, out, err = job("evaluate", "--workdir", unbroken)
    assert (code, err) == (0, "")
    last = read_history(unbroken)[-1]
    assert out.splitlines() == [f"test/accuracy {last['test/accuracy']:.4f}", f"test/loss {last['test/loss']:.4f}"]
    code, _, err = job("evaluate", "--workdir", tmp_path)
    assert code == 2
    assert re.fullmatch(r"error: --workdir=.* holds no run; train one with .*\n", err)


def test_predict(unbroken, tmp_path):
    from PIL import Image

    from train import data

    record = data.load(tiny().data, seed=0).test[3]
    paths = [tmp_path / "digit.png", tmp_path / "colour.jpg"]
    Image.fromarray(record["image"][..., 0]).save(paths[0])
    Image.new("RGB", (30, 20)).save(paths[1])
    code, out, err = job("predict", "--workdir", unbroken, *paths)
    assert (code, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == list(map(str, paths))
    trained = run.load_trained(unbroken)
    probabilities = jax.nn.softmax(trained.setup.steps.outputs(trained.variables, {"image": record["image"][None]}))[0]
    assert rows[0][1] == trained.class_names[int(probabilities.argmax())]
    np.testing.assert_allclose(float(rows[0][2]), float(probabilities.max()), atol=1e-4)
    (tmp_path / "text.png").write_text("no image")
    for bad, words in ((tmp_path / "text.png", "cannot be read as an image"), (tmp_path / "gone.png", "there is no such file")):
        code, out, err = job("predict", "--workdir", unbroken, paths[0], bad)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {bad}")
        assert words in err
        assert err.count("\n") == 1
