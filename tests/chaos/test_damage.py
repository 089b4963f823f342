"""The short form of `python -m benchmarks.chaos`: damaged files, a full disk, SIGTERM in the report, a second run in the same folder."""

import collections

import pytest
from selection import slow
from test_kills import injected

DISKS = ("disk full", "quota")


@pytest.mark.parametrize(
    ("parts", "count", "others"),
    [("files,disks,processes", 4, (*DISKS, "second run")), *slow(("files,disks,signals,processes", 8, (*DISKS, "SIGTERM", "second run")))],
)
def test_damage_is_survived(root, tmp_path, parts, count, others):
    faults = injected(root, tmp_path / "faults.json", "--configs=averages", f"--parts={parts}", f"--sample={count}")
    kinds = collections.Counter(fault["kind"] for fault in faults)
    assert sum(kinds[kind] for kind in ("truncated", "bit flipped", "emptied", "deleted")) == count
    assert [kinds[kind] for kind in others] == [1] * len(others)
