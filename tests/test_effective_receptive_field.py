"""Compare the effective receptive field of convolutions with the absolute values of their kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dilax
from dilax import UserError, effective_receptive_field

KEY = jax.random.key(3)
X = jax.ShapeDtypeStruct((2, 12, 9, 1), jnp.float32)


def kernel(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_one_convolution_is_its_kernel():
    weights = kernel(3, 2, 1, 1)
    actual = effective_receptive_field(lambda x: dilax.dilated_conv(x, weights, stride=2, dilation=(2, 3), padding="VALID"), X, key=KEY)
    expected = np.zeros((12, 9))
    # The output has size (4, 3). The central output is (2, 1), which reads from (4, 2) on.
    expected[4:9:2, 2:6:3] = np.abs(weights[..., 0, 0])
    np.testing.assert_allclose(actual, expected / expected.max(), rtol=1e-5)


def test_channels_and_inputs_are_averaged():
    weights, scale = kernel(3, 1, 2, 1), kernel(1, 1, 1, 2)
    # The derivative of the square depends on the normal inputs, which scales the mean by a constant, E|x| = sqrt(2 / pi).
    fn = lambda x: jnp.square(dilax.dilated_conv(x * scale, weights))  # noqa: E731
    actual = effective_receptive_field(fn, jax.ShapeDtypeStruct((4, 9, 5, 2), jnp.float32), key=KEY, samples=50)
    column = np.abs(weights[:, 0, :, 0] * scale[0, 0]).sum(-1)
    expected = np.zeros((9, 5))
    expected[3:6, 2] = column / column.max()
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_signs_of_channels_are_random():
    """With equal signs, channels with opposite weights would cancel."""
    weights = jnp.concatenate([kernel(3, 1, 1), -kernel(3, 1, 1)], -1)
    actual = effective_receptive_field(lambda x: dilax.dilated_conv(x, weights), jax.ShapeDtypeStruct((1, 7, 1), jnp.float32), key=KEY)
    column = np.abs(weights[:, 0, 0])
    np.testing.assert_allclose(actual[2:5], column / column.max(), rtol=1e-5)


def test_lies_within_the_receptive_field_and_is_largest_inside():
    weights = jnp.abs(kernel(3, 3, 2, 2))

    def fn(x):
        for dilation in (1, 2, 4):
            x = jax.nn.relu(dilax.dilated_conv(x, weights, dilation=dilation))
        return x

    x = jax.ShapeDtypeStruct((1, 21, 33, 2), jnp.float32)
    actual = np.asarray(effective_receptive_field(fn, x, key=KEY, samples=4))
    rows, columns = dilax.receptive_field(fn, x)
    inside = np.zeros(actual.shape, bool)
    inside[10 - rows.left : 10 + rows.right + 1, 16 - columns.left : 16 + columns.right + 1] = True
    assert (actual[~inside] == 0).all()
    assert actual.max() == 1
    assert actual[inside].mean() > 0


def test_one_key_gives_one_map_even_without_space_in_the_output():
    fn = lambda x: jnp.square(dilax.dilated_conv(x, kernel(3, 3, 1, 2))).mean((1, 2))  # noqa: E731
    a, b, c = (effective_receptive_field(fn, X, key=key, samples=2) for key in (KEY, KEY, jax.random.key(4)))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert (np.asarray(a) > 0).all()


@pytest.mark.parametrize(
    ("fn", "x", "samples", "text"),
    [
        (jnp.sin, jnp.ones((3, 4)), 1, "x of shape (3, 4) must be (batch, *space, channels) with at least one sample."),
        (
            jnp.sin,
            jnp.ones((1, 4, 1), jnp.int32),
            1,
            "x has dtype int32, which has no gradient; use a floating-point dtype such as float32.",
        ),
        (jnp.sin, jnp.ones((1, 4, 1)), 0, "samples=0 is below 1; use 1 or more."),
        (
            lambda x: x * 0,
            jnp.ones((1, 4, 1)),
            1,
            "the gradient of the central output is 0.0 everywhere; check that fn depends on x and is finite.",
        ),
    ],
)
def test_errors(fn, x, samples, text):
    with pytest.raises(UserError) as error:
        effective_receptive_field(fn, x, key=KEY, samples=samples)
    assert str(error.value) == f"effective_receptive_field: {text}"
