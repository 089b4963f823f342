"""The folder of a run: config.json, the config; run.json, what the run is and how far it is."""

import json
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import dilax
from dilax.errors import UserError
from dilax.loading import BEST, FORMAT, STATUS, read_status
from train import checkpoint
from train.config import differences, from_json, may_change, to_json
from train.writers import PART, write_text

CONFIG, INIT_REPORT = "config.json", "init_from.txt"
_PROBE = "writable"
# What a run that was killed before its config was written may leave behind.
_BEFORE_CONFIG = {checkpoint.CHECKPOINTS, BEST, STATUS, INIT_REPORT, CONFIG, _PROBE}


def open_folder(config: ConfigDict, workdir: pathlib.Path, *, restart: bool = False) -> None:
    """Make the folder of a run, or check that the run in it is this one and is not finished.

    Args:
        config: The config of the run.
        workdir: Its folder.
        restart: Whether to move an earlier run aside.

    Raises:
        UserError: if it holds a finished run or one of another config, or cannot be written.
    """
    if restart and config.init_from and pathlib.Path(config.init_from).expanduser().resolve() == workdir.resolve():
        raise UserError(f"--restart would move {workdir} aside, which config.init_from names; give another --workdir.")
    try:
        if restart and (workdir / CONFIG).exists():
            os.replace(workdir, _free_name(workdir))
        workdir.mkdir(parents=True, exist_ok=True)
        _check_old_run(config, workdir)
        write_text(workdir / _PROBE, "")
        (workdir / _PROBE).unlink()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror or error}; give another.") from error


def _check_old_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    if not (workdir / CONFIG).exists():
        if any(path.name.removesuffix(PART) not in _BEFORE_CONFIG for path in workdir.iterdir()):
            raise UserError(f"--workdir={workdir} holds files but not a run; give an empty or a new folder.")
        return
    old, status = read_run(workdir)
    changed = [line for line in differences(old, config) if line.split(":")[0] not in may_change(config)]
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed)}); give the same config to resume it, "
            "--restart to begin anew (the old one is moved aside), or another --workdir."
        )
    if status.get("finished") and config.total_epochs <= old.total_epochs:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in status["metrics"].items())
        raise UserError(
            f"{workdir} holds a finished run ({metrics}); pass --config.total_epochs={2 * old.total_epochs:g} to train it further, "
            "--restart to begin anew (the old one is moved aside), or another --workdir."
        )


def _free_name(workdir: pathlib.Path) -> pathlib.Path:
    return next(path for i in range(1, 10**6) if not (path := workdir.with_name(f"{workdir.name}-old-{i}")).exists())


def read_run(workdir: pathlib.Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Return the config and the status of the run in a folder.

    Raises:
        UserError: if there is none, or one of an earlier version.
    """
    if not (workdir / CONFIG).exists():
        raise UserError(f"--workdir={workdir} does not hold a run; train one with `python -m train.main --config=... --workdir={workdir}`.")
    status = read_status(workdir)
    if not status:
        raise UserError(f"{workdir} holds a {CONFIG} without {STATUS}, so it is not a run of this version; give another folder.")
    return from_json((workdir / CONFIG).read_text()), status


def write_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Write config.json, after run.json: from here on the folder holds this run."""
    write_text(workdir / CONFIG, to_json(config))


def write_status(workdir: pathlib.Path, **values: Any) -> None:
    """Add values to run.json."""
    write_text(workdir / STATUS, json.dumps({**read_status(workdir), "format": FORMAT, **values}, indent=2))


def versions() -> dict[str, str]:
    """Return what the results of a run depend on."""
    import flax

    device = jax.devices()[0]
    return {
        "dilax": dilax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {device.device_kind}",
    }
