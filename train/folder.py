"""The folder of a run: config.json, the config; run.json, what the run is and how far it is; one process at a time trains in it."""

import contextlib
import fnmatch
import json
import os
import pathlib
import platform
import uuid
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import dilax
from dilax import DataSpec, lowerings
from dilax.errors import UserError
from dilax.files import PART, user_path
from dilax.loading import BEST, FORMAT, STATUS, read_json, read_status, seal
from dilax.publishing import is_published
from train import checkpoint, hosts, report
from train.config import differences, from_json, may_change, to_json, unread
from train.data import Splits
from train.data.batches import indices_of
from train.data.fingerprint import changes, spec_changes
from train.data.source import files_of
from train.files import LOCK, locked, write_text, writing

CONFIG, CONFIGS, INIT_REPORT = "config.json", "configs", "init_from.txt"
REPLAY, BAD_STEP = "replay", "step.json"  # for `train.replay`
# What a run that was killed before its config was written may leave behind.
_BEFORE_CONFIG = {checkpoint.CHECKPOINTS, checkpoint.PROBE, BEST, STATUS, INIT_REPORT, CONFIG, CONFIGS, LOCK}
# What systems and programs put into any folder.
_NOT_OURS = (".DS_Store", "._*", "Thumbs.db", "desktop.ini", ".directory", ".nfs*", ".ipynb_checkpoints", ".gitkeep", ".gitignore")


@contextlib.contextmanager
def open_folder(config: ConfigDict, workdir: pathlib.Path, *, restart: bool = False) -> Iterator[None]:
    """Make the folder of a run, or check that the run in it is this one and is not finished; keep other processes out of it meanwhile.

    Args:
        config: The config of the run.
        workdir: Its folder.
        restart: Whether to move an earlier run aside.

    Raises:
        UserError: if it holds a finished run or one of another config, another process trains in it, or it cannot be written.
    """
    for key in ("init_from", "distill_from"):
        if restart and config[key] and user_path(config[key]).resolve() == workdir.resolve():
            raise UserError(f"--restart would move {workdir} aside, which config.{key} names; give another --workdir.")
    with contextlib.ExitStack() as held:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            _check_files(workdir, restart)
            held.enter_context(locked(workdir))
            if restart and _holds_run(workdir):
                folder = workdir.resolve()  # what a link leads to, not the link
                aside = _free_name(folder)
                os.replace(folder, aside)
                (aside / LOCK).unlink()
                folder.mkdir()
                held.enter_context(locked(workdir))
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be written: {error.strerror or error}; give another.") from error
        if (workdir / CONFIG).exists():
            _check_old_run(config, workdir)
        yield


def _holds_run(workdir: pathlib.Path) -> bool:
    return any((workdir / name).exists() for name in (CONFIG, STATUS))


def is_empty(workdir: pathlib.Path) -> bool:
    """Return whether a folder does not exist, or holds nothing but what systems and programs put into any folder."""
    return not workdir.is_dir() or not _names(workdir)


def _names(workdir: pathlib.Path) -> list[str]:
    names = sorted(path.name for path in workdir.iterdir())
    return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in _NOT_OURS)]


def _check_files(workdir: pathlib.Path, restart: bool) -> None:
    """Refuse a folder of anything else than a run, or of a run without its config."""
    foreign = [name for name in _names(workdir) if name.removesuffix(PART) not in _BEFORE_CONFIG]
    if (workdir / CONFIG).exists() or not foreign:
        return
    if not (workdir / STATUS).exists():
        raise UserError(f"--workdir={workdir} holds files but not a run, such as {foreign[0]}; give an empty or a new folder.")
    if not restart:
        raise UserError(
            f"{workdir} holds a {STATUS} without {CONFIG}; copy the newest file of {CONFIGS}/ there, pass --restart to begin anew (the old "
            "files are moved aside), or give another --workdir."
        )


def _some(changed: list[str]) -> str:
    return "; ".join(changed if len(changed) <= 5 else [*changed[:4], f"and {len(changed) - 4} more"])


def _check_old_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    old, status = read_run(workdir)
    free = may_change(config) | unread(old).keys()  # what nothing read, as earlier versions accepted, changes nothing
    changed = [line for line in differences(old, config) if line.split(":")[0] not in free]
    if changed:
        of = f"of the task {old.task}, not {config.task}" if old.task != config.task else f"of another config ({_some(changed)})"
        raise UserError(
            f"{workdir} holds a run {of}; give the same config, such as --config {workdir / CONFIG}, to resume it, "
            "--restart to begin anew (the old one is moved aside), or another --workdir."
        )
    if status.get("finished") and "step" not in status:  # made by train.convert or train.prune
        raise UserError(
            f"{workdir} holds weights that were not trained there; start another run from them, with --config.init_from={workdir} and "
            "another --workdir."
        )
    if not status.get("finished") or config.total_epochs > old.total_epochs:
        return
    if (
        status.get("step")
        and config.total_epochs == old.total_epochs
        and config.report
        and not (workdir / report.FOLDER / report.FILE).exists()
    ):
        print(f"{workdir} holds a finished run without a report, which is written now.", flush=True)
        return
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in status.get("metrics", {}).items())
    holds = f"holds a finished run ({metrics})" if metrics else "holds a finished run"
    raise UserError(
        f"{workdir} {holds}; pass --config.total_epochs={2 * old.total_epochs:g} to train it further, "
        "--restart to begin anew (the old one is moved aside), or another --workdir."
    )


def _free_name(workdir: pathlib.Path) -> pathlib.Path:
    return next(path for i in range(1, 10**6) if not (path := workdir.with_name(f"{workdir.name}-old-{i}")).exists())


def read_run(workdir: pathlib.Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Return the config and the status of the run in a folder.

    Raises:
        UserError: if there is none, or one of an earlier version, or a file is damaged.
    """
    if not (workdir / CONFIG).exists() and is_published(workdir):
        raise UserError(
            f"--workdir={workdir} holds published weights, not a run; predict with dilax.load in Python, give it as --config.init_from to "
            "train from them, or make a run of them with train.convert --from dilax."
        )
    if not (workdir / CONFIG).exists():
        raise UserError(f"--workdir={workdir} does not hold a run; train one with `python -m train.main --config=... --workdir={workdir}`.")
    status = read_status(workdir)
    if not status:
        raise UserError(
            f"{workdir} holds a {CONFIG} without {STATUS}; restore that, pass --restart to begin anew (the old files are moved aside), "
            "or give another folder."
        )
    if "run" not in status:
        raise UserError(f"{workdir / STATUS} is damaged (it lacks run); restore it, or train the run again with --restart.")
    return read_config(workdir / CONFIG), status


def read_config(path: pathlib.Path) -> ConfigDict:
    """Return the config in a file of a run.

    Raises:
        UserError: if it is damaged.
    """
    values = read_json(path)
    parts = [
        key
        for key in ("name", "task", "model", "data", "optim")
        if not isinstance(values.get(key), str if key in ("name", "task") else dict)
    ]
    if parts:
        raise UserError(
            f"{path} is damaged (it lacks {', '.join(parts)}); restore it from {CONFIGS}/ beside it, or train the run again with --restart."
        )
    return from_json(json.dumps(values))


def write_config(workdir: pathlib.Path, config: ConfigDict, step: int) -> None:
    """Write config.json, after run.json: from here on the folder holds this run.

    What has changed since the run was last started is printed. `configs/STEP.json` keeps each config that the run has had from a step on.

    Args:
        workdir: Folder of the run.
        config: Its config.
        step: The step that the run starts or resumes at.
    """
    if not hosts.first():
        return
    if (workdir / CONFIG).exists():
        for line in differences(read_config(workdir / CONFIG), config):
            print(f"config.{line}, from step {step} on", flush=True)
    text, history = to_json(config), workdir / CONFIGS
    with writing(history):
        history.mkdir(exist_ok=True)
        steps = sorted(int(path.stem) for path in history.glob("*.json") if path.stem.isdecimal())
        for later in (each for each in steps if each > step):  # these will be taken anew
            (history / f"{later}.json").unlink()
        before = max((each for each in steps if each <= step), default=None)
        if before is None or (history / f"{before}.json").read_bytes() != text.encode():
            write_text(history / f"{step}.json", text)
    write_text(workdir / CONFIG, text)


def write_status(workdir: pathlib.Path, **values: Any) -> dict[str, Any]:
    """Add values to run.json, and return all that it holds; at first, the run is given an id. Of several processes, the first does so."""
    if not hosts.first():
        return {}
    status = {"format": FORMAT, "run": uuid.uuid4().hex, **read_status(workdir), **values}
    status = json.loads(json.dumps(status))  # as it will be read, which its checksum is of
    status["seal"] = seal(status)
    write_text(workdir / STATUS, json.dumps(status, indent=2))
    return status


def check_data(config: ConfigDict, workdir: pathlib.Path, spec: DataSpec, records: dict[str, Any]) -> bool:
    """Return whether the data of a run has changed; refuse to resume it then, unless config.data.changed="accept".

    Args:
        config: The config of the run.
        workdir: Its folder.
        spec: What its data looks like now.
        records: The fingerprint of its data now.

    Raises:
        UserError: if names, symbols, shapes, the number of records or their values have changed.
    """
    status, given = read_status(workdir), config.data
    found = spec_changes(DataSpec.from_json(status["data"]), spec) + changes(status.get("records", records), records)
    if found and given.changed != "accept":
        raise UserError(
            f"the data differs from that which the run in {workdir} began with ({'; '.join(found)}); point --config.data.dir to the "
            "original data, or accept the change with --config.data.changed=accept."
        )
    if found:
        print(f"the data has changed, which is accepted: {'; '.join(found)}.", flush=True)
    return bool(found)


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
        "oneDNN": lowerings.onednn_version() or "not used",
        "device": f"{jax.device_count()} x {device.device_kind}",
    }


def leave_step(workdir: pathlib.Path, splits: Splits, config: ConfigDict, step: int) -> None:
    """Write down a step that was not finite, for `train.replay`: its number, and the training records of its batch."""
    if not hosts.first():
        return
    given: Any = config
    indices = indices_of(len(splits.train), given.batch_size, given.seed, step - 1)
    files = files_of(splits.train)
    record = {"step": step, "records": indices.tolist(), "files": [files[index] for index in indices] if files else []}
    with writing(workdir / REPLAY):
        (workdir / REPLAY).mkdir(exist_ok=True)
    write_text(workdir / REPLAY / BAD_STEP, json.dumps(record, indent=1))
