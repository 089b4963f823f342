"""Images with masks: read, checked, fitted and split."""

import io
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dilax.errors import UserError
from train import data
from train.data.image_sets import IMAGE_KEYS, MASK_KEYS, open_labelled, open_masked
from train.data.readers import cells, masks
from train.data.source import Table

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "tensorflow_datasets"
RNG = np.random.default_rng(0)


def config_of(keys: Any, **changes: Any) -> ConfigDict:
    defaults = {name.removeprefix("data."): key.default for name, key in keys.items()}
    config = ConfigDict({**defaults, **dict(name="", dir="", validation=0.25, memory_mb=2048, workers=0, download=False)})
    config.update(changes)
    return config


def load(seed: int = 0, ignored: int = 255, **changes: Any) -> Any:
    return open_masked(config_of(MASK_KEYS, **changes), seed=seed, ignored=ignored)


def encoded(mask: np.ndarray) -> np.ndarray:
    """An image that tells its own mask: label v is the grey value 20 v + 60, as red, and a value more as green."""
    return np.stack([20 * mask + 60, 20 * mask + 61, np.zeros_like(mask)], -1).astype(np.uint8)


# Fitting


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (9, 9), (3, 50)])
def test_fit_inside_keeps_the_aspect_and_pads_with_ignored_pixels(shape):
    label = np.kron(RNG.integers(0, 5, (4, 4)), np.ones((20, 20), int)).astype(np.uint8)[: shape[0], : shape[1]]
    image, fitted = masks.fit_inside(encoded(label), label, 16, 255)
    assert (image.shape, fitted.shape) == ((16, 16, 3), (16, 16))
    height, width = (max(1, round(n * 16 / max(label.shape))) for n in label.shape)
    assert (fitted[:height, :width] != 255).all()
    assert (fitted[height:] == 255).all() and (fitted[:, width:] == 255).all()
    assert (image[height:] == 128).all() and (image[:, width:] == 128).all()
    pure = np.isin(image[:height, :width, 0], 20 * np.arange(5) + 60)
    np.testing.assert_array_equal((image[:height, :width, 0][pure] - 60) // 20, fitted[:height, :width][pure])
    assert pure.mean() > 0.5
    assert masks.fit_inside(image, fitted, 0, 255) == (image, fitted)


# Folders


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer, image = io.BytesIO(), Image.fromarray(array)
    if mode == "P":
        image.putpalette(list(range(255, -1, -1)) * 3)  # colours that are anything but the numbers
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_pairs(root: pathlib.Path, count: int, *, shape=(6, 8), names=("images", "masks"), mode=None, first=0, highest=3) -> None:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        rng = np.random.default_rng(i)
        label = rng.integers(0, highest, shape).astype(np.uint8)
        label[0, 0] = 255
        (root / names[0] / f"{i:02}.png").write_bytes(png(encoded(label)))
        (root / names[1] / f"{i:02}.png").write_bytes(png(label, mode))


def numbers(split: Any) -> set[bytes]:
    return {split[i]["image"].tobytes() for i in range(len(split))}


def check_pairs(split: Any) -> None:
    for i in range(len(split)):
        record = split[i]
        known = record["label"] != 255
        np.testing.assert_array_equal((record["image"][..., 0][known] - 60) // 20, record["label"][known])


@pytest.mark.parametrize("mode", [None, "P"])
@pytest.mark.parametrize("memory_mb", [64, 0])
def test_two_folders(tmp_path, mode, memory_mb):
    write_pairs(tmp_path, 20, mode=mode)
    splits = load(name="folder", dir=str(tmp_path), memory_mb=memory_mb)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [12, 4, 4]
    assert (splits.spec.outputs, splits.spec.input_shape) == (("class 0", "class 1", "class 2"), (6, 8, 3))
    assert len(numbers(splits.train) | numbers(splits.validation) | numbers(splits.test)) == 20
    for split in (splits.train, splits.validation, splits.test):
        assert isinstance(split, Table) == (memory_mb > 0)
        check_pairs(split)
    assert numbers(load(3, name="folder", dir=str(tmp_path)).test) == numbers(splits.test)
    batch = next(data.eval_batches(splits.test, 3))
    assert (batch["label"].shape, batch["label"].dtype, batch["mask"].shape) == ((3, 6, 8), np.uint8, (3,))


def test_streamed_batches_equal_held_ones(tmp_path):
    write_pairs(tmp_path, 20)
    held, streamed = (load(name="folder", dir=str(tmp_path), memory_mb=mb) for mb in (64, 0))
    for workers in (0, 1):
        a, b = data.train_batches(held.train, 5, seed=2), data.train_batches(streamed.train, 5, seed=2, workers=workers)
        for _ in range(3):
            x, y = next(a), next(b)
            assert y["label"].dtype == np.uint8
            for name in ("image", "label"):
                np.testing.assert_array_equal(x[name], y[name])
        b.close()


def test_splits_by_folder_and_by_list(tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        write_pairs(tmp_path / "a" / split, 4 + i, first=10 * i)
    splits = load(name="folder", dir=str(tmp_path / "a"))
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [4, 5, 6]
    assert load(name="folder", dir=str(tmp_path / "a")).train.arrays["image"].shape == (4, 6, 8, 3)
    assert load(name="folder", dir=str(tmp_path / "a"), validation=0.0).validation is None

    write_pairs(tmp_path / "voc", 12, names=("JPEGImages", "SegmentationClass"))
    (tmp_path / "voc" / "JPEGImages" / "unlabelled.png").write_bytes(png(encoded(np.zeros((6, 8), np.uint8))))
    (tmp_path / "voc" / "lists").mkdir()
    (tmp_path / "voc" / "lists" / "train.txt").write_text("00\n03\n07\n09\n")
    (tmp_path / "voc" / "lists" / "val.txt").write_text("05\n11\n")
    keys: Any = dict(name="folder", dir=str(tmp_path / "voc"), image_field="JPEGImages", mask_field="SegmentationClass", lists="lists")
    splits = load(**keys)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [3, 1, 2]
    np.testing.assert_array_equal(splits.test.arrays["image"][1], np.asarray(Image.open(tmp_path / "voc" / "JPEGImages" / "11.png")))
    (tmp_path / "voc" / "lists" / "val.txt").write_text("05\n99\n")
    with pytest.raises(UserError, match=r"val\.txt names 99, but .*JPEGImages does not hold it; add it, or correct the list\."):
        load(**keys)


def test_values_of_the_mask_become_classes(tmp_path):
    write_pairs(tmp_path, 10)
    plain = load(name="folder", dir=str(tmp_path))
    chosen = load(name="folder", dir=str(tmp_path), mask_values=(2, 0), class_names=("two", "zero"))
    table = np.full(256, 255, np.uint8)
    table[[2, 0]] = 0, 1
    np.testing.assert_array_equal(chosen.test.arrays["label"], table[plain.test.arrays["label"]])
    assert chosen.spec.outputs == ("two", "zero")
    assert load(name="folder", dir=str(tmp_path), mask_values=(2, 0)).spec.outputs == ("class 2", "class 0")


def test_images_of_many_sizes_are_fitted(tmp_path):
    for i in range(8):
        write_pairs(tmp_path, 1, first=i, shape=(6 + i, 9))
    splits = load(name="folder", dir=str(tmp_path), image_size=12)
    assert splits.spec.input_shape == (12, 12, 3)
    with pytest.raises(UserError, match=r"needs images of one size"):
        load(name="folder", dir=str(tmp_path))


def test_a_split_that_ignores_all_of_some_images_is_used(tmp_path):
    write_pairs(tmp_path, 10)
    Image.fromarray(np.full((6, 8), 255, np.uint8)).save(tmp_path / "masks" / "03.png")
    assert len(load(name="folder", dir=str(tmp_path)).train) == 6


def all_ignored(root: pathlib.Path) -> None:
    for file in (root / "masks").iterdir():
        Image.fromarray(np.full((6, 8), 255, np.uint8)).save(file)


def replace_mask(array: np.ndarray) -> Any:
    return lambda root: (root / "masks" / "04.png").write_bytes(png(array))


def black_and_white(root: pathlib.Path) -> None:
    for file in (root / "masks").iterdir():
        with Image.open(file) as mask:
            values = np.where(np.asarray(mask) > 0, 255, 0).astype(np.uint8)
        Image.fromarray(values).save(file)


def jpeg_mask(root: pathlib.Path) -> None:
    with Image.open(root / "masks" / "04.png") as mask:
        mask.convert("L").save(root / "masks" / "04.jpg")
    (root / "masks" / "04.png").unlink()


def deep_image(root: pathlib.Path) -> None:
    with Image.open(root / "images" / "04.png") as image:
        width, height = image.size
    Image.fromarray(np.full((height, width), 3000, np.uint16)).save(root / "images" / "04.png")


BAD_FOLDERS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "size": (
        replace_mask(np.zeros((6, 7), np.uint8)),
        {},
        r"masks/04\.png: the mask has 6x7 pixels, its image 6x8; make them the same size\.$",
    ),
    "label": (
        replace_mask(np.full((6, 8), 9, np.uint8)),
        {"class_names": ("a", "b", "c")},
        r"masks/04\.png: the mask holds 9, but the classes are 0 to 2 and 255 is ignored; correct the mask, or list the values of the classes in "
        r"config\.data\.mask_values\.$",
    ),
    "picture": (replace_mask(np.zeros((6, 8, 3), np.uint8)), {}, r"masks/04\.png is an image of mode RGB; save the class numbers"),
    "deep": (replace_mask(np.full((6, 8), 700, np.uint16)), {}, r"masks/04\.png holds the number 700; a mask holds class numbers, up to 255\."),
    "not an image": (lambda root: (root / "masks" / "04.png").write_bytes(b"no"), {}, r"masks/04\.png cannot be read as an image"),
    "no mask": (lambda root: (root / "masks" / "04.png").unlink(), {}, r"images/04\.png has no mask of the same name in .*masks \(1 such files\)"),
    "no image": (lambda root: (root / "images" / "04.png").unlink(), {}, r"masks/04\.png has no image of the same name in .*images"),
    "two of a stem": (
        lambda root: shutil.copy(root / "images" / "04.png", root / "images" / "04.bmp"),
        {},
        r"04\.bmp and .*04\.png differ only in their suffix, so their mask is ambiguous; rename one\.",
    ),
    "all ignored": (all_ignored, {"class_names": ("a", "b")}, r"all pixels of the training split are ignored \(label 255\); check its masks"),
    "no folder": (lambda root: shutil.rmtree(root / "masks"), {}, r"there is no folder .*masks; name the two folders in config\.data\.image_field"),
    "no list": (lambda root: None, {"lists": "lists"}, r"data\.lists: there is no .*lists/train\.txt; give the folder"),
    "values": (lambda root: None, {"mask_values": (1, 1)}, r"config\.data\.mask_values=\(1, 1\) must be different numbers from 0 to 255\."),
    "values and names": (lambda root: None, {"mask_values": (1, 2), "class_names": ("a",)}, r"lists 2 classes and config\.data\.class_names 1; give as many of one as of the other\."),
    "ignored class": (lambda root: None, {"ignored": 1, "class_names": ("a", "b")}, r"config\.segmentation\.ignored_label=1 is one of the 2 classes"),
    "black and white": (black_and_white, {}, r"the masks hold 0, 255, of which 255 is ignored: these are not the numbers of two or more classes; .*mask_values, such as \(0, 255\)\.$"),
    "JPEG": (jpeg_mask, {"class_names": ("a", "b", "c")}, r"masks/04\.jpg is a JPEG, which blurs class numbers; save the masks as PNG"),
    "fractions": (lambda root: None, {"mask_values": (0.0, 1.0)}, r"mask_values=\(0\.0, 1\.0\) must be whole numbers\."),
    "16 bits": (deep_image, {"class_names": ("a", "b", "c")}, r"images/04\.png has more than 8 bits per channel"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folders(tmp_path, name):
    spoil, changes, text = BAD_FOLDERS[name]
    write_pairs(tmp_path, 10)
    spoil(tmp_path)
    with pytest.raises(UserError, match=text) as caught:
        load(name="folder", dir=str(tmp_path), **changes)
    assert "\n" not in str(caught.value)


def test_data_without_masks_and_masks_without_labels(tmp_path):
    with pytest.raises(UserError, match=r'data\.name="digits" has no masks to segment'):
        load(name="digits")
    with pytest.raises(UserError, match=r'data\.name="cells" has masks, not labels of whole images; set config\.task="segmentation"'):
        open_labelled(config_of(IMAGE_KEYS, name="cells"), seed=0)
    with pytest.raises(UserError, match=r'needs data\.dir to be a folder of images and masks; "" is not a folder'):
        load(name="folder")


def test_class_pixels_are_counted():
    labels = np.array([[[0, 0, 1], [255, 255, 255]], [[2, 2, 2], [0, 255, 2]]], np.uint8)
    source = Table({"image": np.zeros((2, 2, 3, 1), np.uint8), "label": labels})
    pixels, totals = masks.class_pixels(source, 4, 255)
    np.testing.assert_array_equal(pixels, [3, 1, 4, 0])
    np.testing.assert_array_equal(totals, [3 + 5, 3, 5, 0])


# TFDS


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory) -> pathlib.Path:
    """Two sets in TFDS's own layout: one whose mask names its classes, one like a trimap, with the values 1 to 3."""
    import tensorflow_datasets as tfds

    directory = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()

    def builder(name: str, mask: Any, splits: dict[str, int], low: int) -> Any:
        def info(self):
            features: Any = {"image": tfds.features.Image(shape=(None, None, 3)), "segmentation_mask": mask}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def examples(self, split, count):
            for i in range(count):
                label = np.random.default_rng([len(split), i]).integers(low, low + 3, (6, 8)).astype(np.uint8)
                yield i, {"image": Image.fromarray(encoded(label)), "segmentation_mask": Image.fromarray(label)}

        parts: Any = {
            "VERSION": tfds.core.Version("1.0.0"),
            "_info": info,
            "_split_generators": lambda self, _: {split: examples(self, split, count) for split, count in splits.items()},
            "_generate_examples": examples,
        }
        made: Any = type(name.title(), (tfds.core.GeneratorBasedBuilder,), parts)  # TFDS takes the name from that of the class
        made(data_dir=directory, file_format="array_record").download_and_prepare()

    names = tfds.features.LabeledImage(labels=["sky", "road", "car"], shape=(None, None, 1))
    builder("streets", names, {"train": 7, "validation": 4, "test": 5}, 0)
    builder("pets", tfds.features.Image(shape=(None, None, 1)), {"train": 8, "test": 3}, 1)
    return directory


def test_tfds(tfds_dir):
    splits = load(name="streets", dir=str(tfds_dir))
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [7, 4, 5]
    assert (splits.spec.outputs, splits.spec.input_shape) == (("sky", "road", "car"), (6, 8, 3))
    for split in (splits.train, splits.validation, splits.test, load(name="streets", dir=str(tfds_dir), memory_mb=0).test):
        check_pairs(split)
    pets = load(name="pets", dir=str(tfds_dir), mask_values=(1, 2, 3), class_names=("pet", "background", "border"))
    assert [len(s) for s in (pets.train, pets.validation, pets.test)] == [6, 2, 3]
    np.testing.assert_array_equal(pets.train.arrays["label"], (pets.train.arrays["image"][..., 0] - 60) // 20 - 1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(name="streets", mask_field="mask"), r"no image feature \"mask\"; it has \['image', 'segmentation_mask'\]: set config\.data\.mask_field\.$"),
        (dict(name="streets", image_field="imag"), r"set config\.data\.image_field\. Did you mean \"image\"\?"),
        (dict(name="pets"), r"does not name the classes of its masks; list them in config\.data\.class_names\."),
        (dict(name="pets", class_names=("a", "b", "c")), r"pets/train\[0\]: the mask holds 3, but the classes are 0 to 2"),
        (dict(name="nowhere"), r"there is no dataset \"nowhere\""),
    ],
)  # fmt: skip
def test_tfds_errors(tfds_dir, changes, text):
    with pytest.raises(UserError, match=text):
        load(dir=str(tfds_dir), **changes)


# Real sets


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="../shared/tensorflow_datasets/camvid is not there")
def test_camvid_is_as_described():
    splits = load(name="camvid", dir=str(SHARED))
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [367, 101, 233]
    assert splits.spec.input_shape == (180, 240, 3)
    assert splits.spec.outputs[:4] == ("sky", "building", "pole", "road")
    pixels, _ = masks.class_pixels(splits.train, 11, 255)
    shares = 100 * pixels / splits.train.arrays["label"].size
    np.testing.assert_allclose(shares, [16.75, 23.23, 0.98, 31.79, 4.48, 9.71, 1.17, 1.13, 5.86, 0.64, 0.29], atol=0.006)
    np.testing.assert_allclose(splits.train.arrays["image"].mean((0, 1, 2)) / 255, [0.4124, 0.4256, 0.4331], atol=1e-4)


def has_cells() -> bool:
    import importlib.util

    return importlib.util.find_spec("ndev_sampledata") is not None


@pytest.mark.skipif(not has_cells(), reason="ndev-sampledata is not installed")
def test_cells():
    splits = load(name="cells")
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [40, 10, 10]
    assert (splits.spec.outputs, splits.spec.input_shape) == (("background", "cell", "nucleus"), (210, 96, 3))
    shares = np.bincount(splits.train.arrays["label"].ravel(), minlength=3) / splits.train.arrays["label"].size
    assert (shares > (0.4, 0.3, 0.05)).all()
    # The stain of a nucleus is bright where its mask is.
    blue = splits.train.arrays["image"][..., 2]
    assert blue[splits.train.arrays["label"] == 2].mean() > 3 * blue[splits.train.arrays["label"] == 0].mean()
    # No column is in two splits.
    columns = [set(np.add.outer(list(starts), range(cells.WIDTH)).ravel().tolist()) for starts in cells.COLUMNS.values()]
    assert sum(map(len, columns)) == len(set.union(*columns)) == 576


def test_cells_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"ndev_sampledata ships, which is missing; run: pip install --no-deps ndev-sampledata==0\.0\.3$"):
        load(name="cells")
