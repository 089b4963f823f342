"""Test the attributes of a receptive field: strides, periods, extents, global fields, and taps that only read padding."""

import warnings
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import random_input
from jax import lax
from networks import aligned_matrix, conv, field_of, lax_conv, resized, transposed, weights

import dilax
from dilax import ReceptiveField
from dilax.receptive_fields import Reach, receptive_fields
from dilax.receptive_fields.bands import matrix_reach
from dilax.summary import summary


def test_fractional_strides():
    assert field_of(lambda x: jnp.repeat(x, 3, 1)) == ReceptiveField(1, Fraction(1, 3), 0, 1, 0, 1)
    assert repr(field_of(lambda x: jnp.repeat(x, 3, 1))) == "ReceptiveField(size=1, stride=1/3, offset=0)"
    # Between two samples, with weights of 1/4 and 3/4.
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
    # The sets have a period of one sample, the function one of two.
    "skip that hides the period": (lambda x: jnp.repeat(dilax.avg_pool(x, 2), 2, 1) + conv(x), 2),
    "coordinates added": (lambda x: conv(x) + coordinates, None),
    "coordinates as channels": (lambda x: conv(jnp.concatenate([x, coordinates], -1)), None),
    "weights per position": (lambda x: jnp.einsum("ntc,tcd->ntd", x, random_input((72, 2, 3))), None),
    "a mask": (lambda x: jnp.where(jnp.arange(72)[None, :, None] < 36, x, 0.0), None),
    "uniform constants": (lambda x: jnp.where(x > 0, x, jnp.full_like(x, 0.5)) * jnp.ones((72, 1)).T[..., None], 1),
    "repeated constants": (lambda x: x + jnp.broadcast_to(weights(1, 1, 2), x.shape), 1),
    "average without padding": (lambda x: dilax.avg_pool(x, 3, stride=2, padding="SAME", count_padding=False), 2),
    "wrap-around padding": (lambda x: conv(x, padding_mode="wrap"), None),
    "reflected": (lambda x: conv(x, padding_mode="reflect"), 1),
    "enlarged 3 times": (lambda x: resized(conv(x, stride=2), 3, "linear"), 2),
    "enlarged 7 times": (lambda x: resized(x, 7, "linear"), 1),
    "to a size that is not a multiple": (lambda x: resized(conv(x, stride=5), 72 / 15 + 1e-6, "linear") + x, None),
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
    "indexed by x": lambda x: x[:, jnp.argmax(x[0, :, 0])][:, None] + x,
    "an operation on global values": lambda x: jnp.linalg.cholesky(x.mean(1).T @ x.mean(1)),
    "mirrored": lambda x: x[:, ::-1],
    "an empty part of x": lambda x: jnp.concatenate([x[:, :0], jnp.ones((1, 64, 2))], 1),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_global(name):
    assert field_of(GLOBAL[name], 64) == ReceptiveField(None, period=None)


def test_outputs_that_differ():
    """The size is the largest one, the holes are the most of that size, and left and right hold for all outputs."""
    sets = ((0, 0b1011), (0, 0b1001), (5, 0b1), (0, 0))
    assert Reach(Fraction(1, 4), sets).field() == ReceptiveField(4, Fraction(1, 4), 0, 1, 5, 1, (1, 2))


def test_a_list_of_outputs_ends():
    mirrored = field_of(lambda x: conv(x[:, jnp.arange(71, -1, -1)]))
    assert (mirrored.size, mirrored.period, mirrored.left, mirrored.right) == (3, None, 71, 71)


def band(rows, columns, weights):
    """Return a matrix whose row o holds weights(o) from column o on."""
    matrix = np.zeros((rows, columns), np.float32)
    for o in range(rows):
        matrix[o, o : o + 3] = weights(o)
    return matrix


def test_matrices():
    assert matrix_reach(band(40, 42, lambda o: (1, 2, 3))) == Reach(Fraction(1), ((0, 0b111),))
    # The sets have a period of one row, the weights one of two.
    assert matrix_reach(band(40, 42, lambda o: (1, 2, 3 + o % 2))) == Reach(Fraction(1), ((0, 0b111), (1, 0b111)))
    # Weights of the size of rounding errors count if all rows agree about them.
    assert matrix_reach(band(40, 42, lambda o: (1, 1e-7, 1e-7))) == Reach(Fraction(1), ((0, 0b111),))
    assert matrix_reach(band(40, 42, lambda o: (1, 2, 1e-7 * (o % 3)))) == Reach(Fraction(1), ((0, 0b11),))
    listed = matrix_reach(band(40, 42, lambda o: (1, 2, 3 + o)))
    assert listed == Reach(Fraction(42, 40), tuple((o, 0b111) for o in range(40)), listed=True)
    # Few rows, so that no short period repeats; none but the first and the last reaches a corner.
    corners = matrix_reach(np.asarray(aligned_matrix(33, 5)))
    assert corners is not None and corners.period == 1


def test_faint_weights_count_if_they_are_no_rounding_errors():
    """Weights of 1e-3 in a matrix of 2,000 columns could be rounding errors of a resize, but not so far from the others."""
    matrix = np.eye(2000, dtype=np.float32)
    for row in range(40, 2000):
        matrix[row, row - 40] = 4e-4 * (1 + row % 3)
    reach = matrix_reach(matrix)
    assert reach is not None and (reach.field().size, reach.field().left) == (41, 40)


def test_all_branches_count():
    branches = [lambda x: conv(x, dilation=4), lambda x: conv(x, dilation=3)]
    fields = [field_of(fn) for fn in (lambda x: lax.switch(jnp.int32(1) * 0, branches, x), lambda x: branches[0](x) + branches[1](x))]
    assert fields[0] == fields[1]


def test_constants_are_not_part_of_the_field():
    assert field_of(lambda x: x + jnp.arange(72.0).cumsum()[None, :, None]).size == 1
    empty, full = receptive_fields(lambda x: (jnp.arange(3.0), x), jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32))
    assert empty == ()
    assert full == (ReceptiveField(1), ReceptiveField(1))


def test_weights_may_be_traced():
    """Constants made inside the function are computed; unknown ones are not needed, or count as dense."""
    fields = {}

    def trace(kernel):
        x = jax.ShapeDtypeStruct((1, 72, 2), jnp.float32)
        fields["linear"] = dilax.receptive_field(lambda x: dilax.dilated_conv(resized(x, 2, "linear"), kernel), x)[0]
        fields["dense"] = dilax.receptive_field(lambda x: jnp.einsum("ntc,ts->nsc", x, kernel[0, 0, 0] * jnp.ones((72, 72))), x)[0]
        fields["varying constant"] = dilax.receptive_field(lambda x: x + kernel[0, 0, 0] * coordinates, x)[0]
        return kernel

    jax.eval_shape(trace, jnp.ones((3, 2, 2)))
    assert fields["linear"] == ReceptiveField(3, Fraction(1, 2), -1, 2, 1, 1)
    assert fields["dense"].size is None
    assert (fields["varying constant"].size, fields["varying constant"].period) == (1, None)


def test_warns_about_taps_that_only_read_padding():
    x = jnp.ones((1, 14, 20, 2))
    with pytest.warns(UserWarning, match="only ever read padding") as caught:
        dilax.receptive_field(lambda x: conv(conv(x, dilation=18), dilation=(1, 24)), x)
    assert [str(warning.message) for warning in caught] == [
        "receptive_field: 6 of the 9 taps of a convolution with kernel_size=(3, 3) and dilation=(18, 18) only ever read padding, "
        "because its input has size (14, 20); use a smaller dilation or a larger input.",
        "receptive_field: 6 of the 9 taps of a convolution with kernel_size=(3, 3) and dilation=(1, 24) only ever read padding, "
        "because its input has size (14, 20); use a smaller dilation or a larger input.",
    ]
    assert all(warning.filename == __file__ for warning in caught)
    with pytest.warns(UserWarning, match="2 of the 3 taps"):
        field_of(lambda x: lax.scan(lambda x, _: (jax.jit(conv, static_argnames="dilation")(x, dilation=99), None), x, None, length=2)[0])


IDLE = {
    "just reached": (lambda x: conv(x, dilation=15), 16, 0),
    "not reached": (lambda x: conv(x, dilation=16), 16, 2),
    "one side": (lambda x: conv(x, padding=((16, 0),)), 16, 0),
    "causal": (lambda x: conv(x, padding="CAUSAL", dilation=9), 16, 1),
    "separate padding": (lambda x: conv(jnp.pad(x, ((0, 0), (20, 20), (0, 0))), padding="VALID", dilation=20), 16, 2),
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
