"""The analysis of the jaxpr against impulses, on functions that use every rule and on random networks."""

import time
import warnings
from fractions import Fraction
from typing import Any

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import check_receptive_field, random_input
from hypothesis import strategies as st
from jax import lax

import dilax
from dilax import ReceptiveField
from dilax.receptive_field import Reach, receptive_fields
from dilax.receptive_field.bands import banded
from dilax.summary import summary


def weights(*shape):
    """Positive, all different, those of one output about 1 in sum."""
    found = np.random.default_rng(shape[0]).uniform(0.5, 1.5, shape)
    return jnp.asarray(found / np.prod(shape[:-1]), jnp.float32)


def conv(x, taps=3, **options):
    return dilax.dilated_conv(x, weights(*(taps,) * (x.ndim - 2), x.shape[-1], 2), **options)


def transposed(x, taps=3, **options):
    return dilax.dilated_conv_transpose(x, weights(*(taps,) * (x.ndim - 2), 2, x.shape[-1]), **options)


def lax_conv(x, taps, stride, padding, base, dilation):
    return lax.conv_general_dilated(x, weights(taps, 2, 2), (stride,), [padding], (base,), (dilation,), ("NTC", "TIO", "NTC"))


def max_pool(x, window, stride=1, padding: Any = "SAME", base=1, dilation=1):
    shape = [(1, n, 1) for n in (window, stride, base, dilation)]
    padding = padding if isinstance(padding, str) else ((0, 0), padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, shape[0], shape[1], padding, shape[2], shape[3])


def resized(x, factor, method, **options):
    return jax.image.resize(x, (x.shape[0], *(int(n * factor) for n in x.shape[1:-1]), x.shape[-1]), method, **options)


def aligned_matrix(rows, columns):
    """Linear interpolation that keeps the corners."""
    places = jnp.arange(rows, dtype=jnp.float32) * ((columns - 1) / (rows - 1))
    return jnp.maximum(0.0, 1 - jnp.abs(places[:, None] - jnp.arange(columns, dtype=jnp.float32)[None]))


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
    "cropped, too late a start": lambda x: lax.dynamic_slice_in_dim(conv(x), 60, 40, 1),
    "padded": lambda x: conv(jnp.pad(x, ((0, 0), (5, 2), (0, 0))), padding="VALID"),
    "interior padding": lambda x: conv(lax.pad(x, jnp.float32(0), ((0, 0, 0), (2, -3, 2), (0, 0, 0))), dilation=2),
    "reflected": lambda x: conv(x, padding_mode="reflect", dilation=3),
    "edge": lambda x: conv(x, padding_mode="edge", dilation=3),
    "dense over channels": lambda x: jnp.einsum("nti,io->nto", conv(x), jnp.ones((2, 3))),
    "transposed axes": lambda x: conv(x.transpose(0, 2, 1).transpose(0, 2, 1)),
    "reshaped": lambda x: conv(x.reshape(1, 1, *x.shape[1:]).reshape(x.shape)),
    "split": lambda x: sum(jnp.split(conv(x)[:, :70], 2, 1)) + sum(jnp.split(jnp.concatenate([x[:, :35]] * 2, -1), 2, -1)),
    "cut and joined again": lambda x: jnp.concatenate([conv(x)[:, :40], conv(x)[:, 40:]], 1),
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
    "linear, 3 times": lambda x: resized(conv(x, stride=3), 3, "linear"),
    "linear, down": lambda x: conv(resized(x[:, :70], 0.5, "linear")),
    "linear, down, not smoothed": lambda x: resized(x[:, :69], 1 / 3, "linear", antialias=False),
    "linear, 3/2": lambda x: resized(x[:, :70], 1.5, "linear"),
    "linear to an odd size": lambda x: conv(resized(x, 99 / 71 + 1e-6, "linear")),
    "corners aligned": lambda x: jnp.einsum("ntc,ot->noc", conv(x), aligned_matrix(141, 71)),
    "unlike resizes joined": lambda x: conv(resized(conv(x, stride=2), 71 / 36 + 1e-6, "linear") + x),
    "gathered": lambda x: conv(x[:, jnp.arange(1, 71, 2)]),
    "gathered at random": lambda x: conv(x)[:, jnp.asarray(np.random.default_rng(0).permutation(71)[:60])],
    "gathered, clipped": lambda x: conv(x.at[:, jnp.asarray([*range(30), 99, 5, *range(90, 60, -1)])].get(mode="clip")),
    "gathered, or 0": lambda x: conv(x.at[:, jnp.asarray([*range(30), 99, 5, *range(90, 60, -1)])].get(mode="fill", fill_value=0.0)),
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
    "turned convolutions": lambda x: conv(x, dilation=(1, 3)) + conv(x, dilation=(3, 1)),
    "U-shaped": lambda x: jnp.concatenate([x, resized(conv(conv(x, stride=2)), 2, "bilinear")], -1),
    "transposed axes": lambda x: conv(conv(x, dilation=(1, 4)).transpose(0, 2, 1, 3), stride=(1, 2)).transpose(0, 2, 1, 3),
}


@pytest.mark.parametrize("name", IMAGES)
def test_per_axis(name):
    check_receptive_field(IMAGES[name], (1, 32, 30, 2))


def layer(draw, widest):
    """One layer that keeps the channels at 2, and may change the length."""
    taps, stride, dilation = draw(st.integers(2, widest)), draw(st.integers(1, widest - 1)), draw(st.integers(1, widest))
    options = dict(stride=stride, dilation=dilation, padding=draw(st.sampled_from(["SAME", "VALID", "CAUSAL", "TORCH"])))
    factor, method = draw(st.integers(2, widest - 1)), draw(st.sampled_from(["nearest", "linear", "cubic"]))
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
    except dilax.UserError:  # nothing is left of the input
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
    # k taps d apart span (k - 1) * d + 1; strides multiply what follows.
    gaps = tuple(place for place in range(17) if place % 8)
    assert dilax.receptive_field(lambda x: conv(x, dilation=8), x) == (ReceptiveField(17, 1, -8, 8, 8, 1, gaps),)
    assert dilax.receptive_field(lambda x: conv(conv(x, stride=2), dilation=4), x)[0].size == 3 + 2 * 8
    tcn = lambda x: [x := conv(conv(x, dilation=2**i, padding="CAUSAL"), dilation=2**i, padding="CAUSAL") for i in range(4)][-1]  # noqa: E731
    assert dilax.receptive_field(tcn, x) == (ReceptiveField(1 + 2 * 2 * (2**4 - 1), 1, -60, 60, 0, 1),)


def plain(x, taps, stride=1, dilation=1):
    """A convolution of one channel as torch pads it."""
    return dilax.dilated_conv(x, jnp.ones((taps,) * (x.ndim - 2) + (1, 1)), stride=stride, dilation=dilation, padding="TORCH")


def resnet(x, units, output_stride=32, last=False):
    """ResNet-50 has units (3, 4, 6, 3). Each stage but the first halves the size in its first unit's 3x3, or else dilates what follows.

    With `last`, each stage but the last halves it in its last unit, as TensorFlow-Slim's ResNet v1 does.
    """
    x = max_pool1(plain(x, 7, 2))
    stride, dilation = 4, 1
    for stage, count in enumerate(units):
        for unit in range(count):
            strides = unit == count - 1 and stage < len(units) - 1 if last else unit == 0 and stage > 0
            step, before = 2 if strides else 1, dilation
            if strides and stride >= output_stride:
                step, dilation = 1, dilation * 2
            stride *= step
            y = plain(plain(plain(x, 1), 3, step, before), 1)
            x = jax.nn.relu(y + plain(x, 1, step))
    return x


def max_pool1(x):
    return dilax.max_pool(x, 3, stride=2, padding=1)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_resnet50(output_stride):
    (field,) = dilax.receptive_field(lambda x: resnet(x, (3, 4, 6, 3), output_stride), jax.ShapeDtypeStruct((1, 1024, 1), jnp.float32))
    assert (field.size, field.stride, field.period, field.coverage) == (427, output_stride, output_stride, 1)


def test_resnet50_that_strides_in_the_last_units():
    fields = dilax.receptive_field(lambda x: resnet(x, (3, 4, 6, 3), last=True), jax.ShapeDtypeStruct((1, 640, 640, 1), jnp.float32))
    assert [field.size for field in fields] == [483, 483]


def test_resnet101_takes_seconds():
    x = jax.ShapeDtypeStruct((1, 513, 513, 1), jnp.float32)
    began = time.process_time()
    fields = dilax.receptive_field(lambda x: resized(resnet(x, (3, 4, 23, 3), 8), 7.9, "bilinear"), x)
    assert time.process_time() - began < 15
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


def field_of(fn, size=72):
    return dilax.receptive_field(fn, jax.ShapeDtypeStruct((1, size, 2), jnp.float32))[0]


def test_fractional_strides():
    assert field_of(lambda x: jnp.repeat(x, 3, 1)) == ReceptiveField(1, Fraction(1, 3), 0, 1, 0, 1)
    assert repr(field_of(lambda x: jnp.repeat(x, 3, 1))) == "ReceptiveField(size=1, stride=1/3, offset=0)"
    # Half-way between two samples, a weight of 1/4 or 3/4 on each.
    assert field_of(lambda x: resized(x, 2, "linear")) == ReceptiveField(2, Fraction(1, 2), -1, 1, 1, 1)
    assert field_of(lambda x: x[:, 3:]) == ReceptiveField(1, 1, 3, -3, 3, 1)
    assert field_of(lambda x: lax_conv(x, 1, 2, (0, 0), 2, 1)) == ReceptiveField(1, 1, 0, 0, 0, 1)
    between = field_of(lambda x: lax.pad(x, jnp.float32(0), ((0, 0, 0), (0, 0, 1), (0, 0, 0)))[:, 1::2])
    assert between == ReceptiveField(0, 1, 0, 0, 0, 1)


coordinates = jnp.linspace(0.0, 1.0, 72)[None, :, None]
PERIODS = {
    "stride": (lambda x: conv(conv(x, stride=2), stride=3), 6),
    "enlarged again": (lambda x: jnp.repeat(conv(conv(x, stride=2), stride=4), 8, 1), 8),
    "skip": (lambda x: x + resized(conv(x, stride=4), 4, "linear"), 4),
    # The sets repeat with every sample, the function with every other.
    "skip that hides it": (lambda x: jnp.repeat(dilax.avg_pool(x, 2), 2, 1) + conv(x), 2),
    "coordinates added": (lambda x: conv(x) + coordinates, None),
    "coordinates as channels": (lambda x: conv(jnp.concatenate([x, coordinates], -1)), None),
    "weights of each place": (lambda x: jnp.einsum("ntc,tcd->ntd", x, random_input((72, 2, 3))), None),
    "a mask": (lambda x: jnp.where(jnp.arange(72)[None, :, None] < 36, x, 0.0), None),
    "the same everywhere": (lambda x: jnp.where(x > 0, x, jnp.full_like(x, 0.5)) * jnp.ones((72, 1)).T[..., None], 1),
    "repeated constants": (lambda x: x + jnp.broadcast_to(weights(1, 1, 2), x.shape), 1),
    "counts at the border": (lambda x: dilax.avg_pool(x, 3, stride=2, padding="SAME", count_padding=False), 2),
    "wrapped around": (lambda x: conv(x, padding_mode="wrap"), None),
    "reflected": (lambda x: conv(x, padding_mode="reflect"), 1),
    "enlarged 3 times": (lambda x: resized(conv(x, stride=2), 3, "linear"), 2),
    "enlarged 7 times": (lambda x: resized(x, 7, "linear"), 1),
    "to a size that does not fit": (lambda x: resized(conv(x, stride=5), 72 / 15 + 1e-6, "linear") + x, None),
    "global": (lambda x: x.sum(1), None),
}


@pytest.mark.parametrize("name", PERIODS)
def test_period(name):
    fn, period = PERIODS[name]
    assert field_of(fn).period == period


GLOBAL = {
    "mean": lambda x: x.mean((1, 2)),
    "squeeze and excite": lambda x: x - x.mean(1, keepdims=True),
    "dense": lambda x: x.reshape(1, -1) @ jnp.ones((128, 3)),
    "dense over space": lambda x: jnp.einsum("ntc,ts->nsc", x, random_input((64, 64))),
    "dense, not yet initialised": lambda x: jnp.einsum("ntc,ts->nsc", x, jnp.zeros((64, 64))),
    "attention": lambda x: jax.nn.softmax(x @ x.swapaxes(1, 2)) @ x,
    "cumulative": lambda x: jnp.cumsum(x, 1),
    "sorted": lambda x: jnp.sort(x, 1),
    "Fourier": lambda x: jnp.fft.rfft(x, axis=1).real,
    "recurrent": lambda x: lax.scan(lambda s, x: (s + x, s), jnp.zeros((1, 2)), x.swapaxes(0, 1))[1].swapaxes(0, 1),
    "a loop that depends on x": lambda x: lax.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, x),
    "a branch that depends on x": lambda x: lax.cond(x.sum() < 3, lambda x: x + 1, lambda x: x, x),
    "a loop of unknown length": lambda x: lax.while_loop(lambda s: s[0] > 1, lambda s: (s[0] / 2, conv(s[1])), (jnp.float32(9), x))[1],
    "picked by x": lambda x: x[:, jnp.argmax(x[0, :, 0])][:, None] + x,
    "what comes after": lambda x: jnp.linalg.cholesky(x.mean(1).T @ x.mean(1)),
    "mirrored": lambda x: x[:, ::-1],
}


@pytest.mark.parametrize("name", GLOBAL)
def test_global(name):
    assert field_of(GLOBAL[name], 64) == ReceptiveField(None, period=None)


def test_outputs_that_differ():
    """The size is that of the widest field, the holes those of the worst of that size; the sides hold for all."""
    sets = ((0, 0b1011), (0, 0b1001), (5, 0b1), (0, 0))
    assert Reach(Fraction(1, 4), sets).field() == ReceptiveField(4, Fraction(1, 4), 0, 1, 5, 1, (1, 2))


def test_a_list_of_outputs_ends():
    mirrored = field_of(lambda x: conv(x[:, jnp.arange(71, -1, -1)]))
    assert (mirrored.size, mirrored.period, mirrored.left, mirrored.right) == (3, None, 71, 71)


def band(rows, columns, weights):
    """A matrix whose row o has weights(o) from column o on."""
    matrix = np.zeros((rows, columns), np.float32)
    for o in range(rows):
        matrix[o, o : o + 3] = weights(o)
    return matrix


def test_matrices():
    assert banded(band(40, 42, lambda o: (1, 2, 3))) == Reach(Fraction(1), ((0, 0b111),))
    # The sets repeat with every row, the weights with every other.
    assert banded(band(40, 42, lambda o: (1, 2, 3 + o % 2))) == Reach(Fraction(1), ((0, 0b111), (1, 0b111)))
    # Weights as small as rounding count where all rows agree about them.
    assert banded(band(40, 42, lambda o: (1, 1e-7, 1e-7))) == Reach(Fraction(1), ((0, 0b111),))
    assert banded(band(40, 42, lambda o: (1, 2, 1e-7 * (o % 3)))) == Reach(Fraction(1), ((0, 0b11),))
    listed = banded(band(40, 42, lambda o: (1, 2, 3 + o)))
    assert listed == Reach(Fraction(42, 40), tuple((o, 0b111) for o in range(40)), listed=True)
    # Few rows of which none reaches a corner, so that no short distance repeats.
    assert banded(np.asarray(aligned_matrix(33, 5))).period == 1


def test_branches_count_all():
    branches = [lambda x: conv(x, dilation=4), lambda x: conv(x, dilation=3)]
    fields = [field_of(fn) for fn in (lambda x: lax.switch(jnp.int32(1) * 0, branches, x), lambda x: branches[0](x) + branches[1](x))]
    assert fields[0] == fields[1]


def test_constants_do_not_count():
    assert field_of(lambda x: x + jnp.arange(72.0).cumsum()[None, :, None]).size == 1
    empty, full = receptive_fields(lambda x: (jnp.arange(3.0), x), jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32))
    assert empty == ()
    assert full == (ReceptiveField(1), ReceptiveField(1))


def test_weights_may_be_traced():
    """Those made inside the function are computed; those that are not known are not needed, or count as dense."""
    found = {}

    def trace(kernel):
        x = jax.ShapeDtypeStruct((1, 72, 2), jnp.float32)
        found["linear"] = dilax.receptive_field(lambda x: dilax.dilated_conv(resized(x, 2, "linear"), kernel), x)[0]
        found["dense"] = dilax.receptive_field(lambda x: jnp.einsum("ntc,ts->nsc", x, kernel[0, 0, 0] * jnp.ones((72, 72))), x)[0]
        found["laid along"] = dilax.receptive_field(lambda x: x + kernel[0, 0, 0] * coordinates, x)[0]
        return kernel

    jax.eval_shape(trace, jnp.ones((3, 2, 2)))
    assert found["linear"] == ReceptiveField(3, Fraction(1, 2), -1, 2, 1, 1)
    assert found["dense"].size is None
    assert (found["laid along"].size, found["laid along"].period) == (1, None)


def test_warns_of_taps_that_only_see_padding():
    x = jnp.ones((1, 14, 20, 2))
    with pytest.warns(UserWarning, match="only ever see padding") as caught:
        dilax.receptive_field(lambda x: conv(conv(x, dilation=18), dilation=(1, 24)), x)
    assert [str(warning.message) for warning in caught] == [
        "receptive_field: 6 of the 9 taps of a convolution of window (3, 3), dilation (18, 18) only ever see padding, "
        "as its input has size (14, 20); use a smaller dilation or a larger input.",
        "receptive_field: 6 of the 9 taps of a convolution of window (3, 3), dilation (1, 24) only ever see padding, "
        "as its input has size (14, 20); use a smaller dilation or a larger input.",
    ]
    assert all(warning.filename == __file__ for warning in caught)
    with pytest.warns(UserWarning, match="2 of the 3 taps"):
        field_of(lambda x: lax.scan(lambda x, _: (jax.jit(conv, static_argnames="dilation")(x, dilation=99), None), x, None, length=2)[0])


IDLE = {
    "just reached": (lambda x: conv(x, dilation=15), 16, 0),
    "not reached": (lambda x: conv(x, dilation=16), 16, 2),
    "one side": (lambda x: conv(x, padding=((16, 0),)), 16, 0),
    "causal": (lambda x: conv(x, padding="CAUSAL", dilation=9), 16, 1),
    "padding of its own": (lambda x: conv(jnp.pad(x, ((0, 0), (20, 20), (0, 0))), padding="VALID", dilation=20), 16, 2),
    "stride that steps over": (lambda x: lax_conv(x, 3, 24, (8, 40), 1, 8), 16, 1),
    "transposed": (lambda x: transposed(x, dilation=15), 16, 0),
    "transposed, cropped": (lambda x: transposed(x, dilation=16), 16, 2),
    "transposed, stride": (lambda x: transposed(x, 4, stride=2, padding=((3, 0),)), 16, 0),
    "base dilated": (lambda x: lax_conv(x, 2, 2, (0, 0), 2, 3), 16, 1),
}


@pytest.mark.parametrize("name", IDLE)
def test_idle_taps(name):
    fn, size, idle = IDLE[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        field_of(fn, size)
    assert [int(str(warning.message).split()[1]) for warning in caught] == [idle] * (idle > 0)


def test_the_summary_does_not_warn():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return dilax.DilatedConv(2, (3,), dilation=30)(x)

    assert "61" in summary(Net(), jnp.ones((1, 8, 2)))
