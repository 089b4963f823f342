"""Labelled series of numbers, in the .ts files of the UCR and UEA archives."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from dilax.errors import UserError, did_you_mean
from dilax.files import read_bytes, user_path
from train.data.readers.files import list_files
from train.data.readers.packaged import package_folder
from train.data.readers.values import cell_problem, to_number

_INSTALL = "pip install --no-deps aeon==1.6.0"
_SHOWN = 40  # names of a list, or characters of a label, in a message


def ucr_files(name: str, folder: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the files NAME_TRAIN.ts and NAME_TEST.ts of a dataset.

    Args:
        name: The dataset, such as "GunPoint".
        folder: The folder of the files, or of a sub-folder with them; "" takes the datasets that the package aeon 1.6.0 (BSD) ships: ACSF1,
            ArrowHead, BasicMotions, GunPoint, ItalyPowerDemand, JapaneseVowels, OSULeaf, PickupGestureWiimoteZ and some more.

    Raises:
        UserError: if the folder, the package or the dataset is missing.
    """
    directory = user_path(folder) if folder else package_folder(f"ucr:{name}", "aeon", _INSTALL) / "datasets" / "data"
    if not directory.is_dir():
        raise UserError(f'"{directory}" is not a folder; give one that contains {name}_TRAIN.ts and {name}_TEST.ts.')
    datasets = {}
    for train in list_files(directory, {".ts"}):
        stem = train.name.removesuffix("_TRAIN.ts")
        test = train.with_name(f"{stem}_TEST.ts")
        if stem != train.name and test.is_file():
            datasets[stem] = (train, test)
    if not datasets:
        raise UserError(f"{directory} contains no pair of files such as {name}_TRAIN.ts and {name}_TEST.ts; give a folder that does.")
    if name not in datasets:
        known = ", ".join(list(datasets)[:_SHOWN]) + (", ..." if len(datasets) > _SHOWN else "")
        raise UserError(f'there is no dataset "{name}" in {directory}; choose from {known}.{did_you_mean(name, datasets)}')
    return datasets[name]


def read_ts(path: pathlib.Path) -> tuple[list[np.ndarray], list[str]]:
    """Return the series of a .ts file, each float64 (time, channels), and their labels.

    The file begins with comments and header lines that start with @, in any case. One of them is `@classLabel true a b c`, or
    `@targetLabel true` if the labels are numbers. After the line @data there is one series per line: its channels and its label, separated
    by ":", with "," between the values of a channel. Series may differ in length.

    Raises:
        UserError: naming the line, if values are missing, are not numbers or have times, or the series have no labels; if the file is
            missing or not a .ts file.
    """
    lines = read_bytes(path, "a .ts file").decode("utf-8", errors="replace").split("\n")
    header, start = _header(path, lines)
    labels = _declared_labels(path, header)
    series, series_labels = [], []
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip() or line.startswith(("#", "%")):
            continue
        where = f"{path}, line {number}"
        *channels, label = (part.strip() for part in line.split(":"))
        if channels and channels[0].startswith("("):
            raise UserError(f"{where} has values with times, (time,value); save the values alone, at equal time steps.")
        if not channels:
            raise UserError(f'{where} has no ":" between its values and a label; write each line as values, ":" and label.')
        if labels is not None and label not in labels:
            raise UserError(
                f'{where} has the label "{label[:_SHOWN]}", which is not one of {", ".join(labels)}; correct it, or @classLabel.'
            )
        if labels is None and (problem := cell_problem(label, "the series")):
            raise UserError(f"{where}: the label {problem}.")
        if len(channels) > 1 and header.get("univariate") == ["true"]:
            raise UserError(f"{where} has {len(channels)} channels, but @univariate true means 1; correct one of them.")
        if series and len(channels) != series[0].shape[1]:
            raise UserError(f"{where} has {len(channels)} channels, but the series before it have {series[0].shape[1]}; make them agree.")
        series.append(_channels(where, channels))
        series_labels.append(label)
    if not series:
        raise UserError(f"{path} has no series after @data; add some.")
    return series, series_labels


def _header(path: pathlib.Path, lines: list[str]) -> tuple[dict[str, list[str]], int]:
    """Return the words after each @name, by the name in lower case, and the index of the first line after @data."""
    header: dict[str, list[str]] = {}
    for index, line in enumerate(lines):
        if line.startswith("@"):
            word, *rest = line[1:].split() or [""]
            if word.lower() == "data":
                return header, index + 1
            header[word.lower()] = rest if word.lower() == "classlabel" else [value.lower() for value in rest]
    raise UserError(f"{path} has no line @data, so it is truncated or not a .ts file; give a file of the UCR or UEA archive.")


def _declared_labels(path: pathlib.Path, header: dict[str, list[str]]) -> tuple[str, ...] | None:
    """Return the labels that the header lists, or None if they are numbers."""
    if header.get("timestamps", ["false"])[:1] == ["true"]:
        raise UserError(f"{path} has @timestamps true; save the values alone, at equal time steps.")
    has_labels, *labels = header.get("classlabel") or ["false"]
    if has_labels.lower() == "true" and labels:
        return tuple(labels)
    if header.get("targetlabel", ["false"])[:1] == ["true"]:
        return None
    raise UserError(f'{path} does not give the labels of its series; add "@classLabel true" and the labels before @data.')


def _channels(where: str, channels: list[str]) -> np.ndarray:
    """Return float64 (time, channels)."""
    columns = [part.split(",") for part in channels]
    for i, column in enumerate(columns, 1):
        if len(column) != len(columns[0]):
            raise UserError(f"{where}: channel {i} has {len(column)} values and channel 1 has {len(columns[0])}; make them agree.")
    return _to_array(list(zip(*columns)), lambda step, channel: f"{where}: value {step + 1} of channel {channel + 1}")


def _to_array(rows: Sequence[Sequence[str]], place: Callable[[int, int], str]) -> np.ndarray:
    """Return float64 (rows, columns), finite in float32; `place` says where a cell is."""
    values = np.array([[to_number(cell) for cell in row] for row in rows], np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32))
    for i, j in np.argwhere(~finite).tolist():
        raise UserError(f"{place(i, j)} {cell_problem(rows[i][j], 'the series')}.")
    return values
