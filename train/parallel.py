"""Several devices: the placement of state and batches, and the compilation of the steps.

"jit" shards the batch over a mesh; "pmap" splits it, and binds the device axis for the steps and for the blocks of the model.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dilax.blocks import batch_axis
from dilax.errors import UserError
from train.step import Devices, Steps

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A way to run on all devices, which share each batch.

    Attributes:
        put: Convert a state or variables to the form that the steps take.
        get: Convert a result of the steps to a tree of device arrays.
        put_batch: Convert this process's share of a batch from numpy arrays to device arrays.
        train: The compiled `Steps.train`; it donates the state.
        evaluate: The compiled `Steps.evaluate`.
        rows: Convert arrays of `evaluate` with one row per example to numpy arrays.
        replicated: Sharding of arrays that are complete on every device, such as those of `get`.
    """

    put: Callable[[Any], Any]
    get: Callable[[Any], Any]
    put_batch: Callable[[dict[str, np.ndarray]], Any]
    train: Callable[[Any, Any, Any], Any]
    evaluate: Callable[[Any, Any], Any]
    rows: Callable[[Any], dict[str, np.ndarray]]
    replicated: NamedSharding


def make(kind: str, steps: Steps, batch_size: int) -> Parallel:
    """Return the `Parallel` of a kind, "jit" or "pmap".

    Raises:
        UserError: if the batch cannot be split evenly.
    """
    devices, parts = jax.device_count(), steps.config.optim.accumulate
    if batch_size % (devices * parts):
        part = f" in {parts} parts" if parts > 1 else ""
        near = max(devices * parts, batch_size // (devices * parts) * devices * parts)
        raise UserError(f"config.batch_size={batch_size} cannot be spread over {devices} devices{part}; use a multiple, such as {near}.")
    return _jit(steps) if kind == "jit" else _pmap(steps)


def _mesh_shardings() -> tuple[NamedSharding, NamedSharding]:
    # By default, jax.make_mesh creates explicit axes, with which a batch cannot be cropped or gathered freely.
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def _jit(steps: Steps) -> Parallel:
    replicated, sharded = _mesh_shardings()
    return Parallel(
        # A copy by a separate program: device_put may alias its argument, which donating the state would then delete.
        put=jax.jit(lambda tree: jax.tree.map(jax.numpy.copy, tree), out_shardings=replicated),
        get=lambda tree: tree,
        put_batch=lambda batch: jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharded, a), batch),
        train=jax.jit(steps.train, donate_argnums=0, in_shardings=(replicated, sharded, replicated), out_shardings=replicated),
        evaluate=jax.jit(steps.evaluate, in_shardings=(replicated, sharded), out_shardings=replicated),
        rows=jax.device_get,
        replicated=replicated,
    )


def _pmap(steps: Steps) -> Parallel:
    local = jax.local_device_count()
    replicated, _ = _mesh_shardings()
    devices = Devices(
        sum=lambda tree: lax.psum(tree, AXIS),
        mean=lambda tree: lax.pmean(tree, AXIS),
        first=lambda size: lax.axis_index(AXIS) * size,
    )
    steps = dataclasses.replace(steps, devices=devices)

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
        train=jax.pmap(_over_devices(steps.train), axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0),
        evaluate=jax.pmap(_over_devices(steps.evaluate), axis_name=AXIS),
        rows=lambda arrays: jax.tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:]), arrays),
        replicated=replicated,
    )


def _over_devices(step: Callable[..., Any]) -> Callable[..., Any]:
    """Bind the device axis for the blocks of the model while a step is traced."""

    @functools.wraps(step)
    def run(*args: Any) -> Any:
        with batch_axis(AXIS):
            return step(*args)

    return run
