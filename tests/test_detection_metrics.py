"""Compare average precision with the definition, read literally, and with COCO's own program where it is installed."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from dilax.detection_metrics import IOU_THRESHOLDS, score_detections
from dilax.errors import UserError

CLASSES = 3
FIELDS = ("boxes", "scores", "classes", "mask", "true_boxes", "true_classes", "true_mask", "crowd")


def boxes_of(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Boxes with corners on a coarse grid, so that many overlap, and some by exactly a threshold."""
    low = rng.integers(0, 12, (*shape, 2))
    return np.concatenate([low, low + rng.integers(1, 9, (*shape, 2))], -1).astype(np.float64)


def near(rng: np.random.Generator, truths: np.ndarray, count: int) -> np.ndarray:
    """Boxes of which most are true ones that were moved a little."""
    images, most = truths.shape[:2]
    boxes = truths[np.arange(images)[:, None], rng.integers(0, most, (images, count))] + rng.integers(0, 2, (images, count, 4)) * [
        -1,
        0,
        0,
        1,
    ]
    return np.where(rng.random((images, count, 1)) < 0.3, boxes_of(rng, images, count), boxes)


def case(seed: int, *, images: int = 6, truths: int = 5, found: int = 12, crowd: float = 0.0, kept: float = 0.8, ties: bool = False) -> Any:
    rng = np.random.default_rng(seed)
    true_boxes = boxes_of(rng, images, truths)
    scores = rng.integers(1, 4, (images, found)) / 4 if ties else rng.random((images, found))
    arrays = {
        "boxes": near(rng, true_boxes, found),
        "scores": scores,
        "classes": rng.integers(0, CLASSES, (images, found)),
        "mask": rng.random((images, found)) < kept,
        "true_boxes": true_boxes,
        "true_classes": rng.integers(0, CLASSES, (images, truths)),
        "true_mask": rng.random((images, truths)) < 0.8,
        "crowd": rng.random((images, truths)) < crowd,
    }
    arrays["mask"][0] = arrays["true_mask"][1] = False  # an image without detections, one without objects
    return arrays


CASES = {
    "plain": case(0),
    "ties": case(1, ties=True, found=20),
    "crowds": case(2, crowd=0.4, found=25),
    "crowds and ties": case(3, crowd=0.4, ties=True, truths=8, found=25),
    "many detections": case(4, found=340, kept=1.0, crowd=0.2, images=3),
    "one class without boxes": {**case(5), "true_classes": case(5)["true_classes"] % 2},
    "no detections": case(6, kept=0.0),
    "no objects": {**case(7), "true_mask": np.zeros((6, 5), bool)},
    "crowds alone": case(8, crowd=1.0),
}


def shared(a: Any, b: Any) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def area(a: Any) -> float:
    return (a[2] - a[0]) * (a[3] - a[1])


def expected_precision(arrays: Any, label: int, threshold: float, most: int) -> list[float] | None:
    """The definition, one box after the other: (101,) precisions of a class, or None if it has no boxes."""
    ranked, truths = [], 0
    for i in range(len(arrays["mask"])):
        true = [j for j in range(arrays["true_mask"].shape[1]) if arrays["true_mask"][i, j] and arrays["true_classes"][i, j] == label]
        single = [j for j in true if not arrays["crowd"][i, j]]
        truths += len(single)
        found = [j for j in range(arrays["mask"].shape[1]) if arrays["mask"][i, j] and arrays["classes"][i, j] == label]
        taken = set()
        for place, j in enumerate(sorted(found, key=lambda j: -arrays["scores"][i, j])[:most]):
            box, chosen = arrays["boxes"][i, j], None
            for k in single:
                both = shared(box, arrays["true_boxes"][i, k])
                ratio = both / (area(box) + area(arrays["true_boxes"][i, k]) - both)
                if k not in taken and ratio >= min(threshold, 1 - 1e-10) and (chosen is None or ratio >= chosen[0]):
                    chosen = ratio, k
            crowds = [arrays["true_boxes"][i, k] for k in true if k not in single]
            if chosen is not None:
                taken.add(chosen[1])
            elif any(shared(box, crowd) / area(box) >= threshold for crowd in crowds):
                continue
            ranked.append((-arrays["scores"][i, j], i, place, chosen is not None))
    if not truths:
        return None
    points, right = [], 0
    for rank, (*_, hit) in enumerate(sorted(ranked), 1):
        right += hit
        points.append((right / truths, right / rank))
    return [max((precision for recall, precision in points if recall >= step / 100), default=0.0) for step in range(101)]


@pytest.mark.parametrize("most", [100, 3])
@pytest.mark.parametrize("name", CASES)
def test_precision_is_that_of_the_definition(name, most):
    arrays = CASES[name]
    scores = score_detections(**arrays, num_classes=CLASSES, max_detections=most)
    for label in range(CLASSES):
        for i, threshold in enumerate(IOU_THRESHOLDS):
            expected = expected_precision(arrays, label, threshold, most)
            assert (scores.truths[label] == 0) == (expected is None)
            np.testing.assert_allclose(scores.precision[i, :, label], np.nan if expected is None else expected, rtol=1e-12)


def coco_scores(arrays: Any, library: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """COCO's precision (T, 101, classes), recall (T, classes) and its summary, by its own program or by its faster equal."""
    if library == "pycocotools":
        COCO = pytest.importorskip("pycocotools.coco").COCO
        evaluator = pytest.importorskip("pycocotools.cocoeval").COCOeval
    else:
        faster = pytest.importorskip("faster_coco_eval")
        COCO, evaluator = faster.COCO, faster.COCOeval_faster

    def sides(box: np.ndarray) -> list[float]:
        return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]

    images, categories = len(arrays["mask"]), [{"id": i, "name": str(i)} for i in range(CLASSES)]
    annotations = [
        {
            "image_id": i,
            "category_id": int(arrays["true_classes"][i, j]),
            "bbox": sides(arrays["true_boxes"][i, j]),
            "area": float(area(arrays["true_boxes"][i, j])),
            "iscrowd": int(arrays["crowd"][i, j]),
        }
        for i, j in np.argwhere(arrays["true_mask"]).tolist()
    ]
    found = [
        {
            "image_id": i,
            "category_id": int(arrays["classes"][i, j]),
            "bbox": sides(arrays["boxes"][i, j]),
            "score": float(arrays["scores"][i, j]),
        }
        for i, j in np.argwhere(arrays["mask"]).tolist()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i, "height": 40, "width": 40} for i in range(images)],
            "annotations": [{**one, "id": i + 1} for i, one in enumerate(annotations)],
            "categories": categories,
        }
        truth.createIndex()
        run: Any = evaluator(truth, truth.loadRes(found), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    missing = np.where(run.eval["precision"] < 0, np.nan, run.eval["precision"])[:, :, :, 0, -1]
    recall = np.where(run.eval["recall"] < 0, np.nan, run.eval["recall"])[:, :, 0, -1]
    return missing, recall, np.asarray(run.stats[:2])


@pytest.mark.parametrize("library", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("no detections", "no objects")])
def test_precision_is_that_of_coco(name, library):
    """Its programs load neither a file without detections nor one without objects."""
    precision, recall, stats = coco_scores(CASES[name], library)
    scores = score_detections(**CASES[name], num_classes=CLASSES)
    np.testing.assert_allclose(scores.precision, precision, rtol=1e-12)
    np.testing.assert_allclose(scores.recall, recall, rtol=1e-12)
    if not np.isnan(precision).all():
        np.testing.assert_allclose([scores.mean_ap(), scores.mean_ap(0.5)], stats, rtol=1e-12)


def test_scores_of_parts_of_the_data():
    scores = score_detections(**CASES["one class without boxes"], num_classes=CLASSES)
    assert np.isnan(scores.class_ap()[2]) and np.isnan(scores.recall[:, 2]).all()
    np.testing.assert_allclose(scores.mean_ap(0.75), scores.class_ap(0.75)[:2].mean())
    np.testing.assert_allclose(scores.class_ap(), np.mean([scores.class_ap(one) for one in IOU_THRESHOLDS], 0))
    np.testing.assert_array_equal(scores.curve(0.5), scores.precision[0])
    assert np.isnan(score_detections(**CASES["no objects"], num_classes=CLASSES).mean_ap())
    assert score_detections(**CASES["no detections"], num_classes=CLASSES).mean_ap() == 0


def test_what_is_perfect_has_precision_1():
    arrays = case(9)
    truth = {name.removeprefix("true_"): arrays[name] for name in ("true_boxes", "true_classes", "true_mask")}
    found = {**truth, "scores": np.ones(truth["mask"].shape)}
    kept = {name: arrays[name] for name in ("true_boxes", "true_classes", "true_mask")}
    assert score_detections(**found, **kept, num_classes=CLASSES).mean_ap() == 1


def test_padding_never_counts():
    """Whatever rows that do not exist hold."""
    arrays = {name: value.copy() for name, value in CASES["crowds"].items()}
    expected = score_detections(**arrays, num_classes=CLASSES)
    for prefix in ("", "true_"):
        arrays[f"{prefix}boxes"][~arrays[f"{prefix}mask"]] = np.nan
        arrays[f"{prefix}classes"][~arrays[f"{prefix}mask"]] = -7
    arrays["scores"][~arrays["mask"]] = np.inf
    np.testing.assert_array_equal(score_detections(**arrays, num_classes=CLASSES).precision, expected.precision)


WRONG = {
    "rank": ({"boxes": np.ones((6, 4))}, "boxes of shape (6, 4) must be (images, boxes, 4): x_min, y_min, x_max, y_max."),
    "words": ({"boxes": "all"}, "boxes='all' is not an array of numbers; give one."),
    "fewer scores": ({"scores": np.ones((6, 3))}, "scores has shape (6, 3) beside boxes of (6, 12); give one for each box."),
    "a mask of numbers": (
        {"true_mask": np.ones((6, 5))},
        "true_mask=<array of shape (6, 5), dtype float64> is not an array of bool; give one.",
    ),
    "a class": ({"true_classes": np.full((6, 5), 3)}, "true_classes hold 3, which is not a class; give integers below 3."),
    "part of a class": ({"classes": np.full((6, 12), 0.5)}, "classes hold 0.5, which is not a class; give integers below 3."),
    "images": (
        {name: CASES["plain"][name][:4] for name in ("true_boxes", "true_classes", "true_mask", "crowd")},
        "boxes are of 6 images and true_boxes of 4; give the same images.",
    ),
    "not finite": ({"scores": np.full((6, 12), np.nan)}, "scores hold nan; give finite numbers."),
    "turned over": (
        {"boxes": np.tile([3.0, 1.0, 2.0, 5.0], (6, 12, 1))},
        "boxes hold (3.0, 1.0, 2.0, 5.0), whose corners are turned over; give x_min, y_min, x_max, y_max.",
    ),
    "threshold": ({"iou_thresholds": (0.5, 1.5)}, "iou_thresholds=(0.5, 1.5) must be numbers above 0, up to 1, such as (0.5, 0.75)."),
    "most": ({"max_detections": 0}, "max_detections=0 is below 1; use 1 or more."),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_one_line(name):
    changes, text = WRONG[name]
    with pytest.raises(UserError) as error:
        score_detections(**{**CASES["plain"], "num_classes": CLASSES, **changes})
    assert str(error.value) == f"score_detections: {text}"


def test_a_threshold_that_was_not_measured_is_one_line():
    scores = score_detections(**CASES["plain"], num_classes=CLASSES, iou_thresholds=(0.5, 0.75))
    with pytest.raises(UserError) as error:
        scores.mean_ap(0.6)
    assert str(error.value) == "DetectionScores: threshold=0.6 was not measured; use one of 0.5, 0.75."
