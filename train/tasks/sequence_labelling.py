"""A class for every step of a sequence: actions in recordings such as videos."""

import argparse
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.typing import VariableDict
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError, plots
from dilax.errors import did_you_mean
from dilax.losses import smoothing_loss
from dilax.segments import f1_score, segment_scores, segments
from train.data.readers import made_up
from train.data.readers.files import data_path
from train.data.readers.recordings import SUFFIXES, Recording, Recordings, read_folder, read_folds, turned_features
from train.data.scaling import scale_of
from train.data.source import Source, Table, gather
from train.data.splits import Splits, check_classes, class_order, hold_out
from train.data.windows import padded
from train.files import write_text
from train.keys import UNLIMITED, Key, Keys, Reads
from train.tasks import streams
from train.tasks.base import (
    Batch,
    Bytes,
    Report,
    Scores,
    Sums,
    add_inputs,
    csv_row,
    make_folder,
    output_files,
    ratios,
    report_table,
    run_training,
    table_lines,
)
from train.tasks.steps import StepTask, check_name, example_means

OVERLAPS, COUNTS = (0.1, 0.25, 0.5), ("found", "wrong", "missed")
SHOWN = 6  # test recordings that the report draws
_OF_RECORDINGS = ("sequence.background", "sequence.crop", "sequence.smoothing", "sequence.threshold")


class SequenceLabelling(StepTask):
    """Learns the class of every step, by cross-entropy at every stage of the model; segments are scored, too."""

    name = "sequence_labelling"
    keys: ClassVar[Keys] = {
        "sequence.length": Key(0, "longest sequence; 0 takes the longest one of the data", (0, UNLIMITED)),
        "sequence.crop": Key(
            0, "steps of the part, at random, of each sequence that a training step sees; 0 is the whole sequence", (0, UNLIMITED)
        ),
        "sequence.split": Key(
            1, "which split is used of data that has several: the number of a bundle, or of the .mat file that is tested on", (1, UNLIMITED)
        ),
        "sequence.background": Key("", 'class that is left out of the edit score and of F1; "" leaves out none'),
        "sequence.smoothing": Key(0.15, "weight of the smoothing loss, which penalises short segments", (0, UNLIMITED)),
        "sequence.threshold": Key(4.0, "difference of log-probabilities above which the smoothing loss does not grow", (1e-9, UNLIMITED)),
    }
    reads: ClassVar[Reads] = {
        "recordings": ("data.dir", "sequence.split", *_OF_RECORDINGS),
        "mat": ("data.dir", "sequence.split", *_OF_RECORDINGS),
        "actions": _OF_RECORDINGS,
    }
    lower_is_better = False
    curves = ("loss", "accuracy", "f1_50")

    def loss_and_metric(self) -> tuple[str, str]:
        """Classes of steps, by F1 of segments."""
        return "categorical", "f1_50"

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open recordings."""
        name = check_name(config, tuple(cls.reads))
        return _splits(config, _made_up(config) if name == "actions" else _read(config, name), like)

    def augment(self, key: jax.Array, batch: Batch, first: Any) -> Batch:
        """Cut a part at random out of each sequence."""
        steps = self.config.sequence.crop
        return _cropped(key, batch, steps, first) if 0 < steps < batch["input"].shape[1] else batch

    def training_outputs(self, model: nn.Module, variables: VariableDict, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """Return the outputs of every stage, the last of which is the result; of a model without stages, its outputs alone."""
        outputs, collections = run_training(model, {**variables, "intermediates": {}}, self.inputs(batch, model), key)
        stages = collections.pop("intermediates").get("stages", (outputs,))
        return stages, collections

    def losses(self, outputs: Any, batch: Batch) -> jax.Array:
        """Mean over the stages of the cross-entropy of the steps and, weighted, the smoothing loss; in nats."""
        options, counted = self.config.sequence, batch["counted"]
        losses = [example_means(_cross_entropy(stage, batch), counted) for stage in outputs]
        if options.smoothing:
            smooth = [smoothing_loss(stage, threshold=options.threshold, mask=counted) for stage in outputs]
            losses = [one + options.smoothing * other for one, other in zip(losses, smooth)]
        return jnp.stack(losses).mean(0)

    def class_logits(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Those of the last stage."""
        return _result(outputs), batch["counted"]

    def measures(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Right answers of the last stage."""
        return super().measures(_result(outputs), batch)

    def sums(self, outputs: Any, batch: Batch) -> Sums:
        """Loss and right answers over the steps, edit scores, and counts of segments."""
        names, background = self.spec.outputs, self.config.sequence.background
        ignored = names.index(background) if background in names else None
        scores = segment_scores(outputs.argmax(-1), batch["label"], batch["counted"], overlaps=OVERLAPS, ignored=ignored)
        counts = jnp.stack([scores[name] for name in COUNTS], -1)
        # As Lea et al. report it, too: the mean over the sequences.
        each = 2 * counts[..., 0] / jnp.maximum(2 * counts[..., 0] + counts[..., 1] + counts[..., 2], 1)
        sums = {"edit": scores["edit"], "segments": counts, "f1": each, "sequences": jnp.ones(len(each), jnp.int32)}
        counted = {name: batch["mask"].reshape(-1, *(1,) * (value.ndim - 1)) for name, value in sums.items()}
        return {**super().sums(outputs, batch), **{name: jnp.where(counted[name], value, 0).sum(0) for name, value in sums.items()}}

    def metrics(self, scores: Scores) -> dict[str, float]:
        """F1 of segments at three overlaps, edit score, accuracy of steps, and loss."""
        sums = scores.sums
        f1 = f1_score(*np.moveaxis(sums["segments"], -1, 0))
        edit = float(sums["edit"]) / float(sums["sequences"])
        return {**_by_overlap("f1_{}", f1), "edit": edit, **ratios(sums, "accuracy", "loss")}

    def details(self, scores: Scores) -> dict[str, float]:
        """Means over the sequences of the F1 of each."""
        return _by_overlap("f1_{}_per_sequence", scores.sums["f1"] / scores.sums["sequences"])

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """Segments of test recordings, true and found."""
        chosen = np.linspace(0, len(splits.test) - 1, min(SHOWN, len(splits.test))).astype(int)
        batch = gather(splits.test, np.unique(chosen))
        found = np.asarray(inference.outputs(batch["input"], length=batch["length"])).argmax(-1)
        rows = [(truth[:count], ours[:count]) for truth, ours, count in zip(batch["label"], found, batch["length"])]
        figure = plots.segment_bars([truth for truth, _ in rows], [ours for _, ours in rows], self.spec.outputs)
        metrics = self.metrics(scores)
        left = f" Segments of {self.config.sequence.background} are left out." if self.config.sequence.background else ""
        says = f"Of the test split. F1 is of segments whose intersection over union with the true ones reaches 10, 25 or 50 %.{left}"
        words = {"f1_10": "F1@10", "f1_25": "F1@25", "f1_50": "F1@50", "edit": "edit score", "accuracy": "accuracy of steps"}
        table = report_table("Segments", ("metric", "value"), [(word, f"{metrics[name]:.4f}") for name, word in words.items()], says=says)
        return Report({"Test recordings": ("segments", figure)}, [table])

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Files of features, or a stream."""
        streams.add_stream_flag(parser)
        add_inputs(parser, f"files of features to label ({', '.join(SUFFIXES)}), or folders of them")

    def input_suffixes(self) -> Collection[str]:
        """Those of features."""
        return SUFFIXES

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Write NAME_labels.txt, a line for each step, and NAME_segments.csv; yield the file and their paths."""
        channels = self.spec.input_shape[1]
        read = [turned_features(pathlib.Path(path), channels) for path in args.inputs]
        files = output_files(args.inputs, ("_labels.txt", "_segments.csv"), args.out, replace=args.replace, rename=True)
        make_folder(args.out)

        def rows() -> Iterator[list[str]]:
            for path, values, (labels, table) in zip(args.inputs, read, files):
                names = inference.label(values)
                write_text(labels, "".join(f"{name}\n" for name in names))
                lines = [("start", "end", "label"), *(map(str, segment) for segment in segments(names))]
                write_text(table, "".join(f"{csv_row(line)}\n" for line in lines))
                yield [path, str(labels), str(table)]

        yield from table_lines(args, ("input", "labels", "segments"), rows())

    def stream(self, inference: Inference, file: Bytes, args: argparse.Namespace) -> Iterator[bytes]:
        """Yield a line for each line of features: its number from 0, its class and the probability."""
        feeder, count = streams.Feeder(inference), 0
        channels = self.spec.input_shape[1]
        lines = (_numbers(line, number, channels) for number, line in enumerate(streams.lines(file), 1) if line.strip())
        for outputs in feeder.feed_all(self.spec.scale(values)[None] for values in lines):
            for row in np.asarray(jax.nn.softmax(outputs)):
                yield f"{count}\t{self.spec.outputs[int(row.argmax())]}\t{row.max():.4f}\n".encode()
                count += 1


def _cropped(key: jax.Array, batch: Batch, steps: int, first: Any) -> Batch:
    """Return a part of `steps` steps of each sequence; of a shorter one the whole."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(len(batch["length"])))
    starts = jax.vmap(lambda key, room: jax.random.randint(key, (), 0, room + 1))(keys, jnp.maximum(batch["length"] - steps, 0))
    places = starts[:, None] + jnp.arange(steps)[None]
    parts = {name: jax.vmap(lambda row, at: jnp.take(row, at, axis=0))(batch[name], places) for name in SequenceLabelling.spatial}
    return {**batch, **parts, "length": jnp.minimum(batch["length"], steps)}


def _by_overlap(name: str, values: np.ndarray) -> dict[str, float]:
    return {name.format(round(100 * overlap)): float(value) for overlap, value in zip(OVERLAPS, values)}


def _result(stages: Any) -> jax.Array:
    return stages[-1] if isinstance(stages, tuple) else stages


def _cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"])


def _numbers(line: str, number: int, channels: int) -> np.ndarray:
    """Return the features (channels,) of a line of a stream."""
    cells = line.replace(",", " ").split()
    try:
        values = np.array(cells, np.float64)
    except ValueError as error:
        raise UserError(f"line {number}: {line.strip()[:40]!r} is not a row of numbers; give the {channels} features of a step.") from error
    if len(values) != channels or not np.isfinite(values).all():
        raise UserError(
            f"line {number} has {len(values)} numbers, not all finite or not {channels}; give the {channels} features of a step."
        )
    return values


def _read(config: ConfigDict, name: str) -> Recordings:
    path = data_path(config, "a folder of recordings")
    if name == "mat":
        return read_folds(path, config.sequence.split)
    return read_folder(path, config.sequence.split, validation=bool(config.data.validation))


def _made_up(config: ConfigDict) -> Recordings:
    """Recordings drawn at random: the training split by config.seed, the test split the same for every run."""
    length, count = config.sequence.length or 200, made_up.ACTION_RECORDINGS
    drawn = {"train": made_up.actions(count, length, 1, config.seed), "test": made_up.actions(count // 2, length, 2)}
    parts = {
        part: [Recording(f"{part} {i}", values, tuple(labels)) for i, (values, labels) in enumerate(some, 1)]
        for part, some in drawn.items()
    }
    return Recordings(parts, made_up.ACTIONS, "recordings made up at random")


def _splits(config: ConfigDict, recordings: Recordings, like: DataSpec | None) -> Splits:
    """Splits of padded recordings, each channel standardised by the training split, or as `like` says."""
    parts, origin = recordings.parts, recordings.origin
    names = recordings.classes or class_order(label for part in parts.values() for one in part for label in one.labels)
    check_classes(names, origin)
    background = config.sequence.background
    if background and background not in names:
        raise UserError(
            f"config.sequence.background={background!r} is not a class of {origin}; use one of {', '.join(names)[:200]}, or ''."
            f"{did_you_mean(background, names)}"
        )
    first = parts["train"][0]
    for one in (one for part in parts.values() for one in part):
        if one.features.shape[1] != first.features.shape[1]:
            raise UserError(f"{one.name} has {one.features.shape[1]} channels, and {first.name} has {first.features.shape[1]}; match them.")
    channels = [f"channel {i + 1}" for i in range(first.features.shape[1])]
    mean, std = scale_of(like, np.concatenate([one.features for one in parts["train"]]), channels, origin)
    length = config.sequence.length or max(len(one.labels) for part in parts.values() for one in part)
    spec = DataSpec(config.data.name, (length, len(channels)), names, mean=mean, std=std)

    def table(part: list[Recording]) -> Table:
        x, lengths = padded([spec.scale(one.features) for one in part], length)
        y, _ = padded([np.array([names.index(label) for label in one.labels], np.int32) for one in part], length)
        return Table({"input": x, "length": lengths, "label": y, "counted": np.arange(length)[None] < lengths[:, None]})

    tables = {split: table(part) for split, part in parts.items()}
    train: Source = tables["train"]
    validation: Source | None = tables.get("validation")
    if validation is None:
        train, validation = hold_out(train, config.data.validation, config.seed)
    splits = Splits(spec, train, validation, tables["test"], origin, ("classes", "recordings"))
    return splits.with_spec(examples=len(train))
