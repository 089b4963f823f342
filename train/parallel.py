"""Several devices: the mesh, the placement of state and batches on it, and the compilation of the steps.

"jit" spreads the batch over the mesh, and perhaps parameters and space; "pmap" splits the batch, and binds the device axis for the steps
and for the blocks of the model.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dilax.blocks import batch_axis
from dilax.errors import UserError
from train.step import Devices, Steps
from train.tasks.base import Task

AXES = DATA, FSDP, SPACE = "data", "fsdp", "space"
BATCH = (DATA, FSDP)  # the axes that examples are spread over
SMALL = 4096  # elements; to gather a smaller array would take longer than its memory is worth
DEFAULT_MESH = {DATA: -1, FSDP: 1, SPACE: 1}
LEFT = -1  # as the size of an axis: what is left of the devices


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A way to run on all devices, which share each batch.

    Attributes:
        put: Convert a state or variables to the form that the steps take.
        get: Convert a result of the steps to a tree of device arrays.
        put_batch: Convert this process's rows of a batch from numpy arrays to device arrays.
        train: The compiled `Steps.train`; it donates the state.
        evaluate: The compiled `Steps.evaluate`.
        rows: Convert arrays of `evaluate` with one row per example to numpy arrays of all rows of the batch.
        shardings: Tree of arrays or shapes -> tree of their shardings in the form that `get` returns.
        share: The rows of each batch that this process reads, ascending.
    """

    put: Callable[[Any], Any]
    get: Callable[[Any], Any]
    put_batch: Callable[[dict[str, np.ndarray]], Any]
    train: Callable[[Any, Any, Any], Any]
    evaluate: Callable[[Any, Any], Any]
    rows: Callable[[Any], dict[str, np.ndarray]]
    shardings: Callable[[Any], Any]
    share: np.ndarray


@dataclasses.dataclass(frozen=True)
class Distilled:
    """A compiled training step with the variables of its teacher, which it takes as an argument.

    Attributes:
        step: (state, batch, key, variables) -> state, sums.
        teacher: The variables, complete on every device.
    """

    step: Any
    teacher: Any

    def __call__(self, state: Any, batch: Any, key: Any) -> Any:
        """Take one step."""
        return self.step(state, batch, key, self.teacher)

    def lower(self, state: Any, batch: Any, key: Any) -> Any:
        """Return the step lowered for such arguments."""
        return self.step.lower(state, batch, key, self.teacher)


def make(steps: Steps, shapes: Any) -> Parallel:
    """Return the `Parallel` of the config of the steps.

    Args:
        steps: The pure functions of a run.
        shapes: Shapes of the variables of its model.

    Raises:
        UserError: if the devices do not form the mesh, or the batch cannot be split evenly.
    """
    config: Any = steps.config
    sizes, parts = mesh_sizes(config.mesh, jax.device_count()), config.optim.accumulate
    unit = sizes[DATA] * sizes[FSDP] * parts
    if config.batch_size % unit:
        part = f" in {parts} parts" if parts > 1 else ""
        near = max(unit, config.batch_size // unit * unit)
        raise UserError(
            f"config.batch_size={config.batch_size} cannot be spread over {unit // parts} devices{part}; use a multiple, such as {near}."
        )
    if config.parallel == "pmap":
        _check_pmap(sizes, jax.process_count())
        return _pmap(steps, config.batch_size)
    return _jit(steps, shapes, make_mesh(sizes))


def mesh_sizes(given: Mapping[str, int], devices: int) -> dict[str, int]:
    """Return the sizes of the axes of config.mesh on a number of devices.

    Raises:
        UserError: if they do not take all devices.

    Example:
        >>> mesh_sizes({"data": -1, "fsdp": 2, "space": 1}, 8)
        {'data': 4, 'fsdp': 2, 'space': 1}
    """
    sizes = {axis: int(given[axis]) for axis in AXES}
    words = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
    if 0 in sizes.values():
        raise UserError(f"{words}: an axis of 0 devices is impossible; give 1 or more, or -1 for what is left of the devices.")
    left = [axis for axis, size in sizes.items() if size == LEFT]
    if len(left) > 1:
        raise UserError(f"{words}: only one axis can take what is left of the devices (-1); give the number of devices of the others.")
    taken = math.prod(size for size in sizes.values() if size != LEFT)
    if left and devices % taken:
        raise UserError(f"{words}: {devices} devices cannot be divided by {taken}; choose divisors of {devices}.")
    if left:
        sizes[left[0]] = devices // taken
    elif taken != devices:
        raise UserError(f"{words}: that makes {taken} devices, and there are {devices}; set config.mesh.data=-1, which takes what is left.")
    return sizes


def _check_pmap(sizes: Mapping[str, int], processes: int) -> None:
    if processes > 1:
        raise UserError(f'config.parallel="pmap" runs in one process, and there are {processes}; use config.parallel="jit".')
    others = [f"config.mesh.{axis}={sizes[axis]}" for axis in (FSDP, SPACE) if sizes[axis] > 1]
    if others:
        raise UserError(f'config.parallel="pmap" spreads the batch alone, not {" and ".join(others)}; use config.parallel="jit".')


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """Return a mesh of all devices, of all processes."""
    # By default, jax.make_mesh creates explicit axes, with which a batch cannot be cropped or gathered freely.
    return jax.make_mesh(tuple(sizes[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec_of(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """Return how an array of a state is spread over the axis "fsdp" of `parts` devices.

    It is split along its largest dimension that `parts` divides (the last of those that tie). A small array, and one that cannot be split,
    is complete on every device.

    Example:
        >>> tuple(spec_of((3, 3, 64, 128), 4)), tuple(spec_of((128,), 4))
        ((None, None, None, 'fsdp'), ())
    """
    if parts == 1 or math.prod(shape) < SMALL:
        return PartitionSpec()
    size, axis = max(((size, axis) for axis, size in enumerate(shape) if size % parts == 0), default=(0, 0))
    return PartitionSpec(*(None,) * axis, FSDP) if size else PartitionSpec()


def _jit(steps: Steps, shapes: Any, mesh: Mesh) -> Parallel:
    replicated, by_batch = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(BATCH))

    def shardings(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: NamedSharding(mesh, spec_of(leaf.shape, mesh.shape[FSDP])), tree)

    steps = dataclasses.replace(steps, devices=devices_of_mesh(steps.task.spatial, mesh))
    state = shardings(jax.eval_shape(steps.init, shapes))
    share = share_of(by_batch, steps.config.batch_size)
    teacher = () if steps.teacher is None else (replicated,)
    train: Any = jax.jit(
        steps.train, donate_argnums=0, in_shardings=(state, by_batch, replicated, *teacher), out_shardings=(state, replicated)
    )
    return Parallel(
        put=lambda tree: _copied(*_flat(shardings(tree)))(jax.tree.map(_of_every_process, tree)),
        get=lambda tree: tree,
        put_batch=functools.partial(_put_batch, by_batch, share, steps.config.batch_size),
        train=train if steps.teacher is None else Distilled(train, jax.device_put(steps.teacher.variables, replicated)),
        evaluate=jax.jit(steps.evaluate, in_shardings=(None, by_batch), out_shardings=replicated),
        rows=jax.device_get,
        shardings=shardings,
        share=share,
    )


def _flat(shardings: Any) -> tuple[Any, tuple[NamedSharding, ...]]:
    leaves, structure = jax.tree.flatten(shardings)
    return structure, tuple(leaves)


@functools.lru_cache(maxsize=16)
def _copied(structure: Any, leaves: tuple[NamedSharding, ...]) -> Callable[[Any], Any]:
    """Return a program that copies a tree: device_put may alias its argument, which donating the state would then delete."""
    return jax.jit(lambda tree: jax.tree.map(jax.numpy.copy, tree), out_shardings=jax.tree.unflatten(structure, leaves))


def _of_every_process(leaf: Any) -> Any:
    """Return an array that each process has made for itself in a form that stands for one array of all."""
    own = jax.process_count() > 1 and isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_fully_addressable
    return np.asarray(leaf) if own else leaf


def share_of(by_batch: NamedSharding, batch_size: int) -> np.ndarray:
    """Return the rows of a batch that the devices of this process hold."""
    slices = by_batch.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in slices]))


def _put_batch(by_batch: NamedSharding, share: np.ndarray, batch_size: int, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Make arrays of whole batches from the rows of them that this process has read."""
    if jax.process_count() == 1:
        return jax.device_put(batch, by_batch)

    def put(values: np.ndarray) -> jax.Array:
        def rows_of(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            at = int(np.searchsorted(share, start))
            return values[at : at + stop - start]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), by_batch, rows_of)

    return {name: put(values) for name, values in batch.items()}


def devices_of_mesh(spatial: tuple[str, ...], mesh: Mesh) -> Devices:
    """Return what a step does on a mesh: gather spread parameters where they are used, and spread the fields `spatial` of a batch."""
    parts, space = mesh.shape[FSDP], mesh.shape[SPACE]
    whole = functools.partial(_gathered, NamedSharding(mesh, PartitionSpec()))
    by_space = NamedSharding(mesh, PartitionSpec(BATCH, SPACE))

    def gather(tree: Any) -> Any:
        specs = jax.tree.map(lambda leaf: spec_of(leaf.shape, parts), tree)
        return jax.tree.map(lambda leaf, spec: leaf if spec == PartitionSpec() else whole(NamedSharding(mesh, spec), leaf), tree, specs)

    def spread(batch: dict[str, Any]) -> dict[str, Any]:
        if space == 1:
            return batch
        found = {name: batch[name] for name in spatial if name in batch}
        _check_space(found, space)
        return {**batch, **lax.with_sharding_constraint(found, by_space)}

    return Devices(gather=gather, spread=spread)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered(whole: NamedSharding, part: NamedSharding, leaf: jax.Array) -> jax.Array:
    """Return a spread array on every device; its gradient is spread again, which sums and scatters it at once."""
    return lax.with_sharding_constraint(leaf, whole)


_gathered.defvjp(
    lambda whole, part, leaf: (_gathered(whole, part, leaf), None),
    lambda whole, part, _, gradient: (lax.with_sharding_constraint(gradient, part),),
)


def check_sizes(task: Task, record: Mapping[str, Any], *, train: bool) -> None:
    """Refuse records that config.mesh.space cannot split, before anything is written.

    Args:
        task: The task.
        record: A record of a split.
        train: Whether it is augmented.

    Raises:
        UserError: naming the key.
    """
    config: Any = task.config
    space = mesh_sizes(config.mesh, jax.device_count())[SPACE]
    if space == 1:
        return
    shapes = {name: jax.ShapeDtypeStruct((config.batch_size, *np.shape(value)), np.asarray(value).dtype) for name, value in record.items()}
    if train:
        shapes = jax.eval_shape(lambda batch: task.augment(jax.random.key(0), batch, 0), shapes)
    _check_space({name: shapes[name] for name in task.spatial if name in shapes}, space)


def _check_space(fields: Mapping[str, Any], space: int) -> None:
    for name, values in fields.items():
        if values.shape[1] % space:
            raise UserError(
                f"config.mesh.space={space} cannot split the {values.shape[1]} positions of {name!r} along its first axis of space or "
                f"time; choose a divisor of {values.shape[1]}, or data of another size."
            )


def _pmap(steps: Steps, batch_size: int) -> Parallel:
    local = jax.local_device_count()
    replicated = NamedSharding(make_mesh(mesh_sizes(DEFAULT_MESH, jax.device_count())), PartitionSpec())
    devices = Devices(
        sum=lambda tree: lax.psum(tree, DATA),
        mean=lambda tree: lax.pmean(tree, DATA),
        first=lambda size: lax.axis_index(DATA) * size,
    )
    steps = dataclasses.replace(steps, devices=devices)
    axes = (0, 0, None) if steps.teacher is None else (0, 0, None, 0)
    train: Any = jax.pmap(_over_devices(steps.train), axis_name=DATA, in_axes=axes, donate_argnums=0)

    def put(tree: Any) -> Any:
        return jax.pmap(lambda _, tree: tree, in_axes=(0, None))(np.arange(local), tree)

    def get(tree: Any) -> Any:
        """Return the first device's copy, put on all devices as one array."""
        first = jax.tree.map(lambda a: a.addressable_shards[0].data.reshape(a.shape[1:]), tree)
        return jax.device_put(first, replicated)

    return Parallel(
        put=put,
        get=get,
        put_batch=lambda batch: jax.tree.map(lambda a: a.reshape(local, -1, *a.shape[1:]), batch),
        train=train if steps.teacher is None else Distilled(train, put(steps.teacher.variables)),
        evaluate=jax.pmap(_over_devices(steps.evaluate), axis_name=DATA),
        rows=lambda arrays: jax.tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:]), arrays),
        shardings=lambda tree: jax.tree.map(lambda _: replicated, tree),
        share=np.arange(batch_size),
    )


def _over_devices(step: Callable[..., Any]) -> Callable[..., Any]:
    """Bind the device axis for the blocks of the model while a step is traced."""

    @functools.wraps(step)
    def run(*args: Any) -> Any:
        with batch_axis(DATA):
            return step(*args)

    return run
