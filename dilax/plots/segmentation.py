"""Plots of segmentation: masks blended with images, grids of predictions, and the score of each class."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from dilax.annotated import checked_call
from dilax.errors import UserError
from dilax.plots.canvas import BLUE, GREY, INK, as_float, image_grid, new_figure, show_image, to_display, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray | jax.Array

# Hues a golden angle apart, in turn light, dark and medium, so that consecutive colours differ in both.
_GOLDEN, _LEVELS = 0.618034, ((0.85, 0.95), (0.9, 0.6), (0.5, 0.85))
_NAMED = 30  # most classes that a legend names
_BARS = 60  # most classes that have a bar
_TRACED = 600  # samples along the longer side of a mask that outlines follow: no picture shows more


@checked_call(num_classes=0)
def mask_colours(num_classes: int) -> np.ndarray:
    """Return one RGB colour per class, (num_classes, 3) uint8. The colour of a class does not depend on the number of classes.

    Example:
        >>> mask_colours(2).tolist()
        [[36, 36, 242], [55, 153, 15]]
    """
    hsv = [((0.666667 + i * _GOLDEN) % 1, *_LEVELS[i % len(_LEVELS)]) for i in range(num_classes)]
    return np.round([255 * np.array(colorsys.hsv_to_rgb(*colour)) for colour in hsv]).astype(np.uint8).reshape(num_classes, 3)


def blend_mask(
    image: Array,
    mask: Array,
    num_classes: int,
    *,
    opacity: float = 0.6,
    background: int | None = 0,
    caller: str = "segmentation_overlay",
) -> np.ndarray:
    """Blend the colours of a mask with an image.

    Args:
        image: (height, width, channels), uint8, or floats in 0..1.
        mask: (height, width), classes below num_classes. Other values, such as an ignored label, leave the image unchanged.
        num_classes: Number of classes.
        opacity: Opacity of the mask, in 0..1.
        background: Class that leaves the image unchanged, too; None colours all.
        caller: Name that error messages start with.

    Returns:
        (height, width, 3), floats in 0..1.

    Raises:
        UserError: if the image and the mask differ in size, the mask does not hold integers, or the opacity is out of range.
    """
    image, mask = np.asarray(image), np.asarray(mask)
    if not 0 <= opacity <= 1:
        raise UserError(f"{caller}: opacity={opacity} is not in the range 0 <= opacity <= 1.")
    if mask.dtype.kind not in "iub":
        raise UserError(f"{caller}: a mask has dtype {mask.dtype}; give the number of the class of each pixel, such as uint8.")
    if image.ndim != 3 or mask.shape != image.shape[:2]:
        raise UserError(
            f"{caller}: a mask of shape {mask.shape} does not fit an image of shape {image.shape}; "
            "give (height, width) and (height, width, channels)."
        )
    picture = to_display(image[None], caller)[0]
    picture = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
    colours = np.concatenate([mask_colours(num_classes) / 255, np.zeros((1, 3))])
    known = _coloured(mask, num_classes, background)
    alpha = opacity * known[..., None]
    return picture * (1 - alpha) + colours[np.where(known, mask, num_classes)] * alpha


@checked_call(background=0)
def segmentation_overlay(
    image: Array, mask: Array, class_names: Sequence[str], *, opacity: float = 0.6, background: int | None = 0
) -> "Figure":
    """Show a mask over its image, with a legend of the classes that occur and the share of the image that each covers.

    Args:
        image: (height, width, channels), uint8, or floats in 0..1.
        mask: (height, width), classes. Values that are not a class, such as an ignored label, show the image.
        class_names: One name per class.
        opacity: Opacity of the mask, in 0..1.
        background: Class that shows the image, too, as a blank box in the legend; None colours all classes.

    Returns:
        One panel with outlines in the full colours of the classes, and the legend to its right. A box of the legend has the mean colour
        that its class has in the panel. Up to 30 classes are named, those with the largest shares.

    Raises:
        UserError: if the image and the mask differ in size.
    """
    classes, mask = len(class_names), np.asarray(mask)
    picture = blend_mask(image, mask, classes, opacity=opacity, background=background)
    shares = np.array([(mask == i).mean() for i in range(classes)])
    order: list[int] = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
    labels = [f"{truncate(class_names[i], 20)}  {shares[i]:.1%}" for i in order[:_NAMED]]
    if order[_NAMED:]:
        labels.append(f"and {len(order) - _NAMED} more  {shares[order[_NAMED:]].sum():.1%}")
    height, width = picture.shape[:2]
    wide = 6.0 if width >= height else 6.0 * max(width / height, 0.4)
    legend = 0.6 + 0.09 * max(map(len, labels)) if labels else 0.2
    tall = max(wide * height / width, 0.24 * len(labels) + 0.3)
    figure = new_figure("segmentation_overlay", wide + legend + 0.2, tall + 0.2)
    total = figure.get_figwidth(), figure.get_figheight()
    drawn = wide * height / width
    axes = figure.add_axes((0.1 / total[0], (total[1] - 0.1 - drawn) / total[1], wide / total[0], drawn / total[1]))
    axes.set_axis_off()
    show_image(axes, picture)
    _draw_outlines(axes, mask, classes, background)
    corner = ((wide + 0.15) / total[0], 1 - 0.02 / total[1])
    colours = _mean_colours([(picture, mask)], order, background)
    _add_legend(figure, labels, colours, loc="upper left", bbox_to_anchor=corner, fontsize=10)
    return figure


@checked_call(background=0)
def segmentation_grid(
    images: Array, truths: Array, predictions: Array, class_names: Sequence[str], titles: Sequence[str], *, background: int | None = 0
) -> "Figure":
    """Show images with their true and predicted masks, one image per row, each under a title.

    Args:
        images: (n, height, width, channels), uint8, or floats in 0..1.
        truths: (n, height, width), classes. Values that are not a class, such as an ignored label, show the image.
        predictions: (n, height, width), classes.
        class_names: One name per class.
        titles: n titles.
        background: As `segmentation_overlay`.

    Returns:
        n rows of three panels: image, truth and prediction, with outlines and a legend as those of `segmentation_overlay` below.

    Raises:
        UserError: if there is no image, or the lengths differ.
    """
    images, truths, predictions = np.asarray(images), np.asarray(truths), np.asarray(predictions)
    count, classes = len(np.atleast_1d(images)), len(class_names)
    if not count or images.ndim != 4 or not truths.shape == predictions.shape == images.shape[:3] or len(titles) != count:
        raise UserError(
            f"segmentation_grid: images {images.shape}, truths {truths.shape}, predictions {predictions.shape} and {len(titles)} titles do "
            "not match; give n > 0 images, masks (n, height, width) and n titles."
        )
    pictures = to_display(images, "segmentation_grid")
    aspect = images.shape[1] / images.shape[2]
    cell = max(2.6 / max(aspect, 1), 1.6)
    figure, cells = image_grid("segmentation_grid", count, 3, cell, aspect, 0.22)
    shown = []
    for row, picture, image, truth, prediction, title in zip(cells, pictures, images, truths, predictions, titles):
        show_image(row[0], picture, cmap="gray", vmin=0, vmax=1)
        for axes, mask in zip(row[1:], (truth, prediction)):
            shown.append((blend_mask(image, mask, classes, background=background, caller="segmentation_grid"), mask))
            show_image(axes, shown[-1][0])
            _draw_outlines(axes, mask, classes, background)
        for axes, text in zip(row, (title, "truth", "prediction")):
            axes.set_title(truncate(text, int(15 * cell)), size=8, pad=3, color=INK, parse_math=False, loc="left")
    _legend_below(figure, shown, class_names, background)
    return figure


@checked_call(background=0)
def segmentation_comparison(
    image: Array | None, masks: Mapping[str, Array], class_names: Sequence[str], *, background: int | None = 0
) -> "Figure":
    """Show one image and several masks of it, such as the truth and the predictions of several models, with a legend of the classes.

    Args:
        image: (height, width, channels), uint8, or floats in 0..1; None shows the masks alone, all of their classes coloured.
        masks: Title -> (height, width), classes. Values that are not a class, such as an ignored label, show the image.
        class_names: One name per class.
        background: As `segmentation_overlay`.

    Returns:
        Panels in three columns, the image first, with outlines and a legend as those of `segmentation_overlay` below.

    Raises:
        UserError: if there is no mask, or a mask differs from the image in size.
    """
    caller = "segmentation_comparison"
    if not masks:
        raise UserError(f"{caller}: masks is empty; give title -> (height, width).")
    classes, arrays = len(class_names), {title: np.asarray(mask) for title, mask in masks.items()}
    shape = next(iter(arrays.values())).shape
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{caller}: a mask has shape {shape}; give (height, width) with at least one pixel.")
    height, width = shape
    canvas, opacity = (np.ones((height, width, 1)), 1.0) if image is None else (image, 0.6)
    background = None if image is None else background
    shown = [(blend_mask(canvas, mask, classes, opacity=opacity, background=background, caller=caller), mask) for mask in arrays.values()]
    pictures = [] if image is None else [("image", to_display(np.asarray(image)[None], caller)[0])]
    pictures += zip(arrays, (picture for picture, _ in shown))
    figure, cells = image_grid(caller, math.ceil(len(pictures) / 3), min(3, len(pictures)), 2.9, height / width, 0.24)
    for axes, (title, picture) in zip(cells.ravel(), pictures):
        show_image(axes, picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(truncate(title, 40), size=9, pad=3, color=INK, parse_math=False, loc="left")
    if image is not None:
        for axes, mask in zip(cells.ravel()[1:], arrays.values()):
            _draw_outlines(axes, mask, classes, background)
    _legend_below(figure, shown, class_names, background)
    return figure


@checked_call()
def class_bars(values: ArrayLike, class_names: Sequence[str], *, label: str = "intersection over union") -> "Figure":
    """Draw one bar per class, sorted from the highest value to the lowest, and the mean as a line.

    Args:
        values: (num_classes,), in 0..1; NaN for a class that does not occur, which is excluded from the mean.
        class_names: One name per class.
        label: Label of the axis.

    Returns:
        One panel of horizontal bars, each with its value; of more than 60 classes, the 30 highest and the 30 lowest.

    Raises:
        UserError: if there is not exactly one value per class, or one is not in 0..1.
    """
    values = as_float("class_bars", values)
    if values.shape != (len(class_names),) or not len(class_names):
        raise UserError(f"class_bars: values has shape {values.shape} for {len(class_names)} class names; give one value per class.")
    outside = values[(values < 0) | (values > 1)]
    if len(outside):
        raise UserError(f"class_bars: values hold {outside[0]:.4g}, which is not in 0..1; scale them first, or give NaN for no value.")
    order = np.argsort(np.where(np.isnan(values), -1, values), kind="stable")
    every = len(order) <= _BARS
    if not every:
        order = np.concatenate([order[: _BARS // 2], order[-_BARS // 2 :]])
    figure = new_figure("class_bars", 7, 0.27 * len(order) + 0.9, layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(order)), np.nan_to_num(values[order]), color=BLUE, height=0.72)
    for place, value in enumerate(values[order]):
        text = "does not occur" if math.isnan(value) else f"{value:.3f}"
        axes.text(np.nan_to_num(value) + 0.008, place, text, color=GREY if math.isnan(value) else INK, size=9, va="center")
    axes.set_yticks(range(len(order)), [truncate(class_names[int(i)], 24) for i in order], parse_math=False)
    axes.set(xlim=(0, 1.08), ylim=(-0.6, len(order) - 0.4))
    axes.set_xlabel(truncate(label, 80), parse_math=False)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.spines[["top", "right"]].set_visible(False)
    left_out = [] if every else [f"the {_BARS // 2} highest and the {_BARS // 2} lowest of {len(values)} classes"]
    if not np.isnan(values).all():
        mean = float(np.nanmean(values))
        axes.axvline(mean, color=GREY, linestyle="--", linewidth=1, zorder=0)
        left_out.insert(0, f"mean {mean:.3f}")
    axes.set_title("; ".join(left_out), size=10, color=INK)
    return figure


def _coloured(mask: np.ndarray, num_classes: int, background: int | None) -> np.ndarray:
    """Return which pixels have a colour."""
    known = (mask >= 0) & (mask < num_classes)
    return known if background is None else known & (mask != background)


def _draw_outlines(axes: "Axes", mask: np.ndarray, num_classes: int, background: int | None) -> None:
    """Draw the borders between classes, in the full colour of the higher class of the two; those without a colour are below all others."""
    from matplotlib.collections import LineCollection

    step = math.ceil(max(mask.shape) / _TRACED)
    labels = np.where(_coloured(mask, num_classes, background), mask.astype(np.int64), -1)[::step, ::step]
    lines, classes = [], []
    for axis, grid in enumerate((labels, labels.T)):
        pairs = np.stack([grid[:-1], grid[1:]])
        edges = np.where(pairs[0] != pairs[1], pairs.max(0), -1)
        # Neighbouring edges of one class are one line; a column of -1 ends the last line of a row.
        ends = np.pad(edges, ((0, 0), (1, 1)), constant_values=-1)
        rows, starts = np.nonzero((ends[:, 1:-1] != ends[:, :-2]) & (edges >= 0))
        stops = np.nonzero((ends[:, 1:-1] != ends[:, 2:]) & (edges >= 0))[1] + 1
        across, along = np.stack([rows + 1, rows + 1], 1), np.stack([starts, stops], 1)
        lines.append(np.stack([along, across] if axis == 0 else [across, along], -1))
        classes.append(edges[rows, starts])
    colours = mask_colours(num_classes) / 255
    border = LineCollection(list(np.concatenate(lines) * step - 0.5), colors=colours[np.concatenate(classes)], linewidths=1.2)
    axes.add_collection(border, autolim=False)


def _mean_colours(shown: Sequence[tuple[np.ndarray, np.ndarray]], classes: Sequence[int], background: int | None) -> list[Any]:
    """Return the mean colour of each class over pictures and their masks; "none" for the background."""
    means: list[Any] = []
    for i in classes[:_NAMED]:
        pixels = np.concatenate([picture[mask == i] for picture, mask in shown])
        means.append("none" if i == background else tuple(pixels.mean(0)))
    return means


def _add_legend(figure: "Figure", labels: Sequence[str], colours: Sequence[Any], **options: Any) -> None:
    """Add a legend; labels without a colour have no box."""
    from matplotlib.patches import Patch

    if not labels:
        return
    boxes = [Patch(facecolor=colour, edgecolor=GREY if colour == "none" else colour, label=label) for label, colour in zip(labels, colours)]
    rest = [Patch(alpha=0, label=label) for label in labels[len(boxes) :]]
    legend = figure.legend(handles=[*boxes, *rest], frameon=False, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _legend_below(
    figure: "Figure", shown: Sequence[tuple[np.ndarray, np.ndarray]], class_names: Sequence[str], background: int | None
) -> None:
    """Make room below all axes, and put a legend of the classes in the masks there."""
    present = np.unique(np.concatenate([np.unique(mask) for _, mask in shown]))
    classes = [int(i) for i in present if 0 <= i < len(class_names)]
    columns = max(2, int(figure.get_figwidth() / 1.5))
    names = [truncate(class_names[i], 18) for i in classes[:_NAMED]] + [f"and {len(classes) - _NAMED} more"] * (len(classes) > _NAMED)
    room = 0.24 * math.ceil(len(names) / columns) + 0.1
    old = figure.get_figheight()
    figure.set_figheight(old + room)
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position((box.x0, (box.y0 * old + room) / (old + room), box.width, box.height * old / (old + room)))
    _add_legend(figure, names, _mean_colours(shown, classes, background), loc="lower center", ncols=columns, fontsize=9)
