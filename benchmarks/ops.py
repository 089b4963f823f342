"""Time single convolutions in milliseconds: `lowering="auto"`, every lowering including XLA's own ("lax"), and torch.

python -m benchmarks.ops                                   all cases
python -m benchmarks.ops --cases "depthwise mobilenet"     the cases whose name contains the text
python -m benchmarks.ops --json ops.json --plot ops.png --markdown
python -m benchmarks.ops --memory                          also measures memory, in a process per contender

"auto" is what dilax chooses without the native part (dilax_onednn), whether or not that is installed; where it is, "auto+native" is what
dilax chooses with it.

Each case has two measures: "forward", and "gradients", which is the output together with both gradients for one fixed random cotangent.
All of these are returned by the program, so that none can be optimised away. All have as many threads as there are cores. torch has a
process of its own (see `benchmarks.elsewhere`) and runs in channels first and in channels last (sequences in channels last as images of
height 1); the faster layout counts. Where the padding differs between the two sides, torch pads in a separate operation, which is part of
its time. All contenders are compiled and run before anything is timed; then all are timed in turn (see `common.interleave`) and the medians
are shown, in ms. Freed memory is kept for reuse, as in `train`, for all contenders.

Each contender is compared with XLA's own convolution in float64, before and after it is timed. One that differs, or that raises an
error, is left out of that case: its cell says "wrong" or "failed", a line below it says why, and the others are timed. The last line says
how many were left out; if there are any, the exit code is 1.

auto/best is the time of the "auto" that a user gets, whose choice is shown, divided by that of the fastest lowering. Above 1.15, marked
"!", "auto" made a poor choice or the machine was busy.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import dilax
from benchmarks import common, contest, elsewhere, native, reference
from benchmarks.cases import CASES, Case
from benchmarks.chart import chart
from benchmarks.programs import AUTO, NATIVE, TORCH_LAYOUTS, contenders, peak_bytes, program
from benchmarks.tables import COLUMNS, print_cells, print_markdown, print_row, print_summary, summary
from dilax import lowerings, plots
from dilax.errors import UserError, did_you_mean
from train import cli, runtime

MEASURES = ("forward", "gradients")
BUDGET_S = 0.6
RESULTS = ("y", "dx", "dkernel")
# Largest allowed difference from the reference, relative to its largest value. GPUs multiply float32 with reduced precision.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
TOLERANCE_OF_ACCELERATORS = 5e-3


def measure_case(case: Case, measure: str, repeats: int, memory: bool) -> dict[str, Any]:
    """Compare and time all contenders of a case, and measure their memory if `memory`; return the result of `summarise_case`."""
    make = {name: elsewhere.maker(program, case, measure, name, apart=name in TORCH_LAYOUTS) for name in contenders(case)}
    expected, limit = reference.convolution(case, measure), tolerance(case.dtype)
    results, left_out = contest.hold(make, expected, names=RESULTS, tolerance=limit, repeats=repeats, budget_s=BUDGET_S)
    for name in results if memory else ():
        try:
            results[name]["peak_bytes"] = peak_bytes(case, measure, name)
        except RuntimeError as error:
            left_out[f"{name} (memory)"] = contest.reason(error)
    return summarise_case(case, measure, results, left_out)


def tolerance(dtype: str) -> float:
    """Return the largest allowed difference from the reference on the device in use."""
    return TOLERANCE[dtype] if jax.default_backend() == "cpu" else max(TOLERANCE[dtype], TOLERANCE_OF_ACCELERATORS)


def summarise_case(
    case: Case, measure: str, results: Mapping[str, dict[str, Any]], left_out: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return one row of the results: the contenders, the choice of "auto", and the ratios that are shown; None where one is missing."""
    plan = case.plan()
    auto = NATIVE if NATIVE in results else AUTO
    chosen = choice(plan, measure, auto)
    known = [name for name in lowerings.LOWERINGS if name != native.LOWERING or auto == NATIVE]
    torch = contest.fastest(results, TORCH_LAYOUTS)
    return {
        "case": case.name,
        "kind": case.kind,
        "title": case.title,
        "measure": measure,
        "plan": dataclasses.asdict(plan),
        "contenders": dict(results),
        "left_out": dict(left_out or {}),
        "chosen": chosen,
        "best_other": contest.fastest(results, [name for name in known if name not in ("lax", chosen)]),
        "torch": torch,
        "lax_over_auto": contest.ratio(results, "lax", AUTO),
        "auto_over_torch": contest.ratio(results, AUTO, torch),
        "native_over_torch": contest.ratio(results, NATIVE, torch),
        "auto_over_best": contest.ratio(results, auto, contest.fastest(results, known)),
    }


def choice(plan: dilax.ConvPlan, measure: str, auto: str) -> str:
    """Return what "auto" chooses, with or without the native part: one lowering, or those of the output, dx and dkernel if they differ.

    Raises:
        RuntimeError: if the native part is chosen where it should be hidden, in which case all times of "auto" would be its times.
    """
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    operations = lowerings.OPERATIONS if measure == "gradients" else ("output",)
    with native.scope(auto):
        names = [lowerings.select_lowering(plan, platform=platform, operation=operation) for operation in operations]
    if auto == AUTO and native.LOWERING in names:
        raise RuntimeError(f"benchmarks.native.hidden did not hide {native.PACKAGE}: select_lowering still chooses {native.LOWERING!r}.")
    return names[0] if len(set(names)) == 1 else "/".join(names)


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
    common.check_positive(args, "repeats")
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
    """Measure the selected cases, print the results, and write the files that were asked for; return 1 if a contender was left out."""
    args = parse(argv)
    cases, env = select_cases(args.cases), common.environment()
    runtime.keep_freed_memory()
    contest.print_heading(env)
    print_cells(COLUMNS, {name: name for name in COLUMNS})
    rows = []
    try:
        for case, name in itertools.product(cases, MEASURES):
            rows.append(measure_case(case, name, args.repeats, args.memory))
            print_row(rows[-1])
    except KeyboardInterrupt:
        print("stopped; no file was written.", file=sys.stderr)
        return 130
    means = summary(rows)
    print_summary(means, rows)
    if args.markdown:
        print_markdown(rows)
    if args.json:
        args.json.write_text(json.dumps({"environment": env, "rows": rows, "summary": means}, indent=1))
    if args.plot:
        plots.save(chart(rows, env), args.plot, dpi=150)
    return contest.print_end(row["left_out"] for row in rows)


if __name__ == "__main__":
    cli.run(main)
