"""Training for int8: convolutions on rounded operands, with the gradients of those that are not."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from contract import KEY, random_input
from tiny_runs import digits, refused, tiny

import dilax
from train.build import build
from train.data import train_batches

LEVELS = 64
SPACED: Any = (1, 2)


def rounded_kernel(kernel: Any, output_axis: int = -1) -> np.ndarray:
    """Each output channel rounded by itself, in a loop."""
    channels = np.moveaxis(np.asarray(kernel, np.float64), output_axis, 0).copy()
    for channel in channels:
        step = np.abs(channel).max() / LEVELS
        channel[...] = np.round(channel / step) * step
    return np.moveaxis(channels, 0, output_axis)


def rounded_input(x: Any) -> np.ndarray:
    """Each example rounded by itself to 256 values of which 0 is one."""
    examples = np.asarray(x, np.float64).copy()
    for example in examples:
        step = (max(example.max(), 0) - min(example.min(), 0)) / 255
        example[...] = np.round(example / step) * step
    return examples


def scaled(*shape: int) -> jax.Array:
    """A kernel whose channels, along each axis, have very different sizes."""
    kernel = np.asarray(random_input(shape, sum(shape)))
    return jnp.asarray(kernel * 10.0 ** -(np.arange(shape[-1]) % 5.0) * 10.0 ** -np.arange(shape[-2], dtype=float)[:, None], jnp.float32)


# Name -> function of dilax, the same in NumPy, shapes of x and kernel, axis of the output channels.
CASES: dict[str, tuple[Any, Any, tuple[int, ...], tuple[int, ...], int]] = {
    "dense": (
        functools.partial(dilax.dilated_conv, dilation=2),
        functools.partial(reference.conv, dilation=2),
        (2, 7, 6, 2),
        (3, 3, 2, 4),
        -1,
    ),
    "groups": (
        functools.partial(dilax.dilated_conv, dilation=3, stride=2, groups=2),
        functools.partial(reference.conv, dilation=3, stride=2, groups=2),
        (2, 15, 4),
        (3, 2, 6),
        -1,
    ),
    "depthwise": (
        functools.partial(dilax.depthwise_conv, dilation=(1, 2)),
        lambda x, kernel: reference.conv(x, kernel, dilation=SPACED, groups=3),
        (2, 7, 6, 3),
        (3, 3, 1, 6),
        -1,
    ),
    "transposed": (
        functools.partial(dilax.dilated_conv_transpose, stride=2),
        lambda y, kernel: reference.conv_transpose(y, kernel, (10,), stride=2),
        (2, 5, 4),
        (3, 2, 4),
        -2,
    ),
}


@pytest.mark.parametrize("lowering", ["auto", "lax"])
@pytest.mark.parametrize("name", CASES)
def test_operands_are_rounded_and_gradients_are_not(name, lowering):
    function, slow, x_shape, kernel_shape, axis = CASES[name]
    x, kernel = random_input(x_shape, 1) + 0.5, scaled(*kernel_shape)
    with dilax.use_quantisation("int8"), dilax.use_lowering(lowering):
        y, pull = jax.vjp(lambda x, kernel: function(x, kernel), x, kernel)
    near_x, near_kernel = rounded_input(x), rounded_kernel(kernel, axis)
    wanted = slow(near_x, near_kernel)
    for channel in range(y.shape[-1]):
        size = np.abs(wanted[..., channel]).max()
        np.testing.assert_allclose(y[..., channel], wanted[..., channel], rtol=0, atol=1e-5 * size)
    assert np.abs(wanted - slow(x, kernel)).max() > 1e-3 * np.abs(wanted).max()  # the rounding is seen
    # Gradients are those of the function at the rounded operands.
    cotangent = random_input(y.shape, 3)
    _, plain = jax.vjp(lambda x, kernel: function(x, kernel), jnp.asarray(near_x, jnp.float32), jnp.asarray(near_kernel, jnp.float32))
    for actual, expected in zip(pull(cotangent), plain(cotangent)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 4), (4,)])
def test_linear_layers_are_rounded_too(shape):
    layer, x = nn.Dense(5), random_input(shape, 2)
    variables: Any = layer.init(KEY, x)
    with dilax.use_quantisation("int8"):
        y: Any = layer.apply(variables, x)
    batch = np.asarray(x) if len(shape) > 1 else np.asarray(x)[None]
    wanted = rounded_input(batch) @ rounded_kernel(variables["params"]["kernel"])
    np.testing.assert_allclose(y, wanted.reshape(y.shape), rtol=1e-4, atol=1e-5)
    outside: Any = layer.apply(variables, x)
    np.testing.assert_allclose(outside, jnp.dot(x, variables["params"]["kernel"]), rtol=1e-6, atol=1e-6)


def test_each_example_is_rounded_by_itself():
    x, kernel = random_input((3, 9, 2), 1) * jnp.asarray([1.0, 10.0, 0.1]).reshape(3, 1, 1), random_input((3, 2, 4), 2)
    with dilax.use_quantisation("int8"):
        whole = dilax.dilated_conv(x, kernel)
        parts = [dilax.dilated_conv(x[i : i + 1], kernel) for i in range(3)]
    np.testing.assert_allclose(whole, jnp.concatenate(parts), rtol=1e-6, atol=1e-7)


def test_zeros_and_empty_arrays_stay_as_they_are():
    with dilax.use_quantisation("int8"):
        for x in (jnp.zeros((2, 5, 3)), jnp.zeros((0, 5, 3))):
            np.testing.assert_array_equal(dilax.dilated_conv(x, jnp.zeros((3, 3, 4))), jnp.zeros((*x.shape[:2], 4)))


def test_scopes_nest():
    x, kernel = random_input((2, 9, 2), 1), random_input((3, 2, 4), 2)
    plain = dilax.dilated_conv(x, kernel)
    with dilax.use_quantisation("int8"):
        with dilax.use_quantisation(None):
            np.testing.assert_array_equal(dilax.dilated_conv(x, kernel), plain)
        assert np.abs(dilax.dilated_conv(x, kernel) - plain).max() > 1e-4
    np.testing.assert_array_equal(dilax.dilated_conv(x, kernel), plain)


def test_an_unknown_dtype_is_refused():
    def enter(dtype: Any) -> None:
        with dilax.use_quantisation(dtype):
            pass

    assert refused(lambda: enter("int4")) == "use_quantisation: dtype='int4' is unknown; use one of ('int8',). Did you mean \"int8\"?"
    assert refused(lambda: enter(8)) == "use_quantisation: dtype=8 is unknown; use one of ('int8',)."


def test_config_quantise_changes_the_training_step_alone():
    spec = digits().spec
    batch, losses = next(train_batches(digits().train, 64, seed=0)), {}
    for value in ("", "int8"):
        setup = build(tiny(quantise=value), spec)
        state = setup.steps.init(setup.init())
        after, sums = jax.jit(setup.steps.train)(state, batch, KEY)
        metrics, _ = jax.jit(setup.steps.evaluate)(state.variables(), {**batch, "mask": np.ones(64, bool)})
        losses[value] = float(sums["loss"]), float(metrics["loss"])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
    assert losses["int8"][0] != losses[""][0] and losses["int8"][0] == pytest.approx(losses[""][0], rel=0.05)
    assert losses["int8"][1] == losses[""][1]
