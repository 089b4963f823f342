"""Test that the plots of detection show the boxes they are given, where they are, and that the curves are those of the arrays."""

from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from dilax import plots
from dilax.errors import UserError

RNG = np.random.default_rng(0)
NAMES = ("cup", "a rather long name of a class", "ox")
IMAGE = RNG.integers(0, 256, (12, 20, 3), np.uint8)
BOXES = np.array([[0.0, 0.0, 20.0, 12.0], [2.5, 3.0, 7.0, 9.5], [4.0, 1.0, 5.0, 2.0]])


def rectangles(axes: Any) -> list[tuple[float, ...]]:
    """The boxes that are drawn, in edges of pixels, the first on top."""
    drawn = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [
        (one.get_x() + 0.5, one.get_y() + 0.5, one.get_x() + one.get_width() + 0.5, one.get_y() + one.get_height() + 0.5) for one in drawn
    ][::-1]


def colours(axes: Any) -> list[tuple[float, ...]]:
    return [tuple(patch.get_edgecolor()[:3]) for patch in axes.patches][::-1]


def written(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts][::-1]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_are_drawn_at_their_edges_in_the_colours_of_their_classes(channels):
    figure = plots.detection_overlay(IMAGE[..., :channels], BOXES, [2, 0, 2], [0.9, 0.123, 0.5], NAMES)
    (axes,) = figure.axes
    np.testing.assert_allclose(rectangles(axes), BOXES)
    expected = plots.mask_colours(3) / 255
    np.testing.assert_allclose(colours(axes), expected[[2, 0, 2]])
    assert written(axes) == ["ox 0.90", "cup 0.12", "ox 0.50"]
    assert legend(figure) == ["cup  1", "ox  2"]
    patches: list[Any] = figure.legends[0].get_patches()
    np.testing.assert_allclose([patch.get_facecolor()[:3] for patch in patches], expected[[0, 2]])
    image = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(image, IMAGE / 255 if channels == 3 else IMAGE[..., 0] / 255)
    # The whole image fills the axes: a box around it is drawn on their border.
    np.testing.assert_allclose([*axes.get_xlim(), *axes.get_ylim()], [-0.5, 19.5, 11.5, -0.5])


def test_what_is_not_a_class_is_not_drawn():
    figure = plots.detection_overlay(IMAGE, np.where([[False], [True], [True]], np.nan, BOXES), [0, -1, 3], [0.5] * 3, NAMES)
    assert rectangles(figure.axes[0]) == [tuple(BOXES[0])]
    assert legend(plots.detection_overlay(IMAGE, np.zeros((0, 4)), np.zeros(0, int), [], NAMES)) == ["no boxes"]


def test_of_many_boxes_the_legend_names_the_classes_alone():
    figure = plots.detection_overlay(IMAGE, np.tile(BOXES[1:2], (61, 1)), [0] * 61, [0.5] * 61, NAMES)
    assert len(rectangles(figure.axes[0])) == 61 and not figure.axes[0].texts
    assert legend(figure) == ["cup  61"]


def test_the_grid_shows_truth_and_detections():
    figure = plots.detection_grid(
        np.stack([IMAGE, IMAGE[::-1]]),
        np.stack([BOXES[:2], BOXES[:2]]),
        [[0, 1], [2, -1]],
        np.stack([BOXES, BOXES]),
        [[-1, -1, -1], [2, -1, 1]],
        np.full((2, 3), 0.25),
        NAMES,
        ["one", "two"],
    )
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "detections", "two", "detections"]
    drawn = [rectangles(axes) for axes in figure.axes]
    assert drawn == [[tuple(box) for box in BOXES[:2]], [], [tuple(BOXES[0])], [tuple(BOXES[0]), tuple(BOXES[2])]]
    assert [written(axes) for axes in figure.axes] == [["cup", "a rather long…"], [], ["ox"], ["ox 0.25", "a rather long… 0.25"]]
    assert legend(figure) == ["cup", "a rather long nam…", "ox"]


def test_curves_are_sorted_by_their_means():
    precision = np.stack([np.linspace(0.5, 0, 11), np.full(11, np.nan), np.linspace(1, 0.2, 11)], 1)
    figure = plots.precision_recall(precision, NAMES, label="at 0.5")
    axes: Any = figure.axes[0]
    assert [line.get_label() for line in axes.lines] == ["ox  0.600", "cup  0.250"]
    for line, column in zip(axes.lines, (2, 0), strict=True):
        np.testing.assert_allclose(line.get_xdata(), np.linspace(0, 1, 11))
        np.testing.assert_allclose(line.get_ydata(), precision[:, column])
    assert axes.get_title() == "at 0.5"
    many = plots.precision_recall(np.linspace(0, 1, 30)[None].repeat(3, 0), list(map(str, range(30))))
    assert [str(line.get_label()).split()[0] for line in many.axes[0].lines] == [*map(str, range(29, 19, -1)), *map(str, range(9, -1, -1))]
    assert many.axes[0].get_title() == "20 of 30 classes, the highest and the lowest"
    none = plots.precision_recall(np.full((3, 2), np.nan), ("a", "b"))
    assert [text.get_text() for text in none.axes[0].texts] == ["no class occurs"]


def test_underscores_and_dollars_are_letters():
    names = ("_cup", "$a_$")
    figure = plots.precision_recall(np.full((3, 2), 0.5), names)
    figure.canvas.draw()
    axes: Any = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["_cup  0.500", "$a_$  0.500"]
    overlay = plots.detection_overlay(IMAGE, BOXES[:2], [0, 1], [0.5, 0.5], names)
    overlay.canvas.draw()
    assert legend(overlay) == ["_cup  1", "$a_$  1"]


WRONG = {
    "boxes of three edges": (lambda: plots.detection_overlay(IMAGE, BOXES[:, :3], [0] * 3, [0.5] * 3, NAMES), "detection_overlay: boxes, labels and scores of shapes (3, 3), (3,), (3,) do not fit; give (n, 4), (n,) integers and (n,) of each image."),
    "labels of floats": (lambda: plots.detection_overlay(IMAGE, BOXES, [0.5] * 3, [0.5] * 3, NAMES), "detection_overlay: boxes, labels and scores of shapes (3, 4), (3,), (3,) do not fit; give (n, 4), (n,) integers and (n,) of each image."),
    "fewer scores": (lambda: plots.detection_overlay(IMAGE, BOXES, [0] * 3, [0.5], NAMES), "detection_overlay: boxes, labels and scores of shapes (3, 4), (3,), (1,) do not fit; give (n, 4), (n,) integers and (n,) of each image."),
    "a box that is not finite": (lambda: plots.detection_overlay(IMAGE, BOXES * np.nan, [0] * 3, [0.5] * 3, NAMES), "detection_overlay: boxes hold nan; give finite numbers of pixels."),
    "fewer titles": (lambda: plots.detection_grid(IMAGE[None], BOXES[None], [[0] * 3], BOXES[None], [[0] * 3], [[0.5] * 3], NAMES, []), "detection_grid: images (1, 12, 20, 3) and 0 titles do not match; give n > 0 images (n, height, width, channels) and n titles."),
    "fewer names": (lambda: plots.precision_recall(np.ones((5, 2)), NAMES), "precision_recall: precision has shape (5, 2) for 3 class names; give (points, classes), with two or more points."),
    "percentages": (lambda: plots.precision_recall(np.full((5, 3), 50.0), NAMES), "precision_recall: precision holds 50, which is not in 0..1; give shares, or NaN for no value."),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_one_line(name):
    call, text = WRONG[name]
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value) == text
