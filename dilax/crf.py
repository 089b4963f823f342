"""Linear-chain conditional random fields: sequences of classes, scored by each class and the one before it.

All functions take `scores`, (batch, time, classes, classes): scores[n, t, i, j] is what class j at step t adds after class i at the step
before. The step before the first counts as class 0, "O" in tagging. The probability of a sequence of classes is the exponential of its sum
of scores, over the sum of that of all sequences. Steps that a mask leaves out after the end of a sequence add nothing, and have class 0.

Reference: Lafferty, McCallum & Pereira 2001, "Conditional random fields", section 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dilax import arguments
from dilax.errors import UserError

FORBIDDEN = -1e4  # added to the score of what cannot be: far below any score, and finite, as are its gradients


def chain_scores(emissions: jax.Array, transitions: jax.Array, *, allowed: jax.Array | None = None) -> jax.Array:
    """Return the scores of a chain: those of the classes at each step, plus those of their transitions, which are the same at all steps.

    Args:
        emissions: (batch, time, classes), floats, such as the logits of a network.
        transitions: (classes, classes), floats: row the class before, column the class.
        allowed: bool (classes, classes), False for transitions that cannot be; None allows all.

    Returns:
        (batch, time, classes, classes), float32.

    Raises:
        UserError: if the shapes do not match.

    Example:
        >>> chain_scores(jnp.zeros((2, 5, 3)), jnp.eye(3)).shape
        (2, 5, 3, 3)
    """
    caller = "chain_scores"
    emissions, transitions = (
        arguments.array(caller, name, value, "floating-point").astype(jnp.float32)
        for name, value in (("emissions", emissions), ("transitions", transitions))
    )
    if emissions.ndim != 3 or transitions.shape != emissions.shape[-1:] * 2 or not emissions.size:
        raise UserError(
            f"{caller}: emissions of shape {emissions.shape} and transitions of shape {transitions.shape} do not fit; "
            "give (batch, time, classes) and (classes, classes)."
        )
    scores = emissions[:, :, None, :] + transitions[None, None]
    return scores if allowed is None else forbid(scores, allowed)


def forbid(scores: jax.Array, allowed: jax.Array) -> jax.Array:
    """Return scores by which transitions that are not allowed are never taken.

    Args:
        scores: (batch, time, classes, classes), floats.
        allowed: bool (classes, classes): row the class before, column the class.

    Raises:
        UserError: if the shapes do not match.

    Example:
        >>> allowed = jnp.array([[True, True], [False, True]])
        >>> best_path(forbid(jnp.zeros((1, 3, 2, 2)).at[0, 1, 1, 0].set(9.0), allowed))[0].tolist()
        [[0, 0, 0]]
    """
    scores = _scores("forbid", scores)
    allowed = arguments.array("forbid", "allowed", allowed, "bool")
    if allowed.shape != scores.shape[2:]:
        raise UserError(f"forbid: allowed of shape {allowed.shape} does not fit scores of shape {scores.shape}; give (classes, classes).")
    return jnp.where(allowed[None, None], scores, FORBIDDEN)


def log_partition(scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Return log Z, the logarithm of the sum of exp(score) over all sequences of classes.

    Args:
        scores: (batch, time, classes, classes), floats.
        mask: bool (batch, time), True up to the end of each sequence.

    Returns:
        (batch,), float32; 0 for a sequence without steps.

    Raises:
        UserError: if the shapes do not match.

    Example:
        >>> log_partition(jnp.zeros((1, 2, 3, 3))).round(4)  # log(3 * 3)
        Array([2.1972], dtype=float32)
    """
    scores = _scores("log_partition", scores)
    valid = _valid("log_partition", scores, mask)
    alpha = _forward(scores, valid, lambda rows: jax.nn.logsumexp(rows, axis=1))[0]
    return jnp.where(valid[:, 0], jax.nn.logsumexp(alpha, axis=1), 0.0)


def log_likelihood(scores: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Return the logarithm of the probability of sequences of classes.

    Args:
        scores: (batch, time, classes, classes), floats.
        labels: (batch, time), integers.
        mask: bool (batch, time), True up to the end of each sequence.

    Returns:
        (batch,), float32; 0 for a sequence without steps. NaN if a label that counts is not a class.

    Raises:
        UserError: if the shapes do not match.

    Example:
        >>> log_likelihood(jnp.zeros((1, 2, 3, 3)), jnp.array([[2, 0]])).round(4)
        Array([-2.1972], dtype=float32)
    """
    caller = "log_likelihood"
    scores = _scores(caller, scores)
    labels, valid = arguments.array(caller, "labels", labels, "integer"), _valid(caller, scores, mask)
    if labels.shape != scores.shape[:2]:
        raise UserError(f"{caller}: labels of shape {labels.shape} do not fit scores of shape {scores.shape}; give (batch, time).")
    classes = scores.shape[-1]
    wrong = (valid & ((labels < 0) | (labels >= classes))).any(1)
    now = jax.nn.one_hot(labels, classes)
    before = jnp.concatenate([jax.nn.one_hot(jnp.zeros_like(labels[:, :1]), classes), now[:, :-1]], 1)
    taken = jnp.einsum("btij,bti,btj->bt", jnp.where(valid[..., None, None], scores, 0.0), before, now)
    return jnp.where(wrong, jnp.nan, taken.sum(1) - log_partition(scores, mask))


def marginals(scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Return the probability of each class at each step, over all sequences: the gradient of `log_partition`.

    Args:
        scores: (batch, time, classes, classes), floats.
        mask: bool (batch, time), True up to the end of each sequence.

    Returns:
        (batch, time, classes), float32; 0 after the end of a sequence.

    Raises:
        UserError: if the shapes do not match.

    Example:
        >>> marginals(jnp.zeros((1, 2, 4, 4)))[0, 1].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    scores = _scores("marginals", scores)
    _valid("marginals", scores, mask)
    return jax.grad(lambda scores: log_partition(scores, mask).sum())(scores).sum(2)


def best_path(scores: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Return the most probable sequences of classes (Viterbi), and their scores.

    Args:
        scores: (batch, time, classes, classes), floats.
        mask: bool (batch, time), True up to the end of each sequence.

    Returns:
        int32 (batch, time), 0 after the end of a sequence; and float32 (batch,).

    Raises:
        UserError: if the shapes do not match.

    Example:
        >>> path, score = best_path(jnp.zeros((1, 3, 2, 2)).at[0, 1, 0, 1].set(2.0))
        >>> path.tolist(), score.tolist()
        ([[0, 1, 0]], [2.0])
    """
    scores = _scores("best_path", scores)
    valid = _valid("best_path", scores, mask)
    alpha, before = _forward(scores, valid, lambda rows: rows.max(1), lambda rows: rows.argmax(1).astype(jnp.int32))
    last = alpha.argmax(1).astype(jnp.int32)

    def back(label: jax.Array, step: Any) -> tuple[jax.Array, jax.Array]:
        pointers, counts = step
        taken = jax.nn.one_hot(label, alpha.shape[1], dtype=jnp.int32)
        return jnp.where(counts, (pointers * taken).sum(1), label), label

    # Backwards, but without reverse=True or a gather, which some formats of `dilax.export` cannot express.
    _, path = lax.scan(back, last, (before[::-1], valid.T[::-1]))
    return jnp.where(valid, path[::-1].T, 0), jnp.where(valid[:, 0], alpha.max(1), 0.0)


def _forward(scores: jax.Array, valid: jax.Array, reduce: Any, record: Any = None) -> tuple[jax.Array, Any]:
    """Return what `reduce` makes of all beginnings that end in each class, (batch, classes), and what `record` notes at each step."""

    def step(alpha: jax.Array, now: Any) -> tuple[jax.Array, Any]:
        one, counts = now
        rows = alpha[:, :, None] + one
        return jnp.where(counts[:, None], reduce(rows), alpha), None if record is None else record(rows)

    first = scores[:, 0, 0]  # only class 0 is before it
    alpha, notes = lax.scan(step, first, (scores[:, 1:].swapaxes(0, 1), valid[:, 1:].T))
    return alpha, None if record is None else jnp.concatenate([jnp.zeros((1, *first.shape), jnp.int32), notes])


def _scores(caller: str, scores: Any) -> jax.Array:
    scores = arguments.array(caller, "scores", scores, "floating-point")
    if scores.ndim != 4 or scores.shape[2] != scores.shape[3] or not scores.size:
        raise UserError(f"{caller}: scores of shape {scores.shape} must be (batch, time, classes, classes); see `chain_scores`.")
    return scores.astype(jnp.float32)


def _valid(caller: str, scores: jax.Array, mask: Any) -> jax.Array:
    if mask is None:
        return jnp.ones(scores.shape[:2], bool)
    valid = arguments.array(caller, "mask", mask, "bool")
    if valid.shape != scores.shape[:2]:
        raise UserError(f"{caller}: mask of shape {valid.shape} does not fit scores of shape {scores.shape}; give (batch, time).")
    return valid
