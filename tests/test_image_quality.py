"""PSNR, SSIM and luminance equal those of scikit-image, of which tests/golden/make_image_quality.py keeps a few results."""

import importlib.util
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_image_quality as golden

from dilax import metrics
from dilax.errors import UserError

# In one program each, which compiles faster than one operation after the other.
PSNR, SSIM = (jax.jit(each, static_argnames="border") for each in (metrics.psnr, metrics.ssim))
MAP, LIGHT = jax.jit(metrics.ssim_map), jax.jit(metrics.luminance)
FILE = pathlib.Path(golden.__file__).with_name("image_quality.npz")


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return dict(file)


@pytest.mark.parametrize("name", golden.CASES)
def test_scores_equal_those_of_scikit_image(name, arrays):
    clean, noisy = (LIGHT(jnp.asarray(arrays[f"{name}.{key}"][None])) for key in ("clean", "noisy"))
    np.testing.assert_allclose(noisy[0, ..., 0], arrays[f"{name}.light"], atol=1e-6)
    border = golden.CASES[name][2]
    psnr, ssim = arrays[f"{name}.scores"]
    np.testing.assert_allclose(PSNR(noisy, clean, border=border), [psnr], atol=1e-3)
    np.testing.assert_allclose(SSIM(noisy, clean, border=border), [ssim], atol=2e-5)


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_scores_of_random_images(channels, seed):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # pyright: ignore[reportMissingImports]

    pairs = [golden.pair((16 + seed, 33, channels), 0.03 * (1 + i), 9 * seed + i) for i in range(2)]
    clean, noisy = (np.stack(each) for each in zip(*pairs))
    options: Any = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1)
    wide = [each.astype(np.float64) for each in (clean, noisy)]
    expected = [structural_similarity(*pair, **options) for pair in zip(*wide)]
    np.testing.assert_allclose(SSIM(jnp.asarray(noisy), jnp.asarray(clean)), expected, atol=2e-5)
    expected = [peak_signal_noise_ratio(*pair, data_range=1) for pair in zip(*wide)]
    np.testing.assert_allclose(PSNR(jnp.asarray(noisy), jnp.asarray(clean)), expected, atol=1e-3)


def test_the_map_is_where_windows_fit():
    clean, noisy = (jnp.asarray(image[None]) for image in golden.pair((15, 20, 3), 0.1, 4))
    found = MAP(noisy, clean)
    assert found.shape == (1, 5, 10, 3)
    # A pixel depends on a window of 11 x 11 alone.
    changed = MAP(noisy.at[0, 4, 4].set(0.9), clean)
    different = np.asarray(changed != found).any((0, 3))
    assert different[:, :5].all() and not different[:, 5:].any()  # pyright: ignore


def test_equal_images_are_without_error():
    clean = jnp.asarray(golden.pair((12, 12, 1), 0.1, 5)[0][None])
    assert float(PSNR(clean, clean)[0]) == np.inf
    np.testing.assert_allclose(SSIM(clean, clean), 1, atol=1e-6)


X = jnp.zeros((1, 12, 14, 3))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: metrics.luminance(X[..., :2]), "luminance: images of shape (1, 12, 14, 2) must be (batch, height, width, 1 or 3)."),
        (
            lambda: metrics.psnr(X, X[:, :11]),
            "psnr: images of shape (1, 12, 14, 3) and targets of shape (1, 11, 14, 3) must have one shape, (batch, height, width, channels).",
        ),
        (
            lambda: metrics.psnr(X, X, border=6),
            "psnr: of images of 12 x 14 pixels, border=6 leaves less than 1 x 1; give larger images, or a smaller border.",
        ),
        (
            lambda: metrics.ssim(X, X, border=1),
            "ssim: of images of 12 x 14 pixels, border=1 leaves less than 11 x 11; give larger images, or a smaller border.",
        ),
        (lambda: metrics.ssim(X, X, border=-1), "ssim: border=-1 is below 0; use 0 or more."),
    ],
)
def test_mistakes_are_one_line(call, text):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value) == text
