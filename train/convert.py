"""Make a run of published weights: `python -m train.convert --from torchvision:deeplabv3_resnet50 weights.pth --workdir runs/deeplab`.

It can be evaluated, used to predict, and fine-tuned from (`config.init_from`) as if it had been trained here.
"""

import importlib
import pathlib
import runpy
import sys

import jax
from ml_collections import ConfigDict

import dilax
from dilax import weights
from dilax.errors import UserError
from train import checkpoint, cli, run
from train.config import default_config, model_config

SIDE = 224  # of the images of ImageNet as these networks see them, and in the description of a run whose images have no one size


def convert(source: str, path: pathlib.Path, workdir: pathlib.Path, base: ConfigDict | None = None) -> str:
    """Write a run of the weights in a file into a folder.

    Args:
        source: As `dilax.load_weights`.
        path: The file.
        workdir: Of the run; empty or new.
        base: Config that says on which data the run is evaluated; None is ImageNet for 1000 classes of whole images, and PASCAL VOC for
            21 of pixels.

    Returns:
        What was made, in one line.

    Raises:
        UserError: if something does not fit; then nothing is written.
    """
    model, variables = dilax.load_weights(source, path)
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"--workdir={workdir} holds files already; give an empty or a new folder.")
    config, class_names = _config(source, model, base)
    run.open_folder(config, workdir, restart=False)
    with checkpoint.Store(workdir / checkpoint.BEST) as best:
        best.save(0, {"batch_stats": {}, **variables})
    side = config.data.image_size or SIDE
    run.write_config(workdir, config)
    run.write_status(workdir, finished=True, class_names=class_names, image_shape=(side, side, 3), examples=1, metrics={})
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return f"{workdir}: {source}, {count:,} parameters, {len(class_names)} classes"


def _config(source: str, model: object, base: ConfigDict | None) -> tuple[ConfigDict, tuple[str, ...]]:
    """Return the config of the run, and the names of its classes."""
    name, classes = source.partition(":")[2], getattr(model, "num_classes")  # noqa: B009
    task = "classification" if name in dilax.models.BACKBONES else "segmentation"
    config = _known_data(task, classes) if base is None else base.copy_and_resolve_references()
    if config is None:
        raise UserError(f"{source}: which data has these {classes} classes is not known; give --config=FILE of a run on that data.")
    if config.task != task:
        raise UserError(f"--config is of {config.task}, and {source} is a model for {task}; give another config.")
    class_names = tuple(config.data.class_names) or tuple(str(i) for i in range(classes))
    if len(class_names) != classes:
        raise UserError(f"--config names {len(class_names)} classes, and {source} in this file has {classes}; give the config of its data.")
    fields = {"aux_head": True} if getattr(model, "aux_head", False) else {}
    config.name, config.dtype, config.init_from, config.batch_size = name, "float32", "", 16
    config.optim.accumulate = 1
    config.model = ConfigDict(model_config(name, **fields))
    config.data.mean, config.data.std = weights.IMAGENET_MEAN, weights.IMAGENET_STD
    return config, class_names


def _known_data(task: str, classes: int) -> ConfigDict | None:
    """A config of the data that published weights for so many classes were trained on."""
    if (task, classes) == ("segmentation", 21):
        return importlib.import_module("configs.voc").get_config()
    if (task, classes) != ("classification", 1000):
        return None
    config = default_config("imagenet")
    config.data.update(name="imagenet2012", image_size=SIDE, validation=0.0)
    return config


def _load_config(text: str) -> ConfigDict:
    """Load FILE or FILE:VARIANT."""
    path, _, variant = text.partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(f"there is no config file {path}; give --config=configs/NAME.py, from the folder that holds configs/.")
    found = runpy.run_path(path).get("get_config")
    if found is None:
        raise UserError(f"the config file {path} has no function get_config; see those in configs/.")
    return found(variant) if variant else found()


def main() -> None:
    """Print what was made."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--from", required=True, dest="source", metavar="LIBRARY:MODEL", help="such as torchvision:resnet50, drn:drn_d_22")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run to be made")
    parser.add_argument("--config", help="config file whose data the run is evaluated on; default: what the weights are known for")
    parser.add_argument("weights", type=pathlib.Path, help="state dict: .pth, .pt, .bin, .safetensors or .npz")
    args = parser.parse_args()
    base = _load_config(args.config) if args.config else None
    print(convert(args.source, args.weights, args.workdir.absolute(), base))


if __name__ == "__main__":
    cli.run(main)
