"""Augmentation: what each does to an image, and that example i depends on its place in the whole batch alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from train.data import augment as aug

KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 11, 9, 3), np.uint8))
LABELS = jnp.arange(8) % 5
OFF = dict(crop_padding=0, flip=False, rotate=0.0, scale=0.0, cutout=0, mixup=0.0, label_smoothing=0.0)
EACH = {
    "crop_padding": dict(crop_padding=3),
    "flip": dict(flip=True),
    "affine": dict(rotate=20.0, scale=0.2),
    "cutout": dict(cutout=4),
    "mixup": dict(mixup=0.4),
    "all": dict(crop_padding=3, flip=True, rotate=20.0, scale=0.2, cutout=4, mixup=0.4, label_smoothing=0.1),
}


def apply(key=KEY, images=IMAGES, labels=LABELS, first=0, **options):
    return jax.jit(lambda key, images, labels, first: aug.augment(key, images, labels, ConfigDict({**OFF, **options}), 5, first))(
        key, images, labels, first
    )


def test_off_only_scales():
    images, targets = apply()
    np.testing.assert_allclose(images, np.asarray(IMAGES, np.float32) / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(5)[np.asarray(LABELS)])


@pytest.mark.parametrize("name", EACH)
def test_a_function_of_key_and_place(name):
    images, targets = apply(**EACH[name])
    again, _ = apply(**EACH[name])
    np.testing.assert_array_equal(images, again)
    other, _ = apply(jax.random.key(1), **EACH[name])
    assert np.abs(other - images).max() > 0.1
    part, part_targets = apply(images=IMAGES[4:], labels=LABELS[4:], first=4, **EACH[name])
    np.testing.assert_allclose(part, images[4:], atol=1e-4)
    np.testing.assert_allclose(part_targets, targets[4:], atol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)


def test_random_crop_is_a_shift_of_the_edge_padded_image():
    keys, seen = jax.random.split(KEY, 60), set()
    padded = np.pad(np.asarray(IMAGES[0]), ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = {(r, c): padded[r : r + 11, c : c + 9] for r in range(5) for c in range(5)}
    for image in np.asarray(jax.vmap(lambda key: aug.random_crop(key, IMAGES[0], 2))(keys)):
        seen |= {place for place, window in windows.items() if np.array_equal(window, image)}
    assert len(seen) > 15


def test_random_flip_flips_half():
    flipped = np.asarray(jax.vmap(lambda key: aug.random_flip(key, IMAGES[0]))(jax.random.split(KEY, 200)))
    mirrored = [np.array_equal(image, IMAGES[0][:, ::-1]) for image in flipped]
    assert 70 < sum(mirrored) < 130
    assert all(np.array_equal(image, IMAGES[0]) for image, is_mirrored in zip(flipped, mirrored) if not is_mirrored)


def test_affine_of_nothing_is_nothing_and_of_90_degrees_a_quarter_turn(monkeypatch):
    image = jnp.asarray(np.random.default_rng(1).normal(size=(9, 9, 2)), jnp.float32)
    np.testing.assert_allclose(aug.random_affine(KEY, image, 0.0, 0.0), image, atol=1e-5)
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: jnp.ones(()))
    turned = aug.random_affine(KEY, image, 90.0, 0.0)
    assert any(np.allclose(turned, np.rot90(image, k), atol=1e-4) for k in (1, 3))
    zoomed = aug.random_affine(KEY, image, 0.0, 1.0)  # twice as large: every second sample is the original's
    np.testing.assert_allclose(zoomed[4::2, 4::2], image[4:7, 4:7], atol=1e-5)


def test_cutout_is_one_square_at_every_place():
    image = jnp.ones((11, 9, 3))
    cut = np.asarray(jax.vmap(lambda key: aug.cutout(key, image, 4))(jax.random.split(KEY, 300)))[..., 0] == 0
    assert cut.sum((1, 2)).max() == 16
    assert cut.any(0).all()
    for mask in cut[:20]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert max(len(rows), len(columns)) <= 4


def test_mixup_mixes_neighbours_and_their_targets_alike():
    images, targets = IMAGES.astype(jnp.float32), aug.one_hot(LABELS, 5)
    mixed, mixed_targets = aug.mixup(jax.random.split(KEY, 8), images, targets, 0.4)
    for i in range(8):
        own = float(mixed_targets[i, LABELS[i]])
        assert own >= 0.5 - 1e-6
        np.testing.assert_allclose(mixed[i], own * images[i] + (1 - own) * images[i ^ 1], rtol=1e-4, atol=1e-3)


def test_label_smoothing():
    np.testing.assert_allclose(aug.one_hot(jnp.array([1]), 4, 0.2), [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)
