"""The short form of `python -m benchmarks.chaos`: a kill in each phase of a run, and what the comparison with the unbroken run notices."""

import collections
import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
from selection import slow

from benchmarks import broken_pairs, broken_runs, chaos
from benchmarks.faults import FINISH, PHASES, STEP, Moment


def injected(root: pathlib.Path, file: pathlib.Path, *flags: str) -> list[dict[str, str]]:
    """Run the benchmark, on one device, in which compiled programs are kept; return the faults, all survived."""
    command = [sys.executable, "-m", "benchmarks.chaos", "--seed=1", f"--json={file}", *flags]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("kills", [2, *slow(len(PHASES))])
def test_a_run_that_is_killed_equals_the_unbroken_one(kills, root, tmp_path):
    faults = injected(root, tmp_path / "faults.json", "--configs=sequence", "--parts=kills", f"--kills={kills}", "--sample=1")
    assert len(faults) == len({fault["where"] for fault in faults}) == kills
    assert all(fault["kind"] == "SIGKILL" and not fault["wrong"] for fault in faults)


EVENTS = [
    ("start-up", 0.0, "import"),
    ("start-up", 0.5, "open"),
    ("first files", 1.0, "os.rename"),
    ("step", 2.0, STEP),
    ("step", 4.0, STEP),
]
EVENTS += [("evaluation", 4.1, "dilax.score"), ("save", 4.2, "os.mkdir"), ("report", 5.0, FINISH)]


def test_moments_are_of_all_phases_and_follow_from_the_seed():
    reference = broken_runs.Reference(broken_runs.image(), pathlib.Path(), pathlib.Path(), EVENTS)
    runs = broken_runs.schedule(reference, 60, seed=3)
    assert runs == broken_runs.schedule(reference, 60, seed=3) != broken_runs.schedule(reference, 60, seed=4)
    assert collections.Counter(moment.phase for run in runs for moment in run) == dict.fromkeys(PHASES, 10)
    assert {len(run) for run in runs} == {1, 2}
    moments = [broken_runs.draw(EVENTS, "step", random.Random(seed)) for seed in range(50)]
    assert {moment.count for moment in moments} == {0, 1}
    assert {moment.delay == 0 for moment in moments} == {True, False} and max(moment.delay for moment in moments) <= 0.5


def test_each_of_two_processes_is_killed_in_all_of_its_phases():
    events = EVENTS, [event for event in EVENTS if event[0] != "first files"]  # which process 0 alone writes
    pair = [broken_runs.Reference(broken_runs.image(), pathlib.Path(), pathlib.Path(), one) for one in events]
    runs = broken_pairs.schedule(pair, 22, seed=3)
    assert runs == broken_pairs.schedule(pair, 22, seed=3) != broken_pairs.schedule(pair, 22, seed=4)
    struck = collections.Counter((number, moment.phase) for run in runs for number, moment in run)
    assert struck == {(number, phase): 2 for number in (0, 1) for phase in PHASES if (number, phase) != (1, "first files")}
    assert {len(run) for run in runs} == {1, 2}


LINE = "error: process 0 ended or cannot be reached; this one stops, too.\n"


@pytest.mark.parametrize(
    ("code", "err", "good"),
    [(1, LINE, True), (-6, LINE, True), (0, LINE, False), (0, "", False), (1, "", False), (1, LINE * 2, False), (2, "error: x\n", False)],
)
def test_the_process_that_was_not_killed_has_one_line_to_say(code, err, good, tmp_path):
    assert (broken_pairs._wrong_end(code, err, tmp_path) == "") is good


def test_processes_that_are_left_are_found(tmp_path):
    """Those in a session of their own, too."""
    environment = {**os.environ, broken_runs.RUN: str(tmp_path)}
    command, pipe = [sys.executable, "-c", "print(flush=True); input()"], subprocess.PIPE
    with subprocess.Popen(command, env=environment, start_new_session=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout and process.stdout.readline()  # its environment can be read only once it runs
        assert broken_runs.left(tmp_path, seconds=0) == [process.pid]
        assert broken_runs.left(tmp_path / "other", seconds=0) == []
    assert broken_runs.left(tmp_path) == []


KERNEL = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.mark.parametrize(
    "other",
    [
        (44, [np.nextafter(KERNEL, np.float32(9))]),
        (44, [KERNEL.T]),
        (44, [KERNEL.astype(np.float64)]),
        (44, [-KERNEL * 0]),
        (42, [KERNEL]),
        (44, [KERNEL, KERNEL]),
        None,
    ],
)
def test_states_that_differ_in_a_bit_are_not_the_same(other):
    assert broken_runs._same((44, [KERNEL]), (44, [KERNEL.copy()]))
    assert not broken_runs._same((44, [KERNEL]), other)
    assert not broken_runs._same((44, [KERNEL * 0]), (44, [-KERNEL * 0]))


def test_the_table_counts_what_was_survived():
    faults = [
        chaos.Fault("image", "SIGKILL", "save", "", str(Moment("save", 3))),
        chaos.Fault("image", "SIGKILL", "step", "other state"),
        chaos.Fault("averages", "SIGKILL", "save", ""),
        chaos.Fault("image", "disk full", "save", f"{chaos.SKIPPED}no file system may be mounted here"),
    ]
    rows = {tuple(row[:2]): row[2:] for row in chaos.table(faults)}
    assert rows == {
        ("SIGKILL", "step"): ["0 of 1", "-", "-", "0 of 1"],
        ("SIGKILL", "save"): ["1 of 1", "-", "1 of 1", "2 of 2"],
        ("all", ""): ["1 of 2", "-", "1 of 1", "2 of 3"],
    }
