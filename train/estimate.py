"""What a step of a run needs on each device, read from the compiled program: `python -m train.main --config CONFIG --estimate`."""

import math
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from train.build import Setup, build, describe
from train.config import check, task_class
from train.distil import open_teacher


def estimate(config: ConfigDict) -> str:
    """Return memory and work of a training step as a table. The data is opened and the step compiled; nothing is trained.

    Args:
        config: The whole config.

    Raises:
        UserError: if config or data cannot be used.
    """
    check(config)
    splits = task_class(config.task).open(config)
    setup = build(config, splits.spec, teacher=open_teacher(config, splits.spec))
    record = splits.train[0]
    rows = len(setup.parallel.share)
    batch = setup.parallel.put_batch({name: np.repeat(np.asarray(value)[None], rows, axis=0) for name, value in record.items()})
    state = jax.eval_shape(setup.steps.init, setup.shapes)
    train: Any = setup.parallel.train
    compiled = train.lower(jax.eval_shape(setup.parallel.put, state), batch, jax.random.key(0)).compile()
    parts = {
        "parameters": held(setup, state.params),
        "other variables": held(setup, state.collections),
        "optimiser state": held(setup, state.opt_state),
        "moving average": held(setup, (state.average, state.average_stats)),
        "teacher": sum(leaf.nbytes for leaf in jax.tree.leaves(setup.steps.teacher and setup.steps.teacher.variables)),
        "batch": sum(map(_share, jax.tree.leaves(batch))),
        "activations, gradients": compiled.memory_analysis().temp_size_in_bytes,
    }
    lines = [f"  {name:<24}{_size(size):>12}" for name, size in parts.items() if size]
    total = f"  {'in all':<24}{_size(sum(parts.values())):>12}"
    flops = compiled.cost_analysis().get("flops", math.nan)
    work = f"work per device and step: {flops:.3g} floating-point operations, for {config.batch_size} examples on all devices"
    if any('custom_call_target="dilax_onednn' in line for line in compiled.as_text().splitlines()):
        work += "; those of the convolutions that dilax-onednn computes are not counted"
    return "\n".join([describe(setup), "memory per device, as XLA plans it:", *lines, total, work])


def held(setup: Setup, tree: Any) -> int:
    """Return the bytes of a part of the state that each device holds."""
    shardings = setup.parallel.shardings(tree)
    sizes = jax.tree.map(lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, shardings)
    return sum(jax.tree.leaves(sizes))


def _share(array: Any) -> int:
    """Return the bytes of an array of a batch that each device holds; under pmap, the first axis is that of the devices."""
    shape = array.sharding.shard_shape(array.shape) if isinstance(array, jax.Array) else array.shape[1:]
    return math.prod(shape) * array.dtype.itemsize


def _size(size: int) -> str:
    return f"{size / 2**20:,.2f} MiB"
