"""HighRes3DNet (Li et al. 2017, arXiv:1707.01992): residual blocks of growing dilation at full resolution."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import ACTIVATIONS, NORMS, Dropout, Norm, activation
from dilax.errors import UserError
from dilax.modules import DilatedConv
from dilax.state_dicts import Rules

KERNEL = 3  # taps of a layer along each axis


def rules(blocks: tuple[int, ...] = (3, 3, 3)) -> Rules:
    """Return the rules for `dilax.state_dicts.convert` of MONAI's `HighResNet`, which numbers the blocks of all groups in one row."""
    names = [f"group{group}_block{block}" for group, count in enumerate(blocks) for block in range(count)]
    found = [(r"blocks\.0\.conv", "conv_first"), (r"blocks\.0\.adn\.N", "norm_first/BatchNorm_0")]
    for number, name in enumerate(names, start=1):
        for i in range(2):
            found.append((rf"blocks\.{number}\.layers\.{2 * i}\.N", f"{name}_norm{i}/BatchNorm_0"))
            found.append((rf"blocks\.{number}\.layers\.{2 * i + 1}\.conv", f"{name}_conv{i}"))
    for number, layer, norm in ((1, "conv_hidden", "norm_hidden"), (2, "logits", "norm_logits")):
        prefix = rf"blocks\.{len(names) + number}"
        found += [(rf"{prefix}\.conv", layer), (rf"{prefix}\.adn\.N", f"{norm}/BatchNorm_0")]
    return tuple(found)


@checked(norm=NORMS, activation=ACTIVATIONS)
class HighRes3DNet(nn.Module):
    """A convolution, three groups of residual blocks whose dilation doubles from group to group, and two 1x1x1 convolutions.

    Li et al., section 2, figure 1: it segments volumes at full resolution, and takes images and sequences as well. A block normalises and
    activates before each of its two convolutions; where channels are added, its shortcut is padded with zeros on both sides. The defaults
    are the network of the paper, as MONAI's `HighResNet` builds it, too: 821,904 parameters for 1 channel and 160 classes.

    Attributes:
        num_classes: Number of outputs per voxel.
        features: Channels of the first convolution and of each group, and of the first 1x1x1 convolution.
        dilations: Dilation of each group.
        blocks: Residual blocks of each group.
        dropout: Dropout rate before the last convolution.
        norm: One of `dilax.blocks.NORMS`; see `dilax.blocks.Norm`.
        activation: A key of `dilax.blocks.ACTIVATIONS`.
        activate_logits: Whether the logits are activated, too, as MONAI does; the authors' own code only normalises them.
        dtype: Dtype of the computation; parameters and logits stay float32.
    """

    num_classes: int = 160
    features: tuple[int, ...] = (16, 16, 32, 64, 80)
    dilations: tuple[int, ...] = (1, 2, 4)
    blocks: tuple[int, ...] = (3, 3, 3)
    dropout: float = 0.0
    norm: str = "batch"
    activation: str = "relu"
    activate_logits: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, channels), 1 to 3 axes of space, to logits (batch, *space, num_classes) in float32.

        Raises:
            UserError: if x or a field does not fit.
        """
        self._check(x)
        first, *groups, last = self.features
        x = self._conv(first, KERNEL, 1, "conv_first")(x)
        x = self._norm_act("norm_first")(x, train=train)
        for group, (features, dilation, blocks) in enumerate(zip(groups, self.dilations, self.blocks)):
            for block in range(blocks):
                name, y = f"group{group}_block{block}", x
                for i in range(2):
                    y = self._norm_act(f"{name}_norm{i}")(y, train=train)
                    y = self._conv(features, KERNEL, dilation, f"{name}_conv{i}")(y)
                x = _widened(x, features) + y
        x = self._norm_act("norm_hidden")(self._conv(last, 1, 1, "conv_hidden")(x), train=train)
        x = Dropout(self.dropout)(x, train=train).astype(jnp.float32)
        x = DilatedConv(self.num_classes, (1,) * (x.ndim - 2), use_bias=self.norm == "none", name="logits")(x)
        x = Norm(self.norm, name="norm_logits")(x, train=train)
        return activation(self.activation)(x) if self.activate_logits else x

    def _conv(self, features: int, taps: int, dilation: int, name: str) -> Any:
        def run(x: jax.Array) -> jax.Array:
            options: dict[str, Any] = dict(dilation=dilation, use_bias=self.norm == "none", dtype=self.dtype, name=name)
            return DilatedConv(features, (taps,) * (x.ndim - 2), **options)(x)

        return run

    def _norm_act(self, name: str) -> Any:
        def run(x: jax.Array, *, train: bool) -> jax.Array:
            return activation(self.activation)(Norm(self.norm, self.dtype, name=name)(x, train=train))

        return run

    def _check(self, x: jax.Array) -> None:
        if not 3 <= x.ndim <= 5:
            raise UserError(f"HighRes3DNet: x of shape {x.shape} must be (batch, *space, channels) with 1, 2 or 3 spatial axes.")
        groups = len(self.dilations)
        if not groups or len(self.blocks) != groups or len(self.features) != groups + 2:
            raise UserError(
                f"HighRes3DNet: features={self.features}, dilations={self.dilations} and blocks={self.blocks} do not fit; give a dilation "
                "and a number of blocks for each group, and two features more."
            )
        if any(new < old for old, new in zip(self.features, self.features[1:-1])):
            raise UserError(
                f"HighRes3DNet: features={self.features} decrease, and a shortcut can only be padded with channels; keep or increase them "
                "up to the last but one."
            )


def _widened(x: jax.Array, features: int) -> jax.Array:
    """Pad the channels of x with zeros on both sides, the extra one behind."""
    missing = features - x.shape[-1]
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((missing // 2, missing - missing // 2),))
