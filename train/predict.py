"""Predict with the best parameters of a run: `python -m train.predict --workdir runs/digits image.png ...`."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from dilax import plots
from dilax.errors import UserError
from train import cli, predict_sequences, predict_stream
from train.config import SEQUENCE_TASKS
from train.data.readers.images import naming
from train.data.readers.masks import nearest, resize, scaled_size
from train.data.source import decode
from train.evaluate import at_scales, read_scales
from train.predict_sequences import Options
from train.run import Trained, load_trained
from train.step import Steps


def classifier(steps: Steps, variables: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 images (n, height, width, channels) to probabilities (n, classes)."""
    run = jax.jit(lambda variables, images: jax.nn.softmax(steps.outputs(variables, {"image": images})))
    return lambda images: np.asarray(run(variables, images))


def segmenter(steps: Steps, variables: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 images (n, height, width, channels) to the likeliest class of each pixel, uint8 (n, height, width)."""
    run = jax.jit(lambda variables, images: steps.outputs(variables, {"image": images}).argmax(-1).astype(jnp.uint8))
    return lambda images: np.asarray(run(variables, images))


def read_image(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read an image file as training did: its shorter side scaled, the middle cropped, grey or RGB.

    Raises:
        UserError: if the file is missing or no image.
    """
    from PIL import Image, ImageOps

    height, width, channels = shape
    if height == width:
        return _decoded(path, channels, height)
    image = _decoded(path, channels, 0)
    fitted = ImageOps.fit(Image.fromarray(image.squeeze()), (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(shape)


def _decoded(path: str, channels: int, image_size: int) -> np.ndarray:
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: there is no such file; give a PNG, JPEG or other image file.")
    with naming(pathlib.Path(path)):
        return decode(pathlib.Path(path), channels, image_size)


def predict(trained: Trained, paths: list[str]) -> list[tuple[str, str, float]]:
    """Return (path, class, probability) for each file; every file is read before the first is classified."""
    images = [read_image(path, trained.input_shape) for path in paths]
    classify = classifier(trained.setup.steps, trained.variables)
    rows = []
    for path, image in zip(paths, images):
        probabilities = classify(image[None])[0]
        best = int(probabilities.argmax())
        rows.append((path, trained.class_names[best], float(probabilities[best])))
    return rows


def segment(trained: Trained, paths: list[str], folder: pathlib.Path, *, replace: bool = False) -> list[tuple[str, str, str]]:
    """Segment image files, scaled so that the longer side is config.data.image_size if that is set; the masks are of the files' own size.

    Args:
        trained: The run.
        paths: Image files; all are read before the first is segmented.
        folder: Where two files go for each image: NAME_overlay.png, the classes laid over it with a legend, and NAME_mask.png, the
            numbers of the classes as a palette image.
        replace: Whether files that are there already are replaced; the images themselves never are.

    Returns:
        (path, path of NAME_overlay.png, the classes with the greatest shares of the image) for each.

    Raises:
        UserError: if a file cannot be read, or one would be overwritten.
    """
    outputs = _outputs(paths, folder, replace)
    size, channels, names = trained.config.data.image_size, trained.input_shape[2], trained.class_names
    images = [_decoded(path, channels, 0) for path in paths]
    run = segmenter(trained.setup.steps, trained.variables)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for path, image, (overlay, mask_file) in zip(paths, images, outputs):
        mask = nearest(run(_longer_side(image, size)[None])[0], *image.shape[:2])
        plots.save(plots.segmentation_overlay(image, mask, names), overlay)
        _save_mask(mask, len(names), mask_file)
        shares = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
        words = [f"{names[i]} {shares[i]:.1%}" for i in np.argsort(-shares, kind="stable")[:3] if shares[i]]
        rows.append((path, str(overlay), ", ".join(words)))
    return rows


def _outputs(paths: list[str], folder: pathlib.Path, replace: bool) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Names of the overlay and the mask of each image, none twice."""
    found: list[tuple[pathlib.Path, pathlib.Path]] = []
    taken: set[pathlib.Path] = set()
    for path in paths:
        stem = pathlib.Path(path).stem
        while taken & {folder / f"{stem}_overlay.png", folder / f"{stem}_mask.png"}:
            stem += "_"
        found.append((folder / f"{stem}_overlay.png", folder / f"{stem}_mask.png"))
        taken |= set(found[-1])
    given = {pathlib.Path(path).resolve() for path in paths}
    for file in sorted(taken):
        if file.resolve() in given or (file.exists() and not replace):
            raise UserError(f"{file} is there already, and would be overwritten; give another folder with --out.")
    return found


def _longer_side(image: np.ndarray, size: int) -> np.ndarray:
    return resize(image, *scaled_size(image.shape[:2], size)) if size else image


def _save_mask(mask: np.ndarray, classes: int, path: pathlib.Path) -> None:
    from PIL import Image

    image = Image.fromarray(mask)
    image.putpalette(plots.mask_colours(classes).tobytes())
    image.save(path)


def main() -> None:
    """Print a line for each image (path, class, probability; of segmentation path, overlay, largest classes), or what a sequence gives."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--out", type=pathlib.Path, help="folder of pictures or sounds; default is predictions/ in that of the run")
    parser.add_argument("--scales", default="1", help="segmentation: sizes at which the model runs, averaged, such as 0.75,1,1.25")
    parser.add_argument("--flip", action="store_true", help="segmentation: also run it on mirrored images, averaged")
    parser.add_argument("--steps", type=int, default=200, help="sequences: symbols, samples or rows to add; default 200")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the draw of symbols and samples; 0 takes the likeliest")
    parser.add_argument("--top_k", type=int, default=0, help="draw among so many of the likeliest symbols; 0 is all")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw among the likeliest symbols that have this share together; 1 is all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--stream", action="store_true", help="texts, tables, sounds: read standard input, write as it comes")
    parser.add_argument("inputs", nargs="*", metavar="input", help="files of images, sounds, series or tables, or the beginnings of texts")
    args = parser.parse_args()
    if bool(args.inputs) == args.stream:
        cli.fail("give inputs, or --stream and none; see --help.")
    trained = load_trained(args.workdir.absolute())
    folder = args.out or args.workdir / "predictions"
    if trained.config.task != "segmentation":
        at_scales(trained.setup, read_scales(args.scales), args.flip)  # refuses both
    if trained.config.task in SEQUENCE_TASKS:
        options = _options(args, folder)
        if args.stream:
            predict_stream.write(predict_stream.stream(trained, cast(predict_stream.Bytes, sys.stdin.buffer), options))
        else:
            for line in predict_sequences.predict(trained, args.inputs, options):
                print(line, flush=True)
        return
    if args.stream:
        cli.fail("--stream is for runs on texts, tables and sounds; give files of images.")
    if trained.config.task == "segmentation":
        trained = dataclasses.replace(trained, setup=at_scales(trained.setup, read_scales(args.scales), args.flip))
        for row in segment(trained, args.inputs, folder, replace=args.out is None):
            print("\t".join(row))
        return
    for path, name, probability in predict(trained, args.inputs):
        print(f"{path}\t{name}\t{probability:.4f}")


def _options(args: argparse.Namespace, folder: pathlib.Path) -> Options:
    rules = {
        "steps": (args.steps >= 1, "at least 1"),
        "temperature": (args.temperature >= 0, "at least 0"),
        "top_k": (args.top_k >= 0, "at least 0"),
        "top_p": (0 < args.top_p <= 1, "above 0 and at most 1"),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            cli.fail(f"--{name}={getattr(args, name)} must be {rule}.")
    sampling = dict(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    return Options(args.steps, sampling, args.seed, folder, replace=args.out is None)


if __name__ == "__main__":
    cli.run(main)
