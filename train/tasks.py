"""What a run learns: for each task, its augmentation, loss and figures. `TASKS` maps the names that `config.task` may take."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from dilax.metrics import classification_sums, segmentation_sums
from train import segmentation
from train.data.augment import augment
from train.data.joint import augment_pairs


@dataclasses.dataclass(frozen=True)
class Task:
    """The parts of training that depend on what is learned.

    Attributes:
        augment: (key, images, labels, first) -> images, targets, labels as the augmented images have them; `first` as
            `train.data.augment.augment`.
        losses: (what the model returns in training, targets) -> one loss per example.
        right: (logits, labels) -> share of right answers per example.
        sums: (logits, labels, mask) -> sums, with the "count" they are divided by and the "confusion" matrix; see `dilax.metrics`.
        figures: Those sums over a split, as numpy arrays -> figures by name.
        best_by: The validation figure, greater is better, that decides between checkpoints.
        logits_rank: Axes of the logits, batch and classes counted.
    """

    augment: Callable[[Any, Any, Any, Any], tuple[Any, Any, Any]]
    losses: Callable[[Any, jax.Array], jax.Array]
    right: Callable[[jax.Array, jax.Array], jax.Array]
    sums: Callable[[jax.Array, jax.Array, jax.Array], dict[str, jax.Array]]
    figures: Callable[[dict[str, np.ndarray]], dict[str, float]]
    best_by: str
    logits_rank: int


def _classification(config: ConfigDict, num_classes: int, _: tuple[float, ...]) -> Task:
    def augmented(key: Any, images: Any, labels: Any, first: Any) -> tuple[Any, Any, Any]:
        return *augment(key, images, labels, config.augment, num_classes, first), labels

    def figures(sums: dict[str, np.ndarray]) -> dict[str, float]:
        return {name: float(sums[name]) / float(sums["count"]) for name in ("accuracy", "loss")}

    return Task(
        augment=augmented,
        losses=optax.softmax_cross_entropy,
        right=lambda logits, labels: (logits.argmax(-1) == labels).astype(logits.dtype),
        sums=classification_sums,
        figures=figures,
        best_by="accuracy",
        logits_rank=2,
    )


def _segmentation(config: ConfigDict, _: int, class_weights: tuple[float, ...]) -> Task:
    ignored = config.segmentation.ignored_label

    def augmented(key: Any, images: Any, labels: Any, first: Any) -> tuple[Any, Any, Any]:
        images, labels = augment_pairs(key, images, labels, config.augment, ignored, first)
        return images, labels, labels

    return Task(
        augment=augmented,
        losses=segmentation.make_losses(config, class_weights),
        right=lambda logits, labels: segmentation.right_share(logits, labels, ignored),
        sums=lambda logits, labels, mask: segmentation_sums(logits, labels, mask, ignored_label=ignored),
        figures=segmentation.figures,
        best_by="miou",
        logits_rank=4,
    )


# (config, number of classes, weights of the classes or ()) -> Task.
TASKS: dict[str, Callable[[ConfigDict, int, tuple[float, ...]], Task]] = {
    "classification": _classification,
    "segmentation": _segmentation,
}
