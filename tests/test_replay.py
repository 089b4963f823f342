"""A run that stops being finite leaves the step, and `train.replay` says where in it that began."""

import dataclasses
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import digits, refused, tiny

from train import loop, replay
from train.build import Setup, build
from train.data.batches import indices_of, train_batches
from train.step import TrainState
from train.tasks.base import Loss

KEY = jax.random.key(1)


def test_a_run_that_diverged_is_taken_up_to_its_last_step(tmp_path, capsys):
    config = tiny(**{"optim.lr": 1e17, "optim.name": "sgd", "optim.warmup_epochs": 0.0, "checkpoint_every_steps": 100})
    assert loop.run(config, tmp_path / "run") == 1
    step = int(re.search(r"not finite at step (\d+)", capsys.readouterr().err)[1])  # pyright: ignore[reportOptionalSubscript]
    record = json.loads((tmp_path / "run" / "replay" / "step.json").read_text())
    splits = digits()
    assert record["step"] == step
    batch = next(train_batches(splits.train, config.batch_size, seed=config.seed, start_step=step - 1))
    np.testing.assert_array_equal(np.stack([splits.train[i]["image"] for i in record["records"]]), batch["image"])
    first, second, cause, *_ = replay.replay(tmp_path / "run")
    assert first == f"step {step}, taken again from step 0; the state before it is in {tmp_path}/run/replay/state."
    assert second.startswith(f"batch: the training records {record['records'][0]}, {record['records'][1]}, ")
    assert re.search("is not finite|are not|the loss is not", cause) and "here" not in cause
    assert (tmp_path / "run" / "replay" / "state" / str(step - 1)).is_dir()
    assert replay.replay(tmp_path / "run", 1)[2:] == ["all values of this step are finite."]
    assert refused(lambda: replay.replay(tmp_path / "run", 45)) == f"--step=45 is not a step of {tmp_path / 'run'}; give 1 to 44."
    (tmp_path / "run" / "replay" / "step.json").write_text("{")
    assert refused(lambda: replay.replay(tmp_path / "run")).endswith("replay/step.json cannot be read; name the step with --step=N.")
    (tmp_path / "run" / "replay" / "step.json").unlink()
    assert "all its steps were finite" in refused(lambda: replay.replay(tmp_path / "run"))


def started(**changes: Any) -> tuple[Setup, TrainState, dict[str, Any]]:
    splits = digits()
    setup = build(tiny(**changes), splits.spec)
    batch = next(train_batches(splits.train, setup.config.batch_size, seed=0))
    return setup, setup.steps.init(setup.init()), batch


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("layer", ["ConvNormAct_0/DilatedConv_0", "ConvNormAct_1/DilatedConv_0", "head"])
def test_the_first_layer_that_overflows_is_named(layer, accumulate):
    setup, state, batch = started(**{"optim.accumulate": accumulate, "model.norm": "none"})
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 + 3e38 if jax.tree_util.keystr(path, simple=True, separator="/") == f"{layer}/kernel" else leaf,
        state.params,
    )
    found = replay.examine(setup, dataclasses.replace(state, params=params), batch, KEY)
    part = "part 1 of 2: " if accumulate > 1 else ""
    assert found[0].startswith(f"{part}forward, the first output that is not finite is that of {layer} (")
    assert len(found) == accumulate


def test_a_gradient_that_is_not_finite_is_found_from_the_loss_back(monkeypatch):
    setup, state, batch = started()
    loss = type(setup.task).loss

    def rooted(*args: Any, **kwargs: Any) -> Loss:
        found = loss(*args, **kwargs)
        return dataclasses.replace(found, sums={**found.sums, "loss": jnp.sqrt(0 * found.sums["loss"])})

    monkeypatch.setattr(type(setup.task), "loss", rooted)
    (line,) = replay.examine(setup, state, batch, KEY)
    assert line.startswith(
        "backward, from the loss, the first gradient that is not finite is that with respect to the output of the model ("
    )


def test_what_is_not_finite_before_the_step_is_named_first():
    setup, state, batch = started()
    state.params["head"]["bias"] = state.params["head"]["bias"] * jnp.nan
    assert replay.examine(setup, state, batch, KEY)[0] == "'params/head/bias' of the state is not finite before the step."


def test_the_records_of_a_step_are_those_of_its_batch():
    splits = digits()
    for step in (0, 30):
        batch = next(train_batches(splits.train, 64, seed=3, start_step=step))
        indices = indices_of(len(splits.train), 64, 3, step)
        np.testing.assert_array_equal(batch["image"], np.stack([splits.train[int(i)]["image"] for i in indices]))
