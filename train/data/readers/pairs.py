"""Two folders of files, matched by their names without suffixes and divided into splits: an image, or a volume, and its mask."""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any

from dilax.errors import UserError
from dilax.files import user_path
from train.data.readers.files import by_stem
from train.data.readers.lists import read_lists
from train.data.splits import divided, origin_of, with_fixed_test

Pairs = tuple[tuple[pathlib.Path, pathlib.Path], ...]  # files (image, mask)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is looked for in a folder.

    Attributes:
        names: Names of the folders of images and of masks.
        suffixes: Those of the files.
        what: What the images are called, such as "images".
        lists: Folder of lists of file names, one for each split, below that of the data; "" if there is none.
        validation: Whether a validation split is wanted.
        test: Share of the pairs that is the test split, if the folder does not have one.
    """

    names: tuple[str, str]
    suffixes: Collection[str]
    what: str = "images"
    lists: str = ""
    validation: bool = True
    test: float = 0.2


def split_pairs(directory: pathlib.Path, layout: Layout) -> tuple[dict[str, Pairs], str]:
    """Return {split: pairs of files}, and the origin.

    Raises:
        UserError: if a folder or a file is missing, or there are too few files.
    """
    if layout.lists:
        return _listed_pairs(directory, directory / user_path(layout.lists), layout)
    folders = divided(directory, validation=layout.validation)
    if folders:
        return {split: _pairs(folder, layout) for split, folder in folders.items()}, origin_of(directory, folders)
    parts = with_fixed_test(_pairs(directory, layout), directory, layout.what, share=layout.test)
    return {split: tuple(part) for split, part in parts.items()}, origin_of(directory, {})


def _pairs(directory: pathlib.Path, layout: Layout) -> Pairs:
    """Return (image, mask) of every stem, which both folders must have."""
    names, singular = layout.names, layout.what.removesuffix("s")
    images, masks = (_by_stem(directory / name, layout) for name in names)
    for present, other, folder, what in ((images, masks, names[1], "mask"), (masks, images, names[0], singular)):
        missing = sorted(present.keys() - other.keys())
        if missing:
            raise UserError(
                f"{present[missing[0]]} has no {what} of the same name in {directory / folder} ({len(missing)} such files); "
                "add or remove it."
            )
    return tuple((images[stem], masks[stem]) for stem in sorted(images))


def _listed_pairs(directory: pathlib.Path, lists: pathlib.Path, layout: Layout) -> tuple[dict[str, Pairs], str]:
    """Return the pairs that the files train.txt, validation.txt and test.txt name, and the origin."""
    images, masks = (_by_stem(directory / name, layout) for name in layout.names)

    def lacks(stem: str) -> pathlib.Path | None:
        return None if stem in images and stem in masks else directory / layout.names[stem in images]

    options: Any = dict(validation=layout.validation, suffixes=layout.suffixes, what=layout.what.removesuffix("s"))
    stems, origin = read_lists(lists, lacks, **options)
    pairs = {split: tuple((images[stem], masks[stem]) for stem in part) for split, part in stems.items()}
    return pairs, f"{directory}, lists {origin}"


def _by_stem(folder: pathlib.Path, layout: Layout) -> dict[str, pathlib.Path]:
    hint = "name the two folders in config.data.image_field and config.data.mask_field"
    return by_stem(folder, layout.suffixes, "mask", kind=layout.what, hint=hint)
