"""The made-up tasks that measure memory, as Bai, Kolter & Koltun 2018 (arXiv:1803.01271, section 5) define and size them."""

import numpy as np

from dilax.errors import UserError
from train.data.source import Table

ADDING_EXAMPLES, COPY_EXAMPLES, TEST_EXAMPLES = 50_000, 10_000, 1_000
COPIED, SYMBOLS, BLANK, GO = 10, 10, 0, 9


def adding(examples: int, length: int, *key: int) -> Table:
    """Return sequences of numbers, two of which are to be added (Hochreiter & Schmidhuber 1997, section 5.4).

    "input" (n, length, 2): a number from 0 to 1, and a mark, which is 1 at one step of the first half and at one of the second, else 0.
    "label" (n, length, 1): the sum of the two marked numbers, scored at the last step alone.
    """
    if length < 2:
        raise UserError(f'config.sequence.length={length} is too short for data.name="adding", which marks two steps; give 2 or more.')
    random = np.random.default_rng(np.random.SeedSequence(key))
    numbers = random.random((examples, length), np.float32)
    rows, half = np.arange(examples), length // 2
    marks, total = np.zeros_like(numbers), np.zeros(examples, np.float32)
    for low, high in ((0, half), (half, length)):
        places = random.integers(low, high, examples)
        marks[rows, places] = 1
        total += numbers[rows, places]
    label, counted = np.zeros((examples, length, 1), np.float32), np.zeros((examples, length), bool)
    label[:, -1, 0], counted[:, -1] = total, True
    return Table({"input": np.stack([numbers, marks], -1), "length": full(examples, length), "label": label, "counted": counted})


def copy_memory(examples: int, length: int, *key: int) -> Table:
    """Return sequences of codes, the first ten of which are to be said again `length` steps later.

    "input" (n, length + 20): ten codes from 1 to 8, length - 1 blanks (0), and eleven 9, the first of which says: go.
    "label" (n, length + 20): length + 10 blanks, and the ten codes. Every step is scored: to give blanks, and any of the eight codes at
    the end, costs 10 ln 8 / (length + 20) nats a step.
    """
    if length < 1:
        raise UserError(f'config.sequence.length={length} is too short for data.name="copy_memory"; give 1 or more.')
    random = np.random.default_rng(np.random.SeedSequence(key))
    codes = random.integers(1, SYMBOLS - 1, (examples, COPIED))
    total = length + 2 * COPIED
    x, y = np.full((examples, total), BLANK, np.int32), np.full((examples, total), BLANK, np.int32)
    x[:, :COPIED], x[:, -COPIED - 1 :], y[:, -COPIED:] = codes, GO, codes
    return Table({"input": x, "length": full(examples, total), "label": y, "counted": np.ones((examples, total), bool)})


def full(examples: int, length: int) -> np.ndarray:
    """Return the lengths of sequences that are all as long."""
    return np.full(examples, length, np.int32)
