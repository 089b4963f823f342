"""Published weights as a run: it is evaluated, predicts and is fine-tuned from, on images standardised as the weights want them."""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign import random_state
from tiny_runs import refused

import dilax
from dilax import DataSpec, inputs, weights
from dilax.spec import to_float
from train import convert, transfer
from train.build import build, load_trained
from train.config import default_config, from_json, model_config, to_json
from train.data.source import gather
from train.score import score
from train.tasks.classification import Classification

ROOT = Path(__file__).parents[1]
with np.load(ROOT / "tests" / "golden" / "networks.npz") as file:
    SHAPES: dict[str, list[int]] = json.loads(str(file["about"]))["published"]["torchvision:resnet18"]
CONFIG = """
from train.config import default_config
def get_config():
    config = default_config("two")
    config.data.update(name="folder", dir={folder!r}, image_size=40)
    return config
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> SimpleNamespace:
    """Images of two classes, a state dict of ResNet-18 with two classes, the config of that data, and the run made of both."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("convert"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / "images" / split / name / f"{i}.png")
    shapes = {**SHAPES, "fc.weight": [2, 512], "fc.bias": [2]}
    np.savez(folder / "w.npz", allow_pickle=False, **random_state(shapes, 0))
    (folder / "two.py").write_text(CONFIG.format(folder=str(folder / "images")))
    words = ["--from", "torchvision:resnet18", str(folder / "w.npz"), "--workdir", str(folder / "run"), "--config", str(folder / "two.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["convert", *words])
        convert.main()
    return SimpleNamespace(folder=folder, run=folder / "run", weights=folder / "w.npz", words=words)


def test_what_is_printed(paths, tmp_path, monkeypatch, capsys):
    words = [str(tmp_path / "again") if word == str(paths.run) else word for word in paths.words]
    monkeypatch.setattr(sys, "argv", ["convert", *words])
    convert.main()
    assert capsys.readouterr().out == f"{tmp_path / 'again'}: torchvision:resnet18, 11,177,538 parameters, 2 classes\n"


def test_the_run_is_evaluated_and_predicts(paths):
    trained = load_trained(paths.run)
    setup, splits = trained.setup, Classification.open(trained.setup.config)
    assert (splits.spec.outputs, splits.spec.input_shape, splits.spec.mean) == (("a", "b"), (40, 40, 3), weights.IMAGENET_MEAN)
    batch = gather(splits.test, np.arange(len(splits.test)))
    model, variables = dilax.load_weights("torchvision:resnet18", paths.weights)
    x = (batch["image"] / 255 - np.array(weights.IMAGENET_MEAN)) / np.array(weights.IMAGENET_STD)
    expected = np.asarray(jax.jit(lambda x: model.apply(variables, x, train=False))(jnp.asarray(x, jnp.float32)))
    for inference in (trained.inference, dilax.load(paths.run)):
        outputs = np.concatenate([inference.outputs(image[None]) for image in batch["image"]])  # one program, that of predict
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    metrics, _ = score(setup, setup.parallel.put(trained.inference.variables), splits.test)
    assert metrics["accuracy"] == pytest.approx((expected.argmax(-1) == batch["label"]).mean())
    path = str(paths.folder / "images" / "test" / "b" / "1.png")
    (line,) = setup.task.predict(trained.inference, argparse.Namespace(inputs=[path], top=1, csv=False))
    (index,) = [i for i, image in enumerate(batch["image"]) if np.array_equal(image, inputs.fit(inputs.to_pixels(path, 3), 40, 40))]
    assert line.split("\t")[:2] == [path, "ab"[expected[index].argmax()]]


def test_the_run_is_fine_tuned_from(paths, capsys):
    config = default_config("finer")
    config.model = model_config("resnet18")
    config.init_from, config.head_reset = str(paths.run), True
    model = dilax.models.create("resnet18", num_classes=7)
    target = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), target)
    spec = DataSpec("other", (64, 64, 3), tuple("abcdefg"))
    merged, report = transfer.init_from(config, fresh, spec)
    assert report.startswith(f"init_from {paths.run}: loaded 100 of 102 leaves")
    assert merged["params"]["head"]["kernel"].shape == (512, 7)
    warning = f"warning: {paths.run} was trained with data.mean=(0.485, 0.456, 0.406), and config.data.mean is (): set it to the same."
    assert warning in capsys.readouterr().err
    transfer.init_from(config, fresh, DataSpec("other", (64, 64, 3), spec.outputs, mean=weights.IMAGENET_MEAN, std=weights.IMAGENET_STD))
    assert capsys.readouterr().err == ""


def test_nothing_is_overwritten(paths, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert", *paths.words])
    assert refused(convert.main) == f"--workdir={paths.run} holds files already; give an empty or a new folder."


def config_of(source: str, classes: int, base: Any = None) -> Any:
    return convert._config(source, SimpleNamespace(num_classes=classes, aux_head=classes == 21), base)


def test_what_published_weights_are_known_for():
    config, names = config_of("torchvision:deeplabv3_resnet50", 21)
    assert (config.task, config.data.name, config.model.aux_head, names[15]) == ("segmentation", "folder", True, "person")
    config, names = config_of("drn:drn_d_22", 1000)
    assert (config.task, config.data.name, config.data.image_size, names[999]) == ("classification", "imagenet2012", 224, "999")
    assert to_json(from_json(to_json(config))) == to_json(config)


@pytest.mark.parametrize(
    ("source", "classes", "changes", "text"),
    [
        (
            "drn:drn_d_22_segmenter",
            19,
            None,
            "drn:drn_d_22_segmenter: no data with 19 classes is known for it; give --config=FILE of a run on its data.",
        ),
        (
            "drn:drn_d_22",
            3,
            {"task": "segmentation", "data.class_names": ("a", "b")},
            "--config has 2 classes, and drn:drn_d_22 in this file has 3; give the config of its data.",
        ),
        (
            "drn:drn_d_22_segmenter",
            2,
            {"task": "segmentation", "data.class_names": ("a", "b")},
            "drn:drn_d_22_segmenter: its images were standardised by numbers of their own; set data.mean and data.std in the config.",
        ),
        (
            "drn:drn_d_22",
            3,
            {"task": "separation"},
            "--config is for the task separation, which is not on whole images; give the config of a run on images.",
        ),
    ],
)
def test_configs_that_do_not_fit(source, classes, changes, text):
    base = None
    if changes is not None:
        base = default_config("x", task=changes["task"])
        base.update_from_flattened_dict({key: value for key, value in changes.items() if key != "task"})
    assert refused(lambda: config_of(source, classes, base)) == text


def test_a_config_of_another_task_is_refused(paths, tmp_path):
    base = default_config("x", task="segmentation")
    text = refused(lambda: convert.convert("torchvision:resnet18", paths.weights, tmp_path / "run", base))
    assert text == (
        "config.model.name='resnet18' gives outputs of shape (1, 2), and config.task='segmentation' needs (1, 224, 224, 2); "
        "choose another model, or another task."
    )
    assert not (tmp_path / "run").exists()


def test_images_are_standardised_for_training_too():
    config = default_config("x")
    config.model = model_config("dilated_cnn", features=(4,), dilations=(1,), pools=(1,), dropout=0.0)
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)
    spec = DataSpec("x", (6, 6, 3), ("a", "b"), 10)
    np.testing.assert_array_equal(spec.prepare(jnp.asarray(images)), to_float(jnp.asarray(images)))
    mean: tuple[float, ...] = (0.1, 0.2, 0.3)
    std: tuple[float, ...] = (0.5, 0.2, 0.4)
    expected = (images / 255 - mean) / std
    spec = DataSpec("x", (6, 6, 3), ("a", "b"), 10, mean=mean, std=std)
    np.testing.assert_allclose(spec.prepare(jnp.asarray(images)), expected, atol=1e-6)
    # With a learning rate of 0 the loss of a step is that of the logits of evaluation.
    config.optim.lr, config.optim.warmup_epochs = 0.0, 0.0
    setup = build(config, spec)
    state, labels = setup.steps.init(setup.init()), np.array([0, 1])
    _, sums = jax.jit(setup.steps.train)(state, {"image": jnp.asarray(images), "label": jnp.asarray(labels)}, jax.random.key(0))
    logits = setup.steps.model.apply(state.variables(), jnp.asarray(expected, jnp.float32), train=True, mutable=["batch_stats"])[0]
    losses = -np.log(np.asarray(jax.nn.softmax(logits)))[np.arange(2), labels]
    np.testing.assert_allclose(sums["loss"], losses.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mean": (0.5, 0.5)}, "config.data.mean=(0.5, 0.5) must hold one number, or one for each of the 3 channels."),
        (
            {"std": (0.0,)},
            "config.data.std=(0.0,) must hold numbers above 0, up to 1, one per channel, or be (); divide values of 0 to 255.",
        ),
        (
            {"mean": (float("nan"),)},
            "config.data.mean=(nan,) must hold numbers from 0 to 1, one per channel, or be (); divide values of 0 to 255.",
        ),
    ],
)
def test_colours_that_cannot_be(changes, text, paths):
    config = default_config("x")
    config.data.update(name="folder", dir=str(paths.folder / "images"), validation=0.0, **changes)
    assert refused(lambda: build(config, Classification.open(config).spec)) == text
