"""Every config, in every variant, builds and takes one step on images of its shape; a locked config refuses a misspelt key."""

import importlib
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from dilax import DataSpec
from dilax.errors import UserError
from dilax.loading import leaves_with_paths
from train import listing
from train.build import build
from train.config import default_config, from_json, model_config, to_json

NAMES = sorted(path.stem for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py") if path.stem != "__init__")
VARIANTS = {
    "camvid": ("full", "scratch", "no_dilation", "smoke"),
    "cifar": ("full", "cpu", "smoke"),
    "finetune_digits": ("full", "scratch", "smoke"),
    "separation": ("full", "cpu", "smoke"),
    "timeseries": ("full", "OSULeaf", "ACSF1", "GunPoint", "smoke"),
}
CASES = [(name, variant) for name in NAMES for variant in VARIANTS.get(name, ("full", "smoke"))]
SHAPES = {
    "digits": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "fashion_mnist": (28, 28, 1),
    "camvid": (180, 240, 3),
    "cells": (210, 96, 3),
    "folder": (500, 500, 3),
}
# Of sequences: shape of an input, outputs, symbols. Some windows are shorter here: only how long a step takes depends on it.
SEQUENCES = {
    "adding": ((40, 2), 1, 0),
    "bible": ((40,), 66, 66),
    "copy_memory": ((40,), 10, 10),
    "csv": ((40, 3), 3, 0),
    "digits": ((784, 1), 10, 0),
    "piano": ((40, 88), 88, 0),
    "ucr:ACSF1": ((60, 1), 10, 0),
    "ucr:GunPoint": ((60, 1), 2, 0),
    "ucr:OSULeaf": ((60, 1), 6, 0),
    "wav, waveform": ((40,), 256, 256),
    "wav, sequence_classification": ((40, 32), 10, 0),
    "mixtures": ((40, 1), 2, 0),
    "text": ((40,), 2, 256),
}
SEGMENTED = {"camvid": 11, "cells": 3, "folder": 21}
RNG = np.random.default_rng(0)


def get(name: str, variant: str):
    return importlib.import_module(f"configs.{name}").get_config(variant)


def image_batch(config: Any, shape: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
    labels = RNG.integers(0, classes, (2, *shape[:2]), np.uint8) if config.task == "segmentation" else RNG.integers(0, classes, 2, np.int32)
    return {"image": RNG.integers(0, 256, (2, *shape), np.uint8), "label": labels}


def sequence_batch(config: Any, shape: tuple[int, ...], outputs: int, symbols: int) -> dict[str, np.ndarray]:
    if config.data.name == "digits":
        return image_batch(config, (28, 28, 1), outputs)
    lengths = np.array([shape[0], shape[0] // 2], np.int32)
    x = RNG.integers(0, symbols, (2, *shape), np.int32) if symbols else RNG.normal(size=(2, *shape)).astype(np.float32)
    if config.task == "sequence_classification":
        return {"input": x, "length": lengths, "label": RNG.integers(0, outputs, 2, np.int32)}
    if config.task == "separation":
        return {"input": x, "length": lengths, "label": RNG.normal(size=(2, shape[0], outputs)).astype(np.float32)}
    shaped = (2, shape[0]) if symbols else (2, shape[0], outputs)
    label = RNG.integers(0, outputs, shaped, np.int32) if symbols else RNG.random(shaped).astype(np.float32)
    return {"input": x, "length": lengths, "label": label, "counted": np.arange(shape[0])[None] < lengths[:, None]}


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_builds_and_steps(name, variant):
    config = get(name, variant)
    assert to_json(from_json(to_json(config))) == to_json(config)
    config.lock()
    if "sequence" in config:
        shape, outputs, symbols = SEQUENCES.get(config.data.name) or SEQUENCES[f"{config.data.name}, {config.task}"]
        batch = sequence_batch(config, shape, outputs, symbols)
    else:
        shape, symbols = SHAPES[config.data.name], 0
        outputs = SEGMENTED.get(config.data.name) or len(config.data.classes) or 10
        batch = image_batch(config, shape, outputs)
    order = "" if shape != (784, 1) else "permuted" if config.sequence.permute else "rows"
    names, codes = (tuple(map(str, range(count))) for count in (outputs, symbols))
    setup = build(config, DataSpec(config.data.name, shape, names, 1000, codes, pixels=order))
    if variant != "smoke":  # which takes the same step on fewer or narrower layers, and compiles
        state, _ = jax.eval_shape(setup.steps.train, jax.eval_shape(setup.steps.init, setup.shapes), batch, jax.random.key(0))
        assert jax.tree.map(lambda a: a.shape, state.params) == jax.tree.map(lambda a: a.shape, setup.shapes["params"])
        return
    state, sums = jax.jit(setup.steps.train)(setup.steps.init(setup.init()), batch, jax.random.key(0))
    assert np.isfinite(float(sums["loss"]))
    assert int(state.step) == 1
    before, after = (dict(leaves_with_paths(params)) for params in (setup.init()["params"], state.params))
    # What the last unit of a WaveNet passes on goes nowhere.
    last = f"unit{len(config.model.dilations) - 1}/residual" if config.model.name == "wavenet" else "none"
    moved = [not np.array_equal(before[path], after[path]) for path in before if last not in path]
    assert all(moved)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_folders(name):
    assert get(name, "full").name == name
    with pytest.raises(UserError, match=rf"configs/{name}.py has no variant 'ful'.*Did you mean \"full\""):
        get(name, "ful")


def test_a_locked_config_refuses_a_misspelt_key():
    config = default_config("x").lock()
    with pytest.raises(AttributeError, match='Did you mean "batch_size"'):
        config.batch_sizes = 3


def test_model_config_knows_all_fields_of_a_model():
    assert model_config("dilated_cnn", features=(1,))["features"] == (1,)
    assert {"num_classes", "dtype", "backbone"}.isdisjoint({**model_config("separable_cnn"), **model_config("fcn_resnet50")})
    with pytest.raises(UserError, match=r"config\.model\.name='x' is unknown"):
        model_config("x")


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections reads config files with it
def test_the_list_names_every_config(root):
    lines = listing.table(root / "configs").splitlines()
    assert lines[0].split() == ["config", "task", "data", "measured", "time"]
    for name in NAMES:
        assert any(f"configs/{name}.py" in line for line in lines), name
    (digits,) = (line for line in lines if "configs/digits.py" in line)
    assert "98.8 % test accuracy (seed 0)" in digits
    assert " classification " in digits
