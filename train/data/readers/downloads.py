"""Download image sets and write them where TFDS looks, without TensorFlow.

TFDS's own builders need TensorFlow to unpack and encode what they download. Those of the sets below are used for all the rest (version,
features, label names, download, checksums, order of the records), so a set prepared here is the one that TFDS would have prepared, as
array_record.
"""

import contextlib
import functools
import gzip
import importlib.util
import pathlib
import queue
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np

from dilax.errors import UserError, did_you_mean

_TIMEOUT_S = 10
_BUILT_IN = ("cells", "digits", "digits8x8", "folder")
_IDX = {"train": "train", "test": "t10k"}
_CIFAR10 = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR100 = {"train": ["train.bin"], "test": ["test.bin"]}

Examples = Iterator[tuple[int, dict[str, Any]]]


def root(data_dir: str) -> pathlib.Path:
    """Return the directory of TFDS: `data_dir`, else the environment variable TFDS_DATA_DIR, else TFDS's default."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise UserError('this dataset is read through tensorflow_datasets, which is missing; run: pip install -e ".[train]"')
    from tensorflow_datasets.core import constants

    return pathlib.Path(data_dir or constants.DATA_DIR).expanduser()


def find(name: str, directory: pathlib.Path) -> Any:
    """Return the TFDS builder of a set prepared in `directory`, or None. Nothing is downloaded."""
    from tensorflow_datasets.core import read_only_builder

    try:
        return read_only_builder.builder_from_files(name, data_dir=directory)
    except ValueError:  # not there, or not a name that TFDS could give a directory
        return None


def check_known(name: str, directory: pathlib.Path) -> None:
    """Raise UserError unless TFDS has a builder of that name."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if _plain(name) not in known:
        near = did_you_mean(name, [*known, *_BUILT_IN])
        raise UserError(f'there is no dataset "{name}": TFDS knows none of that name, and none is prepared in {directory}.{near}')


def _plain(name: str) -> str:
    """Return the name without config and version."""
    return name.replace(":", "/").split("/")[0]


def prepare(name: str, data_dir: str = "", downloads: Mapping[str, Any] | None = None) -> pathlib.Path:
    """Download a set and write it as array_record, unless it is there already.

    Args:
        name: cifar10, cifar100, mnist or fashion_mnist; other names of TFDS need TensorFlow to be installed.
        data_dir: As `root`. TFDS keeps the files in its folder downloads/, and uses those put by hand into downloads/manual/.
        downloads: Where the files of one of these four are, {URL: TFDS's UrlInfo}; default is what TFDS knows.

    Returns: the directory of the prepared set, such as DIR/cifar10/3.0.2.
    Raises: UserError: unknown name, network, checksum, or nowhere to write. Nothing half-written then counts as prepared.
    """
    directory = root(data_dir)  # first: it says what to install
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    if (found := find(name, directory)) is not None:
        return pathlib.Path(found.data_path)
    check_known(name, directory)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        builder = _own_builder(name, directory, downloads) if name in _EXAMPLES else _tfds_builder(name, directory)
        for url in _missing(builder, directory / "downloads")[:1]:
            _knock(url)
        with _impatient():
            builder.download_and_prepare()
    except (OSError, AssertionError, DownloadError, NonMatchingChecksumError) as error:  # AssertionError: a file to be fetched by hand
        raise UserError(
            f"{name} cannot be prepared in {directory}: {_one_line(error).rstrip('.')}; try again, "
            f"or put what you downloaded yourself into {directory / 'downloads' / 'manual'}."
        ) from error
    return pathlib.Path(builder.data_path)


def _missing(builder: Any, folder: pathlib.Path) -> list[str]:
    """Return the URLs of the files that TFDS will not find in its folder of downloads."""
    from tensorflow_datasets.core.download import resource

    def places(url: str, info: Any) -> list[pathlib.Path]:
        cached = resource.get_dl_fname(url, info.checksum)
        return [folder / builder.name / cached, folder / cached, folder / "manual" / (info.filename or cached)]

    return [url for url, info in (builder.url_infos or {}).items() if not any(path.exists() for path in places(url, info))]


def _knock(url: str) -> None:
    """Raise UserError unless `url` answers within 12 s; in a thread of its own, since no timeout bounds the look-up of a host's name."""
    import requests

    troubles: queue.Queue[str] = queue.Queue()

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_TIMEOUT_S) as answer:
                troubles.put("" if answer.ok else f"answered HTTP {answer.status_code} ({answer.reason})")
        except OSError as error:
            troubles.put(f"cannot be reached ({_one_line(_root_cause(error))})")

    threading.Thread(target=ask, daemon=True).start()
    try:
        trouble = troubles.get(timeout=1.2 * _TIMEOUT_S)
    except queue.Empty:
        trouble = "cannot be reached (timed out)"
    if trouble:
        raise UserError(f"{url} {trouble}.")


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Let TFDS's downloader give up on a file at once when nothing has come for 10 s; it would wait for ever, and try eleven times."""
    import requests
    from tensorflow_datasets.core.download import downloader

    get = functools.partialmethod(requests.Session.get, timeout=_TIMEOUT_S)
    with mock.patch.object(requests.Session, "get", get), mock.patch.object(downloader, "MAX_RETRIES", 0):
        yield


def _own_builder(name: str, directory: pathlib.Path, downloads: Mapping[str, Any] | None) -> Any:
    """Return TFDS's builder of `name`, reading what it downloads by the code below instead of by TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Examples]:
        return _EXAMPLES[name](self.info, dl_manager.download({url.rsplit("/", 1)[-1]: url for url in self.url_infos}))

    official = tfds.builder_cls(name)
    methods = {"__module__": official.__module__, "_split_generators": split_generators}
    if downloads is not None:
        methods["url_infos"] = downloads
    with registered.skip_registration():
        own: Any = type(official.__name__, (official,), methods)
        return own(data_dir=directory, file_format="array_record")


def _tfds_builder(name: str, directory: pathlib.Path) -> Any:
    """Return TFDS's builder of `name`, which needs TensorFlow."""
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"only TensorFlow can prepare {name}; run `pip install tensorflow`, "
            f"or prepare it elsewhere with file_format=array_record and copy it to {directory}."
        )
    return tfds.builder(name, data_dir=directory, file_format="array_record")


def _mnist(_: Any, paths: dict[str, pathlib.Path]) -> dict[str, Examples]:
    def examples(prefix: str) -> Examples:
        images = _read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"])
        labels = _read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"])
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _png(image), "label": int(label)}

    return {split: examples(prefix) for split, prefix in _IDX.items()}


def _read_idx(path: pathlib.Path) -> np.ndarray:
    """Read an idx file: two zero bytes, 8 for uint8, the number of axes, their sizes in big-endian int32, the values."""
    with gzip.open(path) as file:
        data = file.read()
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(np.frombuffer(data, ">i4", data[3], 4))


def _cifar10(info: Any, paths: dict[str, pathlib.Path]) -> dict[str, Examples]:
    return _cifar(info, paths["cifar-10-binary.tar.gz"], "cifar-10-batches-bin/", {"label": "batches.meta.txt"}, _CIFAR10)


def _cifar100(info: Any, paths: dict[str, pathlib.Path]) -> dict[str, Examples]:
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
            yield index, {"id": f"{split}_{index:05d}", "image": _png(image), **labels}

    return {split: examples(split) for split in files}


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise UserError(f"{tar.name} holds no file {name}.")
    return file.read()


def _png(image: np.ndarray) -> Any:
    """Return the image as PIL's: TFDS encodes an array with TensorFlow."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image))


def _root_cause(error: BaseException) -> BaseException:
    return error if error.__context__ is None else _root_cause(error.__context__)


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_EXAMPLES: dict[str, Callable[[Any, dict[str, pathlib.Path]], dict[str, Examples]]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "fashion_mnist": _mnist,
    "mnist": _mnist,
}
