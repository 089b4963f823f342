"""The former call of augmentation with masks, which the tasks still make."""

from typing import Any

import jax

from train.data.augment import augment


def augment_pairs(key: jax.Array, images: jax.Array, masks: jax.Array, options: Any, ignored: int, first: Any = 0) -> tuple[Any, Any]:
    """Augment images and masks; see `train.data.augment.augment`."""
    result = augment(key, {"image": images, "mask": masks}, options, first=first, ignored=ignored)
    return result["image"], result["mask"]
