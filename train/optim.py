"""From a config to an optax chain: schedule, weight-decay mask, frozen parameters, learning rates by layer."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dilax.errors import UserError
from dilax.loading import leaves_with_paths

OPTIMISERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": lambda optim, rate: optax.adamw(rate, weight_decay=optim.weight_decay, mask=decayed),
    "sgd": lambda optim, rate: optax.chain(
        optax.add_decayed_weights(optim.weight_decay, decayed), optax.sgd(rate, momentum=optim.momentum, nesterov=optim.momentum > 0)
    ),
    "lamb": lambda optim, rate: optax.lamb(rate, weight_decay=optim.weight_decay, mask=decayed),
    "lion": lambda optim, rate: optax.lion(rate, weight_decay=optim.weight_decay, mask=decayed),
}
SCHEDULES = ("cosine", "linear", "constant")


def decayed(params: Any) -> Any:
    """Return which parameters decay: kernels, but not biases and the scales of normalisation."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def schedule(optim: ConfigDict, steps_per_epoch: float, total_steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up from 0 to optim.lr, then "cosine" or "linear" to 0, or "constant"."""
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), total_steps - 1)
    rest = max(total_steps - warmup, 1)
    decay = {
        "cosine": lambda: optax.cosine_decay_schedule(optim.lr, rest),
        "linear": lambda: optax.linear_schedule(optim.lr, 0.0, rest),
        "constant": lambda: optax.constant_schedule(optim.lr),
    }[optim.schedule]()
    # One step earlier than optax's own warm-up, whose first step has rate 0 and is lost.
    rise = optax.linear_schedule(optim.lr / (warmup + 1), optim.lr, warmup)
    joined = optax.join_schedules([rise, decay], [warmup])
    return lambda step: joined(jnp.asarray(step, jnp.float32))


def make(config: ConfigDict, params: Any, steps_per_epoch: float, total_steps: int) -> optax.GradientTransformation:
    """Return the optimiser of a config.

    Frozen parameters have no state in it, and neither the clipping of the gradient nor weight decay sees them.

    Args:
        config: The whole config; `optim` and `frozen` are read.
        params: The parameters, or their shapes.
        steps_per_epoch: For the schedule.
        total_steps: For the schedule.

    Raises:
        UserError: if a regular expression is invalid or matches no parameter.
    """
    optim: Any = config.optim
    frozen = matches(config.frozen, params, "frozen")
    # The state has one form with and without clipping, so that a run may be resumed with the other.
    parts: list[Any] = [optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()]
    parts.append(OPTIMISERS[optim.name](optim, schedule(optim, steps_per_epoch, total_steps)))
    labels = jax.tree.map(lambda hit: "frozen" if hit else "trained", frozen)
    tx = optax.partition({"trained": optax.chain(*parts), "frozen": optax.set_to_zero()}, labels)
    return optax.chain(tx, scale_by(multipliers(optim.lr_multipliers, params))) if optim.lr_multipliers else tx


def scale_by(factors: Any) -> optax.GradientTransformation:
    """Multiply every update by a factor of its own."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda update, factor: update * factor, updates, factors))


def multipliers(pairs: Any, params: Any) -> Any:
    """Return one factor per parameter: that of the first (regular expression, factor) that matches its path, else 1."""
    if not all(map(_is_multiplier, pairs)):
        raise UserError(
            f"config.optim.lr_multipliers={pairs!r} must be pairs of a regular expression and a factor, such as (('head', 10.0),)."
        )
    masks = [(matches((pattern,), params, "optim.lr_multipliers"), float(factor)) for pattern, factor in pairs]
    factors = jax.tree.map(lambda leaf: 1.0, params)
    for mask, factor in reversed(masks):
        factors = jax.tree.map(lambda old, hit, factor=factor: factor if hit else old, factors, mask)
    return factors


def _is_multiplier(pair: Any) -> bool:
    """Whether it is (regular expression, finite factor of 0 or more)."""
    factor = pair[1] if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) else None
    return isinstance(factor, int | float) and not isinstance(factor, bool) and 0 <= factor < math.inf


def check_patterns(patterns: Any, paths: Sequence[str], key: str, what: str) -> None:
    """Refuse regular expressions that are invalid or found in none of the paths.

    Args:
        patterns: Regular expressions, or one.
        paths: Paths of parameters or modules, such as "head/kernel".
        key: Key of the config that holds the patterns, for the error.
        what: What has these paths, such as "parameter".

    Raises:
        UserError: naming the pattern.
    """
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        try:
            found = any(re.search(pattern, path) for path in paths)
        except (re.error, TypeError) as error:
            raise UserError(f"config.{key}: {pattern!r} is not a regular expression: {error}.") from error
        if not found:
            raise UserError(f"config.{key}: {pattern!r} does not match any {what}; their paths look like {', '.join(paths[:3])}.")


def matches(patterns: Any, tree: Any, key: str) -> Any:
    """Return a tree of bools: whether one of the regular expressions is found in a leaf's path, such as "head/kernel".

    Args:
        patterns: Regular expressions, or one.
        tree: Parameters.
        key: Key of the config that holds them, for the error.

    Raises:
        UserError: if a pattern is invalid or matches nothing.
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    paths = [path for path, _ in leaves_with_paths(tree)]
    check_patterns(patterns, paths, key, "parameter")
    hits = [any(re.search(pattern, path) for pattern in patterns) for path in paths]
    return jax.tree.unflatten(jax.tree.structure(tree), hits)


def ema(average: Any, new: Any, decay: float, step: jax.Array) -> Any:
    """Move an exponential moving average, such as of the parameters, by one step; its decay starts low, at (1 + step) / (10 + step)."""
    count = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    # In this form an average that equals the parameters stays equal to the bit, as frozen ones do.
    return jax.tree.map(lambda old, now: old + rate * (now - old), average, new)
