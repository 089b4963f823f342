"""What a profile says of each layer: shapes, bytes and multiply-adds by an oracle, and that a layer alone does what it does in its model."""

import csv
import io
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import multiply_adds_by_shapes
from tiny_runs import refused

import dilax
from dilax import models, plots, profiling
from dilax.summary import summary

KEY = jax.random.key(3)
BATCH = 3


class Own(nn.Module):
    """Layers of several kinds, one of which is called twice and one of which calls others."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = dilax.DilatedConvTranspose(4, (3, 3), stride=2)(x)
        x = dilax.MultiDilationConv(4, (3, 3), dilations=(1, 2), share_kernel=True, merge="sum", name="multi")(x)
        x = Scaled(name="scaled")(x)
        again = nn.Dense(4, name="again")
        return again(again(x)).mean((1, 2))


class Scaled(nn.Module):
    """A convolution with a scale of its own."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return dilax.DepthwiseConv((3, 3), dilation=2)(x) * self.param("scale", nn.initializers.ones_init(), ())


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, *shape)), jnp.float32)


def codes(steps: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 5, (BATCH, steps)), jnp.int32)


CASES: dict[str, tuple[nn.Module, jax.Array]] = {
    "images": (models.create("dilated_cnn", features=(4, 6), dilations=(1, 2), pools=(2, 1), num_classes=3), images(9, 10, 2)),
    "codes": (models.create("tcn", features=(4, 4), kernel_size=2, vocabulary=5, embedding_features=3, out_features=5), codes(12)),
    "masks": (
        models.create("dilated_fcn", features=(4, 6), strides=(1, 1), dilations=(1, 2), norm="group", num_classes=3),
        images(8, 6, 3),
    ),
    "own": (Own(), images(5, 4, 3)),
}


def variables_of(model: nn.Module, x: jax.Array) -> Any:
    return jax.jit(lambda key: model.init(key, x, train=False))(KEY)


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Any:
    """A model, its variables, an input, its profile, and the programs that were timed."""
    model, x = CASES[request.param]
    variables, kept = variables_of(model, x), []
    prepare = profiling._prepare
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(profiling, "_prepare", lambda *given: kept.append(prepare(*given)) or kept[0])
        found = dilax.profile(model, variables, x, repeats=1)
    return model, variables, x, found, kept[0][0]


def layers_are_counted(model: nn.Module, variables: Any, x: jax.Array, found: dilax.Profile, programs: Any) -> None:
    expected = multiply_adds_by_shapes(model, x)
    paths = ["/".join(layer.path) for layer in found.layers]
    assert {path: layer.multiply_adds for path, layer in zip(paths, found.layers) if layer.multiply_adds} == expected
    assert (
        found.multiply_adds
        == sum(count * paths.count(path) for path, count in expected.items())
        == dilax.multiply_adds(model, variables, x)
    )
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    # The first call of a layer counts its parameters.
    assert sum(layer.parameters for layer in found.layers) == found.parameters - isinstance(
        model, Own
    )  # the scale belongs to a layer that calls another
    assert found.batch == BATCH


def a_layer_alone_does_what_it_does_in_the_model(model: nn.Module, variables: Any, x: jax.Array, found: Any, programs: Any) -> None:
    """Its output is the one that Flax itself captures, and its shape and bytes are those of the table."""
    output: Any
    output, state = model.apply(variables, x, train=False, capture_intermediates=True)
    times = dict.fromkeys((layer.path for layer in found.layers), 0)
    for layer, program in zip(found.layers, programs[2:], strict=True):
        node: Any = state["intermediates"]
        for name in layer.path:
            node = node[name]
        expected = node["__call__"][times[layer.path]]
        times[layer.path] += 1
        np.testing.assert_allclose(program.compiled(*program.arguments), expected, rtol=1e-4, atol=1e-5)
        assert (BATCH, *layer.output_shape) == expected.shape
        assert layer.output_bytes == 4 * math.prod(expected.shape)
    np.testing.assert_allclose(programs[0].compiled(*programs[0].arguments), output, rtol=1e-4, atol=1e-5)


def times_are_measured(model: nn.Module, variables: Any, x: jax.Array, found: dilax.Profile, programs: Any) -> None:
    assert min(found.milliseconds, found.call_milliseconds, *(layer.milliseconds for layer in found.layers)) > 0
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    ratios = [layer.share / layer.milliseconds for layer in found.layers]
    assert max(ratios) == pytest.approx(min(ratios))
    assert found.temporary_bytes >= 0


def fields_grow(model: nn.Module, variables: Any, x: jax.Array, found: dilax.Profile, programs: Any) -> None:
    """Without branches, no layer sees less than the one before; codes see as far as floats would."""
    sizes = [math.prod(field.size or math.inf for field in layer.receptive_field) for layer in found.layers if "shortcut" not in layer.path]
    assert all(a <= b for a, b in itertools.pairwise(sizes)) and sizes[-1] > 1
    if x.ndim == 2:
        assert sizes[-1] == 1 + 2 * (1 + 2) and "  7\n" in summary(model, x)


def it_is_read_back(model: nn.Module, variables: Any, x: jax.Array, found: dilax.Profile, programs: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    for row, layer in zip(rows, found.layers, strict=True):
        assert tuple(row["layer"].split("/")) == layer.path and row["kind"] == layer.kind
        assert [int(row[name]) for name in ("parameters", "multiply_adds", "output_bytes")] == [
            layer.parameters,
            layer.multiply_adds,
            layer.output_bytes,
        ]
        assert float(row["milliseconds"]) == pytest.approx(layer.milliseconds, abs=1e-6)
    lines = found.table().splitlines()
    assert len(lines) == len(rows) + 4 and lines[-2].startswith("the model as one program")


LAWS = (layers_are_counted, a_layer_alone_does_what_it_does_in_the_model, times_are_measured, fields_grow, it_is_read_back)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws(law, case):
    law(*case)


def test_a_pruned_model_is_profiled_with_the_channels_that_are_left():
    model, x = CASES["images"]
    smaller, variables = dilax.prune(model, variables_of(model, x), x, ratio=0.5)
    found = dilax.profile(smaller, variables, x, repeats=1)
    assert [layer.output_shape[-1] for layer in found.layers if layer.kind == "DilatedConv"] == [2, 3]
    assert found.multiply_adds == dilax.multiply_adds(smaller, variables, x) == sum(layer.multiply_adds for layer in found.layers)


class Scan(nn.Module):
    """A layer inside a loop."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers = nn.scan(lambda layer, x, _: (layer(x), None), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return layers(nn.Dense(x.shape[-1], name="inner"), x, None)[0]


class Remat(nn.Module):
    """A layer that is computed again in the backward pass."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.remat(nn.Dense)(3)(x)


MODEL, X = CASES["images"]
GIVEN = jax.eval_shape(lambda: MODEL.init(KEY, X, train=False))
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "not a module": (lambda: dilax.profile(cast(Any, dilax), {}, X), "profile: model=<module 'dilax' from "),
    "shapes": (lambda: dilax.profile(MODEL, GIVEN, X), 'profile: variables must be those of the model, {"params": ...} with arrays; give'),
    "no turns": (lambda: dilax.profile(MODEL, {"params": {}}, X, repeats=0), "profile: repeats=0 is below 1; use 1 or more."),
    "no examples": (
        lambda: dilax.profile(MODEL, {"params": {}}, X[:0]),
        "profile: x of shape (0, 9, 10, 2) holds no example; give a batch",
    ),
    "another input": (
        lambda: dilax.profile(MODEL, variables_of(MODEL, X), X[..., :1]),
        "profile: DilatedCNN does not run with these variables and this x",
    ),
    "no layers": (lambda: dilax.profile(nn.Sequential([nn.relu]), {"params": {}}, X), "profile: Sequential has no layers with parameters;"),
    "a loop": (
        lambda: dilax.profile(Scan(), Scan().init(KEY, jnp.ones((2, 3))), jnp.ones((2, 3))),
        "profile: the layer 'inner' holds the parameters of several layers in one array, as flax.linen.scan and vmap make them, and cannot be looked",
    ),
    "computed again": (
        lambda: dilax.profile(Remat(), Remat().init(KEY, jnp.ones((2, 3))), jnp.ones((2, 3))),
        "profile: Remat has layers inside a transformation of flax.linen, such as remat, which cannot be run alone; profile the module",
    ),
    "no names": (lambda: plots.layer_bars([], {"ms": []}), "layer_bars: 0 names and 1 columns cannot be drawn; give some names and 1 to 4"),
    "columns": (lambda: plots.layer_bars(["a"], {"ms": [1, 2]}), "layer_bars: 'ms' has shape (2,) for 1 names; give one number per layer."),
    "negative": (lambda: plots.layer_bars(["a", "b"], {"ms": [1, -2]}), "layer_bars: 'ms' holds -2.0, which is not a cost; give finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(name):
    call, text = BAD[name]
    assert refused(call).startswith(text)


@pytest.mark.parametrize("count", [1, 3, 200])
def test_bars_of_layers(count):
    values = np.random.default_rng(1).random(count)
    figure = plots.layer_bars([f"block{i}/conv" for i in range(count)], {"ms": values, "multiply-adds": np.zeros(count)})
    left, right = figure.axes
    bars: Any = left.patches
    drawn = [bar.get_width() for bar in bars]
    kept = np.sort(np.argsort(-values)[:120])
    np.testing.assert_allclose(drawn, values[kept])
    assert [label.get_text() for label in left.get_yticklabels()] == [f"block{i}/conv" for i in kept]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first layer is on top
    assert ("left out" in left.get_title()) == (count > 120)
    assert not right.texts
    figure.canvas.draw()
