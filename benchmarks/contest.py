"""Contenders that are compared with a reference and timed in turn; one that is wrong or fails is left out, with the reason."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import common, native
from dilax.errors import one_line

# A contender whose first run takes longer is not run again: that run is its time.
SLOW_S = 30.0
SHOWN = 160


@dataclasses.dataclass(frozen=True)
class Program:
    """A contender that is ready to run.

    Attributes:
        run: Runs it, blocks until it is done, and returns all results.
        to_numpy: Converts the results to arrays in JAX's layout.
        compile_s: Seconds that it took to compile; 0 for torch.
        memory_bytes: Memory for temporaries and outputs according to XLA; None if unknown.
    """

    run: Callable[[], Any]
    to_numpy: Callable[[Any], list[np.ndarray]]
    compile_s: float = 0.0
    memory_bytes: int | None = None


class WrongResultError(Exception):
    """The result of a contender differs from the reference."""


class _FailedCallError(Exception):
    """A contender, the argument, failed while it was timed; the error is the cause."""


def compare(results: Sequence[np.ndarray], expected: Sequence[np.ndarray], *, names: Sequence[str], tolerance: float) -> None:
    """Compare results with those of a reference.

    Args:
        results: The results of a contender.
        expected: Those of the reference.
        names: What the results are called.
        tolerance: Largest allowed difference, relative to the largest value of the reference.

    Raises:
        WrongResultError: if one differs, is not a number, or has another shape.
    """
    if len(results) != len(expected):
        raise WrongResultError(f"{len(results)} results instead of {len(expected)}")
    for name, result, reference in zip(names, results, expected):
        if result.shape != reference.shape:
            raise WrongResultError(f"{name} has shape {result.shape} instead of {reference.shape}")
        if not np.isfinite(result).all():
            raise WrongResultError(f"{name} is not finite")
        difference, scale = (float(np.abs(array).max(initial=0)) for array in (result - reference, reference))
        error = difference / scale if scale else difference
        if error > tolerance:
            raise WrongResultError(
                f"{name} differs from the float64 reference by {error:.1e} of its largest value; {tolerance:.0e} is allowed"
            )


def qualify(make: Mapping[str, Callable[[], Any]], verify: Callable[[str, Any], None]) -> tuple[dict[str, Any], dict[str, str]]:
    """Make all contenders, and leave out those that fail or are wrong.

    Args:
        make: Functions that make the contenders, by name.
        verify: Function of a name and its contender that runs it and raises `WrongResultError` if its results are wrong.

    Returns:
        The contenders, and the reason why each of the others is left out, which starts with "wrong" or "failed".
    """
    contenders, left_out = {}, {}
    for name, function in make.items():
        try:
            contender = function()
            verify(name, contender)
            contenders[name] = contender
        except Exception as error:
            left_out[name] = reason(error)
    return contenders, left_out


def reason(error: BaseException) -> str:
    """Return why a contender is left out, in one line."""
    if isinstance(error, WrongResultError):
        return f"wrong: {error}"
    text = one_line(str(error))
    return f"failed: {type(error).__name__}{f': {text}' if text else ''}"[:SHOWN]


def time_in_turn(calls: Mapping[str, Callable[[], Any]], *, repeats: int, budget_s: float) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time functions as `common.interleave` does; if one of them fails, leave it out and time the others anew.

    Returns:
        The seconds per call of each turn, by name, and the reasons why the others are left out.
    """
    left_out: dict[str, str] = {}
    guarded = {name: _guard(name, common.timer(call)) for name, call in calls.items()}
    while guarded:
        try:
            return common.interleave(guarded, repeats=repeats, budget_s=budget_s), left_out
        except _FailedCallError as error:
            name = str(error)
            left_out[name] = reason(error.__cause__ or error)
            del guarded[name]
    return {}, left_out


def _guard(name: str, timer: common.Timer) -> common.Timer:
    def guarded(calls: int, warm_up_s: float) -> float:
        try:
            return timer(calls, warm_up_s)
        except Exception as error:
            raise _FailedCallError(name) from error

    return guarded


def hold(
    make: Mapping[str, Callable[[], Program]],
    expected: Sequence[np.ndarray],
    *,
    names: Sequence[str],
    tolerance: float,
    repeats: int,
    budget_s: float,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Compare programs with a reference before and after they are timed in turn.

    Args:
        make: Functions that make the programs, by name.
        expected: The results of the reference.
        names: See `compare`.
        tolerance: See `compare`.
        repeats: See `common.interleave`.
        budget_s: See `common.interleave`.

    Returns:
        The measurements of each program, and the reasons why the others are left out.
    """
    first: dict[str, float] = {}

    def verify(name: str, program: Program) -> None:
        start = time.perf_counter()
        results = program.run()
        first.setdefault(name, time.perf_counter() - start)
        compare(program.to_numpy(results), expected, names=names, tolerance=tolerance)

    programs, left_out = qualify(make, verify)
    slow = {name: [first[name]] for name in programs if first[name] > SLOW_S}
    quick = {name: program for name, program in programs.items() if name not in slow}
    times, failed = time_in_turn({name: program.run for name, program in quick.items()}, repeats=repeats, budget_s=budget_s)
    # Once more, since threads that race give a wrong result only now and then.
    _, wrong = qualify({name: lambda name=name: quick[name] for name in times}, verify)
    seconds = {name: own for name, own in {**slow, **times}.items() if name not in wrong}
    measured = {name: measurement(seconds[name], programs[name]) for name in programs if name in seconds}
    return measured, {**left_out, **failed, **wrong}


def measurement(seconds: Sequence[float], program: Program) -> dict[str, Any]:
    """Return the median of the turns, their spread and their number, and what is known of the program."""
    return {
        "ms": 1e3 * statistics.median(seconds),
        "spread_ms": 1e3 * common.interquartile_range(seconds),
        "turns": len(seconds),
        "compile_s": program.compile_s,
        "program_bytes": program.memory_bytes,
    }


def cell(name: str, measured: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, str], *, absent: str = "-") -> str:
    """Return the median of a contender in ms for a table; "wrong" or "failed" if it was left out, `absent` if it was not run."""
    if name in measured:
        return common.format_number(measured[name]["ms"])
    return left_out[name].partition(":")[0] if name in left_out else absent


def ratio(measured: Mapping[str, Mapping[str, Any]], name: str | None, other: str | None) -> float | None:
    """Return the time of a contender divided by that of another one; None if either is missing."""
    first, second = (measured[each]["ms"] if each in measured else None for each in (name or "", other or ""))
    return first / second if first is not None and second is not None else None


def fastest(measured: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> str | None:
    """Return the fastest of the named contenders; None if none of them was measured."""
    return min((name for name in names if name in measured), key=lambda name: measured[name]["ms"], default=None)


def print_heading(env: Mapping[str, Any]) -> None:
    """Print what is measured, and where."""
    print(common.heading(env))
    print(f"medians in ms; torch with {env['cores']} threads{f' ({why})' if (why := common.without_torch()) else ''}")
    print(f"{native.note()}\n")


def print_left_out(left_out: Mapping[str, str]) -> None:
    """Print a line for each contender that is left out of a case."""
    for name, why in left_out.items():
        print(f"    left out: {name}, {why}", flush=True)


def print_end(left_out: Iterable[Mapping[str, str]]) -> int:
    """Print, as the last line, how many contenders were left out of all cases, and return the exit code: 1 if there are any."""
    number = sum(map(len, left_out))
    start = {0: "no contender was", 1: "1 contender was"}.get(number, f"{number} contenders were")
    print(f"\n{start} left out as wrong or failing" + "; the lines above say why" * bool(number))
    return min(number, 1)
