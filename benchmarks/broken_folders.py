"""Damage to the folder of a tiny run, to its disk, and to those beside it; see `benchmarks.chaos`."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

import dilax
from benchmarks.broken_runs import Reference, completed, differences, finished, left, resume, start
from benchmarks.faults import Moment
from dilax.errors import UserError

SKIPPED = "skipped: "  # begins what is said of a fault that cannot be injected here


def cut(path: pathlib.Path) -> None:
    """Leave the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path: pathlib.Path) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def empty(path: pathlib.Path) -> None:
    """Leave nothing in a file."""
    path.write_bytes(b"")


DAMAGES = {"truncated": cut, "bit flipped": flip, "emptied": empty, "deleted": pathlib.Path.unlink}


def stopped(reference: Reference, workdir: pathlib.Path) -> pathlib.Path:
    """Return the folder of a run that was stopped between two checkpoints, and has best parameters."""
    code, out, err = finished(start(Moment("step", _nth_step(reference, 13), number=signal.SIGTERM), reference.file, workdir))
    if code != 128 + signal.SIGTERM:
        raise RuntimeError(f"a run that was to be stopped ended with exit code {code}: {out}{err}")
    return workdir


def _nth_step(reference: Reference, step: int) -> int:
    """Return which event of the phase "step" the beginning of a step is."""
    events = [event for phase, _, event in reference.events if phase == "step"]
    return [i for i, event in enumerate(events) if event == "dilax.step"][step - 1]


def files_of(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Return the files of a folder that hold anything, relative to it."""
    return sorted(path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file() and path.stat().st_size)


def damaged(reference: Reference, workdir: pathlib.Path, file: pathlib.Path, how: str, scratch: pathlib.Path) -> tuple[str, str]:
    """Damage a file of a copy of the folder of a stopped run, and resume it.

    Returns:
        What happened, and what went wrong, or "": the run may equal the unbroken one, refuse to go on in one line, or say that it lost
        something other than its state.
    """
    copy = pathlib.Path(shutil.copytree(workdir, scratch / "damaged"))
    try:
        DAMAGES[how](copy / file)
        code, said = resume(reference.config, copy)
        if code is None:
            return "refused", "" if "\n" not in said else f"more than one line: {said}"
        if code or f"resuming {copy} at step " not in said:
            return "lost", f"exit code {code}: {said}"
        found = [line for line in differences(copy, reference.workdir) if not line.startswith(("files:", "report:"))]
        if not found:
            return "bit-equal", ""
        if "warning: " in said and not found[0].startswith("step and state"):
            return "said", ""
        return "lost", f"{'; '.join(found)}; it said {said!r}"
    finally:
        shutil.rmtree(copy)


def damaged_and_read(workdir: pathlib.Path, file: pathlib.Path, how: str, scratch: pathlib.Path) -> tuple[str, str]:
    """Damage a file of a copy of the folder of a finished run, and load its model; return what happened and what went wrong, or ""."""
    expected = dilax.load(workdir)
    copy = pathlib.Path(shutil.copytree(workdir, scratch / "damaged"))
    try:
        DAMAGES[how](copy / file)
        found = dilax.load(copy)
        same = [(name, getattr(found, name) == getattr(expected, name)) for name in ("model", "spec", "task", "pool", "image_size")]
        jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
        return ("bit-equal", "") if all(equal for _, equal in same) else ("lost", f"other {[name for name, equal in same if not equal]}")
    except UserError as error:
        return "refused", "" if "\n" not in str(error) else f"more than one line: {error}"
    except AssertionError as error:
        return "lost", str(error)
    finally:
        shutil.rmtree(copy)


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[Callable[[str], bool]]:
    """Mount a small file system on a folder; give a function that mounts it again with other options, and says whether it could."""

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "dilax-chaos", str(folder)]
        return shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0

    folder.mkdir(parents=True)
    mounted = mount("size=16m")
    try:
        yield mount if mounted else lambda options: False
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def paused(reference: Reference, workdir: pathlib.Path, phase: str, count: int) -> Iterator[subprocess.Popen]:
    """Start a run, and give it while it is halted at a moment."""
    process = start(Moment(phase, count, number=signal.SIGSTOP), reference.file, workdir)
    state = pathlib.Path(f"/proc/{process.pid}/stat")
    end = time.monotonic() + 120
    try:
        while state.read_text().rpartition(")")[2].split()[0] != "T":
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the run did not come to event {count} of the phase {phase}: {process.communicate()}")
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            finished(process)


def _one_line(process: subprocess.Popen, code: int = 2) -> str:
    """Wait for a process, which is to end with one line; return what is wrong with its end."""
    ended, out, err = finished(process)
    return "" if (ended, err.count("\n")) == (code, 1) and err.startswith("error: ") else f"exit code {ended}: {out}{err}"


def full_disk(reference: Reference, scratch: pathlib.Path, phase: str = "save", count: int = 20) -> str:
    """Fill the disk of a run at a moment, free it when the run has ended, and resume the run."""
    with small_disk(scratch / "disk") as mount:
        if not mount("remount,size=16m"):
            return f"{SKIPPED}no file system may be mounted here"
        workdir, filler = scratch / "disk" / "run", scratch / "disk" / "filler"
        with paused(reference, workdir, phase, count) as process:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            process.send_signal(signal.SIGCONT)
            wrong = _one_line(process)
        filler.unlink()
        return wrong or completed(reference, workdir)


def quota(reference: Reference, scratch: pathlib.Path, phase: str = "save", count: int = 20) -> str:
    """Let a run write no file beyond a size from a moment on, and resume it without that limit."""
    workdir = scratch / "quota"
    with paused(reference, workdir, phase, count) as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        process.send_signal(signal.SIGCONT)
        wrong = _one_line(process)
    return wrong or completed(reference, workdir)


def read_only(reference: Reference, stopped_run: pathlib.Path, scratch: pathlib.Path) -> str:
    """Resume a run on a disk that cannot be written, which has to be refused; its model can be read meanwhile."""
    with small_disk(scratch / "fixed") as mount:
        workdir = pathlib.Path(shutil.copytree(stopped_run, scratch / "fixed" / "run"))
        if not mount("remount,ro"):
            return f"{SKIPPED}no file system may be mounted here"
        dilax.load(workdir)
        wrong = _one_line(start(Moment("step", -1), reference.file, workdir))
        mount("remount,rw")
        return wrong or completed(reference, workdir)


def unwritable_cache(reference: Reference, scratch: pathlib.Path) -> str:
    """Train with a folder of compiled programs that cannot be made."""
    (scratch / "file").write_text("")
    process = start(Moment("step", -1), reference.file, scratch / "uncached", JAX_COMPILATION_CACHE_DIR=str(scratch / "file" / "cache"))
    code, out, err = finished(process)
    return f"exit code {code}: {out}{err}" if code else completed(reference, scratch / "uncached")


def terminated(reference: Reference, moment: Moment, workdir: pathlib.Path) -> str:
    """End a run by SIGTERM at a moment; no process may be left, and the run has to go on."""
    process = start(moment, reference.file, workdir)
    code, out, err = finished(process)
    if code not in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return f"exit code {code}: {out}{err}"
    if remaining := left(workdir):
        return f"processes {remaining} are left"
    return completed(reference, workdir)


def two_runs(reference: Reference, workdir: pathlib.Path) -> str:
    """Start a second run in the folder of one, which is to be refused by the number and the host of the first."""
    with paused(reference, workdir, "step", _nth_step(reference, 7)) as process:
        code, said = resume(reference.config, workdir)
        if code is not None or f"pid {process.pid} on {os.uname().nodename}" not in said:
            return f"exit code {code}: {said}"
        process.send_signal(signal.SIGCONT)
        code, out, err = finished(process)
    return f"exit code {code}: {out}{err}" if code else completed(reference, workdir)


def reader(file: pathlib.Path, workdir: pathlib.Path) -> tuple[int, str]:
    """Load the model of a run again and again while it is trained; return how often that was possible, and what went wrong, or ""."""
    process, loads, wrong = start(Moment("step", -1), file, workdir), 0, ""
    early = ("does not hold a run", "it has no best/", "does not hold a checkpoint yet", "not evaluated yet")
    try:
        while process.poll() is None and not wrong:
            try:
                dilax.load(workdir)
                loads += 1
            except UserError as error:
                wrong = "" if any(words in str(error) for words in early) else str(error)
    finally:
        code, out, err = finished(process)
    return loads, wrong or (f"exit code {code}: {out}{err}" if code else "")
