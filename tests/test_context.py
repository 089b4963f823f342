"""Resizing, and the context blocks: laws, independent oracles, results of torch, errors."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, check_receptive_field, check_training, positive, random_input
from segmentation_oracle import resized

import dilax
from dilax import context

GOLDEN = Path(__file__).parent / "golden" / "resize.npz"


@pytest.fixture(autouse=True, scope="module")
def quick_compiler():
    """Programs as small as these take longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def golden() -> list[Any]:
    with np.load(GOLDEN) as stored:
        cases = json.loads(str(stored["arguments"]))
        return [pytest.param(stored[f"{name}.x"], stored[f"{name}.y"], given, id=name) for name, given in cases.items()]


def given_to_resize(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"size": tuple(given["size"])}


@pytest.mark.parametrize(("x", "y", "given"), golden())
def test_resize_equals_torch(x, y, given):
    np.testing.assert_allclose(dilax.resize(x, **given_to_resize(given)), y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(resized(x, **given_to_resize(given)), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("shape", "size"), [((2, 5, 3), (40,)), ((1, 6, 7, 2), (12, 3)), ((1, 2, 3, 4, 2), (5, 6, 1)), ((1, 9, 4, 3), (27, 4))]
)
def test_resize_equals_the_definition(shape, size, method):
    x = random_input(shape)
    np.testing.assert_allclose(dilax.resize(x, size, method=method), resized(np.asarray(x), size, method), rtol=0, atol=2e-6)


def test_an_int_is_the_size_of_every_axis():
    x = random_input((1, 3, 4, 2))
    np.testing.assert_array_equal(dilax.resize(x, 6), dilax.resize(x, (6, 6)))


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("times", [2, 3, 8])
def test_enlarging_a_whole_number_of_times_commutes_with_shifts(times, method):
    x = random_input((1, 9, 2))
    whole, part = dilax.resize(x, 9 * times, method=method), dilax.resize(x[:, 3:8], 5 * times, method=method)
    np.testing.assert_allclose(part[:, times:-times], whole[:, 4 * times : 7 * times], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(9, 14), (3, 2), (12, 8)])
def test_gradients_of_resize_are_those_of_a_linear_function(size):
    x, g = random_input((2, 6, 4, 3)), random_input((2, *size, 3), 1)
    y, pull_back = jax.vjp(lambda x: dilax.resize(x, size), x)
    np.testing.assert_allclose(jnp.vdot(y, g), jnp.vdot(x, pull_back(g)[0]), rtol=1e-4)


def test_resize_keeps_dtypes():
    x = random_input((1, 4, 5, 2))
    half = dilax.resize(x.astype(jnp.bfloat16), (7, 11))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), dilax.resize(x, (7, 11)), atol=0.02)
    mask = jnp.asarray([[0, 255], [3, 1]], jnp.uint8)[None, :, :, None]
    for kind in (jnp.uint8, jnp.int32, jnp.bool_):
        large = dilax.resize(mask.astype(kind), (3, 4), method="nearest")
        assert large.dtype == kind
        np.testing.assert_array_equal(large[0, :, :, 0], mask.astype(kind)[0, np.array([0, 1, 1])][:, np.array([0, 0, 1, 1]), 0])
    same = dilax.resize(x, (4, 5))
    np.testing.assert_array_equal(same, x)


def filled(module: Any, x: jax.Array) -> Any:
    """Random variables of a module, not initial zeros and ones, without compiling it."""
    rng = np.random.default_rng(1)

    def fill(path: Any, leaf: Any) -> jax.Array:
        value, name = rng.normal(size=leaf.shape), path[-1].key
        if name in ("scale", "var"):
            value = 1 + 0.3 * np.abs(value)
        else:
            value *= 0.1 if name in ("bias", "mean") else math.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: module.init(KEY, x, train=False)))


def run(block: Any, variables: Any, x: jax.Array, **given: Any) -> Any:
    return block.apply(variables, x, **given)


SMALL = {
    "aspp": dilax.ASPP(5, (2, 4, 6), dropout=0.0),
    "separable aspp": dilax.ASPP(5, (2, 4), separable=True, dropout=0.0),
    "aspp without pooling": dilax.ASPP(5, (2, 4), image_pooling=False, dropout=0.0),
    "dense aspp": dilax.DenseASPP(3, 5, (1, 2, 4), dropout=0.0),
    "hybrid": dilax.HybridDilatedBlock(5, activation="elu"),
    "hybrid, as many channels": dilax.HybridDilatedBlock(4, (1, 2, 3), norm="group", activation="elu"),
}


@pytest.mark.parametrize("name", SMALL)
def test_blocks(name):
    block, x = SMALL[name], random_input((3, 9, 10, 4))
    variables = filled(block, x)
    # For ASPP this is tested with the models.
    if not isinstance(block, dilax.ASPP):
        check_training(block, variables, x)

    @jax.jit
    def apply(x: jax.Array) -> Any:
        half = run(block.clone(dtype=jnp.bfloat16), variables, x.astype(jnp.bfloat16), train=False)
        return run(block, variables, x, train=False), run(block, variables, x[1:], train=False), half

    y, others, half = apply(x)
    assert y.shape == (3, 9, 10, {"dense aspp": 13, "hybrid, as many channels": 4}.get(name, 5))
    # Examples are independent of each other.
    np.testing.assert_allclose(others, y[1:], atol=1e-5)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), y, atol=0.05 * float(jnp.abs(y).max()) + 0.02)


@pytest.mark.parametrize("name", ["aspp", "dense aspp", "hybrid"])
@pytest.mark.parametrize("space", [(13,), (4, 5, 6)])
def test_blocks_of_other_ranks(name, space):
    y, _ = jax.eval_shape(lambda x: SMALL[name].init_with_output(KEY, x, train=False), random_input((2, *space, 4)))
    assert y.shape[1:-1] == space


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("fine", "coarse"), [(8, 16), (8, 32)])
def test_aspp_sees_the_same_at_every_output_stride(fine, coarse, separable):
    block, step = dilax.ASPP(5, (2, 6), separable, dropout=0.0), coarse // fine
    x, mean = random_input((2, 13, 16, 3)), random_input((2, 3), 1)
    variables = filled(block, x)
    y = run(block, variables, x, train=False, output_stride=fine, image_mean=mean)
    small = x[:, ::step, ::step]
    np.testing.assert_allclose(
        y[:, ::step, ::step], run(block, variables, small, train=False, output_stride=coarse, image_mean=mean), atol=1e-5
    )


def test_dilations_of_aspp():
    assert context.scaled_dilations((6, 12, 18), 16) == (6, 12, 18)
    assert context.scaled_dilations((1, 1, 1), 16) == context.scaled_dilations((1, 1, 1), 32) == (1, 1, 1)
    x = jnp.zeros((1, 101, 99, 2))
    for stride, size in ((8, 73), (16, 37), (32, 19)):
        block = dilax.ASPP(3, image_pooling=False, norm="none")
        variables = filled(block, x)
        fields = dilax.receptive_field(lambda x: run(block, variables, x, train=False, output_stride=stride), x)  # noqa: B023
        assert [field.size for field in fields] == [size, size]


def test_a_given_image_mean_equals_the_computed_one():
    block, x = SMALL["aspp"], random_input((2, 9, 11, 4))
    variables = filled(block, x)
    y = run(block, variables, x, train=False)
    np.testing.assert_allclose(run(block, variables, x, train=False, image_mean=x.mean((1, 2))), y, atol=1e-6)
    assert np.abs(y - run(block, variables, x, train=False, image_mean=x.mean((1, 2)) + 1)).max() > 1e-3
    # A part of the image with the mean of the whole gives that part of the result, away from the cut.
    part = run(block, variables, x[:, :, :9], train=False, image_mean=x.mean((1, 2)))
    np.testing.assert_allclose(part[:, :, :3], y[:, :, :3], atol=1e-5)


@pytest.mark.parametrize(("c_in", "c_out"), [(2, 6), (6, 4), (4, 4)])
def test_identity_init_is_that_of_the_paper(c_in, c_out):
    """Equation 5: C / c_out where floor(a C / c_in) = floor(b C / c_out), at the centre; noise elsewhere."""
    expected = np.zeros((3, 3, c_in, c_out))
    for a in range(c_in):
        for b in range(c_out):
            expected[1, 1, a, b] = 2 / c_out if a * 2 // c_in == b * 2 // c_out else 0
    np.testing.assert_allclose(context.identity_init(2)(KEY, expected.shape), expected, rtol=1e-6)
    noisy = np.asarray(context.identity_init(2, noise=0.05)(KEY, expected.shape))
    np.testing.assert_allclose(noisy[expected > 0], expected[expected > 0], rtol=1e-6)
    np.testing.assert_allclose(noisy[expected == 0].std(), 0.05 * 2 / c_out, rtol=0.3)


def uniform(shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).uniform(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("block", "space"),
    [
        (dilax.ContextModule(), (40,)),
        (dilax.ContextModule(), (13, 14)),
        (dilax.ContextModule(dilations=(1, 3), multipliers=(1, 2)), (4, 5, 6)),
        (dilax.ContextModule.large(noise=0.0), (40,)),
    ],
)
def test_context_module_is_initially_the_identity(block, space):
    x = uniform((2, *space, 3))
    y = jax.jit(lambda x: run(block, block.init(KEY, x), x))(x)
    np.testing.assert_allclose(y, x, rtol=0, atol=1e-6)


def test_context_module_of_the_paper():
    x = jnp.zeros((1, 80, 81, 2))
    for block, channels in ((dilax.ContextModule(), (2,) * 7), (dilax.ContextModule.large(), (4, 4, 8, 16, 32, 64, 64))):
        variables = jax.eval_shape(lambda: block.init(KEY, x))  # noqa: B023
        kernels = [leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(variables) if path[-1].key == "kernel"]
        assert sorted(kernels) == sorted([(1, 1, channels[-1], 2), *((3, 3, *pair) for pair in zip((2, *channels), channels))])
    variables = dilax.ContextModule().init(KEY, x)
    for field in dilax.receptive_field(lambda x: run(dilax.ContextModule(), variables, x), x):
        assert (field.size, field.stride, field.offset) == (67, 1, -33)


def test_noise_breaks_the_symmetry_of_a_large_context_module():
    block, x = dilax.ContextModule(dilations=(1,), multipliers=(4,), noise=dilax.ContextModule.large().noise), uniform((2, 12, 13, 2))
    variables, plain = (jax.jit(module.init)(KEY, x)["params"] for module in (block, block.clone(noise=0.0)))
    assert 1e-6 < np.abs(run(block, {"params": variables}, x) - x).max() < 0.2
    assert np.ptp(plain["last"]["kernel"][0, 0, :4, 1]) == 0
    assert np.ptp(variables["last"]["kernel"][0, 0, :4, 1]) > 1e-6


def gradient(block: Any, variables: Any, x: jax.Array) -> Any:
    return jax.jit(jax.grad(lambda variables: jnp.sum(run(block, variables, x) * random_input(x.shape, 1))))(variables)


def test_context_module_trains_from_the_identity():
    block, x = dilax.ContextModule(dilations=(1, 2), multipliers=(1, 1)), random_input((2, 7, 8, 3))
    variables = block.init(KEY, x)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient(block, variables, x)))
    # Negative input is cut off at 0, as a ReLU does.
    np.testing.assert_allclose(run(block, variables, x), np.maximum(x, 0), atol=1e-6)


@pytest.mark.parametrize("dilations", [(1, 2, 5), (3, 1, 2)])
def test_hybrid_block_leaves_no_holes(dilations):
    """Every sample within the receptive field changes the output; each is tried."""
    block, n = dilax.HybridDilatedBlock(2, dilations, norm="none"), 2 * sum(dilations) + 5
    x = jnp.full((1, n, 2), 0.5)
    variables = positive(filled(block, x))
    base: Any = run(block, variables, x, train=False)
    tried: Any = jax.vmap(lambda i: run(block, variables, x.at[0, i].add(100.0), train=False)[0, n // 2])(jnp.arange(n))  # pyright: ignore
    seen = np.flatnonzero(np.abs(tried - base[0, n // 2][None]).max(1) > 1e-3)
    assert seen.tolist() == list(range(2, n - 2))


def test_receptive_field_of_a_hybrid_block():
    block = dilax.HybridDilatedBlock(2, (1, 2, 5), norm="none")
    variables = positive(filled(block, jnp.zeros((1, 31, 33, 2))))
    check_receptive_field(lambda x: run(block, variables, x, train=False), (1, 31, 33, 2))


X = jnp.ones((2, 5, 6, 3))


def layer(module: Any, x: jax.Array = X, **given: Any) -> Any:
    return lambda: jax.eval_shape(lambda: module.init(KEY, x, train=False, **given))


CASES = {
    "unknown method": (
        lambda: dilax.resize(X, 4, method="biliner"),
        "resize: method='biliner' is unknown; use one of ('bilinear', 'nearest'). Did you mean \"bilinear\"?",
    ),
    "no space": (lambda: dilax.resize(X[0, 0], ()), "resize: x of shape (6, 3) must be (batch, *space, channels); add the missing axes."),
    "an integer image": (
        lambda: dilax.resize(X.astype(jnp.uint8), 4),
        "resize: x has dtype uint8, which cannot be averaged; convert it to float32, or use method='nearest'.",
    ),
    "corners of nearest": (
        lambda: dilax.resize(X, 4, method="nearest", align_corners=True),
        "resize: align_corners=True has no meaning for method='nearest'; leave it out.",
    ),
    "size of another rank": (
        lambda: dilax.resize(X, (4,)),
        "resize: size=(4,) has length 1, but there are 2 spatial axes; give an int or a tuple of 2 ints.",
    ),
    "size of 0": (lambda: dilax.resize(X, 0), "resize: size=0 is below 1; use 1 or more."),
    "empty axis": (
        lambda: dilax.resize(X[:, :0], 4),
        "resize: x of shape (2, 0, 6, 3) has an empty axis; there is nothing to interpolate.",
    ),
    "one dilation": (layer(dilax.ASPP(dilations=6)), "ASPP: dilations=6 must be a tuple of ints of at least 1, such as (1, 2, 4)."),  # pyright: ignore
    "dilation of 0": (
        layer(dilax.DenseASPP(dilations=(0, 1))),
        "DenseASPP: dilations=(0, 1) must be a tuple of ints of at least 1, such as (1, 2, 4).",
    ),
    "dilations not whole": (
        layer(dilax.ASPP(dilations=(6, 9)), output_stride=32),
        "ASPP: dilations=(6, 9), given for output stride 16, are not integers at output_stride=32; use multiples of 2.",
    ),
    "output stride of 0": (
        layer(dilax.ASPP(), output_stride=0),
        "ASPP: output_stride=0 is not an integer of at least 1; use 8, 16 or 32.",
    ),
    "image mean": (
        layer(dilax.ASPP(), image_mean=jnp.ones((2, 4))),
        "ASPP: image_mean of shape (2, 4) does not fit a map of shape (2, 5, 6, 3); give (batch, channels).",
    ),
    "multipliers": (
        lambda: dilax.ContextModule(multipliers=(1, 2)).init(KEY, X),
        "ContextModule: multipliers=(1, 2) must be ints of at least 1, one for each of dilations=(1, 1, 2, 4, 8, 16, 1).",
    ),
    "holes": (
        layer(dilax.HybridDilatedBlock(4, (2, 2, 2))),
        "HybridDilatedBlock: dilations=(2, 2, 2) leave 6 holes among the 13 samples of the receptive field; use dilations without holes, such as (1, 2, 5).",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_errors(name):
    call, text = CASES[name]
    with pytest.raises(dilax.UserError) as caught:
        call()
    assert str(caught.value) == text
