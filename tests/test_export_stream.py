"""Steps of streams as programs: a loop over random chunks in each runtime equals `stream` and the whole sequence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection import with_slow
from test_export import needs

import dilax
from dilax.errors import UserError
from dilax.export import FORMATS, export, load_exported, stream_step
from dilax.streaming import Ring, in_order

TASNET = dict(features=6, kernel_size=6, stride=3, bottleneck_features=4, hidden_features=5, skip_features=4, blocks=2, repeats=1)
# Model, fields, shape of a sequence or number of codes, and samples of a chunk.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int]] = {
    "tcn": ("tcn", dict(out_features=2, kernel_size=3, features=(4, 5)), (3,), 2),
    "tcn, sample by sample": ("tcn", dict(out_features=2, kernel_size=3, features=(4, 5)), (3,), 1),
    "tcn, codes": ("tcn", dict(out_features=6, kernel_size=3, features=(4, 5), vocabulary=6, embedding_features=3), (), 1),
    "tcn that looks ahead": ("tcn", dict(out_features=2, kernel_size=3, features=(4, 5), causal=False), (3,), 2),
    "wavenet": ("wavenet", dict(dilations=(1, 2, 4), features=4, skip_features=4, vocabulary=6), (), 1),
    "conv_tasnet": ("conv_tasnet", dict(TASNET, causal=True), (1,), 6),
    "separable_tcn": ("separable_tcn", dict(features=4, dilations=(1, 2)), (3,), 3),
    "bytenet": ("bytenet", dict(vocabulary=6, features=8, dilations=(1, 2)), (), 1),
}
REPEATS = ("tcn, sample by sample", "tcn, codes", "separable_tcn", "bytenet")
CASES = [(fmt, name) for fmt in FORMATS for name in MODELS]
STEPS, BATCH = 12, 2


def made(name: str) -> tuple[Any, Any, np.ndarray]:
    """A model, variables without zeros, and an input."""
    kind, fields, rest, _ = MODELS[name]
    model, rng = dilax.models.create(kind, **fields), np.random.default_rng(7)
    shape = (BATCH, STEPS, *rest)
    x = rng.normal(size=shape).astype(np.float32) if rest else rng.integers(0, 6, shape, np.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return model, jax.tree.map(lambda leaf: rng.normal(0.1, 0.5, leaf.shape).astype(leaf.dtype), shapes), x


def looped(run: Any, step: Any, x: np.ndarray) -> np.ndarray:
    """Feed a sequence to a step, chunk after chunk, as a program around an exported step does."""
    chunk, names = step.inputs[0].shape[1], [port.name for port in step.inputs[1:]]
    state, outputs = list(step.initial(len(x))), []
    if "state_clock_end" in names:
        state[names.index("state_clock_end")] = np.int32(x.shape[1])
    padded = np.concatenate([x, np.zeros((len(x), step.latency + chunk, *x.shape[2:]), x.dtype)], axis=1)
    for start in range(0, x.shape[1] + step.latency, chunk):
        output, *state = run(padded[:, start : start + chunk], *state)
        outputs.append(np.asarray(output))
    return np.concatenate(outputs, axis=1)[:, step.latency : step.latency + x.shape[1]]


def streamed(model: Any, variables: Any, x: np.ndarray, chunk: int) -> np.ndarray:
    state = model.apply(variables, len(x), method="init_stream")
    outputs, run = [], jax.jit(lambda chunk, state: model.apply(variables, chunk, state, method="stream"))
    for start in range(0, x.shape[1], chunk):
        output, state = run(x[:, start : start + chunk], state)
        outputs.append(output)
    return np.concatenate(outputs, axis=1)


@pytest.mark.parametrize(
    ("fmt", "name"), with_slow(CASES, repeats=[(fmt, name) for fmt, name in CASES if name in REPEATS and fmt != "stablehlo"])
)
def test_a_loop_in_a_runtime_equals_stream_and_the_whole_sequence(fmt, name):
    needs(fmt)
    model, variables, x = made(name)
    chunk = MODELS[name][3]
    step = stream_step(model, variables, chunk=chunk, batch=BATCH if fmt == "tflite" else "batch")
    data = export(step.function, step.inputs, outputs=step.outputs, examples=step.examples(), format=fmt)
    found = looped(load_exported(data, format=fmt), step, x)
    whole = np.asarray(model.apply(variables, x, train=False))
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5 * np.ptp(whole))
    live = streamed(model, variables, x, chunk)[:, step.latency :]
    np.testing.assert_allclose(found[:, : live.shape[1]], live, rtol=0, atol=1e-5 * np.ptp(whole))


def test_a_state_in_order_gives_the_same_outputs_from_any_point_on():
    model, variables, x = made("tcn")
    state, more = model.apply(variables, BATCH, method="init_stream"), jnp.asarray(x)
    for size in (1, 1, 3):  # after which the oldest samples are somewhere in the rings
        _, state = model.apply(variables, more[:, :size], state, method="stream")
    for size in (1, 4):
        wanted, after = model.apply(variables, more[:, :size], state, method="stream")
        found, ordered = model.apply(variables, more[:, :size], in_order(state), method="stream")
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        for a, b in zip(jax.tree.leaves(ordered), jax.tree.leaves(in_order(after)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    rings = jax.tree.leaves(in_order(state), is_leaf=lambda part: isinstance(part, Ring))
    assert all(ring.position is None for ring in rings)


def test_ports_name_the_layers():
    model, variables, _ = made("tcn that looks ahead")
    step = stream_step(model, variables, chunk=2, batch="batch")
    names = ["block0_conv1", "block0_conv2", "block0_delay", "block1_conv1", "block1_conv2", "block1_delay", "clock_end", "clock_time"]
    assert [port.name for port in step.inputs] == ["chunk", *(f"state_{name}" for name in names)]
    assert step.outputs == ("output", *(f"next_{name}" for name in names))
    assert step.inputs[0].shape == ("batch", 2, 3) and step.inputs[-1].shape == () and step.latency == 6
    assert step.inputs[1].shape == ("batch", 3, 3) and [one.shape for one in step.initial(4)][:2] == [(4, 3, 3), (4, 3, 4)]
    assert not any(one.any() for one in step.initial()[:-2]) and step.initial()[-2] == 2**31 - 1


MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "not streamable": (
        dilax.models.create("dilated_cnn", num_classes=2),
        {},
        "stream_step: DilatedCNN needs the whole sequence and cannot be fed in chunks; give a `dilax.streaming.Streamable`.",
    ),
    "not a model": (3, {}, "stream_step: 3 needs the whole sequence and cannot be fed in chunks; give a `dilax.streaming.Streamable`."),
    "no chunk": ("tcn", dict(chunk=0), "stream_step: chunk=0 is below 1; use 1 or more."),
    "no batch": ("tcn", dict(batch="a b"), "stream_step: batch='a b' "),
    "stride": ("conv_tasnet", dict(chunk=4), "ConvTasNet.stream: a chunk of 4 samples is not a multiple of stride=3; feed multiples of it"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_refused(case):
    model, options, message = MISTAKES[case]
    model, variables, _ = made(model) if isinstance(model, str) else (model, {}, None)
    with pytest.raises(UserError) as error:
        stream_step(model, variables, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_conditions_are_refused():
    model = dilax.models.create("wavenet", dilations=(1,), features=2, skip_features=2, vocabulary=4, global_features=3)
    x, speaker = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 3))
    variables = model.init(jax.random.key(0), x, train=False, global_condition=speaker)
    with pytest.raises(
        UserError, match=r"^stream_step: WaveNet needs global_condition with each chunk, which a step does not have; export a"
    ):
        stream_step(model, variables)
