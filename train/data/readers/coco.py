"""Boxes as COCO stores them: folders of images, and a .json file for each split that describes its images and their objects."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from dilax.errors import UserError, shown
from dilax.files import read_bytes
from train.data.readers.boxes import Objects
from train.data.splits import divided, origin_of, split_names, taken_parts, with_fixed_test

Pairs = list[tuple[pathlib.Path, Objects]]  # image files with their objects
FOLDER = "annotations"
# The words around the name of a split, as in instances_train2017.
_AROUND = re.compile(r"instances_|\d+$")


def read_coco(directory: pathlib.Path, *, validation: bool) -> tuple[dict[str, Pairs], tuple[str, ...], str]:
    """Return the images of each split with their objects, the class names in the order of their numbers, and the origin.

    A folder is read in one of these layouts, in which `train.data.splits.WORDS` lists the names of splits:
        annotations/instances_train2017.json and the same for the other splits, with or without the words around the split; the images in a
            folder of its name, such as train2017/, or in images/;
        train/, valid/ and test/, each with one .json file and its images;
        one .json file and its images, beside it or in images/, of which a fixed fifth is the test split.
    Boxes are [x, y, width, height]; what "iscrowd" marks is as `Objects.crowd` says (Lin et al. 2014, arXiv:1405.0312).

    Args:
        directory: The folder.
        validation: As for `train.data.splits.divided`.

    Raises:
        UserError: if a file or an image is missing, a file is malformed, or the classes of the splits differ.
    """
    files, origin = _split_files(directory, validation)
    read = {split: _read_file(file, folders) for split, (file, folders) in files.items()}
    names = read["train"][1]
    for split, (_, theirs) in read.items():
        if odd := sorted(set(names) ^ set(theirs)):
            first, other = files["train"][0], files[split][0]
            raise UserError(f"{first} and {other} must have the same categories; only one of them has {', '.join(odd[:5])}.")
    marked = {split: part for split, (part, _) in read.items()}
    if "test" not in marked:
        marked = with_fixed_test(marked["train"], directory, "images")
    return marked, names, origin


Files = dict[str, tuple[pathlib.Path, list[pathlib.Path]]]  # for each split the file and the folders in which its images may be


def _split_files(directory: pathlib.Path, validation: bool) -> tuple[Files, str]:
    """Return the files of the splits, or of "train" alone if there is one file, and the origin."""
    if (directory / FOLDER).is_dir():
        known = {_AROUND.sub("", path.stem): path for path in _json_files(directory / FOLDER)}
        names = split_names(known, directory / FOLDER)
        if "test" not in names and "validation" in names:
            names["test"] = names.pop("validation")
        if not {"train", "test"} <= names.keys():
            raise UserError(
                f"{directory / FOLDER} holds {', '.join(sorted(path.name for path in known.values())) or 'no .json file'}; training needs "
                "one for train and one for test or val, such as instances_train.json."
            )
        files = {split: known[name] for split, name in names.items() if validation or split != "validation"}
        named = {split: file.stem.removeprefix("instances_") for split, file in files.items()}
        found = {split: [directory / folder for folder in (named[split], f"images/{named[split]}", "images")] for split in files}
        return {
            split: (files[split], found[split]) for split in files
        }, f"{directory} ({taken_parts({s: f.name for s, f in files.items()})})"
    folders = divided(directory, validation=validation)
    if folders:
        return {split: (_only_json(folder), [folder, folder / "images"]) for split, folder in folders.items()}, origin_of(
            directory, folders
        )
    return {"train": (_only_json(directory), [directory, directory / "images"])}, origin_of(directory, {})


def _json_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json" and not path.name.startswith("."))


def _only_json(folder: pathlib.Path) -> pathlib.Path:
    files = _json_files(folder)
    if len(files) != 1:
        held = f"several .json files, {', '.join(file.name for file in files[:5])}" if files else "no .json file"
        raise UserError(f'{folder} holds {held}; data.name="coco_json" reads one with the boxes of its images.')
    return files[0]


def _read_file(file: pathlib.Path, folders: list[pathlib.Path]) -> tuple[Pairs, tuple[str, ...]]:
    """Return the images of a file with their objects, in the order of the file, and the class names."""
    try:
        content = json.loads(read_bytes(file, "annotations of COCO"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); repair it, or export it again.") from error
    parts: dict[str, dict[Any, Any]] = {}
    for part, wanted in (("images", ("id", "file_name", "height", "width")), ("categories", ("id", "name"))):
        parts[part] = {one["id"]: one for one in _entries(file, content, part, wanted)}
        if len(parts[part]) < len(content[part]):
            raise UserError(f"{file}: two of its {part} have the same id; give each one of its own.")
    images, categories = parts["images"], dict(sorted(parts["categories"].items(), key=lambda pair: pair[0]))
    names = tuple(str(one["name"]) for one in categories.values())
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"{file}: two of its categories are called {twice[0]!r}; give each a name of its own.")
    objects: dict[Any, list[Any]] = {number: [] for number in images}
    for one in _entries(file, content, "annotations", ("image_id", "category_id", "bbox")):
        _check_annotation(file, one, images, categories)
        objects[one["image_id"]].append(one)
    where = _finder(file, folders, [str(one["file_name"]) for one in images.values()])
    return [(where(str(one["file_name"])), _objects(one, objects[number], categories)) for number, one in images.items()], names


def _entries(file: pathlib.Path, content: Any, part: str, wanted: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a list of a file, whose entries have the fields `wanted`."""
    entries = content.get(part) if isinstance(content, dict) else None
    if not isinstance(entries, list) or (not entries and part != "annotations"):
        raise UserError(f'{file} has no list "{part}", and is not a file of COCO\'s instances; export it as such.')
    for number, one in enumerate(entries):
        if not isinstance(one, dict) or not set(wanted) <= one.keys():
            lacking = sorted(set(wanted) - one.keys()) if isinstance(one, dict) else list(wanted)
            raise UserError(f'{file}: {part}[{number}] has no "{lacking[0]}"; correct it.')
        for field in wanted:
            good = isinstance(one[field], list | str) if field in ("bbox", "file_name", "name") else isinstance(one[field], int)
            if not good or (field in ("height", "width") and one[field] < 1):
                raise UserError(f"{file}: {part}[{number}] has {field}={shown(one[field])}; correct it.")
    return entries


def _check_annotation(file: pathlib.Path, one: dict[str, Any], images: dict[Any, Any], categories: dict[Any, Any]) -> None:
    box = one["bbox"]
    if one["image_id"] not in images:
        raise UserError(
            f"{file}: an annotation has image_id={one['image_id']}, and none of its {len(images)} images has that id; correct it."
        )
    if one["category_id"] not in categories:
        known = ", ".join(map(str, list(categories)[:10])) + ", ..." * (len(categories) > 10)
        raise UserError(f"{file}: an annotation has category_id={one['category_id']}, and its categories are {known}; correct it.")
    numbers = len(box) == 4 and all(isinstance(edge, int | float) and not isinstance(edge, bool) and np.isfinite(edge) for edge in box)
    if not numbers:
        raise UserError(f"{file}: an annotation has bbox={shown(box)}; give [x, y, width, height] in pixels.")


def _finder(file: pathlib.Path, folders: list[pathlib.Path], names: list[str]) -> Callable[[str], pathlib.Path]:
    """Return the function from the name of an image to its path, in the first of the folders that holds the first image."""
    folder = next((folder for folder in folders if (folder / names[0]).is_file()), None)
    if folder is None:
        places = ", ".join(map(str, folders))
        raise UserError(f"{file} names the image {names[0]}, which is in none of the folders {places}; put its images into one of them.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{file} names {missing[0]}, but {folder} does not hold it ({len(missing)} such images); add it, or remove its entry."
        )
    return lambda name: folder / name


def _objects(image: dict[str, Any], annotations: list[Any], categories: dict[Any, Any]) -> Objects:
    boxes = np.array([one["bbox"] for one in annotations], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    names = tuple(str(categories[one["category_id"]]["name"]) for one in annotations)
    crowd = np.array([bool(one.get("iscrowd", 0)) for one in annotations], bool)
    return Objects(str(image["file_name"]), (image["height"], image["width"]), boxes, names, crowd)
