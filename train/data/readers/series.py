"""Series of numbers: the .ts files of the UCR and UEA archives, and tables in .csv files."""

import csv
import io
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from dilax.errors import UserError, did_you_mean
from train.data.readers.files import read_bytes
from train.data.readers.packaged import package_folder

_INSTALL = "pip install --no-deps aeon==1.6.0"
_MISSING = {"", "?", "-", "na", "n/a", "nan", "null", "none"}
_TOO_LARGE = 2.0**128  # for float32
_SHOWN = 40  # of a list, or characters of a cell, in a message


def ucr_files(name: str, folder: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the files NAME_TRAIN.ts and NAME_TEST.ts.

    Args:
        name: Of the dataset, such as "GunPoint".
        folder: Holds them, or a sub-folder with them; "" takes those that the package aeon 1.6.0 (BSD) ships: ACSF1, ArrowHead,
            BasicMotions, GunPoint, ItalyPowerDemand, JapaneseVowels, OSULeaf, PickupGestureWiimoteZ and some more.

    Raises:
        UserError: if the folder or the package is missing, or has no such dataset.
    """
    directory = pathlib.Path(folder).expanduser() if folder else package_folder(f"ucr:{name}", "aeon", _INSTALL) / "datasets" / "data"
    if not directory.is_dir():
        raise UserError(f'"{directory}" is not a folder; give one that holds {name}_TRAIN.ts and {name}_TEST.ts.')
    found = {}
    for train in sorted((*directory.glob("*_TRAIN.ts"), *directory.glob("*/*_TRAIN.ts"))):
        stem = train.name.removesuffix("_TRAIN.ts")
        test = train.with_name(f"{stem}_TEST.ts")
        if test.is_file():
            found[stem] = (train, test)
    if not found:
        raise UserError(f"{directory} holds no pair of files such as {name}_TRAIN.ts and {name}_TEST.ts; give a folder that does.")
    if name not in found:
        known = ", ".join(list(found)[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise UserError(f'there is no dataset "{name}" in {directory}; it has {known}.{did_you_mean(name, found)}')
    return found[name]


def read_ts(path: pathlib.Path) -> tuple[list[np.ndarray], list[str]]:
    """Return the series, each float32 (time, channels), and their labels.

    A file has a header of lines that begin with @, in any case, among them `@classLabel true a b c`, or `@targetLabel true` where the
    label is a number; comments; and after @data a series a line: the channels, then the label, with ":" between them and "," between the
    values of a channel. Series may differ in length.

    Raises:
        UserError: naming the line that is wrong; if values are missing or have times, or the series have no labels.
    """
    lines = read_bytes(path, "a .ts file").decode("utf-8", errors="replace").split("\n")
    header, start = _header(path, lines)
    labels = _declared_labels(path, header)
    series, found = [], []
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip() or line.startswith(("#", "%")):
            continue
        where = f"{path}, line {number}"
        *channels, label = (part.strip() for part in line.split(":"))
        if channels and channels[0].startswith("("):
            raise UserError(f"{where} has values with times, (time,value); save it with values alone, at equal steps.")
        if not channels:
            raise UserError(f'{where} has no ":" between values and a label; put the values, ":" and the label into each line.')
        if labels is not None and label not in labels:
            raise UserError(f'{where} ends in the label "{label[:_SHOWN]}", none of {", ".join(labels)}; correct it, or @classLabel.')
        if labels is None and _wrong(label):
            raise UserError(f"{where}: the label {_wrong(label)}.")
        if len(channels) > 1 and header.get("univariate") == ["true"]:
            raise UserError(f"{where} has {len(channels)} channels, and @univariate true says 1; correct one of them.")
        if series and len(channels) != series[0].shape[1]:
            raise UserError(f"{where} has {len(channels)} channels, and the series before it have {series[0].shape[1]}; make them agree.")
        series.append(_channels(where, channels))
        found.append(label)
    if not series:
        raise UserError(f"{path} holds no series after @data; add some.")
    return series, found


def _header(path: pathlib.Path, lines: list[str]) -> tuple[dict[str, list[str]], int]:
    """Return {word: what follows it}, the words in small letters, and the index of the first line behind @data."""
    header: dict[str, list[str]] = {}
    for index, line in enumerate(lines):
        if line.startswith("@"):
            word, *rest = line[1:].split() or [""]
            if word.lower() == "data":
                return header, index + 1
            header[word.lower()] = rest if word.lower() == "classlabel" else [value.lower() for value in rest]
    raise UserError(f"{path} has no line @data, so it is torn, or no .ts file; give one of the UCR or UEA archives.")


def _declared_labels(path: pathlib.Path, header: dict[str, list[str]]) -> tuple[str, ...] | None:
    """Return the labels that the header lists, or None where they are numbers."""
    if header.get("timestamps", ["false"])[:1] == ["true"]:
        raise UserError(f"{path} says @timestamps true; save it with values alone, at equal steps.")
    says, *labels = header.get("classlabel") or ["false"]
    if says.lower() == "true" and labels:
        return tuple(labels)
    if header.get("targetlabel", ["false"])[:1] == ["true"]:
        return None
    raise UserError(f'{path} does not say which labels its series have; put "@classLabel true" and the labels before @data.')


def _channels(where: str, channels: list[str]) -> np.ndarray:
    """Return float32 (time, channels)."""
    columns = [part.split(",") for part in channels]
    for i, column in enumerate(columns, 1):
        if len(column) != len(columns[0]):
            raise UserError(f"{where}: channel {i} has {len(column)} values and channel 1 has {len(columns[0])}; make them agree.")
    return _floats(list(zip(*columns)), lambda step, channel: f"{where}: value {step + 1} of channel {channel + 1}")


def _floats(rows: Sequence[Sequence[str]], name: Callable[[int, int], str]) -> np.ndarray:
    """Return finite float32 (rows, columns); `name` names the cell (row, column) that is wrong."""
    try:
        with np.errstate(over="ignore"):
            values = np.array([[float(cell) for cell in row] for row in rows], np.float64).astype(np.float32)
    except ValueError:
        values = np.array([np.nan])
    if not np.isfinite(values).all():
        row, column, reason = next((i, j, _wrong(cell)) for i, cells in enumerate(rows) for j, cell in enumerate(cells) if _wrong(cell))
        raise UserError(f"{name(row, column)} {reason}.")
    return values


def _wrong(cell: str) -> str:
    """Say what is wrong with a cell; empty where nothing is."""
    cell = _one_line(cell)
    if cell.lower() in _MISSING:
        return f'is missing ("{cell}"); fill it, or leave the series, row or column out'
    if not is_number(cell):
        return f'is "{cell[:_SHOWN]}", which is no number; correct it, or leave the series, row or column out'
    return "" if abs(float(cell)) < _TOO_LARGE else f'is "{cell}", which is no finite number of float32; correct it'


def _one_line(cell: str) -> str:
    """Quoted cells may hold line ends, and messages may not."""
    return " ".join(cell.split())


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, if not a finite one."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_csv(path: pathlib.Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the columns, and a row for each step, float32 (time, columns).

    Cells are separated by commas. The first row holds the names where none of its cells is a number; without, they are "column 1" and so
    on. A first column in which no cell is a number, as one of dates, is left out; years and row numbers are numbers, and stay.

    Raises:
        UserError: naming line and column, if a cell is missing or no number; if rows differ in length, or there is nothing to read.
    """
    rows = _rows(path, read_bytes(path, "a .csv file"))
    width = len(rows[0][1])
    for line, row in rows:
        if len(row) != width:
            raise UserError(f"{path}, line {line} has {len(row)} cells and line {rows[0][0]} has {width}; make them agree.")
    names = tuple(f"column {i}" for i in range(1, width + 1))
    if is_header(rows[0][1]):
        names = tuple(_one_line(cell) or name for cell, name in zip(rows[0][1], names))
        rows = rows[1:]
    if not rows:
        raise UserError(f"{path} holds names and no values; add a row for each step.")
    if all(not is_number(row[0]) for _, row in rows) and width > 1:
        names, rows = names[1:], [(line, row[1:]) for line, row in rows]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f'{path} has two columns of the name "{twice}"; rename one.')
    values = _floats([row for _, row in rows], lambda row, column: f'{path}, line {rows[row][0]}: the cell of "{names[column]}"')
    return names, values


def _rows(path: pathlib.Path, content: bytes) -> list[tuple[int, list[str]]]:
    """Return (line, cells) of each row that is not blank."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; convert it.") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not a row of a .csv file ({error}); correct it.") from error
    if not rows:
        raise UserError(f"{path} holds blank lines alone; add a row for each step.")
    first = rows[0][1]
    other = next((name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in first[0]), None)
    if len(first) == 1 and other:
        raise UserError(f"{path} has {other} between its cells; save it with commas, and points in its numbers.")
    return rows


def is_header(row: list[str]) -> bool:
    """Whether a row holds names: no numbers and nothing missing, or 0, 1, ... behind the empty corner that pandas leaves over dates."""
    if len(row) > 1 and row[0].strip() == "":
        row = row[1:]
        if row == [str(i) for i in range(len(row))]:
            return True
    return not any(is_number(cell) or cell.strip().lower() in _MISSING for cell in row)
