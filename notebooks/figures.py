"""Draw the pictures of the README and the documentation: `python notebooks/figures.py [RUN ...]`.

With folders of runs on one set of images and masks, also the middle image of the test split, its truth and what each run makes of it.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dilax
from dilax import plots

FOLDER = pathlib.Path(__file__).parent
IMAGES = FOLDER.parent / "docs" / "images"
SIDE = 61  # pixels of the picture that a stack of layers looks at


def dilations() -> None:
    """Draw the taps of one kernel, and what stacks of three layers see."""
    # 9 inches at 200 pixels: sharp where it is shown 900 pixels wide.
    plots.save(plots.dilation_taps(kernel_size=3, dilations=(1, 2, 4)), FOLDER / "dilation.png", dpi=200)
    plots.save(plots.dilation_stacks(kernel_size=3, stacks=((1, 1, 1), (1, 2, 5), (2, 2, 2))), FOLDER / "gridding.png", dpi=150)


def stack(dilations: Sequence[int], seed: int = 0) -> Callable[[Any], jax.Array]:
    """Return a stack of 3x3 convolutions of 8 channels with random weights and a ReLU between them, as a function of an image."""
    random, kernels, channels = np.random.default_rng(seed), [], 1
    for _ in dilations:
        kernels.append(jnp.asarray(random.normal(size=(3, 3, channels, 8)) / np.sqrt(9 * channels), jnp.float32))
        channels = 8

    def run(x: Any) -> jax.Array:
        for kernel, dilation in zip(kernels, dilations):
            x = jax.nn.relu(dilax.dilated_conv(x, kernel, dilation=dilation))
        return x

    return run


def receptive_fields() -> None:
    """Draw what one output of two stacks sees, and how much each pixel matters to it."""
    height, width = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    image = np.stack([0.45 + 0.4 * height, 0.6 + 0.2 * np.sin(7 * width) * np.cos(5 * height), 0.85 - 0.4 * height * width], -1)
    stacks = {"holes": (4, 4, 4), "dense": (1, 3, 9)}
    for name, dilations in stacks.items():
        figure = plots.receptive_field_overlay(lambda x, d=dilations: stack(d)(x[..., :1]), image.astype(np.float32))
        plots.save(figure, IMAGES / f"field_{name}.png", dpi=120)
    x = jax.ShapeDtypeStruct((1, SIDE, SIDE, 1), jnp.float32)
    maps = {
        f"dilations {', '.join(map(str, dilations))}": dilax.effective_receptive_field(stack(dilations), x, key=jax.random.key(0))
        for dilations in ((1, 1, 1), *stacks.values())
    }
    plots.save(plots.effective_receptive_fields(maps), IMAGES / "effective.png", dpi=120)


def scene(folders: list[pathlib.Path]) -> None:
    """Draw one test image, its truth and what every run makes of it; publish it only if the licence of the images allows that."""
    from train.build import load_trained

    runs = {folder.name: load_trained(folder.absolute()) for folder in folders}
    setup = next(iter(runs.values())).setup
    splits = type(setup.task).open(setup.config)
    record = splits.test[len(splits.test) // 2]
    image = np.asarray(record["image"])
    masks = {f"prediction of {name}": trained.inference.segment(image[None])[0] for name, trained in runs.items()}
    figure = plots.segmentation_comparison(image, {"truth": record["label"], **masks}, splits.spec.outputs)
    plots.save(figure, FOLDER / "masks.png", dpi=150)


if __name__ == "__main__":
    dilations()
    receptive_fields()
    if sys.argv[1:]:
        scene([pathlib.Path(name) for name in sys.argv[1:]])
