"""Settings that follow from the files of one's own data, for configs whose `get_config` takes a path."""

import gzip
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from dilax.inputs import naming
from train.data.readers.files import labelled_splits, list_files, read_bytes
from train.data.readers.images import SUFFIXES
from train.data.readers.masks import decode_mask

LOOKED_AT = 200  # images or masks that are looked at for their size or their values
MOST_CLASSES = 32  # values that masks may hold if they are to be taken for classes


def scale_to(config: ConfigDict, examples: int, *, largest_batch: int = 32, fewest_steps: int = 400, most_steps: int = 20_000) -> None:
    """Set the batch, the epochs, what is counted in epochs, and the validation split by the number of training examples.

    The batch is at most an eighth of the examples, rounded down to a power of two, but a multiple of the devices. A run takes 40 epochs,
    but at least `fewest_steps` and at most `most_steps` steps.
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
    # Of fewer examples, a tenth would not be one.
    given.data.validation = 0.1 if examples >= 20 else 0.0


def labelled_count(folder: pathlib.Path, suffixes: Sequence[str]) -> int:
    """Return the number of files of the training split of a folder with a sub-folder for each class."""
    return len(labelled_splits(folder, suffixes)[0])


def image_side(folder: pathlib.Path, *, longer: bool, limits: tuple[int, int]) -> int:
    """Return a side for the images of a folder: the median of their longer or shorter sides, within limits."""
    from PIL import Image

    files, sides = list_files(folder, SUFFIXES), []
    for file in [files[i] for i in np.linspace(0, len(files) - 1, min(LOOKED_AT, len(files))).astype(int)]:
        with naming(file), Image.open(file) as image:
            sides.append((max if longer else min)(image.size))
    return int(np.clip(np.median(sides), *limits)) if sides else limits[1]


def mask_values(folder: pathlib.Path, ignored: int) -> tuple[int, ...]:
    """Return the values of masks that are not numbered 0, 1, 2, ..., such as (0, 255) of black and white ones, or () if they are.

    A line on stderr says so.
    """
    present: set[int] = set()
    for file in list_files(folder, SUFFIXES):
        with naming(file):
            present |= set(np.unique(decode_mask(file)).tolist())
    classes = sorted(present - {ignored})
    if len(classes) > 1 and classes[-1] < 2 * len(classes):
        return ()
    if not 2 <= len(present) <= MOST_CLASSES:
        return ()  # which the reader explains
    values = tuple(sorted(present))
    print(
        f"note: the masks hold {', '.join(map(str, values))}, each of which is taken for a class (config.data.mask_values).",
        file=sys.stderr,
    )
    return values


def count_rows(path: pathlib.Path) -> int:
    """Return the number of lines of a table."""
    content = read_bytes(path, "a table, such as a .csv file")
    if content.startswith(b"\x1f\x8b"):
        with gzip.open(path) as file:
            return sum(1 for _ in file)
    return content.count(b"\n") + 1


def only_file(path: pathlib.Path, suffixes: Sequence[str]) -> pathlib.Path:
    """Return the file in a folder that holds a single one with such a suffix; else the path itself."""
    files = list_files(path, suffixes) if path.is_dir() else []
    return files[0] if len(files) == 1 else path
