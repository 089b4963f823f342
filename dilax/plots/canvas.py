"""What all plots share: figures without a display, names in any script, grids of images, colours, and the formatting of numbers."""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from dilax.annotated import checked_call
from dilax.errors import UserError, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
BLUE, ORANGE, GREEN, RED, INK, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#222222", "#8A8A8A"
# Matplotlib draws no picture of 2^16 pixels or more on a side; the area keeps the memory of one, at 100 pixels per inch, below 1 GB.
MAX_SIDE, MAX_AREA = 600, 20_000


@checked_call()
def save(figure: "Figure", path: str | os.PathLike[str], *, dpi: int = 100) -> None:
    """Write a figure to a file.

    Args:
        figure: The figure.
        path: The file; its suffix (.png, .svg, .pdf) determines the format.
        dpi: Resolution in pixels per inch, for pixel formats.

    Raises:
        UserError: if the suffix is not that of a format of matplotlib, or the folder does not exist.
    """
    if not hasattr(figure, "savefig"):
        raise UserError(f"save: figure={shown(figure)} is not a matplotlib figure; give one that a plot returned.")
    name, formats = os.fspath(path), figure.canvas.get_supported_filetypes()
    # Without a suffix, matplotlib would write another file than it was given.
    if os.path.splitext(name)[1].removeprefix(".").lower() not in formats:
        raise UserError(f"save: path={shown(name)} does not end in the suffix of a format; use one such as .png, .svg or .pdf.")
    if not os.path.isdir(folder := os.path.dirname(name) or "."):
        raise UserError(f"save: path={shown(name)} is in the folder {shown(folder)}, which does not exist; create it first.")
    figure.savefig(name, dpi=dpi, facecolor="white")


def new_figure(caller: str, width: float, height: float, layout: Any = None) -> "Figure":
    """Return an empty white figure of that size in inches, which can be drawn without a display.

    Raises:
        UserError: in the name of `caller`, if the figure would be too large for a picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if max(width, height) > MAX_SIDE or width * height > MAX_AREA:
        raise UserError(
            f"{caller}: a figure of {width:.0f} x {height:.0f} inches would be too large, with more than {MAX_SIDE} inches on a side or "
            f"{MAX_AREA} square inches; draw less at once."
        )
    figure = _figure_class()((width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


@functools.cache
def _figure_class() -> type["Figure"]:
    from matplotlib.figure import Figure

    class LegibleFigure(Figure):
        """A figure that finds fonts for its texts before it is drawn."""

        def draw(self, renderer: Any) -> None:
            _make_legible(self)
            super().draw(renderer)

    return LegibleFigure


def _make_legible(figure: "Figure") -> None:
    """Give the texts of a figure fonts that have their characters; what no installed font has is replaced by ?, and a note lists it."""
    from matplotlib.text import Text

    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    ticks = {axis: [label.get_text() for label in axis.get_ticklabels()] for axis in axes}  # makes the labels, too
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    used = set("".join([*(text.get_text() for text in texts), *("".join(labels) for labels in ticks.values())])) - {"\n"}
    missing = frozenset(character for character in used if ord(character) not in _characters(_default_font()))
    if not missing:
        return
    families, lost = find_fonts(missing)
    for text in texts:
        if missing & set(text.get_text()):
            text.set_text(_without(text.get_text(), lost))
            text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *families])))
    for axis, labels in ticks.items():
        if missing & set("".join(labels)):
            axis.set_ticks(axis.get_majorticklocs(), [_without(label, lost) for label in labels])
    if lost:
        named = " ".join(sorted(lost)[:10]) + " ..." * (len(lost) > 10)
        print(
            f"note: no installed font has the characters {named}; the picture shows them as ?. Install a font that has them, such as one "
            "of the Noto family.",
            file=sys.stderr,
        )


@functools.cache
def find_fonts(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the families of the fewest installed fonts that have the characters, and those that none has."""
    families: list[str] = []
    lost = characters
    covered = {name: lost & {chr(code) for code in _characters(file)} for name, file in _installed_fonts()}
    while lost and (best := max(covered, key=lambda name: len(covered[name] & lost), default="")) and covered[best] & lost:
        families.append(best)
        lost -= covered[best]
    return tuple(families), lost


def _installed_fonts() -> Iterator[tuple[str, str]]:
    """Yield the family and the file of upright, regular fonts, but those that draw a box for every character there is."""
    from matplotlib import font_manager

    for font in font_manager.fontManager.ttflist:
        regular = font.style == "normal" and font.weight in (400, "normal", "regular")
        if regular and "lastresort" not in font.name.lower().replace(" ", ""):
            yield font.name, font.fname


@functools.cache
def _characters(file: str) -> frozenset[int]:
    """Return the code points that a font has; none if it holds bitmaps, such as coloured emoji, or cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):  # a damaged font of the system is one font less to choose from
        return frozenset()


def _default_font() -> str:
    from matplotlib import font_manager

    return str(font_manager.findfont(font_manager.FontProperties()))


def _without(text: str, lost: frozenset[str]) -> str:
    return "".join("?" if character in lost else character for character in text)


def image_grid(caller: str, rows: int, columns: int, cell: float, aspect: float, title: float) -> tuple["Figure", Any]:
    """Return a figure and its blank axes, an object array (rows, columns).

    Args:
        caller: Name that error messages start with.
        rows: Number of rows.
        columns: Number of columns.
        cell: Width of the axes, in inches.
        aspect: Height of the axes over their width, limited to 0.2 ... 5.
        title: Space above the axes, in inches.
    """
    cell_height = cell * min(max(aspect, 0.2), 5)
    gap, margin = 0.12, 0.12
    width, height = columns * (cell + gap) - gap + 2 * margin, rows * (cell_height + gap + title) - gap + 2 * margin
    figure = new_figure(caller, width, height)
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
        UserError: in the name of `caller`, if the images have another rank or no pixels, or are neither uint8 nor float.
    """
    if images.ndim != 4 or 0 in images.shape[1:] or not (images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
        raise UserError(
            f"{caller}: an image has shape {images.shape[1:]} and dtype {images.dtype}; give (height, width, channels), uint8 or float."
        )
    scaled = np.clip(as_float(caller, images) / (255 if images.dtype == np.uint8 else 1), 0, 1)
    return scaled if images.shape[-1] == 3 else scaled.mean(-1)


def truncate(text: str, length: int) -> str:
    """Return the text in one line, truncated to `length` characters; what cannot be printed becomes a blank or ?."""
    text = "".join(character if character.isprintable() else " " if character.isspace() else "?" for character in text)
    return text if len(text) <= length else text[: length - 1] + "…"


def format_size(sizes: Sequence[int]) -> str:
    """Return sizes as text, such as 3 × 4."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, sizes))


def as_float(caller: str, array: ArrayLike) -> np.ndarray:
    """Return an array of any dtype known to NumPy or JAX as float64.

    Raises:
        UserError: in the name of `caller`, if the numbers are complex.
    """
    values = np.asarray(array)
    if np.iscomplexobj(values):
        raise UserError(f"{caller}: an array of complex numbers, {shown(values)}, cannot be drawn; give its real part or its magnitude.")
    return values.astype(np.float64)
