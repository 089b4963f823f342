"""The original files of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, read without TensorFlow."""

import gzip
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dilax.errors import UserError

_IDX = {"train": "train", "test": "t10k"}
_CIFAR10 = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR100 = {"train": ["train.bin"], "test": ["test.bin"]}

Examples = Iterator[tuple[int, dict[str, Any]]]  # key and fields of each example, as TFDS's builders generate them
Paths = dict[str, pathlib.Path]  # file name -> path


def _mnist(_: Any, paths: Paths) -> dict[str, Examples]:
    def examples(prefix: str) -> Examples:
        images = _read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"])
        labels = _read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"])
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _picture(image), "label": int(label)}

    return {split: examples(prefix) for split, prefix in _IDX.items()}


def _read_idx(path: pathlib.Path) -> np.ndarray:
    """Read an IDX file of uint8: two zero bytes, 8 for uint8, the number of axes, their sizes in big-endian int32, the values."""
    with gzip.open(path) as file:
        data = file.read()
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(np.frombuffer(data, ">i4", data[3], 4))


def _cifar10(info: Any, paths: Paths) -> dict[str, Examples]:
    return _cifar(info, paths["cifar-10-binary.tar.gz"], "cifar-10-batches-bin/", {"label": "batches.meta.txt"}, _CIFAR10)


def _cifar100(info: Any, paths: Paths) -> dict[str, Examples]:
    names = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
    return _cifar(info, paths["cifar-100-binary.tar.gz"], "cifar-100-binary/", names, _CIFAR100)


def _cifar(info: Any, path: pathlib.Path, prefix: str, names: dict[str, str], files: dict[str, list[str]]) -> dict[str, Examples]:
    """Return the splits of a CIFAR archive; a record is a byte for each label in `names`, then 3 x 32 x 32 bytes."""
    with tarfile.open(path) as tar:
        for label, file in names.items():
            info.features[label].names = _member(tar, prefix + file).decode().split()

    def examples(split: str) -> Examples:
        with tarfile.open(path) as tar:
            data = b"".join(_member(tar, prefix + file) for file in files[split])
        for index, row in enumerate(np.frombuffer(data, np.uint8).reshape(-1, len(names) + 3072)):
            labels = {label: int(row[i]) for i, label in enumerate(names)}
            image = row[len(names) :].reshape(3, 32, 32).transpose(1, 2, 0)
            yield index, {"id": f"{split}_{index:05d}", "image": _picture(image), **labels}

    return {split: examples(split) for split in files}


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise UserError(f"{tar.name} does not hold a file {name}.")
    return file.read()


def _picture(image: np.ndarray) -> Any:
    """Return an image for PIL; TFDS would encode an array with TensorFlow."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image))


# Name in TFDS -> function of the dataset's info, which is given its class names, and the downloaded files: {split: examples}.
EXAMPLES: dict[str, Callable[[Any, Paths], dict[str, Examples]]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "fashion_mnist": _mnist,
    "mnist": _mnist,
}
