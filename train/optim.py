"""From a config to an optax chain: schedule, weight-decay mask, frozen parameters, rates by layer."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dilax.errors import UserError, did_you_mean

OPTIMISERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": lambda optim, rate, decay: optax.adamw(rate, weight_decay=optim.weight_decay, mask=decay),
    "sgd": lambda optim, rate, decay: optax.chain(
        optax.add_decayed_weights(optim.weight_decay, decay), optax.sgd(rate, momentum=optim.momentum, nesterov=optim.momentum > 0)
    ),
    "lamb": lambda optim, rate, decay: optax.lamb(rate, weight_decay=optim.weight_decay, mask=decay),
    "lion": lambda optim, rate, decay: optax.lion(rate, weight_decay=optim.weight_decay, mask=decay),
}


def schedule(optim: ConfigDict, steps_per_epoch: float, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0 to optim.lr, then "cosine" or "linear" to 0, or "constant"."""
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), total_steps - 1)
    rest = max(total_steps - warmup, 1)
    decays = {
        "cosine": lambda: optax.cosine_decay_schedule(optim.lr, rest),
        "linear": lambda: optax.linear_schedule(optim.lr, 0.0, rest),
        "constant": lambda: optax.constant_schedule(optim.lr),
    }
    if optim.schedule not in decays:
        hint = did_you_mean(optim.schedule, decays)
        raise UserError(f"config.optim.schedule={optim.schedule!r} is unknown; use one of {tuple(decays)}.{hint}")
    # One step earlier than optax's own warm-up, whose first step has rate 0 and is lost.
    rise = optax.linear_schedule(optim.lr / (warmup + 1), optim.lr, warmup)
    joined = optax.join_schedules([rise, decays[optim.schedule]()], [warmup])
    return lambda step: joined(jnp.asarray(step, jnp.float32))


def make(config: ConfigDict, params: Any, steps_per_epoch: float, total_steps: int) -> optax.GradientTransformation:
    """Return the optimiser of a config.

    Args:
        config: The whole config; `optim` and `frozen` are read.
        params: The parameters, or their shapes.
        steps_per_epoch: Of the schedule.
        total_steps: Of the schedule.

    Raises:
        UserError: if a name is unknown, or a regular expression is invalid or matches no parameter.
    """
    optim = config.optim
    if optim.name not in OPTIMISERS:
        raise UserError(
            f"config.optim.name={optim.name!r} is unknown; use one of {tuple(OPTIMISERS)}.{did_you_mean(optim.name, OPTIMISERS)}"
        )
    frozen = matches(config.frozen, params, "frozen")
    parts: list[Any] = [optax.masked(optax.set_to_zero(), frozen)]
    if optim.clip_norm:
        parts.append(optax.clip_by_global_norm(optim.clip_norm))
    decay = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    parts.append(OPTIMISERS[optim.name](optim, schedule(optim, steps_per_epoch, total_steps), decay))
    if optim.lr_multipliers:
        parts.append(scale_by(multipliers(optim.lr_multipliers, params)))
    # Once more: weight decay moves what has no gradient.
    parts.append(optax.masked(optax.set_to_zero(), frozen))
    return optax.chain(*parts)


def scale_by(factors: Any) -> optax.GradientTransformation:
    """Multiply every update by its own factor."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda update, factor: update * factor, updates, factors))


def multipliers(pairs: Any, params: Any) -> Any:
    """Return one factor per parameter: that of the first (regular expression, factor) that matches its path, else 1."""
    if any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
        raise UserError(f"config.optim.lr_multipliers={pairs!r} must be pairs of a regular expression and a factor, as (('head', 10.0),).")
    masks = [(matches((pattern,), params, "optim.lr_multipliers"), float(factor)) for pattern, factor in pairs]
    factors = jax.tree.map(lambda leaf: 1.0, params)
    for mask, factor in reversed(masks):
        factors = jax.tree.map(lambda old, hit, factor=factor: factor if hit else old, factors, mask)
    return factors


def matches(patterns: Any, tree: Any, key: str | None) -> Any:
    """Return a tree of bools: whether one of the regular expressions is found in a leaf's path, such as "head/kernel".

    Args:
        patterns: Regular expressions, or one.
        tree: Of parameters or statistics.
        key: Of the config, for the error; None lets a pattern match nothing.

    Raises:
        UserError: if a pattern is invalid or matches nothing.
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    paths = [path for path, _ in leaves_with_paths(tree)]
    for pattern in patterns:
        try:
            found = any(re.search(pattern, path) for path in paths)
        except re.error as error:
            raise UserError(f"config.{key}: {pattern!r} is no regular expression: {error}.") from error
        if not found and key is not None:
            raise UserError(f"config.{key}: {pattern!r} matches no parameter; their paths look like {', '.join(paths[:3])}.")
    hits = [any(re.search(pattern, path) for pattern in patterns) for path in paths]
    return jax.tree.unflatten(jax.tree.structure(tree), hits)


def leaves_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """List (path, leaf), the path joined by slashes."""
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def ema(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """Move an exponential moving average of the parameters one step on; it starts fast, at (1 + step) / (10 + step)."""
    count = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    # In this form an average that equals the parameters stays equal to the bit, as frozen ones do.
    return jax.tree.map(lambda old, new: old + rate * (new - old), average, params)
