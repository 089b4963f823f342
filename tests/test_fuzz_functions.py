"""Random calls of the public functions: what the oracle says, or one line; never another error.

The oracles are loops and formulas in NumPy that share no code with dilax. The arguments are drawn so that most calls are valid; those that
are not are refused by the function, never by the test alone: where it refuses, the oracle must find the call impossible, too.
"""

import itertools
import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import reference
from fuzzing import DTYPES, array, close, exact, fuzz, refusal, refused

import dilax
from dilax import audio, geometry, losses, metrics, resizing
from dilax.errors import UserError


def per_axis(values: st.SearchStrategy[Any], rank: int) -> st.SearchStrategy[Any]:
    return values | st.tuples(*[values] * rank)


words = st.sampled_from(["SAME", "VALID", "CAUSAL", "TORCH", 0, 1, 3])


@st.composite
def geometries(draw: Any, most: int = 3) -> dict[str, Any]:
    rank = draw(st.integers(1, most))
    pairs = st.tuples(st.integers(0, 4), st.integers(0, 4))
    return {
        "space": draw(st.tuples(*[st.integers(0 if rank == 1 else 1, 9 if rank == 1 else 5)] * rank)),
        "window": draw(st.tuples(*[st.integers(1, 4 if rank == 1 else 3)] * rank)),
        "stride": draw(per_axis(st.integers(1, 3), rank)),
        "padding": draw(words | st.tuples(*[words | pairs] * rank)),
        "dilation": draw(per_axis(st.integers(1, 5), rank)),
    }


def split(case: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    return case["space"], case["window"], {key: case[key] for key in ("stride", "padding", "dilation")}


def sizes_of(case: dict[str, Any]) -> tuple[int, ...] | None:
    """The size of the output by the oracle; None if the kernel does not fit, or there is nothing to read."""
    space, window, options = split(case)
    found = reference.output_size(space, window, **options)
    return found if min(found) > 0 and min(space) > 0 else None


@fuzz(4, geometries())
def test_geometry(case):
    space, window, options = split(case)
    expected = sizes_of(case)
    try:
        assert dilax.output_size(space, window, **options) == expected
    except UserError as error:
        assert expected is None
        refusal(error, "output_size")
    pads = dilax.explicit_padding(space, window, **options)
    axes = zip(space, window, *(reference.per_axis(options[name], len(space)) for name in ("stride", "padding", "dilation")))
    assert pads == tuple(reference.pad_pair(*axis) for axis in axes)
    spans = geometry.effective_kernel_size(window, options["dilation"])
    assert spans == tuple((k - 1) * d + 1 for k, d in zip(window, reference.per_axis(options["dilation"], len(window))))


@fuzz(
    1,
    geometries(),
    st.sampled_from([(1, 1, 1), (3, 2, 1), (2, 4, 2), (3, 3, 3), (2, 6, 2), (4, 2, 2), (3, 2, 2)]),
    st.sampled_from(["zeros", "zeros", "reflect", "edge", "wrap"]),
    st.sampled_from(list(DTYPES)),
    st.integers(0, 2),
    st.sampled_from(["auto", *dilax.LOWERINGS]),
)
def test_dilated_conv(case, channels, mode, dtype, batch, lowering):
    space, window, options = split(case)
    c_in, c_out, groups = channels
    x, kernel = array(1, batch, *space, c_in, dtype=dtype), array(2, *window, max(1, c_in // groups), c_out, dtype=dtype)
    possible = sizes_of(case) is not None and c_in % groups == 0 and c_out % groups == 0
    try:
        y = dilax.dilated_conv(x, kernel, **options, groups=groups, padding_mode=mode, lowering=lowering)
    except UserError as error:
        refusal(error, "dilated_conv", not possible or lowering != "auto")
        return
    assert possible
    close(y, reference.conv(exact(x), exact(kernel), **options, groups=groups, padding_mode=mode), dtype)


@fuzz(0.6, geometries(), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.sampled_from(["zeros", "reflect", "edge", "wrap"]))
def test_depthwise_and_separable_conv(case, channels, multiplier, mode):
    space, window, options = split(case)
    x, kernel = array(1, 2, *space, channels), array(2, *window, 1, channels * multiplier)
    pointwise = array(3, *(1,) * len(window), channels * multiplier, 2)
    try:
        y = dilax.depthwise_conv(x, kernel, **options, padding_mode=mode)
        z = dilax.separable_conv(x, kernel, pointwise, **options, padding_mode=mode)
    except UserError as error:
        refusal(error, "depthwise_conv", sizes_of(case) is None)
        return
    expected = reference.depthwise(exact(x), exact(kernel), **options, padding_mode=mode)
    close(y, expected)
    close(z, reference.conv(expected, exact(pointwise)))


@fuzz(0.8, geometries(), st.sampled_from([(1, 1, 1), (3, 2, 1), (2, 4, 2)]), st.integers(-1, 2))
def test_dilated_conv_transpose_is_the_adjoint(case, channels, more):
    space, window, options = split(case)
    c_in, c_out, groups = channels
    kernel = array(2, *window, c_in // groups, c_out)
    y = array(1, 2, *space, c_out)  # the input of the transposed convolution
    asked: dict[str, Any] = {} if more < 0 else {"output_size": tuple(max(n, 1) * more + 1 for n in space)}
    try:
        x = dilax.dilated_conv_transpose(y, kernel, **options, groups=groups, **asked)
    except UserError as error:
        fits = asked and reference.output_size(asked["output_size"], window, **options) == space
        refusal(error, "dilated_conv_transpose", not fits or 0 in space)
        return
    back = x.shape[1:-1]
    assert back == asked.get("output_size", back) and reference.output_size(back, window, **options) == space
    close(x, reference.conv_transpose(exact(y), exact(kernel), back, **options, groups=groups))


def pooled(x: np.ndarray, case: dict[str, Any], kind: str) -> np.ndarray | None:
    """The oracle of pooling; None if a window holds only padding and its maximum, or mean of samples, does not exist."""
    space, window, options = split(case)
    out = reference.output_size(space, window, **options)
    groups: dict[Any, list[np.ndarray]] = {place: [] for place in np.ndindex(*out)}
    for p, _, i in reference.reads(space, window, options["stride"], options["padding"], "zeros", options["dilation"]):
        groups[p].append(x[:, *i])
    y = np.zeros((x.shape[0], *out, x.shape[-1]))
    for place, found in groups.items():
        if not found and kind != "all":
            return None
        taps = {"max": 1, "mean": len(found), "all": math.prod(window)}[kind]
        y[:, *place] = np.max(found, axis=0) if kind == "max" else sum(found) / taps
    return y


@fuzz(1, geometries(), st.sampled_from(["max", "mean", "all"]), st.sampled_from(list(DTYPES)))
def test_pooling(case, kind, dtype):
    space, window, options = split(case)
    x = array(1, 2, *space, 2, dtype=dtype)
    expected = pooled(exact(x), case, kind) if sizes_of(case) else None
    try:
        y = dilax.max_pool(x, window, **options) if kind == "max" else dilax.avg_pool(x, window, **options, count_padding=kind == "all")
    except UserError as error:
        refusal(error, "max_pool" if kind == "max" else "avg_pool", expected is None)
        return
    assert expected is not None
    close(y, expected, dtype)


@fuzz(
    1,
    st.lists(st.tuples(st.integers(0, 7), st.integers(1, 9)), min_size=1, max_size=3),
    st.sampled_from(["bilinear", "nearest", "corners"]),
)
def test_resize(axes, method):
    olds, news = zip(*axes)
    x = array(1, 2, *olds, 2)
    options = {"method": "bilinear", "align_corners": True} if method == "corners" else {"method": method}
    try:
        y = dilax.resize(x, news, **options)
    except UserError as error:
        refusal(error, "resize")
        assert 0 in olds
        return
    expected = exact(x)
    for axis, (old, new) in enumerate(axes, 1):
        rows = np.zeros((new, old))
        for i in range(new):
            if method == "nearest":
                rows[i, min(old - 1, (2 * i + 1) * old // (2 * new))] = 1
                continue
            at = i * (old - 1) / max(new - 1, 1) if method == "corners" else (i + 0.5) * old / new - 0.5
            for j in range(old):
                rows[i, j] = max(0, 1 - abs(min(max(at, 0), old - 1) - j))
        expected = np.moveaxis(np.tensordot(rows, expected, (1, axis)), 0, axis)
        if method != "nearest":
            np.testing.assert_allclose(resizing.interpolation_matrix(old, new, align_corners=method == "corners"), rows, atol=1e-6)
    close(y, expected)


@st.composite
def labelled(draw: Any) -> tuple[Any, Any, Any]:
    """Logits (batch, *space, classes), labels of which some are ignored, and which examples count."""
    shape = draw(st.sampled_from([(2, 3), (3, 1), (2, 0), (0, 2), (2, 2, 1)]))
    classes = draw(st.sampled_from([0, 1, 3, 3]))
    scale = draw(st.sampled_from([1.0, 30.0, 1e4]))
    labels = draw(
        st.lists(st.sampled_from([0, 0, classes - 1, 255, 255, classes, -1]), min_size=math.prod(shape), max_size=math.prod(shape))
    )
    mask = draw(st.lists(st.booleans(), min_size=shape[0], max_size=shape[0]))
    logits = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(*shape, classes)) * scale
    return logits.astype(np.float32), np.array(labels, np.int32).reshape(shape), np.array(mask, bool)


def log_p(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True, initial=-1e300)
    return wide - top - np.log(np.exp(wide - top).sum(-1, keepdims=True))


@fuzz(0.8, labelled(), st.sampled_from([None, "weights"]), st.sampled_from([0.0, 0.5, 2.0]))
def test_losses_of_pixels(case, weighted, gamma):
    logits, labels, _ = case
    classes = logits.shape[-1]
    if classes == 0:
        for name in ("pixel_cross_entropy", "focal_loss", "dice_loss"):
            refused(name, getattr(losses, name), logits, labels)
        return
    weights: Any = None if weighted is None else np.linspace(0.5, 2, classes).astype(np.float32)
    found = {
        "cross": losses.pixel_cross_entropy(logits, labels, class_weights=weights),
        "focal": losses.focal_loss(logits, labels, class_weights=weights, gamma=gamma),
        "dice": losses.dice_loss(logits, labels),
    }
    for n, (one, label) in enumerate(zip(log_p(logits), labels)):
        if any(not 0 <= c < classes and c != 255 for c in label.ravel()):
            assert all(np.isnan(loss[n]) for loss in found.values())
            continue
        counted = [(one[i][c], one[i], c) for i, c in np.ndenumerate(label) if c != 255]
        w = [1.0 if weights is None else float(weights[c]) for *_, c in counted]
        total = sum(w) or 1.0
        cross = sum(-a * b for (a, *_), b in zip(counted, w)) / total
        focal = sum(-a * b * max(-math.expm1(a), 1e-7) ** gamma for (a, *_), b in zip(counted, w)) / total
        dice, present = 0.0, {c for *_, c in counted}
        for c in present:
            p = [math.exp(row[c]) for _, row, _ in counted]
            own = [q for q, (*_, true) in zip(p, counted) if true == c]
            dice += 1 - 2 * sum(own) / (sum(p) + len(own))
        expected = {"cross": cross, "focal": focal, "dice": dice / max(len(present), 1)}
        for name, loss in found.items():
            assert loss.dtype == np.float32
            np.testing.assert_allclose(float(loss[n]), expected[name], rtol=2e-4, atol=2e-4, err_msg=name)


@fuzz(0.8, labelled())
def test_metrics(case):
    logits, labels, mask = case
    classes = logits.shape[-1]
    if classes == 0:
        refused("segmentation_sums", metrics.segmentation_sums, logits, labels, mask)
        none = np.zeros((len(mask), 0), np.float32)
        refused("classification_sums", metrics.classification_sums, none, mask.astype(np.int32), mask)
        return
    sums = metrics.segmentation_sums(logits, labels, mask)
    confusion, loss, invalid, count = np.zeros((classes, classes)), 0.0, False, 0
    for place, c in np.ndenumerate(labels):
        if mask[place[0]] and c != 255:
            count += 1
            if 0 <= c < classes:
                confusion[c, logits[place].argmax()] += 1
                loss -= log_p(logits[place])[c]
            else:
                invalid = True
    assert int(sums["count"]) == count and int(sums["accuracy"]) == np.trace(confusion)
    np.testing.assert_array_equal(sums["confusion"], confusion)
    np.testing.assert_allclose(float(sums["loss"]), np.nan if invalid else loss, rtol=1e-4, atol=1e-4)
    for c, iou in enumerate(metrics.class_iou(confusion)):
        union = confusion[c].sum() + confusion[:, c].sum() - confusion[c, c]
        np.testing.assert_allclose(iou, confusion[c, c] / union if union else np.nan)
    if labels.ndim == 2 and labels.shape[1] == 1 and 255 not in labels:
        flat = metrics.classification_sums(logits[:, 0], labels[:, 0], mask)
        np.testing.assert_array_equal(flat["confusion"], confusion)
        assert float(flat["count"]) == count


@fuzz(
    0.6, st.sampled_from([0, 2]), st.integers(0, 6), st.integers(0, 3), st.booleans(), st.integers(0, 99), st.sampled_from([1.0, 1e-6, 1e6])
)
def test_separation(batch, time, sources, masked, seed, scale):
    rng = np.random.default_rng(seed)
    e: Any
    t: Any
    e, t = (rng.normal(size=(batch, time, sources)).astype(np.float32) for _ in range(2))
    e = (e * scale).astype(np.float32)
    mask: Any = rng.random((batch, time)) < 0.7 if masked else None
    if sources == 0:
        return refused("separation_loss", losses.separation_loss, e, t, mask)
    found, loss = losses.si_sdr(e, t, mask), losses.separation_loss(e, t, mask)
    assert found.shape == (batch, sources) and loss.shape == (batch,)

    def ratio(n: int, i: int, j: int) -> float:
        counted = np.ones(time, bool) if mask is None else mask[n]
        a, b = (x[n, counted, k].astype(np.float64) for x, k in ((e, i), (t, j)))
        a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
        if (a**2).sum() < 1e-25 * scale**2 or (b**2).sum() < 1e-25:
            return -80.0
        along = (a @ b) / (b @ b) * b
        share = (along @ along) / (a @ a)
        return 10 * math.log10((share + 1e-8) / (1 - share + 1e-8))

    for n in range(batch):
        if sum(mask[n] if mask is not None else np.ones(time)) < 3:
            assert np.isfinite(found[n]).all() and np.isfinite(loss[n])
            continue
        np.testing.assert_allclose(found[n], [ratio(n, i, i) for i in range(sources)], atol=0.02)
        best = max(np.mean([ratio(n, i, j) for j, i in enumerate(order)]) for order in itertools.permutations(range(sources)))
        np.testing.assert_allclose(loss[n], -best, atol=0.02)


@fuzz(1, st.lists(st.floats(-1.5, 1.5, width=32), max_size=5), st.sampled_from([2, 3, 255, 256, 65536]))
def test_mu_law(values, levels):
    x: Any = np.array(values, np.float32)
    codes = audio.mu_law_encode(x, levels=levels)
    assert codes.dtype == np.int32 and codes.shape == x.shape
    mu = levels - 1
    clipped = np.clip(x.astype(np.float64), -1, 1)
    exact_codes = (np.sign(clipped) * np.log1p(mu * np.abs(clipped)) / np.log1p(mu) + 1) / 2 * mu
    assert (np.abs(np.asarray(codes) - exact_codes) <= 0.5 + 1e-6 * levels).all()
    y = 2 * np.asarray(codes) / mu - 1
    np.testing.assert_allclose(audio.mu_law_decode(codes, levels=levels), np.sign(y) * np.expm1(np.abs(y) * np.log1p(mu)) / mu, atol=1e-5)


@fuzz(
    1,
    st.integers(1, 40),
    st.integers(2, 16),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([8.0, 100.0, 8000.0, 1e-3]),
    st.sampled_from([0.0, 1.0, 20.0]),
    st.sampled_from([None, 4.0, 50.0, 4000.0]),
)
def test_log_mel(time, window, hop, bands, rate, lowest, highest):
    x: Any = np.random.default_rng(time).normal(size=(2, time)).astype(np.float32)
    try:
        y = audio.log_mel(x, rate, window=window, hop=hop, bands=bands, lowest=lowest, highest=highest)
    except UserError as error:
        refusal(error, "log_mel")
        return
    size = 1 << (window - 1).bit_length()

    def mel(f: float) -> float:
        return 2595 * math.log10(1 + f / 700)

    edges = np.linspace(mel(lowest), mel(rate / 2 if highest is None else highest), bands + 2)
    expected = np.zeros((2, 1 + (time - window) // hop, bands))
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    for f in range(expected.shape[1]):
        power = np.abs(np.fft.rfft(x[:, f * hop : f * hop + window].astype(np.float64) * hann, size)) ** 2
        for b in range(bands):
            for k in range(size // 2 + 1):
                at = mel(k * rate / size)
                weight = min((at - edges[b]) / (edges[b + 1] - edges[b]), (edges[b + 2] - at) / (edges[b + 2] - edges[b + 1]))
                expected[:, f, b] += power[:, k] * max(weight, 0)
    np.testing.assert_allclose(y, np.log(np.maximum(expected, 1e-6)), rtol=1e-3, atol=1e-3)


@fuzz(0.6, st.integers(0, 3), st.integers(0, 5), st.sampled_from(["max", "mean", "last"]), st.booleans(), st.integers(0, 99))
def test_pool_sequence(batch, time, kind, masked, seed):
    rng = np.random.default_rng(seed)
    x: Any = rng.normal(size=(batch, time, 2)).astype(np.float32)
    mask: Any = rng.random((batch, time)) < 0.6 if masked else None
    y = dilax.pool_sequence(x, kind=kind, mask=mask)
    assert y.shape == (batch, 2) and y.dtype == np.float32
    for n in range(batch):
        valid = x[n] if mask is None else x[n][mask[n]]
        how = {"max": lambda v: v.max(0), "mean": lambda v: v.mean(0), "last": lambda v: v[-1]}[kind]
        np.testing.assert_allclose(y[n], how(valid) if len(valid) else np.zeros(2), rtol=1e-5, atol=1e-6)


counts = st.lists(st.sampled_from([0, 1, 5, 7.0, -1, float("nan"), float("inf")]), max_size=3)


@fuzz(2, counts, counts)
def test_median_frequency_weights(pixels, totals):
    try:
        weights = losses.median_frequency_weights(np.array(pixels, float), np.array(totals, float))
    except UserError as error:
        refusal(error, "median_frequency_weights")
        assert len(pixels) != len(totals) or any(not 0 <= some <= all < math.inf for some, all in zip(pixels, totals))
        return
    shares = [some / all for some, all in zip(pixels, totals) if some]
    np.testing.assert_allclose(weights, [np.median(shares) * all / some if some else 1 for some, all in zip(pixels, totals)], rtol=1e-6)


@fuzz(2, counts.map(lambda row: [row, row[::-1], row][: len(row)]))
def test_class_iou_refuses_what_is_not_a_count(confusion):
    wrong = any(not 0 <= count < math.inf for row in confusion for count in row)
    if wrong or not confusion:
        return refused("class_iou", metrics.class_iou, confusion)
    assert metrics.class_iou(confusion).shape == (len(confusion),)


@fuzz(4, st.integers(1, 4), st.integers(1, 600), st.none() | st.integers(1, 8))
def test_suggest_dilations(kernel_size, target, layers):
    try:
        dilations = dilax.suggest_dilations(kernel_size, target, layers=layers)
    except UserError as error:
        refusal(error, "suggest_dilations")
        return
    assert len(dilations) == (len(dilations) if layers is None else layers) and min(dilations, default=1) >= 1
    reached = {0}
    for dilation in dilations:
        reached = {at + tap * dilation for at in reached for tap in range(kernel_size)}
    assert max(reached) + 1 >= target or kernel_size == 1
    assert reached == set(range(max(reached) + 1))  # no gridding
