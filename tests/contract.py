"""Laws that every model obeys; `check_model` checks all of them."""

import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import dilax
from dilax.receptive_fields import reaches, receptive_fields
from dilax.summary import layers, summary

KEY = jax.random.key(0)


def random_input(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def check_model(model: nn.Module, x: jax.Array, num_classes: int) -> None:
    """Check every law for one model."""
    variables = jax.jit(lambda key: model.init(key, x, train=False))(KEY)
    apply = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    logits = apply(variables, x)
    assert logits.shape == (x.shape[0], num_classes)
    assert logits.dtype == jnp.float32
    # In evaluation, examples are independent of each other and of the batch size.
    chex.assert_trees_all_close(apply(variables, x[1:]), logits[1:], atol=1e-4)
    check_training(model, variables, x)
    check_summary(model, variables, x)
    half: Any = model.clone(dtype=jnp.bfloat16).apply(variables, x.astype(jnp.bfloat16), train=False)
    assert half.dtype == jnp.float32
    chex.assert_trees_all_close(half, logits, atol=0.1 * float(jnp.abs(logits).max()) + 0.02)


def check_training(model: nn.Module, variables: Any, x: jax.Array) -> None:
    """Check that every parameter has a gradient, and running statistics change in training."""

    def loss(params: Any) -> Any:
        rngs = {"dropout": KEY}
        y, updates = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.sum(y * random_input(y.shape, 1)), updates

    grads, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    chex.assert_tree_all_finite(grads)
    flat = dict(jax.tree_util.tree_leaves_with_path(grads))
    assert [path for path, leaf in flat.items() if not np.abs(leaf).max() > 0] == []
    for before, after in zip(jax.tree.leaves(variables.get("batch_stats", {})), jax.tree.leaves(updates)):
        assert np.abs(after - before).max() > 0


def check_summary(model: nn.Module, variables: Any, x: jax.Array) -> None:
    """Check that the summary counts every parameter."""
    parameters = sum(layer.parameters for layer in layers(model, x))
    assert parameters == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert summary(model, x).splitlines()[-1].startswith("total")


def multiply_adds_by_shapes(model: nn.Module, x: Any) -> dict[str, int]:
    """Return the multiply-adds of each layer for one example, by its path: kernels are applied once per output position."""
    counted: dict[str, int] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y, module = call(*args, **kwargs), context.module
        kernels = [leaf for name, leaf in module.variables.get("params", {}).items() if hasattr(leaf, "size") and name.endswith("kernel")]
        if context.method_name == "__call__" and kernels:
            # In a transposed convolution, once per input position; a kernel that is shared, once per dilation.
            positions = math.prod((args[0] if isinstance(module, dilax.DilatedConvTranspose) else y).shape[1:-1])
            repeats = len(module.dilations) if isinstance(module, dilax.MultiDilationConv) and module.share_kernel else 1
            counted["/".join(module.path)] = repeats * positions * sum(kernel.size for kernel in kernels)
        return y

    def run(x: Any) -> Any:
        with nn.intercept_methods(intercept):
            return model.init_with_output(KEY, x, train=False)

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    return counted


def positive(variables: Any) -> Any:
    """Make all weights positive, so that no impulse cancels."""
    return jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.01, variables)


def seen_by_impulses(fn: Any, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Find which samples along `axis` each output sees, (outputs, inputs), by trying all of them; the weights of fn are positive."""
    along = 1 + axis

    # An impulse over all of the other axes, so that it cannot fall into a hole there.
    planes = np.eye(shape[along]).reshape(-1, *(n if d == along else 1 for d, n in enumerate(shape)))
    inputs = (jnp.asarray(np.full(shape, 0.5) + plane, jnp.float32) for plane in (0 * planes[0], *1e4 * planes))
    before, *after = (np.asarray(fn(x)) for x in inputs)
    others = tuple(d for d in range(before.ndim) if d != along)
    return np.stack([(np.abs(y - before) > 1e-5 * (1 + np.abs(before))).any(others) for y in after], 1)


def check_receptive_field(fn: Any, shape: tuple[int, ...], must: bool = True) -> int:
    """Check that the analysis from the jaxpr equals the impulse probe, as sets, at outputs away from the border (law 7).

    Returns:
        The number of outputs compared; with `must`, at least one along each axis.
    """
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    compared, run = 0, jax.jit(fn)
    for axis, (field, reach) in enumerate(zip(receptive_fields(fn, x)[0], reaches(fn, x))):
        assert reach is not None and field.size is not None
        seen = seen_by_impulses(run, shape, axis)
        outputs, inputs = seen.shape
        middle = [o for o in range(outputs // 3, outputs - outputs // 3) if reach.lies_inside(o, inputs)]
        assert middle or not must
        compared += len(middle)
        for o in range(outputs):
            (probed,) = np.nonzero(seen[o])
            first, bits = reach.at(o)
            assert not len(probed) or (o * field.stride - field.left <= probed[0] and probed[-1] <= o * field.stride + field.right)
            if o in middle:
                assert probed.tolist() == [i for i in range(inputs) if i >= first and bits >> (i - first) & 1], (axis, o)
                assert bits.bit_length() <= field.size
        check_shift(run, shape, axis, field, middle)
    return compared


def check_shift(fn: Any, shape: tuple[int, ...], axis: int, field: dilax.ReceptiveField, middle: list[int]) -> None:
    """Check that an input shifted by the period gives an output shifted by period / stride, away from the border."""
    if field.period is None:
        return
    x, along = random_input(shape), 1 + axis
    step = int(field.period / field.stride)
    y, moved = (np.asarray(fn(x)) for x in (x, jnp.roll(x, field.period, along)))
    both = [o for o in middle if o + step in middle]
    np.testing.assert_allclose(moved.take([o + step for o in both], along), y.take(both, along), rtol=1e-4, atol=1e-4)
