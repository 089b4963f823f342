"""The peak memory of one contender of a benchmark, measured in a separate process."""

import json
import os
import pathlib
import pkgutil
import subprocess
import sys
import time


def peak_bytes(make: str, *arguments: str) -> int | None:
    """Return the memory that one run of a program uses beyond its inputs, measured in a separate process.

    Args:
        make: Function that makes the program, as "module:name".
        arguments: Its arguments.

    Returns:
        Bytes, with those that libraries of their own allocate; None where Linux does not report them.

    Raises:
        RuntimeError: if the process fails.
    """
    code = "import sys; from benchmarks import memory; memory.print_peak(*sys.argv[1:])"
    # Large blocks are returned to the system when they are freed, so that reuse does not hide them.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, "-c", code, make, *arguments]
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise RuntimeError(f"the process that measures memory failed: {last[0]}")
    return json.loads(process.stdout)


def print_peak(make: str, *arguments: str) -> None:
    """Run a program once and print by how many bytes the peak resident memory of the process exceeds its memory before the run.

    `ru_maxrss` would start from the memory of the parent process and include that of the compiler. The peak is therefore read from /proc,
    where it can be reset after the compilation.
    """
    compiled = pkgutil.resolve_name(make)(*arguments)
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
