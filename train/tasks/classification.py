"""Classification of images."""

import argparse
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, inputs, plots
from dilax.inference import model_arguments
from dilax.metrics import classification_sums
from train.data.augment import CLASS_KEYS, GEOMETRY_KEYS, augment, one_hot
from train.data.image_sets import IMAGE_KEYS, IMAGE_READS, open_labelled
from train.data.readers.images import SUFFIXES
from train.data.source import files_of
from train.data.splits import Splits
from train.keys import Keys, Reads
from train.tasks import images
from train.tasks.base import (
    Batch,
    Report,
    Scores,
    Shape,
    Sums,
    Task,
    add_inputs,
    add_top_flag,
    check_top,
    class_lines,
    ratios,
    report_table,
)
from train.tasks.portable import PROBABILITIES, Answer

SAMPLED, SHOWN = 1000, 40  # test images that the report chooses from, and shows


class Classification(Task):
    """Learns the class of an image, by cross-entropy."""

    name = "classification"
    keys: ClassVar[Keys] = {**IMAGE_KEYS, **GEOMETRY_KEYS, **CLASS_KEYS}
    reads: ClassVar[Reads] = IMAGE_READS
    best_by = "accuracy"

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Refuse colours out of range."""
        images.check_colours(config)

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open a set of labelled images."""
        splits = open_labelled(config.data, seed=config.seed)
        images.check_channels(config, splits.spec.input_shape[-1])
        return splits

    def hub_task(self) -> str:
        """Classes of images."""
        return "image-classification"

    def output_shapes(self) -> tuple[Shape, ...]:
        """Logits of the classes."""
        return ((len(self.spec.outputs),),)

    def inputs(self, batch: Batch, model: nn.Module) -> Batch:
        """Standardised images."""
        return model_arguments(model, self.spec.prepare(batch["image"]))

    def augment(self, key: jax.Array, batch: Batch, first: Any) -> Batch:
        """Augment the images, and smooth or mix the targets."""
        return augment_labelled(key, batch, self.config.augment, len(self.spec.outputs), first)

    def losses(self, outputs: Any, batch: Batch) -> jax.Array:
        """Cross-entropy in nats."""
        return optax.softmax_cross_entropy(outputs, batch["target"])

    def has_classes(self) -> bool:
        """One of an image."""
        return True

    def class_logits(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Those of the images."""
        return outputs, None

    def measures(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Right answers."""
        return {"accuracy": (outputs.argmax(-1) == batch["label"]).astype(outputs.dtype)}

    def sums(self, outputs: Any, batch: Batch) -> Sums:
        """Loss, right answers, confusion matrix."""
        return classification_sums(outputs, batch["label"], batch["mask"])

    def metrics(self, scores: Scores) -> dict[str, float]:
        """Accuracy and loss."""
        return ratios(scores.sums, "accuracy", "loss")

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """Confusion matrix, test images, kernels of the first layer, feature maps."""
        names = splits.spec.outputs
        numbers, records = images.spread(splits.test, SAMPLED)
        pixels, labels = (np.stack([record[field] for record in records]) for field in ("image", "label"))
        probabilities = images.in_parts(inference.probabilities, pixels, 100)
        order = images.most_telling(labels, probabilities)[:SHOWN]
        grid = plots.prediction_grid(pixels[order], labels[order], probabilities[order], names)
        pictures = {
            "Confusion matrix": ("confusion_matrix", plots.confusion_matrix(scores.sums["confusion"], names)),
            "Test images, mistakes first: true → predicted (probability)": ("predictions", grid),
            **images.kernel_pictures(inference),
        }
        return images.image_report(pictures, inference, pixels, self._mistakes(splits, numbers, order, labels, probabilities))

    def _mistakes(self, splits: Splits, numbers: list[int], order: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> list[str]:
        """Return a section with the files of the mistakes among the images in `order`; none without mistakes, or names of files."""
        names, predictions = splits.spec.outputs, probabilities.argmax(1)
        wrong = [i for i in order.tolist() if predictions[i] != labels[i]]
        if not wrong or not files_of(splits.test):
            return []
        head = ("file", "true", "predicted")
        rows = [
            (images.name_of(splits.test, numbers[i]), names[labels[i]], f"{names[predictions[i]]} ({probabilities[i].max():.0%})")
            for i in wrong
        ]
        return [report_table("Files of the mistakes shown", head, rows)]

    def answer(self, *, step: bool = False) -> Answer:
        """Probabilities of the classes."""
        return PROBABILITIES

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Image files, and how many classes are printed for each."""
        add_top_flag(parser)
        add_inputs(parser, "image files to classify, or folders of them")

    def input_suffixes(self) -> Collection[str]:
        """Those of images."""
        return SUFFIXES

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Yield file, class and probability."""
        check_top(args, len(self.spec.outputs))
        height, width, channels = self.spec.input_shape
        pixels = [inputs.fit(inputs.to_pixels(path, channels), height, width) for path in args.inputs]
        yield from class_lines(args, ((path, inference.rank(image[None], top=args.top)[0]) for path, image in zip(args.inputs, pixels)))


def augment_labelled(key: jax.Array, batch: Batch, options: Any, classes: int, first: Any) -> Batch:
    """Augment images with their classes; the targets go into "target" (batch, classes)."""
    target = one_hot(batch["label"], classes)  # `augment` smooths it
    return {**batch, **augment(key, {"image": batch["image"], "target": target}, options, first=first)}
