"""Laws of the reader of tables: no number is lost or changed without a word, and a mistake is named by line and column."""

import gzip
import io
import pathlib
from typing import Any

import numpy as np
import pandas
import pytest
from reading import check_call, check_mistake, written

from train.data.readers.tables import RowReader, read_table

RNG = np.random.default_rng(5)


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
    check_table(tmp_path, text, names, values)


def check_table(folder: pathlib.Path, content: bytes | str, names: tuple[str, ...], values: Any, **options: str) -> None:
    found, table = read_table(written(folder / "a.csv", content), **options)
    assert found == names
    assert table.dtype == np.float64
    np.testing.assert_array_equal(table, np.array(values, np.float64))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoted", [False, True])
def test_numbers_keep_every_bit_of_float64(tmp_path, separator, quoted):
    values = RNG.normal(size=(30, 4)) * 10.0 ** RNG.integers(-30, 30, size=(30, 4))
    frame = pandas.DataFrame(values, columns=list("abcd"), index=pandas.date_range("2020-01-01", periods=30, freq="h", name="time"))
    text = frame.to_csv(sep=separator, quoting=1 if quoted else 0)
    check_table(tmp_path, text, ("a", "b", "c", "d"), values)
    check_table(tmp_path, gzip.compress(text.encode(), mtime=0), ("a", "b", "c", "d"), values)


def test_values_are_those_of_float(tmp_path):
    cells = [repr(value) for value in (RNG.normal(size=500) * 10.0 ** RNG.integers(-40, 38, 500)).tolist()]
    check_table(tmp_path, "x\n" + "\n".join(cells), ("x",), [[float(cell)] for cell in cells])


DATES = ["2020-01-01", "1/2/2020", "1 Jan 2020", "01.02.2020", "2020-01-01T00:00:00Z", "12:30", "2020-01-01 00:00:00.5"]
LEFT_OUT = {
    **{date: f'"{date}",1\n"{date}",2\n' for date in DATES},
    "text": "mon,1\ntue,2\n",
    "gaps": "NA,1\n,2\n",
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_first_column_of_dates_or_text_is_left_out_with_a_note(tmp_path, name, capsys):
    check_table(tmp_path, "day,a\n" + LEFT_OUT[name], ("a",), [[1], [2]])
    content = {"text": 'text, such as "mon"', "gaps": "no values"}.get(name, "dates")
    note = f'note: {tmp_path}/a.csv: the first column, "day", is left out; it contains {content}.\n'
    assert capsys.readouterr().err == note


@pytest.mark.parametrize(
    "cells", [("2019", "2020"), ("0", "1"), ("007", "012"), ("20200101", "20200102"), ("2,006", "2,007"), ("1e3", "2.5")]
)
def test_a_first_column_of_numbers_stays(tmp_path, cells, capsys):
    numbers = [float(cell.replace(",", "")) for cell in cells]
    text = "a,b\n" + "".join(f'"{cell}",5\n' for cell in cells)
    check_table(tmp_path, text, ("a", "b"), [[numbers[0], 5], [numbers[1], 5]])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("date,2019,2020\n2020-01-01,1,2\n", ("2019", "2020"), [[1, 2]]),
        (",2019,2020\n2020-01-01,1,2\n", ("2019", "2020"), [[1, 2]]),
        ("id,10\n1,2\n", ("id", "10"), [[1, 2]]),
        ("0,1\n7,5\n", ("0", "1"), [[7, 5]]),
        ("2019,2020,2021\n1.5,2,3\n", ("2019", "2020", "2021"), [[1.5, 2, 3]]),
    ],
)
def test_numbers_may_be_names(tmp_path, text, names, values, capsys):
    check_table(tmp_path, text, names, values)
    assert (
        f"note: {tmp_path}/a.csv: the first row is taken as the names of the columns: {', '.join(names).removeprefix('id, ')}."
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        (",1.5,20.5\n2020-01-01,1,2\n", ("column 2", "column 3"), [[1.5, 20.5], [1, 2]]),
        ("mon,1\ntue,2\n", ("column 2",), [[1], [2]]),
        ("2020-01-01,5\n2020-01-02,2\n", ("column 2",), [[5], [2]]),
        ("2019,2020\n1,2\n", ("column 1", "column 2"), [[2019, 2020], [1, 2]]),
        ("2020,2019\n1.5,2\n", ("column 1", "column 2"), [[2020, 2019], [1.5, 2]]),
        ("0\n1.5\n", ("column 1",), [[0], [1.5]]),
    ],
)
def test_values_are_not_taken_as_names(tmp_path, text, names, values):
    check_table(tmp_path, text, names, values)


# Separators and decimal signs


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("a;b\n1,5;2\n", ("a", "b"), [[1.5, 2]]),
        ("a\tb\n1\t2\n", ("a", "b"), [[1, 2]]),
        ("1,5;2,5\n3,25;4\n", ("column 1", "column 2"), [[1.5, 2.5], [3.25, 4]]),
        ("2020-01-01;1,5\n2020-01-02;2,5\n", ("column 2",), [[1.5], [2.5]]),
        ('a;"b, c"\n1;2\n', ("a", "b, c"), [[1, 2]]),
        ('"a;b",c\n1,2\n', ("a;b", "c"), [[1, 2]]),
        ("a,b,\n1,2,\n", ("a", "b"), [[1, 2]]),
        ("a,b\n1,2,\n3,4,\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("a;b;\n1;2\n3;4\n", ("a", "b"), [[1, 2], [3, 4]]),
        ('a,b\n"2,006",0\n', ("a", "b"), [[2006, 0]]),
        ('a,b\n"1,234.5","-12,345,678"\n', ("a", "b"), [[1234.5, -12345678]]),
        ('a,b\n"1,5",2\n"1,234",2\n', ("a", "b"), [[1.5, 2], [1.234, 2]]),
        ("a;b\n1.234,5;1.234\n", ("a", "b"), [[1234.5, 1234]]),
        ("a;b\n1.234.567;5\n", ("a", "b"), [[1234567, 5]]),
        ("a;b\n0,125;1e3\n", ("a", "b"), [[0.125, 1000]]),
        ("a;b\n1,5e3;-,5\n", ("a", "b"), [[1500, -0.5]]),
        ("a;b\n1,234;0.5\n", ("a", "b"), [[1234, 0.5]]),
        ("a;b\n1'234.5;1’000\n", ("a", "b"), [[1234.5, 1000]]),
        ("a;b\n1\u00a0234,5;1\u202f000\n", ("a", "b"), [[1234.5, 1000]]),
        ("a;b\n1.234;2\n", ("a", "b"), [[1.234, 2]]),
    ],
)
def test_separators_and_decimal_signs_are_found(tmp_path, text, names, values):
    check_table(tmp_path, text, names, values)


# Missing values

GAPS = "t,a,b\n2020-01-01,1,5\n2020-01-02,,6\n2020-01-03,NA,7\n2020-01-04,4,8\n,5,?\n2020-01-06,6,8\n"


@pytest.mark.parametrize(
    ("missing", "how", "values"),
    [
        ("forward", "filled with the value above", [[1, 5], [1, 6], [1, 7], [4, 8], [5, 8], [6, 8]]),
        ("interpolate", "interpolated", [[1, 5], [2, 6], [3, 7], [4, 8], [5, 8], [6, 8]]),
    ],
)
def test_missing_values_are_filled_with_a_note(tmp_path, missing, how, values, capsys):
    check_table(tmp_path, GAPS, ("a", "b"), values, missing=missing)
    assert f"note: {tmp_path}/a.csv: missing cells were {how}: 3 in 2 of 2 columns.\n" in capsys.readouterr().err
    check_table(tmp_path, "a\n1\n", ("a",), [[1]], missing=missing)
    assert capsys.readouterr().err == ""


MISSING = "is missing, and there is no value {} it to fill it from; remove the row or the column."


@pytest.mark.parametrize(
    ("text", "missing", "message"),
    [
        ("a,b\n,1\n2,3\n", "forward", 'line 2: the cell in column "a" ' + MISSING.format("above")),
        ("a,b\n,1\n2,3\n", "interpolate", 'line 2: the cell in column "a" ' + MISSING.format("above")),
        ("a,b\n1,1\n2,\n", "interpolate", 'line 3: the cell in column "b" ' + MISSING.format("below")),
        (
            "a,b\n1,1\nx,\n",
            "forward",
            'line 3: the cell in column "a" is "x", which is not a number; correct it, or remove the row or the column.',
        ),
    ],
)
def test_what_cannot_be_filled_is_named(tmp_path, text, missing, message):
    check_mistake(lambda path: read_table(path, missing=missing), tmp_path / "a.csv", text, "{path}, " + message)


def test_a_missing_series_of_pandas_is_seen(tmp_path):
    text = pandas.DataFrame({"x": [1, np.nan, 3], "y": [1, np.nan, 3]}).to_csv(index=False)
    check_mistake(
        read_table, tmp_path / "a.csv", text, f'{{path}}, line 3: the cell in column "x" is missing (""); fill it in, or {REMOVE}'
    )
    text = pandas.DataFrame({"x": [1, np.nan, 3]}).to_csv(index=False)
    check_mistake(
        read_table, tmp_path / "a.csv", text, f'{{path}}, line 3: the cell in column "x" is missing (""); fill it in, or {REMOVE}'
    )
    check_table(tmp_path, text, ("x",), [[1], [1], [3]], missing="forward")
    check_table(tmp_path, "\n,\nx,y\n\n1,2\n\n3,4\n,\n\n", ("x", "y"), [[1, 2], [3, 4]])


# Mistakes

REMOVE = "remove the row or the column."
# The content of a file and the message, as for check_mistake.
MISTAKES: list[tuple[Any, str]] = [
    (None, "{path} does not exist; give a .csv file."),
    ("", "{path} is empty; give a .csv file with content."),
    ("\n , \n", "{path} has only blank lines; add a row for each step."),
    (b"a\n\xe9", "{path} is not UTF-8 at byte 2; convert it."),
    ("a,b\n", "{path} has names but no values; add a row for each step."),
    ("a,a\n1,2\n", '{path} has two columns named "a"; rename one.'),
    ("a,b\n1,2\n\n1,2,3\n", "{path}, line 4 has 3 cells and line 1 has 2; make them agree."),
    ('a,b\n1,"2"x\n', "{path}, line 2 is not a row of a table (',' expected after '\"'); correct it."),
    ("d,a,b\nmon,1,2\ntue,3,\n", f'{{path}}, line 3: the cell in column "b" is missing (""); fill it in, or {REMOVE}'),
    ("a,b\n1,2\nx,3\n", f'{{path}}, line 3: the cell in column "a" is "x", which is not a number; correct it, or {REMOVE}'),
    (",2\n3,4\n", f'{{path}}, line 1: the cell in column "column 1" is missing (""); fill it in, or {REMOVE}'),
    ("mon,?\ntue,4\n", f'{{path}}, line 1: the cell in column "column 2" is missing ("?"); fill it in, or {REMOVE}'),
    ("1,x\n3,4\n", f'{{path}}, line 1: the cell in column "column 2" is "x", which is not a number; correct it, or {REMOVE}'),
    ('a,b\n1,"x\ny"\n', f'{{path}}, line 3: the cell in column "b" is "x y", which is not a number; correct it, or {REMOVE}'),
    ("a\nmon\n", f'{{path}}, line 2: the cell in column "a" is "mon", which is not a number; correct it, or {REMOVE}'),
    ("a\n1\ninf\n", '{path}, line 3: the cell in column "a" is "inf", which is not a finite float32 number; correct it.'),
    ("a,b\n1,2\n1,2,\n", "{path}, line 3 has 3 cells and line 1 has 2; make them agree."),
    ("a;b\n1;2\n3\n", "{path}, line 3 has 1 cells and line 1 has 2; make them agree."),
    ('a,b\n1,"2\n', "{path}, line 2 is not a row of a table (unexpected end of data); correct it."),
    ('a,b\n10_1,2\n', f'{{path}}, line 2: the cell in column "a" is "10_1", which is not a number; correct it, or {REMOVE}'),
    ('a,b\n1 000,2\n', f'{{path}}, line 2: the cell in column "a" is "1 000", which is not a number; correct it, or {REMOVE}'),
    ('a,b\n5%,2\n6%,2\n', f'{{path}}, line 2: the cell in column "a" is "5%", which is not a number; correct it, or {REMOVE}'),
    ('a,b\n$5,2\n$6,2\n', f'{{path}}, line 2: the cell in column "a" is "$5", which is not a number; correct it, or {REMOVE}'),
    ('a,b\nTrue,2\n', f'{{path}}, line 2: the cell in column "a" is "True", which is not a number; correct it, or {REMOVE}'),
    ('a,b\nFalse,2\n', f'{{path}}, line 2: the cell in column "a" is "False", which is not a number; correct it, or {REMOVE}'),
    ("a\n1e39\n", '{path}, line 2: the cell in column "a" is "1e39", which is not a finite float32 number; correct it.'),
    ("a\n3.4028236e38\n", '{path}, line 2: the cell in column "a" is "3.4028236e38", which is not a finite float32 number; correct it.'),
    ("a;b\n1,234;2\n", '{path}, line 2: the cell in column "a" is "1,234", which may be 1234 or 1.234; write one of these.'),
    ("a;b\n7;1,234\nx,y;2\n", '{path}, line 2: the cell in column "b" is "1,234", which may be 1234 or 1.234; write one of these.'),
    ("a;b\n0.5;1,5\n", f'{{path}}, line 2: the cell in column "b" is "1,5", which is not a number with a decimal point; correct it, or {REMOVE}'),
    ("a;b\n1,5;1.2345e1\n1;2\n", f'{{path}}, line 2: the cell in column "a" is "1,5", which is not a number with a decimal point; correct it, or {REMOVE}'),
    (b"\x1f\x8bnot gzip", "{path} cannot be decompressed (Unknown compression method); it is truncated or damaged; copy it again."),
    (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-5],
     "{path} cannot be decompressed (Compressed file ended before the end-of-stream marker was reached); it is truncated or damaged; copy it again."),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), MISTAKES)
def test_mistakes_are_named_by_line_and_column(tmp_path, content, message):
    check_mistake(read_table, tmp_path / "a.csv", content, message)


def test_an_unknown_way_to_fill_is_refused():
    check_call(
        lambda: read_table(pathlib.Path("a.csv"), missing="mean"), 'missing="mean" is unknown; choose from error, forward, interpolate.'
    )


# Rows

STREAMS = {
    "names": ("warm,wet\n1,2\n\n3,4.5\n", [[1, 2], [3, 4.5]]),
    "no names": ("1,2\r\n3,4\r\n", [[1, 2], [3, 4]]),
    "dates": ("day,warm,wet\n2020-01-01,1,2\n2020-01-02,3,4\n", [[1, 2], [3, 4]]),
    "empty corner": (",warm,wet\n2020-01-01,1,2\n", [[1, 2]]),
    "semicolons": ("day;warm;wet\nmon;1,5;2\ntue;1,234;3\n", [[1.5, 2], [1.234, 3]]),
    "tabs": ("1\t2\n3\t4\n", [[1, 2], [3, 4]]),
    "quotes": ('"warm","wet"\n"1","2"\n', [[1, 2]]),
    "blank": ("\n , \nwarm,wet\n\n1,2\n\n", [[1, 2]]),
}


@pytest.mark.parametrize("name", STREAMS)
def test_rows_arrive_one_by_one(tmp_path, name):
    text, values = STREAMS[name]
    reader = RowReader(("warm", "wet"))
    rows = [row for row in map(reader.read, io.StringIO(text, newline="")) if row is not None]
    np.testing.assert_array_equal(rows, values)
    assert rows[0].dtype == np.float64
    np.testing.assert_array_equal(read_table(written(tmp_path / "a.csv", text))[1], values)


def test_rows_of_columns_without_names_and_with_numbers_as_names():
    reader = RowReader(("column 1", "column 2"))
    np.testing.assert_array_equal([reader.read("x,y"), reader.read("1,2")][1], [1, 2])
    reader = RowReader(("2019", "2020"))
    assert reader.read("date,2019,2020") is None
    np.testing.assert_array_equal(reader.read("2020-01-01,2019,2020"), [2019, 2020])
    assert RowReader(("2019", "2020")).read("2019,2020") is None
    np.testing.assert_array_equal(RowReader(("2019", "2020")).read("2019,2021"), [2019, 2021])
    np.testing.assert_array_equal(RowReader(("2019", "2020")).read("2020-01-01,2019,2020"), [2019, 2020])


NOT_A_ROW = "is not a row of 2 numbers: warm, wet."


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("wet,warm",), "line 1 has the columns wet, warm, and the run was trained on warm, wet."),
        (("", "day,warm"), "line 2 has the columns day, warm, and the run was trained on warm, wet."),
        (("1,2", "1,x"), f"line 2: '1,x' {NOT_A_ROW}"),
        (("1,2", "warm,wet"), f"line 2: 'warm,wet' {NOT_A_ROW}"),
        (("1,\n",), f"line 1: '1,' {NOT_A_ROW}"),
        (("1,2,\n",), f"line 1: '1,2,' {NOT_A_ROW}"),
        (("9,1,2",), f"line 1: '9,1,2' {NOT_A_ROW}"),
        (("5%,1,2",), f"line 1: '5%,1,2' {NOT_A_ROW}"),
        (("1",), f"line 1: '1' {NOT_A_ROW}"),
        (("1,1_0",), f"line 1: '1,1_0' {NOT_A_ROW}"),
        (("1,1e39",), f"line 1: '1,1e39' {NOT_A_ROW}"),
        (("1,nan",), f"line 1: '1,nan' {NOT_A_ROW}"),
        (("5;1,234",), 'line 1: a cell is "1,234", which may be 1234 or 1.234; write one of these.'),
        (("1,2", "1,2\r3"), f"line 2: '1,2\\r3' {NOT_A_ROW}"),
        (("1,2", ","), f"line 2: ',' {NOT_A_ROW}"),
    ],
)
def test_mistakes_in_rows_get_one_line(lines, message):
    reader = RowReader(("warm", "wet"))
    check_call(lambda: [reader.read(line) for line in lines], message)
