"""Dilated convolution with learnable spacings: equal to the authors' package, and to a dilated convolution on its grid."""

import json
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, check_receptive_field, random_input
from reading import check_call

import dilax
from dilax import spacings

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="module")
def quick_compiler():
    """Programs as small as these take longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def golden() -> dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]]:
    with np.load(GOLDEN / "spacings.npz") as file:
        cases = json.loads(str(file["arguments"]))
        arrays = {name: {key.rpartition(".")[2]: file[key] for key in file.files if key.startswith(f"{name}.")} for name in cases}
    return {name: (arrays[name], {**given, "kernel_size": tuple(given["kernel_size"])}) for name, given in cases.items()}


STORED = golden()


@pytest.mark.parametrize("name", STORED)
def test_equals_the_package_of_the_authors_in_values_and_gradients(name):
    stored, options = STORED[name]
    given = {key: jnp.asarray(stored[key]) for key in ("weights", "positions", "widths") if key in stored}

    @jax.jit
    def run(given: Any) -> Any:
        kernel, pull_back = jax.vjp(lambda given: spacings.interpolated_kernel(**given, **options), given)
        return kernel, pull_back(stored["cotangent"])[0]

    kernel, gradients = run(given)
    np.testing.assert_allclose(kernel, stored["kernel"], rtol=1e-5, atol=1e-6)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, stored[f"{key}_gradient"], rtol=1e-4, atol=1e-5, err_msg=key)


def test_the_stored_results_are_those_of_the_package():
    pytest.importorskip("torch")
    pytest.importorskip("DCLS")
    script = runpy.run_path(str(GOLDEN / "make_spacings.py"))
    assert script["CASES"].keys() == STORED.keys()
    for name, (stored, _) in STORED.items():
        given = script["inputs"](name)
        for key, value in {**given, **script["results"](name, given)}.items():
            np.testing.assert_allclose(stored[key], value, rtol=1e-6, atol=1e-7, err_msg=f"{name}: {key}")


def interpolated(weights: Any, positions: Any, size: tuple[int, ...]) -> np.ndarray:
    """Weight by weight, each shared by the taps around it."""
    kernel = np.zeros((*size, *weights.shape[1:]))
    for k, i, o in np.ndindex(*weights.shape):
        for tap in np.ndindex(*size):
            distance = np.abs(np.array(tap) - [n // 2 for n in size] - positions[:, k, i, o])
            kernel[(*tap, i, o)] += weights[k, i, o] * np.prod(np.maximum(0, 1 - distance))
    return kernel


@pytest.mark.parametrize("size", [(5,), (4, 3)])
def test_positions_beyond_the_kernel_count_as_its_border_and_still_learn(size):
    weights, rank = random_input((3, 1, 2)), len(size)
    positions = 3 * random_input((rank, 3, 1, 2), 1)
    limits = np.array([[-(n // 2), (n - 1) // 2] for n in size]).reshape(rank, 2, 1, 1, 1)
    assert (np.abs(positions) > 3).any()
    inside = np.clip(positions, limits[:, 0], limits[:, 1])
    options: Any = dict(kernel_size=size, interpolation="bilinear")
    kernel = spacings.interpolated_kernel(weights, positions, **options)
    np.testing.assert_allclose(kernel, interpolated(np.asarray(weights), inside, size), rtol=1e-5, atol=1e-6)
    cotangent = random_input(kernel.shape, 2)

    def gradient(positions: Any) -> Any:
        return jax.grad(lambda p: jnp.sum(cotangent * spacings.interpolated_kernel(weights, p, **options)))(positions)

    moved = gradient(positions)
    np.testing.assert_allclose(moved, gradient(jnp.asarray(inside)), rtol=1e-4, atol=1e-5)
    assert np.abs(moved).min() > 0


@pytest.mark.parametrize(
    ("size", "dilation", "options"),
    [((3,), (4,), {"padding": "CAUSAL"}), ((3, 3), (2, 3), {"groups": 2, "stride": 2}), ((3, 1, 3), (1, 1, 2), {"padding_mode": "edge"})],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "triangle"])
def test_on_a_grid_it_is_a_dilated_convolution(size, dilation, options, interpolation):
    x = random_input((*(2, 9, 8, 7)[: len(size) + 1], 4))
    span: Any = dilax.effective_kernel_size(size, dilation)
    init = spacings.grid_positions(size, dilation=dilation)
    fields: Any = dict(positions_init=init, widths_init=jax.nn.initializers.zeros, **options)
    layer = dilax.DCLSConv(6, span, int(np.prod(size)), interpolation, **fields)
    variables: Any = layer.init(KEY, x)
    kernel = variables["params"]["kernel"].reshape(*size, -1, 6)
    expected = dilax.dilated_conv(x, kernel, dilation=dilation, **options)
    call: Any = layer.apply
    np.testing.assert_allclose(call(variables, x), expected, rtol=1e-5, atol=1e-5)
    if interpolation == "bilinear":
        grads = jax.grad(lambda v: jnp.sum(call(v, x) * random_input(expected.shape, 1)))(variables)
        moving = np.abs(grads["params"]["positions"]).max((1, 2, 3)) > 0  # every axis, also where a kernel has one tap only
        assert moving.all()


LAYERS = {
    "1d": (dilax.DCLSConv(6, (7,), 3, padding="CAUSAL"), (2, 9, 4)),
    "2d": (dilax.DCLSConv(6, (5, 4), 3, "bilinear", groups=2), (2, 7, 6, 4)),
    "depthwise": (dilax.DCLSConv(4, (5, 5), 3, "triangle", groups=4), (2, 7, 6, 4)),
    "3d": (dilax.DCLSConv(6, (3, 3, 5), 2), (2, 4, 3, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_laws_of_modules(name):
    layer, shape = LAYERS[name]
    x, rank = random_input(shape), len(shape) - 2

    @jax.jit
    def run(variables: Any) -> Any:
        grads = jax.grad(lambda v: jnp.sum(layer.apply(v, x) * random_input((*shape[:-1], layer.features), 1)))(variables)
        half = layer.clone(dtype=jnp.bfloat16).apply(variables, x)
        return grads, layer.apply(variables, x[None]), jax.vmap(lambda x: layer.apply(variables, x))(x), half

    variables: Any = layer.init(KEY, x)
    params, of_all = variables["params"], (layer.kernel_count, 4 // layer.groups, layer.features)
    shapes = {"kernel": of_all, "positions": (rank, *of_all), "widths": (rank, *of_all), "bias": (layer.features,)}
    if layer.interpolation == "bilinear":
        del shapes["widths"]
    assert {key: leaf.shape for key, leaf in params.items()} == shapes
    y: Any = layer.apply(variables, x)
    kernel = spacings.interpolated_kernel(
        params["kernel"], params["positions"], params.get("widths"), kernel_size=layer.kernel_size, interpolation=layer.interpolation
    )
    np.testing.assert_allclose(y, dilax.dilated_conv(x, kernel, padding=layer.padding, groups=layer.groups), rtol=1e-5, atol=1e-5)
    grads, leading, mapped, half = run(variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    np.testing.assert_allclose(leading[0], y, atol=1e-5)
    np.testing.assert_allclose(mapped, y, atol=1e-5)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), y, atol=0.05 * float(jnp.abs(y).max()))


def test_positions_are_computed_in_float32():
    """In bfloat16, positions of a large kernel would be whole numbers."""
    x = random_input((1, 300, 1)).astype(jnp.bfloat16)
    layer = dilax.DCLSConv(1, (257,), 1, "bilinear", use_bias=False, dtype=jnp.bfloat16)
    params = {"kernel": jnp.ones((1, 1, 1)), "positions": jnp.full((1, 1, 1, 1), 100.25)}
    y: Any = layer.apply({"params": params}, x)
    expected = 0.75 * x[:, 100:].astype(jnp.float32) + 0.25 * jnp.pad(x[:, 101:].astype(jnp.float32), ((0, 0), (0, 1), (0, 0)))
    np.testing.assert_allclose(y[:, :200].astype(jnp.float32), expected, atol=0.02)


def test_the_receptive_field_is_that_of_the_dense_kernel():
    layer = dilax.DCLSConv(2, (7, 5), 3, use_bias=False)
    shape = (1, 31, 26, 2)
    params = {
        "kernel": jnp.abs(random_input((3, 2, 2))) + 0.1,
        "positions": random_input((2, 3, 2, 2), 1),
        "widths": jnp.full((2, 3, 2, 2), 3.0),
    }

    def run(x: jax.Array) -> Any:
        return layer.apply({"params": params}, layer.apply({"params": params}, x))

    check_receptive_field(run, shape)
    fields = dilax.receptive_field(run, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert [(field.size, field.coverage) for field in fields] == [(13, 1.0), (9, 1.0)]


W, P = jnp.ones((2, 3, 4)), jnp.zeros((1, 2, 3, 4))
ERRORS = {
    "unknown interpolation": (
        lambda: dilax.DCLSConv(2, (3,), 2, "gauss").init(KEY, jnp.ones((1, 8, 4))),
        "DCLSConv: interpolation='gauss' is unknown; use one of ('bilinear', 'triangle', 'gaussian'). Did you mean \"gaussian\"?",
    ),
    "shapes": (
        lambda: spacings.interpolated_kernel(W, P[0], P, kernel_size=3),
        "interpolated_kernel: weights of shape (2, 3, 4) and positions of shape (2, 3, 4) do not fit each other; give weights "
        "(kernel_count, c_in // groups, c_out) and positions (rank, kernel_count, c_in // groups, c_out).",
    ),
    "widths of another shape": (
        lambda: spacings.interpolated_kernel(W, P, P[:, :1], kernel_size=3),
        "interpolated_kernel: widths of shape (1, 1, 3, 4) do not fit positions of shape (1, 2, 3, 4); give equal shapes.",
    ),
    "no widths": (
        lambda: spacings.interpolated_kernel(W, P, kernel_size=3),
        "interpolated_kernel: widths=None, but interpolation='gaussian' has some; give them in the shape of positions.",
    ),
    "widths of a bilinear one": (
        lambda: spacings.interpolated_kernel(W, P, P, kernel_size=3, interpolation="bilinear"),
        "interpolated_kernel: widths=<array of shape (1, 2, 3, 4), dtype float32>, but interpolation='bilinear' has none; leave them out.",
    ),
    "size of another rank": (
        lambda: spacings.interpolated_kernel(W, P, P, kernel_size=(3, 3)),
        "interpolated_kernel: kernel_size=(3, 3) has length 2, but there is 1 spatial axis; give an int or a tuple of one int.",
    ),
    "another grid": (
        lambda: dilax.DCLSConv(2, (7, 7), 4, positions_init=spacings.grid_positions((3, 3))).init(KEY, jnp.ones((1, 8, 8, 4))),
        "grid_positions: kernel_size=(3, 3) has 2 axes and 9 taps, but positions of shape (2, 4, 4, 2) are needed; use kernel_count=9 for "
        "that grid.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    check_call(*ERRORS[name])
