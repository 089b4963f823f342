"""What a run shows of itself: a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import errno
import math
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

WIDTH = 80  # columns that the bar fits into, unless the terminal has fewer
REFRESH = 0.1  # seconds between two states of the bar


class Progress:
    """Shows epoch, loss, validation metric, speed and the time left: a progress bar, else a plain line at most every `seconds`."""

    def __init__(self, total: int, start: int, steps_per_epoch: float, seconds: float = 10.0):
        """Start at step `start` of `total`."""
        self.total, self.steps_per_epoch, self.seconds = total, steps_per_epoch, seconds
        self.printed, self.metric = time.monotonic(), ""
        # The time left is that of the steps after the first ones, which are compiled.
        self._first: tuple[int, float] | None = None
        self._bar = None
        if sys.stderr.isatty():
            import tqdm

            width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
            self._bar = tqdm.tqdm(total=total, initial=start, bar_format="{percentage:3.0f}%|{bar}| {desc}", ncols=width, leave=False)
            self.seconds = REFRESH

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar; what is printed afterwards starts on a new line."""
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, loss: float, examples_per_second: float) -> None:
        """Show that `step` steps have been taken, the loss and the speed of the last of them."""
        now = time.monotonic()
        self._first = self._first or (step, now)
        epochs = max(1, round(self.total / self.steps_per_epoch))
        epoch = min(epochs, max(1, math.ceil(step / self.steps_per_epoch)))
        words = [f"epoch {epoch}/{epochs}", f"loss {loss:.4g}", self.metric, f"{examples_per_second:,.0f}/s", self._left(step, now)]
        text = "  ".join(word for word in words if word)
        if now - self.printed < self.seconds and step < self.total:
            return
        self.printed = now
        with _on_a_terminal():
            if self._bar is None:
                print(f"step {step}/{self.total}  {text}", flush=True)
            else:
                self._bar.n = step
                self._bar.set_description_str(text)

    def _left(self, step: int, now: float) -> str:
        if self._first is None or step <= self._first[0] or step == self.total:
            return ""
        seconds = (now - self._first[1]) / (step - self._first[0]) * (self.total - step)
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return (f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}") + " left"

    def line(self, text: str) -> None:
        """Print a separate line."""
        with _on_a_terminal():
            if self._bar is not None:
                self._bar.write(text)
            else:
                print(text, flush=True)


@contextlib.contextmanager
def _on_a_terminal() -> Iterator[None]:
    """Write to a terminal that may be closed meanwhile: the signal that says so, by which a run is saved, comes a little later."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
