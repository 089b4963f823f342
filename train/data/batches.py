"""Batches from a source; the batch of a step is a pure function of (seed, step)."""

import atexit
import functools
import pickle
import signal
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from dilax.errors import UserError
from train.data import source as sources
from train.data.splits import EPOCH, permutation

Batch = dict[str, np.ndarray]
_ENDLESS = 2**40


def train_batches(
    source: sources.Source,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch]:
    """Yield shuffled batches without end, from that of step `start_step` on.

    Step s takes the positions s * batch_size ... (s + 1) * batch_size - 1 of the endless concatenation of one permutation an epoch.
    So a batch may straddle epochs, every record is seen once an epoch, and a resumed run gets the batches that it would have got.

    Args:
        source: The records; read in worker processes unless they are in memory.
        batch_size: Records a step, over all processes.
        seed: Chooses the permutations; not negative.
        start_step: The first step.
        workers: Worker processes that read ahead; 0 reads in this process. The batches are the same.
        process_index: Which slice of each batch to yield.
        process_count: Number of such slices.

    Yields: the records' fields, stacked: of images {"image": uint8 (batch_size / process_count, h, w, c), "label": int32
        (batch_size / process_count,), or uint8 masks (batch_size / process_count, h, w)}.
    Raises: UserError: if the source is empty or the batch cannot be split over the processes.
    """
    span = _span(source, batch_size, process_index, process_count)
    return _run(functools.partial(_train_batch, source, batch_size, span, seed), start_step, _ENDLESS, _workers(source, workers))


def eval_batches(
    source: sources.Source,
    batch_size: int,
    *,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch]:
    """Yield every record once, in order; arguments as `train_batches`.

    Yields: a batch with "mask", bool (batch_size / process_count,): the last record fills the last batch up, and does not count.
    """
    span = _span(source, batch_size, process_index, process_count)
    return _run(functools.partial(_eval_batch, source, batch_size, span), 0, -(-len(source) // batch_size), _workers(source, workers))


def _span(source: sources.Source, batch_size: int, process_index: int, process_count: int) -> range:
    """Return the offsets in a batch that belong to this process."""
    if len(source) == 0:
        raise UserError("data: there are no records to make batches of; check data.classes and data.validation.")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch_size={batch_size} cannot be split over {process_count} process(es); choose a positive multiple of it.")
    size = batch_size // process_count
    return range(process_index * size, (process_index + 1) * size)


def _workers(source: sources.Source, workers: int) -> int:
    return 0 if sources.in_memory(source) else workers


def _train_batch(source: sources.Source, batch_size: int, span: range, seed: int, step: int) -> Batch:
    positions = step * batch_size + np.arange(span.start, span.stop)
    epochs, offsets = np.divmod(positions, len(source))
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        at = epochs == epoch
        indices[at] = _order(len(source), seed, int(epoch))[offsets[at]]
    return sources.gather(source, indices)


@functools.lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(n, EPOCH, seed, epoch)


def _eval_batch(source: sources.Source, batch_size: int, span: range, step: int) -> Batch:
    positions = step * batch_size + np.arange(span.start, span.stop)
    batch = sources.gather(source, np.minimum(positions, len(source) - 1))
    return {**batch, "mask": positions < len(source)}


def _run(batch_at: Callable[[int], Batch], start: int, stop: int, workers: int) -> Generator[Batch]:
    """Yield batch_at(step) for start <= step < stop, in order."""
    if workers == 0:
        yield from map(batch_at, range(start, stop))
        return
    # Pickled, a batch comes through a pipe. Arrays would come through shared memory, of which a container has little (Docker: 64 MB).
    readers = [_reader(lambda step: pickle.dumps(batch_at(step), protocol=5), start, stop, workers)]

    def close() -> None:
        while readers:
            readers.pop().close()

    atexit.register(close)  # grain's own clean-up fails when it runs as late as the end of the interpreter
    try:
        while readers and (batch := next(readers[0], None)) is not None:
            yield pickle.loads(batch)
    finally:
        close()
        atexit.unregister(close)


def _reader(function: Callable[[int], Any], start: int, stop: int, workers: int) -> Any:
    """Return an iterator of function(step) for start <= step < stop, run ahead in worker processes by grain."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads flags, also where no absl app has parsed any
        flags.FLAGS.mark_as_parsed()
    steps: Any = grain.MapDataset.range(start, stop).map(function)
    dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))  # threads in the workers only slow them
    return iter(dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2), _ignore_interrupt))


def _ignore_interrupt(*_: int) -> None:
    """Leave Ctrl-C, which a terminal sends to the workers as well, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
