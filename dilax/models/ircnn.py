"""The denoiser of IRCNN (Zhang et al. 2017, arXiv:1704.03264): convolutions whose dilations grow and shrink again, at full resolution."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dilax.annotated import checked
from dilax.blocks import DEGRIDDINGS, NORMS, ConvNormAct, degridded_conv
from dilax.errors import UserError
from dilax.geometry import IntOrTuple
from dilax.models.backbone import check_image


@checked(norm=NORMS, degridding=DEGRIDDINGS)
class IRCNN(nn.Module):
    """A network that estimates what degrades an image, and subtracts it (section 3.2 of the paper).

    A convolution with ReLU, dilated convolutions with normalisation and ReLU, and a convolution to the channels of the image; none of them
    changes the size. By default it has the 185,857 parameters for grey images that the authors publish, in which batch normalisation is
    folded into the convolutions; norm="batch" is the form that they train, and `dilax.fold_batch_norm` leads from it to the other.

    With `separable`, the layers between the first and the last are depthwise-separable, and each has a shortcut around it (He et al.
    2016): fewer multiply-adds for each pixel, for processors.

    Attributes:
        features: Channels of all layers but the last.
        dilations: Dilation of each layer, an int or a pair, the first and the last included.
        separable: Whether the layers in between are separable, with shortcuts.
        norm: One of `dilax.blocks.NORMS`, for the layers in between; see `dilax.blocks.Norm`.
        dtype: Dtype of the computation; parameters and outputs stay float32.
        degridding: One of `dilax.blocks.DEGRIDDINGS`, for all dilated layers; see `dilax.blocks.degridded_conv`.

    Example:
        >>> model, image = IRCNN(), jnp.zeros((1, 40, 32, 1))
        >>> variables = model.init(jax.random.key(0), image, train=False)
        >>> model.apply(variables, image, train=False).shape
        (1, 40, 32, 1)
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        185857
    """

    features: int = 64
    dilations: tuple[IntOrTuple, ...] = (1, 2, 3, 4, 3, 2, 1)
    separable: bool = False
    norm: str = "none"
    dtype: DTypeLike | None = None
    degridding: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map degraded images (batch, height, width, channels) to restored ones of the same shape, in the same units."""
        check_image("IRCNN", x)
        if len(self.dilations) < 2:
            raise UserError(f"IRCNN: dilations={self.dilations} must have an entry for the first and one for the last layer, or more.")
        first, *between, last = self.dilations
        shared: dict[str, Any] = dict(dtype=self.dtype, degridding=self.degridding)
        y = ConvNormAct(self.features, dilation=first, norm="none", **shared)(x, train=train)
        for dilation in between:
            z = ConvNormAct(self.features, dilation=dilation, separable=self.separable, norm=self.norm, **shared)(y, train=train)
            y = y + z if self.separable else z
        residual = degridded_conv(x.shape[-1], (3, 3), dilation=last, name="residual", **shared)(y)
        return x.astype(jnp.float32) - residual.astype(jnp.float32)
