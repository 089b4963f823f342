"""Predict with the best parameters of a run: `python -m train.predict --workdir runs/digits image.png ...`.

What it takes and prints depends on the task of the run; see the flags of each task below, or give --workdir with --help. A folder stands
for all files in it, at any depth, that the run reads.
"""

import contextlib
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import cast

from dilax.errors import UserError
from dilax.files import refuse_address, user_path
from train import cli, hosts
from train.build import load_trained
from train.data.readers.files import list_files
from train.tasks.base import Bytes


def main() -> None:
    """Print what the run predicts, a line at a time; with --stream, write as standard input comes in."""
    parser = cli.run_parser(sys.modules[__name__], lambda task, parser: task.add_prediction_flags(parser))
    parser.add_argument("--out", type=cli.folder, help="folder of pictures or sounds; default is predictions/ in that of the run")
    hosts.add_flags(parser)
    args = parser.parse_args()
    hosts.join(args)
    streams = getattr(args, "stream", False)
    if bool(args.inputs) == streams:
        cli.fail("give inputs, or --stream without inputs; see --help." if hasattr(args, "stream") else "give inputs; see --help.")
    if streams and (args.csv or getattr(args, "top", 1) != 1):
        cli.fail("--csv and --top do not apply to --stream; leave them out.")
    args.replace = args.out is None  # the run's own predictions may be replaced, other files never
    args.out = args.out or args.workdir / "predictions"
    trained = load_trained(args.workdir)
    if hosts.several():
        print("note: one process predicts, process 0, on one of its devices.", file=sys.stderr)
    if not hosts.first():
        return
    task = trained.setup.task
    if streams:
        write(task.stream(trained.inference, cast(Bytes, sys.stdin.buffer), args))
        return
    args.inputs = files_of(args.inputs, task.input_suffixes())
    for line in task.predict(trained.inference, args):
        print(line, flush=True)


def files_of(given: Sequence[str], suffixes: Collection[str]) -> list[str]:
    """Return the input files, with those in a folder in its place.

    Args:
        given: Files and folders, or texts.
        suffixes: Of the files that count in a folder; () if inputs are not files.

    Raises:
        UserError: if a folder holds none, or an input is an address.
    """
    files: list[str] = []
    for word in given if suffixes else ():
        kinds, path = ", ".join(sorted(suffixes)), user_path(word)
        if not path.exists():
            refuse_address(word, "the file")
        found = list_files(path, suffixes) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{word} is a folder without files that the run reads ({kinds}); give a folder that holds some, or files.")
        files += map(str, found)
    return files if suffixes else list(given)


def write(pieces: Iterable[bytes]) -> None:
    """Write each piece to standard output as soon as it is there."""
    with contextlib.suppress(KeyboardInterrupt):  # how a live stream ends
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    cli.run(main)
