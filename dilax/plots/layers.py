"""Plots of the layers of a network: what each of them costs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dilax.annotated import checked_call
from dilax.errors import UserError
from dilax.plots.canvas import BLUE, GREEN, GREY, INK, ORANGE, RED, as_float, new_figure, truncate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (ORANGE, BLUE, GREEN, RED)
_BARS, _PANELS = 120, 4  # most layers that have a bar, and most panels


@checked_call()
def layer_bars(names: Sequence[str], columns: Mapping[str, ArrayLike]) -> "Figure":
    """Draw what each layer costs: one bar per layer, in the order in which they run from top to bottom.

    Args:
        names: One name per layer, such as its path.
        columns: Title, such as "time alone, ms" -> (layers,), numbers of 0 or more. Up to 4.

    Returns:
        One panel per column. Each bar is labelled with its share of the sum; the three longest of each panel are darker. Of more than 120
        layers, those with the smallest shares are left out, and the title says how many.

    Raises:
        UserError: if there is no layer, no column or more than 4, or a column does not hold one finite number of 0 or more per layer.
    """
    values = {title: as_float("layer_bars", column) for title, column in columns.items()}
    if not names or not 1 <= len(values) <= _PANELS:
        raise UserError(f"layer_bars: {len(names)} names and {len(values)} columns cannot be drawn; give some names and 1 to 4 columns.")
    for title, column in values.items():
        if column.shape != (len(names),):
            raise UserError(f"layer_bars: {title!r} has shape {column.shape} for {len(names)} names; give one number per layer.")
        if wrong := column[~((column >= 0) & np.isfinite(column))].tolist():
            raise UserError(f"layer_bars: {title!r} holds {wrong[0]}, which is not a cost; give finite numbers of 0 or more.")
    shares = {title: column / (column.sum() or 1.0) for title, column in values.items()}
    kept = np.sort(np.argsort(-np.max(list(shares.values()), axis=0), kind="stable")[:_BARS])
    labels = [truncate(names[int(i)], 44) for i in kept]
    room = 0.3 + 0.075 * max(map(len, labels))
    figure = new_figure("layer_bars", room + 3.4 * len(values), 0.2 * len(kept) + 1.0, layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False, sharey=True)[0]
    for axes, (title, column), colour in zip(panels, values.items(), _COLOURS):
        share, bars = shares[title][kept], column[kept]
        longest = share >= np.sort(share)[-min(3, len(share))]
        drawn = axes.barh(range(len(kept)), bars, color=colour, height=0.75)
        for bar, dark in zip(drawn, longest):
            bar.set_alpha(1.0 if dark else 0.5)
        for place, (bar, part, dark) in enumerate(zip(bars, share, longest)):
            if part >= 0.005:
                axes.text(bar + 0.01 * bars.max(), place, f"{part:.0%}", color=INK if dark else GREY, size=7.5, va="center")
        left_out = f"; {len(names) - len(kept)} small layers left out" * (len(kept) < len(names))
        axes.set_title(truncate(f"{title}: {column.sum():,.4g} in all{left_out}", 60), size=10, color=INK, parse_math=False)
        axes.set(xlim=(0, 1.14 * (bars.max() or 1.0)), ylim=(len(kept) - 0.4, -0.6))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)
    panels[0].set_yticks(range(len(kept)), labels, size=8, parse_math=False)
    return figure
