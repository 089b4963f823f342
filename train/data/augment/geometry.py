"""Where the pixels of an augmented example come from: one map of coordinates, by which images, masks and boxes are read alike.

The output is a window of the input, rotated about the centre of the window. Both maps lead from places in the output to places in the
input, since each output pixel is read where it comes from; `undo` leads back, as the corners of boxes do. Places count pixels, whose centres
lie at 0, 1, ...; there is one array of places per spatial axis. An axis along which the map is independent of the other axes has a 1-D
array, which is cheap to read; the two axes of a rotated plane have one 2-D array each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

MIN_BOX_SHARE = 0.1  # of the area of a box, which must remain in the image for the box to be kept
Places = tuple[jax.Array, ...]
Sizes = tuple[int, ...]


class Rotation(NamedTuple):
    """A rotation and a zoom about the centre, of the last two spatial axes and of all of them.

    Attributes:
        angle: In radians, ().
        zoom: Factor of enlargement, ().
    """

    angle: jax.Array
    zoom: jax.Array

    def places(self, sizes: Sizes) -> Places:
        """Return the places, in an array of spatial shape `sizes`, from which each pixel of the rotated array is read."""
        centred = [jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2 for size in sizes]
        row, column = jnp.meshgrid(*centred[-2:], indexing="ij")
        rows = row * jnp.cos(self.angle) - column * jnp.sin(self.angle)
        columns = row * jnp.sin(self.angle) + column * jnp.cos(self.angle)
        return tuple(places / self.zoom + (size - 1) / 2 for places, size in zip((*centred[:-2], rows, columns), sizes))

    def undo(self, rows: jax.Array, columns: jax.Array, sizes: Sizes) -> Places:
        """Map places in the input to places in the output, for two spatial axes."""
        row, column = ((places - (size - 1) / 2) * self.zoom for places, size in zip((rows, columns), sizes))
        row, column = row * jnp.cos(self.angle) + column * jnp.sin(self.angle), column * jnp.cos(self.angle) - row * jnp.sin(self.angle)
        return row + (sizes[0] - 1) / 2, column + (sizes[1] - 1) / 2


class Window(NamedTuple):
    """A part of an array that has been enlarged, or of what surrounds it.

    Attributes:
        first: The first pixel of the window in the enlarged array, along each spatial axis, (axes,). Whole numbers, so that nothing is
            blurred where the zoom is 1.
        zoom: Factor of enlargement, ().
        mirrored: Whether the last axis is reversed, ().
    """

    first: jax.Array
    zoom: jax.Array
    mirrored: jax.Array

    def places(self, places: Places, sizes: Sizes) -> Places:
        """Map places in a window of spatial shape `sizes` to places in the array."""
        last = jnp.where(self.mirrored, sizes[-1] - 1 - places[-1], places[-1])
        return tuple((first + place + 0.5) / self.zoom - 0.5 for first, place in zip(self.first, (*places[:-1], last)))

    def undo(self, rows: jax.Array, columns: jax.Array, sizes: Sizes) -> Places:
        """Map places in the array to places in the window, for two spatial axes."""
        rows, columns = ((places + 0.5) * self.zoom - 0.5 - first for places, first in zip((rows, columns), self.first))
        return rows, jnp.where(self.mirrored, sizes[-1] - 1 - columns, columns)


def random_rotation(key: jax.Array, *, degrees: float, scale: float) -> Rotation:
    """Draw an angle of up to `degrees` in either direction, and a zoom of (1 + scale)^u with u uniform in -1..1."""
    angle_key, zoom_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, (), minval=-1.0) * jnp.deg2rad(degrees)
    return Rotation(angle, random_zoom(zoom_key, scale=scale))


def random_zoom(key: jax.Array, *, scale: float) -> jax.Array:
    """Draw a factor (1 + scale)^u, with u uniform in -1..1."""
    return (1 + scale) ** jax.random.uniform(key, (), minval=-1.0)


def random_place(key: jax.Array, zoom: jax.Array, *, old: int, new: int) -> jax.Array:
    """Draw the first pixel of a window along one axis.

    The window lies anywhere within the enlarged array or, if it is the larger of the two, anywhere around it.

    Args:
        key: Of this axis.
        zoom: Factor by which the array is enlarged.
        old: Size of the array, before the zoom.
        new: Size of the window.

    Returns:
        A whole number, below 0 if the window is the larger, float32.
    """
    room = jnp.floor(old * zoom) - new
    return jnp.sign(room) * jnp.floor(jax.random.uniform(key) * (jnp.abs(room) + 1))


def inside(places: Places, sizes: Sizes) -> jax.Array:
    """Return which places lie within an array of spatial shape `sizes`, bool (*output)."""
    within = [(place >= -0.5) & (place < size - 0.5) for place, size in zip(places, sizes)]
    lines, axes = [each for each in within if each.ndim == 1], len(places)
    result = jnp.logical_and(*within[-2:])[(None,) * (axes - 2)] if len(lines) < axes else jnp.ones((1,) * axes, bool)
    for axis, line in enumerate(lines):
        result = result & _along(line, axis, axes)
    return result


def _along(line: jax.Array, axis: int, axes: int) -> jax.Array:
    """Lay values (n,) along one of several axes."""
    return line.reshape(*(1,) * axis, -1, *(1,) * (axes - 1 - axis))


def read_nearest(array: jax.Array, places: Places) -> jax.Array:
    """Read an array (*space, ...) at the nearest pixels; beyond its edge, the pixels of the edge are repeated."""
    pixels = [jnp.clip(jnp.floor(place + 0.5), 0, size - 1).astype(jnp.int32) for place, size in zip(places, array.shape)]
    for axis, line in enumerate(pixels):
        if line.ndim == 1:
            array = jnp.take(array, line, axis)
    if places[-1].ndim == 1:
        return array
    return array[(slice(None),) * (len(pixels) - 2) + tuple(pixels[-2:])]


def read_linear(image: jax.Array, places: Places) -> jax.Array:
    """Read a float image (*space, channels), linearly interpolated; beyond the outermost centres, the pixels of the edge are repeated."""
    for axis, line in enumerate(places):
        if line.ndim == 1:
            image = _read_axis(image, line, axis)
    if places[-1].ndim == 1:
        return image

    def read(plane: jax.Array) -> jax.Array:
        return map_coordinates(plane, list(places[-2:]), order=1, mode="nearest")

    read = jax.vmap(read, -1, -1)
    return (jax.vmap(read) if len(places) == 3 else read)(image)


def _read_axis(image: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    size = image.shape[axis]
    places = jnp.clip(places, 0, size - 1)
    floor = jnp.floor(places)
    low, share = floor.astype(jnp.int32), _along(places - floor, axis, image.ndim)
    before, after = jnp.take(image, low, axis), jnp.take(image, jnp.minimum(low + 1, size - 1), axis)
    return before * (1 - share) + after * share


def move_boxes(
    boxes: jax.Array, exist: jax.Array, window: Window, rotation: Rotation | None, *, sizes: Sizes
) -> tuple[jax.Array, jax.Array]:
    """Move boxes to where the pixels within them move.

    Args:
        boxes: (boxes, 4), each (x0, y0, x1, y1): the edges of the box in pixels of the input, whose own box is (0, 0, width, height).
        exist: Which boxes exist, bool (boxes,).
        window: Where the output lies in the input.
        rotation: Of the window about its centre, if it is rotated.
        sizes: (height, width) of the output.

    Returns:
        The bounding boxes of the moved corners, clipped to the output, and which of them exist. A box is dropped if less than
        `MIN_BOX_SHARE` of its area remains; a box that does not exist is 0 everywhere.
    """
    columns, rows = boxes[:, jnp.array([0, 2, 0, 2])], boxes[:, jnp.array([1, 1, 3, 3])]
    rows, columns = window.undo(rows - 0.5, columns - 0.5, sizes)
    if rotation is not None:
        rows, columns = rotation.undo(rows, columns, sizes)
    corners = jnp.stack([columns, rows], -1) + 0.5
    whole = jnp.concatenate([corners.min(1), corners.max(1)], -1)
    clipped = jnp.clip(whole, 0, jnp.array([sizes[1], sizes[0], sizes[1], sizes[0]], whole.dtype))
    exist = exist & (_area(clipped) > 0) & (_area(clipped) >= MIN_BOX_SHARE * _area(whole))
    return jnp.where(exist[:, None], clipped, 0), exist


def _area(boxes: jax.Array) -> jax.Array:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
