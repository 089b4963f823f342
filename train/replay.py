"""Find where a run stopped being finite: `python -m train.replay --workdir runs/digits`.

A run that stops at a step whose loss, gradient or parameters are not finite leaves replay/step.json: the step, and the records of its
batch. This program takes the steps from the newest checkpoint up to that one again, to the bit, saves the state before it to replay/state,
and says which layer is the first to give values that are not finite, forward or, from the loss back, in the gradient.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dilax.errors import UserError, reason
from dilax.loading import leaves_with_paths, read_status
from train import checkpoint, cli, hosts
from train.build import Setup, build, fit_mesh
from train.config import task_class
from train.data import train_batches
from train.data.batches import indices_of
from train.distil import open_teacher
from train.files import locked
from train.folder import BAD_STEP, REPLAY, read_run
from train.step import TrainState

STATE = "state"


def replay(workdir: pathlib.Path, step: int | None = None) -> list[str]:
    """Take a step of a run again, and return what is found in it, a line each.

    Args:
        workdir: Folder of the run.
        step: The step; None is the one in replay/step.json.

    Raises:
        UserError: if the run has no such step, or the state before it cannot be restored.
    """
    config, _ = read_run(workdir)
    with config.unlocked():
        config.remat = ()  # what is computed again is computed once here, layer by layer
        fit_mesh(config)
    stopped_at = _step_of(workdir) if step is None or (workdir / REPLAY / BAD_STEP).exists() else None
    step = stopped_at if step is None else step
    assert step is not None
    with locked(workdir):
        splits = task_class(config.task).open(config)
        setup = build(config, splits.spec, teacher=open_teacher(config, splits.spec))
        if not 1 <= step <= setup.total_steps:
            raise UserError(f"--step={step} is not a step of {workdir}; give 1 to {setup.total_steps}.")
        began, state = _state_before(workdir, setup, step)
        batches = train_batches(splits.train, config.batch_size, seed=config.seed, start_step=began, rows=setup.parallel.share)
        key = jax.random.key(config.seed + 1)
        state = setup.parallel.put(state)
        for _, batch in zip(range(began, step - 1), batches):
            state, _ = setup.parallel.train(state, setup.parallel.put_batch(batch), key)
        with checkpoint.Store(workdir / REPLAY / STATE, run=read_status(workdir)["run"]) as store:
            store.clear()
            store.save(step - 1, setup.parallel.get(state))
        batch = next(batches)
        found = examine(setup, jax.device_get(setup.parallel.get(state)), batch, key)
    indices = indices_of(len(splits.train), config.batch_size, config.seed, step - 1)
    lines = [f"step {step}, taken again from step {began}; the state before it is in {workdir / REPLAY / STATE}."]
    lines.append(f"batch: the training records {', '.join(map(str, indices))}.")
    if not found and step == stopped_at:
        found = ["all values of this step are finite here: devices, versions or the data are not those of the run."]
    return [*lines, *(found or ["all values of this step are finite."])]


def _step_of(workdir: pathlib.Path) -> int:
    path = workdir / REPLAY / BAD_STEP
    try:
        return int(json.loads(path.read_text())["step"])
    except FileNotFoundError as error:
        raise UserError(
            f"{workdir} has no {REPLAY}/{BAD_STEP}: all its steps were finite; name one with --step=N to look into it."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read; name the step with --step=N.") from error


def _state_before(workdir: pathlib.Path, setup: Setup, step: int) -> tuple[int, Any]:
    """Return the newest saved step before another, and its state; 0 and the initial state if there is none."""
    like = jax.eval_shape(setup.steps.init, setup.shapes)
    with checkpoint.Store(workdir / checkpoint.CHECKPOINTS, run=read_status(workdir)["run"]) as store:
        for one in sorted((one for one in checkpoint.saved_steps(workdir) if one < step), reverse=True):
            try:
                return one, store.restore_step(one, like, setup.parallel.shardings(like))
            except hosts.NOT_DAMAGE:
                raise
            except Exception as error:  # orbax has no error class of its own for damaged files
                print(f"warning: checkpoint {one} cannot be read ({reason(error)}); trying the one before.", file=sys.stderr)
    if setup.config.init_from:
        raise UserError(f"{workdir} has no intact checkpoint before step {step}, and began from another run; begin anew with --restart.")
    return 0, setup.steps.init(setup.init())


@dataclasses.dataclass
class _Calls:
    """The calls of modules while a step is traced: their names, what they return, and whether all of that is finite."""

    names: list[str] = dataclasses.field(default_factory=list)
    outputs: list[Any] = dataclasses.field(default_factory=list)
    finite: list[jax.Array] = dataclasses.field(default_factory=list)


def examine(setup: Setup, state: TrainState, batch: dict[str, Any], key: jax.Array) -> list[str]:
    """Say what is not finite in a step, from the batch to the parameters after it, a line each; the first line is the cause.

    Args:
        setup: The run.
        state: The state before the step.
        batch: Its batch.
        key: The key of the run.
    """
    config = setup.config
    augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
    augmented = setup.task.augment(augment_key, batch, 0)
    found = [f"the field {path!r} of the batch is not finite." for path in _not_finite(batch)]
    found += [f"the field {path!r} of the augmented batch is not finite." for path in _not_finite(augmented)]
    found += [f"{path!r} of the state is not finite before the step." for path in _not_finite(_fields(state))]
    parts, collections = config.optim.accumulate, state.collections
    for number, part_key in enumerate(jax.random.split(loss_key, parts)):
        part = jax.tree.map(lambda a, number=number: a.reshape(-1, parts, *a.shape[1:])[:, number], augmented)
        collections, lines = _examine_part(setup, state, collections, part, part_key)
        found += [f"part {number + 1} of {parts}: {line}" if parts > 1 else line for line in lines]
    if not found:
        after, sums = jax.jit(setup.steps.train)(state, batch, key, _teacher_of(setup))
        found = [f"{path!r} of the state is not finite after the step." for path in _not_finite(_fields(after))]
        found += [f"{path} is not finite." for path in _not_finite(sums)]
    return found


def _teacher_of(setup: Setup) -> Any:
    """Return the variables of the network that the run is distilled from, or None."""
    return setup.steps.teacher.variables if setup.steps.teacher else None


def _fields(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in vars(state).items() if name != "step" and value is not None}


def _examine_part(setup: Setup, state: TrainState, collections: Any, part: Any, key: jax.Array) -> tuple[Any, list[str]]:
    """Say which layer is the first whose output, and from the loss back whose gradient, is not finite in one part of a batch.

    Returns:
        The collections after the part, and the lines.
    """
    scale = len(jax.tree.leaves(part)[0])
    taught = setup.steps.taught(_teacher_of(setup), part)

    def run(params: Any, added: Sequence[Any] | None) -> tuple[jax.Array, Any, _Calls]:
        calls = _Calls()
        with nn.intercept_methods(_recording(calls, added)):
            objective, loss = setup.steps.objective(params, state, collections, part, key, scale, taught)
        return objective, loss.collections, calls

    names: list[str] = []

    def shapes(params: Any) -> list[Any]:
        *_, calls = run(params, None)
        names.extend(calls.names)
        return calls.outputs

    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(shapes, state.params))

    def objective(params: Any, added: Sequence[Any]) -> tuple[jax.Array, Any]:
        value, after, calls = run(params, added)
        return value, (after, calls.finite)

    gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    (loss, (after, finite)), (for_params, for_outputs) = gradient(state.params, zeros)
    forward = [name for name, whole in zip(names, finite) if not whole]
    backward = [name for name, given in zip(names, for_outputs) if _not_finite(given)]
    if forward:
        return after, [f"forward, the first output that is not finite is that of {forward[0]}; {len(forward)} of {len(names)} are not."]
    if not np.isfinite(loss):
        return after, ["forward, the outputs of all layers are finite, and the loss is not."]
    if backward:
        first = f"backward, from the loss, the first gradient that is not finite is that with respect to the output of {backward[-1]}"
        return after, [f"{first}; {len(backward)} of {len(names)} are not."]
    return after, [f"the gradient of the parameter {path!r} is not finite." for path in _not_finite(for_params)]


def _recording(calls: _Calls, added: Sequence[Any] | None) -> Callable[..., Any]:
    """Return an interceptor that records what modules return, and adds zeros to it, whose gradients are those of the outputs."""

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        leaves = [leaf for leaf in jax.tree.leaves(y) if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)]
        if context.method_name != "__call__" or not leaves or len(leaves) < len(jax.tree.leaves(y)):
            return y
        number = len(calls.names)
        path = "/".join(context.module.path)
        calls.names.append(f"{path} ({type(context.module).__name__})" if path else f"the model ({type(context.module).__name__})")
        if added is not None:
            y = jax.tree.map(jnp.add, y, added[number])
        calls.outputs.append(y)
        calls.finite.append(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all())
        return y

    return intercept


def _not_finite(tree: Any) -> list[str]:
    """Return the paths of the arrays of a tree that hold a NaN or an infinity."""
    return [path for path, leaf in leaves_with_paths(tree) if not bool(jnp.isfinite(jnp.asarray(leaf)).all())]


def main() -> None:
    """Print what is found, a line each."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--workdir", required=True, type=cli.folder, help="folder of the run")
    parser.add_argument("--step", type=int, help="the step to look into; the default is the one at which the run stopped")
    args = parser.parse_args()
    for line in replay(args.workdir, args.step):
        print(line)


if __name__ == "__main__":
    cli.run(main)
