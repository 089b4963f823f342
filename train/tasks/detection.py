"""Object detection: the boxes of objects, and the class of each."""

import argparse
import json
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError, inputs, models, plots
from dilax.boxes import clip_boxes
from dilax.detection import Box, detector_of, is_detector
from dilax.detection_metrics import DetectionScores, score_detections
from dilax.inference import model_arguments
from train.data.augment import COLOUR_KEYS, GEOMETRY_KEYS, MASK_KEYS, augment
from train.data.box_sets import BOX_KEYS, BOX_READS, open_boxed
from train.data.readers.images import SUFFIXES
from train.data.source import field, read
from train.data.splits import Splits
from train.files import write_text
from train.keys import UNLIMITED, Key, Keys, Reads
from train.tasks import images
from train.tasks.base import (
    Batch,
    Loss,
    Report,
    Scores,
    Shape,
    Sums,
    Task,
    add_inputs,
    make_folder,
    output_files,
    report_table,
    run_training,
    table_lines,
)
from train.tasks.portable import Answer

SAMPLED, WORST = 240, 6  # test images that the report chooses from, and shows
SHOWN_SCORE, OVERLAP = 0.5, 0.5  # from which score on boxes are shown, and from which overlap on one suppresses another
_ANCHORS_OF = 2000  # training images whose boxes are compared with the anchors
_CHUNK = 16
_TRUTHS, _FOUND = ("true_boxes", "true_classes", "true_mask", "crowd"), ("boxes", "scores", "classes", "mask")


class Detection(Task):
    """Learns boxes and their classes; the loss is divided by the number of anchors that are matched with a box."""

    name = "detection"
    keys: ClassVar[Keys] = {
        **BOX_KEYS,
        **GEOMETRY_KEYS,
        **MASK_KEYS,
        **COLOUR_KEYS,
        "detection.box_weight": Key(1.0, "weight of the losses of the boxes beside that of the classes", (0, UNLIMITED)),
        "detection.score_threshold": Key(
            0.05, "detections of lower scores are left out of the metrics, which they hardly change", (0, 1), may_change=True
        ),
        "detection.iou_threshold": Key(
            OVERLAP, "intersection over union from which on a box suppresses others of its class and a lower score", (0, 1), may_change=True
        ),
        "detection.max_detections": Key(100, "detections in an image at most", (1, 10_000), may_change=True),
    }
    reads: ClassVar[Reads] = BOX_READS
    best_by = "map"
    curves = ("loss", "map", "map50")
    spatial = ("image",)

    def __init__(self, config: ConfigDict, spec: DataSpec):
        """Bind the task; the last scores are remembered, since ranking all detections takes a while."""
        super().__init__(config, spec)
        self._scored: tuple[Scores, DetectionScores] | None = None

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Refuse colours out of range, and crops that mean nothing."""
        images.check_colours(config)
        images.check_sizes(config, "augment.crop", ("height", "width"), "for the size of the image")

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open a set of images and boxes."""
        splits = open_boxed(config.data, seed=config.seed)
        images.check_channels(config, splits.spec.input_shape[-1])
        return splits

    def hub_task(self) -> str:
        """Objects in images."""
        return "object-detection"

    def output_shapes(self) -> tuple[Shape, ...]:
        """Those of a detector are its own."""
        return ()

    def refusal(self, model: nn.Module, outputs: Any) -> str:
        """Refuse what is not a detector."""
        if is_detector(model):
            return ""
        detectors = [name for name, one in models.MODELS.items() if isinstance(one, type) and issubclass(one, models.Detector)]
        return f"does not detect boxes, as config.task={self.name!r} needs, such as {', '.join(detectors)}"

    def remarks(self, model: nn.Module, splits: Splits) -> Sequence[str]:
        """The share of the boxes for training that the anchors cover."""
        boxes, mask = field(splits.train, "boxes"), field(splits.train, "box_mask") & ~field(splits.train, "crowd")
        chosen = np.linspace(0, len(boxes) - 1, min(_ANCHORS_OF, len(boxes))).astype(int)
        covered = jax.jit(lambda boxes, mask: detector_of(model).anchor_coverage(boxes, mask, self._size))
        total, found = mask[chosen].sum(), 0.0
        for start in range(0, len(chosen), _CHUNK):
            part = chosen[start : start + _CHUNK]
            if mask[part].any():
                pad = ((0, _CHUNK - len(part)), (0, 0))
                found += float(covered(np.pad(boxes[part], (*pad, (0, 0))), np.pad(mask[part], pad))) * mask[part].sum()
        few = "" if len(chosen) == len(boxes) else f" of {len(chosen)} images"
        rest = "" if round(found) == total else "; the others are not learned"
        return (f"anchors: {found / max(total, 1):.1%} of the {total} boxes for training{few} are matched with one or more{rest}",)

    def inputs(self, batch: Batch, model: nn.Module) -> Batch:
        """Standardised images."""
        return model_arguments(model, self.spec.prepare(batch["image"]))

    def augment(self, key: jax.Array, batch: Batch, first: Any) -> Batch:
        """Move images and boxes alike."""
        pairs = {name: batch[name] for name in ("image", "boxes", "box_mask")}
        return {**batch, **augment(key, pairs, self.config.augment, first=first)}

    def loss(
        self, model: nn.Module, variables: VariableDict, batch: Batch, key: jax.Array, *, average: Any = None, teacher: Any = None
    ) -> Loss:
        """The losses of classes and boxes, and the number of matched anchors that they are divided by."""
        outputs, collections = run_training(model, variables, self.inputs(batch, model), key)
        parts, matched = self._losses(model, outputs, batch, batch["box_mask"])
        sums = {name: values.sum() for name, values in parts.items()}
        return Loss({"loss": sum(sums.values(), jnp.float32(0)), **sums}, matched.sum(), collections)

    def evaluate(self, model: nn.Module, variables: VariableDict, batch: Batch) -> tuple[Sums, dict[str, jax.Array]]:
        """The loss, and the detections and the true boxes of every image."""
        outputs, detector = self.outputs(model, variables, batch), detector_of(model)
        parts, matched = self._losses(model, outputs, batch, batch["box_mask"] & batch["mask"][:, None])
        total = jnp.where(batch["mask"], sum(parts.values(), jnp.zeros(len(matched))), 0.0)
        found = detector.detections(outputs, batch["image"].shape[1:3], score_threshold=self._lowest, **self._limits)
        return {"loss": total.sum(), "count": matched.sum()}, _kept(found, batch)

    def judge(self, outputs: Any, batch: Batch) -> tuple[Sums, dict[str, jax.Array]]:
        """The detections and the true boxes of every image, from candidates (batch, anchors, 4 + classes) as `answer` gives them."""
        boxes, scores = outputs[..., :4], outputs[..., 4:]
        classes = jnp.broadcast_to(jnp.arange(scores.shape[-1], dtype=jnp.int32), scores.shape)
        boxes = jnp.repeat(boxes, scores.shape[-1], axis=1)
        scores, classes = (each.reshape(len(scores), -1) for each in (scores, classes))
        found = models.Detector.suppressed(boxes, scores, classes, score_threshold=self._lowest, **self._limits)
        return {"loss": jnp.zeros(()), "count": jnp.zeros(())}, _kept(found, batch)

    @property
    def _size(self) -> tuple[int, int]:
        """(height, width) of the images of the network."""
        return self.spec.input_shape[0], self.spec.input_shape[1]

    @property
    def _lowest(self) -> float:
        return self.config.detection.score_threshold

    @property
    def _limits(self) -> dict[str, Any]:
        return {name: self.config.detection[name] for name in ("iou_threshold", "max_detections")}

    def metrics(self, scores: Scores) -> dict[str, float]:
        """COCO's mean average precision, that at an intersection over union of 0.5, and the loss."""
        scored = self._scores(scores)
        loss = float(scores.sums["loss"]) / max(float(scores.sums["count"]), 1.0)
        return {"map": scored.mean_ap(), "map50": scored.mean_ap(0.5), "loss": loss}

    def details(self, scores: Scores) -> dict[str, float]:
        """Average precision of each class that occurs."""
        scored = self._scores(scores)
        parts = (("ap", scored.class_ap()), ("ap50", scored.class_ap(0.5)))
        return {f"{word}/{name}": float(one) for word, values in parts for name, one in zip(self.spec.outputs, values) if not np.isnan(one)}

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """Precision and recall, a table of the classes, and the worst test images."""
        names, scored = splits.spec.outputs, self._scores(scores)
        chosen, ranked = self._worst(scores)
        records, kept = read(splits.test, chosen), {name: rows[chosen] for name, rows in scores.kept.items()}
        pixels = np.stack([record["image"] for record in records])
        files = [images.name_of(splits.test, i) for i in chosen.tolist()]
        grid = plots.detection_grid(
            pixels,
            kept["true_boxes"],
            np.where(kept["true_mask"], kept["true_classes"], -1),
            kept["boxes"],
            np.where(kept["mask"] & (kept["scores"] >= SHOWN_SCORE), kept["classes"], -1),
            kept["scores"],
            names,
            [f"AP@.5 {value:.3f}, {images.shorten(file)}" for value, file in zip(ranked, files)],
        )
        few = f"The worst of {min(SAMPLED, len(splits.test))} test images: truth and detections with a score of {SHOWN_SCORE} or more"
        curves = plots.precision_recall(scored.curve(0.5), names, label="at an intersection over union of 0.5")
        pictures = {
            "Precision and recall": ("precision_recall", curves),
            "Average precision of each class": (
                "class_ap",
                plots.class_bars(scored.class_ap(), names, label="average precision, mean over overlaps of 0.5 to 0.95"),
            ),
            few: ("worst", grid),
        }
        listed = report_table("Files of the worst test images", ("file", "AP@.5"), zip(files, (f"{value:.3f}" for value in ranked)))
        return images.image_report(pictures, inference, pixels, [_class_table(scored, names), listed])

    def answer(self, *, step: bool = False) -> Answer:
        """Candidates (batch, anchors, 4 + classes): the box that each anchor predicts, in pixels, and its score for each class."""
        fields = {name: value for name, value in self.config.model.to_dict().items() if name not in ("name", "changes")}
        detector: Any = models.create(self.config.model.name, num_classes=len(self.spec.outputs), **fields)
        anchors = np.concatenate([level.anchors for level in detector.levels(self._size)])

        def candidates(outputs: Any, _: jax.Array) -> jax.Array:
            boxes = clip_boxes(detector.decode(outputs["boxes"], jnp.asarray(anchors)[None]), self._size)
            return jnp.concatenate([boxes, detector.scores(outputs)], -1)

        return Answer("candidates", candidates, lambda found: found)

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """The lowest score, and image files."""
        parser.add_argument(
            "--score", type=float, default=SHOWN_SCORE, metavar="S", help=f"report detections with a score above S; default {SHOWN_SCORE}"
        )
        add_inputs(parser, "image files to detect objects in, or folders of them")

    def input_suffixes(self) -> Collection[str]:
        """Those of images."""
        return SUFFIXES

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Write NAME_boxes.png, the image with its boxes, and NAME_boxes.json, the detections in its own pixels, for each image.

        Yields the file, the path of the picture, and how many objects of each class were found.
        """
        if not 0 <= args.score < 1:
            raise UserError(f"--score={args.score:g} is not a score of detections; give a number from 0 to below 1.")
        files = output_files(args.inputs, ("_boxes.png", "_boxes.json"), args.out, replace=args.replace, rename=True)
        names = self.spec.outputs
        pixels = [inputs.to_pixels(path, self.spec.input_shape[2]) for path in args.inputs]
        make_folder(args.out)

        def rows() -> Iterator[tuple[str, ...]]:
            for path, image, (picture, listed) in zip(args.inputs, pixels, files):
                found = inference.detect(image, score_threshold=args.score, **self._limits)
                write_text(listed, _to_json(path, image.shape, found))
                labels = np.array([names.index(name) for name, *_ in found], int)
                boxes, scores = np.array([box for *_, box in found]).reshape(-1, 4), [score for _, score, _ in found]
                plots.save(plots.detection_overlay(image, boxes, labels, scores, names), picture)
                counts = np.bincount(labels, minlength=len(names))
                words = [f"{names[i]} {counts[i]}" for i in np.argsort(-counts, kind="stable") if counts[i]]
                yield path, str(picture), ", ".join(words) or "nothing"

        yield from table_lines(args, ("input", "picture", "objects"), rows())

    def _losses(self, model: nn.Module, outputs: Any, batch: Batch, exist: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """Return the losses of each image by name, (batch,), weighted, and the numbers of matched anchors, (batch,)."""
        parts, matched = detector_of(model).detection_loss(
            outputs, batch["boxes"], batch["classes"], exist & ~batch["crowd"], batch["image"].shape[1:3]
        )
        weight = self.config.detection.box_weight
        return {f"{name}_loss": values if name == "classes" else weight * values for name, values in parts.items()}, matched

    def _scores(self, scores: Scores) -> DetectionScores:
        """Return the average precisions of a split, which are computed once."""
        if self._scored is None or self._scored[0] is not scores:
            self._scored = scores, self._of_rows(scores, np.arange(len(scores.kept["mask"])))
        return self._scored[1]

    def _of_rows(self, scores: Scores, rows: np.ndarray) -> DetectionScores:
        kept: dict[str, Any] = {name: scores.kept[name][rows] for name in (*_FOUND, *_TRUTHS)}
        return score_detections(**kept, num_classes=len(self.spec.outputs), max_detections=self.config.detection.max_detections)

    def _worst(self, scores: Scores) -> tuple[np.ndarray, list[float]]:
        """Return the positions of the worst images among some that are spread over a split, and their mean average precisions at 0.5."""
        chosen = np.linspace(0, len(scores.kept["mask"]) - 1, min(SAMPLED, len(scores.kept["mask"]))).astype(int)
        values = np.array([self._of_rows(scores, chosen[i : i + 1]).mean_ap(0.5) for i in range(len(chosen))])
        order = [i for i in np.argsort(values, kind="stable") if not np.isnan(values[i])][:WORST]
        return chosen[order], values[order].tolist()


def _kept(found: models.Detections, batch: Batch) -> dict[str, jax.Array]:
    """Return what evaluation keeps of each image."""
    truths = (batch["boxes"], batch["classes"], batch["box_mask"], batch["crowd"])
    return {**dict(zip(_FOUND, found)), **dict(zip(_TRUTHS, truths))}


def _class_table(scored: DetectionScores, names: Sequence[str]) -> str:
    """Return the section with the average precision of each class, in Markdown."""
    columns = (scored.class_ap(), scored.class_ap(0.5), scored.class_ap(0.75), scored.recall[0])
    rows = [
        (name, str(count), *("does not occur" if np.isnan(one) else f"{one:.3f}" for one in values))
        for name, count, *values in zip(names, scored.truths.tolist(), *columns)
    ]
    says = "AP is the average precision over overlaps of 0.5 to 0.95, recall the share of the boxes that any detection overlaps by half."
    return report_table("Classes", ("class", "boxes", "AP", "AP@.5", "AP@.75", "recall@.5"), rows, says=says)


def _to_json(path: str, shape: tuple[int, ...], found: list[tuple[str, float, Box]]) -> str:
    """Return the detections in an image as JSON, boxes in its pixels."""
    objects = [{"class": name, "score": round(score, 4), "box": [round(edge, 2) for edge in box]} for name, score, box in found]
    content = {"file": pathlib.PurePath(path).name, "height": shape[0], "width": shape[1], "objects": objects}
    return json.dumps(content, indent=2) + "\n"
