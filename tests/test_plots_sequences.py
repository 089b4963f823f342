"""Test that the plots of sequences show the arrays they are given, and their error texts."""

import numpy as np
import pytest

from dilax import plots
from dilax.errors import UserError
from dilax.plots.canvas import RED

RNG = np.random.default_rng(0)


def test_series_are_titled_with_their_classes_and_mistakes_are_red():
    series = [RNG.normal(size=(n, channels)) for n, channels in ((9, 1), (4, 3), (7, 8))]
    figure = plots.series_grid(series, [0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], ["up", "down"])
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == ["up → up (90%)", "down → up (80%)", "down → down (60%)"]
    assert [axes.title.get_color() == RED for axes in shown] == [False, True, False]
    assert [len(axes.lines) for axes in shown] == [1, 3, 0]
    np.testing.assert_array_equal(shown[1].lines[2].get_ydata(), series[1][:, 2])
    assert np.asarray(shown[2].images[0].get_array()).shape == (8, 7)


@pytest.mark.parametrize("outputs", [1, 5, 6])
def test_true_and_predicted_outputs_are_shown(outputs):
    truth, predicted = RNG.normal(size=(2, 30, outputs))
    figure = plots.step_outputs(truth, predicted, [f"output {i}" for i in range(outputs)], title="a sequence")
    if outputs > 5:
        assert [np.asarray(axes.images[0].get_array()).tolist() for axes in figure.axes] == [truth.T.tolist(), predicted.T.tolist()]
        return
    assert len(figure.axes) == outputs
    for i, axes in enumerate(figure.axes):
        drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
        np.testing.assert_array_equal(drawn["true"], truth[:, i])
        np.testing.assert_array_equal(drawn["predicted"], predicted[:, i])


def test_a_baseline_and_the_places_of_the_steps_are_shown():
    truth, predicted, baseline = RNG.normal(size=(3, 9, 2))
    steps = np.arange(9) * 3 + 7
    options = dict(baseline=baseline, baseline_name="persistence", steps=steps, step_name="row", title="rows")
    figure = plots.step_outputs(truth, predicted, ["warm", "wet"], **options)
    for i, axes in enumerate(figure.axes):
        drawn = {line.get_label(): line for line in axes.lines}
        for name, values in {"true": truth, "predicted": predicted, "persistence": baseline}.items():
            np.testing.assert_array_equal(drawn[name].get_xydata(), np.stack([steps, values[:, i]], 1))
    assert [axes.get_ylabel() for axes in figure.axes] == ["warm", "wet"]
    assert figure.axes[1].get_xlabel() == "row"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["true", "predicted", "persistence"]
    points = plots.step_outputs(truth, predicted, ["warm", "wet"], joined=False).axes[0]
    assert {line.get_linestyle() for line in points.lines} == {"None"}
    assert len(plots.step_outputs(np.ones((4, 7)), np.ones((4, 7)), list("abcdefg"), panels=7).axes) == 7


def test_images_of_outputs_share_one_scale():
    truth, predicted = RNG.normal(size=(2, 30, 8))
    figure = plots.step_outputs(truth, 3 * predicted, list("abcdefgh"), steps=np.arange(30) + 5, step_name="frame")
    assert len({axes.images[0].get_clim() for axes in figure.axes}) == 1
    low, high = figure.axes[0].images[0].get_clim()
    assert (low, high) == (min(truth.min(), 3 * predicted.min()), max(truth.max(), 3 * predicted.max()))
    assert figure.axes[1].get_xlabel() == f"frame; values from {low:.3g} (white) to {high:.3g} (blue)"
    assert figure.axes[0].images[0].get_extent()[:2] == [4.5, 34.5]


def test_waveforms_are_drawn_in_seconds():
    samples = RNG.uniform(-1, 1, (2, 40))
    figure = plots.waveforms(samples, 8, ["one", "two"])
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), samples[1])
    assert np.asarray(figure.axes[1].lines[0].get_xdata())[-1] == 39 / 8


ERRORS = [
    (lambda: plots.series_grid([], [], np.zeros((0, 2)), ["a", "b"]), "series_grid: 0 series, labels (0,), probabilities (0, 2) and 2 class names"),
    (lambda: plots.step_outputs(np.ones((3, 2)), np.ones((3, 1)), ["a", "b"]), "step_outputs: truth (3, 2), predicted (3, 1) and 2 names do not match"),
    (lambda: plots.step_outputs(np.ones((3, 1)), np.ones((3, 1)), ["a"], steps=[0, 1]), "step_outputs: steps (2,), no baseline and truth (3, 1) do not match; give (time,) steps"),
    (lambda: plots.step_outputs(np.ones((3, 1)), np.ones((3, 1)), ["a"], baseline=np.ones(3)), "step_outputs: steps (3,), a baseline (3,) and truth (3, 1) do not match"),
    (lambda: plots.waveforms(np.ones((2, 3)), 0, ["a", "b"]), "waveforms: samples (2, 3), rate=0 and 2 names do not match"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), ERRORS)
def test_errors(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value)
