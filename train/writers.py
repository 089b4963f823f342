"""Where the metrics of a run go: metrics.jsonl, TensorBoard, and the terminal (a progress bar, or plain lines if it is not one)."""

import json
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np

METRICS = "metrics.jsonl"
PART = ".part"  # ends the names of files that are being written


class Writer:
    """Writes scalars to metrics.jsonl (one object per line, with "step") and to TensorBoard."""

    def __init__(self, workdir: pathlib.Path, step: int):
        """Open both; lines of the test split and of steps after `step` are dropped, since they will be written again."""
        from tensorboardX import SummaryWriter

        self.path = workdir / METRICS
        kept = (line for line in read_history(workdir) if line["step"] <= step)
        self.history = [line for line in kept if not any(name.startswith("test/") for name in line)]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.history))
        self._file = self.path.open("a")
        # purge_step hides from TensorBoard what the killed run wrote after it.
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self._board.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one line of metrics.jsonl, and each value to TensorBoard under its name."""
        line = {"step": step, **values}
        self.history.append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Write images (n, height, width, channels), uint8, to TensorBoard."""
        self._board.add_images(name, images, step, dataformats="NHWC")


class Progress:
    """Shows steps, speed, loss and the time left: a progress bar on a terminal, else a plain line at most every `seconds`."""

    def __init__(self, total: int, start: int, seconds: float = 10.0):
        """Start at step `start` of `total`."""
        self.total, self.start, self.seconds = total, start, seconds
        self.began = self.printed = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            import tqdm

            self._bar = tqdm.tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, text: str) -> None:
        """Show that `step` steps have been taken."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self.printed >= self.seconds or step == self.total:
            self.printed = now
            left = (now - self.began) / max(step - self.start, 1) * (self.total - step)
            print(f"step {step}/{self.total}  {text}  {left:.0f} s left", flush=True)

    def line(self, text: str) -> None:
        """Print a separate line."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)


def read_history(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl; a truncated last line is left out."""
    path, lines = workdir / METRICS, []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def write_text(path: pathlib.Path, text: str) -> None:
    """Replace a file atomically: neither a reader nor a kill ever leaves half of it."""
    scratch = path.with_name(path.name + PART)
    scratch.write_text(text)
    os.replace(scratch, path)
