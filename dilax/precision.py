"""Half precision, in which arrays are stored but sums are not taken."""

from typing import Any

import jax
import jax.numpy as jnp


def wide_dtype(dtype: Any) -> Any:
    """Return the dtype in which floats of a dtype are summed: float32 for 16 bits, and otherwise the same."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def widened(x: jax.Array) -> jax.Array:
    """Return floats in the dtype in which they are summed."""
    wide = wide_dtype(x.dtype)
    return x if wide == x.dtype else x.astype(wide)
