"""Conditional random fields against sums over all sequences of classes, and tags against slow loops and seqeval."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reading import check_call

from dilax import crf
from dilax.segments import f1_score
from dilax.tagging import allowed_transitions, decode_tags, encode_words, span_scores, spans, tag_names, words_of

RNG = np.random.default_rng(1)
TIME, CLASSES = 5, 3
LENGTHS = np.array([5, 1, 3, 0])
MASK = np.arange(TIME)[None] < LENGTHS[:, None]
SCORES = RNG.normal(0, 2, (4, TIME, CLASSES, CLASSES)).astype(np.float32)


def paths(length: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(CLASSES), repeat=length))


def score(example: int, path: tuple[int, ...]) -> float:
    """The sum of what each class adds after the one before it; class 0 is before the first."""
    return sum(float(SCORES[example, t, i, j]) for t, (i, j) in enumerate(zip((0, *path), path)))


@pytest.fixture(scope="module")
def computed() -> Any:
    """All functions, compiled once, of scores whose masked steps hold anything."""
    damaged = np.where(MASK[..., None, None], SCORES, np.float32(1e4))
    labels: Any = RNG.integers(0, CLASSES, (4, TIME)).astype(np.int32)

    def run(scores: jax.Array, mask: jax.Array) -> Any:
        gradient = jax.grad(lambda scores: crf.log_likelihood(scores, labels, mask).sum())(scores)
        return (
            crf.log_partition(scores, mask),
            crf.log_likelihood(scores, labels, mask),
            crf.marginals(scores, mask),
            crf.best_path(scores, mask),
            gradient,
        )

    return labels, jax.jit(run)(damaged, MASK)


def test_log_partition_is_that_of_all_paths(computed):
    expected = [np.log(sum(np.exp(score(i, path)) for path in paths(n))) if n else 0.0 for i, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(computed[1][0], expected, rtol=1e-5)


def test_log_likelihood_is_that_of_all_paths(computed):
    labels, (_, likelihood, *_) = computed
    for i, n in enumerate(LENGTHS):
        total = np.log(sum(np.exp(score(i, path)) for path in paths(n))) if n else 0.0
        assert float(likelihood[i]) == pytest.approx(score(i, tuple(labels[i, :n])) - total, rel=1e-4, abs=1e-5)


def test_best_path_is_the_best_of_all(computed):
    path, value = computed[1][3]
    for i, n in enumerate(LENGTHS):
        best = max(paths(n), key=lambda one: score(i, one))
        assert np.asarray(path[i]).tolist() == [*best, *[0] * (TIME - n)]
        assert float(value[i]) == pytest.approx(score(i, best), rel=1e-5)


def test_marginals_are_those_of_all_paths_and_the_gradient(computed):
    labels, (_, _, found, _, gradient) = computed
    for i, n in enumerate(LENGTHS):
        weights = {path: np.exp(score(i, path)) for path in paths(n)}
        for t in range(TIME):
            expected = [sum(w for path, w in weights.items() if t < n and path[t] == j) / sum(weights.values()) for j in range(CLASSES)]
            np.testing.assert_allclose(found[i, t], expected, atol=1e-5)
            # The gradient of the log-likelihood is what happened less what was expected.
            happened = np.eye(CLASSES)[labels[i, t]] * (t < n)
            np.testing.assert_allclose(gradient[i, t].sum(0), happened - expected, atol=1e-5)


def test_a_chain_adds_emissions_and_transitions():
    emissions, transitions = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 4, 3), (3, 3)))
    scores = crf.chain_scores(jnp.asarray(emissions), jnp.asarray(transitions))
    np.testing.assert_allclose(scores, emissions[:, :, None] + transitions[None, None], rtol=1e-6)
    whole = crf.log_likelihood(scores, jnp.array([[1, 2, 0, 1], [0, 0, 2, 2]]))
    assert whole.shape == (2,) and (np.asarray(whole) < 0).all()


TAGS = tag_names(["A", "B"])


def random_tags(seed: int, legal: bool) -> np.ndarray:
    """Tags (40, 9); legal ones are drawn one after the other among those that may follow."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(TAGS), (40, 9))
    for row in rows if legal else []:
        for t in range(9):
            before = TAGS[row[t - 1]] if t else "O"
            may = [i for i, name in enumerate(TAGS) if not name.startswith("I-") or before[2:] == name[2:]]
            row[t] = rng.choice(may)
    return rows.astype(np.int32)


def slow_spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """Spans as the longest runs that match B I*, tried at every place and length."""
    found = set()
    for start, end in itertools.combinations(range(len(tags) + 1), 2):
        kind = tags[start][2:]
        inside = tags[start].startswith("B-") and all(tag == f"I-{kind}" for tag in tags[start + 1 : end])
        if inside and (end == len(tags) or tags[end] != f"I-{kind}"):
            found.add((start, end, kind))
    return found


def test_what_may_follow():
    allowed = allowed_transitions(TAGS)
    for i, j in np.ndindex(5, 5):
        may = not TAGS[j].startswith("I-") or (TAGS[i] != "O" and TAGS[i][2:] == TAGS[j][2:])
        assert bool(allowed[i, j]) == may, (TAGS[i], TAGS[j])


@pytest.mark.parametrize("crf_scores", [False, True])
def test_decoded_tags_are_legal_and_the_best_legal_ones(crf_scores):
    outputs = RNG.normal(0, 3, (40, 9, 5, *(5,) * crf_scores)).astype(np.float32)
    found = np.asarray(decode_tags(jnp.asarray(outputs), None, TAGS))
    allowed = allowed_transitions(TAGS)
    before = np.concatenate([np.zeros((40, 1), int), found[:, :-1]], 1)
    assert allowed[before, found].all()
    # Of the first three words, the best of all legal paths.
    short = np.asarray(decode_tags(jnp.asarray(outputs[:, :3]), None, TAGS))
    for row, got in zip(outputs[:, :3], short):
        legal = [path for path in itertools.product(range(5), repeat=3) if all(allowed[i, j] for i, j in zip((0, *path), path))]
        value = {path: sum(row[t, i, j] if crf_scores else row[t, j] for t, (i, j) in enumerate(zip((0, *path), path))) for path in legal}
        assert tuple(got.tolist()) == max(value, key=lambda path: value[path])


@pytest.mark.parametrize("legal", [True, False])
def test_spans_and_their_scores_equal_slow_counts(legal):
    found, truth = random_tags(0, legal), random_tags(1, legal)
    truth = np.where(np.arange(40)[:, None] < 25, found, truth)
    truth[:25, 4] = found[:25, 3]
    lengths = RNG.integers(1, 10, 40)
    mask = np.arange(9)[None] < lengths[:, None]
    scores = jax.jit(lambda a, b, c: span_scores(a, b, c, TAGS))(found, truth, mask)
    for i, n in enumerate(lengths):
        ours, theirs = ([TAGS[tag] for tag in tags[i, :n]] for tags in (found, truth))
        assert {(one.start, one.end, one.label) for one in spans(ours)} == slow_spans(ours)
        same = len(slow_spans(ours) & slow_spans(theirs))
        expected = same, len(slow_spans(ours)) - same, len(slow_spans(theirs)) - same
        assert tuple(int(scores[name][i]) for name in ("found", "wrong", "missed")) == expected
    assert int(scores["found"].sum()) > 20


@pytest.mark.parametrize("legal", [True, False])
def test_scores_equal_seqeval(legal):
    seqeval, scheme = pytest.importorskip("seqeval.metrics"), pytest.importorskip("seqeval.scheme")
    found, truth = random_tags(2, legal), random_tags(3, legal)
    truth[:20] = found[:20]
    truth[:20, 3] = found[:20, 2]
    scores = span_scores(jnp.asarray(found), jnp.asarray(truth), jnp.ones(found.shape, bool), TAGS)
    ours = f1_score(*(int(scores[name].sum()) for name in ("found", "wrong", "missed")))
    named = [[[TAGS[tag] for tag in row] for row in rows] for rows in (truth, found)]
    assert float(ours) == pytest.approx(seqeval.f1_score(*named, mode="strict", scheme=scheme.IOB2))


def test_words_and_their_codes():
    words = words_of("The BRCA2-gene (1,000).")
    assert [word.label for word in words] == ["The", "BRCA2", "-", "gene", "(", "1", ",", "000", ")", "."]
    assert [(word.start, word.end) for word in words][:3] == [(0, 3), (4, 9), (9, 10)]
    codes = encode_words(["Äpfel", "adenomatous"], ("<unknown>", "adenomatous"), characters=4)
    assert codes[:, 0].tolist() == [0, 1]
    assert codes[1, 2:].tolist() == [byte + 1 for byte in b"adus"]
    assert codes[0, 2:].tolist() == [byte + 1 for byte in ("Ä".encode() + b"el")]


CHAIN = jnp.zeros((2, 4, 3, 3))
MISTAKES = {
    "chain_scores: emissions of shape (2, 4, 3) and transitions of shape (3, 2) do not fit; give (batch, time, classes) and (classes, "
    "classes).": lambda: crf.chain_scores(jnp.zeros((2, 4, 3)), jnp.zeros((3, 2))),
    "log_partition: scores of shape (2, 4, 3) must be (batch, time, classes, classes); see `chain_scores`.": lambda: crf.log_partition(
        jnp.zeros((2, 4, 3))
    ),
    "best_path: mask of shape (2, 3) does not fit scores of shape (2, 4, 3, 3); give (batch, time).": lambda: crf.best_path(
        CHAIN, jnp.ones((2, 3), bool)
    ),
    "log_likelihood: labels of shape (2, 3) do not fit scores of shape (2, 4, 3, 3); give (batch, time).": lambda: crf.log_likelihood(
        CHAIN, jnp.zeros((2, 3), jnp.int32)
    ),
    "forbid: allowed of shape (2, 2) does not fit scores of shape (2, 4, 3, 3); give (classes, classes).": lambda: crf.forbid(
        CHAIN, jnp.ones((2, 2), bool)
    ),
    "allowed_transitions: names=('B-x', 'O') do not begin with \"O\"; give the tags, that first.": lambda: allowed_transitions(
        ("B-x", "O")
    ),
    'spans: names hold \'E-x\'; tags are "O", and "B-" and "I-" before the name of a kind.': lambda: spans(["B-x", "E-x"]),
    "decode_tags: outputs of shape (1, 2, 4) do not fit 3 tags; give (batch, time, tags) or (batch, time, tags, tags).": lambda: (
        decode_tags(jnp.zeros((1, 2, 4)), None, ("O", "B-x", "I-x"))
    ),
    "encode_words: words='the ox' is not a list of words; give one of texts that are not empty.": lambda: encode_words(
        "the ox", ("<unknown>",)
    ),
    "encode_words: symbols=('the',) do not begin with '<unknown>'; add it, and give the vocabulary.": lambda: encode_words(
        ["ox"], ("the",)
    ),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes(text):
    check_call(MISTAKES[text], text)
