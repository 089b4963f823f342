"""Whole files as bytes, and files in folders of their labels."""

import pathlib

from dilax.errors import UserError


def read_bytes(path: pathlib.Path, what: str) -> bytes:
    """Return the bytes of a file.

    Args:
        path: Of the file.
        what: What the file should be, such as "a text file".

    Raises:
        UserError: if it is missing, a folder, unreadable or empty.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give {what}.")
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no file {path}; give {what}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give {what} that can.") from error
    if not content:
        raise UserError(f"{path} is empty; give {what} that is not.")
    return content


def labelled_files(folder: pathlib.Path, suffix: str) -> list[tuple[pathlib.Path, str]]:
    """Return (file, label) of the files, sorted; the label is the name of the folder, directly below `folder`, that holds the file.

    Folders whose names begin with "." or "_" are no labels, as "_background_noise_" of Speech Commands.

    Args:
        folder: Of the labels.
        suffix: Of the files, such as ".wav".

    Raises:
        UserError: if there is no such folder, it has fewer than two labels, or a label has no files.
    """
    if not folder.is_dir():
        raise UserError(f'"{folder}" is not a folder; give one with a sub-folder of {suffix} files for each label.')
    labels = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    if len(labels) < 2:
        found = f"the one label {labels[0].name}" if labels else "no sub-folders"
        raise UserError(f"{folder} holds {found}; put the {suffix} files of each of two or more labels into a sub-folder of its name.")
    found = []
    for label in labels:
        files = sorted(path for path in label.iterdir() if path.suffix.lower() == suffix and not path.name.startswith("."))
        if not files:
            raise UserError(f"{label} holds no {suffix} files; add some, or remove the folder.")
        found += [(file, label.name) for file in files]
    return found
