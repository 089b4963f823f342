"""The peak memory of one contender of `benchmarks.ops`, measured in a separate process."""

import json
import os
import pathlib
import subprocess
import sys
import time

from benchmarks.cases import CASES, Case
from benchmarks.programs import program


def peak_bytes(case: Case, measure: str, contender: str) -> int | None:
    """Return the memory that one run uses beyond its inputs, measured in a separate process; None where Linux does not report it."""
    code = "import sys; from benchmarks import memory; memory.print_peak(*sys.argv[1:])"
    command = [sys.executable, "-c", code, case.name, measure, contender]
    # Large blocks are returned to the system when they are freed, so that reuse does not hide them.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    root = pathlib.Path(__file__).parents[1]
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(
            f"{case.name}, {measure}, {contender}: the process that measures memory failed: {process.stderr.strip().splitlines()[-1:]}"
        )
    return json.loads(process.stdout)


def print_peak(name: str, measure: str, contender: str) -> None:
    """Run a contender once and print by how many bytes the peak resident memory of the process exceeds its memory before the run.

    `ru_maxrss` would start from the memory of the parent process and include that of the compiler. The peak is therefore read from /proc,
    where it can be reset after the compilation.
    """
    case = next(case for case in CASES if case.name == name)
    compiled = program(case, measure, contender)
    status, reset = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
    if not reset.exists():
        print("null")
        return
    compiled.run()  # excludes the threads and libraries that are set up once
    time.sleep(0.1)  # until the last thread releases the results
    reset.write_text("5")
    before = _kilobytes(status, "VmRSS")
    compiled.run()
    print(1024 * max(_kilobytes(status, "VmHWM") - before, 0))


def _kilobytes(status: pathlib.Path, field: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
