"""Mixtures of sounds together with their sources, in folders of sound files."""

import dataclasses
import pathlib

import numpy as np

from dilax.errors import UserError
from train.data.readers.files import intact, list_files
from train.data.readers.sound import SUFFIXES, decode_sound, read_sounds

_LAYOUT = "mix/, s1/, s2/ and so on"


@dataclasses.dataclass(frozen=True)
class Mixtures:
    """Mixtures and their sources.

    Attributes:
        names: The sources, by the names of their folders.
        rate: The sample rate in Hz.
        sounds: For each mixture an array (samples, 1 + sources): the mixture first, then its sources.
    """

    names: tuple[str, ...]
    rate: int
    sounds: list[np.ndarray]


def read_mixtures(folder: pathlib.Path, *, rate: int | None = None, on_bad: str = "refuse") -> Mixtures:
    """Read a folder with the sub-folders mix/, s1/, s2/, ..., where files of the same name are a mixture and its sources.

    If it is the only one, another folder whose name begins with "mix" may replace mix/, such as mix_clean/ of LibriMix. All other folders
    and hidden files are ignored.

    Args:
        folder: The folder.
        rate: The sample rate to return, as for `read_sounds`.
        on_bad: As for `train.data.readers.files.intact`.

    Raises:
        UserError: if a folder or a file is missing or cannot be read, or files of the same name differ in length.
    """
    if not folder.is_dir():
        raise UserError(f'"{folder}" is not a folder; give one with {_LAYOUT}.')
    mixture, sources = _folders(folder)
    files = {name: _sound_files(folder / name) for name in (mixture, *sources)}
    for name, others in files.items():
        if unmatched := sorted(files[mixture].keys() ^ others.keys()):
            there = mixture if unmatched[0] in others else name
            file = others.get(unmatched[0]) or files[mixture][unmatched[0]]
            raise UserError(f"{file} has no counterpart of the same name in {there}/; add it, or remove this file.")
    if not files[mixture]:
        raise UserError(f"{folder / mixture} has no sound files; add some, with names that end in {', '.join(SUFFIXES)}.")
    paths = [[files[name][file] for name in files] for file in sorted(files[mixture])]
    paths = intact(paths, lambda row: [*map(decode_sound, row)], on_bad, f"mixtures in {folder}")
    samples, rate = read_sounds([path for row in paths for path in row], rate=rate)
    sounds = []
    for i, row in enumerate(paths):
        parts = samples[i * len(row) : (i + 1) * len(row)]
        for path, part in zip(row, parts):
            if len(part) != len(parts[0]):
                raise UserError(f"{path} has {len(part)} samples and {row[0]} has {len(parts[0])}; cut them to the same length.")
        sounds.append(np.stack(parts, axis=1))
    return Mixtures(tuple(sources), rate, sounds)


def _folders(folder: pathlib.Path) -> tuple[str, list[str]]:
    """Return the names of the folder of mixtures and of the folders of sources."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    mixtures = [name for name in names if name == "mix"] or [name for name in names if name.startswith("mix")]
    sources = sorted((name for name in names if name[0] == "s" and name[1:].isdecimal()), key=lambda name: int(name[1:]))
    if len(mixtures) != 1 or len(sources) < 2:
        present = f"the folders {', '.join(names)}" if names else "no folders"
        raise UserError(f"{folder} has {present}; give it one folder of mixtures, mix, and two or more of sources, s1, s2 and so on.")
    return mixtures[0], sources


def _sound_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return {path relative to the folder, with its suffix in lower case: file}."""
    return {str(path.relative_to(folder).with_suffix(path.suffix.lower())): path for path in list_files(folder, SUFFIXES)}


def pieces(sounds: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Cut sounds (samples, ...) into pieces of `length` samples.

    The last piece of a sound ends where the sound does, so that it may overlap the one before; a shorter sound is returned whole.
    """
    cut = []
    for sound in sounds:
        last = max(0, len(sound) - length)
        cut += [sound[start : start + length] for start in [*range(0, last, length), last]]
    return cut
