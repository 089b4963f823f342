"""Semantic segmentation: the class of every pixel."""

import argparse
import copy
import math
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError, inputs, losses, metrics, plots
from dilax.errors import did_you_mean
from dilax.inference import average_views, model_arguments
from train.data.augment import COLOUR_KEYS, GEOMETRY_KEYS, MASK_KEYS, augment
from train.data.image_sets import MASK_KEYS as MASK_DATA_KEYS
from train.data.image_sets import MASK_READS, open_masked
from train.data.readers.images import SUFFIXES
from train.data.readers.masks import class_pixels
from train.data.source import Source
from train.data.splits import Splits
from train.keys import UNLIMITED, Key, Keys, Reads
from train.tasks import images
from train.tasks.base import (
    Batch,
    Report,
    Scores,
    Shape,
    Sums,
    Task,
    add_inputs,
    make_folder,
    output_files,
    ratios,
    report_table,
    table_lines,
)
from train.tasks.portable import Answer, most_probable

LOSSES = ("cross_entropy", "focal", "dice")
WEIGHTED = ("cross_entropy", "focal")  # those of them that weigh the classes
BALANCES = ("", "median_frequency")
_LOSS = "segmentation.loss"
SAMPLED, WORST = 240, 6  # test images that the report chooses from, and shows


class Segmentation(Task):
    """Learns the class of every pixel; evaluation may average over several sizes of the image and over mirrored images."""

    name = "segmentation"
    keys: ClassVar[Keys] = {
        **MASK_DATA_KEYS,
        **GEOMETRY_KEYS,
        **MASK_KEYS,
        **COLOUR_KEYS,
        "segmentation.ignored_label": Key(255, "label of pixels that count neither in the loss nor in the metrics", (0, 255)),
        _LOSS: Key("cross_entropy", '"cross_entropy", "focal", "dice", or a sum of them such as "cross_entropy+dice"'),
        "segmentation.focal_gamma": Key(2.0, "exponent of the focal loss", (0, UNLIMITED), needs=(_LOSS, ("focal",))),
        "segmentation.class_weights": Key(
            (), "weights of the classes in cross-entropy and focal loss; () weighs all alike", needs=(_LOSS, WEIGHTED)
        ),
        "segmentation.balance": Key(
            "", '"median_frequency": class weights from the pixels of the training split', choices=BALANCES, needs=(_LOSS, WEIGHTED)
        ),
        "segmentation.aux_weight": Key(
            0.4, "weight of the loss of an auxiliary head, if the model has one", (0, UNLIMITED), needs=("model.aux_head", (True,))
        ),
    }
    reads: ClassVar[Reads] = MASK_READS
    best_by = "miou"
    curves = ("loss", "accuracy", "miou")
    spatial = ("image", "label")
    scales: tuple[float, ...] = (1.0,)
    flip = False

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Refuse unknown losses, and weights and crops that mean nothing."""
        images.check_colours(config)
        images.check_crop(config)
        options = config.segmentation
        for name in loss_names(config):
            if name not in LOSSES:
                raise UserError(
                    f"config.segmentation.loss={options.loss!r} is unknown; use one of {LOSSES}, or several of them joined by +."
                    f"{did_you_mean(name, LOSSES)}"
                )
        if options.balance and options.class_weights:
            raise UserError(
                "config.segmentation.balance and config.segmentation.class_weights both set the weights of classes; remove one."
            )
        if any(not (isinstance(weight, int | float) and 0 <= weight < math.inf) for weight in options.class_weights):
            raise UserError(f"config.segmentation.class_weights={tuple(options.class_weights)} must be numbers of 0 or more.")
        if options.class_weights and not any(options.class_weights):
            raise UserError(f"config.segmentation.class_weights={tuple(options.class_weights)} leaves nothing to learn; give one above 0.")

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open a set of images and masks, and weigh its classes."""
        splits = open_masked(config.data, seed=config.seed, ignored=config.segmentation.ignored_label)
        images.check_channels(config, splits.spec.input_shape[-1])
        return splits.with_spec(class_weights=class_weights(config, splits.train, splits.spec.outputs))

    def hub_task(self) -> str:
        """Classes of pixels."""
        return "image-segmentation"

    def output_shapes(self) -> tuple[Shape, ...]:
        """Logits of the classes at every pixel."""
        return ((*self.spec.input_shape[:2], len(self.spec.outputs)),)

    def inputs(self, batch: Batch, model: nn.Module) -> Batch:
        """Standardised images."""
        return model_arguments(model, self.spec.prepare(batch["image"]))

    def augment(self, key: jax.Array, batch: Batch, first: Any) -> Batch:
        """Transform images and masks alike."""
        pairs = {"image": batch["image"], "mask": batch["label"]}
        pairs = augment(key, pairs, self.config.augment, first=first, ignored=self.config.segmentation.ignored_label)
        return {**batch, "image": pairs["image"], "label": pairs["mask"]}

    def losses(self, outputs: Any, batch: Batch) -> jax.Array:
        """Sum of the parts of config.segmentation.loss, with those of the auxiliary head."""
        return make_losses(self.config.segmentation, loss_names(self.config), self.spec.class_weights)(outputs, batch["label"])

    def has_classes(self) -> bool:
        """One of each pixel."""
        return True

    def class_logits(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Those of the main head, at the pixels that are not ignored."""
        return outputs[0] if isinstance(outputs, tuple) else outputs, batch["label"] != self.config.segmentation.ignored_label

    def measures(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Share of right pixels."""
        logits, _ = self.class_logits(outputs, batch)
        return {"accuracy": pixel_accuracy(logits, batch["label"], self.config.segmentation.ignored_label)}

    def outputs(self, model: nn.Module, variables: VariableDict, batch: Batch) -> Any:
        """Logits, averaged over the views of the image."""

        def logits(x: jax.Array) -> Any:
            return model.apply(variables, x=x, train=False)

        return average_views(logits, self.inputs(batch, model)["x"], self.scales, self.flip)

    def sums(self, outputs: Any, batch: Batch) -> Sums:
        """Loss, right pixels, confusion matrix."""
        ignored = self.config.segmentation.ignored_label
        return metrics.segmentation_sums(outputs, batch["label"], batch["mask"], ignored_label=ignored)

    def metrics(self, scores: Scores) -> dict[str, float]:
        """Mean intersection over union, pixel accuracy and loss."""
        if not float(scores.sums["count"]):
            raise UserError("no pixel of the split counts: all are ignored; check the masks, or config.data.mask_values.")
        return {"miou": metrics.mean_iou(scores.sums["confusion"]), **ratios(scores.sums, "accuracy", "loss")}

    def details(self, scores: Scores) -> dict[str, float]:
        """Intersection over union of each class that occurs."""
        values = metrics.class_iou(scores.sums["confusion"]).tolist()
        return {f"iou/{name}": value for name, value in zip(self.spec.outputs, values) if not math.isnan(value)}

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """Scores of the classes, confusion matrix, the worst test images, feature maps."""
        names, confusion = splits.spec.outputs, scores.sums["confusion"]
        numbers, records = images.spread(splits.test, SAMPLED)
        pixels, truths = (np.stack([record[field] for record in records]) for field in ("image", "label"))
        predictions = images.in_parts(inference.segment, pixels, 8)
        ious = image_scores(truths, predictions, len(names), self.config.segmentation.ignored_label)
        worst = np.argsort(np.where(np.isnan(ious), 2, ious), kind="stable")[:WORST]
        files = [images.name_of(splits.test, numbers[i]) for i in worst]
        scored = ["no labelled pixel" if np.isnan(ious[i]) else f"{ious[i]:.3f}" for i in worst]
        titles = [f"IoU {score}, {images.shorten(file)}" for score, file in zip(scored, files)]
        grid = plots.segmentation_grid(pixels[worst], truths[worst], predictions[worst], names, titles)
        few = f"The worst of {len(pixels)} test images"
        heading = few if len(pixels) == len(splits.test) else f"{few}, spread over all {len(splits.test)}"
        pictures = {
            "Score of each class": ("class_iou", plots.class_bars(metrics.class_iou(confusion), names)),
            "Confusion matrix": ("confusion_matrix", plots.confusion_matrix(confusion, names)),
            heading: ("worst", grid),
        }
        listed = report_table("Files of the worst test images", ("file", "mean intersection over union"), zip(files, scored))
        return images.image_report(pictures, inference, pixels, [listed])

    @classmethod
    def add_evaluation_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Sizes and mirroring."""
        parser.add_argument("--scales", default="1", help="image sizes at which the model runs, averaged, such as 0.75,1,1.25")
        parser.add_argument("--flip", action="store_true", help="also run on mirrored images, averaged")

    def with_flags(self, args: argparse.Namespace) -> "Segmentation":
        """Evaluate at several sizes, and mirrored."""
        changed = copy.copy(self)
        changed.scales, changed.flip = read_scales(args.scales), args.flip
        return changed

    def answer(self, *, step: bool = False) -> Answer:
        """The class of each pixel."""
        return most_probable(len(self.spec.outputs))

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Sizes and mirroring, image files."""
        cls.add_evaluation_flags(parser)
        add_inputs(parser, "image files to segment, or folders of them")

    def input_suffixes(self) -> Collection[str]:
        """Those of images."""
        return SUFFIXES

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Write NAME_overlay.png and NAME_mask.png, the class indices as a palette image of the file's own size, for each image.

        Yields the file, the path of the overlay and the classes with the largest shares of the image. The longer side is scaled to
        config.data.image_size, if that is set.
        """
        files = output_files(args.inputs, ("_overlay.png", "_mask.png"), args.out, replace=args.replace, rename=True)
        names, scales = self.spec.outputs, read_scales(args.scales)
        pixels = [inputs.to_pixels(path, self.spec.input_shape[2]) for path in args.inputs]
        make_folder(args.out)

        def rows() -> Iterator[tuple[str, ...]]:
            for path, image, (overlay, mask_file) in zip(args.inputs, pixels, files):
                mask = inference.segment_whole(image, scales=scales, flip=args.flip)
                plots.save(plots.segmentation_overlay(image, mask, names), overlay)
                _save_mask(mask, len(names), mask_file)
                shares = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
                words = [f"{names[i]} {shares[i]:.1%}" for i in np.argsort(-shares, kind="stable")[:3] if shares[i]]
                yield path, str(overlay), ", ".join(words)

        yield from table_lines(args, ("input", "overlay", "classes"), rows())


def loss_names(config: ConfigDict) -> tuple[str, ...]:
    """Return the parts of config.segmentation.loss."""
    return tuple(name.strip() for name in config.segmentation.loss.split("+"))


def make_losses(options: Any, names: tuple[str, ...], class_weights: tuple[float, ...]) -> Callable[[Any, jax.Array], jax.Array]:
    """Return (outputs, labels) -> (batch,): the sum of the losses of those names.

    Outputs are logits (batch, height, width, classes), or (logits, auxiliary logits), the loss of which is added with `aux_weight`.

    Args:
        options: The part `segmentation` of a config.
        names: Some of `LOSSES`.
        class_weights: Weights of the classes; () weighs all alike.
    """
    weights, ignored = class_weights or None, options.ignored_label
    known: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        "cross_entropy": lambda x, y: losses.pixel_cross_entropy(x, y, class_weights=weights, ignored_label=ignored),
        "focal": lambda x, y: losses.focal_loss(x, y, gamma=options.focal_gamma, class_weights=weights, ignored_label=ignored),
        "dice": lambda x, y: losses.dice_loss(x, y, ignored_label=ignored),
    }
    parts = [known[name] for name in names]

    def total(outputs: Any, labels: jax.Array) -> jax.Array:
        logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((part(logits, labels) for part in parts), jnp.zeros(len(labels)))
        return sum((options.aux_weight * part(x, labels) for x in aux for part in parts), loss)

    return total


def pixel_accuracy(logits: jax.Array, labels: jax.Array, ignored: int) -> jax.Array:
    """Return the share (batch,) of the pixels of each example that are right; 0 where all are ignored."""
    counts = (labels != ignored).reshape(len(labels), -1)
    right = (logits.argmax(-1) == labels.astype(jnp.int32)).reshape(len(labels), -1) & counts
    return right.astype(jnp.float32).sum(1) / jnp.maximum(counts.astype(jnp.float32).sum(1), 1)


def class_weights(config: ConfigDict, source: Source, class_names: tuple[str, ...]) -> tuple[float, ...]:
    """Return the weight of each class, as config.segmentation gives it or from the pixels of the training split; () weighs all alike.

    Raises:
        UserError: if the weights given do not fit the classes.
    """
    options = config.segmentation
    given = tuple(float(weight) for weight in options.class_weights)
    if given and len(given) != len(class_names):
        raise UserError(
            f"config.segmentation.class_weights has {len(given)} entries for {len(class_names)} classes ({', '.join(class_names)}); "
            "give one for each."
        )
    if options.balance != "median_frequency":
        return given
    pixels, labelled = class_pixels(source, len(class_names), options.ignored_label)
    return tuple(losses.median_frequency_weights(pixels, labelled).tolist())


def image_scores(truths: np.ndarray, predictions: np.ndarray, classes: int, ignored: int) -> np.ndarray:
    """Return the mean intersection over union (n,) of each image; NaN where all of its pixels are ignored."""
    scores = []
    for truth, prediction in zip(truths, predictions):
        known = truth != ignored
        pairs = truth[known].astype(np.int64) * classes + prediction[known]
        scores.append(metrics.mean_iou(np.bincount(pairs, minlength=classes**2).reshape(classes, classes)))
    return np.array(scores)


def read_scales(text: str) -> tuple[float, ...]:
    """Read positive numbers separated by commas.

    Raises:
        UserError: if there is anything else.
    """
    try:
        scales = tuple(float(word) for word in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise UserError(f"--scales={text} must be positive numbers separated by commas, such as 0.75,1,1.25.")
    return scales


def _save_mask(mask: np.ndarray, classes: int, path: pathlib.Path) -> None:
    from PIL import Image

    image = Image.fromarray(mask)
    image.putpalette(plots.mask_colours(classes).tobytes())
    image.save(path)
