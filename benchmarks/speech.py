"""Synthesise speech with espeak-ng: digits for configs/spoken_digits.py, mixtures of two voices for configs/separation.py.

python -m benchmarks.speech digits FOLDER
python -m benchmarks.speech mixtures FOLDER

No package contains recordings of people, so results on this data are results on synthetic voices, which is an easier problem and no
substitute. The voices of the test split are not part of the training data: they are other variants of the voice, in all accents. Requires
espeak-ng, as installed by `apt install espeak-ng`.
"""

import argparse
import itertools
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from scipy.signal import resample_poly

from train.data.readers.sound import write_wav

RATE = 8000  # Hz; espeak-ng produces 22050
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-029")
TRAIN = (
    "m1",
    "m2",
    "m3",
    "m5",
    "m6",
    "m7",
    "f1",
    "f2",
    "f3",
    "klatt",
    "klatt2",
    "Andy",
    "Annie",
    "belinda",
    "Denis",
    "linda",
    "steph",
    "max",
)
TEST = ("m4", "m8", "f4", "f5", "klatt4", "Alicia", "edward", "zac")
NOISE = 0.003  # standard deviation, for a full scale of 1


def speak(words: str, voice: str, random: np.random.Generator) -> np.ndarray:
    """Return words spoken by a voice at a random pitch and speed: float32 (samples,), trimmed of silence, with standard deviation 1."""
    pitch, speed = str(random.integers(30, 71)), str(random.integers(130, 201))
    command = ["espeak-ng", "-v", voice, "-p", pitch, "-s", speed, "--stdout", words]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    samples = np.frombuffer(wav, "<i2", offset=44).astype(np.float64)
    audible = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    samples = resample_poly(samples[audible[0] : audible[-1] + 1], 160, 441)
    return (samples / samples.std()).astype(np.float32)


def voices(variants: tuple[str, ...]) -> list[str]:
    """Return the names of the voices of these variants in all accents."""
    return [f"{accent}+{variant}" for accent, variant in itertools.product(ACCENTS, variants)]


def digits(folder: pathlib.Path, random: np.random.Generator) -> None:
    """Write train/ and test/ with a folder per digit, in which every voice says it once, at a random level and with a little noise."""
    for split, variants in (("train", TRAIN), ("test", TEST)):
        for digit in DIGITS:
            (folder / split / digit).mkdir(parents=True)
            for voice in voices(variants):
                sound = 10 ** random.uniform(-2, -1) * speak(digit, voice, random)
                write_wav(folder / split / digit / f"{voice}.wav", _add_noise([sound], random)[0], RATE)


def mixtures(folder: pathlib.Path, random: np.random.Generator, seconds: float = 2.0) -> None:
    """Write train/, validation/ and test/ with mix/, s1/ and s2/: pairs of voices that say digits, at levels up to 5 dB apart."""
    for split, variants, count in (("train", TRAIN, 1000), ("validation", TRAIN, 100), ("test", TEST, 100)):
        known = voices(variants)
        for name in ("mix", "s1", "s2"):
            (folder / split / name).mkdir(parents=True)
        for i in range(count):
            pair = []
            for place in random.choice(len(known), 2, replace=False):
                words = " ".join(random.choice(DIGITS, 9))
                pair.append(speak(words, known[place], random)[: round(seconds * RATE)])
            length = min(map(len, pair))
            level = random.uniform(-2.5, 2.5)
            pair = [0.1 * 10 ** (sign * level / 20) * one[:length] for sign, one in zip((1, -1), pair)]
            mix, *sources = _add_noise([pair[0] + pair[1], *pair], random, noise=0)
            for name, sound in zip(("mix", "s1", "s2"), (mix, *sources)):
                write_wav(folder / split / name / f"{i}.wav", sound, RATE)


def _add_noise(sounds: list[np.ndarray], random: np.random.Generator, noise: float = NOISE) -> list[np.ndarray]:
    """Return the sounds with noise; all are scaled down together if one of them exceeds -1..1."""
    noisy = [sound + noise * random.normal(size=len(sound)) for sound in sounds]
    peak = max(1.0, *(float(np.abs(sound).max()) for sound in noisy))
    return [(sound / peak).astype(np.float32) for sound in noisy]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "mixtures"))
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        sys.exit("error: espeak-ng is not installed; run `apt install espeak-ng`.")
    if args.folder.exists():
        sys.exit(f"error: {args.folder} already exists; give a new folder.")
    {"digits": digits, "mixtures": mixtures}[args.what](args.folder, np.random.default_rng(0))


if __name__ == "__main__":
    main()
