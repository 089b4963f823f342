"""Shared parts of the backbones: the conversion of strides to dilations for a given output stride, checks of arguments, the head.

A stage that would make the map smaller than the output stride allows keeps the size: its stride becomes 1, and the dilation of all
convolutions after the strided one is multiplied by the stride instead. The strided convolution itself, which reads the map before the
stage, keeps the dilation of the previous stage. The map at output stride 32 is therefore a subsampling of those at 16 and 8.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dilax.errors import UserError, shown
from dilax.geometry import is_integer

OUTPUT_STRIDES = (8, 16, 32)


class Stage(NamedTuple):
    """The geometry of one stage.

    Attributes:
        stride: Stride of the first block.
        before: Dilation of the first block's convolutions up to and including the strided one: that of the previous stage.
        dilation: Dilation of all other convolutions.
    """

    stride: int
    before: int
    dilation: int


def stages(strides: tuple[int, ...], start: int, output_stride: int) -> list[Stage]:
    """Return the geometry of each stage: strides up to the output stride, and dilations from there on.

    Args:
        strides: Stride of each stage at the natural output stride of the network.
        start: Output stride before the first stage.
        output_stride: Output stride of the last stage.

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
    """Return the stride of a block, and the dilations of its strided convolution and of those after it.

    Args:
        stage: The stage, one of `stages`.
        index: Index of the block in its stage.
        grid: Factors of the dilations of successive blocks, repeated cyclically.
    """
    factor = grid[index % len(grid)]
    if index == 0:
        return stage.stride, (stage.before * factor, stage.dilation * factor)
    return 1, (stage.dilation * factor, stage.dilation * factor)


def check_image(caller: str, x: jax.Array) -> None:
    """Check that x is a batch of images."""
    if x.ndim == 5:
        raise UserError(
            f"{caller}: x of shape {x.shape} is a batch of volumes, and this model takes images (batch, height, width, channels); use one "
            "that takes volumes, such as meshnet, highres3dnet or unet_dilated."
        )
    if x.ndim != 4:
        raise UserError(f"{caller}: x of shape {x.shape} must be (batch, height, width, channels); add the missing axes.")


def check_lengths(caller: str, stages: int, *, stage_features: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    """Check that there is one entry per stage."""
    if not len(stage_features) == len(blocks) == stages:
        raise UserError(f"{caller}: stage_features={stage_features} and blocks={blocks} must have {stages} entries each, one per stage.")


def check_multi_grid(caller: str, grid: tuple[int, ...]) -> None:
    """Check that a grid has factors."""
    if not grid:
        raise UserError(f"{caller}: multi_grid=() must be a tuple of ints of at least 1, such as (1, 2, 4).")


def output_stride_or(natural: int, output_stride: int | None, caller: str) -> int:
    """Return the output stride to use: the given one, or the natural output stride of the network if it is None."""
    if output_stride is None:
        return natural
    if not is_integer(output_stride) or output_stride not in OUTPUT_STRIDES:
        raise UserError(f"{caller}: output_stride={shown(output_stride)} is not supported; use one of {OUTPUT_STRIDES}.")
    return int(output_stride)


def make_backbone(caller: str, backbone: Callable[..., nn.Module], **fields: Any) -> Any:
    """Return a backbone named `backbone`, made by a class of backbones or a `functools.partial` of one."""
    if not callable(backbone) or isinstance(backbone, nn.Module):
        raise UserError(
            f"{caller}: backbone={type(backbone).__name__}(...) is not a class; give a class such as "
            "dilax.models.ResNet, or functools.partial(dilax.models.ResNet, blocks=(2, 2, 2, 2), bottleneck=False)."
        )
    return backbone(name="backbone", **fields)


def global_average(x: jax.Array) -> jax.Array:
    """Average (batch, height, width, channels) over space in float32, to (batch, channels)."""
    return x.astype(jnp.float32).mean((1, 2))


def classify(head: nn.Dense, x: jax.Array) -> jax.Array:
    """Map the last stage (batch, height, width, channels) to logits (batch, num_classes) in float32."""
    return head(global_average(x))
