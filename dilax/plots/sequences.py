"""Plots of sequences: classified series, predictions at every step, segments, waveforms."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dilax import arguments
from dilax.annotated import checked_call
from dilax.errors import UserError
from dilax.plots.canvas import BLUE, GREEN, GREY, INK, ORANGE, RED, as_float, new_figure, truncate
from dilax.plots.segmentation import mask_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = (BLUE, ORANGE, GREEN, RED, GREY)
_MAX_LINES = len(_LINES)  # up to as many channels are drawn as lines, more as an image


@checked_call()
def series_grid(
    series: Sequence[ArrayLike], labels: ArrayLike, probabilities: ArrayLike, class_names: Sequence[str], *, columns: int = 4
) -> "Figure":
    """Show series in the order given, each titled "true → predicted (probability)"; the titles of mistakes are red.

    Args:
        series: n arrays (time, channels), which may differ in length. Up to 5 channels are drawn as lines, more as the rows of an image.
        labels: (n,), the true classes, integers.
        probabilities: (n, num_classes), the predicted probabilities.
        class_names: One name per class.
        columns: Series per row.

    Returns:
        A grid with one panel per series, the step to the right.

    Raises:
        UserError: if there are no series, one of them is not (time, channels), or their lengths differ.
    """
    labels, probabilities = np.asarray(labels), as_float("series_grid", probabilities)
    count = len(series)
    if not count or labels.shape != (count,) or probabilities.shape != (count, len(class_names)):
        raise UserError(
            f"series_grid: {count} series, labels {labels.shape}, probabilities {probabilities.shape} and {len(class_names)} class names "
            "do not match; give n > 0 series, (n,) labels and (n, classes) probabilities."
        )
    arguments.labels("series_grid", labels, len(class_names))
    if wrong := [shape for shape in map(np.shape, series) if len(shape) != 2 or 0 in shape]:
        raise UserError(f"series_grid: a series has shape {wrong[0]}; give (time, channels) with at least one step and channel.")
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = new_figure("series_grid", 2.6 * columns + 0.2, 1.7 * rows + 0.2, layout="constrained")
    cells: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in cells.flat[count:]:
        axes.set_axis_off()
    for axes, values, label, row in zip(cells.flat, series, labels, probabilities):
        _draw_series(axes, as_float("series_grid", values))
        wrong = row.argmax() != label
        text = f"{truncate(class_names[int(label)], 12)} → {truncate(class_names[int(row.argmax())], 12)} ({row.max():.0%})"
        axes.set_title(text, size=8, color=RED if wrong else INK, parse_math=False)
        axes.tick_params(labelsize=6)
    lines = all(np.shape(values)[1] <= _MAX_LINES for values in series)
    figure.supxlabel("step", size=8)
    figure.supylabel("value" if lines else "channel", size=8)
    return figure


@checked_call()
def step_outputs(
    truth: ArrayLike,
    predicted: ArrayLike,
    names: Sequence[str],
    *,
    title: str = "",
    baseline: ArrayLike | None = None,
    baseline_name: str = "baseline",
    steps: ArrayLike | None = None,
    step_name: str = "step",
    joined: bool = True,
    panels: int = _MAX_LINES,
) -> "Figure":
    """Compare the true outputs of a sequence with the predicted ones, step by step.

    Args:
        truth: (time, n), floats or bools.
        predicted: (time, n), floats; probabilities where the truth is bool.
        names: The names of the n outputs.
        title: Title of the figure.
        baseline: (time, n), another prediction to compare with, such as the persistence forecast; drawn in panels alone.
        baseline_name: Its name in the legend.
        steps: (time,), the position of each step on the axis; None numbers them from 0.
        step_name: Label of that axis.
        joined: Whether lines join the steps; False draws points, for steps that do not follow each other.
        panels: Number of outputs up to which each has a panel of its own.

    Returns:
        One panel per output, the truth in grey, the prediction in blue and the baseline in orange; of more than `panels` outputs, two
        images with one colour scale, the step to the right and the outputs upwards.

    Raises:
        UserError: if the shapes differ, or do not match the names.
    """
    truth, predicted = as_float("step_outputs", truth), as_float("step_outputs", predicted)
    if truth.ndim != 2 or truth.shape != predicted.shape or truth.shape[1] != len(names) or not truth.size:
        raise UserError(
            f"step_outputs: truth {truth.shape}, predicted {predicted.shape} and {len(names)} names do not match; give (time, n)."
        )
    places = np.arange(len(truth)) if steps is None else as_float("step_outputs", steps)
    other = None if baseline is None else as_float("step_outputs", baseline)
    if places.shape != truth.shape[:1] or (other is not None and other.shape != truth.shape):
        given = "no baseline" if other is None else f"a baseline {other.shape}"
        raise UserError(
            f"step_outputs: steps {places.shape}, {given} and truth {truth.shape} do not match; give (time,) steps and a baseline of the "
            "shape of truth."
        )
    if not np.isfinite(places).all():
        raise UserError("step_outputs: steps hold NaN or infinite values; give the position of each step on the axis.")
    if len(names) > panels:
        figure = _output_images(truth, predicted, names, places, step_name)
    else:
        lines = {"true": truth, "predicted": predicted} | ({} if other is None else {baseline_name: other})
        figure = _output_panels(lines, names, places, step_name, joined)
    if title:
        figure.suptitle(truncate(title, 100), color=INK, size=10, parse_math=False)
    return figure


def _output_images(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], places: np.ndarray, step_name: str) -> "Figure":
    """Draw outputs (time, n) as two images on one colour scale."""
    figure = new_figure("step_outputs", 9, 5, layout="constrained")
    cells: Any = figure.subplots(2, 1, sharex=True)
    both = np.concatenate([truth, predicted])
    finite = both[np.isfinite(both)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    # Half a step on either side, so that a step is in the middle of its pixels.
    extent = (places[0] - 0.5, places[-1] + 0.5, -0.5, len(names) - 0.5)
    for axes, values, word in zip(cells, (truth, predicted), ("true", "predicted")):
        options = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "cmap": "Blues"}
        axes.imshow(values.T, extent=extent, vmin=low, vmax=high, **options)
        axes.set_ylabel(f"{word}: {truncate(names[0], 10)} to {truncate(names[-1], 10)}", size=8, parse_math=False)
    cells[-1].set_xlabel(f"{truncate(step_name, 40)}; values from {low:.3g} (white) to {high:.3g} (blue)", parse_math=False)
    return figure


def _output_panels(lines: Mapping[str, np.ndarray], names: Sequence[str], places: np.ndarray, step_name: str, joined: bool) -> "Figure":
    """Draw outputs, {name of the line: (time, n)}, one below the other, with one legend."""
    figure = new_figure("step_outputs", 9, 1.6 * len(names) + 0.8, layout="constrained")
    cells: Any = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    styles = ((GREY, 3, "o"), (BLUE, 1.2, "x"), (ORANGE, 1, "+"))
    for i, (axes, name) in enumerate(zip(cells, names)):
        for (label, values), (color, width, marker) in zip(lines.items(), styles):
            style = {"linewidth": width} if joined and len(places) > 1 else {"linestyle": "", "marker": marker}
            axes.plot(places, values[:, i], color=color, label=label, **style)
        axes.set_ylabel(truncate(name, 16), size=8, parse_math=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    cells[-1].set_xlabel(truncate(step_name, 80), parse_math=False)
    # The handles are those drawn: matplotlib leaves out labels that start with an underscore if it collects them itself.
    legend = figure.legend(cells[0].lines, [truncate(label, 30) for label in lines], frameon=False, fontsize=8, loc="outside right upper")
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


@checked_call()
def waveforms(samples: ArrayLike, rate: float, names: Sequence[str]) -> "Figure":
    """Draw waveforms one below the other, with a common time axis in seconds.

    Args:
        samples: (n, time), in -1..1.
        rate: Samples per second.
        names: The names of the n waveforms.

    Returns:
        One panel per waveform.

    Raises:
        UserError: if there are no samples, or the shapes do not match.
    """
    samples = as_float("waveforms", samples)
    if samples.ndim != 2 or len(names) != len(samples) or not samples.size or rate <= 0:
        raise UserError(
            f"waveforms: samples {samples.shape}, rate={rate} and {len(names)} names do not match; give (n, time) and rate > 0."
        )
    figure = new_figure("waveforms", 9, 1.3 * len(samples) + 0.5, layout="constrained")
    panels: Any = figure.subplots(len(samples), 1, sharex=True, squeeze=False)[:, 0]
    for axes, row, name in zip(panels, samples, names):
        axes.plot(np.arange(len(row)) / rate, row, color=BLUE, linewidth=0.6)
        axes.set(ylim=(-1.05, 1.05))
        axes.set_ylabel(truncate(name, 16), size=8, parse_math=False)
    panels[-1].set_xlabel("seconds")
    return figure


@checked_call()
def segment_bars(truths: Sequence[ArrayLike], predictions: Sequence[ArrayLike], class_names: Sequence[str]) -> "Figure":
    """Draw the classes of sequences as coloured bars: the true ones above those that were found.

    Args:
        truths: n arrays (time,), integers; the sequences may differ in length.
        predictions: n arrays of the same shapes.
        class_names: One name per class.

    Returns:
        Two bars per sequence on a common axis of steps, with a legend of the classes that occur.

    Raises:
        UserError: if there are no sequences, their lengths differ, or a label is not a class.
    """
    pairs = [[np.asarray(row) for row in pair] for pair in zip(truths, predictions, strict=False)]
    if not pairs or len(truths) != len(predictions) or any(a.ndim != 1 or a.shape != b.shape or not a.size for a, b in pairs):
        raise UserError(
            f"segment_bars: {len(truths)} truths and {len(predictions)} predictions must be as many arrays (time,) of equal lengths."
        )
    for row in (row for pair in pairs for row in pair):
        arguments.labels("segment_bars", row, len(class_names))
    from matplotlib.patches import Patch

    colours, longest = mask_colours(len(class_names)), max(len(a) for a, _ in pairs)
    present = sorted({int(label) for pair in pairs for row in pair for label in np.unique(row)})
    columns = max(1, min(6, len(present)))
    below = 0.22 * math.ceil(len(present) / columns) + 0.6
    figure = new_figure("segment_bars", 9, 0.75 * len(pairs) + below, layout="constrained")
    cells: Any = figure.subplots(len(pairs), 1, sharex=True, squeeze=False)[:, 0]
    for axes, pair in zip(cells, pairs):
        picture = np.full((2, longest, 3), 255, np.uint8)
        for line, row in zip(picture, pair):
            line[: len(row)] = colours[row.astype(int)]
        axes.imshow(picture, aspect="auto", interpolation="nearest", extent=(-0.5, longest - 0.5, 1.5, -0.5))
        axes.axhline(0.5, color="white", linewidth=2)
        axes.set_yticks([0, 1], ["true", "found"], size=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    cells[-1].set_xlabel("step", size=8)
    handles = [Patch(facecolor=colours[i] / 255, label=truncate(class_names[i], 24)) for i in present]
    labels = [truncate(class_names[i], 24) for i in present]  # collected by hand: matplotlib leaves out those that start with an underscore
    legend = figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw_series(axes: Any, values: np.ndarray) -> None:
    """Draw one series (time, channels)."""
    if values.shape[1] > _MAX_LINES:
        axes.imshow(values.T, origin="lower", aspect="auto", interpolation="nearest", cmap="viridis")
        return
    for channel, colour in zip(values.T, _LINES):
        axes.plot(channel, color=colour, linewidth=0.9)
