"""A class for every step of a sequence: actions in recordings such as videos, or tags of words."""

import argparse
import pathlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.typing import VariableDict
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError, crf, plots
from dilax.inference import valid_steps
from dilax.losses import smoothing_loss
from dilax.segments import f1_score, segment_scores, segments
from dilax.tagging import decode_tags, span_scores, tag_scores
from train.data.augment import example_keys
from train.data.readers import text
from train.data.readers.recordings import SUFFIXES, turned_features
from train.data.source import gather
from train.data.splits import Splits
from train.files import write_text
from train.keys import UNLIMITED, Key, Keys, Reads
from train.tasks import actions, streams, tags
from train.tasks.base import (
    Batch,
    Bytes,
    Report,
    Scores,
    Shape,
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
from train.tasks.portable import Answer
from train.tasks.steps import StepTask, check_name, example_means

OVERLAPS, COUNTS = (0.1, 0.25, 0.5), ("found", "wrong", "missed")
SHOWN = 6  # test recordings that the report draws


class SequenceLabelling(StepTask):
    """Learns the class of every step, at every stage of the model; the segments or spans that the classes make are scored, too.

    Attributes:
        tagged: Whether the steps are words and the classes tags, of which each may follow some only.
    """

    name = "sequence_labelling"
    keys: ClassVar[Keys] = {
        **actions.KEYS,
        **tags.KEYS,
        "sequence.length": Key(0, "longest sequence; 0 takes the longest one of the data", (0, UNLIMITED)),
        "sequence.crop": Key(
            0, "steps of the part, at random, of each sequence that a training step sees; 0 is the whole sequence", (0, UNLIMITED)
        ),
    }
    reads: ClassVar[Reads] = {
        "recordings": ("data.dir", *actions.KEYS),
        "mat": ("data.dir", *actions.KEYS),
        "actions": actions.MADE_UP,
        "conll": ("data.dir", *tags.KEYS),
    }
    lower_is_better = False

    def __init__(self, config: ConfigDict, spec: DataSpec):
        """Choose the metrics."""
        self.tagged = bool(spec.symbols)
        super().__init__(config, spec)
        self.curves = ("loss", "accuracy", self.best_by)

    def loss_and_metric(self) -> tuple[str, str]:
        """Classes of steps, by F1 of spans or of segments."""
        return "categorical", "f1" if self.tagged else "f1_50"

    def hub_task(self) -> str:
        """Tags of words."""
        return "token-classification" if self.tagged else ""

    def output_shapes(self) -> tuple[Shape, ...]:
        """Logits at every step or, of tags, the scores of a conditional random field."""
        (shape,) = super().output_shapes()
        return (shape, (*shape, shape[-1])) if self.tagged else (shape,)

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open recordings, or tagged words."""
        name = check_name(config, tuple(cls.reads))
        return tags.open_tagged(config, like) if name == "conll" else actions.open_recordings(config, name, like)

    def augment(self, key: jax.Array, batch: Batch, first: Any) -> Batch:
        """Cut a part at random out of each sequence; make some words unknown."""
        options = self.config.sequence
        if 0 < options.crop < batch["input"].shape[1]:
            batch = _cropped(key, batch, options.crop, first)
        if self.tagged:
            # A part may begin within a span.
            starts = jnp.asarray([self._beginning_of(name) for name in self.spec.outputs], jnp.int32)
            batch = {**batch, "label": batch["label"].at[:, 0].set(starts[batch["label"][:, 0]])}
        if options.word_dropout:
            keys = example_keys(jax.random.fold_in(key, 1), len(batch["length"]), first)
            drawn = jax.vmap(lambda key: jax.random.bernoulli(key, options.word_dropout, batch["input"].shape[1:2]))(keys)
            batch = {**batch, "input": batch["input"].at[..., 0].set(jnp.where(drawn, 0, batch["input"][..., 0]))}
        return batch

    def _beginning_of(self, name: str) -> int:
        return self.spec.outputs.index(f"B-{name[2:]}" if name.startswith("I-") else name)

    def training_outputs(self, model: nn.Module, variables: VariableDict, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """Return the outputs of every stage, the last of which is the result; of a model without stages, its outputs alone."""
        outputs, collections = run_training(model, {**variables, "intermediates": {}}, self.inputs(batch, model), key)
        stages = collections.pop("intermediates").get("stages", (outputs,))
        return stages, collections

    def losses(self, outputs: Any, batch: Batch) -> jax.Array:
        """Mean over the stages of the loss of a step, in nats, to which for recordings the weighted smoothing loss is added."""
        options, counted = self.config.sequence, batch["counted"]
        losses = [self._step_losses(stage, batch) for stage in outputs]
        if options.smoothing and not self.tagged:
            smooth = [smoothing_loss(stage, threshold=options.threshold, mask=counted) for stage in outputs]
            losses = [one + options.smoothing * other for one, other in zip(losses, smooth)]
        return jnp.stack(losses).mean(0)

    def _step_losses(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Mean loss of the scored steps of each example: cross-entropy, or the negative log-likelihood of a field over their number."""
        counted = batch["counted"]
        if outputs.ndim == 3:
            return example_means(optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"]), counted)
        likelihood = crf.log_likelihood(tag_scores("losses", outputs, self.spec.outputs), batch["label"], counted)
        return -likelihood / jnp.maximum(counted.astype(jnp.float32).sum(1), 1)

    def has_classes(self) -> bool:
        """Unless the classes of neighbouring steps are scored together."""
        return not self.config.model.get("crf", False)

    def class_logits(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Those of the last stage."""
        return _result(outputs), batch["counted"]

    def measures(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Right answers of the last stage."""
        right = self._found(_result(outputs), batch) == batch["label"]
        return {"accuracy": example_means(right.astype(jnp.float32), batch["counted"])}

    def _found(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Return the classes of the steps (batch, time)."""
        return decode_tags(outputs, batch["counted"], self.spec.outputs) if self.tagged else outputs.argmax(-1).astype(jnp.int32)

    def sums(self, outputs: Any, batch: Batch) -> Sums:
        """Loss and right answers over the steps, edit scores, and counts of segments."""
        counted, found = batch["counted"], self._found(outputs, batch)
        steps = counted.astype(jnp.float32).sum(1)
        right = (counted & (found == batch["label"])).astype(jnp.float32).sum(1)
        each = {"loss": self._step_losses(outputs, batch) * steps, "accuracy": right, "count": steps, **self._scores(found, batch)}
        masks = {name: batch["mask"].reshape(-1, *(1,) * (value.ndim - 1)) for name, value in each.items()}
        return {name: jnp.where(masks[name], value, jnp.zeros_like(value)).sum(0) for name, value in each.items()}

    def _scores(self, found: jax.Array, batch: Batch) -> Sums:
        """Return for each sequence numbers of segments or spans, (..., 3) as `COUNTS`, and for recordings edit scores and F1."""
        names, background = self.spec.outputs, self.config.sequence.background
        if self.tagged:
            spans = span_scores(found, batch["label"], batch["counted"], names)
            return {"spans": jnp.stack([spans[name] for name in COUNTS], -1)}
        ignored = names.index(background) if background in names else None
        scores = segment_scores(found, batch["label"], batch["counted"], overlaps=OVERLAPS, ignored=ignored)
        counts = jnp.stack([scores[name] for name in COUNTS], -1)
        f1 = 2 * counts[..., 0] / jnp.maximum(2 * counts[..., 0] + counts[..., 1] + counts[..., 2], 1)
        return {"edit": scores["edit"], "segments": counts, "f1": f1, "sequences": jnp.ones(len(f1), jnp.int32)}

    def metrics(self, scores: Scores) -> dict[str, float]:
        """F1 of spans, their precision and recall; or F1 of segments at three overlaps and edit score. Accuracy of steps, and loss."""
        sums, means = scores.sums, ratios(scores.sums, "accuracy", "loss")
        if self.tagged:
            found, wrong, missed = map(float, sums["spans"])
            shares = {"precision": found / max(1, found + wrong), "recall": found / max(1, found + missed)}
            return {"f1": float(f1_score(found, wrong, missed)), **shares, **means}
        edit = float(sums["edit"]) / float(sums["sequences"])
        return {**_by_overlap("f1_{}", f1_score(*np.moveaxis(sums["segments"], -1, 0))), "edit": edit, **means}

    def details(self, scores: Scores) -> dict[str, float]:
        """For recordings, means of the F1 of each."""
        return {} if self.tagged else _by_overlap("f1_{}_per_sequence", scores.sums["f1"] / scores.sums["sequences"])

    def answer(self, *, step: bool = False) -> Answer:
        """Probabilities of the classes of recordings, and the most probable tags."""
        if not self.tagged:
            return super().answer(step=step)
        count = len(self.spec.outputs)
        return Answer(
            "tags",
            lambda outputs, length: decode_tags(outputs, valid_steps(outputs.shape[1], length), self.spec.outputs),
            lambda found: 100 * (found[..., None] == np.arange(count)).astype(np.float32),
        )

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """Segments of test recordings, true and found; or test sentences with mistakes in their spans."""
        chosen = np.unique(np.linspace(0, len(splits.test) - 1, min(tags.SHOWN if self.tagged else SHOWN, len(splits.test))).astype(int))
        if self.tagged:
            sentences = tags.test_sentences(self.config, chosen)
            return Report({}, [tags.mistakes([(one.words, one.tags, inference.label(one.words)) for one in sentences])])
        batch = gather(splits.test, chosen)
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
        """Files of features or texts, or a stream."""
        streams.add_stream_flag(parser)
        add_inputs(parser, f"files of features ({', '.join(SUFFIXES)}) or texts (.txt) to label, or folders of them")

    def input_suffixes(self) -> Collection[str]:
        """Those of features, or of texts."""
        return (".txt",) if self.tagged else SUFFIXES

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Yield the lines of texts with their spans; of features, write NAME_labels.txt, a line for each step, and NAME_segments.csv."""
        if self.tagged:
            if not args.replace:  # --out was given
                raise UserError(f"--out={args.out}: texts with their tags are printed, and no file is written; leave it out.")
            texts = [text.read_text(pathlib.Path(path)).splitlines() for path in args.inputs]
            rows = ((f"{path}:{i}", line) for path, lines in zip(args.inputs, texts) for i, line in enumerate(lines, 1) if line.strip())
            return table_lines(args, ("input", "text"), ((name, tags.marked(line, inference.spans(line))) for name, line in rows))
        read = [turned_features(pathlib.Path(path), self.spec.input_shape[1]) for path in args.inputs]
        files = output_files(args.inputs, ("_labels.txt", "_segments.csv"), args.out, replace=args.replace, rename=True)
        make_folder(args.out)
        return table_lines(args, ("input", "labels", "segments"), self._written(inference, zip(args.inputs, read, files)))

    def _written(self, inference: Inference, given: Iterable[tuple[str, np.ndarray, list[pathlib.Path]]]) -> Iterator[list[str]]:
        """Write the files of each input, and yield their paths."""
        for path, values, (labels, table) in given:
            names = inference.label(values)
            write_text(labels, "".join(f"{name}\n" for name in names))
            lines = [("start", "end", "label"), *(map(str, segment) for segment in segments(names))]
            write_text(table, "".join(f"{csv_row(line)}\n" for line in lines))
            yield [path, str(labels), str(table)]

    def stream(self, inference: Inference, file: Bytes, args: argparse.Namespace) -> Iterator[bytes]:
        """Yield a line for each line: a text with its spans; or, of features, the number of the step from 0, its class and probability."""
        if self.tagged:
            for line in streams.lines(file):
                yield tags.marked(line, inference.spans(line) if line.strip() else []).encode()
            return
        feeder, count, channels = streams.Feeder(inference), 0, self.spec.input_shape[1]
        rows = (actions.read_row(line, number, channels) for number, line in enumerate(streams.lines(file), 1) if line.strip())
        for outputs in feeder.feed_all(self.spec.scale(values)[None] for values in rows):
            for row in np.asarray(jax.nn.softmax(outputs)):
                yield f"{count}\t{self.spec.outputs[int(row.argmax())]}\t{row.max():.4f}\n".encode()
                count += 1


def _result(stages: Any) -> jax.Array:
    return stages[-1] if isinstance(stages, tuple) else stages


def _cropped(key: jax.Array, batch: Batch, steps: int, first: Any) -> Batch:
    """Return a part of `steps` steps of each sequence; of a shorter one the whole."""
    keys = example_keys(key, len(batch["length"]), first)
    starts = jax.vmap(lambda key, room: jax.random.randint(key, (), 0, room + 1))(keys, jnp.maximum(batch["length"] - steps, 0))
    places = starts[:, None] + jnp.arange(steps)[None]
    parts = {name: jax.vmap(lambda row, at: jnp.take(row, at, axis=0))(batch[name], places) for name in ("input", "label", "counted")}
    return {**batch, **parts, "length": jnp.minimum(batch["length"], steps)}


def _by_overlap(name: str, values: np.ndarray) -> dict[str, float]:
    return {name.format(round(100 * overlap)): float(value) for overlap, value in zip(OVERLAPS, values)}
