"""Layers with positive weights and ResNets of one channel, for the analysis of receptive fields, and fields of small networks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import dilax

# Few layers of the networks with squeeze-and-excitation, whose blocks are expensive to compile.
MOBILENET_V3: dict[str, Any] = dict(
    kernel_sizes=(3, 3, 5, 3, 5),
    inner_features=(4, 6, 8, 9, 10),
    block_features=(4, 6, 6, 6, 6),
    strides=(1, 2, 2, 2, 2),
    squeeze_excite_blocks=(3, 5),
    relu_blocks=3,
    stem_features=4,
    last_features=8,
    head_features=6,
)
EFFICIENTNET: dict[str, Any] = dict(
    stage_features=(4, 6, 4, 6, 6, 6, 6), blocks=(1, 2, 0, 0, 0, 0, 0), stem_features=4, last_features=8, expansion=2
)


def weights(*shape):
    """Positive weights, all different; those of one output sum up to about 1."""
    values = np.random.default_rng(shape[0]).uniform(0.5, 1.5, shape)
    return jnp.asarray(values / np.prod(shape[:-1]), jnp.float32)


def conv(x, taps=3, **options):
    return dilax.dilated_conv(x, weights(*(taps,) * (x.ndim - 2), x.shape[-1], 2), **options)


def transposed(x, taps=3, **options):
    return dilax.dilated_conv_transpose(x, weights(*(taps,) * (x.ndim - 2), 2, x.shape[-1]), **options)


def lax_conv(x, taps, stride, padding, base, dilation):
    return lax.conv_general_dilated(x, weights(taps, 2, 2), (stride,), [padding], (base,), (dilation,), ("NTC", "TIO", "NTC"))


def max_pool(x, window, stride=1, padding: Any = "SAME", base=1, dilation=1):
    shape = [(1, n, 1) for n in (window, stride, base, dilation)]
    padding = padding if isinstance(padding, str) else ((0, 0), padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, shape[0], shape[1], padding, shape[2], shape[3])


def resized(x, factor, method, **options):
    return jax.image.resize(x, (x.shape[0], *(int(n * factor) for n in x.shape[1:-1]), x.shape[-1]), method, **options)


def aligned_matrix(rows, columns):
    """The matrix of linear interpolation with aligned corners."""
    places = jnp.arange(rows, dtype=jnp.float32) * ((columns - 1) / (rows - 1))
    return jnp.maximum(0.0, 1 - jnp.abs(places[:, None] - jnp.arange(columns, dtype=jnp.float32)[None]))


def plain(x, taps, stride=1, dilation=1):
    """A convolution of one channel, padded as in torch."""
    return dilax.dilated_conv(x, jnp.ones((taps,) * (x.ndim - 2) + (1, 1)), stride=stride, dilation=dilation, padding="TORCH")


def resnet(x, units, output_stride=32, last=False):
    """ResNet-50 has units (3, 4, 6, 3). Each stage but the first halves the size in its first 3x3 convolution, or dilates the rest instead.

    With `last`, each stage but the last halves it in its last unit, as in TensorFlow-Slim's ResNet v1.
    """
    x = dilax.max_pool(plain(x, 7, 2), 3, stride=2, padding=1)
    stride, dilation = 4, 1
    for stage, count in enumerate(units):
        for unit in range(count):
            strides = unit == count - 1 and stage < len(units) - 1 if last else unit == 0 and stage > 0
            step, before = 2 if strides else 1, dilation
            if strides and stride >= output_stride:
                step, dilation = 1, dilation * 2
            stride *= step
            y = plain(plain(plain(x, 1), 3, step, before), 1)
            x = jax.nn.relu(y + plain(x, 1, step))
    return x


def field_of(fn, size=72):
    """The receptive field along the single axis of a sequence."""
    return dilax.receptive_field(fn, jax.ShapeDtypeStruct((1, size, 2), jnp.float32))[0]
