"""The geometry of a convolution, against counting; and random geometry from end to end."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import reference

import dilax
from dilax import geometry

PADDINGS = ("SAME", "VALID", "CAUSAL", "TORCH", 0, 2, (0, 3), (4, 1))
AXES = list(itertools.product(range(1, 10), range(1, 5), range(1, 4), range(1, 5)))  # size, taps, stride, dilation


@pytest.mark.parametrize("taps", range(1, 6))
@pytest.mark.parametrize("dilation", range(1, 5))
def test_effective_kernel_size_is_the_length_of_the_zero_stuffed_kernel(taps, dilation):
    effective = geometry.effective_kernel_size(taps, dilation)
    assert type(effective) is int
    assert effective == len(reference.zero_stuffed(np.ones((taps, 1, 1)), dilation))


def test_effective_kernel_size_of_several_axes():
    assert geometry.effective_kernel_size((3, 2), (2, 5)) == (5, 6)
    assert geometry.effective_kernel_size((1, 4, 3), (7, 1, 3)) == (1, 4, 7)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_padding_and_output_size_equal_counting(padding):
    for size, taps, stride, dilation in AXES:
        given = {"stride": stride, "padding": (padding,) if isinstance(padding, tuple) else padding, "dilation": dilation}
        expected = reference.positions(size, taps, stride, padding, dilation)
        if expected < 1:
            continue
        assert geometry.explicit_padding(size, taps, **given) == (reference.pad_pair(size, taps, stride, padding, dilation),), given
        actual = geometry.output_size(size, taps, **given)
        assert type(actual) is int
        assert actual == expected, given


@pytest.mark.parametrize(
    ("size", "taps", "stride", "padding", "dilation", "pair", "out"),
    [
        (224, 7, 2, "SAME", 1, (2, 3), 112),  # the stem of a ResNet, as TensorFlow pads it
        (224, 7, 2, "TORCH", 1, (3, 3), 112),  # and as torch does
        (65, 3, 1, "SAME", 12, (12, 12), 65),  # an ASPP branch
        (10, 2, 1, "SAME", 3, (1, 2), 10),  # the odd sample is at the end
        (10, 2, 1, "TORCH", 3, (1, 1), 9),
        (16, 2, 1, "CAUSAL", 8, (8, 0), 16),  # a WaveNet layer
        (7, 1, 3, "SAME", 5, (0, 0), 3),  # stride beyond the kernel: never a negative padding
        (9, 3, 1, "VALID", 4, (0, 0), 1),
    ],
)
def test_known_layers(size, taps, stride, padding, dilation, pair, out):
    assert geometry.explicit_padding(size, taps, stride=stride, padding=padding, dilation=dilation) == (pair,)
    assert geometry.output_size(size, taps, stride=stride, padding=padding, dilation=dilation) == out


def test_every_axis_has_its_own_geometry():
    sizes, window = (9, 8, 7), (3, 2, 4)
    given = {"stride": (2, 1, 3), "padding": ("CAUSAL", (0, 4), 2), "dilation": (2, 3, 1)}
    assert geometry.explicit_padding(sizes, window, **given) == ((4, 0), (0, 4), (2, 2))
    assert geometry.output_size(sizes, window, **given) == (5, 9, 3)
    assert geometry.explicit_padding((6, 5), (3, 3), padding=(1, 2)) == ((1, 1), (2, 2))
    assert geometry.explicit_padding((6, 5), (3, 3), padding="SAME", dilation=2) == ((2, 2), (2, 2))
    assert geometry.output_size((6, 5), (3, 3), stride=2, padding="SAME") == (3, 3)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CAUSAL", "TORCH", 1, ((0, 2), "SAME"), ("CAUSAL", 3)], ids=str)
def test_functions_have_the_shapes_that_geometry_says(padding):
    for stride, dilation in itertools.product([1, (2, 3)], [1, (3, 2)]):
        given = {"stride": stride, "padding": padding, "dilation": dilation}
        x, kernel = jax.ShapeDtypeStruct((2, 9, 8, 4), np.float32), jax.ShapeDtypeStruct((3, 2, 2, 6), np.float32)
        y = jax.eval_shape(lambda x, kernel: dilax.dilated_conv(x, kernel, groups=2, **given), x, kernel)  # noqa: B023
        assert y.shape == (2, *geometry.output_size((9, 8), (3, 2), **given), 6)


@st.composite
def convolutions(draw):
    """The shapes of x and kernel and the arguments of a small convolution that has at least one output."""
    rank = draw(st.integers(1, 3))
    small = st.integers(1, 3)

    def axes(one):
        return draw(st.tuples(*[one] * rank))

    space, window = axes(st.integers(1, {1: 9, 2: 6, 3: 4}[rank])), axes(small)
    pads = st.one_of(
        st.sampled_from(["SAME", "VALID", "CAUSAL", "TORCH"]), st.integers(0, 3), st.tuples(st.integers(0, 4), st.integers(0, 4))
    )
    arguments = {"stride": axes(small), "padding": axes(pads), "dilation": axes(st.integers(1, 5))}
    hypothesis.assume(min(reference.output_size(space, window, **arguments)) >= 1)
    arguments["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "reflect", "edge", "wrap"]))
    arguments["groups"] = draw(small)
    c_in, c_out = (arguments["groups"] * draw(st.integers(1, 2)) for _ in range(2))
    return (2, *space, c_in), (*window, c_in // arguments["groups"], c_out), arguments


@hypothesis.settings(max_examples=40, derandomize=True, deadline=None, database=None)
@hypothesis.given(convolutions())
def test_random_geometry_equals_the_oracle(convolution):
    x_shape, kernel_shape, arguments = convolution
    rng = np.random.default_rng(3)
    x, kernel = (rng.normal(0.3, 1, shape).astype(np.float32) for shape in (x_shape, kernel_shape))
    y = dilax.dilated_conv(x, kernel, **arguments)
    expected = reference.conv(x, kernel, **arguments)
    given = {key: arguments[key] for key in ("stride", "padding", "dilation")}
    assert y.shape[1:-1] == geometry.output_size(x_shape[1:-1], kernel_shape[:-2], **given)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("padding", ["SAME", "CAUSAL", "TORCH", "VALID", 3, ((4, 1),)])
@pytest.mark.parametrize("stride", [1, 2])
def test_time_padding_is_that_of_a_long_sequence(padding, stride):
    expected = geometry.explicit_padding(1000 * stride, 4, stride=stride, padding=padding, dilation=3)
    assert geometry.time_padding(4, stride=stride, padding=padding, dilation=3) == expected[0]
    words = (padding if isinstance(padding, str | int) else padding[0], "VALID")
    assert geometry.time_padding((4, 5), stride=stride, padding=words, dilation=(3, 1)) == expected[0]
