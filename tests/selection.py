"""Which cases of a table run by default: those with a part of their own. The others are marked slow: python -m pytest -m slow"""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Return cases as parameters that run with -m slow alone."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def slow_if(cases: Iterable[Any], *, like_others: Iterable[Any]) -> list[Any]:
    """Return all cases of a table as parameters, those that have the parts of others as slow ones."""
    cases, others = list(cases), list(like_others)
    assert (unknown := [case for case in others if case not in cases]) == [], unknown
    return [*[case for case in cases if case not in others], *slow(*others)]
