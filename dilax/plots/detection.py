"""Plots of detection: boxes with names and scores on their images, and the precision of each class at every recall."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from dilax.annotated import checked_call
from dilax.errors import UserError
from dilax.plots.canvas import GREY, INK, as_float, image_grid, new_figure, show_image, to_display, truncate
from dilax.plots.segmentation import mask_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray | jax.Array

_WRITTEN = 60  # most boxes of an image beside which their names are written
_CURVES = 20  # most classes whose curves are drawn


@checked_call()
def detection_overlay(image: Array, boxes: ArrayLike, labels: ArrayLike, scores: ArrayLike, class_names: Sequence[str]) -> "Figure":
    """Show detected boxes on their image, each with its class and score, and a legend that counts those of each class.

    Args:
        image: (height, width, channels), uint8, or floats in 0..1.
        boxes: (n, 4), each (x_min, y_min, x_max, y_max): edges in pixels, so that the box of the whole image is (0, 0, width, height).
        labels: (n,), the class of each box; boxes of values that are not a class, such as -1, are not drawn.
        scores: (n,), in 0..1.
        class_names: One name per class.

    Returns:
        One panel with a legend below it; of more than 60 boxes, only the legend names the classes.

    Raises:
        UserError: if the shapes do not fit, or a box that is drawn is not finite.
    """
    caller = "detection_overlay"
    picture = to_display(np.asarray(image)[None], caller)[0]
    drawn = _drawn(caller, np.asarray(boxes)[None], np.asarray(labels)[None], np.asarray(scores)[None], 1, len(class_names))[0]
    figure, cells = image_grid(caller, 1, 1, 8.0 * min(1.0, picture.shape[1] / picture.shape[0]), picture.shape[0] / picture.shape[1], 0.0)
    show_image(cells[0, 0], picture, cmap="gray", vmin=0, vmax=1)
    _draw_boxes(cells[0, 0], drawn, class_names, size=8)
    counts = np.bincount([label for _, label, _ in drawn], minlength=len(class_names))
    _legend(figure, [(i, f"{truncate(class_names[i], 18)}  {count}") for i, count in enumerate(counts.tolist()) if count])
    return figure


@checked_call()
def detection_grid(
    images: Array,
    true_boxes: ArrayLike,
    true_labels: ArrayLike,
    boxes: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike,
    class_names: Sequence[str],
    titles: Sequence[str],
) -> "Figure":
    """Show images with their true and their detected boxes, one image per row, each under a title.

    Args:
        images: (n, height, width, channels), uint8, or floats in 0..1.
        true_boxes: (n, truths, 4), boxes as those of `detection_overlay`.
        true_labels: (n, truths), their classes; boxes of values that are not a class, such as -1, are not drawn.
        boxes: (n, detections, 4).
        labels: (n, detections).
        scores: (n, detections), in 0..1.
        class_names: One name per class.
        titles: n titles.

    Returns:
        n rows of two panels, truth and detections, with a legend of the classes below.

    Raises:
        UserError: if there is no image, the shapes do not fit, or a box that is drawn is not finite.
    """
    caller, images = "detection_grid", np.asarray(images)
    if images.ndim != 4 or not len(images) or len(titles) != len(images):
        raise UserError(
            f"{caller}: images {images.shape} and {len(titles)} titles do not match; give n > 0 images (n, height, width, channels) and "
            "n titles."
        )
    pictures, classes = to_display(images, caller), len(class_names)
    true = _drawn(caller, true_boxes, true_labels, None, len(images), classes)
    found = _drawn(caller, boxes, labels, scores, len(images), classes)
    aspect = images.shape[1] / images.shape[2]
    figure, cells = image_grid(caller, len(images), 2, max(4.4 / max(aspect, 1), 2.2), aspect, 0.22)
    for row, picture, *both, title in zip(cells, pictures, true, found, titles):
        for axes, drawn, text in zip(row, both, (title, "detections")):
            show_image(axes, picture, cmap="gray", vmin=0, vmax=1)
            _draw_boxes(axes, drawn, class_names, size=6)
            axes.set_title(truncate(text, 60), size=8, pad=3, color=INK, parse_math=False, loc="left")
    present = sorted({label for part in (true, found) for drawn in part for _, label, _ in drawn})
    _legend(figure, [(i, truncate(class_names[i], 18)) for i in present])
    return figure


@checked_call()
def precision_recall(precision: ArrayLike, class_names: Sequence[str], *, label: str = "") -> "Figure":
    """Draw the precision of each class against the recall, which equally spaced points from 0 to 1 divide.

    Args:
        precision: (points, classes), in 0..1, such as `dilax.detection_metrics.DetectionScores.curve` returns; NaN for a class that does
            not occur.
        class_names: One name per class.
        label: What the title says.

    Returns:
        One panel with a curve for each class, by falling mean, which the legend gives: the average precision; of more than 20 classes, the
        10 highest and the 10 lowest.

    Raises:
        UserError: if the shape does not fit the names, or a value is not in 0..1.
    """
    values = as_float("precision_recall", precision)
    if values.ndim != 2 or len(values) < 2 or values.shape[1] != len(class_names) or not len(class_names):
        raise UserError(
            f"precision_recall: precision has shape {values.shape} for {len(class_names)} class names; give (points, classes), with two or "
            "more points."
        )
    outside = values[(values < 0) | (values > 1)]
    if len(outside):
        raise UserError(f"precision_recall: precision holds {outside[0]:.4g}, which is not in 0..1; give shares, or NaN for no value.")
    means = values.mean(0)
    order = [int(i) for i in np.argsort(-means, kind="stable") if not np.isnan(means[i])]
    chosen = order if len(order) <= _CURVES else order[: _CURVES // 2] + order[-_CURVES // 2 :]
    figure = new_figure("precision_recall", 7.4, 4.4, layout="constrained")
    axes = figure.add_subplot()
    for i in chosen:
        name = f"{truncate(class_names[i], 20)}  {means[i]:.3f}"
        axes.plot(np.linspace(0, 1, len(values)), values[:, i], color=mask_colours(i + 1)[-1] / 255, linewidth=1.6, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    few = f"{len(chosen)} of {len(order)} classes, the highest and the lowest" if len(chosen) < len(order) else ""
    axes.set_title(truncate("; ".join(filter(None, (label, few))), 90), size=10, color=INK, parse_math=False)
    if chosen:
        legend = axes.legend(
            handles=axes.lines, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, title="average precision"
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        axes.text(0.5, 0.5, "no class occurs", color=GREY, ha="center", va="center")
    return figure


Drawn = list[tuple[list[float], int, str]]  # boxes with their classes, and scores in words


def _drawn(caller: str, boxes: Any, labels: Any, scores: Any, count: int, classes: int) -> list[Drawn]:
    """Return the boxes of each image that are drawn."""
    boxes, labels = as_float(caller, boxes), np.asarray(labels)
    points = np.zeros(labels.shape) if scores is None else as_float(caller, scores)
    if boxes.ndim != 3 or boxes.shape != (count, *labels.shape[1:], 4) or labels.shape != points.shape or labels.dtype.kind not in "iu":
        shown = ", ".join(str(each.shape[1:] if count == 1 else each.shape) for each in (boxes, labels, points))
        raise UserError(
            f"{caller}: boxes, labels and scores of shapes {shown} do not fit; give (n, 4), (n,) integers and (n,) of each image."
        )
    known = (labels >= 0) & (labels < classes)
    if not np.isfinite(boxes[known]).all():
        raise UserError(f"{caller}: boxes hold {boxes[known][~np.isfinite(boxes[known])][0]}; give finite numbers of pixels.")
    return [
        [(boxes[i, j].tolist(), int(labels[i, j]), "" if scores is None else f" {points[i, j]:.2f}") for j in np.flatnonzero(known[i])]
        for i in range(count)
    ]


def _draw_boxes(axes: "Axes", drawn: Drawn, class_names: Sequence[str], *, size: float) -> None:
    """Draw boxes on an image, the last beneath, with names unless there are too many."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    width = size / 5
    outline = withStroke(linewidth=width + 1.2, foreground="white", alpha=0.8)  # seen on an image of the colour of the box, too
    margin = 0.04 * axes.get_ylim()[0]  # within which a name above a box would be cut off
    for (left, top, right, bottom), label, score in reversed(drawn):
        colour = mask_colours(label + 1)[-1] / 255
        corner = left - 0.5, top - 0.5  # pixels are centred on whole numbers
        axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width, path_effects=[outline]))
        if len(drawn) <= _WRITTEN:
            axes.text(
                *corner,
                f"{truncate(class_names[label], 14)}{score}",
                size=size,
                color="white" if colour.mean() < 0.6 else INK,
                va="bottom" if top > margin else "top",
                clip_on=True,
                parse_math=False,
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
            )


def _legend(figure: "Figure", entries: Sequence[tuple[int, str]]) -> None:
    """Make room below all axes, and put a legend of some classes there."""
    from matplotlib.patches import Patch

    columns = max(2, int(figure.get_figwidth() / 1.8))
    shown = list(entries)[: 4 * columns]
    names = [name for _, name in shown] + [f"and {len(entries) - len(shown)} more"] * (len(entries) > len(shown))
    room, old = 0.24 * -(-max(1, len(names)) // columns) + 0.1, figure.get_figheight()
    figure.set_figheight(old + room)
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position((box.x0, (box.y0 * old + room) / (old + room), box.width, box.height * old / (old + room)))
    patches = [Patch(facecolor=mask_colours(i + 1)[-1] / 255, label=name) for i, name in shown]
    patches += [Patch(alpha=0, label=name) for name in names[len(shown) :]] or [Patch(alpha=0, label="no boxes")] * (not names)
    legend = figure.legend(handles=patches, frameon=False, loc="lower center", ncols=columns, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
