"""Whole files as bytes."""

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
