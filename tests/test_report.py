"""The report of runs that classify: of real digits, and of runs that end oddly."""

import dataclasses
import pathlib
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict
from PIL import Image

import dilax
from dilax import DataSpec, Inference
from train import finish
from train.config import default_config, model_config, to_json
from train.data import Splits, Table
from train.data.source import field
from train.tasks.base import Scores
from train.tasks.classification import Classification
from train.tasks.images import most_telling

RNG = np.random.default_rng(0)
CURVES = [{"step": s, "train/loss": 2 / s, "train/accuracy": 1 - 0.5 / s} for s in range(1, 50)]


class Colours(nn.Module):
    """A model without any convolution."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(1)(x.mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class Given(Inference):
    """An inference whose probabilities are given: `answers` maps the bytes of an image to them."""

    answers: dict[bytes, np.ndarray] = dataclasses.field(default_factory=dict)

    def probabilities(self, x: Any, *, length: Any = None) -> np.ndarray:
        return np.stack([self.answers[image.tobytes()] for image in x])


def shapes_of(model: nn.Module, example: jax.Array) -> Any:
    return jax.eval_shape(lambda: model.init(jax.random.key(0), example, train=False))


def write(
    workdir: pathlib.Path,
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    history: Any = CURVES,
    model: nn.Module | None = None,
) -> tuple[pathlib.Path, np.ndarray]:
    """Write the report of a run that gave these probabilities; return its path and the images for TensorBoard."""
    classes, example = probabilities.shape[1], jnp.zeros((1, *images.shape[1:]))
    model = model or Colours()
    variables = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes_of(model, example))
    spec = DataSpec("given", images.shape[1:], tuple(f"name{i}" for i in range(classes)))
    answers = {image.tobytes(): row for image, row in zip(images, probabilities)}
    inference = Given(model, variables, spec, answers=answers)
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    config, shown = default_config("a run"), []
    config.model = ConfigDict(model_config("dilated_cnn"))
    setup: Any = SimpleNamespace(config=config, task=Classification(config, spec), total_steps=49, inference=lambda variables: inference)
    writer: Any = SimpleNamespace(history=history, images=lambda step, name, images: shown.append(images))
    test = Table({"image": images, "label": labels.astype(np.int32)})
    metrics = {"test/accuracy": float((probabilities.argmax(1) == labels).mean())}
    scores = Scores({"confusion": confusion}, {})
    path = finish.write_report(workdir, setup, Splits(spec, test, None, test), variables, scores, writer, metrics, 61.4)
    assert to_json(config) in path.read_text()
    return path, shown[0]


def random_run(classes: int, channels: int, n: int = 6, *, right: bool = False):
    probabilities = RNG.dirichlet(np.ones(classes), n)
    labels = probabilities.argmax(1) if right else RNG.integers(0, classes, n)
    return RNG.integers(0, 256, (n, 5, 7, channels), np.uint8), labels, probabilities


def pictures_of(path: pathlib.Path) -> list[str]:
    """The pictures beside a report, which shows each of them."""
    pictures = sorted(path.parent.glob("*.png"))
    shown = [line.split("(")[-1].rstrip(")") for line in path.read_text().splitlines() if line.startswith("![")]
    assert sorted(shown) == [picture.name for picture in pictures]
    for picture in pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 100
            assert np.asarray(image.convert("L")).std() > 5
    return [picture.stem for picture in pictures]


def test_report_of_real_digits(tmp_path):
    splits = runs.digits()
    (pixels, labels), (test, truth) = ((field(split, "image"), field(split, "label")) for split in (splits.train, splits.test))
    centres = np.stack([pixels[labels == digit].mean(0) for digit in range(10)])
    distances = np.square((test[:, None] - centres) / 100).sum((2, 3, 4))
    probabilities = np.exp(-distances) / np.exp(-distances).sum(1, keepdims=True)
    assert 0.8 < (probabilities.argmax(1) == truth).mean() < 1
    model = dilax.models.create("dilated_cnn", num_classes=10, features=(9, 9, 9), dilations=(1, 2, 4), pools=(1, 1, 1))
    path, shown = write(tmp_path, test, truth, probabilities, model=model)
    assert pictures_of(path) == ["confusion_matrix", "feature_maps", "first_kernels", "learning_curves", "predictions"]
    np.testing.assert_array_equal(shown, test[:16])


@pytest.mark.parametrize(("classes", "channels", "kernels"), [(2, 1, True), (10, 3, False), (120, 3, True)])
def test_report(tmp_path, classes, channels, kernels):
    model = dilax.models.create("dilated_cnn", num_classes=classes, features=(4,), dilations=(2,), pools=(1,)) if kernels else None
    path, _ = write(tmp_path, *random_run(classes, channels, 12), model=model)
    assert len(pictures_of(path)) == (5 if kernels else 3)
    text = path.read_text()
    for words in ("# a run", "| test/accuracy | 0.", "| time | 61 s |", f"| jax | {jax.__version__} |", f"| dilax | {dilax.__version__} |"):
        assert words in text


ODD = {
    "no mistakes": (random_run(2, 1, right=True), CURVES[:1]),
    "one image": (random_run(2, 3, 1), CURVES),
    "1000 classes": (random_run(1000, 3), CURVES),
    "4 channels": (random_run(7, 4), CURVES),
    "more than are shown": (random_run(10, 1, 60), CURVES),
    "one step": (random_run(3, 1), CURVES[:1]),
    "no training": (random_run(3, 1), [{"step": 3, "validation/accuracy": 0.5}]),
    "not finite": (random_run(3, 1), [{"step": 1, "train/loss": float("nan")}]),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_ends_do_not_break_the_report(name, tmp_path):
    run, history = ODD[name]
    path, _ = write(tmp_path, *run, history=history)
    assert {p.stem for p in path.parent.glob("*.png")} == {"learning_curves", "confusion_matrix", "predictions"}
    assert "first_kernels" not in path.read_text()
    assert "feature_maps" not in path.read_text()


def test_a_report_is_written_anew(tmp_path):
    first = write(tmp_path, *random_run(2, 1))[0].read_text()
    again = write(tmp_path, *random_run(2, 1, right=True))[0].read_text()
    assert "| test/accuracy | 1.0000 |" in again
    assert first.count("##") == again.count("##")


def test_order_of_the_examples():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55], [0.7, 0.3]])
    labels = np.array([0, 0, 0, 0, 1])
    # wrong: 2 (0.8), 4 (0.7), 3 (0.55); right: 1 (0.6), 0 (0.9)
    assert most_telling(labels, probabilities).tolist() == [2, 4, 3, 1, 0]


def test_without_mistakes_the_least_sure_come_first():
    _, labels, probabilities = random_run(5, 1, 30, right=True)
    assert np.all(np.diff(probabilities.max(1)[most_telling(labels, probabilities)]) >= 0)
