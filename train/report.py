"""The report of a finished run: pictures, and report.md that shows them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dilax import plots
from dilax.metrics import class_iou, mean_iou

SHOWN, WORST = 40, 6  # pictures of a classifier, and of segmentation


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
    return write(workdir, title, config_text, tables(metrics, versions, seconds), pictures)


def write_segmentation_report(
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
    numbers: Sequence[int],
    truths: np.ndarray,
    predictions: np.ndarray,
    ignored: int,
    feature_maps: Mapping[str, np.ndarray],
) -> pathlib.Path:
    """Write the report of a run of segmentation; arguments and result as `write_report`, but for these.

    Args:
        workdir: Folder of the run.
        title: Heading.
        config_text: The config, as text.
        history: Lines of metrics.jsonl.
        metrics: Final figures.
        versions: Of the libraries, and the device.
        seconds: How long the run took.
        class_names: C names.
        confusion: (C, C) counts of pixels, rows the true class.
        images: uint8 (n, height, width, channels), of the test split.
        numbers: Their places in it.
        truths: (n, height, width), their masks.
        predictions: (n, height, width).
        ignored: Label of pixels that count nowhere.
        feature_maps: Name -> (height, width, channels), of the first of the images; may be empty.

    Returns:
        The path of report.md.
    """
    scores = image_scores(truths, predictions, len(class_names), ignored)
    worst = np.argsort(np.where(np.isnan(scores), 2, scores), kind="stable")[:WORST]
    titles = [f"image {numbers[i]}, IoU {scores[i]:.3f}" for i in worst]
    grid = plots.segmentation_grid(images[worst], truths[worst], predictions[worst], class_names, titles)
    pictures = {
        "Learning curves": ("learning_curves", plots.learning_curves(history, metrics=("loss", "accuracy", "miou"))),
        "Score of each class": ("class_iou", plots.class_bars(class_iou(confusion), class_names)),
        "Confusion matrix": ("confusion_matrix", plots.confusion_matrix(confusion, class_names)),
        f"The worst of {len(images)} test images": ("worst", grid),
    }
    if feature_maps:
        pictures["Feature maps, the first layer of each dilation"] = ("feature_maps", plots.feature_maps(feature_maps, images[0]))
    return write(workdir, title, config_text, tables(metrics, versions, seconds), pictures)


def image_scores(truths: np.ndarray, predictions: np.ndarray, classes: int, ignored: int) -> np.ndarray:
    """Return the mean intersection over union (n,) of each image; NaN where all of its pixels are ignored."""
    scores = []
    for truth, prediction in zip(truths, predictions):
        known = truth != ignored
        pairs = truth[known].astype(np.int64) * classes + prediction[known]
        scores.append(mean_iou(np.bincount(pairs, minlength=classes**2).reshape(classes, classes)))
    return np.array(scores)


def write(
    workdir: pathlib.Path,
    title: str,
    config_text: str,
    tables: str,
    pictures: Mapping[str, tuple[str, Any]],
    sections: Sequence[str] = (),
) -> pathlib.Path:
    """Write report.md and its pictures, {heading: (name of the file, figure)}, with further sections; returns its path."""
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    for name, figure in pictures.values():
        plots.save(figure, folder / f"{name}.png")
    path = folder / "report.md"
    shown = [f"## {heading}\n\n![{heading}]({name}.png)" for heading, (name, _) in pictures.items()]
    path.write_text("\n\n".join([f"# {title}", tables, *shown, *sections, f"## Config\n\n```json\n{config_text}\n```"]) + "\n")
    return path


def most_telling(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the order in which to show examples: mistakes first, the surest first; then right answers, the least sure first."""
    sure, wrong = probabilities.max(1), probabilities.argmax(1) != labels
    return np.lexsort((np.where(wrong, -sure, sure), ~wrong))


def tables(metrics: Mapping[str, float], versions: Mapping[str, str], seconds: float) -> str:
    """Return the figures of a run as a Markdown table."""
    rows = [(name, f"{value:.4f}") for name, value in metrics.items()] + [("time", f"{seconds:.0f} s"), *versions.items()]
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
