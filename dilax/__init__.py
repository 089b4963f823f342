"""Dilated (atrous) convolution for JAX: pure functions, Flax modules and models."""

from dilax import geometry, lowerings, models
from dilax.errors import UserError
from dilax.functional import depthwise_conv, dilated_conv, dilated_conv_transpose, separable_conv
from dilax.geometry import ConvPlan, effective_kernel_size, explicit_padding, output_size
from dilax.lowerings import LOWERINGS, select_lowering
from dilax.modules import DepthwiseConv, DilatedConv, DilatedConvTranspose, MultiDilationConv, SeparableConv
from dilax.receptive_field import ReceptiveField, receptive_field

__version__ = "0.1.0"

__all__ = [
    "LOWERINGS",
    "ConvPlan",
    "DepthwiseConv",
    "DilatedConv",
    "DilatedConvTranspose",
    "MultiDilationConv",
    "ReceptiveField",
    "SeparableConv",
    "UserError",
    "depthwise_conv",
    "dilated_conv",
    "dilated_conv_transpose",
    "effective_kernel_size",
    "explicit_padding",
    "geometry",
    "lowerings",
    "models",
    "output_size",
    "receptive_field",
    "select_lowering",
    "separable_conv",
]
