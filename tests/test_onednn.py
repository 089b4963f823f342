"""The native lowering: where it is taken and where not, its dtypes, its threads, and what is said if it is missing.

Its values are tested with those of the other lowerings, in test_functional.py and test_lowerings.py.
"""

import concurrent.futures
import dataclasses
import importlib
import os
import pathlib
import re
import subprocess
import sys
import threading
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import dilax
from dilax import lowerings
from dilax.lowerings import onednn
from dilax.plan import ConvPlan

CALL = "dilax_onednn_convolve"
installed = pytest.mark.skipif(not onednn.is_installed(), reason=onednn.status())
PLAN = ConvPlan(2, (12, 10), 8, 8, (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), 1, "float32")
LINE = ConvPlan(2, (64,), 8, 8, (3,), (1,), ((2, 2),), (2,), 1, "float32")
SOLID = ConvPlan(1, (8, 7, 9), 8, 8, (3, 3, 3), (1, 1, 1), ((1, 1), (1, 1), (1, 1)), (1, 1, 1), 1, "float32")


def changed(**fields: Any) -> ConvPlan:
    return dataclasses.replace(PLAN, **fields)


def draw(*shapes: tuple[int, ...], dtype: str = "float32") -> list[jax.Array]:
    rng = np.random.default_rng(11)
    return [jnp.asarray(rng.normal(0.2, 1.0, shape), dtype) for shape in shapes]


def three(plan: ConvPlan, lowering: str):
    """A function to the output and both gradients."""

    def run(x, kernel, y):
        output, pull_back = jax.vjp(lambda x, kernel: lowerings.convolve(x, kernel, plan, lowering), x, kernel)
        return output, *pull_back(y)

    return run


@pytest.fixture
def package(monkeypatch):
    """Sets what importing `dilax_onednn` gives: a module, or an error."""

    def set_it(found: object) -> None:
        monkeypatch.setenv("DILAX_NATIVE", "0" if found is None else "1")

        def load(name: str) -> object:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(onednn, "importlib", types.SimpleNamespace(import_module=load))
        onednn._imported.cache_clear()

    yield set_it
    monkeypatch.undo()
    onednn._imported.cache_clear()


OTHER = types.SimpleNamespace(INTERFACE=0, __version__="0.0.1")
MISSING = {
    "switched off": (None, "dilax-onednn is switched off by DILAX_NATIVE=0; unset that."),
    "absent": (
        ModuleNotFoundError("No module named 'dilax_onednn'", name="dilax_onednn"),
        "dilax-onednn is not installed; install it with pip install ./native from a checkout (Linux on x86-64).",
    ),
    "broken": (
        OSError("libgomp.so.1: cannot open shared object file"),
        "dilax-onednn cannot be used (libgomp.so.1: cannot open shared object file); install it with pip install ./native from a checkout "
        "(Linux on x86-64).",
    ),
    "another version": (
        OTHER,
        "dilax-onednn cannot be used (it is version 0.0.1, which belongs to another version of dilax); install it with "
        "pip install ./native from a checkout (Linux on x86-64).",
    ),
}


@pytest.mark.parametrize(("found", "line"), MISSING.values(), ids=MISSING)
def test_without_it_all_is_as_before_and_one_line_says_why(package, found, line):
    package(found)
    assert lowerings.onednn_status() == line
    assert not lowerings.supports("onednn", PLAN)
    assert all(dilax.select_lowering(PLAN, operation=operation) != "onednn" for operation in lowerings.OPERATIONS)
    x, kernel = draw(PLAN.x_shape, PLAN.kernel_shape)
    for call, start in (
        (lambda: dilax.dilated_conv(x, kernel, lowering="onednn"), "dilated_conv: lowering"),
        (lambda: dilax.use_lowering("onednn").__enter__(), "use_lowering: name"),
    ):
        with pytest.raises(dilax.UserError) as error:
            call()
        assert str(error.value) == f"{start}='onednn' cannot be used: {line}"


@installed
def test_what_was_traced_before_it_was_switched_off_still_compiles(monkeypatch):
    x, kernel = draw((1, 14, 11, 8), (3, 3, 8, 8))  # of sizes that no other test compiles
    traced = jax.jit(lambda x: dilax.dilated_conv(x, kernel, lowering="onednn")).trace(x)
    monkeypatch.setenv("DILAX_NATIVE", "0")
    expected = dilax.dilated_conv(x, kernel, lowering="lax")
    np.testing.assert_allclose(traced.lower().compile()(x), expected, rtol=1e-4, atol=1e-4)


DEPTHWISE = changed(input_size=(40, 30), c_in=32, c_out=32, groups=32)
WIDE = changed(input_size=(20, 16), c_in=64, c_out=64)
RULE = {
    "dense": (PLAN, (True, True, True)),
    "1x1": (changed(kernel_size=(1, 1), padding=((0, 0), (0, 0))), (True, True, True)),
    "depthwise": (dataclasses.replace(DEPTHWISE, dilation=(1, 1), padding=((1, 1), (1, 1))), (True, True, True)),
    "depthwise, many taps": (dataclasses.replace(DEPTHWISE, kernel_size=(5, 5), dilation=(1, 1)), (True, True, True)),
    "depthwise, dilated": (DEPTHWISE, (True, True, True)),
    "depthwise, dilated, strided": (dataclasses.replace(DEPTHWISE, stride=(2, 2)), (True, True, True)),
    "depthwise, unequal axes": (
        dataclasses.replace(DEPTHWISE, stride=(3, 2), dilation=(1, 3), padding=((0, 3), (4, 1)), kernel_size=(2, 3)),
        (True, True, True),
    ),
    "depthwise, padding beyond the reach": (
        dataclasses.replace(DEPTHWISE, dilation=(1, 1), padding=((9, 9), (0, 7))),
        (True, True, True),
    ),
    "depthwise, bfloat16": (dataclasses.replace(DEPTHWISE, dtype="bfloat16"), (True, True, True)),
    "depthwise, 77 channels": (dataclasses.replace(DEPTHWISE, c_in=77, c_out=77, groups=77), (True, True, True)),
    "depthwise, much padding": (dataclasses.replace(DEPTHWISE, dilation=(17, 17), padding=((17, 17),) * 2), (True, True, True)),
    "two outputs per channel": (changed(groups=4, c_in=4, input_size=(40, 30)), (False, False, False)),
    "groups": (changed(groups=2), (True, True, True)),
    "1-D": (LINE, (True, True, True)),
    "1-D, in rows, uneven": (dataclasses.replace(LINE, c_in=12, padding=((4, 6),)), (True, True, True)),
    "1-D, in rows, large dilation": (
        dataclasses.replace(LINE, input_size=(384,), c_out=16, padding=((128, 256),), dilation=(128,)),
        (True, True, True),
    ),
    "1-D, in rows, groups": (
        dataclasses.replace(LINE, c_in=32, c_out=48, groups=2, padding=((32, 0),), dilation=(16,)),
        (True, True, True),
    ),
    "1-D, large dilation, a rest": (
        dataclasses.replace(LINE, input_size=(390,), padding=((128, 256),), dilation=(128,)),
        (True, True, True),
    ),
    "1-D, large dilation, padding of half of it": (
        dataclasses.replace(LINE, input_size=(384,), padding=((60, 68),), dilation=(128,)),
        (True, True, True),
    ),
    "1-D, groups": (dataclasses.replace(LINE, groups=2), (True, True, True)),
    "1-D, depthwise": (dataclasses.replace(LINE, c_in=32, c_out=32, groups=32), (True, True, True)),
    "1-D, depthwise, causal": (
        dataclasses.replace(LINE, c_in=32, c_out=32, groups=32, padding=((40, 0),), dilation=(20,)),
        (True, True, True),
    ),
    "1-D, depthwise, dilated beyond the input": (
        dataclasses.replace(LINE, c_in=16, c_out=16, groups=16, padding=((160, 0),), dilation=(80,)),
        (True, True, True),
    ),
    "1-D, depthwise, with gaps": (
        dataclasses.replace(LINE, c_in=16, c_out=16, groups=16, kernel_size=(2,), stride=(4,), dilation=(3,)),
        (True, True, True),
    ),
    "1-D, depthwise, long": (
        dataclasses.replace(LINE, input_size=(1500,), c_in=12, c_out=12, groups=12, padding=((40, 0),), dilation=(20,)),
        (True, True, True),
    ),
    "1-D, depthwise, one example": (
        dataclasses.replace(LINE, batch=1, c_in=150, c_out=150, groups=150, padding=((40, 0),), dilation=(20,)),
        (True, True, True),
    ),
    "3-D": (SOLID, (True, True, True)),
    "3-D, depthwise": (dataclasses.replace(SOLID, groups=8), (True, True, True)),
    "3-D, depthwise, bfloat16": (dataclasses.replace(SOLID, groups=8, dtype="bfloat16"), (True, True, True)),
    "3-D, depthwise, dilated, strided": (
        dataclasses.replace(SOLID, groups=8, stride=(1, 2, 3), dilation=(2, 1, 3), padding=((2, 2), (0, 1), (3, 3))),
        (True, True, True),
    ),
    "little padding": (WIDE, (True, True, True)),
    "much padding": (dataclasses.replace(WIDE, dilation=(17, 15), padding=((17, 17), (15, 15))), (True, True, False)),
    "bfloat16": (dataclasses.replace(WIDE, dtype="bfloat16"), (True, True, True)),
    "bfloat16, many channels": (dataclasses.replace(WIDE, dtype="bfloat16", c_in=512), (True, True, True)),
    "bfloat16, many channels, some padding": (changed(dtype="bfloat16", c_in=512), (False, True, True)),
    "stride, few channels": (dataclasses.replace(LINE, c_in=3, kernel_size=(16,), stride=(4,)), (True, False, True)),
    "float64": (changed(dtype="float64"), (False, False, False)),
    "cropped": (changed(padding=((-1, 2), (2, 2))), (False, False, False)),
    "empty": (changed(batch=0), (False, False, False)),
    "more than 2 GB": (changed(batch=2**20), (False, False, False)),
}


@installed
@pytest.mark.parametrize(("plan", "expected"), RULE.values(), ids=RULE)
def test_the_rule(plan, expected):
    chosen = [dilax.select_lowering(plan, operation=operation) for operation in lowerings.OPERATIONS]
    assert tuple(name == "onednn" for name in chosen) == expected
    elsewhere: list[Any] = [{"native": False}, {"several": True}, {"platform": "tpu"}, {"platform": "cuda"}]
    for options in elsewhere:
        assert "onednn" not in [dilax.select_lowering(plan, operation=operation, **options) for operation in lowerings.OPERATIONS]


@installed
@pytest.mark.parametrize("plan", [plan for plan, expected in RULE.values() if any(expected)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 8e-3), ("float16", 1e-3)])
def test_every_dtype_is_as_close_as_its_rounding(plan, dtype, tolerance):
    """Against sums in float64."""
    plan = dataclasses.replace(plan, dtype=dtype)
    operands = draw(plan.x_shape, plan.kernel_shape, plan.y_shape, dtype=dtype)
    got = jax.jit(three(plan, "onednn"))(*operands)
    with jax.enable_x64(True):
        wide = dataclasses.replace(plan, dtype="float64")
        expected = three(wide, "lax")(*(jnp.asarray(np.asarray(operand, np.float64)) for operand in operands))
    for actual, exact in zip(got, expected):
        assert actual.dtype == dtype
        exact = np.asarray(exact)
        np.testing.assert_allclose(np.asarray(actual, np.float64), exact, rtol=0, atol=tolerance * np.abs(exact).max())


@installed
def test_a_large_dilation_is_computed_in_rows():
    names = ("in rows, large dilation", "large dilation, a rest", "large dilation, padding of half of it")
    for name, expected in zip(names, (True, False, False)):
        plan = RULE[f"1-D, {name}"][0]
        assert [onednn._in_rows(operation, plan) != plan for operation in ("output", "input_gradient")] == [expected] * 2


@installed
def test_bfloat16_is_rounded_as_elsewhere():
    """To the nearest, of two equally near to the even one; for one product, which is exact in float32, also to the bit."""
    plan = changed(dtype="bfloat16", groups=21, c_in=21, c_out=21, kernel_size=(1, 1), padding=((0, 0), (0, 0)))
    x, kernel = draw(plan.x_shape, plan.kernel_shape, dtype="bfloat16")
    x = x.at[0, 0].set(jnp.nan).at[0, 1].set(jnp.inf).at[0, 2].set(-3.39e38).at[0, 3].set(1 + 2**-7)
    kernel = kernel.at[..., ::2].set(1 + 2**-7)  # whose product with itself lies between two
    expected = (x.astype(jnp.float32) * kernel.astype(jnp.float32)).astype(jnp.bfloat16)
    got = jax.jit(lambda x, kernel: lowerings.convolve(x, kernel, plan, "onednn"))(x, kernel)
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(expected, np.float32))


def calls(text: str) -> int:
    return text.count(f"@{CALL}") + text.count(f'"{CALL}"')


@installed
def test_a_program_for_one_device_calls_it_and_an_exported_one_does_not():
    operands = draw(PLAN.x_shape, PLAN.kernel_shape, PLAN.y_shape)
    for lowering in ("auto", "onednn"):
        run = jax.jit(three(PLAN, lowering))
        assert calls(run.lower(*operands).as_text()) == 3
        for platforms in (("cpu",), ("cpu", "cuda", "tpu")):
            exported = export.export(run, platforms=platforms)(*map(jax.typeof, operands))
            assert calls(exported.mlir_module()) == 0
            for actual, expected in zip(exported.call(*operands), run(*operands)):
                np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


WITHOUT = """
import sys
sys.modules["dilax_onednn"] = None  # as if it were not installed
import jax, numpy as np
from jax import export
exported = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[2], exported.call(*np.load(sys.argv[3]).values()))
"""


@installed
def test_an_exported_model_runs_where_it_is_not_installed(tmp_path):
    model = dilax.models.create("dilated_cnn", num_classes=3, features=(8,), dilations=(2,), pools=(1,))
    (x,) = draw((2, 12, 12, 3))
    variables = model.init(jax.random.key(0), x, train=False)
    run = jax.jit(lambda x: model.apply(variables, x, train=False))
    assert calls(run.lower(x).as_text())
    (tmp_path / "model").write_bytes(export.export(run)(jax.typeof(x)).serialize())
    np.savez(tmp_path / "x.npz", x)
    paths = [str(tmp_path / name) for name in ("model", "y.npy", "x.npz")]
    subprocess.run([sys.executable, "-c", WITHOUT, *paths], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), run(x), rtol=1e-4, atol=1e-5)


@installed
@pytest.mark.parametrize("axis", [0, 1])
def test_each_device_calls_it_for_its_part(axis):
    mesh = jax.make_mesh((4,), ("d",))
    operands = draw((4, 16, 16, 8), (3, 3, 8, 8), (4, 16, 16, 8))
    plan = dataclasses.replace(PLAN, batch=4, input_size=(16, 16))
    spread = NamedSharding(mesh, P(*(["d"] if axis == 0 else [None, "d"])))
    x, y = (jax.device_put(operands[i], spread) for i in (0, 2))
    program = jax.jit(three(plan, "auto")).lower(x, operands[1], y).compile()
    text = program.as_text() or ""
    assert CALL in text
    assert "all-gather" not in text
    for actual, expected in zip(program(x, operands[1], y), three(plan, "lax")(*operands)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@installed
def test_partitioned_programs_are_cached_apart(package):
    """XLA asks for the part of a device only when it compiles, so that the name of an operation must say what that would hold."""
    x = jax.device_put(draw(PLAN.x_shape)[0], NamedSharding(jax.make_mesh((2,), ("d",)), P("d")))
    (kernel,) = draw(PLAN.kernel_shape)

    def name() -> str:
        text = jax.jit(lambda x: lowerings.convolve(x, kernel, PLAN, "auto")).lower(x).as_text()
        return re.findall(r"dilated_conv_[0-9a-f]{16}", text)[0]

    names = [name(), name()]
    package(MISSING["absent"][0])
    names += [name(), name()]
    assert names[0] == names[1] != names[2] == names[3]


@installed
@pytest.mark.parametrize("plan", [PLAN, DEPTHWISE], ids=["oneDNN", "loop"])
def test_callers_do_not_disturb_each_other(plan):
    """Threads that call at once get the values, to the bit, of one that calls alone."""
    plans = [dataclasses.replace(plan, batch=batch) for batch in range(1, 9)]
    operands = [draw(plan.x_shape, plan.kernel_shape, plan.y_shape) for plan in plans]
    programs = [jax.jit(three(plan, "onednn")) for plan in plans]
    alone = [jax.device_get(program(*arrays)) for program, arrays in zip(programs, operands)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            together = pool.map(lambda program, arrays: jax.device_get(program(*arrays)), programs, operands)
            for actual, expected in zip(together, alone):
                jax.tree.map(np.testing.assert_array_equal, actual, expected)


@installed
@pytest.mark.parametrize("plan", [changed(kernel_size=(1, 1), padding=((0, 0), (0, 0))), DEPTHWISE], ids=["oneDNN", "loop"])
def test_tiny_numbers_are_those_of_xla_whichever_thread_calls(plan):
    """Products too small for a normal number are zero on XLA's threads."""
    x, kernel = jnp.full(plan.x_shape, 1e-20), jnp.full(plan.kernel_shape, 1e-20)
    run = jax.jit(lambda x, kernel: lowerings.convolve(x, kernel, plan, "onednn"))
    assert not lowerings.convolve(x, kernel, plan, "lax").any()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for y in [run(x, kernel), *pool.map(lambda _: run(x, kernel), range(32))]:
            np.testing.assert_array_equal(y, 0)


SETTINGS = """
import jax, jax.numpy as jnp, dilax
print(float(jax.grad(lambda k: dilax.dilated_conv(jnp.ones((2, 12, 10, 8)), k, lowering="onednn").sum())(jnp.ones((3, 3, 8, 8))).sum()))
"""


@installed
@pytest.mark.parametrize("setting", ["OMP_THREAD_LIMIT=1", "OMP_DYNAMIC=true", "OMP_NUM_THREADS=5"])
def test_settings_of_openmp_do_not_stop_it(setting):
    """oneDNN waits for all threads that it counts on, and OpenMP may give fewer."""
    environment = {**os.environ, **dict([setting.split("=")])}
    done = subprocess.run([sys.executable, "-c", SETTINGS], env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert float(done.stdout) == 2 * 8 * 8 * (3 * 12 - 2) * (3 * 10 - 2)


@installed
@pytest.mark.parametrize(("chosen", "spins"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")])
def test_its_threads_sleep_soon_unless_the_user_has_chosen(chosen, spins):
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import os; before = dict(os.environ); import dilax.lowerings as l; l.onednn_status(); assert dict(os.environ) == before"
    environment |= {"OMP_DISPLAY_ENV": "verbose", **chosen}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


TEAMS = 4  # the sets of threads that it has at most: of three threads that call, and of one that calls for all others
CORES = """
import os, pathlib, jax, jax.numpy as jnp, dilax
mask = lambda: {task.name: os.sched_getaffinity(int(task.name)) for task in pathlib.Path("/proc/self/task").iterdir()}
allowed, before = os.sched_getaffinity(0), mask()
for _ in range(20):
    jax.block_until_ready(dilax.dilated_conv(jnp.ones((2, 64, 64, 8)), jnp.ones((3, 3, 8, 8)), lowering="onednn"))
after = mask()
assert all(after.get(task, allowed) == allowed for task in before) and os.sched_getaffinity(0) == allowed
fewer = [cores for cores in after.values() if cores != allowed]
assert all(len(allowed - cores) == 1 for cores in fewer), fewer
print(len(fewer), len(allowed))
"""


@installed
def test_only_its_other_threads_leave_a_core_to_the_one_that_calls():
    done = subprocess.run([sys.executable, "-c", CORES], check=True, capture_output=True, text=True, timeout=120)
    fewer, allowed = map(int, done.stdout.split())
    assert fewer in [teams * (allowed - 1) for teams in range(1, TEAMS + 1)]
    bound = {**os.environ, "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    code = CORES.replace("all(len(allowed - cores) == 1 for cores in fewer)", "True")
    subprocess.run([sys.executable, "-c", code.replace("assert all(after", "all(after")], env=bound, check=True, timeout=120)


@installed
def test_many_callers_share_its_threads():
    """Threads of XLA, of eight devices, and of the user."""
    operands = draw(PLAN.x_shape, PLAN.kernel_shape, PLAN.y_shape)
    tasks = pathlib.Path("/proc/self/task")
    run = jax.jit(three(PLAN, "onednn"))
    for device in jax.devices():  # XLA's own threads are there after that
        jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.device_put(operands[0], device)))
    before = len([*tasks.iterdir()])
    for device in jax.devices():
        jax.block_until_ready(run(*jax.device_put(operands, device)))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(lambda _: jax.block_until_ready(run(*operands)) and threading.get_ident(), range(64))}) > 1
        assert len([*tasks.iterdir()]) - before - 8 <= TEAMS * (len(os.sched_getaffinity(0)) - 1) + 1


@installed
def test_operands_of_any_layout():
    """XLA may keep what is computed within a program in an order of its choice, which is not that of the call."""
    operands = draw(PLAN.x_shape, PLAN.kernel_shape, PLAN.y_shape)
    turned = [jnp.asarray(array.transpose()) for array in operands]
    run = jax.jit(lambda *arrays: [result.transpose() for result in three(PLAN, "onednn")(*(array.transpose() for array in arrays))])
    assert calls(run.lower(*turned).as_text()) == 3
    for actual, expected in zip(run(*turned), three(PLAN, "lax")(*operands)):
        np.testing.assert_allclose(actual.transpose(), expected, rtol=1e-4, atol=1e-4)


@installed
def test_donated_arrays():
    x, kernel = draw(PLAN.x_shape, PLAN.kernel_shape)
    run = jax.jit(lambda x, kernel: dilax.dilated_conv(x, kernel, dilation=2, lowering="onednn"), donate_argnums=0)
    y, expected = jnp.array(x), x
    for _ in range(4):
        given, y = y, run(y, kernel)
        assert given.is_deleted()
        expected = dilax.dilated_conv(expected, kernel, dilation=2, lowering="lax")
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4 * float(jnp.abs(expected).max()))


@installed
@pytest.mark.parametrize("dims", [(0, None, 0), (None, 0, 0), (0, 0, 0), (0, 0, None)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_what_vmap_makes_of_it(dims, groups):
    """Some of it is a convolution of a kind that oneDNN is not used for, or has no implementation of."""
    plan = changed(groups=groups)
    mapped = [(3, *shape) if dim == 0 else shape for shape, dim in zip((plan.x_shape, plan.kernel_shape, plan.y_shape), dims)]
    operands = draw(*mapped)
    for actual, expected in zip(*(jax.jit(jax.vmap(three(plan, name), dims))(*operands) for name in ("onednn", "lax"))):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@installed
def test_without_jit():
    operands = draw(PLAN.x_shape, PLAN.kernel_shape, PLAN.y_shape)
    with jax.disable_jit():
        for actual, expected in zip(three(PLAN, "onednn")(*operands), three(PLAN, "lax")(*operands)):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


WRONG = {
    "a size of 0": ((0, 0, 8, 8, 1), "a size is not positive"),
    "no groups": ((0, 2, 8, 8, 0), "a size is not positive"),
    "groups that do not divide": ((0, 2, 8, 8, 3), "the groups do not divide the channels"),
    "other arrays": ((0, 3, 8, 8, 1), "the arrays do not have the stated sizes"),
}


@installed
@pytest.mark.parametrize(("numbers", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_call_is_an_error_of_xla(numbers, message):
    package = importlib.import_module("dilax_onednn")
    x, kernel = draw(PLAN.x_shape, PLAN.kernel_shape)
    sizes = (*numbers, *(12, 10), *(3, 3), *(12, 10), *(1, 1), *(2, 2), *(2, 2), *(2, 2))
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        package.convolve(x, kernel, PLAN.y_shape, sizes).block_until_ready()


CACHED = """
import sys, jax, jax.numpy as jnp, dilax
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
run = jax.jit(lambda x, k: dilax.dilated_conv(x, k, dilation=2, lowering="onednn"))
print(float(run(jnp.ones((1, 9, 9, 4)), jnp.ones((3, 3, 4, 4))).sum()))
"""


@installed
def test_programs_that_call_it_are_cached(tmp_path):
    printed, entries = [], []
    for _ in range(2):
        printed.append(subprocess.run([sys.executable, "-c", CACHED, str(tmp_path)], check=True, capture_output=True, text=True).stdout)
        entries.append(sorted(path.name for path in tmp_path.iterdir() if path.name.endswith("-cache")))
    assert printed[0] == printed[1]
    assert entries[0] == entries[1] != []
