"""Plots of segmentation: masks blended with images, grids of predictions, and the score of each class."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from dilax.errors import UserError
from dilax.plots.canvas import BLUE, GREY, INK, image_grid, new_figure, show_image, to_display, truncate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray | jax.Array

# Hues a golden angle apart, in turn light, dark and medium, so that consecutive colours differ in both.
_GOLDEN, _LEVELS = 0.618034, ((0.85, 0.95), (0.9, 0.6), (0.5, 0.85))


def mask_colours(num_classes: int) -> np.ndarray:
    """Return one RGB colour per class, (num_classes, 3) uint8. The colour of a class does not depend on the number of classes.

    Example:
        >>> mask_colours(2).tolist()
        [[36, 36, 242], [55, 153, 15]]
    """
    hsv = [((0.666667 + i * _GOLDEN) % 1, *_LEVELS[i % len(_LEVELS)]) for i in range(num_classes)]
    return np.round([255 * np.array(colorsys.hsv_to_rgb(*colour)) for colour in hsv]).astype(np.uint8).reshape(num_classes, 3)


def blend_mask(image: Array, mask: Array, num_classes: int, *, opacity: float = 0.6) -> np.ndarray:
    """Blend the colours of a mask with an image.

    Args:
        image: (height, width, channels), uint8, or floats in 0..1.
        mask: (height, width), classes below num_classes. Other values, such as an ignored label, leave the image unchanged.
        num_classes: Number of classes.
        opacity: Opacity of the mask, in 0..1.

    Returns:
        (height, width, 3), floats in 0..1.

    Raises:
        UserError: if the image and the mask differ in size.
    """
    image, mask = np.asarray(image), np.asarray(mask)
    if image.ndim != 3 or mask.shape != image.shape[:2]:
        raise UserError(
            f"segmentation_overlay: a mask of shape {mask.shape} does not fit an image of shape {image.shape}; "
            "give (height, width) and (height, width, channels)."
        )
    picture = to_display(image[None], "segmentation_overlay")[0]
    picture = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
    colours = np.concatenate([mask_colours(num_classes) / 255, np.zeros((1, 3))])
    known = (mask >= 0) & (mask < num_classes)
    alpha = opacity * known[..., None]
    return picture * (1 - alpha) + colours[np.where(known, mask, num_classes)] * alpha


def segmentation_overlay(image: Array, mask: Array, class_names: Sequence[str], *, opacity: float = 0.6) -> "Figure":
    """Show a mask over its image, with a legend of the classes that occur and the share of the image that each covers.

    Args:
        image: (height, width, channels), uint8, or floats in 0..1.
        mask: (height, width), classes. Values that are not a class, such as an ignored label, show the image.
        class_names: One name per class.
        opacity: Opacity of the mask, in 0..1.

    Returns:
        One panel, with the legend to its right.

    Raises:
        UserError: if the image and the mask differ in size.
    """
    picture = blend_mask(image, mask, len(class_names), opacity=opacity)
    shares = np.array([(np.asarray(mask) == i).mean() for i in range(len(class_names))])
    order: list[int] = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
    labels = [f"{truncate(class_names[i], 20)}  {shares[i]:.1%}" for i in order]
    height, width = picture.shape[:2]
    wide = 6.0 if width >= height else 6.0 * max(width / height, 0.4)
    legend = 0.6 + 0.09 * max(map(len, labels)) if labels else 0.2
    tall = max(wide * height / width, 0.24 * len(labels) + 0.3)
    figure = new_figure(wide + legend + 0.2, tall + 0.2)
    total = figure.get_figwidth(), figure.get_figheight()
    drawn = wide * height / width
    axes = figure.add_axes((0.1 / total[0], (total[1] - 0.1 - drawn) / total[1], wide / total[0], drawn / total[1]))
    axes.set_axis_off()
    show_image(axes, picture)
    if labels:
        figure.legend(
            handles=_patches(order, labels, len(class_names)),
            loc="upper left",
            bbox_to_anchor=((wide + 0.15) / total[0], 1 - 0.02 / total[1]),
            frameon=False,
            fontsize=10,
        )
    return figure


def segmentation_grid(images: Array, truths: Array, predictions: Array, class_names: Sequence[str], titles: Sequence[str]) -> "Figure":
    """Show images with their true and predicted masks, one image per row, each under a title.

    Args:
        images: (n, height, width, channels), uint8, or floats in 0..1.
        truths: (n, height, width), classes. Values that are not a class, such as an ignored label, show the image.
        predictions: (n, height, width), classes.
        class_names: One name per class.
        titles: n titles.

    Returns:
        n rows of three panels: image, truth and prediction, with a legend of the classes below.

    Raises:
        UserError: if there is no image, or the lengths differ.
    """
    images, truths, predictions = np.asarray(images), np.asarray(truths), np.asarray(predictions)
    count, classes = len(images), len(class_names)
    if not count or not truths.shape == predictions.shape == images.shape[:3] or len(titles) != count:
        raise UserError(
            f"segmentation_grid: images {images.shape}, truths {truths.shape}, predictions {predictions.shape} and {len(titles)} titles do "
            "not match; give n > 0 images, masks (n, height, width) and n titles."
        )
    aspect = images.shape[1] / images.shape[2]
    figure, cells = image_grid(count, 3, max(2.6 / max(aspect, 1), 1.6), aspect, 0.22)
    for row, image, truth, prediction, title in zip(cells, images, truths, predictions, titles):
        picture = to_display(image[None], "segmentation_grid")[0]
        show_image(row[0], picture, cmap="gray", vmin=0, vmax=1)
        show_image(row[1], blend_mask(image, truth, classes))
        show_image(row[2], blend_mask(image, prediction, classes))
        for axes, text in zip(row, (title, "truth", "prediction")):
            axes.set_title(truncate(text, 40), size=8, pad=3, color=INK, parse_math=False, loc="left")
    present = [i for i in range(classes) if (truths == i).any() or (predictions == i).any()]
    _legend_below(figure, present, class_names)
    return figure


def segmentation_comparison(image: Array | None, masks: Mapping[str, Array], class_names: Sequence[str]) -> "Figure":
    """Show one image and several masks of it, such as the truth and the predictions of several models, with a legend of the classes.

    Args:
        image: (height, width, channels), uint8, or floats in 0..1; None shows the masks alone.
        masks: Title -> (height, width), classes. Values that are not a class, such as an ignored label, show the image.
        class_names: One name per class.

    Returns:
        Panels in three columns, the image first, with the legend below.

    Raises:
        UserError: if there is no mask, or a mask differs from the image in size.
    """
    if not masks:
        raise UserError("segmentation_comparison: masks is empty; give title -> (height, width).")
    classes, arrays = len(class_names), {title: np.asarray(mask) for title, mask in masks.items()}
    pictures = {}
    if image is not None:
        pictures["image"] = to_display(np.asarray(image)[None], "segmentation_comparison")[0]
    background = np.ones((*next(iter(arrays.values())).shape, 1)) if image is None else image
    pictures |= {title: blend_mask(background, mask, classes, opacity=1.0 if image is None else 0.6) for title, mask in arrays.items()}
    height, width = next(iter(arrays.values())).shape
    figure, cells = image_grid(math.ceil(len(pictures) / 3), min(3, len(pictures)), 2.9, height / width, 0.24)
    for axes, (title, picture) in zip(cells.ravel(), pictures.items()):
        show_image(axes, picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(truncate(title, 48), size=9, pad=3, color=INK, parse_math=False, loc="left")
    _legend_below(figure, [i for i in range(classes) if any((mask == i).any() for mask in arrays.values())], class_names)
    return figure


def class_bars(values: ArrayLike, class_names: Sequence[str], *, label: str = "intersection over union") -> "Figure":
    """Draw one bar per class, sorted from the highest value to the lowest, and the mean as a line.

    Args:
        values: (num_classes,), in 0..1; NaN for a class that does not occur, which is excluded from the mean.
        class_names: One name per class.
        label: Label of the axis.

    Returns:
        One panel of horizontal bars, each with its value.

    Raises:
        UserError: if there is not exactly one value per class.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(class_names),) or not len(class_names):
        raise UserError(f"class_bars: values has shape {values.shape} for {len(class_names)} class names; give one value per class.")
    order = np.argsort(np.where(np.isnan(values), -1, values), kind="stable")
    figure = new_figure(7, 0.27 * len(values) + 0.9, layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(values)), np.nan_to_num(values[order]), color=BLUE, height=0.72)
    for place, value in enumerate(values[order]):
        text = "does not occur" if math.isnan(value) else f"{value:.3f}"
        axes.text(np.nan_to_num(value) + 0.008, place, text, color=GREY if math.isnan(value) else INK, size=9, va="center")
    axes.set_yticks(range(len(values)), [truncate(class_names[int(i)], 24) for i in order], parse_math=False)
    axes.set(xlim=(0, 1.08), ylim=(-0.6, len(values) - 0.4), xlabel=label)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.spines[["top", "right"]].set_visible(False)
    if not np.isnan(values).all():
        mean = float(np.nanmean(values))
        axes.axvline(mean, color=GREY, linestyle="--", linewidth=1)
        axes.set_title(f"mean {mean:.3f}", size=10, color=INK)
    return figure


def _patches(classes: Sequence[int], labels: Sequence[str], num_classes: int) -> list[Any]:
    """Return the handles of a legend."""
    from matplotlib.patches import Patch

    colours = mask_colours(num_classes) / 255
    return [Patch(facecolor=tuple(colours[i]), label=label) for i, label in zip(classes, labels)]


def _legend_below(figure: "Figure", classes: Sequence[int], class_names: Sequence[str]) -> None:
    """Make room below all axes and put a legend there."""
    columns = max(2, int(figure.get_figwidth() / 1.5))
    names = [truncate(class_names[i], 18) for i in classes]
    room = 0.24 * math.ceil(len(names) / columns) + 0.1
    old = figure.get_figheight()
    figure.set_figheight(old + room)
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position((box.x0, (box.y0 * old + room) / (old + room), box.width, box.height * old / (old + room)))
    if names:
        figure.legend(handles=_patches(classes, names, len(class_names)), loc="lower center", ncols=columns, frameon=False, fontsize=9)
