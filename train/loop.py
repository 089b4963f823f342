"""A run from top to bottom: open the data and the folder, resume or start, train, evaluate, keep the best, test once, report."""

import math
import pathlib
import signal
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dilax.errors import UserError
from dilax.loading import BEST, read_status
from train import checkpoint
from train.build import build, status_of
from train.config import check, task_class
from train.data import train_batches
from train.finish import finish
from train.folder import INIT_REPORT, open_folder, write_config, write_status
from train.optim import schedule
from train.score import score
from train.transfer import init_from
from train.writers import Progress, Writer, write_text


def run(config: ConfigDict, workdir: pathlib.Path, *, restart: bool = False) -> int:
    """Train what `config` says in `workdir`; an unfinished run of the same config in it is resumed.

    Args:
        config: As `train.config.default_config` returns it.
        workdir: Folder of the run, absolute.
        restart: Whether to move an earlier run aside and begin anew.

    Returns:
        The exit code: 0 when finished, 1 after a non-finite loss, 128 + the signal's number when stopped by Ctrl-C or SIGTERM.

    Raises:
        UserError: if config, data or folder cannot be used.
    """
    began = time.monotonic()
    if jax.process_count() > 1:
        raise UserError(f"train runs in one process, and {jax.process_count()} have joined; it uses all devices of one host.")
    check(config)
    if not restart:
        open_folder(config, workdir)
    splits = task_class(config.task).open(config)
    print(splits.describe(), flush=True)
    setup = build(config, splits.spec)
    if restart:  # the old run stays where it is until everything else is known to be right
        if config.init_from:
            init_from(config, setup.init(), setup.spec)
        open_folder(config, workdir, restart=True)
    parallel, total, workers = setup.parallel, setup.total_steps, config.data.workers
    rate = schedule(config.optim, setup.steps_per_epoch, total)
    eval_every = max(1, round(config.eval_every_epochs * setup.steps_per_epoch))
    rank = setup.task.rank

    with (
        checkpoint.Store(workdir / checkpoint.CHECKPOINTS, config.keep_checkpoints) as store,
        checkpoint.Store(workdir / BEST) as best,
        Stopper() as stopper,
    ):
        # Resume this run; else begin from the parameters of another; else from scratch.
        saved = store.restore(jax.eval_shape(setup.steps.init, setup.shapes), parallel.replicated)
        if saved is not None:
            print(f"resuming {workdir} at step {saved[0]} of {total}", flush=True)
            start, state = saved
        else:
            variables = setup.init()
            if config.init_from:
                variables, report = init_from(config, variables, setup.spec)
                write_text(workdir / INIT_REPORT, report)
                print(report.splitlines()[0], *(line for line in report.splitlines() if " loaded " not in line), sep="\n", flush=True)
            start, state = 0, setup.steps.init(variables)
        if start > total:
            raise UserError(
                f"{workdir} is at step {start} already, beyond config.total_epochs={config.total_epochs:g} (step {total}); pass more."
            )
        state = parallel.put(state)
        newest = best.latest()
        best_rank = (-math.inf, -math.inf) if newest is None else rank(best.meta(newest))
        seconds_before = read_status(workdir).get("train_seconds", 0.0) if saved else 0.0
        write_status(workdir, finished=False, **status_of(setup))
        write_config(workdir, config)

        with Writer(workdir, start) as writer, Progress(total, start) as progress:
            # The batch and the key of a step are functions of (config, step), so a resumed run equals the unbroken one.
            batches = train_batches(splits.train, config.batch_size, seed=config.seed, start_step=start, workers=workers)
            key = jax.random.key(config.seed + 1)
            pending: list[tuple[int, Any]] = []
            window: list[Any] = []
            tick = time.monotonic()
            for step, batch in zip(range(start + 1, total + 1), batches):
                state, sums = parallel.train(state, parallel.put_batch(batch), key)
                pending.append((step, sums))
                evaluating = step == total or (splits.validation is not None and step % eval_every == 0)
                stopping = stopper.signal  # read once: a signal may come at any line
                saving = step == total or step % config.checkpoint_every_steps == 0 or stopping is not None
                logging = step % config.log_every_steps == 0 or step == total

                # Only what is about to be kept must be waited for; else the newest step stays in flight.
                if logging or evaluating or saving:
                    ready = len(pending) if evaluating or saving else len(pending) - 1
                    for ready_step, values in jax.device_get([(s, parallel.get(v)) for s, v in pending[:ready]]):
                        if not all(np.isfinite(value) for value in values.values()):
                            return _diverged(ready_step, store)
                        window.append(values)
                    pending = pending[ready:]
                if logging and window:
                    now = time.monotonic()
                    values = {**_means(window), "train/learning_rate": float(np.asarray(rate(step - 1)))}
                    values["train/examples_per_second"] = config.batch_size * len(window) / (now - tick)
                    writer.scalars(step, values)
                    speed = f"{len(window) / (now - tick):.1f} steps/s  {values['train/examples_per_second']:.0f} examples/s"
                    progress.update(step, f"loss {values['train/loss']:.4f}  {speed}")
                    window, tick = [], now
                if evaluating and splits.validation is not None:
                    before = time.monotonic()
                    kept = parallel.get(state).variables()
                    metrics, _ = score(setup, parallel.put(kept), splits.validation)
                    named = {f"validation/{name}": value for name, value in metrics.items()}
                    if not all(map(math.isfinite, named.values())):
                        return _diverged(step, store)
                    writer.scalars(step, named)
                    progress.line(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in named.items()))
                    if rank(named) > best_rank:
                        best_rank = rank(named)
                        best.save(step, kept, named)
                        best.wait()  # before the state of this step, which says that its evaluation is done
                    tick += time.monotonic() - before
                if saving:
                    store.save(step, parallel.get(state))
                    write_status(workdir, step=step, train_seconds=seconds_before + time.monotonic() - began)
                if stopping is not None and step < total:
                    store.wait()
                    progress.line(f"stopped at step {step} of {total}, saved in {workdir}; run the same command again to resume.")
                    return 128 + stopping

            if splits.validation is None:
                best.save(total, parallel.get(state).variables())
            best.wait()
            store.wait()
            finish(workdir, setup, splits, best, writer, seconds_before + time.monotonic() - began)
    return 0


def _means(window: list[Any]) -> dict[str, float]:
    count = sum(float(values["count"]) for values in window)
    names = [name for name in window[0] if name not in ("count", "gradient_norm", "parameter_norm")]
    means = {f"train/{name}": sum(float(values[name]) for values in window) / count for name in names}
    return {**means, "train/gradient_norm": sum(float(values["gradient_norm"]) for values in window) / len(window)}


def _diverged(step: int, store: checkpoint.Store) -> int:
    store.wait()
    last = store.latest()
    good = "there is no checkpoint before it" if last is None else f"the last good checkpoint is step {last} in {store.folder}"
    print(
        f"error: the loss, its gradient or the parameters are not finite at step {step}; {good}. "
        "Resume with a lower --config.optim.lr or with --config.optim.clip_norm=1.",
        file=sys.stderr,
    )
    return 1


class Stopper:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step; the second acts as usual."""

    def __init__(self):
        """Start without a request."""
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread, which alone may handle signals
                return self
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def _ask(self, number: int, _: Any) -> None:
        self.signal = int(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}
