"""Runs on volumes: metrics by an oracle, tiles and padding that change nothing, predictions in files, and refusals."""

import argparse
import functools
import pathlib
from typing import Any

import jax
import nibabel  # pyright: ignore[reportMissingImports]
import numpy as np
import pytest
from ml_collections import ConfigDict
from reading import check_call
from scipy import ndimage
from task_cases import CASES

import dilax
from dilax import DataSpec, volumes
from dilax.errors import UserError
from train.build import Setup, build
from train.config import check, default_config, model_config
from train.data import Splits
from train.score import score
from train.tasks.segmentation import Segmentation


def config_of(data: str = "ellipsoids", **changes: Any) -> ConfigDict:
    config = default_config("tiny", task="segmentation")
    config.data.name = data
    config.model = ConfigDict(model_config("meshnet", features=3, dilations=(1, 2), norm="group"))
    config.batch_size = 8
    config.update_from_flattened_dict(changes)
    return config


@functools.cache
def opened() -> tuple[Splits, Setup, Any]:
    """Made-up volumes, and a model with biased logits that finds every class somewhere."""
    config = config_of(**{"model.norm": "none"})
    splits = Segmentation.open(config)
    setup = build(config, splits.spec)
    return splits, setup, setup.init()


def scored(setup: Setup) -> Any:
    splits, _, variables = opened()
    return score(setup, setup.parallel.put(variables), splits.test)


@functools.cache
def whole() -> Any:
    return scored(opened()[1])


def test_metrics_are_means_over_the_volumes():
    metrics, scores = whole()
    splits, setup, _ = opened()
    details = setup.task.details(scores)
    found, truths, spacing = (scores.kept[name] for name in ("found", "label", "spacing"))
    assert len(found) == len(splits.test) == 8 and (found[truths == 255] == 255).all() and (spacing == 1).all()
    means = []
    for number, name in enumerate(("background", "front", "back")):
        pairs = [(f == number, t == number) for f, t in zip(found, truths)]
        dices = [2 * (f & t).sum() / (f.sum() + t.sum()) for f, t in pairs if f.any() or t.any()]
        assert details[f"dice/{name}"] == pytest.approx(np.mean(dices), rel=1e-5)
        means.append(np.mean(dices))
        if number == 0:
            assert "hd95_mm/background" not in details
            continue
        distances = []
        for f, t in pairs:
            if f.any() and t.any():
                edges = [region & ~ndimage.binary_erosion(region) for region in (f, t)]  # pyright: ignore
                maps = [ndimage.distance_transform_edt(~edge) for edge in edges]
                distances.append(max(np.percentile(maps[1][edges[0]], 95), np.percentile(maps[0][edges[1]], 95)))  # pyright: ignore
        missed = sum(f.any() != t.any() for f, t in pairs)
        assert details.get(f"hd95_missed/{name}", 0) == missed
        assert distances == [] or details[f"hd95_mm/{name}"] == pytest.approx(np.mean(distances), rel=1e-6)
    assert metrics["dice"] == pytest.approx(np.mean(means[1:]), rel=1e-5)
    assert setup.task.best_by == "dice" and setup.task.curves[-1] == "dice"


def test_tiles_change_nothing():
    """Law 8: the evaluation of whole volumes and of their tiles, and the prediction of volumes of any size."""
    splits, setup, variables = opened()
    config = config_of(**{"model.norm": "none", "segmentation.tile": (8, 8, 20)})
    metrics, scores = scored(build(config, splits.spec))
    assert metrics == pytest.approx(whole()[0], rel=1e-5)
    for name, values in whole()[1].kept.items():
        np.testing.assert_array_equal(scores.kept[name], values)
    run, rng = setup.inference(variables), np.random.default_rng(1)
    for shape in ((31, 18, 20), (9, 20, 12)):  # longer than those of the training along an axis, and shorter
        levels = rng.integers(0, 256, (*shape, 1), np.uint8)
        labels = run.segment_whole(levels)
        assert labels.shape == shape and labels.dtype == np.uint8
        np.testing.assert_array_equal(run.segment_whole(levels, tile=(8, 8, 20)), labels)


def test_prediction_equals_evaluation():
    """The labels that are predicted for the test volumes, each at its own size, are those that the evaluation has scored."""
    splits, setup, variables = opened()
    run, kept = setup.inference(variables), whole()[1].kept
    for record, found in zip((splits.test[i] for i in range(3)), kept["found"]):
        size = tuple(map(slice, (np.argwhere(record["label"] != 255).max(0) + 1).tolist()))
        np.testing.assert_array_equal(run.segment_whole(record["image"][size]), found[size])


def inference_of(spec: DataSpec | None = None) -> dilax.Inference:
    splits, setup, variables = opened()
    return dilax.Inference(setup.steps.model, variables, spec or splits.spec, task="segmentation")


def flags_of(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    Segmentation.add_prediction_flags(parser)
    args = parser.parse_args(list(words))
    args.out, args.replace = pathlib.Path("out"), False
    return args


def test_labels_are_written_with_the_axes_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    affine = np.array([[0, 0, -2.0, 7], [0, 1.5, 0, 0], [1.0, 0, 0, -3], [0, 0, 0, 1]])
    values = np.random.default_rng(2).normal(size=(6, 8, 5)).astype(np.float32)
    for name in ("a.nii.gz", "b.NII"):
        nibabel.save(nibabel.Nifti1Image(values, affine), name)
    task, run = opened()[1].task, inference_of()
    lines = list(task.predict(run, flags_of("a.nii.gz", "b.NII", "--csv", "--tile", "8,8,20")))
    assert lines[0] == "input,labels,volumes" and lines[1].startswith("a.nii.gz,out/a_labels.nii.gz,")
    turned = volumes.read_volume("a.nii.gz")
    expected = run.segment_whole(volumes.to_levels(turned.values))
    written = nibabel.load("out/b_labels.nii.gz")
    np.testing.assert_allclose(written.affine, affine)  # pyright: ignore
    np.testing.assert_array_equal(np.asarray(written.dataobj), turned.unturned(expected))  # pyright: ignore
    sizes = [f"{name} {(expected == i).sum() * 3 / 1000:.2f} ml" for i, name in ((1, "front"), (2, "back")) if (expected == i).any()]
    assert lines[1].split(",", 2)[2].strip('"') == ", ".join(sizes)
    np.testing.assert_array_equal(run.predict("a.nii.gz"), turned.unturned(expected))
    np.testing.assert_array_equal(run.predict(turned.values), expected)
    (first, second) = run.predict(np.stack([turned.values, turned.values])[..., None])
    np.testing.assert_array_equal(first, second)
    with pytest.raises(UserError, match=r"^out/a_labels.nii.gz exists and would be overwritten; give another folder with --out\.$"):
        list(task.predict(run, flags_of("a.nii.gz")))


def predicted(*words: str) -> Any:
    return lambda: list(opened()[1].task.predict(inference_of(), flags_of(*words)))


def built(model: str, data: str = "ellipsoids", shape: tuple[int, ...] = (20, 20, 20, 1)) -> Any:
    def run() -> None:
        config = config_of(data)
        config.model = ConfigDict(model_config(model))
        build(config, DataSpec(data, shape, ("a", "b", "c"), 10))

    return run


def save(values: np.ndarray) -> str:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), "x.nii.gz")
    return "x.nii.gz"


ERRORS = {
    "a crop of two": (
        lambda: check(config_of(**{"augment.crop": (8, 8)})),  # pyright: ignore
        "config.augment.crop=(8, 8) must be (x, y, z) in pixels, or () for the size of the image.",
    ),
    "a tile of two": (
        lambda: check(config_of(**{"segmentation.tile": (8, 8)})),  # pyright: ignore
        "config.segmentation.tile=(8, 8) must be (x, y, z) in pixels, or () to compute images whole.",
    ),
    "a tile of three": (
        lambda: check(config_of("cells", **{"segmentation.tile": (8, 8, 8)})),
        "config.segmentation.tile=(8, 8, 8) must be (height, width) in pixels, or () to compute images whole.",
    ),
    "a side": (
        lambda: check(config_of(**{"data.image_size": 64})),  # pyright: ignore
        "config.data.image_size=64 is not read with config.data.name='ellipsoids'; it is read with 'cells' or 'folder' or a set of TFDS: "
        "remove it, or change config.data.name.",
    ),
    "a network of images": (
        built("dilated_fcn"),
        "DilatedFCN: x of shape (1, 20, 20, 20, 1) is a batch of volumes, and this model takes images (batch, height, width, channels); "
        "use one that takes volumes, such as meshnet, highres3dnet or unet_dilated.",
    ),
    "a classifier": (
        built("dilated_cnn"),
        "DilatedCNN: x of shape (1, 20, 20, 20, 1) is a batch of volumes, and this model takes images (batch, height, width, channels); "
        "use one that takes volumes, such as meshnet, highres3dnet or unet_dilated.",
    ),
    "a network of sequences": (
        built("tcn"),
        "TCN: x must be floats (batch, time, channels), got float32 (1, 20, 20, 20, 1); set `vocabulary` for integer codes.",
    ),
    "a picture": (predicted("x.png"), "x.png does not exist; give a NIfTI file (.nii or .nii.gz)."),
    "channels": (
        lambda: predicted(save(np.zeros((4, 4, 4, 2))))(),
        "x.nii.gz has 2 channels, and the run was trained on 1; give the same channels.",
    ),
    "words for a tile": (
        predicted("x.nii", "--tile", "8,8"),
        "--tile=8,8 must be 3 sizes in pixels, separated by commas, such as 64,64,64.",
    ),
    "tile and flip": (
        predicted("x.nii", "--tile", "8,8,8", "--flip"),
        "--scales and --flip need whole images, and tiles of (8, 8, 8) are computed; leave one of them out.",
    ),
    "tile and flip in Python": (
        lambda: inference_of().segment_whole(np.zeros((4, 4, 4, 1), np.uint8), tile=(8, 8, 8), flip=True),
        "segment_whole: tile=(8, 8, 8) cannot be combined with scales or flip; leave one of them out.",
    ),
    "an image in memory": (
        lambda: inference_of().predict(np.zeros((4, 4))),
        "to_levels: values of shape (4, 4) and dtype float64 must be numbers (x, y, z[, channels]).",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes_are_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_call(*ERRORS[name])


def test_views_of_volumes_are_averaged():
    levels = np.random.default_rng(3).integers(0, 256, (1, 6, 7, 8, 1), np.uint8)
    run = inference_of()

    def probabilities(x: np.ndarray) -> np.ndarray:
        return np.asarray(jax.nn.softmax(run.outputs(x)))

    expected = probabilities(levels) + probabilities(levels[:, :, :, ::-1])[:, :, :, ::-1]
    np.testing.assert_array_equal(run.segment(levels, flip=True), expected.argmax(-1))


def test_the_case_of_the_contract_holds_several_orientations(tmp_path):
    """Half of its files are mirrored: what the network is given is not."""
    folder = pathlib.Path(CASES["volumes"].write(tmp_path))
    found = [volumes.read_volume(folder / "labels" / f"{i:02}.nii.gz") for i in range(2)]
    assert found[0].turned[0].tolist() == [0, 1] and found[1].turned[0].tolist() == [0, -1]
    for volume, at in zip(found, (0, -1)):
        assert volume.values[at].any() and not volume.values[-1 - at].any() and volume.spacing == (1, 2, 1)
