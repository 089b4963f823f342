"""Sets of TFDS without TensorFlow: prepared from files on a loopback server, then read."""

import functools
import gzip
import hashlib
import http.server
import io
import pathlib
import re
import shutil
import socket
import tarfile
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from test_data import load, random_images

from dilax.errors import UserError
from train import cli
from train import prepare as command
from train.data import image_sets
from train.data.readers.downloads import Download, find, prepare
from train.data.source import Lazy, Subset, Table, field

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "tensorflow_datasets"


# Preparing


def idx(array):
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes())


def fake_mnist():
    """Return the files of a tiny set in its original format, and its {split: (images, {label name: labels})}."""
    files, truth = {}, {}
    for split, prefix, n in (("train", "train", 31), ("test", "t10k", 11)):
        images, labels = random_images(n, 28, 28, 1, seed=n), np.arange(n, dtype=np.uint8) * 7 % 10
        files |= {f"{prefix}-images-idx3-ubyte.gz": idx(images[..., 0]), f"{prefix}-labels-idx1-ubyte.gz": idx(labels)}
        truth[split] = images, {"label": labels}
    return files, truth


def fake_cifar(archive, folder, batches, texts, classes):
    """As `fake_mnist`; `batches` are the files of each split, `texts` those with the names of the classes, as {file: stem}."""
    contents, truth, columns = {}, {}, len(classes)
    for split, names in batches.items():
        rows = random_images(20 if split == "train" else 7, columns + 3072, seed=len(split))
        rows[:, :columns] %= np.array(list(classes.values()), np.uint8)
        contents |= {name: part.tobytes() for name, part in zip(names, np.array_split(rows, len(names)), strict=True)}
        images = rows[:, columns:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        truth[split] = images, {label: rows[:, i] for i, label in enumerate(classes)}
    for (name, stem), n in zip(texts.items(), classes.values(), strict=True):
        contents[name] = "".join(f"{stem}{i}\n" for i in range(n)).encode() + b"\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return {archive: buffer.getvalue()}, truth


def fake(name):
    if "mnist" in name:
        return fake_mnist()
    if name == "cifar10":
        batches = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
        return fake_cifar("cifar-10-binary.tar.gz", "cifar-10-batches-bin", batches, {"batches.meta.txt": "kind"}, {"label": 10})
    texts, classes = {f"{kind}_label_names.txt": kind for kind in ("coarse", "fine")}, {"coarse_label": 20, "label": 100}
    return fake_cifar("cifar-100-binary.tar.gz", "cifar-100-binary", {"train": ["train.bin"], "test": ["test.bin"]}, texts, classes)


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """Say nothing when a client leaves early."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server: Any = self.server
        name = self.path.strip("/")
        kind, content = server.kind, server.files.get(name)
        server.asked.append(name)
        if content is None or kind == "missing":
            return self.send_error(404)
        if kind == "overloaded" and server.asked.count(name) > 1:
            return self.send_error(503)
        if kind == "silent":
            return time.sleep(1.5)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write({"truncated": content[:-10], "wrong": content[:-1] + b"?", "stalled": content[:10]}.get(kind, content))
        if kind == "stalled":
            self.wfile.flush()
            time.sleep(1.5)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def serve(server, name, kind="good"):
    """Put a tiny set on the loopback server; return where its files are, and its truth."""
    server.kind, server.asked, (server.files, truth) = kind, [], fake(name)
    url = f"http://127.0.0.1:{server.server_port}"
    return [Download(f"{url}/{file}", file, hashlib.sha256(content).hexdigest()) for file, content in server.files.items()], truth


def url_infos(downloads, ports):
    """Return what TFDS knows of its downloads; `ports` replaces parts of the addresses."""
    return {
        functools.reduce(lambda url, port: url.replace(*port), ports.items(), one.url): SimpleNamespace(
            filename=one.name, checksum=one.sha256
        )
        for one in downloads
    }


def pairs(images, values):
    return {image.tobytes(): value for image, value in zip(images, values, strict=True)}


@pytest.mark.parametrize(
    ("name", "version", "class_name"),
    [("cifar10", "3.0.2", "kind3"), ("cifar100", "3.0.2", "fine3"), ("mnist", "3.0.1", "3"), ("fashion_mnist", "3.0.1", "Dress")],
)
def test_prepare_writes_what_tfds_reads(tmp_path, server, name, version, class_name):
    downloads, truth = serve(server, name)
    known: Any = tfds.builder_cls(name).url_infos
    assert {download.name for download in downloads} == {info.filename for info in known.values()}
    assert prepare(name, str(tmp_path), downloads) == tmp_path / name / version
    server.kind = "missing"
    assert prepare(name, str(tmp_path), downloads) == tmp_path / name / version
    shutil.rmtree(tmp_path / name)
    assert prepare(name, str(tmp_path), downloads) == tmp_path / name / version  # from the folder of downloads
    splits = load(name=name, dir=str(tmp_path), validation=0)
    assert splits.spec.outputs[3] == class_name
    for split, (images, labels) in truth.items():
        records = list(tfds.data_source(name, data_dir=tmp_path, split=split, builder_kwargs={"file_format": "array_record"}))
        assert len(records) == len(images)
        expected: list[Any] = [{label: values[i] for label, values in labels.items()} for i in range(len(images))]
        if "cifar" in name:
            expected = [{**known, "id": f"{split}_{i:05d}".encode()} for i, known in enumerate(expected)]
        assert pairs([record.pop("image") for record in records], records) == pairs(images, expected)
        held = getattr(splits, split)
        assert pairs(held.arrays["image"], held.arrays["label"]) == pairs(images, labels["label"])
    official: Any = tfds.builder(name, data_dir=tmp_path, file_format="array_record").info
    assert official.full_name == f"{name}/{version}"
    assert official.features["label"].names[3] == class_name
    assert official.splits["train"].num_examples == len(truth["train"][0])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("wrong", r"gz has the wrong checksum, SHA-256 \w+ instead of \w+; try again, or put files that you .* into .*downloads/manual\."),
        ("truncated", r"Connection broken.*\d+ bytes read"),
        ("stalled", "Read timed out"),
        ("overloaded", r"answered HTTP 503 \(Service Unavailable\)"),
        ("missing", "answered HTTP 404"),
        ("silent", r"127\.0\.0\.1:\d+/\S+ cannot be reached \(timed out\)"),
        ("no name server", r"127\.0\.0\.1:\d+/\S+ cannot be reached \(timed out\)"),
        ("refused", r"127\.0\.0\.1:\d+/\S+ cannot be reached \(.*refused"),
    ],
)
def test_a_bad_network_is_one_line_and_prepares_nothing(tmp_path, server, monkeypatch, capsys, kind, message):
    downloads, _ = serve(server, "mnist", kind)
    with monkeypatch.context() as bad:
        bad.setattr("train.data.readers.downloads._TIMEOUT_S", 0.5)
        bad.setattr("sys.argv", ["prepare", "mnist", f"--data_dir={tmp_path}"])
        if kind == "no name server":
            bad.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1.5) or [])
        port = "1" if kind == "refused" else str(server.server_port)
        bad.setattr(tfds.builder_cls("mnist"), "url_infos", url_infos(downloads, {str(server.server_port): port}))
        start = time.monotonic()
        with pytest.raises(SystemExit, match="2"):
            cli.run(command.main)
        assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
        server.asked = []
        with pytest.raises(UserError, match=f'^data.name="mnist" is not prepared in {tmp_path}, and .*TFDS_DATA_DIR.*configs/digits.py.*$'):
            load(name="mnist", dir=str(tmp_path), download=True)
        assert time.monotonic() - start < 5
    assert [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "downloads" not in path.parents] == []
    assert find("mnist", tmp_path) is None
    server.kind = "good"
    monkeypatch.setattr(tfds.builder_cls("mnist"), "url_infos", url_infos(downloads, {}))
    assert load(name="mnist", dir=str(tmp_path), download=True, validation=0).spec.input_shape == (28, 28, 1)


def test_a_file_put_there_by_hand_is_used(tmp_path, server):
    downloads, _ = serve(server, "cifar100", "missing")
    (by_hand := tmp_path / "downloads" / "manual" / "cifar-100-binary.tar.gz").parent.mkdir(parents=True)
    by_hand.write_bytes(b"something else")
    with pytest.raises(UserError, match=f"{by_hand} has the wrong checksum"):
        prepare("cifar100", str(tmp_path), downloads)
    by_hand.write_bytes(server.files[by_hand.name])
    assert prepare("cifar100", str(tmp_path), downloads).name == "3.0.2"
    assert server.asked == []


def test_prepare_errors(tmp_path, server):
    with pytest.raises(UserError, match="only TensorFlow can prepare food101"):
        prepare("food101", str(tmp_path))
    with pytest.raises(UserError, match=r'there is no dataset "minst".*Did you mean "mnist"'):
        prepare("minst", str(tmp_path))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"mnist cannot be prepared in .*file"):
        prepare("mnist", str(tmp_path / "file"), serve(server, "mnist")[0])


# Reading


@pytest.fixture(scope="module")
def cifar(tmp_path_factory, server):
    """A directory with a tiny cifar10, and its truth."""
    folder = tmp_path_factory.mktemp("tfds")
    downloads, truth = serve(server, "cifar10")
    prepare("cifar10", str(folder), downloads)
    return folder, truth


@pytest.mark.parametrize(("stratified", "classes"), [(100, range(9, -1, -1)), (100, ()), (0, ())])
def test_memory_changes_nothing(cifar, monkeypatch, stratified, classes):
    monkeypatch.setattr(image_sets, "_STRATIFIED", stratified)
    common = dict(name="cifar10", dir=str(cifar[0]), classes=tuple(classes), validation=0.2, image_size=16)
    held, streamed = load(**common), load(**common, memory_mb=0)
    assert isinstance(held.train, Table)
    assert isinstance(streamed.train, Subset)
    assert isinstance(streamed.test, Subset if classes else Lazy)
    assert ("label" in streamed.train.replaced) == (stratified > 0)
    assert held.spec == streamed.spec
    assert held.spec.input_shape == (16, 16, 3)
    for split, count in (("train", 16), ("validation", 4), ("test", 7)):
        records = [getattr(streamed, split)[i] for i in range(count)]
        for name, values in getattr(held, split).arrays.items():
            np.testing.assert_array_equal([record[name] for record in records], values)
        np.testing.assert_array_equal(field(getattr(streamed, split), "label"), getattr(held, split).arrays["label"])
    truth = cifar[1]["test"][1]["label"].astype(int)
    assert sorted(held.test.arrays["label"]) == sorted(9 - truth if classes else truth)


def test_tfds_default_directory(cifar, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(cifar[0]))
    assert len(load(name="cifar10:3.0.2", validation=0).train) == 20


def write_set(folder, features, splits, images, hidden=()):
    """Write a set of `images` with the labels 0 1 0 1 ... where `features` has a label; return where, for `load`.

    The split validation has three; in the splits `hidden`, all labels are -1.
    """

    def examples(split):
        for i, image in enumerate(images[: 3 if split == "validation" else None]):
            label = -1 if split in hidden else i % 2
            yield i, {"image": Image.fromarray(image)} | ({"label": label} if "label" in features else {})

    class Other(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: examples(split) for split in splits}

        def _generate_examples(self, split):
            return examples(split)

    Other(data_dir=folder, file_format="array_record").download_and_prepare()
    return dict(name="other", dir=str(folder))


def test_versions_and_configs_of_a_set(tmp_path):
    image = {"image": tfds.features.Image(shape=(None, None, 3))}
    write_set(tmp_path, image, ("train",), random_images(2, 6, 5, 3))
    folder = tmp_path / "other"
    for version in ("1.2.0", "1.10.0", "2.0.0.incomplete"):
        shutil.copytree(folder / "1.0.0", folder / version)
    shutil.copytree(folder / "1.0.0", tmp_path / "configured" / "small" / "1.0.0")

    def found(name):
        builder = find(name, tmp_path)
        return builder and str(pathlib.Path(builder.data_path).relative_to(tmp_path))

    assert found("other") == found("other:1.*.*") == "other/1.10.0"
    assert (found("other:1.2.*"), found("other:1.0.0")) == ("other/1.2.0", "other/1.0.0")
    assert [found(name) for name in ("other:3.0.0", "other/large", "nowhere", "../other", "other:latest")] == [None] * 5
    assert found("configured") == found("configured/small:1.0.0") == "configured/small/1.0.0"


def test_tfds_sets_that_do_not_fit(tmp_path):
    image, same = {"image": tfds.features.Image(shape=(None, None, 3))}, random_images(10, 6, 5, 3)
    both = image | {"label": tfds.features.ClassLabel(num_classes=2)}
    with pytest.raises(UserError, match=r'needs the features "image" \(Image\) and "label" \(ClassLabel\); it has \[\'image\'\]'):
        load(**write_set(tmp_path / "unlabelled", image, ("train", "test"), same))
    with pytest.raises(UserError, match=r"has the splits \['train'\]"):
        load(**write_set(tmp_path / "untested", both, ("train",), same))
    with pytest.raises(UserError, match=r"has the splits \['test', 'train'\]; .* with labels"):
        load(**write_set(tmp_path / "hidden", both, ("train", "test"), same, hidden=("test",)))
    imagenet = write_set(tmp_path / "imagenet", both, ("train", "validation", "test"), same, hidden=("test",))
    assert load(**imagenet).test.arrays["label"].tolist().count(1) == 1
    assert load(**imagenet).describe().endswith(" (training: train, test: validation)")  # the test split has no labels
    whole = write_set(tmp_path / "all", both, ("train", "validation", "test"), same)
    for share, counts in ((0.2, [10, 3, 10]), (0, [10, 0, 10])):  # the set has a validation split of its own
        splits = load(**whole, validation=share)
        assert [0 if part is None else len(part) for part in (splits.train, splits.validation, splits.test)] == counts
    assert splits.describe().startswith(f"data: 2 classes, 10 training, 10 test images from {tmp_path}")
    mixed = write_set(tmp_path / "mixed", both, ("train", "validation"), [*same, random_images(1, 4, 5, 3)[0]])
    with pytest.raises(UserError, match=r"data\.image_size=0 needs images of one size"):
        load(**mixed)
    assert load(**mixed, image_size=4, validation=0).test.arrays["image"].shape == (3, 4, 4, 3)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there: the real CIFAR-10 in TFDS layout")
def test_the_real_cifar10():
    splits = load(name="cifar10", dir=str(SHARED), classes=(0, 3, 5), per_class=11, validation=0.02)
    assert splits.spec.outputs == ("airplane", "cat", "dog")
    assert np.bincount(splits.train.arrays["label"]).tolist() == [11] * 3
    assert np.bincount(splits.validation.arrays["label"]).tolist() == [100] * 3
    assert np.bincount(splits.test.arrays["label"]).tolist() == [1000] * 3
    mean = splits.test.arrays["image"][splits.test.arrays["label"] == 0].mean((0, 1, 2))
    assert mean[2] > mean[0]  # aeroplanes stand before the sky
