"""What a run is made of: its folder, and from its config the model, the steps and how they are compiled."""

import dataclasses
import functools
import inspect
import json
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import dilax
import dilax.summary
from dilax.errors import UserError
from train import checkpoint, data, optim, parallel
from train import config as configs
from train.config import differences, from_json, model_config, to_json
from train.step import Steps
from train.tasks import TASKS
from train.writers import write_text

CONFIG, STATUS = "config.json", "run.json"
# What may change between one start of a run and the next; all else would make it another run.
MAY_CHANGE = (
    "optim.lr",
    "optim.clip_norm",
    "total_epochs",
    "eval_every_epochs",
    "log_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "parallel",
    "report",
    "compilation_cache_dir",
    "data.dir",
    "data.download",
    "data.memory_mb",
    "data.workers",
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run that is ready to go.

    Attributes:
        config: The whole config.
        steps: Its pure functions, with the model.
        parallel: The same, compiled for all devices.
        example: Shape and dtype of one batch of one image, as the model sees it.
        init: () -> freshly initialised parameters and running statistics.
        shapes: Their shapes.
        total_steps: Steps of the whole run.
        steps_per_epoch: Not a whole number where the batch does not divide the data.
    """

    config: ConfigDict
    steps: Steps
    parallel: parallel.Parallel
    example: jax.ShapeDtypeStruct
    init: Callable[[], dict[str, Any]]
    shapes: dict[str, Any]
    total_steps: int
    steps_per_epoch: float

    @functools.cached_property
    def outputs(self) -> Callable[[Any, Any], Any]:
        """(variables, batch) -> what the model makes of it, on one device; as `Steps.outputs`, compiled once for each shape."""
        return jax.jit(self.steps.outputs)


def setup(
    config: ConfigDict,
    num_classes: int,
    input_shape: tuple[int, ...],
    examples: int,
    class_weights: tuple[float, ...] = (),
    vocabulary: int = 0,
) -> Setup:
    """Make the model, the optimiser and the steps of a config.

    Args:
        config: The whole config.
        num_classes: Of the data.
        input_shape: Of an example: (height, width, channels), (time, channels), or (time,) of codes.
        examples: In the training split.
        class_weights: In the loss of segmentation; () weighs all alike.
        vocabulary: Number of codes, where the input is codes.

    Raises:
        UserError: if a name or a value of the config cannot be used.
    """
    configs.check(config)
    steps_per_epoch = examples / config.batch_size
    total_steps = max(1, round(config.total_epochs * steps_per_epoch))
    axis_name = parallel.axis_name(config.parallel)
    model = make_model(config, num_classes, axis_name, vocabulary)
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.dtype("int32" if vocabulary else config.dtype))

    def init_with_output(key: jax.Array) -> Any:
        outputs, variables = model.init_with_output(key, jnp.zeros(example.shape, example.dtype), train=False)
        # A model without running statistics gets an empty collection, so that all variables have one form.
        return outputs, {"batch_stats": {}, **variables}

    key = jax.random.key(config.seed)
    if len(input_shape) == 3:
        _check_colours(config, input_shape[-1])
    task = TASKS[config.task](config, num_classes, class_weights)
    # Shapes first: a mistake in the config is found before anything is compiled.
    outputs, shapes = jax.eval_shape(init_with_output, key)
    _check_outputs(config, outputs, task.output_shapes(input_shape))
    tx = optim.make(config, shapes["params"], steps_per_epoch, total_steps)
    steps = Steps(model, task, tx, config, axis_name)
    compiled = parallel.make(config.parallel, steps, config.batch_size)
    init = jax.jit(lambda key: init_with_output(key)[1])
    return Setup(config, steps, compiled, example, lambda: init(key), shapes, total_steps, steps_per_epoch)


def _check_colours(config: ConfigDict, channels: int) -> None:
    for key in ("mean", "std"):
        if len(config.data[key]) not in (0, 1, channels):
            raise UserError(
                f"config.data.{key}={tuple(config.data[key])} must have one number for each of the {channels} channels, or one."
            )


def _check_outputs(config: ConfigDict, outputs: Any, wanted: tuple[tuple[int, ...], ...]) -> None:
    """Refuse a model of another task; `wanted` are shapes that fit, without the batch."""
    shape = getattr(outputs, "shape", None)
    if shape not in [(1, *one) for one in wanted]:
        needs = " or ".join(str((1, *one)) for one in wanted)
        raise UserError(
            f"config.model.name={config.model.name!r} gives outputs of shape {shape}, and config.task={config.task!r} needs {needs}; "
            "set a model of that task."
        )


def make_model(config: ConfigDict, num_classes: int, axis_name: str | None = None, vocabulary: int = 0) -> Any:
    """Make config.model, with as many outputs as there are classes, and symbols as there are codes."""
    fields = {key: value for key, value in config.model.items() if key != "name"}
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
    known = model_config(config.model.name)
    if unknown := [field for field in fields if field not in known]:
        raise UserError(
            f"config.model.name={config.model.name!r} has no field {', '.join(unknown)}; "
            "set another model in a config file, with model_config(...)."
        )
    given = dict(num_classes=num_classes, out_features=num_classes, sources=num_classes, vocabulary=vocabulary, axis_name=axis_name)
    has = inspect.signature(dilax.models.MODELS[config.model.name]).parameters
    return dilax.models.create(config.model.name, dtype=dtype, **{key: value for key, value in given.items() if key in has}, **fields)


def summary(config: ConfigDict) -> str:
    """Return the layers of the model of a config as a table; the data says how many classes and what shape its images have."""
    configs.check(config)
    splits = data.open_splits(config)
    model = make_model(config, len(splits.class_names), vocabulary=len(splits.symbols))
    dtype = jnp.dtype("int32" if splits.symbols else config.dtype)
    return dilax.summary.summary(model, jax.ShapeDtypeStruct((1, *splits.input_shape), dtype))


def open_folder(config: ConfigDict, workdir: pathlib.Path, *, restart: bool = False) -> None:
    """Make the folder of a run, or check that the run in it is this one and is not finished.

    Raises:
        UserError: if it holds a finished run or one of another config, or cannot be written.
    """
    if restart and config.init_from and pathlib.Path(config.init_from).absolute() == workdir:
        raise UserError(f"--restart would move {workdir} aside, which config.init_from names; give another --workdir.")
    try:
        if restart and (workdir / CONFIG).exists():
            os.replace(workdir, _free_name(workdir))
        workdir.mkdir(parents=True, exist_ok=True)
        _check_old_run(config, workdir)
        write_text(workdir / "writable", "")
        (workdir / "writable").unlink()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror or error}; give another.") from error


def _check_old_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    if not (workdir / CONFIG).exists():
        if any(path.name not in (checkpoint.CHECKPOINTS, checkpoint.BEST) for path in workdir.iterdir()):
            raise UserError(f"--workdir={workdir} holds files but no run; give an empty or a new folder.")
        return
    old = from_json((workdir / CONFIG).read_text())
    changed = [line for line in differences(old, config) if line.split(":")[0] not in MAY_CHANGE]
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed)}); give the same config to resume it, "
            "--restart to begin anew (the old one is moved aside), or another --workdir."
        )
    status = read_status(workdir)
    if status.get("finished") and config.total_epochs <= old.total_epochs:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in status["metrics"].items())
        raise UserError(
            f"{workdir} holds a finished run ({metrics}); pass --config.total_epochs={2 * old.total_epochs:g} to train it further, "
            "--restart to begin anew (the old one is moved aside), or another --workdir."
        )


def _free_name(workdir: pathlib.Path) -> pathlib.Path:
    return next(path for i in range(1, 10**6) if not (path := workdir.with_name(f"{workdir.name}-old-{i}")).exists())


def write_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Write config.json: from here on the folder holds this run."""
    write_text(workdir / CONFIG, to_json(config))


def read_status(workdir: pathlib.Path) -> dict[str, Any]:
    """Return run.json, or an empty dict."""
    path = workdir / STATUS
    return json.loads(path.read_text()) if path.exists() else {}


def write_status(workdir: pathlib.Path, **values: Any) -> None:
    """Add values to run.json."""
    write_text(workdir / STATUS, json.dumps({**read_status(workdir), **values}, indent=2))


def versions() -> dict[str, str]:
    """What the figures of a run depend on."""
    import flax

    device = jax.devices()[0]
    return {
        "dilax": dilax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {device.device_kind}",
    }


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that has something to show: what evaluation and prediction need.

    Attributes:
        config: The whole config.
        setup: Model and steps.
        variables: The best ones, as numpy arrays.
        class_names: Of the data.
        input_shape: As `setup`.
        examples: In the training split when the run began; 0 if it was not trained here.
        symbols: As `train.data.Splits`; so is facts.
        facts: Of the data.
    """

    config: ConfigDict
    setup: Setup
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    examples: int
    symbols: tuple[str, ...]
    facts: dict[str, Any]


def load_trained(workdir: pathlib.Path, changes: dict[str, Any] | None = None) -> Trained:
    """Open the run in a folder.

    Args:
        workdir: Its folder.
        changes: Keys of the part `data` of its config to replace, such as {"dir": ...}.

    Raises:
        UserError: if there is no run in it.
    """
    status = read_status(workdir)
    if not (workdir / CONFIG).exists() or not status:
        raise UserError(f"--workdir={workdir} holds no run; train one with `python -m train.main --config=... --workdir={workdir}`.")
    config = from_json((workdir / CONFIG).read_text())
    with config.unlocked():
        config.data.update(changes or {})
    variables = checkpoint.read_variables(workdir)
    # Evaluation pads its batches, so that of training is rounded up where it does not fit the devices that are here now.
    unit = jax.device_count() * config.optim.accumulate
    config.batch_size = -(-config.batch_size // unit) * unit
    names, shape = tuple(status["class_names"]), tuple(status["input_shape"])
    symbols = tuple(status.get("symbols", ()))
    made = setup(config, len(names), shape, max(1, status["examples"]), vocabulary=len(symbols))
    like, saved = checkpoint.describe(made.shapes), checkpoint.describe(variables)
    checkpoint.check_same_leaves(saved, like, f"the checkpoint in {workdir}")
    return Trained(config, made, variables, names, shape, status["examples"], symbols, status.get("facts", {}))
