"""Several processes of one run, on one host or many: they join, agree, and end together; process 0 speaks and writes for all."""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

import jax
import numpy as np

from dilax.errors import UserError
from train import aborts

HEARTBEAT = 20  # seconds without a sign of life after which a process counts as ended
JOIN = 300  # seconds that the processes may need to start
SHARED = 10.0  # seconds after which a file of process 0 must be seen by all, as caches of network file systems allow
FLAGS = ("coordinator", "num_processes", "process_id")
# Errors in reading a file that say nothing about it.
NOT_DAMAGE = (UserError, MemoryError, PermissionError, jax.errors.JaxRuntimeError)
T = TypeVar("T")
_CODE = re.compile(r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|UNAVAILABLE|UNKNOWN): ")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


class SaidByFirstError(UserError):
    """A mistake that process 0 has found, and reports."""


def add_flags(to: argparse.ArgumentParser) -> None:
    """Add --coordinator, --num_processes and --process_id."""
    group = to.add_argument_group("several processes", "Slurm tasks and TPU pods need none of these; elsewhere give all to every process.")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, with a free port")
    group.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0 to N - 1")


def join(args: argparse.Namespace) -> None:
    """Join the other processes of the run, if there are any; to be called before anything asks JAX for its devices.

    From then on the other processes than 0 print nothing but their errors.

    Raises:
        UserError: if the flags do not fit together.
    """
    given = given_processes(args)
    if given is None and not (_is_slurm_step() or _may_be_pod()):
        return
    if given is not None and given["num_processes"] == 1:
        return
    _explain_aborts()
    # It would take SIGTERM away from this process, and tell orbax alone.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**(given or {}), heartbeat_timeout_seconds=HEARTBEAT, initialization_timeout=JOIN)
    except ValueError:
        if given is not None or _is_slurm_step():
            raise
        return  # JAX has not found a pod here
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.stderr = sys.stdout


def given_processes(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return what the flags say to `jax.distributed.initialize`, or None if none is given.

    Raises:
        UserError: if some are missing or wrong.
    """
    values = {name: getattr(args, name) for name in FLAGS}
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if len(missing) == len(FLAGS):
        return None
    if missing:
        raise UserError(f"--coordinator, --num_processes and --process_id belong together; give {' and '.join(missing)}, too.")
    address, count, number = values.values()
    port = re.fullmatch(r"(?:[^\s:]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", address)
    if port is None or not 0 < int(port[1]) < 2**16:
        raise UserError(f"--coordinator={address} is not HOST:PORT; give the address of process 0 with a free port, such as 10.0.0.1:9876.")
    if count < 1:
        raise UserError(f"--num_processes={count} is not a number of processes; give 1 or more.")
    if not 0 <= number < count:
        raise UserError(f"--process_id={number} is not one of --num_processes={count}; give 0 to {count - 1}.")
    return {"coordinator_address": address, "num_processes": count, "process_id": number}


def _is_slurm_step() -> bool:
    """Return whether srun has started this process as one of several."""
    if not all(name in os.environ for name in _SLURM):
        return False
    # In the shell of an allocation the job has several tasks, and the step one.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ["SLURM_NTASKS"])) > 1


def _may_be_pod() -> bool:
    """Return whether JAX should look for other hosts of a TPU: where its library is installed."""
    return importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in os.environ


def _explain_aborts() -> None:
    """Have another process read what C++ writes to standard output and error; Python goes on to write to where it did."""
    out, err = os.dup(1), os.dup(2)
    reader = subprocess.Popen([sys.executable, "-I", aborts.__file__], stdin=subprocess.PIPE, stdout=err, start_new_session=True)
    assert reader.stdin is not None
    for descriptor in (1, 2):
        os.dup2(reader.stdin.fileno(), descriptor)
    reader.stdin.close()
    sys.stdout = open(out, "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(err, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")  # noqa: SIM115


def several() -> bool:
    """Return whether the run has several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Return whether this process speaks and writes for all."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def by_first(decide: Callable[[], Any]) -> Any:
    """Return what `decide` returns in process 0, which alone calls it; JSON must be able to hold it.

    Raises:
        UserError: in the others, if any error is raised there.
    """
    if not several():
        return decide()
    outcome, error = {}, None
    if first():
        try:
            outcome = {"value": decide()}
        except Exception as raised:  # raised below, when the others know of it
            outcome, error = {"error": str(raised)}, raised
    outcome = _from_first(outcome)
    if error is not None:
        raise error
    if "error" in outcome:
        raise SaidByFirstError(outcome["error"])
    return outcome["value"]


def enter_by_first(stack: contextlib.ExitStack, context: contextlib.AbstractContextManager[Any]) -> None:
    """Enter a context in process 0 alone."""

    def enter() -> None:
        stack.enter_context(context)

    by_first(enter)


def _from_first(value: Any) -> Any:
    from jax.experimental.multihost_utils import broadcast_one_to_all

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(text))))
    sent = text if first() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(broadcast_one_to_all(sent), np.uint8).tobytes())


def greatest(value: int) -> int:
    """Return the greatest of the values that the processes give."""
    return value if not several() else int(max(_of_all(value)))


def _of_all(value: int) -> list[int]:
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.int32(value))).ravel().tolist()


def together(act: Callable[[], T]) -> T:
    """Return what `act` returns, which every process calls; if it fails in one of them, it fails in all.

    Raises:
        UserError: if it has failed in another process by an error of `NOT_DAMAGE`.
        OSError: if it has failed in another process alone, by any other error.
    """
    if not several():
        return act()
    result: Any = None
    failed: Exception | None = None
    try:
        result = act()
    except Exception as error:  # raised below, when the others know of it
        failed = error
    codes = _of_all(0 if failed is None else 2 if isinstance(failed, NOT_DAMAGE) else 1)
    lacking, damaged = (_listed([number for number, other in enumerate(codes) if other == code]) for code in (2, 1))
    if failed is not None and (isinstance(failed, NOT_DAMAGE) or not lacking):
        raise failed
    if lacking:
        raise (UserError if first() else SaidByFirstError)(f"{lacking} ended in an error of another kind, which it reports.") from failed
    if damaged:
        raise OSError(f"{damaged} could not read it")
    return result


def check_all(good: bool, wrong: Callable[[str], str]) -> None:
    """Raise UserError in every process unless all say `good`; `wrong` words it, given the processes that do not."""
    if not several():
        return
    if bad := _bad(good):
        raise (UserError if first() else SaidByFirstError)(wrong(bad))


def _bad(good: bool) -> str:
    """Return which processes do not say `good`, such as "processes 1, 3", or ""."""
    return _listed([number for number, other in enumerate(_of_all(int(good))) if not other])


def _listed(numbers: list[int]) -> str:
    return f"process{'es' * (len(numbers) > 1)} {', '.join(map(str, numbers))}" if numbers else ""


def check_shared(workdir: pathlib.Path, name: str) -> None:
    """Refuse processes that do not see one and the same folder.

    Args:
        workdir: The folder of the run, as each process names it.
        name: A file in it that process 0 has written for this run.

    Raises:
        UserError: in every process.
    """
    if not several():
        return
    text = by_first(lambda: (workdir / name).read_text())
    end = time.monotonic() + SHARED
    while not (seen := (workdir / name).exists() and (workdir / name).read_text() == text) and time.monotonic() < end:
        time.sleep(0.1)
    check_all(
        seen, lambda who: f"--workdir={workdir} is another folder for {who} than for process 0; give one on a file system that all share."
    )


def leave() -> None:
    """Wait until all processes have done their work."""
    if several():
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices("end")


def errors() -> IO[str]:
    """Return where this process writes its errors."""
    return sys.stderr if first() else sys.__stderr__ or sys.stderr


def is_of_another(error: BaseException) -> bool:
    """Return whether an error may come from the end of another process, with which an operation has failed.

    The runtime's errors begin with a code; some of them come as an error of Python.
    """
    return several() and (isinstance(error, jax.errors.JaxRuntimeError) or bool(_CODE.match(str(error))))


def await_abort() -> None:
    """Give the runtime time to find out which process has ended; it then aborts this one."""
    time.sleep(2 * HEARTBEAT)
