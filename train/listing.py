"""The configs of a folder as a table: `python -m train.main --list`."""

import ast
import pathlib
import re

from dilax.errors import UserError
from train import cli

_MEASURED = re.compile(r"^Measured(?:, (:\w+))?: (.+?); (.+)\.$", re.MULTILINE)
HEADER = ("config", "task", "data", "measured", "time")


def table(folder: pathlib.Path) -> str:
    """Return a line for each config in a folder with what its header says was measured.

    Headers hold lines such as "Measured, :cpu: 83.2 % test accuracy (seed 0); 28 min on 2 CPU cores.", without a variant for the full one.

    Raises:
        UserError: if there are no configs.
    """
    rows = [row for file in sorted(folder.glob("*.py")) for row in _rows(file)]
    if not rows:
        raise UserError(f"{folder}/ does not hold config files; run from the folder that holds configs/.")
    widths = [max(len(row[i]) for row in (HEADER, *rows)) for i in range(len(HEADER))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (HEADER, *rows))


def _rows(file: pathlib.Path) -> list[tuple[str, ...]]:
    measured = _MEASURED.findall(ast.get_docstring(ast.parse(file.read_text())) or "")
    rows = []
    for variant, metric, time in measured or [("", "not measured", "")]:
        config = cli.load_config(f"{file}{variant}")
        rows.append((f"{file}{variant}", config.task, config.data.name, metric, time))
    return rows
