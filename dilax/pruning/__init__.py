"""Structured pruning: whole channels of a model are removed, which makes it smaller and faster.

labels.py       labels of channels, and what couples them
operations.py   how labels pass through each JAX operation
follow.py       how they pass through a model
selection.py    coupled channels, and which of them are removed
pruned.py       `Pruned`, a model with fewer channels
removal.py      `prune` and `multiply_adds`
"""

from dilax.pruning.follow import multiply_adds_of
from dilax.pruning.pruned import Pruned, unpruned
from dilax.pruning.removal import multiply_adds, multiply_adds_for, prune

__all__ = ["Pruned", "multiply_adds", "multiply_adds_for", "multiply_adds_of", "prune", "unpruned"]
