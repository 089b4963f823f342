"""Score a split: sums and kept arrays over its batches, and the metrics that a task makes of them."""

from typing import Any

import jax
import numpy as np
from flax.typing import VariableDict

from train.build import Setup
from train.data import Source, eval_batches
from train.tasks.base import Scores, Sums


def score(setup: Setup, variables: VariableDict, source: Source) -> tuple[dict[str, float], Scores]:
    """Return the metrics of a split, and what they come from, such as the sum "confusion", rows the true class.

    Args:
        setup: The run.
        variables: As `parallel.put` returns them.
        source: The split.
    """
    compiled, size = setup.parallel, setup.config.batch_size
    total: dict[str, np.ndarray] = {}
    kept: dict[str, list[np.ndarray]] = {}
    running: Any = None
    for i, batch in enumerate(eval_batches(source, size, workers=setup.config.data.workers, rows=compiled.share)):
        # This process may have read some rows of the batch alone, and gets the results of all: so many of them are of records.
        results = compiled.evaluate(variables, compiled.put_batch(batch)), len(source) - i * size
        # The results of the batch before are fetched while this one runs.
        _collect(compiled, running, total, kept)
        running = results
    _collect(compiled, running, total, kept)
    scores = Scores(total, {name: np.concatenate(arrays) for name, arrays in kept.items()})
    return setup.task.metrics(scores), scores


def _collect(compiled: Any, results: Any, total: dict[str, np.ndarray], kept: dict[str, list[np.ndarray]]) -> None:
    """Add the sums of a batch, and append the arrays of its real examples."""
    if results is None:
        return
    (sums, arrays), count = results
    add_sums(total, compiled.get(sums))
    for name, rows in compiled.rows(arrays).items():
        kept.setdefault(name, []).append(rows[:count])


def add_sums(total: dict[str, np.ndarray], sums: Sums) -> None:
    """Add the sums of a batch to a total in 64 bits, in which pixels are counted without error."""
    for name, value in jax.device_get(sums).items():
        wide = value.astype(np.int64 if value.dtype.kind == "i" else np.float64)
        total[name] = total[name] + wide if name in total else wide
