"""The folder of a run, and what may happen to it: other processes, other data, lost and damaged files, kills between two of them."""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_runs
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image
from selection import with_slow
from tiny_runs import ENVIRONMENT, ROOT, flip, flip_a_bit, refused, tiny

import dilax
from dilax import loading
from dilax.loading import read_status
from train import checkpoint, cli, files, finish, folder, loop
from train.build import load_trained
from train.config import workdir_of
from train.data import Splits
from train.data.fingerprint import changes, fingerprint
from train.data.source import Lazy, Table
from train.writers import CORRUPT, METRICS, Writer, read_history

SHORT = {"total_epochs": 0.2, "checkpoint_every_steps": 2}  # four steps
VALUES = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
HOST = socket.gethostname()


@pytest.fixture
def copied(unbroken, tmp_path) -> pathlib.Path:
    """A run of which all steps are taken, and the last line is not written."""
    workdir = pathlib.Path(shutil.copytree(unbroken, tmp_path / "copy"))
    folder.write_status(workdir, finished=False)
    return workdir


# One process at a time

HOLD = "import pathlib, sys, time\nfrom train.files import locked\nwith locked(pathlib.Path(sys.argv[1])):\n    print(1, flush=True)\n    time.sleep(99)"


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(tmp_path, capsys):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"1\n"
        who = f"another process (pid {other.pid} on {HOST})"
        for restart in (False, True):
            text = refused(lambda restart=restart: loop.run(tiny(), tmp_path, restart=restart))
            assert text == f"{who} trains in {tmp_path}; wait for it to end, or give another --workdir."
        other.kill()
    capsys.readouterr()
    with files.locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text()) == {"pid": os.getpid(), "host": HOST}
        assert capsys.readouterr().out == f"{who} left {tmp_path} locked, and has ended; its lock is taken over.\n"
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_another_host_is_not_taken_over(tmp_path):
    (tmp_path / "lock").write_text('{"pid": 7, "host": "elsewhere"}')
    text = f"another process (pid 7 on elsewhere) trains in {tmp_path}, or was killed there; if it has ended, remove {tmp_path / 'lock'}."
    assert refused(lambda: loop.run(tiny(), tmp_path)) == text
    for rubbish in ("", "{", "[]", '{"pid": "x", "host": 3}'):
        (tmp_path / "lock").write_text(rubbish)
        with files.locked(tmp_path):
            pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(code, tmp_path, monkeypatch, capsys):
    def refuse(*_) -> None:
        raise OSError(code, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getppid(), "host": HOST}))
    with (
        pytest.raises(dilax.errors.UserError, match=rf"another process \(pid {os.getppid()} on {HOST}\) trains in"),
        files.locked(tmp_path),
    ):
        pass
    (tmp_path / "lock").write_text(json.dumps({"pid": 2**22 + 1, "host": HOST}))  # above the largest that Linux gives
    with files.locked(tmp_path):
        assert "has ended; its lock is taken over" in capsys.readouterr().out


# Places


@pytest.mark.parametrize("name", ["lr=[0.1]", "a[bc]d/run", "[!x]"])
def test_a_path_that_orbax_cannot_read_is_refused_before_anything_is_trained(name, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "build", lambda *_: pytest.fail("too late"))
    text = refused(lambda: loop.run(tiny(), tmp_path / name))
    assert text == f"checkpoints cannot be written to {tmp_path / name} and read back, since its path holds [ ]; give another --workdir."
    assert list((tmp_path / name).iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "é", "{x}", "a*b", "what?", "100%", "a'b\"c", "~", "$HOME"])
def test_an_odd_path_that_works(name, tmp_path):
    (tmp_path / name).mkdir()
    checkpoint.check_folder(tmp_path / name)
    with checkpoint.Store(tmp_path / name / "saves", run="r") as store:
        store.save(3, {"a": VALUES})
        store.wait()
        restored = store.restore({"a": VALUES}, tiny_runs.one_device())
    assert restored is not None and restored[0] == 3
    np.testing.assert_array_equal(restored[1]["a"], VALUES)


def test_home_and_what_systems_put_into_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdir_of(tiny(), "~/run") == str(cli.folder("~/run")) == str(tmp_path / "run")
    for name in (".DS_Store", "._config.json", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_text("")
    assert folder.is_empty(tmp_path)
    with folder.open_folder(tiny(), tmp_path):
        pass
    (tmp_path / ".profile").write_text("")
    assert "holds files but not a run, such as .profile;" in refused(lambda: loop.run(tiny(), pathlib.Path("~")))


# Kills and lost files


@pytest.mark.parametrize("count", with_slow(range(1, 6), kept=(1, 4)))
def test_killed_between_any_two_files(count, tmp_path, monkeypatch):
    replace, calls = os.replace, iter(range(1, 100))

    def kill(source: pathlib.Path, target: pathlib.Path) -> None:
        if next(calls) == count:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            loop.run(tiny(**SHORT), tmp_path / "run")
    assert loop.run(tiny(**SHORT), tmp_path / "run") == 0
    assert read_status(tmp_path / "run")["finished"]


RUBBISH = [b"", b"[1, 2]", b'{"a": 1}', b"\xff\xfe\x00\x01", b'{"format": 3, "name": "tiny", "task": "classification"}']


@pytest.mark.parametrize("name", ["config.json", "run.json"])
@pytest.mark.parametrize("content", RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish_in_a_file_of_a_run_is_one_line(name, content, copied):
    (copied / name).write_bytes(content)
    before = tiny_runs.files_of(copied)
    for call in (lambda: loop.run(tiny(), copied), lambda: load_trained(copied)):
        text = refused(call)
        assert str(copied) in text and ("is damaged" in text or "of an earlier version" in text)
    assert tiny_runs.files_of(copied) == before


def test_rubbish_is_moved_aside_by_a_restart(copied):
    for name in ("config.json", "run.json"):
        (copied / name).write_bytes(b"{")
    assert loop.run(tiny(**SHORT), copied, restart=True) == 0
    assert (copied.with_name("copy-old-1") / "run.json").read_bytes() == b"{"


def test_a_run_without_config_or_status(copied):
    (copied / "config.json").rename(copied / "kept")
    text = f"{copied} holds a run.json without config.json; copy the newest file of configs/ there, pass --restart to begin anew"
    assert refused(lambda: loop.run(tiny(), copied)).startswith(text)
    shutil.copy(copied / "configs" / "0.json", copied / "config.json")
    (copied / "run.json").unlink()
    assert refused(lambda: loop.run(tiny(), copied)).startswith(f"{copied} holds a config.json without run.json; restore that,")


def test_rubbish_between_metrics_leaves_the_others(copied, capsys):
    lines = (copied / METRICS).read_bytes().splitlines()
    rubbish = [b"{", b"[]", b"\xff\xff", b'{"step": "3"}', b'{"train/loss": 1}', b'{"step": 5, "train/loss": "x"}', b"\0" * 9]
    mixed = [line for pair in zip(lines, rubbish) for line in pair] + lines[len(rubbish) :] + [lines[-1][:20]]
    (copied / METRICS).write_bytes(b"\n".join(mixed))
    assert len(read_history(copied)) == len(lines)
    with Writer(copied, 44) as writer:
        assert [line["step"] for line in writer.history] == [json.loads(line)["step"] for line in lines if b"test/" not in line]
    assert f"warning: 8 line(s) of {copied / METRICS} cannot be read and are left out; {CORRUPT} keeps them." in capsys.readouterr().err
    assert (copied / CORRUPT).read_bytes() == b"\n".join(mixed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:3], "has 3 lines now"),
        (lambda lines: [], "has 0 lines now"),
        (lambda lines: [lines[0].replace(b"1", b"2"), *lines[1:]], "has other values now"),
        (lambda lines: lines, ""),
    ],
)
def test_metrics_that_are_lost_or_altered_are_said(change, words, copied, capsys):
    lines = (copied / METRICS).read_bytes().splitlines(keepends=True)
    expected = sum(b"test/" not in line for line in lines)
    (copied / METRICS).write_bytes(b"".join(change(lines)))
    assert loop.run(tiny(), copied) == 0
    text = f"warning: {copied / METRICS} had {expected} lines when step 44 was saved, and {words}.\n"
    assert capsys.readouterr().err == (text if words else "")


def test_a_flipped_bit_anywhere_in_run_json_is_noticed_or_harmless(copied):
    expected = read_status(copied)
    data = (copied / "run.json").read_bytes()
    refusals = 0
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 7
        (copied / "run.json").write_bytes(flipped)
        try:
            found = {**read_status(copied), "seal": expected["seal"]}
        except dilax.errors.UserError:
            refusals += 1
        else:  # the name of the checksum, which is not in what it is of
            assert {name: found[name] for name in expected} == expected
    assert refusals > len(data) / 8


def lose_all(workdir: pathlib.Path) -> None:
    shutil.rmtree(workdir / "checkpoints")


def empty(workdir: pathlib.Path) -> None:
    lose_all(workdir)
    (workdir / "checkpoints").mkdir()


@pytest.mark.parametrize("lose", [lose_all, empty])
def test_lost_checkpoints_do_not_begin_the_run_anew(lose, copied):
    lose(copied)
    metrics = (copied / METRICS).read_bytes()
    text = refused(lambda: loop.run(tiny(), copied))
    assert text.startswith(f"no checkpoint of step 44 in {copied / 'checkpoints'} could be read; restore one there, pass --restart")
    assert (copied / METRICS).read_bytes() == metrics


def test_a_lost_newest_checkpoint_and_a_run_without_any_are_said(copied, tmp_path, capsys):
    shutil.rmtree(copied / "checkpoints" / "44")
    assert loop.run(tiny(), copied) == 0
    assert "warning: the run had saved step 44, and the newest checkpoint in" in capsys.readouterr().err
    with Writer(tmp_path, 0) as writer:
        writer.scalars(5, {"train/loss": 1.0})
    folder.write_status(tmp_path, **{k: v for k, v in read_status(copied).items() if k in ("model", "data")})
    folder.write_config(tmp_path, tiny(**SHORT), 0)
    for name in ("copy", "tensorboard"):
        shutil.rmtree(tmp_path / name)
    assert loop.run(tiny(**SHORT), tmp_path) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path} was stopped before its first checkpoint: it starts from step 0 again, without its 1 lines of metrics." in out


def of_another_run(workdir: pathlib.Path, other: pathlib.Path) -> None:
    shutil.copytree(other / "checkpoints" / "4", workdir / "checkpoints" / "50")


def of_another_step(workdir: pathlib.Path, other: pathlib.Path) -> None:
    (workdir / "checkpoints" / "44").rename(workdir / "checkpoints" / "50")


def of_another_description(workdir: pathlib.Path, other: pathlib.Path) -> None:
    (path,) = (path for path in (workdir / "checkpoints" / "44" / "meta").iterdir() if b"leaves" in path.read_bytes())
    path.write_bytes(path.read_bytes().replace(b"kernel", b"kernal", 1))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("other") / "run"
    assert loop.run(tiny(seed=5, **SHORT), workdir) == 0
    return workdir


@pytest.mark.parametrize(
    ("change", "step", "reason"),
    [
        (of_another_run, 50, "it was saved at step 4"),
        (of_another_step, 50, "it was saved at step 44"),
        (of_another_description, 44, "its description does not match its checksum"),
    ],
)
def test_a_checkpoint_that_is_not_of_this_run_and_step_is_not_used(change, step, reason, copied, other, capsys):
    change(copied, other)
    newest = 44 if change is of_another_run else 42
    assert tiny_runs.newest_state(copied)[0] == newest
    assert f"warning: checkpoint {step} in {copied / 'checkpoints'} cannot be used ({reason}); moved to" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_at_the_same_step(copied, other, capsys):
    shutil.rmtree(copied / "checkpoints" / "44")
    shutil.copytree(other / "checkpoints" / "4", copied / "checkpoints" / "4")
    shutil.rmtree(copied / "checkpoints" / "42")
    assert "could be read; restore one there" in refused(lambda: loop.run(tiny(), copied))
    assert "cannot be used (it is of another run); moved to" in capsys.readouterr().err


def test_a_flipped_bit_anywhere_in_a_save_is_noticed_or_harmless(tmp_path, capsys):
    """Restoring gives the right numbers of this save, or those of the one before."""
    trees = {step: {"a": VALUES * step, "b": {"c": np.arange(7, dtype=np.int32) * step}} for step in (1, 2)}
    with checkpoint.Store(tmp_path / "saves", run="r") as store:
        for step, tree in trees.items():
            store.save(step, tree)
    saved = [
        path.relative_to(tmp_path / "saves") for path in (tmp_path / "saves" / "2").rglob("*") if path.is_file() and path.stat().st_size
    ]
    assert len(saved) >= 6
    seen = set()
    for i, path in enumerate(saved):
        copy = pathlib.Path(shutil.copytree(tmp_path / "saves", tmp_path / f"{i}"))
        flip(copy / path, place=(0.5, 0.2, 0.9)[i % 3])
        with checkpoint.Store(copy, run="r") as store:
            restored = store.restore(trees[1], tiny_runs.one_device())
        assert restored is not None, path
        jax.tree.map(np.testing.assert_array_equal, restored[1], trees[restored[0]])
        seen.add(restored[0])
        shutil.rmtree(copy)
    assert seen == {1, 2} or seen == {1}


def test_a_checksum_is_of_all_shards():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    values = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    sharded = jax.device_put(values, NamedSharding(mesh, PartitionSpec("x")))
    whole = jax.device_put(values, NamedSharding(mesh, PartitionSpec()))
    assert loading.checksum({"a": sharded}) == loading.checksum({"a": whole}) == loading.checksum({"a": values})
    assert loading.checksum({"a": sharded.at[15, 2].add(1)}) != loading.checksum({"a": sharded})


# The best, the report and the config


def lose_best(workdir: pathlib.Path, other: pathlib.Path) -> None:
    shutil.rmtree(workdir / "best")


def damage_best(workdir: pathlib.Path, other: pathlib.Path) -> None:
    flip_a_bit(next((workdir / "best").iterdir()))


def swap_best(workdir: pathlib.Path, other: pathlib.Path) -> None:
    lose_best(workdir, other)
    shutil.copytree(other / "best", workdir / "best")


@pytest.mark.parametrize("lose", [lose_best, damage_best, swap_best])
def test_a_lost_best_is_said_and_none_worse_than_the_checkpoint_replaces_it(lose, copied, other, capsys, monkeypatch):
    lose(copied, other)
    if lose is swap_best:
        assert "damaged or misplaced (it is of another run)" in refused(lambda: dilax.load(copied))
    later = {"validation/accuracy": 0.0, "validation/loss": 99.0}
    monkeypatch.setattr(loop, "score", lambda setup, variables, split, score=loop.score: worsen(score(setup, variables, split), later))
    calls.clear()
    assert loop.run(tiny(total_epochs=2.6), copied) == 0
    text = f"warning: the best parameters so far, in {copied / 'best'}, are lost; the best is chosen anew, from here on."
    assert text in capsys.readouterr().err
    assert read_history(copied)[-1]["best_step"] == 44
    assert [path.name for path in (copied / "best").iterdir() if path.name.isdecimal()] == ["44"]


calls: list[int] = []


def worsen(scored, later):
    """Leave the first evaluation as it is, and replace the metrics of all others."""
    calls.append(1)
    return scored if len(calls) == 1 else ({name.removeprefix("validation/"): value for name, value in later.items()}, scored[1])


def test_a_report_that_was_not_written_is_written_on_resumption(tmp_path, monkeypatch, capsys):
    config, workdir = tiny(report=True, **SHORT), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(finish, "write_report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.run(config, workdir)
    assert not read_status(workdir)["finished"] and read_status(workdir)["metrics"]

    def write(workdir: pathlib.Path, *_) -> str:
        (workdir / "report").mkdir()
        (workdir / "report" / "report.md").write_text("written")
        return "written"

    monkeypatch.setattr(finish, "write_report", write)
    assert loop.run(config, workdir) == 0
    metrics = read_status(workdir)["metrics"]
    assert read_status(workdir)["finished"] and (workdir / "report" / "report.md").exists()
    assert "holds a finished run (test/accuracy" in refused(lambda: loop.run(config, workdir))
    shutil.rmtree(workdir / "report")
    capsys.readouterr()
    assert loop.run(config, workdir) == 0
    out = capsys.readouterr().out
    assert f"{workdir} holds a finished run without a report, which is written now." in out and "report: written" in out
    assert read_status(workdir)["metrics"] == metrics and "loss" not in out.split("test/accuracy")[0]
    assert "holds a finished run (test/accuracy" in refused(lambda: loop.run(config, workdir))


def test_what_has_changed_in_the_config_is_printed_and_kept(copied, capsys):
    assert loop.run(tiny(total_epochs=2.6, log_every_steps=4, **{"optim.lr": 0.02}), copied) == 0
    out = capsys.readouterr().out
    for line in ("optim.lr: 0.01 -> 0.02", "total_epochs: 2.2 -> 2.6", "log_every_steps: 5 -> 4"):
        assert f"config.{line}, from step 44 on\n" in out
    rates = {path.name: json.loads(path.read_text())["optim"]["lr"] for path in (copied / "configs").iterdir()}
    assert rates == {"0.json": 0.01, "44.json": 0.02}
    folder.write_config(copied, tiny(), 20)  # as after damage to the later checkpoints
    assert [path.name for path in (copied / "configs").iterdir()] == ["0.json"]
    capsys.readouterr()
    folder.write_config(copied, tiny(), 30)
    assert capsys.readouterr().out == ""


def test_after_a_divergence_the_gradient_may_be_clipped(tmp_path, capsys):
    changes = {"optim.name": "sgd", "checkpoint_every_steps": 1, "total_epochs": 0.4}
    assert loop.run(tiny(**{**changes, "optim.lr": 1e17}), tmp_path / "run") == 1
    assert "--config.optim.clip_norm=1" in capsys.readouterr().err
    assert read_status(tmp_path / "run")["step"] >= 1
    assert loop.run(tiny(**{**changes, "optim.lr": 1e-3, "optim.clip_norm": 1.0}), tmp_path / "run") in (0, 1)
    assert "config.optim.clip_norm: 0.0 -> 1.0, from step" in capsys.readouterr().out


def test_large_batches(tmp_path, capsys):
    text = "config.total_epochs=2.2 of 1294 training records are less than one batch of config.batch_size=100000; choose a smaller batch, or more epochs."
    assert refused(lambda: loop.run(tiny(batch_size=100_000), tmp_path / "run")) == text
    loop._check_length(loop.build(tiny(batch_size=2000), tiny_runs.digits().spec))
    assert "warning: config.batch_size=2000 is more than the 1294 training records" in capsys.readouterr().err
    loop._check_length(loop.build(tiny(batch_size=64, total_epochs=0.01), tiny_runs.digits().spec))
    assert capsys.readouterr().err == ""


# The data


def write_pets(path: pathlib.Path, classes: str, count: int = 12, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for name in classes.split():
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path / name / f"{i:02}.png")


def exchange(path: pathlib.Path) -> None:
    write_pets(path, "cat dog")
    (path / "cat").rename(path / "x")
    (path / "dog").rename(path / "cat")
    (path / "x").rename(path / "dog")


def repaint(path: pathlib.Path) -> None:
    write_pets(path, "cat dog")
    pixels = np.array(Image.open(path / "dog" / "03.png"))
    pixels[2, 3, 1] ^= 1
    Image.fromarray(pixels).save(path / "dog" / "03.png")


DATA = {
    "other classes": (lambda path: write_pets(path, "dog horse"), "outputs: cat, dog -> dog, horse"),
    "half": (lambda path: write_pets(path, "cat dog", 6), "training records: 17 -> 9"),
    "other images": (lambda path: write_pets(path, "cat dog", seed=1), "the training records hold other values"),
    "labels exchanged": (exchange, "the training records hold other values"),
    "one pixel": (repaint, "records hold other values"),
    "same": (lambda path: write_pets(path, "cat dog"), ""),
}


def pets(path: pathlib.Path, **changes):
    given = {"data.name": "folder", "data.dir": str(path), "batch_size": 8, "total_epochs": 2.0, "checkpoint_every_steps": 2, **changes}
    return tiny(**given)


@pytest.fixture(scope="module")
def trained_on_pets(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("pets")
    write_pets(path / "data", "cat dog")
    assert loop.run(pets(path / "data"), path / "run") == 0
    return path / "run"


@pytest.mark.parametrize("name", with_slow(DATA, kept=("other classes", "one pixel", "same")))
def test_data_that_has_changed_is_refused_or_accepted(name, trained_on_pets, tmp_path, capsys):
    workdir = pathlib.Path(shutil.copytree(trained_on_pets, tmp_path / "run"))
    make, words = DATA[name]
    make(tmp_path / "data")
    config = pets(tmp_path / "data", total_epochs=5.0, **{"data.memory_mb": 0 if name == "same" else 2048, "data.workers": 0})
    if name == "same":
        assert loop.run(config, workdir) == 0
        assert "the data has changed" not in capsys.readouterr().out
        return
    before = tiny_runs.files_of(workdir)
    text = refused(lambda: loop.run(config, workdir))
    assert text.startswith(f"the data differs from that which the run in {workdir} began with (") and words in text
    assert text.endswith("or accept the change with --config.data.changed=accept.")
    assert tiny_runs.files_of(workdir) == before
    config.data.changed = "accept"
    assert loop.run(config, workdir) == 0
    assert re.search(rf"the data has changed, which is accepted: .*{words}.*\.\n", capsys.readouterr().out)


def test_fingerprints(monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(300, 40)).astype(np.float32), "label": rng.integers(0, 9, 300).astype(np.int32)}

    def splits(**changed: np.ndarray) -> Splits:
        table = Table({**arrays, **changed})
        return Splits(tiny_runs.digits().spec, table, None, Table({name: values[:50] for name, values in table.arrays.items()}))

    whole = splits()
    lazy = Lazy(300, lambda indices: [whole.train[i] for i in indices])
    for size in (2**24, 0):  # all records, a sample
        monkeypatch.setattr("train.data.fingerprint._WHOLE", size)
        expected = json.loads(json.dumps(fingerprint(whole)))
        assert changes(expected, fingerprint(Splits(whole.spec, lazy, None, whole.test))) == []
        assert changes(expected, fingerprint(splits(x=arrays["x"] * np.float32(1 + 1e-6)))) == []  # as other computers round
        for other in (splits(x=arrays["x"][::-1]), splits(x=arrays["x"] * np.float32(1.1)), splits(label=arrays["label"] + 1)):
            assert "the training records hold other values" in changes(expected, fingerprint(other))
        without = dict(expected)
        del without["test"]
        assert changes(without, expected) == ["test records: 0 -> 50"]


# Disks and signals


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="has no device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    writer = Writer(tmp_path, 0)
    writer._file.close()
    writer._file = open("/dev/full", "w")  # noqa: SIM115
    text = f"{tmp_path / METRICS} cannot be written: No space left on device; fix that and give the same command again."
    assert refused(lambda: writer.scalars(1, {"train/loss": 1.0})) == text
    writer._board.close()
    refused(lambda: writer.__exit__())


SOON = "from train import cli, main\ncli.GRACE = 1.0\ncli.run(main.main)"


def test_after_a_save_that_fails_the_process_ends_with_one_line(tmp_path):
    workdir = tmp_path / "run"
    process = tiny_runs.start("-c", SOON, f"--config={tiny_runs.write_config_file(tmp_path)}", f"--workdir={workdir}")
    tiny_runs.wait_for(lambda: any((workdir / "checkpoints").glob("7/")), process)
    (workdir / "checkpoints").rename(workdir / "moved")
    (workdir / "checkpoints").write_text("not a folder")
    code, _, err = tiny_runs.finish(process)
    assert (code, err.count("\n")) == (2, 1), err
    assert re.match(rf"error: a checkpoint could not be written to {workdir / 'checkpoints'} \(.+\); fix that and give the same", err)
    (workdir / "checkpoints").unlink()
    (workdir / "moved").rename(workdir / "checkpoints")
    assert loop.run(tiny(), workdir) == 0


def test_what_tensorboard_shows_is_on_the_disk_at_once(tmp_path):
    with Writer(tmp_path, 0) as writer:
        writer.scalars(5, {"train/loss": 1.5})
        (events,) = (tmp_path / "tensorboard").iterdir()
        assert b"train/loss" in events.read_bytes()


def test_nohup_is_respected():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with loop.Stopper() as stopper:
            signal.raise_signal(signal.SIGHUP)
            assert stopper.signal is None
    finally:
        signal.signal(signal.SIGHUP, old)


CLOSE = """
import os, pty, sys, time, pathlib
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "train.main", *sys.argv[2:]])
os.set_blocking(terminal, False)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.1)
    try:
        os.read(terminal, 10000)
    except OSError:
        pass
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="opens a terminal as Linux does")
def test_a_run_whose_terminal_is_closed_is_saved(tmp_path):
    workdir, file = tmp_path / "run", tiny_runs.write_config_file(tmp_path)
    flags = [f'--config={file}:{{"total_epochs":3000.0}}', f"--workdir={workdir}"]
    code, out, _ = tiny_runs.finish(tiny_runs.start("-c", CLOSE, workdir / "checkpoints" / "7", *flags))
    assert (code, out) == (0, f"{128 + signal.SIGHUP}\n")
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert read_status(workdir)["step"] == newest > 7
    assert not (workdir / "lock").exists()


def test_after_data_has_changed_the_best_is_chosen_anew(tmp_path, capsys):
    """Metrics of other data cannot be compared, however good they were."""
    workdir = tmp_path / "run"
    assert loop.run(tiny(), workdir) == 0
    records = read_status(workdir)["records"]
    records["training"]["records"] += 1
    folder.write_status(workdir, records=records)
    capsys.readouterr()
    assert loop.run(tiny(total_epochs=3.0, **{"data.changed": "accept"}), workdir) == 0
    assert "were chosen on other data; the best is chosen anew" in capsys.readouterr().err


def test_an_older_best_that_a_kill_has_left_is_deleted(copied):
    (best,) = (path for path in (copied / "best").iterdir() if path.name.isdecimal())
    shutil.copytree(best, copied / "best" / "3")
    assert loop.run(tiny(), copied) == 0
    assert [path.name for path in (copied / "best").iterdir() if path.name.isdecimal()] == [best.name]


def test_the_best_of_a_step_is_replaced_by_that_of_the_same_step(tmp_path):
    """A run that was killed after an evaluation may come to that step again with other parameters."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with checkpoint.Store(tmp_path / "best", run="a") as best:
        for value in (1.0, 2.0):
            best.replace(5, {"x": np.full(3, value, np.float32)})
        saved = best.restore({"x": jax.ShapeDtypeStruct((3,), np.float32)}, here)
    assert saved is not None and saved[0] == 5
    np.testing.assert_array_equal(saved[1]["x"], 2.0)
