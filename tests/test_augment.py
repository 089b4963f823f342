"""Augmentation: everything in an example moves alike, and example i depends only on the key and on its position in the whole batch."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from scipy import ndimage
from selection import with_slow

from dilax.errors import UserError
from train.data.augment import AUGMENT_KEYS, CLASS_KEYS, COLOUR_KEYS, GEOMETRY_KEYS, MASK_KEYS, augment, examples, geometry, one_hot, pixels

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 11, 9, 3), np.uint8)
MASKS = np.random.default_rng(1).integers(0, 6, (4, 11, 9)).astype(np.uint8)
LABELS = np.arange(4)


@functools.cache
def compiled(options, ignored):
    return jax.jit(lambda key, batch, first: augment(key, batch, dict(options), first=first, ignored=ignored))


def run(batch: Any, key: Any = KEY, first: Any = 0, ignored: Any = 255, **options: Any) -> Any:
    """The augmented batch as numpy arrays; options that are the same are compiled once."""
    return jax.tree.map(np.asarray, compiled(tuple(sorted(options.items())), ignored)(key, batch, first))


def pixel_values(images):
    return np.round((images + 1) * 127.5).astype(np.uint8)


# A scene of numbered rectangles, each with a box.

SHAPE, OBJECTS = (40, 56), 3


def draw_scene(rng):
    mask, boxes = np.zeros(SHAPE, np.uint8), np.zeros((OBJECTS + 1, 4), np.float32)  # the last box does not exist
    for i in range(OBJECTS):  # in thirds of the image, so that none hides another
        height, width = rng.integers(12, 30), rng.integers(9, 16)
        y, x = rng.integers(0, SHAPE[0] - height + 1), 18 * i + rng.integers(0, 18 - width + 1)
        mask[y : y + height, x : x + width] = i + 1
        boxes[i] = x, y, x + width, y + height
    return mask, boxes


def draw_scenes(count):
    masks, boxes = map(np.stack, zip(*(draw_scene(np.random.default_rng(i)) for i in range(count))))
    exist = np.tile(np.arange(OBJECTS + 1) < OBJECTS, (count, 1))
    return {"image": encode(masks), "mask": masks, "boxes": boxes, "box_mask": exist}


def encode(masks):
    """An image with one channel per object, white where the object is."""
    return np.stack([255 * (masks == label) for label in range(1, OBJECTS + 1)], -1).astype(np.uint8)


SCENES = draw_scenes(8)
MOVES = {
    "flip": dict(flip=True),
    "shift": dict(crop_padding=5),
    "crop": dict(crop=(29, 37)),
    "pad": dict(crop=(50, 61)),
    "scale": dict(scale=0.8),
    "rotate": dict(rotate=35.0),
    "all": dict(crop=(36, 61), crop_padding=2, flip=True, scale=0.4, rotate=20.0),
}


@functools.cache
def moved(name):
    return run(SCENES, **MOVES[name])


@pytest.mark.parametrize("name", MOVES)
def test_the_mask_of_a_moved_image_is_the_moved_mask(name):
    result = moved(name)
    images, masks = result["image"], result["mask"]
    assert masks.dtype == np.uint8
    assert images.shape[:3] == masks.shape == (8, *MOVES[name].get("crop", SHAPE))
    outside = masks == 255
    assert (images[outside] == 0).all()
    assert outside.any() == (name not in ("flip", "crop"))
    assert (masks[~outside] <= OBJECTS).all()
    interpolated = {"scale", "rotate"} & set(MOVES[name])
    for label in range(1, OBJECTS + 1):
        of_image, of_mask = ~outside & (images[..., label - 1] > 0), masks == label
        assert (of_image & of_mask).sum() / (of_image | of_mask).sum() > (0.95 if interpolated else 0.9999)


@pytest.mark.parametrize("name", MOVES)
def test_boxes_enclose_the_moved_objects(name):
    result = moved(name)
    boxes, exist, masks = result["boxes"], result["box_mask"], result["mask"]
    height, width = masks.shape[1:]
    rotated = "rotate" in MOVES[name]
    assert not exist[:, -1].any()
    assert (boxes[~exist] == 0).all()
    assert exist.sum() > 12
    for i, j in zip(*np.nonzero(exist)):
        x0, y0, x1, y1 = boxes[i, j]
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        rows, columns = np.nonzero(masks[i] == j + 1)
        edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        outward = (edges - boxes[i, j]) * (1, 1, -1, -1)
        blur = 0.5 * (rotated or "scale" in MOVES[name]) + 1e-3  # the nearest pixel is at most half a pixel away
        assert outward.min() >= -blur, (i, j, outward)
        if not rotated:
            assert outward.max() <= blur
    for i, j in zip(*np.nonzero(SCENES["box_mask"] & ~exist)):  # of a dropped box, little is left
        assert (masks[i] == j + 1).sum() < 0.3 * (SCENES["mask"][i] == j + 1).sum()


def test_a_box_is_dropped_when_little_of_it_remains():
    boxes = np.array([[[0, 0, 10, 11], [8, 0, 18, 11], [8.5, 0, 18.5, 11], [20, 0, 30, 11], [2, 2, 2, 6]]], np.float32)
    sizes, window = (11, 9), geometry.Window(jnp.zeros(2), jnp.ones(()), jnp.array(False))
    result, exist = geometry.move_boxes(jnp.asarray(boxes[0]), jnp.ones(5, bool), window, None, sizes=sizes)
    assert exist.tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(result, [[0, 0, 9, 11], [8, 0, 9, 11], [0] * 4, [0] * 4, [0] * 4])


def test_boxes_without_a_mask_and_without_a_box_mask():
    with_all = moved("all")
    result = run({"image": SCENES["image"], "boxes": SCENES["boxes"]}, **MOVES["all"])
    np.testing.assert_array_equal(result["image"], with_all["image"])
    np.testing.assert_array_equal(result["box_mask"], with_all["box_mask"])  # a box without area never exists
    np.testing.assert_array_equal(result["boxes"], with_all["boxes"])


def test_off_changes_nothing():
    batch = {**SCENES, "target": np.asarray(one_hot(np.arange(8) % 5, 5)), "label": np.arange(8)}
    for options in ({}, {name.removeprefix("augment."): key.default for name, key in AUGMENT_KEYS.items()}):
        result = run(batch, **options)
        assert result.keys() == batch.keys()
        np.testing.assert_allclose(result.pop("image"), SCENES["image"] / np.float32(127.5) - 1, atol=1e-6)
        for name, values in result.items():
            np.testing.assert_array_equal(values, batch[name])


def test_whole_pixels_move_exactly():
    """A flip, a shift and a crop are those of numpy, for the image, its mask and its boxes alike."""
    rng = np.random.default_rng(2)
    images, masks = rng.integers(0, 256, (40, 9, 11, 3), np.uint8), rng.integers(0, 5, (40, 9, 11)).astype(np.uint8)
    boxes = np.tile(np.array([[[3, 2, 8, 7]]], np.float32), (40, 1, 1))
    result, seen = run({"image": images, "mask": masks, "boxes": boxes}, crop=(6, 8), crop_padding=1, flip=True), set()
    grey, ignored = ((1, 1), (1, 1), (0, 0)), ((1, 1), (1, 1))
    for i in range(40):
        image = np.pad(images[i] / np.float32(127.5) - 1, grey)
        mask = np.pad(masks[i], ignored, constant_values=255)
        matches = [
            (row, column, mirrored)
            for row, column, mirrored in itertools.product(range(6), range(6), (False, True))
            if np.array_equal(mask[row : row + 6, column : column + 8][:, :: -1 if mirrored else 1], result["mask"][i])
        ]
        ((row, column, mirrored),) = matches
        window = image[row : row + 6, column : column + 8][:, :: -1 if mirrored else 1]
        np.testing.assert_allclose(result["image"][i], window, atol=1e-6)
        x0, y0, x1, y1 = np.clip(np.array([3, 2, 8, 7]) - np.array([column, row, column, row]) + 1, 0, [8, 6, 8, 6])
        np.testing.assert_allclose(result["boxes"][i, 0], [8 - x1, y0, 8 - x0, y1] if mirrored else [x0, y0, x1, y1], atol=1e-5)
        seen.add(matches[0])
    assert {mirrored for *_, mirrored in seen} == {False, True}
    assert {row for row, *_ in seen} == {column for _, column, _ in seen} == set(range(6))


def test_images_alone_are_shifts_of_the_edge_padded_image():
    images = np.repeat(IMAGES[:1], 60, 0)
    padded = np.pad(IMAGES[0], ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = {(r, c, m): padded[r : r + 11, c : c + 9][:, ::m] for r, c, m in itertools.product(range(5), range(5), (1, -1))}
    seen = [
        place
        for image in pixel_values(run({"image": images}, crop_padding=2, flip=True)["image"])
        for place, window in windows.items()
        if np.array_equal(window, image)
    ]
    assert len(seen) == 60
    assert len({(r, c) for r, c, _ in seen}) > 15
    assert 18 < sum(m == 1 for *_, m in seen) < 42


def test_a_larger_crop_holds_the_image_anywhere():
    masks, corners = SCENES["mask"], set()
    for seed in range(30):
        result = run({"image": SCENES["image"], "mask": masks}, jax.random.key(seed), crop=(43, 58))
        for image, label, mask in zip(result["image"], result["mask"], masks):
            rows, columns = np.flatnonzero((label != 255).any(1)), np.flatnonzero((label != 255).any(0))
            assert (len(rows), len(columns)) == SHAPE
            np.testing.assert_array_equal(label[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], mask)
            assert (image[label == 255] == 0).all()
            corners.add((rows[0], columns[0]))
    assert corners == {(r, c) for r in range(4) for c in range(3)}


@pytest.mark.parametrize("companions", [(), ("mask", "boxes")])
def test_rotation_by_90_degrees_is_that_of_numpy(companions, monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: jnp.ones(()))
    images, masks = IMAGES[:, :9], MASKS[:, :9]
    batch = {"image": images, "mask": masks, "boxes": np.tile(np.array([[[1, 2, 4, 8]]], np.float32), (4, 1, 1))}
    batch = {name: batch[name] for name in ("image", *companions)}
    result = jax.jit(lambda batch: augment(KEY, batch, {"rotate": 90.0}))(batch)
    np.testing.assert_array_equal(pixel_values(np.asarray(result["image"])), np.rot90(images, -1, axes=(1, 2)))
    if companions:
        np.testing.assert_array_equal(result["mask"], np.rot90(masks, -1, axes=(1, 2)))
        # The rows of the box become its columns, from the right.
        np.testing.assert_allclose(result["boxes"], np.tile([[[9 - 8, 1, 9 - 2, 4]]], (4, 1, 1)), atol=1e-4)


def test_a_zoom_of_2_is_bilinear_enlargement(monkeypatch):
    image = IMAGES[:1]
    sizes, window = (22, 18), geometry.Window(jnp.zeros(2), jnp.full((), 2.0), jnp.array(False))
    coordinates = window.coordinates(tuple(jnp.arange(size, dtype=jnp.float32) for size in sizes), sizes)
    result = jax.jit(lambda image: geometry.read_filled(image, coordinates, fill=0))(image[0].astype(np.float32))
    np.testing.assert_allclose(result, jax.image.resize(image[0].astype(np.float32), (*sizes, 3), "linear", antialias=False), atol=1e-4)
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: jnp.ones(()))
    alone = jax.jit(lambda images: augment(KEY, {"image": images}, {"scale": 1.0})["image"])(IMAGES)
    np.testing.assert_array_equal(pixel_values(np.asarray(alone))[:, 5::2, 4::2], IMAGES[:, 5:8, 4:7])  # about the centre


def test_zooms_are_symmetric_and_equal_along_both_axes():
    zooms = np.asarray(jax.vmap(lambda key: geometry.random_zoom(key, scale=1.0))(jax.random.split(KEY, 200)))
    assert 0.5 <= zooms.min() < 0.55
    assert 1.85 < zooms.max() <= 2
    assert 0.4 < (zooms < 1).mean() < 0.6
    boxes = np.tile(np.array([[[10, 10, 20, 20]]], np.float32), (8, 1, 1))
    result = run({"image": SCENES["image"], "boxes": boxes}, scale=0.3, crop=(80, 90))  # a box that is never cut
    x0, y0, x1, y1 = result["boxes"][:, 0].T
    np.testing.assert_allclose(x1 - x0, y1 - y0, rtol=1e-5)
    assert len(np.unique(np.round(x1 - x0, 3))) == 8
    assert (x1 - x0).min() >= 10 / 1.3 - 1e-3 and (x1 - x0).max() <= 13 + 1e-3


# Draws

ALL = dict(crop_padding=3, flip=True, rotate=20.0, scale=0.2, cutout=4)
DRAWS = {
    "alone": (("target",), dict(**ALL, mixup=0.4, label_smoothing=0.1)),
    "coloured crop": ((), dict(**ALL, colour=0.3, crop=(8, 10))),
    "together": (("mask", "boxes"), dict(**ALL, colour=0.3, crop=(8, 10))),
}
BOXES = np.sort(RNG.uniform(0, 9, (4, 2, 2, 2)), 2).reshape(4, 2, 4).astype(np.float32)
SMALL = {"image": IMAGES, "mask": MASKS, "boxes": BOXES, "target": np.asarray(one_hot(LABELS, 5))}


@pytest.mark.parametrize("name", with_slow(DRAWS, repeats=("coloured crop",)))
def test_a_function_of_the_key_and_the_position(name):
    companions, options = DRAWS[name]
    batch = {key: SMALL[key] for key in ("image", *companions)}
    whole = run(batch, **options)
    assert np.abs(run(batch, jax.random.key(1), **options)["image"] - whole["image"]).max() > 0.1
    assert np.abs(run(batch, first=4, **options)["image"] - whole["image"]).max() > 0.1
    for result, chosen in (
        (run({key: values[2:] for key, values in batch.items()}, first=2, **options), slice(2, 4)),
        (run({key: np.concatenate([values[:2], values[:2]]) for key, values in batch.items()}, **options), slice(0, 2)),
    ):
        for key in result:
            part = result[key] if len(result[key]) == 2 else result[key][:2]
            np.testing.assert_allclose(part, whole[key][chosen], atol=1e-4)


def test_draws_do_not_depend_on_each_other():
    """Turning an option on leaves the draws of the others as they are."""
    flips = run({"image": IMAGES, "mask": MASKS}, flip=True)["mask"]
    for options in (dict(colour=0.2), dict(cutout=3)):
        np.testing.assert_array_equal(run({"image": IMAGES, "mask": MASKS}, flip=True, **options)["mask"], flips)
    for alone in (True, False):
        keys = examples.draw_keys(KEY, alone=alone)
        assert len({tuple(jax.random.key_data(each).tolist()) for each in keys.values()}) == len(keys)
    zoomed = dict(scale=0.5, crop=(8, 10))
    boxes = [run({key: SMALL[key] for key in ("image", "boxes")}, **zoomed, rotate=angle)["boxes"] for angle in (0.0, 1e-3)]
    np.testing.assert_allclose(*boxes, atol=1e-2)


def test_draws_of_earlier_runs_are_kept():
    """These numbers were recorded before images, masks and boxes shared their augmentation; runs must be reproducible."""
    alone = run({"image": IMAGES, "target": SMALL["target"]}, first=3, **DRAWS["alone"][1])
    expected = [
        [-0.24018390476703644, 0.813630223274231, 0.11645442992448807],
        [-0.12790216505527496, -0.6018653512001038, 0.27834197878837585],
        [-0.10046689957380295, 0.6184585094451904, -0.4597325325012207],
        [0.1418125331401825, -0.1086544618010521, -0.019056180492043495],
    ]
    np.testing.assert_allclose(alone["image"][:, 5, ::4, 1], expected, atol=1e-5)
    np.testing.assert_allclose(alone["target"][:, 0], [0.88017195, 0.05982801, 0.02, 0.02], atol=1e-6)
    together = run({"image": IMAGES, "mask": MASKS}, first=3, crop=(8, 10), scale=0.5, flip=True, colour=0.3)
    expected = [
        [0.7625761032104492, 0.6726762652397156, 0.1441589742898941],
        [0.26676759123802185, 0.4478013515472412, -0.5069812536239624],
        [-0.4183015823364258, 0.7998230457305908, -0.04524512216448784],
        [0.01425117440521717, 0.1403980404138565, -0.16486266255378723],
    ]
    np.testing.assert_allclose(together["image"][:, 4, ::4, 1], expected, atol=1e-5)
    rows = [[0, 5, 5, 2, 0, 0, 1, 0, 0, 4], [1, 4, 5, 1, 5, 4, 4, 4, 1, 1], [5, 4, 4, 4, 3, 2, 1, 2, 2, 3], [4, 5, 0, 1, 1, 5, 5, 4, 4, 2]]
    np.testing.assert_array_equal(together["mask"][:, 4], rows)


@pytest.mark.parametrize("name", ["alone", "together"])
def test_a_sharded_batch_stays_where_it_is(name):
    companions, options = DRAWS[name]
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    batch = {key: SMALL[key] for key in ("image", *companions)}
    spread = jax.device_put(batch, sharding)
    step = jax.jit(lambda key, batch: augment(key, batch, options), out_shardings=sharding).lower(KEY, spread).compile()
    # The loop that draws from a Beta distribution asks all devices whether it is done: an all-reduce of one bool.
    assert not {"all-gather", "collective-permute", "all-to-all"} & set((step.as_text() or "").replace("(", " ").split())
    result = step(KEY, spread)
    for key, values in run(batch, **options).items():
        np.testing.assert_allclose(result[key], values, atol=1e-4)


# Volumes


def test_a_rotation_of_volumes_is_that_of_scipy():
    rotation = geometry.random_rotation(jax.random.key(3), degrees=40.0, scale=0.3, axes=3)
    matrix = np.asarray(rotation.matrix, np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(matrix) == pytest.approx(1) and np.abs(matrix[~np.eye(3, dtype=bool)]).min() > 0.05
    volume = RNG.normal(size=(9, 11, 8, 2)).astype(np.float32)
    centre, turn = (np.array(volume.shape[:3]) - 1) / 2, matrix / float(rotation.zoom)
    found = geometry.read_linear(jnp.asarray(volume), rotation.coordinates(volume.shape[:3]))
    for channel in range(2):
        expected = ndimage.affine_transform(volume[..., channel], turn, centre - turn @ centre, order=1, mode="nearest")  # pyright: ignore
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-4)


def test_axes_are_flipped_one_by_one_with_their_mask():
    volumes = {"image": RNG.integers(0, 256, (24, 3, 4, 5, 1), np.uint8), "mask": RNG.integers(0, 9, (24, 3, 4, 5)).astype(np.uint8)}
    result, seen = run(volumes, flip_axes=(0, 2)), set()
    for i in range(24):
        turns = [(a, c) for a in (1, -1) for c in (1, -1) if np.array_equal(volumes["mask"][i][::a, :, ::c], result["mask"][i])]
        (a, c) = turns[0]
        np.testing.assert_array_equal(pixel_values(result["image"][i]), volumes["image"][i][::a, :, ::c])
        seen.add((a, c))
    assert len(seen) == 4


def test_noise_of_a_random_deviation():
    images = np.zeros((40, 16, 16, 1), np.float32)
    result = run({"image": images, "mask": np.ones((40, 16, 16), np.uint8)}, noise=0.1)
    deviations = result["image"].std((1, 2, 3)) / 2
    assert deviations.max() < 0.115 and 0.03 < deviations.mean() < 0.07 and deviations.min() < 0.02
    assert np.abs(result["image"].mean()) < 0.01 and (result["mask"] == 1).all()


@pytest.mark.parametrize("options", [dict(scale=0.5), dict(scale=0.5, rotate=20.0, crop=(6, 8, 9)), dict(crop=(4, 12, 7), crop_padding=1)])
def test_the_mask_of_a_moved_volume_is_the_moved_mask(options):
    masks = np.kron(RNG.integers(0, 2, (6, 3, 3, 3)), np.ones((1, 3, 3, 3), int)).astype(np.int32)
    result = run({"image": (2.0 * masks[..., None] - 1).astype(np.float32), "mask": masks}, **options)
    inside = result["mask"] != 255
    assert result["image"].shape[1:4] == result["mask"].shape[1:] == options.get("crop", (9, 9, 9))
    assert (result["image"][..., 0][~inside] == 0).all()
    assert ((result["image"][..., 0] > 0) == (result["mask"] == 1))[inside].mean() > 0.9


def test_volumes_alone():
    volumes = RNG.integers(0, 256, (6, 4, 9, 9, 2), np.uint8)
    result = run({"image": volumes}, crop_padding=1, flip=True)["image"]
    padded = np.pad(volumes, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)), mode="edge")
    for i in range(6):
        windows = [
            padded[i, d : d + 4, r : r + 9, c : c + 9][:, :, ::m] for d, r, c, m in itertools.product(range(3), range(3), range(3), (1, -1))
        ]
        assert any(np.array_equal(window, pixel_values(result[i])) for window in windows)
    result = run({"image": volumes}, rotate=20.0, scale=0.2, cutout=3)["image"]
    assert result.shape == volumes.shape
    assert np.isfinite(result).all() and np.abs(result).max() <= 1 + 1e-5


# Pixels and targets


def test_colour_by_hand(monkeypatch):
    image = RNG.uniform(-0.5, 0.5, (4, 5, 3)).astype(np.float32)
    for factors, expected in (
        ((1.2, 1, 1), (image + 1) * 1.2 - 1),
        ((1, 0.5, 1), image.mean() + (image - image.mean()) * 0.5),
        ((1, 1, 0), np.repeat(image.mean(-1, keepdims=True), 3, -1)),
    ):
        monkeypatch.setattr(jax.random, "uniform", lambda *_, factors=factors, **__: jnp.asarray(factors, jnp.float32))
        np.testing.assert_allclose(pixels.random_colour(KEY, jnp.asarray(image), strength=0.5), expected, atol=1e-5)


@pytest.mark.parametrize("companions", [(), ("mask", "boxes")])
def test_colour_stays_in_range_and_moves_nothing(companions):
    batch = {key: SMALL[key] for key in ("image", *companions)}
    result = run(batch, colour=1.0)
    assert np.abs(result["image"]).max() <= 1
    assert np.abs(result["image"] - run(batch)["image"]).max() > 0.1
    for key in companions:
        np.testing.assert_array_equal(result[key], SMALL[key])


def test_cutout_is_one_square_at_every_position():
    image = jnp.ones((11, 9, 3))
    cut = np.asarray(jax.vmap(lambda key: pixels.cutout(key, image, side=4))(jax.random.split(KEY, 300)))[..., 0] == 0
    assert cut.sum((1, 2)).max() == 16
    assert cut.any(0).all()
    for mask in cut[:20]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert max(len(rows), len(columns)) <= 4


def test_cutout_keeps_masks_and_boxes():
    result = run(SCENES, cutout=20)
    assert ((result["image"] == 0).all(-1).sum((1, 2)) >= 100).all()
    for name in ("mask", "boxes", "box_mask"):
        np.testing.assert_array_equal(result[name], SCENES[name])


def test_mixup_mixes_neighbours_and_their_targets_alike():
    images, targets = IMAGES.astype(np.float32), SMALL["target"]
    mixed, mixed_targets = pixels.mixup(jax.random.split(KEY, 4), jnp.asarray(images), jnp.asarray(targets), alpha=0.4)
    for i in range(4):
        own = float(mixed_targets[i, LABELS[i]])
        assert own >= 0.5 - 1e-6
        np.testing.assert_allclose(mixed[i], own * images[i] + (1 - own) * images[i ^ 1], rtol=1e-4, atol=1e-3)


def test_label_smoothing():
    np.testing.assert_allclose(one_hot(jnp.array([1]), 4, 0.2), [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)
    result = run({"image": IMAGES, "target": SMALL["target"]}, label_smoothing=0.2)["target"]
    np.testing.assert_allclose(result, one_hot(LABELS, 5, 0.2), rtol=1e-6)


def test_another_ignored_label():
    masks = run({"image": SCENES["image"], "mask": SCENES["mask"].astype(np.int32)}, ignored=-1, crop=(50, 61))["mask"]
    assert masks.dtype == np.int32
    assert set(np.unique(masks)) == {-1, *np.unique(SCENES["mask"])}


# Options and errors


def test_the_keys():
    assert {**GEOMETRY_KEYS, **MASK_KEYS, **COLOUR_KEYS, **CLASS_KEYS} == AUGMENT_KEYS
    for name, key in AUGMENT_KEYS.items():
        assert not key.default, name  # off
        assert key.meaning.endswith(".")
        key.check(name, key.default)


def test_options_are_those_of_a_config():
    config = ConfigDict({"crop": (6, 7), "flip": True})
    np.testing.assert_array_equal(
        augment(KEY, {"image": IMAGES}, config)["image"], augment(KEY, {"image": IMAGES}, config.to_dict())["image"]
    )


NAMES = "('crop_padding', 'flip', 'rotate', 'scale', 'crop', 'flip_axes', 'noise', 'colour', 'cutout', 'mixup', 'label_smoothing')"
ERRORS = {
    "unknown": ({}, {"rotat": 3.0}, f'config.augment.rotat is unknown; use one of {NAMES}. Did you mean "rotate"?'),
    "range": ({}, {"rotate": 200.0}, "config.augment.rotate=200.0 is out of range; give a number from 0 to 180."),
    "negative": ({}, {"crop_padding": -1}, "config.augment.crop_padding=-1 is out of range; give a number of 0 or more."),
    "crop": ({}, {"crop": (9,)}, "config.augment.crop=(9,) must be (height, width) in pixels, or () for the size of the image."),
    "empty crop": ({}, {"crop": (0, 9)}, "config.augment.crop=(0, 9) must be (height, width) in pixels, or () for the size of the image."),
    "crop of a volume": (
        {"image": np.zeros((2, 3, 4, 5, 1), np.uint8)},
        {"crop": (3, 4)},
        "config.augment.crop=(3, 4) must be (depth, height, width) in pixels, or () for the size of the image.",
    ),
    "flip_axes": ({}, {"flip_axes": (2,)}, "config.augment.flip_axes=(2,) must be different axes of space, from 0 to 1."),
    "flipped twice": ({}, {"flip_axes": (1, 1)}, "config.augment.flip_axes=(1, 1) must be different axes of space, from 0 to 1."),
    "flipped boxes": (
        {"boxes": BOXES},
        {"flip_axes": (0,)},
        "config.augment.flip_axes=(0,) does not move boxes; set it to (), or use flip.",
    ),
    "mixup of masks": ({"mask": MASKS}, {"mixup": 0.2}, "config.augment.mixup=0.2 cannot mix masks or boxes; set it to 0."),
    "mixup of boxes": ({"boxes": BOXES}, {"mixup": 0.2}, "config.augment.mixup=0.2 cannot mix masks or boxes; set it to 0."),
    "mixup alone": ({}, {"mixup": 0.2}, 'config.augment.mixup=0.2 applies to targets, but the batch has no "target"; set it to 0.'),
    "smoothing alone": (
        {},
        {"label_smoothing": 0.1},
        'config.augment.label_smoothing=0.1 applies to targets, but the batch has no "target"; set it to 0.',
    ),
    "odd batch": (
        {"image": IMAGES[:3], "target": SMALL["target"][:3]},
        {"mixup": 0.2},
        "mixup: a batch of 3 on one device cannot be paired; use an even batch size per device.",
    ),
    "rank": (
        {"image": IMAGES[0]},
        {},
        'augment: batch["image"] is uint8 (11, 9, 3); give uint8 or float images (batch, height, width, channels) or '
        "volumes (batch, depth, height, width, channels).",
    ),
    "integers": (
        {"image": IMAGES.astype(np.int32)},
        {},
        'augment: batch["image"] is int32 (4, 11, 9, 3); give uint8 or float images (batch, height, width, channels) or '
        "volumes (batch, depth, height, width, channels).",
    ),
    "mask shape": (
        {"mask": MASKS[:, :5]},
        {},
        'augment: batch["mask"] is uint8 (4, 5, 9), which does not fit images (4, 11, 9, 3); give integers (batch, *space).',
    ),
    "mask dtype": (
        {"mask": MASKS.astype(np.float32)},
        {},
        'augment: batch["mask"] is float32 (4, 11, 9), which does not fit images (4, 11, 9, 3); give integers (batch, *space).',
    ),
    "ignored": (
        {"mask": MASKS.astype(np.int8)},
        {},
        "augment: ignored=255 is out of range for masks of int8; convert the masks to int32.",
    ),
    "boxes": (
        {"boxes": BOXES[..., :3]},
        {},
        'augment: batch["boxes"] is float32 (4, 2, 3), which does not fit images (4, 11, 9, 3); give floats (batch, boxes, 4).',
    ),
    "integer boxes": (
        {"boxes": BOXES.astype(np.int32)},
        {},
        'augment: batch["boxes"] is int32 (4, 2, 4), which does not fit images (4, 11, 9, 3); give floats (batch, boxes, 4).',
    ),
    "box mask": (
        {"boxes": BOXES, "box_mask": np.ones((4, 3), bool)},
        {},
        'augment: batch["box_mask"] is bool (4, 3), which does not fit images (4, 11, 9, 3); give bool (batch, boxes).',
    ),
    "box mask alone": (
        {"box_mask": np.ones((4, 3), bool)},
        {},
        'augment: the batch has a "box_mask" but no "boxes"; add the boxes or leave out the "box_mask".',
    ),
    "boxes of volumes": (
        {"image": IMAGES[None], "boxes": BOXES[:1]},
        {},
        'augment: boxes are two-dimensional and cannot accompany volumes; use a "mask" instead.',
    ),
    "target": (
        {"target": LABELS.astype(np.float32)},
        {},
        'augment: batch["target"] is float32 (4,), which does not fit images (4, 11, 9, 3); give floats (batch, classes).',
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    batch, options, text = ERRORS[name]
    with pytest.raises(UserError) as caught:
        augment(KEY, {"image": IMAGES, **batch}, options)
    assert str(caught.value) == text
