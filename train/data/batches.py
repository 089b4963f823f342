"""Batches from a source; the batch of a step is a pure function of (seed, step)."""

import collections
import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from dilax.errors import UserError
from train.data.source import Batch, Source, gather, in_memory
from train.data.splits import EPOCH, permutation

_ENDLESS = 2**40
_AHEAD = 2  # batches per worker process that are being read, or wait to be used

Batches = Generator[Batch]


def train_batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    rows: np.ndarray | None = None,
) -> Batches:
    """Yield shuffled batches without end, from that of step `start_step` on.

    Step s takes the positions s * batch_size ... (s + 1) * batch_size - 1 of the endless concatenation of one permutation per epoch.
    So a batch may straddle epochs, every record is seen once per epoch, and a resumed run gets the batches that it would have got.

    Args:
        source: The records.
        batch_size: Records per step, over all processes.
        seed: Seed of the permutations; not negative.
        start_step: The first step.
        workers: Number of worker processes that read ahead; 0 reads in this process, as happens with a source in memory. The batches are
            the same.
        rows: The rows of each batch to read and yield, ascending, such as those of the devices of this process; None is all of them.

    Yields: the fields of the records, stacked, (rows, ...).
    Raises: UserError: if the source is empty, or a worker process is killed.
    """
    rows = _rows(source, batch_size, rows)
    return _run(functools.partial(_train_batch, source, batch_size, rows, seed), start_step, _ENDLESS, _workers(source, workers))


def eval_batches(
    source: Source,
    batch_size: int,
    *,
    workers: int = 0,
    rows: np.ndarray | None = None,
) -> Batches:
    """Yield every record once, in order; arguments and errors as `train_batches`.

    Yields: the fields of the records, stacked, with "mask", bool (rows,): the last batch is filled up with copies of the last record, which
        the mask does not count.
    """
    rows = _rows(source, batch_size, rows)
    return _run(functools.partial(_eval_batch, source, batch_size, rows), 0, -(-len(source) // batch_size), _workers(source, workers))


def _rows(source: Source, batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    """Return the rows of a batch to read."""
    if len(source) == 0:
        raise UserError("data: there are no records to make batches of; check data.classes and data.validation.")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is not a number of records; choose a positive one.")
    return np.arange(batch_size) if rows is None else np.asarray(rows)


def _workers(source: Source, workers: int) -> int:
    return 0 if in_memory(source) else workers


def _train_batch(source: Source, batch_size: int, rows: np.ndarray, seed: int, step: int) -> Batch:
    return gather(source, indices_of(len(source), batch_size, seed, step)[rows])


def indices_of(records: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return which of the records the batch of a step holds, (batch_size,); arguments as `train_batches`."""
    positions = step * batch_size + np.arange(batch_size)
    epochs, offsets = np.divmod(positions, records)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        at = epochs == epoch
        indices[at] = _order(records, seed, int(epoch))[offsets[at]]
    return indices


@functools.lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(n, EPOCH, seed, epoch)


def _eval_batch(source: Source, batch_size: int, rows: np.ndarray, step: int) -> Batch:
    positions = step * batch_size + rows
    batch = gather(source, np.minimum(positions, len(source) - 1))
    return {**batch, "mask": positions < len(source)}


def _run(batch_at: Callable[[int], Batch], start: int, stop: int, workers: int) -> Batches:
    """Yield batch_at(step) for start <= step < stop, in order."""
    if workers == 0:
        yield from map(batch_at, range(start, stop))
        return
    steps = iter(range(start, stop))
    # Results come through pipes. Shared memory would be faster, but containers have little of it (Docker: 64 MB).
    with _without_signals():  # the process that cleans up after the others starts here
        pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (batch_at,))
    ahead: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()

    def read_ahead() -> None:
        with _without_signals():  # worker processes that start here inherit this
            while len(ahead) < _AHEAD * workers and (step := next(steps, None)) is not None:
                ahead.append(pool.submit(_worker_batch, step))

    try:
        with _explained():
            read_ahead()
        while ahead:
            with _explained():
                batch = ahead.popleft().result()
                read_ahead()
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn the error of a pool whose worker process was killed into one line."""
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            "data: a worker process that reads the data was killed, perhaps for lack of memory; set config.data.workers lower, or to 0."
        ) from error


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """Delay in this thread the signals that end a run. Processes that start meanwhile ignore them.

    A terminal or a scheduler sends them to the worker processes, too, but the run still needs these for the step that it finishes, and ends
    them itself.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_RUNS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


# Of SIGTERM a worker process has to know the sender, which not every system tells: the pool sends it to end its processes.
_OF_RUNS = {signal.SIGINT, *((signal.SIGHUP, signal.SIGTERM) if hasattr(signal, "sigwaitinfo") else ())}
# In a worker process, the function that returns the batch of a step.
_batch_at: Callable[[int], Batch] | None = None


def _start_worker(batch_at: Callable[[int], Batch]) -> None:
    """Keep the function in this worker process, and end the process when its parent ends, even if that is killed."""
    global _batch_at
    _batch_at = batch_at
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    def end_by_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
    if signal.SIGTERM in _OF_RUNS:
        threading.Thread(target=end_by_parent, daemon=True).start()


def _worker_batch(step: int) -> Batch:
    assert _batch_at is not None
    return _batch_at(step)
