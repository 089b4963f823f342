"""The contract of a task: one class that owns everything particular to what is learned.

A task is made of a config and the description of its data. The loop, the step, evaluation, prediction and the report know this class alone.
"""

import abc
import argparse
import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.typing import VariableDict
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError
from dilax.losses import distillation_loss
from train.data.readers.files import stem_of
from train.data.splits import Splits
from train.files import check_folder_writable
from train.keys import Keys, Reads
from train.tasks.portable import Answer

Batch = dict[str, Any]
Sums = dict[str, jax.Array]
Shape = tuple[int, ...]
Bytes = io.BufferedReader | io.BytesIO


@struct.dataclass
class Loss:
    """What a task makes of a batch in training.

    Attributes:
        sums: Sums to be divided by `count`; the gradient is that of "loss", the others are logged.
        count: What the sums are divided by, once, over all parts of a batch and all devices: examples, or positives in detection.
        collections: The collections of variables after the batch, such as {"batch_stats": ...}.
    """

    sums: Sums
    count: jax.Array
    collections: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What evaluation collected over a split.

    Attributes:
        sums: Sums over the examples, as numpy arrays in 64 bits.
        kept: Arrays with a row for each example, such as predictions, for metrics that are not ratios of sums.
    """

    sums: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a task adds to the report of a run.

    Attributes:
        pictures: {heading: (name of the file, figure)}.
        sections: Further sections in Markdown.
        images: uint8 (n, height, width, channels) for TensorBoard, or None.
    """

    pictures: dict[str, tuple[str, Any]]
    sections: Sequence[str] = ()
    images: np.ndarray | None = None


class Task(abc.ABC):
    """One job that networks are trained for.

    A minimal task defines the class attributes, `open`, `inputs`, `losses`, `sums`, `metrics`, `output_shapes` and `report`. One whose loss
    is not a mean over examples overrides `loss`; one whose metrics are not ratios of sums overrides `evaluate` and `metrics`.

    Attributes:
        name: Value of config.task.
        keys: The config keys that this task alone reads, in addition to those of `train.config.KEYS`.
        reads: For each kind of data the keys that it reads and other kinds may not; keys that no kind lists are read with all of them. A
            kind is the value of config.data.name up to a colon, or `train.keys.OTHER`.
        curves: Metrics drawn as learning curves.
        spatial: Fields of an augmented batch, (batch, size, ...), whose second axis is the first axis of space or time.
        tile: Sizes of the parts, one per axis of space, in which evaluation computes the outputs of inputs that do not fit into memory; ()
            computes them whole. A task that sets it must judge outputs by `judge`.
    """

    name: ClassVar[str]
    keys: ClassVar[Keys]
    reads: ClassVar[Reads]
    curves: tuple[str, ...] = ("loss", "accuracy")
    spatial: ClassVar[tuple[str, ...]] = ("image", "input")
    best_by: str
    lower_is_better: bool = False
    tile: Shape = ()

    def __init__(self, config: ConfigDict, spec: DataSpec):
        """Bind the task to a whole config and the description of its data."""
        self.config: ConfigDict = config  # the values of a ConfigDict have no static types
        self.spec = spec

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Raise UserError for values that no run of this task can use; limits and choices of single keys are checked already."""

    @classmethod
    @abc.abstractmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open the data of a config.

        Args:
            config: The whole config.
            like: What a run was trained on: its mean, deviation, sample rate and symbols are used, not those of the data that is opened.

        Raises:
            UserError: if it is missing or does not fit the task.
        """

    @abc.abstractmethod
    def output_shapes(self) -> tuple[Shape, ...]:
        """Return the shapes of model outputs that fit the task, without the batch axis."""

    def refusal(self, model: nn.Module, outputs: Any) -> str:
        """Return why a model is not one for the task, in words that follow its name, or "" if it is.

        Args:
            model: The Flax module.
            outputs: What it returns in evaluation, as shapes and dtypes, with a batch axis of 1.
        """
        shape, wanted = getattr(outputs, "shape", None), [(1, *one) for one in self.output_shapes()]
        given = f"outputs of shape {shape}" if shape else "several outputs"
        return "" if shape in wanted else f"gives {given}, and config.task={self.name!r} needs {' or '.join(map(str, wanted))}"

    def remarks(self, model: nn.Module, splits: Splits) -> Sequence[str]:
        """Return lines that a run prints before its first step."""
        return ()

    @abc.abstractmethod
    def inputs(self, batch: Batch, model: nn.Module) -> Batch:
        """Return the arguments of the model by name, the first of them "x"; the batch may be augmented or not."""

    def augment(self, key: jax.Array, batch: Batch, first: Any) -> Batch:
        """Augment a batch, with the targets that the loss needs; `first` is the position of its first example in the whole batch."""
        return batch

    def loss(
        self, model: nn.Module, variables: VariableDict, batch: Batch, key: jax.Array, *, average: Any = None, teacher: Any = None
    ) -> Loss:
        """Return the loss of an augmented batch, a pure function of its arguments.

        Args:
            model: The Flax module.
            variables: Its variables, in which the parameters are differentiated.
            batch: As `augment` returned it.
            key: Random key of this batch.
            average: The variables with the moving average of the parameters, if the run keeps one: a teacher.
            teacher: The logits of another network for the batch, as `class_logits` returns them, if config.distill_from names one.
        """
        outputs, collections = self.training_outputs(model, variables, batch, key)
        losses, measures = self.losses(outputs, batch), self.measures(outputs, batch)
        if teacher is not None:
            weight, (logits, counted) = self.config.distill.weight, self.class_logits(outputs, batch)
            soft = distillation_loss(logits, teacher, temperature=self.config.distill.temperature, mask=counted)
            losses, measures = (1 - weight) * losses + weight * soft, {**measures, "distillation": soft}
        sums = {name: values.sum() for name, values in {"loss": losses, **measures}.items()}
        return Loss(sums, jnp.float32(len(losses)), collections)

    def training_outputs(self, model: nn.Module, variables: VariableDict, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """Return what the losses are of, and the collections after the batch."""
        return run_training(model, variables, self.inputs(batch, model), key)

    def losses(self, outputs: Any, batch: Batch) -> jax.Array:
        """Return one loss for each example, (batch,), of what the model returned in training."""
        raise NotImplementedError

    def has_classes(self) -> bool:
        """Return whether outputs are logits of classes, one of which is true, so that the task can be distilled."""
        return False

    def class_logits(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Return the logits of the classes (batch, ..., classes), and which of them count, bool (batch, ...), or None if all do."""
        raise NotImplementedError

    def measures(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Return measures for each example, (batch,), of which training logs the means."""
        return {}

    def outputs(self, model: nn.Module, variables: VariableDict, batch: Batch) -> Any:
        """Run the model in evaluation."""
        return model.apply(variables, **self.inputs(batch, model), train=False)

    def evaluate(self, model: nn.Module, variables: VariableDict, batch: Batch) -> tuple[Sums, dict[str, jax.Array]]:
        """Return sums over the examples that batch["mask"] counts, and arrays (batch, ...) that are kept for each example."""
        return self.judge(self.outputs(model, variables, batch), batch)

    def judge(self, outputs: Any, batch: Batch) -> tuple[Sums, dict[str, jax.Array]]:
        """Return what `evaluate` returns, from the outputs of the model or from what `Answer.outputs` makes of a result."""
        return self.sums(outputs, batch), self.kept(outputs, batch)

    def sums(self, outputs: Any, batch: Batch) -> Sums:
        """Return sums over the examples that batch["mask"] counts."""
        raise NotImplementedError

    def kept(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Return arrays (batch, ...) that are kept for each example, for metrics that are not ratios of sums."""
        return {}

    @abc.abstractmethod
    def metrics(self, scores: Scores) -> dict[str, float]:
        """Return the metrics of a split by name."""

    def details(self, scores: Scores) -> dict[str, float]:
        """Return further metrics of the test split, such as those of single classes."""
        return {}

    def rank(self, logged: Mapping[str, float]) -> tuple[float, float]:
        """Return the rank of a checkpoint by its logged metrics, the greater the better.

        `best_by` decides, and the loss between those that tie, as many do in the accuracy on a small split.
        """
        sign = -1 if self.lower_is_better else 1
        return sign * logged.get(f"validation/{self.best_by}", -sign * math.inf), -logged.get("validation/loss", math.inf)

    @abc.abstractmethod
    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """Return what the report shows; files beside the pictures are written to `folder`, which exists."""

    def hub_task(self) -> str:
        """Return what the Hugging Face Hub calls what this task learns, such as "image-classification"; "" if it has no word for it."""
        return ""

    @classmethod
    def add_evaluation_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags of `train.evaluate` that this task understands."""

    def with_flags(self, args: argparse.Namespace) -> "Task":
        """Return the task as those flags change it."""
        return self

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags and positional arguments of `train.predict` that this task understands."""
        add_inputs(parser, "files to predict from")

    def answer(self, *, step: bool = False) -> Answer:
        """Return what `train.export` lets a program give of the outputs of the model; `step` if it is fed in chunks."""
        raise UserError(
            f"a run of the task {self.name} cannot be exported by train.export, since the task does not say what its answer is; "
            "export its model by dilax.export.export."
        )

    def input_suffixes(self) -> Collection[str]:
        """Return the suffixes, in lower case, of the files that `predict` reads; () if it does not read files."""
        return ()

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Yield the lines to print for args.inputs, as `table_lines` makes them; every input is read before the first line."""
        raise UserError(f"config.task={self.name!r} has nothing to predict from files; use train.evaluate.")

    def stream(self, inference: Inference, file: Bytes, args: argparse.Namespace) -> Iterator[bytes]:
        """Yield what to write to standard output as standard input comes in."""
        raise UserError(f"--stream is for text, tables and sound, and this run is of the task {self.name}; give files instead.")


def run_training(model: nn.Module, variables: VariableDict, inputs: Batch, key: jax.Array, streams: Sequence[str] = ("dropout",)) -> Any:
    """Run a model in training.

    Args:
        model: The Flax module.
        variables: Its variables; all collections but "params" may change.
        inputs: Its arguments by name.
        key: Random key, from which each of `streams` has its own.
        streams: Names of the random streams.

    Returns:
        The outputs and the collections after them.
    """
    before = {name: tree for name, tree in variables.items() if name != "params"}
    keys = {name: key if i == 0 else jax.random.fold_in(key, i) for i, name in enumerate(streams)}
    outputs, updates = model.apply(variables, **inputs, train=True, mutable=list(before), rngs=keys)
    return outputs, {**before, **updates}


def make_folder(path: pathlib.Path) -> None:
    """Make the folder that prediction writes to.

    Raises:
        UserError: if it cannot be written.
    """
    check_folder_writable("out", path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # such as a full disk
        raise UserError(f"--out={path} cannot be written: {error.strerror or error}; give another folder.") from error


def ratios(sums: Mapping[str, np.ndarray], *names: str) -> dict[str, float]:
    """Return sums divided by sums["count"]."""
    return {name: float(sums[name]) / float(sums["count"]) for name in names}


def report_table(heading: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, says: str = "") -> str:
    """Return a section of the report with a text and a table, in Markdown."""
    lines = [" | ".join(map(_cell, row)) for row in rows]
    return "\n".join(
        [
            f"## {heading}\n",
            *[f"{says}\n"] * bool(says),
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
            *(f"| {line} |" for line in lines),
        ]
    )


def _cell(text: str) -> str:
    """Return a text, such as a file name, in one line and without the marks of a table; bytes that are not UTF-8 become ?."""
    return " ".join(text.encode("utf-8", "replace").decode().split()).replace("\\", "\\\\").replace("|", "\\|")


def csv_row(cells: Iterable[str]) -> str:
    """Return a row of CSV, without a line end."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # without which line ends in a cell are not quoted
    return line.getvalue().removesuffix("\r\n")


_BREAKS = {ord(sign): word for sign, word in (("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))}


def table_lines(args: argparse.Namespace, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    r"""Yield rows as lines: cells with tabs between them or, with --csv, as CSV below the names of the columns.

    Tabs and line ends within one of several cells are written as \t, \n and \r, but in CSV they are kept.
    """
    if args.csv:
        yield csv_row(columns)
    for row in rows:
        yield csv_row(row) if args.csv else "\t".join(cell.translate(_BREAKS) if len(row) > 1 else cell for cell in row)


def add_top_flag(parser: argparse.ArgumentParser) -> None:
    """Add --top."""
    parser.add_argument("--top", type=int, default=1, metavar="N", help="print the N most probable classes; the default is 1")


def class_lines(args: argparse.Namespace, answers: Iterable[tuple[str, list[tuple[str, float]]]]) -> Iterator[str]:
    """Yield a line for each input: its name, then class and probability of each of its most probable classes."""
    numbers = ["", *(f" {i}" for i in range(2, args.top + 1))]
    columns = ["input", *(f"{word}{number}" for number in numbers for word in ("class", "probability"))]
    rows = ([name, *(cell for best, p in ranked for cell in (best, f"{p:.4f}"))] for name, ranked in answers)
    return table_lines(args, columns, rows)


def check_top(args: argparse.Namespace, classes: int) -> None:
    """Refuse more classes than there are.

    Raises:
        UserError: naming the flag.
    """
    if not 1 <= args.top <= classes:
        raise UserError(f"--top={args.top} is not a number of classes; the run has {classes}, so give 1 to {classes}.")


def add_inputs(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the positional arguments of `train.predict`."""
    parser.add_argument("inputs", nargs="*", metavar="input", help=what)
    parser.add_argument("--csv", action="store_true", help="print comma-separated values below the names of the columns")


def output_files(
    paths: Sequence[str],
    endings: Sequence[str],
    folder: pathlib.Path,
    *,
    replace: bool,
    rename: bool = False,
    suffixes: Collection[str] = (),
) -> list[list[pathlib.Path]]:
    """Return the files STEM + ending, in `folder`, that prediction writes for each input file.

    Args:
        paths: Input files, which are never replaced.
        endings: Of the files for each input, such as "_mask.png".
        folder: Where they are written; made by the caller.
        replace: Whether files that exist are replaced.
        rename: Whether a second input of the same stem gets another name instead of an error.
        suffixes: Those that are removed from the names of the inputs, such as ".nii.gz"; () removes what follows the last dot.

    Raises:
        UserError: if a file would be overwritten.
    """
    given, taken, files = {pathlib.Path(path).resolve() for path in paths}, set[pathlib.Path](), []
    for path in paths:
        stem = stem_of(pathlib.Path(path).name, suffixes) if suffixes else pathlib.Path(path).stem
        while rename and taken & {folder / f"{stem}{ending}" for ending in endings}:
            stem += "_"
        files.append([folder / f"{stem}{ending}" for ending in endings])
        for file in files[-1]:
            if file in taken or file.resolve() in given or (file.exists() and not replace):
                raise UserError(f"{file} exists and would be overwritten; give another folder with --out.")
            taken.add(file)
    return files
