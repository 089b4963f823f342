"""Files below a folder, and those in folders named after classes."""

import os
import pathlib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import numpy as np
from ml_collections import ConfigDict

from dilax.errors import UserError
from dilax.files import user_path
from train.data.splits import check_classes, divided, origin_of, with_fixed_test

T = TypeVar("T")
NAMED = 10  # files that cannot be read
Labelled = list[tuple[pathlib.Path, str]]  # files with the names of their classes


def data_path(config: ConfigDict, what: str) -> pathlib.Path:
    """Return config.data.dir as a path, in which "~" is the home folder.

    Args:
        config: The whole config.
        what: What it should be, such as "a folder of sound files".

    Raises:
        UserError: if it is not set, or does not exist.
    """
    if not config.data.dir:
        raise UserError(f'config.data.dir="" gives no data for data.name={config.data.name!r}; set it to {what}.')
    path = user_path(config.data.dir)
    if not path.exists():
        raise UserError(f"config.data.dir={str(path)!r} does not exist; set it to {what}.")
    return path


def list_files(folder: pathlib.Path, suffixes: Collection[str]) -> list[pathlib.Path]:
    """Return the files with one of `suffixes`, in any letter case, at any depth below a folder, sorted. All readers of folders use it.

    Linked files and folders are followed, but each folder is listed once. Files and folders whose names begin with "." are left out: what
    they hold are previews, copies and caches.

    Raises:
        UserError: naming a folder that cannot be read, or a broken link, a pipe or a device with such a suffix.
    """
    found: list[pathlib.Path] = []
    listed = set[tuple[int, int]]()
    for path, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        info = os.stat(path)
        if (info.st_dev, info.st_ino) in listed:
            folders.clear()
            continue
        listed.add((info.st_dev, info.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [pathlib.Path(path, name) for name in names if not name.startswith(".") and name.lower().endswith(tuple(suffixes))]
    for path in found:
        if not path.is_file():
            kind = "a broken link" if path.is_symlink() and not path.exists() else "a pipe or a device, not a regular file"
            raise UserError(f"{path} is {kind}; remove or replace it.")
    return sorted(found)


def only_file(path: pathlib.Path, suffixes: Collection[str]) -> pathlib.Path:
    """Return the file in a folder that holds a single one with such a suffix; else the path itself."""
    files = list_files(path, suffixes) if path.is_dir() else []
    return files[0] if len(files) == 1 else path


def stem_of(name: str, suffixes: Collection[str]) -> str:
    """Return the name of a file without that of `suffixes` which it has, in any letter case; the longest, such as ".nii.gz"."""
    longest = max((suffix for suffix in suffixes if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(longest)]


def by_stem(folder: pathlib.Path, suffixes: Collection[str], partner: str, *, kind: str = "images", hint: str) -> dict[str, pathlib.Path]:
    """Return {path relative to a folder without suffix: file} of the files of `list_files`.

    Args:
        folder: The folder.
        suffixes: Suffixes of the files, in lower case.
        partner: What is found by that name for each file, such as "mask", for the error.
        kind: What the files are.
        hint: What to do if there is no such folder.

    Raises:
        UserError: if there is no such folder, it holds no such file, or two files differ in their suffix alone.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; {hint}.")
    files: dict[str, pathlib.Path] = {}
    for path in list_files(folder, suffixes):
        stem = stem_of(str(path.relative_to(folder)), suffixes)
        if stem in files:
            raise UserError(f"{files[stem]} and {path} differ only in their suffix, so their {partner} is ambiguous; rename one.")
        files[stem] = path
    if not files:
        raise UserError(f"{folder} holds no {kind} ({', '.join(sorted(suffixes))}); add some.")
    return files


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be read ({error.strerror}); make it readable, or remove it.") from error


def intact(items: Sequence[T], read: Callable[[T], object], on_bad: str, what: str) -> list[T]:
    """Return the items that can be read; lines on stderr count the others, and name the first ten with what is wrong.

    Args:
        items: Files, or what names them.
        read: Reads one, and raises UserError if it is damaged.
        on_bad: config.data.on_bad: "refuse" returns all items, of which the first that is damaged will end the run when it is read; "skip"
            reads each of them once.
        what: What they are, such as "images".

    Raises:
        UserError: if none can be read.
    """
    if on_bad == "refuse":
        return list(items)
    good, bad = [], []
    for item in items:
        try:
            read(item)
            good.append(item)
        except UserError as error:
            bad.append(str(error))
    if bad:
        if not good:
            raise UserError(f"none of {len(bad)} {what} can be read; the first: {bad[0]}")
        print(f"note: {len(bad)} of {len(items)} {what} are left out, since they cannot be read: {bad[0]}", file=sys.stderr)
        for line in bad[1:NAMED]:
            print(f"note: left out: {line}", file=sys.stderr)
        if len(bad) > NAMED:
            print(f"note: left out: {len(bad) - NAMED} more.", file=sys.stderr)
    return good


def intact_labelled(parts: dict[str, Labelled], read: Callable[[pathlib.Path], object], on_bad: str, what: str) -> dict[str, Labelled]:
    """Return the labelled files of each split that can be read; arguments as those of `intact`.

    Raises:
        UserError: if none can be read, or no file for training of a class.
    """
    found = {split: intact(part, lambda item: read(item[0]), on_bad, f"{what} for {split}") for split, part in parts.items()}
    if lost := sorted({label for _, label in parts["train"]} - {label for _, label in found["train"]}):
        raise UserError(f"none of the {what} for training of {', '.join(lost[:5])} can be read; repair them, or remove the class.")
    return found


def labelled_files(folder: pathlib.Path, suffixes: Collection[str], *, quiet: bool = False) -> Labelled:
    """Return the files of each class, as [(file, class name), ...] in sorted order.

    Every sub-folder is a class, with all files at any depth below it. Sub-folders whose names begin with "." are not classes, nor are those
    that begin with "_", such as "_background_noise_" of Speech Commands; a line on stderr names the latter, and counts files beside them.

    Args:
        folder: Folder that holds the sub-folders.
        suffixes: Suffixes of the files, in lower case, such as {".wav"}.
        quiet: Whether that line is not printed.

    Raises:
        UserError: if there is no such folder, it holds fewer than two classes, or a class has no files.
    """
    kinds = ", ".join(sorted(suffixes))
    if not folder.is_dir():
        raise UserError(f'"{folder}" is not a folder; give one that holds a sub-folder of {kinds} files for each class.')
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    classes = [path for path in visible if path.is_dir() and not path.name.startswith("_")]
    if len(classes) < 2:
        content = f"only one class, {classes[0].name}" if classes else "no sub-folders"
        raise UserError(f"{folder} holds {content}; put the files ({kinds}) of each of two or more classes into a sub-folder of its own.")
    check_classes([path.name for path in classes], folder)
    labelled: Labelled = []
    for path in classes:
        _check_encoding(path)
        files = list_files(path, suffixes)
        if not files:
            raise UserError(f"{path} holds no files of a known type ({kinds}); add some, or remove the folder.")
        labelled += [(file, path.name) for file in files]
    out = [f"{path.name}/" for path in visible if path.is_dir() and path.name.startswith("_")]
    if beside := sum(path.is_file() and path.suffix.lower() in suffixes for path in visible):
        out.append(f"{beside} files that are in no folder of a class")
    if out and not quiet:
        print(f"note: {folder}: left out: {', '.join(out)}.", file=sys.stderr)
    return labelled


def _check_encoding(path: pathlib.Path) -> None:
    """Refuse the folder of a class whose name cannot be printed or stored."""
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the name of the folder {str(path)!a} is not UTF-8; rename it.") from error


def labelled_splits(
    folder: pathlib.Path, suffixes: Collection[str], *, validation: bool = True, quiet: bool = False
) -> tuple[dict[str, Labelled], str]:
    """Return the files of each split with their classes, as `labelled_files`, and what `Splits.origin` says of them.

    The folder is divided into train/, test/ and perhaps validation/, as `train.data.splits.divided` says; or else it holds the classes
    themselves, of which a fixed fifth is the test split. `validation` is as for `divided`, `quiet` as for `labelled_files`.

    Returns:
        {"train", "test" and perhaps "validation": files}, and the origin.

    Raises:
        UserError: as `labelled_files`; if there is train/ alone, the classes of the splits differ, or there are too few files.
    """
    paths = divided(folder, validation=validation)
    if not paths:
        files = labelled_files(folder, suffixes, quiet=quiet)
        _, labels = np.unique([label for _, label in files], return_inverse=True)
        parts = with_fixed_test(files, folder, "files", labels=labels)
        if lost := sorted({label for _, label in files} - {label for _, label in parts["train"]}):
            raise UserError(
                f"{folder}: {', '.join(lost[:5])} has too few files for a training and a test split; add some, or divide the files "
                "yourself into folders train/ and test/."
            )
        return parts, origin_of(folder, {})
    parts = {split: labelled_files(path, suffixes, quiet=quiet) for split, path in paths.items()}
    for split, part in parts.items():
        odd = sorted({label for _, label in parts["train"]} ^ {label for _, label in part})
        if odd:
            raise UserError(f"{paths['train']} and {paths[split]} must hold the same classes; only one of them holds {', '.join(odd[:5])}.")
    return parts, origin_of(folder, paths)
