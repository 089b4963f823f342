"""Sound in .wav files: one channel, samples in -1..1."""

import collections
import pathlib
import struct
import wave

import numpy as np

from dilax.errors import UserError
from train.data.files import read_bytes

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE


def read_wav(path: pathlib.Path) -> tuple[np.ndarray, int]:
    """Return the samples, float32 (samples,) in -1..1, and the sample rate in Hz.

    PCM of 8, 16, 24 and 32 bits, whose lowest value is -1, and floats of 32 and 64 bits. The wave module of Python reads no floats.

    Raises:
        UserError: if the file is missing, torn or no such .wav, has several channels, no samples, or samples outside -1..1.
    """
    chunks = _chunks(path, read_bytes(path, "a .wav file"))
    if len(chunks.get(b"fmt ", b"")) < 16 or b"data" not in chunks:
        raise UserError(f"{path} has no header or no samples; it is torn, or no .wav file.")
    header = chunks[b"fmt "]
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", header[:16])
    if code == _EXTENSIBLE and len(header) >= 26:
        code = struct.unpack("<H", header[24:26])[0]
    if channels != 1:
        raise UserError(f"{path} has {channels} channels; mix it down to one channel.")
    if rate == 0:
        raise UserError(f"{path} gives a sample rate of 0; repair its header.")
    samples = _samples(path, code, bits, chunks[b"data"])
    if not len(samples):
        raise UserError(f"{path} holds no samples; remove it.")
    if not np.isfinite(samples).all():
        raise UserError(f"{path} holds a sample that is not a number at {_seconds(np.isfinite(samples), rate)} s; repair it.")
    if np.abs(samples).max() > 1:
        raise UserError(f"{path} holds samples up to {np.abs(samples).max():.4g}; scale them to -1..1.")
    return samples, rate


def _chunks(path: pathlib.Path, content: bytes) -> dict[bytes, bytes]:
    """Return {name: content} of the parts of a RIFF file."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise UserError(f"{path} is no .wav file: it does not begin with RIFF and WAVE; convert it to PCM of 16 bits.")
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(content) and b"data" not in chunks:
        name, size = struct.unpack("<4sI", content[at : at + 8])
        chunks[name] = content[at + 8 : at + 8 + size]
        if len(chunks[name]) < size:
            raise UserError(f"{path} is torn: {len(chunks[name])} of {size} bytes of {name.decode('latin-1')!a} are there; copy it again.")
        at += 8 + size + size % 2
    return chunks


def _samples(path: pathlib.Path, code: int, bits: int, data: bytes) -> np.ndarray:
    if (code, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise UserError(f"{path} holds format {code} of {bits} bits; convert it to PCM of 16 bits.")
    if len(data) % (bits // 8):
        raise UserError(f"{path} is torn: {len(data)} bytes are no whole number of samples of {bits} bits; copy it again.")
    if code == _FLOAT:
        with np.errstate(over="ignore"):  # too large for float32 is infinite, which is refused
            return np.frombuffer(data, f"<f{bits // 8}").astype(np.float32)
    if bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if bits == 24:  # the upper three bytes of 32 bits
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, bits = wide.tobytes(), 32
    return (np.frombuffer(data, f"<i{bits // 8}") / 2.0 ** (bits - 1)).astype(np.float32)


def _seconds(good: np.ndarray, rate: int) -> str:
    return f"{np.argmin(good) / rate:.3f}"


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
    codes = np.clip(np.round(samples.astype(np.float64) * 2**15), -(2**15), 2**15 - 1).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(codes.tobytes())


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
