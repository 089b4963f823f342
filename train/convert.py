"""Make a run of published weights: `python -m train.convert --from torchvision:deeplabv3_resnet50 weights.pth --workdir runs/deeplab`.

It can be evaluated, used to predict, and fine-tuned from (`config.init_from`) as if it had been trained here.
"""

import importlib
import inspect
import pathlib
import runpy
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

import dilax
from dilax import weights
from dilax.errors import UserError
from train import checkpoint, cli, data, run
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
    if workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(f"--workdir={workdir} holds files already; give an empty or a new folder.")
    config, class_names = _config(source, model, base)
    side = config.data.image_size or SIDE
    run.setup(config, len(class_names), (side, side, 3), 1)
    run.open_folder(config, workdir, restart=False)
    with checkpoint.Store(workdir / checkpoint.BEST) as best:
        best.save(0, {"batch_stats": {}, **variables})
    run.write_config(workdir, config)
    run.write_status(workdir, finished=True, class_names=class_names, input_shape=(side, side, 3), examples=0, metrics={})
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
    class_names = tuple(config.data.class_names) or (None if base is None else _opened_names(config)) or tuple(map(str, range(classes)))
    if len(class_names) != classes:
        raise UserError(f"--config has {len(class_names)} classes, and {source} in this file has {classes}; give the config of its data.")
    given: Any = config.data  # the values of a ConfigDict have no static types
    if not (given.mean and given.std):
        if source.startswith("drn:") and task == "segmentation":
            raise UserError(f"{source}: its images were standardised by numbers of their own; set data.mean and data.std in the config.")
        given.update(mean=weights.IMAGENET_MEAN, std=weights.IMAGENET_STD)
    fields = {"aux_head": True} if getattr(model, "aux_head", False) else {}
    # Of the config only the data and how it is scored are meant.
    config.update(name=name, dtype="float32", batch_size=16, init_from="", init_into="", init_except=(), head_reset=False, frozen=())
    config.optim.update(accumulate=1, lr_multipliers=())
    config.model = ConfigDict(model_config(name, **fields))
    return config, class_names


def _opened_names(config: ConfigDict) -> tuple[str, ...] | None:
    """The names of the classes of the data, if it is here."""
    try:
        return data.open_splits(config).class_names
    except UserError:
        return None


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
    try:
        found = runpy.run_path(path).get("get_config")
    except (SyntaxError, ImportError) as error:
        raise UserError(f"the config file {path} cannot be loaded: {type(error).__name__}: {error}.") from error
    if found is None:
        raise UserError(f"the config file {path} has no function get_config; see those in configs/.")
    if variant and not inspect.signature(found).parameters:
        raise UserError(f"the config file {path} has no variants; leave :{variant} out.")
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
