"""Scores of segments: slow counts on the host, published predictions, and what no score may depend on."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reading import check_call

from dilax.segments import f1_score, segment_scores, segments

RNG = np.random.default_rng(3)
OVERLAPS = (0.1, 0.25, 0.5, 1.0)
COUNTS = ("found", "wrong", "missed")
SALADS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "salads"


def runs(row: np.ndarray, ignored: int | None) -> list[tuple[int, int, int]]:
    """Start, end and class of each run, found step by step."""
    found, start = [], 0
    for t in range(1, len(row) + 1):
        if t == len(row) or row[t] != row[start]:
            found += [(start, t, int(row[start]))] * bool(row[start] != ignored)
            start = t
    return found


def distance(a: list[int], b: list[int]) -> int:
    """Levenshtein distance by its definition."""

    @functools.cache
    def between(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return between(len(a), len(b))


def slow(found: np.ndarray, truth: np.ndarray, ignored: int | None) -> tuple[float, list[tuple[int, int, int]]]:
    """Edit score, and found, wrong and missed segments for each overlap, of one sequence; segments are matched one after the other."""
    ours, theirs = runs(found, ignored), runs(truth, ignored)
    counts = []
    for overlap in OVERLAPS:
        hits: set[int] = set()
        for a, b, kind in ours:
            ious = [0.0 if k != kind else max(0, min(b, d) - max(a, c)) / len({*range(a, b)} | {*range(c, d)}) for c, d, k in theirs]
            if ious and max(ious) >= overlap:
                hits.add(ious.index(max(ious)))
        counts.append((len(hits), len(ours) - len(hits), len(theirs) - len(hits)))
    longest = max(len(ours), len(theirs))
    return (1 - distance([k for *_, k in ours], [k for *_, k in theirs]) / longest if longest else 1.0), counts


def sequences(seed: int, steps: int = 37, batch: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Found and true classes that partly agree, and lengths; some sequences are of one class, one has no step."""
    rng = np.random.default_rng(seed)
    truth = np.stack([np.repeat(rng.integers(0, 4, steps), rng.integers(1, 9, steps))[:steps] for _ in range(batch)])
    found = np.where(rng.random(truth.shape) < rng.uniform(0.02, 0.5, (batch, 1)), rng.integers(0, 4, truth.shape), np.roll(truth, 2, 1))
    found[0], truth[1], found[2], truth[2] = 1, 0, 0, 0
    lengths = rng.integers(1, steps + 1, batch)
    lengths[3], lengths[4] = 0, 1
    return found.astype(np.int32), truth.astype(np.int32), lengths


@pytest.mark.parametrize("ignored", [None, 0])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_equal_the_slow_counts(seed, ignored):
    found, truth, lengths = sequences(seed)
    mask = np.arange(found.shape[1])[None] < lengths[:, None]
    scores = jax.jit(lambda *arrays: segment_scores(*arrays, overlaps=OVERLAPS, ignored=ignored))(found, truth, mask)
    expected = [slow(a[:n], b[:n], ignored) for a, b, n in zip(found, truth, lengths)]
    np.testing.assert_allclose(scores["edit"], [edit for edit, _ in expected], rtol=1e-5)
    np.testing.assert_array_equal(np.stack([scores[name] for name in COUNTS], -1), [counts for _, counts in expected])
    counts = np.sum([counts for _, counts in expected], 0)
    f1 = f1_score(*counts.T)
    precision, recall = counts[:, 0] / counts[:, :2].sum(1), counts[:, 0] / (counts[:, 0] + counts[:, 2])
    np.testing.assert_allclose(f1, 2 * precision * recall / np.maximum(precision + recall, 1e-9))
    assert f1[-1] < f1[0] < 1 and f1[0] > 0


def test_what_is_masked_changes_nothing():
    found, truth, lengths = sequences(5)
    mask = np.arange(found.shape[1])[None] < lengths[:, None]
    other = [np.where(mask, row, RNG.integers(0, 4, row.shape)).astype(np.int32) for row in (found, truth)]
    first, second = (segment_scores(jnp.asarray(a), jnp.asarray(b), jnp.asarray(mask)) for a, b in ((found, truth), other))
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)


def test_runs_of_a_sequence():
    for row in sequences(2)[1]:
        assert [tuple(one) for one in segments(row)] == runs(row, None)
    assert segments([]) == []
    assert segments(np.array(["a", "b", "b"]))[1] == (1, 3, "b")


# Networks, and over the recordings and then the five splits the means of accuracy, edit score and F1 at 10, 25 and 50 %, in percent, with
# class 0 left out of the last four.
PUBLISHED = {
    "mid_video_DilatedTCN_B3_L5/{}.mat": (59.29, 43.14, 52.24, 47.63, 37.43),
    "mid_video_ED-TCN_L2_C15/{}.mat": (64.68, 59.85, 68.02, 63.89, 52.55),
    "mid_video_SVM/Split_{}.mat": (54.94, 21.43, 28.69, 22.69, 15.36),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.skipif(not SALADS.is_dir(), reason="the predictions of the authors are not here")
def test_scores_of_published_predictions(name):
    from scipy.io import loadmat

    scores: list[Any] = []
    for split in range(1, 6):
        cells = loadmat(SALADS / name.format(split))
        pairs = [(np.ravel(p), np.ravel(y)) for p, y in zip(cells["P"].ravel(), cells["Y"].ravel())]
        steps = 600
        found, truth = (np.stack([np.pad(pair[i], (0, steps - len(pair[i]))) for pair in pairs]).astype(np.int32) for i in (0, 1))
        mask = np.arange(steps)[None] < np.array([len(p) for p, _ in pairs])[:, None]
        one = segment_scores(*map(jnp.asarray, (found, truth, mask)), ignored=0)
        f1 = f1_score(*(one[key] for key in COUNTS)).mean(0)
        scores.append([np.mean([np.mean(np.ravel(p) == np.ravel(y)) for p, y in pairs]), one["edit"].mean(), *f1])
    np.testing.assert_allclose(100 * np.mean(scores, 0), PUBLISHED[name], atol=0.005)


ROW = jnp.zeros((2, 5), jnp.int32)
MISTAKES = {
    "segments: labels=[[1, 2]] must be integers or texts, one for every step.": lambda: segments([[1, 2]]),
    "segments: labels=[0.5] must be integers or texts, one for every step.": lambda: segments([0.5]),
    "segment_scores: found of shape (2, 5), labels of shape (2, 4) and mask of shape (2, 5) must all be (batch, time).": lambda: (
        segment_scores(ROW, ROW[:, :4], ROW == 0)
    ),
    "segment_scores: overlaps=(0.5, 0) holds 0; give shares above 0, up to 1.": lambda: segment_scores(
        ROW, ROW, ROW == 0, overlaps=(0.5, 0)
    ),
    "segment_scores: overlaps=0.5 is not a sequence of numbers; give one, such as (0.1, 0.25, 0.5).": lambda: segment_scores(
        ROW,
        ROW,
        ROW == 0,
        overlaps=0.5,  # pyright: ignore[reportArgumentType]
    ),
    "f1_score: found (2,), wrong (1,), missed (1,) differ in shape; give one of each.": lambda: f1_score([1, 2], [1], [1]),
    "f1_score: wrong holds -1, which is not a count; give finite numbers of 0 or more.": lambda: f1_score(1, -1, 1),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes(text):
    check_call(MISTAKES[text], text)
