"""Every config, in every variant, builds and takes one step on images of its shape; a locked config refuses a misspelt key."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

from dilax.errors import UserError
from train import run
from train.config import default_config, from_json, model_config, to_json

NAMES = sorted(path.stem for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py") if path.stem != "__init__")
VARIANTS = {
    "camvid": ("full", "scratch", "no_dilation", "smoke"),
    "cifar": ("full", "cpu", "smoke"),
    "finetune_digits": ("full", "scratch", "smoke"),
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
SEGMENTED = {"camvid": 11, "cells": 3, "folder": 21}
# Takes long to compile on a CPU; but for voc and cifar, the smoke variant compiles the same network.
TRACED = [
    ("voc", "full"),
    ("cifar", "full"),
    ("cells", "full"),
    ("pretrain_camvid", "full"),
    *(("camvid", v) for v in ("full", "scratch", "no_dilation")),
]


def get(name: str, variant: str):
    return importlib.import_module(f"configs.{name}").get_config(variant)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_builds_and_steps(name, variant):
    config = get(name, variant)
    assert to_json(from_json(to_json(config))) == to_json(config)
    config.lock()
    shape, classes = SHAPES[config.data.name], SEGMENTED.get(config.data.name) or len(config.data.classes) or 10
    made = run.setup(config, classes, shape, 1000)
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (2, *shape), np.uint8), "label": rng.integers(0, classes, 2, np.int32)}
    if config.task == "segmentation":
        batch["label"] = rng.integers(0, classes, (2, *shape[:2]), np.uint8)
    if (name, variant) in TRACED:
        state, _ = jax.eval_shape(made.steps.train, jax.eval_shape(made.steps.init, made.shapes), batch, jax.random.key(0))
        assert jax.tree.map(lambda a: a.shape, state.params) == jax.tree.map(lambda a: a.shape, made.shapes["params"])
        return
    # The step runs once: compile it fast.
    step = jax.jit(made.steps.train, compiler_options={"xla_backend_optimization_level": 0})
    state, sums = step(made.steps.init(made.init()), batch, jax.random.key(0))
    assert np.isfinite(float(sums["loss"]))
    assert int(state.step) == 1
    moved = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(made.init()["params"]), jax.tree.leaves(state.params))]
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
    assert {"num_classes", "dtype", "axis_name", "backbone"}.isdisjoint({**model_config("separable_cnn"), **model_config("fcn_resnet50")})
    with pytest.raises(UserError, match=r"config\.model\.name='x' is unknown"):
        model_config("x")
