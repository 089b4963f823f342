"""Run `train.main` and end it by a signal at a chosen moment: the process that `benchmarks.chaos` starts.

python -m benchmarks.faults '{"phase": "save", "count": 7}' --config FILE --workdir FOLDER

A moment is an event of the interpreter (see `sys.addaudithook`): a file of the run that is opened for writing, renamed or removed, a folder
that is made, a module that is imported, and the beginning of a step, an evaluation, a save or the report, which are marked here. So moments
follow the progress of a run, however busy the machine is, and nothing in `train` knows of them.
"""

import atexit
import dataclasses
import functools
import json
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PHASES: tuple[str, ...] = ("start-up", "first files", "step", "evaluation", "save", "report")
STEP, SCORE, SCORED, FINISH, SAVE = "dilax.step", "dilax.score", "dilax.scored", "dilax.finish", "dilax.save"
JOIN = 40  # seconds that a process waits for another to join, which may have been killed before: not for minutes, as in real runs
_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment of a run, and the signal that the process gets there.

    Attributes:
        phase: One of `PHASES`.
        count: Which event of that phase, from 0 on; the signal comes before what the event announces.
        delay: Seconds after the event.
        number: Number of the signal.
    """

    phase: str
    count: int
    delay: float = 0.0
    number: int = int(signal.SIGKILL)


class Watch:
    """An audit hook that knows the phase of a run, records its events, and sends this process a signal at a moment."""

    def __init__(self, workdir: pathlib.Path, moment: Moment | None):
        """Begin in the start-up."""
        self.events: list[tuple[str, float, str]] = []
        self._counts = dict.fromkeys(PHASES, 0)
        self._workdir, self._moment, self._phase, self._began = f"{workdir}{os.sep}", moment, PHASES[0], time.monotonic()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Take note of an event, before it happens."""
        phase = self._phase_of(event, args)
        if phase is None:
            return
        count = self._counts[phase]
        self._counts[phase] += 1
        self.events.append((phase, time.monotonic() - self._began, event))
        moment = self._moment
        if moment is not None and (phase, count) == (moment.phase, moment.count):
            strike = functools.partial(os.kill, os.getpid(), moment.number)
            if moment.delay:
                timer = threading.Timer(moment.delay, strike)
                timer.daemon = True
                timer.start()
            else:
                strike()

    def _phase_of(self, event: str, args: tuple[Any, ...]) -> str | None:
        """Return the phase that an event belongs to, and keep in mind what the event begins; None if it is of no interest."""
        if event in _MARKS:
            self._phase = _MARKS[event] if self._phase != "report" else self._phase
            return self._phase
        if event == SAVE:  # it runs beside whatever follows it; before the first step, the folder is tried by one
            return "save" if self._phase in ("step", "evaluation") else self._phase
        if self._phase == "start-up" and event in ("import", "open"):
            named = event == "open" and str(args[0]) == f"{self._workdir}run.json.part"
            self._phase = "first files" if named else self._phase
            return self._phase
        path = os.fspath(args[0]) if event in _CHANGES or _writes(event, args) else ""
        if not isinstance(path, str) or not path.startswith(self._workdir):
            return None
        if self._phase in ("start-up", "first files", "report"):
            return self._phase
        return {"checkpoints": "save", "best": "evaluation"}.get(path.removeprefix(self._workdir).partition(os.sep)[0], self._phase)


# The phase that each mark begins.
_MARKS = {STEP: "step", SCORE: "evaluation", SCORED: "step", FINISH: "report"}


def _writes(event: str, args: tuple[Any, ...]) -> bool:
    return event == "open" and isinstance(args[0], str) and isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR))


def _marked(call: Callable[..., Any], before: str, after: str = "") -> Callable[..., Any]:
    """Return a function that marks its calls as events."""

    @functools.wraps(call)
    def marking(*args: Any, **kwargs: Any) -> Any:
        sys.audit(before)
        result = call(*args, **kwargs)
        if after:
            sys.audit(after)
        return result

    return marking


def _each_marked(batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Return a function whose batches are marked as events."""

    @functools.wraps(batches)
    def marking(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in batches(*args, **kwargs):
            sys.audit(STEP)
            yield batch

    return marking


def main() -> None:
    """Run `train.main` with all arguments but the first: a moment in JSON, or a file to record the events of all phases in."""
    given, sys.argv = sys.argv[1], ["train.main", *sys.argv[2:]]
    workdir = pathlib.Path(next(word for word in sys.argv if word.startswith("--workdir=")).removeprefix("--workdir="))
    watch = Watch(workdir, Moment(**json.loads(given)) if given.startswith("{") else None)
    sys.addaudithook(watch)
    from train import checkpoint, cli, hosts, loop
    from train import main as program

    loop.train_batches = _each_marked(loop.train_batches)  # pyright: ignore[reportAttributeAccessIssue]
    loop.score, loop.finish = _marked(loop.score, SCORE, SCORED), _marked(loop.finish, FINISH)
    checkpoint.Store.save = _marked(checkpoint.Store.save, SAVE)
    hosts.JOIN = JOIN
    if not given.startswith("{"):
        atexit.register(lambda: pathlib.Path(given).write_text(json.dumps(watch.events)))
    cli.run(program.main)


if __name__ == "__main__":
    main()
