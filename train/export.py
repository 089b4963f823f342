"""Write a run as a program for another runtime, and test it there: `python -m train.export --workdir runs/digits --format onnx`.

The file takes images as they are, uint8, and gives probabilities or, in segmentation, the class of each pixel: standardisation and softmax
are inside. The whole test split is run through the file in its own runtime. A line says how large the file is, how much its results differ
from those of JAX, what the metric of the run is through it, and how long an example takes. If results differ by more than 1e-4 of their
range, or more than one class in 10,000, the file is not written and the exit code is 1. With --quantise, kernels are stored in 16 bits, or
computed in int8 after calibration on training examples, and the metric may be worse by 0.01 instead; the file is model.int8.onnx, or as the
dtype and the format say, and model.int8.json describes it.

model.json beside the file holds what a program around it needs: names of inputs, outputs and classes, shapes, and the figures of that line.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import dilax
from dilax import export
from dilax.errors import UserError
from train import cli, quantised
from train.build import Trained, load_trained
from train.data import Source, eval_batches
from train.evaluate import check_data
from train.files import write_bytes, write_text
from train.score import add_sums
from train.tasks.base import Portable, Scores, make_folder

TOLERANCE = 1e-4
ANY = "any"
TESTED = 32  # examples at a time, if any number of them may be given


@dataclasses.dataclass(frozen=True)
class Test:
    """What running a split through a file and through JAX gave.

    Attributes:
        difference: Largest difference of a number from that of JAX, relative to the range of JAX's; of classes, the share that differs.
        metric: The metric by which the run was chosen, through the file.
        metric_jax: The same through JAX.
        ms: Milliseconds per example in the file's runtime, the median over batches.
        ms_jax: The same in JAX.
        examples: Number of examples.
    """

    difference: float
    metric: float
    metric_jax: float
    ms: float
    ms_jax: float
    examples: int


def test(trained: Trained, portable: Portable, run: Callable[..., tuple[np.ndarray, ...]], source: Source, batch: int) -> Test:
    """Run a split through a loaded file and through JAX, `batch` examples at a time, and compare."""
    task = trained.setup.task
    score = jax.jit(task.sums)
    programs = {"jax": lambda *arrays: (np.asarray(compiled(*arrays)),), "file": run}
    compiled = jax.jit(portable.function)
    totals: dict[str, dict[str, np.ndarray]] = {name: {} for name in programs}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    differences, low, high = [], np.inf, -np.inf
    for records in eval_batches(source, batch, workers=trained.setup.config.data.workers):
        results = {}
        for name, program in programs.items():
            start = time.perf_counter()
            (results[name],) = program(*portable.arguments(records))
            seconds[name].append(time.perf_counter() - start)
            add_sums(totals[name], score(portable.outputs(results[name]), records))
        mine, reference = (results[name][records["mask"]] for name in ("file", "jax"))
        is_class = reference.dtype.kind in "iu"
        differences.append((mine != reference).mean() if is_class else np.abs(mine - reference).max())
        low, high = min(low, reference.min()), max(high, reference.max())
    metrics = {name: task.metrics(Scores(total, {}))[task.best_by] for name, total in totals.items()}
    difference = float(np.mean(differences) if is_class else max(differences) / (high - low or 1.0))
    times = {name: 1e3 * statistics.median(parts[1:] or parts) / batch for name, parts in seconds.items()}  # the first compiles
    return Test(difference, metrics["file"], metrics["jax"], times["file"], times["jax"], len(source))


def problem_of(trained: Trained, result: Test, dtype: str | None) -> str:
    """Return why a file is not good enough to be written; "" if it is."""
    if dtype is None:
        return "" if result.difference <= TOLERANCE else f"its results differ from those of JAX by more than {TOLERANCE:g}"
    name, most = trained.setup.task.best_by, quantised.TOLERANCE
    worse = quantised.lost(trained.setup.task.lower_is_better, result.metric, result.metric_jax)
    hint = "; train with config.quantise='int8', or use float16" if dtype == "int8" else ""
    return "" if worse <= most else f"its {name} is {worse:.4f} worse than that of JAX, and {most:g} is allowed{hint}"


def describe(trained: Trained, portable: Portable, path: pathlib.Path, form: str, result: Test) -> dict[str, Any]:
    """Return what model.json holds."""
    spec, task = trained.setup.spec, trained.setup.task
    return {
        "file": path.name,
        "format": form,
        "task": task.name,
        "data": spec.name,
        "inputs": [dataclasses.asdict(port) for port in portable.inputs],
        "outputs": [portable.output],
        "classes": list(spec.outputs),
        "test": {"metric": task.best_by, **{name: value for name, value in dataclasses.asdict(result).items() if name != "metric"}}
        | {task.best_by: result.metric},
        "dilax": dilax.__version__,
    }


def kernels_of(data: bytes, form: str) -> str:
    """Word how many kernels a file computes in each dtype, such as "5 in int8"."""
    return ", ".join(f"{count} in {dtype}" for dtype, count in export.kernel_dtypes(data, format=form).items() if count)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the flags."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--workdir", required=True, type=cli.folder, help="folder of the run")
    parser.add_argument("--format", required=True, choices=tuple(export.FORMATS), help="the runtime that the file is for")
    quantised.add_flag(parser)
    parser.add_argument("--batch", default="", metavar="N", help='examples at a time, or "any"; default is any, and 1 for tflite')
    parser.add_argument("--out", type=cli.folder, metavar="FOLDER", help="where the file goes; default is export/ in the folder of the run")
    parser.add_argument("--data_dir", type=cli.folder, help="where the data is now, if it has moved since training")
    args = parser.parse_args(argv)
    args.batch = args.batch or ("1" if args.format == "tflite" else ANY)
    if args.batch != ANY and not (args.batch.isascii() and args.batch.isdecimal() and int(args.batch)):
        cli.fail(f'--batch={args.batch} is not a number of examples; give 1 or more, or "any".')
    quantised.check(args.format, args.quantise)
    return args


def main() -> int:
    """Export the run, test the file, and print a line; return 1 if it differs from JAX."""
    args = parse()
    trained = load_trained(args.workdir, {"dir": str(args.data_dir)} if args.data_dir else {})
    setup, out = trained.setup, args.out or args.workdir / "export"
    portable = setup.task.portable(trained.inference)
    if args.batch != ANY:
        sized = tuple(dataclasses.replace(port, shape=(int(args.batch), *port.shape[1:])) for port in portable.inputs)
        portable = dataclasses.replace(portable, inputs=sized)
    path = out / f"model{f'.{args.quantise}' * bool(args.quantise)}{export.FORMATS[args.format]}"
    if args.out and path.exists():  # what the run itself exported may be replaced
        raise UserError(f"--out: {path} is there already; remove it, or give another folder.")
    splits = type(setup.task).open(setup.config, setup.spec)
    check_data(setup.spec, splits.spec)
    about = {"task": setup.task.name, "data": setup.spec.name, "classes": json.dumps(list(setup.spec.outputs))}
    data = export.export(portable.function, portable.inputs, format=args.format, outputs=(portable.output,), metadata=about)
    batch, size = TESTED if args.batch == ANY else int(args.batch), ""
    if args.quantise:
        float32, options = len(data), dict(format=args.format, dtype=args.quantise)
        data = quantised.quantised(data, trained, portable.arguments, splits.train, batch, **options)
        size = f" ({len(data) / float32:.2f} of float32; kernels computed: {kernels_of(data, args.format)})"
    run = export.load_exported(data, format=args.format)
    result = test(trained, portable, run, splits.test, batch)
    name = setup.task.best_by
    print(
        f"{path.name}: {len(data) / 1e6:.2f} MB{size}, "
        f"{result.examples} test examples: largest difference from JAX {result.difference:.1e}, "
        f"{name} {result.metric:.4f} (JAX {result.metric_jax:.4f}), {result.ms:.2f} ms per example (JAX {result.ms_jax:.2f})"
    )
    if problem := problem_of(trained, result, args.quantise):
        print(f"error: {path} was not written, since {problem}.", file=sys.stderr)
        return 1
    make_folder(out)
    write_bytes(path, data)
    about = describe(trained, portable, path, args.format, result) | ({"quantised": args.quantise} if args.quantise else {})
    write_text(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
