"""The analysis of the jaxpr against impulses, on functions that use every rule."""

import jax
import jax.numpy as jnp
import pytest
from contract import check_receptive_field
from jax import lax

import dilax
from dilax import ReceptiveField

K = jnp.full((3, 2, 2), 0.2)
K2 = jnp.full((3, 2, 2, 2), 0.1)


def conv(x, **options):
    return dilax.dilated_conv(x, K if x.ndim == 3 else K2, **options)


def max_pool(x, window, stride):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, 1), (1, stride, 1), "SAME")


CASES = {
    "stack": lambda x: conv(conv(conv(x), dilation=2), dilation=4),
    "causal": lambda x: conv(conv(x, padding="CAUSAL"), padding="CAUSAL", dilation=5),
    "strided": lambda x: conv(conv(conv(x, stride=2, dilation=3), stride=3), dilation=2),
    "pooled": lambda x: conv(max_pool(conv(x), 3, 2), dilation=2),
    "residual": lambda x: conv(x, dilation=3) + x,
    "branches": lambda x: jnp.concatenate([conv(x, dilation=d) for d in (1, 4, 7)], -1),
    "slices": lambda x: jnp.maximum(conv(x)[:, :70:2], conv(x)[:, 1:70:2])[:, 3:],
    "padded": lambda x: conv(jnp.pad(x, ((0, 0), (5, 2), (0, 0))), padding="VALID"),
    "reflected": lambda x: conv(x, padding_mode="reflect", dilation=3),
    "dense over channels": lambda x: jnp.einsum("nti,io->nto", conv(x), jnp.ones((2, 3))),
    "transposed axes": lambda x: conv(x.transpose(0, 2, 1).transpose(0, 2, 1)),
    "reshaped": lambda x: conv(x.reshape(1, 1, *x.shape[1:]).reshape(x.shape)),
    "jit, remat, custom_jvp": lambda x: jax.jit(jax.checkpoint(lambda x: jax.nn.relu(conv(x, dilation=6))))(x),
    "transposed convolution": lambda x: dilax.dilated_conv_transpose(x, K, dilation=4),
    "cond": lambda x: lax.cond(True, lambda x: conv(x, dilation=2), lambda x: conv(x), x),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_an_impulse_probe(name):
    check_receptive_field(CASES[name], (1, 71, 2))


def test_per_axis():
    check_receptive_field(lambda x: conv(conv(x, dilation=(4, 1)), stride=(1, 2), padding=("CAUSAL", "SAME")), (1, 31, 29, 2))


def test_known_answers():
    x = jnp.ones((1, 64, 2))
    # k taps d apart span (k - 1) * d + 1; strides multiply what follows.
    dense = tuple(place for place in range(17) if place % 8)
    assert dilax.receptive_field(lambda x: conv(x, dilation=8), x) == (ReceptiveField(17, 1, -8, 8, 8, 1, dense),)
    assert dilax.receptive_field(lambda x: conv(conv(x, stride=2), dilation=4), x)[0].size == 3 + 2 * 8
    tcn = lambda x: [x := conv(conv(x, dilation=2**i, padding="CAUSAL"), dilation=2**i, padding="CAUSAL") for i in range(4)][-1]  # noqa: E731
    assert dilax.receptive_field(tcn, x) == (ReceptiveField(1 + 2 * 2 * (2**4 - 1), 1, -60, 60, 0, 1),)


@pytest.mark.parametrize(
    "fn", [lambda x: x.mean((1, 2)), lambda x: x - x.mean(1, keepdims=True), lambda x: x.reshape(1, -1) @ jnp.ones((128, 3))]
)
def test_global(fn):
    assert dilax.receptive_field(fn, jnp.ones((1, 64, 2)))[0].size is None


def test_constants_do_not_count():
    assert dilax.receptive_field(lambda x: x + jnp.arange(64.0).cumsum()[None, :, None], jnp.ones((1, 64, 2)))[0].size == 1
