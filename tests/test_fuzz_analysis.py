"""Random calls of the analysis of receptive fields, of tiles and of folding: what probing the function itself says, or one line."""

import functools
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import array, fuzz, refusal
from networks import max_pool, resized, transposed, weights

import dilax
from dilax import blocks
from dilax.errors import UserError
from dilax.receptive_fields import reaches, receptive_fields

KEY = jax.random.key(0)


@st.composite
def steps(draw: Any, rank: int) -> Any:
    """A layer with positive weights that keeps two channels, of images or of sequences."""
    per_axis = lambda values: draw(values | st.tuples(*[values] * rank))  # noqa: E731
    taps, factor = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    options = dict(
        stride=per_axis(st.integers(1, 2)),
        dilation=per_axis(st.integers(1, 4)),
        padding=draw(st.sampled_from(["SAME", "VALID", "CAUSAL", "TORCH", 2])),
    )
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "edge", "wrap"]))
    conv = lambda x, **more: dilax.dilated_conv(x, weights(*(taps,) * rank, 2, 2), **options, **more)  # noqa: E731
    return draw(
        st.sampled_from(
            [
                lambda x: conv(x, padding_mode=mode),
                lambda x: conv(x) if conv(x).shape != x.shape else conv(x) + x,
                lambda x: dilax.depthwise_conv(x, weights(*(taps,) * rank, 1, 2), **options),
                lambda x: transposed(x, taps, stride=options["stride"], dilation=options["dilation"]),
                lambda x: dilax.max_pool(x, taps, stride=factor, padding="SAME"),
                lambda x: dilax.avg_pool(x, taps, **options),
                lambda x: dilax.resize(x, tuple(n * factor for n in x.shape[1:-1])),
                lambda x: resized(x, factor, "nearest"),
                lambda x: max_pool(x, taps, factor) if rank == 1 else jnp.flip(x, 1),
                lambda x: x[:, 1:],
                lambda x: jnp.roll(x, 1, 1),
                lambda x: jnp.concatenate([x, x], 1),
                lambda x: x - x.mean(1, keepdims=True),
                lambda x: jnp.cumsum(x, 1),
                lambda x: jnp.tanh(x) * jnp.arange(1.0, x.shape[1] + 1).reshape(1, -1, *(1,) * rank),
            ]
        )
    )


@st.composite
def functions(draw: Any) -> tuple[Any, tuple[int, ...]]:
    rank = draw(st.sampled_from([1, 1, 2]))
    layers = draw(st.lists(steps(rank), min_size=1, max_size=3))
    return lambda x: functools.reduce(lambda x, layer: layer(x), layers, x), (
        1,
        *(draw(st.integers(7, 30 if rank == 1 else 14)) for _ in range(rank)),
        2,
    )


def runs(fn: Any, x: Any) -> bool:
    try:
        return 0 not in jax.eval_shape(fn, x).shape and max(jax.eval_shape(fn, x).shape) < 120
    except UserError:
        return False


@functools.cache
def probe(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Inputs of which each has other positive samples at one position of an axis than the first has, (1 + n, *shape[1:])."""
    base = np.random.default_rng(5).uniform(0.5, 1.0, shape[1:]).astype(np.float32)
    found = [base]
    for i in range(shape[1 + axis]):
        changed = np.moveaxis(base.copy(), axis, 0)
        changed[i] += np.random.default_rng(i).uniform(1.0, 2.0, changed[i].shape)
        found.append(np.moveaxis(changed, 0, axis))
    return np.stack(found)


@fuzz(1, functions())
def test_receptive_field_contains_what_a_change_of_one_sample_reaches(case):
    fn, shape = case
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    if not runs(fn, x):
        return
    for axis, (field, reach) in enumerate(zip(receptive_fields(fn, x)[0], reaches(fn, x), strict=True)):
        inputs = probe(shape, axis)
        y = np.asarray(jax.jit(fn)(jnp.asarray(inputs)))
        changed = np.moveaxis(y[1:] != y[0], 1 + axis, 1)
        seen = changed.reshape(*changed.shape[:2], -1).any(-1)  # (inputs, outputs)
        for o in range(seen.shape[1]):
            (places,) = np.nonzero(seen[:, o])
            if reach is None or field.size is None or not len(places):
                continue
            assert o * field.stride - field.left <= places[0] and places[-1] <= o * field.stride + field.right
            first, bits = reach.seen(o)
            assert first <= places[0] and places[-1] < first + bits.bit_length()
            # Samples repeated at the border may lie in the holes of what an output sees there.
            inside = reach.lies_inside(o, inputs.shape[1 + axis]) and reach.is_intact(o, inputs.shape[1 + axis])
            assert not inside or o in reach.exceptions or all(bits >> (i - first) & 1 for i in places.tolist())


WRONG: Any = st.sampled_from(
    [None, 3, "x", np.zeros(3), np.zeros((1, 0, 2)), np.zeros((2, 2)), np.zeros((1, 5, 2), "U1"), jnp.zeros((1, 9, 2), jnp.int32)]
)


@fuzz(
    1,
    WRONG,
    st.sampled_from(
        [None, 3, jnp.tanh, lambda x: jnp.sum(x), lambda x: (x, x), lambda x: 1.0, lambda x: jnp.zeros((1, 3, 2)), lambda x: None]
    ),
    st.sampled_from([1, 0, 2.5]),
)
def test_arguments_that_are_no_function_or_image(x, fn, samples):
    calls = {
        "receptive_field": lambda: dilax.receptive_field(fn, x),
        "effective_receptive_field": lambda: dilax.effective_receptive_field(fn, x, key=KEY, samples=samples),
        "tiled": lambda: dilax.tiled(fn, 2)(x),
    }
    for name, call in calls.items():
        try:
            call()
        except UserError as error:
            refusal(error, (name, "receptive_field"))


@fuzz(0.3, functions(), st.integers(1, 3))
def test_effective_receptive_field_is_zero_where_nothing_is_read(case, samples):
    fn, shape = case
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    if not runs(fn, x):
        return
    try:
        found = np.asarray(dilax.effective_receptive_field(fn, x, key=KEY, samples=samples))
    except UserError as error:
        return refusal(error, "effective_receptive_field")
    assert found.shape == shape[1:-1] and found.min() >= 0 and abs(found.max() - 1) < 1e-6
    out = jax.eval_shape(fn, x).shape
    for axis, field in enumerate(receptive_fields(fn, x)[0]):
        (places,) = np.nonzero(found.max(1 - axis) if found.ndim == 2 else found)
        at = out[1 + axis] // 2 * field.stride
        assert field.size is None or (at - field.left <= places[0] and places[-1] <= at + field.right)


TILES = (
    st.integers(1, 12)
    | st.none()
    | st.lists(st.integers(1, 9) | st.none(), min_size=1, max_size=2)
    | st.sampled_from([0, -1, 2.5, (), "8", 10**9])
)


@fuzz(0.6, functions(), TILES, st.sampled_from([1, 1, 2, 2, 5, 0]), st.sampled_from([None, None, "mean", "mean", "sum"]), st.booleans())
def test_tiles_equal_the_whole(case, tile, batch_size, reduce, check):
    fn, shape = case
    image = np.asarray(array(7, *shape))
    if not runs(fn, image):
        return
    tile = tuple(tile) if isinstance(tile, list) else tile
    try:
        found = dilax.tiled(fn, tile, batch_size=batch_size, reduce=reduce, check=check)(image)
    except UserError as error:
        return refusal(error, ("tiled", "receptive_field"))
    whole = np.asarray(jax.jit(fn)(image), np.float64)
    expected = whole.mean(tuple(range(1, whole.ndim - 1))) if reduce else whole
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(whole).max())


def trained(model: Any, x: Any) -> Any:
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    rng = np.random.default_rng(4)
    values = {"var": (1.0, 0.3), "mean": (0.3, 1.0), "bias": (0.2, 1.0), "scale": (0.8, 0.5)}

    def leaf(path: Any, one: Any) -> Any:
        mean, std = values.get(path[-1].key, (0.0, 0.5))
        drawn = rng.normal(mean, std, one.shape)
        return jnp.asarray(np.abs(drawn) + 0.05 if path[-1].key == "var" else drawn, one.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@fuzz(
    0.5,
    st.sampled_from([1, 2]),
    st.fixed_dictionaries(
        {
            "norm": st.sampled_from(["batch", "batch", "frozen", "none", "group", "layer"]),
            "separable": st.booleans(),
            "activation": st.sampled_from(["relu", "none", "gelu"]),
            "dilation": st.integers(1, 3),
            "stride": st.integers(1, 2),
            "padding": st.sampled_from(["SAME", "CAUSAL", "VALID"]),
        }
    ),
    st.sampled_from(["", "", "", "no stats", "no params", "other shape", "other x", "no x", "no norm"]),
)
def test_folding(rank, fields, spoilt):
    model, x = blocks.ConvNormAct(3, (2,) * rank, **fields), array(2, 2, *(9,) * rank, 4)
    variables = trained(model, x)
    expected: Any = model.apply(variables, x, train=False)
    given: Any = dict(variables)
    if spoilt.startswith("no ") and spoilt[3:] in ("stats", "params"):
        given.pop({"stats": "batch_stats", "params": "params"}[spoilt[3:]], None)
    elif spoilt == "other shape":
        given = jax.tree.map(lambda leaf: leaf[..., :2], given)
    sample = {"other x": x[..., :3], "no x": None}.get(spoilt, x)
    target: Any = dilax.DilatedConv(3, (2,) * rank) if spoilt == "no norm" else model
    try:
        folded, left = dilax.fold_batch_norm(target, given, sample)
    except UserError as error:
        return refusal(error, "fold_batch_norm", bool(spoilt and spoilt != "no x") or fields["norm"] not in ("batch", "frozen"))
    assert fields["norm"] in ("batch", "frozen") and spoilt in ("", "no x") and list(left) == ["params"]
    y: Any = folded.apply(left, x, train=False)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max()))


@fuzz(1, st.sampled_from([3, 0, -1, 2.5, "3", (3, 2), (3,), None, True]), st.sampled_from([1, 2, (1, 4), 0, -2, 1.5, None]))
def test_effective_kernel_size(kernel_size, dilation):
    try:
        found = dilax.effective_kernel_size(kernel_size, dilation)
    except UserError as error:
        return refusal(error, "effective_kernel_size")
    sizes, gaps = (np.atleast_1d(value) for value in (kernel_size, dilation))
    assert np.atleast_1d(found).tolist() == ((sizes - 1) * gaps + 1).tolist()


def test_functions_that_do_not_return_one_array_of_x_are_refused():
    x = jnp.zeros((1, 5, 2))
    several = "receptive_field: fn returns 2 arrays, not one; give a function that returns the one of interest."
    constant = "receptive_field: what fn returns does not depend on x; give a function that computes it from x."
    effective = functools.partial(dilax.effective_receptive_field, key=KEY)
    wrong = "effective_receptive_field: fn returns {}; give a function that returns one floating-point array that is not empty."
    picture = lambda fn, x: dilax.plots.receptive_field_overlay(fn, x[0])  # noqa: E731
    cases: Any = (
        (dilax.receptive_field, lambda x: (x, x), x, several),
        (dilax.receptive_field, lambda x: jnp.zeros((1, 3, 2)), x, constant),
        (dilax.receptive_field, lambda x: None, x, several.replace("2 arrays", "0 arrays")),
        (picture, lambda x: jnp.zeros((1, 3, 3, 2)), jnp.zeros((1, 3, 3, 1)), constant),
        (effective, lambda x: None, x, wrong.format("no array")),
        (effective, lambda x: (x, x), x, wrong.format("float32 (1, 5, 2) and float32 (1, 5, 2)")),
        (effective, lambda x: x > 0, x, wrong.format("bool (1, 5, 2)")),
        (
            lambda fn, x: dilax.tiled(fn, 2)(x),
            lambda x: None,
            x,
            "tiled: fn returns no array; give a function that returns one, or a pytree of arrays.",
        ),
        (
            lambda fn, x: dilax.tiled(fn, 2)(x),
            jnp.tanh,
            jax.ShapeDtypeStruct((1, 5, 2), jnp.float32),
            "tiled: the image is a ShapeDtypeStruct, which holds no values; give an array, or an object that can be sliced like one.",
        ),
        (lambda fn, x: dilax.tiled(fn, 2)(x), jnp.tanh, "x", "tiled: image='x' is not an array; give one of numbers."),
    )
    for call, fn, x, said in cases:
        with pytest.raises(UserError) as caught:
            call(fn, x)
        assert str(caught.value) == said


def test_numpys_double_precision_is_that_of_jax_without_a_warning():
    x: Any = np.zeros((1, 5, 2))
    (field,) = dilax.receptive_field(jnp.tanh, x)
    assert field.size == 1
    assert dilax.effective_receptive_field(jnp.tanh, x, key=KEY).tolist() == [0, 0, 1, 0, 0]
