"""Make a run from published weights: `python -m train.convert --from torchvision:deeplabv3_resnet50 weights.pth --workdir runs/deeplab`.

It can be evaluated, used to predict, and fine-tuned from (`config.init_from`) as if it had been trained here.

`--from dilax FOLDER` makes a run again of what `train.publish` wrote: the same network, bit for bit. `--from dilax FILE.safetensors
--config CONFIG` makes one of weights that `dilax.save_weights` wrote; the config says what network and data they are for.
"""

import importlib
import math
import pathlib
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

import dilax
from dilax import DataSpec, publishing, weights
from dilax.errors import UserError
from dilax.loading import BEST, describe_leaves, mismatches, read_description, read_variables
from train import build, checkpoint, cli, folder
from train.config import default_config, flatten, model_config, task_class, unread, with_tuples
from train.files import check_folder_writable, made_whole

OURS = "dilax"
SIDE = 224  # of the images of ImageNet as these networks see them, and in the description of a run whose images have no one size


def convert(source: str, path: pathlib.Path, workdir: pathlib.Path, base: ConfigDict | None = None) -> str:
    """Write a run of the weights in a file into a folder.

    Args:
        source: As `dilax.load_weights`; or "dilax", for what `train.publish` or `dilax.save_weights` wrote.
        path: The file, or the published folder.
        workdir: Of the run; empty or new.
        base: Config that says on which data the run is evaluated. None is the data that a published folder describes; of other
            libraries, ImageNet for 1000 classes of whole images, and PASCAL VOC for 21 of pixels.

    Returns:
        What was made, in one line.

    Raises:
        UserError: if something does not fit; then nothing is written.
    """
    if source == OURS:
        return _restore(path, workdir, base)
    check_new(workdir)
    model, variables = dilax.load_weights(source, path)
    config, class_names = _config(source, model, base)
    side = config.data.image_size or SIDE
    mean, std = (tuple(config.data[key]) for key in ("mean", "std"))
    setup = build.build(config, DataSpec(config.data.name, (side, side, 3), class_names, mean=mean, std=std))
    write_run(workdir, config, setup, variables, {})
    return f"{workdir}: {source}, {count(variables):,} parameters, {len(class_names)} classes"


def check_new(workdir: pathlib.Path, flag: str = "workdir") -> None:
    """Refuse a folder for a run that holds something already, or in which nothing can be written.

    Raises:
        UserError: naming the flag.
    """
    if (workdir.exists() and not workdir.is_dir()) or not folder.is_empty(workdir):
        raise UserError(f"--{flag}={workdir} holds files already; give an empty or a new folder.")
    check_folder_writable(flag, workdir, inside=workdir.resolve().parent)


def write_run(workdir: pathlib.Path, config: ConfigDict, setup: build.Setup, variables: dict[str, Any], metrics: dict[str, float]) -> None:
    """Write the folder of a run that has not been trained here. It appears whole or not at all.

    Args:
        workdir: The folder, new or empty.
        config: What is written as its config.
        setup: What it is made of.
        variables: Its variables.
        metrics: What is known of them, such as {"validation/accuracy": ...}.

    Raises:
        UserError: if it cannot be written.
    """
    chosen_by = {name: value for name, value in metrics.items() if name.startswith("validation/")}
    with made_whole(workdir) as made:
        checkpoint.check_folder(made)
        status = folder.write_status(made, finished=False, **build.status_of(setup))
        with checkpoint.Store(made / BEST, run=status["run"]) as best:
            best.save(0, {"batch_stats": {}, **variables}, chosen_by)
        folder.write_status(made, finished=True, metrics={name: metrics[name] for name in metrics if name not in chosen_by})
        folder.write_config(made, config, 0)


def count(variables: dict[str, Any]) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _restore(path: pathlib.Path, workdir: pathlib.Path, base: ConfigDict | None) -> str:
    """Write a run of what `train.publish` or `dilax.save_weights` wrote."""
    place = publishing.locate("train.convert", "weights", str(path))
    if base is None and place.name == publishing.WEIGHTS and publishing.is_published(place.parent):
        place = place.parent
    check_new(workdir)
    metrics: dict[str, float] = {}
    if publishing.is_published(place):
        described, variables = read_description(place), read_variables(place)
        config, spec = _described(described, base), DataSpec.from_json(described["data"])
        metrics = {name: math.nan if value is None else value for name, value in described.get("metrics", {}).items()}
    elif place.is_dir():
        raise UserError(f"{place} does not hold published weights (it has no {publishing.DESCRIPTION}); give what train.publish wrote.")
    elif base is None:
        raise UserError(f"{place} does not say which network it is for; give --config=FILE of its run, or a published folder.")
    else:
        variables, config = dilax.read_weights(place), as_source(base)
        spec = task_class(config.task).open(config).spec
    setup = build.build(config, spec)
    saved = describe_leaves({"params": {}, "batch_stats": {}, **variables})
    if words := mismatches(saved, describe_leaves(setup.shapes)):
        raise UserError(f"{place} does not fit the network of the config: it {words}. Give the config of the run that it was made of.")
    write_run(workdir, config, setup, variables, metrics)
    return f"{workdir}: {config.model.name}, {count(variables):,} parameters, {len(spec.outputs)} outputs"


def as_source(config: ConfigDict) -> ConfigDict:
    """Return a copy of a config that does not start from another run, as the config of a run to start from."""
    given: Any = config.copy_and_resolve_references()
    given.update(init_from="", init_into="", init_except=(), head_reset=False)
    return given


def _described(described: dict[str, Any], base: ConfigDict | None) -> ConfigDict:
    """Return the config of a run that published weights describe, on the data of `base` or, without it, as far as they describe it."""
    spec, model, name = DataSpec.from_json(described["data"]), dict(described["model"]), described["task"]
    config: Any = default_config(described["name"], task=name) if base is None else as_source(base)
    if name != config.task:
        raise UserError(f"--config is for the task {config.task}, and the weights are for {name}; give the config of their run.")
    fixed = {*dilax.models.output_fields(model["name"]), *dilax.models.symbol_fields(model["name"])}
    config.dtype = model.pop("dtype", "float32")
    config.model = ConfigDict(with_tuples({key: value for key, value in model.items() if key not in fixed}))
    if base is None:
        about = {"name": spec.name, "mean": spec.mean, "std": spec.std, "image_size": described.get("image_size", 0)}
        config.data.update({key: value for key, value in about.items() if key in config.data})
        for key in ("pool", "loss"):
            if key in config.get("sequence", {}) and key in described:
                config.sequence[key] = described[key]
        defaults = flatten(default_config(config.name, task=name).to_dict())
        config.update_from_flattened_dict({key: defaults[key] for key in unread(config)})  # such as the mean, which is in the data
    return config


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
    parser.add_argument(
        "--from", required=True, dest="source", metavar="LIBRARY:MODEL", help="such as torchvision:resnet50, drn:drn_d_22, or dilax"
    )
    parser.add_argument("--workdir", required=True, type=cli.folder, help="folder of the run to be made")
    parser.add_argument("--config", help="config file whose data the run is evaluated on; default: what the weights are known for")
    parser.add_argument("weights", type=pathlib.Path, help="state dict: .pth, .pt, .bin, .safetensors or .npz; or a published folder")
    args = parser.parse_args()
    base = cli.load_config(args.config) if args.config else None
    print(convert(args.source, args.weights, args.workdir.absolute(), base))
    if args.source == OURS and base is None:
        print("note: of its data, only what predictions need is known; to evaluate it, give --config=FILE of its data.", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
