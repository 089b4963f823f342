"""What `train.export --quantise` adds to a file: fewer bits, and how much of the metric they may cost."""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from dilax import export
from train import cli
from train.build import Trained
from train.data import Source, train_batches

CALIBRATED = 256  # training examples from which the ranges of activations are read
# How much of the metric, such as accuracy or mean intersection over union, may be lost. The numbers that a program of 8 bits gives differ
# from those of JAX by percents of their range, which by itself says nothing.
TOLERANCE = 0.01


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add --quantise."""
    parser.add_argument(
        "--quantise",
        choices=export.QUANTISED["onnx"],
        help="store kernels in 16 bits, or compute in int8, calibrated on training examples; for onnx and tflite",
    )


def check(form: str, dtype: str | None, *, stream: bool) -> None:
    """Refuse a dtype that a format does not have, or the step of a stream, before anything is exported."""
    if dtype and stream:
        cli.fail(f"--quantise={dtype} cannot be combined with --stream, whose state it would round; leave one of them out.")
    if dtype and dtype not in export.QUANTISED.get(form, ()):
        known = "; ".join(f"--format {name}: {', '.join(dtypes)}" for name, dtypes in export.QUANTISED.items())
        cli.fail(f"--quantise={dtype} cannot be combined with --format={form}; use {known}.")


def quantised(
    data: bytes, trained: Trained, arguments: Callable[..., tuple[np.ndarray, ...]], source: Source, batch: int, **options: Any
) -> bytes:
    """Return a program in fewer bits.

    Args:
        data: The content of the file.
        trained: The run.
        arguments: Batch of a split -> inputs of the program.
        source: The training split; the first batches of its first epoch, not augmented, are those of the calibration.
        batch: Examples at a time.
        **options: "format" and "dtype" of `dilax.export.quantise`.
    """
    batches = train_batches(source, batch, seed=trained.setup.config.seed)
    try:
        chosen = itertools.islice(batches, -(-min(CALIBRATED, len(source)) // batch)) if options["dtype"] == "int8" else ()
        return export.quantise(data, calibration=[arguments(records) for records in chosen], **options)
    finally:
        batches.close()  # with worker processes


def lost(lower_is_better: bool, metric: float, metric_jax: float) -> float:
    """Return how much worse the metric through a file is than that of JAX."""
    return metric - metric_jax if lower_is_better else metric_jax - metric
