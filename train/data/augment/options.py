"""The config keys of augmentation: their defaults, meanings and limits."""

import types
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from dilax.errors import UserError, did_you_mean
from train.keys import UNLIMITED, Key, Keys

GEOMETRY_KEYS: Keys = {
    "augment.crop_padding": Key(0, "Shift by up to this many pixels in each direction.", (0, UNLIMITED)),
    "augment.flip": Key(False, "Mirror half of the examples left to right."),
    "augment.rotate": Key(0.0, "Rotate by up to this many degrees in either direction.", (0, 180)),
    "augment.scale": Key(0.0, "Zoom by a random factor from 1 / (1 + scale) to 1 + scale.", (0, UNLIMITED)),
}
MASK_KEYS: Keys = {
    "augment.crop": Key((), "Size (height, width) of a random crop, padded if the image is smaller; () keeps the size of the image."),
}
COLOUR_KEYS: Keys = {
    "augment.colour": Key(0.0, "Change brightness, contrast and saturation by up to this fraction.", (0, 1)),
}
CUTOUT_KEYS: Keys = {
    "augment.cutout": Key(0, "Side, in pixels, of a grey square placed at random over each image.", (0, UNLIMITED)),
}
CLASS_KEYS: Keys = {
    **CUTOUT_KEYS,
    "augment.mixup": Key(0.0, "Alpha of the Beta distribution of mixup's mixing weight; 0 turns mixup off.", (0, UNLIMITED)),
    "augment.label_smoothing": Key(0.0, "Fraction of each target that is spread evenly over all classes.", (0, 1)),
}
AUGMENT_KEYS: Keys = {**GEOMETRY_KEYS, **MASK_KEYS, **COLOUR_KEYS, **CLASS_KEYS}

AXES = {2: "(height, width)", 3: "(depth, height, width)"}
_KEYS = {name.removeprefix("augment."): key for name, key in AUGMENT_KEYS.items()}


def read_options(options: Mapping[str, Any] | ConfigDict, *, axes: int = 2) -> types.SimpleNamespace:
    """Return every option of `AUGMENT_KEYS` as an attribute, checked; those that are missing are off.

    Args:
        options: Values by name, without the prefix "augment.".
        axes: Number of spatial axes: 2 for images, 3 for volumes.

    Raises:
        UserError: If an option is unknown or out of range, or if `crop` is not one size per spatial axis.
    """
    given = dict(options.items())
    for name, value in given.items():
        if name not in _KEYS:
            raise UserError(f"config.augment.{name} is unknown; use one of {tuple(_KEYS)}.{did_you_mean(name, _KEYS)}")
        _KEYS[name].check(f"augment.{name}", value)
    read = types.SimpleNamespace(**{name: given.get(name, key.default) for name, key in _KEYS.items()})
    if read.crop and (len(read.crop) != axes or not all(isinstance(side, int) and side >= 1 for side in read.crop)):
        raise UserError(f"config.augment.crop={tuple(read.crop)} must be {AXES[axes]} in pixels, or () for the image's own size.")
    return read


def check_batch(batch: Mapping[str, Any], options: types.SimpleNamespace, ignored: int) -> None:
    """Raise UserError unless the arrays beside the images of a batch fit them, the options and `ignored`; see `augment`."""
    shape = batch["image"].shape
    if options.mixup and ("mask" in batch or "boxes" in batch):
        raise UserError(f"config.augment.mixup={options.mixup} cannot mix masks or boxes; set it to 0.")
    for name in ("mixup", "label_smoothing"):
        if getattr(options, name) and "target" not in batch:
            raise UserError(f'config.augment.{name}={getattr(options, name)} changes targets, but the batch has no "target"; set it to 0.')
    if "box_mask" in batch and "boxes" not in batch:
        raise UserError('augment: the batch has a "box_mask" but no "boxes"; add the boxes, or remove the mask.')
    if "boxes" in batch and len(shape) == 5:
        raise UserError('augment: "boxes" are for images, but the batch holds volumes; use a "mask" instead.')
    boxes = batch["boxes"].shape if "boxes" in batch else (len(batch["image"]), 0, 4)
    _check_array(batch, "mask", shape[:-1], jnp.integer, "integers (batch, *space)")
    _check_array(batch, "boxes", (shape[0], *boxes[1:2], 4), jnp.floating, "floats (batch, boxes, 4)")
    _check_array(batch, "box_mask", boxes[:2], jnp.bool_, "bool (batch, boxes)")
    _check_array(
        batch, "target", (shape[0], *batch["target"].shape[1:2]) if "target" in batch else (), jnp.floating, "floats (batch, classes)"
    )
    if "mask" in batch and not jnp.iinfo(batch["mask"].dtype).min <= ignored <= jnp.iinfo(batch["mask"].dtype).max:
        raise UserError(f"augment: ignored={ignored} does not fit into masks of {batch['mask'].dtype}; convert the masks to int32.")


def _check_array(batch: Mapping[str, Any], name: str, shape: tuple[int, ...], dtype: Any, words: str) -> None:
    if name in batch and (batch[name].shape != shape or not jnp.issubdtype(batch[name].dtype, dtype)):
        given = f"{batch[name].dtype} {batch[name].shape}"
        raise UserError(f'augment: batch["{name}"] is {given}, but must be {words} beside images {batch["image"].shape}.')
