"""Runs that segment: the step on one device, eight, in parts; exact metrics; several scales; whole runs, their report and predictions."""

import argparse
import functools
import json
import pathlib
import re
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny_runs import refused

import dilax
from dilax import DataSpec, Inference
from dilax.blocks import ConvNormAct
from dilax.errors import UserError
from dilax.loading import leaves_with_paths, read_status, read_variables
from dilax.losses import dice_loss, focal_loss, pixel_cross_entropy
from dilax.metrics import mean_iou
from dilax.views import average_views
from train import evaluate, loop, predict, transfer
from train.build import Setup, build, load_trained
from train.config import check, default_config, from_json, model_config, to_json
from train.data import Table
from train.score import score
from train.tasks import segmentation, segmentation_scores
from train.tasks.base import Scores
from train.tasks.images import spread
from train.tasks.segmentation import Segmentation
from train.writers import read_history

KEY = jax.random.key(3)
SHAPE, CLASSES, BATCH = (12, 10, 3), 4, 16


class Toy(nn.Module):
    """One dilated layer and two heads, the auxiliary one in training alone."""

    num_classes: int = 2
    norm: str = "batch"
    aux_head: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Any:
        x = ConvNormAct(5, dilation=2, norm=self.norm, dtype=self.dtype)(x, train=train)
        logits = nn.Conv(self.num_classes, (1, 1), name="head")(x)
        if not self.aux_head or not (train or self.is_initializing()):
            return logits
        aux = nn.Conv(self.num_classes, (1, 1), name="aux")(x)
        return (logits, aux) if train else logits


@pytest.fixture(autouse=True)
def known_toy(monkeypatch):
    monkeypatch.setitem(dilax.models.MODELS, "toy", Toy)


def config_of(**changes: Any) -> ConfigDict:
    config = default_config("test", task=changes.pop("task", "segmentation"))
    name = changes.pop("model.name", "toy")
    fields = dict(features=(6, 8), strides=(2, 1), dilations=(1, 2)) if name == "dilated_fcn" else {}
    with pytest.MonkeyPatch.context() as patch:  # also where no fixture has run yet
        patch.setitem(dilax.models.MODELS, "toy", Toy)
        config.model = ConfigDict(model_config(name, **fields))
    config.batch_size = BATCH
    config.optim.update(name="sgd", lr=0.05, warmup_epochs=0.0, ema_decay=0.9)
    config.update_from_flattened_dict(changes)
    return config


AUGMENT = {"augment.crop": (9, 11), "augment.scale": 0.4, "augment.flip": True, "augment.colour": 0.3}
WEIGHTS = (1.0, 2.0, 0.5, 3.0)


def batches(count: int) -> list[dict[str, np.ndarray]]:
    rng, found = np.random.default_rng(5), []
    for _ in range(count):
        labels = rng.integers(0, CLASSES, (BATCH, *SHAPE[:2])).astype(np.uint8)
        labels[rng.random(labels.shape) < 0.2] = 255
        labels[3] = 255  # an image without any pixel that counts
        found.append({"image": rng.integers(0, 256, (BATCH, *SHAPE), np.uint8), "label": labels})
    return found


def setup(config: ConfigDict, weights: tuple[float, ...] = (), task: Any = None) -> Setup:
    return build(config, DataSpec("test", SHAPE, tuple("abcd"), 10 * BATCH, class_weights=weights), task=task)


def start(shapes: Any) -> Any:
    """Variables of these shapes; compiling a true initialisation takes seconds."""
    rng = np.random.default_rng(0)

    def values(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        ones = "scale" in name or "var" in name
        return jnp.asarray(np.ones(leaf.shape) if ones else rng.normal(0, 0.3, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(values, shapes)


def train(config: ConfigDict, weights: tuple[float, ...] = ()) -> tuple[Any, list[dict[str, float]]]:
    """Take two steps as a run does; return the state and the sums of each."""
    made = setup(config, weights)
    state, found = made.parallel.put(made.steps.init(start(made.shapes))), []
    for batch in batches(2):
        state, sums = made.parallel.train(state, made.parallel.put_batch(batch), KEY)
        found.append(jax.tree.map(float, jax.device_get(made.parallel.get(sums))))
    return jax.device_get(made.parallel.get(state)), found


@pytest.fixture(scope="module")
def reference():
    """The pure step on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dilax.models.MODELS, "toy", Toy)
        made = setup(config_of(**AUGMENT), WEIGHTS)
    state, found, step = made.steps.init(start(made.shapes)), [], jax.jit(made.steps.train)
    for batch in batches(2):
        state, sums = step(state, batch, KEY)
        found.append(jax.tree.map(float, jax.device_get(sums)))
    return jax.device_get(state), found


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    for (path, a), (_, b) in zip(leaves_with_paths(got), leaves_with_paths(expected)):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_eight_devices_equal_one(kind, reference):
    state, sums = train(config_of(parallel=kind, **AUGMENT), WEIGHTS)
    assert_same(sums, reference[1], 1e-4)
    assert_same((state.params, state.collections), (reference[0].params, reference[0].collections), 1e-3)


def test_a_step_by_hand_and_in_parts():
    """Loss with that of the auxiliary head, share of right pixels; without batch statistics, two parts are the whole."""
    whole, sums = train(config_of(**{"model.norm": "none", "segmentation.aux_weight": 0.3}))
    parts, sums_of_parts = train(config_of(**{"model.norm": "none", "segmentation.aux_weight": 0.3, "optim.accumulate": 2}))
    assert_same(parts.params, whole.params, 1e-4)
    assert_same(sums_of_parts, sums, 1e-4)
    made, batch = setup(config_of(**{"model.norm": "none"})), batches(1)[0]
    x, labels = jnp.asarray(batch["image"], jnp.float32) / 127.5 - 1, jnp.asarray(batch["label"])
    model: Any = made.steps.model
    logits, aux = model.apply(start(made.shapes), x, train=True)
    expected = pixel_cross_entropy(logits, labels) + 0.3 * pixel_cross_entropy(aux, labels)
    np.testing.assert_allclose(sums[0]["loss"], expected.sum(), rtol=1e-4)
    right = [(np.asarray(row.argmax(-1)) == label)[label != 255] for row, label in zip(logits, batch["label"])]
    np.testing.assert_allclose(sums[0]["accuracy"], sum(values.mean() for values in right if values.size), rtol=1e-5)
    assert sums[0]["count"] == BATCH


LOSSES = {
    "cross_entropy": lambda x, y, w: pixel_cross_entropy(x, y, class_weights=w),
    "focal": lambda x, y, w: focal_loss(x, y, gamma=3.0, class_weights=w),
    "dice": lambda x, y, w: dice_loss(x, y),
}


@pytest.mark.parametrize("names", ["cross_entropy", "focal", "dice", "cross_entropy + dice", "focal+cross_entropy+dice"])
def test_losses_by_name(names):
    weights = (1.0, 2.0, 0.5, 3.0)
    config = config_of(**{"segmentation.loss": names, **({"segmentation.focal_gamma": 3.0} if "focal" in names else {})})
    check(config)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, CLASSES)), jnp.float32)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, CLASSES, (2, 3, 3)), jnp.uint8)
    expected = sum(LOSSES[name.strip()](logits, labels, weights) for name in names.split("+"))
    np.testing.assert_allclose(
        segmentation.make_losses(config.segmentation, segmentation.loss_names(config), weights)(logits, labels), expected, rtol=1e-6
    )


def test_weights_of_classes():
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[0, 0, :2], labels[1, 0] = 1, 255
    source = Table({"image": np.zeros((2, 4, 4, 1), np.uint8), "label": labels})
    # 26 of 28 pixels, and 2 of the 16 of the image that has the class: the median is half of their sum.
    median = (26 / 28 + 2 / 16) / 2
    found = segmentation.class_weights(config_of(**{"segmentation.balance": "median_frequency"}), source, ("a", "b"))
    np.testing.assert_allclose(found, [median / (26 / 28), median / (2 / 16)], rtol=1e-5)
    assert segmentation.class_weights(config_of(**{"segmentation.class_weights": (2, 1)}), source, ("a", "b")) == (2.0, 1.0)
    assert segmentation.class_weights(config_of(), source, ("a", "b")) == ()
    with pytest.raises(UserError, match=r"class_weights has 3 entries for 2 classes \(a, b\); give one for each\."):
        segmentation.class_weights(config_of(**{"segmentation.class_weights": (1, 1, 1)}), source, ("a", "b"))


def test_a_batch_without_pixels_that_count_moves_nothing_to_nan():
    calm = {"optim.weight_decay": 0.0, "optim.momentum": 0.0, "model.norm": "none"}
    made = setup(config_of(**{"segmentation.loss": "cross_entropy+focal+dice", **calm}), WEIGHTS)
    state = made.steps.init(start(made.shapes))
    batch = {**batches(1)[0], "label": np.full((BATCH, *SHAPE[:2]), 255, np.uint8)}
    after, sums = jax.jit(made.steps.train)(state, batch, KEY)
    assert float(sums["loss"]) == float(sums["gradient_norm"]) == 0
    assert_same(after.params, state.params, 0)


def numpy_metrics(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    confusion, known = np.zeros((CLASSES, CLASSES), int), labels != 255
    np.add.at(confusion, (labels[known], logits.argmax(-1)[known]), 1)
    wide = logits.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_p, np.where(known, labels, 0)[..., None], -1)[..., 0][known].mean()
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    metrics = {"miou": (np.diag(confusion) / union).mean(), "accuracy": np.trace(confusion) / confusion.sum(), "loss": loss}
    return confusion, metrics


@pytest.mark.parametrize(
    ("kind", "scales", "flip"), [("jit", "1", False), ("pmap", "1", False), ("jit", "0.5,1.5", True), ("pmap", "1", True)]
)
def test_metrics_are_exact_over_a_ragged_last_batch(kind, scales, flip):
    """37 images in batches of 16 on 8 devices; 1 device is the oracle, which runs them one by one."""
    config = config_of(parallel=kind)
    made = setup(config, task=setup(config).task.with_flags(argparse.Namespace(scales=scales, flip=flip, tile="")))
    rng = np.random.default_rng(2)
    labels = rng.integers(0, CLASSES, (37, *SHAPE[:2])).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = 255
    images = rng.integers(0, 256, (37, *SHAPE), np.uint8)
    variables = start(made.shapes)
    metrics, scores = score(made, made.parallel.put(variables), Table({"image": images, "label": labels}))
    one = jax.jit(lambda x: made.task.outputs(made.steps.model, variables, {"image": x}))
    logits = np.concatenate([np.asarray(one(images[i : i + 1])) for i in range(37)])
    expected, means = numpy_metrics(logits, labels)
    np.testing.assert_array_equal(scores.sums["confusion"], expected)
    assert scores.sums["confusion"].dtype == np.int64
    assert metrics.keys() == means.keys()
    for name, value in means.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5 if name == "loss" else 1e-12)
    # What a user gets from the model and its variables sees the same views.
    masks = made.inference(variables).segment(images[:1], scales=segmentation.read_scales(scales), flip=flip)
    np.testing.assert_array_equal(masks, logits[:1].argmax(-1))


def test_averaged_over_scales_and_mirror_images():
    """A model that sees one pixel at a time gives each pixel its own answer back, mirrored or not; at other sizes, that of a resized image."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 8, 3)), jnp.float32)
    model = lambda x: 3 * x  # noqa: E731
    plain = jax.nn.log_softmax(model(images))
    np.testing.assert_allclose(average_views(model, images, (1.0,), True), plain, atol=1e-5)
    resize = lambda x, shape: jax.image.resize(x, (2, *shape, 3), "linear", antialias=False)  # noqa: E731
    double = resize(jax.nn.softmax(model(resize(images, (12, 16)))), (6, 8))
    expected = jnp.log((jnp.exp(plain) + double) / 2)
    np.testing.assert_allclose(average_views(model, images, (1.0, 2.0), False), expected, atol=1e-5)
    # One that prefers what stands on the left is asked from both sides.
    biased = lambda x: x.at[..., 0].add(jnp.arange(8.0)[None, None])  # noqa: E731
    found = average_views(biased, jnp.zeros((1, 6, 8, 3)), (1.0,), True)
    np.testing.assert_allclose(found, found[:, :, ::-1], atol=1e-5)


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "task": (
        {"task": "segmentaton"},
        "config.task='segmentaton' is unknown; use one of ('classification', 'segmentation', 'detection', "
        "'sequence_classification', 'sequence_labelling', 'sequence_prediction', 'language_model', 'waveform', 'separation', 'restoration'). Did you mean \"segmentation\"?",
    ),
    "loss": (
        {"segmentation.loss": "cross_entropy+dise"},
        "config.segmentation.loss='cross_entropy+dise' is unknown; use one of ('cross_entropy', 'focal', 'dice'), or several of them joined "
        'by +. Did you mean "dice"?',
    ),
    "balance": (
        {"segmentation.balance": "median"},
        "config.segmentation.balance='median' is unknown; use one of ('', 'median_frequency').",
    ),
    "both": (
        {"segmentation.balance": "median_frequency", "segmentation.class_weights": (1.0, 1.0, 1.0, 1.0)},
        "config.segmentation.balance and config.segmentation.class_weights both set the weights of classes; remove one.",
    ),
    "weights": (
        {"segmentation.class_weights": (1.0, -1.0)},
        "config.segmentation.class_weights=(1.0, -1.0) must be numbers of 0 or more.",
    ),
    "crop": ({"augment.crop": (9,)}, "config.augment.crop=(9,) must be (height, width) in pixels, or () for the size of the image."),
    "no crop": ({"augment.crop": (0, 9)}, "config.augment.crop=(0, 9) must be (height, width) in pixels, or () for the size of the image."),
    "mixup": (
        {"augment.mixup": 0.2},
        "config.augment.mixup is a key of config.task='classification' or 'sequence_classification', not of config.task='segmentation'; "
        "remove it, or set the task in the config file, with default_config('test', task=...).",
    ),
    "crop of a classifier": (
        {"task": "classification", "augment.crop": (9, 9)},
        "config.augment.crop is a key of config.task='segmentation' or 'detection', not of config.task='classification'; "
        "remove it, or set the task in the config file, with default_config('test', task=...).",
    ),
    "misspelt": (
        {"augment.flips": True},
        "config.augment.flips is not a key of config.task='segmentation'; remove it. Did you mean \"augment.flip\"?",
    ),
    "ignored label": (
        {"segmentation.ignored_label": 256},
        "config.segmentation.ignored_label=256 is out of range; give a number from 0 to 255.",
    ),
    "a classifier": (
        {"model.head": "global"},
        "config.model.name='dilated_fcn' gives outputs of shape (1, 4), and config.task='segmentation' needs (1, 12, 10, 4); "
        "choose another model, or another task.",
    ),
    "a segmenter": (
        {"task": "classification"},
        "config.model.name='dilated_fcn' gives outputs of shape (1, 12, 10, 4), and config.task='classification' needs (1, 4); "
        "choose another model, or another task.",
    ),
    "output stride": (
        {"model.name": "deeplabv3plus_mobilenet_v2", "model.output_stride": 12},
        "MobileNetV2: output_stride=12 is not supported; use one of (8, 16, 32).",
    ),
    "output stride 4": (
        {"model.name": "deeplabv3plus_mobilenet_v2", "model.output_stride": 4},
        "MobileNetV2: output_stride=4 is not supported; use one of (8, 16, 32).",
    ),
    "dilations": (
        {"model.dilations": (1, 2, 3)},
        "DilatedFCN: features=(6, 8), strides=(2, 1) and dilations=(1, 2, 3) must have equal lengths.",
    ),
    "head": ({"model.head": "pixel"}, "DilatedFCN: head='pixel' is unknown; use one of ('pixels', 'global'). Did you mean \"pixels\"?"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_texts(name):
    changes, text = ERRORS[name]
    assert refused(lambda: setup(config_of(**{"model.name": "dilated_fcn", **changes}))) == text


def test_scales():
    assert segmentation.read_scales("0.75,1,1.25") == (0.75, 1.0, 1.25)
    for text in ("", "1,x", "0", "1,-2", "inf", "nan"):
        with pytest.raises(UserError, match=r"must be positive numbers separated by commas, such as 0\.75,1,1\.25\."):
            segmentation.read_scales(text)


def test_metrics_of_no_pixel_are_an_error():
    sums = {"count": np.array(0), "confusion": np.zeros((2, 2)), "accuracy": np.array(0), "loss": np.array(0)}
    assert refused(lambda: setup(config_of()).task.metrics(Scores(sums, {}))) == (
        "no pixel of the split counts: all are ignored; check the masks, or config.data.mask_values."
    )


def test_a_config_of_before_gets_the_new_keys():
    old = json.loads(to_json(config_of()))
    del old["segmentation"], old["augment"]["crop"]
    old["optim"]["lr"] = 0.3
    read = from_json(json.dumps(old))
    assert (read.segmentation.ignored_label, read.augment.crop, read.optim.lr) == (255, (), 0.3)
    assert read.model.to_dict() == config_of().model.to_dict()


# Models


def test_dilated_fcn_shares_its_parameters():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 17, 22, 3)), jnp.float32)
    fields: Any = dict(num_classes=5, features=(4, 6, 6), dilations=(1, 2, 3), strides=(2, 2, 1))
    shapes, outputs = [], []
    for changes in ({}, {"dilations": (1, 1, 1)}, {"strides": (1, 2, 1)}, {"head": "global"}):
        model: Any = dilax.models.create("dilated_fcn", **{**fields, **changes})
        found = jax.eval_shape(lambda x, model=model: model.init(KEY, x, train=False), x)
        shapes.append({path: leaf.shape for path, leaf in leaves_with_paths(found) if "head" not in path})
        outputs.append(jax.jit(lambda v, x, model=model: model.apply(v, x, train=False))(start(found), x))
    assert all(found == shapes[0] for found in shapes)
    assert [y.shape for y in outputs] == [(2, 17, 22, 5)] * 3 + [(2, 5)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


@pytest.mark.parametrize("separable", [False, True])
def test_dilated_fcn_by_its_layers(separable):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 12, 3)), jnp.float32)
    model: Any = dilax.models.create(
        "dilated_fcn", num_classes=5, features=(6, 6, 7), strides=(2, 1, 2), dilations=(1, 2, 3), norm="none", separable=separable
    )
    variables = start(jax.eval_shape(lambda x: model.init(KEY, x, train=False), x))
    found = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)

    def layer(i: int, x: jax.Array) -> Any:
        module = ConvNormAct((6, 6, 7)[i], stride=(2, 1, 2)[i], dilation=(1, 2, 3)[i], norm="none", separable=separable and i > 0)
        return module.apply({"params": variables["params"][f"ConvNormAct_{i}"]}, x, train=False)

    def head(i: int, x: jax.Array, size: tuple[int, int]) -> Any:
        part = variables["params"]["head"][f"logits_{i}"]
        logits = jnp.einsum("bhwc,cd->bhwd", x, part["kernel"][0, 0]) + part["bias"][None, None, None]
        return jax.image.resize(logits, (2, *size, 5), "linear", antialias=False)

    y = layer(0, x)
    y = y + layer(1, y)
    total = head(0, layer(2, y), (8, 6)) + head(1, y, (8, 6))
    np.testing.assert_allclose(found, jax.image.resize(total, (2, 16, 12, 5), "linear", antialias=False), atol=1e-5)
    assert ("SeparableConv_0" in variables["params"]["ConvNormAct_1"]) == separable


# Whole runs


def tiny(folder: pathlib.Path, **changes: Any) -> ConfigDict:
    config = config_of(**{"model.name": "dilated_fcn", "data.name": "folder", "data.dir": str(folder), "data.validation": 0.25})
    config.name, config.total_epochs, config.log_every_steps, config.checkpoint_every_steps = "tiny", 15.0, 2, 3
    config.eval_every_epochs, config.batch_size = 5.0, 8
    config.model.features, config.model.strides = (16, 16), (1, 1)
    config.optim.update(name="adamw", lr=0.03, ema_decay=0.0)
    config.augment.flip, config.augment.crop = True, (12, 16)
    config.segmentation.balance, config.segmentation.loss = "median_frequency", "cross_entropy+dice"
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """40 images whose grey values tell the class of each pixel; one pixel of each is ignored."""
    path = tmp_path_factory.mktemp("pairs")
    for name in ("images", "masks"):
        (path / name).mkdir()
    for i in range(40):
        rng = np.random.default_rng(i)
        label = rng.integers(0, 3, (12, 16)).astype(np.uint8)
        label[0, 0] = 255
        grey = 60 + 20 * label.astype(int) + rng.integers(0, 20, label.shape)
        Image.fromarray(np.repeat(grey[..., None].clip(0, 255), 3, -1).astype(np.uint8)).save(path / "images" / f"{i:02}.png")
        Image.fromarray(label).save(path / "masks" / f"{i:02}.png")
    return path


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    assert loop.run(tiny(folder), workdir) == 0
    return workdir


def test_a_run_learns_and_keeps_the_best_by_mean_iou(finished):
    lines = read_history(finished)
    validations = [line for line in lines if "validation/miou" in line]
    assert len(validations) == 3
    assert validations[-1]["validation/miou"] > 0.5  # grey values tell the class; 0.33 is chance
    assert lines[-1]["best_step"] == max(validations, key=lambda line: line["validation/miou"])["step"]
    assert {"test/miou", "test/accuracy", "test/loss", "test/iou/class 0", "test/iou/class 2"} <= lines[-1].keys()
    assert {"train/loss", "train/accuracy", "train/examples_per_second"} <= lines[0].keys()
    status = read_status(finished)
    assert len(status["data"]["class_weights"]) == 3
    assert status["metrics"].keys() == {"test/miou", "test/accuracy", "test/loss"}


def test_the_report(finished):
    text = (finished / "report" / "report.md").read_text()
    names = re.findall(r"\((\w+)\.png\)", text)
    assert names == ["learning_curves", "class_iou", "confusion_matrix", "worst", "feature_maps"]
    assert "| test/iou/class 1 |" in text
    for name in names:
        with Image.open(finished / "report" / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5


def test_a_stopped_run_resumes_to_the_bit(finished, folder, tmp_path, monkeypatch):
    """Stopped after 7 of 45 steps and resumed, it ends with the bits of the unbroken run."""
    workdir, asked = tmp_path / "stopped", []

    class StopAt7(loop.Stopper):
        def __getattribute__(self, name):
            if name != "signal":
                return super().__getattribute__(name)
            asked.append(name)
            return 15 if len(asked) == 7 else None

    with monkeypatch.context() as patch:
        patch.setattr(loop, "Stopper", StopAt7)
        assert loop.run(tiny(folder, report=False), workdir) == 128 + 15
    assert loop.run(tiny(folder, report=False), workdir) == 0
    for a, b in zip(*(jax.tree.leaves(read_variables(path)) for path in (workdir, finished)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_evaluate(finished, capsys, monkeypatch):
    def evaluated(*more: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["evaluate", "--workdir", str(finished), *more])
        evaluate.main()
        return capsys.readouterr().out.splitlines()

    last = read_history(finished)[-1]
    names = ["miou", "accuracy", "loss", "iou/class 0", "iou/class 1", "iou/class 2"]
    assert evaluated() == [f"test/{name} {last[f'test/{name}']:.4f}" for name in names]
    lines = evaluated("--split=validation", "--scales=1,1.5", "--flip")
    assert re.fullmatch(r"validation/miou 0\.\d{4}", lines[0])


def flags(paths: list[str], out: pathlib.Path, *, replace: bool = False) -> argparse.Namespace:
    return argparse.Namespace(inputs=paths, out=out, replace=replace, scales="1", flip=False, tile="", csv=False)


def test_predict_writes_overlays_and_masks(finished, tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    for name, shape in (("street.png", (12, 16, 3)), ("other.jpg", (23, 31, 3)), ("grey.png", (9, 14))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / name)
    (tmp_path / "again").mkdir()
    Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(tmp_path / "again" / "street.png")
    paths = [str(tmp_path / name) for name in ("street.png", "other.jpg", "grey.png", "again/street.png")]
    monkeypatch.setattr(sys, "argv", ["predict", "--workdir", str(finished), "--out", str(tmp_path / "out"), *paths])
    predict.main()
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == paths
    overlays = ["street_overlay.png", "other_overlay.png", "grey_overlay.png", "street__overlay.png"]
    assert [pathlib.Path(row[1]).name for row in rows] == overlays
    trained, loaded = load_trained(finished), dilax.load(finished)
    for (path, overlay, words), size in zip(rows, ((16, 12), (31, 23), (14, 9), (16, 12))):
        mask_file = pathlib.Path(overlay.replace("_overlay.png", "_mask.png"))
        with Image.open(mask_file) as mask, Image.open(path) as image, Image.open(overlay) as picture:
            assert (mask.mode, mask.size) == ("P", size)
            assert min(picture.size) > 100
            pixels = np.asarray(image.convert("RGB"))[None]
            np.testing.assert_array_equal(np.asarray(mask), np.asarray(trained.inference.outputs(pixels))[0].argmax(-1))
            np.testing.assert_array_equal(np.asarray(mask), loaded.segment(pixels)[0])
            share = (np.asarray(mask) == int(words.split()[1])).mean()
        assert words.startswith(f"class {words.split()[1]} {share:.1%}")


def test_predict_overwrites_nothing(finished, tmp_path):
    trained, paths, out = load_trained(finished), [str(tmp_path / "street.png")], tmp_path / "out"
    Image.new("RGB", (16, 12)).save(paths[0])

    def predicted(*more: str, folder: pathlib.Path = out, replace: bool = False) -> list[str]:
        return list(trained.setup.task.predict(trained.inference, flags([*paths, *more], folder, replace=replace)))

    predicted()
    mine = out / "street_mask.png"
    overlay = f"{out / 'street_overlay.png'} exists and would be overwritten; give another folder with --out."
    assert refused(predicted) == overlay
    predicted(replace=True)
    assert refused(lambda: predicted(str(mine), replace=True)) == overlay.replace("_overlay", "_mask")
    text = refused(lambda: predicted("gone.png", folder=tmp_path / "none"))
    assert text == "gone.png does not exist; give a PNG, JPEG or other image file."
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("image_size", "shape"), [(10, (10, 5)), (0, (40, 20))])
def test_a_larger_image_than_the_set_is_scaled(image_size, shape, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 20, 3), np.uint8)).save(tmp_path / "tall.png")
    task, shapes = setup(config_of(**{"data.image_size": image_size})).task, []

    class AllOnes(Inference):
        def segment(self, images: Any, **options: Any) -> np.ndarray:
            shapes.append(images.shape)
            return np.ones(images.shape[:3], np.uint8)

    inference = AllOnes(None, {}, task.spec, image_size=image_size)  # type: ignore[arg-type]
    (line,) = task.predict(inference, flags([str(tmp_path / "tall.png")], tmp_path / "out"))
    assert shapes == [(1, *shape, 3)]
    assert line.endswith("\tb 100.0%")
    with Image.open(tmp_path / "out" / "tall_mask.png") as mask:
        assert mask.size == (20, 40)


def test_the_worst_images():
    truths = np.array([[[0, 0, 1]], [[1, 1, 255]], [[255, 255, 255]], [[1, 0, 0]]], np.uint8)
    predictions = np.array([[[0, 0, 0]], [[1, 1, 0]], [[0, 0, 0]], [[0, 1, 1]]], np.uint8)
    np.testing.assert_allclose(segmentation_scores.image_scores(truths, predictions, 2, 255), [(2 / 3 + 0) / 2, 1, np.nan, 0])


def test_the_layers_of_a_classifier_become_those_of_a_segmenter():
    fields: Any = dict(features=(8, 16), strides=(1, 2), num_classes=10)
    models = [
        dilax.models.create("dilated_fcn", dilations=dilations, head=head, **fields)
        for dilations, head in (((1, 1), "global"), ((2, 4), "pixels"))
    ]
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    source, target = (start(jax.eval_shape(lambda x, model=model: model.init(KEY, x, train=False), x)) for model in models)
    merged, text = transfer.merge(target, jax.tree.map(lambda leaf: leaf + 1, source), (f"(^|/){transfer.HEAD}/",), "x")
    assert text.startswith("init_from x: loaded 10 of 14 leaves")
    np.testing.assert_array_equal(
        merged["params"]["ConvNormAct_1"]["DilatedConv_0"]["kernel"], source["params"]["ConvNormAct_1"]["DilatedConv_0"]["kernel"] + 1
    )


def test_a_classifier_becomes_the_backbone_of_a_segmenter(tmp_path, monkeypatch):
    """config.init_into puts the parameters of another run below one module; what is around it begins anew, what is left over is named."""

    slim: Any = functools.partial(dilax.models.MODELS["mobilenet_v2"], blocks=(1,) * 7, stage_features=(4,) * 7, stem_features=4)
    segmenter: Any = dilax.models.MODELS["lraspp_mobilenet_v2"]

    def variables_of(model: nn.Module) -> Any:
        return start(jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False)))

    source, target = variables_of(slim(num_classes=10, last_features=8)), variables_of(segmenter(backbone=slim, num_classes=10))
    monkeypatch.setattr(transfer, "read_variables", lambda _: jax.tree.map(lambda leaf: leaf + 1, source))
    config, spec = config_of(init_from="runs/x", init_into="backbone"), DataSpec("x", (32, 32, 3), tuple("0123456789"))
    with pytest.raises(
        UserError, match=r"init_from=runs/x does not fit this model: skipped batch_stats/backbone/last/.*: not in this model;"
    ):
        transfer.init_from(config, target, spec)
    config.init_except = ("/backbone/last/",)
    merged, text = transfer.init_from(config, target, spec)
    for part in ("params", "batch_stats"):
        for (path, leaf), (_, old) in zip(leaves_with_paths(merged[part]), leaves_with_paths(target[part]), strict=True):
            expected = old
            if path.startswith("backbone/"):
                expected = 1 + dict(leaves_with_paths(source[part]))[path.removeprefix("backbone/")]
            np.testing.assert_array_equal(leaf, expected, err_msg=path)
    assert "skipped params/backbone/head/kernel" in text
    config.init_into = "bakbone"
    with pytest.raises(UserError, match=r"config\.init_into='bakbone' is not a module of this model; it has .*Did you mean \"backbone\"\?"):
        transfer.init_from(config, target, spec)


def test_the_report_shows_up_to_so_many_images(folder):
    splits = Segmentation.open(tiny(folder))
    numbers, records = spread(splits.test, 5)
    assert (len(records), numbers[0], numbers[-1]) == (5, 0, len(splits.test) - 1)
    assert all(record["image"].shape == (12, 16, 3) and record["label"].shape == (12, 16) for record in records)
    assert all(record["label"].dtype == np.uint8 for record in records)
    np.testing.assert_array_equal(records[-1]["label"], splits.test[len(splits.test) - 1]["label"])
    assert mean_iou(np.eye(3)) == 1


def test_data_of_another_run_is_refused(capsys):
    def spec(names: tuple[str, ...], channels: int = 3, examples: int = 10) -> DataSpec:
        return DataSpec("x", (8, 8, channels), names, examples)

    trained = spec(("a", "b"))
    evaluate.check_data(trained, spec(("a", "b")))
    assert capsys.readouterr().err == ""
    evaluate.check_data(trained, spec(("a", "b"), examples=11))
    assert "warning: the data had 10 training records when the run began, and has 11 now" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"the data has the outputs a, b, c, and the run a, b; give the data it was trained on"):
        evaluate.check_data(trained, spec(("a", "b", "c")))
    with pytest.raises(UserError, match=r"the data has the outputs b, a, and the run a, b"):
        evaluate.check_data(trained, spec(("b", "a")))
    with pytest.raises(UserError, match=r"the data has examples of 1 channels, and the run of 3"):
        evaluate.check_data(trained, spec(("a", "b"), channels=1))
    # The classes of a run that numbers them may have names.
    evaluate.check_data(spec(("0", "1")), spec(("a", "b")))
