"""Sizes that are symbolic (`jax.export`): one exported program computes, for every size, what the function computes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import dilax

RNG = np.random.default_rng(4)
K1, K2 = (jnp.asarray(RNG.normal(0.3, 1.0, shape), jnp.float32) for shape in ((3, 2, 4), (2, 3, 2, 4)))
POINT = jnp.asarray(RNG.normal(0.3, 1.0, (1, 2, 4)), jnp.float32)
DEPTHWISE = K1[:, :1]


def with_options(function: Any, *arrays: Any, **options: Any) -> Any:
    return lambda x: function(x, *arrays, **options)


def resized(size: Any, **options: Any) -> Any:
    return lambda x: dilax.resize(x, size(*x.shape[1:-1]), **options)


conv, transpose = dilax.dilated_conv, dilax.dilated_conv_transpose
# A function, and the shape of its input; letters are symbolic.
CASES = {
    "same": (with_options(conv, K1, dilation=2), "b, n, 2"),
    "same, stride 2": (with_options(conv, K1, stride=2, dilation=2), "b, n, 2"),
    "same, stride beyond the kernel": (with_options(conv, K1, stride=5), "1, n, 2"),
    "one tap, stride": (with_options(conv, POINT, stride=3), "b, n, 2"),
    "2d, stride": (with_options(conv, K2, stride=(2, 3), padding=("SAME", "CAUSAL")), "b, m, n, 2"),
    "2d, one axis": (with_options(conv, K2, stride=2), "b, 7, n, 2"),
    "torch, stride": (with_options(conv, K1, stride=2, padding="TORCH"), "b, n, 2"),
    "depthwise, stride": (with_options(dilax.depthwise_conv, DEPTHWISE, stride=2), "b, n, 2"),
    "separable, stride": (with_options(dilax.separable_conv, DEPTHWISE, K1[:1].repeat(2, 1), stride=2), "b, n, 2"),
    "transposed, stride": (with_options(transpose, K1.swapaxes(1, 2), stride=2), "b, n, 2"),
    "transposed, torch": (with_options(transpose, K1.swapaxes(1, 2), stride=2, padding="TORCH", dilation=2), "b, n, 2"),
    "transposed, output size": (lambda x: transpose(x, K1.swapaxes(1, 2), stride=2, output_size=2 * x.shape[1] - 1), "b, n, 2"),
    "max_pool": (with_options(dilax.max_pool, 3, stride=2, padding="SAME"), "b, n, 2"),
    "max_pool, windows side by side": (with_options(dilax.max_pool, 2, padding="SAME"), "b, m, n, 2"),
    "avg_pool": (with_options(dilax.avg_pool, 3, stride=2, padding="SAME"), "b, n, 2"),
    "avg_pool, samples alone": (with_options(dilax.avg_pool, 3, stride=2, padding="SAME", count_padding=False), "b, n, 2"),
    "avg_pool, samples alone, 2d": (with_options(dilax.avg_pool, (2, 3), stride=1, padding="SAME", count_padding=False), "b, m, n, 2"),
    "resize to a size": (resized(lambda n: 9), "b, n, 2"),
    "resize by 2": (resized(lambda m, n: (2 * m, 3 * n)), "b, m, n, 2"),
    "resize to half": (resized(lambda n: (n + 1) // 2), "b, n, 2"),
    "resize one axis": (resized(lambda m, n: (m, 4)), "b, m, n, 2"),
    "resize from a size": (lambda x: dilax.resize(x[:, :3], x.shape[1]), "b, n, 2"),
    "resize, corners": (resized(lambda n: 2 * n, align_corners=True), "b, n, 2"),
    "resize to a size, corners": (resized(lambda n: 4, align_corners=True), "b, n, 2"),
    "resize to one, corners": (resized(lambda n: 1, align_corners=True), "b, n, 2"),
    "resize, nearest": (resized(lambda n: 2 * n, method="nearest"), "b, n, 2"),
    "resize to a size, nearest": (resized(lambda m, n: (4, 9), method="nearest"), "b, m, n, 2"),
    "gradients": (jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, K1, stride=2)))), "b, n, 2"),
    "module": (lambda x: dilax.DilatedConv(4, (3,), stride=2).apply({"params": {"kernel": K1, "bias": jnp.arange(4.0)}}, x), "b, n, 2"),
    "causal transposed": (
        lambda x: dilax.CausalConvTranspose(4, 3, stride=2).apply({"params": {"kernel": K1.swapaxes(1, 2), "bias": jnp.arange(4.0)}}, x),
        "b, n, 2",
    ),
}


@pytest.mark.parametrize(("function", "shape"), CASES.values(), ids=CASES)
def test_one_program_serves_all_sizes(function, shape):
    sizes = export.symbolic_shape(shape, constraints=["n >= 3"])
    exported = export.export(jax.jit(function))(jax.ShapeDtypeStruct(sizes, jnp.float32))
    for b, m, n in ((1, 3, 5), (2, 6, 8)):
        letters = {"b": b, "m": m, "n": n}
        x = jnp.asarray(RNG.normal(size=[letters[size] if size in letters else int(size) for size in shape.split(", ")]), jnp.float32)
        expected = jax.jit(function)(x)
        actual = exported.call(x)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_stream_serves_every_batch_size():
    model: Any = dilax.models.create("tcn", out_features=2, kernel_size=3, features=(4, 4))
    x = jnp.asarray(RNG.normal(size=(3, 5, 2)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)

    def feed(x: jax.Array) -> Any:
        state = model.apply(variables, x.shape[0], method="init_stream")
        return model.apply(variables, x, state, method="stream")[0]

    sizes = export.symbolic_shape("b, 5, 2")
    exported = export.export(jax.jit(feed))(jax.ShapeDtypeStruct(sizes, jnp.float32))
    np.testing.assert_allclose(exported.call(x), model.apply(variables, x, train=False), atol=1e-5)
