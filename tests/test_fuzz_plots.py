"""Random calls of the plots: a figure that can be drawn without a warning and holds what it was given, or one line.

What a figure must hold is counted, or computed pixel by pixel, from the arguments alone. Among the arguments are those that no picture can
show: names with signs of mathematics, numbers that are not finite, thousands of panels, arrays that do not fit each other.
"""

import math
import warnings
from typing import Any

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
from fuzzing import fuzz, refusal

from dilax import plots
from dilax.errors import UserError

NAMES = (
    "a",
    "b c",
    "",
    "_a",
    "__background__",
    "$x",
    "$a_$",
    r"\frac{$",
    "two\nlines",
    "\x1b[2J",
    "a" * 90,
    "Straße",
    "{}",
    "%s",
    "\udcff",
)
DTYPES = (*["float32"] * 14, *["float64", "bfloat16", "float16", "uint8"] * 2, "int32", "bool", "complex64", "O", "U1")
ODD = (0.0, -1.0, np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-38)
words = st.sampled_from(NAMES)
few = st.sampled_from([1, 2, 3, 3, 4, 6, 7, 0])


@st.composite
def arrays(draw: Any, *shape: Any, low: float = 0.0, high: float = 1.0, wrong: bool = True) -> Any:
    """An array of that shape, of which entries that are None are drawn; rarely of another rank, and with a few odd values."""
    sizes = [draw(few) if n is None else n for n in shape]
    if wrong and draw(st.integers(0, 30)) == 7:
        sizes = draw(st.sampled_from([sizes[:-1], [*sizes, 2], [n + 1 for n in sizes], []]))
    x = np.random.default_rng(draw(st.integers(0, 99))).uniform(low, high, sizes)
    for value in draw(st.lists(st.sampled_from(ODD), max_size=3)) if draw(st.booleans()) else ():
        if x.size:
            x.flat[draw(st.integers(0, x.size - 1))] = value
    dtype = draw(st.sampled_from(DTYPES)) if wrong else "float32"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(x * (255 if dtype == "uint8" else 1)).astype(jnp.bfloat16 if dtype == "bfloat16" else dtype)


def integers(*shape: int, most: int) -> st.SearchStrategy[Any]:
    """Classes from 0 to `most`, or others."""
    return st.builds(
        lambda seed, low, dtype: np.random.default_rng(seed).integers(low, most + 1, shape).astype(dtype),
        st.integers(0, 99), st.sampled_from([0, 0, -1]), st.sampled_from(["int32", "int64", "uint8", "float32"]),
    )  # fmt: skip


def attempt(name: str, *args: Any, **options: Any) -> Any:
    """The figure of a plot, drawn; None if it refuses its arguments."""
    try:
        figure = getattr(plots, name)(*args, **options)
    except UserError as error:
        return refusal(error, name)
    figure.canvas.draw()
    return figure


def wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def shown(axes: Any, number: int = 0) -> np.ndarray:
    """The values of an image; what is not finite has no colour, and is NaN here."""
    return finite(np.ma.filled(np.ma.asarray(axes.images[number].get_array()).astype(float), np.nan))


def finite(x: Any) -> np.ndarray:
    return np.where(np.isfinite(x), x, np.nan)


def counts(figure: Any, panel: int) -> dict[str, int]:
    return {str(c.get_label()): len(c.get_paths()) for c in figure.axes[panel].collections}


pairs = st.integers(1, 4) | st.tuples(st.integers(1, 5), st.integers(1, 5)) | st.sampled_from([0, -1, 2.0, (1, 2, 3), 9999, (1, 9999)])


@fuzz(1, pairs, st.lists(pairs, max_size=3), pairs)
def test_dilation_taps(kernel_size, dilations, input_size):
    figure = attempt("dilation_taps", kernel_size, dilations, input_size=input_size)
    if figure is None:
        return
    (k, n), panels = ((value,) * 2 if isinstance(value, int) else value for value in (kernel_size, input_size)), []
    for d in ((d,) * 2 if isinstance(d, int) else d for d in dilations):
        axes = []
        for taps, size, step in zip(k, n, d):
            low = (taps - 1) * step // 2
            reads = [size // 2 + t * step - low for t in range(taps)]
            axes.append((set(reads), set(range(reads[0], reads[-1] + 1)), set(range(size)), size + (taps - 1) * step))
        taps, spans, inside, all = (math.prod(len(one[i]) if i < 3 else one[3] for one in axes) for i in range(4))
        both = math.prod(len(one[1] & one[2]) for one in axes)
        panels.append([all - inside - (spans - both), inside - both, spans - taps, taps])
    assert [list(counts(figure, i).values()) for i in range(len(dilations))] == panels


@fuzz(1, st.sampled_from([1, 2, 3, 5, 0, 10**6]), st.lists(st.lists(st.sampled_from([1, 2, 3, 8, 30, 0, 10**9]), max_size=4), max_size=3))
def test_dilation_stacks(kernel_size, stacks):
    figure = attempt("dilation_stacks", kernel_size, stacks)
    for i, stack in enumerate([] if figure is None else stacks):
        reached = {0}
        for dilation in stack:
            reached = {at + tap * dilation for at in reached for tap in range(kernel_size)}
        found = counts(figure, i)
        assert (found["seen"], found["missed"], found["paths"]) == (len(reached), max(reached) + 1 - len(reached), max(reached) + 1)


@fuzz(1, st.dictionaries(words, arrays(None) | arrays(None, None), max_size=3))
def test_effective_receptive_fields(maps):
    figure = attempt("effective_receptive_fields", maps)
    for axes, values in zip(figure.axes, map(wide, maps.values())) if figure else ():
        assert np.isfinite(values).all() and values.min() >= 0
        found = np.asarray(axes.lines[0].get_ydata()) if values.ndim == 1 else shown(axes)
        np.testing.assert_allclose(found, values / values.max())


@fuzz(1, st.data(), st.lists(words, max_size=4) | st.integers(0, 90).map(lambda n: ["a"] * n), words)
def test_class_bars(data, names, label):
    values = data.draw(arrays(len(names)))
    figure = attempt("class_bars", values, names, label=label)
    if figure is not None:
        widths = sorted(bar.get_width() for bar in figure.axes[0].patches)
        expected = sorted(np.nan_to_num(wide(values)))
        np.testing.assert_allclose(widths, expected if len(expected) <= 60 else expected[:30] + expected[-30:])


@fuzz(1, st.sampled_from([0, 1, 2, 300, -1, 2.5, True]))
def test_mask_colours(count):
    try:
        colours = plots.mask_colours(count)
    except UserError as error:
        return refusal(error, "mask_colours", not isinstance(count, int) or isinstance(count, bool) or count < 0)
    assert colours.shape == (count, 3) and colours.dtype == np.uint8 and len({*map(tuple, colours.tolist())}) == count
    np.testing.assert_array_equal(plots.mask_colours(count + 5)[:count], colours)


@st.composite
def masked(draw: Any) -> tuple[Any, ...]:
    """An image, two masks, names of classes, an opacity, and the background."""
    height, width = draw(st.sampled_from([(3, 4), (1, 1), (5, 2), (2, 2), (1, 90), (90, 1), (0, 3), (3, 0)]))
    names = draw(st.lists(words, max_size=4) | st.just(["a"] * 40))
    images = arrays(height, width, draw(st.sampled_from([1, 3, 3, 3, 2, 4, 0])))
    masks = [draw(integers(height, width, most=len(names)) | integers(2, 3, most=1) | arrays(height, width)) for _ in range(2)]
    return (
        draw(images),
        *masks,
        names,
        draw(st.sampled_from([0.6, 1.0, 0.0, 1, 0.3, 0.5, 2.0, -1.0])),
        draw(st.sampled_from([0, None, 1, 99])),
    )


def pictured(image: np.ndarray) -> np.ndarray:
    """An image as it is shown: RGB, or the mean of its channels."""
    values = np.clip(wide(image) / (255 if image.dtype == np.uint8 else 1), 0, 1)
    return values if values.shape[-1] == 3 else np.repeat(values.mean(-1, keepdims=True), 3, -1)


def blended(image: Any, mask: Any, classes: int, opacity: float, background: int | None) -> np.ndarray:
    picture, colours = pictured(image).copy(), plots.mask_colours(classes) / 255
    for place, c in np.ndenumerate(mask):
        if 0 <= c < classes and c != background:
            picture[place] = (1 - opacity) * picture[place] + opacity * colours[int(c)]
    return picture


@fuzz(1, masked())
def test_segmentation_overlay(case):
    image, mask, _, names, opacity, background = case
    figure = attempt("segmentation_overlay", image, mask, names, opacity=opacity, background=background)
    if figure is not None:
        np.testing.assert_allclose(shown(figure.axes[0]), blended(image, mask, len(names), opacity, background), atol=1e-6)


@fuzz(1, masked(), words, st.booleans())
def test_segmentation_grid_and_comparison(case, title, without):
    image, one, other, names, _, background = case
    masks = {title: one, "other": other}
    grid = attempt("segmentation_grid", image[None], one[None], other[None], names, [title], background=background)
    if grid is not None:
        for axes, mask in zip(grid.axes[1:], (one, other)):
            np.testing.assert_allclose(shown(axes), blended(image, mask, len(names), 0.6, background), atol=1e-6)
    rows = attempt("segmentation_comparison", None if without else image, masks, names, background=background)
    if rows is not None:
        blank = np.ones((*np.shape(one), 3))
        for axes, mask in zip(rows.axes[0 if without else 1 :], masks.values()):
            expected = blended(blank, mask, len(names), 1, None) if without else blended(image, mask, len(names), 0.6, background)
            np.testing.assert_allclose(shown(axes), expected, atol=1e-6)


@st.composite
def boxed(draw: Any) -> tuple[Any, ...]:
    """An image, boxes with classes and scores, and names of classes."""
    height, width = draw(st.sampled_from([(3, 4), (1, 1), (1, 90), (90, 1), (0, 3)]))
    names, n = draw(st.lists(words, max_size=4)), draw(st.sampled_from([0, 1, 3, 70]))
    labels = draw(integers(n, most=len(names) - 1) | integers(n, most=9) | arrays(n)) if names else np.zeros(n, int)
    return draw(arrays(height, width, draw(st.sampled_from([1, 3, 2])))), draw(arrays(n, 4, low=-3, high=9)), labels, draw(arrays(n)), names


@fuzz(1, boxed(), words)
def test_detection_overlay_and_grid(case, title):
    image, boxes, labels, scores, names = case
    figures = (
        attempt("detection_overlay", image, boxes, labels, scores, names),
        attempt("detection_grid", image[None], boxes[None], labels[None], boxes[None], labels[None], scores[None], names, [title]),
    )
    for figure in figures:
        for axes in figure.axes if figure else ():
            drawn = [box for box, label in zip(wide(boxes), labels) if 0 <= label < len(names)]
            corners = [(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in axes.patches][::-1]
            np.testing.assert_allclose(np.reshape(corners, (-1, 2)), np.reshape(drawn, (-1, 4))[:, :2], atol=1e-6)


@fuzz(1, st.lists(words, max_size=5), st.data(), words)
def test_precision_recall(names, data, label):
    values = data.draw(arrays(None, len(names)))
    figure = attempt("precision_recall", values, names, label=label)
    if figure is not None:
        means = wide(values).mean(0)
        drawn = [np.asarray(line.get_ydata()).mean() for line in figure.axes[0].lines]
        np.testing.assert_allclose(drawn, sorted(means[~np.isnan(means)], reverse=True))


@st.composite
def classified(draw: Any) -> tuple[Any, ...]:
    names = draw(st.lists(words, min_size=1, max_size=4))
    n = draw(st.sampled_from([1, 2, 5, 0]))
    labels = draw(integers(n, most=len(names) - 1) | arrays(n))
    return n, labels, draw(arrays(n, len(names))), names, draw(st.sampled_from([1, 3, 8, 0, 2.5]))


@fuzz(1, classified(), st.data())
def test_series_grid(case, data):
    n, labels, probabilities, names, columns = case
    series = [data.draw(arrays(None, None)) for _ in range(n)]
    figure = attempt("series_grid", series, labels, probabilities, names, columns=columns)
    for axes, values in zip(figure.axes, map(wide, series)) if figure else ():
        found = [shown(axes)] if axes.images else [np.stack([line.get_ydata() for line in axes.lines])]
        np.testing.assert_array_equal(finite(found[0]), finite(values.T))


@fuzz(1, classified(), st.sampled_from([(3, 4), (1, 1), (1, 70), (0, 2), (2, 0)]), st.data())
def test_prediction_grid(case, space, data):
    n, labels, probabilities, names, columns = case
    images = data.draw(arrays(n, *space, data.draw(st.sampled_from([1, 3, 2, 0]))))
    figure = attempt("prediction_grid", images, labels, probabilities, names, columns=columns)
    for axes, image in zip(figure.axes, images) if figure else ():
        found = shown(axes)
        np.testing.assert_allclose(found if found.ndim == 3 else np.repeat(found[..., None], 3, -1), pictured(image), atol=1e-6)


@fuzz(1, st.data(), few, few, words, st.sampled_from([None, "range", "odd"]), st.booleans(), st.sampled_from([5, 1, 0, 2.5]))
def test_step_outputs(data, time, count, word, steps, joined, panels):
    truth, predicted, baseline = (data.draw(arrays(time, count)) for _ in range(3))
    places = {None: None, "range": np.arange(time) * 3, "odd": data.draw(arrays(time))}[steps]
    names = data.draw(st.lists(words, min_size=count, max_size=count))
    options: Any = dict(
        baseline=baseline if joined else None, baseline_name=word, steps=places, step_name=word, joined=joined, panels=panels
    )
    figure = attempt("step_outputs", truth, predicted, names, title=word, **options)
    if figure is None:
        return
    both = (wide(truth), wide(predicted))
    if count > panels:
        for axes, values in zip(figure.axes, both):
            np.testing.assert_array_equal(shown(axes), finite(values.T))
        return
    for i, axes in enumerate(figure.axes):
        for line, values in zip(axes.lines, both):
            np.testing.assert_array_equal(line.get_ydata(), values[:, i])


@fuzz(1, st.data(), st.sampled_from([1.0, 8000, 0.5, 16000, 0, -1, 1e-300, 1e300, float("nan")]), st.lists(words, max_size=3))
def test_waveforms(data, rate, names):
    samples = data.draw(arrays(len(names), None, low=-1))
    figure = attempt("waveforms", samples, rate, names)
    for axes, row in zip(figure.axes, wide(samples)) if figure else ():
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), row)
        np.testing.assert_allclose(axes.lines[0].get_xdata(), np.arange(len(row)) / rate)


lines = st.fixed_dictionaries(
    {},
    optional={
        "step": st.integers(0, 9) | st.sampled_from([None, "a", 10**30, 2.0, float("nan")]),
        "best_step": st.integers(0, 9) | st.none(),
        **{f"{split}/loss": st.sampled_from([0.1, 1, *ODD, None, "a", [1]]) for split in ("train", "validation", "test")},
        "train/$a_$": st.just(2.0),
    },
)


@fuzz(
    0.6,
    st.lists(lines | lines.map(lambda line: {"step": 3, **line}), max_size=7),
    st.lists(st.sampled_from(["loss", "$a_$", *NAMES]), max_size=3),
)
def test_learning_curves(history, metrics):
    figure = attempt("learning_curves", history, metrics=metrics)
    for axes, metric in zip(figure.axes, metrics) if figure else ():
        found = [y for line in axes.lines for y in np.asarray(line.get_ydata(), float)]
        expected = [
            line[key] for split in ("train", "validation", "test") for line in history for key in (f"{split}/{metric}",) if key in line
        ]
        np.testing.assert_array_equal(found, np.array(expected, float))


@fuzz(0.4, st.data(), st.lists(words, max_size=4) | st.sampled_from([["a"] * 25, ["a"] * 60]))
def test_confusion_matrix(data, names):
    matrix = data.draw(arrays(len(names), len(names), high=data.draw(st.sampled_from([9.0, 1e6]))))
    figure = attempt("confusion_matrix", matrix, names)
    if figure is not None:
        rows = [[n / max(sum(row), 1) for n in row] for row in wide(matrix).tolist()]
        assert np.isfinite(rows).all() and np.min(rows) >= 0
        np.testing.assert_allclose(shown(figure.axes[0]), rows)


@fuzz(1, arrays(None, None, None, low=-1) | arrays(None, 2, None, None, low=-1) | arrays(2, 2, 2, None, 3, low=-1), few)
def test_kernels(kernel, most):
    figure = attempt("kernels", kernel, max_kernels=most)
    if figure is None:
        return
    values = wide(kernel)[..., :most]
    if values.shape[-2] != 3 and not (values.ndim == 3 and values.shape[-2] < 3):
        values = values.mean(-2, keepdims=True)
    axes, number = figure.axes[0], values.shape[-1]
    if values.ndim == 3:
        assert len(axes.lines) == number * (1 + values.shape[1])
        return
    assert len(axes.images) == number
    if values.ndim == 4 and values.shape[2] == 1:
        for i in range(number):
            np.testing.assert_array_equal(shown(axes, i), finite(values[:, :, 0, i]))


@fuzz(1, st.dictionaries(words, arrays(3, 4, None, low=-9, high=9), max_size=3), arrays(3, 4, 3), few)
def test_feature_maps(maps, image, channels):
    figure = attempt("feature_maps", maps, image, channels=channels)
    if figure is None:
        return
    panels = [axes for axes in figure.axes if axes.images]
    for values in map(wide, maps.values()):
        np.testing.assert_allclose(shown(panels.pop(0)), pictured(image)[..., : 3 if image.shape[-1] == 3 else 1].squeeze(), atol=1e-6)
        order = sorted(range(values.shape[-1]), key=lambda c: -np.where(np.isfinite(values[..., c]), values[..., c], 0).var())[:channels]
        for channel in order:
            np.testing.assert_array_equal(shown(panels.pop(0)), finite(values[..., channel]))
