"""Boxes, anchors, matching and the losses of detection: loops over Python numbers as an oracle, torchvision where it is installed, errors."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reading import check_call

from dilax import anchors, boxes, detection_losses

RNG = np.random.default_rng(3)


def random_boxes(*shape: int, extent: float = 60.0, seed: int = 0) -> Any:
    """Boxes of many sizes, of which the first are degenerate, equal, nested and apart from the others."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, extent, (*shape, 2))
    made = np.concatenate([start, start + rng.exponential(extent / 4, (*shape, 2))], -1).astype(np.float32)
    made[..., 1, :], made[..., 2, :] = made[..., 0, :], (5, 5, 5, 9)
    made[..., 3, :], made[..., 4, :] = (10, 10, 30, 20), (12, 11, 20, 19)
    made[..., 5, :] = (-300, -300, -290, -280)
    return made


A, B = random_boxes(7), random_boxes(9, seed=1)


def o_area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def o_overlap(a, b):
    intersection = o_area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    return intersection, o_area(a) + o_area(b) - intersection


def o_iou(a, b):
    intersection, union = o_overlap(a, b)
    return intersection / union if union else 0.0


def o_giou(a, b):
    hull = o_area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    return o_iou(a, b) - (hull - o_overlap(a, b)[1]) / hull if hull else 0.0


def middle(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]


def o_encode(box, anchor):
    (x, y, w, h), (ax, ay, aw, ah) = middle(box), middle(anchor)
    return [(x - ax) / aw, (y - ay) / ah, math.log(max(w, 1e-6) / aw), math.log(max(h, 1e-6) / ah)]


def o_decode(d, anchor):
    x, y, w, h = middle(anchor)
    x, y = x + d[0] * w, y + d[1] * h
    w, h = (side * math.exp(min(one, math.log(62.5))) for side, one in ((w, d[2]), (h, d[3])))
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def o_encode_ltrb(box, anchor):
    x, y, w, h = middle(anchor)
    return [(x - box[0]) / w, (y - box[1]) / h, (box[2] - x) / w, (box[3] - y) / h]


def o_decode_ltrb(d, anchor):
    x, y, w, h = middle(anchor)
    return [x - d[0] * w, y - d[1] * h, x + d[2] * w, y + d[3] * h]


def o_centreness(d):
    left, top, right, bottom = d
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)) if min(d) > 0 else 0.0


def o_nms(these, scores, threshold, groups=None):
    """The kept boxes, by falling score."""
    left, kept = [i for i in range(len(scores)) if scores[i] > -math.inf], []
    while left:
        best = max(left, key=lambda i: (scores[i], -i))
        kept.append(best)
        same = lambda i, best=best: groups is None or groups[i] == groups[best]  # noqa: E731
        left = [i for i in left if i != best and not (same(i) and o_iou(these[i], these[best]) > threshold)]
    return kept


@pytest.mark.parametrize(("function", "oracle"), [(boxes.iou, o_iou), (boxes.giou, o_giou)], ids=["iou", "giou"])
def test_overlaps_of_pairs(function, oracle):
    actual = jax.jit(function)(A, B)
    np.testing.assert_allclose(actual, [[oracle(a, b) for b in B.tolist()] for a in A.tolist()], atol=1e-5)
    stacked = jax.jit(function)(np.stack([A, A + 3]), np.stack([B, B]))
    np.testing.assert_allclose(stacked[0], actual, atol=1e-6)
    np.testing.assert_allclose(stacked[1, 2], [oracle((A[2] + 3).tolist(), b) for b in B.tolist()], atol=1e-5)


def test_areas_and_clipping():
    both: Any = np.array([A[0], A[0][[2, 3, 0, 1]]])
    np.testing.assert_allclose(boxes.area(both), [o_area(A[0].tolist()), 0])
    clipped = np.asarray(boxes.clip_boxes(A, (17, 25)))
    np.testing.assert_array_equal(clipped, [[min(max(v, 0), side) for v, side in zip(box, (25, 17, 25, 17))] for box in A.tolist()])


CODINGS = {
    "encode_boxes": (boxes.encode_boxes, o_encode, A),
    "decode_boxes": (boxes.decode_boxes, o_decode, RNG.normal(0, 2, (7, 4)).astype(np.float32)),
    "encode_ltrb": (boxes.encode_ltrb, o_encode_ltrb, A),
    "decode_ltrb": (boxes.decode_ltrb, o_decode_ltrb, RNG.uniform(0, 3, (7, 4)).astype(np.float32)),
}
ANCHORS: Any = np.delete(random_boxes(8, seed=2), 2, 0)


@pytest.mark.parametrize("name", CODINGS)
def test_codings(name):
    function, oracle, given = CODINGS[name]
    given: Any = np.concatenate([given[:6], given[6:] + np.float32(9)])  # logarithms above the limit
    actual = jax.jit(function)(given, ANCHORS)
    np.testing.assert_allclose(actual, [oracle(one, anchor) for one, anchor in zip(given.tolist(), ANCHORS.tolist())], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(function(given[None], ANCHORS[:1][None]), function(given, np.tile(ANCHORS[:1], (7, 1)))[None])


def test_decoding_undoes_encoding():
    sound: Any = np.delete(A, 2, 0)  # the box without area becomes one of 1e-6 pixels
    for encode, decode in ((boxes.encode_boxes, boxes.decode_boxes), (boxes.encode_ltrb, boxes.decode_ltrb)):
        np.testing.assert_allclose(decode(encode(sound, ANCHORS[:6]), ANCHORS[:6]), sound, atol=2e-3)


def test_centreness():
    given: Any = np.concatenate([RNG.uniform(-1, 4, (20, 4)), [[0, 0, 0, 0], [2, 2, 2, 2]]]).astype(np.float32)
    np.testing.assert_allclose(boxes.centreness(given), [o_centreness(one) for one in given.tolist()], rtol=1e-5)


MANY = random_boxes(3, 60, extent=40)
SCORES: Any = np.round(RNG.uniform(0, 1, (3, 60)), 1).astype(np.float32)  # with many ties
SCORES[0, 20:30], SCORES[1, 4] = -np.inf, np.nan
CLASSES: Any = RNG.integers(0, 3, (3, 60))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("grouped", [False, True])
def test_suppression(threshold, grouped):
    options: Any = dict(iou_threshold=threshold, max_outputs=70)
    suppress = functools.partial(boxes.batched_nms, classes=jnp.asarray(CLASSES)) if grouped else boxes.nms
    indices, mask = jax.jit(functools.partial(suppress, **options))(MANY, SCORES)
    assert (indices.dtype, indices.shape) == (jnp.int32, (3, 70))
    for i in range(3):
        scores = [-math.inf if math.isnan(one) else one for one in SCORES[i].tolist()]
        kept = o_nms(MANY[i].tolist(), scores, threshold, CLASSES[i] if grouped else None)
        assert len(kept) < (60 if threshold < 0.7 else 61)
        assert np.asarray(indices)[i, np.asarray(mask)[i]].tolist() == kept
        assert np.asarray(mask)[i].tolist() == [place < len(kept) for place in range(70)]
        assert not np.asarray(indices)[i, len(kept) :].any()


def test_suppression_keeps_the_first_of_many_and_takes_no_boxes():
    few, mask = boxes.nms(MANY, SCORES, iou_threshold=0.3, max_outputs=4)
    assert np.asarray(few)[0].tolist() == o_nms(MANY[0].tolist(), SCORES[0].tolist(), 0.3)[:4] and mask.all()
    indices, mask = boxes.nms(jnp.zeros((2, 0, 4)), jnp.zeros((2, 0)), iou_threshold=0.3, max_outputs=3)
    assert indices.shape == (2, 3) and not mask.any()


def test_anchors_of_a_level():
    shapes = anchors.anchor_shapes((32, 40, 50), (0.5, 1.0, 2.0))
    assert shapes[:4].tolist() == [[-23, -11, 23, 11], [-28, -14, 28, 14], [-35, -18, 35, 18], [-16, -16, 16, 16]]
    grid = anchors.grid_anchors((2, 3), stride=(8, 10), shapes=shapes, offset=0.5)
    for row, column, k in np.ndindex(2, 3, 9):
        x, y = 10 * (column + 0.5), 8 * (row + 0.5)
        np.testing.assert_array_equal(grid[(row * 3 + column) * 9 + k], shapes[k] + np.array([x, y, x, y]))


GRID: Any = anchors.grid_anchors((5, 6), stride=12, shapes=anchors.anchor_shapes((10, 24), (0.5, 2.0)))
TRUTH: Any = np.stack([random_boxes(8, seed=5), random_boxes(8, seed=6)])
TRUTH[0, 6] = GRID[4 * 14 + 1]  # its neighbours are ignored
VALID: Any = np.array([[True] * 8, [False, True, True, True, False, True, True, False]])


def o_match_overlap(truth, valid, positive=0.5, negative=0.4):
    overlap = [[o_iou(box, anchor) if counts else -1.0 for box, counts in zip(truth, valid)] for anchor in GRID.tolist()]
    best = [max(column) for column in zip(*overlap)]
    found = []
    for row in overlap:
        which = row.index(max(row))
        closest = any(one == most > 0 for one, most in zip(row, best))
        found.append(which if max(row) >= positive or closest else -1 if max(row) < negative else -2)
    return found


def o_match_centres(truth, valid, radius, ranges):
    found = []
    for anchor, (lowest, highest) in zip(GRID.tolist(), ranges.tolist()):
        x, y, width, _ = middle(anchor)
        candidates = []
        for i, (box, counts) in enumerate(zip(truth, valid)):
            cx, cy, _, _ = middle(box)
            sides = [x - box[0], y - box[1], box[2] - x, box[3] - y]
            near = max(abs(x - cx), abs(y - cy)) < radius * width
            if counts and near and min(sides) > 0 and lowest < max(sides) < highest:
                candidates.append((o_area(box), i))
        found.append(min(candidates)[1] if candidates else -1)
    return found


def o_match_nearest(truth, valid, predictions, nearest, positive, negative):
    chosen: list[list[tuple[float, int]]] = [[] for _ in GRID]
    for i, (box, counts) in enumerate(zip(truth, valid)):
        for candidates in (GRID.tolist(), predictions):
            distance = [sum(abs(p - q) for p, q in zip(middle(box), middle(one))) for one in candidates]
            for place in sorted(range(len(distance)), key=lambda place: (distance[place], place))[:nearest] if counts else ():
                chosen[place].append((-o_iou(box, GRID[place].tolist()), i))
    found = []
    for candidates, prediction in zip(chosen, predictions):
        most = max((o_iou(box, prediction) for box, counts in zip(truth, valid) if counts), default=-1.0)
        if candidates:
            overlap, which = min(candidates)
            found.append(which if -overlap >= positive else -2)
        else:
            found.append(-2 if most > negative else -1)
    return found


def test_matching_by_overlap():
    matches = jax.jit(anchors.match_overlap)(TRUTH, VALID, GRID)
    assert matches.tolist() == [o_match_overlap(truth, valid) for truth, valid in zip(TRUTH.tolist(), VALID)]
    assert {-2, -1} < set(np.asarray(matches).ravel().tolist())
    assert (np.asarray(anchors.match_overlap(TRUTH, VALID & False, GRID)) == -1).all()


def test_matching_by_centres():
    ranges = np.stack([RNG.uniform(0, 8, len(GRID)), RNG.uniform(8, 60, len(GRID))], -1).astype(np.float32)
    matches = jax.jit(functools.partial(anchors.match_centres, radius=1.2, ranges=ranges))(TRUTH, VALID, GRID)
    assert matches.tolist() == [o_match_centres(truth, valid, 1.2, ranges) for truth, valid in zip(TRUTH.tolist(), VALID)]
    assert (np.asarray(matches) >= 0).sum() > 10


def test_matching_of_the_nearest():
    # Random shifts, so that no two distances are equal.
    predictions = np.stack([GRID, GRID]) + RNG.normal(0, 6, (2, len(GRID), 4)).astype(np.float32)
    predictions[0, 40] = TRUTH[0, 3]
    moved = TRUTH + RNG.uniform(0, 0.5, TRUTH.shape).astype(np.float32)
    matches = jax.jit(functools.partial(anchors.match_nearest, nearest=2, negative=0.3))(moved, VALID, GRID, predictions)
    expected = [o_match_nearest(t, v, p, 2, 0.15, 0.3) for t, v, p in zip(moved.tolist(), VALID, predictions.tolist())]
    assert matches.tolist() == expected
    assert {-2, -1} < set(np.asarray(matches).ravel().tolist())


LOGITS: Any = RNG.normal(0, 3, 24).astype(np.float32)
TARGETS: Any = np.where(np.arange(24) % 3 == 0, 1.0, np.where(np.arange(24) % 3 == 1, 0.0, 0.3)).astype(np.float32)


def o_focal(x, t, alpha, gamma):
    p = 1 / (1 + math.exp(-x))
    entropy = -(t * math.log(p) + (1 - t) * math.log(1 - p))
    return (alpha * t + (1 - alpha) * (1 - t) if alpha is not None else 1) * entropy * (1 - (p * t + (1 - p) * (1 - t))) ** gamma


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (None, 0.5), (1.0, 0.0)])
def test_focal_loss(alpha, gamma):
    loss = functools.partial(detection_losses.sigmoid_focal_loss, alpha=alpha, gamma=gamma)
    expected = [o_focal(x, t, alpha, gamma) for x, t in zip(LOGITS.tolist(), TARGETS.tolist())]
    np.testing.assert_allclose(jax.jit(loss)(LOGITS, TARGETS), expected, rtol=1e-3)
    gradient = jax.jit(jax.grad(lambda x: loss(x, TARGETS).sum()))
    assert np.isfinite(gradient(LOGITS * np.float32(100))).all()


def test_losses_of_boxes():
    loss = jax.jit(detection_losses.giou_loss)(A, B[:7])
    np.testing.assert_allclose(loss, [1 - o_giou(a, b) for a, b in zip(A.tolist(), B.tolist())], atol=1e-5)
    assert np.isfinite(jax.jit(jax.grad(lambda a: detection_losses.giou_loss(a, B[:7]).sum()))(A)).all()
    for beta in (0.0, 0.5):
        d = [abs(x - t) for x, t in zip(LOGITS.tolist(), TARGETS.tolist())]
        expected = [one * one / (2 * beta) if one < beta else one - beta / 2 for one in d]
        np.testing.assert_allclose(detection_losses.smooth_l1_loss(LOGITS, TARGETS, beta=beta), expected, rtol=1e-5)


def test_everything_equals_torchvision():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    from torchvision import ops  # pyright: ignore[reportMissingImports]
    from torchvision.models.detection import _utils, anchor_utils  # pyright: ignore[reportMissingImports]

    a, b, t = torch.tensor(np.delete(A, 2, 0)), torch.tensor(np.delete(B, 2, 0)[:6]), torch.tensor
    ours: Any = np.delete(A, 2, 0)
    other: Any = np.delete(B, 2, 0)[:6]
    unit, linear = _utils.BoxCoder((1.0, 1.0, 1.0, 1.0)), _utils.BoxLinearCoder()

    @jax.jit
    def all_of_them():
        return [
            boxes.iou(ours, other),
            boxes.giou(ours, other),
            boxes.clip_boxes(ours, (20, 30)),
            boxes.encode_boxes(ours, other),
            boxes.decode_boxes(other / 30, ours),
            boxes.encode_ltrb(ours, other),
            boxes.decode_ltrb(other, ours),
            detection_losses.giou_loss(ours, other),
            detection_losses.sigmoid_focal_loss(LOGITS, TARGETS),
            detection_losses.smooth_l1_loss(LOGITS, TARGETS, beta=0.5),
        ]

    theirs = [
        ops.box_iou(a, b),
        ops.generalized_box_iou(a, b),
        ops.clip_boxes_to_image(a, (20, 30)),
        unit.encode_single(a, b),
        unit.decode_single(b / 30, a),
        linear.encode(b, a),
        linear.decode(b, a),
        ops.generalized_box_iou_loss(a, b),
        ops.sigmoid_focal_loss(t(LOGITS), t(TARGETS)),
        torch.nn.functional.smooth_l1_loss(t(LOGITS), t(TARGETS), beta=0.5, reduction="none"),
    ]
    for actual, expected in zip(all_of_them(), theirs, strict=True):
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-4)
    cell = anchor_utils.AnchorGenerator(((32, 40),), ((0.5, 1.0, 2.0),)).cell_anchors[0]
    np.testing.assert_array_equal(anchors.anchor_shapes((32, 40), (0.5, 1.0, 2.0)), cell.numpy())
    scores: Any = np.random.default_rng(1).permutation(60).astype(np.float32)
    for one, groups in zip(MANY, CLASSES):
        indices, mask = boxes.nms(one, scores, iou_threshold=0.2, max_outputs=60)
        assert np.asarray(indices)[np.asarray(mask)].tolist() == ops.nms(t(one), t(scores), 0.2).tolist()
        indices, mask = boxes.batched_nms(one, scores, groups, iou_threshold=0.5, max_outputs=60)
        assert np.asarray(indices)[np.asarray(mask)].tolist() == ops.batched_nms(t(one), t(scores), t(groups), 0.5).tolist()
    matcher = _utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    truth: Any = np.delete(TRUTH[0], (2, 5), 0)  # torchvision matches a box without any overlap with all anchors
    expected = matcher(ops.box_iou(t(truth), t(GRID)))
    assert anchors.match_overlap(truth, VALID[0, :6], GRID).tolist() == expected.tolist()


ones: Any = np.ones
ONE, FLAG = ones((2, 4), np.float32), ones(2, bool)
ERRORS = {
    "corners": (lambda: boxes.area(ones((3, 5))), "area: boxes of shape (3, 5) must be (..., 4); give the four numbers of a box along the last axis."),
    "pairs": (
        lambda: boxes.iou(ones((2, 3, 4)), ones((3, 3, 4))),
        "iou: a of shape (2, 3, 4) and b of shape (3, 3, 4) do not fit; give (..., n, 4) and (..., m, 4).",
    ),
    "anchors of boxes": (
        lambda: boxes.encode_boxes(ones((2, 3, 4)), ones((3, 4))),
        "encode_boxes: anchors of shape (3, 4) do not fit boxes of shape (2, 3, 4); give one anchor for each.",
    ),
    "scores": (
        lambda: boxes.nms(ones((2, 4)), ones(3), iou_threshold=0.5, max_outputs=1),
        "nms: boxes of shape (2, 4) and scores of shape (3,) do not fit; give (..., n, 4) and (..., n).",
    ),
    "classes": (
        lambda: boxes.batched_nms(ONE, ones(2), ones(3, int), iou_threshold=0.5, max_outputs=1),
        "batched_nms: classes of shape (3,) do not fit scores of shape (2,); give one class per box.",
    ),
    "threshold": (
        lambda: boxes.nms(ONE, ones(2), iou_threshold=-0.5, max_outputs=1),
        "nms: iou_threshold=-0.5 is below 0; use 0 or more.",
    ),
    "sizes": (lambda: anchors.anchor_shapes((0,), (1.0,)), "anchor_shapes: sizes[0]=0 is not above 0; use a larger number."),
    "no ratios": (
        lambda: anchors.anchor_shapes((1,), ()),
        "anchor_shapes: aspect_ratios=() is not a sequence of numbers; give a tuple such as (0.5, 1.0, 2.0).",
    ),
    "shapes": (
        lambda: anchors.grid_anchors((1, 1), stride=1, shapes=ones(4)),
        "grid_anchors: shapes of shape (4,) must be (anchors of a cell, 4); give those of `anchor_shapes`.",
    ),
    "mask": (
        lambda: anchors.match_overlap(ONE, ones(3, bool), ONE),
        "match_overlap: boxes of shape (2, 4) and mask of shape (3,) do not fit; give (..., n, 4) and (..., n), with n at least 1.",
    ),
    "anchors": (lambda: anchors.match_centres(ONE, FLAG, ONE[0]), "match_centres: anchors of shape (4,) must be (cells, 4); give those of `grid_anchors`."),
    "thresholds": (
        lambda: anchors.match_overlap(ONE, FLAG, ONE, positive=0.3),
        "match_overlap: negative=0.4 is above positive=0.3; give thresholds with negative <= positive.",
    ),
    "ranges": (
        lambda: anchors.match_centres(ONE, FLAG, ONE, ranges=ones((3, 2))),
        "match_centres: ranges of shape (3, 2) do not fit 2 anchors; give (cells, 2).",
    ),
    "predictions": (
        lambda: anchors.match_nearest(ONE, FLAG, ONE, ones((3, 4))),
        "match_nearest: predictions of shape (3, 4) do not fit boxes of shape (2, 4) and 2 anchors; give (..., cells, 4).",
    ),
    "targets": (
        lambda: detection_losses.smooth_l1_loss(ones(2), ones(3)),
        "smooth_l1_loss: predictions of shape (2,) and targets of shape (3,) differ; give one target for each.",
    ),
    "alpha": (
        lambda: detection_losses.sigmoid_focal_loss(ones(2), ones(2), alpha=1.5),
        "sigmoid_focal_loss: alpha=1.5 is above 1; give the weight of the targets of 1, from 0 to 1, or None.",
    ),
    "boxes": (
        lambda: detection_losses.giou_loss(ones(3), ones(3)),
        "giou_loss: boxes of shape (3,) must be (..., 4); give the corners of a box along the last axis.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    check_call(*ERRORS[name])
