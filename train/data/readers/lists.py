"""Lists of files, train.txt, validation.txt and test.txt, that divide the images of one folder into splits."""

import pathlib
from collections.abc import Callable, Collection

from dilax.errors import UserError
from train.data.readers.files import stem_of
from train.data.readers.images import SUFFIXES
from train.data.readers.text import read_text
from train.data.splits import divided, origin_of

Stems = dict[str, list[str]]


def read_lists(
    lists: pathlib.Path,
    lacks: Callable[[str], pathlib.Path | None],
    *,
    validation: bool,
    suffixes: Collection[str] = SUFFIXES,
    what: str = "image",
) -> tuple[Stems, str]:
    """Return {split: names of its images without suffixes}, and the origin.

    Args:
        lists: Folder of the lists, with a file name per line, with or without suffix.
        lacks: Returns the folder that should hold a file of that name and does not, or None.
        validation: As for `train.data.splits.divided`.
        suffixes: Those that names may have.
        what: What a name stands for.

    Raises:
        UserError: if there is no list for training, a list is empty, or a name occurs twice or is that of a file that is missing.
    """
    files = divided(lists, suffix=".txt", validation=validation)
    if not files:
        raise UserError(
            f"data.lists: there is no {lists / 'train.txt'}; give the folder, below data.dir, that holds train.txt and validation.txt."
        )
    found: Stems = {}
    listed: dict[str, pathlib.Path] = {}
    for split, file in files.items():
        found[split] = [stem_of(str(pathlib.PurePath(name)), suffixes) for line in read_text(file).splitlines() if (name := line.strip())]
        if not found[split]:
            raise UserError(f"{file} names no {what}; add some, or remove the file.")
        for stem in found[split]:
            if folder := lacks(stem):
                raise UserError(f"{file} names {stem}, but {folder} does not hold it; add it, or correct the list.")
            if stem in listed:
                both = f"{file} names {stem} twice" if listed[stem] == file else f"{listed[stem]} and {file} both name {stem}"
                raise UserError(f"{both}; remove one, so that no {what} counts twice.")
            listed[stem] = file
    return found, origin_of(lists, files)
