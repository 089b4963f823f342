"""Milliseconds of single convolutions: `lowering="auto"` against every lowering, XLA's own ("lax") among them, and against torch.

python -m benchmarks.ops                                   every case, about 12 minutes
python -m benchmarks.ops --cases "depthwise mobilenet"     those whose name contains the text
python -m benchmarks.ops --json ops.json --plot ops.png --markdown
python -m benchmarks.ops --memory                          memory too, in a process per contender: half an hour more

Two measures of each case: "forward", and "gradients": the output and, from it, both gradients against one fixed random cotangent; all
are results of the program, so nothing is left out. Everything runs in this one process, with as many threads as there are cores, torch
too: channels first and channels last (sequences in channels_last as images of height 1), of which the faster counts. Where the padding
is not the same on both sides, torch pads by itself, inside the time. Every contender is compiled, run and compared with "lax" before
anything is timed; then all are timed in turn (see `common.in_turn`) and the medians are shown, in ms. Freed memory is kept, as `train`
keeps it, for all of them.

auto/best is the time of "auto" over that of the fastest lowering: above 1.15 ("!") it could have chosen better, or the machine was busy.
"""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dilax
from benchmarks import common
from benchmarks.cases import CASES, KINDS, Case
from benchmarks.chart import chart
from dilax import lowerings, plots
from dilax.errors import UserError, did_you_mean
from train import cli, runtime

MEASURES = ("forward", "gradients")
TORCH_LAYOUTS = ("torch contiguous", "torch channels_last")
BUDGET_S = 0.6
MISSED = 1.15
HUNGRY = 1.5
# Largest difference from "lax", relative to its largest value: GPUs multiply float32 in fewer bits.
TOLERANCE = {"float32": 5e-3, "bfloat16": 5e-2}


@dataclasses.dataclass(frozen=True)
class Program:
    """A contender, ready to run: `run` waits and returns all results, `arrays` brings them into JAX's layout."""

    run: Callable[[], tuple[Any, ...]]
    arrays: Callable[[tuple[Any, ...]], list[np.ndarray]]
    compile_s: float = 0.0
    memory_bytes: int | None = None


def contenders(case: Case) -> list[str]:
    """Return the names of what is measured: "lax" first, the other lowerings that can do it, "auto", torch in its layouts."""
    names = [name for name in lowerings.LOWERINGS if lowerings.supports(name, case.plan())]
    return [*names, "auto", *(() if common.without_torch() else TORCH_LAYOUTS)]


def program(case: Case, measure: str, contender: str) -> Program:
    """Return a contender, compiled, with its inputs."""
    make = torch_program if contender in TORCH_LAYOUTS else jax_program
    return make(case, measure, contender)


def jax_program(case: Case, measure: str, lowering: str) -> Program:
    """Return a lowering, or "auto", as a program of its own."""
    settings: Any = dict(stride=case.stride, padding=case.padding, dilation=case.dilation, groups=case.groups, lowering=lowering)
    forward = functools.partial(dilax.dilated_conv, **settings)

    def gradients(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(forward, x, kernel)
        return y, *pullback(cotangent)

    inputs = [jnp.asarray(array, case.dtype) for array in case.arrays()]
    function, inputs = (gradients, inputs) if measure == "gradients" else (lambda x, kernel: (forward(x, kernel),), inputs[:2])
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*inputs).compile()
    compile_s = time.perf_counter() - began
    memory = compiled.memory_analysis()
    return Program(
        lambda: jax.block_until_ready(compiled(*inputs)),
        lambda results: [np.asarray(result, np.float32) for result in results],
        compile_s,
        memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else None,
    )


def torch_program(case: Case, measure: str, layout: str) -> Program:
    """Return torch's convolution in one layout; its arrays are in that layout before and after."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(int(common.environment()["cores"]))
    plan, last = case.plan(), layout == "torch channels_last"
    flat = last and case.rank == 1  # channels_last exists for images and volumes alone
    one = (1,) if flat else ()
    rank = case.rank + len(one)
    memory_format = [torch.contiguous_format, torch.channels_last, torch.channels_last_3d][rank - 1] if last else torch.contiguous_format

    def tensor(array: np.ndarray, order: tuple[int, ...]) -> Any:
        given = torch.from_numpy(array).to(getattr(torch, case.dtype)).permute(order)
        return (given.unsqueeze(2) if flat else given).contiguous(memory_format=memory_format)

    space = range(1, case.rank + 1)
    first, last_two = (0, -1, *space), (-1, -2, *range(case.rank))
    x, kernel, cotangent = (tensor(array, order) for array, order in zip(case.arrays(), (first, last_two, first)))
    pairs = ((0, 0),) * len(one) + plan.padding
    symmetric = all(lo == hi for lo, hi in pairs)
    pads = [number for pair in reversed(pairs) for number in pair]
    settings: Any = dict(stride=one + plan.stride, dilation=one + plan.dilation, groups=case.groups)
    settings["padding"] = tuple(lo for lo, _ in pairs) if symmetric else 0
    convolve = [functional.conv1d, functional.conv2d, functional.conv3d][rank - 1]

    def forward() -> Any:
        return convolve(x if symmetric else functional.pad(x, pads), kernel, **settings)

    def run() -> tuple[Any, ...]:
        if measure == "gradients":
            y = forward()
            return y.detach(), *torch.autograd.grad(y, (x, kernel), cotangent)
        with torch.no_grad():
            return (forward(),)

    def arrays(results: tuple[Any, ...]) -> list[np.ndarray]:
        given = [(result.squeeze(2) if flat else result).float().numpy() for result in results]
        back = [np.moveaxis(array, 1, -1) for array in given]
        return [*back[:2], given[2].transpose(*range(2, case.rank + 2), 1, 0)] if len(given) > 2 else back

    for operand in (x, kernel) if measure == "gradients" else ():
        operand.requires_grad_()
    return Program(run, arrays)


def measure_case(case: Case, measure: str, repeats: int, memory: bool) -> dict[str, Any]:
    """Compare and time all contenders of a case; see `result_of`."""
    programs = {contender: program(case, measure, contender) for contender in contenders(case)}
    expected = programs["lax"].arrays(programs["lax"].run())
    for name, made in programs.items():
        check(case, measure, name, made.arrays(made.run()), expected)
    times = common.in_turn({name: made.run for name, made in programs.items()}, repeats=repeats, budget_s=BUDGET_S)
    found: dict[str, dict[str, Any]] = {
        name: {
            "ms": 1e3 * statistics.median(mine),
            "spread_ms": 1e3 * common.spread(mine),
            "turns": len(mine),
            "compile_s": programs[name].compile_s,
        }
        for name, mine in times.items()
    }
    if memory:
        for name, values in found.items():
            values |= {"program_bytes": programs[name].memory_bytes, "peak_bytes": peak_bytes(case, measure, name)}
    return result_of(case, measure, found)


def check(case: Case, measure: str, name: str, results: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Stop if a contender computes something else than "lax"."""
    for what, result, right in zip(("y", "dx", "dkernel"), results, expected):
        error = float(np.abs(result - right).max() / np.abs(right).max()) if result.shape == right.shape else math.inf
        if not error <= TOLERANCE[case.dtype]:
            sys.exit(
                f"{case.name}, {measure}: {what} of {name} differs from that of lax by {error:.1e} of its largest value; nothing is timed."
            )


def result_of(case: Case, measure: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of a case and a measure: all contenders, what "auto" chose, and the ratios that are shown."""
    plan, times = case.plan(), {name: values["ms"] for name, values in found.items()}
    auto, chosen = times["auto"], choice(plan, measure)
    named = {name: ms for name, ms in times.items() if name in lowerings.LOWERINGS}
    others = {name: ms for name, ms in named.items() if name not in ("lax", chosen)}
    torch = min((name for name in times if name in TORCH_LAYOUTS), key=times.__getitem__, default=None)
    return {
        "case": case.name,
        "kind": case.kind,
        "title": case.title,
        "measure": measure,
        "plan": dataclasses.asdict(plan),
        "contenders": found,
        "chosen": chosen,
        "best_other": min(others, key=others.__getitem__, default=None),
        "torch": torch,
        "lax_over_auto": times["lax"] / auto,
        "auto_over_torch": auto / times[torch] if torch else None,
        "auto_over_best": auto / min(named.values()),
    }


def choice(plan: dilax.ConvPlan, measure: str) -> str:
    """Return what "auto" takes: one name, or, where they differ, those of the output, of dx and of dkernel."""
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    operations = lowerings.OPERATIONS if measure == "gradients" else ("output",)
    names = [lowerings.select_lowering(plan, platform=platform, operation=operation) for operation in operations]
    return names[0] if len(set(names)) == 1 else "/".join(names)


def peak_bytes(case: Case, measure: str, contender: str) -> int | None:
    """Return the memory that one run takes beyond its inputs, measured in a process of its own; None where Linux does not tell."""
    code = "import sys; from benchmarks import ops; ops.print_peak(*sys.argv[1:])"
    command = [sys.executable, "-c", code, case.name, measure, contender]
    # Large blocks go back to the system when they are freed, so none is reused unseen.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{case.name}, {measure}, {contender}: the process that measures memory failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def print_peak(name: str, measure: str, contender: str) -> None:
    """Run a contender once and print the peak of the process's resident memory over what it held before, in bytes.

    `ru_maxrss` would begin with the memory of the process that started this one, and would count the compiler's; so the peak is taken from
    /proc, where it can be set back after the compilation.
    """
    case = next(case for case in CASES if case.name == name)
    made = program(case, measure, contender)
    status, reset = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
    if not reset.exists():
        print("null")
        return
    made.run()  # threads and libraries that are set up once are not its memory
    time.sleep(0.1)  # until the last of the threads lets go of the results
    reset.write_text("5")
    held = _kilobytes(status, "VmRSS")
    made.run()
    print(1024 * max(_kilobytes(status, "VmHWM") - held, 0))


def _kilobytes(status: pathlib.Path, field: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{field}:"))


HEAD = ("case", "measure", "lax", "auto", "it chose", "other", "the best one", "torch", "layout", "lax/auto", "auto/torch", "auto/best")
WIDTHS = (-49, -9, 7, 7, -15, 7, -12, 7, -13, 8, 10, 9)


def print_row(row: dict[str, Any]) -> None:
    """Print the times and ratios of a case and a measure, and its memory if that was measured."""
    found = row["contenders"]
    ms = {name: common.number(values["ms"]) for name, values in found.items()}
    torch = [ms[row["torch"]], row["torch"].removeprefix("torch ")] if row["torch"] else [common.without_torch(), ""]
    ratios = [common.number(row[key]) for key in ("lax_over_auto", "auto_over_torch", "auto_over_best")]
    cells = [
        row["case"],
        row["measure"],
        ms["lax"],
        ms["auto"],
        row["chosen"],
        ms.get(row["best_other"], "-"),
        row["best_other"] or "",
        *torch,
    ]
    print(common.line([*cells, *ratios], WIDTHS) + " !" * (row["auto_over_best"] > MISSED), flush=True)
    for key, text in (("program_bytes", "temporaries and outputs"), ("peak_bytes", "peak of the process")):
        known = {name: values[key] for name, values in found.items() if values.get(key) is not None}
        if known.get("lax"):
            ratios = [f"{name} {size / known['lax']:.2f}" + "!" * (size > HUNGRY * known["lax"]) for name, size in known.items()]
            print(f"    {text}: lax {known['lax'] / 2**20:.1f} MiB; over it: {', '.join(ratios)}", flush=True)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return geometric means and worst cases per kind and measure."""
    lines = []
    for kind, name in itertools.product(KINDS, MEASURES):
        mine = [row for row in rows if (row["kind"], row["measure"]) == (kind, name)]
        against = [row for row in mine if row["torch"]]
        if not mine:
            continue
        slowest = min(mine, key=lambda row: row["lax_over_auto"])
        line = {
            "kind": kind,
            "measure": name,
            "cases": len(mine),
            "missed": sum(row["auto_over_best"] > MISSED for row in mine),
            "lax_over_auto": common.geometric_mean(row["lax_over_auto"] for row in mine),
            "worst_over_lax": [slowest["lax_over_auto"], slowest["title"]],
        }
        if against:
            slowest = max(against, key=lambda row: row["auto_over_torch"])
            line["auto_over_torch"] = common.geometric_mean(row["auto_over_torch"] for row in against)
            line["worst_over_torch"] = [slowest["auto_over_torch"], slowest["title"]]
        lines.append(line)
    return lines


def print_summary(lines: Sequence[dict[str, Any]]) -> None:
    """Print the geometric means, and the worst case of each."""
    print()
    for line in lines:
        print(f"{line['kind']}, {line['measure']}, {line['cases']} cases; auto/best above {MISSED}: {line['missed']}")
        for key, worst, text in (
            ("lax_over_auto", "worst_over_lax", "times faster than lax"),
            ("auto_over_torch", "worst_over_torch", "times the time of torch"),
        ):
            if key in line:
                ratio, title = line[worst]
                print(f"  {common.number(line[key])} {text}, the geometric mean; worst {common.number(ratio)}: {title}")


def print_markdown(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of the README: a line per case, forward / gradients in each cell."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)

    def both(case: str, value: Callable[[dict[str, Any]], float | None]) -> str:
        return " / ".join(common.number(value(row)) for row in cases[case])

    def torch_over_auto(row: dict[str, Any]) -> float | None:
        return 1 / row["auto_over_torch"] if row["torch"] else None

    head = ("ms, forward / and both gradients", "`lax`", "dilax", "torch", "`lax` / dilax", "torch / dilax")
    lines = [
        (
            case,
            both(case, lambda row: row["contenders"]["lax"]["ms"]),
            both(case, lambda row: row["contenders"]["auto"]["ms"]),
            both(case, lambda row: row["contenders"][row["torch"]]["ms"] if row["torch"] else None),
            both(case, lambda row: row["lax_over_auto"]),
            both(case, torch_over_auto),
        )
        for case in cases
    ]
    print(f"\n{common.markdown(head, lines)}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments, checked as far as they can be before minutes are spent."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--cases", default="", metavar="SUBSTRING", help="only the cases whose name contains this, such as depthwise")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="turns of each contender at most (15); slow ones have fewer")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="draw the ratios: .png, .svg or .pdf")
    parser.add_argument("--memory", action="store_true", help="measure memory too, a process for each contender")
    parser.add_argument("--markdown", action="store_true", help="print the table of the README at the end")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise UserError(f"--repeats={args.repeats} is below 1; use 1 or more.")
    common.check_writable(args.json)
    common.check_writable(args.plot, (".png", ".svg", ".pdf"))
    if args.plot and not importlib.util.find_spec("matplotlib"):
        raise UserError("--plot needs matplotlib, which is not installed; pip install matplotlib.")
    return args


def chosen_cases(part: str) -> list[Case]:
    """Return the cases whose name contains `part`, upper and lower case alike."""
    found = [case for case in CASES if part.lower() in case.name.lower()]
    if not found:
        words = sorted({word for case in CASES for word in case.name.lower().split()})
        raise UserError(f"--cases={part!r} is in no name of a case, such as {CASES[0].name!r}.{did_you_mean(part.lower(), words)}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what is asked for."""
    args = parse(argv)
    cases, found = chosen_cases(args.cases), common.environment()
    runtime.keep_freed_memory()
    print(common.heading(found))
    print(f"medians in ms; torch with {found['cores']} threads{f' ({reason})' if (reason := common.without_torch()) else ''}\n")
    print(common.line(HEAD, WIDTHS), flush=True)
    rows = []
    try:
        for case, name in itertools.product(cases, MEASURES):
            rows.append(measure_case(case, name, args.repeats, args.memory))
            print_row(rows[-1])
    except KeyboardInterrupt:
        print("stopped; no file was written.", file=sys.stderr)
        return 130
    means = summary(rows)
    print_summary(means)
    if args.markdown:
        print_markdown(rows)
    if args.json:
        args.json.write_text(json.dumps({"environment": found, "rows": rows, "summary": means}, indent=1))
    if args.plot:
        plots.save(chart(rows, found), args.plot, dpi=150)
    return 0


if __name__ == "__main__":
    cli.run(main)
