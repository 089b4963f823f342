"""Plots of training runs and classifiers: learning curves, confusion matrices, predictions, kernels, feature maps."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from dilax import arguments
from dilax.annotated import checked_call
from dilax.errors import UserError, shown
from dilax.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    as_float,
    draw_frame,
    format_size,
    image_grid,
    new_figure,
    show_image,
    to_display,
    truncate,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour, marker, its size where points are few, and whether it is filled: points of all three at one place remain visible.
_CURVES = {"train": (BLUE, "o", 9, True), "validation": (ORANGE, "s", 5, True), "test": (GREEN, "D", 11, False)}
_JOINED, _MARKED = 5, 40  # fewest points that a line joins, and most that are marked
_LINES = (BLUE, ORANGE, GREEN)


@checked_call()
def learning_curves(history: Sequence[Mapping[str, Any]], *, metrics: Sequence[str] = ("loss", "accuracy")) -> "Figure":
    """Draw metrics of a training run against the step, with one curve each for training, validation and test.

    Args:
        history: The lines of metrics.jsonl, each with a "step" and any of "train/loss", "train/accuracy", ..., "test/accuracy". The metrics
            of the test split stand at the "best_step" of their line, if it has one: that of the parameters that were tested.
        metrics: The metrics to draw, such as loss (in nats) and accuracy (in 0..1): the part of their names after the slash.

    Returns:
        One panel per metric. Fewer than 5 values of a curve are drawn as points. The legend shows the last value of each curve.

    Raises:
        UserError: if `metrics` is empty, or the step or a metric in a line of `history` is not a number.
    """
    if not metrics:
        raise UserError("learning_curves: metrics is empty; give one or more, such as ('loss',).")
    figure = new_figure("learning_curves", 4.5 * len(metrics), 3.6, layout="constrained")
    panels: Any = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics):
        for split, style in _CURVES.items():
            key, place = f"{split}/{metric}", "best_step" if split == "test" else "step"
            points = [(_number(line, place if place in line else "step"), _number(line, key)) for line in history if key in line]
            if points:
                _draw_curve(axes, points, f"{split}, last {points[-1][1]:.4g}", *style)
        axes.set_title(truncate({"miou": "mean IoU"}.get(metric, metric), 40), color=INK, parse_math=False)
        axes.set_xlabel("step")
        steps = {step for line in axes.lines for step in np.asarray(line.get_xdata(), np.float64).tolist()}
        if len(steps) == 1:  # between whole steps there is nothing to label
            axes.set_xticks([*steps])
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
        drawn = [value for line in axes.lines for value in np.asarray(line.get_ydata(), np.float64)]
        if not np.isfinite(drawn).any():
            says = "not finite" if drawn else "not measured"
            axes.text(0.5, 0.5, says, color=GREY, ha="center", va="center", transform=axes.transAxes)
    return figure


def _number(line: Mapping[str, Any], key: str) -> float:
    """Return a number of a line of metrics.jsonl, which may be NaN or infinite."""
    value = arguments.plain(line.get(key))
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, int) and abs(value) > sys.float_info.max):
        raise UserError(f"learning_curves: {key}={shown(value)} in a line of history is not a number; give the lines of a metrics.jsonl.")
    return float(value)


def _draw_curve(axes: "Axes", points: Sequence[tuple[float, float]], label: str, color: str, marker: str, size: int, filled: bool) -> None:
    """Draw points (step, value), joined by a line unless they are few."""
    few, face = len(points) < _JOINED, color if filled else "none"
    style = {"marker": marker if len(points) <= _MARKED else "", "markersize": size if few else 4, "markerfacecolor": face}
    axes.plot(*zip(*points), color=color, linestyle="" if few else "-", linewidth=1.6, label=label, **style)


@checked_call()
def confusion_matrix(counts: ArrayLike, class_names: Sequence[str]) -> "Figure":
    """Draw a confusion matrix. Colours show shares of the true class.

    Up to 50 classes are named, more are numbered from 0. For up to 20 classes the cells are labelled with counts, or with percentages of
    the true class if any count exceeds 9,999, as those of pixels do.

    Args:
        counts: (num_classes, num_classes), examples or pixels; rows are the true class, columns the predicted one.
        class_names: One name per class.

    Returns:
        One panel with a colour bar.

    Raises:
        UserError: if `class_names` is empty, or `counts` does not have their shape or holds negative or infinite values or NaN.
    """
    counts = as_float("confusion_matrix", counts)
    classes = len(class_names)
    if counts.shape != (classes, classes):
        raise UserError(
            f"confusion_matrix: counts has shape {counts.shape} for {classes} class names; give a ({classes}, {classes}) array."
        )
    if not classes:
        raise UserError("confusion_matrix: class_names is empty; give one name per class.")
    wrong = counts[~((counts >= 0) & (counts < math.inf))]
    if len(wrong):
        raise UserError(f"confusion_matrix: counts holds {wrong[0]}, which is not a count; give finite numbers of 0 or more.")
    # The square root keeps rare mistakes visible.
    from matplotlib.colors import PowerNorm

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(0.42 * classes, 2.6), 7.5)
    figure = new_figure("confusion_matrix", side + 2.6, side + 1.7, layout="compressed")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    bar = figure.colorbar(image, ax=axes, label="share of the true class", ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], fraction=0.05, pad=0.03)
    bar.ax.minorticks_off()
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes <= 50:
        names = [truncate(name, 16) for name in class_names]
        rotation = 90 if max(map(len, names)) > 3 else 0
        size = 9 if classes <= 20 else 7
        axes.set_xticks(range(classes), names, rotation=rotation, size=size, parse_math=False)
        axes.set_yticks(range(classes), names, size=size, parse_math=False)
    else:
        axes.set(xlabel="predicted, by the number of the class", ylabel="true, by the number of the class")
    if classes <= 20:
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] > 0.3 else INK
            share = shares[row, column]
            text = f"{counts[row, column]:.0f}" if counts.max() < 10_000 else f"{100 * share:.0f}" if share >= 0.005 else ""
            axes.text(column, row, text, color=color, size=8, ha="center", va="center")
    return figure


@checked_call()
def prediction_grid(
    images: np.ndarray | jax.Array, labels: ArrayLike, probabilities: ArrayLike, class_names: Sequence[str], *, columns: int = 8
) -> "Figure":
    """Show images in the order given, each titled "true → predicted (probability)"; mistakes are red.

    Args:
        images: (n, height, width, channels), uint8, or floats in 0..1. 3 channels are shown as RGB, any other number by their mean.
        labels: (n,), the true classes, integers.
        probabilities: (n, num_classes), the predicted probabilities.
        class_names: One name per class.
        columns: Images per row.

    Returns:
        A grid with one panel per image.

    Raises:
        UserError: if there is no image, or the lengths differ.
    """
    images, labels, probabilities = np.asarray(images), np.asarray(labels), as_float("prediction_grid", probabilities)
    pictures = to_display(images, "prediction_grid")
    count, classes = len(images), len(class_names)
    if not count or labels.shape != (count,) or probabilities.shape != (count, classes):
        raise UserError(
            f"prediction_grid: images {images.shape}, labels {labels.shape}, probabilities {probabilities.shape} and {classes} class names "
            "do not match; give n > 0 images, (n,) labels and (n, classes) probabilities."
        )
    arguments.labels("prediction_grid", labels, classes)
    columns, predictions = min(columns, count), probabilities.argmax(1)
    titles = [_prediction_title(class_names[int(t)], class_names[int(p)], row[p]) for t, p, row in zip(labels, predictions, probabilities)]
    room = 0.36 if "\n" in "".join(titles) else 0.2
    figure, cells = image_grid("prediction_grid", math.ceil(count / columns), columns, 1.15, images.shape[1] / images.shape[2], room)
    for axes, image, title, wrong in zip(cells.flat, pictures, titles, predictions != labels):
        show_image(axes, image, cmap="gray", vmin=0, vmax=1)
        draw_frame(axes, RED if wrong else "#CCCCCC", 2 if wrong else 0.6)
        axes.set_title(title, size=8, pad=3, color=RED if wrong else INK, parse_math=False, linespacing=1.05)
    return figure


@checked_call()
def kernels(kernel: ArrayLike, *, max_kernels: int = 64) -> "Figure":
    """Draw the kernels of a layer, one per output channel, all on one scale that is symmetric about 0.

    Args:
        kernel: (*window, c_in, c_out). In 2-D and 3-D, 3 input channels are shown as RGB with 0 as mid-grey, any other number by their
            mean; the slices of a 3-D kernel are placed side by side. In 1-D, up to 3 input channels are drawn as separate lines, more by
            their mean.
        max_kernels: Maximum number of output channels that are drawn, from the first on.

    Returns:
        One panel with all kernels.

    Raises:
        UserError: if the kernel is empty or does not have 1 to 3 window axes, or max_kernels is below 1.
    """
    kernel = as_float("kernels", kernel)
    if kernel.ndim not in (3, 4, 5) or not kernel.size or max_kernels < 1:
        raise UserError(
            f"kernels: a kernel of shape {kernel.shape} with max_kernels={max_kernels} cannot be drawn; give (*window, c_in, c_out)."
        )
    *window, c_in, c_out = kernel.shape
    tiles: np.ndarray = np.moveaxis(kernel[..., :max_kernels], -1, 0)
    if c_in != 3 and not (len(window) == 1 and c_in < 3):
        tiles = tiles.mean(-1, keepdims=True)
    scale = float(np.abs(tiles[np.isfinite(tiles)]).max(initial=0)) or 1.0
    title = "first " * (len(tiles) < c_out) + f"{len(tiles)} of {c_out} kernels, {format_size((*window, c_in))}"
    title += "\nmean over input channels" * (c_in > tiles.shape[-1]) + _kernel_note(len(window), tiles.shape[-1], scale)
    aspect = 0.7 if len(window) == 1 else window[-2] / math.prod(window[:-2] + window[-1:])
    columns = min(len(tiles), 8 if aspect > 0.4 else 3)
    rows = math.ceil(len(tiles) / columns)
    cell = 0.8 if aspect > 0.4 else 2
    bar = 0.8 if len(window) > 1 and tiles.shape[-1] == 1 else 0
    height = cell * (aspect + 0.12) * rows + 0.4 + 0.18 * title.count("\n") + bar
    figure = new_figure("kernels", max(1.12 * cell * columns, 3.4) + 0.2, height, layout="compressed")
    axes = figure.add_subplot(aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, size=10, color=INK)
    corners = [(1.12 * (i % columns), (aspect + 0.12) * (i // columns)) for i in range(len(tiles))]
    (_kernel_lines if len(window) == 1 else _kernel_tiles)(axes, tiles, corners, aspect, scale)
    axes.set(xlim=(-0.06, 1.12 * columns - 0.06), ylim=((aspect + 0.12) * rows - 0.06, -0.06))
    return figure


@checked_call()
def feature_maps(maps: Mapping[str, ArrayLike], image: np.ndarray | jax.Array, *, channels: int = 6) -> "Figure":
    """Show the outputs of layers: one row per layer, with the image and the channels of the highest variance.

    Args:
        maps: Title, such as "conv_1, dilation 2", -> (height, width, channels).
        image: (height, width, channels), uint8, or floats in 0..1.
        channels: Number of channels shown per layer.

    Returns:
        One row of panels per layer; each channel has its own scale, from dark (lowest) to bright (highest).

    Raises:
        UserError: if there is no map, or one is not (height, width, channels).
    """
    arrays = {name: as_float("feature_maps", value) for name, value in maps.items()}
    invalid = next((f"{name!r} has shape {value.shape}" for name, value in arrays.items() if value.ndim != 3 or not value.size), None)
    if invalid or not arrays:
        raise UserError(f"feature_maps: {invalid or 'maps is empty'}; give name -> (height, width, channels).")
    picture = to_display(np.asarray(image)[None], "feature_maps")[0]
    # At least four columns, so that a title has room above few channels.
    figure, cells = image_grid("feature_maps", len(arrays), max(channels + 1, 4), 1.15, picture.shape[0] / picture.shape[1], 0.42)
    for row, (name, value) in zip(cells, arrays.items()):
        show_image(row[0], picture, cmap="gray", vmin=0, vmax=1)
        size = f"  ({format_size(value.shape)})"
        heading = truncate(name, int(10 * figure.get_figwidth()) - len(size)) + size
        corner = row[0].get_position()
        figure.text(corner.x0, corner.y1 + 0.2 / figure.get_figheight(), heading, size=10, weight="bold", color=INK, parse_math=False)
        row[0].set_title("image", size=8, pad=2, color=INK)
        # Of a channel with values that are not finite, the others are compared.
        variance = np.where(np.isfinite(value), value, 0).var((0, 1))
        for axes, channel in zip(row[1:], np.argsort(-variance, kind="stable")[:channels]):
            show_image(axes, value[..., channel], cmap="viridis")
            axes.set_title(f"channel {channel}", size=8, pad=2, color=INK)
    return figure


def _kernel_note(rank: int, channels: int, scale: float) -> str:
    """Return the explanation of kernels with `rank` window axes that are drawn with `channels` input channels."""
    if rank == 1:
        return (
            f"\none line per input channel, boxes from {-scale:.2g} to {scale:.2g}"
            if channels > 1
            else f"\nboxes from {-scale:.2g} to {scale:.2g}"
        )
    note = "\nslices side by side" * (rank == 3)
    return note + f"\nas RGB: 0 is mid-grey, black {-scale:.2g}, white {scale:.2g}" * (channels == 3)


def _kernel_tiles(axes: "Axes", kernel: np.ndarray, corners: list[tuple[float, float]], aspect: float, scale: float) -> None:
    """Draw kernels (n, *window, 1 or 3) as images of width 1, with values from -scale to scale."""
    colour = kernel.shape[-1] == 3
    for tile, (x, y) in zip(kernel, corners):
        flat = tile if tile.ndim == 3 else np.concatenate(list(tile), axis=1)
        image = axes.imshow(
            np.clip(0.5 + flat / (2 * scale), 0, 1) if colour else flat[..., 0],
            extent=(x, x + 1, y + aspect, y),
            cmap="RdBu_r",
            vmin=-scale,
            vmax=scale,
            interpolation="nearest",
        )
    if not colour:
        axes.figure.colorbar(image, ax=axes, label="weight", location="bottom", shrink=0.6, aspect=30, pad=0.03)


def _kernel_lines(axes: "Axes", kernel: np.ndarray, corners: list[tuple[float, float]], aspect: float, scale: float) -> None:
    """Draw kernels (n, window, channels) as lines in boxes of width 1, whose height spans -scale to scale."""
    from matplotlib.patches import Rectangle

    for taps, (x, y) in zip(kernel, corners):
        axes.add_patch(Rectangle((x, y), 1, aspect, facecolor="#F4F4F4"))
        axes.plot((x, x + 1), (y + aspect / 2,) * 2, color="#BBBBBB", linewidth=0.8)
        places = x + (np.arange(len(taps)) + 0.5) / len(taps)
        for channel, color in zip(taps.T, _LINES):
            axes.plot(places, y + aspect * (0.5 - 0.5 * channel / scale), color=color, marker="o", markersize=3, linewidth=1.2)


def _prediction_title(true: str, predicted: str, probability: float) -> str:
    line = f"{true} → {predicted} ({probability:.0%})"
    return line if len(line) <= 17 else f"{truncate(true, 18)}\n→ {truncate(predicted, 9)} ({probability:.0%})"
