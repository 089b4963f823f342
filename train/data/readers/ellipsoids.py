"""Made-up volumes: two ellipsoids that touch, in noise; for trying out a run without any data."""

import numpy as np

from dilax.volumes import to_levels
from train.data.readers.volumes import padded_record
from train.data.source import Table

CLASS_NAMES = ("background", "front", "back")
COUNTS = {"train": 24, "validation": 4, "test": 8}
_SEEDS = {"train": 1, "validation": 2, "test": 3}
_SMALLEST, _LARGEST = 15, 20  # voxels of a volume along each axis
_SPACING = (1.0, 1.0, 1.0)


def ellipsoids(ignored: int) -> dict[str, Table]:
    """Return {split: records} of volumes of 15 to 20 voxels along each axis, padded to 20; records as those of `open_volume_folder`.

    Each holds an ellipsoid of grey, brighter than the noise around it, of which the front and the back half are two classes, and a darker
    one that is background, so that neither intensity nor place alone gives the class.
    """
    return {split: _table(count, ignored, _SEEDS[split]) for split, count in COUNTS.items()}


def _table(count: int, ignored: int, seed: int) -> Table:
    shape = (_LARGEST,) * 3
    records = []
    for i in range(count):
        values, labels = _volume(np.random.default_rng(np.random.SeedSequence((seed, i))))
        records.append(padded_record(to_levels(values), labels, _SPACING, shape, ignored))
    return Table({name: np.stack([record[name] for record in records]) for name in records[0]})


def _volume(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return intensities, float32 (x, y, z), and labels, uint8 (x, y, z)."""
    shape = random.integers(_SMALLEST, _LARGEST + 1, 3)
    centre, radii = shape / 2 + random.uniform(-2, 2, 3), random.uniform(3, 5, 3)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - centre
    inside = np.square(grid / radii).sum(-1) < 1
    labels = np.where(inside, np.where(grid[..., 1] >= 0, 1, 2), 0).astype(np.uint8)
    other = np.square((grid + random.uniform(-6, 6, 3)) / random.uniform(2, 4, 3)).sum(-1) < 1
    values = np.where(inside, 1.0, np.where(other, -0.6, 0.0)) + 0.35 * random.normal(size=shape)
    return (1000 * values * random.uniform(0.5, 50)).astype(np.float32), labels
