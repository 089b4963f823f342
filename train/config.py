"""The config keys that all runs share; those of a task stand with the task. A file in `configs/` starts from `default_config`."""

import difflib
import inspect
import json
import os
from typing import Any

from ml_collections import ConfigDict

import dilax
from dilax.errors import UserError, did_you_mean, shown
from dilax.files import user_path
from train.keys import OTHER, POSITIVE, UNLIMITED, Key, Keys
from train.optim import OPTIMISERS, SCHEDULES
from train.tasks import TASKS, Task

CHANGES = "changes"  # the field of config.model that a pruned network has besides those of its model; see `dilax.Pruned`
_INIT, _TEACHER = ("init_from", ()), ("distill_from", ())
KEYS: Keys = {
    "seed": Key(0, "seed of the parameters, the order of the data, augmentation, dropout and the validation split", (0, 2**31 - 1)),
    "batch_size": Key(128, "examples per step, over all devices", (1, UNLIMITED)),
    "total_epochs": Key(20.0, "passes over the training data", (POSITIVE, UNLIMITED), may_change=True),
    "eval_every_epochs": Key(1.0, "epochs between evaluations on the validation split", (POSITIVE, UNLIMITED), may_change=True),
    "log_every_steps": Key(20, "steps between lines of metrics.jsonl", (1, UNLIMITED), may_change=True),
    "checkpoint_every_steps": Key(500, "steps between checkpoints", (1, UNLIMITED), may_change=True),
    "keep_checkpoints": Key(2, "number of newest checkpoints that are kept, in addition to the best", (1, UNLIMITED), may_change=True),
    "dtype": Key("float32", "dtype of the computation; parameters stay float32", choices=("float32", "bfloat16", "float16")),
    "quantise": Key(
        "",
        '"int8" rounds kernels and activations in training as int8 programs do, so that train.export --quantise int8 loses less; see '
        "dilax.use_quantisation",
        choices=("", "int8"),
    ),
    "lowering": Key(
        "auto", 'how convolutions are computed, such as "lax"; see dilax.use_lowering', choices=("auto", *dilax.LOWERINGS), may_change=True
    ),
    "parallel": Key(
        "jit",
        '"jit" runs one program on the mesh, "pmap" the same program on each device, with its share of the batch',
        choices=("jit", "pmap"),
        may_change=True,
    ),
    "mesh.data": Key(
        -1, "devices, or groups of them, that share each batch; -1 is what is left of the devices", (-1, UNLIMITED), may_change=True
    ),
    "mesh.fsdp": Key(
        1,
        "devices that also share each batch, and over which parameters, optimiser state and averages are spread",
        (-1, UNLIMITED),
        may_change=True,
    ),
    "mesh.space": Key(1, "devices over which the height of images, or the time of sequences, is spread", (-1, UNLIMITED), may_change=True),
    "remat": Key(
        (), "regular expressions of modules whose inside is computed again in the backward pass instead of being kept", may_change=True
    ),
    "report": Key(True, "write report/ at the end of the run", may_change=True),
    "compilation_cache_dir": Key("~/.cache/dilax", 'keeps compiled programs between runs; "" keeps none', may_change=True),
    "init_from": Key("", 'folder of a run, or of published weights, from whose best parameters this one starts; "" starts from scratch'),
    "init_into": Key("", 'module that those parameters go into, such as "backbone"; "" is the whole model', needs=_INIT),
    "head_reset": Key(False, "initialise the last layer instead of loading it", needs=_INIT),
    "init_except": Key(
        (), "regular expressions of parameters that are initialised instead of loaded, and need not fit", items=str, needs=_INIT
    ),
    "distill_from": Key(
        "", 'folder of a run, or of published weights, whose class probabilities this run learns from, too; "" learns from the labels alone'
    ),
    "distill.weight": Key(
        0.5, "share of the loss that compares with those probabilities; the rest is the loss of the labels", (0, 1), needs=_TEACHER
    ),
    "distill.temperature": Key(2.0, "temperature that softens both probabilities in that share", (POSITIVE, UNLIMITED), needs=_TEACHER),
    "frozen": Key(
        (), "regular expressions of parameters that are not trained; a norm of which all are frozen uses its running statistics", items=str
    ),
    "data.name": Key("digits", "name of the dataset, see the page of the task"),
    "data.dir": Key("", "file or folder of the data; for TFDS, its data_dir (default: TFDS_DATA_DIR)", may_change=True),
    "data.validation": Key(0.1, "share of the training split that decides between checkpoints; 0 keeps the last checkpoint", (0, 0.999)),
    "data.memory_mb": Key(2048, "decoded datasets above this size are streamed by worker processes", (0, UNLIMITED), may_change=True),
    "data.workers": Key(2, "worker processes of a streamed dataset", (0, UNLIMITED), may_change=True),
    "data.changed": Key(
        "refuse",
        'whether a run is resumed on data that has changed since it began: "refuse" or "accept"',
        choices=("refuse", "accept"),
        may_change=True,
    ),
    "optim.name": Key("adamw", "optimiser", choices=tuple(OPTIMISERS)),
    "optim.lr": Key(1e-3, "peak learning rate", (0, UNLIMITED), may_change=True),
    "optim.schedule": Key("cosine", '"cosine" or "linear" to 0, or "constant", after the warm-up', choices=SCHEDULES),
    "optim.warmup_epochs": Key(1.0, "epochs of linear warm-up", (0, UNLIMITED)),
    "optim.weight_decay": Key(1e-4, "weight decay of kernels; biases and normalisation are left out", (0, UNLIMITED)),
    "optim.momentum": Key(0.9, "momentum of sgd", (0, 1), needs=("optim.name", ("sgd",))),
    "optim.clip_norm": Key(0.0, "largest global norm of the gradient; 0 does not clip", (0, UNLIMITED), may_change=True),
    "optim.accumulate": Key(1, "parts that a batch is run in, one after the other", (1, UNLIMITED)),
    "optim.ema_decay": Key(
        0.0, "decay of a moving average of parameters and batch statistics, which is evaluated and kept; 0 keeps none", (0, 1)
    ),
    "optim.lr_multipliers": Key((), "((regular expression, factor), ...): learning rates of parameters; the first match counts"),
}


def default_config(name: str, task: str = "classification") -> ConfigDict:
    """Return the config that the experiments of a task start from.

    Args:
        name: Name of the run, and of its folder under runs/.
        task: A key of `train.tasks.TASKS`.

    Raises:
        UserError: if there is no such task.
    """
    tree: dict[str, Any] = {"name": name, "task": task}
    for key, described in keys_of(task).items():
        section, _, field = key.rpartition(".")
        node = tree.setdefault(section, {}) if section else tree
        node[field] = described.default
    return ConfigDict({**tree, "model": model_config("dilated_cnn")})


def keys_of(task: str) -> Keys:
    """Return the keys of the configs of a task: those of all runs, then its own."""
    return {**KEYS, **task_class(task).keys}


def task_class(task: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        UserError: if there is no such task.
    """
    if task not in TASKS:
        raise UserError(f"config.task={task!r} is unknown; use one of {tuple(TASKS)}.{did_you_mean(str(task), TASKS)}")
    return TASKS[task]


def model_config(name: str, **fields: Any) -> dict[str, Any]:
    """Return a model's name and all of its fields that a config may set, with `fields` in place of their defaults."""
    if not isinstance(name, str):
        raise UserError(f"config.model.name={name!r} must be a text; dilax.models.names() and docs/models.md list all models.")
    if name not in dilax.models.MODELS:
        near = difflib.get_close_matches(name, dilax.models.MODELS, n=3)
        hint = f" Did you mean {' or '.join(f'{chr(34)}{one}{chr(34)}' for one in near)}?" if near else ""
        raise UserError(f"config.model.name={name!r} is unknown; dilax.models.names() and docs/models.md list all models.{hint}")
    signature = inspect.signature(dilax.models.MODELS[name]).parameters
    # The data sets the outputs and the symbols, config.dtype the dtype; a backbone is a class, which no text can hold.
    given = {*dilax.models.output_fields(name), *dilax.models.symbol_fields(name), "dtype", "backbone", "parent", "name"}
    return {"name": name, **{key: p.default for key, p in signature.items() if key not in given}, **fields}


def check_variant(file: str, variant: str, known: tuple[str, ...]) -> None:
    """Refuse a variant, the word after the colon of `--config configs/digits.py:smoke`, that a config file does not have."""
    if variant not in known:
        raise UserError(f"configs/{os.path.basename(file)} has no variant {variant!r}; use one of {known}.{did_you_mean(variant, known)}")


def check(config: ConfigDict) -> None:
    """Refuse values that no run can use, before anything is made."""
    given: Any = config  # the values of a ConfigDict have no static types
    task = task_class(given.task)
    if not isinstance(given.name, str) or given.name != os.path.basename(given.name) or given.name in ("", ".", ".."):
        raise UserError(f"config.name={given.name!r} must be the name of a folder, such as 'digits'; its place is given by --workdir.")
    keys, values = keys_of(given.task), flatten({key: value for key, value in given.to_dict().items() if key != "model"})
    for key in values:
        if key not in (*keys, "name", "task"):
            raise UserError(_foreign_key(key, given, keys))
    for key, described in keys.items():
        if key not in values:
            raise UserError(f"config.{key} is missing; begin the config with default_config({given.name!r}, task={given.task!r}).")
        described.check(key, values[key])
    if given.batch_size % given.optim.accumulate:
        raise UserError(
            f"config.batch_size={given.batch_size} cannot be run in config.optim.accumulate={given.optim.accumulate} parts; "
            "choose a divisor."
        )
    for problem in unread(given).values():
        raise UserError(problem)
    if isinstance(given.model, ConfigDict) and CHANGES in given.model:
        _check_changes(given.model[CHANGES])
    task.check(given)


def _check_changes(changes: Any) -> None:
    """Refuse changes of a pruned network that are not of the form module -> field -> value; the network itself checks their names."""
    wrong = [] if isinstance(changes, ConfigDict) else [("", changes)]
    wrong = wrong or [(f"[{path!r}]", fields) for path, fields in changes.items() if not isinstance(fields, ConfigDict)]
    if wrong:
        where, value = wrong[0]
        raise UserError(
            f"config.model.{CHANGES}{where}={shown(value)} is not a dict; give {{module: {{field: value}}}}, as train.prune writes it."
        )


def unread(config: ConfigDict) -> dict[str, str]:
    """Return the keys that are set, but that nothing reads with this data or these settings, each with the words to refuse it with."""
    given: Any = config
    task, keys, values = task_class(given.task), keys_of(given.task), flatten(given.to_dict())
    name = given.data.name.partition(":")[0]
    kind = name if name in task.reads else OTHER
    found = {}
    for key, described in keys.items():
        if values[key] == described.default:
            continue
        readers = [other for other, read in task.reads.items() if key in read]
        another, fitting = described.needs or ("", ())
        if readers and kind in task.reads and kind not in readers:
            found[key] = _not_read(key, values, "data.name", [one if one == OTHER else repr(one) for one in readers])
        elif another and not _is_set(values.get(another, False), fitting):
            found[key] = _not_read(key, values, another, [repr(one) for one in fitting])
    return found


def _is_set(value: Any, fitting: tuple[Any, ...]) -> bool:
    """Whether a value, or a part of one such as "cross_entropy+dice", is among those that fit; of none, whether it is not empty."""
    parts = map(str.strip, value.split("+")) if isinstance(value, str) else (value,)
    return any(part in fitting for part in parts) if fitting else bool(value)


def _not_read(key: str, values: dict[str, Any], other: str, fitting: list[str]) -> str:
    """Word the mistake of a key that nothing reads with the value that another has."""
    there = f"it is read with {' or '.join(fitting)}" if fitting else "it is read if that is set"
    return (
        f"config.{key}={values[key]!r} is not read with config.{other}={values.get(other, False)!r}; {there}: remove it, or change "
        f"config.{other}."
    )


def _foreign_key(key: str, config: ConfigDict, keys: Keys) -> str:
    """Word the mistake of a key that is not among the `keys` of the task."""
    owners = " or ".join(repr(name) for name, task in TASKS.items() if key in task.keys)
    if owners:
        return (
            f"config.{key} is a key of config.task={owners}, not of config.task={config.task!r}; remove it, or set the task in the config "
            f"file, with default_config({config.name!r}, task=...)."
        )
    return f"config.{key} is not a key of config.task={config.task!r}; remove it.{did_you_mean(key, keys)}"


def to_json(config: ConfigDict) -> str:
    """Return the config as text that `from_json` reads back, tuples as lists."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """Return the config that `to_json` wrote; a key that did not exist then has its default."""
    saved = with_tuples(json.loads(text))
    parts = {
        key: {**default, **saved.get(key, {})} if isinstance(default, dict) and key != "model" else saved.get(key, default)
        for key, default in default_config(saved["name"], saved["task"]).to_dict().items()
    }
    return ConfigDict({**saved, **parts})


def with_tuples(value: Any) -> Any:
    """Return a value of JSON with tuples in place of its lists."""
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """List what changed from `old` to `new`, as `optim.lr: 0.1 -> 0.2`."""
    before, after = (flatten(json.loads(to_json(config))) for config in (old, new))
    keys = sorted({*before, *after})
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def may_change(config: ConfigDict) -> set[str]:
    """Return the keys that may change between one start of a run and the next; any other change makes it another run."""
    given: Any = config
    return {key for key, described in keys_of(given.task).items() if described.may_change}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one, its keys joined by dots."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return items


def workdir_of(config: ConfigDict, workdir: str | None) -> str:
    """Return the folder of the run: as given, else runs/<name of the config>."""
    return os.path.abspath(user_path(workdir or os.path.join("runs", config.name)))
