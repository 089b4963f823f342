"""Dilated convolution with learnable spacings: a few weights at positions that are learned, interpolated to a dense kernel.

References:
    Khalfaoui-Hassani, Pellegrini & Masquelier 2023, "Dilated convolution with learnable spacings", ICLR, arXiv:2112.03740.
    Khalfaoui-Hassani, Pellegrini & Masquelier 2023, "Dilated Convolution with Learnable Spacings: beyond bilinear interpolation",
    arXiv:2306.00817.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax

from dilax import arguments
from dilax.arguments import per_axis
from dilax.convolution import Initializer, TimeConv, add_bias, check_groups, check_positive
from dilax.errors import UserError, in_our_words, shown
from dilax.functional import dilated_conv
from dilax.geometry import IntOrTuple
from dilax.precision import widened
from dilax.streaming import Ring

# How a weight between samples is spread over them, and by how much the learned widths are widened: the least extent that still covers one.
INTERPOLATIONS = {"bilinear": 0.0, "triangle": 1.0, "gaussian": 0.27}


@in_our_words
def interpolated_kernel(
    weights: jax.Array,
    positions: jax.Array,
    widths: jax.Array | None = None,
    *,
    kernel_size: IntOrTuple,
    interpolation: str = "gaussian",
) -> jax.Array:
    """Return the dense kernel of weights that lie at real-valued positions.

    Position 0 is the tap kernel_size // 2, the centre. Along each axis, a weight at distance r from a tap is multiplied there by

    - "bilinear": max(0, 1 - |r|), so that it is shared by the taps around it (linear in 1-D, trilinear in 3-D);
    - "triangle": max(0, 1 + |width| - |r|);
    - "gaussian": exp(-r ** 2 / (2 * s ** 2)) with s = 0.27 + |width|.

    The products over the axes are divided by their sum over all taps, except for "bilinear", where it is 1. Weights at the same tap add up.
    A position outside the kernel counts as the nearest one inside; its gradient is that at the nearest one.

    Args:
        weights: (kernel_count, c_in // groups, c_out), floating-point.
        positions: (rank, kernel_count, c_in // groups, c_out), in samples from the centre, along the axes in order.
        widths: Of the shape of the positions; None for "bilinear".
        kernel_size: Taps of the dense kernel, an int or one per axis.
        interpolation: A key of `INTERPOLATIONS`.

    Returns:
        (*kernel_size, c_in // groups, c_out), in the dtype of the weights.

    Raises:
        UserError: if the shapes do not fit each other.

    Example:
        >>> weights, positions = jnp.ones((1, 1, 1)), jnp.full((1, 1, 1, 1), 0.25)
        >>> interpolated_kernel(weights, positions, kernel_size=5, interpolation="bilinear").ravel().tolist()
        [0.0, 0.0, 0.75, 0.25, 0.0]

    Reference:
        Khalfaoui-Hassani et al. 2023, arXiv:2112.03740, section 3; arXiv:2306.00817, section 2.
    """
    caller = "interpolated_kernel"
    arguments.word(caller, "interpolation", interpolation, INTERPOLATIONS)
    weights, positions = (arguments.array(caller, *pair, "floating-point") for pair in (("weights", weights), ("positions", positions)))
    if weights.ndim != 3 or positions.shape[1:] != weights.shape or not 1 <= positions.shape[0] <= 3:
        raise UserError(
            f"{caller}: weights of shape {weights.shape} and positions of shape {positions.shape} do not fit each other; give weights "
            "(kernel_count, c_in // groups, c_out) and positions (rank, kernel_count, c_in // groups, c_out)."
        )
    size = per_axis(kernel_size, positions.shape[0], "kernel_size", caller)
    if (widths is None) != (interpolation == "bilinear"):
        needed = "none; leave them out" if interpolation == "bilinear" else "some; give them in the shape of positions"
        raise UserError(f"{caller}: widths={shown(widths)}, but interpolation={interpolation!r} has {needed}.")
    if widths is not None:
        widths = arguments.array(caller, "widths", widths, "floating-point")
        if widths.shape != positions.shape:
            raise UserError(f"{caller}: widths of shape {widths.shape} do not fit positions of shape {positions.shape}; give equal shapes.")
    spread = _interpolation(widened(positions), None if widths is None else widened(widths), size, interpolation)
    return _summed(widened(weights), spread, normalised=interpolation != "bilinear").astype(weights.dtype)


def grid_positions(kernel_size: IntOrTuple, *, dilation: IntOrTuple = 1) -> Initializer:
    """Return an initializer of positions on the regular grid of a dilated convolution.

    A `DCLSConv` with these positions and bilinear interpolation initially is a `DilatedConv`.

    Args:
        kernel_size: Taps of the dilated convolution, one per axis; their product is the number of weights.
        dilation: Samples between neighbouring taps, an int or one per axis.

    Returns:
        A function from (key, shape, dtype) to positions of the shape (rank, kernel_count, c_in // groups, c_out).

    Example:
        >>> grid_positions((3,), dilation=2)(jax.random.key(0), (1, 3, 1, 1), jnp.float32).ravel().tolist()
        [-2.0, 0.0, 2.0]
    """
    rank = len(kernel_size) if isinstance(kernel_size, tuple | list) else 1
    taps = per_axis(kernel_size, max(rank, 1), "kernel_size", "grid_positions")
    gaps = per_axis(dilation, rank, "dilation", "grid_positions")
    grid = np.stack(np.meshgrid(*(np.arange(k) * d - k // 2 * d for k, d in zip(taps, gaps)), indexing="ij")).reshape(rank, -1, 1, 1)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        if shape[:2] != grid.shape[:2]:
            raise UserError(
                f"grid_positions: kernel_size={taps} has {rank} axes and {grid.shape[1]} taps, but positions of shape {shape} are needed; "
                f"use kernel_count={math.prod(taps)} for that grid."
            )
        return jnp.broadcast_to(jnp.asarray(grid, dtype), shape)

    return init


class DCLSConv(TimeConv):
    """Dilated convolution with learnable spacings: `dilated_conv` with an `interpolated_kernel` of learned weights and positions.

    `kernel_count` weights for each pair of an input and an output channel move within a kernel of `kernel_size` taps. The parameters are
    `kernel` (kernel_count, c_in // groups, features), `positions` (rank, kernel_count, c_in // groups, features), `widths` of that shape
    unless the interpolation is bilinear, and `bias`. The authors train positions at 5 times the learning rate of the weights, and without
    weight decay.

    Attributes:
        features: Output channels.
        kernel_size: Taps per axis of the dense kernel that the weights move in; the authors' dilated kernel size.
        kernel_count: Weights per pair of channels.
        interpolation: "bilinear", "triangle" or "gaussian"; see `interpolated_kernel`. A bilinear kernel is zero far from all positions, so
            that only what lies next to a weight moves it.
        groups: See `dilated_conv`; c_in for a depthwise convolution.
        positions_init: Initializer of the positions, in samples from the centre; see also `grid_positions`.
        widths_init: Initializer of the widths. The authors start Gaussian ones at 0.23, the default, and those of triangles at 0.
        stride: See `dilated_conv`.
        padding: See `dilated_conv`.

    For all other attributes see `DilatedConv`.

    Example:
        >>> x = jnp.ones((8, 32, 32, 3))
        >>> layer = DCLSConv(features=16, kernel_size=(7, 7), kernel_count=9)
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (8, 32, 32, 16)

    Reference:
        Khalfaoui-Hassani et al. 2023, arXiv:2112.03740, sections 3 and 4; arXiv:2306.00817, section 2.
    """

    features: int
    kernel_size: IntOrTuple
    kernel_count: int
    interpolation: str = "gaussian"
    _: dataclasses.KW_ONLY
    groups: int = 1
    positions_init: Initializer = nn.initializers.normal(0.5)
    widths_init: Initializer = nn.initializers.constant(0.23)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (*batch, *space, c_in) to (*batch, *space_out, features)."""
        taps = self._taps(x)
        self._check_fields()
        check_groups(self, x.shape[-1], self.features, self.groups)
        shape = (self.kernel_count, x.shape[-1] // self.groups, self.features)
        weights = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        positions = self.param("positions", self.positions_init, (len(taps), *shape), self.param_dtype)
        widths = None
        if self.interpolation != "bilinear":
            widths = self.param("widths", self.widths_init, (len(taps), *shape), self.param_dtype)
        kernel = interpolated_kernel(weights, positions, widths, kernel_size=taps, interpolation=self.interpolation)
        x, kernel, bias = promote_dtype(x, kernel, self._bias(self.features), dtype=self.dtype)
        return add_bias(self._convolve(dilated_conv, x, kernel, padding_mode=self.padding_mode, groups=self.groups), bias)

    def _check_fields(self) -> None:
        check_positive(self, "kernel_count")
        arguments.word("DCLSConv", "interpolation", self.interpolation, INTERPOLATIONS)
        arguments.function("DCLSConv", "positions_init", self.positions_init)
        arguments.function("DCLSConv", "widths_init", self.widths_init)

    def _time_dilations(self, rank: int) -> list[int]:
        return [1]

    def _input_channels(self) -> int:
        return self.get_variable("params", "kernel").shape[1] * self.groups

    def _convolve_chunk(self, x: jax.Array, ring: Ring) -> tuple[jax.Array, Ring]:
        weights, positions, widths = (self.get_variable("params", name, None) for name in ("kernel", "positions", "widths"))
        size = per_axis(self.kernel_size, positions.shape[0], "kernel_size", "DCLSConv")
        kernel = interpolated_kernel(weights, positions, widths, kernel_size=size, interpolation=self.interpolation)
        y, ring = self._step_kernel(x, ring, kernel, 1, self.groups)
        return self._add_stored_bias(y), ring


def _interpolation(positions: jax.Array, widths: jax.Array | None, size: tuple[int, ...], interpolation: str) -> list[jax.Array]:
    """Return the factors of the weights at the taps of each axis, (taps, kernel_count, c_in // groups, c_out)."""
    places = [_inside(position, taps) for position, taps in zip(positions, size)]
    if widths is None:
        return [_bilinear(place, taps) for place, taps in zip(places, size)]
    factors = _triangle if interpolation == "triangle" else _gaussian
    return [factors(*axis) for axis in zip(places, jnp.abs(widths) + INTERPOLATIONS[interpolation], size)]


def _inside(position: jax.Array, taps: int) -> jax.Array:
    """Return positions counted from the first tap, within the kernel, with a gradient as if they had not been moved there."""
    moved = jnp.clip(position, -(taps // 2), (taps - 1) // 2)
    return position + lax.stop_gradient(moved - position) + taps // 2


def _distances(position: jax.Array, taps: int) -> jax.Array:
    """Return the distances of the taps from positions, (taps, *positions)."""
    return jnp.arange(taps, dtype=position.dtype).reshape(-1, *(1,) * position.ndim) - position[None]


def _bilinear(position: jax.Array, taps: int) -> jax.Array:
    # Not by distances, whose derivative is 0 at a tap: a weight that starts there would never move.
    before = lax.stop_gradient(jnp.floor(position))
    distances, after = _distances(before, taps), (position - before)[None]
    return jnp.where(distances == 0, 1 - after, jnp.where(distances == 1, after, jnp.zeros_like(after)))


def _triangle(position: jax.Array, width: jax.Array, taps: int) -> jax.Array:
    distances = _distances(position, taps)
    # The derivative of a distance is 0 at a tap, where that of `jnp.abs` is 1.
    return nn.relu(width[None] - distances * lax.stop_gradient(jnp.sign(distances)))


def _gaussian(position: jax.Array, width: jax.Array, taps: int) -> jax.Array:
    return jnp.exp(-0.5 * jnp.square(_distances(position, taps) / width[None]))


def _summed(weights: jax.Array, spread: list[jax.Array], *, normalised: bool) -> jax.Array:
    """Return the sum over all weights of their products with the factors along each axis, (*kernel_size, c_in // groups, c_out)."""
    if normalised:
        total = functools.reduce(jnp.multiply, (factors.sum(0) for factors in spread))
        weights = weights / (total + 1e-7)
    axes = "xyz"[: len(spread)]
    inputs = ",".join(["kio", *(f"{axis}kio" for axis in axes)])
    return jnp.einsum(f"{inputs}->{axes}io", weights, *spread, precision=lax.Precision.HIGHEST)
