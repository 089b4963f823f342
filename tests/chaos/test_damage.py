"""The short form of `python -m benchmarks.chaos`: damaged files, a full disk, SIGTERM in the report, a second run in the same folder."""

import collections

from test_kills import injected


def test_damage_is_survived(root, tmp_path):
    flags = ("--configs=averages", "--parts=files,disks,signals,processes", "--sample=8")
    faults = injected(root, tmp_path / "faults.json", *flags)
    kinds = collections.Counter(fault["kind"] for fault in faults)
    assert sum(kinds[kind] for kind in ("truncated", "bit flipped", "emptied", "deleted")) == 8
    assert [kinds[kind] for kind in ("disk full", "quota", "SIGTERM", "second run")] == [1, 1, 1, 1]
