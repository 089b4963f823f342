"""Image sets of TensorFlow Datasets (TFDS) on disk: found, or downloaded and prepared without TensorFlow.

TFDS's own builders need TensorFlow to unpack and encode what they download. For the four sets below, the files are downloaded and unpacked
here, and the rest (version, features, order and layout of the records) is left to those builders, so a set prepared here is the one that
TFDS would have prepared, as array_record.
"""

import dataclasses
import fnmatch
import hashlib
import importlib.util
import os
import pathlib
import queue
import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

from dilax.errors import UserError, did_you_mean
from dilax.files import user_path
from train.data.readers.archives import EXAMPLES

_TIMEOUT_S = 10  # without a byte, after which a download fails
_BLOCK = 1 << 20  # bytes read at once
_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>(\d+|\*)\.(\d+|\*)\.(\d+|\*)))?")  # as TFDS writes it
_BUILT_IN = ("cells", "coco_json", "digits", "digits8x8", "folder", "shapes", "voc_xml")


@dataclasses.dataclass(frozen=True)
class Download:
    """A file to download.

    Attributes:
        url: Where it is.
        name: Its file name.
        sha256: Its checksum, in hexadecimal digits.
    """

    url: str
    name: str
    sha256: str


def root(data_dir: str) -> pathlib.Path:
    """Return the directory of TFDS: `data_dir`, else the environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
        UserError: if TFDS is not installed.
    """
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise UserError('this dataset is read through tensorflow_datasets, which is missing; run: pip install -e ".[train]"')
    return user_path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def find(name: str, directory: pathlib.Path) -> Any:
    """Return the TFDS builder of a set prepared in `directory`, or None if it is not there. Nothing is downloaded.

    Args:
        name: As TFDS writes it: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION. Without a config, it is the default one; without a
            version, the highest one that is there.
        directory: As `root`.
    """
    import tensorflow_datasets as tfds

    match = _NAME.fullmatch(name)
    if match is None:
        return None
    folder, version = directory / match["name"], match["version"] or "*.*.*"
    configs = [match["config"]] if match["config"] else ["", _default_config(match["name"], folder)]
    for config in configs:
        versions = [path for path in _folders(folder / config) if fnmatch.fnmatchcase(path.name, version) and _version(path)]
        if versions:
            return tfds.builder_from_directory(max(versions, key=_version))
    return None


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the sub-folders with a dataset of TFDS."""
    return [path.parent for path in folder.glob("*/features.json")]


def _version(folder: pathlib.Path) -> tuple[int, ...]:
    """Return the version that a folder is named after, or () if it is not."""
    return tuple(map(int, folder.name.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", folder.name) else ()


def _default_config(name: str, folder: pathlib.Path) -> str:
    """Return the name of the default config of a set, or of the only one that is prepared; "" if there is none."""
    import tensorflow_datasets as tfds

    prepared = sorted({path.parent.parent.name for path in folder.glob("*/*/features.json")})
    if len(prepared) > 1 and name in tfds.list_builders(with_community_datasets=False):
        default: Any = tfds.builder_cls(name).default_builder_config
        return default.name if default else ""
    return prepared[0] if len(prepared) == 1 else ""


def check_known(name: str, directory: pathlib.Path) -> None:
    """Raise UserError unless TFDS has a builder of that name."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if re.split("[:/]", name)[0] not in known:
        hint = did_you_mean(name, [*known, *_BUILT_IN])
        raise UserError(f'there is no dataset "{name}": TFDS does not know the name, and no such set is prepared in {directory}.{hint}')


def prepare(name: str, data_dir: str = "", downloads: Sequence[Download] | None = None) -> pathlib.Path:
    """Download a set and write it as array_record, unless it is there already.

    Args:
        name: cifar10, cifar100, mnist or fashion_mnist; other names of TFDS need TensorFlow to be installed.
        data_dir: As `root`. Downloaded files are kept in its folder downloads/NAME/; files put by hand into downloads/manual/ are used.
        downloads: The files of one of these four; the default is what TFDS knows.

    Returns: the directory of the prepared set, such as DIR/cifar10/3.0.2.
    Raises: UserError: if the name is unknown, a download fails, a checksum is wrong or the set cannot be written. What is incomplete then
        does not count as prepared.
    """
    directory = root(data_dir)  # first, since it says what to install
    import tensorflow_datasets as tfds

    if (prepared := find(name, directory)) is not None:
        return pathlib.Path(prepared.data_path)
    check_known(name, directory)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    manual = directory / "downloads" / "manual"
    try:
        builder = _own_builder(name, directory, downloads) if name in EXAMPLES else _tfds_builder(name, directory)
        builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:  # TFDS has exceptions of its own, which it does not export
        raise UserError(
            f"{name} cannot be prepared in {directory}: {_one_line(error).rstrip('.')}; try again, or put files that you downloaded "
            f"yourself into {manual}."
        ) from error
    return pathlib.Path(builder.data_path)


def check_reachable(url: str) -> None:
    """Raise UserError unless `url` answers within 12 s; a thread asks, since no timeout bounds the look-up of a host name."""
    import requests

    answers: queue.Queue[str] = queue.Queue()

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_TIMEOUT_S) as answer:
                answers.put("" if answer.ok else f"answered HTTP {answer.status_code} ({answer.reason})")
        except OSError as error:
            answers.put(f"cannot be reached ({_one_line(_root_cause(error))})")

    threading.Thread(target=ask, daemon=True).start()
    try:
        trouble = answers.get(timeout=1.2 * _TIMEOUT_S)
    except queue.Empty:
        trouble = "cannot be reached (timed out)"
    if trouble:
        raise UserError(f"{url} {trouble}.")


def _fetch_all(downloads: Sequence[Download], folder: pathlib.Path, manual: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return {file name: path}; a file that is neither in `folder` nor in `manual` is downloaded into `folder`."""
    paths, missing = {}, []
    for download in downloads:
        path = next((path for path in (folder / download.name, manual / download.name) if path.is_file()), None)
        if path is None:
            missing.append(download)
        else:
            _check_sha256(path, path, download.sha256)
            paths[download.name] = path
    for download in missing[:1]:
        check_reachable(download.url)
    return {**paths, **{download.name: _fetch(download, folder) for download in missing}}


def _fetch(download: Download, folder: pathlib.Path) -> pathlib.Path:
    """Download a file, and give it its name once it is complete."""
    import requests
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{download.name}.part"
    with requests.get(download.url, stream=True, timeout=_TIMEOUT_S) as answer, part.open("wb") as file:
        if not answer.ok:
            raise OSError(f"{download.url} answered HTTP {answer.status_code} ({answer.reason})")
        size = int(answer.headers.get("Content-Length", 0)) or None
        with tqdm(total=size, desc=download.name, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            for block in answer.iter_content(_BLOCK):
                file.write(block)
                bar.update(len(block))
    _check_sha256(part, download.url, download.sha256)
    return part.replace(folder / download.name)


def _check_sha256(path: pathlib.Path, where: object, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise OSError(f"{where} has the wrong checksum, SHA-256 {digest} instead of {expected}")


def _own_builder(name: str, directory: pathlib.Path, downloads: Sequence[Download] | None) -> Any:
    """Return TFDS's builder of `name` with the examples that are read from the downloaded files here, instead of by TensorFlow."""
    import tensorflow_datasets as tfds

    official: Any = tfds.builder_cls(name)
    known = downloads or [Download(url, info.filename, info.checksum) for url, info in official.url_infos.items()]
    files = _fetch_all(known, directory / "downloads" / name, directory / "downloads" / "manual")

    def split_generators(self: Any, _: Any) -> Any:
        return EXAMPLES[name](self.info, files)

    # TFDS names the dataset after the class, and must not register a second class of that name.
    members = {"__module__": official.__module__, "_split_generators": split_generators}
    own: Any = type(official.__name__, (official,), members, skip_registration=True)
    return own(data_dir=directory, file_format="array_record")


def _tfds_builder(name: str, directory: pathlib.Path) -> Any:
    """Return TFDS's builder of `name`, which needs TensorFlow."""
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"only TensorFlow can prepare {name}; run `pip install tensorflow`, "
            f"or prepare it elsewhere with file_format=array_record and copy it to {directory}."
        )
    builder: Any = tfds.builder(name, data_dir=directory, file_format="array_record")
    downloads = [directory / "downloads" / folder for folder in (builder.name, "manual")]
    if builder.url_infos and not any(path.is_file() for folder in downloads for path in folder.rglob("*")):
        check_reachable(next(iter(builder.url_infos)))  # TFDS waits for minutes without a network
    return builder


def _root_cause(error: BaseException) -> BaseException:
    return error if error.__context__ is None else _root_cause(error.__context__)


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
