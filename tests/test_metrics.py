"""Compare the metrics of segmentation, which derive from the confusion matrix, with counts by hand and with scikit-learn."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from dilax import metrics

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
