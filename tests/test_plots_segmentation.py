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
    plain = np.broadcast_to(image / 255, (12, 20, 3))
    expected = 0.75 * plain + 0.25 * (plots.mask_colours(3) / 255)[np.minimum(MASK, 2)]
    for background, clear in ((0, (0, 255)), (2, (2, 255)), (None, (255,))):
        blended = blend_mask(image, MASK, 3, opacity=0.25, background=background)
        np.testing.assert_allclose(blended[~np.isin(MASK, clear)], expected[~np.isin(MASK, clear)])
        np.testing.assert_allclose(blended[np.isin(MASK, clear)], plain[np.isin(MASK, clear)])
    np.testing.assert_allclose(blend_mask(image, MASK, 3), blend_mask(image, MASK, 3, background=0))


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


FIGURES = {
    "overlay": (lambda background: plots.segmentation_overlay(IMAGE, MASK, NAMES, background=background), [MASK]),
    "grid": (
        lambda background: plots.segmentation_grid(IMAGE[None], MASK[None], MASK[None, ::-1], NAMES, ["a title"], background=background),
        [MASK, MASK[::-1]],
    ),
    "comparison": (lambda background: plots.segmentation_comparison(IMAGE, {"a": MASK}, NAMES, background=background), [MASK]),
}


@pytest.mark.parametrize("background", [0, 1, None])
@pytest.mark.parametrize("name", FIGURES)
def test_legends_have_the_colours_of_the_picture_and_borders_are_outlined(name, background):
    draw, masks = FIGURES[name]
    figure = draw(background)
    shown = [axes for axes in figure.axes if axes.collections]
    pictures = [picture(axes) for axes in shown]
    assert len(pictures) == len(masks)
    patches: dict[str, Any] = {str(patch.get_label()).split("  ")[0]: patch for patch in figure.legends[0].get_patches()}
    assert len(patches) == 3
    for i, start in enumerate(("sky", "road", "a rather")):
        ((patch),) = [patch for label, patch in patches.items() if label.startswith(start)]
        mean = np.concatenate([one[mask == i] for one, mask in zip(pictures, masks, strict=True)]).mean(0)
        assert patch.get_facecolor()[3] == (i != background)
        if i != background:
            np.testing.assert_allclose(patch.get_facecolor()[:3], mean)
    for axes, mask in zip(shown, masks, strict=True):
        assert drawn_edges(axes.collections[0]) == borders(mask, background)


def borders(mask: np.ndarray, background: int | None) -> dict[tuple[float, float], tuple[float, ...]]:
    """Middle of every pixel edge (x, y) between two classes -> the full colour of the higher one, pixel by pixel."""
    found = {}
    level = lambda row, column: -1 if mask[row, column] in (background, 255) else int(mask[row, column])  # noqa: E731
    for row, column in np.ndindex(mask.shape):
        for down, right in ((1, 0), (0, 1)):
            if row + down < mask.shape[0] and column + right < mask.shape[1]:
                here, there = level(row, column), level(row + down, column + right)
                if here != there:
                    found[column + right / 2, row + down / 2] = tuple(plots.mask_colours(3)[max(here, there)] / 255)
    return found


def drawn_edges(lines: Any) -> dict[tuple[float, float], tuple[float, ...]]:
    """The same from the lines that are drawn, which may be several pixels long."""
    found = {}
    for ((x0, y0), (x1, y1)), colour in zip(lines.get_segments(), lines.get_colors(), strict=True):
        for i in range(round(abs(x1 - x0) + abs(y1 - y0))):
            along = i + 0.5
            found[(x0 + along, y0) if y0 == y1 else (x0, y0 + along)] = tuple(colour[:3])
    return found


@pytest.mark.parametrize("classes", [1, 2, 30, 31, 200])
def test_legends_name_the_largest_classes_and_say_how_many_are_left(classes):
    mask = np.repeat(np.arange(classes), np.arange(1, classes + 1)).astype(np.uint8)[None]
    image = np.full((*mask.shape, 1), 0.5)
    names = [f"$x^{i}$" for i in range(classes)]
    share = np.arange(1, classes + 1) / mask.size
    rest = [f"and {classes - 30} more  {share[:-30].sum():.1%}"] if classes > 30 else []
    figure = plots.segmentation_overlay(image, mask, names)
    assert legend(figure) == [f"$x^{i}$  {share[i]:.1%}" for i in range(classes)][::-1][:30] + rest
    assert legend(plots.segmentation_comparison(image, {"a": mask}, names)) == names[:30] + [f"and {classes - 30} more"] * (classes > 30)
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())


def test_outlines_of_large_masks_are_where_the_classes_change():
    mask = np.zeros((1300, 7), np.uint8)
    mask[650:] = 1
    lines: Any = plots.segmentation_overlay(np.ones((1300, 7, 1)), mask, NAMES).axes[0].collections[0]
    assert all(abs(y - 649.5) <= 3 for y in np.concatenate(lines.get_segments())[:, 1])


def test_bars_of_many_classes_are_the_highest_and_the_lowest():
    values = RNG.permutation(np.linspace(0, 1, 61))
    axes: Any = plots.class_bars(values, [f"class {i}" for i in range(61)]).axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], np.delete(np.sort(values), 30))
    assert axes.get_title() == "mean 0.500; the 30 highest and the 30 lowest of 61 classes"
    assert len(plots.class_bars(values[:60], NAMES * 20).axes[0].patches) == 60


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
