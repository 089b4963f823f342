"""What the tasks that predict at every step share: losses and metrics of valid steps, windows of long sequences.

Batches hold "input", (batch, time, channels) floats or (batch, time) codes, with "length" (batch,), the number of valid steps; "label", the
target of every step; and "counted", bool (batch, time), the steps that are scored. Padded steps never count.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dilax import DataSpec, UserError
from dilax.errors import did_you_mean
from dilax.inference import model_arguments
from dilax.losses import logistic_mixture_loss
from train.data.source import Source, Table, gather
from train.data.splits import Splits, hold_out
from train.data.windows import padded, windows
from train.keys import POSITIVE, UNLIMITED, Key
from train.tasks.base import Batch, Scores, Shape, Sums, Task, ratios
from train.tasks.portable import CHANCES, PROBABILITIES, Answer, in_units, unchanged

# Causal models, which never see what they are asked to predict: of rows of numbers, and of codes or waveforms.
ROW_MODELS = ("separable_tcn", "tcn")
CODE_MODELS = (*ROW_MODELS, "bytenet", "wavenet")
WINDOW_KEYS = {
    "sequence.length": Key(0, "steps of the windows that long sequences are cut into", (0, UNLIMITED)),
    "sequence.context": Key(
        0, "steps at the start of a window that are read but not scored, since the window before scored them", (0, UNLIMITED)
    ),
    "sequence.stride": Key(
        0, "steps between the starts of training windows; 0 is length - context, the most, and less makes them overlap", (0, UNLIMITED)
    ),
}
TEST_KEYS = {
    "sequence.test": Key(
        0.05,
        "share of the test split: the end of a text or a table, some of the sound files; data.validation is taken before it",
        (POSITIVE, 0.5),
    )
}
SAMPLE_KEYS = {
    "sequence.sample": Key(500, "symbols or sound samples drawn for the report; 0 draws none", (0, UNLIMITED)),
    "sequence.temperature": Key(1.0, "temperature of that draw", (0, UNLIMITED)),
}
STEP_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "categorical": lambda outputs, labels: optax.softmax_cross_entropy_with_integer_labels(outputs, labels),
    "binary": lambda outputs, labels: optax.sigmoid_binary_cross_entropy(outputs, labels.astype(outputs.dtype)).sum(-1),
    "mse": lambda outputs, labels: jnp.square(outputs - labels).mean(-1),
    "mixture": lambda outputs, labels: logistic_mixture_loss(outputs, labels[..., 0]),
}
SPLIT_NAMES = {"train": "training", "validation": "validation", "test": "test"}


class StepTask(Task):
    """A task that is scored at every step.

    Attributes:
        kind: A key of `STEP_LOSSES`. "categorical": nats of the code (batch, time) under n logits; "binary": nats of n bits (batch, time,
            n) under as many logits, added; "mse": mean of n squared errors; "mixture": nats of a sample (batch, time, 1) under logistics.
    """

    lower_is_better = True
    spatial = ("input", "label", "counted")
    kind: str

    def __init__(self, config: ConfigDict, spec: DataSpec):
        """Choose the loss and the name of its mean."""
        super().__init__(config, spec)
        self.kind, self.best_by = self.loss_and_metric()
        self.curves = ("loss", "accuracy") if self.kind == "categorical" else ("loss",)

    def loss_and_metric(self) -> tuple[str, str]:
        """Return the key of `STEP_LOSSES` and the name of its mean; a name that begins with "bits" is reported in bits."""
        raise NotImplementedError

    def output_shapes(self) -> tuple[Shape, ...]:
        """Outputs at every step."""
        return ((self.spec.input_shape[0], len(self.spec.outputs)),)

    def inputs(self, batch: Batch, model: nn.Module) -> Batch:
        """Sequences with the mask of their valid steps."""
        return model_arguments(model, batch["input"], batch["length"])

    def losses(self, outputs: Any, batch: Batch) -> jax.Array:
        """Mean loss over the scored steps of each example."""
        return example_means(STEP_LOSSES[self.kind](outputs, batch["label"]), batch["counted"])

    def has_classes(self) -> bool:
        """For codes, one of each step."""
        return self.kind == "categorical"

    def class_logits(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Those of the scored steps."""
        return outputs, batch["counted"]

    def measures(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """For codes, the share of right answers."""
        if self.kind != "categorical":
            return {}
        return {"accuracy": example_means((outputs.argmax(-1) == batch["label"]).astype(jnp.float32), batch["counted"])}

    def answer(self, *, step: bool = False) -> Answer:
        """Probabilities, predictions in the units of the data, or the parameters of mixtures, at every step."""
        answers = {"categorical": PROBABILITIES, "binary": CHANCES, "mse": in_units(self.spec), "mixture": unchanged("mixture")}
        return answers[self.kind]

    def sums(self, outputs: Any, batch: Batch) -> Sums:
        """The loss and, for codes, right answers, over the scored steps."""
        counted = batch["counted"] & batch["mask"][:, None]
        sums = {"loss": jnp.where(counted, STEP_LOSSES[self.kind](outputs, batch["label"]), 0.0).sum(), "count": counted.sum()}
        if self.kind == "categorical":
            sums["accuracy"] = (counted & (outputs.argmax(-1) == batch["label"])).sum()
        return sums

    def metrics(self, scores: Scores) -> dict[str, float]:
        """Mean loss under the name of the metric, accuracy for codes, and the loss in nats."""
        means = ratios(scores.sums, *(name for name in ("loss", "accuracy") if name in scores.sums))
        loss = means.pop("loss")
        metrics = {self.best_by: loss / math.log(2) if self.best_by.startswith("bits") else loss, **means}
        return metrics if self.best_by == "loss" else {**metrics, "loss": loss}


def example_means(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Return the mean (batch,) over the steps that count, 0 where none does; values at other steps are not read."""
    return jnp.where(counted, values, 0.0).sum(1) / jnp.maximum(counted.astype(values.dtype).sum(1), 1)


def check_causal(config: ConfigDict, models: tuple[str, ...]) -> None:
    """Refuse models that would see what they are asked to predict."""
    name = config.model.name
    if name not in models:
        raise UserError(
            f"config.model.name={name!r} is not a causal model for config.task={config.task!r} on data.name={config.data.name!r}; "
            f"use one of {models}.{did_you_mean(name, models)}"
        )
    if config.model.get("causal", True) is False:
        raise UserError(
            f"config.model.causal=False shows the network what config.task={config.task!r} on data.name={config.data.name!r} asks it to "
            "predict; leave it True."
        )


def padded_splits(
    config: ConfigDict,
    parts: Mapping[str, Sequence[Any]],
    length: int,
    names: Sequence[str],
    inputs: Callable[[Any], np.ndarray],
    labels: Callable[[Any], Sequence[str]],
) -> tuple[Source, Source | None, Source]:
    """Return the training, validation and test split of sequences with a class for each step, padded, all of which count.

    Args:
        config: The whole config; data.validation of the training split is held out if there is no validation split.
        parts: {"train", "test" and perhaps "validation": sequences}.
        length: Steps of the padded sequences.
        names: Names of the classes.
        inputs: Returns the inputs of a sequence, (time, ...).
        labels: Returns the names of the classes of its steps.

    Raises:
        UserError: if a sequence is empty or too long.
    """

    def table(part: Sequence[Any]) -> Table:
        x, lengths = padded([inputs(one) for one in part], length)
        y, _ = padded([np.array([names.index(label) for label in labels(one)], np.int32) for one in part], length)
        return Table({"input": x, "length": lengths, "label": y, "counted": np.arange(length)[None] < lengths[:, None]})

    tables = {split: table(part) for split, part in parts.items()}
    train: Source = tables["train"]
    validation: Source | None = tables.get("validation")
    if validation is None:
        train, validation = hold_out(train, config.data.validation, config.seed)
    return train, validation, tables["test"]


def check_name(config: ConfigDict, known: Sequence[str]) -> str:
    """Return config.data.name without what follows a colon.

    Raises:
        UserError: if it is not among the `known` data of the task.
    """
    name = config.data.name.partition(":")[0]
    if name not in known:
        raise UserError(
            f"config.data.name={config.data.name!r} is not data for config.task={config.task!r}; use one of {tuple(known)}."
            f"{did_you_mean(name, known)}"
        )
    return name


def cut_along_time(whole: Any, config: ConfigDict, *, test: bool = True) -> dict[str, Any]:
    """Cut a text or a table along time: the last share is the test split, unless it has one, that before it the validation split."""
    count = len(whole)
    tested, held = round(count * config.sequence.test * test), round(count * config.data.validation)
    train = count - tested - held
    if train < 1:
        raise UserError(
            f"config.sequence.test={config.sequence.test} and config.data.validation={config.data.validation} leave nothing to learn from; "
            "make them smaller."
        )
    parts = {"train": whole[:train], **({"test": whole[count - tested :]} if test else {})}
    return {**parts, "validation": whole[train : train + held]} if held else parts


def window_splits(
    config: ConfigDict, parts: Mapping[str, list[np.ndarray]], outputs: tuple[str, ...], origin: str, kind: str, **fields: Any
) -> Splits:
    """Return splits of windows of long sequences; those of validation and test may be shorter than a window.

    Args:
        config: The whole config.
        parts: The sequences of "train", "test" and perhaps "validation".
        outputs: Names of the outputs.
        origin: Where the data comes from, as `Splits.origin`.
        kind: What the outputs are called.
        **fields: Further fields of the `DataSpec`.
    """
    length, context, cut = config.sequence.length, config.sequence.context, {}
    if not length:
        raise UserError(f"config.sequence.length=0 gives no window for data.name={config.data.name!r}; set it, such as 256.")
    for name, part in parts.items():
        train, split = name == "train", f"the {SPLIT_NAMES[name]} split of {config.data.name}"
        cut[name] = windows(part, length, context, split, stride=config.sequence.stride if train else 0, short=not train)
    shape = (length, *parts["train"][0].shape[1:])
    spec = DataSpec(config.data.name, shape, outputs, len(cut["train"]), **fields)
    return Splits(spec, cut["train"], cut.get("validation"), cut["test"], origin, (kind, "windows"))


def prompts(source: Source, count: int) -> np.ndarray:
    """Return the first halves of up to `count` of the longest windows of a split."""
    batch = gather(source, np.linspace(0, len(source) - 1, min(64, len(source))).astype(int))
    longest = batch["length"].max()
    return batch["input"][batch["length"] == longest][:count, : max(1, int(longest) // 2)]
