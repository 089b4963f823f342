"""`train.profile`: a run of every task, published weights, other batches and sizes; mistakes are one line."""

import csv
import pathlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from selection import with_slow
from task_cases import CASES
from tiny_runs import make_run, refused

import dilax
from dilax import DataSpec
from train import profile
from train.tasks import TASKS

NAMES = ("images", "masks", "boxes", "pixels", "table", "text", "waves", "mixtures", "photographs", "recordings")


@pytest.fixture(scope="module", params=with_slow(NAMES, kept=("images", "masks", "text")))
def workdir(request, tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp(request.param)
    return make_run(CASES[request.param].config(root), root / "run", scale=0.3)


@pytest.fixture
def command(monkeypatch):
    """Runs `train.profile` with flags."""

    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["profile", *map(str, words)])
        profile.main()

    return run


def test_the_cases_are_of_every_task():
    assert {CASES[name].task for name in NAMES} == set(TASKS)


def test_a_run_is_profiled(workdir, command, capsys):
    command(f"--workdir={workdir}", "--batch=2", "--repeats=1")
    out, run = capsys.readouterr().out, dilax.load(workdir)
    assert sorted(path.name for path in (workdir / "profile").iterdir()) == ["profile.csv", "profile.png"]
    rows = list(csv.DictReader((workdir / "profile" / "profile.csv").read_text().splitlines()))
    assert sum(int(row["parameters"]) for row in rows) == sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"]))
    x = jax.ShapeDtypeStruct((1, *run.spec.input_shape), run.spec.dtype)
    assert sum(int(row["multiply_adds"]) for row in rows) == dilax.multiply_adds(run.model, run.variables, x)
    shape = rows[-1]["output_shape"].split("x")
    assert int(rows[-1]["output_bytes"]) == 2 * 4 * np.prod(list(map(int, shape)))
    assert all(float(row["milliseconds"]) > 0 and row["receptive_field"] for row in rows)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(rows)]] == [row["layer"] for row in rows]
    assert "2 example(s) at a time on " in lines[-2]
    slowest = max(rows, key=lambda row: float(row["share"]))["layer"]
    assert lines[-1].startswith(f"most of the time: {slowest} (") and lines[-1].endswith(f"see {workdir / 'profile' / 'profile.png'}.")
    with Image.open(workdir / "profile" / "profile.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_inputs_are_like_those_of_the_data():
    images, codes, rows = DataSpec("", (4, 5, 3), ("a",)), DataSpec("", (9,), ("a",), symbols=tuple("abc")), DataSpec("", (9, 2), ("a",))
    assert profile.example(images, 2).shape == (2, 4, 5, 3) and profile.example(images, 2).dtype == np.uint8
    assert profile.example(images, 1, (6, 7)).shape == (1, 6, 7, 3)
    assert set(profile.example(codes, 8, (50,)).ravel()) == {0, 1, 2}
    found = profile.example(rows, 4, (500,))
    assert found.shape == (4, 500, 2) and abs(found.mean()) < 0.1 and abs(found.std() - 1) < 0.1


@pytest.fixture(scope="module")
def masks(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("masks")
    return make_run(CASES["masks"].config(root), root / "run")


def test_another_size_elsewhere(masks, command, tmp_path):
    command(f"--workdir={masks}", "--size=20,24", "--repeats=1", f"--out={tmp_path / 'a' / 'b'}")
    rows = list(csv.DictReader((tmp_path / "a" / "b" / "profile.csv").read_text().splitlines()))
    assert rows[-1]["output_shape"].startswith("20x24x") and not (masks / "profile").exists()


def test_mistakes_are_one_line_and_leave_nothing(masks, command, tmp_path, capsys):
    assert refused(lambda: command(f"--workdir={tmp_path}")).startswith(f"{tmp_path} does not hold a run or published weights;")
    for size in ("20", "0,4", "a,b", "4,5,6", "-4,5"):
        text = refused(lambda size=size: command(f"--workdir={masks}", f"--size={size}"))
        assert text == f"--size={size} is not HEIGHT,WIDTH of 1 or more; give such as 240,320."
    for words, line in (
        (["--batch=0"], "--batch=0 is below 1; give 1 or more."),
        (["--repeats=-1"], "--repeats=-1 is below 1; give 1 or more."),
        (["--batch=many"], "argument --batch: invalid int value: 'many'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(f"--workdir={masks}", *words)
        assert line in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    text = refused(lambda: command(f"--workdir={masks}", "--repeats=1", f"--out={tmp_path / 'file'}"))
    assert text.startswith(f"--out={tmp_path / 'file'} cannot be written:")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and not (masks / "profile").exists()


def test_a_size_that_the_network_does_not_take(tmp_path, command):
    config = CASES["images"].config(tmp_path)
    config.model.hidden, config.model.head = (5,), "flatten"
    workdir = make_run(config, tmp_path / "run")
    text = refused(lambda: command(f"--workdir={workdir}", "--size=8,8"))
    assert "DilatedCNN does not run with these variables and this x" in text
