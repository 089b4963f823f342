"""Building blocks of the models: normalisation, dropout, masking, convolution blocks, residual blocks.

Blocks that behave differently in training take `train` as a keyword argument.

norm.py        normalisation and dropout, and `batch_axis` for batches that are split over devices
sequences.py   masks and embeddings of sequences
conv.py        activations, conv-norm-act, squeeze-excite, residual blocks
"""

from dilax.blocks.conv import (
    ACTIVATIONS,
    DEGRIDDINGS,
    BasicBlock,
    Bottleneck,
    ConvNormAct,
    SeparableResidual,
    SqueezeExcite,
    activation,
    degridded_conv,
)
from dilax.blocks.norm import BATCH_EPSILON, BATCH_MOMENTUM, NORMS, Dropout, Norm, batch_axis
from dilax.blocks.sequences import embed_sequence, masked

__all__ = [
    "ACTIVATIONS",
    "BATCH_EPSILON",
    "BATCH_MOMENTUM",
    "DEGRIDDINGS",
    "NORMS",
    "BasicBlock",
    "Bottleneck",
    "ConvNormAct",
    "Dropout",
    "Norm",
    "SeparableResidual",
    "SqueezeExcite",
    "activation",
    "batch_axis",
    "degridded_conv",
    "embed_sequence",
    "masked",
]
