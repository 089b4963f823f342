"""The process that the benchmarks give torch: results, times, errors, and its death. torch, which need not be installed, is played by JAX."""

import functools
import math
import operator
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import common, contest, elsewhere, programs, reference
from benchmarks.cases import CASES

ROOT = pathlib.Path(__file__).parents[1]
CASE = min(CASES, key=lambda case: math.prod(case.plan().x_shape))


def test_a_program_elsewhere_computes_the_same_and_times_itself():
    made = {name: functools.partial(elsewhere.program, programs.program, CASE, "gradients", name) for name in ("lax", "auto")}
    expected = reference.convolution(CASE, "gradients")
    results, left_out = contest.hold(made, expected, names=("y", "dx", "dkernel"), tolerance=1e-4, repeats=2, budget_s=1.0)
    assert left_out == {} and all(0 < result["ms"] < 1e4 for result in results.values())


def test_its_results_are_those_of_its_last_run():
    call = elsewhere.Call(operator.attrgetter("__next__"), iter([5, 6]))
    assert (call(), call()) == (5, 6)
    assert elsewhere.ask(os.getpid) != os.getpid()


def test_time_is_taken_there():
    seconds = common.timer(elsewhere.Call(functools.partial, time.sleep, 0.01))
    assert 0.01 <= seconds(2, 0.0) < 0.1
    start = time.perf_counter()
    seconds(1, 0.2)
    assert time.perf_counter() - start > 0.2


def test_errors_come_back_and_the_process_lives_on():
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        elsewhere.Call(operator.truediv, 1, 0)
    fails = elsewhere.Call(functools.partial, operator.truediv, 1, 0)
    for use in (fails, lambda: fails.seconds(1, 0.0)):
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            use()


def test_a_process_that_died_is_reported_and_replaced():
    with pytest.raises(RuntimeError, match=r"^the process of torch died$"):
        elsewhere.Call(functools.partial, os._exit, 3)()
    np.testing.assert_array_equal(elsewhere.Call(functools.partial, np.arange, 3)(), [0, 1, 2])


def test_what_is_no_longer_used_is_released():
    call = elsewhere.Call(functools.partial, int)
    before = elsewhere.ask(_made)
    del call
    assert elsewhere.ask(_made) == before - 1


def test_it_ends_with_the_process_that_started_it():
    code = "import os; from benchmarks import elsewhere; print(elsewhere.ask(os.getpid), flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    end = time.monotonic() + 30
    while pathlib.Path("/proc", killed.stdout.strip()).exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def _made() -> int:
    return len(elsewhere._MADE)
