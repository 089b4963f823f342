"""Geometric augmentation: one map of coordinates per example, through which its image, mask and boxes are all read.

The output is a window of the input, rotated about the centre of the window. Both maps lead from the output to the input, because each pixel
of the output is read from where it comes from; `undo` leads back, which is how the corners of boxes move. Coordinates are in pixels, whose
centres lie at 0, 1, ..., with one array per spatial axis. The arrays are 1-D where each coordinate depends on its own axis alone, which is
cheap to read; those of a rotated output have all of its axes.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

MIN_VISIBLE = 0.1  # fraction of the area of a box that must remain in the image for the box to be kept

Coordinates = tuple[jax.Array, ...]
Sizes = tuple[int, ...]


class Rotation(NamedTuple):
    """A rotation and a zoom of all axes, about the centre.

    Attributes:
        matrix: Of the rotation, (axes, axes), from the output to the input.
        zoom: Magnification, ().
    """

    matrix: jax.Array
    zoom: jax.Array

    def coordinates(self, sizes: Sizes) -> Coordinates:
        """Return where each pixel of an output of spatial shape `sizes` comes from, in an input of the same shape."""
        centred = jnp.meshgrid(*(jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2 for size in sizes), indexing="ij")
        turned = (sum((weight * each for weight, each in zip(row[1:], centred[1:])), row[0] * centred[0]) for row in self.matrix)
        return tuple(each / self.zoom + (size - 1) / 2 for each, size in zip(turned, sizes))

    def undo(self, rows: jax.Array, columns: jax.Array, sizes: Sizes) -> Coordinates:
        """Map coordinates in the input to coordinates in the output, for two spatial axes."""
        row, column = ((each - (size - 1) / 2) * self.zoom for each, size in zip((rows, columns), sizes))
        (cosine, _), (sine, _) = self.matrix
        row, column = row * cosine + column * sine, column * cosine - row * sine
        return row + (sizes[0] - 1) / 2, column + (sizes[1] - 1) / 2


class Window(NamedTuple):
    """A window of a magnified input, which may extend beyond the input.

    Attributes:
        start: First pixel of the window in the magnified input, along each spatial axis, (axes,). It is a whole number, so that nothing is
            blurred where the zoom is 1.
        zoom: Magnification, ().
        mirrored: Whether the last axis is reversed, ().
    """

    start: jax.Array
    zoom: jax.Array
    mirrored: jax.Array

    def coordinates(self, coordinates: Coordinates, sizes: Sizes) -> Coordinates:
        """Map coordinates in a window of spatial shape `sizes` to coordinates in the input."""
        last = jnp.where(self.mirrored, sizes[-1] - 1 - coordinates[-1], coordinates[-1])
        return tuple((start + each + 0.5) / self.zoom - 0.5 for start, each in zip(self.start, (*coordinates[:-1], last)))

    def undo(self, rows: jax.Array, columns: jax.Array, sizes: Sizes) -> Coordinates:
        """Map coordinates in the input to coordinates in the window, for two spatial axes."""
        rows, columns = ((each + 0.5) * self.zoom - 0.5 - start for each, start in zip((rows, columns), self.start))
        return rows, jnp.where(self.mirrored, sizes[-1] - 1 - columns, columns)


def random_rotation(key: jax.Array, *, degrees: float, scale: float, axes: int = 2) -> Rotation:
    """Draw a rotation and a zoom, the latter as `random_zoom`.

    Images are rotated by an angle of up to `degrees` in either direction. Volumes are rotated so in each of the planes of their axes, one
    after the other: about their last axis, their second and their first.
    """
    angle_key, zoom_key = jax.random.split(key)
    planes = list(itertools.combinations(range(axes), 2))
    angles = jax.random.uniform(angle_key, () if axes == 2 else (len(planes),), minval=-1.0).reshape(-1) * jnp.deg2rad(degrees)
    matrix = _plane_rotation(angles[0], planes[0], axes)
    for angle, plane in zip(angles[1:], planes[1:]):
        matrix = jnp.matmul(_plane_rotation(angle, plane, axes), matrix, precision=jax.lax.Precision.HIGHEST)
    return Rotation(matrix, random_zoom(zoom_key, scale=scale))


def _plane_rotation(angle: jax.Array, plane: tuple[int, int], axes: int) -> jax.Array:
    """Return the matrix (axes, axes) of a rotation in the plane of two axes."""
    i, j = plane
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return jnp.eye(axes).at[jnp.array([i, i, j, j]), jnp.array([i, j, i, j])].set(jnp.stack([cosine, -sine, sine, cosine]))


def random_zoom(key: jax.Array, *, scale: float) -> jax.Array:
    """Draw a factor (1 + scale)^u, with u uniform in -1..1."""
    return (1 + scale) ** jax.random.uniform(key, (), minval=-1.0)


def random_start(key: jax.Array, zoom: jax.Array, *, old: int, new: int) -> jax.Array:
    """Draw the first pixel of a window along one axis.

    The window lies anywhere within the magnified input or, if the window is the larger of the two, anywhere around it.

    Args:
        key: Of this axis.
        zoom: Magnification.
        old: Size of the input before it is magnified.
        new: Size of the window.

    Returns:
        A whole number as float32, (); at most 0 if the window is the larger.
    """
    room = jnp.floor(old * zoom) - new
    return jnp.sign(room) * jnp.floor(jax.random.uniform(key) * (jnp.abs(room) + 1))


def read_slice(array: jax.Array, window: Window, *, sizes: Sizes, padding: int, fill: int | None = None) -> jax.Array:
    """Read a window of zoom 1 as a slice of the padded input.

    Args:
        array: Input (*space, ...).
        window: Where the output lies in the input.
        sizes: Spatial shape of the output.
        padding: Pixels by which the window may extend beyond the input, in addition to those by which it is larger.
        fill: Value beyond the edge of the input; None repeats the pixels of the edge.

    Returns:
        Output (*sizes, ...), in the dtype of the input.
    """
    margins = [padding + max(new - old, 0) for old, new in zip(array.shape, sizes)]
    rest = array.shape[len(sizes) :]
    if any(margins) or array.shape != (*sizes, *rest):
        widths = [(margin, margin) for margin in margins] + [(0, 0)] * len(rest)
        padded = jnp.pad(array, widths, mode="edge") if fill is None else jnp.pad(array, widths, constant_values=fill)
        starts = window.start.astype(jnp.int32) + jnp.array(margins)
        array = jax.lax.dynamic_slice(padded, (*starts, *(0,) * len(rest)), (*sizes, *rest))
    return jnp.where(window.mirrored, jnp.flip(array, len(sizes) - 1), array)


def read_filled(array: jax.Array, coordinates: Coordinates, *, fill: int) -> jax.Array:
    """Read floats (*space, channels) by interpolation, or integers (*space) at the nearest pixels, with `fill` outside the input."""
    inside = _inside(coordinates, array.shape)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.where(inside[..., None], read_linear(array, coordinates), fill)
    return jnp.where(inside, _read_nearest(array, coordinates), jnp.asarray(fill, array.dtype))


def read_linear(image: jax.Array, coordinates: Coordinates) -> jax.Array:
    """Read a float image (*space, channels) by linear interpolation, repeating the pixels of the edge beyond it."""
    if coordinates[-1].ndim == 1:
        for axis, line in enumerate(coordinates):
            image = _interpolate(image, line, axis)
        return image

    def read(channel: jax.Array) -> jax.Array:
        return map_coordinates(channel, list(coordinates), order=1, mode="nearest")

    return jax.vmap(read, -1, -1)(image)


def _interpolate(image: jax.Array, line: jax.Array, axis: int) -> jax.Array:
    size = image.shape[axis]
    line = jnp.clip(line, 0, size - 1)
    floor = jnp.floor(line)
    low, weight = floor.astype(jnp.int32), _along(line - floor, axis, image.ndim)
    before, after = jnp.take(image, low, axis), jnp.take(image, jnp.minimum(low + 1, size - 1), axis)
    return before * (1 - weight) + after * weight


def _read_nearest(array: jax.Array, coordinates: Coordinates) -> jax.Array:
    """Read an array (*space) at the nearest pixels, repeating the pixels of the edge beyond it."""
    pixels = [jnp.clip(jnp.floor(each + 0.5), 0, size - 1).astype(jnp.int32) for each, size in zip(coordinates, array.shape)]
    if pixels[-1].ndim > 1:
        return array[tuple(pixels)]
    for axis, line in enumerate(pixels):
        array = jnp.take(array, line, axis)
    return array


def _inside(coordinates: Coordinates, sizes: Sizes) -> jax.Array:
    """Return which coordinates lie inside an array of spatial shape `sizes`, bool (*output)."""
    inside = [(each >= -0.5) & (each < size - 0.5) for each, size in zip(coordinates, sizes)]
    if inside[-1].ndim == 1:
        inside = [_along(line, axis, len(inside)) for axis, line in enumerate(inside)]
    return functools.reduce(jnp.logical_and, inside)


def _along(line: jax.Array, axis: int, axes: int) -> jax.Array:
    """Lay values (n,) along one of several axes."""
    return line.reshape(*(1,) * axis, -1, *(1,) * (axes - 1 - axis))


def move_boxes(
    boxes: jax.Array, exist: jax.Array, window: Window, rotation: Rotation | None, *, sizes: Sizes
) -> tuple[jax.Array, jax.Array]:
    """Move boxes with the pixels that they enclose.

    Args:
        boxes: (boxes, 4), each (x0, y0, x1, y1): edges in pixels, so that the box of the whole image is (0, 0, width, height).
        exist: Which boxes exist, bool (boxes,).
        window: Where the output lies in the input.
        rotation: Of the window about its centre, if it is rotated.
        sizes: (height, width) of the output.

    Returns:
        The bounding boxes of the moved corners, clipped to the output, and which of them exist. A box is dropped if less than `MIN_VISIBLE`
        of its area remains. Boxes that do not exist are all 0.
    """
    x0, y0, x1, y1 = boxes.T - 0.5
    rows, columns = window.undo(jnp.stack([y0, y0, y1, y1]), jnp.stack([x0, x1, x0, x1]), sizes)
    if rotation is not None:
        rows, columns = rotation.undo(rows, columns, sizes)
    top, bottom, left, right = rows.min(0) + 0.5, rows.max(0) + 0.5, columns.min(0) + 0.5, columns.max(0) + 0.5
    area = (right - left) * (bottom - top)
    (top, bottom), (left, right) = (jnp.clip(jnp.stack(edges), 0, size) for edges, size in zip(((top, bottom), (left, right)), sizes))
    visible = (right - left) * (bottom - top)
    exist = exist & (visible > 0) & (visible >= MIN_VISIBLE * area)
    return jnp.where(exist[:, None], jnp.stack([left, top, right, bottom], -1), 0).astype(boxes.dtype), exist
