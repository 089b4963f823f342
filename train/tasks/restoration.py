"""Restoration of degraded images: noise, lost resolution and JPEG artefacts, made from clean images while training."""

import argparse
import functools
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dilax import DataSpec, Inference, UserError, inputs, metrics, plots
from dilax.inference import model_arguments
from dilax.spec import from_float, to_float
from train.data import degradations
from train.data.augment import GEOMETRY_KEYS, augment, example_keys
from train.data.image_windows import cut_images, seed_of, trimmed
from train.data.readers.images import SUFFIXES
from train.data.readers.photographs import open_photographs, packaged_photographs
from train.data.source import field, gather
from train.data.splits import Splits
from train.keys import ON_BAD, UNLIMITED, Key, Keys, Reads
from train.tasks import images
from train.tasks.base import (
    Batch,
    Report,
    Scores,
    Shape,
    Sums,
    Task,
    add_inputs,
    make_folder,
    output_files,
    ratios,
    report_table,
    table_lines,
)
from train.tasks.portable import Answer
from train.tasks.restored_windows import LARGEST, SSIM_MARGIN, cut_of, image_scores, scored
from train.tasks.steps import check_name

_DEGRADATION = "restoration.degradation"
_NOISE = (_DEGRADATION, (degradations.NOISE,))
COLOURS = {1: ("grey",), 3: ("red", "green", "blue")}
SCORES = ("psnr_degraded", "psnr", "ssim_degraded", "ssim")
WORST, SHOWN = 6, 128  # test images that the report shows, and how many pixels of each along an axis


class Restoration(Task):
    """Learns clean images from degraded ones; scored by PSNR and SSIM of whole images, of their luminance if they are in colour."""

    name = "restoration"
    keys: ClassVar[Keys] = {
        "data.on_bad": ON_BAD,
        "data.test_dir": Key("", 'folder of the images of the test split; "" takes them from data.dir', may_change=True),
        "augment.flip": GEOMETRY_KEYS["augment.flip"],
        "augment.turn": Key(False, "Rotate each example by 0, 90, 180 or 270 degrees at random."),
        _DEGRADATION: Key(degradations.NOISE, "what images are restored from", choices=degradations.KINDS),
        "restoration.sigma": Key(25.0, "standard deviation of Gaussian noise, of colours from 0 to 255", (0, 255), needs=_NOISE),
        "restoration.blind": Key(
            (), "(lowest, highest) deviation, one of which is drawn for each training example; () trains on sigma alone", needs=_NOISE
        ),
        "restoration.scale": Key(2, "factor of super-resolution, 2, 3 or 4", (2, 4), needs=(_DEGRADATION, (degradations.RESOLUTION,))),
        "restoration.quality": Key(10, "quality of JPEG", (1, 100), needs=(_DEGRADATION, (degradations.JPEG,))),
        "restoration.loss": Key("l2", "mean of squared (l2) or absolute (l1) errors", choices=("l2", "l1")),
        "restoration.channels": Key(0, "1 reads images in grey, 3 in colour; 0 in grey if all of them are", (0, 3)),
        "restoration.crop": Key(40, "side of the squares that are cut at random to train on", (1, UNLIMITED)),
        "restoration.window": Key(
            0, f"side of the windows that images are read and scored in; 0 is that of the smallest image, up to {LARGEST}", (0, UNLIMITED)
        ),
    }
    reads: ClassVar[Reads] = {"photographs": (), "folder": ("data.dir", "data.test_dir", "data.on_bad")}
    best_by = "psnr"
    curves = ("loss", "psnr")
    spatial = ("image", "degraded")

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        """Refuse ranges of noise, channels and crops that mean nothing."""
        options: Any = config.restoration
        blind = tuple(options.blind)
        numbers = all(isinstance(value, int | float) and 0 <= value <= 255 for value in blind)
        if blind and (len(blind) != 2 or not numbers or blind[0] > blind[1]):
            raise UserError(f"config.restoration.blind={blind} must be (lowest, highest) deviation from 0 to 255, or ().")
        if options.channels == 2:
            raise UserError("config.restoration.channels=2 is neither grey nor colour; use 1 or 3, or 0 for that of the files.")
        side = degradations.grid(options)
        if options.crop % side:
            what = "scale" if options.degradation == degradations.RESOLUTION else "blocks of JPEG"
            raise UserError(
                f"config.restoration.crop={options.crop} is not a multiple of the {what}, {side}; choose "
                f"{max(1, options.crop // side) * side}."
            )

    @classmethod
    def open(cls, config: ConfigDict, like: DataSpec | None = None) -> Splits:
        """Open a folder of images and cut them into windows; whole images are held out."""
        given: Any = config
        name = check_name(config, tuple(cls.reads))
        validation = bool(given.data.validation)
        packaged = name == "photographs"
        opened = packaged_photographs(validation=validation) if packaged else open_photographs(given.data, seed=given.seed)
        pictures, grey, origin = opened
        channels = given.restoration.channels or (1 if grey else 3)
        cut = cut_of(config, channels, [picture for part in pictures.values() for picture in part])
        sources = {split: cut_images(part, cut, given.data.memory_mb) for split, part in pictures.items()}
        shape, train = (cut.window, cut.window, channels), sources["train"]
        scale = given.restoration.scale if given.restoration.degradation == degradations.RESOLUTION else 1
        spec = DataSpec(given.data.name, shape, COLOURS[channels], len(train), enlarged=scale)
        counts = ", ".join(f"{len(part)} {split}" for split, part in pictures.items())
        words = ("channels", f"windows of {cut.window} x {cut.window} pixels of {counts} images")
        return Splits(spec, train, sources.get("validation"), sources["test"], origin, words)

    @classmethod
    def count(cls, config: ConfigDict) -> tuple[int, int]:
        """Return the number of the training images of a config, and that of their windows, from the headers of the files."""
        trial: Any = config.copy_and_resolve_references()
        with trial.unlocked():
            trial.data.memory_mb, trial.data.validation = 0, 0.0
        train = cls.open(trial).train
        return len(np.unique(field(train, "number"))), len(train)

    def hub_task(self) -> str:
        """Images from images."""
        return "image-to-image"

    def output_shapes(self) -> tuple[Shape, ...]:
        """An image of the same shape."""
        return (self.spec.input_shape,)

    def augment(self, key: jax.Array, batch: Batch, first: Any) -> Batch:
        """Cut squares out of the windows, mirrored and turned, and degrade them."""
        options, size = self.config.restoration, len(batch["image"])
        crop = dict(crop=(options.crop,) * 2, flip=self.config.augment.flip)
        clean = augment(jax.random.fold_in(key, 0), {"image": batch["image"]}, crop, first=first)["image"]
        if self.config.augment.turn:
            keys = example_keys(jax.random.fold_in(key, 1), size, first)
            clean = jax.vmap(turned)(jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(keys), clean)
        clean = from_float(clean)
        noise = jnp.zeros_like(clean)
        if options.degradation == degradations.NOISE:
            low, high = map(float, options.blind or (options.sigma,) * 2)
            sigma = jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))
            keys, levels = (example_keys(jax.random.fold_in(key, part), size, first) for part in (2, 3))
            noise = degradations.drawn_noise(keys, clean.shape[1:], sigma(levels))
        return {"image": clean, "degraded": degradations.degraded(clean, options, noise)}

    def degraded(self, batch: Batch) -> jax.Array:
        """Return the degraded images of a batch, floats from 0 to 255 and beyond; the noise of a record never changes."""
        if "degraded" in batch:
            return batch["degraded"]
        clean, options = batch["image"].astype(jnp.float32), self.config.restoration
        noise = jnp.zeros_like(clean)
        if options.degradation == degradations.NOISE:
            noise = degradations.fixed_noise(batch["seed"], batch["place"], clean.shape[1:], options.sigma)
        return degradations.degraded(clean, options, noise)

    def inputs(self, batch: Batch, model: nn.Module) -> Batch:
        """Degraded images, black as -1 and white as 1."""
        return model_arguments(model, to_float(self.degraded(batch)))

    def losses(self, outputs: Any, batch: Batch) -> jax.Array:
        """Mean error of the pixels, of colours from 0 to 1."""
        return self._errors(outputs, batch).mean((1, 2, 3))

    def _errors(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        difference = (outputs + 1) / 2 - batch["image"].astype(jnp.float32) / 255
        return jnp.square(difference) if self.config.restoration.loss == "l2" else jnp.abs(difference)

    def sums(self, outputs: Any, batch: Batch) -> Sums:
        """The loss over the pixels that the windows are scored on."""
        counted = scored(batch, 0)[..., None]
        count = counted.sum(dtype=jnp.float32) * outputs.shape[-1]
        return {"loss": jnp.where(counted, self._errors(outputs, batch), 0.0).sum(), "count": count}

    def kept(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Of each window the number of its image, squared errors and similarities of the restored and the degraded image, and counts."""
        border = self._border()
        clean = metrics.luminance(batch["image"].astype(jnp.float32) / 255)
        pixels = scored(batch, border).astype(jnp.float32)
        places = scored(batch, border + SSIM_MARGIN)[:, SSIM_MARGIN:-SSIM_MARGIN, SSIM_MARGIN:-SSIM_MARGIN].astype(jnp.float32)
        found = {"number": batch["number"], "pixels": pixels.sum((1, 2)), "places": places.sum((1, 2))}
        for end, image in (("", from_float(outputs)), ("_degraded", self.degraded(batch))):
            shown = metrics.luminance(jnp.clip(jnp.round(image), 0, 255) / 255)  # as a file holds it
            found[f"error{end}"] = (jnp.square(shown - clean)[..., 0] * pixels).sum((1, 2))
            found[f"ssim{end}"] = (metrics.ssim_map(shown, clean)[..., 0] * places).sum((1, 2))
        return found

    def metrics(self, scores: Scores) -> dict[str, float]:
        """Means over the images of PSNR and SSIM, restored and degraded, and the loss."""
        return {**{name: float(values.mean()) for name, values in image_scores(scores.kept).items()}, **ratios(scores.sums, "loss")}

    def report(self, inference: Inference, splits: Splits, scores: Scores, folder: pathlib.Path) -> Report:
        """The worst test images before and after, and their scores."""
        found = image_scores(scores.kept)
        worst = np.argsort(found["psnr"], kind="stable")[:WORST]
        # Of each the window with the most errors per pixel.
        errors = scores.kept["error"] / np.maximum(scores.kept["pixels"], 1)
        chosen = np.array([max(np.flatnonzero(scores.kept["number"] == number), key=lambda i: errors[i]) for number in worst])
        batch = gather(splits.test, chosen)
        run = jax.jit(lambda variables, batch: (self.degraded(batch), self.outputs(inference.model, variables, batch)))
        degraded, restored = run(inference.variables, batch)
        files = [images.name_of(splits.test, int(i)) for i in chosen]
        titles = [f"{images.shorten(file)}, {_gain(found, number)}" for file, number in zip(files, worst)]
        first = max(0, (batch["image"].shape[1] - SHOWN) // 2)
        panels = (degradations.as_uint8(degraded), degradations.as_uint8(from_float(restored)), batch["image"])
        before, after, clean = (panel[:, first : first + SHOWN, first : first + SHOWN] for panel in panels)
        heading = f"The worst of {len(found['psnr'])} test images, and by how much they gain"
        pictures = {heading: ("worst", plots.restoration_grid(before, after, clean, titles))}
        rows = [(file, *_cells(found, number)) for file, number in zip(files, worst)]
        listed = report_table("Scores of these images", ("file", *SCORES), rows)
        return images.image_report(pictures, inference, panels[0], [listed])

    @classmethod
    def add_evaluation_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Another level of noise, another test set."""
        parser.add_argument("--sigma", type=float, metavar="S", help="standard deviation of the noise, if it is not that of the run")
        parser.add_argument("--test_dir", default="", metavar="FOLDER", help="folder of other images to test on")

    def with_flags(self, args: argparse.Namespace) -> "Restoration":
        """Evaluate at another level of noise, or on other images."""
        config: Any = self.config.copy_and_resolve_references()
        with config.unlocked():
            if args.sigma is not None:
                if config.restoration.degradation != degradations.NOISE:
                    raise UserError(f"--sigma={args.sigma:g} is for noise, and this run restores {_WORDS[config.restoration.degradation]}.")
                self.keys["restoration.sigma"].check("restoration.sigma", args.sigma)
                config.restoration.sigma = args.sigma
            config.data.test_dir = args.test_dir or config.data.test_dir
        return type(self)(config, self.spec)

    def answer(self, *, step: bool = False) -> Answer:
        """The restored image in 8 bits; of what is degraded, a program is given 8 bits, too, and the final size."""
        return Answer(
            "restored",
            lambda outputs, _: jnp.clip(jnp.round(from_float(outputs)), 0, 255).astype(jnp.uint8),
            to_float,
            lambda batch: degradations.as_uint8(self.degraded(jax.tree.map(jnp.asarray, batch))),
        )

    @classmethod
    def add_prediction_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Image files, degraded or clean."""
        parser.add_argument("--degrade", action="store_true", help="the files are clean: degrade them as in evaluation first, and compare")
        add_inputs(parser, "image files to restore, or folders of them")

    def input_suffixes(self) -> Collection[str]:
        """Those of images."""
        return SUFFIXES

    def predict(self, inference: Inference, args: argparse.Namespace) -> Iterator[str]:
        """Write NAME_restored.png for each image, in its own size or as many times larger as the run restores.

        With --degrade also NAME_degraded.png and NAME_comparison.png; the scores are those of the evaluation of the same image.
        """
        endings = ("_restored.png", *(("_degraded.png", "_comparison.png") if args.degrade else ()))
        files = output_files(args.inputs, endings, args.out, replace=args.replace, rename=True)
        # All are read first, so that nothing is written if one is not an image.
        pixels = [inputs.to_pixels(path, self.spec.input_shape[-1]) if args.degrade else inputs.to_colours(path) for path in args.inputs]
        for path, image in zip(args.inputs, pixels) if args.degrade else ():
            if min(trimmed(image.shape, degradations.grid(self.config.restoration))) < self._least():
                raise UserError(
                    f"{path} has {image.shape[0]} x {image.shape[1]} pixels, too few to be scored; give {self._least()} or more."
                )
        make_folder(args.out)

        def rows() -> Iterator[tuple[str, ...]]:
            for path, image, places in zip(args.inputs, pixels, files):
                if args.degrade:
                    restored, comparison, *scores = self._compare(inference, image, places)
                    named = scores if args.csv else [f"{name} {score}" for name, score in zip(SCORES, scores)]
                    yield path, restored, comparison, *named
                else:
                    _save(inference.restore(image), places[0])
                    yield path, str(places[0])

        columns = ("restored", "comparison", *SCORES) if args.degrade else ("restored",)
        yield from table_lines(args, ("input", *columns), rows())

    def _border(self) -> int:
        """Return the pixels along each edge that are not scored: the factor of super-resolution."""
        return self.spec.enlarged if self.spec.enlarged > 1 else 0

    def _least(self) -> int:
        """Return the pixels that an image needs along each axis to be scored."""
        return 2 * (SSIM_MARGIN + self._border()) + 1

    def _compare(self, inference: Inference, image: np.ndarray, files: list[pathlib.Path]) -> tuple[str, ...]:
        """Degrade an image, restore it, write both and a picture of the three; return cells of the table."""
        height, width = trimmed(image.shape, degradations.grid(self.config.restoration))
        clean = np.ascontiguousarray(image[:height, :width])
        seed, place = np.array([seed_of(clean)], np.int32), np.zeros((1, 2), np.int32)
        degraded = np.asarray(self.degraded({"image": jnp.asarray(clean[None]), "seed": seed, "place": place}))[0]
        restored, shown = inference.restore(degraded), degradations.as_uint8(degraded)
        border, found = self._border(), {}
        light = [metrics.luminance(jnp.asarray(each[None], jnp.float32) / 255) for each in (shown, restored, clean)]
        for end, before in (("_degraded", light[0]), ("", light[1])):
            found[f"psnr{end}"] = np.asarray(metrics.psnr(before, light[2], border=border))
            found[f"ssim{end}"] = np.asarray(metrics.ssim(before, light[2], border=border))
        _save(restored, files[0])
        _save(shown, files[1])
        picture = plots.restoration_grid(shown[None], restored[None], clean[None], [_gain(found, 0)])
        plots.save(picture, files[2])
        return str(files[0]), str(files[2]), *_cells(found, 0)


_WORDS = {degradations.NOISE: "noise", degradations.RESOLUTION: "small images", degradations.JPEG: "JPEG"}


def turned(quarters: jax.Array, image: jax.Array) -> jax.Array:
    """Return a square image (side, side, channels), rotated by as many quarters of a turn."""
    return jax.lax.switch(quarters, [functools.partial(jnp.rot90, k=k) for k in range(4)], image)


def _cells(found: dict[str, np.ndarray], number: int) -> tuple[str, ...]:
    """Return the scores of an image in words, decibels with two digits and similarities with four."""
    return tuple(f"{found[name][number]:.{2 if name.startswith('psnr') else 4}f}" for name in SCORES)


def _gain(found: dict[str, np.ndarray], number: int) -> str:
    return f"{found['psnr_degraded'][number]:.2f} \N{RIGHTWARDS ARROW} {found['psnr'][number]:.2f} dB"


def _save(image: np.ndarray, path: pathlib.Path) -> None:
    from PIL import Image

    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
