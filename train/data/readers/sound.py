"""Sound in .wav files: one channel, samples in -1..1."""

import collections
import io
import pathlib
import struct
import wave
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dilax.errors import UserError
from train.data.readers.files import read_bytes

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_OPEN = 2**32 - 1  # the size of samples whose number was not known when the header was written


def read_wav(path: pathlib.Path) -> tuple[np.ndarray, int]:
    """Return the samples, float32 (samples,) in -1..1, and the sample rate in Hz.

    PCM of 8, 16, 24 and 32 bits, whose lowest value is -1, and floats of 32 and 64 bits. The wave module of Python reads no floats.

    Raises:
        UserError: if the file is missing, torn or no such .wav, has several channels, no samples, or samples outside -1..1.
    """
    content = read_bytes(path, "a .wav file")
    file = io.BytesIO(content)
    form, size = _header(file, str(path))
    data = file.read() if size == _OPEN else file.read(size)
    if size != _OPEN and len(data) < size:
        raise UserError(f"{path} is torn: {len(data)} of {size} bytes of 'data' are there; copy it again.")
    if len(data) % form.width:
        raise UserError(f"{path} is torn: {len(data)} bytes are no whole number of samples of {8 * form.width} bits; copy it again.")
    if not data:
        raise UserError(f"{path} holds no samples; remove it.")
    return _samples(str(path), form, data, 0), form.rate


def stream_wav(file: io.BufferedReader | io.BytesIO, name: str) -> tuple[int, Iterator[np.ndarray]]:
    """Return the sample rate in Hz, and pieces of the samples, float32 (n,), as they come: of a pipe, a recorder, or a file.

    What is read is as `read_wav` says; a size of the whole that says more than comes, as recorders write it, is no mistake.

    Args:
        file: Open for reading bytes.
        name: Of it, in messages.

    Raises:
        UserError: as `read_wav`, of samples when they come.
    """
    form, size = _header(file, name)

    def pieces() -> Iterator[np.ndarray]:
        left, held, count = size if size != _OPEN else 1 << 62, b"", 0
        while data := file.read1(min(left, 1 << 16)):  # what is there, without waiting for more
            left, held = left - len(data), held + data
            whole = len(held) // form.width * form.width
            if whole:
                yield _samples(name, form, held[:whole], count)
            held, count = held[whole:], count + whole // form.width
        if not count:
            raise UserError(f"{name} holds no samples; give some.")

    return form.rate, pieces()


class _Form(NamedTuple):
    """How samples are written: a code of PCM or floats, bytes of each, and samples a second."""

    code: int
    width: int
    rate: int


def _header(file: io.BufferedReader | io.BytesIO, name: str) -> tuple[_Form, int]:
    """Read a RIFF file up to its samples, and return their form and size in bytes."""
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        raise UserError(f"{name} is no .wav file: it does not begin with RIFF and WAVE; convert it to PCM of 16 bits.")
    form = b""
    while len(part := file.read(8)) == 8:
        kind, size = struct.unpack("<4sI", part)
        if kind == b"data":
            if len(form) < 16:
                break
            return _form(name, form), size
        content = file.read(size + size % 2)
        if len(content) < size:
            raise UserError(f"{name} is torn: {len(content)} of {size} bytes of {kind.decode('latin-1')!a} are there; copy it again.")
        form = content if kind == b"fmt " else form
    raise UserError(f"{name} has no header or no samples; it is torn, or no .wav file.")


def _form(name: str, header: bytes) -> _Form:
    code, channels, rate, _, align, bits = struct.unpack("<HHIIHH", header[:16])
    if code == _EXTENSIBLE and len(header) >= 26:
        code = struct.unpack("<H", header[24:26])[0]
    if channels != 1:
        raise UserError(f"{name} has {channels} channels; mix it down to one channel.")
    if rate == 0:
        raise UserError(f"{name} gives a sample rate of 0; repair its header.")
    if (code, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise UserError(f"{name} holds format {code} of {bits} bits; convert it to PCM of 16 bits.")
    if align != bits // 8:
        raise UserError(f"{name} keeps each sample of {bits} bits in {align} bytes; convert it to PCM of 16 bits.")
    return _Form(code, bits // 8, rate)


def _samples(name: str, form: _Form, data: bytes, before: int) -> np.ndarray:
    """Return the samples of whole bytes, float32 (n,), checked; so many come before them."""
    samples = _decoded(form, data)
    if not np.isfinite(samples).all():
        at = (before + np.argmin(np.isfinite(samples))) / form.rate
        raise UserError(f"{name} holds a sample that is not a number at {at:.3f} s; repair it.")
    if np.abs(samples).max() > 1:
        raise UserError(f"{name} holds samples up to {np.abs(samples).max():.4g}; scale them to -1..1.")
    return samples


def _decoded(form: _Form, data: bytes) -> np.ndarray:
    width = form.width
    if form.code == _FLOAT:
        with np.errstate(over="ignore"):  # too large for float32 is infinite, which is refused
            return np.frombuffer(data, f"<f{width}").astype(np.float32)
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:  # the upper three bytes of 32 bits
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width = wide.tobytes(), 4
    return (np.frombuffer(data, f"<i{width}") / 2.0 ** (8 * width - 1)).astype(np.float32)


def write_wav(path: pathlib.Path, samples: np.ndarray, rate: int) -> None:
    """Write samples, floats (samples,) in -1..1, as PCM of 16 bits; what `read_wav` gave for such a file comes back bit for bit.

    Args:
        path: Of the file, in a folder that is there.
        samples: 1 becomes the largest of 16 bits, just below 1.
        rate: Samples a second, in Hz.

    Raises:
        UserError: if the samples or the rate do not fit, or the folder is missing.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not len(samples):
        raise UserError(f"{path}: samples of shape {samples.shape} cannot be written; give one channel, (samples,).")
    if not np.abs(samples).max() <= 1:
        raise UserError(f"{path}: samples up to {np.abs(samples).max():.4g} cannot be written; scale them to -1..1.")
    if not 0 < rate < 2**31:
        raise UserError(f"{path}: a sample rate of {rate} cannot be written; give samples a second, such as 16000.")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}; make it first.")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm(samples))


def pcm(samples: np.ndarray) -> bytes:
    """Return samples in -1..1, (n,) or (n, channels), as PCM of 16 bits."""
    return np.clip(np.round(samples.astype(np.float64) * 2**15), -(2**15), 2**15 - 1).astype("<i2").tobytes()


def open_header(rate: int, channels: int) -> bytes:
    """Return the header of a .wav file of PCM of 16 bits whose size is not known yet, to be written to a pipe before `pcm`."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, _PCM, channels, rate, 2 * channels * rate, 2 * channels, 16)
    return struct.pack("<4sI4s", b"RIFF", _OPEN, b"WAVE") + form + struct.pack("<4sI", b"data", _OPEN)


def read_wavs(paths: list[pathlib.Path]) -> tuple[list[np.ndarray], int]:
    """Return what `read_wav` gives for each file, and the sample rate of all.

    Raises:
        UserError: if there are no files, one cannot be read, or their rates differ.
    """
    if not paths:
        raise UserError("there are no .wav files to read; give one or more.")
    sounds = [read_wav(path) for path in paths]
    usual = collections.Counter(rate for _, rate in sounds).most_common(1)[0][0]
    for path, (_, rate) in zip(paths, sounds):
        if rate != usual:
            raise UserError(f"{path} has {rate} samples a second, others have {usual}; resample it.")
    return [samples for samples, _ in sounds], usual
