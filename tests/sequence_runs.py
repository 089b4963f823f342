"""Runs on sequences that have learned something: their files, and what the command line would have them predict."""

import argparse
import functools
import io
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from task_cases import WORDS, write_mixtures, write_series, write_sounds, write_texts

from train import loop
from train.build import Trained, load_trained
from train.config import default_config, model_config, task_class
from train.data import Splits

TEMPORARY = tempfile.TemporaryDirectory(prefix="dilax-predict-", ignore_cleanup_errors=True)
FOLDER = pathlib.Path(TEMPORARY.name)


def write_words(folder: pathlib.Path) -> str:
    (folder / "words.txt").write_text(WORDS * 30)
    return str(folder / "words.txt")


def table_rows() -> np.ndarray:
    steps = np.arange(400)
    return np.stack([10 + 3 * np.sin(steps / 5), 100 * np.cos(steps / 7)], 1)


def write_dated_table(folder: pathlib.Path) -> str:
    (folder / "table.csv").write_text("date,warm,wet\n" + "".join(f"2020-{i},{a:.5f},{b:.5f}\n" for i, (a, b) in enumerate(table_rows())))
    return str(folder / "table.csv")


TCN = dict(kernel_size=2, features=(12, 12, 12))
TASNET = dict(features=24, bottleneck_features=12, hidden_features=16, skip_features=12, blocks=3, repeats=1)
# Task, data, function that writes the data, model, its fields, changes of the config.
RUNS: dict[str, tuple[str, str, Callable[[pathlib.Path], str], str, dict[str, Any], dict[str, Any]]] = {
    "text": (
        "language_model",
        "text",
        write_words,
        "tcn",
        dict(TCN, embedding_features=8),
        {"sequence.length": 24, "sequence.context": 8, "sequence.sample": 20, "total_epochs": 4.0},
    ),
    "table": (
        "sequence_prediction",
        "csv",
        write_dated_table,
        "tcn",
        TCN,
        {"sequence.length": 32, "sequence.context": 8, "sequence.test": 0.2, "data.missing": "interpolate", "total_epochs": 30.0},
    ),
    "series": ("sequence_classification", "ucr:toy", write_series, "tcn", TCN, {"sequence.pool": "mean", "total_epochs": 10.0}),
    "words": (
        "sequence_classification",
        "wav",
        write_sounds,
        "tcn",
        TCN,
        {"sequence.pool": "mean", "sequence.bands": 16, "total_epochs": 10.0, "report": False},  # it is made as that of the series
    ),
    "waves": (
        "waveform",
        "wav",
        write_sounds,
        "wavenet",
        dict(dilations=(1, 2, 4), features=8, skip_features=8),
        {"sequence.length": 400, "sequence.context": 8, "sequence.sample": 20, "total_epochs": 1.0},
    ),
    "voices": (
        "separation",
        "mixtures",
        write_mixtures,
        "conv_tasnet",
        TASNET,
        {"sequence.length": 400, "sequence.test": 0.2, "total_epochs": 15.0},
    ),
    "reviews": (
        "sequence_classification",
        "text",
        write_texts,
        "gated_dilated_cnn",
        dict(features=16, dilations=(1, 2), embedding_features=8),
        {"total_epochs": 20.0},
    ),
}


def data_of(name: str) -> pathlib.Path:
    return FOLDER / name / "data"


@functools.cache
def dir_of(name: str) -> str:
    """config.data.dir; the data is written once."""
    data_of(name).mkdir(parents=True)
    return RUNS[name][2](data_of(name))


def config_of(name: str, **changes: Any) -> Any:
    task, source, _, model, fields, own = RUNS[name]
    config = default_config(name, task=task)
    config.data.update(name=source, dir=dir_of(name))
    config.model = model_config(model, **fields)
    config.batch_size, config.eval_every_epochs = 8, 100.0
    config.optim.update(lr=2e-2, warmup_epochs=0.1, clip_norm=1.0)
    config.compilation_cache_dir = ""
    config.update_from_flattened_dict({**own, **changes})
    return config.lock()


def open_data(name: str, folder: object, **changes: Any) -> Splits:
    return task_class(RUNS[name][0]).open(config_of(name, **{"data.dir": str(folder), **changes}))


@functools.cache
def trained(name: str) -> Trained:
    """A finished run; see `RUNS`."""
    assert loop.run(config_of(name), FOLDER / name / "run") == 0
    return load_trained(FOLDER / name / "run")


def arguments(name: str, *words: str, out: pathlib.Path | None = None) -> argparse.Namespace:
    """What the command line makes of these words, with --out or without."""
    parser = argparse.ArgumentParser()
    task_class(RUNS[name][0]).add_prediction_flags(parser)
    args = parser.parse_args(words)
    args.out, args.replace = out or FOLDER / name / "run" / "predictions", out is None
    return args


def predict(name: str, *words: object, out: pathlib.Path | None = None) -> list[str]:
    run = trained(name)
    return list(run.setup.task.predict(run.inference, arguments(name, *map(str, words), out=out)))


def answers(name: str, lines: str, *words: str) -> list[str]:
    """What --stream writes for these lines."""
    run = trained(name)
    return [piece.decode() for piece in run.setup.task.stream(run.inference, io.BytesIO(lines.encode()), arguments(name, *words))]


def outputs_of(name: str, x: Any) -> np.ndarray:
    """Outputs of the model for one whole sequence."""
    return np.asarray(trained(name).inference.outputs(np.asarray(x)[None])[0])
