"""What a run learns: for each task, its loss and its metrics. `TASKS` maps the names that `config.task` may take."""

import dataclasses
from collections.abc import Callable

import jax
import optax

from dilax.metrics import classification_sums


@dataclasses.dataclass(frozen=True)
class Task:
    """The parts of training that depend on what is learned.

    Attributes:
        losses: (logits, targets) -> one loss per example; targets as augmentation makes them.
        sums: (logits, labels, mask) -> sums, with the "count" they are divided by; see `dilax.metrics`.
        best_by: The validation metric, greater is better, that decides between checkpoints.
    """

    losses: Callable[[jax.Array, jax.Array], jax.Array]
    sums: Callable[[jax.Array, jax.Array, jax.Array], dict[str, jax.Array]]
    best_by: str


TASKS = {
    "classification": Task(losses=optax.softmax_cross_entropy, sums=classification_sums, best_by="accuracy"),
}
