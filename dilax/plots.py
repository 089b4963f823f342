"""Pictures of dilations, training runs and predictions: arrays in, a matplotlib `Figure` out. Nothing is shown, no global state is touched.

Arrays may be numpy's or jax's. matplotlib is imported only when a picture is made.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from dilax.errors import UserError
from dilax.geometry import IntOrTuple, Pairs, effective_kernel_size, explicit_padding, per_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN, _RED, _INK, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#222222", "#8A8A8A"
_CURVES = {"train": _BLUE, "validation": _ORANGE, "test": _GREEN}
_LINES = (_BLUE, _ORANGE, _GREEN)
_CELLS = {
    "zero padding": {"facecolor": "#F4F4F4", "edgecolor": "#BBBBBB", "hatch": "/////", "linewidth": 0.5},
    "input": {"facecolor": "#CFE3F1", "edgecolor": "none"},
    "skipped inside the span": {"facecolor": "#FBE3B5", "edgecolor": "none"},
    "tap of the kernel": {"facecolor": _RED, "edgecolor": "none"},
}


def save(figure: "Figure", path: str | os.PathLike[str], *, dpi: int = 100) -> None:
    """Write a figure; the ending of `path` (.png, .svg, .pdf) says how. `dpi` is in pixels per inch."""
    figure.savefig(os.fspath(path), dpi=dpi, facecolor="white")


def dilation_taps(kernel_size: IntOrTuple = 3, dilations: Sequence[IntOrTuple] = (1, 2, 4), *, input_size: IntOrTuple = 11) -> "Figure":
    """Draw which samples of an image one output reads, for each dilation, with the SAME padding of the image.

    Args:
        kernel_size: Taps, an int or (rows, columns).
        dilations: One panel each: samples between neighbouring taps, an int or (rows, columns).
        input_size: Samples of the image, an int or (rows, columns). The output drawn is the one in its middle.

    Returns:
        One row of panels, 3 inches wide each, all at the same scale.

    Raises:
        UserError: if there is no dilation, or a number is below 1.
    """
    if not dilations:
        raise UserError("dilation_taps: dilations is empty; give one or more, such as (1, 2, 4).")
    size = per_axis(input_size, 2, "input_size", "dilation_taps")
    taps = per_axis(kernel_size, 2, "kernel_size", "dilation_taps")
    gaps = [per_axis(dilation, 2, "dilations", "dilation_taps") for dilation in dilations]
    pads = [explicit_padding(size, taps, padding="SAME", dilation=gap) for gap in gaps]
    (top, bottom), (left, right) = np.max(pads, axis=0).tolist()
    width, height = left + size[1] + right + 2.4, top + size[0] + bottom + 4.8
    panel = 3 * height / width
    figure = _figure(3 * len(gaps), panel + 1.05)
    for i, (gap, pad) in enumerate(zip(gaps, pads)):
        axes = figure.add_axes((i / len(gaps), 0.35 / (panel + 1.05), 1 / len(gaps), panel / (panel + 1.05)))
        axes.set(xlim=(-left - 1.2, size[1] + right + 1.2), ylim=(size[0] + bottom + 2.4, -top - 2.4))
        axes.set_axis_off()
        _draw_taps(axes, size, taps, gap, pad)
        x = (i + 0.5) / len(gaps)
        figure.text(
            x,
            1 - 0.18 / (panel + 1.05),
            f"dilation {gap[0] if gap[0] == gap[1] else _times(gap)}",
            size=15,
            weight="bold",
            color=_INK,
            ha="center",
            va="top",
        )
        figure.text(x, 1 - 0.50 / (panel + 1.05), _span_text(taps, gap), size=11, color=_INK, ha="center", va="top")
    _taps_legend(figure)
    return figure


def learning_curves(history: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw loss (nats) and accuracy (share) against the step.

    Args:
        history: The lines of metrics.jsonl: each a "step" and any of "train/loss", "train/accuracy", and the same of "validation" and "test".

    Returns:
        Two panels. A curve's legend tells its last value.
    """
    figure = _figure(9, 3.6, layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for axes, metric in zip(panels, ("loss", "accuracy")):
        for split, color in _CURVES.items():
            points = [(float(line["step"]), float(line[key])) for line in history if (key := f"{split}/{metric}") in line]
            if points:
                marker = "o" if len(points) <= 40 else ""
                label = f"{split}, last {points[-1][1]:.4g}"
                axes.plot(*zip(*points), color=color, marker=marker, markersize=4, linewidth=1.6, label=label)
        axes.set_title(metric, color=_INK)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
        else:
            axes.text(0.5, 0.5, "not measured", color=_GREY, ha="center", va="center", transform=axes.transAxes)
    return figure


def confusion_matrix(counts: Any, class_names: Sequence[str]) -> "Figure":
    """Draw which class is taken for which: colours are shares of the true class, numbers are counts (up to 20 classes).

    Args:
        counts: (C, C), examples; rows the true class, columns the predicted one.
        class_names: C names.

    Raises:
        UserError: if `counts` is not square, or has not one name per class.
    """
    counts = _float(counts)
    classes = len(class_names)
    if counts.shape != (classes, classes):
        raise UserError(
            f"confusion_matrix: counts has shape {counts.shape} for {classes} class names; give a ({classes}, {classes}) array."
        )
    # The square root keeps the rare mistakes visible.
    from matplotlib.colors import PowerNorm

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(0.42 * classes, 2.6), 7.5)
    figure = _figure(side + 2.2, side + 1.3, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    bar = figure.colorbar(image, ax=axes, label="share of the true class", ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], fraction=0.05, pad=0.03)
    bar.ax.minorticks_off()
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes <= 50:
        names = [_short(name, 16) for name in class_names]
        rotation = 90 if max(map(len, names)) > 3 else 0
        size = 9 if classes <= 20 else 7
        axes.set_xticks(range(classes), names, rotation=rotation, size=size, parse_math=False)
        axes.set_yticks(range(classes), names, size=size, parse_math=False)
    if classes <= 20:
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] > 0.3 else _INK
            axes.text(column, row, f"{counts[row, column]:.0f}", color=color, size=8, ha="center", va="center")
    return figure


def prediction_grid(images: Any, labels: Any, probabilities: Any, class_names: Sequence[str], *, columns: int = 8) -> "Figure":
    """Show images under "true → predicted (probability)", in the order given; mistakes are red.

    Args:
        images: (n, height, width, channels), uint8, or floats between 0 and 1. 3 channels are RGB; all else is shown as its mean.
        labels: (n,), the true classes.
        probabilities: (n, C).
        class_names: C names.
        columns: Images per row.

    Raises:
        UserError: if there is no image, or the lengths differ.
    """
    images, labels, probabilities = np.asarray(images), np.asarray(labels), _float(probabilities)
    count, classes = len(images), len(class_names)
    if not count or labels.shape != (count,) or probabilities.shape != (count, classes):
        raise UserError(
            f"prediction_grid: images {images.shape}, labels {labels.shape}, probabilities {probabilities.shape} and {classes} class names "
            "do not fit; give n > 0 images, (n,) labels and (n, classes) probabilities."
        )
    columns = min(columns, count)
    figure, cells = _grid(math.ceil(count / columns), columns, 1.15, images.shape[1] / images.shape[2], 0.36)
    for axes, image, label, row in zip(cells.flat, _displayable(images, "prediction_grid"), labels, probabilities):
        predicted = int(row.argmax())
        wrong = predicted != label
        _show(axes, image, cmap="gray", vmin=0, vmax=1)
        _frame(axes, _RED if wrong else "#CCCCCC", 2 if wrong else 0.6)
        title = _prediction_title(class_names[int(label)], class_names[predicted], float(row[predicted]))
        axes.set_title(title, size=8, pad=3, color=_RED if wrong else _INK, parse_math=False, linespacing=1.05)
    return figure


def kernels(kernel: Any, *, max_kernels: int = 64) -> "Figure":
    """Draw the kernels of a layer, one per output channel, on one scale that is symmetric about 0.

    Args:
        kernel: (*window, c_in, c_out), 1 to 3 window axes. Three input channels of a 2-D or 3-D kernel are shown as RGB, where mid-grey is 0;
            other numbers of channels by their mean. A 1-D kernel is drawn as lines, up to three input channels apart. The slices of a 3-D
            kernel stand side by side.
        max_kernels: The first so many output channels are drawn.

    Raises:
        UserError: if the kernel is empty or has no 1 to 3 window axes, or max_kernels is below 1.
    """
    kernel = _float(kernel)
    if kernel.ndim not in (3, 4, 5) or not kernel.size or max_kernels < 1:
        raise UserError(
            f"kernels: a kernel of shape {kernel.shape} and max_kernels={max_kernels} show nothing; give (*window, c_in, c_out)."
        )
    *window, c_in, c_out = kernel.shape
    kernel = np.moveaxis(kernel[..., :max_kernels], -1, 0)
    if c_in != 3 and not (len(window) == 1 and c_in < 3):
        kernel = kernel.mean(-1, keepdims=True)
    shown = "first " * (len(kernel) < c_out) + f"{len(kernel)} of {c_out} kernels, {_times(window)} × {c_in}"
    averaged = c_in > 1 and kernel.shape[-1] == 1
    title = shown + ", mean over input channels" * averaged + ", slices side by side" * (len(window) == 3)
    scale = float(np.abs(kernel[np.isfinite(kernel)]).max(initial=0)) or 1.0
    columns = min(len(kernel), 8)
    rows = math.ceil(len(kernel) / columns)
    aspect = 0.7 if len(window) == 1 else window[-2] / math.prod(window[:-2] + window[-1:])
    figure = _figure(max(0.75 * columns + 1.2, 4.6), max(0.75 * aspect * rows, 0.8) + 0.9, layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, size=10, color=_INK)
    corners = [(1.12 * (i % columns), (aspect + 0.12) * (i // columns)) for i in range(len(kernel))]
    (_kernel_lines if len(window) == 1 else _kernel_tiles)(axes, kernel, corners, aspect, scale)
    axes.set(xlim=(-0.06, 1.12 * columns - 0.06), ylim=((aspect + 0.12) * rows - 0.06, -0.06))
    return figure


def feature_maps(maps: Mapping[str, Any], image: Any, *, channels: int = 6) -> "Figure":
    """Show what layers see: a row per layer, with the image and the channels that vary most, each on its own scale (dark = least).

    Args:
        maps: Name, such as "conv_1, dilation 2", -> (height, width, channels).
        image: (height, width, channels), uint8, or floats between 0 and 1.
        channels: Channels shown of each layer.

    Raises:
        UserError: if there is no map, or one is not (height, width, channels).
    """
    arrays = {name: _float(value) for name, value in maps.items()}
    wrong = next((f"{name!r} has shape {value.shape}" for name, value in arrays.items() if value.ndim != 3 or not value.size), None)
    if wrong or not arrays:
        raise UserError(f"feature_maps: {wrong or 'maps is empty'}; give name -> (height, width, channels).")
    picture = _displayable(np.asarray(image)[None], "feature_maps")[0]
    figure, cells = _grid(len(arrays), channels + 1, 1.15, picture.shape[0] / picture.shape[1], 0.42)
    for row, (name, value) in zip(cells, arrays.items()):
        _show(row[0], picture, cmap="gray", vmin=0, vmax=1)
        heading = f"{_short(name, 60)}  ({_times(value.shape)})"
        corner = row[0].get_position()
        figure.text(corner.x0, corner.y1 + 0.2 / figure.get_figheight(), heading, size=10, weight="bold", color=_INK, parse_math=False)
        row[0].set_title("image", size=8, pad=2, color=_INK)
        for axes, channel in zip(row[1:], np.argsort(-value.var((0, 1)), kind="stable")):
            _show(axes, value[..., channel], cmap="viridis")
            axes.set_title(f"channel {channel}", size=8, pad=2, color=_INK)
    return figure


def _figure(width: float, height: float, layout: Any = None) -> "Figure":
    """Return an empty white figure, in inches, that draws without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _grid(rows: int, columns: int, cell: float, aspect: float, title: float) -> tuple["Figure", Any]:
    """Return a figure and its (rows, columns) blank axes; `cell` is their width, `title` the room above each, both in inches."""
    cell_height = cell * min(max(aspect, 0.2), 5)
    gap, margin = 0.12, 0.12
    width, height = columns * (cell + gap) - gap + 2 * margin, rows * (cell_height + gap + title) - gap + 2 * margin
    figure = _figure(width, height)
    cells = np.empty((rows, columns), object)
    for row, column in np.ndindex(rows, columns):
        x, y = margin + column * (cell + gap), height - margin - (row + 1) * (cell_height + title) - row * gap
        axes = cells[row, column] = figure.add_axes((x / width, y / height, cell / width, cell_height / height))
        axes.set_axis_off()
    return figure, cells


def _show(axes: "Axes", image: np.ndarray, **colours: Any) -> None:
    axes.imshow(image, interpolation="nearest", aspect="auto", **colours)


def _frame(axes: "Axes", color: str, width: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=color, linewidth=width, clip_on=False))


def _draw_taps(axes: "Axes", size: tuple[int, ...], taps: tuple[int, ...], gap: tuple[int, ...], pad: Pairs) -> None:
    """Draw one panel: cells, the output's ring, and the lengths along the columns."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Rectangle

    cells, output = _tap_cells(size, taps, gap, pad)
    for name, style in _CELLS.items():
        squares = [Rectangle((column + 0.05, row + 0.05), 0.9, 0.9) for row, column in cells[name]]
        axes.add_collection(PatchCollection(squares, label=name, **style))
    axes.add_patch(Circle((output[1] + 0.5, output[0] + 0.5), 0.27, fill=False, edgecolor=_INK, linewidth=1.6))
    (top, bottom), (left, right) = pad
    for start, stop in ((-left, 0), (0, size[1]), (size[1], size[1] + right)):
        _draw_length(axes, start, stop, -top - 0.7, -1, _INK)
    start = output[1] - left
    _draw_length(axes, start, start + effective_kernel_size(taps[1], gap[1]), size[0] + bottom + 0.7, 1, _RED)


def _tap_cells(size: tuple[int, ...], taps: tuple[int, ...], gap: tuple[int, ...], pad: Pairs) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Return the (row, column) of the cells of each kind, 0 being the first sample of the image, and the middle output."""
    output = tuple(n // 2 for n in size)
    first = [o - lo for o, (lo, _) in zip(output, pad)]
    span = effective_kernel_size(taps, gap)
    reached = {tuple(f + t * d for f, t, d in zip(first, index, gap)) for index in np.ndindex(*taps)}
    skipped = {tuple(f + t for f, t in zip(first, index)) for index in np.ndindex(*span)} - reached
    image = set(np.ndindex(*size))
    padded = {tuple(i - lo for i, (lo, _) in zip(index, pad)) for index in np.ndindex(*(n + sum(p) for n, p in zip(size, pad)))}
    kinds = (padded - image, image, skipped, reached)
    taken = (reached | skipped, reached | skipped, set(), set())
    return {name: sorted(kind - other) for name, kind, other in zip(_CELLS, kinds, taken)}, output


def _draw_length(axes: "Axes", start: float, stop: float, y: float, side: int, color: str) -> None:
    """Draw a dimension line from `start` to `stop` with its length above (`side` -1) or below (1) it."""
    if stop > start:
        axes.plot((start + 0.1, stop - 0.1), (y, y), color=color, linewidth=1.2, solid_capstyle="butt")
        for x in (start + 0.1, stop - 0.1):
            axes.plot((x, x), (y - 0.25, y + 0.25), color=color, linewidth=1.2, solid_capstyle="butt")
        va = "top" if side > 0 else "bottom"
        axes.text((start + stop) / 2, y + 0.4 * side, f"{stop - start}", color=color, size=10, ha="center", va=va)


def _span_text(taps: tuple[int, ...], gap: tuple[int, ...]) -> str:
    spans = [f"({k} − 1) × {d} + 1 = {effective_kernel_size(k, d)}" for k, d in zip(taps, gap)]
    return spans[0] if len(set(spans)) == 1 else ",  ".join(spans)


def _taps_legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(label=name, **style) for name, style in _CELLS.items()]
    handles.append(Line2D([], [], marker="o", linestyle="", markersize=8, markerfacecolor="none", markeredgecolor=_INK, label="output"))
    columns = 5 if figure.get_figwidth() > 8 else 2
    figure.legend(
        handles=handles[::-1], loc="lower center", ncols=columns, frameon=False, fontsize=10.5, handlelength=1.3, handleheight=1.3
    )


def _kernel_tiles(axes: "Axes", kernel: np.ndarray, corners: list[tuple[float, float]], aspect: float, scale: float) -> None:
    """Draw kernels (n, *window, 1 or 3) as images, each 1 wide, on the scale -scale to scale."""
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
        axes.figure.colorbar(image, ax=axes, label="weight", fraction=0.05, pad=0.02)


def _kernel_lines(axes: "Axes", kernel: np.ndarray, corners: list[tuple[float, float]], aspect: float, scale: float) -> None:
    """Draw kernels (n, window, channels) as lines in boxes 1 wide, the box's height from -scale to scale."""
    from matplotlib.patches import Rectangle

    for taps, (x, y) in zip(kernel, corners):
        axes.add_patch(Rectangle((x, y), 1, aspect, facecolor="#F4F4F4"))
        axes.plot((x, x + 1), (y + aspect / 2,) * 2, color="#BBBBBB", linewidth=0.8)
        places = x + (np.arange(len(taps)) + 0.5) / len(taps)
        for channel, color in zip(taps.T, _LINES):
            axes.plot(places, y + aspect * (0.5 - 0.45 * channel / scale), color=color, marker="o", markersize=3, linewidth=1.2)


def _displayable(images: np.ndarray, caller: str) -> np.ndarray:
    """Return images (n, height, width, channels) as floats 0..1: (n, height, width, 3) if RGB, else (n, height, width)."""
    if images.ndim != 4 or not (images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
        raise UserError(
            f"{caller}: an image has shape {images.shape[1:]} and dtype {images.dtype}; give (height, width, channels), uint8 or float."
        )
    scaled = np.clip(_float(images) / (255 if images.dtype == np.uint8 else 1), 0, 1)
    return scaled if images.shape[-1] == 3 else scaled.mean(-1)


def _prediction_title(true: str, predicted: str, probability: float) -> str:
    line = f"{true} → {predicted} ({probability:.0%})"
    return line if len(line) <= 17 else f"{_short(true, 18)}\n→ {_short(predicted, 9)} ({probability:.0%})"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _times(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))


def _float(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)
