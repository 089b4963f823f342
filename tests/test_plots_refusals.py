"""Arguments of plots that once failed, or drew what they were not given, found at random: a figure, or a line that says what is wrong."""

from typing import Any

import numpy as np
import pytest
from fuzzing import refusal

from dilax import plots
from dilax.errors import UserError

WAVES, IMAGE, MASK = np.ones((1, 5)), np.full((3, 4, 3), 0.5), np.zeros((3, 4), np.uint8)
# Calls that once failed otherwise, or drew what they were not given, with how they are refused; None: a figure.
FOUND: dict[str, tuple[str | None, str, tuple[Any, ...], dict[str, Any]]] = {
    "mathematics in a label": (None, "class_bars", ([0.5], ["a"]), {"label": "$a_$"}),
    "mathematics in a metric": (None, "learning_curves", ([{"step": 1, "train/$a_$": 1.0}],), {"metrics": ["$a_$"]}),
    "mathematics in the names of steps": (None, "step_outputs", (WAVES, WAVES, "abcde"), {"step_name": "$a_$", "panels": 1}),
    "mathematics in a legend": (None, "step_outputs", (WAVES.T, WAVES.T, "a"), {"baseline": WAVES.T, "baseline_name": "$a_$"}),
    "images of NaN alone": (None, "step_outputs", (WAVES * np.nan, WAVES * np.inf, "abcde"), {"panels": 1}),
    "an infinite feature": (None, "feature_maps", ({"a": IMAGE * np.inf}, IMAGE), {}),
    "steps without a place": ("steps hold NaN", "step_outputs", (WAVES, WAVES, "abcde"), {"steps": [np.nan], "panels": 1}),
    "complex numbers": ("an array of complex numbers", "waveforms", (WAVES * 1j, 8.0, ["a"]), {}),
    "more panels than a picture has room for": ("a figure of", "prediction_grid", (np.ones((9000, 1, 1, 3)), [0] * 9000, np.ones((9000, 1)), "a"), {"columns": 1}),
    "more cells than can be seen": ("110099 samples are", "dilation_taps", ((1, 9999), [1]), {}),
    "more samples than can be seen": ("stacks that span up to 9001", "dilation_stacks", (2, [[9000]]), {}),
    "no classes": ("class_names is empty", "confusion_matrix", (np.zeros((0, 0)), []), {}),
    "negative counts": ("counts holds -1.0, which", "confusion_matrix", ([[-1]], ["a"]), {}),
    "negative magnitudes": ("'a' has values from -1 to 1;", "effective_receptive_fields", ({"a": [1, -1]},), {}),
    "bars beyond the axis": ("values hold 1.5, which", "class_bars", ([1.5], ["a"]), {}),
    "a mask of floats": ("a mask has dtype float64", "segmentation_overlay", (IMAGE, MASK * 1.0, "a"), {}),
    "opacity above 1": ("opacity=2.0 is not", "segmentation_overlay", (IMAGE, MASK, "a"), {"opacity": 2.0}),
    "no pixels": ("an image has shape (0, 4, 3)", "segmentation_overlay", (IMAGE[:0], MASK[:0], "a"), {}),
    "masks without pixels": ("a mask has shape (0, 4)", "segmentation_comparison", (None, {"a": MASK[:0]}, "a"), {}),
    "no channels": ("an image has shape (3, 4, 0)", "segmentation_grid", (IMAGE[None, ..., :0], MASK[None], MASK[None], "a", "a"), {}),
    "a mask of another size": ("a mask of shape (3, 4) does not", "segmentation_comparison", (IMAGE[:2], {"a": MASK}, "a"), {}),
    "a series without channels": ("a series has shape (1, 0)", "series_grid", ([WAVES[:, :0]], [0], [[1]], "a"), {}),
    "a line without a step": ("step=None in a line", "learning_curves", ([{"train/loss": 1.0}],), {}),
    "a line with a text": ("train/loss='a' in a line", "learning_curves", ([{"step": 1, "train/loss": "a"}],), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_once_failed(name):
    said, plot, args, options = FOUND[name]
    call = lambda: getattr(plots, plot)(*(list(one) if isinstance(one, str) else one for one in args), **options)  # noqa: E731
    if said is None:
        call().canvas.draw()
        return
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).startswith(f"{plot}: {said}"), caught.value


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".xyz", "", ".\0"])
@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_save(suffix, folder, tmp_path):
    path, figure = tmp_path / folder / f"figure{suffix}", plots.waveforms([[0.5]], 1.0, ["a"])
    try:
        plots.save(figure, path, dpi=20)
    except UserError as error:
        refusal(error, "save", suffix not in (".png", ".svg", ".pdf") or folder != ".")
        return
    assert path.stat().st_size
