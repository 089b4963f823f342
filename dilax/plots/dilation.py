"""Which samples dilated kernels read: a single kernel, and a stack of layers."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dilax.annotated import checked_call
from dilax.errors import UserError
from dilax.geometry import IntOrTuple, Pairs, effective_kernel_size, explicit_padding, per_axis
from dilax.plots.canvas import BLUE, GREY, INK, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Limits of `dilation_taps` (cells) and `dilation_stacks` (samples along the axis, lines), far above what a reader can distinguish.
_MAX_CELLS, _MAX_SPAN, _MAX_LINES = 50_000, 5_000, 200_000
_CELLS = {
    "zero padding": {"facecolor": "#F4F4F4", "edgecolor": "#BBBBBB", "hatch": "/////", "linewidth": 0.5},
    "input": {"facecolor": "#CFE3F1", "edgecolor": "none"},
    "skipped inside the span": {"facecolor": "#FBE3B5", "edgecolor": "none"},
    "tap of the kernel": {"facecolor": RED, "edgecolor": "none"},
}


@checked_call()
def dilation_taps(kernel_size: IntOrTuple = 3, dilations: Sequence[IntOrTuple] = (1, 2, 4), *, input_size: IntOrTuple = 11) -> "Figure":
    """Draw which samples of an image one output reads at each dilation, with "SAME" padding of the image.

    Args:
        kernel_size: Taps of the kernel, an int or (rows, columns).
        dilations: One dilation per panel: samples between neighbouring taps, an int or (rows, columns).
        input_size: Samples of the image, an int or (rows, columns). The output drawn is the central one.

    Returns:
        One row of panels, each 3 inches wide, all at the same scale.

    Raises:
        UserError: if `dilations` is empty, a number is below 1, or there are too many samples to draw.
    """
    if not dilations:
        raise UserError("dilation_taps: dilations is empty; give one or more, such as (1, 2, 4).")
    size = per_axis(input_size, 2, "input_size", "dilation_taps")
    window = per_axis(kernel_size, 2, "kernel_size", "dilation_taps")
    panels = [per_axis(dilation, 2, "dilations", "dilation_taps") for dilation in dilations]
    cells = sum(math.prod(n + (k - 1) * d for n, k, d in zip(size, window, dilation)) for dilation in panels)
    if cells > _MAX_CELLS:
        raise UserError(
            f"dilation_taps: {cells} samples are too many to draw; reduce the sizes to at most {_MAX_CELLS} samples over all panels."
        )
    paddings = [explicit_padding(size, window, padding="SAME", dilation=dilation) for dilation in panels]
    (top, bottom), (left, right) = np.max(paddings, axis=0).tolist()
    width = left + size[1] + right + 2.4
    margin = 0.125 * width  # 3/8 inch, room for the dimension lines
    height = top + size[0] + bottom + 2 * margin
    spans = [_span_text(window, dilation) for dilation in panels]
    columns = {1: 1, 2: 2}.get(len(panels), 5)
    head, body, legend = 0.75 + 0.19 * ("\n" in "".join(spans)), 3 * height / width, 0.15 + 0.25 * math.ceil(5 / columns)
    total = head + body + legend
    figure = new_figure("dilation_taps", 3 * len(panels), total)
    for i, (dilation, padding, span) in enumerate(zip(panels, paddings, spans)):
        axes = figure.add_axes((i / len(panels), legend / total, 1 / len(panels), body / total))
        axes.set(xlim=(-left - 1.2, size[1] + right + 1.2), ylim=(size[0] + bottom + margin, -top - margin))
        axes.set_axis_off()
        _draw_taps(axes, size, window, dilation, padding)
        x, title = (i + 0.5) / len(panels), f"dilation {dilation[0] if dilation[0] == dilation[1] else dilation}"
        figure.text(x, 1 - 0.15 / total, title, size=15, weight="bold", color=INK, ha="center", va="top")
        figure.text(x, 1 - 0.47 / total, span, size=11, color=RED, ha="center", va="top")
    _taps_legend(figure, columns)
    return figure


@checked_call()
def dilation_stacks(kernel_size: int = 3, stacks: Sequence[Sequence[int]] = ((1, 1, 1), (1, 2, 5), (2, 2, 2))) -> "Figure":
    """Draw what one output of a stack of dilated layers sees along an axis, and which samples in between it misses (gridding).

    Args:
        kernel_size: Taps of every layer.
        stacks: One stack per panel: the dilation of every layer, from the first layer to the last.

    Returns:
        One panel below the other, all at the same scale: the input at the bottom, a row per layer, the output at the top. Bars show the
        number of paths from each sample to the output; samples without a path are red.

    Raises:
        UserError: if `stacks` or one of the stacks is empty, a number is below 1, or there are too many samples or lines to draw.
    """
    if not stacks or not all(stacks):
        raise UserError(f"dilation_stacks: stacks={stacks!r} has nothing to draw; give dilations for each stack, such as ((1, 1), (1, 2)).")
    (taps,) = per_axis(kernel_size, 1, "kernel_size", "dilation_stacks")
    panels = [per_axis(tuple(stack), len(stack), "stacks", "dilation_stacks") for stack in stacks]
    span = max(1 + (taps - 1) * sum(stack) for stack in panels)
    lines = sum(_most_lines(taps, stack) for stack in panels)
    if span > _MAX_SPAN or lines > _MAX_LINES:
        raise UserError(
            f"dilation_stacks: stacks that span up to {span} samples, with up to {lines} lines, are too large to draw; use at most "
            f"{_MAX_SPAN} samples and {_MAX_LINES} lines."
        )
    heights = [0.55 + 0.36 * len(stack) + 0.3 for stack in panels]
    left, width, legend = 2.4, 9.6, 0.45
    figure = new_figure("dilation_stacks", width, sum(heights) + legend + 0.1)
    top = figure.get_figheight() - 0.1
    for stack, height in zip(panels, heights):
        top -= height
        box = (left / width, top / figure.get_figheight(), 1 - (left + 0.1) / width, (height - 0.12) / figure.get_figheight())
        axes = figure.add_axes(box)
        axes.set(xlim=(-span / 2 - 0.75, span / 2 + 0.75), ylim=(-1.75, len(stack) + 0.35))
        axes.set_axis_off()
        paths = _draw_stack(axes, taps, stack)
        missed = int((paths == 0).sum())
        coverage = f"coverage {1 - missed / len(paths):.0%}" + (f", {missed} missed" if missed else "")
        lines = ["dilations " + _abbreviate(stack), f"spans {len(paths)} samples", coverage]
        for i, line in enumerate(lines):
            y = (top + height / 2 + 0.27 - 0.24 * i) / figure.get_figheight()
            color, weight = (RED if i == 2 and missed else INK), ("bold" if i == 0 else "normal")
            figure.text(0.15 / width, y, line, size=11, weight=weight, color=color, va="center")
    _stacks_legend(figure)
    return figure


def _most_lines(taps: int, dilations: tuple[int, ...]) -> int:
    """Return an upper bound of the number of lines from the samples of each layer to those that they are computed from."""
    lines, places, span = 0, 1, 1
    for dilation in reversed(dilations):
        lines += places * taps
        span += (taps - 1) * dilation
        places = min(places * taps, span)
    return lines


def _draw_stack(axes: "Axes", taps: int, dilations: tuple[int, ...]) -> np.ndarray:
    """Draw one stack with its output at x = 0, and return the number of paths from each sample of the field to the output."""
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Rectangle

    # Narrow cells have no room for gaps and crosses.
    low, high = axes.get_xlim()
    wide = high - low < 80
    half = 0.42 if wide else 0.5
    paths, lines = np.ones(1), []
    for level, dilation in zip(range(len(dilations), 0, -1), reversed(dilations)):
        places = np.flatnonzero(paths) - (len(paths) - 1) / 2
        shifts = (np.arange(taps) - (taps - 1) / 2) * dilation
        lines += [((place, level), (place + shift, level - 1)) for place in places for shift in shifts]
        color = "white" if level == len(dilations) else BLUE
        axes.plot(places, [level] * len(places), "o", color=color, markeredgecolor=INK, markersize=6 if wide else 4)
        kernel = np.zeros((taps - 1) * dilation + 1)
        kernel[::dilation] = 1
        paths = np.convolve(paths, kernel)
    axes.add_collection(LineCollection(lines, colors=BLUE, linewidths=0.9, alpha=0.55, zorder=1))
    places = np.arange(len(paths)) - (len(paths) - 1) / 2
    for label, mask, color in (("seen", paths > 0, BLUE), ("missed", paths == 0, RED)):
        cells = [Rectangle((place - half, -0.45), 2 * half, 0.45) for place in places[mask]]
        axes.add_collection(PatchCollection(cells, label=label, facecolor=color, edgecolor="none", zorder=3))
    if wide:
        axes.plot(places[paths == 0], np.full((paths == 0).sum(), -0.225), "x", color="white", markersize=4, zorder=4)
    heights = paths / paths.max()
    bars = [Rectangle((place - half, -1.7), 2 * half, 1.1 * height) for place, height in zip(places, heights)]
    axes.add_collection(PatchCollection(bars, label="paths", facecolor=GREY, edgecolor="none"))
    return paths


def _abbreviate(numbers: Sequence[int]) -> str:
    """Return numbers as text; the middle of a long list is omitted."""
    words = [str(n) for n in numbers]
    return ", ".join(words if len(words) <= 4 else [*words[:2], "…", words[-1]])


def _stacks_legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    output = Line2D([], [], marker="o", linestyle="", markersize=6, markerfacecolor="white", markeredgecolor=INK, label="output")
    colours = {"seen": BLUE, "missed": RED, "paths to the output": GREY}
    handles: list[Any] = [output, *(Patch(facecolor=colour, label=label) for label, colour in colours.items())]
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=10.5, handlelength=1.3, handleheight=1.3)


def _draw_taps(axes: "Axes", size: tuple[int, ...], window: tuple[int, ...], dilation: tuple[int, ...], padding: Pairs) -> None:
    """Draw one panel: the cells, the border of the image, a ring at the output, and dimension lines along the columns."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Rectangle

    (top, bottom), (left, right) = padding
    rows, columns = size
    for mask, (label, style) in zip(_cell_masks(size, window, dilation, padding), _CELLS.items()):
        cells = [Rectangle((column - left + 0.05, row - top + 0.05), 0.9, 0.9) for row, column in np.argwhere(mask)]
        axes.add_collection(PatchCollection(cells, label=label, **style))
    axes.add_patch(Rectangle((-0.02, -0.02), columns + 0.04, rows + 0.04, fill=False, edgecolor=BLUE, linewidth=1.4))
    axes.add_patch(Circle((columns // 2 + 0.5, rows // 2 + 0.5), 0.25, facecolor="white", edgecolor=INK, linewidth=1.4))
    for start, stop, color in ((-left, 0, GREY), (0, columns, BLUE), (columns, columns + right, GREY)):
        _draw_length(axes, start, stop, -top, -1, color)
    start = columns // 2 - left
    _draw_length(axes, start, start + effective_kernel_size(window[1], dilation[1]), rows + bottom, 1, RED)


def _cell_masks(size: tuple[int, ...], window: tuple[int, ...], dilation: tuple[int, ...], padding: Pairs) -> list[np.ndarray]:
    """Return one mask over the padded image for each of _CELLS.

    The central output, n // 2, reads from sample n // 2 of the padded image on.
    """
    spans = effective_kernel_size(window, dilation)
    kinds = np.zeros([n + lo + hi for n, (lo, hi) in zip(size, padding)], int)
    kinds[tuple(slice(lo, lo + n) for n, (lo, _) in zip(size, padding))] = 1
    kinds[tuple(slice(n // 2, n // 2 + span) for n, span in zip(size, spans))] = 2
    kinds[tuple(slice(n // 2, n // 2 + span, d) for n, span, d in zip(size, spans, dilation))] = 3
    return [kinds == kind for kind in range(len(_CELLS))]


def _draw_length(axes: "Axes", start: float, stop: float, edge: float, side: int, color: str) -> None:
    """Draw a dimension line from `start` to `stop`, labelled with its length, above (`side` -1) or below (1) the row `edge`."""
    if stop > start:
        unit = abs(axes.get_xlim()[1] - axes.get_xlim()[0]) / 22  # 3/22 inch, in cells
        x, y = (start + 0.12, stop - 0.12), edge + 0.6 * unit * side
        axes.plot(x, (y, y), color=color, linewidth=1.2, marker="|", markersize=7, markeredgewidth=1.2)
        va = "top" if side > 0 else "bottom"
        axes.text(sum(x) / 2, y + 0.45 * unit * side, f"{stop - start}", color=color, size=10, weight="bold", ha="center", va=va)


def _span_text(window: tuple[int, ...], dilation: tuple[int, ...]) -> str:
    """Return the formula of the span: one line, or one each for rows and columns where they differ."""
    lines = [f"({k} \N{MINUS SIGN} 1) \N{MULTIPLICATION SIGN} {d} + 1 = {effective_kernel_size(k, d)}" for k, d in zip(window, dilation)]
    return lines[0] if lines[0] == lines[1] else f"rows {lines[0]}\ncolumns {lines[1]}"


def _taps_legend(figure: "Figure", columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    output = Line2D([], [], marker="o", linestyle="", markersize=8, markerfacecolor="white", markeredgecolor=INK, label="output")
    handles: list[Any] = [output, *(Patch(label=label, **style) for label, style in reversed(_CELLS.items()))]
    figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=10.5, handlelength=1.3, handleheight=1.3)
