"""Tiny runs on 8x8 digits, in this process or in processes of their own, and what may happen to their folders."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from dilax.errors import UserError
from train import checkpoint, folder
from train.build import build, status_of
from train.config import default_config, model_config, task_class
from train.data import Splits
from train.folder import read_run
from train.tasks.classification import Classification

ROOT = pathlib.Path(__file__).parents[1]
METRICS = {"test/accuracy": 0.8125, "test/loss": 0.5312}  # of `make_run`
# As many virtual devices as conftest.py asks for: only on the same devices do a killed process and an unbroken one agree to the bit.
ENVIRONMENT = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
METRICS = {"test/accuracy": 0.8125, "test/loss": 0.5312}
# A config file whose variant is a dict of changes.
CONFIG_FILE = """
import ast
from tiny_runs import tiny
def get_config(changes="{}"):
    return tiny(**ast.literal_eval(changes))
"""


def tiny(**changes: Any) -> ConfigDict:
    """8x8 digits, a network of a few hundred parameters, 44 steps."""
    config = default_config("tiny")
    config.data.name = "digits8x8"
    config.model = ConfigDict(model_config("dilated_cnn", features=(4, 6), dilations=(1, 2), pools=(2, 1), dropout=0.2))
    config.batch_size, config.total_epochs, config.log_every_steps, config.checkpoint_every_steps = 64, 2.2, 5, 7
    config.optim.update(lr=0.01, ema_decay=0.9)
    config.augment.crop_padding = 1
    config.report = False
    config.update_from_flattened_dict(changes)
    return config


def make_run(config: Any, workdir: pathlib.Path, *, finished: bool = True, seed: int = 0, scale: float = 1.0) -> pathlib.Path:
    """A run with random weights of a mean size of about `scale`, as `loop.run` leaves it."""
    setup, rng = build(config, task_class(config.task).open(config).spec), np.random.default_rng(seed)
    variables = jax.tree.map(lambda leaf: np.abs(scale * rng.normal(size=leaf.shape)).astype(leaf.dtype), setup.shapes)
    with folder.open_folder(config, workdir):
        status = folder.write_status(workdir, finished=False, **status_of(setup))
        with checkpoint.Store(workdir / "best", run=status["run"]) as best:
            best.save(7, variables, {"validation/accuracy": 0.75, "validation/loss": 0.625})
        folder.write_status(workdir, step=12, train_seconds=3.0, metrics=METRICS, finished=finished)
        folder.write_config(workdir, config, 0)
    return workdir


def digits() -> Splits:
    return Classification.open(tiny())


def write_config_file(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "tiny.py"
    path.write_text(CONFIG_FILE)
    return path


def start(*arguments: Any, devices: int = 8) -> subprocess.Popen:
    """Start `python ARGUMENTS` in the root of the checkout."""
    command, environment = [sys.executable, *map(str, arguments)], {**ENVIRONMENT, "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_main(config_file: pathlib.Path, workdir: pathlib.Path, *more: str) -> subprocess.Popen:
    return start("-m", "train.main", f"--config={config_file}", f"--workdir={workdir}", *more)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for a process; return its exit code and what it wrote."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def refused(call: Callable[[], Any]) -> str:
    """Return the message of a mistake, which is one line."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def newest_state(workdir: pathlib.Path) -> tuple[int, list[np.ndarray]]:
    """Return the step of the newest checkpoint and every number in it, as on disk."""
    config, status = read_run(workdir)
    setup = build(config, digits().spec)
    like = jax.eval_shape(setup.steps.init, setup.shapes)
    with checkpoint.Store(workdir / checkpoint.CHECKPOINTS, run=status["run"], keep=2) as store:
        saved = store.restore(like, one_device())
    assert saved is not None
    return saved[0], [np.asarray(leaf) for leaf in jax.tree.leaves(saved[1])]


def one_device() -> jax.sharding.SingleDeviceSharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def files_of(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_a_bit(save: pathlib.Path) -> None:
    """Damage the arrays of a save of a `checkpoint.Store` without changing any size."""
    for path in (save / "tree").rglob("d/*"):
        flip(path)


def flip(path: pathlib.Path, *, place: float = 0.5) -> None:
    """Flip a bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 16
    path.write_bytes(bytes(data))


def truncate(save: pathlib.Path) -> None:
    """Cut off most of every file with arrays of a save; on a busy machine, the largest may be one that is not read."""
    for path in (save / "tree").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])


def remove_description(save: pathlib.Path) -> None:
    """Remove what describes a save."""
    for path in (save / "meta").rglob("*"):
        if path.is_file():
            path.unlink()


def make_earlier_form(workdir: pathlib.Path) -> None:
    """Turn the folder of a run into one as an earlier version wrote it: run.json had no format."""
    (workdir / "run.json").write_text('{"finished": true, "examples": 1437, "class_names": ["0", "1"], "input_shape": [8, 8, 1]}')
