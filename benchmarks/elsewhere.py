"""A process for torch, so that it and JAX are timed as their users have them: alone in a process.

In the same process, torch and the native part share a library of OpenMP. Once this has more threads than there are cores, they no longer
wait for work but sleep, and each call has to wake them, which made both 1.5 to 2.5 times as slow on 2 cores.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.contest import Program
from train import runtime

_KEYS = itertools.count()
# What was made, in the other process.
_MADE: dict[int, Any] = {}


class Call:
    """A function without arguments in the other process."""

    def __init__(self, make: Callable[..., Any], *arguments: Any, **options: Any):
        """Make the function there, as what `make` returns for the arguments, which are pickled like the results."""
        self.key = next(_KEYS)
        ask(_make, self.key, make, arguments, options)
        weakref.finalize(self, _release, self.key).atexit = False

    def __call__(self) -> Any:
        """Call the function and return its result."""
        return ask(_call, self.key)

    def seconds(self, calls: int, warm_up_s: float) -> float:
        """Time the function there; see `common.seconds_per_call`."""
        return ask(_seconds, self.key, calls, warm_up_s)


def program(make: Callable[..., Program], *arguments: Any) -> Program:
    """Return a program of the other process, as what `make` returns there for the arguments."""
    call = Call(_runner, make, arguments)
    return Program(call, lambda _: ask(_arrays, call.key))


def maker(make: Callable[..., Program], *arguments: Any, apart: bool) -> Callable[[], Program]:
    """Return a function that makes a program of the arguments: in the other process if `apart`, or else here."""
    return functools.partial(program, make, *arguments) if apart else functools.partial(make, *arguments)


def ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in the other process, which is started if there is none, and return its result or raise its error."""
    try:
        return _process().submit(function, *arguments).result()
    except BrokenProcessPool as error:
        _process.cache_clear()
        raise RuntimeError("the process of torch died") from error


def _release(key: int) -> None:
    with contextlib.suppress(RuntimeError):  # a process that died holds nothing
        _process().submit(_forget, key)


@functools.cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start)


def _start() -> None:
    runtime.keep_freed_memory()
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End this process when the one that started it ends, also if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


class _Runner:
    """Runs a program and keeps the results where they are."""

    def __init__(self, program: Program):
        self.program, self.results = program, None

    def __call__(self) -> None:
        self.results = self.program.run()


def _runner(make: Callable[..., Program], arguments: tuple[Any, ...]) -> _Runner:
    return _Runner(make(*arguments))


def _make(key: int, make: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    _MADE[key] = make(*arguments, **options)


def _forget(key: int) -> None:
    _MADE.pop(key, None)


def _call(key: int) -> Any:
    return _MADE[key]()


def _arrays(key: int) -> list[np.ndarray]:
    runner = _MADE[key]
    return runner.program.to_numpy(runner.results)


def _seconds(key: int, calls: int, warm_up_s: float) -> float:
    return common.seconds_per_call(_MADE[key], calls, warm_up_s)
