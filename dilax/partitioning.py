"""Operations on arrays that are spread over devices: each device exchanges samples with its neighbours and computes its own part.

XLA's partitioner splits its own operations well, but one of ours consists of many of them, each of which it would split by itself: with
many exchanges where one is enough, and with whole arrays gathered. `register` therefore states what the axes of an operation stand for and
how one device computes its part of the result; XLA inserts whatever spreads the operands like that.

Cloud TPUs do not take such operations (jax-ml/jax#38196), nor does `jax.export`. There, XLA splits what they consist of.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# There is no public way for a primitive to learn for which devices it is lowered.
from jax._src.dispatch import prim_requires_devices_during_lowering
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Shards:
    """How an axis is spread.

    Attributes:
        over: The axes of the mesh; none if each device has the whole axis.
        count: The number of shards.
    """

    over: tuple[str, ...] = ()
    count: int = 1

    def length(self, size: int) -> int:
        """Return the length of the shards of an axis; the last ones may reach beyond its end, where they hold anything."""
        return -(-size // self.count)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the axes of the operands and the results of an operation stand for.

    Attributes:
        operands: The name of each axis of each operand. Axes of the same name are spread alike.
        results: The names of the axes of each result. Names that only occur in operands are summed over.
        even: Sizes of the names that can only be spread evenly.
        whole: Names that cannot be spread.
    """

    operands: tuple[tuple[str, ...], ...]
    results: tuple[tuple[str, ...], ...]
    even: Mapping[str, int] = dataclasses.field(default_factory=dict)
    whole: frozenset[str] = frozenset()

    def subscripts(self) -> tuple[str, dict[str, Any]]:
        """Return the rule as `custom_partitioning` takes it."""
        operands, results = (", ".join(map(" ".join, arrays)) for arrays in (self.operands, self.results))
        # XLA wants each kind in the order of appearance.
        names = dict.fromkeys(itertools.chain(*self.operands, *self.results))
        kept = {*itertools.chain(*self.results), *self.whole}
        kinds = {
            "reduction_factors": tuple(name for name in names if name not in kept),
            "need_replication_factors": tuple(name for name in names if name in self.whole),
        }
        return f"{operands} -> {results}", kinds

    def shards(self, mesh: Any, specs: Sequence[Any]) -> dict[str, Shards]:
        """Return how each name is spread (by default, not at all), given the specs that XLA proposes for operands and results."""
        arrays = (*self.operands, *self.results)
        shards: dict[str, Shards] = collections.defaultdict(Shards)
        for names, spec in zip(arrays, specs):
            for name, proposed in zip(names, spec):
                if proposed is None or name in shards or name in self.whole:
                    continue
                over = proposed if isinstance(proposed, tuple) else (proposed,)
                count = math.prod(mesh.shape[axis] for axis in over)
                beside = {other for names in arrays if name in names for other in names if other in shards}
                taken = {axis for other in beside for axis in shards[other].over}
                if self.even.get(name, 0) % count == 0 and not taken & set(over):
                    shards[name] = Shards(over, count)
        return shards


# The meaning of each registered primitive: a function of its operands and parameters.
MEANINGS: dict[Primitive, Callable[..., Any]] = {}


def register(
    primitive: Primitive,
    direct: Callable[..., Any],
    rule: Callable[..., Rule | None],
    local: Callable[..., Any],
    *,
    platform: str | None = None,
    unpartitioned: Callable[..., Any] | None = None,
    exported: Callable[..., Any] | None = None,
    state: Callable[[], str] = str,
) -> None:
    """Register the lowering of a primitive on a platform.

    Args:
        primitive: The primitive.
        direct: What it means, a function of its operands and parameters.
        rule: Function (*operands, **parameters), given the avals of the operands, to the rule, or to None if they cannot be partitioned.
        local: Function (*operands, shards=, **parameters) from a device's shards of the operands to those of the results, where `shards` is
            that of `Rule.shards`. All devices run it at once, and may exchange data.
        platform: The platform; None for all that have no lowering of their own.
        unpartitioned: The same as `direct`, for several devices where the rule cannot be used.
        exported: The same as `direct`, for programs for one device that `jax.export` writes.
        state: Returns what `local` depends on beside its operands, parameters and code, in words.
    """

    def lower(context: Any, *operands: Any, **params: Any) -> Any:
        module = context.module_context
        # Neither is known within `shard_map` and `pmap`, which are partitioned already.
        devices, mesh = (getattr(module.axis_context, name, None) for name in ("device_assignment", "abstract_mesh"))
        function = functools.partial(direct, **params)
        if devices and len(devices) > 1:
            applies = mesh is not None and platform != "tpu" and not module.lowering_parameters.for_export
            found = rule(*context.avals_in, **params) if applies else None
            if found is not None:
                name = f"{primitive.name}_{_digest(params, state())}"
                function = _partitioned(name, function, found, functools.partial(local, **params))
            elif unpartitioned is not None:
                function = functools.partial(unpartitioned, **params)
        elif module.lowering_parameters.for_export and exported is not None:
            function = functools.partial(exported, **params)
        return mlir.lower_fun(function, multiple_results=primitive.multiple_results)(context, *operands)

    # Otherwise the devices are not known either.
    prim_requires_devices_during_lowering.add(primitive)
    mlir.register_lowering(primitive, lower, platform=platform)
    MEANINGS.setdefault(primitive, direct)


def _digest(params: Mapping[str, Any], state: str) -> str:
    """Return a digest of all that a partitioned operation depends on but its operands.

    XLA calls back to `local` while it compiles a program, whose text does not say what that does. By this name, JAX's compilation cache can
    tell one program from another.
    """
    return hashlib.sha256(f"{_code()} {sorted(params.items())} {state}".encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    files = sorted(pathlib.Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _partitioned(name: str, direct: Callable[..., Any], rule: Rule, local: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that XLA partitions by a rule."""

    def partition(mesh: Any, operands: Any, results: Any) -> Any:
        arrays = (*operands, *jax.tree.leaves(results))
        shards = rule.shards(mesh, [getattr(array.sharding, "spec", ()) for array in arrays])
        specs = [PartitionSpec(*(shards[name].over or None for name in names)) for names in (*rule.operands, *rule.results)]
        shardings = [NamedSharding(mesh, spec) for spec in specs]
        returned = jax.tree.unflatten(jax.tree.structure(results), shardings[len(operands) :])
        return mesh, functools.partial(local, shards=shards), returned, tuple(shardings[: len(operands)])

    # Under jit, since it must not hold constant arrays itself.
    function = custom_partitioning(lambda *operands: jax.jit(direct)(*operands))
    function.def_partition(partition, sharding_rule=lambda *_: rule.subscripts())

    def run(*operands: Any) -> Any:
        return function(*operands)

    run.__name__ = name
    return jax.jit(run)


def jit_is_disabled() -> bool:
    """Return whether `jax.disable_jit` holds, under which a primitive cannot run as a compiled program of itself."""
    config: Any = jax.config  # whose flags have no static types
    return config.jax_disable_jit


def bind(primitive: Primitive, *operands: jax.Array, spec: PartitionSpec, **params: Any) -> Any:
    """Bind a primitive; on a mesh whose axes are explicit, leave them to the compiler inside, and spread the results by `spec`."""
    apply: Any = functools.partial(primitive.bind, **params)
    explicit = [sharding for operand in operands if any((sharding := jax.typeof(operand).sharding).spec)]
    return (jax.sharding.auto_axes(apply, out_sharding=NamedSharding(explicit[0].mesh, spec)) if explicit else apply)(*operands)


def window(x: jax.Array, axis: int, shards: Shards, size: int, starts: Sequence[int], length: int) -> jax.Array:
    """Return a window of an axis that is spread over devices, a different one on each; 0 beyond its ends.

    Every sample that a device lacks is sent to it once, by the devices that hold it.

    Args:
        x: This device's shard.
        axis: The axis, of which shard j holds the samples from j * `x.shape[axis]`.
        shards: How it is spread.
        size: Length of the whole axis.
        starts: First sample of the window of each shard; may be negative.
        length: Length of the windows.
    """
    part = x.shape[axis]
    firsts = [start - shard * part for shard, start in enumerate(starts)]
    before, after = max(0, -min(firsts)), max(0, max(firsts) + length - part)
    x = valid(x, axis, shards, size)
    x = jnp.concatenate([*_sent(x, axis, shards, before, 1), x, *_sent(x, axis, shards, after, -1)], axis)
    if min(firsts) == max(firsts):
        return lax.slice_in_dim(x, firsts[0] + before, firsts[0] + before + length, axis=axis)
    first = jnp.asarray(np.array(firsts, np.int32) + np.int32(before))[lax.axis_index(shards.over)]
    return lax.dynamic_slice_in_dim(x, first, length, axis)


def valid(x: jax.Array, axis: int, shards: Shards, size: int) -> jax.Array:
    """Return a shard of an axis with 0 beyond the end of the axis."""
    part = x.shape[axis]
    if shards.count * part == size:
        return x
    inside = jnp.arange(part) + lax.axis_index(shards.over) * part < size
    return jnp.where(lax.expand_dims(inside, [i for i in range(x.ndim) if i != axis]), x, jnp.zeros((), x.dtype))


def _sent(x: jax.Array, axis: int, shards: Shards, samples: int, direction: int) -> list[jax.Array]:
    """Return what lies next to a shard, from the shards before it (direction 1) or after it (-1), in order; 0 beyond the ends."""
    part, received, distance = x.shape[axis], [], 0
    while samples:
        distance += 1
        count = min(part, samples) if distance < shards.count else samples
        if distance < shards.count:
            sent = lax.slice_in_dim(x, part - count, part, axis=axis) if direction > 0 else lax.slice_in_dim(x, 0, count, axis=axis)
            pairs = [(shard, shard + direction * distance) for shard in range(shards.count)]
            sent = lax.ppermute(sent, shards.over, [pair for pair in pairs if 0 <= pair[1] < shards.count])
        else:
            sent = lax.full_like(x, 0, shape=(*x.shape[:axis], count, *x.shape[axis + 1 :]))
        received.append(sent)
        samples -= count
    return received[::-1] if direction > 0 else received


def total(x: jax.Array, shards: Iterable[Shards]) -> jax.Array:
    """Sum over the devices over which names are spread."""
    over = tuple(itertools.chain.from_iterable(part.over for part in shards))
    return lax.psum(x, over) if over else x
