"""Sequences of different lengths as one array, and windows of long sequences."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dilax.errors import UserError


def padded(sequences: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences, each (time, ...), as one array (n, length, ...) that zeros fill up after their ends, and their lengths, int32 (n,).

    Raises:
        UserError: if a sequence is empty, or longer than `length`.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    for i, count in enumerate(lengths):
        if not 0 < count <= length:
            raise UserError(f"data: sequence {i} has {count} steps, but 1 to {length} fit; set config.sequence.length to the longest.")
    together = np.zeros((len(sequences), length, *sequences[0].shape[1:]), sequences[0].dtype)
    for row, sequence in zip(together, sequences):
        row[: len(sequence)] = sequence
    return together, lengths


@dataclasses.dataclass(frozen=True)
class Windows:
    """A source of windows of long sequences, in which the target of each step is the next sample.

    A window begins `context` steps before the end of the one before it. These steps are read, so that the first scored step sees as much as
    the others, but they are not scored, except in the first window of a sequence. So every sample of a sequence but the first is scored
    once, or at least once if windows begin at shorter distances.

    Attributes:
        values: The sequences, one after the other, (samples, ...).
        ends: Where each sequence ends, (sequences,).
        length: Steps of a window.
        context: Steps at the start of a window that are not scored.
        starts: Where each window begins, (windows,).
    """

    values: np.ndarray
    ends: np.ndarray
    length: int
    context: int
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in self.gather(np.array([index])).items()}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the windows at `indices` as one batch.

        Returns:
            "input" and "label", (n, length, ...), in which zeros follow the valid steps; "length", int32 (n,), the number of valid steps;
            and "counted", bool (n, length), the steps that are scored.
        """
        starts = self.starts[indices][:, None]
        sequence = np.searchsorted(self.ends, starts, side="right")
        steps = np.arange(self.length)[None]
        valid = starts + steps + 1 < self.ends[sequence]  # steps that have a next sample
        first = starts == np.concatenate([[0], self.ends])[sequence]
        positions = np.where(valid, starts + steps, 0)
        x, y = self.values[positions], self.values[positions + 1]
        mask = valid.reshape(*valid.shape, *(1,) * (self.values.ndim - 1))
        zero = np.zeros((), self.values.dtype)
        return {
            "input": np.where(mask, x, zero),
            "label": np.where(mask, y, zero),
            "length": valid.sum(1).astype(np.int32),
            "counted": valid & (first | (steps >= self.context)),
        }


def windows(sequences: Sequence[np.ndarray], length: int, context: int, name: str, *, stride: int = 0, short: bool = False) -> Windows:
    """Cut sequences, each (samples, ...), into windows; a sequence shorter than a window becomes one window, padded.

    Args:
        sequences: Sequences of one dtype and of one shape but for their first axis.
        length: Steps of a window.
        context: Steps at the start of a window that are not scored; fewer than `length`.
        name: Name of the sequences, for errors.
        stride: Steps between the starts of two windows; 0 is length - context, so that no sample is scored twice.
        short: Whether all sequences may be shorter than a window.

    Raises:
        UserError: if a window is not longer than its context, the stride leaves samples out, or no sequence is long enough.
    """
    if not 0 <= context < length:
        raise UserError(
            f"config.sequence.context={context} leaves no step to score in windows of config.sequence.length={length}; make it smaller."
        )
    stride = stride or length - context
    if stride > length - context:
        raise UserError(
            f"config.sequence.stride={stride} leaves samples out between windows of config.sequence.length={length} of which "
            f"config.sequence.context={context} steps are not scored; make it at most {length - context}."
        )
    longest = max(len(sequence) for sequence in sequences)
    if longest < 2:
        raise UserError(f"{name} has at most {longest} samples in one piece, but 2 are needed; give more data.")
    if longest <= length and not short:
        raise UserError(
            f"{name} has at most {longest} samples in one piece, but a window needs config.sequence.length + 1 = {length + 1}; "
            "make it smaller, or give more data."
        )
    ends = np.cumsum([len(sequence) for sequence in sequences])
    starts: list[np.ndarray] = []
    for begin, end in zip(ends - [len(sequence) for sequence in sequences], ends):
        # The last window is the one that scores the last sample.
        more = max(0, -(-(end - begin - 1 - length) // stride))
        if end - begin > 1:
            starts.append(begin + np.arange(more + 1) * stride)
    return Windows(np.concatenate(sequences), ends, length, context, np.concatenate(starts))
