"""Augmentation of one example: the key of each draw, and how an image moves alone or with its mask and boxes."""

import types
from typing import Any

import jax
import jax.numpy as jnp

from dilax.spec import to_float
from train.data.augment.geometry import (
    Coordinates,
    Sizes,
    Window,
    move_boxes,
    random_rotation,
    random_start,
    random_zoom,
    read_filled,
    read_linear,
    read_slice,
)
from train.data.augment.pixels import cutout, random_colour, random_noise

Keys = dict[str, jax.Array]
Options = types.SimpleNamespace

# `fold_in(key, i)` equals `split(key, n)[i]`, so these numbers must be larger than those of the splits in `draw_keys`. Changing a number or
# a split changes the draws of every run.
_NUMBERS = {"position": 8, "colour": 9, "shift": 10, "rotation": 11, "cutout": 12, "flips": 13, "noise": 14}


def draw_keys(key: jax.Array, *, alone: bool) -> Keys:
    """Return a key for each draw of an example, whose image is `alone` or has a mask or boxes."""
    names = ("shift", "flip", "rotation", "cutout", "mixup") if alone else ("position", "colour")
    keys = {name: jax.random.fold_in(key, number) for name, number in _NUMBERS.items()}
    keys.update(zip(names, jax.random.split(key, len(names))))
    zoom, row, column, flip = jax.random.split(keys["position"], 4)
    return {"zoom": zoom, "slice": jax.random.fold_in(keys["position"], 4), "row": row, "column": column, "flip": flip, **keys}


def augment_example(keys: Keys, example: dict[str, Any], options: Options, *, ignored: int) -> dict[str, Any]:
    """Augment the image, mask and boxes of one example; arguments and result as for `augment`, without the batch axis."""
    if options.flip_axes:
        example = _flip(keys["flips"], example, options.flip_axes)
    if "mask" in example or "boxes" in example:
        example = _move_together(keys, example, options, ignored)
    else:
        example = {"image": _move_alone(keys, example["image"], options)}
    if options.noise:
        example["image"] = random_noise(keys["noise"], example["image"], strength=options.noise)
    if options.cutout:
        example["image"] = cutout(keys["cutout"], example["image"], side=options.cutout)
    return example


def _flip(key: jax.Array, example: dict[str, Any], axes: tuple[int, ...]) -> dict[str, Any]:
    """Mirror the image and the mask of an example along each of some axes of space, with probability 1/2."""
    mirrored = jax.random.bernoulli(key, shape=(len(axes),))
    for name in ("image", "mask"):
        for axis, flip in zip(axes, mirrored) if name in example else ():
            example = {**example, name: jnp.where(flip, jnp.flip(example[name], axis), example[name])}
    return example


def _move_alone(keys: Keys, image: jax.Array, options: Options) -> jax.Array:
    """Change the colours of an image and move it: by whole pixels first, then about its centre."""
    old = image.shape[:-1]
    new = tuple(options.crop) or old
    if options.colour:
        image = random_colour(keys["colour"], _as_float(image), strength=options.colour)
    if new != old or options.flip or options.crop_padding:
        window = _draw_window(keys, options, old, new, scale=0.0)
        image = read_slice(image, window, sizes=new, padding=options.crop_padding)
    image = _as_float(image)
    if options.rotate or options.scale:
        rotation = random_rotation(keys["rotation"], degrees=options.rotate, scale=options.scale, axes=len(new))
        image = read_linear(image, rotation.coordinates(new))
    return image


def _move_together(keys: Keys, example: dict[str, Any], options: Options, ignored: int) -> dict[str, Any]:
    """Change the colours of an image and move it with its mask and boxes."""
    moved = {**example, "image": _as_float(example["image"])}
    old = example["image"].shape[:-1]
    new = tuple(options.crop) or old
    if options.colour:
        moved["image"] = random_colour(keys["colour"], moved["image"], strength=options.colour)
    if new == old and not (options.flip or options.crop_padding or options.rotate or options.scale):
        return moved
    window = _draw_window(keys, options, old, new, scale=options.scale)
    rotation = random_rotation(keys["rotation"], degrees=options.rotate, scale=0.0, axes=len(new)) if options.rotate else None
    coordinates = window.coordinates(_pixels(new) if rotation is None else rotation.coordinates(new), new)
    for name, fill in {"image": 0, "mask": ignored}.items():
        if name in moved and (options.rotate or options.scale):
            moved[name] = read_filled(moved[name], coordinates, fill=fill)
        elif name in moved:
            moved[name] = read_slice(moved[name], window, sizes=new, padding=options.crop_padding, fill=fill)
    if "boxes" in moved:
        moved["boxes"], moved["box_mask"] = move_boxes(moved["boxes"], moved["box_mask"], window, rotation, sizes=new)
    return moved


def _draw_window(keys: Keys, options: Options, old: Sizes, new: Sizes, *, scale: float) -> Window:
    """Draw a window of spatial shape `new` in an input of spatial shape `old`, magnified by up to 1 + `scale`."""
    zoom, start = jnp.ones(()), jnp.zeros((len(old),))
    if scale:
        zoom = random_zoom(keys["zoom"], scale=scale)
    if scale or new != old:
        axes = ("slice", "row", "column")[-len(old) :]
        start = jnp.stack([random_start(keys[axis], zoom, old=before, new=after) for axis, before, after in zip(axes, old, new)])
    if options.crop_padding:
        shift = jax.random.randint(keys["shift"], (len(old),), 0, 2 * options.crop_padding + 1) - options.crop_padding
        start += shift.astype(start.dtype)
    return Window(start, zoom, jax.random.bernoulli(keys["flip"]) & options.flip)


def _as_float(image: jax.Array) -> jax.Array:
    return to_float(image) if image.dtype == jnp.uint8 else image.astype(jnp.float32)


def _pixels(sizes: Sizes) -> Coordinates:
    return tuple(jnp.arange(size, dtype=jnp.float32) for size in sizes)
