"""Which cases of a table run by default. The slow ones repeat what others cover: python -m pytest -m slow"""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Return cases as parameters that run with -m slow alone."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def with_slow(cases: Iterable[Any], *, repeats: Iterable[Any]) -> list[Any]:
    """Return all cases of a table as parameters; those that repeat what others cover are slow."""
    cases, repeats = list(cases), list(repeats)
    assert (unknown := [case for case in repeats if case not in cases]) == [], unknown
    return [*[case for case in cases if case not in repeats], *slow(*repeats)]
