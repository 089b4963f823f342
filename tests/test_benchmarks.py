"""Test the benchmark of single convolutions: its cases, the agreement of its contenders, its output. No speed is asserted."""

import itertools
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dilax
from benchmarks import chart, common, ops, programs
from benchmarks.cases import Case
from dilax import functional, lowerings
from dilax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
TINY = (
    Case("tiny", (2, 9, 4), 8, 2, dilation=3, groups=4, padding="CAUSAL"),
    Case("tiny", (1, 11, 3), 5, 4, stride=2),
    Case("tiny", (2, 7, 6, 4), 4, 3, dilation=2, groups=4),
    Case("tiny", (1, 9, 6, 4), 6, 3, stride=2, groups=2),
    Case("tiny", (2, 6, 5, 3), 4, 3, padding="CAUSAL"),
    Case("tiny", (1, 5, 4, 6, 2), 4, 3, dilation=2, groups=2),
    Case("tiny", (1, 4, 5, 6, 3), 2, 2),
    Case("tiny", (2, 9, 8, 4), 4, 3, groups=4, dtype="bfloat16"),
)
ERRORS = {
    "no case": (
        ["--cases=densse"],
        "--cases='densse' does not occur in the name of any case, such as 'depthwise MobileNet 8x28x28x256 k3'. Did you mean \"dense\"?",
    ),
    "repeats": (["--repeats=0"], "--repeats=0 is below 1; use 1 or more."),
    "folder": (
        ["--json=nowhere/ops.json"],
        "nowhere/ops.json cannot be written (No such file or directory); give a file in an existing folder.",
    ),
    "picture": (
        ["--json=ops.json", "--plot=ops.jpq"],
        "ops.jpq: a figure cannot be written as '.jpq'; use one of ('.png', '.svg', '.pdf').",
    ),
}


def of(kind: str) -> list[Case]:
    return [case for case in ops.CASES if case.kind == kind]


def values(kind: str, field: str) -> set:
    return {getattr(case, field) for case in of(kind)}


def test_the_cases_cover_the_range_of_convolutions():
    assert len(ops.CASES) >= 24
    assert len({case.name for case in ops.CASES}) == len(ops.CASES)
    assert {case.kind for case in ops.CASES} == set(ops.KINDS)
    assert values("depthwise", "rank") == values("dense", "rank") == {1, 2, 3}
    assert {2, 3, 4, 5, 7} <= values("depthwise", "window") and {1, 128} <= values("depthwise", "dilation")
    assert values("depthwise", "stride") == {1, 2} and {case.features // case.groups for case in of("depthwise")} == {1, 2}
    channels, batches = ({case.shape[axis] for case in of("depthwise")} for axis in (-1, 0))
    assert (min(channels), max(channels), min(batches), max(batches)) == (16, 1024, 1, 64)
    assert {"CAUSAL", "SAME"} == values("depthwise", "padding") == values("dense", "padding")
    assert {"float32", "bfloat16"} == values("depthwise", "dtype") == values("dense", "dtype")
    assert {6, 12, 18} <= {case.dilation for case in of("dense") if case.shape[-1] == 2048}
    assert {1, 3} <= {case.shape[-1] for case in of("dense")} and 1 in values("dense", "window")
    assert max(case.plan().multiply_adds for case in of("dense")) < 12e9
    assert max(case.plan().multiply_adds for case in ops.CASES if case.kind != "dense") < 30e6


def test_plans_equal_those_of_dilated_conv(monkeypatch):
    plans = []

    def convolve(x, kernel, plan, lowering):
        plans.append(plan)
        return x

    monkeypatch.setattr(functional, "convolve", convolve)
    for case in ops.CASES:
        x, kernel = (jax.ShapeDtypeStruct(shape, jnp.dtype(case.dtype)) for shape in (case.shape, kernel_shape(case)))
        settings = dict(stride=case.stride, dilation=case.dilation, groups=case.groups, padding=case.padding)
        jax.eval_shape(lambda x, k, settings=settings: dilax.dilated_conv(x, k, **settings), x, kernel)
    assert plans == [case.plan() for case in ops.CASES]


def kernel_shape(case: Case) -> tuple[int, ...]:
    return (*(case.window,) * case.rank, case.shape[-1] // case.groups, case.features)


@pytest.mark.parametrize("measure", ops.MEASURES)
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_torch_computes_the_same(case, measure):
    pytest.importorskip("torch", reason="torch is not installed")
    lax = ops.program(case, measure, "lax")
    expected = lax.to_numpy(lax.run())
    assert len(expected) == (1 if measure == "forward" else 3)
    for layout in programs.TORCH_LAYOUTS:
        torch = ops.program(case, measure, layout)
        results = torch.to_numpy(torch.run())
        assert [result.shape for result in results] == [array.shape for array in expected]
        bound = 1e-5 if case.dtype == "float32" else 2e-2
        for actual, reference in zip(results, expected):
            np.testing.assert_allclose(actual, reference, rtol=0, atol=bound * np.abs(reference).max())


def test_gradients_belong_to_the_cotangent():
    case = TINY[2]
    auto = ops.program(case, "gradients", "auto")
    y, dx, dkernel = auto.to_numpy(auto.run())
    x, kernel, cotangent = case.arrays()
    assert (y.shape, dx.shape, dkernel.shape) == (cotangent.shape, x.shape, kernel.shape)
    for primal, gradient in ((x, dx), (kernel, dkernel)):
        np.testing.assert_allclose((primal * gradient).sum(), (y * cotangent).sum(), rtol=1e-3)  # the convolution is linear in both
    assert auto.compile_s > 0


def test_a_wrong_result_stops_the_run():
    y, dx = expected = [np.asarray([1.0, -4.0]), np.asarray([2.0])]
    ops.check(TINY[0], "gradients", "other", [y + 0.01, dx], expected)
    for wrong in (y + 0.03, y[:1], y * np.nan):
        with pytest.raises(SystemExit, match=r"y of other differs from that of lax"):
            ops.check(TINY[0], "gradients", "other", [wrong, dx], expected)
    with pytest.raises(SystemExit, match=r"dx of other"):
        ops.check(TINY[0], "gradients", "other", [y, -dx], expected)


def test_contenders(monkeypatch):
    names = ops.contenders(ops.CASES[0])
    assert names[0] == "lax" and "auto" in names and len(names) == len(set(names))
    monkeypatch.setattr(lowerings, "supports", lambda name, plan: name == "lax")
    assert [name for name in ops.contenders(ops.CASES[0]) if not name.startswith("torch")] == ["lax", "auto"]


def test_main_from_end_to_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ops, "CASES", TINY[2:3])
    monkeypatch.setattr(ops, "peak_bytes", lambda case, measure, contender: 2**20 * (1 + 2 * (contender == "auto")))
    json_file, picture = tmp_path / "ops.json", tmp_path / "ops.png"
    assert ops.main(["--cases=TINY 2x7", "--repeats=2", f"--json={json_file}", f"--plot={picture}", "--markdown", "--memory"]) == 0
    printed, written = capsys.readouterr().out, json.loads(json_file.read_text())
    assert [(row["case"], row["measure"]) for row in written["rows"]] == [("depthwise tiny 2x7x6x4 k3 d2", name) for name in ops.MEASURES]
    for row in written["rows"]:
        assert list(row["contenders"]) == ops.contenders(TINY[2])
        assert row["chosen"] in dilax.LOWERINGS
        for name, contender in row["contenders"].items():
            assert contender["ms"] > 0 and contender["spread_ms"] >= 0 and contender["turns"] == 2
            assert (contender["compile_s"] > 0) == (contender["program_bytes"] is not None) == (not name.startswith("torch"))
    assert {"device", "cores", "python", "jax", "jaxlib", "torch", "date"} <= set(written["environment"])
    assert [line["cases"] for line in written["summary"]] == [1, 1]
    assert printed.count("depthwise tiny 2x7x6x4 k3 d2 ") == 3 and "| depthwise tiny" in printed and "auto 3.00!" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ratios_and_means():
    results = {name: {"ms": ms} for name, ms in {"lax": 8.0, "auto": 4.0, "torch contiguous": 3.0, "torch channels_last": 2.0}.items()}
    slow = results | {"auto": {"ms": 16.0}}
    rows = [ops.summarise_case(case, "forward", values) for case, values in zip(ops.CASES, (results, slow))]
    assert [rows[0][key] for key in ("lax_over_auto", "auto_over_torch", "auto_over_best", "torch")] == [2, 2, 0.5, "torch channels_last"]
    (line,) = ops.summary(rows)
    assert (line["cases"], line["missed"]) == (2, 1)
    np.testing.assert_allclose([line["lax_over_auto"], line["auto_over_torch"]], [1, 4])
    assert (line["worst_over_lax"], line["worst_over_torch"]) == ([0.5, ops.CASES[1].title], [8, ops.CASES[1].title])
    alone = ops.summarise_case(ops.CASES[0], "forward", {name: results[name] for name in ("lax", "auto")})
    assert alone["torch"] is None and "auto_over_torch" not in ops.summary([alone])[0]
    assert ops.chart([alone], common.environment()).axes


def test_no_mean_mixes_dtypes():
    tenth = {"lax": {"ms": 1.0}, "auto": {"ms": 10.0}, "torch contiguous": {"ms": 1.0}}
    tenfold = {"lax": {"ms": 10.0}, "auto": {"ms": 1.0}, "torch contiguous": {"ms": 10.0}}
    cases = [case for case in ops.CASES if case.kind == "dense"]
    rows = [ops.summarise_case(case, "forward", tenfold if case.dtype == "bfloat16" else tenth) for case in cases]
    means = {line["dtype"]: (line["lax_over_auto"], 1 / line["auto_over_torch"]) for line in ops.summary(rows)}
    np.testing.assert_allclose([means["float32"], means["bfloat16"]], [(0.1, 0.1), (10, 10)])
    figure = ops.chart(rows, common.environment())
    for axes in figure.axes:
        words = [text.get_text() for text in axes.texts]
        assert [word for word in words if word.startswith("mean") and "-" not in word] == [
            "mean 0.10\N{MULTIPLICATION SIGN}",
            "mean 10.0\N{MULTIPLICATION SIGN}",
        ]


def test_the_documented_means_are_those_of_the_chart(tmp_path):
    recorded = json.loads((ROOT / "notebooks" / "speed.json").read_text())
    assert [row["case"] for row in recorded["rows"]] == [case.name for case in ops.CASES for _ in ops.MEASURES]
    expected = set()
    for kind, dtype, measure in itertools.product(ops.KINDS, ("float32", "bfloat16"), ops.MEASURES):
        key = (kind, dtype, measure)
        rows = [row for row in recorded["rows"] if (row["kind"], row["plan"]["dtype"], row["measure"]) == key]
        means = [np.exp(np.mean(np.log(values))) for values in zip(*((row["lax_over_auto"], 1 / row["auto_over_torch"]) for row in rows))]
        words = {"forward": "forward", "gradients": "forward and both gradients"}[measure]
        expected |= {f"| {kind}, {dtype}, {words} | {len(rows)} | {' | '.join(map(common.format_number, means))} |"} if rows else set()
    for page in ("speed.md", "results.md"):
        lines = (ROOT / "docs" / page).read_text().splitlines()
        assert {line for line in lines if "32, forward" in line or "16, forward" in line} == expected
        assert any(line.endswith("| times faster than `lax` | times faster than torch |") for line in lines)
    assert chart.main([str(ROOT / "notebooks" / "speed.json"), str(tmp_path / "speed.png")]) == 0
    with pytest.raises(UserError, match="is not a file that benchmarks"):
        chart.main([str(ROOT / "README.md"), str(tmp_path / "other.png")])


def test_peak_memory_of_a_run():
    case = next(case for case in ops.CASES if case.title == "stem 8x128x128x3->32 k3 s2")
    peak = ops.peak_bytes(case, "forward", "lax")
    assert peak is None or 3.5 * 2**20 <= peak <= 32 * 2**20  # the output takes 4 MiB


def test_timing_in_turn():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(common.TURN_S)) for name in "abc"}
    times = common.interleave(calls, repeats=4, budget_s=9)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert all(len(seconds) == 4 and min(seconds) >= common.TURN_S for seconds in times.values())
    slow = common.interleave({"quick": lambda: None, "slow": lambda: sum(range(200_000))}, repeats=6, budget_s=9)
    assert {name: len(seconds) for name, seconds in slow.items()} == {"quick": 6, "slow": common.MIN_TURNS}
    spent = common.interleave({"a": lambda: sum(range(200_000)), "b": lambda: sum(range(200_000))}, repeats=6, budget_s=0)
    assert [len(seconds) for seconds in spent.values()] == [common.MIN_TURNS] * 2


def test_formatting_of_numbers():
    assert [common.format_number(value) for value in (0.123, 1.234, 9.99, 9.996, 12.34, 99.94, 99.96, 1234.5, None, float("nan"))] == [
        "0.12",
        "1.23",
        "9.99",
        "10.0",
        "12.3",
        "99.9",
        "100",
        "1234",
        "-",
        "-",
    ]
    np.testing.assert_allclose(common.geometric_mean([1, 10, 100]), 10)
    np.testing.assert_allclose(common.interquartile_range([1, 2, 3, 4, 5]), 2)
    assert common.markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| :-- | --: |\n| 1 | 2 |"


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments, text = ERRORS[name]
    with pytest.raises(UserError) as error:
        ops.main(arguments)
    assert str(error.value) == text
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_reports_an_error_in_one_line():
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.ops", "--cases=densse"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (process.returncode, process.stdout, process.stderr) == (2, "", f"error: {ERRORS['no case'][1]}\n")
