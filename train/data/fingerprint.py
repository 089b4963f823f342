"""Fingerprints of data, by which a run that is resumed notices that its data has changed."""

import hashlib
from typing import Any

import numpy as np

from dilax.spec import DataSpec
from train.data.source import Source, gather
from train.data.splits import Splits

_WHOLE = 2**24  # bytes of decoded records up to which a split is read as a whole
_SAMPLE = 64  # records that are read of a larger one, evenly spaced
# What may differ between computers: decoders and Fourier transforms round differently.
_TOLERANCE = 1e-3


def fingerprint(splits: Splits) -> dict[str, Any]:
    """Return {"training" | "validation" | "test": {"records": their number, "fields": {name: what stands for its values}}}.

    JSON can hold it. Of a split of more than 16 MiB, 64 records stand for all. The result does not depend on what is held in memory.
    """
    named = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: _of_source(source) for name, source in named.items() if source is not None}


def _of_source(source: Source) -> dict[str, Any]:
    count = len(source)
    if count == 0:
        return {"records": 0, "fields": {}}
    size = sum(np.asarray(value).nbytes for value in source[0].values())
    every = count * size <= _WHOLE or count <= _SAMPLE
    chosen = np.arange(count) if every else np.arange(_SAMPLE) * (count - 1) // (_SAMPLE - 1)
    return {"records": count, "fields": {name: _of_values(values) for name, values in sorted(gather(source, chosen).items())}}


def _of_values(values: np.ndarray) -> str | list[float]:
    """Return a hash of whole numbers, and of others three sums, since their last bits may differ between computers."""
    if values.dtype.kind not in "fc":
        return hashlib.sha256(f"{values.dtype.kind}{values.shape}".encode() + np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
    flat = np.abs(values).ravel().astype(np.float64) if values.dtype.kind == "c" else values.ravel().astype(np.float64)
    # Weights without a period, so that values that change places are noticed.
    return [float(flat.mean()), float(np.sqrt(np.mean(flat**2))), float(np.mean(flat * np.cos(np.arange(len(flat)))) * np.sqrt(len(flat)))]


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List what differs between two fingerprints, such as "training records: 120 -> 60"."""
    if not all(isinstance(one, dict) and {"records", "fields"} <= one.keys() for one in old.values()):
        return ["what is known of the earlier records is damaged"]
    found = []
    for split in ("training", "validation", "test"):
        before, after = (one.get(split, {"records": 0, "fields": {}}) for one in (old, new))
        if before["records"] != after["records"]:
            found.append(f"{split} records: {before['records']} -> {after['records']}")
        elif not _same_fields(before["fields"], after["fields"]):
            found.append(f"the {split} records hold other values")
    return found


def _same_fields(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(_same(before[name], after[name]) for name in before)


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, str) or isinstance(after, str):
        return before == after
    return bool(np.allclose(before, after, rtol=_TOLERANCE, atol=_TOLERANCE * abs(before[1]), equal_nan=True))


def spec_changes(old: DataSpec, new: DataSpec) -> list[str]:
    """List in what two descriptions of data differ, such as "outputs: cat, dog -> dog, horse"."""
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in ("outputs", "symbols", "units", "input_shape", "sample_rate")}
    return [f"{name}: {_short(before)} -> {_short(after)}" for name, (before, after) in pairs.items() if before != after]


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
