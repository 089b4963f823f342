"""Several processes equal one: real processes on loopback, their files and words, one that is killed, one that is asked to stop."""

import argparse
import io
import pathlib
import re
import signal
import socket
import subprocess
import time

import chex
import numpy as np
import pytest
import tiny_runs
from tiny_runs import finish, refused, tiny

from dilax.loading import read_status, read_variables
from train import aborts, cli, hosts, loop
from train.writers import read_history

JOB = tiny_runs.ROOT / "tests" / "run_job.py"
Processes = list[subprocess.Popen]
AGAIN = "this one stops, too. Give the same commands again: a run resumes from its last checkpoint.\n"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(count: int, devices: int, job: str, *words: str) -> Processes:
    """Start the processes of a job."""
    flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    return [tiny_runs.start(JOB, job, *words, *flags, f"--process_id={i}", devices=devices) for i in range(count)]


def results(processes: Processes) -> list[tuple[int, str, str]]:
    """The exit code of each process and what it wrote."""
    return [finish(process) for process in processes]


def wait_for_lines(workdir: pathlib.Path, count: int, processes: Processes) -> None:
    tiny_runs.wait_for(lambda: len(read_history(workdir)) >= count, processes[0])


def assert_same_curve(workdir: pathlib.Path, unbroken: pathlib.Path) -> None:
    """Sums over devices are taken in another order, so the last bits differ, which Adam magnifies where gradients are almost zero."""
    ours, theirs = ([line for line in read_history(path) if "validation/loss" in line] for path in (workdir, unbroken))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    np.testing.assert_allclose([line["validation/loss"] for line in ours], [line["validation/loss"] for line in theirs], rtol=1e-3)
    kernels = [read_variables(path)["params"]["head"]["kernel"] for path in (workdir, unbroken)]
    np.testing.assert_allclose(*kernels, rtol=0.02, atol=2e-3)


def test_two_processes_train_evaluate_and_predict_as_one(config_file, tmp_path):
    """To the bit: over two devices, a sum has one order."""
    from PIL import Image

    workdir, alone, image = tmp_path / "run", tmp_path / "alone", tmp_path / "digit.png"
    Image.fromarray(tiny_runs.digits().test[3]["image"][..., 0]).save(image)
    words = (f"--config={config_file}", "--config.report=true", "--workdir")
    assert finish(tiny_runs.start(JOB, "main", *words, str(alone), devices=2))[0] == 0
    (code, out, err), *others = results(start(2, 1, "main", *words, str(workdir)))
    assert (code, err) == (0, "")
    assert out.startswith("device: 2 cpu of 2 processes, jit, float32")
    assert others == [(0, "", "")]
    chex.assert_trees_all_equal(read_variables(workdir), read_variables(alone))
    losses = [[line["train/loss"] for line in read_history(path) if "train/loss" in line] for path in (workdir, alone)]
    assert losses[0] == losses[1] and len(losses[0]) > 5
    assert (workdir / "report" / "report.md").exists()
    assert read_status(workdir)["finished"]
    assert not (workdir / "lock").exists()
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [42, 44]

    (code, out, _), *others = results(start(2, 2, "evaluate", f"--workdir={workdir}"))
    assert (code, others[0][:2]) == (0, (0, ""))
    last = read_history(workdir)[-1]
    for name, value in (line.split() for line in out.splitlines()):
        assert float(value) == pytest.approx(last[name], abs=1e-3)

    (code, out, err), *others = results(start(2, 2, "predict", f"--workdir={workdir}", str(image)))
    assert (code, err) == (0, "note: one process predicts, process 0, on one of its devices.\n")
    assert others == [(0, "", "")]
    assert re.fullmatch(rf"{image}\t\d\t0\.\d{{4}}\n", out)


def test_a_run_goes_on_with_other_processes(config_file, unbroken, tmp_path):
    """Four processes, of which one is killed; then two, of which one is asked to stop; then one."""
    workdir = tmp_path / "run"
    words = (f"--config={config_file}", f"--workdir={workdir}")
    four = start(4, 1, "main", *words, "--config.mesh.space=4", "--config.mesh.data=1", "--config.checkpoint_every_steps=2")
    wait_for_lines(workdir, 1, four)
    four[2].kill()
    began = time.monotonic()
    found = results(four)
    assert time.monotonic() - began < 60
    for number in (0, 1, 3):
        code, _, err = found[number]
        assert code != 0
        assert err == f"error: process 2 ended or cannot be reached; {AGAIN}"
    assert not read_status(workdir)["finished"]

    two = start(2, 2, "main", *words, "--config.mesh.fsdp=4", "--config.mesh.data=1")
    wait_for_lines(workdir, 2 + len(read_history(workdir)), two)
    two[1].send_signal(signal.SIGTERM)
    (code, out, err), *others = results(two)
    assert (code, err, others) == (128 + signal.SIGTERM, "", [(128 + signal.SIGTERM, "", "")])
    stopped = re.search(r"stopped at step (\d+) of 44, saved in ", out)
    assert stopped
    assert f"resuming {workdir} at step" in out
    assert (workdir / "checkpoints" / stopped[1]).is_dir()

    assert loop.run(tiny(), workdir) == 0
    assert_same_curve(workdir, unbroken)


def test_mistakes_of_one_and_of_all_are_said_once(config_file, unbroken, tmp_path):
    """A finished run, which process 0 finds; process 0 that is killed, which the runtime finds at once."""
    words = (f"--config={config_file}", f"--workdir={unbroken}")
    (code, _, err), *others = results(start(2, 1, "main", *words))
    assert (code, others) == (2, [(2, "", "")])
    assert re.fullmatch(r"error: process 0: .* holds a finished run .*\n", err)

    two = start(2, 1, "main", f"--config={config_file}", f"--workdir={tmp_path / 'run'}")
    wait_for_lines(tmp_path / "run", 1, two)
    two[0].kill()
    code, _, err = results(two)[1]
    assert code != 0
    assert err == f"error: process 0 ended or cannot be reached; {AGAIN}"


FLAGS = {
    "half": (
        ["--coordinator=a:1"],
        "--coordinator, --num_processes and --process_id belong together; give --num_processes and --process_id, too.",
    ),
    "no port": (["--coordinator=a", "--num_processes=2", "--process_id=0"], "--coordinator=a is not HOST:PORT; "),
    "port": (["--coordinator=a:99999", "--num_processes=2", "--process_id=0"], "--coordinator=a:99999 is not HOST:PORT; "),
    "none": (
        ["--coordinator=a:1", "--num_processes=0", "--process_id=0"],
        "--num_processes=0 is not a number of processes; give 1 or more.",
    ),
    "id": (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "--process_id=2 is not one of --num_processes=2; give 0 to 1."),
}


def parsed(words: list[str]) -> argparse.Namespace:
    parser = cli.Parser()
    hosts.add_flags(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("name", FLAGS)
def test_flags_that_do_not_fit_are_refused(name):
    words, message = FLAGS[name]
    assert refused(lambda: hosts.join(parsed(words))).startswith(message)


@pytest.mark.parametrize("address", ["10.0.0.1:9876", "node-1.cluster:80", "[::1]:9876"])
def test_addresses(address):
    given = hosts.given_processes(parsed([f"--coordinator={address}", "--num_processes=2", "--process_id=1"]))
    assert given == {"coordinator_address": address, "num_processes": 2, "process_id": 1}


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("more", "joins"), [({}, True), ({"SLURM_STEP_NUM_TASKS": "1"}, False), ({"SLURM_NTASKS": "1"}, False), ({"SLURM_JOB_ID": None}, False)]
)
def test_the_tasks_of_slurm_join_by_themselves(more, joins, monkeypatch):
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: calls.append(given))
    monkeypatch.setattr(hosts, "_explain_aborts", lambda: None)
    for name, value in {**SLURM, **more}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    hosts.join(parsed([]))
    assert calls == [{"heartbeat_timeout_seconds": hosts.HEARTBEAT, "initialization_timeout": hosts.JOIN}] * joins


def test_other_words_of_a_process_pass():
    """Those of XLA, whole and in order; the last of them, too, if no abort follows."""
    target = io.BytesIO()
    gloo = b"[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1\n"
    lines = [
        b"W0000 00:00:1.5 7 cpu.cc:12] slow\n",
        b"half\n",
        b"E1128 14:50:33.09 31875 coordination_service_agent.cc:289] Polled\n",
        b"end\n",
    ]
    aborts.pass_on([gloo, *lines], target)
    assert target.getvalue() == b"".join(lines)


def test_every_process_reads_its_rows():
    """Disjoint and complete, for a mesh whose batch is spread over processes."""
    code = (
        "import sys, argparse, jax, numpy as np; from train import hosts, parallel; from jax.sharding import *; a = argparse.ArgumentParser(); "
        "hosts.add_flags(a); hosts.join(a.parse_args()); m = parallel.make_mesh({'data': 2, 'fsdp': 2, 'space': 1}); "
        "s = parallel.share_of(NamedSharding(m, PartitionSpec(parallel.BATCH)), 8); print(s.tolist(), file=hosts.errors()); hosts.leave()"
    )
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    processes = [tiny_runs.start("-c", code, *flags, f"--process_id={i}", devices=2) for i in range(2)]
    assert [err for _, _, err in results(processes)] == ["[0, 1, 2, 3]\n", "[4, 5, 6, 7]\n"]
