"""Augmentation as a pure function of a key and a batch, run on the device inside the training step.

Images or volumes are augmented together with their masks, boxes and targets. What is drawn for example i depends only on the key and on i,
its position in the whole batch, so it does not depend on how the batch is sharded.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from train.data.augment.examples import augment_example, draw_keys
from train.data.augment.options import (
    AUGMENT_KEYS,
    CLASS_KEYS,
    COLOUR_KEYS,
    GEOMETRY_KEYS,
    MASK_KEYS,
    check_batch,
    check_images,
    read_options,
)
from train.data.augment.pixels import mixup, one_hot, smooth

__all__ = [
    "AUGMENT_KEYS",
    "CLASS_KEYS",
    "COLOUR_KEYS",
    "GEOMETRY_KEYS",
    "MASK_KEYS",
    "augment",
    "example_keys",
    "one_hot",
    "read_options",
]

Batch = dict[str, Any]


def example_keys(key: jax.Array, count: int, first: int | jax.Array = 0) -> jax.Array:
    """Return one key for each of `count` examples, of which the first is example number `first` of the whole batch."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))


def augment(
    key: jax.Array, batch: Batch, options: Mapping[str, Any] | ConfigDict, *, first: int | jax.Array = 0, ignored: int = 255
) -> Batch:
    """Apply the part `augment` of a config to a batch.

    The image, mask and boxes of an example are moved by the same map of coordinates. Images alone are zoomed about their centre, and the
    pixels of their edge are repeated beyond it. With a mask or boxes, the output is a window that lies anywhere within the zoomed image
    (anywhere around it, if the window is larger) and is rotated about its own centre; outside the image, images are grey (0) and masks are
    `ignored`. Images are interpolated linearly; masks take the nearest pixel.

    Masks and boxes are unchanged where `cutout` covers the image, as in random erasing (Zhong et al. 2020, arXiv:1708.04896): what is
    covered is to be inferred from its surroundings. Volumes are flipped along their last spatial axis, rotated in each plane of
    two axes, and zoomed, cropped, shifted and cut out along all three.

    Args:
        key: Of the whole batch.
        batch: Arrays by name; others than these are returned unchanged.

            - "image": (n, height, width, channels), or volumes (n, depth, height, width, channels); uint8, or floats in -1..1.
            - "mask" (optional): The label of each pixel, integers (n, *space).
            - "boxes" (optional, not for volumes): Floats (n, boxes, 4), each (x0, y0, x1, y1): edges in pixels, so that the box of the
              whole image is (0, 0, width, height).
            - "box_mask" (optional): Which boxes exist, bool (n, boxes); by default, all of them.
            - "target" (optional): Floats (n, classes), one-hot and not smoothed.
        options: Options by name, as in `AUGMENT_KEYS` without the prefix; those that are missing are off. Mixup and label smoothing need
            a "target"; mixup excludes masks and boxes.
        first: Number of the first of these examples in the whole batch.
        ignored: Label of the pixels of masks that lie outside the image.

    Returns:
        The augmented batch. Images are float32 in -1..1; images and masks have the spatial shape `options.crop`, if it is set. Boxes are
        the bounding boxes of the moved corners, clipped to the image; a box of which less than a tenth of the area remains is dropped from
        "box_mask", which is always returned with boxes. Where a move is applied, boxes that do not exist are 0.

    Raises:
        UserError: If an option is unknown, out of range or does not fit the batch, or if an array has the wrong shape or dtype.
    """
    check_images(batch["image"])
    settings = read_options(options, axes=batch["image"].ndim - 2)
    check_batch(batch, settings, ignored=ignored)
    if "boxes" in batch:
        batch = {"box_mask": jnp.ones(batch["boxes"].shape[:2], bool), **batch}
    alone = "mask" not in batch and "boxes" not in batch
    keys = jax.vmap(lambda key: draw_keys(key, alone=alone))(example_keys(key, len(batch["image"]), first))
    examples = {name: batch[name] for name in ("image", "mask", "boxes", "box_mask") if name in batch}
    result = {**batch, **jax.vmap(lambda keys, example: augment_example(keys, example, settings, ignored=ignored))(keys, examples)}
    if "target" in batch:
        result["target"] = smooth(batch["target"], settings.label_smoothing)
    if settings.mixup:
        result["image"], result["target"] = mixup(keys["mixup"], result["image"], result["target"], alpha=settings.mixup)
    return result
