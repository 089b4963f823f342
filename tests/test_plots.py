"""Test that plots show what follows from the arrays they are given, at any size."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import dilax
from dilax import plots
from dilax.errors import UserError

RNG = np.random.default_rng(0)


def texts(figure) -> list[str]:
    in_axes = [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title)]
    return in_axes + [text.get_text() for text in figure.texts]


def pixels(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def test_dilation_taps_draws_the_true_geometry():
    figure = plots.dilation_taps(3, (1, 2, 4), input_size=11)
    drawn = texts(figure)
    for text in ("dilation 4", "(3 − 1) × 4 + 1 = 9"):
        assert text in drawn
    counts = [{c.get_label(): len(c.get_paths()) for c in axes.collections} for axes in figure.axes]
    assert [c["tap of the kernel"] for c in counts] == [9, 9, 9]
    assert [c["skipped inside the span"] for c in counts] == [0, 25 - 9, 81 - 9]
    assert [c["zero padding"] for c in counts] == [13**2 - 11**2, 15**2 - 11**2, 19**2 - 11**2]


def test_asymmetric_taps():
    figure = plots.dilation_taps((2, 3), ((1, 3),), input_size=(7, 9))
    counts = {c.get_label(): len(c.get_paths()) for c in figure.axes[0].collections}
    assert counts["tap of the kernel"] == 6
    assert counts["zero padding"] == 8 * 15 - 7 * 9  # SAME: 1 row and 6 columns in total


@pytest.mark.parametrize(("taps", "stack"), [(3, (1, 1)), (3, (2, 2, 2)), (3, (1, 2, 5)), (2, (8, 4, 3)), (5, (3,)), (1, (7, 7))])
def test_stacks_miss_the_holes_of_the_analysis(taps, stack):
    def fn(x):
        for dilation in stack:
            x = dilax.dilated_conv(x, jnp.ones((taps, 1, 1)), dilation=dilation)
        return x

    (field,) = dilax.receptive_field(fn, jax.ShapeDtypeStruct((1, 90, 1), jnp.float32))
    figure = plots.dilation_stacks(taps, ((1,), stack))
    boxes = {c.get_label(): [path.get_extents() for path in c.get_paths()] for c in figure.axes[1].collections}
    drawn = {name: sorted((box.x0 + box.x1) / 2 for box in cells) for name, cells in boxes.items()}
    assert field.size is not None
    np.testing.assert_allclose(drawn["missed"], [hole - (field.size - 1) / 2 for hole in field.holes], atol=1e-9)
    assert len(drawn["seen"]) + len(drawn["missed"]) == len(drawn["paths"]) == field.size
    assert f"spans {field.size} samples" in texts(figure)
    assert any(text.startswith(f"coverage {field.coverage:.0%}") for text in texts(figure))


def blur(x, taps=3, **options):
    return dilax.dilated_conv(x, jnp.ones((taps, taps, x.shape[-1], 1)), **options)


FLAT = np.full((30, 40, 3), 0.5, np.float32)
FIELDS = {
    "middle": (lambda x: blur(blur(x), dilation=2), None),
    "holes, border": (lambda x: blur(blur(x, dilation=(2, 1)), dilation=(2, 3)), (1, 38)),
    "stride": (lambda x: blur(blur(x, stride=(2, 4)), dilation=2), (4, 3)),
    "enlarged": (lambda x: jnp.repeat(blur(blur(x, stride=4)), 4, 1), (13, 2)),
    "causal": (lambda x: blur(x, 4, padding="CAUSAL", dilation=3), (20, 20)),
}


@pytest.mark.parametrize("name", FIELDS)
def test_receptive_field_overlay_shows_what_has_a_gradient(name):
    fn, output = FIELDS[name]
    y = jax.eval_shape(fn, FLAT[None])
    row, column = output or (y.shape[1] // 2, y.shape[2] // 2)
    seen = np.asarray(jax.jit(jax.grad(lambda x: fn(x)[0, row, column, 0]))(FLAT[None]))[0, ..., 0] > 0
    axes: Any = plots.receptive_field_overlay(fn, FLAT, output=output).axes[0]
    shown = np.asarray(axes.images[0].get_array())
    np.testing.assert_array_equal((shown == 0.5).all(-1), seen)
    # Holes of the field are red, everything else is pale grey.
    red = shown[..., 0] > shown[..., 2] + 0.3
    rows, columns = (np.flatnonzero(seen.any(1 - axis)) for axis in (0, 1))
    field = np.zeros_like(seen)
    field[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    np.testing.assert_array_equal(red & field, field & ~seen)
    frame = axes.patches[-1].get_bbox()
    assert frame.y0 <= rows[0] and frame.y1 >= rows[-1] + 1 and frame.x0 <= columns[0] and frame.x1 >= columns[-1] + 1
    ((x, y),) = axes.lines[0].get_xydata()
    assert frame.x0 <= x <= frame.x1 and frame.y0 <= y <= frame.y1


def test_effective_receptive_fields():
    values = np.zeros((9, 12))
    values[2:7, 3:10] = 0.02
    values[3:6, 5:8] = 2.0
    figure: Any = plots.effective_receptive_fields({"before": values, "after": values.T})
    np.testing.assert_allclose(np.asarray(figure.axes[0].images[0].get_array()), values / 2)
    assert {"before\n3 × 3 effective of 5 × 7", "after\n3 × 3 effective of 7 × 5"} <= set(texts(figure))
    frame = figure.axes[0].patches[0].get_bbox()
    assert (frame.x0, frame.y0, frame.x1, frame.y1) == (2.5, 1.5, 9.5, 6.5)
    assert "audio\n3 effective of 5" in texts(plots.effective_receptive_fields({"audio": values[:, 5]}))


def test_learning_curves_show_each_metric():
    history = [{"step": s, "train/loss": 1 / s, "train/accuracy": 1 - 1 / s} for s in range(1, 9)] + [
        {"step": 8, "validation/accuracy": 0.8}
    ]
    loss, accuracy = plots.learning_curves(history).axes
    np.testing.assert_allclose(np.asarray(loss.lines[0].get_ydata()), [1 / s for s in range(1, 9)])
    assert [line.get_label() for line in accuracy.lines] == ["train, last 0.875", "validation, last 0.8"]
    assert "not measured" in texts(plots.learning_curves([]))


@pytest.mark.parametrize("evaluations", [1, 4, 5, 41])
def test_few_values_of_a_learning_curve_are_points(evaluations):
    history = [{"step": 10 * s, "train/loss": 1 / s, "train/accuracy": np.nan} for s in range(1, evaluations + 1)]
    last = {"step": 10 * evaluations, "test/loss": 1 / evaluations, "best_step": 10}
    loss, accuracy = plots.learning_curves([*history, last]).axes
    train, test = loss.lines
    assert [label.get_text() for label in loss.get_xticklabels()] == ["10"] or evaluations > 1
    assert (train.get_linestyle() == "None") == (evaluations < 5)
    assert (train.get_marker() == "") == (evaluations > 40)
    sizes = [line.get_markersize() for line in (train, test)]
    assert sizes == sorted(sizes)
    # The test is a point at the step of its parameters, and what is below remains visible.
    assert np.asarray(test.get_xydata()).tolist() == [[10, 1 / evaluations]]
    assert (test.get_linestyle(), test.get_markerfacecolor()) == ("None", "none")
    assert [text.get_text() for text in accuracy.texts] == ["not finite"]


@pytest.mark.parametrize("classes", [2, 20, 60, 300])
def test_confusion_matrix(classes):
    counts = RNG.integers(1, 9, (classes, classes))
    figure = plots.confusion_matrix(counts, [f"class {i}" for i in range(classes)])
    shares = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shares, counts / counts.sum(1, keepdims=True))
    assert sum(text.isdigit() for text in texts(figure)) == (classes**2 if classes <= 20 else 0)
    if classes == 2:  # drawing hundreds of labels takes time
        assert pixels(figure).std() > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_prediction_grid(channels):
    images = RNG.integers(0, 256, (3, 6, 7, channels), np.uint8)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    figure = plots.prediction_grid(images, np.array([0, 0, 0]), probabilities, ["cat", "dog"])
    assert [t for t in texts(figure) if t] == ["cat → cat (90%)", "cat → dog (80%)", "cat → cat (70%)"]
    shown = np.asarray(figure.axes[1].images[0].get_array())
    np.testing.assert_allclose(shown, images[1] / 255 if channels == 3 else images[1, ..., 0] / 255)


@pytest.mark.parametrize("shape", [(3, 2, 5), (3, 4, 5), (3, 3, 1, 9), (3, 3, 3, 70), (2, 3, 3, 4, 6)])
def test_kernels(shape):
    assert pixels(plots.kernels(RNG.normal(size=shape))).std() > 0


def test_feature_maps_show_the_channels_that_vary_most():
    maps = RNG.normal(size=(6, 7, 9)) * np.array([1, 5, 2, 9, 1, 1, 1, 1, 7])
    figure = plots.feature_maps({"conv, dilation 2": maps}, RNG.uniform(size=(6, 7, 1)), channels=3)
    assert [t for t in texts(figure) if t.startswith("channel")] == ["channel 3", "channel 8", "channel 1"]
    assert "conv, dilation 2  (6 × 7 × 9)" in texts(figure)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plots.dilation_taps(3, ()), "dilations is empty"),
        (lambda: plots.dilation_taps(3, (0,)), "dilations[0]=0 must be an int or a tuple of ints of at least 1"),
        (lambda: plots.dilation_stacks(3, ()), "stacks=() has nothing to draw"),
        (lambda: plots.dilation_stacks(3, ((1, 2), ())), "stacks=((1, 2), ()) has nothing to draw"),
        (lambda: plots.dilation_stacks(3, ((1, 0),)), "stacks[0][1]=0 is below 1"),
        (lambda: plots.receptive_field_overlay(jnp.tanh, np.ones((4, 4))), "an image has shape (4, 4)"),
        (
            lambda: plots.receptive_field_overlay(jnp.tanh, np.ones((4, 5, 1), np.float32), output=(4, 0)),
            "receptive_field_overlay: output=(4, 0) is not one of the 4 × 5 outputs; give (row, column), from 0.",
        ),
        (lambda: plots.effective_receptive_fields({}), "maps is empty; give name -> (height, width) or (samples,)."),
        (
            lambda: plots.effective_receptive_fields({"a": np.zeros((3, 3))}),
            "'a' has values from 0 to 0; give finite values of 0 or more, not all of them 0.",
        ),
        (lambda: plots.confusion_matrix(np.ones((2, 3)), ["a", "b"]), "counts has shape (2, 3) for 2 class names"),
        (lambda: plots.prediction_grid(np.ones((0, 4, 4, 1)), np.ones(0), np.ones((0, 2)), ["a", "b"]), "do not match"),
        (lambda: plots.kernels(np.ones(3)), "a kernel of shape (3,)"),
        (lambda: plots.feature_maps({}, np.ones((4, 4, 1))), "maps is empty"),
        (lambda: plots.feature_maps({"a": np.ones((2, 2, 1))}, np.ones((4, 4, 1), int)), "dtype int64"),
    ],
)
def test_errors(call, words):
    with pytest.raises(UserError) as error:
        call()
    assert words in str(error.value)


def cells(axes, label: str) -> set[tuple[int, int]]:
    """Return the (row, column) of the cells of one kind, where (0, 0) is the first sample of the image."""
    paths = next(c for c in axes.collections if c.get_label() == label).get_paths()
    return {(int(np.floor(path.vertices[:, 1].min())), int(np.floor(path.vertices[:, 0].min()))) for path in paths}


@pytest.mark.parametrize(("taps", "dilation", "size"), [((3, 3), (2, 2), (11, 11)), ((2, 3), (3, 1), (6, 9)), ((4, 2), (1, 5), (5, 4))])
def test_taps_are_the_samples_that_the_oracle_reads(taps, dilation, size):
    axes = plots.dilation_taps(taps, (dilation,), input_size=size).axes[0]
    central = (size[0] // 2, size[1] // 2)
    read = {sample for output, _, sample in reference.reads(size, taps, 1, "SAME", "zeros", dilation) if output == central}
    assert cells(axes, "tap of the kernel") & set(np.ndindex(size)) == read
    assert len(cells(axes, "tap of the kernel")) == taps[0] * taps[1]
    assert cells(axes, "input") <= set(np.ndindex(size))
    assert not cells(axes, "zero padding") & set(np.ndindex(size))


LONG = r"$\x$ is not a formula but a rather long name of a class or a layer that goes on and on"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.dilation_taps((2, 3), ((3, 1), 2), input_size=(6, 9)),
        lambda: plots.dilation_taps(4, (6,), input_size=5),
        lambda: plots.learning_curves([{"step": 1000000, "train/loss": 1e5}]),
        lambda: plots.confusion_matrix(np.eye(2), [LONG, "b"]),
        lambda: plots.confusion_matrix(np.eye(20), [LONG] * 20),
        lambda: plots.prediction_grid(np.ones((1, 4, 4, 1)), [0], [[0.0, 1.0]], [LONG, LONG]),
        lambda: plots.kernels(RNG.normal(size=(3, 3, 1, 1))),
        lambda: plots.kernels(RNG.normal(size=(2, 3, 3, 5, 70))),
        lambda: plots.kernels(RNG.normal(size=(5, 2, 1))),
        lambda: plots.feature_maps({LONG: np.ones((4, 8, 1))}, RNG.uniform(size=(20, 40, 3)), channels=1),
        lambda: plots.dilation_stacks(2, ((1, 2), (256, 128, 512, 999, 999))),
        lambda: plots.dilation_stacks(1, ((1,),)),
        lambda: plots.receptive_field_overlay(lambda x: blur(x, 3, dilation=9), FLAT[:8], output=(0, 39)),
        lambda: plots.receptive_field_overlay(lambda x: x.mean((1, 2)), FLAT[:, :3]),
        lambda: plots.effective_receptive_fields({LONG: np.eye(5), "b": np.ones((3, 90))}),
        lambda: plots.effective_receptive_fields({LONG: np.eye(50)[3]}),
    ],
)
def test_nothing_is_cut_off(draw):
    figure = draw()
    figure.draw_without_rendering()  # computes the layout
    box, (width, height) = figure.get_tightbbox(figure.canvas.get_renderer()), figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


def test_few_channels_leave_room_for_the_name():
    assert "conv_1, dilation 2  (28 × 28 × 16)" in texts(
        plots.feature_maps({"conv_1, dilation 2": np.ones((28, 28, 16))}, np.ones((4, 4, 1)), channels=1)
    )


def test_a_class_without_examples_has_a_blank_row():
    shares = plots.confusion_matrix(np.array([[0, 0], [1, 3]]), ["a", "b"]).axes[0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(shares), [[0, 0], [0.25, 0.75]])


def test_mistakes_are_red_and_framed():
    figure = plots.prediction_grid(np.ones((2, 4, 4, 1)), [0, 1], [[0.9, 0.1], [0.8, 0.2]], ["a", "b"])
    right, wrong = figure.axes
    assert wrong.title.get_color() != right.title.get_color()
    assert wrong.patches[0].get_linewidth() > right.patches[0].get_linewidth()


def test_kernels_share_one_scale_about_zero():
    kernel = RNG.normal(size=(2, 3, 1, 4))
    images = plots.kernels(kernel).axes[0].images
    assert {image.get_clim() for image in images} == {(-np.abs(kernel).max(), np.abs(kernel).max())}
    np.testing.assert_array_equal(images[2].get_array(), kernel[:, :, 0, 2])
