"""Time whole networks in inference in milliseconds: XLA's own convolutions ("lax"), dilax, dilax with batch normalisation folded, torch.

python -m benchmarks.inference                               all networks; lax alone takes minutes in 3-D
python -m benchmarks.inference --networks meshnet_128
python -m benchmarks.inference --memory --markdown           also measures memory, in a process per contender

"auto" is what dilax chooses without the native part (dilax_onednn), whether or not that is installed; where it is, "auto+native" is what
dilax chooses with it. "folded" is the same after `dilax.fold_batch_norm`. torch runs in channels first, in channels last, and in channels
last compiled by inductor; the fastest counts. All have the same random parameters and running statistics, the same input, as many threads
as there are cores, and run in turn (see `common.interleave`), torch in a process of its own (see `benchmarks.elsewhere`). Medians are
shown; a contender whose first run takes longer than 30 s is not run again.

Each contender is compared with the network in float64 with XLA's own convolutions. One that differs, or that raises an error, is left out:
its cell says "wrong" or "failed", a line below it says why, and the others are timed. The last line says how many were left out; if there
are any, the exit code is 1.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dilax
from benchmarks import common, contest, elsewhere, memory, native, reference, tables
from benchmarks.contest import Program
from benchmarks.inference_networks import NETWORKS, Inference, nested
from benchmarks.programs import AUTO, NATIVE, compiled_program
from train import cli, runtime

BUDGET_S = 10.0
# Largest allowed difference from the reference, relative to its largest value.
TOLERANCE = 1e-3
FOLDED, NATIVE_FOLDED = f"folded, {AUTO}", f"folded, {NATIVE}"
TORCH = ("torch contiguous", "torch channels_last", "torch compiled")
COLUMNS = {
    "network": -20,
    "lax": 9,
    AUTO: 9,
    NATIVE: 11,
    FOLDED: 12,
    NATIVE_FOLDED: 19,
    "torch": 9,
    "variant": -13,
    "lax/auto": 8,
    "auto/torch": 10,
    "auto+native/torch": 17,
    "folded/torch": 12,
    "folded native/torch": 19,
}
RATIOS = {
    "lax/auto": ("lax", AUTO),
    "auto/torch": (AUTO, "torch"),
    "auto+native/torch": (NATIVE, "torch"),
    "folded/torch": (FOLDED, "torch"),
    "folded native/torch": (NATIVE_FOLDED, "torch"),
}


def makers(network: Inference) -> dict[str, Callable[[], Program]]:
    """Return a function per contender that makes its program."""
    ours = ["lax", AUTO, NATIVE]
    if any(path[0] == "batch_stats" for path in network.variables()):
        ours += [FOLDED, NATIVE_FOLDED]
    names = [name for name in ours if native.installed() or not name.endswith("native")]
    names += [] if common.without_torch() else TORCH
    return {name: elsewhere.maker(program, network, name, apart=name in TORCH) for name in names if name not in network.not_run}


def program(network: Inference, contender: str) -> Program:
    """Return a contender by name, compiled and with its inputs bound."""
    if contender in TORCH:
        return torch_program(network, contender)
    model, variables, x = network.model, nested(network.variables()), jnp.asarray(network.data())
    if contender in (FOLDED, NATIVE_FOLDED):
        model, variables = dilax.fold_batch_norm(model, variables, jax.ShapeDtypeStruct(x.shape, x.dtype))

    def forward(variables: Any, x: jax.Array) -> tuple[Any]:
        with dilax.use_lowering("lax" if contender == "lax" else "auto"):
            return (model.apply(variables, x, train=False),)

    return compiled_program(contender, forward, jax.tree.map(jnp.asarray, variables), x)


def torch_program(network: Inference, variant: str) -> Program:
    """Return torch in one layout, in which its input is stored, too."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(common.cores())
    model, array = network.torch_model(), np.moveaxis(network.data(), -1, 1)
    array = np.flip(array, tuple(range(2, array.ndim))) if network.mirrored else array
    x = torch.from_numpy(np.ascontiguousarray(array))
    if variant != "torch contiguous" and x.ndim > 3:  # channels_last exists for images and volumes only
        memory_format = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        x, model = x.contiguous(memory_format=memory_format), model.to(memory_format=memory_format)
    call = torch.compile(model) if variant == "torch compiled" else model

    def run() -> tuple[Any]:
        with torch.inference_mode():
            return (call(x),)

    if variant == "torch compiled":
        run()  # compiles

    def to_numpy(results: tuple[Any]) -> list[np.ndarray]:
        (y,) = (np.moveaxis(result.float().numpy(), 1, -1) for result in results)
        return [np.flip(y, tuple(range(1, y.ndim - 1))) if network.mirrored else y]

    return Program(run, to_numpy)


def named_program(name: str, contender: str) -> Program:
    """Return a contender of the network of that name."""
    return program(next(network for network in NETWORKS if network.name == name), contender)


def measure(network: Inference, repeats: int, with_memory: bool) -> dict[str, Any]:
    """Compare and time all contenders of a network, and return the results."""
    forward = functools.partial(network.model.apply, train=False)
    expected = [reference.in_float64(forward, nested(network.variables()), network.data())]
    options: dict[str, Any] = dict(names=("the output",), tolerance=TOLERANCE, repeats=repeats, budget_s=BUDGET_S)
    results, left_out = contest.hold(makers(network), expected, **options)
    for name in results if with_memory else ():
        try:
            results[name]["peak_bytes"] = memory.peak_bytes("benchmarks.inference:named_program", network.name, name)
        except RuntimeError as error:
            left_out[f"{name} (memory)"] = contest.reason(error)
    torch = contest.fastest(results, TORCH)
    ratios = {key: contest.ratio(results, *(torch if name == "torch" else name for name in names)) for key, names in RATIOS.items()}
    about = {"network": network.name, "shape": network.shape, "not_run": network.not_run}
    return {**about, "contenders": results, "left_out": left_out, "torch": torch, "ratios": ratios}


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of the table for a network, by the names of `COLUMNS`."""
    results, left_out = row["contenders"], row["left_out"]
    torch = row["torch"] or next((name for name in TORCH if name in left_out), "")
    times = {
        name: contest.cell(name, results, left_out, absent="not run" if name in row["not_run"] else "-")
        for name in ("lax", AUTO, NATIVE, FOLDED, NATIVE_FOLDED)
    }
    return {
        "network": row["network"],
        **times,
        "torch": contest.cell(torch, results, left_out, absent=common.without_torch()),
        "variant": (row["torch"] or "").removeprefix("torch "),
        **{name: common.format_number(ratio) for name, ratio in row["ratios"].items()},
    }


def print_summary(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the geometric means of the ratios to torch, and the networks in which torch is faster."""
    print()
    for name in [name for name in tables.shown(COLUMNS) if name.endswith("/torch")]:
        known = {row["network"]: row["ratios"][name] for row in rows if row["ratios"][name] is not None}
        if known:
            slower = ", ".join(network for network, ratio in known.items() if ratio > 1) or "no network"
            print(f"{name}, geometric mean {common.format_number(common.geometric_mean(known.values()))}; above 1: {slower}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments, checked as far as possible before any time is spent."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--networks", default="", metavar="SUBSTRING", help="run only the networks whose name contains this text")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="maximum number of turns of each contender (15)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all results to this file")
    parser.add_argument("--memory", action="store_true", help="also measure memory, in a separate process for each contender")
    parser.add_argument("--markdown", action="store_true", help="also print a Markdown table")
    args = parser.parse_args(argv)
    common.check_positive(args, "repeats")
    common.named(NETWORKS, args.networks)
    common.check_writable(args.json)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the selected networks and print the results; return 1 if a contender was left out."""
    args, env, rows = parse(argv), common.environment(), []
    runtime.keep_freed_memory()
    contest.print_heading(env)
    tables.print_cells(COLUMNS, {name: name for name in COLUMNS})
    for network in common.named(NETWORKS, args.networks):
        rows.append(measure(network, args.repeats, args.memory))
        tables.print_cells(COLUMNS, cells(rows[-1]))
        contest.print_left_out(rows[-1]["left_out"])
        if args.memory:
            tables.print_memory(rows[-1]["contenders"])
    print_summary(rows)
    if args.markdown:
        names = tables.shown(COLUMNS)
        print(f"\n{common.markdown(('ms', *names[1:]), [[cells(row)[name] for name in names] for row in rows])}")
    if args.json:
        args.json.write_text(json.dumps({"environment": env, "networks": rows}, indent=1) + "\n")
    return contest.print_end(row["left_out"] for row in rows)


if __name__ == "__main__":
    cli.run(main)
