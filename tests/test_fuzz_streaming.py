"""Random networks and convolutions fed in chunks: what they are on the whole sequence, or one line."""

from typing import Any

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from fuzzing import array, exact, fuzz, refusal

import dilax
from dilax import streaming
from dilax.causal import Delay
from dilax.errors import UserError

KEY = jax.random.key(0)


class Drawn(streaming.Streamable):
    """Layers one after the other, some with a shortcut around them."""

    layers: tuple[tuple[nn.Module, bool], ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, shortcut in self.layers:
            y: Any = layer(x)
            x = nn.tanh(y) + x if shortcut and y.shape == x.shape else nn.tanh(y)
        return x

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        return jnp.zeros((batch_size, 1, 4), dtype)


@st.composite
def layers(draw: Any) -> nn.Module:
    taps, dilation, stride = draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 5])), draw(st.sampled_from([1, 1, 1, 2]))
    padding = draw(st.sampled_from(["CAUSAL"] * 5 + ["SAME", "VALID", "TORCH", ((1, 0),), ((2, 1),)]))
    options: Any = dict(dilation=dilation, stride=stride, padding=padding)
    return draw(
        st.sampled_from(
            [
                dilax.DilatedConv(4, (taps,), groups=draw(st.sampled_from([1, 2, 4])), weight_norm=draw(st.booleans()), **options),
                dilax.DepthwiseConv((taps,), **options),
                dilax.SeparableConv(4, (taps,), **options),
                dilax.CausalConvTranspose(4, taps, stride, dilation),
                dilax.CumulativeNorm(),
                Delay(0),
                nn.Dense(4),
                nn.LayerNorm(),
                dilax.MultiDilationConv(4, (taps,), (1, dilation), padding="CAUSAL"),
            ]
        )
    )


@fuzz(
    0.4,
    st.lists(st.tuples(layers(), st.booleans()), min_size=1, max_size=3),
    st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3),
    st.integers(1, 2),
)
def test_networks_in_chunks_equal_themselves_on_the_whole(drawn, chunks, batch):
    model, x = Drawn(tuple(drawn)), array(3, batch, 8, 4)
    try:
        whole, variables = jax.jit(lambda: model.init_with_output(KEY, x))()
    except UserError:  # a kernel is longer than the sequence
        return
    causal = all(getattr(layer, "padding", "CAUSAL") == "CAUSAL" for layer, _ in drawn)
    strided = any(getattr(layer, "stride", 1) > 1 for layer, _ in drawn)
    try:
        state: Any = model.apply(variables, batch, method="init_stream")
        late: Any = model.apply(variables, method="latency")
        run: Any = jax.jit(lambda chunk, state: model.apply(variables, chunk, state, method="stream"))
        parts, start = [], 0
        while start < 8:
            size = chunks[len(parts) % len(chunks)]
            y, state = run(x[:, start : start + size], state)
            parts, start = [*parts, y], start + size
        if late:
            parts.append(run(jnp.zeros((batch, late, 4)), streaming.end_stream(state))[0])
    except UserError as error:
        return refusal(error, ("Drawn.init_stream", "Drawn.stream"), not causal or strided)
    assert not late or not causal
    if late and any(shortcut for _, shortcut in drawn):
        return  # a shortcut around a layer that looks ahead must be delayed; `check_streamable` finds it
    np.testing.assert_allclose(jnp.concatenate(parts, 1)[:, late:], whole, rtol=1e-3, atol=1e-4)


@fuzz(
    0.5,
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([1, 1, 2, 3]),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(-2, 2),
    st.sampled_from([1, 2]),
)
def test_conv_step(taps, dilation, stride, chunks, more, groups):
    kernel, x = array(2, taps, 4 // groups, 2), array(1, 2, sum(chunks), 4)
    lookback = (taps - 1) * dilation
    fits = (more >= 0 or lookback == 0) and all(size % stride == 0 for size in chunks)
    ring, parts, start = streaming.new_ring(2, max(0, lookback + more), (4,), jnp.float32), [], 0
    try:
        for size in chunks:
            y, ring = streaming.conv_step(x[:, start : start + size], kernel, ring, stride=stride, dilation=dilation, groups=groups)
            parts, start = [*parts, y], start + size
    except UserError as error:
        return refusal(error, "conv_step", not fits)
    assert fits, "a ring that is too short, or a chunk that is not a multiple of the stride, was taken"
    expected = reference.conv(exact(x), exact(kernel), stride=stride, dilation=dilation, padding="CAUSAL", groups=groups)
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=1e-4, atol=1e-4)


def test_rings_refuse_what_they_would_read_from_the_wrong_place():
    x, kernel, ring = array(1, 2, 5, 4), array(2, 3, 4, 4), streaming.new_ring(2, 3, (4,), jnp.float32)
    held = "the ring holds 3 past samples, but 4 are read; make it by new_ring with that lookback."
    nd: Any = dict(stride=(1,), padding=("CAUSAL",), dilation=(2,))
    for name, call in {
        "conv_step": lambda: streaming.conv_step(x, kernel, ring, dilation=2),
        "conv_step_nd": lambda: streaming.conv_step_nd(x, kernel, ring, **nd),
        "conv_transpose_step": lambda: streaming.conv_transpose_step(x, kernel, ring, dilation=2),
        "advance_ring": lambda: streaming.advance_ring(ring, x, [0, 4]),
    }.items():
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value) == f"{name}: {held}"
    with pytest.raises(UserError, match=r"^conv_step: a chunk of 5 samples is not a multiple of the stride 2; feed multiples of it\."):
        streaming.conv_step(x, kernel, ring, stride=2)
    with pytest.raises(UserError, match=r"^conv_step: a chunk of shape \(1, 5, 4\) does not fit a ring of shape \(2, 4, 4\)"):
        streaming.conv_step(x[:1], kernel, ring)
