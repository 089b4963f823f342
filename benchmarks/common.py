"""What the benchmarks share: the environment, interleaved timing, and the formatting of numbers and tables."""

import argparse
import functools
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

import dilax
from benchmarks import native
from dilax.errors import UserError

Timer = Callable[[int, float], float]
PAUSE_S = 0.01
TURN_S = 0.005
MIN_TURNS = 3
HOPELESS = 30
# What /proc/cpuinfo calls the instruction sets that matter to convolutions.
INSTRUCTION_SETS = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX512-BF16": "avx512_bf16", "AMX": "amx_tile"}


def environment() -> dict[str, Any]:
    """Return the device, its number of cores and its instruction sets, the versions of the software, and the date."""
    description = _cpuinfo()
    model = re.search(r"^model name\s*: *(.*\S)", description, re.MULTILINE)
    cpu = model[1] if model else platform.processor() or platform.machine()
    versions = {
        name: importlib.metadata.version(name) if importlib.util.find_spec(name) else "not installed" for name in ("jax", "jaxlib", "torch")
    }
    return {
        "device": cpu if jax.default_backend() == "cpu" else f"{jax.devices()[0].device_kind} ({cpu})",
        "cores": cores(),
        "instruction_sets": instruction_sets(description),
        "python": platform.python_version(),
        "dilax": dilax.__version__,
        **versions,
        native.PACKAGE: native.version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def cores() -> int:
    """Return the number of cores that this process may use, which is the number of threads of XLA and, in the benchmarks, of torch."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instruction_sets(cpuinfo: str) -> str:
    """Return those of `INSTRUCTION_SETS` that a processor has, or "unknown".

    Args:
        cpuinfo: The text of /proc/cpuinfo.
    """
    flags = re.search(r"^flags\s*:(.*)", cpuinfo, re.MULTILINE)
    if not flags:
        return "unknown"
    found = [name for name, flag in INSTRUCTION_SETS.items() if flag in flags[1].split()]
    return ", ".join(found) if found else f"none of {', '.join(INSTRUCTION_SETS)}"


def _cpuinfo() -> str:
    """Return the text of /proc/cpuinfo; "" where that cannot be read, as on other systems than Linux."""
    try:
        return pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def heading(env: Mapping[str, Any]) -> str:
    """Return an environment in one line."""
    names = ("dilax", "jax", "jaxlib", "torch", native.PACKAGE)
    versions = [f"{name} {env[name]}" for name in names if name in env]  # older files lack some
    sets = f", instruction sets: {env['instruction_sets']}" if "instruction_sets" in env else ""
    return f"{env['device']}, {env['cores']} cores{sets}; Python {env['python']}, {', '.join(versions)}; {env['date']}"


def without_torch() -> str:
    """Return the reason why torch is not measured, or an empty string if it is."""
    if importlib.util.find_spec("torch") is None:
        return "not installed"
    return "" if jax.default_backend() == "cpu" else "not run: compared on CPUs only"


def interleave(timers: Mapping[str, Timer], *, repeats: int, budget_s: float) -> dict[str, list[float]]:
    """Time functions in turn, in rotating order, so that a busy machine slows all of them alike.

    A turn of a function that is faster than `TURN_S` consists of untimed calls for as long as that, followed by several timed calls, of
    which the mean counts. Otherwise the time would include the pause before the turn, during which the threads of the previous function
    stop spinning, and this one's fall asleep.

    Args:
        timers: For each function, by name, what `timer` returns for it.
        repeats: Maximum number of turns of each function.
        budget_s: Seconds after which a function gets no more turns. It gets at least `MIN_TURNS`, and no more than that if it is `HOPELESS`
            times slower than the fastest one.

    Returns:
        The seconds per call of each turn, by name.
    """
    bursts = {name: min(20, math.ceil(TURN_S / max(seconds(1, 0.0), 1e-6))) for name, seconds in timers.items()}
    times: dict[str, list[float]] = {name: [] for name in timers}
    names = list(timers)
    for turn in range(max(repeats, 1)):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            own = times[name]
            fastest = min(statistics.median(seconds) for seconds in times.values() if seconds) if own else 0.0
            spent = sum(own) * bursts[name]
            if turn >= MIN_TURNS and (spent > budget_s or statistics.median(own) > HOPELESS * fastest):
                continue
            time.sleep(PAUSE_S)
            own.append(timers[name](bursts[name], TURN_S if bursts[name] > 1 else 0.0))
    return times


def timer(call: Callable[[], Any]) -> Timer:
    """Return the function that times a call, which must block until its result is ready: in its own process if it has one, or else here."""
    return getattr(call, "seconds", None) or functools.partial(seconds_per_call, call)


def seconds_per_call(call: Callable[[], Any], calls: int, warm_up_s: float) -> float:
    """Return the mean seconds of a number of calls, after untimed ones for `warm_up_s` seconds."""
    start = time.perf_counter()
    while time.perf_counter() - start < warm_up_s:
        call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def interquartile_range(times: Sequence[float]) -> float:
    """Return the interquartile range; 0 for a single value."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, method="inclusive")
    return high - low


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean; NaN if there are no values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def format_number(value: float | None, unit: str = "") -> str:
    """Return a number with three significant digits and its unit; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return "-"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"


def format_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return cells in columns; as in printf, a negative width aligns to the left."""
    return " ".join(cell.ljust(-width) if width < 0 else cell.rjust(width) for cell, width in zip(cells, widths)).rstrip()


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are right-aligned, except for the first."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def check_positive(args: argparse.Namespace, *flags: str) -> None:
    """Check that flags that were given are at least 1.

    Raises:
        UserError: if one is not.
    """
    for name in flags:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}={value} is below 1; use 1 or more.")


def named(networks: Sequence[Any], text: str) -> list[Any]:
    """Return the networks whose name contains the text that --networks gives.

    Raises:
        UserError: if there is none.
    """
    selected = [network for network in networks if text in network.name]
    if not selected:
        names = ", ".join(network.name for network in networks)
        raise UserError(f"--networks={text!r} does not occur in the name of any network; they are {names}.")
    return selected


def check_writable(path: pathlib.Path | None, *, suffixes: Sequence[str] = ()) -> None:
    """Check that an output file can be written, before minutes are spent on computing its contents.

    Raises:
        UserError: if it cannot be opened for writing, or does not end in one of `suffixes`.
    """
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise UserError(
            f"{path}: a figure cannot be written as {path.suffix or 'a file without a suffix'!r}; use one of {tuple(suffixes)}."
        )
    existed = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give a file in an existing folder.") from error
    if not existed:
        path.unlink()
