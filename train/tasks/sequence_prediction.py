"""Prediction at every step: numbers, bits such as the keys of a piano, or codes."""

import argparse
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError, plots
from train.data.readers import piano, tables
from train.data.readers.files import data_path
from train.data.readers.made_up import ADDING_EXAMPLES, COPY_EXAMPLES, SYMBOLS, TEST_EXAMPLES, adding, copy_memory
from train.data.scaling import scale_of, written
from train.data.source import Table, gather
from train.data.splits import Splits
from train.data.windows import padded
from train.keys import UNLIMITED, Key, Keys, Reads
from train.tasks import streams
from train.tasks.base import Bytes, Report, Scores, add_inputs, csv_row, report_table
from train.tasks.steps import (
    ROW_MODELS,
    SPLIT_NAMES,
    TEST_KEYS,
    WINDOW_KEYS,
    StepTask,
    check_causal,
    check_name,
    cut_along_time,
    window_splits,
)

# What a step of each kind of data asks for, and so the loss.
LOSS_OF = {"adding": "mse", "csv": "mse", "copy_memory": "categorical", "piano": "binary"}
PANELS = 10  # most columns of a table that the report draws
# First word of the random keys of made-up data; the splits share no draw.
_TRAIN, _TEST, _VALIDATION = 1, 2, 3


class SequencePrediction(StepTask):
    """Learns the target of every step: that of a made-up task, or the next row of a table or piano roll."""

    name = "sequence_prediction"
    keys: ClassVar[Keys] = {
        **WINDOW_KEYS,
        **TEST_KEYS,
        "sequence.loss": Key(
            "mse", '"mse", "binary" (several may be true at a step) or "categorical" (one is)', choices=("mse", "binary", "categorical")
        ),
        "sequence.examples": Key(
            0, 'training sequences that "adding" and "copy_memory" make; 0 makes as many as in the paper', (0, UNLIMITED)
        ),
        "data.missing": Key(
            "error", 'missing cells of a table: "error", "forward" or "interpolate"', choices=("error", "forward", "interpolate")
        ),
    }
    reads: ClassVar[Reads] = {
        "adding": ("sequence.examples",),
        "copy_memory": ("sequence.examples",),
        "piano": ("data.dir",),
        "csv": ("data.dir", "data.missing", "sequence.context", "sequence.stride", "sequence.test"),
    }

    def hub_task(self) -> str:
        """Forecasts of tables."""
        return "time-series-forecasting" if self.spec.mean else ""

    def loss_and_metric(self) -> tuple[str, str]:
        """As config.sequence.loss says."""
        kind = self.config.sequence.loss
        return kind, {"binary": "nll", "mse": "mse"}.get(kind, "loss")

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Refuse models that see the next row, and losses that do not fit the data."""
        if config.data.name in ("csv", "piano"):
            check_causal(config, ROW_MODELS)
        loss = LOSS_OF.get(config.data.name, config.sequence.loss)
        if config.sequence.loss != loss:
            raise UserError(
                f"config.sequence.loss={config.sequence.loss!r} does not fit data.name={config.data.name!r}; set it to {loss!r}."
            )

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open a made-up task, a table or piano rolls."""
        name = check_name(config, tuple(cls.reads))
        if name == "csv":
            return _table(config, like)
        return {"adding": _adding, "copy_memory": _copy_memory, "piano": _piano}[name](config)

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """Targets and predictions of the scored steps; of a table in its units, beside the forecast that repeats each row."""
        if self.config.data.name == "csv":
            return self._table_report(inference, splits)
        batch = gather(splits.test, np.arange(min(64, len(splits.test))))
        outputs = np.asarray(inference.outputs(batch["input"], length=batch["length"]))
        truth, counted, names = batch["label"], batch["counted"], splits.spec.outputs
        if self.kind == "categorical":
            truth, outputs, names = truth[..., None], outputs.argmax(-1)[..., None], ("code",)
        elif self.kind == "binary":
            outputs = np.asarray(jax.nn.sigmoid(outputs))
        # Where a sequence is scored at a step or two, those of several are shown.
        few = counted[0].sum() < 3
        places = counted if few else counted & (np.arange(len(counted)) == 0)[:, None]
        title = f"the {places.sum()} scored steps of {f'the first {len(counted)} test sequences' if few else 'the first test sequence'}"
        steps, step_name = (None, "scored step") if few else (np.flatnonzero(places[0]), "step")
        figure = plots.step_outputs(truth[places], outputs[places], names, title=title, steps=steps, step_name=step_name, joined=not few)
        return Report({"Test steps": ("prediction", figure)})

    def _table_report(self, inference: Inference, splits: Splits) -> Report:
        """The first test rows, and the errors of every column over the test split, in the units of the table."""
        batch = gather(splits.test, np.arange(len(splits.test)))
        parts = [slice(start, start + 64) for start in range(0, len(splits.test), 64)]
        outputs = np.concatenate(
            [np.asarray(inference.outputs(batch["input"][at], length=batch["length"][at]), np.float32) for at in parts]
        )
        names, counted = self.spec.outputs, batch["counted"]
        rows = {"true": batch["label"], "network": outputs, "persistence": batch["input"]}
        errors = {name: rows[name][counted] - rows["true"][counted] for name in ("network", "persistence")}
        steps, panels = np.flatnonzero(counted[0]), min(len(names), PANELS)
        true, network, persistence = (self.spec.unscale(values[0, steps])[:, :panels] for values in rows.values())
        left = f"; the first {panels} of {len(names)} columns" * (panels < len(names))
        figure = plots.step_outputs(
            true,
            network,
            names[:panels],
            title=f"test rows {steps[0] + 2} to {steps[-1] + 2}, each predicted from those before it{left}",
            baseline=persistence,
            baseline_name="persistence",
            steps=steps + 2,  # the first row of the split has none before it
            step_name="row of the test split",
            panels=panels,
        )
        return Report({"Test rows": ("prediction", figure)}, [_persistence(names, errors, np.asarray(self.spec.std))])

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Tables to forecast."""
        parser.add_argument("--steps", type=int, default=200, help="rows to forecast; the default is 200")
        streams.add_stream_flag(parser)
        add_inputs(parser, "tables to forecast, such as .csv files, or folders of them")

    def input_suffixes(self) -> Collection[str]:
        """Those of tables."""
        return (".csv", ".tsv", ".gz")

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Yield the rows that follow each table, as CSV with the names of the columns."""
        self._check_table()
        streams.check_flag(args, "steps", args.steps >= 1, "at least 1")
        read = [tables.read_table(pathlib.Path(path), missing=self.config.data.missing) for path in args.inputs]
        for path, (names, _) in zip(args.inputs, read):
            tables.check_columns(path, names, self.spec.outputs)
        several = len(read) > 1
        if args.csv:
            yield csv_row(["input", *self.spec.outputs] if several else self.spec.outputs)
        for path, (_, values) in zip(args.inputs, read):
            if not args.csv:
                yield from [f"# {path}"] * several
                yield csv_row(self.spec.outputs)
            for row in inference.forecast(values, args.steps):
                yield csv_row([*([path] * (several and args.csv)), *written(self.spec, row)])

    def stream(self, inference: Inference, file: Bytes, args: argparse.Namespace) -> Iterator[bytes]:
        """Yield, after each row, the row that is to follow it."""
        self._check_table()
        feeder, reader = streams.Feeder(inference), tables.RowReader(self.spec.outputs)
        yield (csv_row(self.spec.outputs) + "\n").encode()
        for line in streams.lines(file):
            values = reader.read(line)
            if values is None:  # a header or a blank line
                continue
            (row,) = self.spec.unscale(feeder(self.spec.scale(values)[None]))
            yield (csv_row(written(self.spec, row)) + "\n").encode()

    def _check_table(self) -> None:
        if self.config.data.name != "csv":
            raise UserError(
                f"a run on data.name={self.config.data.name!r} has nothing to predict from files or a stream; use train.evaluate."
            )


def _persistence(names: Sequence[str], errors: Mapping[str, np.ndarray], std: np.ndarray) -> str:
    """A section that compares the network with the forecast that repeats each row, which it has to beat.

    Args:
        names: The columns.
        errors: Of "network" and "persistence", (rows, columns), standardised.
        std: What a standardised column is multiplied with, (columns,).
    """
    means = {name: np.square(values).mean() for name, values in errors.items()}
    units = {name: np.sqrt(np.square(values).mean(0)) * std for name, values in errors.items()}
    rows = [(name, f"{ours:.4g}", f"{theirs:.4g}") for name, ours, theirs in zip(names, units["network"], units["persistence"])]
    says = (
        f"A forecast that repeats each row has a mean squared error of {means['persistence']:.4f}. That of the network is "
        f"{means['network']:.4f}. Both are of columns divided by their standard deviation in the training rows. The root mean squared "
        "errors in the units of the table:"
    )
    return report_table("For comparison", ("column", "network", "persistence"), rows, says=says)


def _adding(config: ConfigDict) -> Splits:
    return _made_up(config, adding, ADDING_EXAMPLES, ("sum",), ())


def _copy_memory(config: ConfigDict) -> Splits:
    symbols = tuple(map(str, range(SYMBOLS)))
    return _made_up(config, copy_memory, COPY_EXAMPLES, symbols, symbols)


def _made_up(config: ConfigDict, make: Callable[..., Table], examples: int, outputs: tuple[str, ...], symbols: tuple[str, ...]) -> Splits:
    """Splits drawn at random: the training split by config.seed, the others the same for every run."""
    count, length = config.sequence.examples or examples, config.sequence.length
    if not length:
        raise UserError(f"config.sequence.length=0 gives no length for data.name={config.data.name!r}; set it, such as 200.")
    train = make(count, length, _TRAIN, config.seed)
    validation = make(TEST_EXAMPLES, length, _VALIDATION) if config.data.validation else None
    test = make(TEST_EXAMPLES, length, _TEST)
    spec = DataSpec(config.data.name, train.arrays["input"].shape[1:], outputs, count, symbols)
    return Splits(spec, train, validation, test, kinds=("outputs", "sequences"))


def _piano(config: ConfigDict) -> Splits:
    """Piano rolls, each step of which asks for the keys of the next."""
    rolls = piano.read_piano_rolls(data_path(config, "a .mat or .npz file of piano rolls"))
    length = config.sequence.length or max(len(roll) for split in rolls.values() for roll in split) - 1

    def table(split: list[np.ndarray], word: str) -> Table:
        long_enough = [roll for roll in split if len(roll) > 1]
        if not long_enough:
            raise UserError(f"{config.data.dir}: the {word} split has no sequence of 2 or more steps, which a prediction needs.")
        x, lengths = padded([roll[:-1].astype(np.float32) for roll in long_enough], length)
        y, _ = padded([roll[1:].astype(np.float32) for roll in long_enough], length)
        return Table({"input": x, "length": lengths, "label": y, "counted": np.arange(length)[None] < lengths[:, None]})

    parts = {name: table(rolls[name], word) for name, word in SPLIT_NAMES.items()}
    keys = parts["train"].arrays["input"].shape[-1]
    spec = DataSpec(config.data.name, (length, keys), tuple(f"key {i + 1}" for i in range(keys)), len(parts["train"]))
    return Splits(
        spec, parts["train"], parts["validation"] if config.data.validation else None, parts["test"], config.data.dir, ("keys", "sequences")
    )


def _table(config: ConfigDict, like: DataSpec | None) -> Splits:
    """A table of numbers by time, standardised by the training split or as `like` says, each row of which asks for the next."""
    names, values = tables.read_table(data_path(config, "a table, such as a .csv file"), missing=config.data.missing)
    parts = cut_along_time(values, config)
    mean, std = scale_of(like, parts["train"], names, config.data.dir)
    scale = DataSpec(config.data.name, (), names, mean=mean, std=std).scale
    return window_splits(
        config, {name: [scale(part)] for name, part in parts.items()}, names, config.data.dir, "columns", mean=mean, std=std
    )
