"""The one kind of error a caller can cause, and the helper that words it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the caller, said in one line: what was given, why it is wrong, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "near"?` when one of `known` is near `word`, else an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""
