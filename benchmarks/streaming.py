"""Time one step of a streaming causal network: against its receptive field, recomputing a window, and pytorch-tcn.

taskset -c 0 python -m benchmarks.streaming             on one core
python -m benchmarks.streaming --markdown

The network is a TCN of ten convolutions with 64 channels, two taps and weight normalisation (which pytorch-tcn has as well); only its
dilations grow with the receptive field. "stream" is a step within a compiled loop of many, as in sampling; "call" is a step that is called
on its own, as for samples that arrive one by one; "window" computes the last output from a window as long as the receptive field.
pytorch-tcn, where it is installed, runs eagerly in inference mode, in a process of its own with as many threads as there are cores for this
one; it can stream a batch of 1 only. All outputs must agree before anything is timed. The times are medians over turns that rotate.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dilax
from benchmarks import common, elsewhere
from dilax.errors import UserError
from train import cli

CHANNELS, BLOCKS = 64, 5
FIELDS = (128, 512, 2048, 8192)
STEPS, CALLS = 1000, 50  # steps per turn in a compiled loop, and called one by one
HEAD = ("receptive field", "batch", "stream, µs", "call, µs", "window, µs", "pytorch-tcn, µs", "window / stream", "pytorch-tcn / call")
WIDTHS = (15, 5, 10, 9, 11, 15, 15, 18)


def network(field: int) -> dilax.models.TCN:
    """Return a TCN with a receptive field of `field` samples, or close to it, since dilations are integers."""
    weights = [2**i for i in range(BLOCKS)]
    dilations = tuple(max(1, round((field - 1) / 2 * weight / sum(weights))) for weight in weights)
    return dilax.models.TCN(CHANNELS, 2, (CHANNELS,) * BLOCKS, dilations)


def calls(field: int, batch: int) -> dict[str, Callable[[], Any]]:
    """Return the functions to time, by name, once their outputs for the same samples have been compared."""
    model: Any = network(field)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, STEPS, CHANNELS)), jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x[:, :1], train=False))
    # Large enough for the signal not to vanish.
    variables = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), shapes)
    state = model.apply(variables, batch, method="init_stream")

    @jax.jit
    def stream(variables: Any, state: Any, x: jax.Array) -> Any:
        def step(state: Any, sample: jax.Array) -> Any:
            y, state = model.apply(variables, sample[:, None], state, method="stream")
            return state, y[:, 0]

        return jax.lax.scan(step, state, jnp.moveaxis(x, 1, 0))

    single = jax.jit(functools.partial(model.apply, method="stream"), donate_argnums=2)
    window = jax.jit(lambda variables, x: model.apply(variables, x, train=False)[:, -1])
    history = jnp.asarray(rng.normal(size=(batch, field, CHANNELS)), jnp.float32)
    latest, sample = {"state": jax.tree.map(jnp.copy, state)}, x[:, :1]

    def call() -> None:
        for _ in range(CALLS):
            y, latest["state"] = single(variables, sample, latest["state"])
            jax.block_until_ready(y)

    expected = np.asarray(model.apply(variables, x, train=False))
    _check_equal("stream", np.moveaxis(np.asarray(stream(variables, state, x)[1]), 0, 1), expected)
    functions: dict[str, Callable[[], Any]] = {
        "stream": lambda: jax.block_until_ready(stream(variables, state, x)),
        "call": call,
        "window": lambda: jax.block_until_ready(window(variables, history)),
    }
    if batch == 1 and importlib.util.find_spec("pytorch_tcn") and not common.without_torch():
        functions["pytorch-tcn"] = elsewhere.Call(_pytorch_tcn, model, jax.tree.map(np.asarray, variables), np.asarray(x), expected)
    return functions


def _check_equal(name: str, outputs: np.ndarray, expected: np.ndarray) -> None:
    if not np.allclose(outputs, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()):
        raise UserError(
            f"benchmarks.streaming: {name} differs from the outputs of the whole sequence by up to {np.abs(outputs - expected).max():.3g}."
        )


def _pytorch_tcn(model: dilax.models.TCN, variables: Any, x: np.ndarray, expected: np.ndarray) -> Callable[[], Any]:
    """Return the steps of pytorch-tcn with the same parameters, called one by one."""
    import pytorch_tcn  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    options: Any = dict(kernel_size=2, dilations=list(model.dilations or ()), dropout=0.0, causal=True, use_norm="weight_norm")
    net: Any = pytorch_tcn.TCN(CHANNELS, [CHANNELS] * BLOCKS, output_projection=CHANNELS, **options).eval()
    params = jax.tree.map(np.asarray, variables["params"])
    ours = []
    for i in range(BLOCKS):
        for conv in ("conv1", "conv2"):
            leaf = params[f"block{i}"][conv]
            ours += [leaf["bias"], leaf["kernel_scale"].reshape(-1, 1, 1), leaf["kernel"].transpose(2, 1, 0)]
    ours += [params["head"]["kernel"].T[:, :, None], params["head"]["bias"]]
    theirs = list(net.parameters())
    if [tuple(p.shape) for p in theirs] != [a.shape for a in ours]:
        raise UserError(
            f"benchmarks.streaming: pytorch-tcn has parameters of shapes {[tuple(p.shape) for p in theirs]}, not those of dilax."
        )
    with torch.no_grad():
        for parameter, array in zip(theirs, ours):
            parameter.copy_(torch.tensor(array))
        samples = torch.tensor(x.transpose(0, 2, 1))
        _check_equal("pytorch-tcn", net(samples).numpy().transpose(0, 2, 1), expected)
        net.reset_buffers()
    one = samples[:, :, :1].contiguous()

    def call() -> None:
        with torch.no_grad():
            for _ in range(CALLS):
                net(one, inference=True)

    return call


def measure(field: int, batch: int, repeats: int) -> dict[str, float]:
    """Return the median microseconds per step of each function."""
    timers = {name: common.timer(call) for name, call in calls(field, batch).items()}
    times = common.interleave(timers, repeats=repeats, budget_s=3.0)
    steps = {"stream": STEPS, "call": CALLS, "pytorch-tcn": CALLS, "window": 1}
    return {name: 1e6 * statistics.median(seconds) / steps[name] for name, seconds in times.items()}


def row(field: int, batch: int, micros: dict[str, float]) -> list[str]:
    """Return one row of the table."""
    (analysed,) = dilax.receptive_field(_whole_sequence(network(field)), jnp.zeros((1, 2 * field, CHANNELS)))
    other = micros.get("pytorch-tcn")
    times = (common.format_number(micros.get(name)) for name in ("stream", "call", "window", "pytorch-tcn"))
    ratios = (micros["window"] / micros["stream"], other / micros["call"] if other else None)
    return [str(analysed.size), str(batch), *times, *map(common.format_number, ratios)]


def _whole_sequence(model: dilax.models.TCN) -> Callable[[jax.Array], Any]:
    """Return the model as a function of a whole sequence, with parameters of 1."""
    x = jnp.zeros((1, 1, CHANNELS))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes)
    return lambda x: model.apply(variables, x, train=False)


def main() -> None:
    """Measure every receptive field and batch size, and print a table."""
    parser = cli.parser(sys.modules[__name__])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--repeats", type=int, default=15, help="maximum number of turns of each function")
    parser.add_argument("--fields", default=",".join(map(str, FIELDS)), help="receptive fields, separated by commas")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table instead")
    args = parser.parse_args()
    print(common.heading(common.environment()))
    print(f"{len(os.sched_getaffinity(0))} cores; {BLOCKS} blocks, {CHANNELS} channels, float32")
    rows = []
    if not args.markdown:
        print(common.format_row(HEAD, WIDTHS))
    for batch in (1, 32):
        for field in map(int, args.fields.split(",")):
            rows.append(row(field, batch, measure(field, batch, args.repeats)))
            if not args.markdown:
                print(common.format_row(rows[-1], WIDTHS), flush=True)
    if args.markdown:
        print(common.markdown(HEAD, rows))


if __name__ == "__main__":
    cli.run(main)
