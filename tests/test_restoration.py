"""The task restoration: windows add up to whole images, noise never changes, prediction equals evaluation, mistakes are one line."""

import argparse
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from selection import slow, with_slow

import dilax
from dilax import metrics
from dilax.errors import UserError
from train.build import Setup, build
from train.config import check, default_config, model_config
from train.data import Splits, degradations
from train.data.image_windows import Cut, Picture, cut_images, seed_of
from train.data.source import Table, gather
from train.score import score
from train.tasks.restoration import SCORES, Restoration
from train.tasks.restored_windows import image_scores, sight

SIZES = ((53, 50), (61, 97), (50, 100), (75, 61))
MODEL = ("ircnn", dict(features=4, dilations=(1, 2, 1)))  # sees 4 pixels on either side
KINDS: dict[str, dict[str, Any]] = {
    "noise": {},
    "super_resolution": {"restoration.degradation": "super_resolution", "restoration.scale": 3, "restoration.crop": 12},
    "jpeg": {"restoration.degradation": "jpeg", "restoration.quality": 15},
}
BATCH = 8


def write(folder: pathlib.Path, channels: int = 1, sizes: Any = SIZES) -> str:
    """Images of those sizes below train/ and test/."""
    rng = np.random.default_rng(channels)
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i, size in enumerate(sizes):
            waves = np.add.outer(np.sin(np.arange(size[0]) / (3 + i)), np.cos(np.arange(size[1]) / 5))
            pixels = np.clip(120 + 50 * waves[..., None] + rng.normal(0, 15, (*size, channels)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / split / f"{i}.png")
    return str(folder)


def config_of(folder: str, **changes: Any) -> ConfigDict:
    config = default_config("test", task="restoration")
    config.data.update(name="folder", dir=folder, validation=0.0)
    config.model = ConfigDict(model_config(MODEL[0], **MODEL[1]))
    config.batch_size, config.restoration.crop = BATCH, 16
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, str]:
    return {channels: write(tmp_path_factory.mktemp(f"images{channels}"), channels) for channels in (1, 3)}


def opened(folder: str, **changes: Any) -> tuple[Splits, Setup]:
    config = config_of(folder, **changes)
    check(config)
    splits = Restoration.open(config)
    return splits, build(config, splits.spec)


@functools.cache
def variables_of(channels: int) -> Any:
    """Those of a network that changes an image a lot."""
    model = dilax.models.create(MODEL[0], **MODEL[1])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 20, 20, channels)), train=False))
    rng = np.random.default_rng(7)
    return {
        "params": jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.15, leaf.shape), leaf.dtype), shapes["params"]),
        "batch_stats": {},
    }


def whole_scores(task: Restoration, setup: Setup, folder: str, channels: int, grid: int) -> dict[str, list[float]]:
    """Degrade and restore each test image as a whole."""
    border, found = task.spec.enlarged if task.spec.enlarged > 1 else 0, {"psnr": [], "ssim": [], "psnr_degraded": []}
    for i in range(len(SIZES)):
        pixels = np.asarray(Image.open(pathlib.Path(folder) / "test" / f"{i}.png")).reshape(*SIZES[i], channels)
        clean = pixels[: SIZES[i][0] // grid * grid, : SIZES[i][1] // grid * grid]
        batch = {"image": jnp.asarray(clean[None]), "seed": jnp.array([seed_of(clean)], jnp.int32), "place": jnp.zeros((1, 2), jnp.int32)}
        degraded = task.degraded(batch)
        outputs: Any = setup.steps.model.apply(variables_of(channels), degraded / 127.5 - 1, train=False)
        light = [
            metrics.luminance(jnp.asarray(degradations.as_uint8(each), jnp.float32) / 255)
            for each in (clean[None], (outputs + 1) * 127.5, degraded)
        ]
        found["psnr"].append(float(metrics.psnr(light[1], light[0], border=border)[0]))
        found["ssim"].append(float(metrics.ssim(light[1], light[0], border=border)[0]))
        found["psnr_degraded"].append(float(metrics.psnr(light[2], light[0], border=border)[0]))
    return found


@pytest.mark.parametrize(("kind", "channels"), [("super_resolution", 1), ("jpeg", 3), *slow(("noise", 1), ("noise", 3))])
def test_windows_add_up_to_whole_images(kind, channels, folders):
    splits, setup = opened(folders[channels], **KINDS[kind])
    task: Any = setup.task
    expected = whole_scores(task, setup, folders[channels], channels, degradations.grid(setup.config.restoration))
    assert len(splits.test) > len(SIZES)  # some are cut
    found, scores = score(setup, setup.parallel.put(variables_of(channels)), splits.test)
    each = image_scores(scores.kept)
    for name, values in expected.items():
        np.testing.assert_allclose(each[name], values, rtol=1e-4, err_msg=name)
        assert found[name] == pytest.approx(np.mean(values), rel=1e-4)
    pixels = [np.prod(size) if kind == "noise" else 0 for size in SIZES]
    if kind == "noise":
        np.testing.assert_array_equal(np.bincount(scores.kept["number"], scores.kept["pixels"]), pixels)
        np.testing.assert_allclose(each["psnr_degraded"], 20.2, atol=1.2 if channels == 1 else 8)


def test_windows_cover_every_pixel_once(tmp_path):
    pictures = []
    for size in ((43, 43), (61, 97), (88, 200), (43, 125)):
        pictures.append(Picture(tmp_path / f"{size}.png", "x", size))
        Image.new("L", (size[1], size[0])).save(pictures[-1].file)
    for window, margin, grid in ((40, 9, 1), (36, 9, 3), (40, 0, 8), (43, 20, 1)):
        source: Any = cut_images(pictures, Cut(window, margin, grid, 1), 0)
        counted = [np.zeros([side // grid * grid for side in picture.size], int) for picture in pictures]
        for number, place, size, kept in zip(*(source.fields[name] for name in ("number", "place", "size", "kept"))):
            counted[number][kept[0] : kept[1], kept[2] : kept[3]] += 1
            assert (place % grid == 0).all()
            for axis in range(2):
                first, stop = place[axis], place[axis] + window
                assert first >= 0 and stop <= size[axis]
                assert kept[2 * axis] - first >= margin or kept[2 * axis] == first == 0
                assert stop - kept[2 * axis + 1] >= margin or kept[2 * axis + 1] == stop == size[axis]
        assert all((one == 1).all() for one in counted)


def test_records_are_the_same_in_memory_or_not(folders):
    (held, _), (streamed, _) = opened(folders[3]), opened(folders[3], **{"data.memory_mb": 0})
    assert isinstance(held.test, Table) and not isinstance(streamed.test, Table)
    for name, values in gather(streamed.test, np.arange(len(held.test))).items():
        np.testing.assert_array_equal(values, held.test.arrays[name], err_msg=name)


def test_noise_of_an_image_never_changes(folders, tmp_path):
    """Neither in another split, nor in windows of another size, nor in another run."""
    first, setup = opened(folders[1])
    other, wide = opened(folders[1], **{"restoration.window": 32, "seed": 5})
    tasks: Any = (setup.task, wide.task)
    noisy = [np.asarray(task.degraded(gather(part.test, np.arange(1))))[0] for part, task in zip((first, other), tasks)]
    np.testing.assert_array_equal(noisy[0][:32, :32], noisy[1])
    assert noisy[1].std() > 20


def test_training_degrades_each_example_anew(folders):
    changes = {"restoration.blind": (0.0, 50.0), "augment.flip": True, "augment.turn": True}
    splits, setup = opened(folders[1], **changes)
    batch = jax.tree.map(jnp.asarray, gather(splits.train, np.zeros(BATCH, int)))
    augment = jax.jit(setup.task.augment)
    one, again, other = (augment(jax.random.key(key), batch, 0) for key in (1, 1, 2))
    assert one["image"].shape == one["degraded"].shape == (BATCH, 16, 16, 1)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one["degraded"], other["degraded"])
    deviations = np.asarray(one["degraded"] - one["image"]).std((1, 2, 3))
    assert deviations.max() > 2 * deviations.min() and deviations.max() < 60
    # Each square is somewhere in the window, in one of eight positions.
    window = np.asarray(batch["image"][0, ..., 0], np.float32)
    places = np.lib.stride_tricks.sliding_window_view(window, (16, 16))
    found = set()
    for square in np.asarray(one["image"][..., 0]):
        turned = [np.rot90(flipped, k) for flipped in (square, square[:, ::-1]) for k in range(4)]
        (position,) = [i for i, each in enumerate(turned) if (np.abs(places - each).max((2, 3)) < 1e-3).any()]
        found.add(position)
    assert len(found) > 2


def test_examples_are_augmented_by_their_number(folders):
    splits, setup = opened(folders[1])
    batch = jax.tree.map(jnp.asarray, gather(splits.train, np.arange(4)))
    whole = setup.task.augment(jax.random.key(3), batch, 0)
    half = setup.task.augment(jax.random.key(3), jax.tree.map(lambda leaf: leaf[2:], batch), 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[2:], b, rtol=1e-6), whole, half)


def inference_of(channels: int, enlarged: int = 1) -> dilax.Inference:
    spec = dilax.DataSpec("test", (20, 20, channels), ("grey",) if channels == 1 else ("red", "green", "blue"), 9, enlarged=enlarged)
    return dilax.Inference(dilax.models.create(MODEL[0], **MODEL[1]), variables_of(channels), spec, task="restoration")


@pytest.mark.parametrize("size", [(300, 41), (31, 700)])
def test_photographs_of_any_size_are_restored_in_tiles(size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    run = inference_of(3)
    whole: Any = run.model.apply(run.variables, jnp.asarray(image[None] / np.float32(127.5) - 1), train=False)
    expected = np.clip(np.round((np.asarray(whole)[0] + 1) * 127.5), 0, 255)
    restored = run.restore(image)
    assert restored.dtype == np.uint8
    assert np.abs(restored - expected).max() <= 1 and np.mean(restored != expected) < 1e-3


def test_colours_are_restored_by_a_model_of_grey_one_by_one():
    image, run = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8), inference_of(1)
    expected = np.concatenate([run.restore(image[..., i : i + 1]) for i in range(3)], -1)
    np.testing.assert_array_equal(run.restore(image), expected)
    np.testing.assert_array_equal(run.predict(image), expected)
    grey = np.repeat(image[..., :1], 3, -1)
    np.testing.assert_array_equal(run.predict(grey), expected[..., :1])
    assert inference_of(3).predict(grey).shape == (20, 30, 1)


def test_small_images_are_enlarged_first():
    image, run = np.random.default_rng(2).integers(0, 256, (15, 20, 1), np.uint8), inference_of(1, enlarged=3)
    large = dilax.inference.enlarged(image[None].astype(np.float32), 3)
    np.testing.assert_array_equal(run.restore(image), inference_of(1).restore(np.asarray(large[0])))
    assert run.predict(image).shape == (45, 60, 1)


def flags(folder: pathlib.Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    Restoration.add_prediction_flags(parser)
    args = parser.parse_args(list(words))
    args.out, args.replace = folder, True
    return args


@pytest.mark.parametrize("kind", with_slow(KINDS, kept=("super_resolution",)))
def test_prediction_equals_evaluation(kind, folders, tmp_path):
    splits, setup = opened(folders[1], **KINDS[kind])
    _, scores = score(setup, setup.parallel.put(variables_of(1)), splits.test)
    expected, inference = image_scores(scores.kept), setup.inference(variables_of(1))
    files = [f"{folders[1]}/test/{i}.png" for i in (1, 3)]
    lines = list(setup.task.predict(inference, flags(tmp_path, "--degrade", *files)))
    for number, line in zip((1, 3), lines, strict=True):
        _, restored, comparison, *cells = line.split("\t")
        values = [expected[name][number] for name in SCORES]
        assert [cell.split()[0] for cell in cells] == list(SCORES)
        np.testing.assert_allclose([float(cell.split()[1]) for cell in cells], values, atol=0.011)
        for file, mode in ((restored, "L"), (restored.replace("_restored", "_degraded"), "L"), (comparison, "RGBA")):
            with Image.open(file) as image:
                assert image.mode == mode and np.asarray(image).std() > 0


def test_evaluation_at_another_level_and_on_other_images(folders):
    _, setup = opened(folders[1])
    parser = argparse.ArgumentParser()
    Restoration.add_evaluation_flags(parser)
    task: Any = setup.task.with_flags(parser.parse_args(["--sigma=40", f"--test_dir={folders[1]}/train"]))
    assert (task.config.restoration.sigma, setup.task.config.restoration.sigma) == (40.0, 25.0)
    assert Restoration.open(task.config, task.spec).origin == f"{folders[1]} (test: {folders[1]}/train)"
    assert setup.task.with_flags(parser.parse_args([])).config.to_dict() == setup.config.to_dict()
    with pytest.raises(UserError) as error:
        setup.task.with_flags(parser.parse_args(["--sigma=-1"]))
    assert str(error.value) == "config.restoration.sigma=-1.0 is out of range; give a number from 0 to 255."
    _, other = opened(folders[1], **KINDS["jpeg"])
    with pytest.raises(UserError) as error:
        other.task.with_flags(parser.parse_args(["--sigma=10"]))
    assert str(error.value) == "--sigma=10 is for noise, and this run restores JPEG."


def test_what_a_model_sees_is_read_from_its_program(folders):
    config = config_of(folders[1])
    assert sight(config, 1) == (4, 1)
    config.model = ConfigDict(model_config("ircnn"))
    assert sight(config, 3) == (16, 1)
    config.model = ConfigDict(model_config("dilated_cnn"))  # not images: refused when the run is built
    assert sight(config, 1) == (0, 1)
    splits = Restoration.open(config)
    with pytest.raises(UserError) as error:
        build(config, splits.spec)
    assert str(error.value) == (
        "config.model.name='dilated_cnn' gives outputs of shape (1, 1), and config.task='restoration' needs (1, 50, 50, 1); choose another "
        "model, or another task."
    )


def test_two_photographs_of_an_installed_package(capsys):
    config = config_of("", **{"data.name": "photographs", "data.dir": "", "data.validation": 0.1, "restoration.channels": 1})
    splits: Any = Restoration.open(config)
    images = [gather(part, np.arange(len(part))) for part in (splits.train, splits.validation, splits.test)]
    assert [len(np.unique(part["number"])) for part in images] == [2, 2, 2]
    assert [part["size"][0].tolist() for part in images] == [[427, 384], [427, 128], [427, 128]]
    assert splits.spec.input_shape == (128, 128, 1)
    assert splits.describe() == (
        f"data: 1 channels, {len(splits.train)} training, {len(splits.validation)} validation, {len(splits.test)} test windows of 128 x 128 "  # pyright: ignore
        "pixels of 2 train, 2 validation, 2 test images from two photographs of scikit-learn, by columns"
    )


SMALL = {"sizes": ((43, 40), (9, 60))}
LARGE = {"sizes": ((43, 40), (61, 97))}
MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown": (
        {"restoration.degradation": "blur"},
        LARGE,
        "config.restoration.degradation='blur' is unknown; use one of ('noise', 'super_resolution', 'jpeg').",
    ),
    "sigma": ({"restoration.sigma": -1.0}, LARGE, "config.restoration.sigma=-1.0 is out of range; give a number from 0 to 255."),
    "scale": (
        {"restoration.degradation": "super_resolution", "restoration.scale": 5},
        LARGE,
        "config.restoration.scale=5 is out of range; give a number from 2 to 4.",
    ),
    "scale that is not read": (
        {"restoration.scale": 3},
        LARGE,
        "config.restoration.scale=3 is not read with config.restoration.degradation='noise'; it is read with 'super_resolution': remove it, "
        "or change config.restoration.degradation.",
    ),
    "quality": (
        {"restoration.degradation": "jpeg", "restoration.quality": 0},
        LARGE,
        "config.restoration.quality=0 is out of range; give a number from 1 to 100.",
    ),
    "blind": (
        {"restoration.blind": (50, 5)},
        LARGE,
        "config.restoration.blind=(50, 5) must be (lowest, highest) deviation from 0 to 255, or ().",
    ),
    "channels": (
        {"restoration.channels": 2},
        LARGE,
        "config.restoration.channels=2 is neither grey nor colour; use 1 or 3, or 0 for that of the files.",
    ),
    "crop of a scale": (
        {"restoration.degradation": "super_resolution", "restoration.scale": 3, "restoration.crop": 16},
        LARGE,
        "config.restoration.crop=16 is not a multiple of the scale, 3; choose 15.",
    ),
    "crop of blocks": (
        {"restoration.degradation": "jpeg", "restoration.crop": 20},
        LARGE,
        "config.restoration.crop=20 is not a multiple of the blocks of JPEG, 8; choose 16.",
    ),
    "image below the crop": (
        {},
        SMALL,
        "train/1.png has 9 x 60 pixels, fewer than config.restoration.crop=16; leave it out, or choose a smaller crop.",
    ),
    "image below its score": (
        {"restoration.crop": 4},
        SMALL,
        "train/1.png has 9 x 60 pixels, fewer than the 11 that are needed to score it; leave it out.",
    ),
    "image below what the model sees": (
        {"model.dilations": (1, 2, 3, 4, 3, 2, 1)},
        LARGE,
        "train/0.png has 43 x 40 pixels, and images are scored in windows of one size, of at least 43 for this model; leave that image out, "
        "or choose a model that sees less.",
    ),
    "window above an image": (
        {"restoration.window": 41},
        LARGE,
        "config.restoration.window=41 is larger than the smallest image: train/0.png has 43 x 40 pixels; choose at most 40.",
    ),
    "window below what the model sees": (
        {"restoration.window": 18},
        LARGE,
        "config.restoration.window=18 leaves nothing to score beside 9 pixels of context on either side; choose 19 or more.",
    ),
    "crop above the window": (
        {"restoration.window": 20, "restoration.crop": 24},
        LARGE,
        "config.restoration.crop=24 does not fit into config.restoration.window=20; choose a smaller crop, or a larger window.",
    ),
    "a model of everything": (
        {"model.norm": "group"},
        LARGE,
        "config.model.name='ircnn' sees the whole image at once, so that images cannot be restored in windows; choose another model, such "
        "as 'ircnn' without a norm of whole images.",
    ),
    "no folder": ({"data.dir": ""}, LARGE, 'config.data.dir="" is not a folder; set it to a folder of clean images.'),
    "no test folder": (
        {"data.test_dir": "gone"},
        LARGE,
        'config.data.test_dir="gone" is not a folder; set it to a folder of clean images.',
    ),
    "unknown data": (
        {"data.name": "photograph"},
        LARGE,
        "config.data.name='photograph' is not data for config.task='restoration'; use one of ('photographs', 'folder'). Did you mean "
        '"photographs"?',
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name, tmp_path, monkeypatch):
    changes, data, text = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        opened(write(tmp_path / "data", **data), **changes)
    assert str(error.value) == text


def test_files_that_cannot_be_read_are_fatal_or_left_out_by_name(tmp_path, capsys):
    folder = write(tmp_path)
    (tmp_path / "train" / "2.png").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"train/2\.png cannot be read as an image: it is of another type, or damaged"):
        opened(folder)
    splits, _ = opened(folder, **{"data.on_bad": "skip"})
    assert len(np.unique(gather(splits.train, np.arange(len(splits.train)))["number"])) == 3
    assert "note: 1 of 4 images for train are left out, since they cannot be read: " in capsys.readouterr().err


def test_images_that_cannot_be_scored_are_refused_before_anything_is_written(folders, tmp_path):
    _, setup = opened(folders[1])
    Image.new("L", (10, 30)).save(tmp_path / "small.png")
    with pytest.raises(UserError) as error:
        list(setup.task.predict(setup.inference(variables_of(1)), flags(tmp_path / "out", "--degrade", str(tmp_path / "small.png"))))
    assert str(error.value) == f"{tmp_path}/small.png has 30 x 10 pixels, too few to be scored; give 11 or more."
    assert not (tmp_path / "out").exists()
