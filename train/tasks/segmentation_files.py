"""What segmentation shows in a report, and writes for the inputs of a prediction."""

import argparse
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dilax import Inference, inputs, plots
from dilax.volumes import SUFFIXES, read_volume, write_labels
from train.data.source import Source
from train.data.splits import Splits
from train.tasks import images
from train.tasks.base import Report, make_folder, output_files, report_table, table_lines
from train.tasks.segmentation_scores import image_scores, mean_dice

SAMPLED, WORST = 240, 6  # test images that the report chooses from, and shows
SAMPLED_VOLUMES, WORST_VOLUMES = 40, 3  # test volumes
Pictures = dict[str, tuple[str, Any]]


def show_images(inference: Inference, splits: Splits, pictures: Pictures, ignored: int) -> Report:
    """Return the report with pictures, and the worst test images after them."""
    names = splits.spec.outputs
    numbers, records = images.spread(splits.test, SAMPLED)
    pixels, truths = (np.stack([record[field] for record in records]) for field in ("image", "label"))
    predictions = images.in_parts(inference.segment, pixels, 8)
    ious = image_scores(truths, predictions, len(names), ignored)
    worst, files, scored = _ranked(splits.test, numbers, ious, WORST, "no labelled pixel")
    titles = [f"IoU {score}, {images.shorten(file)}" for score, file in zip(scored, files)]
    grid = plots.segmentation_grid(pixels[worst], truths[worst], predictions[worst], names, titles)
    heading = f"The worst of {len(pixels)} test images{_spread(len(pixels), len(splits.test))}"
    listed = report_table("Files of the worst test images", ("file", "mean intersection over union"), zip(files, scored))
    return images.image_report({**pictures, heading: ("worst", grid)}, inference, pixels, [listed])


def _ranked(test: Source, numbers: Sequence[int], scores: np.ndarray, most: int, unscored: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Return which of some test examples are the worst, those without a score last, the names of their files, and their scores in words."""
    worst = np.argsort(np.where(np.isnan(scores), 2, scores), kind="stable")[:most]
    words = [unscored if np.isnan(scores[i]) else f"{scores[i]:.3f}" for i in worst]
    return worst, [images.name_of(test, numbers[i]) for i in worst], words


def _spread(some: int, every: int) -> str:
    return "" if some == every else f", spread over all {every}"


def predict_images(inference: Inference, args: argparse.Namespace, options: Mapping[str, Any]) -> Iterator[str]:
    """Write NAME_overlay.png and NAME_mask.png, the class indices as a palette image of the file's own size, for each image.

    Yields the file, the path of the overlay and the classes with the largest shares of the image. The longer side is scaled to
    config.data.image_size, if that is set.

    Args:
        inference: The trained model.
        args: The flags of prediction.
        options: The other arguments of `dilax.Inference.segment_whole`.
    """
    files = output_files(args.inputs, ("_overlay.png", "_mask.png"), args.out, replace=args.replace, rename=True)
    names = inference.spec.outputs
    pixels = [inputs.to_pixels(path, inference.spec.input_shape[2]) for path in args.inputs]
    make_folder(args.out)

    def rows() -> Iterator[tuple[str, ...]]:
        for path, image, (overlay, mask_file) in zip(args.inputs, pixels, files):
            mask = inference.segment_whole(image, **options)
            plots.save(plots.segmentation_overlay(image, mask, names), overlay)
            _save_mask(mask, len(names), mask_file)
            shares = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
            words = [f"{names[i]} {shares[i]:.1%}" for i in np.argsort(-shares, kind="stable")[:3] if shares[i]]
            yield path, str(overlay), ", ".join(words)

    yield from table_lines(args, ("input", "overlay", "classes"), rows())


def _save_mask(mask: np.ndarray, classes: int, path: pathlib.Path) -> None:
    from PIL import Image

    image = Image.fromarray(mask)
    image.putpalette(plots.mask_colours(classes).tobytes())
    image.save(path)


def show_volumes(inference: Inference, splits: Splits, pictures: Pictures, ignored: int) -> Report:
    """Return the report with pictures, and slices of the worst test volumes after them."""
    names = splits.spec.outputs
    numbers, records = images.spread(splits.test, SAMPLED_VOLUMES)
    levels, truths = (np.stack([record[field] for record in records]) for field in ("image", "label"))
    predictions = images.in_parts(inference.segment, levels, 1)
    predictions = np.where(truths == ignored, ignored, predictions).astype(np.uint8)
    dices = np.array([mean_dice(truth, found, len(names)) for truth, found in zip(truths, predictions)])
    worst, files, scored = _ranked(splits.test, numbers, dices, WORST_VOLUMES, "no structure")
    titles = [f"Dice {score}, {images.shorten(file)}" for score, file in zip(scored, files)]
    grid = plots.volume_slices(
        levels[worst], truths[worst], predictions[worst], names, titles, spacing=[records[i]["spacing"] for i in worst]
    )
    heading = f"Slices of the worst of {len(levels)} test volumes{_spread(len(levels), len(splits.test))}"
    listed = report_table("Files of the worst test volumes", ("file", "mean Dice"), zip(files, scored))
    return images.image_report({**pictures, heading: ("worst", grid)}, inference, levels, [listed])


def predict_volumes(inference: Inference, args: argparse.Namespace, options: Mapping[str, Any]) -> Iterator[str]:
    """Write NAME_labels.nii.gz, the class indices of all voxels with the affine and the axes of the file, for each volume.

    Yields the file, the path of the labels and the volume of each class but the first, the background, in millilitres. Arguments are those
    of `predict_images`.
    """
    files = output_files(args.inputs, ("_labels.nii.gz",), args.out, replace=args.replace, rename=True, suffixes=SUFFIXES)
    names = inference.spec.outputs
    for path in args.inputs:  # every input is read before the first line
        inference.levels(read_volume(path).values, name=str(path))
    make_folder(args.out)

    def rows() -> Iterator[tuple[str, ...]]:
        for path, (file,) in zip(args.inputs, files):
            volume = read_volume(path)
            labels = inference.segment_whole(inference.levels(volume.values, name=str(path)), **options)
            write_labels(file, labels, volume)
            millilitres = np.bincount(labels.ravel(), minlength=len(names)) * np.prod(volume.spacing) / 1000
            yield path, str(file), ", ".join(f"{name} {size:.2f} ml" for name, size in zip(names[1:], millilitres[1:]) if size)

    yield from table_lines(args, ("input", "labels", "volumes"), rows())
