"""The chart of `benchmarks.ops`: the speed of dilax relative to XLA and torch, case by case.

python -m benchmarks.chart notebooks/speed.json notebooks/speed.png    draws it from what `benchmarks.ops --json` wrote
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.cases import DTYPES, KINDS
from dilax import plots
from dilax.errors import UserError
from train import cli

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, TIMES = "#222222", "#8A8A8A", "\N{MULTIPLICATION SIGN}"
# Label, colour (of the palette of Okabe and Ito), marker, and x position of the mean.
SERIES = {"forward": ("forward", "#0072B2", "o", 0.72), "gradients": ("forward and both gradients", "#D55E00", "D", 0.99)}


def chart(rows: Sequence[dict[str, Any]], env: dict[str, Any]) -> "Figure":
    """Draw the speed relative to lax (left) and to torch (right): one line per case, one dot per measure.

    Args:
        rows: The results of `benchmarks.ops.measure_case`.
        env: The environment of `benchmarks.common.environment`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    positions = _vertical_positions(rows)
    bottom = max(positions.values()) + 0.9
    height = 1.57 + 0.19 * bottom
    figure = Figure((10.5, height), facecolor="white")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.29, right=0.985, top=1 - 0.95 / height, bottom=0.62 / height, wspace=0.06)
    _draw_panel(panels[0], rows, positions, lambda row: row["lax_over_auto"], "than XLA's own convolution")
    _draw_panel(panels[1], rows, positions, torch_over_auto, "than torch, in its faster layout")
    panels[0].set_ylim(bottom, -0.9)
    titles = {row["case"]: row["title"] for row in rows}
    cases = [name for name in positions if name in titles]
    panels[0].set_yticks([positions[name] for name in cases], [titles[name] for name in cases], fontsize=7.5, color=INK)
    for heading in (name for name in positions if name not in titles):
        y, transform = positions[heading], panels[0].get_yaxis_transform()
        panels[0].text(-0.02, y, heading, transform=transform, ha="right", va="center", size=9.5, weight="bold", color=INK)
    marks: Any = panels[0].get_legend_handles_labels()
    figure.text(0.012, 1 - 0.15 / height, "How many times faster dilax is", va="top", size=12, weight="bold", color=INK)
    figure.legend(*marks, loc="upper left", bbox_to_anchor=(0, 1 - 0.32 / height), frameon=False, fontsize=8.5, handletextpad=0.1)
    note = (
        "dilax is faster to the right of the line; geometric means; batch x space x channels -> outputs, "
        "k: taps per axis, d: dilation, s: stride, g: groups"
    )
    figure.text(0.985, 0.21 / height, note, ha="right", size=7, color=INK)
    figure.text(0.985, 0.07 / height, common.heading(env), ha="right", size=6.5, color=GREY)
    return figure


def torch_over_auto(row: dict[str, Any]) -> float | None:
    """Return how many times faster dilax is than torch, or None if either was not measured."""
    return 1 / row["auto_over_torch"] if row["auto_over_torch"] else None


def _group(row: dict[str, Any]) -> str:
    return _heading(row["kind"], row["plan"]["dtype"])


def _heading(kind: str, dtype: str) -> str:
    return f"{kind}, {dtype}"


def _vertical_positions(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the vertical position of the heading of each group and of each case, from the top."""
    positions: dict[str, float] = {}
    below = 0.0
    for heading in (_heading(kind, dtype) for dtype in DTYPES for kind in KINDS):
        names = list(dict.fromkeys(row["case"] for row in rows if _group(row) == heading))
        if names:
            positions |= {name: below + i for i, name in enumerate([heading, *names])}
            below += len(names) + 1.4
    return positions


def _draw_panel(
    axes: Any, rows: Sequence[dict[str, Any]], positions: dict[str, float], ratio: Callable[[dict[str, Any]], float | None], title: str
) -> None:
    """Draw one ratio for every case, with a dot per measure, and its geometric means on the lines of the groups."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_title(title, fontsize=10, fontweight="bold", color=INK, pad=9)
    axes.axvline(1, color=GREY, linewidth=1.3, zorder=1)
    for name, (label, color, marker, align) in SERIES.items():
        known = [(row, value) for row in rows if row["measure"] == name and (value := ratio(row)) is not None]
        values, heights = [value for _, value in known], [positions[row["case"]] for row, _ in known]
        axes.plot(values, heights, linestyle="", marker=marker, markersize=5, color=color, label=label, zorder=3)
        for heading in dict.fromkeys(map(_group, rows)):
            mean = common.geometric_mean(value for row, value in known if _group(row) == heading)
            transform, style = axes.get_yaxis_transform(), dict(ha="right", va="center", size=8.5, weight="bold", color=color)
            box = dict(facecolor="white", edgecolor="none", pad=1)  # hides the line at 1
            axes.text(align, positions[heading], f"mean {common.format_number(mean, TIMES)}", transform=transform, bbox=box, **style)
    if not axes.lines[1].get_xdata().size:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), max(high, 2.5))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{TIMES}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0, labelsize=8, colors=INK)
    axes.grid(color="#E8E8E8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the chart of measurements that were written to a file."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("json", type=pathlib.Path, help="file that benchmarks.ops --json wrote")
    parser.add_argument("picture", type=pathlib.Path, help="file of the chart: .png, .svg or .pdf")
    args: argparse.Namespace = parser.parse_args(argv)
    try:
        results = json.loads(args.json.read_text())
        rows, env = results["rows"], results["environment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{args.json} is not a file that benchmarks.ops --json wrote ({error}); give one that is.") from error
    common.check_writable(args.picture, suffixes=(".png", ".svg", ".pdf"))
    plots.save(chart(rows, env), args.picture, dpi=150)
    return 0


if __name__ == "__main__":
    cli.run(main)
