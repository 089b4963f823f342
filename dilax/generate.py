"""Continue sequences by a causal model: sampling and forecasting, one step after the other in a compiled loop."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from dilax import arguments
from dilax.errors import UserError, did_you_mean, shown
from dilax.precision import widened
from dilax.pruning import unpruned
from dilax.streaming import State


def sample_codes(key: jax.Array, logits: jax.Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """Sample one code from each row of logits.

    Args:
        key: Random key.
        logits: (batch, vocabulary).
        temperature: Divisor of the logits; 0 selects the most likely code.
        top_k: Sample only from the `top_k` most likely codes, and among ties from the lowest; 0 for all codes.
        top_p: Sample only from the most likely codes whose probabilities add up to at least `top_p` (nucleus sampling; Holtzman et al.
            2020, arXiv:1904.09751).

    Returns:
        int32 (batch,).

    Raises:
        UserError: if the logits have the wrong shape or dtype, or an option is out of range.

    Example:
        >>> sample_codes(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]]), temperature=0).tolist()
        [1]
    """
    temperature, top_k, top_p = _check_draw("sample_codes", temperature, top_k, top_p)
    logits = _logits("sample_codes", "logits", logits)
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    # Half precision holds neither small quotients nor sums over a vocabulary, and quotients of the largest logit must not overflow.
    logits = widened(logits)
    largest = logits.max(-1, keepdims=True)
    logits = jnp.where(logits == largest, 0.0, (logits - largest) / _nonzero(temperature, logits.dtype))
    if top_k and top_k < logits.shape[-1]:
        logits = _keep(logits, lax.top_k(logits, top_k)[1], True)
    if top_p < 1:
        order = jnp.argsort(-logits, axis=-1, stable=True)
        probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        # A code is kept if the more likely ones do not yet add up to top_p, so the most likely code always is.
        logits = _keep(logits, order, jnp.cumsum(probabilities, axis=-1) - probabilities < _nonzero(top_p, logits.dtype))
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _keep(logits: jax.Array, codes: jax.Array, keep: ArrayLike) -> jax.Array:
    """Set all logits to minus infinity, except those of codes (batch, n) where `keep` is True."""
    return jnp.where(jnp.put_along_axis(jnp.zeros(logits.shape, bool), codes, keep, axis=-1, inplace=False), logits, -jnp.inf)


def sample_waveform(key: jax.Array, outputs: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """Sample one value of a waveform from each mixture of logistics.

    Args:
        key: Random key.
        outputs: (batch, 3 * mixtures), the arguments of `dilax.losses.logistic_mixture_loss`.
        temperature: Factor of the scales; 0 selects the mean of the most likely logistic.

    Returns:
        float32 (batch, 1) in -1..1.

    Raises:
        UserError: if the outputs have the wrong shape or dtype, or the temperature is negative.

    Example:
        >>> sample_waveform(jax.random.key(0), jnp.array([[1.0, 0.0, 0.5, -0.5, -3.0, -3.0]]), temperature=0).tolist()
        [[0.5]]
    """
    caller = "sample_waveform"
    temperature = arguments.number(caller, "temperature", temperature, minimum=0)
    outputs = _logits(caller, "outputs", outputs)
    if outputs.shape[-1] % 3:
        raise UserError(f"{caller}: outputs of shape {outputs.shape} must be (batch, 3 * mixtures).")
    logits, means, log_scales = jnp.split(widened(outputs), 3, axis=-1)
    component_key, value_key = jax.random.split(key)
    component = (jax.random.categorical(component_key, logits) if temperature else logits.argmax(-1))[:, None]
    mean, log_scale = (jnp.take_along_axis(values, component, axis=-1) for values in (means, log_scales))
    if temperature == 0:
        return jnp.clip(mean, -1, 1).astype(jnp.float32)
    u = jax.random.uniform(value_key, mean.shape, mean.dtype, minval=1e-5, maxval=1 - 1e-5)
    # In the exponent, a temperature near 0 and a scale that is infinite are not NaN.
    scale = jnp.exp(log_scale + jnp.log(_nonzero(temperature, mean.dtype)))
    noise = jnp.log(u) - jnp.log1p(-u)
    return jnp.clip(mean + jnp.where(noise == 0, 0.0, scale * noise), -1, 1).astype(jnp.float32)


def sample(
    model: nn.Module,
    variables: VariableDict,
    key: jax.Array,
    prompt: ArrayLike,
    steps: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    conditions: Mapping[str, ArrayLike] | None = None,
) -> jax.Array:
    """Continue sequences of codes, or waveforms: each new sample is drawn from the outputs of the model and fed back.

    The prompt is fed in a single chunk; each step then costs one call of `stream`, whatever the receptive field. This can be jitted.

    Args:
        model: A causal model from codes (batch, time) to logits (batch, time, vocabulary) of the next code, such as
            `dilax.models.WaveNet`. A model with outputs="mixture" continues waveforms (batch, time, 1) by `sample_waveform`.
        variables: Its variables.
        key: Random key.
        prompt: Integer codes (batch, n) or floats (batch, n, 1), with n of at least 1.
        steps: Number of samples to add.
        temperature: See `sample_codes` and `sample_waveform`.
        top_k: See `sample_codes`; ignored for waveforms.
        top_p: See `sample_codes`; ignored for waveforms.
        conditions: Further arguments of the model by name. Those of rank 3, (batch, n + steps, channels), have one entry per sample; others
            hold for all samples.

    Returns:
        The new samples: int32 (batch, steps), or float32 (batch, steps, 1).

    Raises:
        UserError: if the prompt is empty, has the wrong shape or dtype, or has codes outside the vocabulary, an option is out of
            range, or the model does not take a condition.

    Example:
        >>> from dilax.models import WaveNet
        >>> model = WaveNet(vocabulary=8, dilations=(1, 2), features=4)
        >>> prompt = jnp.zeros((2, 1), jnp.int32)
        >>> variables = model.init(jax.random.key(0), prompt, train=False)
        >>> sample(model, variables, jax.random.key(1), prompt, 5).shape
        (2, 5)
    """
    _check_model("sample", model)
    prompt, waves = arguments.array("sample", "prompt", prompt), _generates_waveforms(model)
    _check_prompt(model, prompt, waves)
    steps = arguments.integer("sample", "steps", steps, minimum=1)
    temperature, top_k, top_p = _check_draw("sample", temperature, top_k, top_p)
    conditions = _check_conditions("sample", model, conditions)
    count = prompt.shape[1]
    timed = {name: jnp.asarray(value) for name, value in conditions.items() if jnp.ndim(value) == 3}
    fixed: dict[str, Any] = {name: value for name, value in conditions.items() if name not in timed}
    for name, value in timed.items():
        if value.shape[1] != count + steps:
            raise UserError(
                f"sample: {name} has {value.shape[1]} samples along time, but the prompt and the new samples have {count + steps}; "
                "give one for each."
            )

    _check_causal("sample", model, variables)
    before, after = ({name: value[:, part] for name, value in timed.items()} for part in (slice(count), slice(count, None)))
    prompt = prompt.astype(jnp.float32 if waves else jnp.int32)
    outputs, state = _stream(model, variables, prompt, _initial_state(model, variables, prompt.shape[0]), {**before, **fixed})
    options: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    return continue_sequence(model, variables, key, outputs[:, -1], state, steps, conditions={**after, **fixed}, **options)[0]


def continue_sequence(
    model: nn.Module,
    variables: VariableDict,
    key: jax.Array,
    outputs: jax.Array,
    state: Any,
    steps: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    conditions: Mapping[str, ArrayLike] | None = None,
) -> tuple[jax.Array, jax.Array, State]:
    """Continue sequences from the state of a stream, as `sample` does after its prompt.

    Args:
        model: See `sample`.
        variables: Its variables.
        key: Random key; use a new one for each call.
        outputs: (batch, n), the outputs of `stream` for the last sample fed.
        state: The state that it returned.
        steps: Number of samples to add.
        temperature: See `sample`.
        top_k: See `sample_codes`; ignored for waveforms.
        top_p: See `sample_codes`; ignored for waveforms.
        conditions: See `sample`; those of rank 3 are (batch, steps, channels).

    Returns:
        The new samples, as `sample` returns them, and the outputs and the state after them, from which a further call continues.

    Raises:
        UserError: if an option is out of range, a condition has the wrong length or is not one of the model, or there are more logits than
            codes.

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
    _check_model("continue_sequence", model)
    steps = arguments.integer("continue_sequence", "steps", steps, minimum=1)
    temperature, top_k, top_p = _check_draw("continue_sequence", temperature, top_k, top_p)
    outputs, conditions = _logits("continue_sequence", "outputs", outputs), _check_conditions("continue_sequence", model, conditions)
    waves, vocabulary = _generates_waveforms(model), getattr(model, "vocabulary", 0)
    if not waves and vocabulary and outputs.shape[-1] > vocabulary:
        raise UserError(
            f"continue_sequence: the model has logits for {outputs.shape[-1]} codes, but accepts only {vocabulary} as its input; "
            "use a model with as many outputs as codes."
        )
    timed = {name: jnp.moveaxis(jnp.asarray(value), 1, 0) for name, value in conditions.items() if jnp.ndim(value) == 3}
    fixed: dict[str, Any] = {name: value for name, value in conditions.items() if name not in timed}
    for name, value in timed.items():
        if len(value) != steps:
            raise UserError(f"continue_sequence: {name} has {len(value)} samples along time, but steps={steps}; give one for each step.")

    def step(carry: tuple[jax.Array, Any], inputs: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[Any, jax.Array]:
        (outputs, state), (key, timed) = carry, inputs
        if waves:
            new = sample_waveform(key, outputs, temperature=temperature)
        else:
            new = sample_codes(key, outputs, temperature=temperature, top_k=top_k, top_p=top_p)
        now = {name: value[:, None] for name, value in timed.items()}
        outputs, state = _stream(model, variables, new[:, None], state, {**now, **fixed})
        return (outputs[:, -1], state), new

    (outputs, state), new = lax.scan(step, (outputs, state), (jax.random.split(key, steps), timed))
    return jnp.moveaxis(new, 0, 1), outputs, state


def forecast(model: nn.Module, variables: VariableDict, x: ArrayLike, steps: int) -> jax.Array:
    """Forecast sequences of numbers: each prediction of the model is fed back as the next sample.

    The function can be jitted.

    Args:
        model: A causal model from (batch, time, channels) to a prediction of the next sample at every step, (batch, time, channels), such
            as `dilax.models.TCN`.
        variables: Its variables.
        x: Floats (batch, n, channels), with n of at least 1.
        steps: Number of samples to predict.

    Returns:
        float32 (batch, steps, channels).

    Raises:
        UserError: if x is empty or has the wrong shape or dtype, or the outputs of the model do not have the shape of its inputs.

    Example:
        >>> from dilax.models import TCN
        >>> model, x = TCN(out_features=2, kernel_size=3, features=(4, 4)), jnp.ones((1, 9, 2))
        >>> forecast(model, model.init(jax.random.key(0), x, train=False), x, 5).shape
        (1, 5, 2)
    """
    _check_model("forecast", model)
    x = arguments.array("forecast", "x", x)
    if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating) or x.shape[1] == 0:
        raise UserError(f"forecast: x is {x.dtype} of shape {x.shape}; give floats (batch, time, channels) with at least one step.")
    steps = arguments.integer("forecast", "steps", steps, minimum=1)
    _check_causal("forecast", model, variables)
    outputs, state = _stream(model, variables, x, _initial_state(model, variables, x.shape[0]), {})
    if outputs.shape != x.shape:
        raise UserError(f"forecast: the model maps {x.shape} to {outputs.shape}; use one that predicts its next input.")

    def step(carry: tuple[jax.Array, State], _: None) -> tuple[Any, jax.Array]:
        new, state = carry
        outputs, state = _stream(model, variables, new[:, None].astype(x.dtype), state, {})
        return (outputs[:, -1], state), new

    _, new = lax.scan(step, (outputs[:, -1], state), None, length=steps)
    return jnp.moveaxis(new, 0, 1)


def _nonzero(value: float, dtype: Any) -> jax.Array:
    """Return a number above 0 in a dtype of less range than Python's floats, where it is neither 0 nor infinite."""
    limits = jnp.finfo(dtype)
    return jnp.asarray(min(max(value, float(limits.tiny)), float(limits.max)), dtype)


def _generates_waveforms(model: nn.Module) -> bool:
    return getattr(model, "outputs", "") == "mixture"


def _initial_state(model: Any, variables: VariableDict, batch_size: int) -> State:
    return model.apply(variables, batch_size, method="init_stream")


def _stream(model: Any, variables: VariableDict, chunk: jax.Array, state: State, conditions: Mapping[str, Any]) -> tuple[jax.Array, State]:
    return model.apply(variables, chunk, state, method="stream", **conditions)


def _logits(caller: str, argument: str, value: jax.Array) -> jax.Array:
    """Return outputs of a model for one step, (batch, n)."""
    x = arguments.array(caller, argument, value, "floating-point")
    if x.ndim != 2 or x.shape[-1] == 0:
        raise UserError(f"{caller}: {argument} of shape {x.shape} must be (batch, n), one row for each sequence.")
    return x


def _check_model(caller: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module) or not hasattr(model, "init_stream"):
        raise UserError(f"{caller}: model={shown(model)} is not a model that can be fed in chunks; use a causal one, such as `WaveNet`.")


def _check_conditions(caller: str, model: nn.Module, conditions: Mapping[str, ArrayLike | None] | None) -> dict[str, Any]:
    """Return the conditions as arrays; those that are None are omitted, and the model has to do without them."""
    if conditions is None:
        return {}
    if not isinstance(conditions, Mapping):
        raise UserError(f"{caller}: conditions={shown(conditions)} is not a dict from names to arrays; give one, or None.")
    model = unpruned(model)
    _, _, *others = inspect.signature(type(model).__call__).parameters.values()
    known = [one.name for one in others if one.name != "train" and one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    for name in conditions:
        if name not in known:
            raise UserError(
                f"{caller}: conditions hold {shown(name)}, which is not a condition of {type(model).__name__}; it takes "
                f"{', '.join(known) or 'none'}.{did_you_mean(str(name), known)}"
            )
    return {name: arguments.array(caller, name, value) for name, value in conditions.items() if value is not None}


def _check_draw(caller: str, temperature: float, top_k: int, top_p: float) -> tuple[float, int, float]:
    temperature = arguments.number(caller, "temperature", temperature, minimum=0)
    top_k = arguments.integer(caller, "top_k", top_k, minimum=0)
    if not 0 < arguments.number(caller, "top_p", top_p) <= 1:
        raise UserError(f"{caller}: top_p={top_p} is not in the range 0 < top_p <= 1; use 1 for all codes.")
    return temperature, top_k, float(top_p)


def _check_causal(caller: str, model: nn.Module, variables: VariableDict) -> None:
    if lookahead := model.apply(variables, method="latency"):
        raise UserError(f"{caller}: the model looks {lookahead} samples ahead, which are not known yet; use a causal model.")


def _check_prompt(model: nn.Module, prompt: jax.Array, waves: bool) -> None:
    kind, rank, words = (jnp.floating, 3, "floats (batch, time, 1)") if waves else (jnp.integer, 2, "integer codes (batch, time)")
    if prompt.ndim >= 2 and prompt.shape[1] == 0:
        raise UserError("sample: the prompt is empty; give at least one sample to start from, such as a space or silence.")
    if prompt.ndim != rank or not jnp.issubdtype(prompt.dtype, kind):
        raise UserError(f"sample: the prompt must be {words}, got {prompt.dtype} {prompt.shape}.")
    vocabulary = getattr(model, "vocabulary", 0)
    if waves or not vocabulary or isinstance(prompt, Tracer):
        return
    codes = np.asarray(prompt)
    if len(invalid := codes[(codes < 0) | (codes >= vocabulary)]):
        raise UserError(f"sample: the prompt has the code {invalid[0]}; the model accepts codes from 0 to {vocabulary - 1}.")
