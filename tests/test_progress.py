"""What a run shows of itself, on a terminal and elsewhere."""

import errno
import io

import pytest

from train import progress
from train.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_plain_and_few(clock, capsys):
    with Progress(100, 0, steps_per_epoch=10) as shown:
        for step, seconds in ((5, 40), (10, 42), (20, 51), (30, 52), (100, 60)):
            clock[0] = 100.0 + seconds
            shown.update(step, 0.25, 1234.5)
            if step == 10:
                shown.metric = "accuracy 0.9"
        shown.line("done")
    # The 40 s of the first steps, in which everything is compiled, do not count: 15 steps took 11 s.
    assert capsys.readouterr().out.splitlines() == [
        "step 5/100  epoch 1/10  loss 0.25  1,234/s",
        "step 20/100  epoch 2/10  loss 0.25  accuracy 0.9  1,234/s  0:59 left",
        "step 100/100  epoch 10/10  loss 0.25  accuracy 0.9  1,234/s",
        "done",
    ]


def test_a_bar_fits_80_columns_and_is_removed(clock, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    with Progress(100_000, 0, steps_per_epoch=10) as shown:
        shown.metric = "si_sdr_improvement 12.34"
        for step in (5, 50_000):
            clock[0] += 50_000
            shown.update(step, 0.123456, 123456.7)
    frames = terminal.getvalue().split("\r")
    assert any("epoch 5000/10000  loss 0.1235  si_sdr_improvement 12.34  123,457/s" in frame for frame in frames)
    assert max(map(len, frames)) <= 80
    assert frames[-1].strip() == ""  # what is printed next starts on an empty line


def test_a_closed_terminal_does_not_end_a_run(monkeypatch):
    def closed(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    shown = Progress(10, 0, steps_per_epoch=10, seconds=0.0)
    monkeypatch.setattr("builtins.print", closed)
    shown.update(1, 0.5, 1.0)
    shown.line("words")
