"""Damaged files through every reader: intact data, or one line that names the file; never another error, a hang, or memory for what is not there.

Valid files of a few hundred bytes are damaged in ways that copying, recording and converting do, and in the fields of their headers, with
correct checksums where the format has them. HYPOTHESIS_PROFILE=thorough tries many more.
"""

import contextlib
import faulthandler
import gzip
import io
import json
import pathlib
import resource
import signal
import struct
import tempfile
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import safetensors.numpy
import scipy.io
import soundfile
from PIL import Image

from dilax import inputs
from dilax.errors import UserError
from dilax.sounds import decode_sound
from dilax.state_dicts import convert, read_state_dict
from train.data.readers.images import decode, image_channels
from train.data.readers.masks import MaskReader, decode_mask
from train.data.readers.piano import read_piano_rolls
from train.data.readers.series import read_ts
from train.data.readers.sound import read_sound, stream_wav
from train.data.readers.tables import RowReader, read_table
from train.data.readers.text import read_text

RNG = np.random.default_rng(6)
SECONDS = 20  # for one file; the slowest takes 0.5
MEGABYTES = 300  # by which the memory of the process may grow


class TooSlowError(BaseException):
    """Not an Exception, so that no reader takes it for damage."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Limit the time; faulthandler ends the process if the code that hangs is not Python."""

    def stop(*_: Any) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def image(form: str, mode: str = "RGB", **options: Any) -> bytes:
    shape = {"L": (5, 4), "P": (5, 4), "RGB": (5, 4, 3), "RGBA": (5, 4, 4), "I;16": (5, 4)}[mode]
    array = RNG.integers(0, 256, shape, np.uint16 if mode == "I;16" else np.uint8)
    made = Image.fromarray(array)
    if mode == "P":
        made.putpalette(bytes(range(256)) * 3)
    file = io.BytesIO()
    made.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colours: int, filtered: int, rows: bytes, extra: tuple[bytes, bytes] | None = None) -> bytes:
    """A PNG whose checksums are correct, whatever its header says."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, filtered, 0))
    more = chunk(*extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sound(form: str, subtype: str, channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, RNG.uniform(-0.9, 0.9, (40, channels)), 8000, format=form, subtype=subtype)
    return file.getvalue()


def wav(code: int, channels: int, rate: int, align: int, bits: int, size: int, more: bytes) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, code, channels, rate, rate * align & UINT32, align, bits)
    return b"RIFF" + struct.pack("<I", size) + b"WAVE" + form + struct.pack("<4sI", b"data", size) + more


def zipped(arrays: dict[str, bytes], suffix: str = ".npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in arrays.items():
            made.writestr(zipfile.ZipInfo(f"{name}{suffix}"), content)
    return file.getvalue()


def npy(descr: Any, shape: Any, content: bytes, fortran: Any = False) -> bytes:
    header = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=True, **arrays)
    return file.getvalue()


ROLL = (RNG.random((3, 6, 4)) < 0.5).astype(np.uint8)
ROLLS = {"train": ROLL, "valid": ROLL[:1], "test": ROLL[:2], "test_lengths": np.array([4, 6])}


def mat(**options: Any) -> bytes:
    cells = np.empty((1, 2), object)
    cells[0, :] = [ROLL[0], ROLL[1].astype(float)]
    file = io.BytesIO()
    scipy.io.savemat(file, dict.fromkeys(("traindata", "validdata", "testdata"), cells), **options)
    return file.getvalue()


PICKLE = (
    b"\x80\x02}X\x08\x00\x00\x00a.weightctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtRs."
)  # of {"a.weight": a tensor (2, 3)}, as torch.save writes it
PARTS = {"a/data.pkl": PICKLE, "a/byteorder": b"little", "a/data/0": RNG.normal(size=(2, 3)).astype("<f4").tobytes(), "a/version": b"3\n"}

STATE = {"a.weight": RNG.normal(size=(2, 3)).astype(np.float32), "a.bias": np.arange(2.0), "a.num_batches_tracked": np.array(3)}
TABLE = "date;warm;wet\n2020-01-01;1,5;3\n2020-01-02;-2;5\n2020-01-03;1.234,5;7e-2\n"
PLAIN_TABLE = '"warm",wet\r\n1,2\r\n"1,234.5",7\r\n3,4\r\n'
GAPS = "1\tNA\n2\t3\n?\t4\n5\t6\n"
TS = "# made\n@problemName x\n@timestamps false\n@univariate false\n@classLabel true a b\n@data\n1,2,3:4,5,6:a\n1,2:3,4:b\n"
REGRESSION = "@targetLabel true\n@data\n1,2,3:0.5\n4,5,6:-1\n"

UINT32 = 2**32 - 1
NUMBERS = [0, 1, 2, 3, 127, 128, 255, 2**15 - 1, 2**16 - 1, 60000, 2**24, 2**31 - 1, 2**31, UINT32 - 7, UINT32]
numbers = st.sampled_from(NUMBERS) | st.integers(0, UINT32)
small = st.integers(0, 16) | st.sampled_from([24, 32, 64, 255])
some_bytes = st.binary(max_size=80)
wavs = st.builds(
    wav,
    st.sampled_from([1, 1, 1, 2, 3, 3, 6, 7, 17, 85, 0xFFFE, 0]),
    st.sampled_from([1, 1, 1, 2, 3, 0, 255, 65535]),
    st.sampled_from([8000, 8000, 1]) | numbers,
    st.sampled_from([1, 2, 2, 4, 8, 0, 3, 65535]),
    st.sampled_from([8, 16, 16, 24, 32, 64, 0, 12, 255, 65535]),
    st.sampled_from([0, 80, 80]) | numbers,
    st.binary(min_size=80, max_size=80) | some_bytes,
)  # fmt: skip
pngs = st.builds(
    png,
    st.integers(0, 9) | numbers,
    st.integers(0, 9) | numbers,
    st.sampled_from([1, 2, 4, 8, 8, 8, 16, 0, 3]),
    st.sampled_from([0, 0, 2, 3, 4, 6, 1, 255]),
    st.sampled_from([0, 0, 0, 1, 64]),
    st.binary(min_size=200, max_size=200) | some_bytes,
    st.none() | st.tuples(st.sampled_from([b"PLTE", b"tRNS", b"eXIf", b"acTL", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"pHYs"]), some_bytes),
)
sizes = st.sampled_from([-1, 0, 1, 2, 3, 6, 10**6, 10**12, 2**62, 2**64])
shapes = st.tuples(sizes, sizes, sizes) | st.lists(sizes, max_size=4).map(tuple) | st.sampled_from([None, "(2,)", (2.5,), [1]])
descrs = st.sampled_from(
    ["|u1", "|u1", "<f4", "<f8", "|b1", "|O", "<U3", "|V0", "|S0", "<M8[s]", "<c8", "<i8", [("a", "<f4")], "<f99", 3, None]
)
arrays = st.builds(npy, descrs, shapes, some_bytes, st.sampled_from([False, True, 1]))
npz_rolls = st.fixed_dictionaries(dict.fromkeys(("train", "valid", "test"), arrays), optional={"test_lengths": arrays}).map(zipped)
npz_states = st.dictionaries(st.sampled_from(["a.weight", "a.bias", "module.a", ""]), arrays, max_size=3).map(zipped)
entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "U16", "X9", 3]),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | st.just([0, 4]),
    }
)
tensors = st.dictionaries(st.sampled_from(["a.weight", "a.bias", "__metadata__"]), entry, max_size=2)
safe = st.builds(lambda head, rest: struct.pack("<Q", len(head)) + head + rest, tensors.map(lambda d: json.dumps(d).encode()), some_bytes)
cells = st.sampled_from(
    [
        "1",
        "-2.5",
        "1e400",
        "1,5",
        "1.234,5",
        "",
        "NA",
        "a",
        "2020-01-01",
        "0x10",
        "1_0",
        "٣",
        "9" * 5000,
        "nan",
        "-inf",
        '"',
        '"\n"',
        "\0",
        "\r",
    ]
)
csvs = st.builds(
    lambda rows, separator, end: end.join(map(separator.join, rows)).encode(),
    st.lists(st.lists(cells | st.text(max_size=4), min_size=1, max_size=4), max_size=5),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
lines = st.sampled_from(
    ["@data", "@classLabel true a b", "@classLabel", "@timestamps true", "@univariate true", "@", "1,2:a", "1,2:3,4:b", ":a", ",:a", "(0,1):a", "1,?:a", "1:", ""]
)  # fmt: skip
series = st.lists(lines | st.text(max_size=6), max_size=8).map(lambda all: "\n".join(all).encode())


class Kind(NamedTuple):
    suffix: str
    read: Callable[[pathlib.Path], None]
    intact: tuple[bytes, ...]
    headers: st.SearchStrategy[bytes] = st.nothing()
    often: float = 4


def pixels(array: np.ndarray, channels: int) -> None:
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == channels


def read_image(path: pathlib.Path) -> None:
    channels = image_channels([path], 8)
    for wanted in {channels, 4}:
        pixels(decode(path, wanted, 0), wanted)
    assert decode(path, channels, 8).shape == (8, 8, channels)
    pixels(inputs.to_pixels(path, 3), 3)


def read_mask(path: pathlib.Path) -> None:
    mask = decode_mask(path)
    assert mask.dtype == np.uint8 and mask.ndim == 2
    record = MaskReader(3, (), 255, 8).record(np.zeros((5, 4, 3), np.uint8), mask, str(path))
    assert record["label"].shape == (8, 8) and set(np.unique(record["label"])) <= {0, 1, 2, 255}


def samples(array: np.ndarray) -> None:
    assert array.dtype == np.float32 and array.ndim == 1 and np.abs(array).max(initial=0) <= 1


def read_sound_file(path: pathlib.Path) -> None:
    decoded = decode_sound(path)
    samples(decoded.samples)
    assert len(decoded.samples) and decoded.rate > 0
    samples(read_sound(path, rate=16000)[0])


def read_pipe(path: pathlib.Path) -> None:
    rate, pieces = stream_wav(io.BytesIO(path.read_bytes()), str(path))
    assert rate > 0
    for piece in pieces:
        samples(piece)


def read_csv(path: pathlib.Path) -> None:
    names, values = read_table(path, missing="interpolate")
    assert values.dtype == np.float64 and values.shape[1] == len(names) == len(set(names)) and len(values)
    assert np.isfinite(values.astype(np.float32)).all()


def read_rows(path: pathlib.Path) -> None:
    """Row by row, as from a pipe; errors say the line, for there is no file."""
    reader, count = RowReader(("warm", "wet")), 0
    try:
        for line in path.read_bytes().decode(errors="replace").splitlines():
            row = reader.read(line)
            count += 1
            assert row is None or (row.shape == (2,) and np.isfinite(row).all())
    except UserError as error:
        raise UserError(f"{path}: {error}") if f"line {count + 1}" in str(error) else error from error


def read_series(path: pathlib.Path) -> None:
    found, labels = read_ts(path)
    assert len(found) == len(labels) > 0
    for one in found:
        assert one.dtype == np.float64 and one.ndim == 2 and one.shape[1] == found[0].shape[1] and np.isfinite(one).all()


def read_rolls(path: pathlib.Path) -> None:
    for rolls in read_piano_rolls(path).values():
        assert rolls and all(roll.dtype == bool and roll.ndim == 2 and roll.size for roll in rolls)


def read_document(path: pathlib.Path) -> None:
    assert read_text(path)


def read_state(path: pathlib.Path) -> None:
    state = read_state_dict(path)
    leaves = {"kernel": jax.ShapeDtypeStruct((3, 2), np.float32), "bias": jax.ShapeDtypeStruct((2,), np.float32)}
    layer = convert(state, (("a", "a"),), {"params": {"a": leaves}}, description=str(path))["params"]["a"]
    assert {name: (one.shape, one.dtype) for name, one in layer.items()} == {name: (one.shape, one.dtype) for name, one in leaves.items()}


PNGS = (image("PNG"), image("PNG", "L"), image("PNG", "P"), image("PNG", "RGBA"))
IMAGES = (image("JPEG"), image("GIF", "P"), image("TIFF"), image("TIFF", compression="tiff_lzw"), image("BMP"), image("WEBP"), image("PPM"))
MASKS = (image("PNG", "L"), image("PNG", "P"), image("GIF", "P"), image("TIFF", "L"), image("PNG", "I;16"))
WAVS = (sound("WAV", "PCM_16"), sound("WAV", "PCM_24", 2), sound("WAV", "FLOAT"), sound("WAV", "PCM_U8"), sound("WAV", "DOUBLE"))
SOUNDS = (*WAVS, sound("FLAC", "PCM_16"), sound("OGG", "VORBIS"), sound("MP3", "MPEG_LAYER_III"))
PTH = zipped(PARTS, "")
TEXTS = ("Eine Straße, zwei αβ\r\n".encode(), b"\xef\xbb\xbfabc")
KINDS = {
    "image": Kind(".png", read_image, PNGS + IMAGES, pngs),
    "mask": Kind(".png", read_mask, MASKS, pngs),
    "sound": Kind(".wav", read_sound_file, SOUNDS, wavs),
    "pipe": Kind(".wav", read_pipe, WAVS, wavs),
    "table": Kind(".csv", read_csv, (TABLE.encode(), PLAIN_TABLE.encode(), gzip.compress(TABLE.encode(), mtime=0)), csvs),
    "rows": Kind(".csv", read_rows, (TABLE.encode(), PLAIN_TABLE.encode()), csvs),
    "series": Kind(".ts", read_series, (TS.encode(), REGRESSION.encode()), series),
    "text": Kind(".txt", read_document, TEXTS),
    "rolls.npz": Kind(".npz", read_rolls, (npz(**ROLLS),), npz_rolls),
    "rolls.mat": Kind(".mat", read_rolls, (mat(), mat(do_compression=True)), often=0.3),
    "state.npz": Kind(".npz", read_state, (npz(**STATE),), npz_states),
    "state.safetensors": Kind(".safetensors", read_state, (safetensors.numpy.save(STATE),), safe),
    "state.pth": Kind(".pth", read_state, (PTH,), often=1),
}


@st.composite
def damaged(draw: Any, intact: tuple[bytes, ...]) -> bytes:
    """One of the files, damaged in up to three places, the first of them more often near its beginning."""
    content = bytearray(draw(st.sampled_from(intact)))
    for _ in range(draw(st.integers(1, 3))):
        end = draw(st.sampled_from([64, len(content)]))
        start = draw(st.integers(0, max(0, min(end, len(content)) - 1)))
        how = draw(st.sampled_from(["flip", "number", "cut", "insert", "remove", "repeat", "replace"]))
        length = draw(st.integers(1, 16))
        if how == "flip" and content:
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif how == "number":
            packed = struct.pack(draw(st.sampled_from("<>")) + "I", draw(numbers))[: draw(st.sampled_from([1, 2, 4, 4]))]
            content[start : start + len(packed)] = packed
        elif how == "cut":
            del content[start:]
        elif how == "insert":
            content[start:start] = draw(st.binary(max_size=16))
        elif how == "remove":
            del content[start : start + length]
        elif how == "repeat":
            content[start:start] = content[start : start + length] * draw(st.sampled_from([1, 2, 50, 3000]))
        else:
            content[start : start + length] = draw(st.binary(min_size=length, max_size=length))
    return bytes(content)


def contents(kind: Kind) -> st.SearchStrategy[bytes]:
    return damaged(kind.intact) | kind.headers | st.binary(max_size=100) if kind.headers is not st.nothing() else damaged(kind.intact)


def law(kind: Kind, content: bytes) -> None:
    """The file is read, or refused in one line with its name; in time, without warnings and without memory for what it does not hold."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), watched():
        warnings.simplefilter("error")
        path = pathlib.Path(folder, f"file{kind.suffix}")
        path.write_bytes(content)
        before = peak_megabytes()
        try:
            kind.read(path)
        except UserError as error:
            text = str(error)
            assert str(path) in text, text
            assert len(text.splitlines()) == 1 and len(text) < 1000 and not any(unicodedata.category(sign) == "Cc" for sign in text), ascii(
                text
            )
        assert peak_megabytes() - before < MEGABYTES


HUGE = 10**12
# Files that a reader once failed on, the examples made as small as they can be.
FOUND = {
    "pixels beyond the memory": ("image", png(60000, 60000, 8, 2, 0, b"")),
    "a mask beyond the memory": ("mask", png(60000, 60000, 8, 0, 0, b"")),
    "a rate beyond int32": ("pipe", wav(1, 1, 2**31 + 64, 2, 16, 80, bytes(80))),
    "more channels than libsndfile has": ("pipe", wav(1, 2000, 8000, 4000, 16, 4000, bytes(4000))),
    "a rate of 1 Hz": ("sound", wav(1, 1, 1, 2, 16, 40000, bytes(40000))),
    "a control character in a cell": ("table", b"\0,0"),
    "a control character in a name": ("rows", b"\x1b[2Jwarm;wet\n1;2\n"),
    "a control character in a series": ("series", b"@targetLabel true\n@data\n\x001,2,3:0.5\n"),
    "digits beyond int": ("table", b"9" * 5000 + b"," + b"9" * 5000 + b"\n1.5,2\n"),
    "a long row": ("rows", b"9" * 5000),
    "a long name": ("table", b"a" * 5000 + b"," + b"a" * 5000 + b"\n1.5,2\n"),
    "rolls without bytes": ("rolls.npz", zipped(dict.fromkeys(("train", "valid", "test"), npy("|V0", (HUGE, 1, 1), b"")))),
    "rolls without steps": ("rolls.npz", zipped(dict.fromkeys(("train", "valid", "test"), npy("|u1", (HUGE, 0, 1), b"")))),
    "a long name in an archive": ("rolls.npz", npz(**ROLLS).replace(b"\x09\0", b"\x09\x02", 1)),
    "a size beyond int64": ("state.npz", zipped({"a.weight": npy("|u1", (2**64,), b"")})),
    "a size beyond the memory": ("state.npz", zipped({"a.weight": npy("|u1", (HUGE,), b"")})),
    "a shape that has no other dtype": ("state.npz", zipped({"a.weight": npy("|u1", (0, 0, 2**62), b"")})),
    "an unknown compression": ("state.npz", zipped({"a.weight": npy("|u1", (1,), b"1")}).replace(b"\0\0\0\0!\0", b"\x63\0\0\0!\0")),
    "texts as parameters": ("state.npz", npz(**{**STATE, "a.bias": np.array(["a", "b"])})),
}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(name, capsys):
    kind = KINDS[name]
    often = max(1, round(kind.often * hypothesis.settings().max_examples))

    @hypothesis.settings(max_examples=often)
    @hypothesis.given(contents(kind))
    def check(content):
        law(kind, content)

    check()


@pytest.mark.parametrize("found", FOUND)
def test_files_once_failed_on(found, capsys):
    name, content = FOUND[found]
    law(KINDS[name], content)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("mask", "state.pth")])
def test_intact_files_are_read(name, tmp_path, capsys):
    for number, content in enumerate(KINDS[name].intact):
        path = tmp_path / f"{number}{KINDS[name].suffix}"
        path.write_bytes(content)
        KINDS[name].read(path)
