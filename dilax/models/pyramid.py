"""Feature pyramids (Lin et al. 2017, arXiv:1612.03144) and heads that all of their levels share, as in torchvision's detectors."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.errors import UserError
from dilax.models import resnet
from dilax.models.detector import PRIOR_BIAS, map_size
from dilax.modules import DilatedConv
from dilax.precision import widened
from dilax.resizing import resize
from dilax.state_dicts import Rules, beneath

# For torchvision's detectors with a pyramid; older files have no ".0" after the index.
RULES: Rules = (
    *beneath(r"backbone\.body", "backbone", resnet.RULES),
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?", r"pyramid/inner\1"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?", r"pyramid/layer\1"),
    (r"backbone\.fpn\.extra_blocks\.p6", "pyramid/extra0"),
    (r"backbone\.fpn\.extra_blocks\.p7", "pyramid/extra1"),
    (r"head\.classification_head\.cls_logits", "class_head/logits"),
    (r"head\.regression_head\.bbox_reg", "box_head/boxes"),
)
STRIDES = (8, 16, 32, 64, 128)


class FeaturePyramid(nn.Module):
    """Maps of one number of channels at strides 8 to 128, of the maps of a backbone at strides 8 to 32.

    Each map of the backbone is projected, the coarser ones are enlarged and added, and a 3x3 convolution follows. Two further maps are made
    of the coarsest one by strided convolutions. The parameters are named `inner0` ..., `layer0` ..., `extra0` and `extra1`.

    Attributes:
        features: Channels of all maps.
        dtype: Dtype of the computation.
    """

    features: int = 256
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...]) -> list[jax.Array]:
        """Map maps (batch, rows, columns, channels), fine to coarse, to those of the pyramid."""
        shared: dict[str, Any] = dict(padding="TORCH", dtype=self.dtype)
        inner = [DilatedConv(self.features, (1, 1), name=f"inner{i}", **shared)(one) for i, one in enumerate(maps)]
        for i in reversed(range(len(inner) - 1)):
            inner[i] += resize(inner[i + 1], inner[i].shape[1:-1], method="nearest")
        levels = [DilatedConv(self.features, (3, 3), name=f"layer{i}", **shared)(one) for i, one in enumerate(inner)]
        levels.append(DilatedConv(self.features, (3, 3), stride=2, name="extra0", **shared)(levels[-1]))
        levels.append(DilatedConv(self.features, (3, 3), stride=2, name="extra1", **shared)(nn.relu(levels[-1])))
        return levels


class Tower(nn.Module):
    """3x3 convolutions and, from the last of them, one convolution for each kind of output, whose logits have the bias of a prior.

    Attributes:
        outputs: Names of the outputs and their channels.
        blocks: Number of convolutions before the outputs.
        group_norm: Whether each of them is followed by a normalisation of 32 groups, or as many as also divide the channels.
        dtype: Dtype of the computation; outputs are float32.
    """

    outputs: tuple[tuple[str, int], ...]
    blocks: int = 4
    group_norm: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map (batch, rows, columns, channels) to outputs (batch, rows, columns, channels of the output) by name."""
        features = x.shape[-1]
        shared: dict[str, Any] = dict(kernel_size=(3, 3), padding="TORCH", kernel_init=nn.initializers.normal(0.01))
        for i in range(self.blocks):
            x = DilatedConv(features, dtype=self.dtype, name=f"conv{i}", **shared)(x)
            if self.group_norm:
                norm = nn.GroupNorm(math.gcd(32, features), epsilon=1e-5, use_fast_variance=False, name=f"norm{i}")
                x = norm(widened(x)).astype(x.dtype)
            x = nn.relu(x)
        biases = {"logits": PRIOR_BIAS}
        zeros, x = nn.initializers.zeros_init(), x.astype(jnp.float32)
        return {name: DilatedConv(channels, bias_init=biases.get(name, zeros), name=name, **shared)(x) for name, channels in self.outputs}


def last_maps(caller: str, maps: tuple[jax.Array, ...], image_size: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Return the maps of a backbone at strides 8, 16 and 32, which must be its last ones."""
    last, (height, width) = maps[-3:], image_size
    sizes = [one.shape[1:3] for one in last]
    if sizes != [map_size((height, width), stride) for stride in STRIDES[:3]]:
        raise UserError(
            f"{caller}: the last maps of the backbone have sizes {sizes} for images of {height}x{width}; use a backbone whose last three "
            "maps have strides 8, 16 and 32, such as dilax.models.ResNet."
        )
    return last


def level_strides(image_size: tuple[int, int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the size of the map of each level, and the strides that torchvision takes it to have.

    They are the size of the image divided by that of the map, rounded down, which may be less than the stride of the network.
    """
    sizes = [map_size(image_size, stride) for stride in STRIDES]
    return [(size, (image_size[0] // size[0], image_size[1] // size[1])) for size in sizes]
