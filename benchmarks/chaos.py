"""Kill, damage and obstruct tiny runs, resume them, and compare them with unbroken ones, bit for bit.

python -m benchmarks.chaos                              50 kills of each of three configs, and all other faults: about an hour
python -m benchmarks.chaos --kills 6 --configs image
python -m benchmarks.chaos --markdown

A killed run gets SIGKILL at a random moment of its start-up, of the files that begin a run, of a step, an evaluation, a save or the report;
every third run is killed again when it is resumed. It survives if its final state, best parameters, metrics, run.json, report and the names
of its files are those of the run that was never killed. Of two processes of a run, one is killed so; the other has to stop within a minute
with one line and to leave no process, before both are started again. Every file of the folder of a stopped run is truncated, bit-flipped,
emptied and deleted in turn: the resumed run has to have the same state as the unbroken one, and to say what else it lost, or to be refused
in one line.
So has each file of a finished run, whose model is loaded. What goes on beside that is a disk that is full, cannot be written, or has a
quota; SIGTERM; a second run in the folder; and a process that loads the model of a run in progress.
"""

import argparse
import collections
import dataclasses
import functools
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax

from benchmarks import broken_folders, broken_pairs, broken_runs, common
from benchmarks.broken_folders import DAMAGES, SKIPPED
from benchmarks.broken_runs import CONFIGS, Reference
from benchmarks.faults import FINISH, PHASES, SAVE, STEP, Moment
from dilax.errors import UserError
from train import cli, runtime

PARTS = ("kills", "pairs", "files", "disks", "signals", "processes")
HEAD = ("fault", "when or where", *CONFIGS, "survived")


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault that was injected.

    Attributes:
        config: Name of the config.
        kind: What it was, such as "SIGKILL".
        where: A phase, or a part of the folder.
        wrong: What went wrong; "" if it was survived.
        detail: What exactly it was, and what became of it.
    """

    config: str
    kind: str
    where: str
    wrong: str
    detail: str = ""


def kills(name: str, reference: Reference, count: int, seed: int, scratch: pathlib.Path) -> Iterator[Fault]:
    """Kill as many runs as it takes for `count` moments to come."""
    done = 0
    for run, moments in enumerate(broken_runs.schedule(reference, 2 * count, seed)):
        if done >= count:
            return
        reached, wrong = broken_runs.killed(reference, moments[: count - done], scratch / f"killed-{run}")
        done += len(reached)
        for moment in reached:
            yield Fault(name, "SIGKILL", moment.phase, wrong, str(moment))


def pairs(name: str, count: int, seed: int, scratch: pathlib.Path) -> Iterator[Fault]:
    """Kill one of the two processes of as many runs as it takes for `count` moments to come."""
    pair, done = broken_pairs.unbroken_pair(CONFIGS[name](), scratch / "unbroken"), 0
    for run, planned in enumerate(broken_pairs.schedule(pair, 2 * count, seed)):
        if done >= count:
            return
        reached, wrong = broken_pairs.killed(pair, planned[: count - done], scratch / f"killed-{run}")
        done += len(reached)
        for (number, moment), seconds in reached:
            detail = f"process {number}: {moment}; the other stopped after {seconds:.1f} s"
            yield Fault(name, "SIGKILL of one of two", moment.phase, wrong, detail)


def files(name: str, reference: Reference, sample: int, seed: int, scratch: pathlib.Path) -> Iterator[Fault]:
    """Damage each file of a stopped and of a finished run in each way, or a sample of these."""
    stopped = broken_folders.stopped(reference, scratch / "stopped")
    resume = functools.partial(broken_folders.damaged, reference, stopped)
    load = functools.partial(broken_folders.damaged_and_read, reference.workdir)
    cases = [(folder, how, file) for folder in (stopped, reference.workdir) for how in DAMAGES for file in broken_folders.files_of(folder)]
    if sample:
        cases = random.Random(seed).sample(cases, sample)
    for folder, how, file in cases:
        happened, wrong = (resume if folder == stopped else load)(file, how, scratch)
        where = "file of a stopped run" if folder == stopped else "file of a finished run"
        yield Fault(name, how, where, wrong, f"{file}: {happened}")


def disks(name: str, reference: Reference, sample: int, seed: int, scratch: pathlib.Path) -> Iterator[Fault]:
    """Fill the disk at several moments, set a quota, and take away the right to write."""
    moments = [("first files", 2), ("evaluation", _nth(reference, "evaluation", 5)), ("report", 3), ("save", 4), ("save", 20)]
    for i, (phase, count) in enumerate(moments[-1:] if sample else moments):
        folder = scratch / f"disk-{i}"
        folder.mkdir()
        yield Fault(name, "disk full", phase, broken_folders.full_disk(reference, folder, phase, count))
    yield Fault(name, "quota", "save", broken_folders.quota(reference, scratch))
    if sample:
        return
    stopped = broken_folders.stopped(reference, scratch / "to-be-fixed")
    yield Fault(name, "read-only folder", "resumed run", broken_folders.read_only(reference, stopped, scratch))
    yield Fault(name, "unwritable compilation cache", "whole run", broken_folders.unwritable_cache(reference, scratch))


def signals(name: str, reference: Reference, sample: int, seed: int, scratch: pathlib.Path) -> Iterator[Fault]:
    """Send SIGTERM while the first step is compiled, in a save, in the report, and, of a streamed run, while data is loaded."""
    first, save, last = (_nth(reference, phase, 0, event) for phase, event in (("step", STEP), ("save", SAVE), ("report", FINISH)))
    moments = {
        "compilation": Moment("step", first, 0.1, signal.SIGTERM),
        "save": Moment("save", save + 3, 0.0, signal.SIGTERM),
        "report": Moment("report", last + 1, 0.0, signal.SIGTERM),
    }
    for where, moment in list(moments.items())[-1 if sample else 0 :]:
        yield Fault(name, "SIGTERM", where, broken_folders.terminated(reference, moment, scratch / f"terminated-{where}"), str(moment))
    if sample:
        return
    streamed = broken_runs.unbroken(broken_runs.streamed(scratch), scratch / "streamed", times=1)
    moment = Moment("step", _nth(streamed, "step", 1, STEP), 0.0, signal.SIGTERM)
    yield Fault(name, "SIGTERM", "data loading", broken_folders.terminated(streamed, moment, scratch / "terminated-data"), str(moment))


def processes(name: str, reference: Reference, sample: int, seed: int, scratch: pathlib.Path) -> Iterator[Fault]:
    """Start a second run in a folder, and read a folder that is written."""
    yield Fault(name, "second run", "same folder", broken_folders.two_runs(reference, scratch / "shared"))
    if sample:
        return
    file = broken_runs.write_config(broken_runs.often_evaluated(name), scratch)
    loads, wrong = broken_folders.reader(file, scratch / "read")
    yield Fault(name, "reader", "same folder", wrong or ("" if loads else "the model could never be loaded"), f"{loads} loads")


def _nth(reference: Reference, phase: str, index: int, event: str = "") -> int:
    """Return the count of an event of a phase: the one with an index, of those of its kind if that is named."""
    events = [kind for name, _, kind in reference.events if name == phase]
    return [i for i, kind in enumerate(events) if event in ("", kind)][index]


Part = Callable[[str, Reference, int, int, pathlib.Path], Iterator[Fault]]
BESIDES: dict[str, Part] = {"files": files, "disks": disks, "signals": signals, "processes": processes}


def faults(name: str, parts: Iterable[str], counts: Mapping[str, int], sample: int, seed: int, folder: pathlib.Path) -> Iterator[Fault]:
    """Inject the faults of all parts into runs of one config, below a folder."""
    reference = broken_runs.unbroken(CONFIGS[name](), folder, times=1 if sample else 2)
    for part in parts:
        scratch = folder / part
        scratch.mkdir()
        if part == "kills":
            yield from kills(name, reference, counts[part], seed, scratch)
        elif part == "pairs":
            yield from pairs(name, counts[part], seed, scratch)
        else:
            yield from BESIDES[part](name, reference, sample, seed, scratch)


def table(found: Iterable[Fault]) -> list[list[str]]:
    """Return a row for each kind of fault and where it struck, with the survivors out of all for each config, and for all of them."""
    counts: dict[tuple[str, str], dict[str, list[bool]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for fault in found:
        if not fault.wrong.startswith(SKIPPED):
            counts[fault.kind, fault.where][fault.config].append(not fault.wrong)
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    order = sorted(counts, key=lambda key: (kinds.index(key[0]), PHASES.index(key[1]) if key[1] in PHASES else 0))

    def share(keys: Iterable[tuple[str, str]], names: Iterable[str] = tuple(CONFIGS)) -> str:
        survived = [one for key in keys for name in names for one in counts[key][name]]
        return f"{sum(survived)} of {len(survived)}" if survived else "-"

    rows = [[*key, *(share([key], [name]) for name in CONFIGS), share([key])] for key in order]
    return [*rows, ["all", "", *(share(order, [name]) for name in CONFIGS), share(order)]]


def _chosen(text: str, known: Iterable[str], flag: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--{flag}={text}: {unknown[0]!r} is not one of {', '.join(known)}; choose among these.")
    return names


def main() -> int:
    """Inject all faults, and print a table; return 1 if one was not survived."""
    parser = cli.parser(sys.modules[__name__])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=50, help="kills of each config")
    parser.add_argument("--pairs", type=int, default=15, help="kills of one of two processes, of each config")
    parser.add_argument("--configs", default=",".join(CONFIGS), help="configs, separated by commas")
    parser.add_argument("--parts", default=",".join(PARTS), help="kinds of faults, separated by commas")
    parser.add_argument("--sample", type=int, default=0, help="short form: number of damaged files of each config; 0 damages all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table at the end")
    parser.add_argument("--json", type=pathlib.Path, help="file for all faults, as JSON")
    args = parser.parse_args()
    configs, parts = _chosen(args.configs, CONFIGS, "configs"), _chosen(args.parts, PARTS, "parts")
    counts = {"kills": args.kills, "pairs": args.pairs}
    common.check_writable(args.json)
    print(common.heading(common.environment()))
    found = []
    with tempfile.TemporaryDirectory(prefix="dilax-chaos-") as folder:
        runtime.keep_compiled_programs(f"{folder}/programs")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = getattr(jax.config, runtime.CACHE)  # for the processes that are started
        for name in configs:
            for fault in faults(name, parts, counts, args.sample, args.seed, pathlib.Path(folder, name)):
                found.append(fault)
                outcome = fault.wrong or "survived"
                print(f"{fault.config}  {fault.kind}  {fault.where}  {fault.detail}  {outcome}", flush=True)
    print()
    if args.markdown:
        print(common.markdown(HEAD, table(found)))
    else:
        for row in [HEAD, *table(found)]:
            print(common.format_row(row, (-28, -22, 10, 10, 10, 12)))
    if args.json:
        args.json.write_text(json.dumps([dataclasses.asdict(fault) for fault in found], indent=1))
    return int(any(fault.wrong and not fault.wrong.startswith(SKIPPED) for fault in found))


if __name__ == "__main__":
    cli.run(main)
