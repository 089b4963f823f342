"""Where the figures of a run go: metrics.jsonl, TensorBoard, and the terminal (a bar, or plain lines when it is none)."""

import json
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np

METRICS = "metrics.jsonl"


class Writer:
    """Writes scalars to metrics.jsonl (one object a line, with "step") and to TensorBoard."""

    def __init__(self, workdir: pathlib.Path, step: int):
        """Open both; lines of steps after `step`, and of the test, are dropped: they will be written again."""
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
        """Write one line, and each value under its name."""
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
    """Steps done, speed, loss and time to go: a bar on a terminal, else a plain line at most every `seconds`."""

    def __init__(self, total: int, start: int, seconds: float = 10.0):
        """Begin at step `start` of `total`."""
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
        """Show that `step` steps are done."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self.printed >= self.seconds or step == self.total:
            self.printed = now
            left = (now - self.began) / max(step - self.start, 1) * (self.total - step)
            print(f"step {step}/{self.total}  {text}  {left:.0f} s to go", flush=True)

    def line(self, text: str) -> None:
        """Print a line of its own."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)


def read_history(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl; a last line that was cut off is left out."""
    path, lines = workdir / METRICS, []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def write_text(path: pathlib.Path, text: str) -> None:
    """Replace a file whole: a reader, or a kill, never sees half of it."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text)
    os.replace(scratch, path)
