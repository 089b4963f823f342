"""Receptive fields on images: which samples an output depends on, and how strongly."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from dilax import arguments
from dilax.annotated import checked_call
from dilax.arguments import check_function
from dilax.errors import UserError
from dilax.geometry import is_integer
from dilax.plots.canvas import BLUE, INK, ORANGE, RED, as_float, format_size, new_figure, to_display, truncate
from dilax.receptive_fields import reaches
from dilax.receptive_fields.reach import members

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Values above this share of the maximum count as effective: two standard deviations of a Gaussian (Luo et al. 2016, section 3).
_EFFECTIVE = 1 - 0.9545


def receptive_field_overlay(
    fn: Callable[[jax.Array], jax.Array], image: np.ndarray | jax.Array, *, output: tuple[int, int] | None = None
) -> "Figure":
    """Show which pixels of an image one output depends on: pixels outside its receptive field are pale, holes within it are red.

    Args:
        fn: Maps (batch, height, width, channels) to an array. It is analysed as by `dilax.receptive_field`, not computed.
        image: (height, width, channels), uint8, or floats in 0..1.
        output: (row, column) of the output; None selects the central one.

    Returns:
        One panel with the image, the position of the output, and the rectangle of its receptive field, including the padding within it.

    Raises:
        UserError: if the image is not (height, width, channels), the output does not exist, or the analysis fails.
    """
    check_function("receptive_field_overlay", fn)
    picture = to_display(np.asarray(arguments.shaped("receptive_field_overlay", "image", image))[None], "receptive_field_overlay")[0]
    rows, columns = picture.shape[:2]
    x = jax.ShapeDtypeStruct((1, *np.shape(image)), jax.dtypes.canonicalize_dtype(np.asarray(image).dtype))
    position, size = _select_output(output, jax.eval_shape(fn, x).shape)
    axis_reaches = reaches(fn, x)
    seen = [
        list(range(n)) if reach is None else members(*reach.at(place)) for reach, place, n in zip(axis_reaches, position, (rows, columns))
    ]
    spans = [(indices[0], indices[-1] + 1) if indices else (0, 0) for indices in seen]
    lows = [min(first, 0) for first, _ in spans]
    highs = [max(stop, n) for (_, stop), n in zip(spans, (rows, columns))]
    margin = 0.02 * max(highs[0] - lows[0], highs[1] - lows[1])
    height, width = (high - low + 2 * margin for low, high in zip(lows, highs))
    scale = 4.6 / max(height, width)
    figure = new_figure("receptive_field_overlay", max(scale * width, 3.4) + 0.1, scale * height + 1.15)
    corner = (0.5 - 0.5 * scale * width / figure.get_figwidth(), 0.45 / figure.get_figheight())
    axes = figure.add_axes((*corner, scale * width / figure.get_figwidth(), scale * height / figure.get_figheight()))
    axes.set(xlim=(lows[1] - margin, highs[1] + margin), ylim=(highs[0] + margin, lows[0] - margin))
    axes.set_axis_off()
    _draw_field(axes, picture, seen, spans)
    if size:
        steps = [0 if reach is None else float(reach.rate) for reach in axis_reaches]
        _draw_output(axes, [place * step + max(step, 1) / 2 for place, step in zip(position, steps)])
    _heading(figure, position, size, [stop - first for first, stop in spans], math.prod(map(len, seen)))
    _fields_legend(figure, bool(size))
    return figure


@checked_call()
def effective_receptive_fields(maps: Mapping[str, ArrayLike]) -> "Figure":
    """Draw maps of `dilax.effective_receptive_field` side by side, such as those of a network before and after training.

    Args:
        maps: Title -> (height, width) or (samples,), values of 0 or more.

    Returns:
        One panel per map: a curve, or a heat map whose colours follow the square root of the values so that small ones are visible. The
        dashed frame is the receptive field. The effective size in the title is that of a square with as many samples as have at least
        4.55 % of the largest value.

    Raises:
        UserError: if `maps` is empty, or a map is neither (height, width) nor (samples,), or its values are negative, not finite or
            all 0.

    Reference:
        Luo et al. 2016, arXiv:1701.04128.
    """
    arrays = {name: as_float("effective_receptive_fields", value) for name, value in maps.items()}
    invalid = next((f"{name!r} has shape {a.shape}" for name, a in arrays.items() if a.ndim not in (1, 2) or not a.size), None)
    if invalid or not arrays:
        raise UserError(f"effective_receptive_fields: {invalid or 'maps is empty'}; give name -> (height, width) or (samples,).")
    for name, a in arrays.items():
        if not (a.min() >= 0 and 0 < a.max() < math.inf):
            raise UserError(
                f"effective_receptive_fields: {name!r} has values from {a.min():.3g} to {a.max():.3g}; give finite values of 0 or "
                "more, not all of them 0."
            )
    figure = new_figure("effective_receptive_fields", 2.9 * len(arrays) + 0.9, 3.5, layout="constrained")
    panels: Any = figure.subplots(1, len(arrays), squeeze=False)[0]
    images = [
        (_draw_curve if a.ndim == 1 else _draw_heat_map)(axes, a / a.max(), truncate(name, 32))
        for axes, (name, a) in zip(panels, arrays.items())
    ]
    heat_maps = [image for image in images if image is not None]
    if heat_maps:
        figure.colorbar(heat_maps[0], ax=panels.tolist(), label="share of the largest", ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], shrink=0.75)
    return figure


def _select_output(output: tuple[int, int] | None, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the position of the output and the size of all outputs, which is () if they have no spatial axes."""
    if len(shape) != 4:
        return (0, 0), ()
    size = shape[1:3]
    position = tuple(n // 2 for n in size) if output is None else output
    if not isinstance(position, tuple) or len(position) != 2 or not all(is_integer(i) and 0 <= i < n for i, n in zip(position, size)):
        raise UserError(
            f"receptive_field_overlay: output={output!r} is not one of the {format_size(size)} outputs; give (row, column), from 0."
        )
    return position, size


def _draw_field(axes: "Axes", picture: np.ndarray, seen: list[list[int]], spans: list[tuple[int, int]]) -> None:
    """Draw the image, pale outside the receptive field and red in its holes, and the rectangle of the field, including padding."""
    from matplotlib.patches import Rectangle

    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
    inside = [np.array([first <= i < stop for i in range(n)]) for (first, stop), n in zip(spans, picture.shape)]
    hit = [np.isin(np.arange(n), indices) for indices, n in zip(seen, picture.shape)]
    field, read = np.outer(*inside), np.outer(*hit)
    red = np.array([int(RED[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    shown = np.where(read[..., None], colour, np.where(field[..., None], 0.15 * colour + 0.85 * red, 0.35 * colour + 0.65))
    (top, bottom), (left, right) = spans
    corner, size = (left, top), (right - left, bottom - top)
    axes.add_patch(Rectangle(corner, *size, facecolor="#F4F4F4", edgecolor="#BBBBBB", hatch="/////", linewidth=0))
    axes.imshow(shown, extent=(0, picture.shape[1], picture.shape[0], 0), interpolation="nearest", zorder=2, aspect="auto")
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=BLUE, linewidth=2, zorder=3))


def _draw_output(axes: "Axes", position: list[float]) -> None:
    axes.plot(position[1], position[0], "o", color="white", markeredgecolor=INK, markeredgewidth=1.4, markersize=8, zorder=4, clip_on=False)


def _heading(figure: "Figure", position: tuple[int, ...], size: tuple[int, ...], spans: list[int], seen: int) -> None:
    title = f"output {tuple(map(int, position))} of {format_size(size)}" if size else "every output"
    missed = math.prod(spans) - seen
    coverage = f"coverage {seen / math.prod(spans):.0%}" if missed else "no holes"
    for y, text, style in (
        (0.12, title, {"size": 12, "weight": "bold", "color": INK}),
        (0.38, f"spans {format_size(spans)} pixels, {coverage}", {"size": 10.5, "color": RED if missed else INK}),
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


def _draw_heat_map(axes: "Axes", values: np.ndarray, name: str) -> Any:
    """Draw one map, with a frame around its non-zero values."""
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle

    image = axes.imshow(values, cmap="viridis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    (top, bottom), (left, right) = (_extent(values.max(1 - axis)) for axis in (0, 1))
    axes.add_patch(
        Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=ORANGE, linestyle="--", linewidth=1.6)
    )
    side = math.sqrt((values > _EFFECTIVE).sum())
    sizes = f"{format_size([round(side)] * 2)} effective of {format_size([bottom - top, right - left])}"
    axes.set_title(f"{name}\n{sizes}", size=10.5, color=INK, parse_math=False)
    axes.tick_params(labelsize=8)
    return image


def _draw_curve(axes: "Axes", values: np.ndarray, name: str) -> None:
    """Draw one map along a single axis."""
    first, stop = _extent(values)
    axes.fill_between(np.arange(len(values)), values, color=BLUE, alpha=0.35, linewidth=0, step="mid")
    axes.plot(values, color=BLUE, linewidth=1.4, drawstyle="steps-mid")
    for place in (first - 0.5, stop - 0.5):
        axes.axvline(place, color=ORANGE, linestyle="--", linewidth=1.6)
    axes.set_title(f"{name}\n{(values > _EFFECTIVE).sum()} effective of {stop - first}", size=10.5, color=INK, parse_math=False)
    axes.set_xlabel("sample", size=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _extent(values: np.ndarray) -> tuple[int, int]:
    """Return the index of the first non-zero value, and one past that of the last."""
    (indices,) = np.nonzero(values)
    return int(indices[0]), int(indices[-1]) + 1
