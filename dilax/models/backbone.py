"""What the backbones share: strides turned into dilations for the output stride asked for, checks of their arguments, the head.

A stage that would make the map smaller than the output stride allows keeps its size: its stride becomes 1, and the dilation of all that
follows the strided convolution grows by as much. The strided convolution itself, which works at the size before, keeps the dilation of
the stage before. So every value of the map at stride 32 is found again, at its own place, in the maps at 16 and 8.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dilax.errors import UserError
from dilax.geometry import is_integer

OUTPUT_STRIDES = (8, 16, 32)


class Stage(NamedTuple):
    """How one stage runs.

    Attributes:
        stride: Of its first block.
        before: Dilation of the convolutions of the first block up to the one with the stride: that of the stage before.
        dilation: Of all others.
    """

    stride: int
    before: int
    dilation: int


def stages(strides: tuple[int, ...], start: int, output_stride: int) -> list[Stage]:
    """Share out strides among stages as far as the output stride allows, and dilations from there on.

    Args:
        strides: Of each stage in the network at its natural output stride.
        start: Output stride of what comes before the first stage.
        output_stride: Of the last stage.

    Example:
        >>> stages((1, 2, 2), start=8, output_stride=16)
        [Stage(stride=1, before=1, dilation=1), Stage(stride=2, before=1, dilation=1), Stage(stride=1, before=1, dilation=2)]
    """
    plan, reached, dilation = [], start, 1
    for stride in strides:
        before = dilation
        if reached * stride > output_stride:
            dilation, stride = dilation * stride, 1
        reached *= stride
        plan.append(Stage(stride, before, dilation))
    return plan


def block_geometry(stage: Stage, index: int, *, grid: tuple[int, ...] = (1,)) -> tuple[int, tuple[int, int]]:
    """Return the stride of block `index` of a stage, and the dilations of its convolution with the stride and of those after it.

    Args:
        stage: One of `stages`.
        index: Of the block in its stage.
        grid: Factors of the dilations of the blocks, in turn.
    """
    factor = grid[index % len(grid)]
    if index == 0:
        return stage.stride, (stage.before * factor, stage.dilation * factor)
    return 1, (stage.dilation * factor, stage.dilation * factor)


def check_image(caller: str, x: jax.Array) -> None:
    """Refuse what is no batch of images."""
    if x.ndim != 4:
        raise UserError(f"{caller}: x of shape {x.shape} must be (batch, height, width, channels); add the missing axes.")


def check_lengths(caller: str, stages: int, *, stage_features: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    """Refuse stage_features or blocks that are not one per stage."""
    if not len(stage_features) == len(blocks) == stages:
        raise UserError(f"{caller}: stage_features={stage_features} and blocks={blocks} must have {stages} entries each, one per stage.")


def check_multi_grid(caller: str, grid: tuple[int, ...]) -> None:
    """Refuse a grid that is empty or has factors below 1."""
    if is_integer(grid) or len(grid) == 0 or not all(is_integer(factor) and factor >= 1 for factor in grid):
        raise UserError(f"{caller}: multi_grid={grid!r} must be a tuple of factors of at least 1, such as (1, 2, 4).")


def output_stride_or(natural: int, output_stride: int | None, caller: str) -> int:
    """Return the output stride to use: the one asked for, or the natural one of the network if that is None."""
    if output_stride is None:
        return natural
    if not is_integer(output_stride) or output_stride not in OUTPUT_STRIDES:
        raise UserError(f"{caller}: output_stride={output_stride!r} is not supported; use one of {OUTPUT_STRIDES}.")
    return output_stride


def global_average(x: jax.Array) -> jax.Array:
    """Map (batch, height, width, channels) to (batch, channels), in float32."""
    return x.astype(jnp.float32).mean((1, 2))


def classify(head: nn.Dense, x: jax.Array) -> jax.Array:
    """Map the last stage (batch, height, width, channels) to logits (batch, num_classes) in float32."""
    return head(global_average(x))
