"""Time single convolutions in milliseconds: `lowering="auto"`, every lowering including XLA's own ("lax"), and torch.

python -m benchmarks.ops                                   all cases, about 12 minutes
python -m benchmarks.ops --cases "depthwise mobilenet"     the cases whose name contains the text
python -m benchmarks.ops --json ops.json --plot ops.png --markdown
python -m benchmarks.ops --memory                          also measures memory, in a process per contender: half an hour more

Each case has two measures: "forward", and "gradients", which is the output together with both gradients for one fixed random cotangent.
All of these are returned by the program, so that none can be optimised away. Everything runs in this process with as many threads as there
are cores. torch runs in channels first and in channels last (sequences in channels last as images of height 1), and the faster layout
counts. Where the padding differs between the two sides, torch pads in a separate operation, which is part of its time. Every contender is
compiled, run and compared with "lax" before anything is timed; then all are timed in turn (see `common.interleave`) and the medians are
shown, in ms. Freed memory is kept for reuse, as in `train`, for all contenders.

auto/best is the time of "auto" divided by that of the fastest lowering. Above 1.15, marked "!", "auto" made a poor choice or the machine
was busy.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import dilax
from benchmarks import common
from benchmarks.cases import CASES, DTYPES, KINDS, Case
from benchmarks.chart import chart, torch_over_auto
from benchmarks.memory import peak_bytes
from benchmarks.programs import TORCH_LAYOUTS, contenders, program
from dilax import lowerings, plots
from dilax.errors import UserError, did_you_mean
from train import cli, runtime

MEASURES = ("forward", "gradients")
BUDGET_S = 0.6
POOR_CHOICE = 1.15
HIGH_MEMORY = 1.5
# Largest allowed difference from "lax", relative to the largest value: GPUs multiply float32 with reduced precision.
TOLERANCE = {"float32": 5e-3, "bfloat16": 5e-2}


def measure_case(case: Case, measure: str, repeats: int, memory: bool) -> dict[str, Any]:
    """Compare and time all contenders of a case, and measure their memory if `memory`; return the result of `summarise_case`."""
    programs = {contender: program(case, measure, contender) for contender in contenders(case)}
    expected = programs["lax"].to_numpy(programs["lax"].run())
    for name, contender in programs.items():
        check(case, measure, name, contender.to_numpy(contender.run()), expected)
    times = common.interleave({name: contender.run for name, contender in programs.items()}, repeats=repeats, budget_s=BUDGET_S)
    results: dict[str, dict[str, Any]] = {
        name: {
            "ms": 1e3 * statistics.median(seconds),
            "spread_ms": 1e3 * common.interquartile_range(seconds),
            "turns": len(seconds),
            "compile_s": programs[name].compile_s,
        }
        for name, seconds in times.items()
    }
    if memory:
        for name, result in results.items():
            result |= {"program_bytes": programs[name].memory_bytes, "peak_bytes": peak_bytes(case, measure, name)}
    return summarise_case(case, measure, results)


def check(case: Case, measure: str, name: str, results: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Exit if the results of a contender differ from those of "lax"."""
    for what, result, reference in zip(("y", "dx", "dkernel"), results, expected):
        error = float(np.abs(result - reference).max() / np.abs(reference).max()) if result.shape == reference.shape else math.inf
        if not error <= TOLERANCE[case.dtype]:
            sys.exit(
                f"{case.name}, {measure}: {what} of {name} differs from that of lax by {error:.1e} of its largest value; nothing is timed."
            )


def summarise_case(case: Case, measure: str, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return one row of the results: the contenders, the choice of "auto", and the ratios that are shown."""
    plan, times = case.plan(), {name: values["ms"] for name, values in results.items()}
    auto, chosen = times["auto"], choice(plan, measure)
    by_lowering = {name: ms for name, ms in times.items() if name in lowerings.LOWERINGS}
    others = {name: ms for name, ms in by_lowering.items() if name not in ("lax", chosen)}
    torch = min((name for name in times if name in TORCH_LAYOUTS), key=times.__getitem__, default=None)
    return {
        "case": case.name,
        "kind": case.kind,
        "title": case.title,
        "measure": measure,
        "plan": dataclasses.asdict(plan),
        "contenders": results,
        "chosen": chosen,
        "best_other": min(others, key=others.__getitem__, default=None),
        "torch": torch,
        "lax_over_auto": times["lax"] / auto,
        "auto_over_torch": auto / times[torch] if torch else None,
        "auto_over_best": auto / min(by_lowering.values()),
    }


def choice(plan: dilax.ConvPlan, measure: str) -> str:
    """Return what "auto" chooses: one lowering, or those of the output, of dx and of dkernel where they differ."""
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    operations = lowerings.OPERATIONS if measure == "gradients" else ("output",)
    names = [lowerings.select_lowering(plan, platform=platform, operation=operation) for operation in operations]
    return names[0] if len(set(names)) == 1 else "/".join(names)


HEAD = ("case", "measure", "lax", "auto", "choice", "next best", "lowering", "torch", "layout", "lax/auto", "torch/auto", "auto/best")
WIDTHS = (-49, -9, 7, 7, -15, 9, -12, 7, -13, 8, 10, 9)


def print_row(row: dict[str, Any]) -> None:
    """Print the times and ratios of a case and a measure, and the memory if it was measured."""
    results = row["contenders"]
    ms = {name: common.format_number(values["ms"]) for name, values in results.items()}
    torch = [ms[row["torch"]], row["torch"].removeprefix("torch ")] if row["torch"] else [common.without_torch(), ""]
    ratios = [common.format_number(value) for value in (row["lax_over_auto"], torch_over_auto(row), row["auto_over_best"])]
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
    print(common.format_row([*cells, *ratios], WIDTHS) + " !" * (row["auto_over_best"] > POOR_CHOICE), flush=True)
    for key, text in (("program_bytes", "temporaries and outputs"), ("peak_bytes", "peak of the process")):
        known = {name: values[key] for name, values in results.items() if values.get(key) is not None}
        if known.get("lax"):
            ratios = [f"{name} {size / known['lax']:.2f}" + "!" * (size > HIGH_MEMORY * known["lax"]) for name, size in known.items()]
            print(f"    {text}: lax {known['lax'] / 2**20:.1f} MiB; relative to it: {', '.join(ratios)}", flush=True)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the geometric means and the worst cases per kind, dtype and measure."""
    lines = []
    for dtype, kind, name in itertools.product(DTYPES, KINDS, MEASURES):
        selected = [row for row in rows if (row["kind"], row["plan"]["dtype"], row["measure"]) == (kind, dtype, name)]
        with_torch = [row for row in selected if row["torch"]]
        if not selected:
            continue
        slowest = min(selected, key=lambda row: row["lax_over_auto"])
        line = {
            "kind": kind,
            "dtype": dtype,
            "measure": name,
            "cases": len(selected),
            "missed": sum(row["auto_over_best"] > POOR_CHOICE for row in selected),
            "lax_over_auto": common.geometric_mean(row["lax_over_auto"] for row in selected),
            "worst_over_lax": [slowest["lax_over_auto"], slowest["title"]],
        }
        if with_torch:
            slowest = max(with_torch, key=lambda row: row["auto_over_torch"])
            line["auto_over_torch"] = common.geometric_mean(row["auto_over_torch"] for row in with_torch)
            line["worst_over_torch"] = [slowest["auto_over_torch"], slowest["title"]]
        lines.append(line)
    return lines


def print_summary(lines: Sequence[dict[str, Any]]) -> None:
    """Print the geometric means and the worst case of each."""
    print()
    for line in lines:
        words = (line["kind"], line["dtype"], line["measure"], f"{line['cases']} cases")
        print(f"{', '.join(words)}; auto/best above {POOR_CHOICE}: {line['missed']}")
        ratio, title = line["worst_over_lax"]
        print(_faster("lax", line["lax_over_auto"], ratio, title))
        if "auto_over_torch" in line:
            ratio, title = line["worst_over_torch"]
            print(_faster("torch", 1 / line["auto_over_torch"], 1 / ratio, title))


def _faster(other: str, mean: float, worst: float, title: str) -> str:
    numbers = common.format_number(mean), common.format_number(worst)
    return f"  {numbers[0]} times faster than {other} (geometric mean); worst {numbers[1]}: {title}"


def print_markdown(rows: Sequence[dict[str, Any]]) -> None:
    """Print a Markdown table with one line per case, and forward / gradients in each cell."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)

    def both(case: str, value: Callable[[dict[str, Any]], float | None]) -> str:
        return " / ".join(common.format_number(value(row)) for row in cases[case])

    head = ("ms, forward / with both gradients", "`lax`", "dilax", "torch", "`lax` / dilax", "torch / dilax")
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
    """Return the arguments, checked as far as possible before any time is spent."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument(
        "--cases", default="", metavar="SUBSTRING", help="run only the cases whose name contains this text, such as depthwise"
    )
    parser.add_argument(
        "--repeats", type=int, default=15, metavar="N", help="maximum number of turns of each contender (15); slow ones get fewer"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all results to this file")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="draw a chart of the ratios: .png, .svg or .pdf")
    parser.add_argument("--memory", action="store_true", help="also measure memory, in a separate process for each contender")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table at the end")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise UserError(f"--repeats={args.repeats} is below 1; use 1 or more.")
    common.check_writable(args.json)
    common.check_writable(args.plot, suffixes=(".png", ".svg", ".pdf"))
    if args.plot and not importlib.util.find_spec("matplotlib"):
        raise UserError("--plot requires matplotlib, which is not installed; pip install matplotlib.")
    return args


def select_cases(text: str) -> list[Case]:
    """Return the cases whose name contains the text, ignoring case."""
    selected = [case for case in CASES if text.lower() in case.name.lower()]
    if not selected:
        words = sorted({word for case in CASES for word in case.name.lower().split()})
        raise UserError(
            f"--cases={text!r} does not occur in the name of any case, such as {CASES[0].name!r}.{did_you_mean(text.lower(), words)}"
        )
    return selected


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the selected cases, print the results, and write the files that were asked for."""
    args = parse(argv)
    cases, env = select_cases(args.cases), common.environment()
    runtime.keep_freed_memory()
    print(common.heading(env))
    print(f"medians in ms; torch with {env['cores']} threads{f' ({reason})' if (reason := common.without_torch()) else ''}\n")
    print(common.format_row(HEAD, WIDTHS), flush=True)
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
        args.json.write_text(json.dumps({"environment": env, "rows": rows, "summary": means}, indent=1))
    if args.plot:
        plots.save(chart(rows, env), args.plot, dpi=150)
    return 0


if __name__ == "__main__":
    cli.run(main)
