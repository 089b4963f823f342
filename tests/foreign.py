"""Random state dicts of other libraries, generated from their names and shapes, so that no weights need to be stored."""

from typing import Any

import numpy as np


def random_state(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """Return float32 arrays of these names and shapes. They preserve the variance of activations, and no two channels are alike."""
    rng, state = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        values: Any = 2 * rng.random(shape) - 1
        if name.endswith("running_var"):
            values = 1 + 0.5 * values
        elif name.endswith("num_batches_tracked"):
            values = np.zeros(shape, np.int64)
        elif len(shape) > 1:
            values = values * np.sqrt(6 / np.prod(shape[1:]))
        elif name.endswith("weight"):
            values = 0.8 + 0.3 * values
        else:
            values = 0.2 * values
        state[name] = values if values.dtype == np.int64 else values.astype(np.float32)
    return state
