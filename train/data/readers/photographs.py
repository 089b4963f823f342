"""Folders of photographs of any size, and two photographs that an installed package ships."""

import pathlib
from typing import Any

import numpy as np

from dilax.errors import UserError
from dilax.files import user_path
from train.data.image_windows import Picture
from train.data.readers.files import intact, list_files
from train.data.readers.images import SUFFIXES, Header, decode, read_headers
from train.data.readers.packaged import package_folder
from train.data.splits import divided, held_out, origin_of, with_fixed_test

Pictures = dict[str, list[Picture]]
# The columns of each of the two photographs, of 427 x 640 pixels, that are a split.
COLUMNS = {"train": (0, 384), "validation": (384, 512), "test": (512, 640)}
_FILES = ("china.jpg", "flower.jpg")


def packaged_photographs(*, validation: bool) -> tuple[Pictures, bool, str]:
    """Return {split: pictures}, whether all are grey, and the origin of the photographs in scikit-learn, split by columns (CC BY 2.0)."""
    folder = package_folder("photographs", "sklearn") / "datasets" / "images"
    headers = read_headers([folder / name for name in _FILES])
    pictures = {
        split: [
            Picture(folder / name, f"{name}, columns {first} to {stop - 1}", (header.size[0], stop - first), first)
            for name, header in zip(_FILES, headers)
        ]
        for split, (first, stop) in COLUMNS.items()
        if validation or split != "validation"
    }
    return pictures, False, "two photographs of scikit-learn, by columns"


def open_photographs(data: Any, *, seed: int) -> tuple[Pictures, bool, str]:
    """Return {split: pictures}, whether all are grey, and the origin of a folder of photographs.

    `data.dir` is divided into train/, test/ and perhaps validation/, as `train.data.splits.divided` says; or it holds images, at any depth,
    of which a fixed fifth is the test split. With `data.test_dir` the test split is that folder, and all other images are for training.

    Args:
        data: The part `data` of a config.
        seed: Seed of the choice of the validation split.

    Raises:
        UserError: if a folder is missing or empty, or a file is not an image.
    """
    directory = _folder(data.dir, "data.dir")
    folders = divided(directory, validation=bool(data.validation))
    parts = {split: _files(folder) for split, folder in folders.items()} or {"train": _files(directory)}
    origin = origin_of(directory, folders)
    if data.test_dir:
        test = _folder(data.test_dir, "data.test_dir")
        parts["test"] = _files(test)
        origin = f"{directory} (test: {test})"
    elif not folders:
        parts = with_fixed_test(parts["train"], directory, "images")
    parts = {split: intact(files, lambda file: decode(file, 3, 0), data.on_bad, f"images for {split}") for split, files in parts.items()}
    if "validation" not in parts and data.validation:
        chosen = held_out(np.zeros(len(parts["train"]), np.int32), data.validation, seed)
        assert chosen is not None
        parts["validation"] = [file for file, held in zip(parts["train"], chosen) if held]
        parts["train"] = [file for file, held in zip(parts["train"], chosen) if not held]
    files = [file for part in parts.values() for file in part]
    headers = dict(zip(files, read_headers(files)))
    pictures = {split: [_picture(file, headers[file], directory) for file in part] for split, part in parts.items()}
    return pictures, all(header.grey for header in headers.values()), origin


def _picture(file: pathlib.Path, header: Header, directory: pathlib.Path) -> Picture:
    inside = file.is_relative_to(directory)
    return Picture(file, str(file.relative_to(directory)) if inside else file.name, header.size)


def _folder(name: str, key: str) -> pathlib.Path:
    path = user_path(name)
    if not name or not path.is_dir():
        raise UserError(f'config.{key}="{name}" is not a folder; set it to a folder of clean images.')
    return path


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = list_files(folder, SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}); add some.")
    return files
