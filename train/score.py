"""Score a split: sums and kept arrays over its batches, and the metrics that a task makes of them."""

import dataclasses
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
    compiled, size = setup.parallel, setup.config.batch_size
    if setup.task.tile:
        compiled = in_tiles(setup)
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


def in_tiles(setup: Setup) -> Any:
    """Return the part of a run that evaluates, with outputs that are computed tile by tile, by one device.

    Raises:
        UserError: if several processes share the batches.
    """
    if hosts.several():
        raise UserError(f"tiles of {setup.task.tile} are computed by one process, and several run here; evaluate with one of them.")
    task, model, compiled = setup.task, setup.steps.model, setup.parallel
    prepare, judge = jax.jit(lambda batch: task.inputs(batch, model)["x"]), jax.jit(task.judge)
    known: list[tuple[Any, Any]] = []  # variables, and the function with them

    def outputs_with(variables: VariableDict) -> Any:
        if not known or known[0][0] is not variables:
            values = compiled.get(variables)

            def run(x: jax.Array) -> Any:
                with dilax.use_lowering(setup.config.lowering):
                    return model.apply(values, x=x, train=False)

            known[:] = [(variables, dilax.tiled(run, task.tile))]
        return known[0][1]

    def evaluate(variables: VariableDict, batch: Batch) -> tuple[Sums, dict[str, jax.Array]]:
        return judge(jax.numpy.asarray(outputs_with(variables)(prepare(batch))), batch)

    def unchanged(tree: Any) -> Any:
        return tree

    return dataclasses.replace(
        compiled, evaluate=evaluate, put_batch=unchanged, get=unchanged, rows=lambda arrays: jax.tree.map(np.asarray, arrays)
    )
