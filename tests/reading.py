"""Files that the tests of readers write, and the one line that a mistake in them gets."""

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from dilax.errors import UserError


def written(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
    """Write a file, and the folders above it, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def check_mistake(reader: Callable[[pathlib.Path], Any], path: pathlib.Path, content: bytes | str | None, message: str) -> None:
    """Check the message about a file with this content, None for no file and "/" for a folder; "{path}" in it is the path."""
    if content == "/":
        path.mkdir()
    elif content is not None:
        written(path, content)
    with pytest.raises(UserError) as caught:
        reader(path)
    assert str(caught.value) == message.format(path=path)


def check_call(call: Callable[[], Any], message: str) -> None:
    """Check the message of a call."""
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value) == message
