"""Random-access sources of records, over any fields: a table in memory, records that are decoded when they are read, and parts of both."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dilax.errors import UserError

Record = dict[str, Any]
Batch = dict[str, np.ndarray]
_CHUNK = 1024  # records decoded at once


class Source(Protocol):
    """Records by index.

    A record holds arrays and scalars by field, such as {"image": uint8 (height, width, channels), "label": int32}. All records have the
    same fields, shapes and dtypes. A source may have two more methods: `__getitems__(indices)` returns several records at once, and
    `gather(indices)` returns them as one batch, which sources in memory do.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclasses.dataclass(frozen=True)
class Table:
    """Records in memory.

    Attributes:
        arrays: Each field as one array, with a row for each record.
        files: Name of the file of each record; () if they are not known.
    """

    arrays: dict[str, np.ndarray]
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> Record:
        return {name: values[index] for name, values in self.arrays.items()}

    def gather(self, indices: np.ndarray) -> Batch:
        """Return the records at `indices` as one batch."""
        return {name: values[indices] for name, values in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class Lazy:
    """Records that are decoded each time they are read.

    Attributes:
        count: Number of records.
        read: Returns the records at a list of indices. Worker processes call it, so it must be picklable.
        fields: Fields that are known without decoding the records, such as labels: arrays with a row for each record, or functions
            without arguments that read such an array.
        files: As those of `Table`.
    """

    count: int
    read: Callable[[list[int]], list[Record]]
    fields: Mapping[str, np.ndarray | Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Record]:
        return self.read(indices)


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some records of a source.

    Attributes:
        source: The source, which is not in memory; `subset` makes a `Table` of one that is.
        indices: Where the records are in it, (n,).
        replaced: Fields whose values differ from those in the source, with a row for each record of the subset.
    """

    source: Source
    indices: np.ndarray
    replaced: dict[str, np.ndarray]

    @property
    def files(self) -> tuple[str, ...]:
        """Name of the file of each record."""
        return _chosen_files(self.source, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Record]:
        records = read(self.source, self.indices[indices])
        return [
            {**record, **{name: values[index] for name, values in self.replaced.items()}}
            for index, record in zip(indices, records, strict=True)
        ]


def subset(source: Source, indices: np.ndarray, replaced: Mapping[str, np.ndarray] | None = None) -> Source:
    """Return some records of a source.

    Args:
        source: The source; of a `Table`, the result is a `Table` too.
        indices: Where the records are in it, (n,).
        replaced: New values of some fields, each with a row for each record that is returned.
    """
    new = dict(replaced or {})
    if isinstance(source, Table):
        arrays = {name: new[name] if name in new else values[indices] for name, values in source.arrays.items()}
        return Table(arrays, _chosen_files(source, indices))
    if isinstance(source, Subset):
        new = {**{name: values[indices] for name, values in source.replaced.items()}, **new}
        return Subset(source.source, source.indices[indices], new)
    return Subset(source, indices, new)


def field(source: Source, name: str) -> np.ndarray:
    """Return one field of all records, with a row for each; it is read without decoding the records, if the source knows how."""
    if isinstance(source, Table):
        return source.arrays[name]
    if isinstance(source, Subset):
        return source.replaced[name] if name in source.replaced else field(source.source, name)[source.indices]
    if isinstance(source, Lazy) and name in source.fields:
        known = source.fields[name]
        return known() if callable(known) else known
    return np.stack([record[name] for start in range(0, len(source), _CHUNK) for record in read(source, _chunk(source, start))])


def read(source: Source, indices: np.ndarray) -> list[Record]:
    """Return the records at `indices`."""
    many = getattr(source, "__getitems__", None)
    return many(indices.tolist()) if many else [source[index] for index in indices.tolist()]


def files_of(source: Source) -> tuple[str, ...]:
    """Return the name of the file of each record, or () if the source does not know them."""
    return getattr(source, "files", ())


def in_memory(source: Source) -> bool:
    """Return whether a source holds its records in memory, and so gathers whole batches itself."""
    return hasattr(source, "gather")


def gather(source: Source, indices: np.ndarray) -> Batch:
    """Return the records at `indices` as one batch: each field stacked, (n, ...).

    Raises:
        UserError: if records differ in shape.
    """
    own: Any = getattr(source, "gather", None)
    return own(indices) if own else _stack(read(source, indices))


def hold(source: Source) -> Source:
    """Return a source in memory with the same records.

    Raises:
        UserError: if records differ in shape.
    """
    if in_memory(source):
        return source
    first = source[0]
    arrays = {name: np.empty((len(source), *np.shape(value)), np.asarray(value).dtype) for name, value in first.items()}
    for start in range(0, len(source), _CHUNK):
        indices = _chunk(source, start)
        # The first record is stacked with each chunk, so that chunks of different shapes are noticed.
        batch = _stack([first, *read(source, indices)])
        for name, values in arrays.items():
            values[indices] = batch[name][1:]
    return Table(arrays, files_of(source))


def fits(sources: Sequence[Source], memory_mb: float) -> bool:
    """Return whether the decoded records of all sources, as large as the first of each, together fit into `memory_mb` MiB."""
    size = sum(len(source) * sum(np.asarray(value).nbytes for value in source[0].values()) for source in sources)
    return size <= memory_mb * 2**20


def check_shapes(name: str, shapes: set[tuple[int, ...]]) -> None:
    """Raise UserError if the field `name` does not have one shape in all records."""
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        if name == "image":
            raise UserError(
                f"data.image_size=0 needs images of one size, but some are {first} and some are {second}; set config.data.image_size."
            )
        raise UserError(f"data: the field {name!r} has shape {first} in some records and {second} in others; make them one shape.")


def _stack(records: list[Record]) -> Batch:
    for name in records[0]:
        check_shapes(name, {np.shape(record[name]) for record in records})
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def _chosen_files(source: Source, indices: np.ndarray) -> tuple[str, ...]:
    files = files_of(source)
    return tuple(files[index] for index in indices.tolist()) if files else ()


def _chunk(source: Source, start: int) -> np.ndarray:
    return np.arange(start, min(start + _CHUNK, len(source)))
