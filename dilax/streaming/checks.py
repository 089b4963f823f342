"""Checks, on the user's own data, that a function is causal, and that a model fed in chunks equals itself on the whole sequence."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from dilax.annotated import checked_call
from dilax.arguments import check_function, takes_train
from dilax.errors import UserError
from dilax.streaming.flow import end_stream


@checked_call(cuts=0)
def check_causal(fn: Callable[[jax.Array], jax.Array], x: jax.Array, *, cuts: Sequence[int] | None = None) -> None:
    """Check that no output of a function changes, bit for bit, when later inputs change.

    Args:
        fn: Function from (batch, time, ...) to (batch, time_out, ...), where time_out is time, a multiple or a fraction of it.
        x: An input that is not constant.
        cuts: Indices of the samples after which to change the input; None takes the first, the last but one, and up to six in between.

    Raises:
        UserError: if an output depends on a later input; the message names the first such output, and by how much it changed.

    Example:
        >>> check_causal(lambda x: jnp.cumsum(x, axis=1), jnp.arange(12.0).reshape(1, 12, 1))
    """
    check_function("check_causal", fn)
    x = jnp.asarray(x)
    if x.ndim < 2 or x.shape[1] < 2:
        raise UserError(f"check_causal: x of shape {x.shape} must be (batch, time, ...) with at least 2 samples along time.")
    count = x.shape[1]
    run = jax.jit(fn)
    y = np.asarray(run(x))
    if y.ndim < 2 or y.shape[1] == 0 or (y.shape[1] % count and count % y.shape[1]):
        raise UserError(
            f"check_causal: the function maps {count} samples to outputs of shape {y.shape}, whose length along time is neither a multiple "
            "nor a divisor of that; give a function of time."
        )
    other = jnp.roll(x[:, ::-1], 1, axis=0)
    if bool((other == x).all()):
        raise UserError("check_causal: x equals itself reversed in time, so reversing it changes nothing; give random samples.")
    indices = sorted(set(np.linspace(0, count - 2, 8).astype(int).tolist())) if cuts is None else cuts
    if not len(indices) or min(indices) < 0 or max(indices) > count - 2:
        raise UserError(f"check_causal: cuts={tuple(indices)} must be one or more indices from 0 to {count - 2}, all samples but the last.")
    if not np.isfinite(y).all():
        raise UserError("check_causal: an output is NaN or infinite, which would hide a change; give inputs with finite outputs.")
    for cut in indices:
        changed = jnp.concatenate([x[:, : cut + 1], other[:, cut + 1 :]], axis=1)
        fixed = (cut + 1) * y.shape[1] // count if y.shape[1] >= count else -(-(cut + 1) // (count // y.shape[1]))
        outputs = np.asarray(run(changed))[:, :fixed]
        wrong = np.flatnonzero((outputs != y[:, :fixed]).any(axis=(0, *range(2, y.ndim))))
        if len(wrong):
            change = np.abs(outputs.astype(np.float64) - y[:, :fixed]).max()
            raise UserError(
                f"check_causal: output {wrong[0]} changes by up to {change:.3g} when inputs after {cut} change: it looks ahead. "
                "Look for padding other than 'CAUSAL', statistics or pooling over time, or a shift in the wrong direction."
            )


@checked_call()
def check_streamable(
    model: nn.Module, variables: VariableDict, x: jax.Array, *, chunks: Sequence[int] = (1, 3, 2), tolerance: float = 1e-4
) -> None:
    """Check that a model fed in chunks equals itself on the whole sequence.

    Args:
        model: A `Streamable` module.
        variables: Its variables.
        x: An input (batch, time, ...).
        chunks: Sizes of the chunks, repeated until the end of x.
        tolerance: Largest difference allowed, relative to the largest output.

    Raises:
        UserError: if an output differs, or a layer cannot be fed in chunks; the message names it.

    Example:
        >>> from dilax.causal import CumulativeNorm
        >>> x, layer = jnp.arange(12.0).reshape(1, 12, 1), CumulativeNorm()
        >>> check_streamable(layer, layer.init(jax.random.key(0), x), x)
    """
    if not chunks or min(chunks) < 1:
        raise UserError(f"check_streamable: chunks={tuple(chunks)} must be one or more sizes of at least 1.")
    train: Any = {"train": False} if takes_train(model) else {}
    state: Any
    latency: Any = model.apply(variables, method="latency")
    whole = np.asarray(model.apply(variables, x, **train))
    if not np.isfinite(whole.astype(np.float64)).all():
        raise UserError("check_streamable: an output for the whole sequence is NaN or infinite; give inputs with finite outputs.")
    state = model.apply(variables, x.shape[0], dtype=x.dtype, method="init_stream")
    run: Any = jax.jit(lambda chunk, state: model.apply(variables, chunk, state, method="stream"))
    parts, start, sizes = [], 0, itertools.cycle(chunks)
    while start < x.shape[1]:
        size = next(sizes)
        y, state = run(x[:, start : start + size], state)
        parts.append(np.asarray(y))
        start += size
    if latency:
        parts.append(np.asarray(run(jnp.zeros_like(x, shape=(x.shape[0], latency, *x.shape[2:])), end_stream(state))[0]))
    streamed = np.concatenate(parts, axis=1)[:, latency:]
    if streamed.shape != whole.shape:
        raise UserError(f"check_streamable: the outputs have shape {streamed.shape} in chunks, but {whole.shape} for the whole sequence.")
    differences = np.abs(streamed.astype(np.float64) - whole).max(axis=(0, *range(2, whole.ndim)))
    wrong = np.flatnonzero(~(differences <= tolerance * max(float(np.abs(whole).max()), 1e-30)))
    if len(wrong):
        raise UserError(
            f"check_streamable: output {wrong[0]} differs by {differences[wrong[0]]:.3g} from that of the whole sequence: either "
            "something other than a layer of dilax looks at other samples (write it as a `dilax.streaming.Layer`), or branches with "
            "unequal lookahead are joined (delay the shorter one by `dilax.causal.Delay`)."
        )
