"""Laws of the readers of sound: what was written is read, whatever the format, the channels and the rate; a mistake gets one line."""

import io
import pathlib
import struct
import wave
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from reading import check_call, check_mistake, written
from scipy.io import wavfile

from dilax.errors import UserError
from train.data.readers.sound import SUFFIXES, open_header, pcm, read_sound, read_sounds, stream_wav, write_wav

RNG = np.random.default_rng(5)


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    """A .wav file of samples (n,) or (n, channels), in their type."""
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return file.getvalue()


def wave_file(data: bytes, width: int, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(data)
    return buffer.getvalue()


def riff(code: int, bits: int, data: bytes, extra: bytes = b"", rate: int = 8000, align: int = 0, channels: int = 1) -> bytes:
    """A file whose header says `code`, followed by `extra`; a part of an odd length stands before the samples."""
    header = struct.pack("<HHIIHH", code, channels, rate, rate * bits // 8, align or bits // 8, bits) + extra
    parts = b"".join(
        struct.pack("<4sI", name, len(part)) + part + b"\0" * (len(part) % 2)
        for name, part in ((b"fmt ", header), (b"LIST", b"odd"), (b"data", data))
    )
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts


NOISE = RNG.permutation(np.linspace(-0.5, 0.5, 2000))
LONG = np.sin(np.arange(20_000) / 9) / 3


def stored(form: str, subtype: str | None = None, samples: np.ndarray = NOISE, rate: int = 8000) -> bytes:
    """A file of samples (n,) or (n, channels), written by soundfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def resized(content: bytes, size: int) -> bytes:
    """A plain .wav file whose header gives another size of its samples."""
    return content[:40] + struct.pack("<I", size) + content[44:]


WHOLE = np.array([-(2**31), -(2**31) + 256, -77777777, -256, 0, 256, 1 << 20, 2**31 - 256])
FLOATS = np.array([-1, -0.3, 0, 1e-9, 0.75, 1])
GUID = struct.pack("<HHI", 22, 32, 4) + struct.pack("<H", 3) + bytes.fromhex("000000001000800000aa00389b71")
SOUNDS: dict[str, tuple[bytes, np.ndarray]] = {
    "pcm8": (wav((WHOLE // 2**24 + 128).astype(np.uint8)), (WHOLE // 2**24) / 2**7),
    "pcm16": (wav((WHOLE // 2**16).astype(np.int16)), (WHOLE // 2**16) / 2**15),
    "pcm24": (wave_file(b"".join(int(v // 256).to_bytes(3, "little", signed=True) for v in WHOLE), 3), (WHOLE // 256) / 2**23),
    "pcm32": (wav(WHOLE.astype(np.int32)), WHOLE / 2**31),
    "float32": (wav(FLOATS.astype(np.float32)), FLOATS),
    "float64": (wav(FLOATS), FLOATS),
    "extensible": (riff(0xFFFE, 32, FLOATS.astype("<f4").tobytes(), GUID), FLOATS),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_samples_are_those_that_were_written(tmp_path, name, capsys):
    content, expected = SOUNDS[name]
    samples, rate = read_sound(written(tmp_path / "a.wav", content))
    assert (samples.dtype, rate) == (np.float32, 8000)
    np.testing.assert_array_equal(samples, expected.astype(np.float32))
    rate, arriving = stream_wav(io.BytesIO(content), "it")
    assert rate == 8000
    np.testing.assert_array_equal(np.concatenate(list(arriving)), samples)
    assert capsys.readouterr().err == ""


def test_sixteen_bits_come_back_bit_for_bit(tmp_path):
    every = RNG.permutation(np.arange(-(2**15), 2**15)).astype(np.int16)
    samples, rate = read_sound(written(tmp_path / "a.wav", wav(every, 11025)))
    write_wav(tmp_path / "b.wav", samples, rate)
    again: Any = wavfile.read(tmp_path / "b.wav")
    assert again[0] == 11025
    np.testing.assert_array_equal(again[1], every)
    write_wav(tmp_path / "c.wav", np.array([-1, 1, 0.5, 2**-17]), 8000)
    np.testing.assert_array_equal(wavfile.read(tmp_path / "c.wav")[1], [-32768, 32767, 16384, 0])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_flac_loses_nothing(tmp_path, subtype):
    samples, rate = read_sound(written(tmp_path / "a.flac", stored("FLAC", subtype, rate=11025)))
    steps = 2.0 ** (int(subtype[-2:]) - 1)
    assert rate == 11025
    np.testing.assert_allclose(samples, NOISE, rtol=0, atol=1.01 / steps)
    np.testing.assert_array_equal(samples * steps, np.round(samples * steps))


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("WAV", "ULAW"), ("AIFF", "PCM_16")])
def test_other_formats_sound_alike(tmp_path, form, subtype):
    samples, rate = read_sound(written(tmp_path / "a.sound", stored(form, subtype, LONG)))
    assert (len(samples), rate, samples.dtype) == (len(LONG), 8000, np.float32)
    assert np.corrcoef(samples, LONG)[0, 1] > 0.99
    assert {".wav", ".flac", ".ogg", ".mp3"} == set(SUFFIXES)


@pytest.mark.parametrize("form", ["OGG", "MP3"])
def test_what_compression_pushes_beyond_one_is_clipped(tmp_path, form):
    content = stored(form, samples=np.sign(NOISE))
    decoded: Any = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    assert np.abs(decoded).max() > 1
    samples, _ = read_sound(written(tmp_path / "a", content))
    np.testing.assert_allclose(samples, decoded.clip(-1, 1), atol=1e-6)


# Channels and rates

STEREO = np.stack([NOISE, np.roll(NOISE, 7)], axis=1).astype(np.float32)


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_channels_are_averaged(tmp_path, form, capsys):
    path = written(tmp_path / "a", stored(form, "PCM_16", STEREO))
    integers: Any = soundfile.read(path, dtype="int16")[0]
    np.testing.assert_array_equal(read_sound(path)[0], integers.astype(float).mean(axis=1) / 2**15)
    assert capsys.readouterr().err == f"note: {path} was mixed down to one channel.\n"


def test_files_are_brought_to_the_most_common_rate(tmp_path, capsys):
    contents = [stored("WAV"), stored("FLAC", rate=16000), stored("OGG", samples=STEREO), stored("WAV", "PCM_24", STEREO, 44100)]
    paths = [written(tmp_path / str(i), content) for i, content in enumerate(contents)]
    sounds, rate = read_sounds(paths)
    assert ([len(samples) for samples in sounds], rate) == ([2000, 1000, 2000, 363], 8000)
    note = "note: 2 of 4 files were mixed down to one channel.\nnote: 2 of 4 files were resampled to 8000 Hz.\n"
    assert capsys.readouterr().err == note
    original: Any = soundfile.read(paths[1], dtype="float32")[0]
    np.testing.assert_array_equal(sounds[1], soxr.resample(original, 16000, 8000))
    np.testing.assert_array_equal(sounds[0], read_sound(paths[0])[0])
    assert capsys.readouterr().err == ""


def test_a_rate_can_be_asked_for(tmp_path, capsys):
    wave = np.sin(2 * np.pi * 300 * np.arange(4000) / 8000).astype(np.float32)
    path = written(tmp_path / "a.wav", stored("WAV", "FLOAT", wave))
    samples, rate = read_sound(path, rate=11025)
    assert (len(samples), rate) == (5513, 11025)
    np.testing.assert_allclose(samples[500:-500], np.sin(2 * np.pi * 300 * np.arange(5513) / 11025)[500:-500], atol=1e-3)
    sounds, rate = read_sounds([path, path, written(tmp_path / "b.wav", stored("WAV", rate=4000))], rate=4000)
    assert ([len(samples) for samples in sounds], rate) == ([2000, 2000, 2000], 4000)
    notes = f"note: {path} was resampled to 11025 Hz.\nnote: 2 of 3 files were resampled to 4000 Hz.\n"
    assert capsys.readouterr().err == notes


def test_what_resampling_pushes_beyond_one_is_clipped(tmp_path):
    path = written(tmp_path / "a.wav", stored("WAV", samples=np.sign(NOISE)))
    assert np.abs(read_sound(path, rate=44100)[0]).max() == 1


# Headers and pipes


@pytest.mark.parametrize("size", [0, 2**32 - 1, 2**31, 2**31 - 1, 0x7FFFF000])
def test_a_size_that_was_not_known_is_that_of_the_file(tmp_path, size):
    content = stored("WAV")
    expected, _ = read_sound(written(tmp_path / "a.wav", content))
    np.testing.assert_array_equal(read_sound(written(tmp_path / "b.wav", resized(content, size)))[0], expected)
    np.testing.assert_array_equal(np.concatenate(list(stream_wav(io.BytesIO(resized(content, size)), "it")[1])), expected)


@pytest.mark.parametrize("after", [b"LIST\4\0\0\0abcd", b"id3 \2\0\0\0xy", bytes(100), b"TAG".ljust(128)])
def test_what_follows_the_samples_is_not_read(tmp_path, after):
    expected, _ = read_sound(written(tmp_path / "a.wav", stored("WAV")))
    np.testing.assert_array_equal(read_sound(written(tmp_path / "a.wav", stored("WAV") + after))[0], expected)
    for pipe in (io.BytesIO, Pipe):
        np.testing.assert_array_equal(np.concatenate(list(stream_wav(pipe(stored("WAV") + after), "it")[1])), expected)
    check_mistake(read_sound, tmp_path / "b.wav", resized(stored("WAV", samples=NOISE[:0]), 0) + after, "{path} has no samples; remove it.")


# Samples whose bytes look like the name of a chunk, are zeros, or are anything.
HIDDEN = {
    "letters": np.frombuffer(b"LIST" * 1000, np.uint8),
    "quiet": np.full(4000, 100, np.uint8),
    "chunks": np.frombuffer(b"junk\4\0\0\0abcd" * 300 + b"abcd\xff\xff", np.uint8),
    "noise": RNG.integers(0, 256, 4000).astype(np.uint8),
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("size", [0, 400])
def test_samples_beyond_the_size_in_the_header_are_never_left_out(tmp_path, name, size):
    """The writer was killed before it could write the size."""
    content = resized(wav(HIDDEN[name]), size)
    assert content[40:44] == struct.pack("<I", size)
    if size:
        with pytest.raises(UserError, match="but its header gives 400, as if its recording was interrupted; repair the header"):
            read_sound(written(tmp_path / "a.wav", content))
    else:
        samples, _ = read_sound(written(tmp_path / "a.wav", content))
        np.testing.assert_array_equal(samples, (HIDDEN[name] - 128.0) / 128)


@pytest.mark.parametrize("name", HIDDEN)
def test_that_a_pipe_goes_on_beyond_its_header_is_said(name, capsys):
    _, arriving = stream_wav(Pipe(resized(wav(HIDDEN[name]), 400)), "it")
    np.testing.assert_array_equal(np.concatenate([*arriving]), (HIDDEN[name][:400] - 128.0) / 128)
    assert capsys.readouterr().err == (
        "warning: it goes on after the 400 bytes of samples that its header gives, and what follows is left out; give the size of all "
        "samples there, or 0xFFFFFFFF where it is not known.\n"
    )


def test_half_a_sample_at_the_end_of_a_pipe_is_said(capsys):
    _, arriving = stream_wav(io.BytesIO(open_header(8000, 1) + b"\0\1\2"), "it")
    assert len(np.concatenate(list(arriving))) == 1
    assert capsys.readouterr().err == "note: it ended within a sample; its last 1 bytes are left out.\n"


class Pipe(io.BytesIO):
    """Gives a few bytes at a time, of which no sample is made."""

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(min(size or 0, 5))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE"])
def test_a_pipe_gives_what_the_file_does(tmp_path, subtype, channels, capsys):
    samples = np.stack([np.roll(NOISE, 7 * i)[:50] for i in range(channels)], axis=1)
    content = stored("WAV", subtype, samples)
    expected, _ = read_sound(written(tmp_path / "a.wav", content))
    capsys.readouterr()
    rate, arriving = stream_wav(Pipe(content), "standard input")
    assert (rate, len(expected)) == (8000, 50)
    np.testing.assert_array_equal(np.concatenate(list(arriving)), expected)
    note = f"note: standard input has {channels} channels; they are mixed down to one.\n"
    assert capsys.readouterr().err == (note if channels > 1 else "")


def test_a_header_of_unknown_length_is_read(tmp_path):
    samples = np.round(NOISE * 2**15) / 2**15
    content = open_header(16000, 1) + pcm(samples)
    sound, rate = read_sound(written(tmp_path / "a.wav", content))
    streamed_rate, arriving = stream_wav(io.BytesIO(content), "it")
    assert (rate, streamed_rate) == (16000, 16000)
    np.testing.assert_array_equal(sound, samples)
    np.testing.assert_array_equal(np.concatenate(list(arriving)), samples)


STREAMS = {
    "text": (b"hello\n" * 9, "it is not a .wav file: it does not begin with RIFF and WAVE; convert it to 16-bit PCM."),
    "nothing": (b"", "it is not a .wav file: it does not begin with RIFF and WAVE; convert it to 16-bit PCM."),
    "no samples": (open_header(8000, 1), "it has no samples; give some."),
    "half a sample": (open_header(8000, 1) + b"1", "it has no samples; give some."),
    "mu-law": (riff(7, 8, b"12"), "it has samples of format 7 and 8 bits; convert it to 16-bit PCM."),
    "bytes between": (riff(1, 24, bytes(8), align=4), "it stores each sample of 24 bits in 4 bytes; convert it to 16-bit PCM."),
    "late": (wav(np.r_[np.zeros(12_000), np.nan].astype(np.float32)), "it has a sample that is not a finite number at 1.500 s; repair it."),
    "loud": (wav(np.array([0.5, -1.25])), "it has samples up to 1.25; scale them to -1..1."),
}


@pytest.mark.parametrize("name", STREAMS)
def test_mistakes_in_a_pipe_get_one_line(name):
    content, message = STREAMS[name]
    check_call(lambda: list(stream_wav(io.BytesIO(content), "it")[1]), message)


# Mistakes

# Name of the file, its content, and the message, as for check_mistake.
MISTAKES: list[tuple[str, Any, str]] = [
    ("a.wav", None, "{path} does not exist; give a sound file."),
    ("a.wav", b"ID3 and so on", "{path} cannot be read as sound (Format not recognised); give an intact file, one of .wav, .flac, .ogg, .mp3."),
    ("a.wav", wav(np.zeros(9, np.int16))[:50], "{path} is truncated: 6 of 18 bytes of 'data' are present; copy it again."),
    ("a.wav", wav(np.zeros(9, np.int16))[:38], "{path} has no header or no samples; it is truncated, or not a .wav file."),
    ("a.wav", riff(1, 16, b"123"), "{path} is truncated: 3 bytes are not a whole number of samples of 16 bits; copy it again."),
    ("a.wav", wav(np.zeros(0, np.int16)), "{path} has no samples; remove it."),
    ("a.wav", wav(np.array([0, 1, np.nan, 0], np.float32)),
     "{path} has a sample that is not a finite number at 0.000 s; repair it."),
    ("a.wav", wav(np.r_[np.zeros(4000), 1e300]), "{path} has a sample that is not a finite number at 0.500 s; repair it."),
    ("a.wav", wav(np.array([0.5, -1.25])), "{path} has samples up to 1.25; scale them to -1..1."),
    ("a.wav", riff(1, 24, bytes(8), align=4), "{path} stores each sample of 24 bits in 4 bytes; convert it to 16-bit PCM."),
    ("a.wav", riff(1, 16, b"12", rate=0), "{path} gives a sample rate of 0; repair its header."),
    ("a.wav", "/", "{path} is a folder; give a sound file."),
    ("a.flac", b"", "{path} is empty; give a sound file with content."),
    ("a.wav", resized(stored("WAV"), 400),
     "{path} has 4000 bytes of samples, but its header gives 400, as if its recording was interrupted; repair the header."),
    ("a.wav", stored("WAV", subtype="FLOAT", samples=3 * NOISE), "{path} has samples up to 1.5; scale them to -1..1."),
    ("a.wav", b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0", "{path} is truncated: 2 of 16 bytes of 'fmt ' are present; copy it again."),
    ("a.wav", riff(1, 16, b"12", channels=0), "{path} gives 0 channels; repair its header."),
    ("a.flac", stored("FLAC")[:3000], "{path} cannot be read as sound (flac decoder lost sync); give an intact file, one of .wav, .flac, .ogg, .mp3."),
    ("a.ogg", stored("OGG")[:-3], "{path} is truncated: its last page is missing; copy it again."),
    ("a.ogg", stored("OGG")[: stored("OGG").rfind(b"OggS")], "{path} is truncated: its last page is missing; copy it again."),
    ("a.wav", np.random.default_rng(0).bytes(5000),
     "{path} cannot be read as sound (Format not recognised); give an intact file, one of .wav, .flac, .ogg, .mp3."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), MISTAKES)
def test_mistakes_get_one_line(tmp_path, name, content, message):
    check_mistake(read_sound, tmp_path / name, content, message)


CALLS: list[tuple[Callable[[], Any], str]] = [
    (lambda: read_sounds([]), "there are no sound files to read; give one or more."),
    (lambda: write_wav(pathlib.Path("no/such/a.wav"), np.zeros(3), 8000), "no/such/a.wav cannot be written: there is no folder no/such; create it first."),
    (lambda: write_wav(pathlib.Path("a.wav"), np.zeros((3, 1)), 8000),
     "a.wav: samples of shape (3, 1) cannot be written; give one channel, (samples,)."),
    (lambda: write_wav(pathlib.Path("a.wav"), np.zeros(0), 8000), "a.wav: samples of shape (0,) cannot be written; give one channel, (samples,)."),
    (lambda: write_wav(pathlib.Path("a.wav"), np.array([0, -3.5]), 8000), "a.wav: samples up to 3.5 cannot be written; scale them to -1..1."),
    (lambda: write_wav(pathlib.Path("a.wav"), np.array([0, np.nan]), 8000), "a.wav: samples up to nan cannot be written; scale them to -1..1."),
    (lambda: write_wav(pathlib.Path("a.wav"), np.zeros(3), 0), "a.wav: a sample rate of 0 cannot be written; give samples per second, such as 16000."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_mistakes_in_calls(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    check_call(call, message)


def test_a_truncated_mp3_file_is_refused(tmp_path):
    content = stored("MP3", samples=LONG)
    path = written(tmp_path / "a.mp3", content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.mp3 is truncated: \d+ of 20000 samples can be read; copy it again\.$"):
        read_sound(path)


def test_a_sound_of_one_sample_cannot_be_resampled(tmp_path):
    path = written(tmp_path / "a.wav", stored("WAV", samples=NOISE[:1], rate=44100))
    check_call(lambda: read_sound(path, rate=8000), f"{path} is too short to be resampled to 8000 Hz: it has 1 samples; remove it.")
