"""Sound files as samples of one channel, and .wav through pipes."""

import collections
import io
import pathlib
import struct
import sys
import wave
from collections.abc import Iterator, Sequence

import numpy as np

from dilax.errors import UserError
from dilax.sounds import (
    PCM,
    SUBTYPES,
    UNKNOWN,
    UNKNOWN_SIZES,
    check_alignment,
    check_rates,
    check_samples,
    decode_raw,
    decode_sound,
    is_end,
    mixed_down,
    read_header,
    resample,
)
from dilax.sounds import (
    SUFFIXES as SUFFIXES,
)


def read_sound(path: pathlib.Path, *, rate: int | None = None) -> tuple[np.ndarray, int]:
    """Return the samples of a file, as `read_sounds`.

    Returns:
        The samples, float32 (samples,) in -1..1, and the sample rate in Hz.
    """
    sounds, rate = read_sounds([path], rate=rate)
    return sounds[0], rate


def read_sounds(paths: Sequence[pathlib.Path], *, rate: int | None = None) -> tuple[list[np.ndarray], int]:
    """Return the samples of each file, all at one sample rate.

    Read every format that libsndfile reads: .wav, .flac, .ogg, .mp3 and others, integers of 8 to 32 bits and floats. The lowest integer is
    -1. Several channels are averaged and other sample rates are converted (soxr, high quality); a line on stderr says how many files that
    concerns. Values that lossy compression or resampling pushes beyond -1..1 are clipped.

    Args:
        paths: The files.
        rate: The sample rate to return, in Hz; None is the most common rate of the files.

    Returns:
        The samples of each file, float32 (samples,) in -1..1, and the sample rate in Hz.

    Raises:
        UserError: if there are no files, or a file is missing, truncated or not a sound file, has no samples, or has samples that are not
            finite or, stored as floats, lie outside -1..1.
    """
    if not paths:
        raise UserError("there are no sound files to read; give one or more.")
    sounds = [decode_sound(path) for path in paths]
    if rate is None:
        rate = collections.Counter(sound.rate for sound in sounds).most_common(1)[0][0]
    _note([path for path, sound in zip(paths, sounds) if sound.channels > 1], len(paths), "mixed down to one channel")
    _note([path for path, sound in zip(paths, sounds) if sound.rate != rate], len(paths), f"resampled to {rate} Hz")
    return [resample(str(path), sound.samples, sound.rate, rate) for path, sound in zip(paths, sounds)], rate


def _note(changed: list[pathlib.Path], total: int, how: str) -> None:
    """Say on stderr how many of `total` files were changed, if any."""
    if changed:
        what = f"{changed[0]} was" if total == 1 else f"{len(changed)} of {total} files {'was' if len(changed) == 1 else 'were'}"
        print(f"note: {what} {how}.", file=sys.stderr)


def stream_wav(file: io.BufferedReader | io.BytesIO, name: str) -> tuple[int, Iterator[np.ndarray]]:
    """Return the sample rate, and the samples as they arrive from a pipe, a recorder or a file.

    Several channels are averaged, and a line on stderr says so. The header may announce more samples than arrive, as those of recorders do;
    if more arrive than it announces, a line on stderr says that they are left out.

    Args:
        file: A .wav file of PCM or floats, open for reading bytes.
        name: What messages call it.

    Returns:
        The sample rate in Hz, and an iterator over pieces of the samples, float32 (n,) in -1..1.

    Raises:
        UserError: as `read_sounds`, for samples when they arrive.
    """
    form, size = read_header(file, name)
    if form.bits not in SUBTYPES.get(form.code, {}):
        raise UserError(f"{name} has samples of format {form.code} and {form.bits} bits; convert it to 16-bit PCM.")
    check_alignment(name, form)
    if form.channels > 1:
        print(f"note: {name} has {form.channels} channels; they are mixed down to one.", file=sys.stderr)

    def pieces() -> Iterator[np.ndarray]:
        left, held, count = size if size and size not in UNKNOWN_SIZES else 1 << 62, b"", 0
        while data := file.read1(min(left, 1 << 16)):  # what has arrived, without waiting for more
            left, held = left - len(data), held + data
            whole = len(held) // form.align * form.align
            if whole:
                samples = decode_raw(form, held[:whole])
                check_samples(name, samples, form.rate, before=count)
                yield mixed_down(samples)
            held, count = held[whole:], count + whole // form.align
        if not count:
            raise UserError(f"{name} has no samples; give some.")
        if not left:
            _check_end(file, name, size)
        if held:
            print(f"note: {name} ended within a sample; its last {len(held)} bytes are left out.", file=sys.stderr)

    return form.rate, pieces()


def _check_end(file: io.BufferedReader | io.BytesIO, name: str, size: int) -> None:
    """Say on stderr that samples follow the `size` bytes that the header of a stream gives, as soon as the first arrive."""
    after, pad = b"", size % 2
    while data := file.read1(1 << 16):
        after += data
        if len(after) >= 8 + pad and after.strip(b"\0") and not is_end(after[pad : pad + 4] + bytes(4)):
            break  # these are not the name of a chunk
    if not is_end(after[pad:]):
        print(
            f"warning: {name} goes on after the {size} bytes of samples that its header gives, and what follows is left out; give the size "
            "of all samples there, or 0xFFFFFFFF where it is not known.",
            file=sys.stderr,
        )


def resample_pieces(pieces: Iterator[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    """Yield pieces of sound, float32 (n,), at another sample rate as they arrive, as `read_sounds` converts whole files."""
    check_rates("the stream", rate, wanted)
    import soxr

    stream = soxr.ResampleStream(rate, wanted, 1, dtype="float32")
    for piece in pieces:
        yield stream.resample_chunk(piece).clip(-1, 1)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True).clip(-1, 1)


def write_wav(path: pathlib.Path, samples: np.ndarray, rate: int) -> None:
    """Write samples as a .wav file of 16-bit PCM; those that `read_sound` returned for such a file are stored bit for bit.

    Args:
        path: The file, in an existing folder.
        samples: Floats (samples,) in -1..1; 1 becomes the largest 16-bit integer, just below 1.
        rate: The sample rate in Hz.

    Raises:
        UserError: if the samples or the rate cannot be stored, or the folder is missing.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not len(samples):
        raise UserError(f"{path}: samples of shape {samples.shape} cannot be written; give one channel, (samples,).")
    if not np.abs(samples).max() <= 1:
        raise UserError(f"{path}: samples up to {np.abs(samples).max():.4g} cannot be written; scale them to -1..1.")
    if not 0 < rate < 2**31:
        raise UserError(f"{path}: a sample rate of {rate} cannot be written; give samples per second, such as 16000.")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}; create it first.")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm(samples))


def pcm(samples: np.ndarray) -> bytes:
    """Return samples in -1..1, (n,) or (n, channels), as 16-bit PCM."""
    return np.clip(np.round(samples.astype(np.float64) * 2**15), -(2**15), 2**15 - 1).astype("<i2").tobytes()


def open_header(rate: int, channels: int) -> bytes:
    """Return the header of a .wav file of 16-bit PCM whose length is unknown, to be written to a pipe before `pcm`."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, PCM, channels, rate, 2 * channels * rate, 2 * channels, 16)
    return struct.pack("<4sI4s", b"RIFF", UNKNOWN, b"WAVE") + form + struct.pack("<4sI", b"data", UNKNOWN)
