"""Examples per second of whole training steps: dilax, Flax's own modules, torch eager, torch.compile.

python -m benchmarks.train                              every network
python -m benchmarks.train --networks tcn --repeats 20
python -m benchmarks.train --trace runs/trace           where the time of dilax goes, kernel by kernel; times nothing else

A step is the forward pass with batch statistics, softmax cross-entropy, the backward pass, SGD with momentum and the running statistics.
Inputs and labels are random, of a fixed seed: this measures speed, not learning. Every implementation has the same parameters, batch,
learning rate and number of threads, and runs in this one process. After warm-up the implementations take single steps in turn, so that
a busy machine slows all of them; the medians are shown. "first step" contains the compilation. Freed memory is kept, as `train` keeps it,
for all of them.

Before anything is timed the losses of dilax and Flax's own must agree in two steps from the same parameters, so the gradients are
compared too; torch's as well where no layer has a stride (torch pads a strided layer by equal amounts, JAX's "SAME" does not: the same
work, other numbers). Where they do not agree nothing is printed but the error. torch runs in channels_last, eager and compiled by
inductor; sequences both as 1-D and as images of height 1; the ratios take the fastest of torch.
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
from benchmarks.networks import FlaxNetwork, Network, Step, initial_values, jax_step, networks, torch_step
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


def makers(network: Network) -> tuple[dict[str, Callable[[], Step]], int]:
    """Return what makes the step of each implementation, all from the same parameters, and their number."""
    values, stats = initial_values(network.model, network)
    own = FlaxNetwork(network.stages)
    own_values, own_stats = initial_values(own, network)
    if [value.shape for value in values.values()] != [value.shape for value in own_values.values()]:
        _refuse(network, "the parameters of dilax and of Flax's own modules have different shapes.")
    own_values = dict(zip(own_values, values.values()))
    found: dict[str, Callable[[], Step]] = {
        DILAX: lambda: jax_step(network.model, network, values, stats)[0],
        FLAX: lambda: jax_step(own, network, own_values, own_stats)[0],
    }
    layouts = {"": False} if len(network.shape) == 3 else {", 1-D": False, ", height 1": True}
    for (mode, compiled), (layout, as_image) in itertools.product({"eager": False, "compile": True}.items(), layouts.items()):
        found[f"torch {mode}{layout}"] = functools.partial(torch_step, network, values, as_image, compiled)
    return found, sum(value.size for value in values.values())


def measure(network: Network, repeats: int) -> dict[str, Any]:
    """Check that all implementations compute the same, time them, and return all that is printed of a network."""
    found, parameters = makers(network)
    rows: dict[str, dict[str, Any]] = {name: {"implementation": name} for name in found}
    steps: dict[str, Step] = {}
    for name, make in found.items():
        if name.startswith("torch") and common.without_torch():
            rows[name]["note"] = common.without_torch()
            continue
        try:
            step = make()
            began = time.perf_counter()
            losses = [step()]
            rows[name] |= {"first_step_s": time.perf_counter() - began, "losses": [*losses, step()]}
            steps[name] = step
        except Exception as error:
            if not name.startswith("torch compile"):
                raise
            rows[name]["note"] = f"failed: {_one_line(error)}"
    check_losses(network, rows)
    times = common.in_turn(steps, repeats=repeats, budget_s=math.inf)
    medians = {name: statistics.median(mine) for name, mine in times.items()}
    speeds = {name: network.batch / median for name, median in medians.items()}
    torch = _best(speeds, "torch")
    for name, speed in speeds.items():
        rows[name] |= {"step_ms": 1e3 * medians[name], "spread_ms": 1e3 * common.spread(times[name]), "examples_per_s": speed}
        rows[name] |= {"over_flax": speed / speeds[FLAX], "over_torch": speed / torch if torch else None}
    return {"network": network.name, "parameters": parameters, "batch": network.batch, "shape": network.shape, "rows": list(rows.values())}


def check_losses(network: Network, rows: dict[str, dict[str, Any]]) -> None:
    """Refuse implementations that compute another loss, or, seen in the second loss, another gradient."""
    comparable = all(stage.stride == 1 for stage in network.stages)
    expected = rows[DILAX]["losses"]
    for name, row in rows.items():
        if "losses" not in row or (name.startswith("torch") and not comparable):
            continue
        if not np.allclose(row["losses"], expected, rtol=0, atol=LOSS_TOLERANCE):
            _refuse(network, f"the losses of two steps are {row['losses']} in {name} but {expected} in {DILAX}.")


def print_table(result: dict[str, Any]) -> None:
    """Print the rows of one network."""
    shape = "x".join(map(str, result["shape"]))
    print(f"\n{result['network']}: {result['parameters']:,} parameters in each, batch {result['batch']}, {shape}, float32")
    print(common.line(HEAD, WIDTHS))
    for row in result["rows"]:
        numbers = [row["note"]] if "note" in row else [common.number(row[key]) for key in COLUMNS]
        print(common.line([row["implementation"], *numbers], WIDTHS if "note" not in row else (WIDTHS[0], -1)), flush=True)


def print_summary(results: list[dict[str, Any]]) -> None:
    """Print one line for each network."""
    print()
    for result in results:
        row = result["rows"][0]
        torch = f"{common.number(row['over_torch'])} times torch" if row["over_torch"] else "torch not measured"
        print(f"{result['network']}: dilax runs at {common.number(row['over_flax'])} times Flax's own, {torch}")


def print_markdown(results: list[dict[str, Any]]) -> None:
    """Print the table of the README."""
    rows = []
    for result in results:
        speeds, firsts = (
            {row["implementation"]: row[key] for row in result["rows"] if key in row} for key in ("examples_per_s", "first_step_s")
        )
        best = [_best(speeds, start) for start in (DILAX, FLAX, "torch")]
        ratios = [result["rows"][0][key] for key in ("over_flax", "over_torch")]
        name = f"{result['network']}, {result['parameters']:,} parameters, batch {result['batch']}"
        rows.append([name, *map(common.number, [*best, *ratios, firsts.get(DILAX), firsts.get(FLAX)])])
    print(f"\n{common.markdown(MARKDOWN_HEAD, rows)}")


def _best(speeds: dict[str, float], start: str) -> float | None:
    return max((speed for name, speed in speeds.items() if name.startswith(start)), default=None)


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _refuse(network: Network, why: str) -> NoReturn:
    sys.exit(f"{network.name}: not measured, for {why}")


def selected(args: argparse.Namespace) -> list[Network]:
    """Return the networks that the flags ask for, having checked the flags."""
    for name in ("batch", "repeats"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be at least 1.")
    common.check_writable(args.json)
    if args.trace and jax.default_backend() != "cpu":
        raise UserError("--trace reads the traces of CPUs alone; set JAX_PLATFORMS=cpu.")
    if args.trace:
        try:
            args.trace.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--trace={args.trace}: it cannot be made a folder ({error.strerror}).") from error
    every = networks(args.batch)
    chosen = [network for network in every if args.networks in network.name]
    if not chosen:
        raise UserError(f"--networks={args.networks!r} is in no network's name; they are {', '.join(network.name for network in every)}.")
    return chosen


def main() -> None:
    """Measure, or trace, the networks that are asked for."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--networks", default="", metavar="SUBSTRING", help="only networks whose name contains it")
    parser.add_argument("--batch", type=int, metavar="N", help="examples per step; default is each network's own")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="timed steps of each implementation")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all that was measured to it")
    parser.add_argument("--markdown", action="store_true", help="print the table of the README too")
    parser.add_argument("--trace", type=pathlib.Path, metavar="FOLDER", help="do not time: print what takes dilax's time; keeps the trace")
    args = parser.parse_args()
    chosen = selected(args)
    runtime.keep_freed_memory()
    found = {**common.environment(), "flax": importlib.metadata.version("flax")}
    print(f"{common.heading(found)}, flax {found['flax']}")
    if args.trace:
        for network in chosen:
            trace(network, args.trace)
        return
    print("random inputs of a fixed seed; medians of single steps, all implementations in turn")
    if (load := os.getloadavg()[0]) > BUSY * found["cores"]:
        print(f"the load average is {load:.1f}: other programs run too, which slows torch most; run again.")
    results = []
    for network in chosen:
        results.append(measure(network, args.repeats))
        print_table(results[-1])
    print_summary(results)
    if args.markdown:
        print_markdown(results)
    if args.json:
        args.json.write_text(json.dumps({**found, "networks": results}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
