"""Write a run as a program for another runtime, and test it there: `python -m train.export --workdir runs/digits --format onnx`.

The file takes images as they are, uint8, and sequences in their own units or as codes, with the number of their valid steps; it gives
probabilities, the class of each pixel, rows of a table or sounds: standardisation and softmax are inside. With --stream it takes a chunk of
a sequence and the state that it gave with the chunk before. Batch normalisation is folded into the layers before it.

The whole test split is run through the file in its own runtime. A line says how large the file is, how much its results differ from those
of JAX, what the metric of the run is through it, and how long an example takes. If results differ by more than 1e-4 of their range, or
more than one class in 10,000, the file is not written and the exit code is 1. With --quantise, kernels are stored in 16 bits, or
computed in int8 after calibration on training examples, and the metric may be worse by 0.01 instead; the file is model.int8.onnx, or as
the dtype and the format say, and model.int8.json describes it.

model.json beside the file, or stream.json, holds what a program around it needs: names of inputs, outputs and classes, shapes, the initial
state of a stream, and the figures of that line.
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
from dilax import Inference, export
from dilax.errors import UserError
from train import cli, quantised
from train.build import Trained, load_trained
from train.data import Source, eval_batches
from train.evaluate import check_data
from train.files import check_folder_writable, write_files
from train.score import Collected
from train.tasks.base import make_folder
from train.tasks.portable import BATCH, CLOCK, Answer, Portable, Run, fed, portable, portable_step, silence_of, silenced

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


def test(trained: Trained, whole: Portable, run: Run, source: Source, batch: int) -> Test:
    """Run a split through a loaded file and through JAX, `batch` examples at a time, and compare."""
    task = trained.setup.task
    judge = jax.jit(task.judge)
    programs = {"jax": lambda *arrays: (np.asarray(compiled(*arrays)),), "file": run}
    compiled = jax.jit(whole.function)
    collected = {name: Collected() for name in programs}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    differences, low, high = [], np.inf, -np.inf
    for records in eval_batches(source, batch, workers=trained.setup.config.data.workers):
        results, arrays = {}, whole.arguments(records)
        for name, program in programs.items():
            if not seconds[name]:
                program(*arrays)  # the first call compiles, or makes room for its results
            start = time.perf_counter()
            (results[name],) = program(*arrays)
            seconds[name].append(time.perf_counter() - start)
            sums, rows = judge(whole.outputs(results[name]), records)
            collected[name].add(sums, {field: np.asarray(values)[records["mask"]] for field, values in rows.items()})
        mine, reference = (results[name][records["mask"]] for name in ("file", "jax"))
        is_class = reference.dtype.kind in "iu"
        differences.append((mine != reference).mean() if is_class else np.abs(mine - reference).max())
        low, high = min(low, reference.min()), max(high, reference.max())
    metrics = {name: task.metrics(one.scores())[task.best_by] for name, one in collected.items()}
    difference = float(np.mean(differences) if is_class else max(differences) / (high - low or 1.0))
    times = {name: 1e3 * statistics.median(parts) / batch for name, parts in seconds.items()}
    return Test(difference, metrics["file"], metrics["jax"], times["file"], times["jax"], len(source))


def problem_of(trained: Trained, result: Test, dtype: str | None) -> str:
    """Return why a file is not good enough to be written; "" if it is."""
    if dtype is None:
        return "" if result.difference <= TOLERANCE else f"its results differ from those of JAX by more than {TOLERANCE:g}"
    name, most = trained.setup.task.best_by, quantised.TOLERANCE
    worse = quantised.lost(trained.setup.task.lower_is_better, result.metric, result.metric_jax)
    hint = "; train with config.quantise='int8', or use float16" if dtype == "int8" else ""
    return "" if worse <= most else f"its {name} is {worse:.4f} worse than that of JAX, and {most:g} is allowed{hint}"


def folded(inference: Inference, example: jax.ShapeDtypeStruct) -> Inference:
    """Return a run with its batch normalisation folded into the layers before it; a line on stderr says why if that cannot be done."""
    if not inference.variables.get("batch_stats"):
        return inference
    try:
        model, variables = dilax.fold_batch_norm(inference.model, inference.variables, example)
    except UserError as error:
        print(f"note: batch normalisation stays as it is: {error}", file=sys.stderr)
        return inference
    return dataclasses.replace(inference, model=model, variables=variables)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A program before it is written.

    Attributes:
        function: See `dilax.export.export`.
        inputs: See there.
        outputs: See there.
        examples: See there.
        wrap: Loaded program -> program of whole inputs, as the test gives them.
        stream: What model.json says of a stream; {} if the program takes whole inputs.
    """

    function: Callable[..., Any]
    inputs: tuple[export.Port, ...]
    outputs: tuple[str, ...]
    examples: list[tuple[np.ndarray, ...]]
    wrap: Callable[[Run], Run]
    stream: dict[str, Any]


def whole_program(whole: Portable, batch: str, source: Source) -> Exported:
    """Return a program of whole inputs, which is compared with the function on the first ones of a split."""
    sized = tuple(dataclasses.replace(port, shape=(_size(batch), *port.shape[1:])) for port in whole.inputs)
    counts = (1, 3) if batch == ANY else (int(batch),)
    examples = [whole.arguments(next(eval_batches(source, count))) for count in counts]
    return Exported(whole.function, sized, (whole.output,), examples, lambda run: run, {})


def step_program(inference: Inference, answer: Answer, batch: str, chunk: int) -> Exported:
    """Return a program of the steps of a stream."""
    spec = inference.spec
    step = portable_step(inference, answer, chunk=chunk or getattr(inference.model, "stride", 1), batch=_size(batch))
    state = [
        {"input": port.name, "output": output, "initial": _brief(initial)}
        for port, output, initial in zip(step.inputs[1:], step.outputs[1:], step.initial())
    ]
    about = {"chunk": step.inputs[0].shape[1], "latency": step.latency, "after_the_end": silence_of(spec).tolist(), "state": state}
    if any(port.name == CLOCK for port in step.inputs):
        about["length"] = CLOCK
    if answer.name == "logits":
        about["pool"] = inference.pool
    return Exported(step.function, step.inputs, step.outputs, step.examples(), lambda run: fed(run, step, spec), about)


def _size(batch: str) -> int | str:
    return BATCH if batch == ANY else int(batch)


def _brief(initial: np.ndarray) -> Any:
    """Return an array as JSON holds it: one number if all of its entries are equal."""
    values = np.unique(initial)
    return values.item() if len(values) == 1 else initial.tolist()


def describe(trained: Trained, whole: Portable, made: Exported, path: pathlib.Path, form: str, result: Test) -> dict[str, Any]:
    """Return what model.json holds."""
    spec, task = trained.setup.spec, trained.setup.task
    first, *others = (dataclasses.asdict(port) for port in made.inputs)
    return {
        "file": path.name,
        "format": form,
        "task": task.name,
        "data": spec.name,
        "inputs": [first | whole.about, *others],
        "outputs": list(made.outputs),
        "classes": list(spec.outputs),
        **({"stream": made.stream} if made.stream else {}),
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
    parser.add_argument("--batch", default="", metavar="N", help='examples at a time, or "any"; default any, 1 for tflite and --stream')
    parser.add_argument("--stream", action="store_true", help="write the step of a stream, with its state as inputs and outputs")
    parser.add_argument("--chunk", type=int, default=0, metavar="N", help="steps of a chunk of --stream; default is the stride")
    parser.add_argument("--out", type=cli.folder, metavar="FOLDER", help="where the file goes; default is export/ in the folder of the run")
    parser.add_argument("--data_dir", type=cli.folder, help="where the data is now, if it has moved since training")
    args = parser.parse_args(argv)
    args.batch = args.batch or ("1" if args.format == "tflite" or args.stream else ANY)
    if args.batch != ANY and not (args.batch.isascii() and args.batch.isdecimal() and int(args.batch)):
        cli.fail(f'--batch={args.batch} is not a number of examples; give 1 or more, or "any".')
    if args.batch == ANY and args.format == "tflite":
        cli.fail("--batch=any cannot be combined with --format=tflite, whose sizes are fixed; give a number.")
    if args.chunk < 0 or (args.chunk and not args.stream):
        cli.fail(f"--chunk={args.chunk} is not a number of steps of --stream; give both, such as --stream --chunk=1.")
    quantised.check(args.format, args.quantise, stream=args.stream)
    return args


def main() -> int:
    """Export the run, test the file, and print a line; return 1 if it differs from JAX."""
    args = parse()
    trained = load_trained(args.workdir, {"dir": str(args.data_dir)} if args.data_dir else {})
    setup, task, out = trained.setup, trained.setup.task, args.out or args.workdir / "export"
    path = out / f"{'stream' if args.stream else 'model'}{f'.{args.quantise}' * bool(args.quantise)}{export.FORMATS[args.format]}"
    if args.out and path.exists():  # what the run itself exported may be replaced
        raise UserError(f"--out: {path} is there already; remove it, or give another folder.")
    check_folder_writable("out", out)
    answer, light = task.answer(step=args.stream), folded(trained.inference, setup.example)
    splits = type(task).open(setup.config, setup.spec)
    check_data(setup.spec, splits.spec)
    whole = portable(trained.inference, answer)
    if args.stream:
        made = step_program(light, answer, args.batch, args.chunk)
        whole = silenced(whole)
    else:
        made = whole_program(portable(light, answer), args.batch, splits.test)
    about = {"task": task.name, "data": setup.spec.name, "classes": setup.spec.outputs, **whole.about, **made.stream}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    data = export.export(made.function, made.inputs, format=args.format, outputs=made.outputs, metadata=texts, examples=made.examples)
    batch, size = TESTED if args.batch == ANY else int(args.batch), ""
    if args.quantise:
        float32, options = len(data), dict(format=args.format, dtype=args.quantise)
        data = quantised.quantised(data, trained, whole.arguments, splits.train, batch, **options)
        size = f" ({len(data) / float32:.2f} of float32; kernels computed: {kernels_of(data, args.format)})"
    run = made.wrap(export.load_exported(data, format=args.format))
    result = test(trained, whole, run, splits.test, batch)
    name = task.best_by
    print(
        f"{path.name}: {len(data) / 1e6:.2f} MB{size}, "
        f"{result.examples} test examples: largest difference from JAX {result.difference:.1e}, "
        f"{name} {result.metric:.4f} (JAX {result.metric_jax:.4f}), {result.ms:.2f} ms per example (JAX {result.ms_jax:.2f})"
    )
    if problem := problem_of(trained, result, args.quantise):
        print(f"error: {path} was not written, since {problem}.", file=sys.stderr)
        return 1
    if not trained.finished:
        print("note: the run is not finished; the file has its best parameters so far.", file=sys.stderr)
    make_folder(out)
    described = describe(trained, whole, made, path, args.format, result) | ({"quantised": args.quantise} if args.quantise else {})
    write_files({path: data, path.with_suffix(".json"): (json.dumps(described, indent=2) + "\n").encode()})
    return 0


if __name__ == "__main__":
    cli.run(main)
