"""Receptive fields on images: what an output can see, and how much that matters to it."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from dilax.errors import UserError
from dilax.geometry import is_integer
from dilax.plots.canvas import BLUE, INK, ORANGE, RED, as_float, displayable, new_figure, short, times
from dilax.receptive_fields import reaches
from dilax.receptive_fields.reach import members

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What counts as effective: two standard deviations of a Gaussian (Luo et al. 2016, section 3).
_EFFECTIVE = 1 - 0.9545


def receptive_field_overlay(fn: Callable[[jax.Array], jax.Array], image: Any, *, output: tuple[int, int] | None = None) -> "Figure":
    """Show which pixels of an image one output can see: those it cannot are pale, holes within its field are red.

    Args:
        fn: Maps (batch, height, width, channels) to an array; analysed as by `dilax.receptive_field`, not computed.
        image: (height, width, channels), uint8, or floats between 0 and 1.
        output: (row, column) of the output; None takes the one in the middle.

    Returns:
        One panel: the image, the output's place, and the rectangle of its field, with the padding that lies in it.

    Raises:
        UserError: if the image is not (height, width, channels), there is no such output, or the analysis fails.
    """
    picture = displayable(np.asarray(image)[None], "receptive_field_overlay")[0]
    rows, columns = picture.shape[:2]
    x = jax.ShapeDtypeStruct((1, *np.shape(image)), jax.dtypes.canonicalize_dtype(np.asarray(image).dtype))
    places, size = _chosen(output, jax.eval_shape(fn, x).shape)
    found = reaches(fn, x)
    seen = [list(range(n)) if reach is None else members(*reach.at(place)) for reach, place, n in zip(found, places, (rows, columns))]
    spans = [(axis[0], axis[-1] + 1) if axis else (0, 0) for axis in seen]
    lows = [min(first, 0) for first, _ in spans]
    highs = [max(last, n) for (_, last), n in zip(spans, (rows, columns))]
    margin = 0.02 * max(highs[0] - lows[0], highs[1] - lows[1])
    height, width = (high - low + 2 * margin for low, high in zip(lows, highs))
    side = 4.6 / max(height, width)
    figure = new_figure(max(side * width, 3.4) + 0.1, side * height + 1.15)
    panel = (0.5 - 0.5 * side * width / figure.get_figwidth(), 0.45 / figure.get_figheight())
    axes = figure.add_axes((*panel, side * width / figure.get_figwidth(), side * height / figure.get_figheight()))
    axes.set(xlim=(lows[1] - margin, highs[1] + margin), ylim=(highs[0] + margin, lows[0] - margin))
    axes.set_axis_off()
    _draw_seen(axes, picture, seen, spans)
    if size:
        steps = [0 if reach is None else float(reach.rate) for reach in found]
        _draw_output(axes, [place * step + max(step, 1) / 2 for place, step in zip(places, steps)])
    _head(figure, places, size, [last - first for first, last in spans], math.prod(map(len, seen)))
    _fields_legend(figure, bool(size))
    return figure


def effective_receptive_fields(maps: Mapping[str, Any]) -> "Figure":
    """Draw maps of `dilax.effective_receptive_field` side by side, such as those of a network before and after training.

    Args:
        maps: Name -> (height, width) or (samples,), 0 or more.

    Returns:
        One panel each: a heat map, its colours by the square root so that the thin parts show, or a curve. The dashed frame is the field;
        the size given is that of a square of as many samples as matter at least 4.55 % as much as the first.

    Raises:
        UserError: if there is no map, or one is neither (height, width) nor (samples,), or all 0.

    Reference:
        Luo et al. 2016, arXiv:1701.04128.
    """
    arrays = {name: as_float(value) for name, value in maps.items()}
    wrong = next(
        (f"{name!r} has shape {a.shape}" for name, a in arrays.items() if a.ndim not in (1, 2) or not a.size or a.max() <= 0), None
    )
    if wrong or not arrays:
        reason = f"{wrong} or nothing above 0" if wrong else "maps is empty"
        raise UserError(f"effective_receptive_fields: {reason}; give name -> (height, width) or (samples,).")
    figure = new_figure(2.9 * len(arrays) + 0.9, 3.5, layout="constrained")
    panels: Any = figure.subplots(1, len(arrays), squeeze=False)[0]
    pictures = [
        (_draw_curve if a.ndim == 1 else _draw_heat)(axes, a / a.max(), short(name, 32)) for axes, (name, a) in zip(panels, arrays.items())
    ]
    heat = [picture for picture in pictures if picture is not None]
    if heat:
        figure.colorbar(heat[0], ax=panels.tolist(), label="share of the largest", ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], shrink=0.75)
    return figure


def _chosen(output: tuple[int, int] | None, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The output's place and the size of the outputs; no size if they have no space."""
    if len(shape) != 4:
        return (0, 0), ()
    size = shape[1:3]
    place = tuple(n // 2 for n in size) if output is None else output
    if not isinstance(place, tuple) or len(place) != 2 or not all(is_integer(i) and 0 <= i < n for i, n in zip(place, size)):
        raise UserError(f"receptive_field_overlay: output={output!r} is not one of {times(size)} outputs; give (row, column), from 0.")
    return place, size


def _draw_seen(axes: "Axes", picture: np.ndarray, seen: list[list[int]], spans: list[tuple[int, int]]) -> None:
    """Draw the image, pale where it is not seen and red in holes, and the rectangle of the field over the padding."""
    from matplotlib.patches import Rectangle

    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
    inside = [np.array([first <= i < last for i in range(n)]) for (first, last), n in zip(spans, picture.shape)]
    hit = [np.isin(np.arange(n), axis) for axis, n in zip(seen, picture.shape)]
    field, read = np.outer(*inside), np.outer(*hit)
    red = np.array([int(RED[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    shown = np.where(read[..., None], colour, np.where(field[..., None], 0.15 * colour + 0.85 * red, 0.35 * colour + 0.65))
    (top, bottom), (left, right) = spans
    corner, size = (left, top), (right - left, bottom - top)
    axes.add_patch(Rectangle(corner, *size, facecolor="#F4F4F4", edgecolor="#BBBBBB", hatch="/////", linewidth=0))
    axes.imshow(shown, extent=(0, picture.shape[1], picture.shape[0], 0), interpolation="nearest", zorder=2, aspect="auto")
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=BLUE, linewidth=2, zorder=3))


def _draw_output(axes: "Axes", place: list[float]) -> None:
    axes.plot(place[1], place[0], "o", color="white", markeredgecolor=INK, markeredgewidth=1.4, markersize=8, zorder=4, clip_on=False)


def _head(figure: "Figure", place: tuple[int, ...], size: tuple[int, ...], spans: list[int], seen: int) -> None:
    title = f"output {tuple(map(int, place))} of {times(size)}" if size else "every output"
    missed = math.prod(spans) - seen
    coverage = f"coverage {seen / math.prod(spans):.0%}" if missed else "no holes"
    for y, text, style in (
        (0.12, title, {"size": 12, "weight": "bold", "color": INK}),
        (0.38, f"spans {times(spans)} pixels, {coverage}", {"size": 10.5, "color": RED if missed else INK}),
    ):
        figure.text(0.5, 1 - y / figure.get_figheight(), text, ha="center", va="top", **style)


def _fields_legend(figure: "Figure", space: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor="none", edgecolor=BLUE, linewidth=1.6, label="field"),
        Patch(facecolor=RED, label="hole"),
        Patch(facecolor="#F4F4F4", edgecolor="#BBBBBB", hatch="/////", label="padding"),
    ]
    if space:
        handles.insert(0, Line2D([], [], marker="o", linestyle="", markersize=7, color="white", markeredgecolor=INK, label="output"))
    figure.legend(
        handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=9, handlelength=1.2, columnspacing=1, handletextpad=0.5
    )


def _draw_heat(axes: "Axes", values: np.ndarray, name: str) -> Any:
    """Draw one map, with the frame of what is not 0."""
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle

    picture = axes.imshow(values, cmap="viridis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    (top, bottom), (left, right) = (_ends(values.max(1 - axis)) for axis in (0, 1))
    axes.add_patch(
        Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=ORANGE, linestyle="--", linewidth=1.6)
    )
    side = math.sqrt((values > _EFFECTIVE).sum())
    axes.set_title(
        f"{name}\n{times([round(side)] * 2)} effective of {times([bottom - top, right - left])}", size=10.5, color=INK, parse_math=False
    )
    axes.tick_params(labelsize=8)
    return picture


def _draw_curve(axes: "Axes", values: np.ndarray, name: str) -> None:
    """Draw one map along a single axis."""
    first, last = _ends(values)
    axes.fill_between(np.arange(len(values)), values, color=BLUE, alpha=0.35, linewidth=0, step="mid")
    axes.plot(values, color=BLUE, linewidth=1.4, drawstyle="steps-mid")
    for place in (first - 0.5, last - 0.5):
        axes.axvline(place, color=ORANGE, linestyle="--", linewidth=1.6)
    axes.set_title(f"{name}\n{(values > _EFFECTIVE).sum()} effective of {last - first}", size=10.5, color=INK, parse_math=False)
    axes.set_xlabel("sample", size=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _ends(values: np.ndarray) -> tuple[int, int]:
    """The first place that is not 0, and one past the last."""
    (places,) = np.nonzero(values)
    return int(places[0]), int(places[-1]) + 1
