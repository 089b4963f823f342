"""What all pictures share: figures without a display, rows of cells, colours, numbers as they are shown."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from dilax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, INK, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#222222", "#8A8A8A"


def save(figure: "Figure", path: str | os.PathLike[str], *, dpi: int = 100) -> None:
    """Write a figure; the ending of `path` (.png, .svg, .pdf) says how. `dpi` is in pixels per inch."""
    figure.savefig(os.fspath(path), dpi=dpi, facecolor="white")


def new_figure(width: float, height: float, layout: Any = None) -> "Figure":
    """Return an empty white figure, in inches, that draws without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def grid(rows: int, columns: int, cell: float, aspect: float, title: float) -> tuple["Figure", Any]:
    """Return a figure and its (rows, columns) blank axes; `cell` is their width, `title` the room above each, both in inches."""
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


def show(axes: "Axes", image: np.ndarray, **colours: Any) -> None:
    """Fill axes with an image, its pixels as squares."""
    axes.imshow(image, interpolation="nearest", aspect="auto", **colours)


def frame(axes: "Axes", color: str, width: float) -> None:
    """Draw the border of axes."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=color, linewidth=width, clip_on=False))


def displayable(images: np.ndarray, caller: str) -> np.ndarray:
    """Return images (n, height, width, channels) as floats 0..1: (n, height, width, 3) if RGB, else (n, height, width)."""
    if images.ndim != 4 or not (images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
        raise UserError(
            f"{caller}: an image has shape {images.shape[1:]} and dtype {images.dtype}; give (height, width, channels), uint8 or float."
        )
    scaled = np.clip(as_float(images) / (255 if images.dtype == np.uint8 else 1), 0, 1)
    return scaled if images.shape[-1] == 3 else scaled.mean(-1)


def short(text: str, length: int) -> str:
    """Return the text, cut to `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def times(sizes: Sequence[int]) -> str:
    """Return sizes as text, such as 3 × 4."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, sizes))


def as_float(array: Any) -> np.ndarray:
    """Return float64, of any dtype that numpy or jax knows."""
    return np.asarray(array).astype(np.float64)
