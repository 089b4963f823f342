"""Predict with the best parameters of a run: `python -m train.predict --workdir runs/digits image.png ...`.

What it takes and prints depends on the task of the run; see the flags of each task below, or give --workdir with --help.
"""

import contextlib
import pathlib
import sys
from collections.abc import Iterable
from typing import cast

from train import cli
from train.build import load_trained
from train.tasks.base import Bytes


def main() -> None:
    """Print what the run predicts, a line at a time; with --stream, write as standard input comes in."""
    parser = cli.run_parser(sys.modules[__name__], lambda task, parser: task.add_prediction_flags(parser))
    parser.add_argument("--out", type=pathlib.Path, help="folder of pictures or sounds; default is predictions/ in that of the run")
    args = parser.parse_args()
    streams = getattr(args, "stream", False)
    if bool(args.inputs) == streams:
        cli.fail("give inputs, or --stream without inputs; see --help." if hasattr(args, "stream") else "give inputs; see --help.")
    args.replace = args.out is None  # the run's own predictions may be replaced, other files never
    args.out = args.out or args.workdir / "predictions"
    trained = load_trained(args.workdir.absolute())
    task = trained.setup.task
    if streams:
        write(task.stream(trained.inference, cast(Bytes, sys.stdin.buffer), args))
        return
    for line in task.predict(trained.inference, args):
        print(line, flush=True)


def write(pieces: Iterable[bytes]) -> None:
    """Write each piece to standard output as soon as it is there."""
    with contextlib.suppress(KeyboardInterrupt):  # how a live stream ends
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    cli.run(main)
