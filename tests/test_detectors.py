"""Detectors: a list of laws for all of them, parity with torchvision, counts of parameters, properties of single detectors, errors."""

import functools
import json
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import KEY, random_input
from foreign import random_state
from reading import check_call
from selection import with_slow

import dilax
from dilax import models
from dilax.blocks import ConvNormAct
from dilax.boxes import iou
from dilax.models import yolof
from dilax.summary import layers

with np.load(Path(__file__).parent / "golden" / "detectors.npz") as file:
    GOLDEN: dict[str, Any] = dict(file)
ABOUT = json.loads(str(GOLDEN["about"]))
COUNTS = {  # with 91 classes, as published, and the scales and biases of the 53 normalisations, which are fixed there
    "retinanet_resnet50_fpn": 34_014_999 + 2 * 26_560,
    "fcos_resnet50_fpn": 32_269_600 + 2 * 26_560,
}


class Strided(nn.Module):
    """A backbone of one convolution per stride, up to the output stride."""

    norm: str = "batch"
    dtype: Any = None
    strides: tuple[int, ...] = (2, 4, 8, 16, 32)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool, output_stride: int = 32) -> tuple[jax.Array, ...]:
        maps = []
        for i, stride in enumerate(self.strides):
            step = 2 if stride <= output_stride else 1
            x = ConvNormAct(4 + i, stride=step, padding="TORCH", norm=self.norm, activation="silu", dtype=self.dtype)(x, train=train)
            maps.append(x)
        return tuple(maps)


FEW: dict[str, Any] = dict(backbone=Strided, num_classes=3)
SMALL: dict[str, Any] = {
    "separable": models.SeparableDetector(3, 4, (4, 6), (1, 1), 6, (1, 2), 1, activation="silu"),
    "retinanet": models.RetinaNet(features=5, **FEW),
    "fcos": models.FCOS(features=12, **FEW),
    "yolof": models.YOLOF(features=6, dilations=(1, 2), output_stride=16, anchor_sizes=(16, 40), **FEW),
    "trident": models.TridentDetector(features=12, trident_blocks=1, **{**FEW, "backbone": functools.partial(Strided, strides=(2, 4, 8, 16))}),
}  # fmt: skip
SIZE = (70, 150)
X = random_input((2, *SIZE, 3))
BOXES = np.array(
    [
        [[10, 12, 41, 45], [80, 20, 147, 66], [60, 2, 75, 15], [0, 0, 0, 0]],
        [[5, 5, 90, 60], [100, 8, 130, 40], [0, 0, 0, 0], [0, 0, 0, 0]],
    ],
    np.float32,
)
CLASSES, MASK = np.array([[0, 2, 1, 0], [1, 2, 0, 0]]), np.array([[True, True, True, False], [True, True, False, False]])
AS_IN_TRAINING: dict[str, Any] = dict(train=True, mutable=["batch_stats"])


def total(sums: Any, found: Any) -> Any:
    return sum(one.sum() for one in sums.values()) / jnp.maximum(found.sum(), 1.0)


@functools.cache
def variables_of(name: str) -> Any:
    return jax.jit(lambda x: SMALL[name].init(KEY, x, train=False))(X)


@functools.cache
def applied(name: str) -> Any:
    """The outputs in evaluation, of the images and of the images in reverse order."""
    run = jax.jit(functools.partial(SMALL[name].apply, train=False))
    return run(variables_of(name), X), run(variables_of(name), X[::-1])


@functools.cache
def noisy(name: str) -> Any:
    """Outputs that differ between cells, as those of a detector that has not been trained hardly do."""
    return {key: one + 0.3 * random_input(one.shape, 5) for key, one in applied(name)[0].items()}


@functools.cache
def losses_of(name: str) -> Any:
    return jax.jit(functools.partial(SMALL[name].detection_loss, image_size=SIZE))


@pytest.mark.parametrize("name", with_slow(SMALL, repeats=("fcos",)))
def test_outputs(name):
    outputs, reverse = applied(name)
    cells = sum(len(level.anchors) for level in SMALL[name].levels(SIZE))
    assert outputs["logits"].shape == (2, cells, 3) and outputs["boxes"].shape == (2, cells, 4)
    assert {output.shape[:2] for output in outputs.values()} == {(2, cells)} and {one.dtype for one in outputs.values()} == {
        jnp.dtype("float32")
    }
    # Images are independent of each other.
    chex.assert_trees_all_close(outputs, jax.tree.map(lambda one: one[::-1], reverse), atol=1e-5)
    probabilities = nn.sigmoid(outputs["logits"])
    np.testing.assert_allclose(probabilities.mean(), 0.01, atol=0.006)
    half: Any = SMALL[name].clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda: half.apply(variables_of(name), X.astype(jnp.bfloat16), train=False))
    assert jax.tree.map(lambda one: (one.shape, one.dtype), shapes) == jax.tree.map(lambda one: (one.shape, one.dtype), outputs)


@pytest.mark.parametrize("name", with_slow(SMALL, repeats=("fcos", "yolof")))
def test_every_parameter_has_a_gradient(name):
    model, variables = SMALL[name], variables_of(name)

    def loss(params: Any) -> Any:
        outputs, _ = model.apply({**variables, "params": params}, X, **AS_IN_TRAINING)
        return total(*model.detection_loss(outputs, BOXES, CLASSES, MASK, SIZE))

    grads = jax.jit(jax.grad(loss))(variables["params"])
    chex.assert_tree_all_finite(grads)
    assert [path for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if not np.abs(leaf).max() > 0] == []
    assert sum(layer.parameters for layer in layers(model, X)) == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("name", SMALL)
def test_padding_and_the_order_of_boxes_do_not_count(name):
    outputs, loss = noisy(name), losses_of(name)
    sums, found = loss(outputs, BOXES, CLASSES, MASK)
    assert all(one.shape == (2,) and one.dtype == jnp.float32 and np.isfinite(one).all() and (one > 0).all() for one in sums.values())
    assert found.shape == (2,) and (found >= 1).all()
    filled = np.where(MASK[..., None], BOXES, np.array([20, 20, 60, 60], np.float32))
    chex.assert_trees_all_equal(loss(outputs, np.where(MASK[..., None], BOXES, np.nan), CLASSES, MASK), (sums, found))
    chex.assert_trees_all_equal(loss(outputs, filled, np.where(MASK, CLASSES, 2), MASK), (sums, found))
    order = [2, 3, 0, 1]
    chex.assert_trees_all_close(loss(outputs, BOXES[:, order], CLASSES[:, order], MASK[:, order]), (sums, found), rtol=1e-5)
    # Without boxes there is background alone.
    none, nothing = loss(outputs, BOXES, CLASSES, np.zeros_like(MASK))
    assert not nothing.any() and (none.pop("classes") > 0).all() and not any(one.any() for one in none.values())
    unknown, _ = loss(outputs, BOXES, np.array([[0, 2, 1, 7], [3, 2, 0, 0]]), MASK)
    assert np.isnan(unknown["classes"]).tolist() == [False, True]
    other = loss(outputs, BOXES, np.where(MASK, (CLASSES + 1) % 3, 0), MASK)
    assert (np.asarray(other[0]["classes"]) != np.asarray(sums["classes"])).all()


@pytest.mark.parametrize("name", with_slow(SMALL, kept=("retinanet", "yolof")))
def test_outputs_of_a_low_loss_are_the_boxes(name):
    """Outputs that are optimised directly become detections of exactly the boxes, so matching, coding and detection agree."""
    model, rule = SMALL[name], optax.adam(0.05)

    def step(_: Any, state: Any) -> Any:
        outputs, moments = state
        grads = jax.grad(lambda one: total(*model.detection_loss(one, BOXES, CLASSES, MASK, SIZE)))(outputs)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = rule.update(grads, moments)
        return optax.apply_updates(outputs, updates), moments

    @jax.jit
    def fit(start: Any) -> Any:
        outputs, _ = jax.lax.fori_loop(0, 600, step, (start, rule.init(start)))
        return model.detections(outputs, SIZE, score_threshold=0.3, max_detections=5)

    start = {key: jnp.maximum(one, 0.5) if key == "boxes" and name in ("fcos", "trident") else one for key, one in applied(name)[0].items()}
    found = fit(start)
    assert np.asarray(found.mask).sum(1).tolist() == MASK.sum(1).tolist()
    for i in range(2):
        best = np.asarray(iou(BOXES[i, MASK[i]], found.boxes[i, : MASK[i].sum()]))
        assert best.max(1).min() > 0.85, best
        assert np.asarray(found.classes)[i, best.argmax(1)].tolist() == CLASSES[i, MASK[i]].tolist()


@pytest.mark.parametrize("name", SMALL)
def test_detections(name):
    outputs = noisy(name) | {"logits": noisy(name)["logits"] + 3}
    found = jax.jit(functools.partial(SMALL[name].detections, image_size=SIZE, score_threshold=0.1, iou_threshold=0.4, max_detections=30))(
        outputs
    )
    assert found.boxes.shape == (2, 30, 4) and found.classes.dtype == jnp.int32
    for boxes, scores, classes, mask in zip(*map(np.asarray, found)):
        count = mask.sum()
        assert count > 2 and mask.tolist() == [i < count for i in range(30)]
        assert not boxes[count:].any() and not scores[count:].any() and not classes[count:].any()
        assert (np.diff(scores[:count]) <= 0).all() and (scores[:count] > 0.1).all() and (scores <= 1).all()
        assert (boxes >= 0).all() and (boxes <= np.array([150, 70, 150, 70], np.float32)).all() and set(classes) <= {0, 1, 2}
        overlap = np.asarray(iou(boxes[:count], boxes[:count])) - np.eye(count)
        assert overlap[classes[:count, None] == classes[None, :count]].max(initial=0) <= 0.4


@pytest.mark.parametrize("name", SMALL)
def test_coverage(name):
    share = jax.jit(functools.partial(SMALL[name].anchor_coverage, image_size=SIZE))
    boxes = np.concatenate(
        [BOXES, np.full((2, 1, 4), 900, np.float32) + np.array([0, 0, 30, 30], np.float32)], 1
    )  # the last is outside of the image
    valid = np.pad(MASK, ((0, 0), (0, 1)))
    assert float(share(boxes, valid)) == 1
    np.testing.assert_allclose(share(boxes, valid | (np.arange(5) == 4)), 5 / 7, rtol=1e-6)
    assert np.isnan(share(boxes, np.zeros_like(valid)))


@pytest.mark.parametrize("name", ABOUT["small"])
def test_outputs_and_detections_equal_those_of_torchvision(name, tmp_path):
    about = ABOUT["small"][name]
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **random_state(about["shapes"], about["seed"]))
    slim = functools.partial(models.ResNet, stage_features=(4, 6, 8, 10), blocks=(1, 1, 1, 1))
    model: Any
    model, variables = dilax.load_weights(f"torchvision:{name}", tmp_path / "weights.npz", fields={"backbone": slim, "features": 32})
    assert model.num_classes == 3
    outputs: Any = jax.jit(functools.partial(model.apply, train=False))(variables, GOLDEN["x"])
    for ours, theirs in {"logits": "cls_logits", "boxes": "bbox_regression", "centreness": "bbox_ctrness"}.items():
        if ours in outputs:
            expected = GOLDEN[f"{name}.{theirs}"].reshape(outputs[ours].shape)
            np.testing.assert_allclose(outputs[ours], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    options = dict(iou_threshold=0.5, max_detections=300) if name.startswith("retinanet") else dict(iou_threshold=0.6)
    found: Any = jax.jit(functools.partial(model.detections, image_size=GOLDEN["x"].shape[1:3], **options))(outputs)
    count = int(found.mask.sum())
    expected = {key: GOLDEN[f"{name}.{key}"] for key in ("scores", "boxes", "labels")}
    assert count == len(expected["scores"]) > 20
    np.testing.assert_allclose(found.scores[0, :count], expected["scores"], atol=1e-4)
    np.testing.assert_allclose(found.boxes[0, :count], expected["boxes"], atol=0.05)
    np.testing.assert_array_equal(found.classes[0, :count], expected["labels"])


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = models.create(name)
    params = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 64, 64, 3)), train=False))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[name]


def test_backbones_of_other_families():
    model, x = models.FCOS(functools.partial(models.MobileNetV2, width_multiplier=0.25), 3, 8), jnp.zeros((1, 64, 96, 3))
    outputs, _ = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))
    assert outputs["logits"].shape == (1, 8 * 12 + 4 * 6 + 2 * 3 + 2 + 1, 3)


def test_branches_of_a_trident_share_all_weights():
    """A single branch, with the variables of all, has the outputs of that branch."""
    model: Any = SMALL["trident"]
    branch = model.clone(dilations=(2,), sizes=((0, 2000),))
    alone = jax.jit(functools.partial(branch.apply, train=False))(variables_of("trident"), X)
    for key, output in alone.items():
        parts = np.split(np.asarray(applied("trident")[0][key]), 3, 1)
        np.testing.assert_allclose(output, parts[1], atol=1e-5)
        assert np.abs(parts[0] - parts[1]).max() > 1e-4


def test_branches_of_a_trident_learn_and_find_boxes_of_their_sizes():
    model: Any = SMALL["trident"].clone(sizes=((0, 40), (30, 70), (60, 2000)))
    levels = model.levels(SIZE)
    matches = np.split(np.asarray(jax.jit(lambda: model.matches(None, BOXES, MASK, levels))()), 3, 1)
    # The sizes are 32, 55 and 14; and 68 and 31.
    learned = [[sorted(set(row[row >= 0].tolist())) for row in branch] for branch in matches]
    assert learned == [[[0, 2], [1]], [[0, 1], [0, 1]], [[], [0]]]
    raw = {key: jnp.full_like(one[:1], 1.0 if key == "boxes" else 9.0) for key, one in applied("trident")[0].items()}

    def found(*sizes: tuple[int, int]) -> Any:
        return model.clone(sizes=sizes).detections(raw, SIZE, max_detections=5)

    # All boxes have the size of two cells, 32, apart from those at the border, which are detected before they are clipped.
    all_sizes, others = jax.jit(lambda: (found((0, 40), (40, 50), (60, 70)), found((50, 60), (33, 70), (0, 31))))()
    assert all_sizes.mask.all() and not others.mask.any()


def test_yolof_joins_classes_and_objectness():
    a, b = random_input((2, 5, 3)) * 4, random_input((2, 5, 1), 1) * 4
    np.testing.assert_allclose(nn.sigmoid(yolof._both(a, b)), nn.sigmoid(a) * nn.sigmoid(b), rtol=1e-5)
    extreme = yolof._both(jnp.array([[[1e4, -1e4]]]), jnp.array([[[-1e4]]]))
    np.testing.assert_allclose(extreme, [[[-1e4, -2e4]]])
    # The centre of a box is at most 32 pixels away from that of its anchor.
    shifted = SMALL["yolof"].decode(jnp.array([[9.0, -9.0, 0.0, 0.0]]), jnp.array([[10.0, 10.0, 30.0, 30.0]]))
    np.testing.assert_allclose(shifted, [[42, -22, 62, -2]])


def loss(outputs: Any = None, boxes: Any = BOXES, mask: Any = MASK, size: Any = SIZE) -> Any:
    return lambda: SMALL["separable"].detection_loss(applied("separable")[0] if outputs is None else outputs, boxes, CLASSES, mask, size)


def run(model: Any, shape: tuple[int, ...] = (1, 64, 64, 3)) -> Any:
    return lambda: jax.eval_shape(lambda: model.init(KEY, jnp.zeros(shape), train=False))


ERRORS = {
    "outputs": (loss(X), "SeparableDetector: outputs of type ArrayImpl are not those of a detector; give what `__call__` returned."),
    "outputs of another image": (
        loss(size=(64, 64)),
        "SeparableDetector: outputs of shape (2, 171, 3) are not those of images of image_size=(64, 64), which have 64 cells; give the size of "
        "the images that the detector was applied to.",
    ),
    "size of an image": (
        loss(size=(640,)),
        "SeparableDetector: image_size=(640,) has length 1, but there are 2 spatial axes; give an int or a tuple of 2 ints.",
    ),
    "boxes": (
        loss(boxes=BOXES[..., :3]),
        "SeparableDetector: boxes of shape (2, 4, 3), classes of shape (2, 4) and mask of shape (2, 4) do not fit; give (2, n, 4), (2, n) "
        "twice, with n at least 1.",
    ),
    "mask": (loss(mask=MASK.astype(int)), "SeparableDetector: mask has dtype int32; convert it to a Boolean dtype such as bool first, as in mask.astype(bool)."),
    "image": (run(SMALL["fcos"], (64, 64, 3)), "FCOS: x of shape (64, 64, 3) must be (batch, height, width, channels); add the missing axes."),
    "stages": (
        run(models.SeparableDetector(blocks=(1,))),
        "SeparableDetector: stage_features=(32, 64) and blocks=(1,) must have 2 entries each, one per stage.",
    ),
    "backbone": (
        run(models.RetinaNet(backbone=functools.partial(Strided, strides=(2, 4, 8, 16)))),
        "RetinaNet: the last maps of the backbone have sizes [(16, 16), (8, 8), (4, 4)] for images of 64x64; use a backbone whose last three "
        "maps have strides 8, 16 and 32, such as dilax.models.ResNet.",
    ),
    "a backbone that is made already": (
        run(models.YOLOF(backbone=models.ResNet())),  # pyright: ignore[reportArgumentType]
        "YOLOF: backbone=ResNet(...) is not a class; give a class such as dilax.models.ResNet, or functools.partial(dilax.models.ResNet, "
        "blocks=(2, 2, 2, 2), bottleneck=False).",
    ),
    "branches": (
        run(models.TridentDetector(dilations=(1, 2))),
        "TridentDetector: dilations=(1, 2) and sizes=((0, 90), (30, 160), (90, 2000)) must have one entry per branch each, at least one.",
    ),
    "threshold": (
        lambda: SMALL["separable"].detections(applied("separable")[0], SIZE, score_threshold=-1),
        "detections: score_threshold=-1 is below 0; use 0 or more.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    check_call(*ERRORS[name])
