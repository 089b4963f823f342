"""Pictures of segmentation: masks laid over images, the worst images, the score of each class."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dilax.errors import UserError
from dilax.plots.canvas import BLUE, GREY, INK, displayable, grid, new_figure, short, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Hues a golden angle apart, in turn light, dark and middle: neighbours in the list differ in both.
_GOLDEN, _LEVELS = 0.618034, ((0.85, 0.95), (0.9, 0.6), (0.5, 0.85))


def mask_colours(count: int) -> np.ndarray:
    """Return one colour for each class, (count, 3) uint8; a class has the same one however many there are.

    Example:
        >>> mask_colours(2).tolist()
        [[36, 36, 242], [55, 153, 15]]
    """
    hsv = [((0.666667 + i * _GOLDEN) % 1, *_LEVELS[i % len(_LEVELS)]) for i in range(count)]
    return np.round([255 * np.array(colorsys.hsv_to_rgb(*colour)) for colour in hsv]).astype(np.uint8).reshape(count, 3)


def blended(image: Any, mask: Any, count: int, *, opacity: float = 0.6) -> np.ndarray:
    """Lay the colours of a mask over an image.

    Args:
        image: (height, width, channels), uint8, or floats between 0 and 1.
        mask: (height, width), classes below `count`; others, such as an ignored label, leave the image as it is.
        count: Number of classes.
        opacity: Of the colours.

    Returns:
        (height, width, 3), floats between 0 and 1.

    Raises:
        UserError: if the two are of different sizes.
    """
    image, mask = np.asarray(image), np.asarray(mask)
    if image.ndim != 3 or mask.shape != image.shape[:2]:
        raise UserError(
            f"segmentation_overlay: a mask of shape {mask.shape} does not fit an image of shape {image.shape}; "
            "give (height, width) and (height, width, channels)."
        )
    picture = displayable(image[None], "segmentation_overlay")[0]
    picture = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
    colours = np.concatenate([mask_colours(count) / 255, np.zeros((1, 3))])
    known = (mask >= 0) & (mask < count)
    share = opacity * known[..., None]
    return picture * (1 - share) + colours[np.where(known, mask, count)] * share


def segmentation_overlay(image: Any, mask: Any, class_names: Sequence[str], *, opacity: float = 0.6) -> "Figure":
    """Show a mask over its image, with a legend of the classes in it and the share of the image that each has.

    Args:
        image: As `blended`; so are mask and opacity.
        mask: (height, width).
        class_names: One for each class.
        opacity: Of the colours.

    Raises:
        UserError: if image and mask are of different sizes.
    """
    picture = blended(image, mask, len(class_names), opacity=opacity)
    shares = np.array([(np.asarray(mask) == i).mean() for i in range(len(class_names))])
    order: list[int] = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
    labels = [f"{short(class_names[i], 20)}  {shares[i]:.1%}" for i in order]
    height, width = picture.shape[:2]
    wide = 6.0 if width >= height else 6.0 * max(width / height, 0.4)
    legend = 0.6 + 0.09 * max(map(len, labels)) if labels else 0.2
    tall = max(wide * height / width, 0.24 * len(labels) + 0.3)
    figure = new_figure(wide + legend + 0.2, tall + 0.2)
    total = figure.get_figwidth(), figure.get_figheight()
    drawn = wide * height / width
    axes = figure.add_axes((0.1 / total[0], (total[1] - 0.1 - drawn) / total[1], wide / total[0], drawn / total[1]))
    axes.set_axis_off()
    show(axes, picture)
    if labels:
        figure.legend(
            handles=_patches(order, labels, len(class_names)),
            loc="upper left",
            bbox_to_anchor=((wide + 0.15) / total[0], 1 - 0.02 / total[1]),
            frameon=False,
            fontsize=10,
        )
    return figure


def segmentation_grid(images: Any, truths: Any, predictions: Any, class_names: Sequence[str], titles: Sequence[str]) -> "Figure":
    """Show images, their true masks and the predicted ones, a row each, under a title.

    Args:
        images: (n, height, width, channels), uint8, or floats between 0 and 1.
        truths: (n, height, width), classes; others, such as an ignored label, show the image.
        predictions: (n, height, width), classes.
        class_names: One for each class.
        titles: n.

    Raises:
        UserError: if there is no image, or the lengths differ.
    """
    images, truths, predictions = np.asarray(images), np.asarray(truths), np.asarray(predictions)
    count, classes = len(images), len(class_names)
    if not count or not truths.shape == predictions.shape == images.shape[:3] or len(titles) != count:
        raise UserError(
            f"segmentation_grid: images {images.shape}, truths {truths.shape}, predictions {predictions.shape} and {len(titles)} titles do "
            "not fit; give n > 0 images, masks (n, height, width) and n titles."
        )
    aspect = images.shape[1] / images.shape[2]
    figure, cells = grid(count, 3, max(2.6 / max(aspect, 1), 1.6), aspect, 0.22)
    for row, image, truth, prediction, title in zip(cells, images, truths, predictions, titles):
        picture = displayable(image[None], "segmentation_grid")[0]
        show(row[0], picture, cmap="gray", vmin=0, vmax=1)
        show(row[1], blended(image, truth, classes))
        show(row[2], blended(image, prediction, classes))
        for axes, text in zip(row, (title, "truth", "prediction")):
            axes.set_title(short(text, 40), size=8, pad=3, color=INK, parse_math=False, loc="left")
    present = [i for i in range(classes) if (truths == i).any() or (predictions == i).any()]
    _legend_below(figure, present, class_names)
    return figure


def segmentation_comparison(image: Any, masks: Mapping[str, Any], class_names: Sequence[str]) -> "Figure":
    """Show one image and several masks of it, such as the truth and what models make of it, in columns of three, with a legend.

    Args:
        image: As `blended`; None shows the masks alone.
        masks: Title -> (height, width).
        class_names: One for each class.

    Raises:
        UserError: if there is no mask, or one is of another size than the image.
    """
    if not masks:
        raise UserError("segmentation_comparison: masks is empty; give at least one, by its title.")
    classes, arrays = len(class_names), {title: np.asarray(mask) for title, mask in masks.items()}
    pictures = {}
    if image is not None:
        pictures["image"] = displayable(np.asarray(image)[None], "segmentation_comparison")[0]
    under = np.ones((*next(iter(arrays.values())).shape, 1)) if image is None else image
    pictures |= {title: blended(under, mask, classes, opacity=1.0 if image is None else 0.6) for title, mask in arrays.items()}
    height, width = next(iter(arrays.values())).shape
    figure, cells = grid(math.ceil(len(pictures) / 3), min(3, len(pictures)), 2.9, height / width, 0.24)
    for axes, (title, picture) in zip(cells.ravel(), pictures.items()):
        show(axes, picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(short(title, 48), size=9, pad=3, color=INK, parse_math=False, loc="left")
    _legend_below(figure, [i for i in range(classes) if any((mask == i).any() for mask in arrays.values())], class_names)
    return figure


def class_bars(values: Any, class_names: Sequence[str], *, label: str = "intersection over union") -> "Figure":
    """Draw a bar for each class, the greatest first, with its number, and their mean as a line.

    Args:
        values: (C,), from 0 to 1; NaN is a class that does not occur, and is left out of the mean.
        class_names: C names.
        label: What the values are.

    Raises:
        UserError: if there is not one value per class.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(class_names),) or not len(class_names):
        raise UserError(f"class_bars: values of shape {values.shape} for {len(class_names)} class names; give one for each.")
    order = np.argsort(np.where(np.isnan(values), -1, values), kind="stable")
    figure = new_figure(7, 0.27 * len(values) + 0.9, layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(values)), np.nan_to_num(values[order]), color=BLUE, height=0.72)
    for place, value in enumerate(values[order]):
        text = "does not occur" if math.isnan(value) else f"{value:.3f}"
        axes.text(np.nan_to_num(value) + 0.008, place, text, color=GREY if math.isnan(value) else INK, size=9, va="center")
    axes.set_yticks(range(len(values)), [short(class_names[int(i)], 24) for i in order], parse_math=False)
    axes.set(xlim=(0, 1.08), ylim=(-0.6, len(values) - 0.4), xlabel=label)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.spines[["top", "right"]].set_visible(False)
    if not np.isnan(values).all():
        mean = float(np.nanmean(values))
        axes.axvline(mean, color=GREY, linestyle="--", linewidth=1)
        axes.set_title(f"mean {mean:.3f}", size=10, color=INK)
    return figure


def _patches(classes: Sequence[int], labels: Sequence[str], count: int) -> list[Any]:
    from matplotlib.patches import Patch

    colours = mask_colours(count) / 255
    return [Patch(facecolor=tuple(colours[i]), label=label) for i, label in zip(classes, labels)]


def _legend_below(figure: "Figure", classes: Sequence[int], class_names: Sequence[str]) -> None:
    """Make room beneath all axes, and put a legend there."""
    columns = max(2, int(figure.get_figwidth() / 1.5))
    names = [short(class_names[i], 18) for i in classes]
    room = 0.24 * math.ceil(len(names) / columns) + 0.1
    old = figure.get_figheight()
    figure.set_figheight(old + room)
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position((box.x0, (box.y0 * old + room) / (old + room), box.width, box.height * old / (old + room)))
    if names:
        figure.legend(handles=_patches(classes, names, len(class_names)), loc="lower center", ncols=columns, frameon=False, fontsize=9)
