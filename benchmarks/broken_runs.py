"""Tiny runs that are killed and resumed, and how they are compared with unbroken ones; see `benchmarks.chaos`."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from benchmarks.faults import PHASES, Moment
from dilax import DataSpec
from dilax.errors import UserError
from dilax.loading import read_status, read_variables
from train import checkpoint, loop
from train.build import build
from train.config import default_config, model_config, to_json
from train.files import LOCK
from train.folder import read_run
from train.writers import read_history

ROOT = pathlib.Path(__file__).parents[1]
LONGEST_S = 300
RUN = "DILAX_CHAOS_RUN"  # the environment variable by which the processes of a run are found, those that it starts included


def _tiny(config: ConfigDict, epochs: float) -> ConfigDict:
    config.total_epochs, config.eval_every_epochs, config.log_every_steps, config.checkpoint_every_steps = epochs, 0.4, 3, 5
    config.optim.warmup_epochs = 0.1
    return config


def image() -> ConfigDict:
    """Digits of 8x8 pixels, 24 steps, with dropout and augmentation."""
    config = default_config("image")
    config.data.name = "digits8x8"
    config.model = ConfigDict(model_config("dilated_cnn", features=(4, 6), dilations=(1, 2), pools=(2, 1), dropout=0.2))
    config.batch_size, config.augment.crop_padding, config.report = 64, 1, False
    return _tiny(config, 1.2)


def sequence() -> ConfigDict:
    """The adding problem over 12 steps, with a report; 19 steps."""
    config = default_config("sequence", task="sequence_prediction")
    config.data.name = "adding"
    config.sequence.update(length=12, examples=256, loss="mse")
    config.model = ConfigDict(model_config("tcn", kernel_size=3, features=(6, 6)))
    config.batch_size = 16
    return _tiny(config, 1.2)


def averages() -> ConfigDict:
    """The digits, each batch in four parts, with a moving average of the parameters; 24 steps."""
    config = image()
    config.name = "averages"
    config.optim.update(accumulate=4, ema_decay=0.9)
    return config


CONFIGS = {"image": image, "sequence": sequence, "averages": averages}


def streamed(folder: pathlib.Path) -> ConfigDict:
    """Images of noise in two classes, written to a folder and read by worker processes."""
    rng = np.random.default_rng(0)
    for i in range(40):
        path = folder / "noise" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    config = image()
    config.name = "streamed"
    config.data.update(name="folder", dir=str(folder / "noise"), memory_mb=0)
    config.batch_size = 4
    return config


def often_evaluated(name: str) -> ConfigDict:
    """Return a config of `CONFIGS` that replaces its best parameters often."""
    config = CONFIGS[name]()
    config.name, config.total_epochs, config.eval_every_epochs, config.report = f"{name}_often", 4.0, 1e-6, False
    return config


@dataclasses.dataclass(frozen=True)
class Reference:
    """A run without a fault.

    Attributes:
        config: Its config.
        file: A file with the config.
        workdir: Its folder.
        events: (phase, seconds since its start, event) of all that happened in it; see `benchmarks.faults`.
    """

    config: ConfigDict
    file: pathlib.Path
    workdir: pathlib.Path
    events: list[tuple[str, float, str]]


def unbroken(config: ConfigDict, folder: pathlib.Path, times: int = 2) -> Reference:
    """Train a config in a new folder, twice: the moments of the second run are those of one whose programs have been compiled."""
    folder.mkdir(parents=True, exist_ok=True)
    workdir, events, file = folder, folder / "events.json", write_config(config, folder)
    for i in range(times):
        workdir = folder / f"unbroken-{i}"
        code, out, err = finished(start(str(events), file, workdir))
        if code:
            raise RuntimeError(f"the unbroken run of {config.name} ended with exit code {code}: {out}{err}")
    return Reference(config, file, workdir, recorded(events))


def recorded(file: pathlib.Path) -> list[tuple[str, float, str]]:
    """Return the events that a run has recorded in a file."""
    return [tuple(event) for event in json.loads(file.read_text())]


def write_config(config: ConfigDict, folder: pathlib.Path) -> pathlib.Path:
    """Write a config for `--config`, and return the path of the file."""
    path = folder / f"{config.name}.json"
    path.write_text(to_json(config))
    return path


def start(
    moment: Moment | str, file: pathlib.Path, workdir: pathlib.Path, flags: Sequence[str] = (), **environment: str
) -> subprocess.Popen:
    """Start a run, in a session of its own, that ends at a moment, or whose events are recorded in a file."""
    given = moment if isinstance(moment, str) else json.dumps(dataclasses.asdict(moment))
    # On as many devices as here: only on the same devices do a killed process and an unbroken one agree to the bit.
    own = {"JAX_NUM_CPU_DEVICES": str(jax.device_count()), "PYTHONPATH": str(ROOT), RUN: str(workdir), **environment}
    command = [sys.executable, "-m", "benchmarks.faults", given, f"--config={file}", f"--workdir={workdir}", *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **own}, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
    )


def finished(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for a process; return its exit code and what it wrote. One that hangs is killed, which its exit code says."""
    try:
        out, err = process.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return process.returncode, out, err


def left(workdir: pathlib.Path, seconds: float = 5.0) -> list[int]:
    """Return the processes that were started for a run, by `start` or by these in turn, and do not end within some seconds."""
    end = time.monotonic() + seconds
    while True:
        found = [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*") if _belongs(path, workdir)]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


def _belongs(process: pathlib.Path, workdir: pathlib.Path) -> bool:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError, PermissionError):
        return os.fsencode(f"{RUN}={workdir}") in (process / "environ").read_bytes().split(b"\0")
    return False


def draw(events: Sequence[tuple[str, float, str]], phase: str, rng: random.Random) -> Moment:
    """Return a random moment of a phase: in turn at one of its events, whatever their kind, and at a time after one."""
    own = [(seconds, event) for name, seconds, event in events if name == phase]
    if rng.random() < 0.5:
        kind = rng.choice(sorted({event for _, event in own}))
        return Moment(phase, rng.choice([i for i, (_, event) in enumerate(own) if event == kind]))
    after = [min(0.5, later - seconds) for (seconds, _), (later, _) in zip(own, [*own[1:], (own[-1][0] + 0.05, "")])]
    (i,) = rng.choices(range(len(own)), weights=[delay + 1e-6 for delay in after])
    return Moment(phase, i, delay=rng.uniform(0, after[i]))


def schedule(reference: Reference, kills: int, seed: int) -> list[list[Moment]]:
    """Return the moments of each run that is killed: as many in all as `kills`, of all phases in turn; every third run is killed twice."""
    rng, runs = random.Random(seed), []
    phases = [phase for _ in range(0, kills, len(PHASES)) for phase in rng.sample(PHASES, len(PHASES))][:kills]
    while phases:
        count = 2 if len(runs) % 3 == 2 and len(phases) > 1 else 1
        runs.append([draw(reference.events, phases.pop(0), rng) for _ in range(count)])
    return runs


def resume(config: ConfigDict, workdir: pathlib.Path) -> tuple[int | None, str]:
    """Resume a run in this process; return its exit code and what it said, or None and the line that refuses it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = loop.run(config, workdir)
        except UserError as error:
            return None, str(error)
    if code > 128:  # the signal that the run took was meant for this process
        raise KeyboardInterrupt
    return code, said.getvalue()


def killed(reference: Reference, moments: Sequence[Moment], workdir: pathlib.Path) -> tuple[list[Moment], str]:
    """Kill a run at each moment in turn, and resume it to its end; return the moments that came, and what went wrong, or ""."""
    reached = []
    for moment in moments:
        if reached and read_status(workdir).get("finished"):
            break
        code, out, err = finished(start(moment, reference.file, workdir))
        if code == 0:  # the moment did not come again after a kill
            break
        if code != -signal.SIGKILL:
            return reached, f"exit code {code}: {out}{err}"
        reached.append(moment)
    return reached, completed(reference, workdir)


def completed(reference: Reference, workdir: pathlib.Path) -> str:
    """Resume a run to its end, if it has not come there; return what went wrong, such as differences from the unbroken run, or ""."""
    if not read_status(workdir).get("finished"):
        saved = checkpoint.saved_steps(workdir)
        code, said = resume(reference.config, workdir)
        if code != 0:
            return f"exit code {code}: {said}"
        if saved and f"resuming {workdir} at step {saved[-1]} " not in said:
            return f"step {saved[-1]} was saved, and the run said {said!r}"
    return "; ".join(differences(workdir, reference.workdir))


def differences(workdir: pathlib.Path, expected: pathlib.Path) -> list[str]:
    """Return in what two finished runs differ: states and best parameters bit for bit, metrics, report, and the files they leave."""
    ours, theirs = figures(workdir), figures(expected)
    return [f"{name}: {_cut(ours[name])}, not {_cut(theirs[name])}" for name in theirs if not _same(ours[name], theirs[name])]


def figures(workdir: pathlib.Path) -> dict[str, Any]:
    """Return all of a finished run that must not depend on when it was killed."""
    status = read_status(workdir)
    lines = [{k: v for k, v in line.items() if not k.endswith(("_seconds", "_per_second"))} for line in read_history(workdir)]
    places = [pathlib.Path(), pathlib.Path("checkpoints"), pathlib.Path("best"), pathlib.Path("configs"), pathlib.Path("report")]
    names = {str(path.relative_to(workdir)) for place in places for path in (workdir / place).glob("*")}
    report = workdir / "report" / "report.md"
    return {
        "step and state": newest_state(workdir),
        "best parameters": read_variables(workdir),
        "run.json": {k: v for k, v in status.items() if k not in ("run", "train_seconds", "seal")},
        "metrics": lines,
        "files": sorted(names - {LOCK}),  # a kill may come between the end of the run and that of its lock
        "report": [line for line in report.read_text().splitlines() if "| time |" not in line] if report.exists() else [],
    }


def newest_state(workdir: pathlib.Path) -> Any:
    """Return the step of the newest checkpoint, and its arrays, as on disk."""
    config, status = read_run(workdir)
    setup = build(config, DataSpec.from_json(status["data"]))
    like = jax.eval_shape(setup.steps.init, setup.shapes)
    with checkpoint.Store(workdir / checkpoint.CHECKPOINTS, run=status["run"], keep=config.keep_checkpoints) as store:
        saved = store.restore(like, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    return None if saved is None else (saved[0], [np.asarray(leaf) for leaf in jax.tree.leaves(saved[1])])


def _same(a: Any, b: Any) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() if isinstance(x, np.ndarray) else x == y for x, y in pairs)


def _cut(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) < 200 else f"{text[:200]}..."
