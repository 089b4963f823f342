"""Profile a model on the device at hand: what each layer costs in inference, in time, multiply-adds, memory and parameters."""

import csv
import dataclasses
import io
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from flax.typing import VariableDict

from dilax import arguments
from dilax.arguments import takes_train
from dilax.errors import UserError, reason
from dilax.pruning import multiply_adds_for
from dilax.summary import Call, Layer, aligned, format_field, layers_of_calls, recorded_calls, variables_at, words_of

TURN_S = 2e-3  # a turn of a shorter program consists of several calls
MOST_CALLS = 50
CSV_COLUMNS = (
    *("layer", "kind", "output_shape", "parameters", "multiply_adds", "output_bytes", "receptive_field", "milliseconds", "share"),
)


@dataclasses.dataclass(frozen=True)
class LayerCost(Layer):
    """What a layer costs in inference.

    Attributes:
        output_bytes: Size of its output for the whole batch.
        milliseconds: Time of the layer alone on the whole batch, compiled, on its real input: the median of several turns.
        share: That time over the sum of the times of all layers.
    """

    output_bytes: int
    milliseconds: float
    share: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a model and its layers cost in inference on a device.

    XLA fuses operations across layers, and what lies between the layers, such as pooling, has no row. So the times of the layers do not
    add up to that of the model.

    Attributes:
        layers: The layers that have parameters of their own, in the order in which they run; without those that call others of them.
        batch: Number of examples at a time.
        milliseconds: Time of the whole model on the batch, as one program: the median of several turns.
        call_milliseconds: Time of a program that does next to nothing, which is part of all times above.
        parameters: Number of parameters.
        multiply_adds: Multiply-adds for one example; see `dilax.multiply_adds`.
        temporary_bytes: Memory that the program of the whole model takes for intermediate results, as XLA plans it.
        device: The device.
    """

    layers: tuple[LayerCost, ...]
    batch: int
    milliseconds: float
    call_milliseconds: float
    parameters: int
    multiply_adds: int
    temporary_bytes: int
    device: str

    def table(self) -> str:
        """Return the layers as lines of text, the model below them, and a line on what was measured."""
        rows = [("layer", "kind", "output", "parameters", "multiply-adds", "receptive field", "output kB", "ms", "share")]
        rows += [(*words_of(layer), *_cost_words(layer)) for layer in self.layers]
        alone = sum(layer.milliseconds for layer in self.layers)
        rows += [
            ("sum of the layers", "", "", "", "", "", "", f"{alone:.3f}", ""),
            ("the model as one program", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}", "", "", f"{self.milliseconds:.3f}", ""),
        ]
        note = (
            f"{self.batch} example(s) at a time on {self.device}; intermediate results take {self.temporary_bytes / 1e6:,.2f} MB; "
            f"calling a program takes {self.call_milliseconds:.3f} ms of each time."
        )
        return f"{aligned(rows, right={3, 4, 6, 7, 8})}\n{note}"

    def to_csv(self) -> str:
        """Return a line of comma-separated values for each layer, below the names of the columns."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for one in self.layers:
            shape, field = "x".join(map(str, one.output_shape)), format_field(one.receptive_field)
            costs = (one.parameters, one.multiply_adds, one.output_bytes, field, f"{one.milliseconds:.6f}", f"{one.share:.6f}")
            writer.writerow(("/".join(one.path), one.kind, shape, *costs))
        return text.getvalue()


@dataclasses.dataclass(frozen=True)
class _Program:
    """A compiled function and what it is called with."""

    compiled: Callable[..., Any]
    arguments: tuple[Any, ...]

    def seconds(self, calls: int) -> float:
        """Return the mean seconds of a number of calls, after one that is not timed."""
        jax.block_until_ready(self.compiled(*self.arguments))
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(self.compiled(*self.arguments))
        return (time.perf_counter() - start) / calls


def profile(model: nn.Module, variables: Mapping[str, Any], x: jax.Array, *, repeats: int = 20) -> Profile:
    """Measure what a model and each of its layers cost in inference on the default device.

    The model runs once, and the inputs of its layers are kept. Each layer is then compiled alone, and all of them, and the whole model,
    take turns on these inputs.

    Args:
        model: A Flax module.
        variables: Its variables.
        x: A batch of its inputs, (batch, *space, channels), or (batch, time) for codes.
        repeats: Number of turns, of which the medians count. A turn of a program that takes less than 2 ms is the mean of several calls.

    Returns:
        The costs; `print(profile(...).table())` shows them, `plots.layer_bars` draws them.

    Raises:
        UserError: if an argument is invalid, the model does not run with the variables and x, it has no layers with parameters, its
            receptive field cannot be analysed, or layers cannot be run alone, as those inside `flax.linen.scan` or `remat`.

    Example:
        >>> import dilax
        >>> model, x = dilax.models.create("separable_cnn_single_layer"), jnp.ones((2, 8, 8, 3))
        >>> found = profile(model, model.init(jax.random.key(0), x, train=False), x, repeats=1)
        >>> [("/".join(layer.path), layer.multiply_adds, layer.output_bytes) for layer in found.layers]
        [('ConvNormAct_0/SeparableConv_0', 14016, 32768), ('head', 640, 80)]
        >>> found.milliseconds > 0 and found.layers[0].milliseconds > 0
        True
    """
    arguments.module("profile", "model", model)
    repeats = arguments.integer("profile", "repeats", repeats, minimum=1)
    x = arguments.image("profile", "x", arguments.array("profile", "x", x))
    _check_variables(variables)
    if not x.size:
        raise UserError(f"profile: x of shape {x.shape} holds no example; give a batch of one or more.")
    try:
        total, programs, rows = multiply_adds_for("profile", model, variables, x), *_prepare(model, variables, x)
    except jax.errors.UnexpectedTracerError:
        raise UserError(
            f"profile: {type(model).__name__} has layers inside a transformation of flax.linen, such as remat, which cannot be run alone; "
            "profile the module inside it."
        ) from None
    except (FlaxError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"profile: {type(model).__name__} does not run with these variables and this x of shape {x.shape} ({reason(error)}); give all "
            "collections of its variables, and an input that it takes."
        ) from None
    whole, nothing, *alone = _median_seconds(programs, repeats)
    everything = sum(alone)
    costs = [
        LayerCost(**_fields(layer), output_bytes=size, milliseconds=1e3 * seconds, share=seconds / everything)
        for (layer, size), seconds in zip(rows, alone)
    ]
    analysis: Any = programs[0].compiled
    return Profile(
        layers=tuple(costs),
        batch=x.shape[0],
        milliseconds=1e3 * whole,
        call_milliseconds=1e3 * nothing,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        multiply_adds=total,
        temporary_bytes=analysis.memory_analysis().temp_size_in_bytes,
        device=jax.devices()[0].device_kind,
    )


def _check_variables(variables: Any) -> None:
    given = isinstance(variables, Mapping) and "params" in variables
    if not given or not all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(dict(variables))):
        raise UserError('profile: variables must be those of the model, {"params": ...} with arrays; give what its init returns.')


def _prepare(model: nn.Module, variables: VariableDict, x: jax.Array) -> tuple[list[_Program], list[tuple[Layer, int]]]:
    """Return the program of the model, one that does next to nothing and those of the layers, and the layers with the sizes of outputs."""
    options: dict[str, Any] = {"train": False} if takes_train(model) else {}

    def run(variables: Any, x: jax.Array) -> Any:
        return model.apply(variables, x, **options)

    found = layers_of_calls("profile", model, x, variables=variables)
    inputs, calls = _inputs_of_layers(run, variables, x)
    programs, rows = [_compile(run, variables, x), _compile(lambda x: x + 1, jnp.zeros(()))], []
    for (layer, one), call, arrays in zip(found, calls, inputs, strict=True):
        if not one.encloses:
            alone, size = _alone(call), sum(leaf.nbytes for leaf in jax.tree.leaves(call.output))
            programs.append(_compile(alone, variables_at(variables, call.path), arrays))
            rows.append((layer, size))
    if not rows:
        raise UserError(f"profile: {type(model).__name__} has no layers with parameters; give a model that has some.")
    return programs, rows


def _inputs_of_layers(run: Callable[..., Any], variables: Any, x: jax.Array) -> tuple[list[dict[int, jax.Array]], list[Call]]:
    """Run a model, and return the arrays among the arguments of each call of a layer by number, and the calls, traced."""
    found: list[Call] = []

    def inputs(variables: Any, x: jax.Array) -> list[dict[int, jax.Array]]:
        with recorded_calls("profile", variables) as calls:
            run(variables, x)
        found[:] = calls
        return [_arrays(call) for call in calls]

    return jax.jit(inputs)(variables, x), found


def _arrays(call: Call) -> dict[int, Any]:
    leaves = jax.tree.leaves(call.arguments)
    return {number: leaf for number, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)}


def _alone(call: Call) -> Callable[..., Any]:
    """Return a layer as a function of its variables and of the arrays among its arguments."""
    leaves, structure = jax.tree.flatten(call.arguments)

    def run(variables: Any, arrays: Mapping[int, jax.Array]) -> Any:
        return call.apply(variables, structure.unflatten(arrays.get(number, leaf) for number, leaf in enumerate(leaves)))

    return run


def _compile(function: Callable[..., Any], *given: Any) -> _Program:
    placed = jax.device_put(given)
    return _Program(jax.jit(function).lower(*placed).compile(), placed)


def _median_seconds(programs: Sequence[_Program], repeats: int) -> list[float]:
    """Run programs in turn, so that a busy machine slows all of them alike; return the median seconds of a call of each."""
    calls = [max(1, min(MOST_CALLS, math.ceil(TURN_S / program.seconds(1)))) for program in programs]
    times = [[program.seconds(count) for program, count in zip(programs, calls)] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times)]


def _fields(layer: Layer) -> dict[str, Any]:
    return {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}


def _cost_words(layer: LayerCost) -> tuple[str, str, str]:
    return f"{layer.output_bytes / 1e3:,.1f}", f"{layer.milliseconds:.3f}", f"{layer.share:.1%}"
