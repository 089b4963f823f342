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
    width = left + size[1] + right + 2.4
    margin = 0.125 * width  # 3/8 inch, room for the lengths
    height = top + size[0] + bottom + 2 * margin
    spans = [_span_text(taps, gap) for gap in gaps]
    columns = {1: 1, 2: 2}.get(len(gaps), 5)
    head, panel, legend = 0.75 + 0.19 * ("\n" in "".join(spans)), 3 * height / width, 0.15 + 0.25 * math.ceil(5 / columns)
    total = head + panel + legend
    figure = _figure(3 * len(gaps), total)
    for i, (gap, pad, span) in enumerate(zip(gaps, pads, spans)):
        axes = figure.add_axes((i / len(gaps), legend / total, 1 / len(gaps), panel / total))
        axes.set(xlim=(-left - 1.2, size[1] + right + 1.2), ylim=(size[0] + bottom + margin, -top - margin))
        axes.set_axis_off()
        _draw_taps(axes, size, taps, gap, pad)
        x, title = (i + 0.5) / len(gaps), f"dilation {gap[0] if gap[0] == gap[1] else gap}"
        figure.text(x, 1 - 0.15 / total, title, size=15, weight="bold", color=_INK, ha="center", va="top")
        figure.text(x, 1 - 0.47 / total, span, size=11, color=_RED, ha="center", va="top")
    _taps_legend(figure, columns)
    return figure


def learning_curves(history: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw loss (nats) and accuracy (share) against the step.

    Args:
        history: The lines of metrics.jsonl: each a "step" and any of "train/loss", "train/accuracy", ..., "test/accuracy".

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
    figure = _figure(side + 2.6, side + 1.7, layout="compressed")
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
    columns, predictions = min(columns, count), probabilities.argmax(1)
    titles = [_prediction_title(class_names[int(t)], class_names[int(p)], row[p]) for t, p, row in zip(labels, predictions, probabilities)]
    room = 0.36 if "\n" in "".join(titles) else 0.2
    figure, cells = _grid(math.ceil(count / columns), columns, 1.15, images.shape[1] / images.shape[2], room)
    for axes, image, title, wrong in zip(cells.flat, _displayable(images, "prediction_grid"), titles, predictions != labels):
        _show(axes, image, cmap="gray", vmin=0, vmax=1)
        _frame(axes, _RED if wrong else "#CCCCCC", 2 if wrong else 0.6)
        axes.set_title(title, size=8, pad=3, color=_RED if wrong else _INK, parse_math=False, linespacing=1.05)
    return figure


def kernels(kernel: Any, *, max_kernels: int = 64) -> "Figure":
    """Draw the kernels of a layer, one per output channel, on one scale that is symmetric about 0.

    Args:
        kernel: (*window, c_in, c_out). In 2-D and 3-D, 3 input channels are shown as RGB, mid-grey being 0, and other numbers of them by
            their mean; the slices of 3-D stand side by side. In 1-D, up to 3 input channels are lines of their own, and more by their mean.
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
    scale = float(np.abs(kernel[np.isfinite(kernel)]).max(initial=0)) or 1.0
    title = "first " * (len(kernel) < c_out) + f"{len(kernel)} of {c_out} kernels, {_times((*window, c_in))}"
    title += "\nmean over input channels" * (c_in > kernel.shape[-1]) + _kernel_note(len(window), kernel.shape[-1], scale)
    aspect = 0.7 if len(window) == 1 else window[-2] / math.prod(window[:-2] + window[-1:])
    columns = min(len(kernel), 8 if aspect > 0.4 else 3)
    rows = math.ceil(len(kernel) / columns)
    cell = 0.8 if aspect > 0.4 else 2
    bar = 0.8 if len(window) > 1 and kernel.shape[-1] == 1 else 0
    height = cell * (aspect + 0.12) * rows + 0.4 + 0.18 * title.count("\n") + bar
    figure = _figure(max(1.12 * cell * columns, 3.4) + 0.2, height, layout="compressed")
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
    # Four columns at least, so that a name has room above few channels.
    figure, cells = _grid(len(arrays), max(channels + 1, 4), 1.15, picture.shape[0] / picture.shape[1], 0.42)
    for row, (name, value) in zip(cells, arrays.items()):
        _show(row[0], picture, cmap="gray", vmin=0, vmax=1)
        size = f"  ({_times(value.shape)})"
        heading = _short(name, int(10 * figure.get_figwidth()) - len(size)) + size
        corner = row[0].get_position()
        figure.text(corner.x0, corner.y1 + 0.2 / figure.get_figheight(), heading, size=10, weight="bold", color=_INK, parse_math=False)
        row[0].set_title("image", size=8, pad=2, color=_INK)
        for axes, channel in zip(row[1:], np.argsort(-value.var((0, 1)), kind="stable")[:channels]):
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
    """Draw one panel: cells, the image's border, the output's ring, and the lengths along the columns."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Rectangle

    (top, bottom), (left, right) = pad
    rows, columns = size
    for kind, (name, style) in zip(_tap_kinds(size, taps, gap, pad), _CELLS.items()):
        cells = [Rectangle((column - left + 0.05, row - top + 0.05), 0.9, 0.9) for row, column in np.argwhere(kind)]
        axes.add_collection(PatchCollection(cells, label=name, **style))
    axes.add_patch(Rectangle((-0.02, -0.02), columns + 0.04, rows + 0.04, fill=False, edgecolor=_BLUE, linewidth=1.4))
    axes.add_patch(Circle((columns // 2 + 0.5, rows // 2 + 0.5), 0.25, facecolor="white", edgecolor=_INK, linewidth=1.4))
    for start, stop, color in ((-left, 0, _GREY), (0, columns, _BLUE), (columns, columns + right, _GREY)):
        _draw_length(axes, start, stop, -top, -1, color)
    start = columns // 2 - left
    _draw_length(axes, start, start + effective_kernel_size(taps[1], gap[1]), rows + bottom, 1, _RED)


def _tap_kinds(size: tuple[int, ...], taps: tuple[int, ...], gap: tuple[int, ...], pad: Pairs) -> list[np.ndarray]:
    """Return one mask over the padded image for each of _CELLS. The output in the middle, n // 2, reads from n // 2 on, padding counted."""
    spans = effective_kernel_size(taps, gap)
    kinds = np.zeros([n + lo + hi for n, (lo, hi) in zip(size, pad)], int)
    kinds[tuple(slice(lo, lo + n) for n, (lo, _) in zip(size, pad))] = 1
    kinds[tuple(slice(n // 2, n // 2 + span) for n, span in zip(size, spans))] = 2
    kinds[tuple(slice(n // 2, n // 2 + span, d) for n, span, d in zip(size, spans, gap))] = 3
    return [kinds == kind for kind in range(len(_CELLS))]


def _draw_length(axes: "Axes", start: float, stop: float, edge: float, side: int, color: str) -> None:
    """Draw a dimension line from `start` to `stop` with its length, above (`side` -1) or below (1) the row `edge`."""
    if stop > start:
        unit = abs(axes.get_xlim()[1] - axes.get_xlim()[0]) / 22  # 3/22 inch, in cells
        x, y = (start + 0.12, stop - 0.12), edge + 0.6 * unit * side
        axes.plot(x, (y, y), color=color, linewidth=1.2, marker="|", markersize=7, markeredgewidth=1.2)
        va = "top" if side > 0 else "bottom"
        axes.text(sum(x) / 2, y + 0.45 * unit * side, f"{stop - start}", color=color, size=10, weight="bold", ha="center", va=va)


def _span_text(taps: tuple[int, ...], gap: tuple[int, ...]) -> str:
    """Return the arithmetic of the span: one line, or one for rows and one for columns where they differ."""
    lines = [f"({k} \N{MINUS SIGN} 1) \N{MULTIPLICATION SIGN} {d} + 1 = {effective_kernel_size(k, d)}" for k, d in zip(taps, gap)]
    return lines[0] if lines[0] == lines[1] else f"rows {lines[0]}\ncolumns {lines[1]}"


def _taps_legend(figure: "Figure", columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    output = Line2D([], [], marker="o", linestyle="", markersize=8, markerfacecolor="white", markeredgecolor=_INK, label="output")
    handles: list[Any] = [output, *(Patch(label=name, **style) for name, style in reversed(_CELLS.items()))]
    figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=10.5, handlelength=1.3, handleheight=1.3)


def _kernel_note(rank: int, channels: int, scale: float) -> str:
    """Return how to read kernels of `rank` window axes that are drawn with `channels` input channels."""
    if rank == 1:
        return (
            f"\na line per input channel, boxes from {-scale:.2g} to {scale:.2g}"
            if channels > 1
            else f"\nboxes from {-scale:.2g} to {scale:.2g}"
        )
    note = "\nslices side by side" * (rank == 3)
    return note + f"\nas RGB: 0 is mid-grey, black {-scale:.2g}, white {scale:.2g}" * (channels == 3)


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
        axes.figure.colorbar(image, ax=axes, label="weight", location="bottom", shrink=0.6, aspect=30, pad=0.03)


def _kernel_lines(axes: "Axes", kernel: np.ndarray, corners: list[tuple[float, float]], aspect: float, scale: float) -> None:
    """Draw kernels (n, window, channels) as lines in boxes 1 wide, the box's height from -scale to scale."""
    from matplotlib.patches import Rectangle

    for taps, (x, y) in zip(kernel, corners):
        axes.add_patch(Rectangle((x, y), 1, aspect, facecolor="#F4F4F4"))
        axes.plot((x, x + 1), (y + aspect / 2,) * 2, color="#BBBBBB", linewidth=0.8)
        places = x + (np.arange(len(taps)) + 0.5) / len(taps)
        for channel, color in zip(taps.T, _LINES):
            axes.plot(places, y + aspect * (0.5 - 0.5 * channel / scale), color=color, marker="o", markersize=3, linewidth=1.2)


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
    return " \N{MULTIPLICATION SIGN} ".join(map(str, sizes))


def _float(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)
