"""A run from top to bottom: open the data and the folder, resume or start, train, evaluate, keep the best, test once, report."""

import contextlib
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dilax.errors import UserError
from dilax.files import user_path
from dilax.loading import BEST, read_status
from train import checkpoint, hosts
from train.build import Setup, build, describe, status_of
from train.config import check, task_class, to_json
from train.data import Source, Splits, train_batches
from train.data.fingerprint import changes, fingerprint
from train.distil import check_same_teacher, open_teacher
from train.files import LOCK, write_text
from train.finish import finish
from train.folder import INIT_REPORT, check_data, leave_step, open_folder, write_config, write_status
from train.optim import schedule
from train.parallel import check_sizes
from train.progress import Progress
from train.score import score
from train.stopper import Stopped, Stopper
from train.transfer import init_from
from train.writers import NoWriter, Writer, add_step, means, read_history

UNCHOSEN = "validation: no split, so the parameters of the last step are kept"


def run(config: ConfigDict, workdir: pathlib.Path, *, restart: bool = False) -> int:
    """Train what `config` says in `workdir`; an unfinished run of the same config in it is resumed.

    Args:
        config: As `train.config.default_config` returns it.
        workdir: Folder of the run.
        restart: Whether to move an earlier run aside and begin anew.

    Returns:
        The exit code: 0 when finished, 1 after a non-finite loss, 128 + the signal's number when stopped by Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        UserError: if config, data or folder cannot be used.
    """
    began, workdir = time.monotonic(), pathlib.Path(os.path.abspath(user_path(workdir)))
    check(config)
    same = hosts.by_first(lambda: to_json(config)) == to_json(config)
    hosts.check_all(same, lambda who: f"{who} has another config than process 0; give all processes the same command.")
    with contextlib.ExitStack() as held:
        if not restart:
            _open(held, config, workdir)
        splits = task_class(config.task).open(config)
        setup = build(config, splits.spec, teacher=open_teacher(config, splits.spec))
        remarks = [*setup.task.remarks(setup.steps.model, splits), *[UNCHOSEN] * (splits.validation is None)]
        print(describe(setup), splits.describe(), *remarks, f"folder: {workdir}", sep="\n", flush=True)
        _check_length(setup)
        for split in (splits.train, splits.validation, splits.test):
            if split is not None:
                check_sizes(setup.task, split[0], train=split is splits.train)
        # Nothing is written, and no earlier run moved aside, before everything else is known to be right.
        records = _same_records(splits)
        first = None if not restart and checkpoint.saved_steps(workdir) else _first_variables(setup)
        if restart:
            _open(held, config, workdir, restart=True)
        return _train(setup, splits, records, first, workdir, began)


def _first_variables(setup: Setup) -> tuple[Any, str]:
    """Return what a run begins from: the parameters of another run, and the report on them; else fresh ones, and ""."""
    variables = setup.init()
    return init_from(setup.config, variables, setup.spec) if setup.config.init_from else (variables, "")


def _open(held: contextlib.ExitStack, config: ConfigDict, workdir: pathlib.Path, *, restart: bool = False) -> None:
    """Open the folder, which process 0 locks for all; see that all of them can save to it."""
    hosts.enter_by_first(held, open_folder(config, workdir, restart=restart))
    hosts.check_shared(workdir, LOCK)
    checkpoint.check_folder(workdir)


def _check_length(setup: Setup) -> None:
    """Refuse a run of less than one batch, and warn of batches that hold records more than once."""
    config, records = setup.config, setup.spec.examples
    if records and config.batch_size > records * max(1, config.total_epochs):
        raise UserError(
            f"config.total_epochs={config.total_epochs:g} of {records} training records are less than one batch of "
            f"config.batch_size={config.batch_size}; choose a smaller batch, or more epochs."
        )
    if records and config.batch_size > records:
        print(
            f"warning: config.batch_size={config.batch_size} is more than the {records} training records, so that each step sees "
            f"some of them {-(-config.batch_size // records)} times, and the run takes {setup.total_steps} steps.",
            file=sys.stderr,
        )


def _train(
    setup: Setup, splits: Splits, records: dict[str, Any], first: tuple[Any, str] | None, workdir: pathlib.Path, began: float
) -> int:
    """Resume or start the run in a folder that is open; return the exit code.

    Args:
        setup: The run.
        splits: Its data.
        records: The fingerprint of the data.
        first: What `_first_variables` returns; None if the folder holds checkpoints.
        workdir: The folder.
        began: When the process began, by `time.monotonic`.
    """
    config, parallel, total, workers = setup.config, setup.parallel, setup.total_steps, setup.config.data.workers
    rate = schedule(config.optim, setup.steps_per_epoch, total)
    eval_every = max(1, round(config.eval_every_epochs * setup.steps_per_epoch))
    rank = setup.task.rank
    status = hosts.by_first(lambda: read_status(workdir) or write_status(workdir, finished=False, **status_of(setup)))

    with (
        checkpoint.Store(workdir / checkpoint.CHECKPOINTS, run=status["run"], keep=config.keep_checkpoints) as store,
        checkpoint.Store(workdir / BEST, run=status["run"]) as best,
        Stopper() as stopper,
    ):
        # Resume this run; else begin from the parameters of another; else from scratch.
        changed = hosts.by_first(lambda: store.latest() is not None and check_data(config, workdir, setup.spec, records))
        hosts.by_first(lambda: store.latest() is not None and check_same_teacher(setup.teacher, workdir))
        if changed:
            best.clear()  # metrics of other data cannot be compared
        saved, log = _restore(workdir, status, store, setup), {}
        if saved is not None:
            print(f"resuming {workdir} at step {saved[0]} of {total}", flush=True)
            start, state = saved
            log = store.meta(start).get("log", log)
        else:
            variables, report = first or _first_variables(setup)
            if report:
                if hosts.first():
                    write_text(workdir / INIT_REPORT, report)
                print(report.splitlines()[0], *(line for line in report.splitlines() if " loaded " not in line), sep="\n", flush=True)
            start, state = 0, setup.steps.init(variables)
            best.clear()  # of a run that was killed before its first checkpoint
        if start > total:
            raise UserError(
                f"{workdir} is at step {start} already, beyond config.total_epochs={config.total_epochs:g} (step {total}); pass more."
            )
        state = parallel.put(state)
        seconds_before = status.get("train_seconds", 0.0) if saved else 0.0
        write_status(workdir, finished=False, **status_of(setup), records=records)
        write_config(workdir, config, start)

        progress = Progress(total, start, setup.steps_per_epoch)
        with Writer(workdir, start, log.get("lines")) if hosts.first() else NoWriter() as writer, progress:

            def evaluate(split: Source) -> tuple[Any, dict[str, float]]:
                kept = parallel.get(state).variables()
                metrics, _ = score(setup, parallel.put(kept), split)
                return kept, {f"validation/{name}": value for name, value in metrics.items()}

            best_rank = _rank_of_best(best, setup, splits, writer, "were chosen on other data" if changed else "are lost")
            if best_rank is None:  # it is lost: none that follows may be worse than what there is now
                assert splits.validation is not None
                kept, named = evaluate(splits.validation)
                best.replace(start, kept, named)
                best_rank = rank(named)
            # The batch and the key of a step are functions of (config, step), so a resumed run equals the unbroken one.
            batches = train_batches(
                splits.train, config.batch_size, seed=config.seed, start_step=start, workers=workers, rows=parallel.share
            )
            key = jax.random.key(config.seed + 1)
            pending: list[tuple[int, Any]] = []
            sums_since: dict[str, float] = log.get("sums", {})  # of the steps since the last line of metrics, for the next one
            next_sums: dict[str, float] = {}
            tick, logged = time.monotonic(), start
            written: dict[str, Any] = {}  # what run.json is to say when the checkpoint that is being written is on the disk

            def settle() -> str:
                store.wait()
                write_status(workdir, **written)
                last = store.latest()
                return "there is no checkpoint before it" if last is None else f"the last good checkpoint is step {last} in {store.folder}"

            def stop(step: int, number: int) -> int:
                settle()
                progress.line(f"stopped at step {step} of {total}, saved in {workdir}; run the same command again to resume.")
                return 128 + number

            for step, batch in zip(range(start + 1, total + 1), batches):
                state, sums = parallel.train(state, parallel.put_batch(batch), key)
                pending.append((step, sums))
                evaluating = step == total or (splits.validation is not None and step % eval_every == 0)
                saving = step == total or step % config.checkpoint_every_steps == 0
                logging = step % config.log_every_steps == 0 or step == total
                stopping = stopper.asked(logging or evaluating or saving)
                saving = saving or stopping is not None

                # Only what is about to be kept must be waited for; else the newest step stays in flight.
                if logging or evaluating or saving:
                    ready = len(pending) if evaluating or saving else len(pending) - 1
                    for ready_step, values in jax.device_get([(s, parallel.get(v)) for s, v in pending[:ready]]):
                        if not all(np.isfinite(value) for value in values.values()):
                            return _diverged(workdir, setup, splits, ready_step, settle)
                        if logging and ready_step == step < total:  # of the next line, as where it stays in flight
                            next_sums = add_step({}, values)
                        else:
                            sums_since = add_step(sums_since, values)
                    pending = pending[ready:]
                if logging and sums_since:
                    now = time.monotonic()
                    values = {**means(sums_since), "train/learning_rate": float(np.asarray(rate(step - 1)))}
                    values["train/examples_per_second"] = config.batch_size * (step - logged) / (now - tick)
                    writer.scalars(step, values)
                    progress.update(step, values["train/loss"], values["train/examples_per_second"])
                    tick, logged = now, step
                if logging:
                    sums_since, next_sums = next_sums, {}
                if evaluating and splits.validation is not None:
                    before = time.monotonic()
                    kept, named = evaluate(splits.validation)
                    if not all(map(math.isfinite, named.values())):
                        return _not_finite("the metrics on the validation split", step, settle, "")
                    writer.scalars(step, named)
                    progress.metric = f"{setup.task.best_by} {named[f'validation/{setup.task.best_by}']:.4g}"
                    progress.line(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in named.items()))
                    if rank(named) > best_rank:
                        best_rank = rank(named)
                        best.replace(step, kept, named)  # before the state of this step, which says that its evaluation is done
                    tick += time.monotonic() - before
                if written and store.idle():
                    write_status(workdir, **written)
                    written = {}
                if saving:
                    store.save(step, parallel.get(state), {"log": {"lines": writer.lines, "sums": sums_since}})
                    written = {"step": step, "train_seconds": seconds_before + time.monotonic() - began}
                if stopping is not None:
                    return stop(step, stopping)

            if splits.validation is None:
                best.replace(total, parallel.get(state).variables())
            settle()
            progress.close()
            try:
                stopper.hurry()  # all is saved: a signal need not wait for the test and the report
                finish(workdir, setup, splits, best, writer, seconds_before + time.monotonic() - began)
            except Stopped as asked:
                return stop(total, asked.number)
    return 0


def _same_records(splits: Splits) -> dict[str, Any]:
    """Return the fingerprint of the data, which must be the same for every process."""
    records = fingerprint(splits)
    found = changes(hosts.by_first(lambda: records), records)
    hosts.check_all(not found, lambda who: f"{who} found other data than process 0 in config.data.dir; give all processes the same data.")
    return records


def _restore(workdir: pathlib.Path, status: dict[str, Any], store: checkpoint.Store, setup: Setup) -> tuple[int, Any] | None:
    """Return (step, state) of the newest good checkpoint, or None if the run has not written one yet; say what is missing.

    Raises:
        UserError: if there were checkpoints, and none is left that can be used.
    """
    newest, reached = store.latest(), status.get("step", 0)
    like = jax.eval_shape(setup.steps.init, setup.shapes)
    saved = store.restore(like, setup.parallel.shardings(like))
    if saved is not None:
        if newest is not None and newest < reached:
            print(
                f"warning: the run had saved step {reached}, and the newest checkpoint in {store.folder} is step {newest}.", file=sys.stderr
            )
        return saved
    if newest is not None or reached:
        had = f"of step {reached} " if newest is None else ""
        raise UserError(
            f"no checkpoint {had}in {store.folder} could be read; restore one there, pass --restart to begin anew (the run "
            "so far is moved aside), or give another --workdir."
        )
    if lines := len(read_history(workdir)):
        print(
            f"{workdir} was stopped before its first checkpoint: it starts from step 0 again, without its {lines} lines of metrics.",
            flush=True,
        )
    return None


def _rank_of_best(best: checkpoint.Store, setup: Setup, splits: Splits, writer: Writer, why: str) -> tuple[float, float] | None:
    """Return the rank of the best variables so far, the lowest if there are none yet, or None if they are lost, with a warning."""
    before = best.latest()
    saved = best.restore(setup.shapes, setup.parallel.shardings(setup.shapes))
    if saved is not None:
        best.keep_only(saved[0])  # a kill may have left the one before
        return setup.task.rank(best.meta(saved[0]))
    evaluated = hosts.by_first(
        lambda: before is not None or any(name.startswith("validation/") for line in writer.history for name in line)
    )
    if splits.validation is None or not evaluated:
        return -math.inf, -math.inf
    print(f"warning: the best parameters so far, in {best.folder}, {why}; the best is chosen anew, from here on.", file=sys.stderr)
    return None


def _diverged(workdir: pathlib.Path, setup: Setup, splits: Splits, step: int, settle: Callable[[], str]) -> int:
    hint = f"; `python -m train.replay --workdir {workdir}` says where it began"
    code = _not_finite("the loss, its gradient or the parameters", step, settle, hint)
    leave_step(workdir, splits, setup.config, step)
    return code


def _not_finite(what: str, step: int, settle: Callable[[], str], hint: str) -> int:
    good = settle()
    print(
        f"error: {what} are not finite at step {step}; {good}. Resume with a lower --config.optim.lr or with "
        f"--config.optim.clip_norm=1{hint}.",
        file=sys.stderr,
    )
    return 1
