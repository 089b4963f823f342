"""Test that the plots of segmentation show the masks they are given, and that no text is cut off."""

from typing import Any

import numpy as np
import pytest

from dilax import plots
from dilax.errors import UserError
from dilax.plots.segmentation import blend_mask

RNG = np.random.default_rng(0)
NAMES = ("sky", "road", "a rather long name of a class that goes on")
IMAGE = RNG.integers(0, 256, (12, 20, 3), np.uint8)
MASK = RNG.integers(0, 3, (12, 20), np.uint8)
MASK[0, :5] = 255


def picture(axes: Any) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


def test_colours_differ_and_do_not_depend_on_how_many_there_are():
    colours = plots.mask_colours(21).astype(int)
    distances = np.abs(colours[:, None] - colours).sum(-1) + 1000 * np.eye(21, dtype=int)
    assert distances.min() > 60
    np.testing.assert_array_equal(plots.mask_colours(7), colours[:7])


def test_labels_below_zero_are_not_classes():
    mask = np.array([[-1, 0], [2, 255]])
    np.testing.assert_array_equal(blend_mask(IMAGE[:2, :2], mask, 3)[0, 0], IMAGE[0, 0] / 255)
    assert legend(plots.segmentation_overlay(IMAGE[:2, :2], mask, NAMES)) == ["sky  25.0%", "a rather long name …  25.0%"]


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_are_blended_where_they_count(channels):
    image = IMAGE[..., :channels]
    blended, plain = blend_mask(image, MASK, 3, opacity=0.25), np.broadcast_to(image / 255, (12, 20, 3))
    expected = 0.75 * plain + 0.25 * (plots.mask_colours(3) / 255)[np.minimum(MASK, 2)]
    np.testing.assert_allclose(blended[MASK != 255], expected[MASK != 255])
    np.testing.assert_allclose(blended[MASK == 255], plain[MASK == 255])


def test_the_overlay_names_the_classes_by_their_share():
    mask = np.zeros((4, 5), np.uint8)
    mask[:, :1], mask[0, 4] = 2, 255
    figure = plots.segmentation_overlay(IMAGE[:4, :5], mask, NAMES)
    assert legend(figure) == ["sky  75.0%", "a rather long name …  20.0%"]
    np.testing.assert_allclose(picture(figure.axes[0]), blend_mask(IMAGE[:4, :5], mask, 3))


def test_the_grid_shows_image_truth_and_prediction():
    masks = np.stack([MASK, np.zeros_like(MASK)])
    figure = plots.segmentation_grid(np.stack([IMAGE, IMAGE]), masks, masks[::-1], NAMES, ["one", "two"])
    pictures = [picture(axes) for axes in figure.axes]
    for i, mask in ((1, masks[0]), (2, masks[1]), (4, masks[1]), (5, masks[0])):
        np.testing.assert_allclose(pictures[i], blend_mask(IMAGE, mask, 3))
    assert titles(figure) == ["one", "truth", "prediction", "two", "truth", "prediction"]
    assert legend(figure) == ["sky", "road", "a rather long nam…"]


def test_the_comparison_shows_every_model():
    figure = plots.segmentation_comparison(IMAGE, {"truth": MASK, "first": MASK * 0, "second": MASK * 0 + 1}, NAMES)
    assert titles(figure) == ["image", "truth", "first", "second"]
    pictures = [picture(axes) for axes in figure.axes if axes.images]
    np.testing.assert_allclose(pictures[0], IMAGE / 255)
    for shown, mask in zip(pictures[1:], (MASK, MASK * 0, MASK * 0 + 1), strict=True):
        np.testing.assert_allclose(shown, blend_mask(IMAGE, mask, 3))


def test_masks_without_an_image():
    figure = plots.segmentation_comparison(None, {"truth": MASK, "first": MASK * 0}, NAMES)
    assert titles(figure) == ["truth", "first"]
    np.testing.assert_allclose(picture(figure.axes[0])[MASK == 1], np.broadcast_to(plots.mask_colours(2)[1] / 255, ((MASK == 1).sum(), 3)))
    np.testing.assert_allclose(picture(figure.axes[0])[MASK == 255], 1)
    with pytest.raises(UserError, match="segmentation_comparison: masks is empty"):
        plots.segmentation_comparison(IMAGE, {}, NAMES)


def test_bars_are_sorted_and_show_their_mean():
    axes: Any = plots.class_bars([0.5, np.nan, 0.25], NAMES).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0, 0.25, 0.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["road", "a rather long name of a…", "sky"]
    assert [text.get_text() for text in axes.texts] == ["does not occur", "0.250", "0.500"]
    assert axes.get_title() == "mean 0.375"


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (
            lambda: plots.segmentation_overlay(IMAGE, MASK[1:], NAMES),
            r"a mask of shape \(11, 20\) does not fit an image of shape \(12, 20, 3\)",
        ),
        (lambda: plots.segmentation_comparison(IMAGE, {"a": MASK[:, 1:]}, NAMES), r"a mask of shape \(12, 19\) does not fit"),
        (lambda: plots.segmentation_grid(IMAGE[None], MASK[None], MASK[None], NAMES, []), "0 titles do not match"),
        (lambda: plots.class_bars([1.0], NAMES), r"values has shape \(1,\) for 3 class names"),
    ],
)
def test_errors(draw, words):
    with pytest.raises(UserError, match=words):
        draw()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.segmentation_overlay(IMAGE, MASK, NAMES),
        lambda: plots.segmentation_overlay(IMAGE[:, :3], MASK[:, :3], NAMES),
        lambda: plots.segmentation_overlay(IMAGE, np.arange(240).reshape(12, 20) % 40, [f"class number {i}" for i in range(40)]),
        lambda: plots.segmentation_grid(IMAGE[None], MASK[None], MASK[None], NAMES, ["a title"]),
        lambda: plots.segmentation_comparison(None, {"a": MASK}, NAMES),
        lambda: plots.class_bars([0.1, 1.0, np.nan], NAMES),
    ],
)
def test_nothing_is_cut_off(draw):
    figure = draw()
    figure.draw_without_rendering()  # computes the layout
    box, (width, height) = figure.get_tightbbox(figure.canvas.get_renderer()), figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
