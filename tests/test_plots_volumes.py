"""Slices of volumes: where they lie, how they are turned and scaled, and refusals."""

import numpy as np
import pytest

from dilax import plots
from dilax.errors import UserError

NAMES = ("background", "front", "back")
RNG = np.random.default_rng(2)
VOLUME = RNG.random((2, 4, 5, 6, 1)).astype(np.float32)
MASK = np.zeros((2, 4, 5, 6), np.uint8)
MASK[0, 1, 2, 3], MASK[1, 3, 0:3, 5] = 1, 2


def pictures(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_slices_cross_where_the_mask_has_most_voxels():
    figure = plots.volume_slices(VOLUME, MASK, MASK[::-1], NAMES, ["one", "two"])
    found = pictures(figure)
    assert len(found) == 2 * 3 * 3
    # The panels of the volume: across x, y and z, the second axis upwards, centred in a square of the largest sides.
    for row, (i, axis, at) in enumerate([(0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 0, 3), (1, 1, 0), (1, 2, 5)]):
        expected = np.take(VOLUME[i, ..., 0], at, axis).T[::-1]
        panel = found[3 * row][..., 0] if found[3 * row].ndim == 3 else found[3 * row]
        top, left = (6 - expected.shape[0]) // 2, (5 - expected.shape[1]) // 2
        np.testing.assert_allclose(panel[top : top + expected.shape[0], left : left + expected.shape[1]], expected, atol=1e-6)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.images]
    assert titles[:3] == ["one, yz", "truth", "prediction"] and titles[3] == "xz" and titles[9] == "two, yz"


def test_voxels_have_their_proportions():
    (first, *_) = pictures(plots.volume_slices(VOLUME[:1], MASK[:1], MASK[:1], NAMES, ["one"], spacing=(1.0, 1.0, 2.0)))
    assert first.shape[:2] == (12, 5)
    many = pictures(plots.volume_slices(VOLUME, MASK, MASK, NAMES, ["a", "b"], spacing=[(1, 1, 1), (3, 1, 1)]))
    assert many[0].shape[:2] == (6, 12)


def test_an_empty_mask_is_cut_in_the_middle():
    (first, *_) = pictures(plots.volume_slices(VOLUME[:1], MASK[:1] * 0, MASK[:1], NAMES, ["one"]))
    expected = VOLUME[0, 2, :, :, 0].T[::-1]
    np.testing.assert_allclose(first[..., 0] if first.ndim == 3 else first, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"titles": []},
            "volume_slices: volumes (2, 4, 5, 6, 1), truths (2, 4, 5, 6), predictions (2, 4, 5, 6) and 0 titles do not match; give n > 0 "
            "volumes, masks (n, x, y, z) and n titles.",
        ),
        (
            {"spacing": (1.0, 0.0, 1.0)},
            "volume_slices: spacing=(1.0, 0.0, 1.0) must hold numbers above 0: one, or (3,), or (n, 3) for n=2 volumes.",
        ),
        ({"spacing": (1.0, 2.0)}, "volume_slices: spacing=(1.0, 2.0) must hold numbers above 0: one, or (3,), or (n, 3) for n=2 volumes."),
    ],
)
def test_refusals(change, text):
    given = {"volumes": VOLUME, "truths": MASK, "predictions": MASK, "class_names": NAMES, "titles": ["a", "b"], **change}
    with pytest.raises(UserError) as caught:
        plots.volume_slices(**given)
    assert str(caught.value) == text
