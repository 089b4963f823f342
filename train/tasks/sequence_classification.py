"""Classification of whole sequences: series, sounds, texts, or the pixels of images."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError, inputs, plots
from dilax.inference import POOLS, model_arguments, pool_steps
from dilax.metrics import classification_sums
from train.data.augment import CLASS_KEYS, GEOMETRY_KEYS, one_hot
from train.data.image_sets import IMAGE_KEYS, IMAGE_READS, open_labelled
from train.data.mel import stream_log_mel
from train.data.readers import series, sound, text
from train.data.readers.files import data_path, intact_labelled, labelled_splits
from train.data.readers.images import SUFFIXES
from train.data.scaling import scale_of
from train.data.source import Source, Table, gather
from train.data.splits import Splits, check_classes, class_order, hold_out
from train.data.windows import padded
from train.keys import UNLIMITED, Key, Keys, Reads
from train.tasks import images, streams
from train.tasks.base import (
    Batch,
    Bytes,
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
from train.tasks.classification import augment_labelled
from train.tasks.images import most_telling
from train.tasks.portable import PROBABILITIES, Answer, unchanged

SAMPLED, SHOWN, BEGINNING = 400, 24, 120  # test sequences that the report chooses from, and shows; characters of a text
Labelled = tuple[list[np.ndarray], list[str]]  # sequences and their labels
# The keys that only images read, whatever holds them.
_OF_IMAGES = {*IMAGE_KEYS, *GEOMETRY_KEYS, "augment.cutout", "augment.mixup", "sequence.permute"} - {"data.download"}


class SequenceClassification(Task):
    """Learns the class of a sequence, by cross-entropy of the pooled outputs."""

    name = "sequence_classification"
    keys: ClassVar[Keys] = {
        **IMAGE_KEYS,
        **GEOMETRY_KEYS,
        **CLASS_KEYS,
        "sequence.length": Key(0, "longest series or labelled text; 0 takes the longest one of the data", (0, UNLIMITED)),
        "sequence.pool": Key(
            "last", 'how outputs at every step become one: those of the "last" step, their "mean" or "max"', choices=POOLS
        ),
        "sequence.permute": Key(False, "images as sequences: read their pixels in one fixed random order"),
        "sequence.units": Key("characters", 'units of text: "characters" or "bytes"', choices=text.UNITS),
        "sequence.bands": Key(32, "mel bands of a sound", (1, UNLIMITED)),
    }
    reads: ClassVar[Reads] = {
        **{kind: (*keys, *_OF_IMAGES) for kind, keys in IMAGE_READS.items()},
        "ucr": ("data.dir", "sequence.length"),
        "wav": ("data.dir", "data.on_bad", "sequence.length", "sequence.bands"),
        "text": ("data.dir", "sequence.length", "sequence.units"),
    }
    best_by = "accuracy"

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Refuse colours out of range."""
        images.check_colours(config)

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open series, sounds, texts, or images as sequences of their pixels."""
        name = config.data.name.partition(":")[0]
        if name in _READERS:
            return _READERS[name](config, like)
        splits = open_labelled(config.data, seed=config.seed)
        height, width, channels = splits.spec.input_shape
        images.check_channels(config, channels)
        order = "permuted" if config.sequence.permute else "rows"
        return splits.with_spec(input_shape=(height * width, channels), pixels=order)

    def hub_task(self) -> str:
        """Classes of images, sounds or texts; the Hub has no word for those of series."""
        spec = self.spec
        kinds = {"image": spec.pixels, "audio": spec.sample_rate, "text": spec.symbols}
        return next((f"{kind}-classification" for kind, given in kinds.items() if given), "")

    def output_shapes(self) -> tuple[Shape, ...]:
        """Logits at every step, or of the whole sequence."""
        classes = len(self.spec.outputs)
        return ((self.spec.input_shape[0], classes), (classes,))

    def inputs(self, batch: Batch, model: nn.Module) -> Batch:
        """Sequences with the mask of their valid steps."""
        return model_arguments(model, *self._sequences(batch))

    def augment(self, key: jax.Array, batch: Batch, first: Any) -> Batch:
        """Augment images; smooth the targets of all sequences."""
        classes, options = len(self.spec.outputs), self.config.augment
        if "image" in batch:
            return augment_labelled(key, batch, options, classes, first)
        return {**batch, "target": one_hot(batch["label"], classes, options.label_smoothing)}

    def losses(self, outputs: Any, batch: Batch) -> jax.Array:
        """Cross-entropy in nats."""
        return optax.softmax_cross_entropy(self._pooled(outputs, batch), batch["target"])

    def has_classes(self) -> bool:
        """One of a sequence."""
        return True

    def class_logits(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Those of the sequences."""
        return self._pooled(outputs, batch), None

    def measures(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Right answers."""
        return {"accuracy": (self._pooled(outputs, batch).argmax(-1) == batch["label"]).astype(jnp.float32)}

    def sums(self, outputs: Any, batch: Batch) -> Sums:
        """Loss, right answers, confusion matrix."""
        return classification_sums(self._pooled(outputs, batch), batch["label"], batch["mask"])

    def metrics(self, scores: Scores) -> dict[str, float]:
        """Accuracy and loss."""
        return ratios(scores.sums, "accuracy", "loss")

    def _sequences(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Return inputs and lengths; those of images are their pixels."""
        if "image" not in batch:
            return batch["input"], batch["length"]
        x = self.spec.prepare(batch["image"])
        return x, jnp.full(len(x), x.shape[1])

    def _pooled(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        length = batch["length"] if "length" in batch else jnp.full(len(outputs), self.spec.input_shape[0])
        return pool_steps(outputs, length, self.config.sequence.pool)

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """Confusion matrix, and test sequences with their classes."""
        spec = splits.spec
        pictures = {"Confusion matrix": ("confusion_matrix", plots.confusion_matrix(scores.sums["confusion"], spec.outputs))}
        batch = gather(splits.test, np.linspace(0, len(splits.test) - 1, min(SAMPLED, len(splits.test))).astype(int))
        parts = [{name: values[at : at + 50] for name, values in batch.items()} for at in range(0, len(batch["label"]), 50)]
        field = "image" if "image" in batch else "input"
        probabilities = np.concatenate([inference.probabilities(part[field], length=part.get("length")) for part in parts])
        order = most_telling(batch["label"], probabilities)[:SHOWN]
        labels, probabilities = batch["label"][order], probabilities[order]
        if spec.symbols:
            return Report(pictures, [_text_table(batch, order, probabilities, spec)])
        if field == "image":
            grid = plots.prediction_grid(batch["image"][order], labels, probabilities, spec.outputs)
        else:
            shown = [batch["input"][i, : batch["length"][i]] for i in order]
            if not spec.sample_rate:  # series in their own units; the bands of a sound differ too much for one scale of colours
                shown = [spec.unscale(one) for one in shown]
            grid = plots.series_grid(shown, labels, probabilities, spec.outputs)
        return Report({**pictures, "Test sequences, mistakes first: true → predicted (probability)": ("predictions", grid)})

    def answer(self, *, step: bool = False) -> Answer:
        """Probabilities of the classes; of a step its logits, which whoever runs the program pools as `Inference.pool` says."""
        if step:
            return unchanged("logits")
        return dataclasses.replace(
            PROBABILITIES, of=lambda outputs, length: jax.nn.softmax(pool_steps(outputs, length, self.config.sequence.pool))
        )

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Files, how many classes are printed for each, or a stream."""
        add_top_flag(parser)
        streams.add_stream_flag(parser)
        add_inputs(parser, "files to classify, or folders of them: sounds, texts, .ts files of series, or images read pixel by pixel")

    def input_suffixes(self) -> Collection[str]:
        """Those of what the run was trained on."""
        return {"ucr": (".ts",), "wav": sound.SUFFIXES, "text": (".txt",)}.get(self.config.data.name.partition(":")[0], SUFFIXES)

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Yield name, class and probability of each sequence; the series of a .ts file are named FILE:NUMBER."""
        check_top(args, len(self.spec.outputs))
        name, paths = self.config.data.name.partition(":")[0], [pathlib.Path(path) for path in args.inputs]
        if self.spec.pixels:
            side = inputs.square_side(self.spec.input_shape[0])
            pixels = [inputs.fit(inputs.to_pixels(path, self.spec.input_shape[-1]), side, side) for path in args.inputs]
            return class_lines(args, ((path, inference.rank(one[None], top=args.top)[0]) for path, one in zip(args.inputs, pixels)))
        if name == "ucr":
            named = [(f"{path}:{i + 1}", one) for path in paths for i, one in enumerate(series.read_ts(path)[0])]
        elif name == "wav":
            sounds, _ = sound.read_sounds(paths, rate=self.spec.sample_rate)
            named = list(zip(args.inputs, inputs.mel_frames(sounds, self.spec.sample_rate, self.spec.input_shape[-1])))
        else:
            named = [(str(path), self._codes(inference, text.read_text(path), str(path))) for path in paths]
        return class_lines(args, self._ranked(inference, named, args.top))

    def _codes(self, inference: Inference, words: str, name: str) -> np.ndarray:
        """Return the codes of a text, cut to the length of training."""
        return inference.codes(words, name=name)[: self.spec.input_shape[0]]

    def _ranked(self, inference: Inference, named: list[tuple[str, np.ndarray]], top: int) -> Iterator[tuple[str, list[tuple[str, float]]]]:
        """Return the most probable classes of each sequence; all are checked before the first runs."""
        ready = [inference.padded(one, name=name) for name, one in named]
        return ((name, inference.rank(x, top=top, length=length)[0]) for (name, _), (x, length) in zip(named, ready))

    def stream(self, inference: Inference, file: Bytes, args: argparse.Namespace) -> Iterator[bytes]:
        """Yield a line for each line of text that is not blank, or for each 0.1 s of sound: its time, and the class of the last seconds."""
        name = self.config.data.name.partition(":")[0]
        if name == "text":
            return self._stream_text(inference, file)
        if name == "wav":
            return self._stream_sound(inference, file)
        raise UserError(f"--stream is for text, tables and sound, and this run is on {self.config.data.name!r}; give files instead.")

    def _stream_text(self, inference: Inference, file: Bytes) -> Iterator[bytes]:
        for number, line in enumerate(streams.lines(file), 1):
            if not line.strip():
                continue
            ((name, ((label, probability),)),) = self._ranked(
                inference, [(str(number), self._codes(inference, line.rstrip("\n"), f"line {number}"))], 1
            )
            yield f"{name}\t{label}\t{probability:.4f}\n".encode()

    def _stream_sound(self, inference: Inference, file: Bytes) -> Iterator[bytes]:
        feeder, spec = streams.Feeder(inference), self.spec
        window, hop = inputs.mel_frame(spec.sample_rate)
        frames = stream_log_mel(streams.sound_pieces(inference, file), spec.sample_rate, spec.input_shape[-1])
        last, count = np.zeros((0, len(spec.outputs)), np.float32), 0
        for outputs in feeder.feed_all(spec.scale(one) for one in frames):
            # As many steps as the longest sound of the training had.
            last, count = np.concatenate([last, outputs])[-spec.input_shape[0] :], count + len(outputs)
            if not count:
                continue
            logits = pool_steps(jnp.asarray(last)[None], jnp.array([len(last)]), inference.pool)
            probabilities = np.asarray(jax.nn.softmax(logits[0]))
            seconds = ((count - 1) * hop + window) / spec.sample_rate
            yield f"{seconds:.2f}\t{spec.outputs[int(probabilities.argmax())]}\t{probabilities.max():.4f}\n".encode()


def _text_table(batch: Batch, order: np.ndarray, probabilities: np.ndarray, spec: DataSpec) -> str:
    """A table of the beginnings of texts with their classes and the predicted ones."""
    rows = []
    for place, probability in zip(order, probabilities):
        codes = batch["input"][place, : min(BEGINNING, batch["length"][place])]
        true, predicted = (spec.outputs[i] for i in (batch["label"][place], int(probability.argmax())))
        rows.append((text.decode(codes, spec.symbols, spec.units), true, f"{predicted} ({probability.max():.0%})"))
    return report_table("Test texts, mistakes first", ("beginning", "class", "predicted"), rows)


def _series(config: ConfigDict, like: DataSpec | None) -> Splits:
    """Series of a set of the UCR archive, data.name="ucr:GunPoint"."""
    name = config.data.name.partition(":")[2]
    train, test = series.ucr_files(name, config.data.dir)
    return _standardised(config, {"train": series.read_ts(train), "test": series.read_ts(test)}, ("series", str(train.parent)), like)


def _sounds(config: ConfigDict, like: DataSpec | None) -> Splits:
    """Sounds in folders named after their classes, as log-mel frames."""
    folder, wanted = data_path(config, "a folder that holds a folder of sound files for each class"), bool(config.data.validation)
    parts, origin = labelled_splits(folder, sound.SUFFIXES, validation=wanted)
    parts = intact_labelled(parts, sound.decode_sound, config.data.on_bad, "sounds")
    sounds, rate = sound.read_sounds([path for part in parts.values() for path, _ in part], rate=like.sample_rate if like else None)
    frames = iter(inputs.mel_frames(sounds, rate, config.sequence.bands))
    framed = {split: ([next(frames) for _ in part], [label for _, label in part]) for split, part in parts.items()}
    return _standardised(config, framed, ("sounds", origin), like, sample_rate=rate)


def _texts(config: ConfigDict, like: DataSpec | None) -> Splits:
    """Texts in folders named after their classes; of a longer one the first config.sequence.length symbols."""
    units, most = config.sequence.units, config.sequence.length or None
    folder, wanted = data_path(config, "a folder that holds a folder of .txt files for each class"), bool(config.data.validation)
    parts, origin = labelled_splits(folder, (".txt",), validation=wanted)
    texts = {split: [(path, text.read_text(path)) for path, _ in part] for split, part in parts.items()}
    symbols = like.symbols if like else text.symbols_of("".join(one for _, one in texts["train"]), units)
    codes = {split: [text.encode(one, symbols, units, name=str(path))[:most] for path, one in part] for split, part in texts.items()}
    coded = {split: (codes[split], [label for _, label in part]) for split, part in parts.items()}
    return _class_splits(config, coded, ("texts", origin), symbols=symbols, units=units)


def _standardised(config: ConfigDict, parts: dict[str, Labelled], source: tuple[str, str], like: DataSpec | None, **fields: Any) -> Splits:
    """Splits of series (time, channels), each channel standardised by its mean and deviation in the training split, or as `like` says."""
    channels = {one.shape[1] for part, _ in parts.values() for one in part}
    if len(channels) > 1:
        raise UserError(
            f"data.name={config.data.name!r}: series have {' and '.join(map(str, sorted(channels)))} channels; give all the same number."
        )
    word = "mel band" if "sample_rate" in fields else "channel"
    names = [f"{word} {i + 1}" for i in range(*channels)]
    mean, std = scale_of(like, np.concatenate(parts["train"][0]), names, config.data.name)
    scale = DataSpec(config.data.name, (), (), mean=mean, std=std).scale
    scaled = {split: (list(map(scale, part)), labels) for split, (part, labels) in parts.items()}
    return _class_splits(config, scaled, source, mean=mean, std=std, **fields)


def _class_splits(config: ConfigDict, parts: dict[str, Labelled], source: tuple[str, str], **fields: Any) -> Splits:
    """Splits of padded sequences with their classes.

    Unless there is a validation split, a share of each class of the training split is held out.

    Args:
        config: The whole config.
        parts: Sequences and labels of "train", "test" and perhaps "validation".
        source: What the sequences are called, and where they come from.
        **fields: Further fields of the `DataSpec`.
    """
    records, origin = source
    names = class_order(label for _, labels in parts.values() for label in labels)
    check_classes(names, origin)
    if unseen := [name for name in names if name not in parts["train"][1]]:
        print(f"note: {origin}: the training split has no {records} of {', '.join(unseen)}.", file=sys.stderr)
    length = config.sequence.length or max(len(one) for part, _ in parts.values() for one in part)

    def table(part: Labelled) -> Table:
        x, lengths = padded(part[0], length)
        return Table({"input": x, "length": lengths, "label": np.array([names.index(label) for label in part[1]], np.int32)})

    tables = {split: table(part) for split, part in parts.items()}
    train: Source = tables["train"]
    validation: Source | None = tables.get("validation")
    shape = tables["train"].arrays["input"].shape[1:]
    if validation is None:
        train, validation = hold_out(train, config.data.validation, config.seed, tables["train"].arrays["label"])
    spec = DataSpec(config.data.name, shape, names, len(train))
    return Splits(dataclasses.replace(spec, **fields), train, validation, tables["test"], origin, ("classes", records))


_READERS: dict[str, Callable[[Any, DataSpec | None], Splits]] = {"ucr": _series, "wav": _sounds, "text": _texts}
