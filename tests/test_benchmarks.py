"""Test the benchmark of single convolutions: its cases, the agreement of its contenders, its output. No speed is asserted."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as oracle
from selection import with_slow

import dilax
from benchmarks import (
    chart,
    common,
    contest,
    elsewhere,
    inference,
    inference_networks,
    native,
    networks,
    ops,
    programs,
    reference,
    torch_networks,
    train,
)
from benchmarks.cases import KINDS, Case
from dilax import functional, lowerings
from dilax.errors import UserError
from dilax.lowerings import onednn
from dilax.models import DilatedCNN, SeparableCNN

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
    "no networks": (
        ["--networks=tnc"],
        "--networks='tnc' does not occur in the name of any network; they are separable_cnn, tcn, deeplabv3_resnet50, meshnet_128, "
        "meshnet_256.",
    ),
    "repeats of networks": (["--repeats=0"], "--repeats=0 is below 1; use 1 or more."),
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


@pytest.fixture(autouse=True)
def without_native_part(monkeypatch):
    """These tests run as if the native part were not installed, whether or not it is."""
    monkeypatch.setattr(onednn, "is_installed", lambda: False)


def of(kind: str) -> list[Case]:
    return [case for case in ops.CASES if case.kind == kind]


def values(kind: str, field: str) -> set:
    return {getattr(case, field) for case in of(kind)}


def test_the_cases_cover_the_range_of_convolutions():
    assert len(ops.CASES) >= 24
    assert len({case.name for case in ops.CASES}) == len(ops.CASES)
    assert {case.kind for case in ops.CASES} == set(KINDS)
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
        for actual, array in zip(results, expected):
            np.testing.assert_allclose(actual, array, rtol=0, atol=bound * np.abs(array).max())


def test_gradients_belong_to_the_cotangent():
    case = TINY[2]
    auto = ops.program(case, "gradients", "auto")
    y, dx, dkernel = auto.to_numpy(auto.run())
    x, kernel, cotangent = case.arrays()
    assert (y.shape, dx.shape, dkernel.shape) == (cotangent.shape, x.shape, kernel.shape)
    for primal, gradient in ((x, dx), (kernel, dkernel)):
        np.testing.assert_allclose((primal * gradient).sum(), (y * cotangent).sum(), rtol=1e-3)  # the convolution is linear in both
    assert auto.compile_s > 0


# What a contender does -> how the line that leaves it out starts. The call is counted from 1, which is the one that is compared.
FAULTS = {
    "another value": (
        lambda y, call: [y[0], *(part * 1.01 for part in y[1:])],
        r"wrong: dx differs from the float64 reference by 1\.0e-02 of",
    ),
    "the last result": (
        lambda y, call: [*y[:-1], -y[-1]],
        r"wrong: dkernel differs from the float64 reference by 2\.0e\+00 of its largest",
    ),
    "too large": (lambda y, call: [part * 1e35 for part in y], r"wrong: y differs"),
    "not a number": (lambda y, call: [y[0] * np.nan, *y[1:]], r"wrong: y is not finite"),
    "shape": (lambda y, call: [y[0], y[1][:, 1:], *y[2:]], r"wrong: dx has shape \(2, 6, 6, 4\) instead of \(2, 7, 6, 4\)"),
    "missing": (lambda y, call: y[:2], r"wrong: 2 results instead of 3"),
    "raises": (lambda y, call: 1 / 0, r"failed: ZeroDivisionError: division by zero$"),
    "raises while it is timed": (lambda y, call: y if call < 3 else 1 / 0, r"failed: ZeroDivisionError: division by zero$"),
    "wrong after a while": (lambda y, call: y if call < 3 else [2 * part for part in y], r"wrong: y differs"),
}
CONTENDERS = ("lax", "taps", "auto", "torch contiguous")
PAIRS = [(name, fault) for name in CONTENDERS for fault in FAULTS]


def faulty(monkeypatch, name, fault) -> None:
    """Have a contender of `benchmarks.ops` misbehave in every case; torch, which need not be installed, is played by "lax"."""
    original = ops.program

    def program(case, measure, contender):
        made = original(case, measure, "lax" if contender.startswith("torch") else contender)
        calls = itertools.count(1)
        if contender != name:
            return made
        return dataclasses.replace(made, run=lambda: fault(made.to_numpy(made.run()), next(calls)), to_numpy=lambda results: results)

    monkeypatch.setattr(ops, "contenders", lambda case: list(CONTENDERS))
    monkeypatch.setattr(ops, "program", program)
    monkeypatch.setattr(ops, "CASES", TINY[2:3])
    monkeypatch.setattr(ops, "MEASURES", ("gradients",))


@pytest.mark.parametrize(
    ("name", "fault"), with_slow(PAIRS, kept=[pair for pair in PAIRS if pair[0] == "torch contiguous" or pair[1] == "another value"])
)
def test_a_wrong_contender_is_named_and_left_out_and_the_run_goes_on(name, fault, monkeypatch, tmp_path, capsys):
    function, text = FAULTS[fault]
    faulty(monkeypatch, name, function)
    json_file = tmp_path / "ops.json"
    assert ops.main([f"--json={json_file}", f"--plot={tmp_path / 'ops.png'}", "--markdown", "--repeats=3"]) == 1
    printed = capsys.readouterr().out
    (row,) = json.loads(json_file.read_text())["rows"]
    assert list(row["contenders"]) == [other for other in CONTENDERS if other != name]
    assert all(values["ms"] > 0 for values in row["contenders"].values())
    assert list(row["left_out"]) == [name] and re.match(text, row["left_out"][name])
    assert f"    left out: {name}, {row['left_out'][name]}\n" in printed
    assert printed.endswith("\n1 contender was left out as wrong or failing; the lines above say why\n")
    word = text.partition(":")[0]
    if name != "taps":  # which has a column only where it is the next best
        assert sum(word in line.split() for line in printed.splitlines() if "tiny 2x7x6x4" in line and not line.startswith(" ")) == 2


def test_all_contenders_may_be_left_out(monkeypatch, capsys):
    monkeypatch.setattr(ops, "program", lambda case, measure, contender: dilax.lowerings.LOWERINGS["none"])
    monkeypatch.setattr(ops, "CASES", TINY[2:3])
    monkeypatch.setattr(ops, "contenders", lambda case: list(CONTENDERS))
    assert ops.main([]) == 1
    printed = capsys.readouterr().out
    assert printed.count("    left out: torch contiguous, failed: KeyError: 'none'\n") == 2
    assert printed.endswith("\n8 contenders were left out as wrong or failing; the lines above say why\n")


def test_rounding_is_not_an_error():
    rng = np.random.default_rng(0)
    expected = [rng.standard_normal((3, 4)), np.zeros(2)]
    near = [expected[0] + 0.9e-3 * np.abs(expected[0]).max(), np.full(2, 0.9e-3)]
    contest.compare(near, expected, names=("y", "dx"), tolerance=1e-3)
    for wrong in ([near[0] + 0.2e-3 * np.abs(expected[0]).max(), near[1]], [near[0], near[1] + 0.2e-3]):
        with pytest.raises(contest.WrongResultError):
            contest.compare(wrong, expected, names=("y", "dx"), tolerance=1e-3)


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_the_reference(case):
    x, kernel, cotangent = (np.asarray(jnp.asarray(array, case.dtype), np.float64) for array in case.arrays())
    options = dict(stride=case.stride, padding=case.padding, dilation=case.dilation, groups=case.groups)
    expected = [
        oracle.conv(x, kernel, **options),
        oracle.conv_transpose(cotangent, kernel, x.shape[1:-1], **options),
        oracle.kernel_gradient(x, cotangent, kernel.shape[:-2], **options),
    ]
    for measure in ops.MEASURES:
        actual = reference.convolution(case, measure)
        assert len(actual) == (1 if measure == "forward" else 3)
        for result, array in zip(actual, expected):
            assert result.dtype == np.float64
            np.testing.assert_allclose(result, array, rtol=0, atol=1e-12)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """What is measured in the process of torch runs in that of the test, where it can be replaced."""
    for name in ("program", "Call"):
        monkeypatch.setattr(elsewhere, name, lambda make, *arguments, **options: make(*arguments, **options))


@pytest.fixture
def played(monkeypatch):
    """The native part is played by "taps", and preferred to everything."""
    monkeypatch.delenv(onednn.SWITCH, raising=False)
    monkeypatch.setattr(lowerings.registry, "_suits_onednn", lambda plan, operation: True)
    taps = lowerings.LOWERINGS["taps"]
    monkeypatch.setattr(onednn, "is_installed", lambda: os.environ.get(onednn.SWITCH) != "0")
    monkeypatch.setitem(
        lowerings.LOWERINGS, "onednn", dataclasses.replace(taps, supports=lambda plan: onednn.is_installed() and taps.supports(plan))
    )


def test_the_native_part_has_columns_of_its_own(played, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(native, "version", lambda: "1.2.3")
    monkeypatch.setattr(ops, "CASES", TINY[2:3])
    json_file = tmp_path / "ops.json"
    assert ops.main([f"--json={json_file}", "--repeats=2", "--markdown"]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(json_file.read_text())["rows"]
    assert [row["chosen"] for row in rows] == ["onednn", "onednn"]
    for row in rows:
        ours = ["lax", "taps", "split", "onednn", "auto", "auto+native"]
        assert [name for name in row["contenders"] if not name.startswith("torch")] == ours
    assert ". auto: without it; auto+native: with it\n" in printed and "dilax_onednn 1.2.3" in printed
    assert {"auto+native", "auto+native/torch"} <= set(printed.split()) and "| dilax, native |" in printed


@pytest.mark.parametrize("name", ["lax", "taps", "auto", "auto+native", "onednn", "dilax", "dilax+native", "folded, auto"])
def test_auto_uses_the_native_part_only_in_its_own_contenders(name, played):
    """The caches of JAX must not carry a choice from one contender to the next: all of them compile the same convolution."""
    calls = []
    lowering = lowerings.LOWERINGS["onednn"]
    lowerings.LOWERINGS["onednn"] = dataclasses.replace(lowering, output=lambda *args: calls.append(args) or lowering.output(*args))
    x, kernel = (jnp.asarray(array) for array in TINY[2].arrays()[:2])
    options: Any = dict(dilation=TINY[2].dilation, groups=TINY[2].groups)
    uses = name in ("auto+native", "onednn", "dilax+native")
    for contender in ("auto" if uses else "auto+native", name):
        calls.clear()
        made = programs.compiled_program(contender, lambda x, kernel: (dilax.dilated_conv(x, kernel, **options),), x, kernel)
        (y,) = made.to_numpy(made.run())
    assert bool(calls) == uses
    np.testing.assert_allclose(y, oracle.conv(x, kernel, **options), atol=1e-5)


def test_a_native_part_that_is_not_hidden_is_an_error(played, monkeypatch):
    assert ops.choice(TINY[2].plan(), "forward", "auto") == "taps"
    monkeypatch.setattr(native, "scope", lambda name: contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="did not hide dilax_onednn"):
        ops.choice(TINY[2].plan(), "forward", "auto")


def test_without_the_native_part(monkeypatch, capsys):
    monkeypatch.setattr(ops, "CASES", TINY[2:3])
    assert ops.main(["--repeats=2"]) == 0
    printed = capsys.readouterr().out
    assert "\nauto+native is not measured: dilax-onednn " in printed and " auto+native " not in printed
    assert printed.endswith("\nno contender was left out as wrong or failing\n")


STRIDED = networks.Network(
    "strided",
    SeparableCNN(networks.CLASSES, 3, features=(4, 5), blocks=(1, 2), dilations=(2, 1)),
    (
        networks.Stage(3),
        networks.Stage(4, dilation=2, residual=True),
        networks.Stage(5, dilation=2, stride=2, residual=True),
        networks.Stage(5, dilation=1, residual=True),
    ),
    4,
    (8, 6, 3),
)
CAUSAL = networks.Network(
    "causal",
    networks.TCN(4, (1, 2)),
    (networks.Stage(4, kernel=(1,)), *(networks.Stage(4, dilation=d, kernel=(3,), residual=True) for d in (1, 2))),
    3,
    (9, 2),
)
PLAIN = networks.Network("plain", DilatedCNN(networks.CLASSES, (3,), (2,), (2,)), (networks.Stage(3, dilation=2, pool=2),), 2, (6, 5, 2))


@pytest.mark.parametrize("network", [STRIDED, CAUSAL], ids=lambda network: network.name)
def test_torch_trains_the_same_network(network):
    pytest.importorskip("torch", reason="torch is not installed")
    values, stats = networks.initial_values(network.model, network)
    expected = networks.reference_losses(network, values, stats)
    for as_image in (False, True)[: 1 + (len(network.shape) == 2)]:
        step = torch_networks.torch_step(network, values, as_image=as_image, compiled=False)
        np.testing.assert_allclose([step(), step()], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (lambda loss, step: loss + 0.001, r"wrong: the losses of two steps are \d\.\d{6}, \d\.\d{6} instead of \d\.\d{6}, \d\.\d{6}"),
        (lambda loss, step: loss + 0.001 * (step == 2), r"wrong: the losses of two steps are"),
        (lambda loss, step: np.nan, r"wrong: the losses of two steps are nan, nan instead of"),
        (lambda loss, step: 1 / 0, r"failed: ZeroDivisionError: division by zero"),
        (lambda loss, step: loss if step < 4 else 1 / 0, r"failed: ZeroDivisionError: division by zero"),
    ],
    ids=["value", "gradient", "not a number", "raises", "raises while it is timed"],
)
def test_a_wrong_implementation_of_training_is_named_and_left_out(fault, text, monkeypatch, tmp_path, capsys):
    """Torch, which need not be installed, is played by the losses of the reference; its compiled variant is right."""
    expected = networks.reference_losses(PLAIN, *networks.initial_values(PLAIN.model, PLAIN))

    def torch_step(network, values, *, as_image, compiled):
        count = itertools.count(1)

        def step():
            number = next(count)
            loss = expected[min(number, 2) - 1]
            return loss if compiled else fault(loss, number)

        return step

    monkeypatch.setattr(train, "torch_step", torch_step)
    monkeypatch.setattr(common, "without_torch", lambda: "")
    monkeypatch.setattr(train, "networks", lambda batch: [PLAIN])
    json_file = tmp_path / "train.json"
    monkeypatch.setattr(sys, "argv", ["train", "--repeats=2", f"--json={json_file}", "--markdown"])
    assert train.main() == 1
    printed = capsys.readouterr().out
    (result,) = json.loads(json_file.read_text())["networks"]
    assert list(result["left_out"]) == ["torch eager"] and re.match(text, result["left_out"]["torch eager"])
    timed = [row["implementation"] for row in result["rows"] if row.get("examples_per_s", 0) > 0]
    assert timed == ["dilax", "dilax, lax", "flax.linen", "torch compile"]
    assert re.search(rf"\ntorch eager +left out, {text}", printed) and "dilax/torch, geometric mean of the times" in printed
    assert printed.endswith("\n1 contender was left out as wrong or failing; the lines above say why\n")


SMALL = {
    "separable_cnn": inference_networks.separable_cnn(1),
    "tcn": dataclasses.replace(inference_networks.tcn(1, 1, 3), shape=(2, 11, 3)),
    "meshnet": dataclasses.replace(inference_networks.meshnet(1), shape=(1, 4, 5, 3, 1)),
}


@pytest.mark.parametrize("name", SMALL)
def test_torch_infers_the_same(name):
    pytest.importorskip("torch", reason="torch is not installed")
    network = SMALL[name]
    expected = reference.in_float64(
        functools.partial(network.model.apply, train=False), inference_networks.nested(network.variables()), network.data()
    )
    for variant in inference.TORCH[:2]:
        made = inference.program(network, variant)
        contest.compare(made.to_numpy(made.run()), [expected], names=("y",), tolerance=1e-5)


def test_the_parameters_of_a_network_in_inference_are_those_of_the_model_in_the_order_of_its_layers():
    network = SMALL["meshnet"]
    variables = network.variables()
    assert [path[1:] for path in variables if path[-1] == "mean"] == [
        (f"ConvNormAct_{i}", "Norm_0", "BatchNorm_0", "mean") for i in range(len(network.model.dilations))
    ]
    created = network.model.init(jax.random.key(0), network.data(), train=False)
    assert jax.tree.map(jnp.shape, inference_networks.nested(variables)) == jax.tree.map(jnp.shape, created)
    assert all(np.unique(value).size == value.size for value in variables.values())


@pytest.mark.parametrize("name", ["lax", "auto", "folded, auto", "torch channels_last"])
def test_a_wrong_network_is_named_and_left_out_and_the_run_goes_on(name, monkeypatch, tmp_path, capsys):
    """Torch, which need not be installed, is played by "lax"."""
    network = inference_networks.Inference("tiny", SeparableCNN(3, 4, features=(4,), blocks=(1,)), (2, 5, 4, 3), lambda: None)
    original = inference.program

    def program(network, contender):
        made = original(network, "lax" if contender.startswith("torch") else contender)
        return dataclasses.replace(made, run=lambda: [1.01 * part for part in made.run()]) if contender == name else made

    monkeypatch.setattr(inference, "program", program)
    monkeypatch.setattr(inference, "NETWORKS", (network, dataclasses.replace(network, name="other", not_run=("lax",))))
    monkeypatch.setattr(common, "without_torch", lambda: "")
    json_file = tmp_path / "inference.json"
    assert inference.main(["--repeats=2", f"--json={json_file}", "--networks=tiny", "--markdown"]) == 1
    printed = capsys.readouterr().out
    (row,) = json.loads(json_file.read_text())["networks"]
    contenders = ["lax", "auto", "folded, auto", "torch contiguous", "torch channels_last", "torch compiled"]
    assert list(row["contenders"]) == [other for other in contenders if other != name]
    assert row["left_out"][name].startswith("wrong: the output differs from the float64 reference by 1.0e-02 of its largest value")
    assert f"    left out: {name}, wrong: the output differs" in printed
    assert ("wrong" in next(line for line in printed.splitlines() if line.startswith("tiny")).split()) == (not name.startswith("torch"))
    assert printed.endswith("\n1 contender was left out as wrong or failing; the lines above say why\n")


def test_a_network_that_has_nothing_to_fold_or_takes_too_long(monkeypatch, capsys):
    network = dataclasses.replace(SMALL["tcn"], not_run=("lax",))
    monkeypatch.setattr(inference, "NETWORKS", (network,))
    monkeypatch.setattr(common, "without_torch", lambda: "not installed")
    assert inference.main(["--repeats=1"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("tcn"))
    assert re.fullmatch(r"tcn +not run +[\d.]+ +- +not installed +- +- +-", line)


def test_instruction_sets():
    known = {
        "flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile\nflags : sse2\n": "AVX2, AVX-512, AVX512-BF16, AMX",
        "model name : avx512f\nflags : avx avx2 avx512_vnni\n": "AVX2",
        "flags : sse2\n": "none of AVX2, AVX-512, AVX512-BF16, AMX",
        "Features : asimd bf16\n": "unknown",
        "": "unknown",
    }
    assert {text: common.instruction_sets(text) for text in known} == known


def test_the_heading_names_the_machine(monkeypatch):
    read = pathlib.Path.read_text

    def read_text(path, **options):
        if str(path) != "/proc/cpuinfo":
            return read(path, **options)
        if not readable:
            raise PermissionError(13, "Permission denied", str(path))
        return "model name\t: A Processor \nflags : avx2\n"

    monkeypatch.setattr(pathlib.Path, "read_text", read_text)
    monkeypatch.setattr(common, "cores", lambda: 3)
    readable = True
    line = common.heading(common.environment())
    assert line.startswith("A Processor, 3 cores, instruction sets: AVX2; Python ") and "dilax_onednn " in line
    readable = False
    assert "instruction sets: unknown" in common.heading(common.environment())


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
        assert row["left_out"] == {}
    assert {"device", "cores", "instruction_sets", "python", "jax", "jaxlib", "torch", "dilax_onednn", "date"} <= set(
        written["environment"]
    )
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
    for kind, dtype, measure in itertools.product(KINDS, ("float32", "bfloat16"), ops.MEASURES):
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


def test_memory_that_cannot_be_measured_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(ops, "CASES", TINY[2:3])  # the other process does not know the case
    monkeypatch.setattr(ops, "MEASURES", ("forward",))
    monkeypatch.setattr(ops, "contenders", lambda case: ["lax", "auto"])
    peak_bytes = ops.peak_bytes
    monkeypatch.setattr(ops, "peak_bytes", lambda case, measure, name: peak_bytes(case, measure, name) if name == "auto" else 2**20)
    assert ops.main(["--memory", "--repeats=1"]) == 1
    printed = capsys.readouterr().out
    assert "    left out: auto (memory), failed: RuntimeError: the process that measures memory failed: " in printed
    assert "    peak of the process: lax 1.0 MiB; relative to it: lax 1.00\n" in printed
    assert printed.endswith("\n1 contender was left out as wrong or failing; the lines above say why\n")


def timers(calls):
    return {name: common.timer(call) for name, call in calls.items()}


def test_timing_in_turn():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(common.TURN_S)) for name in "abc"}
    times = common.interleave(timers(calls), repeats=4, budget_s=9)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert all(len(seconds) == 4 and min(seconds) >= common.TURN_S for seconds in times.values())
    slow = common.interleave(timers({"quick": lambda: None, "slow": lambda: sum(range(200_000))}), repeats=6, budget_s=9)
    assert {name: len(seconds) for name, seconds in slow.items()} == {"quick": 6, "slow": common.MIN_TURNS}
    spent = common.interleave(timers({"a": lambda: sum(range(200_000)), "b": lambda: sum(range(200_000))}), repeats=6, budget_s=0)
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
        (inference if "networks" in name else ops).main(arguments)
    assert str(error.value) == text
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_reports_an_error_in_one_line():
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.ops", "--cases=densse"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (process.returncode, process.stdout, process.stderr) == (2, "", f"error: {ERRORS['no case'][1]}\n")
