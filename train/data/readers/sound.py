"""Sound files as samples of one channel, and .wav through pipes."""

import collections
import io
import pathlib
import struct
import sys
import wave
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dilax.errors import UserError
from train.data.readers.files import read_bytes

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# The formats of a pipe: format code -> bits per value -> the word of libsndfile.
_SUBTYPES = {_PCM: {8: "PCM_U8", 16: "PCM_16", 24: "PCM_24", 32: "PCM_32"}, _FLOAT: {32: "FLOAT", 64: "DOUBLE"}}
_UNKNOWN = 2**32 - 1
# What ffmpeg, arecord and sox write as the size of the samples when they cannot know it.
_UNKNOWN_SIZES = {_UNKNOWN, 2**31, 2**31 - 1, 0x7FFFF000}


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
    sounds = [_decode(path) for path in paths]
    if rate is None:
        rate = collections.Counter(sound.rate for sound in sounds).most_common(1)[0][0]
    _note([path for path, sound in zip(paths, sounds) if sound.channels > 1], len(paths), "mixed down to one channel")
    _note([path for path, sound in zip(paths, sounds) if sound.rate != rate], len(paths), f"resampled to {rate} Hz")
    return [_resample(path, sound, rate) for path, sound in zip(paths, sounds)], rate


def _note(changed: list[pathlib.Path], total: int, how: str) -> None:
    """Say on stderr how many of `total` files were changed, if any."""
    if changed:
        what = f"{changed[0]} was" if total == 1 else f"{len(changed)} of {total} files {'was' if len(changed) == 1 else 'were'}"
        print(f"note: {what} {how}.", file=sys.stderr)


class _Sound(NamedTuple):
    """Decoded samples, float32 (samples,), already mixed down, with the rate and the number of channels of the file."""

    samples: np.ndarray
    rate: int
    channels: int


def _decode(path: pathlib.Path) -> _Sound:
    import soundfile

    source, content = str(path), read_bytes(path, "a sound file")
    if _is_wav(content) and (repaired := _intact_wav(str(path), content)) is not content:
        source = io.BytesIO(repaired)
    elif content.startswith(b"OggS") and not _is_whole_ogg(content):
        raise UserError(f"{path} is truncated: its last page is missing; copy it again.")
    try:
        with soundfile.SoundFile(source) as file:
            frames, rate, stored_as_floats = file.frames, file.samplerate, file.subtype in ("FLOAT", "DOUBLE")
            certain = file.format != "MP3" or _states_length(content)
            samples: Any = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, ValueError, MemoryError) as error:  # the last two for a header that gives absurd sizes
        reason = getattr(error, "error_string", str(error)).removeprefix("Error : ").rstrip(".")
        raise UserError(f"{path} cannot be read as sound ({reason}); give an intact file, one of {', '.join(SUFFIXES)}.") from error
    if certain and len(samples) < frames:
        raise UserError(f"{path} is truncated: {len(samples)} of {frames} samples can be read; copy it again.")
    if not len(samples):
        raise UserError(f"{path} has no samples; remove it.")
    if not stored_as_floats:
        samples = samples.clip(-1, 1)
    _check(str(path), samples, rate)
    return _Sound(_mixed_down(samples), rate, samples.shape[1])


def _check(name: str, samples: np.ndarray, rate: int, *, before: int = 0) -> None:
    """Raise an error unless samples (n, channels), with `before` samples ahead of them, are finite and in -1..1."""
    finite = np.isfinite(samples).all(axis=1)
    if not finite.all():
        raise UserError(f"{name} has a sample that is not a finite number at {(before + np.argmin(finite)) / rate:.3f} s; repair it.")
    if np.abs(samples).max() > 1:
        raise UserError(f"{name} has samples up to {np.abs(samples).max():.4g}; scale them to -1..1.")


def _mixed_down(samples: np.ndarray) -> np.ndarray:
    """Return the mean (n,) of channels (n, channels)."""
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def _resample(path: pathlib.Path, sound: _Sound, rate: int) -> np.ndarray:
    if sound.rate == rate:
        return sound.samples
    import soxr

    samples = soxr.resample(sound.samples, sound.rate, rate).clip(-1, 1)
    if not len(samples):
        raise UserError(f"{path} is too short to be resampled to {rate} Hz: it has {len(sound.samples)} samples; remove it.")
    return samples


def _is_wav(content: bytes) -> bool:
    return content[:4] == b"RIFF" and content[8:12] == b"WAVE"


def _intact_wav(name: str, content: bytes) -> bytes:
    """Return a .wav file whose header gives the true size of its samples; libsndfile would read a truncated file without an error."""
    file = io.BytesIO(content)
    form, size = _read_header(file, name)
    start = file.tell()
    present = len(content) - start
    ends = _is_end(content[start + size + size % 2 :])
    if (size in _UNKNOWN_SIZES and size > present) or (size == 0 and not ends):
        size = present
        content = content[: start - 4] + struct.pack("<I", size) + content[start:]
    elif size > present:
        raise UserError(f"{name} is truncated: {present} of {size} bytes of 'data' are present; copy it again.")
    elif not ends:
        raise UserError(
            f"{name} has {present} bytes of samples, but its header gives {size}, as if its recording was interrupted; repair the header."
        )
    if form.code in (_PCM, _FLOAT):
        _check_alignment(name, form)
        if size % form.align:
            raise UserError(f"{name} is truncated: {size} bytes are not a whole number of samples of {form.bits} bits; copy it again.")
    return content


def _is_end(after: bytes) -> bool:
    """Whether what follows the samples of a .wav file is other than samples: nothing, zeros, chunks up to the end, or a tag of ID3."""
    while len(after) >= 8:
        kind, size = struct.unpack("<4sI", after[:8])
        if after[:3] == b"TAG" and len(after) == 128:  # ID3, version 1
            return True
        if not all(32 <= byte < 127 for byte in kind) or size > len(after) - 8:
            break
        after = after[8 + size + size % 2 :]
    return not after.strip(b"\0")


def _is_whole_ogg(content: bytes) -> bool:
    """Whether the last page is complete and marked as the last of its stream."""
    page = content[content.rfind(b"OggS") :]
    return len(page) > 26 and bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _states_length(content: bytes) -> bool:
    """Whether an .mp3 file gives its length, in a Xing or Info header; without one, libsndfile estimates it."""
    start = 0
    if content[:3] == b"ID3" and len(content) > 10:
        start = 10 + sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0)))
    first = content[start : start + 4096]
    return b"Xing" in first or b"Info" in first


class _Form(NamedTuple):
    """How a .wav file stores its samples: format code, channels, rate in Hz, bytes per sample of all channels, bits per value."""

    code: int
    channels: int
    rate: int
    align: int
    bits: int


def _read_header(file: io.BufferedReader | io.BytesIO, name: str) -> tuple[_Form, int]:
    """Read a .wav file up to its samples, and return their form and their size in bytes."""
    if not _is_wav(file.read(12)):
        raise UserError(f"{name} is not a .wav file: it does not begin with RIFF and WAVE; convert it to 16-bit PCM.")
    header = b""
    while len(part := file.read(8)) == 8:
        kind, size = struct.unpack("<4sI", part)
        if kind == b"data":
            if len(header) < 16:
                break
            return _form(name, header), size
        content = file.read(size + size % 2)
        if len(content) < size:
            raise UserError(
                f"{name} is truncated: {len(content)} of {size} bytes of {kind.decode('latin-1')!a} are present; copy it again."
            )
        header = content if kind == b"fmt " else header
    raise UserError(f"{name} has no header or no samples; it is truncated, or not a .wav file.")


def _form(name: str, header: bytes) -> _Form:
    code, channels, rate, _, align, bits = struct.unpack("<HHIIHH", header[:16])
    if code == _EXTENSIBLE and len(header) >= 26:
        code = struct.unpack("<H", header[24:26])[0]
    if rate == 0:
        raise UserError(f"{name} gives a sample rate of 0; repair its header.")
    if channels == 0:
        raise UserError(f"{name} gives 0 channels; repair its header.")
    return _Form(code, channels, rate, align, bits)


def _check_alignment(name: str, form: _Form) -> None:
    if form.align != form.channels * form.bits // 8 or form.bits % 8:
        raise UserError(f"{name} stores each sample of {form.bits} bits in {form.align // form.channels} bytes; convert it to 16-bit PCM.")


def stream_wav(file: io.BufferedReader | io.BytesIO, name: str) -> tuple[int, Iterator[np.ndarray]]:
    """Return the sample rate, and the samples as they arrive from a pipe, a recorder or a file.

    Several channels are averaged, and a line on stderr says so. The header may announce more samples than arrive, as those of recorders do.

    Args:
        file: A .wav file of PCM or floats, open for reading bytes.
        name: What messages call it.

    Returns:
        The sample rate in Hz, and an iterator over pieces of the samples, float32 (n,) in -1..1.

    Raises:
        UserError: as `read_sounds`, for samples when they arrive.
    """
    form, size = _read_header(file, name)
    if form.bits not in _SUBTYPES.get(form.code, {}):
        raise UserError(f"{name} has samples of format {form.code} and {form.bits} bits; convert it to 16-bit PCM.")
    _check_alignment(name, form)
    if form.channels > 1:
        print(f"note: {name} has {form.channels} channels; they are mixed down to one.", file=sys.stderr)

    def pieces() -> Iterator[np.ndarray]:
        left, held, count = size if size and size not in _UNKNOWN_SIZES else 1 << 62, b"", 0
        while data := file.read1(min(left, 1 << 16)):  # what has arrived, without waiting for more
            left, held = left - len(data), held + data
            whole = len(held) // form.align * form.align
            if whole:
                samples = _decode_raw(form, held[:whole])
                _check(name, samples, form.rate, before=count)
                yield _mixed_down(samples)
            held, count = held[whole:], count + whole // form.align
        if not count:
            raise UserError(f"{name} has no samples; give some.")

    return form.rate, pieces()


def resample_pieces(pieces: Iterator[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    """Yield pieces of sound, float32 (n,), at another sample rate as they arrive, as `read_sounds` converts whole files."""
    import soxr

    stream = soxr.ResampleStream(rate, wanted, 1, dtype="float32")
    for piece in pieces:
        yield stream.resample_chunk(piece).clip(-1, 1)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True).clip(-1, 1)


def _decode_raw(form: _Form, data: bytes) -> Any:
    """Return whole samples as float32 (n, channels)."""
    import soundfile

    subtype = _SUBTYPES[form.code][form.bits]
    options: Any = dict(samplerate=form.rate, channels=form.channels, format="RAW", subtype=subtype, endian="LITTLE")
    return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True, **options)[0]


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
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, _PCM, channels, rate, 2 * channels * rate, 2 * channels, 16)
    return struct.pack("<4sI4s", b"RIFF", _UNKNOWN, b"WAVE") + form + struct.pack("<4sI", b"data", _UNKNOWN)
