"""Classify images with a run's best parameters: `python -m train.predict --workdir runs/digits image.png ...`."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dilax.errors import UserError
from train import cli
from train.data.sources import decode
from train.run import Trained, load_trained
from train.step import Steps


def classifier(steps: Steps, variables: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 images (n, height, width, channels) to probabilities (n, classes)."""
    run = jax.jit(lambda variables, images: jax.nn.softmax(steps.logits(variables, images)))
    return lambda images: np.asarray(run(variables, images))


def read_image(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Read an image file as training did: its shorter side scaled, the middle cropped, grey or RGB.

    Raises:
        UserError: if the file is missing or no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width, channels = shape
    try:
        if height == width:
            return decode(pathlib.Path(path), channels, height)
        image = decode(pathlib.Path(path), channels, 0)
    except (OSError, UnidentifiedImageError) as error:
        reason = "it is no image that Pillow can read" if isinstance(error, UnidentifiedImageError) else error.strerror or str(error)
        raise UserError(f"{path}: {reason}; give a PNG, JPEG or other image file.") from error
    fitted = ImageOps.fit(Image.fromarray(image.squeeze()), (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(shape)


def predict(trained: Trained, paths: list[str]) -> list[tuple[str, str, float]]:
    """Return (path, class, probability) for each file; every file is read before the first is classified."""
    images = [read_image(path, trained.image_shape) for path in paths]
    classify = classifier(trained.setup.steps, trained.variables)
    rows = []
    for path, image in zip(paths, images):
        probabilities = classify(image[None])[0]
        best = int(probabilities.argmax())
        rows.append((path, trained.class_names[best], float(probabilities[best])))
    return rows


def main() -> None:
    """Print one line for each file: path, class, probability."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("images", nargs="+", metavar="image", help="image files")
    args = parser.parse_args()
    for path, name, probability in predict(load_trained(args.workdir.absolute()), args.images):
        print(f"{path}\t{name}\t{probability:.4f}")


if __name__ == "__main__":
    cli.run(main)
