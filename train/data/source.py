"""Random-access sources of labelled images, and the choice of records from them. A label is a class, or a mask of classes.

Small sets are held decoded in an `ArraySource`; the others decode a record each time it is asked for.
"""

import dataclasses
import io
import pathlib
from typing import IO, Any, Protocol

import numpy as np

from dilax.errors import UserError

# What a permutation is for: the first word of its key, so that no two choices are correlated.
TEST_SPLIT, VALIDATION, PER_CLASS, EPOCH = 1, 2, 3, 4
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP = {"F", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_CHUNK = 1024

Record = dict[str, Any]


class Source(Protocol):
    """Records by index: {"image": uint8 (h, w, c), "label": int, or uint8 (h, w) to segment}.

    One with `__getitems__(indices)` is read many records at a time.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclasses.dataclass(frozen=True)
class Splits:
    """The splits of a dataset.

    Attributes:
        name: Of the dataset.
        class_names: Of the classes, or of the outputs at every step.
        input_shape: Of an example: (height, width, channels), (time, channels), or (time,) of codes.
        train: The records to learn from.
        validation: Those that decide between checkpoints, or None.
        test: Those that are scored once.
        symbols: What the codes stand for, where the input is codes.
        facts: What prediction must know besides, such as the sample rate of sounds.
    """

    name: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    train: Source
    validation: Source | None
    test: Source
    symbols: tuple[str, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Decoded images in memory: `images` uint8 (n, h, w, c), `labels` int32 (n,) or uint8 (n, h, w)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        label = self.labels[index]
        return {"image": self.images[index], "label": label if label.ndim else int(label)}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the records at `indices` as one batch."""
        return {"image": self.images[indices], "label": self.labels[indices]}


@dataclasses.dataclass(frozen=True)
class Subset:
    """The records of `source` at `indices`; `labels` int32 (n,), where given, replace their own."""

    source: Source
    indices: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Record]:
        records = read(self.source, self.indices[indices])
        if self.labels is None:
            return records
        return [{"image": record["image"], "label": int(label)} for record, label in zip(records, self.labels[indices], strict=True)]


def subset(source: Source, indices: np.ndarray, labels: np.ndarray | None) -> Source:
    """Return the records of `source` at `indices`, with `labels` int32 (n,), or their own where None."""
    if isinstance(source, ArraySource):
        return ArraySource(source.images[indices], source.labels[indices] if labels is None else labels)
    return Subset(source, indices, labels)


def read(source: Source, indices: np.ndarray) -> list[Record]:
    """Return the records at `indices`."""
    many = getattr(source, "__getitems__", None)
    return many(indices.tolist()) if many else [source[index] for index in indices.tolist()]


def in_memory(source: Any) -> bool:
    """Return whether a source gathers whole batches itself."""
    return hasattr(source, "gather")


def gather(source: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Return the batch of the records at `indices`: of images "image" uint8 (n, h, w, c), "label" int32 (n,) or uint8 (n, h, w)."""
    if in_memory(source):
        return source.gather(indices)
    records = read(source, indices)
    check_sizes({record["image"].shape for record in records})
    return {
        "image": np.stack([record["image"] for record in records]),
        "label": np.array([record["label"] for record in records], _label_dtype(records[0])),
    }


def hold(source: Source) -> ArraySource:
    """Decode all of `source` into memory."""
    if isinstance(source, ArraySource):
        return source
    first = source[0]
    shape, labels = first["image"].shape, np.empty((len(source), *np.shape(first["label"])), _label_dtype(first))
    held = ArraySource(np.empty((len(source), *shape), np.uint8), labels)
    for start in range(0, len(source), _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, len(source)))
        batch = gather(source, indices)
        check_sizes({shape, batch["image"].shape[1:]})
        held.images[indices], held.labels[indices] = batch["image"], batch["label"]
    return held


def _label_dtype(record: Record) -> Any:
    return np.uint8 if np.ndim(record["label"]) else np.int32


def check_sizes(shapes: set[tuple[int, ...]]) -> None:
    """Raise UserError where images differ in size."""
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise UserError(f"data.image_size=0 needs images of one size, but there are some of {first} and of {second}; set data.image_size.")


def decode(file: bytes | pathlib.Path, channels: int, image_size: int) -> np.ndarray:
    """Decode an image file, or its bytes, to uint8 (h, w, channels), fitted to `image_size` unless that is 0.

    Raises:
        UserError: if it has more than 8 bits a channel.
    """
    from PIL import Image

    stream: IO[bytes] | pathlib.Path = io.BytesIO(file) if isinstance(file, bytes) else file
    with Image.open(stream) as opened:
        check_depth(opened, file if isinstance(file, pathlib.Path) else "an image")
        image = opened if opened.mode == _MODES[channels] else opened.convert(_MODES[channels])
        pixels = np.asarray(image)
    return fit(pixels.reshape(*pixels.shape[:2], channels), image_size)


def check_depth(image: Any, name: object) -> None:
    """Refuse an open image that would be cut off at 8 bits."""
    if image.mode in _DEEP:
        raise UserError(f"{name} has more than 8 bits a channel, which would be cut off; save it with 8.")


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the shorter side of uint8 (h, w, c) to `size` and crop the centre to (size, size, c); 0 leaves it as it is."""
    from PIL import Image

    height, width, channels = image.shape
    if size == 0 or height == width == size:
        return image
    scale = size / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    resized = Image.fromarray(image[..., 0] if channels == 1 else image).resize((width, height), Image.Resampling.BILINEAR)
    top, left = (height - size) // 2, (width - size) // 2
    return np.asarray(resized).reshape(height, width, channels)[top : top + size, left : left + size]


def permutation(n: int, *key: int) -> np.ndarray:
    """Return a permutation of range(n), a pure function of (n, key).

    It sorts raw bits, whose stream numpy promises to keep; that of `Generator.permutation` may change between versions.
    """
    return np.argsort(np.random.PCG64(np.random.SeedSequence(key)).random_raw(n), kind="stable")


def stratified(labels: np.ndarray, count: int, *key: int) -> np.ndarray:
    """Choose `count` of the records, every class within one record of its share.

    Returns: bool (n,), True where chosen; a pure function of (labels, count, key).
    """
    shuffled = permutation(len(labels), *key)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[(2 * np.arange(count) + 1) * len(labels) // (2 * max(count, 1))]] = True
    return chosen


def held_out(labels: np.ndarray, share: float, seed: int, name: str = "data.validation") -> np.ndarray | None:
    """Choose the records, with these labels, of the split whose share has that name: bool (n,), or None for a share of 0.

    Raises:
        UserError: if nothing is left on one side.
    """
    if not 0 <= share < 1:
        raise UserError(f"{name}={share} must be a share of the training records, from 0 to below 1.")
    count = round(len(labels) * share)
    if share and not 0 < count < len(labels):
        raise UserError(f"{name}={share} of {len(labels)} records leaves nothing on one side; change it, or set 0 for none.")
    return stratified(labels, count, VALIDATION, seed) if share else None


def first_of_each(labels: np.ndarray, count: int, *key: int) -> np.ndarray:
    """Choose `count` records of every class, or all of a smaller one; returns bool (n,), a pure function of the arguments."""
    shuffled = permutation(len(labels), *key)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[shuffled[labels[shuffled] == label][:count]] = True
    return chosen
