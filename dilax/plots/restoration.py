"""Plots of restoration: images before and after."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from dilax.annotated import checked_call
from dilax.errors import UserError
from dilax.plots.canvas import INK, image_grid, show_image, to_display, truncate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray | jax.Array


@checked_call()
def restoration_grid(degraded: Array, restored: Array, clean: Array, titles: Sequence[str]) -> "Figure":
    """Show degraded images, what was restored from them, and the clean images, one image per row, each under a title.

    Args:
        degraded: (n, height, width, channels), uint8, or floats in 0..1.
        restored: Of the same shape.
        clean: Of the same shape.
        titles: n titles, such as "boat.png, 20.4 dB → 29.9 dB".

    Returns:
        n rows of three panels.

    Raises:
        UserError: if there is no image, or the shapes differ.
    """
    arrays = [np.asarray(each) for each in (degraded, restored, clean)]
    shapes = [each.shape for each in arrays]
    if arrays[0].ndim != 4 or not arrays[0].size or len(set(shapes)) > 1 or len(titles) != shapes[0][0]:
        raise UserError(
            f"restoration_grid: degraded {shapes[0]}, restored {shapes[1]}, clean {shapes[2]} and {len(titles)} titles do not match; give "
            "n > 0 images of each, (n, height, width, channels), and n titles."
        )
    pictures = [to_display(each, "restoration_grid") for each in arrays]
    count, height, width, _ = shapes[0]
    cell = max(2.6 / max(height / width, 1), 1.6)
    figure, cells = image_grid("restoration_grid", count, 3, cell, height / width, 0.22)
    for row, title, *images in zip(cells, titles, *pictures):
        for axes, image, text in zip(row, images, (title, "restored", "clean")):
            show_image(axes, image, cmap="gray", vmin=0, vmax=1)
            axes.set_title(truncate(text, int(15 * cell)), size=8, pad=3, color=INK, parse_math=False, loc="left")
    return figure
