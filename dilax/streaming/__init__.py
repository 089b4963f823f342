"""Causal networks fed in chunks.

rings.py    ring buffers of past samples, and convolutions computed from them
flow.py     `Streamable` and `Layer`: modules that keep what they need of the past in an explicit state
checks.py   `check_causal`, `check_streamable`: checks of the user's own network
"""

from dilax.streaming.checks import check_causal, check_streamable
from dilax.streaming.flow import Flow, Layer, State, Streamable, end_stream
from dilax.streaming.rings import Ring, advance_ring, conv_step, conv_step_nd, conv_transpose_step, in_order, new_ring

__all__ = [
    "Flow",
    "Layer",
    "Ring",
    "State",
    "Streamable",
    "advance_ring",
    "check_causal",
    "check_streamable",
    "conv_step",
    "conv_step_nd",
    "conv_transpose_step",
    "end_stream",
    "in_order",
    "new_ring",
]
