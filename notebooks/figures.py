"""Draw the pictures of the README next to this file: `python notebooks/figures.py [RUN ...]`.

With folders of runs on one set of images and masks, also what each of them makes of the middle image of the test split.
"""

import pathlib
import sys

import numpy as np

from dilax import plots
from train import data
from train.predict import segmenter
from train.run import load_trained

FOLDER = pathlib.Path(__file__).parent


def scene(folders: list[pathlib.Path]) -> None:
    """Draw one scene by every run."""
    runs = {folder: load_trained(folder.absolute()) for folder in folders}
    splits = data.open_splits(next(iter(runs.values())).config)
    record = splits.test[len(splits.test) // 2]
    predictions = {}
    for folder, trained in runs.items():
        mask = segmenter(trained.setup.steps, trained.variables)(np.asarray(record["image"])[None])[0]
        predictions[folder.name] = mask
    figure = plots.segmentation_comparison(record["image"], record["label"], predictions, splits.class_names)
    plots.save(figure, FOLDER / "scene.png", dpi=150)


if __name__ == "__main__":
    # 9 inches at 200 pixels: sharp where it is shown 900 pixels wide.
    plots.save(plots.dilation_taps(kernel_size=3, dilations=(1, 2, 4)), FOLDER / "dilation.png", dpi=200)
    plots.save(plots.dilation_stacks(kernel_size=3, stacks=((1, 1, 1), (1, 2, 5), (2, 2, 2))), FOLDER / "gridding.png", dpi=150)
    if sys.argv[1:]:
        scene([pathlib.Path(name) for name in sys.argv[1:]])
