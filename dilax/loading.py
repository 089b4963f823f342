"""Read the folder of a run, or of published weights: its description, its variables, and from both a model that is ready to predict."""

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dilax import models, publishing
from dilax.errors import UserError, quieted, reason
from dilax.files import user_path
from dilax.inference import Inference, model_arguments
from dilax.pruning import Pruned
from dilax.spec import DataSpec

STATUS, BEST = "run.json", "best"
# What values of run.json and model.json are, if they are there.
_KINDS: dict[str, Any] = {
    **{"run": str, "step": int, "train_seconds": int | float, "finished": bool, "metrics": dict, "records": dict},
    **{"task": str, "pool": str, "image_size": int, "versions": dict, "training": dict, "checksum": int, "teacher": int},
}
# What the items of lists in their description of the data are.
_ITEMS: dict[str, Any] = {
    **{"input_shape": int, "outputs": str, "symbols": str},
    **dict.fromkeys(("mean", "std", "class_weights", "intensities"), int | float),
}
FORMAT = 3  # of run.json; folders of another format are refused
PUBLISHED_FORMAT = 1  # of model.json
_TRAIN_AGAIN = "restore it, or train the run again with --restart"
_PUBLISH_AGAIN = "download the folder again, or publish the run again"


def load(folder: str | pathlib.Path) -> Inference:
    """Read a trained model from the folder of a run of `python -m train.main`, or from weights that `python -m train.publish` wrote.

    Args:
        folder: The folder, such as "runs/digits"; or "hf:owner/name", a model on the Hugging Face Hub, which requires huggingface_hub;
            "hf:owner/name@revision" is a branch, a tag or a commit of it.

    Returns:
        The model with its best variables; see `dilax.Inference`.

    Raises:
        UserError: if the folder holds neither, or the run has not saved a model yet, or a file is damaged, or the model cannot be fetched.

    Example:
        >>> digits = load("runs/digits")  # doctest: +SKIP
        >>> digits.predict("image.png")  # doctest: +SKIP
        [('7', 0.998)]
    """
    place = publishing.locate("load", "folder", folder)
    status = read_description(place)
    if not status:
        raise UserError(
            f"{place} does not hold a run or published weights; train one with `python -m train.main --config=... --workdir={place}`."
        )
    model, spec, variables = make_model(status["model"]), DataSpec.from_json(status["data"]), read_variables(place)
    return Inference(model, variables, spec, **{name: status[name] for name in ("pool", "task", "image_size") if name in status})


def make_model(description: dict[str, Any]) -> nn.Module:
    """Return the model that a run describes: {"name": a name of `dilax.models.names()`, field: value, ...}, lists being tuples.

    "changes" are those of a `dilax.Pruned`.
    """
    fields = {key: _tuples(value) for key, value in description.items()}
    if "dtype" in fields:
        fields["dtype"] = jnp.dtype(fields["dtype"])
    changes = fields.pop("changes", None)
    model = models.create(fields.pop("name"), **fields)
    return model if changes is None else Pruned(model, changes)


def _tuples(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def read_description(folder: pathlib.Path) -> dict[str, Any]:
    """Return what a folder says of its model: model.json of published weights, else run.json of a run, or an empty dict if it has neither.

    Raises:
        UserError: if it was written by another version, or is damaged.
    """
    if not publishing.is_published(folder):
        return read_status(folder)
    path = folder / publishing.DESCRIPTION
    described = read_json(path, remedy=_PUBLISH_AGAIN)
    if described.get("format") != PUBLISHED_FORMAT:
        raise UserError(
            f"{path} is of format {described.get('format')!r}, and this version of dilax reads format {PUBLISHED_FORMAT}; give a folder "
            "that train.publish wrote, or install the version of dilax that wrote it."
        )
    _check_status(path, described, _PUBLISH_AGAIN)
    model, data = described["model"], described["data"]
    if isinstance(model["name"], str) and model["name"] in models.MODELS:
        counted = {
            **dict.fromkeys(models.output_fields(model["name"]), "outputs"),
            **dict.fromkeys(models.symbol_fields(model["name"]), "symbols"),
        }
        for field, names in counted.items():
            if model.get(field) != len(data.get(names, [])):
                raise _damaged(path, f"{field} is {model.get(field)!r}, and {names} has {len(data.get(names, []))} names", _PUBLISH_AGAIN)
    return described


def read_status(folder: pathlib.Path) -> dict[str, Any]:
    """Return run.json, or an empty dict if there is none.

    Raises:
        UserError: if it was written by an earlier version, or is damaged.
    """
    path = folder / STATUS
    if not path.exists():
        return {}
    status = read_json(path)
    if status.get("format") != FORMAT:
        raise UserError(
            f"{folder} holds a run of an earlier version of dilax, which this version cannot read; train it again in another folder."
        )
    _check_status(path, status, _TRAIN_AGAIN)
    return status


def _check_status(path: pathlib.Path, status: dict[str, Any], remedy: str) -> None:
    """Refuse a description that does not match its checksum, or has parts that cannot be used."""
    if status.get("seal", seal(status)) != seal(status):
        raise _damaged(path, "it does not match its checksum", remedy)
    data, model = status.get("data"), status.get("model")
    if not isinstance(data, dict) or not isinstance(model, dict) or "name" not in model:
        raise _damaged(path, "it does not describe the data and the model", remedy)
    try:
        DataSpec.from_json(data)
    except TypeError as error:
        raise _damaged(path, f"its description of the data does not fit: {error}", remedy) from error
    usual = DataSpec("", (), ()).to_json()
    wrong = [name for name, value in data.items() if not isinstance(value, list if isinstance(usual[name], tuple) else type(usual[name]))]
    wrong += [name for name, kind in _KINDS.items() if name in status and not isinstance(status[name], kind)]
    wrong = wrong or [name for name, kind in _ITEMS.items() if not all(isinstance(item, kind) for item in data.get(name, []))]
    if wrong:
        raise _damaged(path, f"{wrong[0]} is of the wrong type", remedy)


def read_json(path: pathlib.Path, *, remedy: str = _TRAIN_AGAIN) -> dict[str, Any]:
    """Return what a file of a run, or of published weights, holds.

    Args:
        path: The file.
        remedy: What to do if it is damaged; by default, if it is a file of a run.

    Raises:
        UserError: if it cannot be read, or does not hold an object in JSON.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, str(error), remedy) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; fix that, or restore the file.") from error
    if not isinstance(values, dict):
        raise _damaged(path, "it does not hold an object", remedy)
    return values


def _damaged(path: pathlib.Path, reason: str, remedy: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}); {remedy}.")


def read_variables(folder: pathlib.Path) -> dict[str, Any]:
    """Return the best variables of a run, or published ones, such as {"params": ..., "batch_stats": ...}, as numpy arrays.

    Raises:
        UserError: if the folder does not hold a trained run, or its checkpoint is damaged.
    """
    folder = user_path(folder).absolute()  # orbax reads no others
    return _read_published(folder) if publishing.is_published(folder) else read_best(folder)[0]


def _read_published(folder: pathlib.Path) -> dict[str, Any]:
    described, path = read_description(folder), folder / publishing.WEIGHTS
    if not path.exists():
        raise UserError(f"{folder} has lost its {publishing.WEIGHTS}; {_PUBLISH_AGAIN}.")
    stored = {"params": {}, "batch_stats": {}, **publishing.read_weights(path)}
    variables = as_float32(stored) if described.get("stored") == "float16" else stored
    wanted = describe_leaves(shapes_of(make_model(described["model"]), DataSpec.from_json(described["data"])))
    if wrong := mismatches(describe_leaves(variables), wanted):
        raise UserError(
            f"{path} does not fit the model that {publishing.DESCRIPTION} describes: it {wrong}. Both must come from the same folder; "
            f"{_PUBLISH_AGAIN}."
        )
    if described.get("checksum", found := checksum(stored)) != found:
        raise _damaged(path, f"its checksum is not the one in {publishing.DESCRIPTION}", _PUBLISH_AGAIN)
    return variables


def as_float32(variables: dict[str, Any]) -> dict[str, Any]:
    """Return variables with what was stored in float16 as float32."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float16 else leaf, variables)


def shapes_of(model: nn.Module, spec: DataSpec) -> Any:
    """Return the shapes of the variables of a model for such data."""

    def init(key: jax.Array, x: jax.Array) -> Any:
        given: dict[str, Any] = model_arguments(model, x)
        return model.init(key, **given, train=False)

    return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, *spec.input_shape), spec.dtype))


def mismatches(saved: dict[str, list[Any]], wanted: dict[str, list[Any]]) -> str:
    """Say in words how variables differ from those of a model, both as `describe_leaves` returns them; "" if they do not."""
    missing, extra = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    both = sorted(wanted.keys() & saved.keys())
    pairs = [(path, [(ours, theirs) for ours, theirs in zip(saved[path], wanted[path]) if ours != theirs]) for path in both]
    others = [f"{path} is {differ[0][0]}, not {differ[0][1]}" for path, differ in pairs if differ]  # in shape, else in dtype
    return "; ".join([f"lacks {', '.join(missing)}"] * bool(missing) + [f"also has {', '.join(extra)}"] * bool(extra) + others)


def read_best(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the best variables of a run, and what was saved with them: their step, and the metrics that they were chosen by.

    Args:
        folder: The folder of the run, absolute.

    Raises:
        UserError: if the folder does not hold a trained run, or its checkpoint is damaged.
    """
    if not (folder / BEST).is_dir():
        raise UserError(f"{folder} does not hold a trained run (it has no {BEST}/); train one there, or give the folder of another run.")
    run = read_status(folder).get("run")
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise UserError('checkpoints are read through orbax-checkpoint, which is missing; run: pip install "dilax-conv[train]"') from error

    step = _newest_step(folder / BEST)
    while step is not None:
        try:
            with quieted("absl"), ocp.Checkpointer(ocp.CompositeCheckpointHandler("tree", "meta")) as reader:
                return _read_save(reader, folder / BEST / str(step), run)
        except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # orbax has no error class of its own for damaged files
            before, step = step, _newest_step(folder / BEST)
            if step == before:  # else the run has replaced it while it was read
                raise UserError(
                    f"the checkpoint {folder / BEST / str(step)} is damaged or misplaced ({reason(error)}); resume its run if it is "
                    "unfinished, else train it again."
                ) from error
    raise UserError(_not_yet(folder))


def _newest_step(saves: pathlib.Path) -> int | None:
    """Return the newest step in a folder of saves. The managers of orbax fail where a run in progress deletes one at the same time."""
    return max((int(path.name) for path in saves.iterdir() if path.name.isdecimal()), default=None)


def _read_save(reader: Any, save: pathlib.Path, run: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the variables in one save of a run as numpy arrays, and what describes them; raise an error of any class if it is damaged."""
    import orbax.checkpoint as ocp

    meta = reader.restore(save, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    check_description(meta, int(save.name), run)
    like = _tree_of(meta["leaves"], jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    tree = reader.restore(save, args=ocp.args.Composite(tree=ocp.args.StandardRestore(like)))["tree"]
    check_tree(meta, tree)
    return jax.tree.map(np.asarray, tree), meta


def _not_yet(folder: pathlib.Path) -> str:
    """Say why a run has no best variables: it is before its first evaluation, or was stopped there."""
    status = read_status(folder)
    step = status.get("step")
    if status.get("finished"):
        return f"the run in {folder} is finished, and {BEST}/ has lost its parameters; restore that folder, or train the run again."
    if step is None:
        return f"{folder} does not hold a checkpoint yet; wait for the first evaluation of the run."
    return (
        f"{folder} has been trained for {step} steps and saved, but not evaluated yet, which decides what to predict with; "
        "let the run go on, or run its command again to resume it."
    )


def _tree_of(leaves: dict[str, list[Any]], sharding: Any) -> dict[str, Any]:
    """Return the nested dicts of shapes that `describe_leaves` was called on."""
    flat = {tuple(path.split("/")): jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding) for path, (shape, dtype) in leaves.items()}
    return {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(flat)}


def leaves_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Return (path, leaf) of every leaf, the path joined by slashes."""
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def describe_leaves(tree: Any) -> dict[str, list[Any]]:
    """Return {path: [shape, dtype]} of every leaf."""
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves_with_paths(tree)}


def describe_save(tree: Any, step: int, run: str | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is saved beside a tree, in JSON: its step, run, leaves and checksum, and `more`, under another checksum.

    orbax keeps no checksums, and reads a flipped bit back silently.
    """
    meta = {**more, "step": step, "run": run, "leaves": describe_leaves(tree), "checksum": checksum(tree)}
    return {**meta, "seal": seal(meta)}


def check_description(meta: Any, step: int, run: str | None) -> None:
    """Raise OSError unless `meta` is intact, and describes the save of a step of the run with an id."""
    if not isinstance(meta, dict) or "leaves" not in meta or "checksum" not in meta or meta.get("seal") != seal(meta):
        raise OSError("its description does not match its checksum")
    if meta["step"] != step:
        raise OSError(f"it was saved at step {meta['step']}")
    if meta["run"] != run:
        raise OSError("it is of another run")


def check_tree(meta: dict[str, Any], tree: Any) -> None:
    """Raise OSError unless the tree is the one that `meta` describes."""
    if checksum(tree) != meta["checksum"]:
        raise OSError("its checksum does not match")


def seal(meta: Mapping[str, Any]) -> int:
    """Return the checksum of values in JSON, but for one of their own."""
    return zlib.crc32(json.dumps({key: value for key, value in meta.items() if key != "seal"}, sort_keys=True).encode())


def checksum(tree: Any) -> int:
    """Return the CRC-32 of the bytes of all leaves, in the order of their paths."""
    crc = 0
    for _, leaf in sorted(leaves_with_paths(tree), key=lambda pair: pair[0]):
        crc = zlib.crc32(np.ascontiguousarray(whole(leaf)).tobytes(), crc)
    return crc


def whole(leaf: Any) -> np.ndarray:
    """Return an array as one of numpy, wherever its parts are; where other processes hold some, all of them must call this."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(leaf, tiled=True))
