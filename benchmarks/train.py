"""Time whole training steps in examples per second: dilax, Flax's own modules, torch eager, torch.compile.

python -m benchmarks.train                              all networks
python -m benchmarks.train --networks tcn --repeats 20
python -m benchmarks.train --trace runs/trace           profile dilax kernel by kernel instead of timing

A step consists of the forward pass with batch statistics, softmax cross-entropy, the backward pass, SGD with momentum, and the update of
the running statistics. Inputs and labels are random with a fixed seed, since speed is measured, not learning. All implementations have the
same parameters, batch size, learning rate and number of threads, and run in this process. After a warm-up they take single steps in turn,
so that a busy machine slows all of them alike; the medians are shown. "first step" includes the compilation. Freed memory is kept for
reuse, as in `train`, for all implementations.

Before anything is timed, the losses of dilax and of Flax's own modules must agree over two steps from the same parameters, which also
compares the gradients. The losses of torch must agree as well, unless a layer has a stride: torch pads a strided layer equally on both
sides, JAX's "SAME" does not, so that the amount of work is equal but the numbers are not. If losses disagree, only an error is printed.
torch uses channels_last, eager and compiled by inductor; sequences run both in 1-D and as images of height 1. Ratios are relative to the
fastest variant of torch.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np

from benchmarks import common
from benchmarks.networks import FlaxNetwork, Network, Step, initial_values, jax_step, networks
from benchmarks.torch_networks import torch_step
from benchmarks.trace import trace
from dilax.errors import UserError
from train import cli, runtime

LOSS_TOLERANCE = 1e-4
BUSY = 0.5
DILAX, FLAX = "dilax", "flax.linen"
COLUMNS = ("first_step_s", "step_ms", "examples_per_s", "over_flax", "over_torch")
MARKDOWN_HEAD = (
    "examples per second",
    "dilax",
    "Flax's own modules",
    "torch, eager or compiled",
    "dilax / Flax",
    "dilax / torch",
    "first step of dilax, s",
    "of Flax, s",
)
HEAD = ("", "first step, s", "ms per step", "examples/s", "/ flax.linen", "/ best torch")
WIDTHS = (-24, 13, 12, 12, 12, 12)


def step_factories(network: Network) -> tuple[dict[str, Callable[[], Step]], int]:
    """Return a function per implementation that creates its training step from the same parameters, and the number of parameters."""
    values, stats = initial_values(network.model, network)
    flax_model = FlaxNetwork(network.stages)
    flax_values, flax_stats = initial_values(flax_model, network)
    if [value.shape for value in values.values()] != [value.shape for value in flax_values.values()]:
        _refuse(network, "the parameters of dilax and of Flax's own modules have different shapes.")
    flax_values = dict(zip(flax_values, values.values()))
    factories: dict[str, Callable[[], Step]] = {
        DILAX: lambda: jax_step(network.model, network, values, stats)[0],
        FLAX: lambda: jax_step(flax_model, network, flax_values, flax_stats)[0],
    }
    layouts = {"": False} if len(network.shape) == 3 else {", 1-D": False, ", height 1": True}
    for (mode, compiled), (layout, as_image) in itertools.product({"eager": False, "compile": True}.items(), layouts.items()):
        factories[f"torch {mode}{layout}"] = functools.partial(torch_step, network, values, as_image=as_image, compiled=compiled)
    return factories, sum(value.size for value in values.values())


def measure(network: Network, repeats: int) -> dict[str, Any]:
    """Check that all implementations compute the same losses, time them, and return the results of a network."""
    factories, parameters = step_factories(network)
    rows: dict[str, dict[str, Any]] = {name: {"implementation": name} for name in factories}
    steps: dict[str, Step] = {}
    for name, make_step in factories.items():
        if name.startswith("torch") and common.without_torch():
            rows[name]["note"] = common.without_torch()
            continue
        try:
            step = make_step()
            start = time.perf_counter()
            losses = [step()]
            rows[name] |= {"first_step_s": time.perf_counter() - start, "losses": [*losses, step()]}
            steps[name] = step
        except Exception as error:
            if not name.startswith("torch compile"):
                raise
            rows[name]["note"] = f"failed: {_one_line(error)}"
    check_losses(network, rows)
    times = common.interleave(steps, repeats=repeats, budget_s=math.inf)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    speeds = {name: network.batch / median for name, median in medians.items()}
    torch = _best(speeds, "torch")
    for name, speed in speeds.items():
        spread = common.interquartile_range(times[name])
        rows[name] |= {"step_ms": 1e3 * medians[name], "spread_ms": 1e3 * spread, "examples_per_s": speed}
        rows[name] |= {"over_flax": speed / speeds[FLAX], "over_torch": speed / torch if torch else None}
    return {"network": network.name, "parameters": parameters, "batch": network.batch, "shape": network.shape, "rows": list(rows.values())}


def check_losses(network: Network, rows: dict[str, dict[str, Any]]) -> None:
    """Exit if an implementation computes different losses; the second loss also reveals different gradients."""
    comparable = all(stage.stride == 1 for stage in network.stages)
    expected = rows[DILAX]["losses"]
    for name, row in rows.items():
        if "losses" not in row or (name.startswith("torch") and not comparable):
            continue
        if not np.allclose(row["losses"], expected, rtol=0, atol=LOSS_TOLERANCE):
            _refuse(network, f"the losses of two steps are {row['losses']} for {name} but {expected} for {DILAX}.")


def print_table(result: dict[str, Any]) -> None:
    """Print the results of one network as a table."""
    shape = "x".join(map(str, result["shape"]))
    print(f"\n{result['network']}: {result['parameters']:,} parameters in each, batch {result['batch']}, {shape}, float32")
    print(common.format_row(HEAD, WIDTHS))
    for row in result["rows"]:
        numbers = [row["note"]] if "note" in row else [common.format_number(row[key]) for key in COLUMNS]
        print(common.format_row([row["implementation"], *numbers], WIDTHS if "note" not in row else (WIDTHS[0], -1)), flush=True)


def print_summary(results: list[dict[str, Any]]) -> None:
    """Print one line per network."""
    print()
    for result in results:
        row = result["rows"][0]
        torch = f"{common.format_number(row['over_torch'])} times that of torch" if row["over_torch"] else "torch not measured"
        print(f"{result['network']}: dilax runs at {common.format_number(row['over_flax'])} times the speed of Flax's own modules, {torch}")


def print_markdown(results: list[dict[str, Any]]) -> None:
    """Print the results of all networks as a Markdown table."""
    rows = []
    for result in results:
        speeds, first_steps = (
            {row["implementation"]: row[key] for row in result["rows"] if key in row} for key in ("examples_per_s", "first_step_s")
        )
        best = [_best(speeds, start) for start in (DILAX, FLAX, "torch")]
        ratios = [result["rows"][0][key] for key in ("over_flax", "over_torch")]
        name = f"{result['network']}, {result['parameters']:,} parameters, batch {result['batch']}"
        rows.append([name, *map(common.format_number, [*best, *ratios, first_steps.get(DILAX), first_steps.get(FLAX)])])
    print(f"\n{common.markdown(MARKDOWN_HEAD, rows)}")


def _best(speeds: dict[str, float], start: str) -> float | None:
    return max((speed for name, speed in speeds.items() if name.startswith(start)), default=None)


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _refuse(network: Network, reason: str) -> NoReturn:
    sys.exit(f"{network.name}: not measured, because {reason}")


def select_networks(args: argparse.Namespace) -> list[Network]:
    """Check the flags and return the networks that they select."""
    for name in ("batch", "repeats"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} is below 1; use 1 or more.")
    common.check_writable(args.json)
    if args.trace and jax.default_backend() != "cpu":
        raise UserError("--trace supports CPUs only; set JAX_PLATFORMS=cpu.")
    if args.trace:
        try:
            args.trace.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--trace={args.trace}: the folder cannot be created ({error.strerror}); give another one.") from error
    known = networks(args.batch)
    selected = [network for network in known if args.networks in network.name]
    if not selected:
        names = ", ".join(network.name for network in known)
        raise UserError(f"--networks={args.networks!r} does not occur in the name of any network; they are {names}.")
    return selected


def main() -> None:
    """Time or trace the selected networks."""
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
        return
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


if __name__ == "__main__":
    cli.run(main)
