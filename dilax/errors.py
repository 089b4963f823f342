"""The exception raised for every mistake of a caller, and helpers that word its message."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np


class UserError(ValueError):
    """A mistake of the caller, reported in one line: what was given, why it is wrong, and what to do instead.

    The command line prints the message without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # What was given may be shown on several lines, as arrays are.
        super().__init__(" ".join(message.split()) if "\n" in message else message)


class _Short(reprlib.Repr):
    """Values in a line or less: arrays by their dtype and shape, long strings and containers shortened."""

    def __init__(self) -> None:
        super().__init__()
        self.maxtuple = self.maxlist = self.maxdict = 20
        self.maxstring = self.maxother = 200

    def repr1(self, x: Any, level: int) -> str:
        if hasattr(x, "shape") and hasattr(x, "dtype") and hasattr(x, "ndim") and (x.ndim or "Tracer" in type(x).__name__):
            return f"<array of shape {tuple(x.shape)}, dtype {x.dtype}>"
        if isinstance(x, np.generic):
            return repr(x.item())
        return super().repr1(x, level)


def shown(value: Any) -> str:
    """Return a value as messages show it: like `repr`, but arrays by their shape and dtype, and nothing longer than a line."""
    return " ".join(_Short().repr(value).split())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "match"?` if one of the `known` words is close to `word`, else an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f' Did you mean "{matches[0]}"?' if matches else ""
