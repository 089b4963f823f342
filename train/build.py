"""Build what a run is made of from its config and the description of its data: the model, the steps and how they are compiled."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.typing import VariableDict
from ml_collections import ConfigDict

import dilax
import dilax.summary
from dilax import DataSpec, Inference, loading, lowerings
from dilax.errors import UserError
from dilax.files import user_path
from train import checkpoint, folder, optim, parallel
from train.config import CHANGES, check, keys_of, model_config, task_class, unread
from train.interception import recorded
from train.step import Steps, Teacher
from train.tasks import Task

MOST_STEPS = 2**31 - 1  # which int32 counts


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run that is ready to go.

    Attributes:
        config: The whole config.
        spec: What its data looks like.
        task: What it learns.
        steps: Its pure functions, with the model.
        parallel: The same, compiled for all devices.
        example: Shape and dtype of one model input, with the batch axis.
        init: () -> freshly initialised variables.
        shapes: Their shapes.
        total_steps: Steps of the whole run.
        steps_per_epoch: Not a whole number where the batch does not divide the data.
        teacher: The network that it is distilled from, or None.
    """

    config: ConfigDict
    spec: DataSpec
    task: Task
    steps: Steps
    parallel: parallel.Parallel
    example: jax.ShapeDtypeStruct
    init: Callable[[], dict[str, Any]]
    shapes: dict[str, Any]
    total_steps: int
    steps_per_epoch: float
    teacher: Teacher | None = None

    def inference(self, variables: VariableDict) -> Inference:
        """Return the model with variables, ready to predict."""
        return Inference(self.steps.model, variables, self.spec, **prediction_of(self.config))


def build(config: ConfigDict, spec: DataSpec, *, task: Task | None = None, teacher: Teacher | None = None) -> Setup:
    """Make the model, the optimiser and the steps of a config.

    Args:
        config: The whole config.
        spec: What its data looks like.
        task: The task, if flags have changed it; None makes it.
        teacher: What `train.distil.open_teacher` returns; only training needs it.

    Raises:
        UserError: if a name or a value of the config cannot be used.
    """
    check(config)
    task = task or task_class(config.task)(config, spec)
    steps_per_epoch = max(1, spec.examples) / config.batch_size
    total_steps = max(1, round(config.total_epochs * steps_per_epoch))
    if total_steps > MOST_STEPS:
        raise UserError(
            f"config.total_epochs={config.total_epochs:g} of {spec.examples} training records are {total_steps:.3g} steps of "
            f"config.batch_size={config.batch_size}, and a run counts up to {MOST_STEPS}; choose fewer epochs."
        )
    model = make_model(config, spec)
    example = example_of(config, spec)

    def init_with_output(key: jax.Array) -> Any:
        with dilax.use_lowering(config.lowering):
            outputs, variables = model.init_with_output(key, jnp.zeros(example.shape, example.dtype), train=False)
        # A model without running statistics gets an empty collection, so that all variables have one form.
        return outputs, {"batch_stats": {}, **variables}

    key = jax.random.key(config.seed)
    # Shapes first: a mistake in the config is found before anything is compiled.
    paths: list[str] = []
    with recorded(paths):
        outputs, shapes = jax.eval_shape(init_with_output, key)
    if refusal := task.refusal(model, outputs):
        raise UserError(f"config.model.name={config.model.name!r} {refusal}; choose another model, or another task.")
    optim.check_patterns(config.remat, paths, "remat", "module")
    tx = optim.make(config, shapes["params"], steps_per_epoch, total_steps)
    # Of weight 0 it changes nothing, and need not run.
    steps = Steps(model, task, tx, config, teacher=teacher if config.distill.weight else None)
    compiled = parallel.make(steps, shapes)
    init = jax.jit(lambda key: init_with_output(key)[1])
    return Setup(config, spec, task, steps, compiled, example, lambda: init(key), shapes, total_steps, steps_per_epoch, teacher)


def example_of(config: ConfigDict, spec: DataSpec) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of a batch of one model input."""
    return jax.ShapeDtypeStruct((1, *spec.input_shape), jnp.dtype(spec.dtype if spec.symbols else config.dtype))


def make_model(config: ConfigDict, spec: DataSpec) -> Any:
    """Make config.model for the outputs and the symbols of the data."""
    known = model_config(config.model.name)
    if unknown := [field for field in config.model if field not in (*known, CHANGES)]:
        raise UserError(
            f"config.model.name={config.model.name!r} has no field {', '.join(unknown)}; "
            "choose another model in a config file, with model_config(...)."
        )
    return loading.make_model(model_fields(config, spec))


def model_fields(config: ConfigDict, spec: DataSpec) -> dict[str, Any]:
    """Return what `dilax.loading.make_model` makes the model of a run from; JSON can hold it."""
    fields = config.model.to_dict()
    outputs = dict.fromkeys(dilax.models.output_fields(fields["name"]), len(spec.outputs))
    # A model with one field for its symbols and its outputs reads what it writes.
    symbols = dict.fromkeys(dilax.models.symbol_fields(fields["name"]), len(spec.symbols))
    dtype = {} if config.dtype == "float32" else {"dtype": config.dtype}
    return {**fields, **outputs, **symbols, **dtype}


def prediction_of(config: ConfigDict) -> dict[str, Any]:
    """Return what a prediction has to know of a config; see `dilax.Inference`."""
    pool, size = config.get("sequence", {}).get("pool", "last"), config.data.get("image_size", 0)
    return {"task": config.task, "pool": pool, "image_size": size}


def summary(config: ConfigDict) -> str:
    """Return the layers of the model of a config as a table; its data says how many outputs it has and what its inputs look like."""
    check(config)
    spec = task_class(config.task).open(config).spec
    return dilax.summary.summary(make_model(config, spec), example_of(config, spec))


def describe(setup: Setup) -> str:
    """Return a line on the devices and a line on the model of a run."""
    config, params = setup.config, setup.shapes["params"]
    frozen = jax.tree.map(lambda leaf, hit: leaf.size * hit, params, optim.matches(config.frozen, params, "frozen"))
    total, fixed = (sum(jax.tree.leaves(tree)) for tree in (jax.tree.map(lambda leaf: leaf.size, params), frozen))
    some = f", {fixed:,} of them frozen" if fixed else ""
    native = f", oneDNN {version}" if (version := lowerings.onednn_version()) else ""
    pruned = "pruned " if config.model.get(CHANGES) else ""
    taught = f", distilled from {setup.teacher.origin}" if setup.teacher else ""
    model = f"{pruned}{config.model.name}, {total:,} parameters{some}{taught}"
    return f"device: {_devices(config)}, {config.dtype}{native}\nmodel: {model}"


def _devices(config: ConfigDict) -> str:
    """Word the devices and how they are used, such as "8 cpu of 2 processes, jit over data=4, space=2"."""
    devices, processes = jax.devices(), jax.process_count()
    words = f"{len(devices)} {devices[0].device_kind}{f' of {processes} processes' if processes > 1 else ''}"
    sizes = parallel.mesh_sizes(config.mesh, len(devices))
    shared = ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
    over = f" over {shared}" if sizes[parallel.DATA] < len(devices) else ""
    return f"{words}, {config.parallel}{over}" if len(devices) > 1 else words


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that has something to show: what evaluation and prediction need.

    Attributes:
        setup: Config, data description, task, model and steps.
        inference: The model with the best variables.
        finished: Whether the run has ended, so that these are not just its best variables so far.
    """

    setup: Setup
    inference: Inference
    finished: bool = True


def load_trained(workdir: pathlib.Path, changes: dict[str, Any] | None = None) -> Trained:
    """Open the run in a folder.

    Args:
        workdir: Its folder.
        changes: Keys of the part `data` of its config to replace, such as {"dir": ...}.

    Raises:
        UserError: if it does not hold a trained run.
    """
    workdir = user_path(workdir).absolute()
    config, status = folder.read_run(workdir)
    with config.unlocked():
        for key in unread(config):  # by earlier versions accepted in silence
            config.update_from_flattened_dict({key: keys_of(config.task)[key].default})
        config.data.update(changes or {})
    check(config)
    variables = loading.read_variables(workdir)
    _fit_to_devices(config)
    setup = build(config, DataSpec.from_json(status["data"]))
    saved, wanted = loading.describe_leaves(variables), loading.describe_leaves(setup.shapes)
    checkpoint.check_same_leaves(saved, wanted, f"the checkpoint in {workdir}")
    return Trained(setup, setup.inference(variables), bool(status.get("finished")))


def fit_mesh(config: ConfigDict) -> dict[str, int]:
    """Replace the mesh of a run by the default one where it does not fit the devices here; return its sizes."""
    given: Any = config
    try:
        return parallel.mesh_sizes(given.mesh, jax.device_count())
    except UserError:
        given.mesh.update(parallel.DEFAULT_MESH)
        return parallel.mesh_sizes(given.mesh, jax.device_count())


def _fit_to_devices(config: ConfigDict) -> None:
    """Change what a run can do without where there are other devices than those it was trained on: its mesh, and the size of its batch."""
    given: Any = config
    sizes = fit_mesh(config)
    # Evaluation pads its batches.
    unit = sizes[parallel.DATA] * sizes[parallel.FSDP] * given.optim.accumulate
    given.batch_size = -(-given.batch_size // unit) * unit


def status_of(setup: Setup) -> dict[str, Any]:
    """Return what run.json says of a run from its start: enough for `dilax.load` to make the model."""
    return {
        "model": model_fields(setup.config, setup.spec),
        **prediction_of(setup.config),
        "data": setup.spec.to_json(),
        "versions": folder.versions(),
        **({"teacher": setup.teacher.checksum} if setup.teacher else {}),
    }
