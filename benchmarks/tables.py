"""The tables of `benchmarks.ops`: a line per case and measure, the geometric means, the cases in which torch is faster."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import common, contest, native
from benchmarks.cases import DTYPES, KINDS
from benchmarks.chart import torch_over_auto
from benchmarks.programs import AUTO, NATIVE, TORCH_LAYOUTS

MEASURES = {"forward": "forward", "gradients": "with both gradients"}
POOR_CHOICE = 1.15
HIGH_MEMORY = 1.5
# Heading -> width; as in `common.format_row`.
COLUMNS = {
    "case": -49,
    "measure": -9,
    "lax": 7,
    AUTO: 7,
    NATIVE: 11,
    "choice": -22,
    "next best": 9,
    "lowering": -12,
    "torch": 7,
    "layout": -13,
    "lax/auto": 8,
    "auto/torch": 10,
    "auto+native/torch": 17,
    "auto/best": 9,
}
# The contender that is divided by torch -> the field of a row that holds the ratio.
OVER_TORCH = {AUTO: "auto_over_torch", NATIVE: "native_over_torch"}


def shown(columns: Iterable[str]) -> list[str]:
    """Return the names of the columns that are shown: those of the native part only where it is installed."""
    return [name for name in columns if native.installed() or "native" not in name]


def print_cells(columns: Mapping[str, int], cells: Mapping[str, str], mark: str = "") -> None:
    """Print a line of a table.

    Args:
        columns: The widths of all columns, by name; as in `common.format_row`.
        cells: The text of each.
        mark: What follows the line.
    """
    names = shown(columns)
    print(common.format_row([cells[name] for name in names], [columns[name] for name in names]) + mark, flush=True)


def print_row(row: Mapping[str, Any]) -> None:
    """Print the times and ratios of a case and a measure, what was left out, and the memory if it was measured."""
    results, left_out = row["contenders"], row["left_out"]
    ms = {name: contest.cell(name, results, left_out) for name in ("lax", AUTO, NATIVE)}
    torch = row["torch"] or next((name for name in TORCH_LAYOUTS if name in left_out), "")
    cells = {
        "case": row["case"],
        "measure": row["measure"],
        **ms,
        "choice": row["chosen"],
        "next best": contest.cell(row["best_other"] or "", results, left_out),
        "lowering": row["best_other"] or "",
        "torch": contest.cell(torch, results, left_out, absent=common.without_torch()),
        "layout": (row["torch"] or "").removeprefix("torch "),
        "lax/auto": common.format_number(row["lax_over_auto"]),
        "auto/torch": common.format_number(row["auto_over_torch"]),
        "auto+native/torch": common.format_number(row["native_over_torch"]),
        "auto/best": common.format_number(row["auto_over_best"]),
    }
    print_cells(COLUMNS, cells, " !" * ((row["auto_over_best"] or 0) > POOR_CHOICE))
    contest.print_left_out(left_out)
    if any("peak_bytes" in values for values in results.values()):
        print_memory(results)


def print_memory(results: dict[str, dict[str, Any]]) -> None:
    """Print the memory of each contender relative to that of lax, as far as it was measured."""
    for key, text in (("program_bytes", "temporaries and outputs"), ("peak_bytes", "peak of the process")):
        known = {name: values[key] for name, values in results.items() if values.get(key) is not None}
        if known.get("lax"):
            ratios = [f"{name} {size / known['lax']:.2f}" + "!" * (size > HIGH_MEMORY * known["lax"]) for name, size in known.items()]
            print(f"    {text}: lax {known['lax'] / 2**20:.1f} MiB; relative to it: {', '.join(ratios)}", flush=True)
        elif known:
            sizes = [f"{name} {size / 2**20:.1f} MiB" for name, size in known.items()]
            print(f"    {text}: {', '.join(sizes)}; that of lax is unknown or 0", flush=True)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the geometric means and the worst cases per kind, dtype and measure, of the cases in which both contenders were measured."""
    lines = []
    for dtype, kind, measure in itertools.product(DTYPES, KINDS, MEASURES):
        selected = [row for row in rows if (row["kind"], row["plan"]["dtype"], row["measure"]) == (kind, dtype, measure)]
        if not selected:
            continue
        line = {
            "kind": kind,
            "dtype": dtype,
            "measure": measure,
            "cases": len(selected),
            "missed": sum((row["auto_over_best"] or 0) > POOR_CHOICE for row in selected),
        }
        for ratio, worst, choose in (
            ("lax_over_auto", "worst_over_lax", min),
            ("auto_over_torch", "worst_over_torch", max),
            ("native_over_torch", "worst_native_over_torch", max),
        ):
            known = [row for row in selected if row[ratio] is not None]
            if known:
                extreme = choose(known, key=lambda row, ratio=ratio: row[ratio])
                line[ratio] = common.geometric_mean(row[ratio] for row in known)
                line[worst] = [extreme[ratio], extreme["title"]]
        lines.append(line)
    return lines


def print_summary(lines: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> None:
    """Print the geometric means and the worst case of each, and all cases in which torch is faster."""
    print("\ngeometric means")
    for line in lines:
        words = (line["kind"], line["dtype"], MEASURES[line["measure"]], f"{line['cases']} cases")
        print(f"{', '.join(words)}; auto/best above {POOR_CHOICE}: {line['missed']}")
        for text, ratio, worst in (
            ("lax/auto", "lax_over_auto", "worst_over_lax"),
            ("auto/torch", "auto_over_torch", "worst_over_torch"),
            ("auto+native/torch", "native_over_torch", "worst_native_over_torch"),
        ):
            if ratio in line:
                extreme, title = line[worst]
                print(f"  {text} {common.format_number(line[ratio])}; worst {common.format_number(extreme)}: {title}")
    for name, field in OVER_TORCH.items():
        known = [row for row in rows if row[field] is not None]
        slower = sorted((row for row in known if row[field] > 1), key=lambda row: -row[field])
        if known:
            print(f"\n{name} is slower than torch in {len(slower)} of {len(known)} measurements" + ":" * bool(slower))
        for row in slower:
            print(f"  {common.format_number(row[field])} times: {row['case']}, {MEASURES[row['measure']]}")


def print_markdown(rows: Sequence[dict[str, Any]]) -> None:
    """Print a Markdown table with one line per case, and forward / gradients in each cell."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "`lax`": lambda row: contest.cell("lax", row["contenders"], row["left_out"]),
        "dilax": lambda row: contest.cell(AUTO, row["contenders"], row["left_out"]),
        "dilax, native": lambda row: contest.cell(NATIVE, row["contenders"], row["left_out"]),
        "torch": lambda row: contest.cell(row["torch"] or TORCH_LAYOUTS[0], row["contenders"], row["left_out"]),
        "`lax` / dilax": lambda row: common.format_number(row["lax_over_auto"]),
        "torch / dilax": lambda row: common.format_number(torch_over_auto(row)),
        "torch / dilax, native": lambda row: common.format_number(row["native_over_torch"] and 1 / row["native_over_torch"]),
    }
    if not any(NATIVE in (*row["contenders"], *row["left_out"]) for row in rows):
        columns = {name: column for name, column in columns.items() if "native" not in name}
    lines = [(case, *(" / ".join(map(column, own)) for column in columns.values())) for case, own in cases.items()]
    print(f"\n{common.markdown(('ms, forward / with both gradients', *columns), lines)}")
