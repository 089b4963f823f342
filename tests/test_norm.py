"""Normalisations against numpy in float64, at every scale and offset of their input, with and without masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY

from dilax.blocks import Norm, batch_axis

# Epsilon, and the axes of (batch, time, groups, channels of a group) that share their statistics.
KINDS = {"batch": (1e-5, (0, 1)), "group": (1e-6, (1, 3)), "layer": (1e-6, (2, 3)), "global": (1e-8, (1, 2, 3))}
SCALES = [(0.0, 1.0), (1000.0, 1.0), (-300.0, 0.05), (0.0, 1e-4), (2e-4, 1e-5), (0.0, 1e4)]  # mean and deviation
SHAPE = (8, 30, 24)


def data(mean: float, deviation: float) -> tuple[jax.Array, jax.Array]:
    """Return samples, whose deviation differs by channel, and a mask."""
    rng = np.random.default_rng(4)
    x = mean + deviation * rng.normal(size=SHAPE) * rng.uniform(0.5, 2, SHAPE[-1])
    return jnp.asarray(x, jnp.float32), jnp.asarray(rng.random(SHAPE[:2]) < 0.7)


def oracle(kind: str, x: Any, mask: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the normalised samples, the mean and the variance."""
    epsilon, axes = KINDS[kind]
    groups = 8 if kind == "group" else 1
    wide = np.asarray(x, np.float64).reshape(*SHAPE[:2], groups, -1)
    where = np.broadcast_to(np.asarray(mask)[..., None, None], wide.shape)
    where = np.ones_like(where) if kind == "layer" else where  # each sample has statistics of its own
    mean = wide.mean(axes, keepdims=True, where=where)
    variance = np.square(wide - mean).mean(axes, keepdims=True, where=where)
    return ((wide - mean) / np.sqrt(variance + epsilon)).reshape(x.shape), mean.ravel(), variance.ravel()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_accurate_at_every_scale(kind, masked):
    norm = Norm(kind)
    for mean, deviation in SCALES:
        x, mask = data(mean, deviation)
        variables = norm.init(KEY, x, train=False)
        y, updates = norm.apply(variables, x, train=True, mask=mask if masked else None, mutable=["batch_stats"])
        expected, average, variance = oracle(kind, x, mask if masked else np.ones(SHAPE[:2], bool))
        # Samples of float32 far from zero are rounded by a share of their deviation.
        tolerance = 2e-5 + 8 * 2**-24 * abs(mean) / deviation
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=tolerance, err_msg=f"{mean}, {deviation}")
        if kind == "batch":
            running: Any = updates["batch_stats"]["BatchNorm_0"]
            np.testing.assert_allclose(running["mean"] * 10, average, rtol=1e-5, atol=1e-5 * deviation)
            np.testing.assert_allclose((running["var"] - 0.9) * 10, variance, rtol=1e-2, atol=2e-6)


@pytest.mark.parametrize(("kind", "train"), [("batch", True), ("batch", False), ("frozen", True)])
def test_epsilon_is_added_to_the_variance(kind, train):
    x, _ = data(0.5, 0.3)
    norm = Norm(kind, epsilon=0.25)
    y, _ = norm.apply(norm.init(KEY, x, train=False), x, train=train, mutable=["batch_stats"])
    wide = np.asarray(x, np.float64)
    mean, variance = (wide.mean((0, 1)), wide.var((0, 1))) if kind == "batch" and train else (0, 1)
    np.testing.assert_allclose(y, (wide - mean) / np.sqrt(variance + 0.25), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_over_devices_is_accurate_at_every_scale(masked):
    norm = Norm("batch")

    def run(variables: Any, x: jax.Array, mask: jax.Array | None) -> Any:
        with batch_axis("devices"):
            return norm.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])[0]

    mapped = jax.pmap(run, axis_name="devices", in_axes=(None, 0, 0))
    for mean, deviation in SCALES:
        x, mask = data(mean, deviation)
        variables = norm.init(KEY, x, train=False)
        y = mapped(variables, x[:, None], mask[:, None] if masked else None)[:, 0]
        expected = oracle("batch", x, mask if masked else np.ones(SHAPE[:2], bool))[0]
        tolerance = 2e-5 + 8 * 2**-24 * abs(mean) / deviation
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=tolerance, err_msg=f"{mean}, {deviation}")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences_far_from_zero(kind):
    x, _ = data(1000.0, 1.0)
    weights = np.random.default_rng(5).normal(size=SHAPE)
    direction = np.random.default_rng(6).normal(size=SHAPE)
    norm = Norm(kind)
    variables = norm.init(KEY, x, train=False)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.asarray(weights, jnp.float32) * norm.apply(variables, x, train=True, mutable=["batch_stats"])[0])

    slope = np.sum(np.asarray(jax.grad(loss)(x), np.float64) * direction)
    every, wide, step = np.ones(SHAPE[:2], bool), np.asarray(x, np.float64), 1e-4
    up, down = (np.sum(weights * oracle(kind, wide + sign * step * direction, every)[0]) for sign in (1, -1))
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=2e-3, atol=0.05)


def plain(x: jax.Array, where: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation as it is written down, for JAX to differentiate, with the running statistics after one step."""
    count = where.sum((0, 1))
    mean = (x * where).sum((0, 1)) / count
    centred = x - mean[None, None]
    var = (centred * centred * where).sum((0, 1)) / count
    y = centred / jnp.sqrt(var + 1e-5)[None, None] * scale[None, None] + bias[None, None]
    return y, 0.1 * mean, 0.9 + 0.1 * var


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("devices", [1, 4])
def test_batch_normalisation_is_differentiated_in_every_mode(masked, devices):
    rng = np.random.default_rng(7)
    shape, channels = (8, 5, 3), 3
    x = jnp.asarray(rng.normal(2, 3, shape) * [1, 2, 0.5], jnp.float32)
    mask = jnp.asarray(rng.random(shape[:2]) < 0.6) if masked else None
    where = jnp.broadcast_to(jnp.ones((*shape[:2], 1)) if mask is None else mask[..., None].astype(x.dtype), shape)
    primals = (x, *(jnp.asarray(rng.normal(size=channels), jnp.float32) for _ in range(2)))
    tangents, others = (tuple(jnp.asarray(rng.normal(size=p.shape), jnp.float32) for p in primals) for _ in range(2))

    def ours(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
        variables = {"params": {"BatchNorm_0": {"scale": scale, "bias": bias}}}
        variables["batch_stats"] = {"BatchNorm_0": {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}}

        def run(variables: Any, x: jax.Array, mask: jax.Array | None) -> Any:
            with batch_axis("devices" if devices > 1 else None):
                return Norm("batch").apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])

        if devices == 1:
            y, updates = run(variables, x, mask)
        else:
            parts = jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), (x, mask))
            y, updates = jax.vmap(run, axis_name="devices", in_axes=(None, 0, 0), out_axes=(0, None))(variables, *parts)
        return y.reshape(shape), updates["batch_stats"]["BatchNorm_0"]["mean"], updates["batch_stats"]["BatchNorm_0"]["var"]

    def reference(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
        return plain(x, where, scale, bias)

    weights = jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), jnp.float32), jax.eval_shape(reference, *primals))

    def results(function: Any) -> Any:
        def loss(*primals: jax.Array) -> jax.Array:
            return sum((jnp.vdot(w, jnp.sin(y)) for w, y in zip(weights, function(*primals))), jnp.zeros(()))

        gradient = jax.grad(loss, argnums=(0, 1, 2))
        second, third = jax.jvp(gradient, primals, others)[1], jax.jvp(lambda *p: jax.jvp(loss, p, tangents)[1], primals, others)[1]
        return jax.jvp(function, primals, tangents), gradient(*primals), second, third

    jax.tree.map(
        lambda got, expected: np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4),
        jax.jit(results, static_argnums=0)(ours),
        jax.jit(results, static_argnums=0)(reference),
    )
