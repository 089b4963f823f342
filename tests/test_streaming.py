"""Laws 4 and 5: causal models do not depend on later inputs, and fed in any chunks they equal themselves on the whole sequence."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection import slow, with_slow

import dilax
from dilax import models, streaming
from dilax.causal import Delay
from dilax.errors import UserError
from dilax.models.wavenet import GatedUnit

RNG = np.random.default_rng(0)
CAUSAL: Any = dict(padding="CAUSAL")
LAYERS = {
    "conv": dilax.DilatedConv(5, (3,), dilation=3, **CAUSAL),
    "conv, one tap": dilax.DilatedConv(5, (1,), **CAUSAL),
    "conv beyond the sequence": dilax.DilatedConv(5, (2,), dilation=50, **CAUSAL),
    "conv in groups": dilax.DilatedConv(6, (3,), dilation=2, groups=2, **CAUSAL),
    "conv with weight norm": dilax.DilatedConv(5, (3,), dilation=2, weight_norm=True, **CAUSAL),
    "conv by pairs": dilax.DilatedConv(5, (3,), dilation=2, padding=((4, 0),)),
    "conv with stride": dilax.DilatedConv(5, (4,), dilation=2, stride=2, **CAUSAL),
    "depthwise": dilax.DepthwiseConv((3,), 2, dilation=3, use_bias=False, **CAUSAL),
    "separable": dilax.SeparableConv(5, (3,), 2, dilation=3, **CAUSAL),
    "smoothed": dilax.SmoothedConv(5, (3,), dilation=3, smoothing="separable_shared", **CAUSAL),
    "smoothed in groups, with stride": dilax.SmoothedConv(6, (2,), dilation=2, smoothing="separable_shared", groups=2, stride=2, **CAUSAL),
    "learnable spacings": dilax.DCLSConv(5, (7,), 3, **CAUSAL),
    "learnable spacings, bilinear, in groups": dilax.DCLSConv(6, (5,), 2, "bilinear", groups=2, **CAUSAL),
    "several dilations": dilax.MultiDilationConv(5, (3,), (1, 4), **CAUSAL),
    "several dilations, one kernel": dilax.MultiDilationConv(5, (2,), (3, 2), share_kernel=True, merge="sum", **CAUSAL),
    "transposed": dilax.CausalConvTranspose(3, 5, stride=2),
    "transposed, wide stride": dilax.CausalConvTranspose(3, 2, stride=3),
    "transposed with dilation": dilax.CausalConvTranspose(3, 4, stride=2, dilation=3),
    "wide": dilax.DilatedConv(5, (9,), dilation=2, **CAUSAL),
    "wide in groups, with stride": dilax.DilatedConv(6, (7,), groups=2, stride=2, **CAUSAL),
    "wide, depthwise": dilax.DepthwiseConv((9,), 2, **CAUSAL),
    "transposed, wide": dilax.CausalConvTranspose(3, 11, stride=2),
    "transposed, wide with dilation": dilax.CausalConvTranspose(3, 7, stride=4, dilation=3),
    "cumulative norm": dilax.CumulativeNorm(),
}


class Both(streaming.Streamable):
    """A causal convolution after one that looks ahead: delayed samples must not be mistaken for samples before the start."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = dilax.DilatedConv(4, (3,), padding="SAME")(x)
        return dilax.DilatedConv(3, (2,), dilation=3, padding="CAUSAL")(x)

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        return jnp.zeros((batch_size, 1, 4), dtype)


AHEAD = {
    "SAME": dilax.DilatedConv(5, (3,), dilation=3, padding="SAME"),
    "SAME, even": dilax.SeparableConv(5, (4,), dilation=2, padding="SAME"),
    "TORCH": dilax.DepthwiseConv((5,), dilation=2, padding="TORCH"),
    "pairs": dilax.DilatedConv(5, (3,), dilation=2, padding=((1, 3),)),
    "TCN that looks ahead": models.TCN(3, 3, (5, 6), causal=False),
    "MSTCN that looks ahead": models.MSTCN(3, 2, 4, 3, (1, 2)),
    "SeparableTCN that looks ahead": models.SeparableTCN(3, 4, 3, (1, 3), causal=False, norm="layer"),
    "SeparableTCN, cumulative": models.SeparableTCN(3, 4, 3, (1, 3), causal=False, norm="cumulative"),
    "SAME, then CAUSAL": Both(),
}
MODELS = {
    "TCN": models.TCN(3, 3, (5, 6)),
    "TCN without weight norm": models.TCN(3, 2, (4, 4), dilations=(3, 5), weight_norm=False),
    "TCN of codes": models.TCN(3, 3, (5,), vocabulary=7, embedding_features=4),
    "ByteNet": models.ByteNet(7, 6, 3, (1, 2, 3)),
    "SeparableTCN": models.SeparableTCN(3, 4, 3, (1, 4), norm="cumulative"),
    "MSTCN": models.MSTCN(3, 2, 4, 3, (1, 3), causal=True),
    "WaveNet": models.WaveNet(7, (1, 4), features=4, skip_features=5),
    "WaveNet of waves": models.WaveNet(dilations=(1, 3), kernel_size=3, features=4, skip_features=5, outputs="mixture", mixtures=2),
}
TRAINED = models.TCN | models.ByteNet | models.SeparableTCN | models.WaveNet | models.MSTCN  # models with the argument `train`
TIME = 24


def input_of(model: Any, batch: int = 2) -> jax.Array:
    if getattr(model, "vocabulary", 0) and getattr(model, "outputs", "softmax") == "softmax":
        return jnp.asarray(RNG.integers(0, model.vocabulary, (batch, TIME)), jnp.int32)
    return jnp.asarray(RNG.normal(0.2, 1, (batch, TIME, 1 if isinstance(model, models.WaveNet) else 4)), jnp.float32)


def call_of(model: Any) -> Any:
    return functools.partial(model.apply, train=False) if isinstance(model, TRAINED | Leaky) else model.apply


@functools.cache
def variables_of(model: Any) -> Any:
    keywords: Any = {"train": False} if isinstance(model, TRAINED) else {}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), input_of(model), **keywords))
    return jax.tree.map(lambda a: jnp.asarray(RNG.normal(0.1, 0.6, a.shape), a.dtype), shapes)


def fed(model: Any, variables: Any, x: jax.Array, chunks: tuple[int, ...]) -> jax.Array:
    """The outputs of `stream`, chunk by chunk, followed by those that are still due."""
    late = model.apply(variables, method="latency")
    state = model.apply(variables, x.shape[0], method="init_stream")
    shapes, outputs, at = jax.tree.map(lambda a: (a.shape, a.dtype), state), [], 0
    for size in chunks:
        y, state = model.apply(variables, x[:, at : at + size], state, method="stream")
        outputs, at = [*outputs, y], at + size
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == shapes
    assert at == x.shape[1]
    if late:
        zeros = jnp.zeros((x.shape[0], late, *x.shape[2:]), x.dtype)
        outputs.append(model.apply(variables, zeros, dilax.end_stream(state), method="stream")[0])
    return jnp.concatenate(outputs, axis=1)[:, late:]


ALL = {**LAYERS, **AHEAD, **MODELS}
REPEATS = (
    "SeparableTCN",
    "SeparableTCN that looks ahead",
    "MSTCN that looks ahead",
    "TCN of codes",
    "TCN without weight norm",
    "WaveNet of waves",
)
assert len(ALL) == len(LAYERS) + len(AHEAD) + len(MODELS), "a name that is used twice hides a case"


@pytest.mark.parametrize("name", with_slow(ALL, repeats=REPEATS))
def test_chunks_equal_the_whole_in_values_and_gradients(name):
    model = ALL[name]
    variables, x = variables_of(model), input_of(model)
    weights = jnp.asarray(RNG.normal(size=jax.eval_shape(call_of(model), variables, x).shape), jnp.float32)
    of = (0, 1) if jnp.issubdtype(x.dtype, jnp.floating) else 0

    def run(call: Any) -> Any:
        """The outputs, and the gradients of their weighted sum."""

        def total(v: Any, x: jax.Array) -> Any:
            y = call(v, x)
            return (weights * y).sum(), y

        return jax.jit(jax.grad(total, of, has_aux=True))(variables, x)

    gradients, whole = run(call_of(model))
    chunks = (2, 6, 4, 10, 2) if "with stride" in name else (1, 3, 7, 1, 12)
    actual, y = run(functools.partial(fed, model, chunks=chunks))
    chex.assert_trees_all_close(y, whole, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(actual, gradients, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(jax.jit(functools.partial(fed, model, chunks=(TIME,)))(variables, x), whole, rtol=1e-4, atol=1e-5)


WIDE = {
    "dense": lambda taps: dilax.DilatedConv(5, (taps,), dilation=2, **CAUSAL),
    "groups": lambda taps: dilax.DilatedConv(6, (taps,), groups=2, **CAUSAL),
    "depthwise": lambda taps: dilax.DepthwiseConv((taps,), **CAUSAL),
    "separable": lambda taps: dilax.SeparableConv(5, (taps,), **CAUSAL),
    "transposed": lambda taps: dilax.CausalConvTranspose(3, taps, stride=2),
}


@pytest.mark.parametrize("count", [1, 2, 90])
@pytest.mark.parametrize("name", WIDE)
def test_a_wide_kernel_makes_no_longer_program(name, count):
    """One operation for all taps: a product for each took minutes to compile."""

    def operations(taps: int) -> int:
        model = WIDE[name](taps)
        variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 4)))
        state = model.apply(variables, 1, method="init_stream")
        chunk = jnp.zeros((1, count, 4))
        return str(jax.make_jaxpr(lambda chunk, state: model.apply(variables, chunk, state, method="stream"))(chunk, state)).count("\n")

    assert operations(41) <= operations(7) + 12


@pytest.mark.parametrize("name", ["conv", "transposed", "cumulative norm", *MODELS])
def test_it_runs_inside_jit_vmap_and_scan(name):
    """Every sample is a step of a scan, and every sequence an example of a vmap."""
    model = ALL[name]
    variables, x = variables_of(model), input_of(model, 3)

    def one(x: jax.Array) -> jax.Array:
        def step(state: Any, sample: jax.Array) -> Any:
            y, state = model.apply(variables, sample[None, None], state, method="stream")
            return state, y[0]

        outputs = jax.lax.scan(step, model.apply(variables, 1, method="init_stream"), x)[1]
        return outputs.reshape(-1, *outputs.shape[2:])

    chex.assert_trees_all_close(jax.jit(jax.vmap(one))(x), call_of(model)(variables, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*LAYERS, *MODELS])
def test_it_is_causal_bit_for_bit(name):
    model = ALL[name]
    variables = variables_of(model)
    dilax.check_causal(lambda x: call_of(model)(variables, x), input_of(model))


@pytest.mark.parametrize("name", [name for name in AHEAD if "cumulative" not in name])  # cumulative normalisation sees all earlier samples
def test_latency_equals_the_lookahead(name):
    model = AHEAD[name]
    variables, x = variables_of(model), input_of(model)
    with pytest.raises(UserError, match=r"check_causal: output 0 changes by up to .* it looks ahead"):
        dilax.check_causal(lambda x: call_of(model)(variables, x), x)
    (field,) = dilax.receptive_field(lambda x: call_of(model)(variables, x), jnp.zeros((1, 64, 4)))
    assert field.size is not None
    assert model.apply(variables, method="latency") == field.offset + field.size - 1


@pytest.mark.parametrize("name", with_slow(["conv", "conv with stride", "transposed", *AHEAD, *MODELS], repeats=REPEATS))
def test_users_can_check_it(name):
    dilax.check_streamable(ALL[name], variables_of(ALL[name]), input_of(ALL[name]), chunks=(2, 4))


def test_two_axes_of_which_the_first_is_time():
    layer = dilax.DilatedConv(3, (3, 3), dilation=(2, 1), padding=("CAUSAL", "SAME"))
    x = jnp.asarray(RNG.normal(size=(2, 12, 5, 2)), jnp.float32)

    class Model(streaming.Streamable):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.relu(layer.copy(name="conv")(x))

        def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
            return jnp.zeros((batch_size, 1, 5, 2), dtype)

    model = Model()
    dilax.check_streamable(model, model.init(jax.random.key(0), x), x, chunks=(1, 2, 7))
    with pytest.raises(UserError, match="the size of the axes other than time is unknown"):
        layer.apply(layer.init(jax.random.key(0), x), 2, method="init_stream")


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_ring_holds_exactly_the_lookback_of_a_kernel(kernel):
    layer: Any = dilax.DilatedConv(2, (kernel,), dilation=4, dtype=jnp.bfloat16, **CAUSAL)
    state = layer.apply(variables_of(layer), 3, dtype=jnp.bfloat16, method="init_stream")
    assert jax.tree.map(jnp.shape, state) == {"DilatedConv": ((3, (kernel - 1) * 4 + 1, 4), ())}
    assert state["DilatedConv"].samples.dtype == jnp.bfloat16


class Leaky(streaming.Streamable):
    """The operation that `what` names, after a causal convolution."""

    what: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = dilax.DilatedConv(4, (2,), **CAUSAL)(x)
        if self.what == "group":
            x = nn.GroupNorm(2)(x)
        elif self.what == "batch":
            x = nn.BatchNorm(use_running_average=False)(x)
        elif self.what == "layer over time":
            x = nn.LayerNorm(reduction_axes=(-2, -1))(x)
        elif self.what == "mean":
            x = x - x.mean(1, keepdims=True)
        elif self.what == "pool":
            x = dilax.max_pool(x, 3, stride=1, padding="SAME")
        elif self.what == "ahead after a stride":
            x = dilax.DilatedConv(4, (3,))(dilax.DilatedConv(4, (2,), stride=2, **CAUSAL)(x))
        elif self.what == "transposed":
            x = dilax.DilatedConvTranspose(4, (3,))(x)
        elif self.what == "a stride after lookahead":
            x = dilax.DilatedConv(4, (2,), stride=2, **CAUSAL)(dilax.DilatedConv(4, (3,))(x))
        elif self.what == "transposed after lookahead":
            x = dilax.CausalConvTranspose(4, 3)(dilax.DilatedConv(4, (3,))(x))
        elif self.what == "unequal":
            x = dilax.DilatedConv(4, (3,))(x) + dilax.DilatedConv(4, (3,))(x)
        elif self.what == "flax":
            x = nn.Conv(4, (1,))(nn.Conv(4, (2,), padding="CAUSAL")(x))
        elif self.what == "wrap":
            x = dilax.DilatedConv(4, (3,), padding_mode="wrap", **CAUSAL)(x)
        elif self.what == "valid":
            x = dilax.DilatedConv(4, (3,), padding="VALID")(x)
        return x

    def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
        return jnp.zeros((batch_size, 1 if self.what != "valid" else 3, 4), dtype)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("group", "Leaky.init_stream: GroupNorm_0 is a GroupNorm, which looks at the whole sequence"),
        ("batch", "Leaky.init_stream: BatchNorm_0 is a BatchNorm, which looks at the whole sequence"),
        ("layer over time", "Leaky.init_stream: LayerNorm_0 is a LayerNorm, which looks at the whole sequence"),
        ("ahead after a stride", "DilatedConv_1 looks ahead, which cannot be combined with strides or with several dilations"),
        ("a stride after lookahead", "DilatedConv_1 cannot be fed in chunks after layers that look ahead; use padding 'CAUSAL'"),
        ("transposed after lookahead", "CausalConvTranspose_0 cannot be fed in chunks after layers that look ahead"),
        ("transposed", "DilatedConvTranspose_0 is a DilatedConvTranspose, which looks ahead; use `dilax.CausalConvTranspose`"),
        ("flax", "Conv_1 is a Conv of Flax, which does not keep past samples; use `dilax.DilatedConv`"),
        ("wrap", "DilatedConv_1 pads with padding_mode='wrap', which needs the whole sequence"),
        ("valid", "DilatedConv_1 has padding='VALID', with which it cannot be fed in chunks"),
    ],
)
def test_layers_that_cannot_be_streamed_are_named(what, words):
    model, x = Leaky(what), jnp.asarray(RNG.normal(size=(2, 12, 4)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=True)
    with pytest.raises(UserError, match=words):
        model.apply(variables, 2, method="init_stream", mutable=["batch_stats"])


@pytest.mark.parametrize("what", ["mean", "pool", "unequal"])
def test_operations_outside_of_layers_are_detected(what):
    model, x = Leaky(what), jnp.asarray(RNG.normal(size=(2, 12, 4)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=True)
    with pytest.raises(
        UserError,
        match=r"check_streamable: output [01] differs by .* something other than a layer of dilax looks at other .* unequal lookahead",
    ):
        dilax.check_streamable(model, variables, x)
    with pytest.raises(UserError, match="check_causal: output 0 changes"):
        dilax.check_causal(lambda x: call_of(model)(variables, x), x)


def test_states_and_chunks_that_do_not_fit_are_refused():
    model = MODELS["TCN"]
    variables, x = variables_of(model), input_of(model)
    state = model.apply(variables, 2, method="init_stream")

    def stream(x: Any, state: Any) -> Any:
        return model.apply(variables, x, state, method="stream")

    other = models.TCN(3, 3, (5, 6), dilations=(1, 5))
    cases = [
        (x[:1], state, r"TCN\.stream: a chunk of batch size 1 does not fit a state of batch size 2; make a state of that batch size"),
        (x, other.apply(variables, 2, method="init_stream"), r"the buffer of block1/conv1 has shape \(2, 11, 5\), not \(2, 5, 5\)"),
        (x, {}, r"the state has no buffer for block0/conv1: it belongs to another model"),
        (x, {**state, "more": state["block0/conv1"]}, r"the state has a buffer for more: it belongs to another model"),
        (x, None, r"the state is a NoneType, not a dict; make one with init_stream"),
        (x[:, :0], state, r"a chunk of shape \(2, 0, 4\) must be \(batch, n, \.\.\.\) with n of at least 1"),
    ]
    for chunk, given, words in cases:
        with pytest.raises(UserError, match=words):
            stream(chunk, given)
    strided = LAYERS["conv with stride"]
    at = strided.apply(variables_of(strided), 2, method="init_stream")
    with pytest.raises(UserError, match="has stride 2, which does not divide a chunk of 3 samples"):
        strided.apply(variables_of(strided), x[:, :3], at, method="stream")


def test_checks_refuse_invalid_arguments():
    with pytest.raises(UserError, match=r"check_causal: x of shape \(3,\) must be"):
        dilax.check_causal(lambda x: x, jnp.ones(3))
    with pytest.raises(UserError, match="check_causal: x equals itself reversed in time"):
        dilax.check_causal(lambda x: x, jnp.ones((1, 4, 1)))
    with pytest.raises(UserError, match=r"check_causal: the function maps 4 samples to outputs of shape \(1, 3, 1\)"):
        dilax.check_causal(lambda x: x[:, 1:], jnp.arange(4.0).reshape(1, 4, 1))
    with pytest.raises(UserError, match="check_causal: output 2 changes by up to"):
        dilax.check_causal(lambda x: x.at[:, 2].add(x[:, 3]), input_of(LAYERS["conv"]), cuts=range(TIME - 1))
    with pytest.raises(UserError, match=r"check_causal: cuts\[0\]=-1 is below 0"):
        dilax.check_causal(lambda x: x, input_of(LAYERS["conv"]), cuts=(-1,))
    for cuts in ((), (23,)):
        with pytest.raises(UserError, match=r"check_causal: cuts=\(.*\) must be one or more indices from 0 to 22"):
            dilax.check_causal(lambda x: x[:, ::-1], input_of(LAYERS["conv"]), cuts=cuts)
    layer, x = LAYERS["conv"], input_of(LAYERS["conv"])
    with pytest.raises(UserError, match="check_causal: an output is NaN or infinite"):
        dilax.check_causal(lambda x: x * np.nan, x)
    with pytest.raises(UserError, match="check_streamable: an output for the whole sequence is NaN or infinite"):
        dilax.check_streamable(layer, variables_of(layer), x.at[0, 3].set(np.nan))
    with pytest.raises(UserError, match=r"check_streamable: chunks=\(\) must be one or more sizes of at least 1"):
        dilax.check_streamable(layer, variables_of(layer), x, chunks=())

    class Unknown(streaming.Streamable):
        def __call__(self, x: jax.Array) -> jax.Array:
            return x

    with pytest.raises(UserError, match=r"Unknown: the shape of its input is unknown; define Unknown\.stream_input\(batch_size, dtype\)"):
        dilax.check_streamable(Unknown(), {}, x)


def test_a_layer_that_runs_twice_has_two_states():
    class Twice(streaming.Streamable):
        def setup(self) -> None:
            self.conv = dilax.DilatedConv(4, (2,), dilation=3, **CAUSAL)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.conv(nn.relu(self.conv(x)))

        def stream_input(self, batch_size: int, dtype: Any) -> jax.Array:
            return jnp.zeros((batch_size, 1, 4), dtype)

    model, x = Twice(), input_of(LAYERS["conv"])
    variables = model.init(jax.random.key(0), x)
    dilax.check_streamable(model, variables, x)
    assert set(model.apply(variables, 1, method="init_stream")) == {"conv", "conv+"}


def test_a_delay_acts_only_in_chunks():
    x = input_of(LAYERS["conv"])
    layer = Delay(3)
    assert layer.apply({}, x) is x
    ring = streaming.new_ring(2, 3, (4,), jnp.float32)
    (late,), _ = streaming.advance_ring(ring, x, [3])
    np.testing.assert_array_equal(late, jnp.pad(x, ((0, 0), (3, 0), (0, 0)))[:, :-3])


def test_cumulative_norm_equals_its_definition():
    x = np.asarray(RNG.normal(1, 2, (2, 9, 3)), np.float32)
    layer = dilax.CumulativeNorm()
    variables = {"params": {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.5, 0.0, -1.0])}}
    y = np.asarray(layer.apply(variables, x))
    for t in range(9):
        seen = x[:, : t + 1].reshape(2, -1)
        expected = (x[:, t] - seen.mean(1, keepdims=True)) / seen.std(1, keepdims=True) * [1, 2, 3] + [0.5, 0, -1]
        np.testing.assert_allclose(y[:, t], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("mean", "deviation"), [(300, 0.1), (1000, 1), (-13.8, 0.01)])
def test_cumulative_norm_is_accurate_far_from_zero(mean, deviation):
    layer, x = dilax.CumulativeNorm(), np.asarray(RNG.normal(mean, deviation, (2, 800, 8)), np.float32)
    y = np.asarray(layer.apply(variables := layer.init(jax.random.key(0), x), x))
    seen = x[:, 1:].astype(np.float64)
    count = 8 * np.arange(2, 801)[None, :, None]
    average, square = (np.cumsum((x.astype(np.float64) ** power).sum(-1, keepdims=True), axis=1)[:, 1:] / count for power in (1, 2))
    np.testing.assert_allclose(y[:, 1:], (seen - average) / np.sqrt(square - average**2 + 1e-8), rtol=0.01, atol=0.01)
    dilax.check_streamable(layer, variables, jnp.asarray(x), chunks=(7, 200))


@pytest.mark.parametrize(
    "model", [MODELS["WaveNet of waves"], *slow(AHEAD["TCN that looks ahead"], AHEAD["SeparableTCN, cumulative"], MODELS["ByteNet"])]
)
def test_it_runs_with_64_bits_enabled(model):
    x, variables = input_of(model), variables_of(model)
    with jax.enable_x64(True):
        dilax.check_streamable(model, variables, x, chunks=(1, 5, 2))
        if model in MODELS.values():
            drawn = dilax.sample(model, variables, jax.random.key(0), x, 3)
            assert drawn.dtype == x.dtype


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("groups", [1, 2, 24])
def test_narrow_floats_are_summed_in_float32(dtype, groups):
    """A step is as accurate as the whole sequence: it differs from the float32 result only by rounding."""
    layer = dilax.DilatedConv(24, (63,), groups=groups, dtype=dtype, **CAUSAL)
    x = jnp.asarray(RNG.normal(size=(1, 70, 24)), dtype)
    variables = layer.init(jax.random.key(0), x)
    rounded = jax.tree.map(lambda a: a.astype(dtype).astype(jnp.float32), variables)
    exact = np.asarray(layer.clone(dtype=jnp.float32).apply(rounded, x.astype(jnp.float32)))
    actual = np.asarray(fed(layer, variables, x, (1, 62, 7)).astype(jnp.float32))
    assert np.abs(actual - exact).max() <= 2 * float(jnp.finfo(dtype).eps) * np.abs(exact).max()


def test_chunks_may_have_another_dtype_than_the_state():
    model = models.TCN(2, kernel_size=3, features=(4, 4), causal=False)
    x = jnp.asarray(RNG.normal(size=(1, 12, 4)), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        variables = model.init(jax.random.key(0), x, train=False)
        state = model.apply(variables, 1, method="init_stream")
        y, after = model.apply(variables, x[:, :2], state, method="stream")
    assert (y.shape, jax.tree.map(lambda a: a.dtype, after)) == ((1, 2, 2), jax.tree.map(lambda a: a.dtype, state))


def test_gates_are_those_of_the_paper():
    x = np.asarray(RNG.normal(size=(2, 9, 3)), np.float32)
    unit = GatedUnit(4, 5, 2, 3)
    variables = jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape), a.dtype), unit.init(jax.random.key(0), jnp.asarray(x), []))
    actual: Any = unit.apply(variables, jnp.asarray(x), [])
    p = jax.tree.map(np.asarray, variables["params"])
    past = np.pad(x, ((0, 0), (3, 0), (0, 0)))[:, :-3]
    wide = past @ p["conv"]["kernel"][0] + x @ p["conv"]["kernel"][1] + p["conv"]["bias"]
    y = np.tanh(wide[..., :4]) / (1 + np.exp(-wide[..., 4:]))
    residual, skip = (y @ p[name]["kernel"][0] + p[name]["bias"] for name in ("residual", "skip"))
    np.testing.assert_allclose(actual[0], x + residual, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actual[1], skip, rtol=1e-4, atol=1e-4)


def test_a_part_of_a_network_is_fed_in_chunks():
    class Whole(nn.Module):
        def setup(self) -> None:
            self.part = models.TCN(2, kernel_size=3, features=(4, 4))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.part(x, train=False)

    whole: Any = Whole()
    x = jnp.asarray(RNG.normal(size=(1, 9, 2)), jnp.float32)
    variables = whole.init(jax.random.key(0), x)
    state = whole.apply(variables, 1, method=lambda whole, batch: whole.part.init_stream(batch))
    outputs = []
    for chunk in (x[:, :4], x[:, 4:]):
        y, state = whole.apply(variables, chunk, state, method=lambda whole, chunk, state: whole.part.stream(chunk, state))
        outputs.append(y)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole.apply(variables, x), atol=1e-5)
