"""Score a split with a run's best parameters: `python -m train.evaluate --workdir runs/digits`."""

import pathlib
import sys
from typing import Any

import jax
import numpy as np

from train import cli, data
from train.parallel import Parallel
from train.run import load_trained


def score(parallel: Parallel, variables: Any, source: data.Source, batch_size: int, workers: int) -> tuple[dict[str, float], np.ndarray]:
    """Return the metrics of a split, and its confusion matrix (classes, classes), rows the true class.

    Args:
        parallel: Compiled steps.
        variables: As `parallel.put` returns them.
        source: The split.
        batch_size: Over all devices.
        workers: Worker processes of a streamed split.
    """
    total: dict[str, Any] | None = None
    for batch in data.eval_batches(source, batch_size, workers=workers):
        sums = parallel.evaluate(variables, parallel.put_batch(batch))
        total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
    assert total is not None  # eval_batches refuses an empty split
    sums = jax.tree.map(np.asarray, jax.device_get(parallel.get(total)))
    confusion, count = sums.pop("confusion"), float(sums.pop("count"))
    return {name: float(value) / count for name, value in sums.items()}, confusion


def main() -> None:
    """Print one line for each metric."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"), help="which part of the data to score")
    parser.add_argument("--data_dir", help="where the data is now, if it has moved since training")
    args = parser.parse_args()
    trained = load_trained(args.workdir.absolute(), {"dir": args.data_dir} if args.data_dir else {})
    config, parallel = trained.config, trained.setup.parallel
    source = getattr(data.load(config.data, seed=config.seed), args.split)
    if source is None:
        cli.fail("the run has no validation split (config.data.validation=0); score --split=test.")
    metrics, _ = score(parallel, parallel.put(trained.variables), source, config.batch_size, config.data.workers)
    for name, value in metrics.items():
        print(f"{args.split}/{name} {value:.4f}")


if __name__ == "__main__":
    cli.run(main)
