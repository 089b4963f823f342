"""The exception raised for every mistake of a caller, and a helper that words its hints."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the caller, reported in one line: what was given, why it is wrong, and what to do instead.

    The command line prints the message without a traceback and exits with code 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "match"?` if one of the `known` words is close to `word`, else an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f' Did you mean "{matches[0]}"?' if matches else ""
