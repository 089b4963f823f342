"""The end of a run: score the test split, once, with the best parameters; write the metrics and the report."""

import pathlib

import jax
from flax.typing import VariableDict

from dilax import plots
from dilax.errors import UserError
from dilax.loading import whole
from train import checkpoint, hosts, report
from train.build import Setup
from train.config import to_json
from train.data import Splits
from train.files import writing
from train.folder import versions, write_status
from train.score import score
from train.tasks.base import Scores
from train.writers import Writer


def finish(workdir: pathlib.Path, setup: Setup, splits: Splits, best: checkpoint.Store, writer: Writer, seconds: float) -> None:
    """Score the test split with the best variables; of several processes, the first writes the last metrics, the status and the report."""
    saved = best.restore(setup.shapes, setup.parallel.shardings(setup.shapes))
    if saved is None:
        raise UserError(f"no checkpoint in {best.folder} could be read; give the same command again: the best one is then chosen anew.")
    step, variables = saved
    metrics, scores = score(setup, setup.parallel.put(variables), splits.test)
    named = {f"test/{name}": value for name, value in metrics.items()}
    details = {f"test/{name}": value for name, value in setup.task.details(scores).items()}
    variables = jax.tree.map(whole, variables)
    if not hosts.first():
        return
    writer.scalars(setup.total_steps, {**named, **details, "best_step": step, "total_seconds": seconds})
    write_status(workdir, step=setup.total_steps, metrics=named, train_seconds=seconds)
    words = "  ".join(f"{name} {value:.4f}" for name, value in named.items())
    print(f"{words}  ({seconds:.0f} s, parameters of step {step})", flush=True)
    if setup.config.report:
        path = write_report(workdir, setup, splits, variables, scores, writer, {**named, **details}, seconds)
        print(f"report: {path}", flush=True)
    write_status(workdir, finished=True)  # last: a run that is killed in its report is resumed to write it


def write_report(
    workdir: pathlib.Path,
    setup: Setup,
    splits: Splits,
    variables: VariableDict,
    scores: Scores,
    writer: Writer,
    metrics: dict[str, float],
    seconds: float,
) -> pathlib.Path:
    """Write the learning curves, what the task shows, the metrics and the config; return the path of report.md."""
    folder = workdir / report.FOLDER
    with writing(folder):
        folder.mkdir(exist_ok=True)
    shown = setup.task.report(setup.inference(variables), splits, scores, folder)
    if shown.images is not None:
        writer.images(setup.total_steps, "test/images", shown.images)
    curves = {"Learning curves": ("learning_curves", plots.learning_curves(writer.history, metrics=setup.task.curves))}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    tables = report.tables(metrics, versions(), seconds, parameters)
    title = report.title(setup.config.name, setup.task.name, setup.config.model.name, splits.spec.name, setup.config.data.dir)
    return report.write(folder, title, to_json(setup.config), tables, {**curves, **shown.pictures}, shown.sections)
