"""The end of a run: the test split is scored, once, with the best parameters; the figures and the report are written."""

import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import dilax.summary
from dilax import plots
from dilax.blocks import ConvNormAct
from dilax.errors import UserError
from train import checkpoint, data, report, sequence_report
from train.config import SEQUENCE_TASKS, to_json
from train.evaluate import named_iou, score
from train.predict import classifier, segmenter
from train.run import Setup, versions, write_status
from train.step import Steps
from train.writers import Writer

SHOWN, SHOWN_MASKS = 1000, 240  # test images that the report chooses from, to classify and to segment


def finish(workdir: pathlib.Path, made: Setup, splits: data.Splits, best: checkpoint.Store, writer: Writer, seconds: float) -> None:
    """Score the test split with the best variables, write the last line of the metrics, the status and the report."""
    parallel, config = made.parallel, made.config
    found = best.restore(made.shapes, parallel.replicated)
    if found is None:
        raise UserError(f"{best.folder} is damaged and there is no other; train the run again with --restart.")
    step, variables = found
    metrics, sums = score(made, parallel.put(variables), splits.test)
    each = named_iou(sums["confusion"], splits.class_names) if config.task == "segmentation" else {}
    figures = {f"test/{name}": value for name, value in (metrics | each).items()}
    writer.scalars(made.total_steps, {**figures, "best_step": step, "total_seconds": seconds})
    write_status(
        workdir,
        finished=True,
        step=made.total_steps,
        metrics={f"test/{name}": value for name, value in metrics.items()},
        train_seconds=seconds,
    )
    print(
        "  ".join(f"test/{name} {value:.4f}" for name, value in metrics.items()) + f"  ({seconds:.0f} s, parameters of step {step})",
        flush=True,
    )
    if config.report:
        shown = _sequence_report if config.task in SEQUENCE_TASKS else _report
        path = shown(workdir, made, splits, jax.device_get(variables), sums, writer, figures, seconds)
        print(f"report: {path}", flush=True)


def _report(
    workdir: pathlib.Path,
    made: Setup,
    splits: data.Splits,
    variables: Any,
    sums: dict[str, np.ndarray],
    writer: Writer,
    figures: dict[str, float],
    seconds: float,
) -> pathlib.Path:
    numbers, images, labels = _spread(splits.test, SHOWN if made.config.task == "classification" else SHOWN_MASKS)
    writer.images(made.total_steps, "test/images", images[:16])
    common: dict[str, Any] = dict(
        title=made.config.name,
        config_text=to_json(made.config),
        history=writer.history,
        metrics=figures,
        versions=versions(),
        seconds=seconds,
        class_names=splits.class_names,
        confusion=sums["confusion"],
        images=images,
        feature_maps=feature_maps(made.steps, variables, images[:1]),
    )
    if made.config.task == "segmentation":
        predictions = _in_parts(segmenter(made.steps, variables), images, 8)
        ignored = made.config.segmentation.ignored_label
        return report.write_segmentation_report(workdir, numbers=numbers, truths=labels, predictions=predictions, ignored=ignored, **common)
    probabilities = _in_parts(classifier(made.steps, variables), images, 100)
    return report.write_report(workdir, labels=labels, probabilities=probabilities, first_kernel=first_kernel(made, variables), **common)


def _sequence_report(
    workdir: pathlib.Path,
    made: Setup,
    splits: data.Splits,
    variables: Any,
    sums: dict[str, np.ndarray],
    writer: Writer,
    figures: dict[str, float],
    seconds: float,
) -> pathlib.Path:
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    curves = ("loss", "accuracy") if "test/accuracy" in figures else ("loss",)
    pictures = {"Learning curves": ("learning_curves", plots.learning_curves(writer.history, metrics=curves))}
    more, sections = sequence_report.contents(folder, made, splits, variables, sums)
    tables = report.tables(figures, versions(), seconds)
    return report.write(workdir, made.config.name, to_json(made.config), tables, pictures | more, sections)


def _spread(source: data.Source, most: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return places, images and labels of up to `most` records, spread over the split."""
    chosen = np.linspace(0, len(source) - 1, min(most, len(source))).astype(int).tolist()
    records = [source[i] for i in chosen]
    return chosen, np.stack([r["image"] for r in records]), np.array([r["label"] for r in records])


def _in_parts(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([function(images[i : i + size]) for i in range(0, len(images), size)])


def first_kernel(made: Setup, variables: Any) -> np.ndarray | None:
    """Return the kernel (*window, c_in, c_out) of the first convolution that runs, or None."""
    for layer in dilax.summary.layers(made.steps.model, made.example):
        node = variables["params"]
        for name in layer.path:
            node = node[name]
        for name, leaf in node.items():
            if "kernel" in name and leaf.ndim > 2:
                return np.asarray(leaf)
    return None


def feature_maps(steps: Steps, variables: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the first layer of each dilation makes of one image (1, height, width, channels).

    Returns:
        {"layer, dilation d": (height, width, channels)}, in the order the layers run.
    """
    maps: dict[Any, tuple[str, np.ndarray]] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        layer = context.module
        if isinstance(layer, ConvNormAct) and context.method_name == "__call__" and layer.dilation not in maps:
            maps[layer.dilation] = "/".join(layer.path), np.asarray(y[0], np.float32)
        return y

    with nn.intercept_methods(record):
        steps.outputs(variables, {"image": images})
    return {f"{path}, dilation {dilation}": values for dilation, (path, values) in maps.items()}
