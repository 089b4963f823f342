"""Score a split: sums and kept arrays over its batches, and the metrics that a task makes of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.typing import VariableDict

import dilax
from dilax import UserError
from train import hosts
from train.build import Setup
from train.data import Source, eval_batches
from train.tasks.base import Batch, Scores, Sums


def score(setup: Setup, variables: VariableDict, source: Source) -> tuple[dict[str, float], Scores]:
    """Return the metrics of a split, and what they come from, such as the sum "confusion", rows the true class.

    Args:
        setup: The run.
        variables: As `parallel.put` returns them.
        source: The split.
    """
    compiled = in_tiles(setup, variables) if setup.task.tile else setup.parallel
    size, collected = setup.config.batch_size, Collected()
    running: Any = None
    for i, batch in enumerate(eval_batches(source, size, workers=setup.config.data.workers, rows=compiled.share)):
        # This process may have read some rows of the batch alone, and gets the results of all: so many of them are of records.
        results = compiled.evaluate(variables, compiled.put_batch(batch)), len(source) - i * size
        # The results of the batch before are fetched while this one runs.
        _collect(compiled, running, collected)
        running = results
    _collect(compiled, running, collected)
    scores = collected.scores()
    return setup.task.metrics(scores), scores


class Collected:
    """The sums and the kept arrays of the batches of a split."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._kept: dict[str, list[np.ndarray]] = {}

    def add(self, sums: Sums, rows: Mapping[str, np.ndarray]) -> None:
        """Add the sums of a batch in 64 bits, in which pixels are counted without error, and the arrays of its real examples."""
        for name, value in jax.device_get(sums).items():
            wide = value.astype(np.int64 if value.dtype.kind == "i" else np.float64)
            self._sums[name] = self._sums[name] + wide if name in self._sums else wide
        for name, values in rows.items():
            self._kept.setdefault(name, []).append(values)

    def scores(self) -> Scores:
        """Return all that was added."""
        return Scores(self._sums, {name: np.concatenate(arrays) for name, arrays in self._kept.items()})


def _collect(compiled: Any, results: Any, collected: Collected) -> None:
    """Add the results of a batch, if there are any yet."""
    if results is not None:
        (sums, arrays), count = results
        collected.add(compiled.get(sums), {name: rows[:count] for name, rows in compiled.rows(arrays).items()})


def in_tiles(setup: Setup, variables: VariableDict) -> Any:
    """Return the part of a run that evaluates, with outputs of these variables that are computed tile by tile, by one device.

    Raises:
        UserError: if several processes share the batches.
    """
    if hosts.several():
        raise UserError(f"tiles of {setup.task.tile} are computed by one process, and several run here; evaluate with one of them.")
    task, model, compiled = setup.task, setup.steps.model, setup.parallel
    prepare, judge = jax.jit(lambda batch: task.inputs(batch, model)["x"]), jax.jit(task.judge)
    values = compiled.get(variables)

    def run(x: jax.Array) -> Any:
        with dilax.use_lowering(setup.config.lowering):
            return model.apply(values, x=x, train=False)

    outputs = dilax.tiled(run, task.tile)

    def evaluate(_: VariableDict, batch: Batch) -> tuple[Sums, dict[str, jax.Array]]:
        return judge(jax.numpy.asarray(outputs(prepare(batch))), batch)

    def unchanged(tree: Any) -> Any:
        return tree

    return dataclasses.replace(
        compiled, evaluate=evaluate, put_batch=unchanged, get=unchanged, rows=lambda arrays: jax.tree.map(np.asarray, arrays)
    )
