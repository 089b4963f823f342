"""Which cases of a table run by default. The slow ones repeat what others cover: python -m pytest -m slow"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Return cases as parameters that run with -m slow alone."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def with_slow(cases: Iterable[Any], *, repeats: Collection[Any] = (), kept: Collection[Any] = ()) -> list[Any]:
    """Return all cases of a table as parameters; those that repeat what others cover, or all but the ones kept, are slow."""
    cases = list(cases)
    assert bool(repeats) != bool(kept)
    assert (unknown := [case for case in (*repeats, *kept) if case not in cases]) == [], unknown
    # In the order of the table, whatever that of a set: all workers have to collect the same.
    left_out = [case for case in cases if case in repeats or (kept and case not in kept)]
    return [*[case for case in cases if case not in left_out], *slow(*left_out)]
