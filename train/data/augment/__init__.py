"""Augmentation as a pure function of a key and a batch, run on the device inside the training step.

Images or volumes are augmented together with the masks, boxes and targets that belong to them. The draws of example i depend only on the key
and on i, its place in the whole batch, so they are the same however the batch is sharded.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dilax.errors import UserError
from dilax.spec import to_float
from train.data.augment.geometry import (
    Places,
    Window,
    inside,
    move_boxes,
    random_place,
    random_rotation,
    random_zoom,
    read_linear,
    read_nearest,
)
from train.data.augment.options import (
    AUGMENT_KEYS,
    CLASS_KEYS,
    COLOUR_KEYS,
    CUTOUT_KEYS,
    GEOMETRY_KEYS,
    MASK_KEYS,
    check_batch,
    read_options,
)
from train.data.augment.pixels import cutout, mixup, one_hot, random_colour, smooth

__all__ = [
    "AUGMENT_KEYS",
    "CLASS_KEYS",
    "COLOUR_KEYS",
    "CUTOUT_KEYS",
    "GEOMETRY_KEYS",
    "MASK_KEYS",
    "augment",
    "example_keys",
    "one_hot",
    "read_options",
    "to_float",
]

Batch = dict[str, Any]


def example_keys(key: jax.Array, count: int, first: int | jax.Array = 0) -> jax.Array:
    """Return one key for each of `count` examples, the first of which is number `first` of the whole batch."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))


def augment(
    key: jax.Array, batch: Batch, options: Mapping[str, Any] | ConfigDict, *, first: int | jax.Array = 0, ignored: int = 255
) -> Batch:
    """Apply the part `augment` of a config to a batch.

    One map of coordinates per example moves everything in it alike. How an image is moved depends on what comes with it:

    - Images alone are zoomed about their centre, and the pixels of their edge are repeated beyond it.
    - With a mask or boxes, the output is a window that lies anywhere within the zoomed image (anywhere around it, if the window is the
      larger) and is rotated about its own centre. Outside the image, images are grey (0) and masks are `ignored`.

    Masks and boxes keep what `cutout` covers, which is to be inferred from the surroundings. Volumes are flipped along their last spatial
    axis, rotated about their first (within each slice), and zoomed, cropped, shifted and cut out along all three.

    Args:
        key: Of the whole batch.
        batch: Arrays by name. Those that are not named here are returned as they are.

            - "image": (n, height, width, channels), or volumes (n, depth, height, width, channels); uint8, or floats in -1..1.
            - "mask", optional: Labels of the pixels, integers (n, *space).
            - "boxes", optional: Floats (n, boxes, 4), each (x0, y0, x1, y1): edges in pixels, so that the box of the whole image is
              (0, 0, width, height). Only beside images.
            - "box_mask", optional: Which boxes exist, bool (n, boxes); without it, all do.
            - "target", optional: Floats (n, classes), as `one_hot` makes them without smoothing.
        options: Options by name, as in `AUGMENT_KEYS`; those that are missing are off.
        first: Number of the first of these examples in the whole batch.
        ignored: Label of the pixels of masks that lie outside the image.

    Returns:
        The batch, with float32 images in -1..1 and masks of the size `options.crop`, if it is set. Of boxes, the bounding boxes of the moved
        corners, clipped to the image; those of which less than a tenth remains are dropped from "box_mask".

    Raises:
        UserError: If an option is out of range or does not fit what the batch holds, or if an array has a wrong shape or dtype.
    """
    image = batch["image"]
    if image.ndim not in (4, 5) or not (image.dtype == jnp.uint8 or jnp.issubdtype(image.dtype, jnp.floating)):
        raise UserError(
            f'augment: batch["image"] is {image.dtype} {image.shape}, but must be uint8 or floats: images (batch, height, width, channels) '
            "or volumes (batch, depth, height, width, channels)."
        )
    settings = read_options(options, axes=image.ndim - 2)
    check_batch(batch, settings, ignored)
    if "boxes" in batch and "box_mask" not in batch:
        batch = {**batch, "box_mask": jnp.ones(batch["boxes"].shape[:2], bool)}
    alone = "mask" not in batch and "boxes" not in batch
    keys = jax.vmap(lambda key: _draw_keys(key, alone))(example_keys(key, len(image), first))
    moving = {name: batch[name] for name in ("image", "mask", "boxes", "box_mask") if name in batch}
    result = {**batch, **jax.vmap(lambda keys, example: _augment_example(keys, example, settings, ignored))(keys, moving)}
    if "target" in batch:
        result["target"] = smooth(batch["target"], settings.label_smoothing)
    if settings.mixup:
        result["image"], result["target"] = mixup(keys["mixup"], result["image"], result["target"], alpha=settings.mixup)
    return result


# `fold_in(key, i)` is `split(key, n)[i]`: these numbers lie above those of the splits below. Changing either changes the draws of all runs.
_NUMBERS = {"place": 8, "colour": 9, "shift": 10, "rotation": 11, "cutout": 12}


def _draw_keys(key: jax.Array, alone: bool) -> dict[str, jax.Array]:
    """Return one key for each draw of an example."""
    names = ("shift", "flip", "rotation", "cutout", "mixup") if alone else ("place", "colour")
    keys = {name: jax.random.fold_in(key, number) for name, number in _NUMBERS.items()}
    keys.update(zip(names, jax.random.split(key, len(names))))
    keys["zoom"], keys["row"], keys["column"], flip = jax.random.split(keys["place"], 4)
    return {"flip": flip, "slice": jax.random.fold_in(keys["place"], 4), **keys}


def _augment_example(keys: dict[str, jax.Array], example: Batch, options: Any, ignored: int) -> Batch:
    image = to_float(example["image"]) if example["image"].dtype == jnp.uint8 else example["image"].astype(jnp.float32)
    if options.colour:
        image = random_colour(keys["colour"], image, strength=options.colour)
    example = {**example, "image": image}
    example = _move_all(keys, example, options, ignored) if len(example) > 1 else {"image": _move_image(keys, image, options)}
    if options.cutout:
        example["image"] = cutout(keys["cutout"], example["image"], side=options.cutout)
    return example


def _move_image(keys: dict[str, jax.Array], image: jax.Array, options: Any) -> jax.Array:
    """Move an image alone: first by whole pixels, then about its centre."""
    old = image.shape[:-1]
    new = tuple(options.crop) or old
    if new != old or options.flip or options.crop_padding:
        window = _draw_window(keys, options, old, new, zoom=jnp.ones(()))
        image = read_nearest(image, window.places(_pixels(new), new))
    if options.rotate or options.scale:
        image = read_linear(image, random_rotation(keys["rotation"], degrees=options.rotate, scale=options.scale).places(new))
    return image


def _move_all(keys: dict[str, jax.Array], example: Batch, options: Any, ignored: int) -> Batch:
    """Move an image with its mask and its boxes."""
    old = example["image"].shape[:-1]
    new = tuple(options.crop) or old
    if new == old and not (options.flip or options.crop_padding or options.rotate or options.scale):
        return example
    window = _draw_window(keys, options, old, new, zoom=random_zoom(keys["zoom"], scale=options.scale))
    rotation = random_rotation(keys["rotation"], degrees=options.rotate, scale=0.0) if options.rotate else None
    places = window.places(_pixels(new) if rotation is None else rotation.places(new), new)
    within = inside(places, old)
    read = read_linear if options.rotate or options.scale else read_nearest  # whole pixels need no interpolation
    moved = {"image": jnp.where(within[..., None], read(example["image"], places), 0.0)}
    if "mask" in example:
        mask = example["mask"]
        moved["mask"] = jnp.where(within, read_nearest(mask, places), jnp.asarray(ignored, mask.dtype))
    if "boxes" in example:
        moved["boxes"], moved["box_mask"] = move_boxes(example["boxes"], example["box_mask"], window, rotation, sizes=new)
    return moved


def _pixels(sizes: tuple[int, ...]) -> Places:
    return tuple(jnp.arange(size, dtype=jnp.float32) for size in sizes)


def _draw_window(keys: dict[str, jax.Array], options: Any, old: tuple[int, ...], new: tuple[int, ...], *, zoom: jax.Array) -> Window:
    """Draw where an output of spatial shape `new` lies in an input of spatial shape `old`."""
    names = ("slice", "row", "column")[-len(old) :]
    first = jnp.stack([random_place(keys[name], zoom, old=a, new=b) for name, a, b in zip(names, old, new)])
    if options.crop_padding:
        shift = jax.random.randint(keys["shift"], (len(old),), 0, 2 * options.crop_padding + 1) - options.crop_padding
        first += shift.astype(first.dtype)
    return Window(first, zoom, jax.random.bernoulli(keys["flip"]) & options.flip)
