"""Sound files as samples of one channel, every format that libsndfile reads, and the headers of .wav."""

import io
import os
import struct
from typing import Any, NamedTuple

import numpy as np

from dilax.errors import UserError
from dilax.files import read_bytes

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# The formats of a pipe: format code -> bits per value -> the word of libsndfile.
SUBTYPES = {PCM: {8: "PCM_U8", 16: "PCM_16", 24: "PCM_24", 32: "PCM_32"}, _FLOAT: {32: "FLOAT", 64: "DOUBLE"}}
_MOST_CHANNELS = 1024  # of libsndfile
_UPSAMPLING = 1000
UNKNOWN = 2**32 - 1
# What ffmpeg, arecord and sox write as the size of the samples when they cannot know it.
UNKNOWN_SIZES = {UNKNOWN, 2**31, 2**31 - 1, 0x7FFFF000}


class Sound(NamedTuple):
    """Decoded samples, float32 (samples,), already mixed down, with the rate and the number of channels of the file."""

    samples: np.ndarray
    rate: int
    channels: int


def decode_sound(path: str | os.PathLike[str]) -> Sound:
    """Return the samples of a file of any format that libsndfile reads; what compression pushes beyond -1..1 is clipped.

    Raises:
        UserError: if it is missing, truncated or not a sound file, has no samples, or has samples that are not finite or, stored as
            floats, lie outside -1..1.
    """
    import soundfile

    content = read_bytes(path, "a sound file")
    source: Any = io.BytesIO(content)
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
    check_samples(str(path), samples, rate)
    return Sound(mixed_down(samples), rate, samples.shape[1])


def check_samples(name: str, samples: np.ndarray, rate: int, *, before: int = 0) -> None:
    """Raise UserError unless samples (n, channels), with `before` samples ahead of them, are finite and in -1..1."""
    finite = np.isfinite(samples).all(axis=1)
    if not finite.all():
        raise UserError(f"{name} has a sample that is not a finite number at {(before + np.argmin(finite)) / rate:.3f} s; repair it.")
    if np.abs(samples).max() > 1:
        raise UserError(f"{name} has samples up to {np.abs(samples).max():.4g}; scale them to -1..1.")


def mixed_down(samples: np.ndarray) -> np.ndarray:
    """Return the mean (n,) of channels (n, channels)."""
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def resample(name: str, samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Return samples (n,) at another sample rate, clipped to -1..1 (soxr, high quality).

    Raises:
        UserError: if nothing is left of them.
    """
    if rate == wanted:
        return samples
    check_rates(name, rate, wanted)
    import soxr

    converted = soxr.resample(samples, rate, wanted).clip(-1, 1)
    if not len(converted):
        raise UserError(f"{name} is too short to be resampled to {wanted} Hz: it has {len(samples)} samples; remove it.")
    return converted


def check_rates(name: str, rate: int, wanted: int) -> None:
    """Refuse a sample rate, as in a damaged header, from which a file would become too long for the memory."""
    if wanted > _UPSAMPLING * rate:
        raise UserError(f"{name} has a sample rate of {rate} Hz, too low to be resampled to {wanted} Hz; correct its header.")


def _is_wav(content: bytes) -> bool:
    return content[:4] == b"RIFF" and content[8:12] == b"WAVE"


def _intact_wav(name: str, content: bytes) -> bytes:
    """Return a .wav file whose header gives the true size of its samples; libsndfile would read a truncated file without an error."""
    file = io.BytesIO(content)
    form, size = read_header(file, name)
    start = file.tell()
    present = len(content) - start
    ends = is_end(content[start + size + size % 2 :])
    if (size in UNKNOWN_SIZES and size > present) or (size == 0 and not ends):
        size = present
        content = content[: start - 4] + struct.pack("<I", size) + content[start:]
    elif size > present:
        raise UserError(f"{name} is truncated: {present} of {size} bytes of 'data' are present; copy it again.")
    elif not ends:
        raise UserError(
            f"{name} has {present} bytes of samples, but its header gives {size}, as if its recording was interrupted; repair the header."
        )
    if form.code in (PCM, _FLOAT):
        check_alignment(name, form)
        if size % form.align:
            raise UserError(f"{name} is truncated: {size} bytes are not a whole number of samples of {form.bits} bits; copy it again.")
    return content


def is_end(after: bytes) -> bool:
    """Return whether what follows the samples of a .wav file is not samples: nothing, zeros, chunks up to the end, or a tag of ID3."""
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


class Form(NamedTuple):
    """How a .wav file stores its samples: format code, channels, rate in Hz, bytes per sample of all channels, bits per value."""

    code: int
    channels: int
    rate: int
    align: int
    bits: int


def read_header(file: io.BufferedReader | io.BytesIO, name: str) -> tuple[Form, int]:
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


def _form(name: str, header: bytes) -> Form:
    code, channels, rate, _, align, bits = struct.unpack("<HHIIHH", header[:16])
    if code == _EXTENSIBLE and len(header) >= 26:
        code = struct.unpack("<H", header[24:26])[0]
    if not 0 < rate < 2**31:
        raise UserError(f"{name} gives a sample rate of {rate}; repair its header.")
    if not 0 < channels <= _MOST_CHANNELS:
        raise UserError(f"{name} gives {channels} channels; repair its header.")
    return Form(code, channels, rate, align, bits)


def check_alignment(name: str, form: Form) -> None:
    """Raise UserError for samples that do not fill their bytes."""
    if form.align != form.channels * form.bits // 8 or form.bits % 8:
        raise UserError(f"{name} stores each sample of {form.bits} bits in {form.align // form.channels} bytes; convert it to 16-bit PCM.")


def decode_raw(form: Form, data: bytes) -> Any:
    """Return whole samples as float32 (n, channels)."""
    import soundfile

    subtype = SUBTYPES[form.code][form.bits]
    options: Any = dict(samplerate=form.rate, channels=form.channels, format="RAW", subtype=subtype, endian="LITTLE")
    return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True, **options)[0]
