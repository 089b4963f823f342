"""Compare log-mel energies with a slow NumPy oracle: a loop over frames, the definition of the transform, interpolated triangles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.signal import get_window

from dilax.audio import log_mel
from dilax.errors import UserError

RNG = np.random.default_rng(3)
SOUND: Any = RNG.normal(size=(3, 130)).astype(np.float32) * np.linspace(0.01, 1, 130, dtype=np.float32)
# Sample rates and options.
CASES: list[tuple[float, dict[str, Any]]] = [
    (8000, dict(window=64, hop=20, bands=5)),
    (8000, dict(window=50, hop=50, bands=4, lowest=100.0, highest=3000.0)),
    (16000, dict(window=33, hop=7, bands=3, lowest=0.0)),
    (11025.0, dict(window=130, hop=1, bands=6, floor=1.0)),
    (8000, dict(window=100, hop=200, bands=7, lowest=300.0, floor=1e-3)),
]


def oracle(x, rate, window, hop, bands, lowest=20.0, highest=None, floor=1e-6):
    size = 2 ** int(np.ceil(np.log2(window)))
    hertz = np.arange(size // 2 + 1) * rate / size
    low, high = (2595 * np.log10(1 + f / 700) for f in (lowest, highest or rate / 2))
    step = (high - low) / (bands + 1)
    result = []
    for sound in x.astype(np.float64):
        frames, start = [], 0
        while start + window <= len(sound):
            frame = sound[start : start + window] * get_window("hann", window)
            cycles = np.outer(hertz / rate, np.arange(window))
            power = np.abs((frame * np.exp(-2j * np.pi * cycles)).sum(1)) ** 2
            mels = 2595 * np.log10(1 + hertz / 700)
            triangles = [np.interp(mels, [low + b * step, low + (b + 1) * step, low + (b + 2) * step], [0, 1, 0]) for b in range(bands)]
            frames.append([np.log(max(power @ triangle, floor)) for triangle in triangles])
            start += hop
        result.append(frames)
    return np.array(result)


@pytest.mark.parametrize(("rate", "options"), CASES)
def test_log_mel_equals_the_oracle(rate, options):
    expected = oracle(SOUND, rate, **options)
    y = jax.jit(lambda x: log_mel(x, rate, **options))(SOUND)
    assert y.dtype == jnp.float32
    assert y.shape == expected.shape == (3, 1 + (130 - options["window"]) // options["hop"], options["bands"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_log_mel_runs_without_jit_and_under_vmap():
    rate, options = CASES[0]
    y = jax.jit(lambda x: log_mel(x, rate, **options))(SOUND)
    np.testing.assert_allclose(log_mel(SOUND, rate, **options), y, rtol=1e-5, atol=1e-5)
    mapped = jax.jit(jax.vmap(lambda x: log_mel(x[None], rate, **options)[0]))(SOUND)
    np.testing.assert_allclose(mapped, y, rtol=1e-5, atol=1e-5)


def test_the_defaults_are_those_of_speech():
    sound: Any = RNG.normal(size=(1, 1600)).astype(np.float32)
    y = jax.jit(lambda x: log_mel(x, 16000))(sound)
    assert y.shape == (1, 8, 40)
    np.testing.assert_allclose(y, oracle(sound, 16000, 400, 160, 40), rtol=1e-4, atol=1e-4)


def test_a_tone_is_loudest_in_its_band():
    time = np.arange(4000) / 16000
    energies = jax.jit(lambda x: log_mel(x, 16000, lowest=0.0))
    for hertz in (200.0, 1000.0, 5000.0):
        y = np.asarray(energies(np.sin(2 * np.pi * hertz * time, dtype=np.float32)[None]))
        mel = 2595 * np.log10(1 + hertz / 700)
        centre = mel / (2595 * np.log10(1 + 8000 / 700)) * 41 - 1
        assert np.abs(np.argmax(y[0], -1) - centre).max() <= 1


def test_gradients():
    x = jnp.asarray(SOUND[:2, :60])
    energies = jax.jit(lambda x: log_mel(x, 8000, window=32, hop=14, bands=3, lowest=400.0))
    check_grads(energies, (x,), order=1, modes=("rev", "fwd"), rtol=2e-2, eps=1e-3)
    silent = jax.jit(jax.grad(lambda x: log_mel(x, 16000).sum()))(jnp.zeros((1, 800)))
    np.testing.assert_array_equal(silent, 0)


def test_silence_is_the_floor():
    y = jax.jit(lambda x: log_mel(x, 16000, floor=1e-4))(jnp.zeros((1, 500)))
    np.testing.assert_allclose(y, np.log(1e-4), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_are_summed_in_float32(dtype):
    x = jnp.asarray(SOUND, dtype)
    energies = jax.jit(lambda x: log_mel(x, 8000, window=64, hop=20, bands=5))
    y = energies(x)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, energies(x.astype(jnp.float32)))


MISTAKES: list[tuple[Any, dict[str, Any], str]] = [
    (SOUND[0], {}, "log_mel: x of shape (130,) must be (batch, time) with at least window=64 samples of time."),
    (SOUND.astype(np.int16), {}, "log_mel: x has dtype int16; convert it to a floating-point dtype such as float32 first."),
    (SOUND, dict(window=131), "log_mel: x of shape (3, 130) must be (batch, time) with at least window=131 samples of time."),
    (SOUND, dict(window=1), "log_mel: window=1 is below 2; use 2 or more."),
    (SOUND, dict(window=20.5), "log_mel: window=20.5 is not an integer; give an int."),
    (SOUND, dict(hop=0), "log_mel: hop=0 is below 1; use 1 or more."),
    (SOUND, dict(bands=0), "log_mel: bands=0 is below 1; use 1 or more."),
    (SOUND, dict(lowest=-1.0), "log_mel: lowest=-1.0 and highest=4000.0 must satisfy 0 <= lowest < highest <= sample_rate / 2 = 4000.0."),
    (SOUND, dict(highest=4001.0), "log_mel: lowest=20.0 and highest=4001.0 must satisfy 0 <= lowest < highest <= sample_rate / 2 = 4000.0."),
    (SOUND, dict(lowest=4000.0), "log_mel: lowest=4000.0 and highest=4000.0 must satisfy 0 <= lowest < highest <= sample_rate / 2 = 4000.0."),
    (SOUND, dict(floor=0.0), "log_mel: floor=0.0 is not above 0; use a larger number."),
    (SOUND, dict(bands=40), "log_mel: band 0 of 40 falls between two frequencies of a transform of 64 samples at 8000 Hz; "
     "use fewer bands, a longer window, or a higher lowest."),
]  # fmt: skip


@pytest.mark.parametrize(("x", "changes", "message"), MISTAKES)
def test_mistakes(x, changes, message):
    with pytest.raises(UserError) as caught:
        log_mel(x, 8000, **{**dict(window=64, hop=20, bands=5), **changes})
    assert str(caught.value) == message
