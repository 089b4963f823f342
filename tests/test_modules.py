"""The Flax modules: equal to their functions on their own parameters, compatible with Flax's, and usable from NNX."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

import dilax

KEY = jax.random.key(0)


def data(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


# module, input, kernel names and shapes, the corresponding function
CASES = {
    "dilated_1d_causal": (
        dilax.DilatedConv(6, (3,), dilation=4, padding="CAUSAL"),
        data(2, 17, 4),
        {"kernel": (3, 4, 6)},
        lambda x, p: dilax.dilated_conv(x, p["kernel"], dilation=4, padding="CAUSAL"),
    ),
    "dilated_2d_groups": (
        dilax.DilatedConv(6, (3, 2), dilation=(2, 1), stride=(1, 2), groups=2, padding_mode="reflect"),
        data(2, 9, 8, 4),
        {"kernel": (3, 2, 2, 6)},
        lambda x, p: dilax.dilated_conv(x, p["kernel"], dilation=(2, 1), stride=(1, 2), groups=2, padding_mode="reflect"),
    ),
    "dilated_3d_rank": (
        dilax.DilatedConv(5, 2, rank=3, padding="VALID"),
        data(2, 4, 5, 6, 3),
        {"kernel": (2, 2, 2, 3, 5)},
        lambda x, p: dilax.dilated_conv(x, p["kernel"], padding="VALID"),
    ),
    "depthwise": (
        dilax.DepthwiseConv((3, 3), multiplier=2, dilation=2),
        data(2, 7, 8, 3),
        {"kernel": (3, 3, 1, 6)},
        lambda x, p: dilax.depthwise_conv(x, p["kernel"], dilation=2),
    ),
    "separable": (
        dilax.SeparableConv(5, (3, 3), multiplier=2, dilation=(1, 3), stride=2),
        data(2, 7, 8, 3),
        {"depthwise_kernel": (3, 3, 1, 6), "pointwise_kernel": (1, 1, 6, 5)},
        lambda x, p: dilax.separable_conv(x, p["depthwise_kernel"], p["pointwise_kernel"], dilation=(1, 3), stride=2),
    ),
    "transposed": (
        dilax.DilatedConvTranspose(6, (3, 2), stride=2, dilation=(1, 2), groups=2, output_size=(9, 8)),
        data(2, 5, 4, 8),
        {"kernel": (3, 2, 3, 8)},
        lambda x, p: dilax.dilated_conv_transpose(x, p["kernel"], stride=2, dilation=(1, 2), groups=2, output_size=(9, 8)),
    ),
    "multi_shared": (
        dilax.MultiDilationConv(5, (3, 3), dilations=(1, (2, 3)), share_kernel=True),
        data(2, 7, 8, 3),
        {"kernel": (3, 3, 3, 5)},
        lambda x, p: jnp.concatenate([dilax.dilated_conv(x, p["kernel"], dilation=d) for d in (1, (2, 3))], -1),
    ),
    "multi_sum": (
        dilax.MultiDilationConv(5, (3,), dilations=(1, 2, 4), share_kernel=False, merge="sum"),
        data(2, 11, 3),
        {"kernel_0": (3, 3, 5), "kernel_1": (3, 3, 5), "kernel_2": (3, 3, 5)},
        lambda x, p: sum(dilax.dilated_conv(x, p[f"kernel_{i}"], dilation=d) for i, d in enumerate((1, 2, 4))),
    ),
}


def with_bias(module: nn.Module, x: jax.Array) -> dict:
    """Variables with a nonzero bias."""
    variables = module.init(KEY, x)
    bias: Any = variables["params"]["bias"]
    return {"params": {**variables["params"], "bias": jnp.arange(1.0, bias.size + 1)}}


@pytest.mark.parametrize("name", CASES)
def test_equals_its_function_with_parameters_of_the_stated_shapes(name):
    module, x, shapes, function = CASES[name]
    variables = with_bias(module, x)
    params = variables["params"]
    assert {key: leaf.shape for key, leaf in params.items() if key != "bias"} == shapes
    expected = function(x, params)
    chex.assert_trees_all_close(module.apply(variables, x), expected + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,)), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_leading_axes(name):
    module, x, _, _ = CASES[name]
    variables = with_bias(module, x)
    expected = module.apply(variables, x)
    chex.assert_trees_all_close(module.apply(variables, x[0]), expected[0], atol=1e-5)
    chex.assert_trees_all_close(module.apply(variables, x[None, :, None]), expected[None, :, None], atol=1e-5)
    assert module.apply(variables, x[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("name", CASES)
def test_dtypes_and_no_bias(name):
    module, x, _, _ = CASES[name]
    module = module.clone(dtype=jnp.bfloat16, use_bias=False)
    variables = module.init(KEY, x)
    chex.assert_trees_all_equal_dtypes(variables, jax.tree.map(lambda a: a.astype(jnp.float32), variables))
    assert "bias" not in variables["params"]
    assert module.apply(variables, x).dtype == jnp.bfloat16
    half = module.clone(dtype=None, param_dtype=jnp.float16)
    variables = half.init(KEY, x.astype(jnp.float16))
    assert all(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(variables))
    assert half.apply(variables, x.astype(jnp.float16)).dtype == jnp.float16


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_dilated_conv_swaps_with_flax_conv(rank):
    x, window = data(2, *(9, 8, 7)[:rank], 4), (3, 2, 3)[:rank]
    dilation, stride = (2, 1, 1)[:rank], (1, 2, 1)[:rank]
    ours = dilax.DilatedConv(6, window, dilation=dilation, stride=stride, groups=2)
    theirs = nn.Conv(6, window, kernel_dilation=dilation, strides=stride, feature_group_count=2)
    chex.assert_trees_all_equal(ours.init(KEY, x), theirs.init(KEY, x))  # the same names, shapes and draws
    variables = with_bias(ours, x)
    chex.assert_trees_all_close(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-5)


def test_transposed_swaps_with_flax_conv_transpose():
    x = data(2, 5, 4, 8)
    ours = dilax.DilatedConvTranspose(6, (4, 4), stride=2)
    theirs = nn.ConvTranspose(6, (4, 4), strides=(2, 2), transpose_kernel=True)
    variables = with_bias(ours, x)
    chex.assert_trees_all_close(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-5)


def test_transposed_init_keeps_the_variance():
    x = data(4, 30, 30, 64)
    y, _ = dilax.DilatedConvTranspose(64, (3, 3)).init_with_output(KEY, x)
    assert 0.8 < float(y.std() / x.std()) < 1.2


def test_nnx_by_the_bridge():
    x = data(2, 9, 8, 4)
    module = dilax.SeparableConv(6, (3, 3), dilation=2)
    wrapped = bridge.ToNNX(module, rngs=nnx.Rngs(params=0)).lazy_init(x)
    params = {name: wrapped.__dict__[name][...] for name in ("depthwise_kernel", "pointwise_kernel", "bias")}
    chex.assert_trees_all_close(wrapped(x), module.apply({"params": params}, x), rtol=1e-6)
    grads = nnx.grad(lambda layer: jnp.sum(layer(x) ** 2))(wrapped)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))
