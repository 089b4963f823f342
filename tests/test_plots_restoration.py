"""The picture of restored images: what its panels show, and what it refuses."""

import numpy as np
import pytest

from dilax import plots
from dilax.errors import UserError

RNG = np.random.default_rng(0)
DEGRADED, RESTORED, CLEAN = (RNG.integers(0, 256, (2, 9, 12, 3), np.uint8) for _ in range(3))


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_show_what_was_before_after_and_clean(channels):
    arrays = [each[..., :channels] for each in (DEGRADED, RESTORED, CLEAN)]
    figure = plots.restoration_grid(*arrays, ["one.png", "two.png"])  # pyright: ignore
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    expected = [each[row] / 255 for row in range(2) for each in arrays]
    for panel, image in zip(shown, expected, strict=True):
        np.testing.assert_allclose(panel.reshape(image.shape), image, atol=1e-6)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one.png", "restored", "clean", "two.png", "restored", "clean"]


@pytest.mark.parametrize(
    ("arrays", "titles", "text"),
    [
        (
            (DEGRADED, RESTORED[:, :8], CLEAN),
            ["a", "b"],
            "restoration_grid: degraded (2, 9, 12, 3), restored (2, 8, 12, 3), clean (2, 9, 12, 3) and 2 titles do not match; give n > 0 images "
            "of each, (n, height, width, channels), and n titles.",
        ),
        (
            (DEGRADED, RESTORED, CLEAN),
            ["a"],
            "restoration_grid: degraded (2, 9, 12, 3), restored (2, 9, 12, 3), clean (2, 9, 12, 3) and 1 titles do not match; give n > 0 images "
            "of each, (n, height, width, channels), and n titles.",
        ),
    ],
)
def test_mistakes_are_one_line(arrays, titles, text):
    with pytest.raises(UserError) as error:
        plots.restoration_grid(*arrays, titles)  # pyright: ignore
    assert str(error.value) == text
