"""Files: whole ones as bytes, those below a folder, and those in folders named after classes."""

import pathlib
import stat
from collections.abc import Collection

import numpy as np
from ml_collections import ConfigDict

from dilax.errors import UserError
from train.data.splits import fixed_test, split_paths

Labelled = list[tuple[pathlib.Path, str]]  # files with the names of their classes


def data_path(config: ConfigDict, what: str) -> pathlib.Path:
    """Return config.data.dir as a path, in which "~" is the home folder.

    Args:
        config: The whole config.
        what: What it should be, such as "a folder of sound files".

    Raises:
        UserError: if it is not set.
    """
    if not config.data.dir:
        raise UserError(f'config.data.dir="" gives no data for data.name={config.data.name!r}; set it to {what}.')
    return pathlib.Path(config.data.dir).expanduser()


def check_file(path: pathlib.Path, what: str) -> None:
    """Refuse a path that is not a regular file, such as a pipe, from which reading might wait for ever.

    Args:
        path: Path of the file.
        what: What the file should be, such as "a text file".

    Raises:
        UserError: if it is missing, a folder, a pipe or a device.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no file {path}; give {what}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give {what} that is readable.") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder; give {what}.")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a pipe or a device, not a regular file; give {what}.")


def read_bytes(path: pathlib.Path, what: str) -> bytes:
    """Return the bytes of a file; arguments as `check_file`.

    Raises:
        UserError: if it is missing, not a regular file, unreadable or empty.
    """
    check_file(path, what)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give {what} that is readable.") from error
    if not content:
        raise UserError(f"{path} is empty; give {what} with content.")
    return content


def list_files(folder: pathlib.Path, suffixes: Collection[str]) -> list[pathlib.Path]:
    """Return the files with one of `suffixes`, in any letter case, at any depth below a folder, sorted; hidden files are left out."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith("."))


def labelled_files(folder: pathlib.Path, suffixes: Collection[str]) -> Labelled:
    """Return the files of each class, as [(file, class name), ...] in sorted order.

    Every sub-folder is a class, with all files at any depth below it. Sub-folders whose names begin with "." or "_" are not classes, such
    as "_background_noise_" of Speech Commands.

    Args:
        folder: Folder that holds the sub-folders.
        suffixes: Suffixes of the files, in lower case, such as {".wav"}.

    Raises:
        UserError: if there is no such folder, it holds fewer than two classes, or a class has no files.
    """
    kinds = ", ".join(sorted(suffixes))
    if not folder.is_dir():
        raise UserError(f'"{folder}" is not a folder; give one that holds a sub-folder of {kinds} files for each class.')
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    if len(classes) < 2:
        content = f"only one class, {classes[0].name}" if classes else "no sub-folders"
        raise UserError(f"{folder} holds {content}; put the files ({kinds}) of each of two or more classes into a sub-folder of its own.")
    labelled: Labelled = []
    for path in classes:
        files = list_files(path, suffixes)
        if not files:
            raise UserError(f"{path} holds no files of a known type ({kinds}); add some, or remove the folder.")
        labelled += [(file, path.name) for file in files]
    return labelled


def labelled_splits(folder: pathlib.Path, suffixes: Collection[str]) -> tuple[Labelled, Labelled]:
    """Return the files of the training and the test split, with their classes, as `labelled_files`.

    The folder holds train/ and test/, or train/ and validation/, which is then the test split; or else the classes themselves, of which a
    fixed fifth is the test split. `train.data.splits.WORDS` lists the names of such folders.

    Raises:
        UserError: as `labelled_files`; if there is train/ alone, the classes of the splits differ, or there are too few files.
    """
    paths = split_paths(folder)
    if not paths:
        files = labelled_files(folder, suffixes)
        _, labels = np.unique([label for _, label in files], return_inverse=True)
        test = fixed_test(labels, folder, "files")
        return [file for file, held in zip(files, test) if not held], [file for file, held in zip(files, test) if held]
    if len(paths) == 1:
        raise UserError(
            f"{folder} holds {paths['train'].name}/ but neither test/ nor validation/; add one, or set config.data.dir to {paths['train']}."
        )
    both = paths["train"], paths.get("test", paths.get("validation", folder))
    train, test = (labelled_files(path, suffixes) for path in both)
    odd = sorted({label for _, label in train} ^ {label for _, label in test})
    if odd:
        raise UserError(f"{both[0]} and {both[1]} must hold the same classes; only one of them holds {', '.join(odd[:5])}.")
    return train, test
