"""The report of a finished run: pictures, and report.md that shows them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dilax import plots

SHOWN = 40


def write_report(
    workdir: pathlib.Path,
    *,
    title: str,
    config_text: str,
    history: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float],
    versions: Mapping[str, str],
    seconds: float,
    class_names: Sequence[str],
    confusion: Any,
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    first_kernel: np.ndarray | None,
    feature_maps: Mapping[str, np.ndarray],
) -> pathlib.Path:
    """Write `workdir`/report/report.md and its pictures.

    Args:
        workdir: Folder of the run.
        title: Heading.
        config_text: The config, as text.
        history: Lines of metrics.jsonl.
        metrics: Final figures.
        versions: Of the libraries, and the device.
        seconds: How long the run took.
        class_names: C names.
        confusion: (C, C) counts, rows the true class.
        images: uint8 (n, height, width, channels), of the test split.
        labels: (n,), their true classes.
        probabilities: (n, C), as predicted.
        first_kernel: (*window, c_in, c_out) of the first layer, or None.
        feature_maps: Name -> (height, width, channels), of the first of the images; may be empty.

    Returns:
        The path of report.md.
    """
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    order = most_telling(labels, probabilities)[:SHOWN]
    pictures = {
        "Learning curves": ("learning_curves", plots.learning_curves(history)),
        "Confusion matrix": ("confusion_matrix", plots.confusion_matrix(confusion, class_names)),
        "Test images, mistakes first": (
            "predictions",
            plots.prediction_grid(images[order], labels[order], probabilities[order], class_names),
        ),
    }
    if first_kernel is not None:
        pictures["Kernels of the first layer"] = ("first_kernels", plots.kernels(first_kernel))
    if feature_maps:
        pictures["Feature maps, the first layer of each dilation"] = ("feature_maps", plots.feature_maps(feature_maps, images[0]))
    for name, figure in pictures.values():
        plots.save(figure, folder / f"{name}.png")
    path = folder / "report.md"
    shown = [f"## {heading}\n\n![{heading}]({name}.png)" for heading, (name, _) in pictures.items()]
    path.write_text(
        "\n\n".join([f"# {title}", _tables(metrics, versions, seconds), *shown, f"## Config\n\n```json\n{config_text}\n```"]) + "\n"
    )
    return path


def most_telling(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the order in which to show examples: mistakes first, the surest first; then right answers, the least sure first."""
    sure, wrong = probabilities.max(1), probabilities.argmax(1) != labels
    return np.lexsort((np.where(wrong, -sure, sure), ~wrong))


def _tables(metrics: Mapping[str, float], versions: Mapping[str, str], seconds: float) -> str:
    rows = [(name, f"{value:.4f}") for name, value in metrics.items()] + [("time", f"{seconds:.0f} s"), *versions.items()]
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
