"""Every way to use eight devices equals one device: steps of each task x meshes x parts of a batch; what a mesh cannot be."""

import functools
import pathlib
import re
import sys
import tempfile
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict
from selection import slow
from task_cases import CASES
from tiny_runs import refused, tiny

from dilax.loading import leaves_with_paths
from train import checkpoint, evaluate, loop, parallel, tasks
from train.build import Setup, build
from train.config import model_config, task_class
from train.data import Splits, train_batches
from train.folder import write_config

KEY = jax.random.key(7)
TEMPORARY = tempfile.TemporaryDirectory(prefix="dilax-parallel-", ignore_cleanup_errors=True)
MODES: dict[str, dict[str, Any]] = {
    "data": {},
    "data and space": {"mesh.space": 2},
    "data and fsdp": {"mesh.data": 2, "mesh.fsdp": 4},
    "all three": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.space": 2},
    "pmap": {"parallel": "pmap"},
}
# What a share of a batch, or of a sum, could get wrong: augmentation, dropout, batch statistics, clipping, averages.
HARD = {
    "augment.flip": True,
    "augment.mixup": 0.2,
    "augment.crop_padding": 1,
    "optim.clip_norm": 0.5,
    "optim.ema_decay": 0.9,
    "optim.name": "adamw",
    "optim.lr": 3e-3,
    "total_epochs": 20.0,
}
# A case of each other task, its changes and those of its model: sizes along space that two divides.
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "masks": ({}, {"norm": "batch", "dropout": 0.2}),
    "sounds": ({"sequence.length": 40}, {"dropout": 0.2}),
    "pixels": ({}, {"dropout": 0.2}),
    "table": ({}, {"dropout": 0.2}),
    "text": ({}, {"dropout": 0.2}),
    "waves": ({}, {}),
    "mixtures": ({}, {}),
    "boxes": ({}, {}),
    "photographs": ({}, {}),
    "recordings": ({"sequence.length": 22}, {"dropout": 0.2}),
}


@pytest.fixture(autouse=True)
def _small_arrays_are_spread(monkeypatch):
    monkeypatch.setattr(parallel, "SMALL", 16)


@functools.cache
def splits_of(case: str) -> Splits:
    config = config_of(case)
    return task_class(config.task).open(config)


def config_of(case: str, **changes: Any) -> ConfigDict:
    if case == "digits":
        config = tiny(**{**HARD, "batch_size": 16, **changes})
        config.model = ConfigDict(model_config("dilated_cnn", features=(4, 8), dilations=(1, 2), pools=(1, 2), dropout=0.2))
        return config
    own, model = TASKS[case]
    config = CASES[case].config(pathlib.Path(TEMPORARY.name) / case, batch_size=16, **{"optim.ema_decay": 0.9, **own, **changes})
    config.model.update(model)
    return config


def setup_of(case: str, **changes: Any) -> Setup:
    return build(config_of(case, **changes), splits_of(case).spec)


@functools.cache
def initial(case: str) -> Any:
    """Variables, which no way to use devices changes."""
    return jax.device_get(setup_of(case).init())


@functools.cache
def on_one_device(case: str, parts: int, steps: int, quantise: str = "") -> tuple[Any, list[Any]]:
    """The state after steps of the pure function, without any placement, and the sums of each."""
    setup = setup_of(case, **{"optim.accumulate": parts, "quantise": quantise})
    state, step = setup.steps.init(initial(case)), jax.jit(setup.steps.train)
    found = []
    for batch in batches(case, steps):
        state, sums = step(state, batch, KEY)
        found.append(jax.device_get(sums))
    return jax.device_get(state), found


def batches(case: str, steps: int) -> list[dict[str, np.ndarray]]:
    return [batch for _, batch in zip(range(steps), train_batches(splits_of(case).train, 16, seed=3))]


def on_eight_devices(case: str, steps: int, **changes: Any) -> tuple[Any, list[Any]]:
    setup = setup_of(case, **changes)
    state, found = setup.parallel.put(setup.steps.init(initial(case))), []
    for batch in batches(case, steps):
        state, sums = setup.parallel.train(state, setup.parallel.put_batch(batch), KEY)
        found.append(jax.device_get(setup.parallel.get(sums)))
    return setup.parallel.get(state), found


def assert_close(got: Any, expected: Any, tolerance: float) -> None:
    for (path, a), (_, b) in zip(leaves_with_paths(got), leaves_with_paths(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=path)


def assert_same_training(got: tuple[Any, list[Any]], expected: tuple[Any, list[Any]]) -> None:
    assert_close(got[1], expected[1], 2e-3)
    for name in ("params", "average", "average_stats", "collections"):
        assert_close(getattr(got[0], name), getattr(expected[0], name), 2e-3)


# A few tasks run on the hardest mesh, which includes the other ways to split, and one under pmap as the digits do; the others with -m slow.
STEPPED = [("digits", 2, mode) for mode in MODES] + [(case, 1, "all three") for case in ("masks", "text", "mixtures")]
STEPPED += [("masks", 1, "pmap")]
OTHERS = [(case, 1, mode) for case in ("digits", *TASKS) for mode in MODES if (case, 1, mode) not in STEPPED]


@pytest.mark.parametrize(("case", "parts", "mode"), [*STEPPED, *slow(*OTHERS)])
def test_steps_equal_those_of_one_device(case, parts, mode):
    steps = 20 if case == "digits" else 10
    got = on_eight_devices(case, steps, **MODES[mode], **{"optim.accumulate": parts})
    assert_same_training(got, on_one_device(case, parts, steps))


@pytest.mark.parametrize("mode", ["data", *slow("all three", "pmap")])
def test_training_for_int8_equals_that_of_one_device(mode):
    """Each example is rounded by itself, so that how a batch is spread does not matter."""
    steps = 4  # a number on the border between two levels is rounded to either, so that longer training may differ
    plain, rounded = (on_one_device("digits", 1, steps, quantise) for quantise in ("", "int8"))
    got = on_eight_devices("digits", steps, **MODES[mode], quantise="int8")
    assert_close(got[1], rounded[1], 3e-3)
    assert_close(got[0].params, rounded[0].params, 1e-4)
    with pytest.raises(AssertionError):  # the rounding is seen, as one of a whole share of a batch would be
        assert_close(got[0].params, plain[0].params, 1e-4)


def test_the_cases_are_of_every_task():
    assert {task_class(config_of(case).task) for case in ("digits", *TASKS)} == {*tasks.TASKS.values()}


def test_a_state_is_spread_leaf_by_leaf():
    state, _ = on_eight_devices("digits", 1, **MODES["data and fsdp"])
    for tree in (state.params, state.average, state.opt_state):
        leaves = dict(leaves_with_paths(tree))
        spread = [leaf for leaf in leaves.values() if leaf.size >= parallel.SMALL and any(size % 4 == 0 for size in leaf.shape)]
        assert len(spread) >= 2
        for leaf in leaves.values():
            parts = 4 if any(leaf is one for one in spread) else 1
            assert {shard.data.size * parts for shard in leaf.addressable_shards} == {leaf.size}


def test_only_parameters_are_gathered():
    """Activations stay where they are; a parameter is gathered once, for all parts of a batch."""
    setup = setup_of("digits", **MODES["all three"], **{"lowering": "lax", "optim.accumulate": 2})
    state, batch = setup.parallel.put(setup.steps.init(initial("digits"))), setup.parallel.put_batch(batches("digits", 1)[0])
    program = setup.parallel.train.lower(state, batch, KEY).compile().as_text()
    gathered = [tuple(map(int, sizes.split(","))) for sizes in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", program)]
    spread = [leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.sharding.spec != PartitionSpec()]
    assert sorted(gathered) == sorted(spread)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 8, 16), (None, None, None, "fsdp")),
        ((3, 3, 16, 8), (None, None, "fsdp")),
        ((8, 8), (None, "fsdp")),
        ((7, 9), ()),
        ((4,), ()),
    ],
)
def test_the_largest_dimension_that_divides_is_split(shape, spec):
    assert parallel.spec_of(shape, 4) == PartitionSpec(*spec)
    assert parallel.spec_of(shape, 1) == PartitionSpec()


def test_small_arrays_are_not_spread(monkeypatch):
    monkeypatch.undo()
    assert parallel.spec_of((3, 3, 16, 16), 4) == PartitionSpec()
    assert parallel.spec_of((3, 3, 32, 64), 4) == PartitionSpec(None, None, None, "fsdp")


def test_space_is_spread_behind_augmentation():
    setup = setup_of("masks", **MODES["all three"])
    batch = setup.parallel.put_batch(batches("masks", 1)[0])
    spread = jax.jit(parallel.devices_of_mesh(setup.task.spatial, parallel.make_mesh({"data": 2, "fsdp": 2, "space": 2})).spread)(batch)
    for name in ("image", "label"):
        assert batch[name].sharding.spec == PartitionSpec(("data", "fsdp"))
        assert spread[name].sharding.spec == PartitionSpec(("data", "fsdp"), "space")


def test_saves_move_between_modes_bit_for_bit(tmp_path):
    """What is saved by devices that each hold a part is restored by others, and by one device."""
    setup = setup_of("digits", **MODES["data and fsdp"])
    state, _ = on_eight_devices("digits", 2, **MODES["data and fsdp"])
    expected = jax.device_get(state)
    like = jax.eval_shape(setup.steps.init, setup.shapes)
    targets = {mode: setup_of("digits", **changes).parallel.shardings(like) for mode, changes in MODES.items()}
    targets["one device"] = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    with checkpoint.Store(tmp_path / "first", run="a") as store:
        store.save(2, state)
        store.wait()
        for target in targets.values():
            restored = store.restore(like, target)
            assert restored is not None
            assert restored[0] == 2
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored[1]), expected)
            with checkpoint.Store(tmp_path / "again", run="a") as other:
                other.replace(2, restored[1])
                assert other.meta(2)["checksum"] == store.meta(2)["checksum"]


MESHES = {
    "two that take the rest": ({"mesh.fsdp": -1}, "config.mesh.data=-1, config.mesh.fsdp=-1, config.mesh.space=1: only one axis can take "),
    "no divisor": (
        {"mesh.fsdp": 3},
        "config.mesh.data=-1, config.mesh.fsdp=3, config.mesh.space=1: 8 devices cannot be divided by 3; choose ",
    ),
    "too few": ({"mesh.data": 2}, "config.mesh.data=2, config.mesh.fsdp=1, config.mesh.space=1: that makes 2 devices, and there are 8; "),
    "too many": ({"mesh.data": 8, "mesh.space": 2}, "config.mesh.data=8, config.mesh.fsdp=1, config.mesh.space=2: that makes 16 devices, "),
    "none": ({"mesh.space": 0}, "config.mesh.data=-1, config.mesh.fsdp=1, config.mesh.space=0: an axis of 0 devices is impossible; "),
    "negative": ({"mesh.space": -2}, "config.mesh.space=-2 is out of range; give a number of -1 or more."),
    "pmap": ({"mesh.space": 2, "parallel": "pmap"}, 'config.parallel="pmap" spreads the batch alone, not config.mesh.space=2; use '),
    "batch": ({"mesh.fsdp": 2, "batch_size": 12}, "config.batch_size=12 cannot be spread over 8 devices; use a multiple, such as 8."),
    "batch in parts": (
        {"mesh.space": 2, "batch_size": 12, "optim.accumulate": 2},
        "config.batch_size=12 cannot be spread over 4 devices in 2 parts; use a multiple, such as 8.",
    ),
}


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_that_cannot_be_is_refused(name):
    changes, message = MESHES[name]
    assert refused(lambda: setup_of("digits", **changes)).startswith(message)


def test_a_size_that_space_does_not_divide_is_refused(monkeypatch):
    setup = setup_of("masks", **{"mesh.space": 8, "mesh.data": 1})
    state = setup.parallel.put(setup.steps.init(initial("masks")))
    assert refused(lambda: setup.parallel.train(state, setup.parallel.put_batch(batches("masks", 1)[0]), KEY)) == (
        "config.mesh.space=8 cannot split the 12 positions of 'image' along its first axis of space or time; choose a divisor of 12, or data "
        "of another size."
    )


def test_nothing_is_written_for_sizes_that_space_does_not_divide(tmp_path):
    config = tiny(**{"mesh.space": 8, "mesh.data": 1, "augment.crop_padding": 0, "data.image_size": 9})
    assert refused(lambda: loop.run(config, tmp_path / "run")).startswith("config.mesh.space=8 cannot split the 9 positions of 'image' ")
    assert not (tmp_path / "run" / "config.json").exists() and not (tmp_path / "run" / "checkpoints").exists()


def test_the_rows_of_a_share_are_read():
    """Every process reads the rows of its devices; here one has all."""
    setup = setup_of("digits", **MODES["all three"])
    np.testing.assert_array_equal(setup.parallel.share, np.arange(16))


def test_a_run_is_scored_on_other_devices(tmp_path, monkeypatch, capsys):
    """The mesh of a run on six devices does not fit eight; a note says so, and the scores are the same."""
    workdir = tmp_path / "run"
    config = config_of("digits", **{"total_epochs": 0.05, "mesh.data": 2, "mesh.fsdp": 4})
    assert loop.run(config, workdir) == 0
    assert "device: 8 cpu, jit over data=2, fsdp=4, float32" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={workdir}"])
    evaluate.main()
    first = capsys.readouterr()
    config["mesh"].update(data=3, fsdp=2)
    write_config(workdir, config, 5)
    capsys.readouterr()
    evaluate.main()
    second = capsys.readouterr()
    assert (
        "note: config.mesh of the run (data=3, fsdp=2, space=1) does not fit the 8 device(s) here; they share each batch.\n" in second.err
    )
    assert "note" not in first.err
    assert second.out == first.out
