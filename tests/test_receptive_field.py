"""Compare the analysis of the jaxpr with an impulse probe, on functions that use every rule and on random networks."""

import time

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import check_receptive_field
from hypothesis import strategies as st
from jax import lax
from networks import aligned_matrix, conv, lax_conv, max_pool, resized, resnet, transposed, weights

import dilax
from dilax import ReceptiveField


def depth_to_space(x):
    n, t, c = x.shape
    return x.reshape(n, t, 2, c // 2).reshape(n, t * 2, c // 2)


@jax.custom_vjp
def custom(x):
    return conv(x, dilation=3)


custom.defvjp(lambda x: (custom(x), None), lambda _, g: (g,))

CASES = {
    "stack": lambda x: conv(conv(conv(x), dilation=2), dilation=4),
    "stack with holes": lambda x: conv(conv(conv(x, dilation=2), dilation=2), dilation=2),
    "causal": lambda x: conv(conv(x, padding="CAUSAL"), padding="CAUSAL", dilation=5),
    "strided": lambda x: conv(conv(conv(x, stride=2, dilation=3), stride=3), dilation=2),
    "pooled": lambda x: conv(max_pool(conv(x), 3, 2), dilation=2),
    "pooled, dilated": lambda x: max_pool(x, 3, 2, (3, 4), dilation=4),
    "pooled, base dilated": lambda x: jnp.maximum(max_pool(x, 3, 2, (1, 1), base=3, dilation=2), 0.0),
    "pooled by dilax": lambda x: dilax.max_pool(dilax.avg_pool(x, 5, stride=2, dilation=3, padding="SAME", count_padding=False), 3),
    "residual": lambda x: conv(x, dilation=3) + x,
    "branches": lambda x: jnp.concatenate([conv(x, dilation=d) for d in (1, 4, 7)], -1),
    "slices": lambda x: jnp.maximum(conv(x)[:, :70:2], conv(x)[:, 1:70:2])[:, 3:],
    "dynamic slice": lambda x: lax.dynamic_slice_in_dim(conv(x, dilation=2), jnp.int32(5) + 2, 40, 1),
    "cropped, clamped start": lambda x: lax.dynamic_slice_in_dim(conv(x), 60, 40, 1),
    "padded": lambda x: conv(jnp.pad(x, ((0, 0), (5, 2), (0, 0))), padding="VALID"),
    "interior padding": lambda x: conv(lax.pad(x, jnp.float32(0), ((0, 0, 0), (2, -3, 2), (0, 0, 0))), dilation=2),
    "reflected": lambda x: conv(x, padding_mode="reflect", dilation=3),
    "edge": lambda x: conv(x, padding_mode="edge", dilation=3),
    "dense over channels": lambda x: jnp.einsum("nti,io->nto", conv(x), jnp.ones((2, 3))),
    "transposed axes": lambda x: conv(x.transpose(0, 2, 1).transpose(0, 2, 1)),
    "reshaped": lambda x: conv(x.reshape(1, 1, *x.shape[1:]).reshape(x.shape)),
    "split": lambda x: sum(jnp.split(conv(x)[:, :70], 2, 1)) + sum(jnp.split(jnp.concatenate([x[:, :35]] * 2, -1), 2, -1)),
    "split and concatenated": lambda x: jnp.concatenate([conv(x)[:, :40], conv(x)[:, 40:]], 1),
    "jit, remat, custom_jvp": lambda x: jax.jit(jax.checkpoint(lambda x: jax.nn.relu(conv(x, dilation=6))))(x),
    "custom_vjp": custom,
    "cond": lambda x: lax.cond(x.shape[1] > 70, lambda x: conv(x, dilation=2), lambda x: x, x),
    "scan": lambda x: lax.scan(jax.checkpoint(lambda x, k: (dilax.dilated_conv(x, k, dilation=2), None)), x, jnp.stack([weights(3, 2, 2)] * 3))[0],
    "scan, outputs": lambda x: sum(lax.scan(lambda x, _: (conv(x), x), x, None, length=4)[1]),
    "while": lambda x: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(s[1])), (0, conv(x)))[1],
    "sorted channels": lambda x: jnp.sort(conv(x), -1) + jnp.cumsum(x, -1),
    "transposed": lambda x: transposed(x, dilation=4),
    "transposed, stride 2": lambda x: transposed(x, stride=2),
    "transposed, stride 3, dilated": lambda x: conv(transposed(x, 4, stride=3, dilation=2)),
    "transposed, fewer taps than stride": lambda x: transposed(x, 2, stride=3),
    "transposed by lax": lambda x: lax_conv(x, 4, 1, (1, 2), 2, 1),
    "all in one convolution": lambda x: lax_conv(x, 4, 3, (4, 5), 2, 3),
    "down and up": lambda x: x + transposed(conv(conv(x, stride=2), dilation=2), stride=2, output_size=71),
    "stride 4, repeated 4 times": lambda x: jnp.repeat(conv(conv(x, stride=2), stride=2), 4, 1),
    "repeated, then strided": lambda x: conv(jnp.repeat(conv(x), 3, 1), stride=2, dilation=2),
    "nearest": lambda x: conv(resized(x, 2, "nearest")),
    "linear": lambda x: conv(resized(conv(x), 2, "linear")),
    "cubic": lambda x: conv(resized(x, 2, "cubic")),
    "linear, 3 times": lambda x: resized(conv(x, stride=3), 3, "linear"),
    "linear, down": lambda x: conv(resized(x[:, :70], 0.5, "linear")),
    "linear, down, not smoothed": lambda x: resized(x[:, :69], 1 / 3, "linear", antialias=False),
    "linear, 3/2": lambda x: resized(x[:, :70], 1.5, "linear"),
    "linear to an odd size": lambda x: conv(resized(x, 99 / 71 + 1e-6, "linear")),
    "corners aligned": lambda x: jnp.einsum("ntc,ot->noc", conv(x), aligned_matrix(141, 71)),
    "different resizes added": lambda x: conv(resized(conv(x, stride=2), 71 / 36 + 1e-6, "linear") + x),
    "gathered": lambda x: conv(x[:, jnp.arange(1, 71, 2)]),
    "gathered at random": lambda x: conv(x)[:, jnp.asarray(np.random.default_rng(0).permutation(71)[:60])],
    "gathered, clipped": lambda x: conv(x.at[:, jnp.asarray([*range(30), 99, 5, *range(90, 60, -1)])].get(mode="clip")),
    "gathered, filled": lambda x: conv(x.at[:, jnp.asarray([*range(30), 99, 5, *range(90, 60, -1)])].get(mode="fill", fill_value=0.0)),
    "space to depth": lambda x: conv(x[:, :70].reshape(1, 35, 2, 2).reshape(1, 35, 4), dilation=2),
    "depth to space": lambda x: conv(depth_to_space(jnp.concatenate([conv(x)] * 2, -1))),
    "unequal split": lambda x: conv(x)[:, :70].reshape(1, 28, 5),
    "merged and split again": lambda x: conv(x[:, :70].reshape(1, 70, 2, 1).reshape(1, 140).reshape(1, 70, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equals_an_impulse_probe(name):
    check_receptive_field(CASES[name], (1, 71, 2))


IMAGES = {
    "unequal axes": lambda x: conv(conv(x, dilation=(4, 1)), stride=(1, 2), padding=("CAUSAL", "SAME")),
    "convolutions along either axis": lambda x: conv(x, dilation=(1, 3)) + conv(x, dilation=(3, 1)),
    "U-shaped": lambda x: jnp.concatenate([x, resized(conv(conv(x, stride=2)), 2, "bilinear")], -1),
    "transposed axes": lambda x: conv(conv(x, dilation=(1, 4)).transpose(0, 2, 1, 3), stride=(1, 2)).transpose(0, 2, 1, 3),
}


@pytest.mark.parametrize("name", IMAGES)
def test_per_axis(name):
    check_receptive_field(IMAGES[name], (1, 32, 30, 2))


def layer(draw, widest):
    """Draw one layer that keeps the 2 channels and may change the length."""
    taps, stride, dilation = draw(st.integers(2, widest)), draw(st.integers(1, widest - 1)), draw(st.integers(1, widest))
    options = dict(stride=stride, dilation=dilation, padding=draw(st.sampled_from(["SAME", "VALID", "CAUSAL", "TORCH"])))
    factor, method = draw(st.integers(2, widest - 1)), draw(st.sampled_from(["nearest", "linear"]))
    layers = [
        lambda x: conv(x, taps, **options),
        lambda x: transposed(x, taps, **options),
        lambda x: dilax.max_pool(x, taps, stride=stride, padding="CAUSAL"),
        lambda x: dilax.avg_pool(x, taps, stride=stride, dilation=dilation),
        lambda x: resized(x, factor, method),
        lambda x: jnp.repeat(x, factor, 1),
        lambda x: conv(x, taps, dilation=dilation) + x,
        lambda x: conv(jnp.concatenate([x, conv(x, taps, dilation=dilation, padding="CAUSAL")], -1), 1),
        lambda x: transposed(conv(x, taps, stride=stride), taps, stride=stride, output_size=x.shape[1:-1]) + x,
        lambda x: resized(conv(x, taps, stride=factor), factor, "linear")[tuple(slice(n) for n in x.shape[:-1])] + x,
    ]
    return draw(st.sampled_from(layers))


@st.composite
def networks(draw, widest):
    return [layer(draw, widest) for _ in range(draw(st.integers(2, widest)))]


def run(network, x):
    for step in network:
        x = step(x)
    return x


def check_network(network, shape):
    try:
        result = jax.eval_shape(lambda x: run(network, x), jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    except dilax.UserError:  # the output is empty
        hypothesis.reject()
    hypothesis.assume(max(result) < 500)
    hypothesis.assume(check_receptive_field(lambda x: run(network, x), shape, must=False))


settings = hypothesis.settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.filter_too_much]
)


@hypothesis.settings(settings, max_examples=25)
@hypothesis.given(networks(4))
def test_random_networks(network):
    check_network(network, (1, 84, 2))


@hypothesis.settings(settings, max_examples=5)
@hypothesis.given(networks(3))
def test_random_networks_of_images(network):
    check_network(network, (1, 24, 23, 2))


def test_known_answers():
    x = jnp.ones((1, 64, 2))
    # k taps at dilation d span (k - 1) * d + 1 samples; a stride multiplies the spans of later layers.
    holes = tuple(i for i in range(17) if i % 8)
    assert dilax.receptive_field(lambda x: conv(x, dilation=8), x) == (ReceptiveField(17, 1, -8, 8, 8, 1, holes),)
    assert dilax.receptive_field(lambda x: conv(conv(x, stride=2), dilation=4), x)[0].size == 3 + 2 * 8
    tcn = lambda x: [x := conv(conv(x, dilation=2**i, padding="CAUSAL"), dilation=2**i, padding="CAUSAL") for i in range(4)][-1]  # noqa: E731
    assert dilax.receptive_field(tcn, x) == (ReceptiveField(1 + 2 * 2 * (2**4 - 1), 1, -60, 60, 0, 1),)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_resnet50(output_stride):
    (field,) = dilax.receptive_field(lambda x: resnet(x, (3, 4, 6, 3), output_stride), jax.ShapeDtypeStruct((1, 1024, 1), jnp.float32))
    assert (field.size, field.stride, field.period, field.coverage) == (427, output_stride, output_stride, 1)


def test_resnet50_with_strides_in_the_last_units():
    fields = dilax.receptive_field(lambda x: resnet(x, (3, 4, 6, 3), last=True), jax.ShapeDtypeStruct((1, 640, 640, 1), jnp.float32))
    assert [field.size for field in fields] == [483, 483]


def test_resnet101_takes_seconds():
    x = jax.ShapeDtypeStruct((1, 513, 513, 1), jnp.float32)
    start = time.process_time()
    fields = dilax.receptive_field(lambda x: resized(resnet(x, (3, 4, 23, 3), 8), 7.9, "bilinear"), x)
    assert time.process_time() - start < 15
    assert fields[0].size is not None
    assert fields[0].size > 900


def test_holes():
    def stack(*dilations):
        def fn(x):
            for dilation in dilations:
                x = conv(x, dilation=dilation)
            return x

        return dilax.receptive_field(fn, jax.ShapeDtypeStruct((1, 64, 2), jnp.float32))[0]

    assert stack(1, 2, 5).holes == ()
    assert stack(1, 2, 5).coverage == 1
    assert stack(2, 2, 2).holes == (1, 3, 5, 7, 9, 11)
    assert stack(2, 2, 2).coverage == pytest.approx(7 / 13)
    assert str(stack(2, 2, 2)) == "ReceptiveField(size=13, stride=1, offset=-6, coverage=0.538)"
    assert str(stack(1, 2, 5)) == "ReceptiveField(size=17, stride=1, offset=-8)"
