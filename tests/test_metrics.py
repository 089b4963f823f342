"""Compare the metrics of segmentation, which derive from the confusion matrix, with counts by hand and with scikit-learn."""

import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from dilax import metrics
from dilax.errors import UserError

RNG = np.random.default_rng(1)
CLASSES = 5
LOGITS: Any = RNG.normal(size=(4, 6, 7, CLASSES)).astype(np.float32)
LABELS: Any = RNG.integers(0, CLASSES - 1, (4, 6, 7)).astype(np.uint8)  # the last class occurs in predictions only
LABELS[RNG.random(LABELS.shape) < 0.3] = 255


SUMS = jax.jit(metrics.segmentation_sums)


def count_by_hand(examples):
    confusion = np.zeros((CLASSES, CLASSES), int)
    for i in examples:
        for row, column in np.ndindex(6, 7):
            if LABELS[i, row, column] != 255:
                confusion[LABELS[i, row, column], int(np.argmax(LOGITS[i, row, column]))] += 1
    return confusion


@pytest.mark.parametrize("mask", [(1, 1, 1, 1), (1, 0, 1, 0), (0, 0, 0, 0)])
def test_sums_equal_counts(mask):
    counted = [i for i in range(4) if mask[i]]
    sums = SUMS(LOGITS, LABELS, np.array(mask, bool))
    expected = count_by_hand(counted)
    np.testing.assert_array_equal(sums["confusion"], expected)
    assert {str(sums[name].dtype) for name in ("confusion", "count", "accuracy")} == {"int32"}
    assert int(sums["count"]) == expected.sum() == (LABELS[counted] != 255).sum()
    assert int(sums["accuracy"]) == np.trace(expected)
    wide = LOGITS.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    loss = -sum(log_p[i, r, c, LABELS[i, r, c]] for i in counted for r, c in np.ndindex(6, 7) if LABELS[i, r, c] != 255)
    np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)


def test_padded_examples_may_hold_anything():
    logits = LOGITS.copy()
    logits[3] = np.nan
    sums = SUMS(logits, jnp.asarray(LABELS), jnp.array([True, True, True, False]))
    np.testing.assert_array_equal(sums["confusion"], count_by_hand(range(3)))
    assert np.isfinite(float(sums["loss"]))


def test_parts_add_up_to_the_whole():
    whole = SUMS(LOGITS, LABELS, np.ones(4, bool))
    parts = [SUMS(LOGITS[i : i + 1], LABELS[i : i + 1], np.ones(1, bool)) for i in range(4)]
    for name in ("confusion", "count", "accuracy"):
        np.testing.assert_array_equal(sum(np.asarray(part[name]) for part in parts), whole[name])


def test_iou_equals_scikit_learn():
    confusion = count_by_hand(range(4))
    valid, jaccard = LABELS != 255, cast(Any, sklearn_metrics.jaccard_score)
    truth, predicted = LABELS[valid], LOGITS.argmax(-1)[valid]
    expected = jaccard(truth, predicted, labels=range(CLASSES), average=None, zero_division=0)
    np.testing.assert_allclose(metrics.class_iou(confusion), expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.mean_iou(confusion), np.mean(expected), rtol=1e-12)


def test_a_class_that_does_not_occur_is_left_out():
    confusion = np.array([[5, 0, 0], [0, 0, 0], [5, 0, 0]])
    np.testing.assert_array_equal(metrics.class_iou(confusion), [0.5, np.nan, 0])
    assert metrics.mean_iou(confusion) == 0.25
    assert np.isnan(metrics.mean_iou(np.zeros((3, 3))))


def test_counts_beyond_float32_are_exact():
    confusion = np.array([[2**31 + 1, 1], [0, 0]], np.int64)
    assert metrics.class_iou(confusion)[0] == (2**31 + 1) / (2**31 + 2)


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_a_label_that_is_not_a_class_makes_the_loss_nan_if_it_counts(label):
    logits, labels = jnp.zeros((3, 3)), jnp.array([0, label, 2])
    for mask, invalid in (([True, True, True], True), ([True, False, True], False)):
        sums = jax.jit(metrics.classification_sums)(logits, labels, jnp.array(mask))
        assert np.isnan(float(sums["loss"])) == invalid
        assert float(sums["confusion"].sum()) == 2


def test_dice_of_each_example_counts_alike():
    found = LOGITS.argmax(-1)
    sums = metrics.dice_sums(jnp.asarray(found), jnp.asarray(LABELS), jnp.array([True, True, False, True]), num_classes=CLASSES)
    expected, counts = np.zeros(CLASSES), np.zeros(CLASSES, int)
    for i, c in itertools.product((0, 1, 3), range(CLASSES)):
        known = LABELS[i] != 255
        if known.any() and ((LABELS[i][known] == c) | (found[i][known] == c)).any():
            score: Any = sklearn_metrics.f1_score(LABELS[i][known] == c, found[i][known] == c)
            expected[c], counts[c] = expected[c] + score, counts[c] + 1
    np.testing.assert_allclose(sums["dice"], expected, rtol=1e-5)
    np.testing.assert_array_equal(sums["dice_count"], counts)
    absent = metrics.dice_sums(jnp.zeros((1, 4), jnp.int32), jnp.full((1, 4), 255), jnp.array([True]), num_classes=2)
    assert absent["dice"].tolist() == [0, 0] and absent["dice_count"].tolist() == [0, 0]


def surface(region):
    return region & ~ndimage.binary_erosion(region)  # pyright: ignore


@pytest.mark.parametrize("shape", [(9, 7, 8), (12, 15), (30,)])
def test_distances_of_surfaces_are_those_of_distance_transforms(shape):
    spacing = (0.7, 2.0, 1.1)[: len(shape)]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        regions = [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) > level for level in (0.02, -0.05)]
        edges = [surface(region) for region in regions]
        maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
        for percentile in (50, 95, 100):
            expected = max(np.percentile(maps[1][edges[0]], percentile), np.percentile(maps[0][edges[1]], percentile))  # pyright: ignore
            found = metrics.hausdorff_distance(*regions, spacing=spacing, percentile=percentile)
            assert found == pytest.approx(expected, rel=1e-9)
            assert metrics.hausdorff_distance(*regions[::-1], spacing=spacing, percentile=percentile) == found
        if len(set(spacing)) > 1:
            assert metrics.hausdorff_distance(*regions, percentile=100) != metrics.hausdorff_distance(
                *regions, spacing=spacing, percentile=100
            )


def test_distances_of_empty_regions():
    empty, some = np.zeros((3, 3), bool), np.eye(3, dtype=bool)
    assert metrics.hausdorff_distance(empty, some) == metrics.hausdorff_distance(some, empty) == np.inf
    assert np.isnan(metrics.hausdorff_distance(empty, empty)) and metrics.hausdorff_distance(some, some) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"prediction": np.eye(3)},
            "hausdorff_distance: prediction=<array of shape (3, 3), dtype float64> is not a region; give an array bool (*space), such as "
            "mask == 1.",
        ),
        (
            {"truth": np.eye(4, dtype=bool)},
            "hausdorff_distance: prediction of shape (3, 3) and truth of shape (4, 4) differ; give equal ones.",
        ),
        (
            {"spacing": (1.0, -2.0)},
            "hausdorff_distance: spacing=(1.0, -2.0) must be a number above 0, or one for each of the 2 axes of the regions.",
        ),
        ({"percentile": 101}, "hausdorff_distance: percentile=101.0 is above 100; give 0 to 100, of which 100 is the largest distance."),
    ],
)
def test_errors_of_distances(options, text):
    with pytest.raises(UserError) as caught:
        metrics.hausdorff_distance(**{"prediction": np.eye(3, dtype=bool), "truth": np.eye(3, dtype=bool), **options})
    assert str(caught.value) == text
