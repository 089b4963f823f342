"""A folder of images and a folder of masks, matched by the stems of their names."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from dilax.errors import UserError
from train.data.readers.images import SUFFIXES, image_channels, naming
from train.data.readers.masks import MaskReader, decode_mask
from train.data.source import TEST_SPLIT, Record, Source, decode, stratified

_SPLITS = {"train": ("train", "training"), "validation": ("validation", "val"), "test": ("test", "testing")}


@dataclasses.dataclass(frozen=True)
class MaskFolderSource:
    """Pairs of files (image, mask); `channels` is as for `decode`."""

    files: tuple[tuple[pathlib.Path, pathlib.Path], ...]
    channels: int
    reader: MaskReader

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        image_file, mask_file = self.files[index]
        with naming(image_file):
            image = decode(image_file, self.channels, 0)
        with naming(mask_file):
            mask = decode_mask(mask_file)
        return self.reader.record(image, mask, str(mask_file))


Pairs = tuple[tuple[pathlib.Path, pathlib.Path], ...]


def open_mask_folder(data: Any, ignored: int) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Return the splits and the class names of a folder of images and masks.

    `data.dir` is one of these; `images` and `masks` stand for data.image_field and data.mask_field:
        train/images, train/masks, and the same below validation/ (or val/) and test/;
        images, masks, and with data.lists a folder of train.txt, val.txt and test.txt, which name a stem a line;
        images, masks alone: a fixed fifth is the test split.
    Where there is no test split, the validation split is the test. A mask is a grey or palette image of numbers of classes.

    Args:
        data: The part `data` of a config.
        ignored: Label of pixels that count nowhere.

    Raises: UserError: if a folder, a file or a mask is missing, or the number of classes is given nowhere and cannot be counted.
    """
    directory = pathlib.Path(data.dir).expanduser()
    if not data.dir or not directory.is_dir():
        raise UserError(f'data.name="folder" needs data.dir to be a folder of images and masks; "{data.dir}" is not a folder.')
    names = (data.image_field or "images", data.mask_field or "masks")
    pairs = _split_pairs(directory, names, data.lists)
    if "test" not in pairs and "validation" in pairs:
        pairs["test"] = pairs.pop("validation")
    if "train" not in pairs or "test" not in pairs:
        raise UserError(f"{directory} has the splits {sorted(pairs)}; training needs train, and test or validation.")
    class_names = tuple(data.class_names) or _counted_names(pairs["train"], data.mask_values, ignored)
    reader = MaskReader(len(class_names), tuple(data.mask_values), ignored, data.image_size)
    channels = image_channels(tuple(image for split in pairs.values() for image, _ in split), data.image_size)
    return {split: MaskFolderSource(found, channels, reader) for split, found in pairs.items()}, class_names


def _split_pairs(directory: pathlib.Path, names: tuple[str, str], lists: str) -> dict[str, Pairs]:
    """Return {split: pairs of files}."""
    if lists:
        return _listed(directory, names, directory / lists)
    folders = {split: _first(directory, words) for split, words in _SPLITS.items()}
    if folders["train"] is not None:
        return {split: _pairs(folder, names) for split, folder in folders.items() if folder is not None}
    pairs = _pairs(directory, names)
    test = stratified(np.zeros(len(pairs), np.int32), round(len(pairs) / 5), TEST_SPLIT)
    if not test.any():
        raise UserError(f"{directory} holds {len(pairs)} images, too few to keep a fifth for the test; add images, or folders train, test.")
    return {split: tuple(pair for pair, held in zip(pairs, test) if held == (split == "test")) for split in ("train", "test")}


def _first(directory: pathlib.Path, words: tuple[str, ...]) -> pathlib.Path | None:
    return next((directory / word for word in words if (directory / word).is_dir()), None)


def _pairs(directory: pathlib.Path, names: tuple[str, str]) -> Pairs:
    """Return (image, mask) of every stem, which both folders must have."""
    images, masks = (_by_stem(directory / name) for name in names)
    for have, lack, what in ((images, names[1], "mask"), (masks, names[0], "image")):
        missing = sorted(have.keys() - (masks if what == "mask" else images).keys())
        if missing:
            raise UserError(
                f"{have[missing[0]]} has no {what} of that name in {directory / lack} ({len(missing)} such files); add or remove it."
            )
    return tuple((images[stem], masks[stem]) for stem in sorted(images))


def _listed(directory: pathlib.Path, names: tuple[str, str], lists: pathlib.Path) -> dict[str, Pairs]:
    """Return the pairs that the files train.txt, val.txt and test.txt name."""
    files = {split: next((p for word in words if (p := lists / f"{word}.txt").is_file()), None) for split, words in _SPLITS.items()}
    if files["train"] is None:
        raise UserError(
            f"data.lists: there is no {lists / 'train.txt'}; give the folder, below data.dir, that holds train.txt and val.txt."
        )
    images, masks = (_by_stem(directory / name) for name in names)
    found = {}
    for split, file in files.items():
        stems = [] if file is None else file.read_text().split()
        for stem in stems:
            if stem not in images or stem not in masks:
                raise UserError(
                    f"{file} names {stem}, which {directory / names[stem in images]} does not hold; add it, or correct the list."
                )
        if stems:
            found[split] = tuple((images[stem], masks[stem]) for stem in stems)
    return found


def _by_stem(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return {path below the folder without its ending: file}."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the two folders in config.data.image_field and config.data.mask_field.")
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            stem = str(path.relative_to(folder).with_suffix(""))
            if stem in found:
                raise UserError(f"{found[stem]} and {path} have one stem, so their mask is not certain; rename one.")
            found[stem] = path
    if not found:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}).")
    return found


def _counted_names(pairs: Pairs, values: tuple[int, ...], ignored: int) -> tuple[str, ...]:
    """Return "class 0", "class 1", ...: one for each of the values or, without, up to the highest that the training masks hold."""
    if values:
        return tuple(f"class {value}" for value in values)
    held = np.zeros(256, bool)
    for _, file in pairs:
        with naming(file):
            held[decode_mask(file)] = True
    found = np.flatnonzero(held).tolist()
    classes = [value for value in found if value != ignored]
    # Black and white masks, and classes as shades of grey: their numbers are no labels.
    if len(classes) < 2 or (len(classes) < 8 and classes[-1] >= 4 * len(classes)):
        raise UserError(
            f"the masks hold {', '.join(map(str, found[:8]))}, of which {ignored} is ignored: those are not the numbers of two or more "
            f"classes; say which values are classes in config.data.mask_values, such as {tuple(found[:8])}."
        )
    return tuple(f"class {i}" for i in range(classes[-1] + 1))
