"""Which cases of a table run by default. The slow ones repeat what others cover: python -m pytest -m slow"""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Return cases as parameters that run with -m slow alone."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def with_slow(cases: Iterable[Any], *, repeats: Iterable[Any] = (), kept: Container[Any] | None = None) -> list[Any]:
    """Return all cases of a table as parameters; those that repeat what others cover, or all but the ones kept, are slow."""
    cases = list(cases)
    repeats = list(repeats) if kept is None else [case for case in cases if case not in kept]
    assert (unknown := [case for case in repeats if case not in cases]) == [], unknown
    assert len(repeats) < len(cases)
    return [*[case for case in cases if case not in repeats], *slow(*repeats)]
