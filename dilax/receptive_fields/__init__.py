"""Receptive fields: which inputs the outputs of a function depend on.

reach.py         sets of inputs per output phase, and `ReceptiveField`, which summarises them
composition.py   what one reach sees through another, and unions
jaxprs.py        all that is read from JAX's own representation of functions
bands.py         the sets of a constant matrix: resizing, gathering
constants.py     arrays that do not depend on the input, computed only if needed
views.py         what an array sees, axis by axis
windows.py       the windows of convolutions, and taps that only see padding
contractions.py  matrix products and gathers
joins.py         arrays that are put together: concatenation, stacking, tiling
updates.py       arrays into which another is written
reshapes.py      axes that are split and merged
rules.py         all other operations
analysis.py      `receptive_field`: follows a jaxpr from the input to the output
effective.py     `effective_receptive_field`: the dependence weighted by gradients
dilations.py     `suggest_dilations`: stacks without holes
"""

from dilax.receptive_fields.analysis import reaches, receptive_field, receptive_fields
from dilax.receptive_fields.dilations import suggest_dilations
from dilax.receptive_fields.effective import effective_receptive_field
from dilax.receptive_fields.reach import Reach, ReceptiveField

__all__ = [
    "Reach",
    "ReceptiveField",
    "effective_receptive_field",
    "reaches",
    "receptive_field",
    "receptive_fields",
    "suggest_dilations",
]
