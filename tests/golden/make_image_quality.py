"""Generate the fixture of tests/test_image_quality.py: `python tests/golden/make_image_quality.py`. Requires scikit-image.

image_quality.npz holds pairs of images, and what scikit-image says of them in float64: PSNR, SSIM with the Gaussian window, and luminance.
"""

from pathlib import Path

import numpy as np

# name: (shape, noise, border)
CASES = {
    "grey": ((24, 31, 1), 0.08, 0),
    "flat": ((20, 20, 1), 0.002, 0),
    "colour": ((19, 26, 3), 0.15, 0),
    "border": ((30, 22, 3), 0.05, 3),
}


def pair(shape: tuple[int, int, int], noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth waves, and the same with noise, (height, width, channels) in 0..1."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(rows * rng.uniform(0.1, 1)) + np.cos(columns * rng.uniform(0.1, 1)) for _ in range(shape[2])]
    clean = np.clip(0.5 + (0.22 if noise > 0.01 else 0.001) * np.stack(waves, -1), 0, 1)
    return clean.astype(np.float32), np.clip(clean + noise * rng.normal(size=shape), 0, 1).astype(np.float32)


def main() -> None:
    from skimage.color import rgb2ycbcr  # pyright: ignore[reportMissingImports]
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # pyright: ignore[reportMissingImports]

    arrays = {}
    for seed, (name, (shape, noise, border)) in enumerate(CASES.items()):
        images = [image.astype(np.float64) for image in pair(shape, noise, seed)]
        light = [rgb2ycbcr(image)[..., 0] / 255 if shape[2] == 3 else image[..., 0] for image in images]
        cut = [image[border : shape[0] - border, border : shape[1] - border] for image in light]
        options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)
        values = (peak_signal_noise_ratio(*cut, data_range=1), structural_similarity(*cut, **options))
        arrays |= {f"{name}.clean": images[0], f"{name}.noisy": images[1], f"{name}.light": light[1], f"{name}.scores": np.array(values)}
    kept = {key: value if key.endswith("scores") else value.astype(np.float32) for key, value in arrays.items()}
    np.savez_compressed(Path(__file__).with_name("image_quality.npz"), **kept)


if __name__ == "__main__":
    main()
