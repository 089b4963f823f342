"""Measure what each layer of a run costs in inference here: `python -m train.profile --workdir runs/digits`.

A table says for each layer what it gives, how many parameters and multiply-adds it has, what it sees, the size of its output, and the
milliseconds that it takes on this device, alone. The layers that take the most are the first to prune. The inputs are random, of the sizes
that the run was trained on.

profile.csv holds the table, and profile.png shows it.
"""

import argparse
import io
import pathlib
import sys

import jax.numpy as jnp
import numpy as np

import dilax
from dilax import DataSpec, UserError, plots
from train import cli
from train.files import check_folder_writable, write_bytes, write_text
from train.tasks.base import make_folder

TABLE, PICTURE, FOLDER = "profile.csv", "profile.png", "profile"
NAMED = 3  # layers that the last line names


def example(spec: DataSpec, batch: int, size: tuple[int, ...] = ()) -> np.ndarray:
    """Return a random batch such as a run is given: pixels uint8, codes, or numbers with mean 0 and deviation 1.

    Args:
        spec: What the data of the run looks like.
        batch: Number of examples.
        size: Height and width of the images, or the steps of the sequences; () takes those that the run was trained on.
    """
    random, shape = np.random.default_rng(0), (batch, *size, *spec.input_shape[len(size) :])
    if spec.symbols:
        return random.integers(0, len(spec.symbols), shape, np.int32)
    return random.integers(0, 256, shape, np.uint8) if len(spec.input_shape) == 3 else random.normal(size=shape).astype(np.float32)


def read_size(text: str, spec: DataSpec) -> tuple[int, ...]:
    """Return the sizes that --size gives.

    Raises:
        UserError: if it does not fit the data.
    """
    words, axes = text.split(","), 2 if len(spec.input_shape) == 3 else 1
    what, such = ("HEIGHT,WIDTH", "240,320") if axes == 2 else ("a number of steps", "1000")
    if not all(word.isascii() and word.isdecimal() and int(word) for word in words) or len(words) != axes:
        raise UserError(f"--size={text} is not {what} of 1 or more; give such as {such}.")
    return tuple(map(int, words))


def write(out: pathlib.Path, found: dilax.Profile) -> None:
    """Write the table and the picture of a profile to a folder, which is made."""
    make_folder(out)
    columns = {
        "time alone, ms": [layer.milliseconds for layer in found.layers],
        "million multiply-adds per example": [layer.multiply_adds / 1e6 for layer in found.layers],
    }
    write_text(out / TABLE, found.to_csv())
    picture = io.BytesIO()
    plots.layer_bars([name_of(layer) for layer in found.layers], columns).savefig(picture, format="png", dpi=120, facecolor="white")
    write_bytes(out / PICTURE, picture.getvalue())


def name_of(layer: dilax.profiling.LayerCost) -> str:
    """Return the path of a layer."""
    return "/".join(layer.path)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the flags."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--workdir", required=True, type=cli.folder, help="folder of a run, or of published weights")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="examples at a time; the default is 1")
    parser.add_argument("--size", default="", help="HEIGHT,WIDTH of images or steps of sequences; the default is that of the run")
    parser.add_argument("--repeats", type=int, default=20, help="turns of each layer, of which the medians count; the default is 20")
    parser.add_argument("--out", type=cli.folder, metavar="FOLDER", help="where the files go; default is profile/ in the folder of the run")
    args = parser.parse_args(argv)
    for name in ("batch", "repeats"):
        if getattr(args, name) < 1:
            cli.fail(f"--{name}={getattr(args, name)} is below 1; give 1 or more.")
    return args


def main() -> None:
    """Print the table and the slowest layers, and write the files."""
    args = parse()
    inference, out = dilax.load(args.workdir), args.out or args.workdir / FOLDER
    check_folder_writable("out", out)
    spec = inference.spec
    batch = example(spec, args.batch, read_size(args.size, spec) if args.size else ())
    x = inference.arguments(jnp.asarray(batch))["x"]
    found = dilax.profile(inference.model, inference.variables, x, repeats=args.repeats)
    write(out, found)
    slowest = sorted(found.layers, key=lambda layer: -layer.share)[:NAMED]
    print(found.table())
    words = ", ".join(f"{name_of(layer)} ({layer.share:.0%})" for layer in slowest)
    print(f"most of the time: {words}; see {out / PICTURE}.")


if __name__ == "__main__":
    cli.run(main)
