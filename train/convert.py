"""Make a run from published weights: `python -m train.convert --from torchvision:deeplabv3_resnet50 weights.pth --workdir runs/deeplab`.

It can be evaluated, used to predict, and fine-tuned from (`config.init_from`) as if it had been trained here.
"""

import importlib
import pathlib
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

import dilax
from dilax import DataSpec, weights
from dilax.errors import UserError
from dilax.loading import BEST
from train import build, checkpoint, cli, folder
from train.config import default_config, model_config, task_class

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
    if not folder.is_empty(workdir):
        raise UserError(f"--workdir={workdir} holds files already; give an empty or a new folder.")
    config, class_names = _config(source, model, base)
    side = config.data.image_size or SIDE
    mean, std = (tuple(config.data[key]) for key in ("mean", "std"))
    setup = build.build(config, DataSpec(config.data.name, (side, side, 3), class_names, mean=mean, std=std))
    with folder.open_folder(config, workdir):
        checkpoint.check_folder(workdir)
        status = folder.write_status(workdir, finished=False, **build.status_of(setup))
        with checkpoint.Store(workdir / BEST, run=status["run"]) as best:
            best.save(0, {"batch_stats": {}, **variables})
        folder.write_status(workdir, finished=True, metrics={})
        folder.write_config(workdir, config, 0)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return f"{workdir}: {source}, {count:,} parameters, {len(class_names)} classes"


def _config(source: str, model: object, base: ConfigDict | None) -> tuple[ConfigDict, tuple[str, ...]]:
    """Return the config of the run, and the names of its classes."""
    name, classes = source.partition(":")[2], getattr(model, "num_classes")  # noqa: B009
    kind = "backbone" if name in dilax.models.BACKBONES else "segmenter"
    config = _known_data(kind, classes) if base is None else base.copy_and_resolve_references()
    if config is None:
        raise UserError(f"{source}: no data with {classes} classes is known for it; give --config=FILE of a run on its data.")
    names = (
        tuple(config.data.get("class_names", ())) or (None if base is None else _opened_names(config)) or tuple(map(str, range(classes)))
    )
    if len(names) != classes:
        raise UserError(f"--config has {len(names)} classes, and {source} in this file has {classes}; give the config of its data.")
    given: Any = config.data  # the values of a ConfigDict have no static types
    if "mean" not in given or "sequence" in config:
        raise UserError(f"--config is for the task {config.task}, which is not on whole images; give the config of a run on images.")
    if not (given.mean and given.std):
        if source.startswith("drn:") and kind == "segmenter":
            raise UserError(f"{source}: its images were standardised by numbers of their own; set data.mean and data.std in the config.")
        given.update(mean=weights.IMAGENET_MEAN, std=weights.IMAGENET_STD)
    fields = {"aux_head": True} if getattr(model, "aux_head", False) else {}
    # Only the data of the config and how it is scored matter here.
    config.update(name=name, dtype="float32", batch_size=16, init_from="", init_into="", init_except=(), head_reset=False, frozen=())
    config.optim.update(accumulate=1, lr_multipliers=())
    config.model = ConfigDict(model_config(name, **fields))
    return config, names


def _opened_names(config: ConfigDict) -> tuple[str, ...] | None:
    """Return the names of the classes of the data, if it is here."""
    try:
        return task_class(config.task).open(config).spec.outputs
    except UserError:
        return None


def _known_data(kind: str, classes: int) -> ConfigDict | None:
    """Return a config of the data that published weights for this many classes were trained on."""
    if (kind, classes) == ("segmenter", 21):
        return importlib.import_module("configs.voc").get_config()
    if (kind, classes) != ("backbone", 1000):
        return None
    config = default_config("imagenet")
    config.data.update(name="imagenet2012", image_size=SIDE, validation=0.0)
    return config


def main() -> None:
    """Print what was made."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--from", required=True, dest="source", metavar="LIBRARY:MODEL", help="such as torchvision:resnet50, drn:drn_d_22")
    parser.add_argument("--workdir", required=True, type=cli.folder, help="folder of the run to be made")
    parser.add_argument("--config", help="config file whose data the run is evaluated on; default: what the weights are known for")
    parser.add_argument("weights", type=pathlib.Path, help="state dict: .pth, .pt, .bin, .safetensors or .npz")
    args = parser.parse_args()
    base = cli.load_config(args.config) if args.config else None
    print(convert(args.source, args.weights, args.workdir.absolute(), base))


if __name__ == "__main__":
    cli.run(main)
