"""Signals that ask a run to stop; several processes of a run agree on when."""

import os
import signal
import sys
from typing import Any

from train import hosts

STOPPING = b"\nstopping: the step that runs is finished and saved first; Ctrl-C stops at once, without saving it.\n"


class Stopped(BaseException):
    """A signal has ended what may be stopped at once."""

    def __init__(self, number: int):
        """Keep the number of the signal."""
        super().__init__(number)
        self.number = number


class Stopper:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a request to stop after the step; the second acts as usual."""

    def __init__(self):
        """Start without a request."""
        self.signal: int | None = None
        self._hurried = False
        self._old: dict[int, Any] = {}
        self._terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def __enter__(self) -> "Stopper":
        for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:  # Windows has no SIGHUP
            if signal.getsignal(number) == signal.SIG_IGN:  # as nohup wants it
                continue
            try:
                self._old[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread, which alone may handle signals
                return self
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def asked(self, together: bool) -> int | None:
        """Return the signal by which this process, or another of the run, was asked to stop, or None.

        Several processes agree on it where they all come `together`: they must stop at the same step.
        """
        if not hosts.several():
            return self.signal
        return (hosts.greatest(self.signal or 0) or None) if together else None

    def hurry(self) -> None:
        """Have the first signal from now on, or one that has come unnoticed, raise `Stopped` at once.

        Raises:
            Stopped: where the signal finds the main thread.
        """
        self._hurried = True
        if self.signal is not None:
            raise Stopped(self.signal)

    def _ask(self, number: int, _: Any) -> None:
        self.signal = int(number)
        self._restore()
        if number == signal.SIGINT and not self._hurried:
            for terminal in self._terminals[-1:]:  # not by print, which the signal may have interrupted
                os.write(terminal, STOPPING)
        if number == getattr(signal, "SIGHUP", None):  # the terminal is closed: what would go to it goes nowhere
            for descriptor in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        if self._hurried:
            raise Stopped(self.signal)

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}
