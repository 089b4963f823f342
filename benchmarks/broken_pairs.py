"""Tiny runs of two processes on loopback, of which one is killed; see `benchmarks.chaos`."""

import concurrent.futures
import pathlib
import random
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

from ml_collections import ConfigDict

from benchmarks.broken_runs import Reference, differences, draw, finished, left, recorded, start, write_config
from benchmarks.faults import PHASES, Moment
from dilax.loading import read_status
from train import checkpoint

TOGETHER = 2
LONGEST_LEFT_S = 60  # that a process may take to stop after the other has been killed
_NEVER = Moment("step", -1)
Kill = tuple[int, Moment]  # the number of a process, and when it is killed


def unbroken_pair(config: ConfigDict, folder: pathlib.Path) -> list[Reference]:
    """Train a config by two processes in a new folder, twice, as `broken_runs.unbroken`; return what it was to each process."""
    folder.mkdir(parents=True)
    workdir, file, events = folder, write_config(config, folder), [folder / f"events-{i}.json" for i in range(TOGETHER)]
    for i in range(2):
        workdir = folder / f"unbroken-{i}"
        if wrong := _trained([str(path) for path in events], file, workdir):
            raise RuntimeError(f"the unbroken run of {config.name} by two processes: {wrong}")
    return [Reference(config, file, workdir, recorded(path)) for path in events]


def schedule(pair: Sequence[Reference], kills: int, seed: int) -> list[list[Kill]]:
    """Return whom to kill when in each run, of all phases of each process in turn; every third run is killed twice."""
    rng = random.Random(seed)
    every = [(i, phase) for i, one in enumerate(pair) for phase in PHASES if any(name == phase for name, _, _ in one.events)]
    turns = [turn for _ in range(0, kills, len(every)) for turn in rng.sample(every, len(every))][:kills]
    drawn, runs = [(i, draw(pair[i].events, phase, rng)) for i, phase in turns], []
    while drawn:
        count = 2 if len(runs) % 3 == 2 else 1
        runs.append(drawn[:count])
        del drawn[:count]
    return runs


def killed(pair: Sequence[Reference], kills: Sequence[Kill], workdir: pathlib.Path) -> tuple[list[tuple[Kill, float]], str]:
    """Kill one of the two processes of a run at each moment in turn, and train it to its end.

    Returns:
        The kills that came, with the seconds that the other process then took to stop, and what went wrong, or "".
    """
    reached: list[tuple[Kill, float]] = []
    for number, moment in kills:
        if reached and read_status(workdir).get("finished"):
            break
        processes = _start([moment if i == number else _NEVER for i in range(TOGETHER)], pair[0].file, workdir)
        with concurrent.futures.ThreadPoolExecutor(TOGETHER) as pool:
            ends = list(pool.map(lambda process: (*finished(process), time.monotonic()), processes))
        (code, *_, began), (code_of_other, out, err, end) = ends[number], ends[1 - number]
        seconds = end - began
        if code == 0:  # the moment did not come again after a kill
            break
        reached.append(((number, moment), seconds))
        if code != -signal.SIGKILL:
            return reached, f"exit code {code} of process {number}, which was to be killed"
        if wrong := _wrong_end(code_of_other, err, workdir):
            return reached, f"{wrong}: {out}{err}"
        if seconds > LONGEST_LEFT_S:
            return reached, f"the other process took {seconds:.0f} s to stop"
        if remaining := left(workdir):
            return reached, f"processes {remaining} are left"
    return reached, _completed(pair[0], workdir)


def _wrong_end(code: int, err: str, workdir: pathlib.Path) -> str:
    """Return what is wrong with the end of the process that was not killed: it has one line to say, unless its work was done."""
    if code == 0 and not err and read_status(workdir).get("finished"):
        return ""
    one_line = err.startswith("error: ") and err.count("\n") == 1 and ("ended or cannot be reached" in err or "did not join" in err)
    return "" if code and one_line else f"exit code {code} of the process that was not killed"


def _completed(reference: Reference, workdir: pathlib.Path) -> str:
    """Train a run to its end by two processes, if it has not come there; return in what it differs from the unbroken one, or ""."""
    if not read_status(workdir).get("finished"):
        saved = checkpoint.saved_steps(workdir)
        resumed = f"resuming {workdir} at step {saved[-1]} " if saved else ""
        if wrong := _trained([_NEVER] * TOGETHER, reference.file, workdir, resumed):
            return wrong
    return "; ".join(differences(workdir, reference.workdir))


def _trained(moments: Sequence[Moment | str], file: pathlib.Path, workdir: pathlib.Path, says: str = "") -> str:
    """Train by two processes; return what went wrong, or ""."""
    ends = [finished(process) for process in _start(moments, file, workdir)]
    if any(code for code, _, _ in ends) or says not in ends[0][1]:
        return "; ".join(f"exit code {code} of process {i}: {out}{err}" for i, (code, out, err) in enumerate(ends))
    return ""


def _start(moments: Sequence[Moment | str], file: pathlib.Path, workdir: pathlib.Path) -> list[subprocess.Popen]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        flags = [f"--coordinator=127.0.0.1:{one.getsockname()[1]}", f"--num_processes={len(moments)}"]
    return [start(moment, file, workdir, [*flags, f"--process_id={i}"]) for i, moment in enumerate(moments)]
