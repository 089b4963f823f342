"""Degradations equal those of other programs: PIL's bicubic interpolation and its JPEG; noise has the deviation that is asked for."""

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dilax.inference import enlarged
from train.data import degradations, jpeg

RNG = np.random.default_rng(0)


def picture(height: int, width: int, channels: int) -> np.ndarray:
    """Smooth waves with edges and texture, whole numbers from 0 to 255."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / (3 + i)) + np.cos(columns / (5 - i)) + (columns > width // 2) for i in range(channels)], -1)
    return np.clip(np.round(110 + 45 * waves + RNG.normal(0, 6, waves.shape)), 0, 255).astype(np.float32)


def by_pil(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each channel resized bicubically in float32, with antialiasing where it gets smaller."""
    channels = [Image.fromarray(image[..., i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(image.shape[-1])]
    return np.stack([np.asarray(channel) for channel in channels], -1)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_resolution_is_lost_bicubically(scale):
    image = picture(24, 36, 3)
    small = np.clip(np.round(by_pil(image, 24 // scale, 36 // scale)), 0, 255)
    found = degradations.shrunk(jnp.asarray(image[None]), scale)[0]
    assert np.mean(np.asarray(found) != small) < 0.01  # of the values next to a half
    np.testing.assert_allclose(enlarged(jnp.asarray(small[None]), scale)[0], by_pil(small, 24, 36), atol=1e-3)
    options = ConfigDict({"degradation": "super_resolution", "scale": scale})
    whole = degradations.degraded(jnp.asarray(image[None]), options, jnp.zeros((1, 24, 36, 3)))
    np.testing.assert_allclose(whole, enlarged(found[None], scale), atol=1e-3)
    assert degradations.grid(options) == scale


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [5, 10, 40, 75, 100])
def test_jpeg_is_that_of_libjpeg(quality, channels):
    image = picture(64, 80, channels)
    file = io.BytesIO()
    pixels = image.astype(np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, "JPEG", quality=quality, subsampling=0)
    with Image.open(file) as opened:
        expected = np.asarray(opened, np.float32).reshape(image.shape)
        tables: Any = opened.__dict__["quantization"]  # row by row
        steps = [np.reshape(tables[min(i, 1)], (8, 8)) for i in range(channels)]
    np.testing.assert_array_equal(jpeg.tables(quality, channels), np.stack(steps, -1))
    found = np.asarray(jpeg.compressed(jnp.asarray(image[None]), quality)[0])
    assert found.min() >= 0 and found.max() <= 255 and (found == np.round(found)).all()
    # libjpeg computes with whole numbers, which now and then rounds a coefficient to the other side.
    assert np.mean(np.abs(found - expected) > 1) < 0.1
    errors = [np.mean((each - image) ** 2) for each in (found, expected)]
    assert abs(10 * np.log10((errors[0] + 1) / (errors[1] + 1))) < 0.15


def test_noise_has_its_deviation_and_belongs_to_the_place():
    seeds, places = jnp.array([7, 7, 8]), jnp.array([[0, 0], [10, 20], [0, 0]])
    noise = np.asarray(jax.jit(lambda: degradations.fixed_noise(seeds, places, (40, 50, 3), 25.0))())
    assert abs(noise.mean()) < 1 and noise.std() == pytest.approx(25, rel=0.02)
    np.testing.assert_array_equal(noise[0, 10:, 20:], noise[1, :30, :30])
    for other in (noise[2], noise[0, ::-1], noise[0, :, ::-1], np.roll(noise[0], 1, -1)):
        assert abs(np.corrcoef(noise[0].ravel(), other.ravel())[0, 1]) < 0.05
    drawn = degradations.drawn_noise(jax.random.split(jax.random.key(1), 2), (40, 50, 1), jnp.array([5.0, 50.0]))
    np.testing.assert_allclose(np.asarray(drawn).std((1, 2, 3)), [5, 50], rtol=0.05)


def test_eight_bits_are_those_of_a_file():
    assert degradations.as_uint8(np.array([-3.0, 0.4, 0.6, 254.7, 300.0])).tolist() == [0, 0, 1, 255, 255]
