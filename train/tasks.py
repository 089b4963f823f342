"""What a run learns: for each task, its augmentation, loss and figures. `TASKS` maps the names that `config.task` may take."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dilax.losses import separation_loss
from dilax.metrics import classification_sums, segmentation_sums
from train import segmentation, sequences
from train.data.augment import augment, one_hot, seen, to_float
from train.data.joint import augment_pairs

Batch = dict[str, Any]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """The parts of training that depend on what is learned.

    Attributes:
        inputs: A batch -> the arguments of the model by name, the first of them "x".
        augment: (key, batch, first) -> those arguments and the targets, arrays by name, of the augmented batch; `first` as
            `train.data.augment.augment`.
        losses: (what the model returns in training, targets) -> one loss per example.
        measures: (outputs, targets) -> figures per example by name, of which training logs the means.
        sums: (outputs, batch) -> sums over the examples that batch["mask"] counts, with the "count" they are divided by; see
            `dilax.metrics`.
        figures: Those sums over a split, as numpy arrays -> figures by name.
        best_by: The validation figure that decides between checkpoints.
        output_shapes: Shape of an example -> shapes of outputs that fit the task, without the batch.
        lower_is_better: Whether the least `best_by` is the best.
    """

    inputs: Callable[[Batch], Batch]
    augment: Callable[[jax.Array, Batch, Any], tuple[Batch, Batch]]
    losses: Callable[[Any, Batch], jax.Array]
    measures: Callable[[jax.Array, Batch], dict[str, jax.Array]]
    sums: Callable[[jax.Array, Batch], dict[str, jax.Array]]
    figures: Callable[[dict[str, np.ndarray]], dict[str, float]]
    best_by: str
    output_shapes: Callable[[Shape], tuple[Shape, ...]]
    lower_is_better: bool = False

    def rank(self, logged: Mapping[str, float]) -> tuple[float, float]:
        """Return the rank of a checkpoint by its figures as logged, the greater the better.

        `best_by` decides, and the loss between those that tie, as many do in the accuracy on a small split.
        """
        sign = -1 if self.lower_is_better else 1
        return sign * logged.get(f"validation/{self.best_by}", -sign * math.inf), -logged.get("validation/loss", math.inf)


def _shares(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """The figures of `classification_sums`."""
    return {name: float(sums[name]) / float(sums["count"]) for name in ("accuracy", "loss")}


def _classification(config: ConfigDict, num_classes: int, _: tuple[float, ...]) -> Task:
    def augmented(key: jax.Array, batch: Batch, first: Any) -> tuple[Batch, Batch]:
        images, targets = augment(key, batch["image"], batch["label"], config.augment, num_classes, first)
        return {"x": seen(config, images)}, {"target": targets, "label": batch["label"]}

    return Task(
        inputs=lambda batch: {"x": seen(config, to_float(batch["image"]))},
        augment=augmented,
        losses=lambda logits, targets: optax.softmax_cross_entropy(logits, targets["target"]),
        measures=lambda logits, targets: {"accuracy": (logits.argmax(-1) == targets["label"]).astype(logits.dtype)},
        sums=lambda logits, batch: classification_sums(logits, batch["label"], batch["mask"]),
        figures=_shares,
        best_by="accuracy",
        output_shapes=lambda _: ((num_classes,),),
    )


def _segmentation(config: ConfigDict, num_classes: int, class_weights: tuple[float, ...]) -> Task:
    ignored, losses = config.segmentation.ignored_label, segmentation.make_losses(config, class_weights)

    def augmented(key: jax.Array, batch: Batch, first: Any) -> tuple[Batch, Batch]:
        images, labels = augment_pairs(key, batch["image"], batch["label"], config.augment, ignored, first)
        return {"x": seen(config, images)}, {"label": labels}

    return Task(
        inputs=lambda batch: {"x": seen(config, to_float(batch["image"]))},
        augment=augmented,
        losses=lambda outputs, targets: losses(outputs, targets["label"]),
        measures=lambda logits, targets: {"accuracy": segmentation.right_share(logits, targets["label"], ignored)},
        sums=lambda logits, batch: segmentation_sums(logits, batch["label"], batch["mask"], ignored_label=ignored),
        figures=segmentation.figures,
        best_by="miou",
        output_shapes=lambda shape: ((*shape[:2], num_classes),),
    )


def _sequence_classification(config: ConfigDict, num_classes: int, _: tuple[float, ...]) -> Task:
    pool = config.sequence.pool

    def augmented(key: jax.Array, batch: Batch, first: Any) -> tuple[Batch, Batch]:
        if "image" in batch:
            images, targets = augment(key, batch["image"], batch["label"], config.augment, num_classes, first)
            batch = sequences.of_images(config, batch, images)
        else:
            targets = one_hot(batch["label"], num_classes, config.augment.label_smoothing)
        return sequences.inputs(config, batch), {"target": targets, "label": batch["label"], "length": batch["length"]}

    def logits(outputs: jax.Array, batch: Batch) -> jax.Array:
        return sequences.pooled(outputs, batch["length"], pool)

    return Task(
        inputs=lambda batch: sequences.inputs(config, sequences.of_batch(config, batch)),
        augment=augmented,
        losses=lambda outputs, targets: optax.softmax_cross_entropy(logits(outputs, targets), targets["target"]),
        measures=lambda outputs, targets: {"accuracy": (logits(outputs, targets).argmax(-1) == targets["label"]).astype(jnp.float32)},
        sums=lambda outputs, batch: classification_sums(logits(outputs, sequences.of_batch(config, batch)), batch["label"], batch["mask"]),
        figures=_shares,
        best_by="accuracy",
        output_shapes=lambda shape: ((shape[0], num_classes), (num_classes,)),
    )


def _per_step(config: ConfigDict, outputs: int, kind: str, figure: str) -> Task:
    """A task that is scored at every step by a loss of `sequences.step_losses`, whose mean is called `figure`."""

    def targets(batch: Batch) -> Batch:
        return {name: batch[name] for name in ("label", "counted")}

    losses = sequences.step_losses(kind)
    return Task(
        inputs=lambda batch: sequences.inputs(config, batch),
        augment=lambda key, batch, first: (sequences.inputs(config, batch), targets(batch)),
        losses=lambda found, targets: sequences.example_means(losses(found, targets["label"]), targets["counted"]),
        measures=lambda found, targets: sequences.step_measures(kind, found, targets),
        sums=lambda found, batch: sequences.step_sums(kind, found, batch),
        figures=lambda sums: sequences.step_figures(kind, figure, sums),
        best_by=figure,
        output_shapes=lambda shape: ((shape[0], outputs),),
        lower_is_better=True,
    )


def _sequence_prediction(config: ConfigDict, outputs: int, _: tuple[float, ...]) -> Task:
    return _per_step(config, outputs, config.sequence.loss, {"binary": "nll", "mse": "mse"}.get(config.sequence.loss, "loss"))


def _language_model(config: ConfigDict, outputs: int, _: tuple[float, ...]) -> Task:
    return _per_step(config, outputs, "categorical", "bits_per_byte" if config.sequence.units == "bytes" else "bits_per_character")


def _waveform(config: ConfigDict, outputs: int, _: tuple[float, ...]) -> Task:
    if config.model.get("outputs") == "mixture":
        return _per_step(config, 3 * config.model.mixtures, "mixture", "bits_per_sample")
    return _per_step(config, outputs, "categorical", "bits_per_sample")


def _separation(config: ConfigDict, sources: int, _: tuple[float, ...]) -> Task:
    return Task(
        inputs=lambda batch: sequences.inputs(config, batch),
        augment=lambda key, batch, first: (sequences.inputs(config, batch), {"label": batch["label"], "real": sequences.real_steps(batch)}),
        losses=lambda found, targets: separation_loss(found, targets["label"], targets["real"]),
        measures=lambda found, targets: {},
        sums=sequences.separation_sums,
        figures=sequences.separation_figures,
        best_by="si_sdr",
        output_shapes=lambda shape: ((shape[0], sources),),
    )


# (config, number of outputs, weights of the classes or ()) -> Task.
TASKS: dict[str, Callable[[ConfigDict, int, tuple[float, ...]], Task]] = {
    "classification": _classification,
    "segmentation": _segmentation,
    "sequence_classification": _sequence_classification,
    "sequence_prediction": _sequence_prediction,
    "language_model": _language_model,
    "waveform": _waveform,
    "separation": _separation,
}
