"""Semantic segmentation: the class of every pixel of an image, or of every voxel of a volume."""

import argparse
import copy
import math
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import VariableDict
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError, metrics, plots
from dilax.inference import average_views, model_arguments
from dilax.volumes import SUFFIXES as VOLUME_SUFFIXES
from train.data.augment import COLOUR_KEYS, GEOMETRY_KEYS, MASK_KEYS, augment
from train.data.image_sets import MASK_KEYS as MASK_DATA_KEYS
from train.data.image_sets import MASK_READS, VOLUMES, open_masked
from train.data.readers.images import SUFFIXES
from train.data.splits import Splits
from train.keys import UNLIMITED, Key, Keys, Reads
from train.tasks import images
from train.tasks.base import Batch, Report, Scores, Shape, Sums, Task, add_inputs, ratios
from train.tasks.portable import Answer, most_probable
from train.tasks.segmentation_files import predict_images, predict_volumes, show_images, show_volumes
from train.tasks.segmentation_losses import BALANCES, WEIGHTED, check_losses, class_weights, loss_names, make_losses, pixel_accuracy
from train.tasks.segmentation_scores import class_dice, mean_of, surface_distances

_LOSS = "segmentation.loss"


class Segmentation(Task):
    """Learns the class of every pixel, of images and of volumes alike.

    Evaluation may average over several sizes of the image and over mirrored images, or compute large ones in tiles. Runs on volumes are
    judged by the Dice coefficient of each volume, and on the test split by the distances of the surfaces.
    """

    name = "segmentation"
    keys: ClassVar[Keys] = {
        **MASK_DATA_KEYS,
        **GEOMETRY_KEYS,
        **MASK_KEYS,
        **COLOUR_KEYS,
        "segmentation.ignored_label": Key(255, "label of pixels that count neither in the loss nor in the metrics", (0, 255)),
        "segmentation.tile": Key(
            (),
            "sizes of the parts in which evaluation and prediction compute images or volumes that do not fit into memory, such as "
            "(64, 64, 64), with the same result; () computes them whole",
            items=int,
            may_change=True,
        ),
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
    spatial = ("image", "label")
    scales: tuple[float, ...] = (1.0,)
    flip = False

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Refuse unknown losses, and weights and crops that mean nothing."""
        images.check_colours(config)
        check_losses(config)
        words = ("x", "y", "z") if config.data.name in VOLUMES else ("height", "width")
        for key, what in (("augment.crop", "for the size of the image"), ("segmentation.tile", "to compute images whole")):
            images.check_sizes(config, key, words, what)

    def __init__(self, config: ConfigDict, spec: DataSpec):
        """Volumes are judged by Dice, images by intersection over union."""
        super().__init__(config, spec)
        self.best_by = "dice" if spec.is_volume else "miou"
        self.curves = ("loss", "accuracy", self.best_by)
        self.tile = tuple(config.segmentation.tile)

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
        return ((*self.spec.input_shape[:-1], len(self.spec.outputs)),)

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
        """Loss, right pixels, confusion matrix; of volumes the Dice coefficients of the classes, too."""
        labels, mask, ignored = batch["label"], batch["mask"], self.config.segmentation.ignored_label
        sums = metrics.segmentation_sums(outputs, labels, mask, ignored_label=ignored)
        if not self.spec.is_volume:
            return sums
        found = outputs.argmax(-1)
        return sums | metrics.dice_sums(found, labels, mask, num_classes=outputs.shape[-1], ignored_label=ignored)

    def kept(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Of volumes the predictions, from which distances between surfaces follow."""
        if not self.spec.is_volume:
            return {}
        labels, ignored = batch["label"], self.config.segmentation.ignored_label
        found = jnp.where(labels == ignored, labels, outputs.argmax(-1).astype(labels.dtype))
        return {"found": found, "label": labels, "spacing": batch["spacing"]}

    def metrics(self, scores: Scores) -> dict[str, float]:
        """Mean intersection over union, pixel accuracy and loss; of volumes the mean Dice of the classes but the first, the background."""
        if not float(scores.sums["count"]):
            raise UserError("no pixel of the split counts: all are ignored; check the masks, or config.data.mask_values.")
        usual = {"miou": metrics.mean_iou(scores.sums["confusion"]), **ratios(scores.sums, "accuracy", "loss")}
        return {"dice": mean_of(class_dice(scores)[1:]), **usual} if self.spec.is_volume else usual

    def details(self, scores: Scores) -> dict[str, float]:
        """Intersection over union of each class that occurs; of volumes, Dice and the 95th percentile of distances between surfaces."""
        found = {"iou": metrics.class_iou(scores.sums["confusion"]).tolist()}
        if self.spec.is_volume:
            found |= {"dice": class_dice(scores).tolist()} | surface_distances(scores, len(self.spec.outputs))
        named = {f"{kind}/{name}": value for kind, values in found.items() for name, value in zip(self.spec.outputs, values)}
        return {name: value for name, value in named.items() if not math.isnan(value)}

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """Scores of the classes, confusion matrix, the worst test images or slices of the worst volumes, feature maps."""
        names, confusion = self.spec.outputs, scores.sums["confusion"]
        values, label = (class_dice(scores), "Dice") if self.spec.is_volume else (metrics.class_iou(confusion), "intersection over union")
        pictures = {
            "Score of each class": ("class_iou", plots.class_bars(values, names, label=label)),
            "Confusion matrix": ("confusion_matrix", plots.confusion_matrix(confusion, names)),
        }
        show = show_volumes if self.spec.is_volume else show_images
        return show(inference, splits, pictures, self.config.segmentation.ignored_label)

    @classmethod
    def add_evaluation_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Sizes, mirroring and tiles."""
        parser.add_argument("--scales", default="1", help="image sizes at which the model runs, averaged, such as 0.75,1,1.25")
        parser.add_argument("--flip", action="store_true", help="also run on images mirrored along their last axis, averaged")
        parser.add_argument("--tile", default="", help="compute large images or volumes in parts of this size, such as 64,64,64")

    def with_flags(self, args: argparse.Namespace) -> "Segmentation":
        """Evaluate at several sizes and mirrored, or in tiles."""
        changed = copy.copy(self)
        changed.scales, changed.flip = read_scales(args.scales), args.flip
        changed.tile = read_tile(args.tile, len(self.spec.input_shape) - 1) or self.tile
        if changed.tile and (changed.flip or changed.scales != (1.0,)):
            raise UserError(f"--scales and --flip need whole images, and tiles of {changed.tile} are computed; leave one of them out.")
        return changed

    def answer(self, *, step: bool = False) -> Answer:
        """The class of each pixel."""
        return most_probable(len(self.spec.outputs))

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Sizes, mirroring and tiles; files."""
        cls.add_evaluation_flags(parser)
        add_inputs(parser, "image files to segment, .nii or .nii.gz files for a run on volumes, or folders of them")

    def input_suffixes(self) -> Collection[str]:
        """Those of images, or of volumes."""
        return VOLUME_SUFFIXES if self.spec.is_volume else SUFFIXES

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Write what `predict_images` or `predict_volumes` says for each input, and yield the lines to print."""
        task = self.with_flags(args)
        run = predict_volumes if self.spec.is_volume else predict_images
        return run(inference, args, {"scales": task.scales, "flip": task.flip, "tile": task.tile})


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


def read_tile(text: str, axes: int) -> tuple[int, ...]:
    """Read the sizes of a tile, one for each axis of space, separated by commas; () if there is none.

    Raises:
        UserError: if there is anything else.
    """
    words = text.split(",") if text else []
    if words and (len(words) != axes or not all(word.strip().isdecimal() and int(word) > 0 for word in words)):
        raise UserError(f"--tile={text} must be {axes} sizes in pixels, separated by commas, such as {','.join(['64'] * axes)}.")
    return tuple(map(int, words))
