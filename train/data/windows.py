"""Sequences of different lengths as one array, and windows of long sequences."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dilax.errors import UserError
from train.data.source import Record


def padded(sequences: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences (time, ...) as one array (n, length, ...), with zeros behind their ends, and their lengths (n,).

    Raises:
        UserError: if one is empty, or longer than `length`.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    for i, count in enumerate(lengths):
        if not 0 < count <= length:
            raise UserError(f"data: sequence {i} has {count} steps, and 1 to {length} fit; set config.sequence.length to the longest.")
    together = np.zeros((len(sequences), length, *sequences[0].shape[1:]), sequences[0].dtype)
    for row, sequence in zip(together, sequences):
        row[: len(sequence)] = sequence
    return together, lengths


@dataclasses.dataclass(frozen=True)
class Windows:
    """Long sequences cut into windows, each step of which is to give the sample after it.

    A window begins `context` samples before the last one's end, so that its first scored step has seen as much; those samples are read and
    not scored, but in the first window of a sequence. So every sample but the first of a sequence is scored once, or at
    least once where windows begin at shorter distances.

    Attributes:
        values: The sequences, one after the other, (samples, ...).
        ends: Where each ends, (n,).
        length: Steps of a window.
        context: Those at its start that are not scored.
        starts: Where each window begins.
    """

    values: np.ndarray
    ends: np.ndarray
    length: int
    context: int
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Record:
        return {name: values[0] for name, values in self.gather(np.array([index])).items()}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the windows at `indices` as one batch: "input", "label", "length" and "counted"."""
        starts = self.starts[indices][:, None]
        which = np.searchsorted(self.ends, starts, side="right")
        steps = np.arange(self.length)[None]
        real = starts + steps + 1 < self.ends[which]  # those that have a sample after them
        first = starts == np.concatenate([[0], self.ends])[which]
        places = np.where(real, starts + steps, 0)
        x, y = self.values[places], self.values[places + 1]
        blank = real.reshape(*real.shape, *(1,) * (self.values.ndim - 1))
        zero = np.zeros((), self.values.dtype)
        return {
            "input": np.where(blank, x, zero),
            "label": np.where(blank, y, zero),
            "length": real.sum(1).astype(np.int32),
            "counted": real & (first | (steps >= self.context)),
        }


def windows(sequences: Sequence[np.ndarray], length: int, context: int, name: str, *, stride: int = 0, short: bool = False) -> Windows:
    """Cut sequences (samples, ...) into windows; a sequence that is shorter makes one, padded.

    Args:
        sequences: Of one kind.
        length: As `Windows`; so is context.
        context: Less than length.
        name: Of the sequences, for errors.
        stride: From the start of a window to that of the next; 0 is length - context, so that no sample is scored twice.
        short: Whether all of them may be shorter than a window.

    Raises:
        UserError: if a window is not longer than its context, the stride leaves samples out, or no sequence is as long as a window.
    """
    if not 0 <= context < length:
        raise UserError(f"config.sequence.context={context} leaves nothing of windows of config.sequence.length={length}; make it less.")
    stride = stride or length - context
    if stride > length - context:
        raise UserError(
            f"config.sequence.stride={stride} leaves samples out between windows of config.sequence.length={length} of which "
            f"config.sequence.context={context} are not scored; make it at most {length - context}."
        )
    longest = max(len(sequence) for sequence in sequences)
    if longest < 2:
        raise UserError(f"{name} has at most {longest} samples in one piece, and 2 are needed; give more data.")
    if longest <= length and not short:
        raise UserError(
            f"{name} has at most {longest} samples in one piece, and a window needs config.sequence.length + 1 = {length + 1}; "
            "make it less, or give more data."
        )
    ends = np.cumsum([len(sequence) for sequence in sequences])
    starts: list[np.ndarray] = []
    for begin, end in zip(ends - [len(sequence) for sequence in sequences], ends):
        # The last window is the one that scores the last sample.
        more = max(0, -(-(end - begin - 1 - length) // stride))
        if end - begin > 1:
            starts.append(begin + np.arange(more + 1) * stride)
    return Windows(np.concatenate(sequences), ends, length, context, np.concatenate(starts))
