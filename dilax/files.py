"""Paths that users give: the home folder, regular files and their bytes; and files that are replaced as a whole."""

import contextlib
import os
import pathlib
import re
import stat
from collections.abc import Mapping

from dilax.errors import UserError

PART = ".part"  # ends the names of files that are being written


def user_path(text: str | os.PathLike[str]) -> pathlib.Path:
    """Return a path that a user gave, in which "~" is the home folder; that of an unknown user stays as it is."""
    return pathlib.Path(os.path.expanduser(text))


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Replace a file atomically: neither a reader, nor an error, nor a kill, nor a power failure ever leaves half of it.

    Raises:
        OSError: if it cannot be written; the file is then as it was.
    """
    replace_files({path: content})


def replace_files(contents: Mapping[pathlib.Path, bytes]) -> None:
    """Replace files that belong together, each atomically, once the contents of all of them are on the disk.

    Raises:
        OSError: if one cannot be written. All are then as they were, unless it is the replacing itself that fails.
    """
    scratches = {path: path.with_name(path.name + PART) for path in contents}
    try:
        for path, content in contents.items():
            with scratches[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, scratch in scratches.items():
            os.replace(scratch, path)
    except BaseException:
        for scratch in scratches.values():
            with contextlib.suppress(OSError, ValueError):  # it may not be there, and the first error is the one to report
                scratch.unlink()
        raise
    for folder in {path.parent for path in contents}:
        _sync_names(folder)


def _sync_names(folder: pathlib.Path) -> None:
    """Write the names in a folder to the disk, where the system can do so."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def refuse_address(path: str | os.PathLike[str], what: str) -> None:
    """Refuse an address such as https://host/file.

    Args:
        path: The path.
        what: What it should be, such as "a sound file".

    Raises:
        UserError: if it is an address.
    """
    scheme, separator, _ = str(path).partition("://")
    if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        raise UserError(f"{path} is an address, and only files on this machine are read; download it and give {what}.")


def check_file(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """Return the path of a regular file; from a pipe, reading might wait for ever.

    Args:
        path: The path, as for `user_path`.
        what: What it should be, such as "a sound file".

    Raises:
        UserError: if it is an address, missing, a folder, a pipe or a device.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{path!r} is not a path; give {what}.")
    refuse_address(path, what)
    file = user_path(path)
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} does not exist; give {what}.") from error
    except (OSError, ValueError) as error:  # the latter for characters that no path has
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); give {what} that is readable.") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder; give {what}.")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a pipe or a device, not a regular file; give {what}.")
    return file


def read_bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """Return the bytes of a file; arguments as `check_file`.

    Raises:
        UserError: if it is missing, not a regular file, unreadable or empty.
    """
    file = check_file(path, what)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give {what} that is readable.") from error
    if not content:
        raise UserError(f"{path} is empty; give {what} with content.")
    return content
