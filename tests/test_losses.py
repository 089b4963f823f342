"""Test the losses of dense prediction: a pixel-by-pixel oracle, torch where it is installed, ignored pixels, and finite gradients."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reading import check_call

from dilax import losses
from dilax.metrics import segmentation_sums

RNG = np.random.default_rng(0)
CLASSES, WEIGHTS = 4, (0.3, 2.0, 1.0, 5.0)
LOGITS: Any = RNG.normal(0, 2, (3, 5, 6, CLASSES)).astype(np.float32)
LABELS: Any = RNG.integers(0, CLASSES, (3, 5, 6))
LABELS[0, :2], LABELS[1, 3:, 4:], LABELS[2] = 255, 255, 255
LABELS[1][LABELS[1] == 2] = 0  # an example without one of the classes


def softmax(logits):
    e = [math.exp(value - max(logits)) for value in logits]
    return [value / sum(e) for value in e]


def pixels_of(i, ignored=255):
    """Return (probabilities, label) of the pixels of an example that count, as Python numbers."""
    places = [place for place in np.ndindex(5, 6) if LABELS[i, *place] != ignored]
    return [(softmax([float(v) for v in LOGITS[i, *place]]), int(LABELS[i, *place])) for place in places]


def weighted(values_and_weights):
    total = sum(w for _, w in values_and_weights)
    return sum(v * w for v, w in values_and_weights) / total if total else 0.0


def cross_entropy(i, weights=(1,) * CLASSES):
    return weighted([(-math.log(p[label]), weights[label]) for p, label in pixels_of(i)])


def focal(i, gamma, weights=(1,) * CLASSES):
    return weighted([(-((1 - p[label]) ** gamma) * math.log(p[label]), weights[label]) for p, label in pixels_of(i)])


def dice(i):
    scores = []
    for c in range(CLASSES):
        true = sum(label == c for _, label in pixels_of(i))
        if true:
            overlap = sum(p[c] for p, label in pixels_of(i) if label == c)
            scores.append(2 * overlap / (true + sum(p[c] for p, _ in pixels_of(i))))
    return 1 - sum(scores) / len(scores) if scores else 0.0


CASES = {
    "cross-entropy": (losses.pixel_cross_entropy, cross_entropy),
    "weighted": (lambda x, y: losses.pixel_cross_entropy(x, y, class_weights=WEIGHTS), lambda i: cross_entropy(i, WEIGHTS)),
    "focal": (losses.focal_loss, lambda i: focal(i, 2.0)),
    "focal, 0.5, weighted": (lambda x, y: losses.focal_loss(x, y, gamma=0.5, class_weights=WEIGHTS), lambda i: focal(i, 0.5, WEIGHTS)),
    "focal, 0": (lambda x, y: losses.focal_loss(x, y, gamma=0.0), cross_entropy),
    "dice": (losses.dice_loss, dice),
}


@functools.cache
def compiled(name):
    """Return a loss as a compiled function of logits and labels, which several tests use."""
    return jax.jit(CASES[name][0])


@pytest.mark.parametrize("name", CASES)
def test_equals_the_loop(name):
    loss, expected = compiled(name), CASES[name][1]
    actual = loss(LOGITS, LABELS)
    assert (actual.shape, actual.dtype) == ((3,), jnp.float32)
    np.testing.assert_allclose(actual, [expected(i) for i in range(3)], rtol=1e-5)
    assert actual[2] == 0
    # The same for any number of spatial axes.
    flat = loss(LOGITS.reshape(3, 30, CLASSES), LABELS.reshape(3, 30))
    np.testing.assert_allclose(flat, actual, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_ignored_pixels_have_no_gradient_and_others_a_finite_one(name):
    loss = compiled(name)
    gradients = jax.jit(jax.grad(lambda x: loss(x, LABELS).sum()))
    for scale in (1.0, 1e4):  # with the latter, the probabilities are 0 or 1
        gradient = gradients(LOGITS * np.float32(scale))
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[LABELS == 255] == 0).all()
    # The logits of ignored pixels have no effect.
    other = np.where((LABELS == 255)[..., None], 7 - LOGITS, LOGITS)
    np.testing.assert_array_equal(loss(other, LABELS), loss(LOGITS, LABELS))


@pytest.mark.parametrize("name", CASES)
def test_lower_where_the_true_class_is_likelier(name):
    loss = compiled(name)
    truth = np.eye(CLASSES, dtype=np.float32)[np.where(LABELS == 255, 0, LABELS)]
    assert (loss(LOGITS + truth, LABELS)[:2] < loss(LOGITS, LABELS)[:2]).all()


@pytest.mark.parametrize("gradients", [False, True])
def test_equals_torch(gradients):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    logits = torch.tensor(LOGITS[:1].transpose(0, 3, 1, 2), requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS[:1]), weight=torch.tensor(WEIGHTS), ignore_index=255)
    ours = lambda x: losses.pixel_cross_entropy(x, LABELS[:1], class_weights=WEIGHTS).sum()  # noqa: E731
    if gradients:
        loss.backward()
        np.testing.assert_allclose(jax.grad(ours)(LOGITS[:1]), logits.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-7)
    else:
        np.testing.assert_allclose(ours(LOGITS[:1]), loss.item(), rtol=1e-5)


def test_another_ignored_label_and_half_precision():
    zero = jnp.asarray(np.where(LABELS == 255, 0, LABELS))
    assert jax.jit(lambda x, y: losses.pixel_cross_entropy(x, y, ignored_label=0))(LOGITS, zero)[2] == 0
    half = compiled("cross-entropy")(jnp.asarray(LOGITS, jnp.bfloat16), LABELS)
    np.testing.assert_allclose(half, compiled("cross-entropy")(LOGITS, LABELS), rtol=0.02)
    assert half.dtype == jnp.float32


def test_median_frequency_by_hand():
    # Class 0: 6 pixels of the 10 in images that have it; class 1: 4 of 20; class 2: 2 of 4; class 3: none.
    weights = losses.median_frequency_weights(np.array([6, 4, 2, 0]), np.array([10, 20, 4, 0]))
    np.testing.assert_allclose(weights, [0.5 / 0.6, 0.5 / 0.2, 1, 1], rtol=1e-6)


ERRORS = {
    "shapes": (
        lambda: losses.dice_loss(jnp.ones((2, 3, 3, 4)), jnp.zeros((2, 3, 4), jnp.int32)),
        "dice_loss: logits of shape (2, 3, 3, 4) do not match labels of shape (2, 3, 4); give (batch, *space, classes) and (batch, *space).",
    ),
    "weights": (
        lambda: losses.pixel_cross_entropy(jnp.ones((2, 3, 4)), jnp.zeros((2, 3), jnp.int32), class_weights=(1.0, 2.0)),
        "pixel_cross_entropy: class_weights has shape (2,) for 4 classes; give one weight per class.",
    ),
    "gamma": (
        lambda: losses.focal_loss(jnp.ones((2, 3, 4)), jnp.zeros((2, 3), jnp.int32), gamma=-1.0),
        "focal_loss: gamma=-1.0 is below 0; use 0 or more.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_texts(name):
    check_call(*ERRORS[name])


@pytest.mark.parametrize("label", [-1, 3, 254])
def test_a_label_that_is_not_a_class_gives_nan(label):
    labels = jnp.array([[0, 1], [2, label], [255, 255]])
    for name in ("cross-entropy", "focal", "dice"):
        assert np.isnan(np.asarray(compiled(name)(jnp.zeros((3, 2, 3)), labels))).tolist() == [False, True, False]
    sums = jax.jit(segmentation_sums)
    assert np.isnan(float(sums(jnp.zeros((3, 2, 3)), labels, jnp.array([True, True, True]))["loss"]))
    assert not np.isnan(float(sums(jnp.zeros((3, 2, 3)), labels, jnp.array([True, False, True]))["loss"]))
