"""Tables of numbers by time, read from .csv files or row by row."""

import csv
import gzip
import io
import itertools
import pathlib
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from dilax.errors import UserError, one_line
from dilax.files import read_bytes
from train.data.readers.values import SHOWN, ambiguity, cell_problem, decimal_sign, is_label, is_missing, is_number, to_number

FILLS = ("error", "forward", "interpolate")
_SEPARATORS = (",", ";", "\t")
_SAMPLE = 50  # rows from which the separator is found
_DATE = re.compile(r"\d\D+\d|\d{4}")  # in every date; pandas alone would also take "may" and "t1" for dates


def read_table(path: pathlib.Path, *, missing: str = "error") -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the columns and the numbers of a table that has a row for each step.

    Cells are separated by commas, semicolons or tabs and may be quoted; the file may be compressed with gzip. The first row holds the names
    if none of its cells is a number, or if a word is above the dates or row numbers of the first column; otherwise the columns are called
    "column 1" and so on. A first column of dates or other text is left out, and a line on stderr says so; years and row numbers are
    numbers and stay. Thousands separators and decimal commas are understood where the table shows which of them a comma is.

    Args:
        path: The file, in UTF-8.
        missing: What to do about missing cells (empty, ?, -, NA, N/A, NaN, null, none): "error" raises an error, "forward" repeats the
            value above, "interpolate" interpolates linearly between the values above and below. A line on stderr says how many there were.

    Returns:
        The names, and float64 (time, columns); all values are within the range of float32.

    Raises:
        UserError: naming line and column, if a cell is missing, is not a number, or may mean two numbers; if rows differ in length, two
            columns share a name, or the file is missing, damaged or empty.
    """
    if missing not in FILLS:
        raise UserError(f'missing="{missing}" is unknown; choose from {", ".join(FILLS)}.')
    separator, lines, rows = _read_rows(path)
    names = tuple(f"column {i}" for i in range(1, len(rows[0]) + 1))
    if _has_names(rows[0]) or _has_numeric_names(path, rows):
        names = tuple(one_line(cell) or name for cell, name in zip(rows[0], names))
        lines, rows = lines[1:], rows[1:]
    if not rows:
        raise UserError(f"{path} has names but no values; add a row for each step.")
    if len(names) > 1 and (content := _label_content([row[0] for row in rows])):
        print(f'note: {path}: the first column, "{names[0][:SHOWN]}", is left out; it contains {content}.', file=sys.stderr)
        names, rows = names[1:], [row[1:] for row in rows]
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise UserError(f'{path} has two columns named "{repeated[:SHOWN]}"; rename one.')

    def place(row: int, column: int) -> str:
        return f'{path}, line {lines[row]}: the cell in column "{names[column][:SHOWN]}"'

    values = _to_values(rows, separator, place, missing)
    return names, _fill(path, values, place, missing)


def table_bytes(path: pathlib.Path) -> bytes:
    """Return the content of a table, which may be compressed.

    Raises:
        UserError: if it is missing, empty, or cannot be decompressed.
    """
    content = read_bytes(path, "a .csv file")
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be decompressed ({error}); it is truncated or damaged; copy it again.") from error


def _read_rows(path: pathlib.Path) -> tuple[str, list[int], list[list[str]]]:
    """Return the separator, and the line number and the cells of each row that is not blank."""
    try:
        text = table_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; convert it.") from error
    separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        # A blank line has no cell. A line of separators alone, or of "" in a table of one column, is a row with missing values.
        numbered = [(reader.line_num, row) for row in reader if len(row) > 1 or row == [""] or any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not a row of a table ({error}); correct it.") from error
    blank = [not any(map(str.strip, row)) for _, row in numbered]
    if all(blank):
        raise UserError(f"{path} has only blank lines; add a row for each step.")
    numbered = _without_last_cell(numbered[blank.index(False) : len(blank) - blank[::-1].index(False)])
    width = len(numbered[0][1])
    for line, row in numbered:
        if len(row) != width:
            raise UserError(f"{path}, line {line} has {len(row)} cells and line {numbered[0][0]} has {width}; make them agree.")
    while width > 1 and not any(row[width - 1].strip() for _, row in numbered):
        width -= 1  # lines that end in a separator
    return separator, [line for line, _ in numbered], [row[:width] for _, row in numbered]


def _without_last_cell(numbered: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Drop an empty last cell that only the first row has, or all rows but the first: a separator at the end of lines."""
    first, *rest = [row for _, row in numbered]
    for some, others in (([first], rest), (rest, [first])):
        lengths, width = {len(row) for row in some}, {len(row) for row in others}
        if len(lengths) == len(width) == 1 and lengths == {next(iter(width)) + 1} and not any(row[-1].strip() for row in some):
            return [(line, row[: next(iter(width))]) for line, row in numbered]
    return numbered


def _separator(text: str) -> str:
    """Return the separator that cuts the first rows into equally many cells, most of them numbers."""
    scores = {}
    for separator in _SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            rows = list(itertools.islice((row for row in reader if any(map(str.strip, row))), _SAMPLE))
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows):
            scores[separator] = np.mean([_score(cell, separator) for row in rows for cell in row])
    if scores:
        return max(scores, key=lambda separator: scores[separator])
    first = next((line for line in text.splitlines() if line.strip()), "")
    return next((separator for separator in _SEPARATORS if separator in first), ",")


def _score(cell: str, separator: str) -> float:
    """Return how well a cell speaks for the separator around it: a number speaks for it, another separator in a text against it."""
    if is_number(cell):
        return 1
    return 0 if any(other in cell for other in _SEPARATORS if other != separator) else 0.5


def _has_names(row: Sequence[str]) -> bool:
    """Whether the first row holds the names of the columns, none of which is a number."""
    rest = [cell.strip() for cell in row]
    if len(rest) > 1 and not rest[0]:
        rest = rest[1:]
        if rest == [str(i) for i in range(len(rest))]:  # what pandas writes for columns without names
            return True
    return not any(is_number(cell) or is_missing(cell) for cell in rest)


def _has_numeric_names(path: pathlib.Path, rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row holds whole numbers as names.

    It does if its first cell is a word, or empty, over a first column of numbers or dates; or if it counts, from 0 as pandas does where
    columns have no names, or, such as years, above numbers that are not whole.
    """
    first, *rest = (cell.strip() for cell in rows[0])
    if not rest or len(rows) == 1 or any(is_number(cell) and not cell.isdecimal() for cell in rest):
        return False
    shown, below = rest, rows[1][0]
    if _counts([first, *rest]):
        shown = [first, *rest]
        named = first == "0" or any(is_number(cell) and not cell.strip().isdecimal() for row in rows[1:] for cell in row)
    elif (first and is_missing(first)) or is_number(first) or _are_dates([first]):
        return False
    else:
        named = _are_dates([below]) or (first != "" and is_number(below))
    if named:
        print(f"note: {path}: the first row is taken as the names of the columns: {', '.join(shown)[:80]}.", file=sys.stderr)
    return named


def _counts(cells: Sequence[str]) -> bool:
    """Whether cells are whole numbers, each one more than the one before."""
    if not all(cell.isdecimal() and len(cell) <= SHOWN for cell in cells):  # Python reads no integer of thousands of digits
        return False
    return [int(cell) for cell in cells] == [int(cells[0]) + i for i in range(len(cells))]


def _label_content(cells: list[str]) -> str:
    """Return what a column that is not to be learned from contains; empty if it may contain numbers."""
    if not all(map(is_label, cells)):
        return ""
    present = [cell for cell in cells if not is_missing(cell)]
    if not present:
        return "no values"
    return "dates" if _are_dates(present) else f'text, such as "{one_line(present[0])[:SHOWN]}"'


def _are_dates(cells: list[str]) -> bool:
    import pandas

    if any(is_number(cell) or not _DATE.search(cell) for cell in cells):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(pandas.to_datetime(pandas.Series(cells), errors="coerce", format="mixed", utc=True).notna().all())


def _to_values(rows: list[list[str]], separator: str, place: Callable[[int, int], str], missing: str) -> np.ndarray:
    """Return float64 (rows, columns), with NaN where a cell is missing; `place` says where a cell is."""
    decimal = decimal_sign(cell for row in rows for cell in row)
    if separator == ",":  # quoted commas are not decimal ones unless they must be
        decimal = decimal or "."
    values = np.array([[to_number(cell, decimal or ".") for cell in row] for row in rows], np.float64)
    with np.errstate(over="ignore"):
        unusable = ~np.isfinite(values.astype(np.float32))
    if not decimal:
        unusable |= np.array([["," in cell for cell in row] for row in rows])
    for i, j in np.argwhere(unusable).tolist():
        cell = rows[i][j]
        if not decimal and to_number(cell) is not None and not is_missing(cell):
            raise UserError(f"{place(i, j)} {ambiguity(cell)}.")
        if missing == "error" or not is_missing(cell):
            raise UserError(f"{place(i, j)} {cell_problem(cell, 'the row or the column', decimal or '.')}.")
    return values


def _fill(path: pathlib.Path, values: np.ndarray, place: Callable[[int, int], str], missing: str) -> np.ndarray:
    """Return values (rows, columns) with NaN filled as `missing` says."""
    gaps = np.isnan(values)
    if not gaps.any():
        return values
    import pandas

    frame = pandas.DataFrame(values)
    filled = (frame.ffill() if missing == "forward" else frame.interpolate(limit_area="inside")).to_numpy()
    for i, j in np.argwhere(np.isnan(filled)).tolist():
        side = "above" if np.isnan(values[: i + 1, j]).all() else "below"
        raise UserError(f"{place(i, j)} is missing, and there is no value {side} it to fill it from; remove the row or the column.")
    how = "filled with the value above" if missing == "forward" else "interpolated"
    columns = f"{gaps.any(axis=0).sum()} of {values.shape[1]} columns"
    print(f"note: {path}: missing cells were {how}: {gaps.sum()} in {columns}.", file=sys.stderr)
    return filled


def check_columns(source: str, names: Sequence[str], expected: Sequence[str]) -> None:
    """Raise an error unless a table has the columns of a run; those without names are only counted.

    Args:
        source: What messages call the table.
        names: Its columns.
        expected: Those of the run.

    Raises:
        UserError: if they differ.
    """
    unnamed = any(some and some[0].startswith("column ") for some in (names, expected))
    if len(names) != len(expected) or (not unnamed and tuple(names) != tuple(expected)):
        raise UserError(f"{source} has the columns {', '.join(names)[: 5 * SHOWN]}, and the run was trained on {', '.join(expected)}.")


class RowReader:
    """Rows of numbers from lines that arrive one by one.

    Example:
        >>> reader = RowReader(("warm", "wet"))
        >>> reader.read("date,warm,wet"), reader.read("2020-01-01,20.5,3")
        (None, array([20.5,  3. ]))
    """

    def __init__(self, columns: Sequence[str]) -> None:
        """Expect a number for each of `columns`."""
        self._columns = tuple(columns)
        self._line, self._separator, self._decimal = 0, "", ""

    def read(self, line: str) -> np.ndarray | None:
        """Return the numbers of the next line, float64 (columns,), or None for a blank line and for names in the first row.

        A cell more than there are columns is ignored if it comes first and is a date or other text.

        Raises:
            UserError: if the first line names other columns, or a line is not a row of finite numbers.
        """
        self._line += 1
        where, width, first = f"line {self._line}", len(self._columns), not self._separator
        if not line.strip(f" \r\n{''.join(_SEPARATORS)}" if first else None):
            return None
        self._separator = self._separator or _separator(line)
        try:
            cells = next(csv.reader([line], delimiter=self._separator))
        except csv.Error:  # a line end within the line
            cells = [line]
        names = tuple(map(one_line, cells[1:] if len(cells) == width + 1 else cells))
        # Names that are numbers are not taken for a row; after a date they are values.
        if first and (_has_names(cells) or (names == self._columns and not _are_dates(cells[:1]))):
            check_columns(where, names, self._columns)
            return None
        if len(cells) == width + 1 and is_label(cells[0]):
            cells = cells[1:]
        if not self._decimal and any("," in cell for cell in cells):
            self._decimal = decimal_sign(cells) or ("." if self._separator == "," else "")
            if not self._decimal:
                raise UserError(f"{where}: a cell {ambiguity(next(cell for cell in cells if ',' in cell))}.")
        values = np.array([to_number(cell, self._decimal or ".") for cell in cells], np.float64)
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32)).all()
        if len(values) != width or not finite:
            raise UserError(f"{where}: {line.strip()[:SHOWN]!r} is not a row of {width} numbers: {', '.join(self._columns)}.")
        return values
