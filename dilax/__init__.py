"""Dilated (atrous) convolution for JAX: pure functions, Flax modules and models."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from dilax import (
    anchors,
    audio,
    blocks,
    boxes,
    context,
    crf,
    detection,
    detection_losses,
    detection_metrics,
    errors,
    files,
    generate,
    geometry,
    inference,
    inputs,
    loading,
    losses,
    lowerings,
    metrics,
    models,
    pooling,
    profiling,
    publishing,
    segments,
    smoothing,
    sounds,
    spacings,
    spec,
    streaming,
    summary,
    tagging,
    volumes,
    weights,
)
from dilax.autotuning import autotune
from dilax.causal import CausalConvTranspose, CumulativeNorm
from dilax.context import ASPP, ContextModule, DenseASPP, HybridDilatedBlock
from dilax.errors import UserError
from dilax.folding import fold_batch_norm
from dilax.functional import depthwise_conv, dilated_conv, dilated_conv_transpose, separable_conv
from dilax.generate import continue_sequence, forecast, sample
from dilax.geometry import effective_kernel_size, explicit_padding, output_size
from dilax.inference import Inference
from dilax.loading import load
from dilax.lowerings import LOWERINGS, Lowering, select_lowering, use_lowering
from dilax.modules import DepthwiseConv, DilatedConv, DilatedConvTranspose, MultiDilationConv, SeparableConv
from dilax.plan import ConvPlan
from dilax.pooling import avg_pool, max_pool, pool_sequence
from dilax.profiling import Profile, profile
from dilax.pruning import Pruned, multiply_adds, prune
from dilax.publishing import read_weights, save_weights
from dilax.quantisation import use_quantisation
from dilax.receptive_fields import ReceptiveField, effective_receptive_field, receptive_field, suggest_dilations
from dilax.resizing import resize
from dilax.smoothing import SmoothedConv, smoothed_conv
from dilax.spacings import DCLSConv
from dilax.spec import DataSpec
from dilax.streaming import check_causal, check_streamable, end_stream
from dilax.tiling import tiled
from dilax.weights import load_weights

if TYPE_CHECKING:
    from dilax import export, plots

__version__ = "0.1.0"

__all__ = [
    "ASPP",
    "LOWERINGS",
    "CausalConvTranspose",
    "ContextModule",
    "ConvPlan",
    "CumulativeNorm",
    "DCLSConv",
    "DataSpec",
    "DenseASPP",
    "DepthwiseConv",
    "DilatedConv",
    "DilatedConvTranspose",
    "HybridDilatedBlock",
    "Inference",
    "Lowering",
    "MultiDilationConv",
    "Profile",
    "Pruned",
    "ReceptiveField",
    "SeparableConv",
    "SmoothedConv",
    "UserError",
    "anchors",
    "audio",
    "autotune",
    "avg_pool",
    "blocks",
    "boxes",
    "check_causal",
    "check_streamable",
    "context",
    "continue_sequence",
    "crf",
    "depthwise_conv",
    "detection",
    "detection_losses",
    "detection_metrics",
    "dilated_conv",
    "dilated_conv_transpose",
    "effective_kernel_size",
    "effective_receptive_field",
    "end_stream",
    "errors",
    "explicit_padding",
    "export",
    "files",
    "fold_batch_norm",
    "forecast",
    "generate",
    "geometry",
    "inference",
    "inputs",
    "load",
    "load_weights",
    "loading",
    "losses",
    "lowerings",
    "max_pool",
    "metrics",
    "models",
    "multiply_adds",
    "output_size",
    "plots",
    "pool_sequence",
    "pooling",
    "profile",
    "profiling",
    "prune",
    "publishing",
    "read_weights",
    "receptive_field",
    "resize",
    "sample",
    "save_weights",
    "segments",
    "select_lowering",
    "separable_conv",
    "smoothed_conv",
    "smoothing",
    "sounds",
    "spacings",
    "spec",
    "streaming",
    "suggest_dilations",
    "summary",
    "tagging",
    "tiled",
    "use_lowering",
    "use_quantisation",
    "volumes",
    "weights",
]


def __getattr__(name: str) -> ModuleType:
    """Import the modules that few programs use when they are first used: a sixth of the time that the import of dilax takes."""
    if name in ("export", "plots"):
        return importlib.import_module(f"dilax.{name}")
    raise AttributeError(f"module 'dilax' has no attribute {name!r}")
