"""Going on with sequences by a causal model: samples drawn, or forecast, one after the other in one compiled loop."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from dilax.errors import UserError


def sample_codes(key: jax.Array, logits: jax.Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """Draw one code for each row of logits.

    Args:
        key: Random key.
        logits: (batch, vocabulary).
        temperature: What the logits are divided by; 0 takes the likeliest code.
        top_k: Draw among so many of the likeliest alone, of those that tie the lowest codes; 0 is all.
        top_p: Draw among the likeliest whose probabilities add up to at least this (Holtzman et al. 2020, arXiv:1904.09751).

    Returns:
        (batch,) int32.
    """
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / temperature
    if top_k and top_k < logits.shape[-1]:
        logits = _keep(logits, lax.top_k(logits, top_k)[1], True)
    if top_p < 1:
        order = jnp.argsort(-logits, axis=-1, stable=True)
        shares = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        # A code stays while those before it do not yet reach the share: the likeliest always does.
        logits = _keep(logits, order, jnp.cumsum(shares, axis=-1) - shares < top_p)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _keep(logits: jax.Array, codes: jax.Array, kept: Any) -> jax.Array:
    """The logits of codes (batch, n) that are kept, the others' at minus infinity."""
    return jnp.where(jnp.put_along_axis(jnp.zeros(logits.shape, bool), codes, kept, axis=-1, inplace=False), logits, -jnp.inf)


def sample_waveform(key: jax.Array, outputs: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """Draw one sample of a waveform for each mixture of logistics.

    Args:
        key: Random key.
        outputs: (batch, 3 * mixtures), as `dilax.losses.logistic_mixture_loss` takes them.
        temperature: Factor of the scales; 0 takes the centre of the likeliest logistic.

    Returns:
        (batch, 1) float32 in -1..1.
    """
    logits, means, log_scales = jnp.split(outputs, 3, axis=-1)
    which_key, place_key = jax.random.split(key)
    which = (jax.random.categorical(which_key, logits) if temperature else logits.argmax(-1))[:, None]
    mean, log_scale = (jnp.take_along_axis(values, which, axis=-1) for values in (means, log_scales))
    u = jax.random.uniform(place_key, mean.shape, jnp.float32, minval=1e-5, maxval=1 - 1e-5)
    return jnp.clip(mean + temperature * jnp.exp(log_scale) * (jnp.log(u) - jnp.log1p(-u)), -1, 1)


def sample(
    model: Any,
    variables: Any,
    key: jax.Array,
    prompt: Any,
    steps: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    conditions: Mapping[str, Any] | None = None,
) -> jax.Array:
    """Go on with sequences of codes, or with waveforms: every new sample is drawn from the model's outputs and fed back.

    The prompt is fed at once, then each step costs one step of `stream`, whatever the receptive field. The call may be jitted.

    Args:
        model: A causal model of codes, such as `dilax.models.WaveNet`: (batch, time) -> logits (batch, time, vocabulary) for the next code.
            One with outputs="mixture" goes on with waveforms (batch, time, 1), drawn by `sample_waveform`.
        variables: Its variables.
        key: Random key.
        prompt: Integer codes (batch, n), or floats (batch, n, 1); n from 1.
        steps: Samples to add.
        temperature: As `sample_codes`, or `sample_waveform`; top_k and top_p, of codes alone, as `sample_codes`.
        top_k: Codes to draw among; 0 is all.
        top_p: Share of the probability to draw among.
        conditions: Further arguments of the model by name: of rank 3, (batch, n + steps, channels), one for each sample; others for all.

    Returns:
        The new samples: int32 (batch, steps), or float32 (batch, steps, 1).

    Raises:
        UserError: if the prompt is empty, of another kind, or holds codes that the model does not know, or an option is out of range.

    Example:
        >>> from dilax.models import WaveNet
        >>> model = WaveNet(vocabulary=8, dilations=(1, 2), features=4)
        >>> prompt = jnp.zeros((2, 1), jnp.int32)
        >>> variables = model.init(jax.random.key(0), prompt, train=False)
        >>> sample(model, variables, jax.random.key(1), prompt, 5).shape
        (2, 5)
    """
    prompt, waves = jnp.asarray(prompt), _draws_waves(model)
    _check_prompt(model, prompt, waves)
    _check_options("sample", steps, temperature, top_k, top_p)
    count = prompt.shape[1]
    timed = {name: jnp.asarray(value) for name, value in (conditions or {}).items() if jnp.ndim(value) == 3}
    fixed = {name: value for name, value in (conditions or {}).items() if name not in timed}
    for name, value in timed.items():
        if value.shape[1] != count + steps:
            raise UserError(f"sample: {name} has {value.shape[1]} samples, and prompt and steps make {count + steps}; give one for each.")

    _check_causal("sample", model, variables)
    state = model.apply(variables, prompt.shape[0], method="init_stream")
    before, after = ({name: value[:, part] for name, value in timed.items()} for part in (slice(count), slice(count, None)))
    prompt = prompt.astype(jnp.float32 if waves else jnp.int32)
    outputs, state = model.apply(variables, prompt, state, method="stream", **before, **fixed)
    options: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    return continue_sequence(model, variables, key, outputs[:, -1], state, steps, conditions={**after, **fixed}, **options)[0]


def continue_sequence(
    model: Any,
    variables: Any,
    key: jax.Array,
    outputs: jax.Array,
    state: Any,
    steps: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    conditions: Mapping[str, Any] | None = None,
) -> tuple[jax.Array, jax.Array, Any]:
    """Draw further samples from where a stream stands, as `sample` does after its prompt.

    Args:
        model: As `sample`.
        variables: Its variables.
        key: Random key; another one for each call.
        outputs: (batch, n), those of `stream` for the last sample fed.
        state: That it left.
        steps: Samples to draw.
        temperature: As `sample`; so are top_k and top_p.
        top_k: Codes to draw among; 0 is all.
        top_p: Share of the probability to draw among.
        conditions: As `sample`; those of rank 3 are (batch, steps, channels).

    Returns:
        The new samples, as `sample`; and the outputs and the state after them, to go on from.

    Raises:
        UserError: if an option is out of range, a condition has another length, or there are more logits than codes.

    Example:
        >>> from dilax.models import WaveNet
        >>> model, codes = WaveNet(vocabulary=8, dilations=(1, 2), features=4), jnp.zeros((2, 3), jnp.int32)
        >>> variables = model.init(jax.random.key(0), codes, train=False)
        >>> state = model.apply(variables, 2, method="init_stream")
        >>> outputs, state = model.apply(variables, codes, state, method="stream")
        >>> new, outputs, state = continue_sequence(model, variables, jax.random.key(1), outputs[:, -1], state, 5)
        >>> new.shape, outputs.shape
        ((2, 5), (2, 8))
    """
    _check_options("continue_sequence", steps, temperature, top_k, top_p)
    waves, known = _draws_waves(model), getattr(model, "vocabulary", 0)
    if not waves and known and outputs.shape[-1] > known:
        raise UserError(
            f"continue_sequence: the model gives logits for {outputs.shape[-1]} codes, and knows {known}, which it would be fed."
        )
    timed = {name: jnp.moveaxis(jnp.asarray(value), 1, 0) for name, value in (conditions or {}).items() if jnp.ndim(value) == 3}
    fixed = {name: value for name, value in (conditions or {}).items() if name not in timed}
    for name, value in timed.items():
        if len(value) != steps:
            raise UserError(f"continue_sequence: {name} has {len(value)} samples for {steps} steps; give one for each.")

    def step(carry: tuple[jax.Array, Any], inputs: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[Any, jax.Array]:
        (outputs, state), (key, timed) = carry, inputs
        if waves:
            new = sample_waveform(key, outputs, temperature=temperature)
        else:
            new = sample_codes(key, outputs, temperature=temperature, top_k=top_k, top_p=top_p)
        now = {name: value[:, None] for name, value in timed.items()}
        outputs, state = model.apply(variables, new[:, None], state, method="stream", **now, **fixed)
        return (outputs[:, -1], state), new

    (outputs, state), new = lax.scan(step, (outputs, state), (jax.random.split(key, steps), timed))
    return jnp.moveaxis(new, 0, 1), outputs, state


def _draws_waves(model: Any) -> bool:
    return getattr(model, "outputs", "") == "mixture"


def forecast(model: Any, variables: Any, x: jax.Array, steps: int) -> jax.Array:
    """Go on with sequences of numbers: what a model gives for the next step is fed back as if it had been seen.

    The call may be jitted.

    Args:
        model: A causal model (batch, time, channels) -> (batch, time, channels), each step the next sample, such as `dilax.models.TCN`.
        variables: Its variables.
        x: Floats (batch, n, channels), n from 1.
        steps: Samples to add.

    Returns:
        float32 (batch, steps, channels).

    Raises:
        UserError: if x is empty or no such sequence, or the model gives other channels than it takes.

    Example:
        >>> from dilax.models import TCN
        >>> model, x = TCN(out_features=2, kernel_size=3, features=(4, 4)), jnp.ones((1, 9, 2))
        >>> forecast(model, model.init(jax.random.key(0), x, train=False), x, 5).shape
        (1, 5, 2)
    """
    x = jnp.asarray(x)
    if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating) or x.shape[1] == 0 or steps < 1:
        raise UserError(
            f"forecast: x {x.dtype} {x.shape} and steps={steps} must be floats (batch, time, channels), and at least 1 of each."
        )
    _check_causal("forecast", model, variables)
    outputs, state = model.apply(variables, x, model.apply(variables, x.shape[0], method="init_stream"), method="stream")
    if outputs.shape != x.shape:
        raise UserError(f"forecast: the model maps {x.shape} to {outputs.shape}; give one whose outputs are the next inputs.")

    def step(carry: tuple[jax.Array, Any], _: None) -> tuple[Any, jax.Array]:
        new, state = carry
        outputs, state = model.apply(variables, new[:, None].astype(x.dtype), state, method="stream")
        return (outputs[:, -1], state), new

    _, new = lax.scan(step, (outputs[:, -1], state), None, length=steps)
    return jnp.moveaxis(new, 0, 1)


def _check_options(caller: str, steps: int, temperature: float, top_k: int, top_p: float) -> None:
    if steps < 1 or not temperature >= 0 or top_k < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"{caller}: steps={steps}, temperature={temperature}, top_k={top_k}, top_p={top_p} must be at least 1, at least 0, at least 0 "
            "and above 0 up to 1."
        )


def _check_causal(caller: str, model: Any, variables: Any) -> None:
    if ahead := model.apply(variables, method="latency"):
        raise UserError(f"{caller}: the model looks {ahead} samples ahead, which are not there yet; use one that is causal.")


def _check_prompt(model: Any, prompt: jax.Array, waves: bool) -> None:
    kind, rank, words = (jnp.floating, 3, "floats (batch, time, 1)") if waves else (jnp.integer, 2, "integer codes (batch, time)")
    if prompt.ndim >= 2 and prompt.shape[1] == 0:
        raise UserError("sample: the prompt is empty; give at least one sample to begin with, such as a blank or silence.")
    if prompt.ndim != rank or not jnp.issubdtype(prompt.dtype, kind):
        raise UserError(f"sample: the prompt must be {words}, got {prompt.dtype} {prompt.shape}.")
    known = getattr(model, "vocabulary", 0)
    if waves or not known or isinstance(prompt, Tracer):
        return
    codes = np.asarray(prompt)
    if len(wrong := codes[(codes < 0) | (codes >= known)]):
        raise UserError(f"sample: the prompt holds the code {wrong[0]}, and the model knows 0 to {known - 1}.")
