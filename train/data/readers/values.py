"""Numbers in the cells of text files: missing ones, thousands separators, decimal commas."""

import re
from collections.abc import Iterable

import numpy as np

from dilax.errors import one_line

_MISSING = {"", "?", "-", "na", "n/a", "nan", "null", "none"}
SHOWN = 40  # characters of a cell in a message
# Numbers with thousands separators, by their decimal sign: 1,234.5 and 1.234,5.
_GROUPED = {
    sign: re.compile(rf"[-+]?[1-9]\d{{0,2}}([{other}'’\u00a0\u202f])\d{{3}}(?:\1\d{{3}})*(?:[{sign}]\d*)?") for sign, other in (".,", ",.")
}
_DECIMAL_COMMA = re.compile(r"[-+]?(\d+,\d*|,\d+)([eE][-+]?\d+)?")
_WORD = re.compile(r"[^\W\d_]")
_DATE_LIKE = re.compile(r"\d[-/:]\d|\d\.\d+\.\d")


def is_missing(cell: str) -> bool:
    """Return whether a cell is empty or says that its value is missing."""
    return cell.strip().lower() in _MISSING


def is_number(cell: str) -> bool:
    """Return whether a cell is a number, which may be infinite and have thousands separators or a decimal comma."""
    return not is_missing(cell) and any(to_number(cell, sign) is not None for sign in _GROUPED)


def is_label(cell: str) -> bool:
    """Return whether a cell is missing, a word or a date, and not meant as a number as "5%", "1 000" and "True" are."""
    if is_missing(cell) or is_number(cell):
        return is_missing(cell)
    return bool(_DATE_LIKE.search(cell) or (_WORD.search(cell) and cell.strip().lower() not in ("true", "false")))


def to_number(cell: str, decimal: str = ".") -> float | None:
    """Return the number in a cell with this decimal sign, "." or ",": NaN if it is missing, None if the cell is not a number."""
    if "_" in cell:  # Python reads 1_0 as 10
        return None
    if decimal == ".":
        try:
            return float(cell)
        except ValueError:
            pass
    cell = cell.strip()
    if is_missing(cell):
        return np.nan
    if grouped := _GROUPED[decimal].fullmatch(cell):
        return float(cell.replace(grouped[1], "").replace(decimal, "."))
    if decimal == "," and "." not in cell and ("," not in cell or _DECIMAL_COMMA.fullmatch(cell)):
        return to_number(cell.replace(",", "."))
    return None


def decimal_sign(cells: Iterable[str]) -> str | None:
    """Return the decimal sign of all numbers, "." or ","; None if commas in them may be that or thousands separators.

    Example:
        >>> decimal_sign(["1,5", "1.234"]), decimal_sign(["1,234", "0.5"]), decimal_sign(["1,234"])
        (',', '.', None)
    """
    suspects = [cell.strip() for cell in cells if "," in cell or "." in cell]
    if not any("," in cell or cell.count(".") > 1 for cell in suspects):
        return "."
    signs = {_certain_sign(cell) for cell in suspects}
    if "." in signs or "," in signs:
        return "." if "." in signs else ","
    return None if any(_GROUPED["."].fullmatch(cell) for cell in suspects) else "."


def _certain_sign(cell: str) -> str | None:
    """Return the decimal sign without which a cell is not a number; None if it may be either, or is not a number at all."""
    grouped = {sign: pattern.fullmatch(cell) for sign, pattern in _GROUPED.items()}
    for sign, match in grouped.items():
        if match and (sign in cell or (match[1] in ",." and cell.count(match[1]) > 1)):
            return sign
    if any(grouped.values()):
        return None
    if _DECIMAL_COMMA.fullmatch(cell):
        return ","
    return "." if "." in cell and to_number(cell) is not None else None


def cell_problem(cell: str, holder: str, decimal: str = ".") -> str:
    """Return what is wrong with a cell that should be a finite number within the range of float32, and what to do; empty if nothing is.

    Args:
        cell: The cell.
        holder: What can be removed instead, such as "the row or the column".
        decimal: The decimal sign, "." or ",".
    """
    cell = one_line(cell)
    if is_missing(cell):
        return f'is missing ("{cell}"); fill it in, or remove {holder}'
    value = to_number(cell, decimal)
    if value is None:
        sign = f" with a decimal {'point' if decimal == '.' else 'comma'}" if is_number(cell) else ""
        return f'is "{cell[:SHOWN]}", which is not a number{sign}; correct it, or remove {holder}'
    with np.errstate(over="ignore"):
        return "" if np.isfinite(np.float32(value)) else f'is "{cell[:SHOWN]}", which is not a finite float32 number; correct it'


def ambiguity(cell: str) -> str:
    """Return why a cell with a comma cannot be read where `decimal_sign` is None, and what to do."""
    cell = one_line(cell)[:SHOWN]
    return f'is "{cell}", which may be {cell.replace(",", "")} or {cell.replace(",", ".")}; write one of these'
