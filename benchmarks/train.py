"""Time whole training steps in examples per second: dilax, Flax's own modules, torch eager, torch.compile.

python -m benchmarks.train                              all networks
python -m benchmarks.train --networks tcn --repeats 20
python -m benchmarks.train --trace runs/trace           profile dilax kernel by kernel instead of timing

A step consists of the forward pass with batch statistics, softmax cross-entropy, the backward pass, SGD with momentum, and the update of
the running statistics. Inputs and labels are random with a fixed seed, since speed is measured, not learning. All implementations have the
same parameters, batch size, learning rate and number of threads, and run in this process. After a warm-up they take single steps in turn,
so that a busy machine slows all of them alike; the medians are shown. "first step" includes the compilation. Freed memory is kept for
reuse, as in `train`, for all implementations.

"dilax" is dilax without the native part (dilax_onednn), whether or not that is installed; where it is, "dilax+native" is dilax with it.
"dilax, lax" is the same network with XLA's own convolutions. torch uses channels_last, eager and compiled by inductor; sequences run both
in 1-D and as images of height 1. Ratios to torch are relative to its fastest variant.

Before anything is timed, the losses of two steps from the same parameters, which also depend on the gradients, are compared with those in
float64 with XLA's own convolutions. An implementation whose losses differ, or that raises an error, is left out of that network: its line
says why, and the others are timed. The last line says how many were left out; if there are any, the exit code is 1.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import dilax
from benchmarks import common, contest, elsewhere, native
from benchmarks.networks import FlaxNetwork, Network, Step, Values, initial_values, jax_step, networks, reference_losses
from benchmarks.torch_networks import torch_step
from benchmarks.trace import trace
from dilax.errors import UserError
from train import cli, runtime

LOSS_TOLERANCE = 1e-4
BUDGET_S = 60.0
BUSY = 0.5
DILAX, NATIVE, LAX, FLAX = "dilax", "dilax+native", "dilax, lax", "flax.linen"
COLUMNS = ("first_step_s", "step_ms", "examples_per_s", "over_lax", "over_flax", "over_torch")
HEAD = ("", "first step, s", "ms per step", "examples/s", "/ lax", "/ flax.linen", "/ best torch")
WIDTHS = (-24, 13, 12, 12, 12, 12, 12)


def step_factories(network: Network, values: Values, stats: Any) -> dict[str, Callable[[], Step]]:
    """Return a function per implementation that creates its training step from the same parameters."""

    def ours(name: str, lowering: str = "auto") -> Step:
        with native.scope(name), dilax.use_lowering(lowering):
            return jax_step(network.model, network, values, stats)[0]

    factories: dict[str, Callable[[], Step]] = {
        DILAX: lambda: ours(DILAX),
        **({NATIVE: lambda: ours(NATIVE)} if native.installed() else {}),
        LAX: lambda: ours(LAX, "lax"),
        FLAX: lambda: _flax_step(network, values),
    }
    layouts = {"": False} if len(network.shape) == 3 else {", 1-D": False, ", height 1": True}
    for (mode, compiled), (layout, as_image) in itertools.product({"eager": False, "compile": True}.items(), layouts.items()):
        factories[f"torch {mode}{layout}"] = functools.partial(
            elsewhere.Call, torch_step, network, values, as_image=as_image, compiled=compiled
        )
    return factories


def _flax_step(network: Network, values: Values) -> Step:
    model = FlaxNetwork(network.stages)
    own, stats = initial_values(model, network)
    if [value.shape for value in own.values()] != [value.shape for value in values.values()]:
        raise contest.WrongResultError("its parameters have other shapes than those of dilax")
    return jax_step(model, network, dict(zip(own, values.values())), stats)[0]


def measure(network: Network, repeats: int) -> dict[str, Any]:
    """Compare the losses of all implementations with the reference, time those that are right, and return the results of a network."""
    values, stats = initial_values(network.model, network)
    factories, expected = step_factories(network, values, stats), reference_losses(network, values, stats)
    rows: dict[str, dict[str, Any]] = {name: {"implementation": name} for name in factories}
    if reason := common.without_torch():
        for name in [name for name in factories if name.startswith("torch")]:
            rows[name]["note"] = reason
            del factories[name]

    def start(name: str) -> Step:
        begin = time.perf_counter()
        step = factories[name]()
        losses = [step()]
        rows[name] |= {"first_step_s": time.perf_counter() - begin, "losses": [*losses, step()]}
        return step

    make = {name: functools.partial(start, name) for name in factories}
    steps, left_out = contest.qualify(make, lambda name, step: check_losses(rows[name]["losses"], expected))
    times, failed = contest.time_in_turn(steps, repeats=repeats, budget_s=BUDGET_S)
    left_out |= failed
    for name, why in left_out.items():
        rows[name]["note"] = f"left out, {why}"
    speeds = {name: network.batch / statistics.median(seconds) for name, seconds in times.items()}
    others = {"over_lax": speeds.get(LAX), "over_flax": speeds.get(FLAX), "over_torch": best_torch(speeds)}
    for name, speed in speeds.items():
        spread = common.interquartile_range(times[name])
        rows[name] |= {"step_ms": 1e3 * network.batch / speed, "spread_ms": 1e3 * spread, "examples_per_s": speed}
        rows[name] |= {key: speed / other if other else None for key, other in others.items()}
    parameters = sum(value.size for value in values.values())
    about = {"network": network.name, "parameters": parameters, "batch": network.batch, "shape": network.shape}
    return {**about, "reference_losses": expected, "left_out": left_out, "rows": list(rows.values())}


def check_losses(losses: Sequence[float], expected: Sequence[float]) -> None:
    """Raise `contest.WrongResultError` if losses differ from those of the reference."""
    if not np.allclose(losses, expected, rtol=0, atol=LOSS_TOLERANCE):
        shown = [", ".join(f"{loss:.6f}" for loss in each) for each in (losses, expected)]
        raise contest.WrongResultError(f"the losses of two steps are {shown[0]} instead of {shown[1]}")


def best_torch(speeds: Mapping[str, float]) -> float | None:
    """Return the number that belongs to the fastest variant of torch, if there is one."""
    return max((speed for name, speed in speeds.items() if name.startswith("torch")), default=None)


def select_networks(args: argparse.Namespace) -> list[Network]:
    """Check the flags and return the networks that they select."""
    common.check_positive(args, "batch", "repeats")
    common.check_writable(args.json)
    if args.trace and jax.default_backend() != "cpu":
        raise UserError("--trace supports CPUs only; set JAX_PLATFORMS=cpu.")
    if args.trace:
        try:
            args.trace.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--trace={args.trace}: the folder cannot be created ({error.strerror}); give another one.") from error
    return common.named(networks(args.batch), args.networks)


def print_table(result: dict[str, Any]) -> None:
    """Print the results of one network as a table."""
    shape = "x".join(map(str, result["shape"]))
    print(f"\n{result['network']}: {result['parameters']:,} parameters in each, batch {result['batch']}, {shape}, float32")
    print(common.format_row(HEAD, WIDTHS))
    for row in result["rows"]:
        numbers = [row["note"]] if "note" in row else [common.format_number(row[key]) for key in COLUMNS]
        print(common.format_row([row["implementation"], *numbers], WIDTHS if "note" not in row else (WIDTHS[0], -1)), flush=True)


def print_summary(results: list[dict[str, Any]]) -> None:
    """Print a line per network for dilax, and one for dilax with the native part if that was measured."""
    print()
    for result, name in itertools.product(results, (DILAX, NATIVE)):
        row = next((row for row in result["rows"] if row["implementation"] == name and "note" not in row), None)
        if row:
            ratios = {"Flax's own modules": row["over_flax"], "torch": row["over_torch"]}
            texts = [f"{common.format_number(ratio)} times that of {other}" for other, ratio in ratios.items() if ratio]
            print(f"{result['network']}: the speed of {name} is {' and '.join(texts) or 'not compared with that of any other'}")
    for name in (DILAX, NATIVE):
        rows = [(result["network"], row) for result in results for row in result["rows"] if row["implementation"] == name]
        ratios = {network: row["over_torch"] for network, row in rows if row.get("over_torch")}
        if ratios:
            mean = common.format_number(common.geometric_mean(1 / ratio for ratio in ratios.values()))
            slower = ", ".join(network for network, ratio in ratios.items() if ratio < 1) or "no network"
            print(f"{name}/torch, geometric mean of the times {mean}; slower than torch: {slower}")


def print_markdown(results: list[dict[str, Any]]) -> None:
    """Print the results of all networks as a Markdown table."""
    rows, with_native = [], any(row["implementation"] == NATIVE for result in results for row in result["rows"])
    ours = {DILAX: "dilax", **({NATIVE: "dilax, native"} if with_native else {})}
    for result in results:
        own = {row["implementation"]: row for row in result["rows"]}
        speeds = {name: row["examples_per_s"] for name, row in own.items() if "examples_per_s" in row}
        numbers = [*(speeds.get(name) for name in (*ours, LAX, FLAX)), best_torch(speeds)]
        numbers += [own[name].get(key) for name in ours for key in ("over_flax", "over_torch")]
        numbers += [own[name].get("first_step_s") for name in (DILAX, FLAX)]
        name = f"{result['network']}, {result['parameters']:,} parameters, batch {result['batch']}"
        rows.append([name, *map(common.format_number, numbers)])
    ratios = [f"{name} / {other}" for name in ours.values() for other in ("Flax", "torch")]
    speeds = [*ours.values(), "`lax`", "Flax's own modules", "torch, eager or compiled"]
    print(f"\n{common.markdown(('examples per second', *speeds, *ratios, 'first step of dilax, s', 'of Flax, s'), rows)}")


def main() -> int:
    """Time or trace the selected networks; return 1 if an implementation was left out."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--networks", default="", metavar="SUBSTRING", help="run only the networks whose name contains this text")
    parser.add_argument("--batch", type=int, metavar="N", help="examples per step; by default, each network has its own")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="number of timed steps of each implementation")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all results to this file")
    parser.add_argument("--markdown", action="store_true", help="also print a Markdown table")
    parser.add_argument(
        "--trace",
        type=pathlib.Path,
        metavar="FOLDER",
        help="instead of timing, print which kernels take the time of dilax; keeps the trace",
    )
    args = parser.parse_args()
    selected = select_networks(args)
    runtime.keep_freed_memory()
    env = {**common.environment(), "flax": importlib.metadata.version("flax")}
    print(f"{common.heading(env)}, flax {env['flax']}")
    if args.trace:
        for network in selected:
            trace(network, args.trace)
        return 0
    print(native.note())
    print("random inputs with a fixed seed; medians of single steps, all implementations in turn")
    if (load := os.getloadavg()[0]) > BUSY * env["cores"]:
        print(f"the load average is {load:.1f}: other programs are running, which slows torch most; run again later.")
    results = []
    for network in selected:
        results.append(measure(network, args.repeats))
        print_table(results[-1])
    print_summary(results)
    if args.markdown:
        print_markdown(results)
    if args.json:
        args.json.write_text(json.dumps({**env, "networks": results}, indent=1) + "\n")
    return contest.print_end(result["left_out"] for result in results)


if __name__ == "__main__":
    cli.run(main)
