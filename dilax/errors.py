"""The exception raised for every mistake of a caller, helpers that word its message, and the silence of other libraries."""

import contextlib
import difflib
import functools
import inspect
import logging
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
# Arguments of other libraries (lax, Flax, Keras, torch) -> what they are called here.
OTHER_WORDS = {
    "strides": "stride",
    "window_strides": "stride",
    "kernel_dilation": "dilation",
    "rhs_dilation": "dilation",
    "dilation_rate": "dilation",
    "dilations": "dilation",
    "rate": "dilation",
    "filters": "features",
    "out_channels": "features",
    "num_features": "features",
    "kernel_shape": "kernel_size",
    "feature_group_count": "groups",
    "bias": "use_bias",
    "with_bias": "use_bias",
    "weight": "kernel",
    "window_shape": "window",
    "pool_size": "window",
}


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    r"""Return a text in one line: without the line ends that it contains, and with escapes for characters that control a terminal.

    Example:
        >>> one_line("two\nlines\x1b")
        'two lines\\x1b'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), " ".join(text.split()))


def reason(error: BaseException) -> str:
    """Return the first line of an error of another library, shortened, or its type if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


class UserError(ValueError):
    """A mistake of the caller, reported in one line: what was given, why it is wrong, and what to do instead.

    The command line prints the message without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # What was given may be shown on several lines, as arrays are, or hold control characters, as damaged files do.
        super().__init__(message if _CONTROL.search(message) is None else one_line(message))


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
    known = list(known)
    matches = [one for one in known if one.lower() == word.lower()] or difflib.get_close_matches(word, known, n=1)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def in_our_words(function: Function, *, name: str = "") -> Function:
    """Return a function that refuses an argument that another library calls otherwise, and says what it is called here.

    Args:
        function: Any function, or the `__init__` of a class.
        name: What messages call it; "" is its own name.
    """
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for word in kwargs.keys() - known.keys():
            ours = OTHER_WORDS.get(word)
            if ours in known:
                raise UserError(f"{name or function.__name__}: {word}= is called {ours}= here; write {ours}={shown(kwargs[word])}.")
        return function(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def quieted(name: str) -> Iterator[None]:
    """Silence what another library logs below an error, such as comments on its own options, which a user cannot change.

    Args:
        name: Name of its logger.
    """
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
