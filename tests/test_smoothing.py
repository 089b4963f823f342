"""Smoothed dilated convolutions: equal to the plain ones at first, to the definitions of the paper after that, and without gridding."""

import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from contract import KEY, check_receptive_field, check_training, positive, random_input
from reading import check_call

import dilax
from dilax import blocks, models, smoothing

KINDS = smoothing.SMOOTHINGS


@pytest.fixture(autouse=True, scope="module")
def quick_compiler():
    """Programs as small as these take longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# shape of x, kernel size, dilation, options: sizes that are multiples of the dilations, and others that are not.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 12, 4), (3,), (3,), {}),
    "1d, not a multiple": ((2, 11, 4), (3,), (4,), {"padding": "TORCH"}),
    "1d, shorter than the dilation": ((1, 3, 4), (2,), (5,), {}),
    "2d, unequal": ((2, 7, 6, 4), (3, 2), (2, 3), {"groups": 2}),
    "2d, one axis dense": ((1, 6, 5, 4), (3, 3), (1, 2), {"padding": "VALID"}),
    "2d, padded by its samples": ((1, 6, 7, 4), (3, 3), (2, 2), {"padding_mode": "reflect"}),
    "3d": ((1, 4, 5, 3, 4), (2, 3, 2), (2, 1, 2), {"padding": ((1, 1), 2, "SAME")}),
}


def module(name: str, kind: str, **fields: Any) -> dilax.SmoothedConv:
    _, size, dilation, options = CASES[name]
    return dilax.SmoothedConv(6, size, dilation=dilation, smoothing=kind, **options, **fields)


def filled(module: Any, x: jax.Array) -> Any:
    """Random variables of a module, without zeros."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: module.init(KEY, x))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.5, leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_is_initially_the_dilated_convolution_bit_for_bit(name, kind):
    smooth, x = module(name, kind), random_input(CASES[name][0])
    _, size, dilation, options = CASES[name]
    plain = dilax.DilatedConv(6, size, dilation=dilation, **options)
    variables, expected = smooth.init(KEY, x), plain.init(KEY, x)
    weights = variables["params"].pop("smoothing")
    chex.assert_trees_all_equal(variables, expected)
    assert not np.asarray(weights).any()
    variables["params"]["smoothing"] = weights
    np.testing.assert_array_equal(smooth.apply(variables, x), plain.apply(expected, x))  # pyright: ignore[reportArgumentType]


def interacting(y: np.ndarray, weights: np.ndarray, dilation: tuple[int, ...]) -> np.ndarray:
    """The groups of y, sample by sample."""
    result = y.astype(np.float64)
    for at in np.ndindex(*y.shape[1:-1]):
        group = np.ravel_multi_index([p % d for p, d in zip(at, dilation)], dilation)
        for other in np.ndindex(*dilation):
            place = tuple(p - p % d + o for p, d, o in zip(at, dilation, other))
            if all(p < n for p, n in zip(place, y.shape[1:-1])):
                result[(slice(None), *at)] += weights[group, np.ravel_multi_index(other, dilation)] * y[(slice(None), *place)]
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name, kind):
    smooth, x = module(name, kind), random_input(CASES[name][0])
    _, _, dilation, options = CASES[name]
    variables = filled(smooth, x)
    options = {**options, "dilation": dilation}
    kernel, weights, bias = (np.asarray(variables["params"][key]) for key in ("kernel", "smoothing", "bias"))
    given = np.asarray(x)
    if kind == "group_interaction":
        expected = interacting(reference.conv(given, kernel, **options), weights, dilation)
    else:
        shared = np.repeat(weights, 4, -1)
        mode = options.get("padding_mode", "zeros")
        given = given + reference.conv(given, shared, groups=4, padding_mode=mode)
        expected = reference.conv(given, kernel, **options)
    y: Any = smooth.apply(variables, x)
    np.testing.assert_allclose(y, expected + bias, rtol=1e-4, atol=1e-4)


def test_group_interaction_is_that_of_the_paper():
    """Split into groups, convolve each densely with the same kernel, mix the groups by a matrix, put them together again."""
    x, kernel, matrix = random_input((1, 6, 9, 2)), random_input((3, 3, 2, 4), 1), np.asarray(random_input((6, 6), 2))
    groups = [np.asarray(x)[:, a::2, b::3] for a in range(2) for b in range(3)]
    convolved = [reference.conv(group, np.asarray(kernel)) for group in groups]
    expected = np.zeros((1, 6, 9, 4))
    for i in range(6):
        expected[:, i // 3 :: 2, i % 3 :: 3] = sum(matrix[i, j] * convolved[j] for j in range(6))
    weights = jnp.asarray(matrix - np.eye(6), jnp.float32)
    actual = dilax.smoothed_conv(x, kernel, weights, smoothing="group_interaction", dilation=(2, 3))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_separable_and_shared_convolution_is_that_of_the_paper():
    """A kernel with 1 at its centre, for each channel by itself."""
    x, kernel = random_input((1, 6, 9, 2)), np.asarray(random_input((3, 5), 1))
    expected = np.stack([reference.conv(np.asarray(x)[..., c : c + 1], kernel[..., None, None])[..., 0] for c in range(2)], -1)
    centre = np.zeros((3, 5))
    centre[1, 2] = 1
    weights = jnp.asarray(kernel - centre, jnp.float32)[..., None, None]
    np.testing.assert_allclose(smoothing.separable_shared_conv(x, weights, dilation=(2, 3)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_laws_of_modules(kind):
    """Gradients everywhere, from the start on; jit, vmap and any number of leading axes; half precision; no smoothing without dilation."""
    smooth, x = module("2d, unequal", kind), random_input(CASES["2d, unequal"][0])

    @jax.jit
    def run(variables: Any) -> Any:
        call: Any = smooth.apply
        loss, grads = jax.value_and_grad(lambda v: jnp.sum(call(v, x) * random_input((2, 7, 6, 6), 1)))(variables)
        mapped = jax.vmap(lambda x: smooth.apply(variables, x))(x)
        half = smooth.clone(dtype=jnp.bfloat16).apply(variables, x)
        return loss, grads, smooth.apply(variables, x[None]), mapped, half

    variables = filled(smooth, x)
    y: Any = smooth.apply(variables, x)
    _, grads, leading, mapped, half = run(variables)
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(grads))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(run(smooth.init(KEY, x))[1]))
    np.testing.assert_allclose(leading[0], y, atol=1e-5)
    np.testing.assert_allclose(mapped, y, atol=1e-5)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), y, atol=0.05 * float(jnp.abs(y).max()))
    dense = smooth.clone(dilation=1)
    assert sorted(dense.init(KEY, x)["params"]) == ["bias", "kernel"]
    plain = dilax.DilatedConv(6, (3, 2), groups=2)
    given = filled(plain, x)
    np.testing.assert_array_equal(dense.apply(given, x), plain.apply(given, x))


def test_causal_smoothing_sees_no_later_sample():
    layer, x = dilax.SmoothedConv(3, (3,), dilation=3, smoothing="separable_shared", padding="CAUSAL"), random_input((1, 20, 2))
    variables = filled(layer, x)
    before, after = (np.asarray(layer.apply(variables, one)) for one in (x, x.at[:, 11:].add(5.0)))
    np.testing.assert_array_equal(before[:, :11], after[:, :11])
    assert np.abs(before - after)[:, 11:].min() > 0


def stack(kind: str | None, dilations: tuple[Any, ...], shape: tuple[int, ...], **options: Any) -> Any:
    """A function that applies several convolutions with positive weights."""
    rank, layers = len(shape) - 2, []
    for dilation in dilations:
        fields: dict[str, Any] = dict(dilation=dilation, use_bias=False, **options)
        layer = dilax.SmoothedConv(2, (3,) * rank, smoothing=kind, **fields) if kind else dilax.DilatedConv(2, (3,) * rank, **fields)
        layers.append((layer, positive(filled(layer, jnp.zeros(shape)))))

    def run(x: jax.Array) -> Any:
        for layer, variables in layers:
            x = layer.apply(variables, x)
        return x

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "dilations"),
    [((1, 60, 2), (2, 2, 2)), ((1, 62, 2), (4, 4)), ((1, 61, 2), (1, 3, 2)), ((1, 31, 26, 2), ((2, 3), (2, 1)))],
)
def test_the_receptive_field_has_no_holes(shape, dilations, kind):
    run = stack(kind, dilations, shape)
    check_receptive_field(run, shape)
    fields = dilax.receptive_field(run, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert [field.coverage for field in fields] == [1.0] * len(fields)


def test_causal_smoothing_has_no_holes_either():
    run = stack("separable_shared", (3, 3), (1, 60, 2), padding="CAUSAL")
    check_receptive_field(run, (1, 60, 2))
    (field,) = dilax.receptive_field(run, jnp.zeros((1, 60, 2)))
    assert (field.coverage, field.right) == (1.0, 0)


def test_without_smoothing_there_are_holes():
    (field,) = dilax.receptive_field(stack(None, (2, 2, 2), (1, 60, 2)), jnp.zeros((1, 60, 2)))
    assert field.coverage == 7 / 13


class Block(nn.Module):
    """A smoothed convolution with normalisation."""

    smoothing: str
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = dilax.SmoothedConv(4, (3,), dilation=2, smoothing=self.smoothing, use_bias=self.norm == "none")(x)
        return dilax.blocks.Norm(self.norm)(x, train=train)


@pytest.mark.parametrize("kind", KINDS)
def test_normalisation_is_folded_into_it(kind):
    block, x = Block(kind), random_input((2, 9, 3))
    shapes = jax.eval_shape(lambda: block.init(KEY, x, train=False))
    rng = np.random.default_rng(3)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype), shapes)
    folded, params = dilax.fold_batch_norm(block, variables, x)
    np.testing.assert_allclose(folded.apply(params, x, train=False), block.apply(variables, x, train=False), rtol=1e-4, atol=1e-5)  # pyright: ignore


@pytest.mark.parametrize("degridding", blocks.DEGRIDDINGS)
def test_blocks_and_models_start_as_dilated_convolutions(degridding):
    """Also with the parameters of a plain block, which have the same names."""
    plain = blocks.ConvNormAct(6, dilation=(2, 3), norm="none")
    block, x = plain.clone(degridding=degridding), random_input((2, 7, 8, 4))
    expected, variables = (jax.jit(lambda key, m=m: m.init(key, x, train=False))(KEY)["params"]["DilatedConv_0"] for m in (plain, block))
    assert {*variables} - {*expected} == {"learnable_spacings": {"positions"}, "none": set()}.get(degridding, {"smoothing"})
    # Spacings have the taps along one axis.
    given = {**variables, "kernel": expected["kernel"].reshape(variables["kernel"].shape)}
    y: Any = block.apply({"params": {"DilatedConv_0": given}}, x, train=False)
    np.testing.assert_allclose(y, plain.apply({"params": {"DilatedConv_0": expected}}, x, train=False), atol=1e-6)  # pyright: ignore
    fields: dict[str, Any] = dict(dilations=(1, (2, 3), 2), norm="batch", degridding=degridding)
    image = random_input((1, 12, 11, 1))
    for model in (models.IRCNN(3, **fields), models.DilatedFCN(2, (3, 3, 3), (2, 1, 1), **fields)):
        variables = jax.jit(lambda m=model: m.init(KEY, image, train=False))()
        check_training(model, variables, image)
        learned = [
            path for path, _ in jax.tree_util.tree_leaves_with_path(variables) if {"smoothing", "positions"} & {str(k.key) for k in path}
        ]
        assert (len(learned) > 0) == (degridding != "none"), learned
    names = {"none": dilax.DilatedConv, "learnable_spacings": dilax.DCLSConv}
    made = names.get(degridding, dilax.SmoothedConv)
    assert [type(blocks.degridded_conv(3, (3, 3), degridding, dilation=d)) for d in (1, 2)] == [dilax.DilatedConv, made]


X, K = jnp.ones((1, 8, 4)), jnp.ones((3, 4, 2))


def layer(**fields: Any) -> Any:
    return lambda: dilax.SmoothedConv(2, (3,), dilation=2, **fields).init(KEY, X)


def streamed(**fields: Any) -> Any:
    module = dilax.SmoothedConv(2, (3,), dilation=2, **fields)
    return lambda: module.apply(module.init(KEY, X), 1, method="init_stream")


ERRORS = {
    "unknown smoothing": (
        layer(smoothing="shared"),
        "SmoothedConv: smoothing='shared' is unknown; use one of ('group_interaction', 'separable_shared').",
    ),
    "stride": (
        layer(stride=2),
        "SmoothedConv: stride=2 leaves out some of the groups that smoothing='group_interaction' mixes; use stride=1, or "
        "smoothing='separable_shared'.",
    ),
    "causal": (
        layer(padding="CAUSAL"),
        "SmoothedConv: smoothing='group_interaction' mixes samples with later ones, which padding='CAUSAL' does not allow; use "
        "smoothing='separable_shared'.",
    ),
    "groups in chunks": (
        streamed(padding=((4, 0),)),
        "SmoothedConv.init_stream: SmoothedConv mixes samples with later ones by smoothing='group_interaction', so that it cannot be fed in "
        "chunks; use smoothing='separable_shared'.",
    ),
    "centred in chunks": (
        streamed(smoothing="separable_shared"),
        "SmoothedConv.init_stream: SmoothedConv smooths with later samples, so that it cannot be fed in chunks; use padding 'CAUSAL'.",
    ),
    "matrix of another dilation": (
        lambda: smoothing.group_interaction(X, jnp.ones((3, 3)), dilation=2),
        "group_interaction: weights of shape (3, 3) do not fit the 2 groups of dilation=(2,); give weights of shape (2, 2).",
    ),
    "kernel of another dilation": (
        lambda: dilax.smoothed_conv(X, K, jnp.ones((3, 1, 1)), smoothing="separable_shared", dilation=3),
        "separable_shared_conv: weights of shape (3, 1, 1) do not fit dilation=(3,); give weights of shape (5, 1, 1).",
    ),
    "padding that crops": (
        lambda: smoothing.separable_shared_conv(X, jnp.ones((3, 1, 1)), dilation=2, padding="VALID"),
        "separable_shared_conv: padding='VALID' changes the size from (8,) to (6,); use 'SAME' or 'CAUSAL'.",
    ),
    "separable block": (
        lambda: blocks.ConvNormAct(3, (3,), separable=True, degridding="separable_shared").init(KEY, X, train=False),
        "ConvNormAct: separable=True has no degridding='separable_shared'; use 'none', or separable=False.",
    ),
    "unknown degridding": (
        lambda: blocks.degridded_conv(3, (3,), "tail", dilation=2),
        "degridded_conv: degridding='tail' is unknown; use one of ('none', 'group_interaction', 'separable_shared', 'learnable_spacings').",
    ),
    "no space": (
        lambda: smoothing.group_interaction(X[0], jnp.ones((2, 2)), dilation=2),
        "group_interaction: x of shape (8, 4) must be (batch, *space, channels) with 1, 2 or 3 spatial axes.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    check_call(*ERRORS[name])


def test_parameters_of_the_smoothing():
    x = jnp.zeros((1, 9, 9, 4))
    for kind, dilation, count in (("group_interaction", (2, 3), 36), ("separable_shared", (2, 3), 15), ("separable_shared", 4, 49)):
        shapes: Any = jax.eval_shape(lambda: dilax.SmoothedConv(6, (3, 3), dilation=dilation, smoothing=kind).init(KEY, x))  # noqa: B023
        assert math.prod(shapes["params"]["smoothing"].shape) == count
