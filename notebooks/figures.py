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
    """Draw what every run makes of one scene: over the image, and, in the README, without it, for its licence may not allow that."""
    runs = {folder.name: load_trained(folder.absolute()) for folder in folders}
    splits = data.open_splits(next(iter(runs.values())).config)
    record = splits.test[len(splits.test) // 2]
    image = np.asarray(record["image"])
    masks = {name: segmenter(trained.setup.steps, trained.variables)(image[None])[0] for name, trained in runs.items()}
    plots.save(plots.segmentation_comparison(image, {"truth": record["label"], **masks}, splits.class_names), FOLDER / "scene.png", dpi=150)
    plots.save(plots.segmentation_comparison(None, masks, splits.class_names), FOLDER / "masks.png", dpi=150)


if __name__ == "__main__":
    # 9 inches at 200 pixels: sharp where it is shown 900 pixels wide.
    plots.save(plots.dilation_taps(kernel_size=3, dilations=(1, 2, 4)), FOLDER / "dilation.png", dpi=200)
    plots.save(plots.dilation_stacks(kernel_size=3, stacks=((1, 1, 1), (1, 2, 5), (2, 2, 2))), FOLDER / "gridding.png", dpi=150)
    if sys.argv[1:]:
        scene([pathlib.Path(name) for name in sys.argv[1:]])
