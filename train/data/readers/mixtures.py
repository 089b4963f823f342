"""Mixtures of sounds with the sources that they are of, in .wav files."""

import dataclasses
import pathlib

import numpy as np

from dilax.errors import UserError
from train.data.readers.sound import read_wavs


@dataclasses.dataclass(frozen=True)
class Mixtures:
    """Mixtures, and what they are of.

    Attributes:
        names: Of the sources, those of their folders.
        rate: Samples a second.
        sounds: Of each mixture (samples, 1 + sources): the mixture first, then its sources.
    """

    names: tuple[str, ...]
    rate: int
    sounds: list[np.ndarray]


def read_mixtures(folder: pathlib.Path) -> Mixtures:
    """Read a folder with the sub-folders mix/, s1/, s2/, ...: files of one name in each are a mixture and its sources.

    For mix/ may stand another name that begins so, such as mix_clean/ of LibriMix, if it is the only one. All other folders are left alone.

    Raises:
        UserError: if a folder or a file is missing, or the files of one name differ in length, or any in their rate.
    """
    if not folder.is_dir():
        raise UserError(f'"{folder}" is not a folder; give one with mix/, s1/, s2/ and so on.')
    found = sorted(path.name for path in folder.iterdir() if path.is_dir())
    mixed = [name for name in found if name == "mix"] or [name for name in found if name.startswith("mix")]
    sources = sorted((name for name in found if name[0] == "s" and name[1:].isdecimal()), key=lambda name: int(name[1:]))
    if len(mixed) != 1 or len(sources) < 2:
        here = f"the folders {', '.join(found)}" if found else "no folders"
        raise UserError(f"{folder} holds {here}; give one of mixtures, mix, and two or more of sources, s1, s2 and so on.")
    files = {name: {path.name for path in (folder / name).glob("*.wav")} for name in (*mixed, *sources)}
    for name, other in files.items():
        if odd := sorted(files[mixed[0]] ^ other):
            here, there = (name, mixed[0]) if odd[0] in other else (mixed[0], name)
            raise UserError(f"{folder / here / odd[0]} has no file of that name in {there}/; add it, or remove this one.")
    if not files[mixed[0]]:
        raise UserError(f"{folder / mixed[0]} holds no .wav files; add some.")
    paths = [[folder / name / file for name in files] for file in sorted(files[mixed[0]])]
    waves, rate = read_wavs([path for row in paths for path in row])
    sounds = []
    for i, row in enumerate(paths):
        parts = waves[i * len(row) : (i + 1) * len(row)]
        for path, part in zip(row, parts):
            if len(part) != len(parts[0]):
                raise UserError(f"{path} has {len(part)} samples, and {row[0]} has {len(parts[0])}; cut them to one length.")
        sounds.append(np.stack(parts, axis=1))
    return Mixtures(tuple(sources), rate, sounds)


def pieces(sounds: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Cut sounds (samples, ...) into pieces of `length`; the last of each ends where the sound does, a shorter sound stays whole."""
    cut = []
    for sound in sounds:
        last = max(0, len(sound) - length)
        cut += [sound[start : start + length] for start in [*range(0, last, length), last]]
    return cut
