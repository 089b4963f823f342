"""Where the metrics of a run go: metrics.jsonl and TensorBoard."""

import json
import pathlib
import sys
import time
import zlib
from typing import Any

import numpy as np

from dilax.errors import UserError
from train.files import write_text, writing

METRICS, BOARD = "metrics.jsonl", "tensorboard"
CORRUPT = f"corrupt-{METRICS}"


class Writer:
    """Writes scalars to metrics.jsonl (one object per line, with "step") and to TensorBoard.

    Attributes:
        history: What the lines of metrics.jsonl hold.
        lines: Their number, and the CRC-32 of their text.
    """

    def __init__(self, workdir: pathlib.Path, step: int, lines: list[int] | None = None):
        """Open both; lines of the test split and of steps after `step` are dropped, since they will be written again.

        Lines that cannot be read are left out with a warning; the file as it was is kept as corrupt-metrics.jsonl. If other lines are left
        than `lines` says, which is `Writer.lines` when that step was saved, there is a warning, too.
        """
        self.path = workdir / METRICS
        found, bad = _parse(self.path)
        if bad:
            with writing(workdir / CORRUPT):
                (workdir / CORRUPT).write_bytes(self.path.read_bytes())
            print(f"warning: {bad} line(s) of {self.path} cannot be read and are left out; {CORRUPT} keeps them.", file=sys.stderr)
        kept = (line for line in found if line["step"] <= step)
        self.history = [line for line in kept if not any(name.startswith("test/") for name in line)]
        texts = [json.dumps(line) + "\n" for line in self.history]
        self.lines = [len(texts), zlib.crc32("".join(texts).encode())]
        if lines and not bad and self.lines != lines:
            changed = f"has {len(texts)} lines" if lines[0] != len(texts) else "has other values"
            print(f"warning: {self.path} had {lines[0]} lines when step {step} was saved, and {changed} now.", file=sys.stderr)
        write_text(self.path, "".join(texts))
        with writing(workdir):
            self._file = self.path.open("a")
            self._board = _Board(workdir / BOARD, step + 1)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: Any) -> None:
        with writing(self.path):
            self._file.close()
            self._board.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one line of metrics.jsonl, and each value to TensorBoard under its name.

        Raises:
            UserError: if they cannot be written.
        """
        line = {"step": step, **values}
        self.history.append(line)
        text = json.dumps(line) + "\n"
        self.lines = [self.lines[0] + 1, zlib.crc32(text.encode(), self.lines[1])]
        with writing(self.path):
            self._file.write(text)
            self._file.flush()
            self._board.scalars(step, values)

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Write images (n, height, width, channels), uint8, to TensorBoard."""
        with writing(self.path.parent / BOARD):
            self._board.images(step, name, images)


class NoWriter(Writer):
    """Writes nothing, as all but one of several processes do."""

    def __init__(self):
        """Start without a history."""
        self.history, self.lines = [], [0, 0]

    def __exit__(self, *_: Any) -> None:
        pass

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Do nothing."""

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Do nothing."""


class _Board:
    """Writes events for TensorBoard in this thread: tensorboardX's own `SummaryWriter` leaves errors to threads, and holds events back."""

    def __init__(self, folder: pathlib.Path, first: int, seconds: float = 1.0):
        """Open a file of events; those of earlier files from step `first` on are hidden. It reaches the system every `seconds`."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        self._seconds, self._flushed = seconds, -seconds
        self._write(first, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        if time.monotonic() - self._flushed >= self._seconds:
            self._events.flush()
            self._flushed = time.monotonic()

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        from tensorboardX.summary import image

        self._write(step, summary=image(name, images, dataformats="NHWC"))
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        self._events.write_event(Event(wall_time=time.time(), step=step, **content))


def add_step(sums: dict[str, float], values: dict[str, Any]) -> dict[str, float]:
    """Return the sums over steps with the values of one more."""
    return {name: sums.get(name, 0.0) + float(value) for name, value in {**values, "steps": 1}.items()}


def means(sums: dict[str, float]) -> dict[str, float]:
    """Return what a line of metrics says of the steps that were added up: means over their examples."""
    names = [name for name in sums if name not in ("count", "steps", "gradient_norm", "parameter_norm")]
    over_examples = {f"train/{name}": sums[name] / max(sums["count"], 1.0) for name in names}
    return {**over_examples, "train/gradient_norm": sums["gradient_norm"] / sums["steps"]}


def read_history(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl; those that cannot be read, such as a truncated last one, are left out."""
    return _parse(workdir / METRICS)[0]


def _parse(path: pathlib.Path) -> tuple[list[dict[str, float]], int]:
    """Return the lines of a file of metrics, and the number of those that cannot be read."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; fix that, or move it away.") from error
    lines = [_line(text) for text in texts if text.strip()]
    good = [line for line in lines if line is not None]
    return good, len(lines) - len(good)


def _line(text: str) -> dict[str, float] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    numbers = isinstance(line, dict) and all(isinstance(value, int | float) for value in line.values())
    return line if numbers and isinstance(line.get("step"), int) else None
