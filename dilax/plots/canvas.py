"""What all plots share: figures without a display, grids of images, colours, and the formatting of numbers."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from dilax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
BLUE, ORANGE, GREEN, RED, INK, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#222222", "#8A8A8A"


def save(figure: "Figure", path: str | os.PathLike[str], *, dpi: int = 100) -> None:
    """Write a figure to a file.

    Args:
        figure: The figure.
        path: The file; its suffix (.png, .svg, .pdf) determines the format.
        dpi: Resolution in pixels per inch, for pixel formats.
    """
    figure.savefig(os.fspath(path), dpi=dpi, facecolor="white")


def new_figure(width: float, height: float, layout: Any = None) -> "Figure":
    """Return an empty white figure of that size in inches, which can be drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def image_grid(rows: int, columns: int, cell: float, aspect: float, title: float) -> tuple["Figure", Any]:
    """Return a figure and its blank axes, an object array (rows, columns).

    Args:
        rows: Number of rows.
        columns: Number of columns.
        cell: Width of the axes, in inches.
        aspect: Height of the axes over their width, limited to 0.2 ... 5.
        title: Space above the axes, in inches.
    """
    cell_height = cell * min(max(aspect, 0.2), 5)
    gap, margin = 0.12, 0.12
    width, height = columns * (cell + gap) - gap + 2 * margin, rows * (cell_height + gap + title) - gap + 2 * margin
    figure = new_figure(width, height)
    cells = np.empty((rows, columns), object)
    for row, column in np.ndindex(rows, columns):
        x, y = margin + column * (cell + gap), height - margin - (row + 1) * (cell_height + title) - row * gap
        axes = cells[row, column] = figure.add_axes((x / width, y / height, cell / width, cell_height / height))
        axes.set_axis_off()
    return figure, cells


def show_image(axes: "Axes", image: np.ndarray, **options: Any) -> None:
    """Fill axes with an image, without interpolating between its pixels."""
    axes.imshow(image, interpolation="nearest", aspect="auto", **options)


def draw_frame(axes: "Axes", color: str, width: float) -> None:
    """Draw a frame around axes."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=color, linewidth=width, clip_on=False))


def to_display(images: np.ndarray, caller: str) -> np.ndarray:
    """Return images (n, height, width, channels) as floats in 0..1: (n, height, width, 3) if RGB, else (n, height, width).

    Raises:
        UserError: in the name of `caller`, if the images have another rank, or are neither uint8 nor float.
    """
    if images.ndim != 4 or not (images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
        raise UserError(
            f"{caller}: an image has shape {images.shape[1:]} and dtype {images.dtype}; give (height, width, channels), uint8 or float."
        )
    scaled = np.clip(as_float(images) / (255 if images.dtype == np.uint8 else 1), 0, 1)
    return scaled if images.shape[-1] == 3 else scaled.mean(-1)


def truncate(text: str, length: int) -> str:
    """Return the text, truncated to `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def format_size(sizes: Sequence[int]) -> str:
    """Return sizes as text, such as 3 × 4."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, sizes))


def as_float(array: ArrayLike) -> np.ndarray:
    """Return an array of any dtype known to NumPy or JAX as float64."""
    return np.asarray(array).astype(np.float64)
