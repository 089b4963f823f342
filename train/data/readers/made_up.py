"""Synthetic data: memory tasks, as Bai, Kolter & Koltun 2018 (arXiv:1803.01271, section 5) define and size them, and actions."""

import numpy as np

from dilax.errors import UserError
from train.data.source import Table

ADDING_EXAMPLES, COPY_EXAMPLES, TEST_EXAMPLES = 50_000, 10_000, 1_000
SYMBOLS = 10
ACTIONS = ("background", "pour", "cut", "mix", "serve")
ACTION_RECORDINGS = 40
_COPIED, _BLANK, _GO = 10, 0, 9


def adding(examples: int, length: int, *key: int) -> Table:
    """Return sequences of numbers, two of which are to be added (Hochreiter & Schmidhuber 1997, section 5.4).

    Args:
        examples: The number of sequences, n.
        length: The steps of each, at least 2.
        *key: Integers that seed the random numbers; the same key returns the same sequences.

    Returns:
        A table with "input", float32 (n, length, 2): a number in 0..1, and a mark that is 1 at one step of each half and 0 elsewhere;
        "label", float32 (n, length, 1): the sum of the two marked numbers at the last step, which alone is scored, as "counted" says,
        bool (n, length); and "length", int32 (n,).

    Raises:
        UserError: if the length is below 2.
    """
    if length < 2:
        raise UserError(f'config.sequence.length={length} is too short for data.name="adding", which marks two steps; give 2 or more.')
    random = np.random.default_rng(np.random.SeedSequence(key))
    numbers = random.random((examples, length), np.float32)
    rows, half = np.arange(examples), length // 2
    marks, total = np.zeros_like(numbers), np.zeros(examples, np.float32)
    for low, high in ((0, half), (half, length)):
        steps = random.integers(low, high, examples)
        marks[rows, steps] = 1
        total += numbers[rows, steps]
    label, counted = np.zeros((examples, length, 1), np.float32), np.zeros((examples, length), bool)
    label[:, -1, 0], counted[:, -1] = total, True
    lengths = np.full(examples, length, np.int32)
    return Table({"input": np.stack([numbers, marks], -1), "length": lengths, "label": label, "counted": counted})


def copy_memory(examples: int, length: int, *key: int) -> Table:
    """Return sequences of codes, the first ten of which are to be repeated `length` steps later.

    Every step is scored. Predicting blanks, and at the ten last steps one of the eight codes at random, costs 10 ln 8 / (length + 20) nats
    per step.

    Args:
        examples: The number of sequences, n.
        length: The steps from the end of the ten codes to their repetition, at least 1.
        *key: Integers that seed the random codes; the same key returns the same sequences.

    Returns:
        A table with "input", int32 (n, length + 20): ten codes from 1 to 8, length - 1 blanks (0), and eleven times 9, the first of which
        is the signal to begin; "label", int32 (n, length + 20): length + 10 blanks, then the ten codes; "counted", bool (n, length + 20),
        true throughout; and "length", int32 (n,).

    Raises:
        UserError: if the length is below 1.
    """
    if length < 1:
        raise UserError(f'config.sequence.length={length} is too short for data.name="copy_memory"; give 1 or more.')
    random = np.random.default_rng(np.random.SeedSequence(key))
    codes = random.integers(1, SYMBOLS - 1, (examples, _COPIED))
    total = length + 2 * _COPIED
    x, y = np.full((examples, total), _BLANK, np.int32), np.full((examples, total), _BLANK, np.int32)
    x[:, :_COPIED], x[:, -_COPIED - 1 :], y[:, -_COPIED:] = codes, _GO, codes
    lengths = np.full(examples, total, np.int32)
    return Table({"input": x, "length": lengths, "label": y, "counted": np.ones((examples, total), bool)})


def actions(count: int, length: int, *key: int) -> list[tuple[np.ndarray, list[str]]]:
    """Return recordings of actions: runs of `ACTIONS`, none after itself, whose features are noisy, so that single steps are ambiguous.

    Args:
        count: The number of recordings.
        length: The steps of the longest, at least 24; the others have half as many or more.
        *key: Integers that seed the random numbers; the same key returns the same recordings.

    Returns:
        For each recording features, float32 (time, 6), and the action of each step.

    Raises:
        UserError: if the length is below 24.
    """
    if length < 24:
        raise UserError(f'config.sequence.length={length} is too short for data.name="actions"; give 24 or more, or 0 for 200.')
    random, kinds = np.random.default_rng(np.random.SeedSequence(key)), len(ACTIONS)
    centres = np.random.default_rng(0).normal(size=(kinds, 6))
    found = []
    for steps in random.integers(length // 2, length + 1, count).tolist():
        labels, action = list[int](), int(random.integers(kinds))
        while len(labels) < steps:
            labels += [action] * int(random.integers(6, 25))
            action = (action + int(random.integers(1, kinds))) % kinds
        labels = labels[:steps]
        found.append(((centres[labels] + 1.5 * random.normal(size=(steps, 6))).astype(np.float32), [ACTIONS[i] for i in labels]))
    return found
