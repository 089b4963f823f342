"""Score a split with a run's best parameters: `python -m train.evaluate --workdir runs/digits`."""

import dataclasses
import sys

import jax

from dilax import DataSpec
from dilax.errors import UserError
from train import cli, hosts
from train.build import Trained, build, load_trained
from train.data import Splits
from train.folder import read_run
from train.score import score


def evaluate(trained: Trained, splits: Splits, split: str) -> dict[str, float]:
    """Return the metrics of a split by name, those of single classes included.

    Raises:
        UserError: if the data is not that of the run, or the run has no such split.
    """
    check_data(trained.setup.spec, splits.spec)
    source = getattr(splits, split)
    if source is None:
        raise UserError("the run has no validation split (config.data.validation=0); score --split=test.")
    setup = trained.setup
    metrics, scores = score(setup, setup.parallel.put(trained.inference.variables), source)
    return {**metrics, **setup.task.details(scores)}


def check_data(trained: DataSpec, here: DataSpec) -> None:
    """Refuse data of other classes or channels than a run was trained on, and warn if it has changed since.

    Raises:
        UserError: if the metrics of the run on that data would mean nothing.
    """
    names, ours = here.outputs, trained.outputs
    numbered = ours == tuple(map(str, range(len(ours)))) and not any(name.isdecimal() for name in names)
    if len(names) != len(ours) or (names != ours and not numbered):
        raise UserError(f"the data has the outputs {', '.join(names)}, and the run {', '.join(ours)}; give the data it was trained on.")
    if names != ours:  # published weights know their classes by number alone
        pairs = ", ".join(f"{number} is {name}" for number, name in list(zip(ours, names))[:5])
        print(f"warning: the run numbers its classes; in the order of the data here, {pairs}{', ...' * (len(ours) > 5)}.", file=sys.stderr)
    if here.symbols != trained.symbols:
        raise UserError(f"the data has {len(here.symbols)} symbols that are not the {len(trained.symbols)} of the run; give its own data.")
    now, before = (None if spec.symbols else spec.input_shape[-1] for spec in (here, trained))
    if now != before:
        raise UserError(f"the data has examples of {now} channels, and the run of {before}; give its own data.")
    if here.sample_rate != trained.sample_rate:
        raise UserError(
            f"the data has {here.sample_rate} samples per second, and the run was trained on {trained.sample_rate}; resample the data."
        )
    if trained.examples and here.examples != trained.examples:
        print(
            f"warning: the data had {trained.examples} training records when the run began, and has {here.examples} now; "
            "records of the test split may have been trained on.",
            file=sys.stderr,
        )


def main() -> None:
    """Print one line for each metric."""
    parser = cli.run_parser(sys.modules[__name__], lambda task, parser: task.add_evaluation_flags(parser))
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"), help="which part of the data to score")
    parser.add_argument("--data_dir", type=cli.folder, help="where the data is now, if it has moved since training")
    hosts.add_flags(parser)
    args = parser.parse_args()
    hosts.join(args)
    trained = load_trained(args.workdir, {"dir": str(args.data_dir)} if args.data_dir else {})
    setup = trained.setup
    if (given := read_run(args.workdir)[0].mesh) != setup.config.mesh:
        words = ", ".join(f"{axis}={size}" for axis, size in given.items())
        print(
            f"note: config.mesh of the run ({words}) does not fit the {jax.device_count()} device(s) here; they share each batch.",
            file=sys.stderr,
        )
    trained = dataclasses.replace(trained, setup=build(setup.config, setup.spec, task=setup.task.with_flags(args)))
    splits = type(setup.task).open(trained.setup.task.config, setup.spec)  # prepared as what the run was trained on
    print(splits.describe(), file=sys.stderr)
    for name, value in evaluate(trained, splits, args.split).items():
        print(f"{args.split}/{name} {value:.4f}")


if __name__ == "__main__":
    cli.run(main)
