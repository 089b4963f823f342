"""Grouped convolutions whose groups are wide, as one dense convolution per group.

XLA's CPU backend runs a dense convolution at 70 to 150 GFLOP/s and a grouped one in a naive loop.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dilax.lowerings import patches, xla
from dilax.plan import ConvPlan

# Every group is a convolution of its own to compile.
MOST_GROUPS = 32


def supports(plan: ConvPlan) -> bool:
    """Few groups."""
    return 1 < plan.groups <= MOST_GROUPS


def output(x: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """XLA's dense convolution of every group."""
    return _joined(xla.output, _parts(x, plan), _parts(kernel, plan), plan, -1)


def input_gradient(y: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """XLA's dense input gradient of every group."""
    return _joined(xla.input_gradient, _parts(y, plan), _parts(kernel, plan), plan, -1)


def kernel_gradient(x: jax.Array, y: jax.Array, plan: ConvPlan) -> jax.Array:
    """The kernel gradient of every group, by patches where they fit."""
    operation = patches.kernel_gradient if patches.supports(_part(plan)) else xla.kernel_gradient
    return _joined(operation, _parts(x, plan), _parts(y, plan), plan, -1)


def _part(plan: ConvPlan) -> ConvPlan:
    return dataclasses.replace(plan, c_in=plan.c_in // plan.groups, c_out=plan.c_out // plan.groups, groups=1)


def _parts(x: jax.Array, plan: ConvPlan) -> list[jax.Array]:
    return jnp.split(x, plan.groups, axis=-1)


def _joined(operation: Callable, a: list[jax.Array], b: list[jax.Array], plan: ConvPlan, axis: int) -> jax.Array:
    part = _part(plan)
    return jnp.concatenate([operation(first, second, part) for first, second in zip(a, b)], axis)
