"""Reports: of real digits, of runs that end oddly, of masks in files, and of tables in their units."""

import dataclasses
import pathlib
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from ml_collections import ConfigDict
from PIL import Image
from task_cases import CASES

import dilax
from dilax import DataSpec, Inference
from train import finish, report
from train.config import default_config, model_config, to_json
from train.data import Splits, Table
from train.data.source import Lazy, field, files_of, hold, subset
from train.tasks.base import Scores
from train.tasks.classification import Classification
from train.tasks.images import most_telling
from train.tasks.segmentation import Segmentation
from train.tasks.sequence_prediction import SequencePrediction

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
    splits = tiny_runs.digits()
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
    for words in (
        "# a run: classification of given by dilated_cnn\n",
        "| test/accuracy | 0.",
        "| time | 61 s |",
        f"| jax | {jax.__version__} |",
        f"| dilax | {dilax.__version__} |",
    ):
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


TITLES = {
    ("flowers", "classification", "resnet50", "folder", "~/pictures/oxford"): "flowers: classification of oxford (folder) by resnet50",
    ("a", "sequence_prediction", "tcn", "csv", "x/power.csv"): "a: sequence prediction of power.csv (csv) by tcn",
    ("a", "classification", "dilated_cnn", "cifar10", ""): "a: classification of cifar10 by dilated_cnn",
    ("a", "sequence_classification", "tcn", "ucr:GunPoint", "archive"): "a: sequence classification of ucr:GunPoint by tcn",
}


@pytest.mark.parametrize("given", TITLES)
def test_titles_name_the_data(given):
    assert report.title(*given) == TITLES[given]


def test_the_folder_of_many_datasets_is_not_the_name_of_one(tmp_path):
    (tmp_path / "camvid").mkdir()
    for data in ("camvid", "camvid/small:1.0.0"):
        assert report.title("a", "segmentation", "fcn", data, str(tmp_path)) == f"a: segmentation of {data} by fcn"


def test_the_number_of_parameters_is_reported(tmp_path):
    model = dilax.models.create("dilated_cnn", num_classes=2, features=(4,), dilations=(2,), pools=(1,))
    path, _ = write(tmp_path, *random_run(2, 3), model=model)
    shapes = shapes_of(model, jnp.zeros((1, 5, 7, 3)))["params"]
    assert f"| parameters | {sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes)):,} |" in path.read_text()


def test_parts_of_a_source_keep_the_names_of_their_files():
    records = [{"label": np.int32(i)} for i in range(7)]
    lazy = Lazy(7, lambda indices: [records[i] for i in indices], files=tuple("abcdefg"))
    chosen = np.array([5, 0, 3])
    for source in (lazy, hold(lazy)):
        part = subset(source, chosen)
        assert files_of(part) == files_of(hold(part)) == tuple("fad")
        assert files_of(subset(part, np.array([2, 0]))) == tuple("df")
    assert files_of(subset(Table({"label": np.arange(7)}), chosen)) == ()


def initial(spec: DataSpec) -> Any:
    return Colours().init(jax.random.key(0), jnp.zeros((1, *spec.input_shape)), train=False)


def table_of(section: str) -> list[list[str]]:
    """The cells of a table in Markdown, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines]


def iou_of(truth: np.ndarray, predicted: np.ndarray) -> float:
    known = truth != 255
    shares = [
        ((truth == i) & (predicted == i))[known].sum() / union for i in (0, 1) if (union := ((truth == i) | (predicted == i))[known].sum())
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize("memory_mb", [0, 100])
def test_the_worst_images_have_the_names_of_their_files(tmp_path, memory_mb, capsys):
    config = CASES["masks"].config(tmp_path)
    config.data.memory_mb = memory_mb
    for folder in ("images", "masks"):
        for path in (tmp_path / "data" / folder).iterdir():
            path.rename(path.with_name(f"\N{CJK UNIFIED IDEOGRAPH-732B}|{'long ' * 9}{path.name}"))
    splits = Segmentation.open(config)
    spec = splits.spec

    class Guess(Inference):
        def segment(self, images: Any, **_: Any) -> np.ndarray:
            return (np.asarray(images).mean(-1) > 120).astype(np.uint8)

    shown = Segmentation(config, spec).report(Guess(Colours(), initial(spec), spec), splits, Scores({"confusion": np.eye(2)}, {}), tmp_path)
    rows = table_of(shown.sections[0])
    assert len(rows) == 6 and [score for _, score in rows] == sorted(score for _, score in rows)
    expected = {}
    for path in (tmp_path / "data" / "images").iterdir():
        image, mask = (np.asarray(Image.open(file)) for file in (path, tmp_path / "data" / "masks" / path.name))
        expected[f"images/{path.name}"] = f"{iou_of(mask, image.mean(-1) > 120):.3f}"
    assert {file.replace("\0", "|"): score for file, score in rows}.items() <= expected.items()
    (figure,) = [figure for name, figure in shown.pictures.values() if name == "worst"]
    titles = [axes.get_title(loc="left") for axes in figure.axes[::3]]
    assert titles == [f"IoU {score}, \N{HORIZONTAL ELLIPSIS}{file.replace(chr(0), '|')[-23:]}" for file, score in rows]


def test_mistakes_are_listed_with_their_files(tmp_path):
    images, labels, probabilities = random_run(3, 1, 12)
    names = tuple(f"{i}.png" for i in range(12))
    spec = DataSpec("given", images.shape[1:], ("a", "b", "c"))
    answers = {image.tobytes(): row for image, row in zip(images, probabilities)}
    config = default_config("a run")
    for files in (names, ()):
        test = Table({"image": images, "label": labels.astype(np.int32)}, files)
        scores = Scores({"confusion": np.eye(3)}, {})
        task, inference = Classification(config, spec), Given(Colours(), initial(spec), spec, answers=answers)
        sections = task.report(inference, Splits(spec, test, None, test), scores, tmp_path).sections
        wrong = {
            (name, "abc"[true], f"{'abc'[row.argmax()]} ({row.max():.0%})")
            for name, true, row in zip(names, labels, probabilities)
            if row.argmax() != true
        }
        assert [set(map(tuple, table_of(section))) for section in sections] == ([wrong] if files else [])


@pytest.mark.parametrize("columns", [2, 12])
def test_forecasts_are_in_the_units_of_the_table_beside_persistence(tmp_path, columns):
    config = CASES["table"].config(tmp_path)
    rows = np.cumsum(RNG.normal(size=(300, columns)) * np.arange(1, columns + 1), axis=0).round(3)
    names = [f"column{i}" for i in range(columns)]
    pathlib.Path(config.data.dir).write_text("\n".join([",".join(names), *(",".join(map(str, row)) for row in rows)]) + "\n")
    splits = SequencePrediction.open(config)
    mean, std = rows[:210].mean(0), rows[:210].std(0)

    class Half(Inference):
        def outputs(self, x: Any, *, length: Any = None) -> Any:
            return jnp.asarray(x) / 2

    spec = splits.spec
    shown = SequencePrediction(config, spec).report(Half(Colours(), {}, spec), splits, Scores({}, {}), tmp_path)
    figure = shown.pictures["Test rows"][1]
    assert [axes.get_ylabel() for axes in figure.axes] == names[:10]
    assert figure.axes[-1].get_xlabel() == "row of the test split"
    assert ("the first 10 of 12 columns" in figure.get_suptitle()) == (columns > 10)
    before, after = rows[240:272], rows[241:273]
    expected = {"true": after, "persistence": before, "predicted": (before - mean) / 2 + mean}
    for i, axes in enumerate(figure.axes):
        for line in axes.lines:
            np.testing.assert_array_equal(line.get_xdata(), np.arange(2, 34))
            np.testing.assert_allclose(line.get_ydata(), expected[line.get_label()][:, i], rtol=1e-4, atol=1e-3)
    test, changes = rows[240:], np.diff(rows[240:], axis=0)
    errors = {"network": (test[:-1] - mean) / 2 + mean - test[1:], "persistence": changes}
    for name, ours, theirs in table_of(shown.sections[0]):
        i = names.index(name)
        units = [np.sqrt(np.square(values[:, i]).mean()) for values in errors.values()]
        np.testing.assert_allclose([float(ours), float(theirs)], units, rtol=2e-3)
    means = [np.square(values / std).mean() for values in errors.values()]
    assert f"repeats each row has a mean squared error of {means[1]:.4f}. That of the network is {means[0]:.4f}." in shown.sections[0]
