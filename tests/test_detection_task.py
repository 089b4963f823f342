"""What detection does beyond the contract of tasks: crowds, images of any size, coverage, and models that do not fit."""

import argparse
import functools
import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from task_cases import CASES

import dilax
from dilax.detection_metrics import score_detections
from dilax.errors import UserError
from train.build import build
from train.config import check, default_config, model_config, task_class
from train.data.source import field, gather
from train.score import score
from train.tasks.base import Scores

KEY = jax.random.key(0)
TEMPORARY = tempfile.TemporaryDirectory(prefix="dilax-detection-", ignore_cleanup_errors=True)
FOLDER = pathlib.Path(TEMPORARY.name)


@functools.cache
def opened(**changes: Any) -> Any:
    """The setup of the case, with its data and its variables; images are stretched, so that both axes are scaled differently."""
    config = CASES["boxes"].config(FOLDER, **{"data.image_shape": (32, 32), "data.keep_aspect": False, **changes})
    splits = task_class(config.task).open(config)
    setup = build(config, splits.spec)
    return setup, splits, setup.init()


@functools.cache
def inference() -> dilax.Inference:
    """Of the untrained network; its programs are compiled once."""
    setup, _, variables = opened()
    return setup.inference(variables)


@functools.cache
def scored() -> tuple[dict[str, float], Scores]:
    """Of an untrained network, whose scores are all near the prior."""
    setup, splits, variables = opened()
    return score(setup, setup.parallel.put(variables), splits.test)


def flags(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    task_class("detection").add_prediction_flags(parser)
    args = parser.parse_args(list(words))
    args.out, args.replace = FOLDER / "predictions", True
    return args


def test_what_is_kept_is_what_detect_finds_in_the_files():
    """In pixels of the image before it was scaled."""
    _, splits, _ = opened()
    kept = scored()[1].kept
    assert kept["mask"].any()
    for i, file in enumerate(splits.test.files):
        image = np.asarray(Image.open(FOLDER / "data" / file))
        found = inference().detect(image, score_threshold=0.05, max_detections=5)
        here = kept["mask"][i]
        assert [label for label, *_ in found] == [splits.spec.outputs[j] for j in kept["classes"][i, here]]
        np.testing.assert_allclose([value for _, value, _ in found], kept["scores"][i, here], rtol=1e-4)
        scale = np.array([40 / 32, 24 / 32] * 2)
        np.testing.assert_allclose([box for *_, box in found], kept["boxes"][i, here] * scale, atol=1e-2)


def test_metrics_are_those_of_what_is_kept():
    setup, splits, _ = opened()
    metrics, scores = scored()
    kept: Any = {
        name: scores.kept[name] for name in ("boxes", "scores", "classes", "mask", "true_boxes", "true_classes", "true_mask", "crowd")
    }
    np.testing.assert_array_equal(kept["true_boxes"], field(splits.test, "boxes"))
    expected = score_detections(**kept, num_classes=2)
    assert (metrics["map"], metrics["map50"]) == (expected.mean_ap(), expected.mean_ap(0.5))
    details = setup.task.details(scores)
    assert details == {
        f"{word}/{name}": value
        for word, values in (("ap", expected.class_ap()), ("ap50", expected.class_ap(0.5)))
        for name, value in zip(("bright", "dark"), values.tolist())
    }


def test_metrics_are_ranked_once(monkeypatch):
    setup, _, _ = opened()
    _, scores = scored()
    monkeypatch.setattr("train.tasks.detection.score_detections", lambda **arrays: pytest.fail("ranked again"))
    setup.task.metrics(scores)
    setup.task.details(scores)


def batch_of(**changes: Any) -> dict[str, Any]:
    _, splits, _ = opened()
    return {**jax.tree.map(jnp.asarray, gather(splits.train, np.arange(4))), **changes}


def loss_of(batch: dict[str, Any]) -> tuple[float, float]:
    loss = compiled_loss()(opened()[2], batch)
    return float(loss.sums["loss"]), float(loss.count)


@functools.cache
def compiled_loss(weight: float = 1.0) -> Any:
    setup, splits, _ = opened()
    task = task_class("detection")(CASES["boxes"].config(FOLDER, **{"detection.box_weight": weight}), splits.spec)
    return jax.jit(lambda variables, batch: task.loss(setup.steps.model, variables, batch, KEY))


def test_crowds_are_not_learned():
    batch = batch_of()
    second = jnp.arange(batch["box_mask"].shape[1])[None] == 1
    assert (batch["box_mask"] & second).any()
    without = loss_of({**batch, "box_mask": batch["box_mask"] & ~second})
    assert loss_of({**batch, "crowd": batch["crowd"] | second}) == pytest.approx(without)
    assert loss_of(batch) != pytest.approx(without, rel=1e-3)


def test_a_batch_without_objects_takes_a_step_that_is_finite():
    setup, _, variables = opened()
    empty = batch_of(box_mask=jnp.zeros((4, 2), bool))
    state, sums = jax.jit(setup.steps.train)(setup.steps.init(variables), empty, KEY)
    assert float(sums["count"]) == 0
    assert 0 < float(sums["gradient_norm"]) < 1e3
    jax.tree.map(lambda leaf: np.testing.assert_array_less(np.abs(leaf), 1e3), state.params)


def test_the_weight_of_boxes():
    once, twice = (dict(compiled_loss(*weight)(opened()[2], batch_of()).sums) for weight in ((), (2.0,)))
    assert {"loss", "classes_loss", "boxes_loss", "centreness_loss"} == once.keys()
    for name in ("boxes_loss", "centreness_loss"):
        assert float(twice[name]) == pytest.approx(2 * float(once[name]), rel=1e-5)
    assert float(twice["classes_loss"]) == pytest.approx(float(once["classes_loss"]), rel=1e-5)
    assert float(once["loss"]) == pytest.approx(sum(float(value) for name, value in once.items() if name != "loss"), rel=1e-5)


def test_the_share_of_boxes_that_anchors_cover_is_said():
    setup, splits, _ = opened()
    boxes, mask = field(splits.train, "boxes"), field(splits.train, "box_mask")
    share = float(setup.steps.model.anchor_coverage(jnp.asarray(boxes), jnp.asarray(mask), (32, 32)))
    assert setup.task.remarks(setup.steps.model, splits) == (
        f"anchors: {share:.1%} of the {mask.sum()} boxes for training are matched with one or more",
    )
    tiny = splits.train.arrays["boxes"] * np.array([0.01, 0.01, 0.01, 0.01], np.float32) + np.float32(0.2)
    train = type(splits.train)({**splits.train.arrays, "boxes": np.where(np.arange(len(tiny))[:, None, None] < 5, tiny, boxes)})
    changed = type(splits)(splits.spec, train, None, splits.test)
    share = float(setup.steps.model.anchor_coverage(jnp.asarray(train.arrays["boxes"]), jnp.asarray(mask), (32, 32)))
    assert share < 1
    assert setup.task.remarks(setup.steps.model, changed) == (
        f"anchors: {share:.1%} of the {mask.sum()} boxes for training are matched with one or more; the others are not learned",
    )


def test_predictions_are_written_in_pixels_of_the_image(tmp_path):
    setup, splits, _ = opened()
    file = FOLDER / "data" / splits.test.files[0]
    image = np.kron(np.asarray(Image.open(file)), np.ones((3, 2, 1), np.uint8))
    Image.fromarray(image).save(tmp_path / "large.png")
    (line,) = setup.task.predict(inference(), flags("--score=0.05", str(tmp_path / "large.png")))
    path, picture, words = line.split("\t")
    content = json.loads(pathlib.Path(picture.replace(".png", ".json")).read_text())
    assert (path, content["file"], content["height"], content["width"]) == (str(tmp_path / "large.png"), "large.png", 72, 80)
    found = inference().detect(image, score_threshold=0.05, max_detections=5)
    assert [(one["class"], one["box"]) for one in content["objects"]] == [
        (label, [round(edge, 2) for edge in box]) for label, _, box in found
    ]
    assert sum(int(word.split()[-1]) for word in words.split(", ")) == len(found) > 0
    (line,) = setup.task.predict(inference(), flags("--score=0.99", str(tmp_path / "large.png")))
    assert line.endswith("\tnothing")
    with pytest.raises(UserError, match=r"^--score=1 is not a score of detections; give a number from 0 to below 1\.$"):
        list(setup.task.predict(inference(), flags("--score=1", str(tmp_path / "large.png"))))


def test_images_are_padded_or_stretched_as_in_training():
    image = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    spec = dilax.DataSpec("x", (32, 32, 3), ("a", "b"))
    padded = dilax.detection.fitted(image, spec)
    assert padded.shape == (32, 32, 3) and (padded[13:] == 128).all() and padded[:13].std() > 9
    found = dilax.models.Detections(
        *map(jnp.asarray, ([[[0, 0, 16, 6.5], [8, 14, 9, 20]]], [[0.9, 0.8]], [[1, 0]], [[True, True]]))
    )  # fmt: skip
    ((name, value, box),) = dilax.detection.objects_in(image.shape, found, spec)  # the other lies in the padding
    assert (name, value, box) == ("b", pytest.approx(0.9), pytest.approx((0, 0, 25, 10)))
    stretched = dilax.DataSpec("x", (32, 32, 3), ("a", "b"), stretched=True)
    (_, _, box), _ = dilax.detection.objects_in(image.shape, found, stretched)
    np.testing.assert_allclose(box, (0, 0, 25, 6.5 * 20 / 32))


def config_of(task: str, name: str, **fields: Any) -> ConfigDict:
    config = default_config("x", task=task)
    config.model = ConfigDict(model_config(name, **fields))
    return config


REFUSED = {
    "a classifier": (
        ("detection", "dilated_cnn"),
        "config.model.name='dilated_cnn' does not detect boxes, as config.task='detection' needs, such as ",
    ),
    "a detector": (
        ("classification", "separable_detector"),
        "config.model.name='separable_detector' gives several outputs, and config.task='classification' needs (1, 2); choose another model, "
        "or another task.",
    ),
    "a detector of masks": (
        ("segmentation", "separable_detector"),
        "config.model.name='separable_detector' gives several outputs, and config.task='segmentation' needs (1, 32, 32, 2); choose another "
        "model, or another task.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_of_another_task_is_one_line(name):
    (task, model), text = REFUSED[name]
    with pytest.raises(UserError) as error:
        build(config_of(task, model), dilax.DataSpec("x", (32, 32, 3), ("a", "b"), 10))
    assert str(error.value).startswith(text) and "\n" not in str(error.value)
    if task == "detection":
        assert "separable_detector" in str(error.value)


def test_detect_needs_a_detector():
    with pytest.raises(UserError) as error:
        dilax.detection.detector_of(dilax.models.create("dilated_cnn", num_classes=2))
    assert str(error.value) == "detect: a DilatedCNN does not detect boxes; give a detector, such as separable_detector."
    with pytest.raises(UserError, match=r"^segment: this run was trained for detection, not for segmentation; use predict"):
        inference().segment(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"augment.crop": (3,)}, "config.augment.crop=(3,) must be (height, width) in pixels, or () for the size of the image."),
        ({"data.mean": (2.0,)}, "config.data.mean=(2.0,) must hold numbers from 0 to 1, one per channel, or be (); divide values of 0 to 255."),
        ({"detection.iou_threshold": 2.0}, "config.detection.iou_threshold=2.0 is out of range; give a number from 0 to 1."),
        ({"data.lists": "a", "data.name": "shapes"}, "config.data.lists='a' is not read with config.data.name='shapes'; it is read with 'voc_xml': remove it, or change config.data.name."),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line(changes, text):
    config = default_config("x", task="detection")
    config.data.name = "voc_xml"
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        check(config)
    assert str(error.value) == text
