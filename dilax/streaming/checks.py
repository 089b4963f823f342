"""Proofs, on a sequence of the user's, that a function does not look ahead, and that a model in chunks is the model of the whole."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dilax.errors import UserError
from dilax.streaming.flow import end_stream


def check_causal(fn: Callable[[jax.Array], jax.Array], x: jax.Array, *, cuts: Sequence[int] | None = None) -> None:
    """Check that no output of a function of a sequence changes, bit for bit, when what comes after it changes.

    Args:
        fn: (batch, time, ...) -> (batch, time_out, ...), time_out being time or a fixed multiple or share of it.
        x: A sequence, not constant.
        cuts: After which samples to change it; None takes the first, the last but one and up to six in between.

    Raises:
        UserError: naming the first output that sees a later input, and by how much it changed.

    Example:
        >>> check_causal(lambda x: jnp.cumsum(x, axis=1), jnp.arange(12.0).reshape(1, 12, 1))
    """
    x = jnp.asarray(x)
    if x.ndim < 2 or x.shape[1] < 2:
        raise UserError(f"check_causal: x of shape {x.shape} must be (batch, time, ...) with at least 2 samples.")
    count = x.shape[1]
    run = jax.jit(fn)
    y = np.asarray(run(x))
    if y.ndim < 2 or y.shape[1] == 0 or (y.shape[1] % count and count % y.shape[1]):
        raise UserError(f"check_causal: outputs of shape {y.shape} for {count} samples are not so many for each; give a function of time.")
    other = jnp.roll(x[:, ::-1], 1, axis=0)
    if bool((other == x).all()):
        raise UserError("check_causal: x is the same backwards, so nothing can be changed in it; give random samples.")
    places = sorted(set(np.linspace(0, count - 2, 8).astype(int).tolist())) if cuts is None else cuts
    if not len(places) or min(places) < 0 or max(places) > count - 2:
        raise UserError(f"check_causal: cuts={tuple(places)} must be one or more of 0 to {count - 2}, the samples but the last.")
    if not np.isfinite(y).all():
        raise UserError("check_causal: an output is NaN or infinite, which no change would show; give inputs that are well.")
    for cut in places:
        changed = jnp.concatenate([x[:, : cut + 1], other[:, cut + 1 :]], axis=1)
        known = (cut + 1) * y.shape[1] // count if y.shape[1] >= count else -(-(cut + 1) // (count // y.shape[1]))
        found = np.asarray(run(changed))[:, :known]
        wrong = np.flatnonzero((found != y[:, :known]).any(axis=(0, *range(2, y.ndim))))
        if len(wrong):
            change = np.abs(found.astype(np.float64) - y[:, :known]).max()
            raise UserError(
                f"check_causal: output {wrong[0]} changes by up to {change:.3g} with inputs after {cut}: it looks ahead. "
                "Look for padding other than 'CAUSAL', statistics or pooling over time, or a shift the wrong way."
            )


def check_streamable(model: Any, variables: Any, x: jax.Array, *, chunks: Sequence[int] = (1, 3, 2), tolerance: float = 1e-4) -> None:
    """Check that a model fed in chunks gives what it gives for the whole sequence.

    Args:
        model: A module with `init_stream` and `stream`.
        variables: Its variables.
        x: (batch, time, ...).
        chunks: Sizes of the chunks, in turn.
        tolerance: Greatest difference allowed, as a share of the greatest output.

    Raises:
        UserError: naming the first output that differs, or the part that cannot be fed in chunks.

    Example:
        >>> from dilax.causal import CumulativeNorm
        >>> x, layer = jnp.arange(12.0).reshape(1, 12, 1), CumulativeNorm()
        >>> check_streamable(layer, layer.init(jax.random.key(0), x), x)
    """
    if not chunks or min(chunks) < 1:
        raise UserError(f"check_streamable: chunks={tuple(chunks)} must be sizes of at least 1.")
    train = {"train": False} if "train" in inspect.signature(type(model).__call__).parameters else {}
    latency = model.apply(variables, method="latency")
    whole = np.asarray(model.apply(variables, x, **train))
    if not np.isfinite(whole.astype(np.float64)).all():
        raise UserError("check_streamable: an output for the whole sequence is NaN or infinite; give inputs that are well.")
    state = model.apply(variables, x.shape[0], dtype=x.dtype, method="init_stream")
    run = jax.jit(lambda chunk, state: model.apply(variables, chunk, state, method="stream"))
    parts, at, turn = [], 0, 0
    while at < x.shape[1]:
        y, state = run(x[:, at : at + chunks[turn % len(chunks)]], state)
        parts.append(np.asarray(y))
        at, turn = at + chunks[turn % len(chunks)], turn + 1
    if latency:
        parts.append(np.asarray(run(jnp.zeros_like(x, shape=(x.shape[0], latency, *x.shape[2:])), end_stream(state))[0]))
    streamed = np.concatenate(parts, axis=1)[:, latency:]
    if streamed.shape != whole.shape:
        raise UserError(f"check_streamable: in chunks the outputs have shape {streamed.shape}, and {whole.shape} for the whole sequence.")
    differences = np.abs(streamed.astype(np.float64) - whole).max(axis=(0, *range(2, whole.ndim)))
    wrong = np.flatnonzero(~(differences <= tolerance * max(float(np.abs(whole).max()), 1e-30)))
    if len(wrong):
        raise UserError(
            f"check_streamable: output {wrong[0]} differs by {differences[wrong[0]]:.3g} from that of the whole sequence: something "
            "besides the layers of dilax looks at other samples (write it as a `dilax.streaming.Layer`), or branches that look ahead "
            "unequally far are joined (delay the shorter by `dilax.causal.Delay`)."
        )
