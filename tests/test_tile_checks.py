"""Tiles are compared with what is computed at once, so that a wrong receptive field is never silent; long crops can be tiled."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dilax
from dilax import tile_checks, tile_plans
from dilax.errors import UserError


def draw(*shape, seed=0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conv(x, taps=3, **options):
    return jnp.tanh(dilax.dilated_conv(x, draw(*(taps,) * (x.ndim - 2), x.shape[-1], 2) / taps, **options) + 0.3)


@pytest.fixture
def narrow(monkeypatch):
    """Let the analysis find fields of a single sample."""
    found = tile_plans.receptive_fields

    def fields(fn, x):
        return [tuple(dataclasses.replace(field, size=1, offset=0, left=0, right=0, holes=()) for field in along) for along in found(fn, x)]

    monkeypatch.setattr(tile_plans, "receptive_fields", fields)


WRONG = {
    "floats": lambda x: conv(x, dilation=2),
    "several outputs": lambda x: (x, conv(x)),
    "integers": lambda x: jnp.round(20 * conv(x, dilation=4)).astype(jnp.int32),
    "truth values": lambda x: conv(x, dilation=4) > 0.3,
    "half precision": lambda x: conv(x, dilation=4).astype(jnp.bfloat16),
    "values that are not numbers": lambda x: jnp.where(conv(x, dilation=4) > 0.3, jnp.nan, 1.0),
}


@pytest.mark.parametrize("limit", [tile_checks.MAX_BYTES, 0])
@pytest.mark.parametrize("shape", [(1, 200, 2), (1, 60, 40, 2)], ids=["sequence", "image"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_fields_are_noticed(name, shape, limit, narrow, monkeypatch):
    monkeypatch.setattr(tile_checks, "MAX_BYTES", limit)
    x = draw(*shape, seed=1)
    with pytest.raises(UserError, match="between tiles and the same part of the image computed at once") as error:
        dilax.tiled(WRONG[name], 10)(x)
    assert "\n" not in str(error.value)
    unchecked = jax.tree.leaves(dilax.tiled(WRONG[name], 10, check=False)(x))
    assert any((a != b).any() for a, b in zip(unchecked, jax.tree.leaves(WRONG[name](jnp.asarray(x)))))


@pytest.mark.parametrize("limit", [tile_checks.MAX_BYTES, 0])
def test_wrong_means_are_noticed(limit, narrow, monkeypatch):
    monkeypatch.setattr(tile_checks, "MAX_BYTES", limit)
    with pytest.raises(UserError, match="output 0 of fn differs by"):
        dilax.tiled(lambda x: conv(x, dilation=3), 10, reduce="mean")(draw(1, 200, 2))


@pytest.mark.parametrize("limit", [tile_checks.MAX_BYTES, 0])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("reduce", [None, "mean"])
def test_right_fields_pass(limit, batch_size, reduce, monkeypatch):
    monkeypatch.setattr(tile_checks, "MAX_BYTES", limit)

    def fn(x):
        y = conv(conv(x, stride=2), dilation=2)
        return y, dilax.resize(y, x.shape[1:-1]), jnp.where(y > 1, jnp.inf, y)

    x = draw(1, 64, 48, 2)
    ys = dilax.tiled(fn, (12, 16), batch_size=batch_size, reduce=reduce)(x)
    for y, whole in zip(ys, fn(jnp.asarray(x))):
        np.testing.assert_allclose(y, whole if reduce is None else whole.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_each_shape_is_checked_once(monkeypatch):
    shapes = []
    compared = tile_checks.references
    monkeypatch.setattr("dilax.tiling.references", lambda fn, plan, image: [shapes.append(image.shape), *compared(fn, plan, image)][1:])
    run = dilax.tiled(conv, 10)
    for length in (50, 50, 61, 50, 9):
        run(draw(1, length, 2))
    assert shapes == [(1, 50, 2), (1, 61, 2), (1, 9, 2)]


def test_two_windows_are_computed_at_once_where_the_image_is_large(monkeypatch):
    monkeypatch.setattr(tile_checks, "MAX_BYTES", 0)
    lengths = []

    def fn(x):
        lengths.append(x.shape[1])
        return conv(x)

    dilax.tiled(fn, 10)(draw(1, 1000, 2))
    # Of the whole, only the shape is computed; the others are windows and a pair of them.
    assert lengths.count(1000) == 1
    assert set(lengths) == {1000, 12, 22}


LONG = {
    "unpadded, a field of 4,001": (lambda x: conv(x, dilation=2000, padding="VALID"), 12_000, 2000),
    "unpadded, strided": (lambda x: conv(conv(x, 11, dilation=400, padding="VALID"), stride=2, padding="VALID"), 20_001, 3000),
    "cropped by 5,000 on either side": (lambda x: conv(conv(x, dilation=2500), dilation=2500)[:, 5000:-5000], 30_000, 7000),
    "cropped, no longer than the analysis": (lambda x: conv(x, dilation=1500)[:, 1500:-1500], 4_000, 300),
}


@pytest.mark.parametrize("name", LONG)
def test_long_crops(name):
    fn, length, tile = LONG[name]
    x = draw(1, length, 1)
    y = dilax.tiled(fn, tile)(x)
    np.testing.assert_allclose(y, jax.jit(fn)(x), rtol=1e-5, atol=1e-5)
