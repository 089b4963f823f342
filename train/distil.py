"""Distillation: open the trained network whose class probabilities a run learns from, and see that it fits."""

import pathlib

import jax
from ml_collections import ConfigDict

from dilax import DataSpec, UserError
from dilax.loading import checksum, make_model, read_description, read_status, read_variables
from dilax.publishing import locate
from train import hosts
from train.config import task_class
from train.step import Teacher


def open_teacher(config: ConfigDict, spec: DataSpec) -> Teacher | None:
    """Return the network that config.distill_from names, or None if it names none.

    Args:
        config: The whole config.
        spec: What the data of the run looks like.

    Raises:
        UserError: if the task has no classes, the folder does not hold a trained network, or that does not fit the task and the data.
    """
    given = config.distill_from
    if not given:
        return None
    if not task_class(config.task)(config, spec).has_classes():
        raise UserError(
            f"config.distill_from={given}: what config.task={config.task!r} predicts on data.name={config.data.name!r} are not classes "
            "with probabilities, which distillation compares; leave it out."
        )
    folder = locate("config", "distill_from", given)
    variables, described = read_variables(folder), read_description(folder)
    if not described:
        raise UserError(f"config.distill_from={given} does not say what its network is; give the folder of a run, or of published weights.")
    theirs = DataSpec.from_json(described["data"])
    if described.get("task") != config.task:
        raise UserError(
            f"config.distill_from={given} was trained on the task {described.get('task')}, and config.task is {config.task!r}; give a run "
            "of the same task."
        )
    if found := _misfits(theirs, spec):
        raise UserError(f"config.distill_from={given} {'; '.join(found)}: give a run on the same data, prepared in the same way.")
    sum_of_theirs = checksum(variables)
    hosts.check_all(
        hosts.by_first(lambda: sum_of_theirs) == sum_of_theirs,
        lambda who: f"{who} found other weights than process 0 in config.distill_from={given}; give all processes the same folder.",
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    origin = f"{described['model']['name']} of {parameters:,} parameters in {given}"
    # Its task is that of this config, but for what its predictions depend on.
    own = ConfigDict(config.to_dict())
    if "pool" in own.get("sequence", {}):
        own.sequence.pool = described.get("pool", own.sequence.pool)
    return Teacher(make_model(described["model"]), task_class(config.task)(own, theirs), variables, sum_of_theirs, origin)


def _misfits(theirs: DataSpec, ours: DataSpec) -> list[str]:
    """Say in what the data of a teacher differs from that here so that its classes, or what it makes of the inputs, would be others.

    The colours of images are standardised within the step, for each network as in its training. Other inputs are standardised as they are
    read, and a teacher takes them as they are.
    """
    found = []
    if theirs.outputs != ours.outputs:
        found.append(f"has the classes {_listed(theirs.outputs)}, and the data here {_listed(ours.outputs)}")
    if theirs.input_shape != ours.input_shape:
        found.append(f"was trained on inputs of shape {theirs.input_shape}, and those here have {ours.input_shape}")
    if theirs.symbols != ours.symbols:
        found.append(f"was trained on {len(theirs.symbols)} symbols that are not the {len(ours.symbols)} here")
    if theirs.sample_rate != ours.sample_rate:
        found.append(f"was trained on sounds of {theirs.sample_rate} samples per second, and those here have {ours.sample_rate}")
    if theirs.pixels != ours.pixels:
        found.append(f"reads pixels in the order {theirs.pixels!r}, and config.sequence.permute here gives {ours.pixels!r}")
    images = len(ours.input_shape) == 3 or ours.pixels
    found += [
        f"was trained on inputs with another {word}, by which those here were not standardised"
        for word, key in (("mean", "mean"), ("deviation", "std"))
        if not images and getattr(theirs, key) != getattr(ours, key)
    ]
    return found


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)


def check_same_teacher(teacher: Teacher | None, workdir: pathlib.Path) -> None:
    """Refuse to resume a run with another teacher than the one that it has learned from so far.

    Raises:
        UserError: if the weights are others, as where the run that they come from was trained further.
    """
    if teacher is not None and read_status(workdir).get("teacher", teacher.checksum) != teacher.checksum:
        raise UserError(
            f"the run in {workdir} has learned from other weights than those that are now in its config.distill_from; restore them there, "
            "or begin anew with --restart."
        )
