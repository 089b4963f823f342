"""Publish the weights of a run, with a model card: `python -m train.publish --workdir runs/digits --out pretrained/digits`.

The folder holds model.safetensors, model.json and README.md, in the layout of the Hugging Face Hub. `dilax.load` reads it, and
--config.init_from starts another run from it. Of a run that is not finished, the best parameters so far are published.

--stored float16 halves the file: parameters are rounded to 11 significant bits, and are float32 again when they are read.
"""

import json
import math
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import dilax
from dilax import DataSpec
from dilax.errors import UserError, one_line
from dilax.loading import PUBLISHED_FORMAT, as_float32, checksum, describe_leaves, make_model, read_best, seal, shapes_of
from dilax.publishing import CARD, DESCRIPTION, WEIGHTS
from train import cli, report
from train.card import NOT_STATED, card, figure
from train.checkpoint import check_same_leaves
from train.config import task_class
from train.files import check_empty, made_whole, write_text
from train.folder import read_run

HALF = "float16"
STORED = ("float32", HALF)


def publish(
    workdir: pathlib.Path, out: pathlib.Path, *, licence: str = NOT_STATED, data_licence: str = NOT_STATED, stored: str = "float32"
) -> dict[str, Any]:
    """Write the best weights of a run, what a prediction needs besides them, and a model card.

    Args:
        workdir: Folder of the run.
        out: The folder to be made; new or empty. It appears whole, or not at all.
        licence: Licence of the weights.
        data_licence: Licence of the data that the run was trained on.
        stored: Dtype of the parameters in the file, one of `STORED`.

    Returns:
        What model.json holds.

    Raises:
        UserError: if the folder does not hold a trained run, a parameter is too large for float16, `out` is not empty or cannot be
            written, or safetensors is not installed.
    """
    check_empty("out", out)
    config, status = read_run(workdir)
    variables, meta = read_best(workdir)
    if stored == HALF:
        variables = {**variables, "params": jax.tree.map_with_path(_halved, variables["params"])}
    described = describe(config, status, variables, meta, {"stored": stored} if stored == HALF else {})
    given: Any = config
    spec = DataSpec.from_json(described["data"])
    wanted = describe_leaves(shapes_of(make_model(described["model"]), spec))
    check_same_leaves(describe_leaves(as_float32(variables)), wanted, f"the checkpoint in {workdir}")
    title = report.title(given.name, given.task, given.model.name, spec.name, given.data.dir)
    hub_task = task_class(given.task)(config, spec).hub_task()
    text = card(described, title, out.name, hub_task=hub_task, licence=licence, data_licence=data_licence, stored=stored)
    with made_whole(out) as folder:
        dilax.save_weights(variables, folder / WEIGHTS)
        write_text(folder / DESCRIPTION, json.dumps(described, indent=2))
        write_text(folder / CARD, text)
    return described


def describe(
    config: ConfigDict, status: dict[str, Any], variables: dict[str, Any], meta: dict[str, Any], more: dict[str, Any]
) -> dict[str, Any]:
    """Return what model.json holds; nothing of it says where the data or the run was.

    Args:
        config: The config of the run.
        status: What run.json holds.
        variables: The best variables.
        meta: What was saved with them; see `dilax.loading.read_best`.
        more: What else it is to say.
    """
    given: Any = config  # the values of a ConfigDict have no static types
    finished = bool(status.get("finished"))
    # Those of the test split are of an earlier end of the run if it is trained further.
    metrics = {name: value for name, value in meta.items() if name.startswith("validation/")} | (
        status.get("metrics", {}) if finished else {}
    )
    training = {"seed": given.seed, "step": meta["step"], "finished": finished, "total_epochs": given.total_epochs}
    if "train_seconds" in status:  # published weights of other libraries, which a run was made of, were not trained here
        training |= {"seconds": status["train_seconds"], "batch_size": given.batch_size}
        training |= {"optimiser": given.optim.name, "learning_rate": given.optim.lr}
    described = {
        "format": PUBLISHED_FORMAT,
        "name": given.name,
        "task": given.task,
        **{key: status[key] for key in ("model", "pool", "image_size", "data") if key in status},
        **{key: given.sequence[key] for key in ("loss",) if key in given.get("sequence", {})},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "training": training,
        "versions": status.get("versions", {}),
        "checksum": checksum(variables),
        **more,
    }
    described = json.loads(json.dumps(described))  # as it will be read, which its checksum is of
    return {**described, "seal": seal(described)}


def _halved(path: Any, leaf: np.ndarray) -> np.ndarray:
    """Return a parameter in float16."""
    if leaf.dtype != np.float32:
        return leaf
    if leaf.size and not np.abs(leaf).max() <= np.finfo(HALF).max:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        raise UserError(f"--stored={HALF}: the parameter {name} has values that {HALF} cannot hold; leave the flag out.")
    return leaf.astype(HALF)


def _licence(text: str) -> str:
    """Return the licence that a flag states."""
    if not text.strip():
        raise UserError("a licence is empty; give its name, such as Apache-2.0, or leave the flag out.")
    return one_line(text)


def main() -> None:
    """Print what was published."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--workdir", required=True, type=cli.folder, help="folder of the run")
    parser.add_argument("--out", required=True, type=cli.folder, help="folder to be made; new or empty")
    parser.add_argument("--licence", default=NOT_STATED, help="licence of the weights, such as Apache-2.0")
    parser.add_argument("--data-licence", default=NOT_STATED, help="licence of the data that the run was trained on")
    parser.add_argument("--stored", default=STORED[0], choices=STORED, help="dtype of the parameters in the file")
    args = parser.parse_args()
    licences = dict(licence=_licence(args.licence), data_licence=_licence(args.data_licence))
    described = publish(args.workdir, args.out, **licences, stored=args.stored)
    metrics = "".join(f", {name} {figure(value)}" for name, value in described["metrics"].items())
    print(f"{args.out}: {described['model']['name']}, {described['parameters']:,} parameters{metrics}")
    if not described["training"]["finished"]:
        step = described["training"]["step"]
        print(
            f"note: the run is not finished; these are its best parameters so far, of step {step}, not scored on the test split.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    cli.run(main)
