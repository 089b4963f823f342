"""The small files of a run: replaced as a whole, with errors in one line; and the lock that keeps a second process out of its folder."""

import contextlib
import errno
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

from dilax.errors import UserError
from dilax.files import PART, replace_files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "lock"


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turn an error of the system while `path` is written, such as a full disk, into one line.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; fix that and give the same command again.") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Replace a file of text as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))  # for names of files that are not UTF-8


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Replace a file atomically: neither a reader, nor a kill, nor a power failure ever leaves half of it.

    Raises:
        UserError: if it cannot be written.
    """
    write_files({path: data})


def write_files(contents: Mapping[pathlib.Path, bytes]) -> None:
    """Replace files that belong together as `dilax.files.replace_files` does: if the disk is full, all stay as they were.

    Raises:
        UserError: if one cannot be written.
    """
    with writing(next(iter(contents))):
        replace_files(contents)


def check_folder_writable(flag: str, folder: pathlib.Path, *, inside: pathlib.Path | None = None) -> None:
    """Refuse a folder that a flag names if nothing can be written there, before the work whose results it is for.

    Args:
        flag: The flag, without its dashes.
        folder: The folder, which may not exist yet.
        inside: The folder in which it is made, if that is where files are written first.

    Raises:
        UserError: if the folder, or the nearest one above it that exists, is not a folder or is not writable.
    """
    place = (inside or folder).absolute()
    nearest = next((path for path in (place, *place.parents) if os.path.lexists(path)), pathlib.Path(place.anchor))
    if not os.path.isdir(nearest):  # which, unlike the method of a path, raises no errors
        raise UserError(f"--{flag}={folder} cannot be written: {nearest} is not a folder; give another folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--{flag}={folder} cannot be written: {nearest} is not writable; give another folder.")


def check_empty(flag: str, folder: pathlib.Path) -> None:
    """Refuse a folder for `made_whole`, which a flag names, if there is something already, or it cannot be made.

    Raises:
        UserError: if it is not new or empty, or as `check_folder_writable`.
    """
    with writing(folder):
        if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            what = "exists and is not empty" if folder.is_dir() else "is not a folder"
            raise UserError(f"--{flag}={folder} {what}; give a new or an empty folder.")
    check_folder_writable(flag, folder, inside=folder.resolve().parent)


@contextlib.contextmanager
def made_whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a folder to write into, which becomes `folder` if nothing fails, and is removed otherwise.

    `folder` is new, or holds nothing but what systems put into any folder, which stays.

    Raises:
        UserError: if it cannot be written.
    """
    place = folder.resolve()  # what a link leads to, not the link
    with writing(folder):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", suffix=PART, dir=place.parent) as scratch:
            made = pathlib.Path(scratch) / place.name  # with the permissions that a new folder has, unlike the temporary one
            made.mkdir()
            yield made
            if place.exists() and not any(place.iterdir()):
                place.rmdir()
            if not place.exists():
                os.replace(made, place)
            for path in sorted(made.iterdir() if made.exists() else ()):
                os.replace(path, place / path.name)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keep other processes from training in a folder meanwhile.

    The file `lock` in it names the process and its host. The system frees the lock of a process that ends, however it ends, so one of
    this host that is free is taken over; whether a process on another host still runs cannot be known here.

    Raises:
        UserError: if another process trains in the folder, or may do so.
        OSError: if the folder cannot be written.
    """
    path = folder / LOCK
    with _lock(path) as file:
        file.seek(0)
        before = _holder(file.read())
        if before and before["host"] != socket.gethostname():
            raise UserError(f"{_who(before)} trains in {folder}, or was killed there; if it has ended, remove {path}.")
        if before:
            print(f"{_who(before)} left {folder} locked, and has ended; its lock is taken over.", flush=True)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):  # the folder may have been removed, or moved aside
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    path.unlink()


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[IO[str]]:
    """Open a file that this process alone has locked."""
    while True:
        with path.open("a+", encoding="utf-8") as file:
            if not _free(file):
                file.seek(0)
                raise UserError(f"{_who(_holder(file.read()))} trains in {path.parent}; wait for it to end, or give another --workdir.")
            # Whoever held it may have removed the file since it was opened here.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                yield file
                return


def _free(file: IO[str]) -> bool:
    """Lock a file until it is closed; return False if another process has locked it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
    # On file systems without locks, the process that the file names either runs or has ended.
    file.seek(0)
    holder = _holder(file.read())
    return not holder or holder["host"] != socket.gethostname() or not _runs(holder["pid"])


def _runs(pid: int) -> bool:
    if os.name == "nt":  # where os.kill ends a process, whatever the signal
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is that of another user
        return True
    return True


def _holder(text: str) -> dict[str, Any]:
    """Return the process that a lock names, or {} if the text does not name one, as when it is being written."""
    try:
        holder = json.loads(text)
        return {"pid": int(holder["pid"]), "host": str(holder["host"])}
    except (ValueError, TypeError, KeyError):
        return {}


def _who(holder: dict[str, Any]) -> str:
    return f"another process (pid {holder['pid']} on {holder['host']})" if holder else "another process"
