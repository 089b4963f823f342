"""Made-up images of shapes with their boxes, to try a detector on without any data."""

import numpy as np

from train.data.readers.boxes import Objects

CLASS_NAMES = ("disc", "frame", "cross")
SHAPE = (64, 96)  # of the images in pixels
IMAGES = {"train": 120, "validation": 24, "test": 24}
_MOST, _SMALLEST, _LARGEST = 4, 12, 28  # shapes in an image, and the sides of their boxes in pixels
_TRIES = 20


def shapes(split: str) -> tuple[np.ndarray, list[Objects]]:
    """Return the images of a split, uint8 (n, 64, 96, 3), and their objects: 1 to 4 discs, frames and crosses that hardly overlap.

    The same split is the same images.
    """
    random = np.random.default_rng(np.random.SeedSequence([*split.encode()]))
    drawn = [_draw(random, f"shapes/{split}[{i}]") for i in range(IMAGES[split])]
    return np.stack([image for image, _ in drawn]), [objects for _, objects in drawn]


def _draw(random: np.random.Generator, where: str) -> tuple[np.ndarray, Objects]:
    height, width = SHAPE
    image = np.broadcast_to(random.integers(40, 110, 3), (*SHAPE, 3)).astype(np.float64)
    boxes, names, free = [], [], np.ones(SHAPE, bool)
    wanted = random.integers(1, _MOST + 1)
    for _ in range(_TRIES):
        tall, wide = random.integers(_SMALLEST, _LARGEST + 1, 2)
        top, left = random.integers(0, height - tall + 1), random.integers(0, width - wide + 1)
        place = np.s_[top : top + tall, left : left + wide]
        if len(boxes) == wanted or not free[place].all():
            continue
        label = int(random.integers(len(CLASS_NAMES)))
        image[place][_inked(label, tall, wide)] = random.integers(150, 256, 3)
        free[place] = False
        boxes.append([left, top, left + wide, top + tall])
        names.append(CLASS_NAMES[label])
    noisy = np.clip(image + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    return noisy, Objects(where, SHAPE, np.array(boxes, np.float32), tuple(names), np.zeros(len(boxes), bool))


def _inked(label: int, height: int, width: int) -> np.ndarray:
    """Return the pixels of a shape that fills a box, bool (height, width)."""
    down, across = (np.abs(np.linspace(-1, 1, side)) for side in (height, width))
    return {
        0: np.hypot(down[:, None], across[None]) <= 1.0,
        1: (down[:, None] > 0.55) | (across[None] > 0.55),
        2: (down[:, None] < 0.35) | (across[None] < 0.35),
    }[label]
