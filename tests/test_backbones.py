"""Backbones: counts of parameters, the same values at every output stride (law 6), receptive fields, frozen statistics, errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, check_model, random_input

from dilax import models

COUNTS = {  # with 1000 classes, as published with the weights
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
}
RESNET = dict(widths=(4, 4, 6, 8), blocks=(1, 2, 2, 3))
# Every kind of block, a few channels wide.
SLIM: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet18", RESNET),
    "resnet50": ("resnet50", dict(RESNET, widths=(2, 2, 3, 4))),
    "resnet50 with a grid": ("resnet50", dict(RESNET, widths=(2, 2, 3, 4), multi_grid=(1, 2, 4))),
}
STRIDES = {"resnet": (4, 8, 16, 32)}


def slim(name: str, **fields: Any) -> Any:
    return models.create(SLIM[name][0], **{"num_classes": 5, **SLIM[name][1], **fields})


def random_variables(model: Any, x: Any, seed: int = 0) -> Any:
    """Parameters and running statistics that no initialisation gives, without compiling one."""
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros(x.shape), train=False))
    draw = np.random.default_rng(seed)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return draw.uniform(0.6, 1.5, shape.shape).astype(np.float32)
        scale = np.prod(shape.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.3
        return draw.normal(0, scale, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.partial(jax.jit, static_argnums=(0, 3))
def features(model: Any, variables: Any, x: jax.Array, output_stride: int | None = None) -> tuple[jax.Array, ...]:
    return model.apply(variables, x, train=False, output_stride=output_stride, method="features")


def stage_strides(model: Any, output_stride: int | None) -> list[int]:
    """Input size over map size, by a size that all strides divide."""
    x = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros(x.shape), train=False))
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, output_stride=output_stride, method="features"), variables, x)
    assert [64 // y.shape[1] for y in maps] == [96 // y.shape[2] for y in maps]
    return [64 // y.shape[1] for y in maps]


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = models.create(name)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == COUNTS[name]


@pytest.mark.parametrize("name", SLIM)
def test_a_backbone_sub_sampled_is_itself_at_a_coarser_output_stride(name):
    """Law 6, on sizes that no stride divides."""
    model, x = slim(name), random_input((2, 75, 66, 3))
    variables = random_variables(model, x)
    coarse = features(model, variables, x, 32)
    for output_stride in (16, 8):
        for fine, whole, at, at_32 in zip(
            features(model, variables, x, output_stride), coarse, stage_strides(model, output_stride), stage_strides(model, 32)
        ):
            step = at_32 // at
            np.testing.assert_allclose(fine[:, ::step, ::step], whole, atol=1e-5 * float(jnp.abs(whole).max()))
            assert float(jnp.std(whole)) > 0.05


@pytest.mark.parametrize("name", SLIM)
def test_contract(name):
    check_model(slim(name), random_input((3, 67, 75, 3)), 5)
