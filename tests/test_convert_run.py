"""Published weights as a run: it is evaluated, predicts and is fine-tuned from, on images standardised as the weights want them."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign import random_state

import dilax
from dilax import weights
from dilax.errors import UserError
from train import convert, data, predict, run, transfer
from train.config import default_config, from_json, model_config, to_json
from train.data.augment import seen, to_float
from train.evaluate import score

ROOT = Path(__file__).parents[1]
with np.load(ROOT / "tests" / "golden" / "networks.npz") as file:
    SHAPES: dict[str, list[int]] = json.loads(str(file["about"]))["published"]["torchvision:resnet18"]
CONFIG = """
from train.config import default_config
def get_config():
    config = default_config("two")
    config.data.update(name="folder", dir={folder!r}, image_size=40, class_names=("a", "b"))
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
    command = [
        "--from",
        "torchvision:resnet18",
        str(folder / "w.npz"),
        "--workdir",
        str(folder / "run"),
        "--config",
        str(folder / "two.py"),
    ]
    done = subprocess.run([sys.executable, "-m", "train.convert", *command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder / 'run'}: torchvision:resnet18, 11,177,538 parameters, 2 classes\n"
    return SimpleNamespace(folder=folder, run=folder / "run", weights=folder / "w.npz", command=command)


def test_the_run_is_evaluated_and_predicts(paths):
    trained = run.load_trained(paths.run)
    splits = data.open_splits(trained.config)
    images = np.stack([splits.test[i]["image"] for i in range(len(splits.test))])
    labels = np.stack([splits.test[i]["label"] for i in range(len(splits.test))])
    model, variables = dilax.load_weights("torchvision:resnet18", paths.weights)
    x = (images / 255 - np.array(weights.IMAGENET_MEAN)) / np.array(weights.IMAGENET_STD)
    expected = np.asarray(model.apply(variables, jnp.asarray(x, jnp.float32), train=False))
    np.testing.assert_allclose(jax.jit(trained.setup.steps.outputs)(trained.variables, {"image": images}), expected, rtol=1e-4, atol=1e-4)
    figures, _ = score(trained.setup, trained.setup.parallel.put(trained.variables), splits.test)
    assert figures["accuracy"] == pytest.approx((expected.argmax(-1) == labels).mean())
    path = str(paths.folder / "images" / "test" / "b" / "1.png")
    ((_, name, _),) = predict.predict(trained, [path])
    (found,) = [i for i in range(len(images)) if np.array_equal(images[i], predict.read_image(path, (40, 40, 3)))]
    assert name == "ab"[expected[found].argmax()]


def test_the_run_is_fine_tuned_from(paths, capsys):
    config = default_config("finer")
    config.model = model_config("resnet18")
    config.init_from, config.head_reset = str(paths.run), True
    model = dilax.models.create("resnet18", num_classes=7)
    target = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), target)
    merged, report = transfer.init_from(config, fresh)
    assert report.startswith(f"init_from {paths.run}: loaded 100 of 102 leaves")
    assert merged["params"]["head"]["kernel"].shape == (512, 7)
    warning = f"warning: {paths.run} was trained with data.mean=(0.485, 0.456, 0.406), and config.data.mean is (): set it to the same."
    assert warning in capsys.readouterr().err
    config.data.update(mean=weights.IMAGENET_MEAN, std=weights.IMAGENET_STD)
    transfer.init_from(config, fresh)
    assert capsys.readouterr().err == ""


def test_nothing_is_overwritten(paths):
    done = subprocess.run([sys.executable, "-m", "train.convert", *paths.command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: --workdir={paths.run} holds files already; give an empty or a new folder.\n")


def config_of(source: str, classes: int, base: Any = None) -> Any:
    return convert._config(source, SimpleNamespace(num_classes=classes, aux_head=classes == 21), base)


def test_what_published_weights_are_known_for():
    config, names = config_of("torchvision:deeplabv3_resnet50", 21)
    assert (config.task, config.data.name, config.model.aux_head, names[15]) == ("segmentation", "folder", True, "person")
    config, names = config_of("drn:drn_d_22", 1000)
    assert (config.task, config.data.name, config.data.image_size, names[999]) == ("classification", "imagenet2012", 224, "999")
    assert to_json(from_json(to_json(config))) == to_json(config)


@pytest.mark.parametrize(
    ("source", "classes", "changes", "words"),
    [
        ("drn:drn_d_22_segmenter", 19, None, "which data has these 19 classes is not known; give --config=FILE"),
        ("drn:drn_d_22", 10, {"task": "segmentation"}, "--config is of segmentation, and drn:drn_d_22 is a model for classification;"),
        ("drn:drn_d_22", 3, {"data.class_names": ("a", "b")}, "--config has 2 classes, and drn:drn_d_22 in this file has 3;"),
    ],
)
def test_configs_that_do_not_fit(source, classes, changes, words):
    base = None
    if changes is not None:
        base = default_config("x")
        base.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        config_of(source, classes, base)


def test_images_are_standardised_for_training_too():
    config = default_config("x")
    config.model = model_config("dilated_cnn", features=(4,), dilations=(1,), pools=(1,), dropout=0.0)
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)
    np.testing.assert_array_equal(seen(config, to_float(images)), to_float(images))
    config.data.update(mean=(0.1, 0.2, 0.3), std=(0.5, 0.2, 0.4))
    expected = (images / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.2, 0.4]
    np.testing.assert_allclose(seen(config, to_float(images)), expected, atol=1e-6)
    # With a learning rate of 0 the loss of a step is that of the logits of evaluation.
    config.optim.lr, config.optim.warmup_epochs = 0.0, 0.0
    made = run.setup(config, 2, (6, 6, 3), 10)
    state, labels = made.steps.init(made.init()), np.array([0, 1])
    _, sums = made.steps.train(state, {"image": jnp.asarray(images), "label": jnp.asarray(labels)}, jax.random.key(0))
    logits = made.steps.model.apply(state.variables(), jnp.asarray(expected, jnp.float32), train=True, mutable=["batch_stats"])[0]
    losses = -np.log(np.asarray(jax.nn.softmax(logits)))[np.arange(2), labels]
    np.testing.assert_allclose(sums["loss"], losses.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (0.5, 0.5)}, r"config\.data\.mean=\(0\.5, 0\.5\) must have one number for each of the 3 channels, or one\."),
        ({"std": (0.0,)}, r"config\.data\.std=\(0\.0,\) must be numbers"),
        ({"mean": (float("nan"),)}, r"config\.data\.mean=\(nan,\) must be numbers"),
    ],
)
def test_colours_that_cannot_be(changes, words):
    config = default_config("x")
    config.data.update(changes)
    with pytest.raises(UserError, match=words):
        run.setup(config, 2, (6, 6, 3), 10)
