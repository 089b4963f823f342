"""What the benchmarks share: what ran, timing in turn, and numbers as text."""

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
from dilax.errors import UserError

PAUSE_S = 0.01
TURN_S = 0.005
FEWEST = 3
HOPELESS = 30


def environment() -> dict[str, Any]:
    """Return what runs: the device, its cores, the versions and the day."""
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if (cpuinfo := pathlib.Path("/proc/cpuinfo")).exists() else None
    cpu = found[1].strip() if found else platform.processor() or platform.machine()
    versions = {
        name: importlib.metadata.version(name) if importlib.util.find_spec(name) else "not installed" for name in ("jax", "jaxlib", "torch")
    }
    return {
        "device": cpu if jax.default_backend() == "cpu" else f"{jax.devices()[0].device_kind} ({cpu})",
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "dilax": dilax.__version__,
        **versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def heading(found: Mapping[str, Any]) -> str:
    """Return an environment in one line."""
    versions = [f"{name} {found[name]}" for name in ("dilax", "jax", "jaxlib", "torch")]
    return f"{found['device']}, {found['cores']} cores; Python {found['python']}, {', '.join(versions)}; {found['date']}"


def without_torch() -> str:
    """Return why torch is not measured, or an empty string."""
    if importlib.util.find_spec("torch") is None:
        return "not installed"
    return "" if jax.default_backend() == "cpu" else "not run: compared on CPUs alone"


def in_turn(calls: Mapping[str, Callable[[], Any]], *, repeats: int, budget_s: float) -> dict[str, list[float]]:
    """Time warm functions in turn, in an order that rotates, so that a busy machine slows all of them.

    A turn of a function that is quicker than `TURN_S` is one call that is not timed and then several in a row, of which the mean counts:
    the pause before the turn, in which the threads of the one before stop spinning, would otherwise be in its time.

    Args:
        calls: What to time, by name; each call waits for its result.
        repeats: Turns of each at most.
        budget_s: Seconds after which a function has no more turns. It has `FEWEST` in any case, and no more than that if it is `HOPELESS`
            times slower than the quickest.

    Returns:
        Seconds per call of each turn, by name.
    """
    bursts = {name: min(20, math.ceil(TURN_S / max(_seconds(call, 1), 1e-6))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(max(repeats, 1)):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            mine = times[name]
            quickest = min(statistics.median(other) for other in times.values() if other) if mine else 0.0
            spent = sum(mine) * bursts[name]
            if turn >= FEWEST and (spent > budget_s or statistics.median(mine) > HOPELESS * quickest):
                continue
            time.sleep(PAUSE_S)
            if bursts[name] > 1:
                calls[name]()
            mine.append(_seconds(calls[name], bursts[name]))
    return times


def spread(times: Sequence[float]) -> float:
    """Return the distance between the quartiles; 0 of a single time."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, method="inclusive")
    return high - low


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def number(value: float | None, unit: str = "") -> str:
    """Return three digits of a number and its unit, or a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return cells in columns: a negative width is aligned to the left, as in printf."""
    return " ".join(cell.ljust(-width) if width < 0 else cell.rjust(width) for cell, width in zip(cells, widths)).rstrip()


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def check_writable(path: pathlib.Path | None, endings: Sequence[str] = ()) -> None:
    """Refuse a file that cannot be written, before minutes are spent on what it shall hold.

    Raises:
        UserError: if it cannot be opened, or ends in none of `endings`.
    """
    if path is None:
        return
    if endings and path.suffix not in endings:
        raise UserError(
            f"{path}: a picture cannot be written as {path.suffix or 'a file without an ending'!r}; use one of {tuple(endings)}."
        )
    existed = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{path}: it cannot be written ({error.strerror}); give a file in a folder that exists.") from error
    if not existed:
        path.unlink()


def _seconds(call: Callable[[], Any], calls: int) -> float:
    """Return the mean seconds of a call."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls
