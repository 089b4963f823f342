"""The config keys of augmentation, and the checks of what a batch and its options must be."""

import types
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from dilax.errors import UserError, did_you_mean
from train.keys import UNLIMITED, Key, Keys

GEOMETRY_KEYS: Keys = {
    "augment.crop_padding": Key(0, "Shift by a random number of pixels, up to this many in each direction.", (0, UNLIMITED)),
    "augment.flip": Key(False, "Mirror half of the examples left to right."),
    "augment.rotate": Key(
        0.0, "Rotate by a random angle of up to this many degrees in either direction; volumes in each of their three planes.", (0, 180)
    ),
    "augment.scale": Key(0.0, "Zoom by a random factor between 1 / (1 + scale) and 1 + scale.", (0, UNLIMITED)),
}
MASK_KEYS: Keys = {
    "augment.crop": Key(
        (),
        "Size (height, width) of a random crop, of volumes (x, y, z), padded where it extends beyond the image; () keeps the size of the "
        "image.",
    ),
    "augment.flip_axes": Key((), "Axes of space, counted from 0, along each of which half of the examples are mirrored.", items=int),
    "augment.noise": Key(0.0, "Add noise of a random deviation of up to this fraction of the range from black to white.", (0, 1)),
}
COLOUR_KEYS: Keys = {
    "augment.colour": Key(0.0, "Change brightness, contrast and saturation by a random fraction of up to this.", (0, 1)),
}
CLASS_KEYS: Keys = {
    "augment.cutout": Key(0, "Side, in pixels, of a grey square placed at random over each image.", (0, UNLIMITED)),
    "augment.mixup": Key(0.0, "Alpha of the Beta distribution of the mixing weight of mixup; 0 turns mixup off.", (0, UNLIMITED)),
    "augment.label_smoothing": Key(0.0, "Fraction of each target that is spread evenly over all classes.", (0, 1)),
}
AUGMENT_KEYS: Keys = {**GEOMETRY_KEYS, **MASK_KEYS, **COLOUR_KEYS, **CLASS_KEYS}

_KEYS = {name.removeprefix("augment."): key for name, key in AUGMENT_KEYS.items()}
_AXES = {2: "(height, width)", 3: "(depth, height, width)"}


def read_options(options: Mapping[str, Any] | ConfigDict, *, axes: int = 2) -> types.SimpleNamespace:
    """Return all options of `AUGMENT_KEYS` as attributes, after checking them; those that are missing are off.

    Args:
        options: Values by name, without the prefix "augment.".
        axes: Number of spatial axes: 2 for images, 3 for volumes.

    Raises:
        UserError: If an option is unknown or out of range, or if `crop` does not hold one size per spatial axis.
    """
    given = dict(options.items())
    for name, value in given.items():
        if name not in _KEYS:
            raise UserError(f"config.augment.{name} is unknown; use one of {tuple(_KEYS)}.{did_you_mean(name, _KEYS)}")
        _KEYS[name].check(f"augment.{name}", value)
    read = types.SimpleNamespace(**{name: given.get(name, key.default) for name, key in _KEYS.items()})
    if read.crop and (len(read.crop) != axes or not all(isinstance(side, int) and side >= 1 for side in read.crop)):
        raise UserError(f"config.augment.crop={tuple(read.crop)} must be {_AXES[axes]} in pixels, or () for the size of the image.")
    if len(set(read.flip_axes)) < len(read.flip_axes) or not all(isinstance(axis, int) and 0 <= axis < axes for axis in read.flip_axes):
        raise UserError(f"config.augment.flip_axes={tuple(read.flip_axes)} must be different axes of space, from 0 to {axes - 1}.")
    return read


def check_images(images: Any) -> None:
    """Raise UserError unless `images` has the shape and dtype of a batch of images or volumes."""
    if images.ndim not in (4, 5) or not (images.dtype == jnp.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
        raise UserError(
            f'augment: batch["image"] is {images.dtype} {images.shape}; give uint8 or float images (batch, height, width, channels) or '
            "volumes (batch, depth, height, width, channels)."
        )


def check_batch(batch: Mapping[str, Any], options: types.SimpleNamespace, *, ignored: int) -> None:
    """Raise UserError unless the options and the arrays that accompany the images of a batch fit them; see `augment`."""
    (count, *space, _), mask = batch["image"].shape, batch.get("mask")
    if options.mixup and ("mask" in batch or "boxes" in batch):
        raise UserError(f"config.augment.mixup={options.mixup} cannot mix masks or boxes; set it to 0.")
    for name in ("mixup", "label_smoothing"):
        value = getattr(options, name)
        if value and "target" not in batch:
            raise UserError(f'config.augment.{name}={value} applies to targets, but the batch has no "target"; set it to 0.')
    if "box_mask" in batch and "boxes" not in batch:
        raise UserError('augment: the batch has a "box_mask" but no "boxes"; add the boxes or leave out the "box_mask".')
    if "boxes" in batch and len(space) == 3:
        raise UserError('augment: boxes are two-dimensional and cannot accompany volumes; use a "mask" instead.')
    if options.flip_axes and "boxes" in batch:
        raise UserError(f"config.augment.flip_axes={tuple(options.flip_axes)} does not move boxes; set it to (), or use flip.")
    number, classes = ((*batch[name].shape, 0)[1:2] if name in batch else () for name in ("boxes", "target"))
    _check_array(batch, "mask", (count, *space), jnp.integer, "integers (batch, *space)")
    _check_array(batch, "boxes", (count, *number, 4), jnp.floating, "floats (batch, boxes, 4)")
    _check_array(batch, "box_mask", (count, *number), jnp.bool_, "bool (batch, boxes)")
    _check_array(batch, "target", (count, *classes), jnp.floating, "floats (batch, classes)")
    if mask is not None and not jnp.iinfo(mask.dtype).min <= ignored <= jnp.iinfo(mask.dtype).max:
        raise UserError(f"augment: ignored={ignored} is out of range for masks of {mask.dtype}; convert the masks to int32.")


def _check_array(batch: Mapping[str, Any], name: str, shape: tuple[int, ...], dtype: Any, expected: str) -> None:
    if name in batch and (batch[name].shape != shape or not jnp.issubdtype(batch[name].dtype, dtype)):
        given = f"{batch[name].dtype} {batch[name].shape}"
        raise UserError(f'augment: batch["{name}"] is {given}, which does not fit images {batch["image"].shape}; give {expected}.')
