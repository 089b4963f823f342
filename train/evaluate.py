"""Score a split with a run's best parameters: `python -m train.evaluate --workdir runs/digits`."""

import dataclasses
import math
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from dilax.errors import UserError
from dilax.metrics import class_iou
from train import cli, data, parallel
from train.run import Setup, Trained, load_trained


def score(made: Setup, variables: Any, source: data.Source) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the figures of a split, and the sums that they come from, such as a "confusion" matrix, rows the true class.

    Args:
        made: The run.
        variables: As `parallel.put` returns them.
        source: The split.
    """
    compiled, total = made.parallel, None
    running: Any = None
    for batch in data.eval_batches(source, made.config.batch_size, workers=made.config.data.workers):
        sums = compiled.evaluate(variables, compiled.put_batch(batch))
        # Those of the batch before are fetched while this one runs.
        total, running = _added(total, running), compiled.get(sums)
    sums = _added(total, running)
    return made.steps.task.figures(sums), sums


def _added(total: Any, sums: Any) -> Any:
    """Add sums to a total in 64 bits, in which pixels are counted without error; None is nothing."""
    if sums is None:
        return total
    wide = {k: v.astype(np.int64 if v.dtype.kind == "i" else np.float64) for k, v in jax.device_get(sums).items()}
    return wide if total is None else {name: total[name] + value for name, value in wide.items()}


def named_iou(confusion: np.ndarray, class_names: tuple[str, ...]) -> dict[str, float]:
    """Return {"iou/NAME": intersection over union} of the classes that occur."""
    found = class_iou(confusion).tolist()
    return {f"iou/{name}": value for name, value in zip(class_names, found) if not math.isnan(value)}


def read_scales(text: str) -> tuple[float, ...]:
    """Read positive numbers that commas separate.

    Raises:
        UserError: if there is another thing.
    """
    try:
        scales = tuple(float(word) for word in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise UserError(f"--scales={text} must be positive numbers, separated by commas, such as 0.75,1,1.25.")
    return scales


def at_scales(made: Setup, scales: tuple[float, ...], flip: bool) -> Setup:
    """Return the run with its evaluation at several scales, and of mirrored images.

    Raises:
        UserError: if it is not one of segmentation.
    """
    if scales == (1.0,) and not flip:
        return made
    if made.config.task != "segmentation":
        raise UserError("--scales and --flip are for runs of segmentation; leave them out.")
    steps = dataclasses.replace(made.steps, scales=scales, flip=flip)
    return dataclasses.replace(made, steps=steps, parallel=parallel.make(made.config.parallel, steps, made.config.batch_size))


def check_data(trained: Trained, splits: data.Splits) -> None:
    """Refuse data of other classes or channels than a run was trained on, and warn if it has changed since.

    Raises:
        UserError: if the run's figures on that data would mean nothing.
    """
    names, ours = splits.class_names, trained.class_names
    if len(names) != len(ours) or (names != ours and not all(name.isdecimal() for name in ours)):
        raise UserError(f"the data has the classes {', '.join(names)}, and the run {', '.join(ours)}; give the data it was trained on.")
    if splits.symbols != trained.symbols:
        raise UserError(
            f"the data has {len(splits.symbols)} symbols that are not the {len(trained.symbols)} of the run; give its own data."
        )
    here, there = (None if about.symbols else about.input_shape[-1] for about in (splits, trained))
    if here != there:
        raise UserError(f"the data has examples of {here} channels, and the run of {there}; give its own data.")
    if trained.examples and len(splits.train) != trained.examples:
        print(
            f"warning: the data had {trained.examples} training records when the run began, and has {len(splits.train)} now; "
            "records of the test split may have been trained on.",
            file=sys.stderr,
        )


def main() -> None:
    """Print one line for each metric."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"), help="which part of the data to score")
    parser.add_argument("--data_dir", help="where the data is now, if it has moved since training")
    parser.add_argument("--scales", default="1", help="segmentation: sizes at which the model runs, averaged, such as 0.75,1,1.25")
    parser.add_argument("--flip", action="store_true", help="segmentation: also run it on mirrored images, averaged")
    args = parser.parse_args()
    trained = load_trained(args.workdir.absolute(), {"dir": args.data_dir} if args.data_dir else {})
    made = at_scales(trained.setup, read_scales(args.scales), args.flip)
    splits = data.open_splits(trained.config)
    check_data(trained, splits)
    source = getattr(splits, args.split)
    if source is None:
        cli.fail("the run has no validation split (config.data.validation=0); score --split=test.")
    figures, sums = score(made, made.parallel.put(trained.variables), source)
    if trained.config.task == "segmentation":
        figures |= named_iou(sums["confusion"], splits.class_names)
    for name, value in figures.items():
        print(f"{args.split}/{name} {value:.4f}")


if __name__ == "__main__":
    cli.run(main)
