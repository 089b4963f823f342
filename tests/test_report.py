"""The report of a run on real digits, and of runs that end oddly."""

from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from train import report

RNG = np.random.default_rng(0)
CURVES = [{"step": s, "train/loss": 2 / s, "train/accuracy": 1 - 0.5 / s} for s in range(1, 50)]


def write(folder, images, labels, probabilities, *, history=CURVES, first_kernel=None, feature_maps=None):
    classes = probabilities.shape[1]
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    return report.write_report(
        folder,
        title="a run",
        config_text="{}",
        history=history,
        metrics={"test/accuracy": float((probabilities.argmax(1) == labels).mean())},
        versions={"jax": "1.2.3"},
        seconds=1.0,
        class_names=[f"{i}" for i in range(classes)],
        confusion=confusion,
        images=images,
        labels=labels,
        probabilities=probabilities,
        first_kernel=first_kernel,
        feature_maps=feature_maps or {},
    )


def random_run(classes: int, channels: int, n: int = 6, *, right: bool = False):
    probabilities = RNG.dirichlet(np.ones(classes), n)
    labels = probabilities.argmax(1) if right else RNG.integers(0, classes, n)
    return RNG.integers(0, 256, (n, 5, 7, channels), np.uint8), labels, probabilities


def test_report_of_real_digits(tmp_path):
    digits: Any = load_digits()
    pixels, labels = digits.data / 16, digits.target
    model = LogisticRegression(tol=1e-2, max_iter=300).fit(pixels[:900], labels[:900])
    images = np.round(digits.images[900:, ..., None] * (255 / 16)).astype(np.uint8)
    maps = {f"conv_{d}, dilation {d}": RNG.normal(size=(8, 8, 9)) for d in (1, 2, 4)}
    kernel = RNG.normal(size=(3, 3, 1, 16))
    path = write(tmp_path, images, labels[900:], model.predict_proba(pixels[900:]), first_kernel=kernel, feature_maps=maps)
    pictures = sorted(path.parent.glob("*.png"))
    assert [p.stem for p in pictures] == ["confusion_matrix", "feature_maps", "first_kernels", "learning_curves", "predictions"]
    for picture in pictures:
        assert f"({picture.name})" in path.read_text()
        with Image.open(picture) as image:
            assert min(image.size) > 100
            assert np.asarray(image.convert("L")).std() > 5


@pytest.mark.parametrize(
    "run",
    [random_run(2, 1, right=True), random_run(2, 3, 1), random_run(1000, 3), random_run(7, 4), random_run(10, 1, 60)],
    ids=["no mistakes", "one image", "1000 classes", "4 channels", "more than are shown"],
)
@pytest.mark.parametrize("history", [CURVES[:1], [{"step": 3, "validation/accuracy": 0.5}], [{"step": 1, "train/loss": float("nan")}]])
def test_odd_ends_do_not_break_the_report(tmp_path, run, history):
    path = write(tmp_path, *run, history=history)
    assert {p.stem for p in path.parent.glob("*.png")} == {"learning_curves", "confusion_matrix", "predictions"}
    assert "first_kernels" not in path.read_text()
    assert "feature_maps" not in path.read_text()


def test_a_report_is_written_anew(tmp_path):
    first = write(tmp_path, *random_run(2, 1)).read_text()
    again = write(tmp_path, *random_run(2, 1, right=True)).read_text()
    assert "| test/accuracy | 1.0000 |" in again
    assert first.count("##") == again.count("##")


def test_without_mistakes_the_least_sure_come_first():
    _, labels, probabilities = random_run(5, 1, 30, right=True)
    assert np.all(np.diff(probabilities.max(1)[report.most_telling(labels, probabilities)]) >= 0)
