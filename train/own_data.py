"""Settings that follow from the files of one's own data, for configs whose `get_config` takes a path."""

import pathlib
import sys
from collections.abc import Collection, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from dilax.inputs import open_image
from dilax.volumes import SUFFIXES as VOLUME_SUFFIXES
from dilax.volumes import read_header
from train.data.readers.files import labelled_splits, list_files
from train.data.readers.images import SUFFIXES
from train.data.readers.masks import decode_mask
from train.data.readers.tables import table_bytes

LOOKED_AT = 200  # images or masks that are looked at for their size or their values
MOST_CLASSES = 32  # values that masks may hold if they are to be taken for classes


def scale_to(
    config: ConfigDict,
    examples: int,
    *,
    own_validation: bool = False,
    largest_batch: int = 32,
    fewest_steps: int = 400,
    most_steps: int = 20_000,
) -> None:
    """Set the batch, the epochs, what is counted in epochs, and the validation split by the number of training examples.

    A tenth of them is held out for validation, unless the data has a validation split of its own or there are fewer than 20. The batch is
    at most an eighth of the examples, rounded down to a power of two, but a multiple of the devices. A run takes 40 epochs, but at least
    `fewest_steps` and at most `most_steps` steps.
    """
    given: ConfigDict = config
    devices = jax.device_count()
    batch = 2 ** int(np.log2(max(1, min(largest_batch, examples // 8))))
    given.batch_size = -(-max(batch, min(4, examples)) // devices) * devices
    steps_per_epoch = max(1, examples) / given.batch_size
    steps = min(max(40 * steps_per_epoch, fewest_steps), most_steps)
    given.total_epochs = float(f"{steps / steps_per_epoch:.3g}")
    given.eval_every_epochs = float(f"{given.total_epochs / 20:.3g}")
    given.optim.warmup_epochs = float(f"{given.total_epochs / 20:.3g}")
    given.data.validation = 0.1 if own_validation or examples >= 20 else 0.0


def scale_to_labelled(config: ConfigDict, folder: pathlib.Path, suffixes: Sequence[str], **options: int) -> None:
    """Apply `scale_to` to a folder with a sub-folder for each class, or with such folders for each split."""
    parts, _ = labelled_splits(folder, suffixes, quiet=True)  # which is said when the data is opened
    scale_to(config, len(parts["train"]), own_validation="validation" in parts, **options)


def scale_to_files(config: ConfigDict, count: int, parts: Mapping[str, pathlib.Path] | None, **options: int) -> None:
    """Apply `scale_to` to a number of files: those of the training split of `parts`, or all if the data is not divided into splits."""
    # A fixed fifth is the test split, unless there is one.
    scale_to(config, round(count * (1 if parts else 0.8)), own_validation="validation" in (parts or {}), **options)


def _some(folder: pathlib.Path, suffixes: Collection[str]) -> list[pathlib.Path]:
    """Return up to `LOOKED_AT` files of a folder, spread over all of them."""
    files = list_files(folder, suffixes)
    return [files[i] for i in np.linspace(0, len(files) - 1, min(LOOKED_AT, len(files))).astype(int)]


def image_side(folder: pathlib.Path, *, longer: bool, limits: tuple[int, int]) -> int:
    """Return a side for the images of a folder: the median of their longer or shorter sides, within limits."""
    sides = []
    for file in _some(folder, SUFFIXES):
        with open_image(file) as image:
            sides.append((max if longer else min)(image.size))
    return int(np.clip(np.median(sides), *limits)) if sides else limits[1]


def image_shape(folder: pathlib.Path, *, longest: int, unit: int) -> tuple[int, int]:
    """Return (height, width), multiples of `unit`, for the images of a folder: the median of their sizes, scaled to a longer side."""
    sizes = []
    for file in _some(folder, SUFFIXES):
        with open_image(file) as image:
            sizes.append((image.height, image.width))
    height, width = np.median(sizes, 0) if sizes else (longest, longest)
    scale = min(1.0, longest / max(height, width))
    tall, wide = (max(2, round(float(side) * scale / unit)) * unit for side in (height, width))
    return tall, wide


def mask_values(folder: pathlib.Path, ignored: int) -> tuple[int, ...]:
    """Return the values of masks that are not numbered 0, 1, 2, ..., such as (0, 255) of black and white ones, or () if they are.

    A line on stderr says so.
    """
    present: set[int] = set()
    for file in list_files(folder, SUFFIXES):
        present |= set(np.unique(decode_mask(file)).tolist())
    classes = sorted(present - {ignored})
    if len(classes) > 1 and classes[-1] < 2 * len(classes):
        return ()
    if not 2 <= len(present) <= MOST_CLASSES:
        return ()  # which the reader explains
    values = tuple(classes if len(classes) > 1 else sorted(present))
    rest = f"; {ignored} is ignored" if ignored in present - set(values) else ""
    print(
        f"note: the masks hold {', '.join(map(str, values))}, each of which is taken for a class (config.data.mask_values){rest}.",
        file=sys.stderr,
    )
    return values


def patch_size(folder: pathlib.Path, *, limits: tuple[int, int]) -> tuple[int, ...]:
    """Return a size of patches for the volumes of a folder: the median of their sizes, within limits, as a multiple of 4."""
    sizes = np.array([read_header(file)[0][:3] for file in _some(folder, VOLUME_SUFFIXES)]).reshape(-1, 3)
    median = np.median(sizes, axis=0) if len(sizes) else np.full(3, limits[1])
    return tuple((np.clip(median, *limits).astype(int) // 4 * 4).tolist())


def count_rows(path: pathlib.Path) -> int:
    """Return the number of lines of a table."""
    return table_bytes(path).count(b"\n") + 1
