"""Laws that every model keeps; `check_model` runs them all."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import dilax
from dilax.summary import layers, summary

KEY = jax.random.key(0)


def random_input(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def check_model(model: nn.Module, x: jax.Array, num_classes: int) -> None:
    """Run every law on one model."""
    variables = jax.jit(lambda key: model.init(key, x, train=False))(KEY)
    apply = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    logits = apply(variables, x)
    assert logits.shape == (x.shape[0], num_classes)
    assert logits.dtype == jnp.float32
    # Examples do not see each other in evaluation, and the batch size does not matter.
    chex.assert_trees_all_close(apply(variables, x[1:]), logits[1:], atol=1e-4)
    check_training(model, variables, x)
    check_summary(model, variables, x)
    half: Any = model.clone(dtype=jnp.bfloat16).apply(variables, x.astype(jnp.bfloat16), train=False)
    assert half.dtype == jnp.float32
    chex.assert_trees_all_close(half, logits, atol=0.1 * float(jnp.abs(logits).max()) + 0.02)


def check_training(model: nn.Module, variables: Any, x: jax.Array) -> None:
    """Every parameter gets a gradient, and running statistics move, only in training."""

    def loss(params: Any) -> Any:
        rngs = {"dropout": KEY}
        y, updates = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.sum(y * random_input(y.shape, 1)), updates

    # Runs once: compile it fast.
    step = jax.jit(jax.grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    grads, updates = step(variables["params"])
    chex.assert_tree_all_finite(grads)
    flat = dict(jax.tree_util.tree_leaves_with_path(grads))
    assert [path for path, leaf in flat.items() if not np.abs(leaf).max() > 0] == []
    for before, after in zip(jax.tree.leaves(variables.get("batch_stats", {})), jax.tree.leaves(updates)):
        assert np.abs(after - before).max() > 0


def check_summary(model: nn.Module, variables: Any, x: jax.Array) -> None:
    """The summary counts every parameter, and its receptive fields are those of an impulse."""
    found = layers(model, x)
    assert sum(layer.parameters for layer in found) == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert summary(model, x).splitlines()[-1].startswith("total")


def impulse_field(fn: Any, shape: tuple[int, ...], axis: int, place: int) -> tuple[int, int]:
    """First and last input sample along `axis` that output `place` of a function with positive weights sees, by trying them all."""
    base = jnp.full(shape, 0.5)
    centre = [n // 2 for n in shape[1:-1]]
    seen = []
    for i in range(shape[1 + axis]):
        where = (0, *(i if a == axis else c for a, c in enumerate(centre)))
        # A plane through the other axes, so that the impulse cannot fall into a hole there.
        lines = tuple(where[1 + a] if a == axis else slice(None) for a in range(len(centre)))
        change = fn(base.at[(0, *lines)].add(100.0)) - fn(base)
        if np.abs(np.take(np.asarray(change), place, axis=1 + axis)).max() > 1e-3:
            seen.append(i)
    return seen[0], seen[-1]


def positive(variables: Any) -> Any:
    """Weights all positive, so that no impulse cancels; small, so that nothing overflows."""
    return jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.01, variables)


def check_receptive_field(fn: Any, shape: tuple[int, ...]) -> None:
    """The analysis from the jaxpr equals the impulse probe, at an output away from the border (law 7)."""
    fields = dilax.receptive_field(fn, jax.ShapeDtypeStruct(shape, jnp.float32))
    out = jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    run = jax.jit(fn)
    for axis, field in enumerate(fields):
        assert field.size is not None
        place = out[1 + axis] // 2
        first = place * field.stride + field.offset
        assert first >= 0
        assert first + field.size <= shape[1 + axis]
        assert impulse_field(run, shape, axis, place) == (first, first + field.size - 1)
