"""The last defence of tiled inference: a part of the image is computed at once, and the tiles are compared with it.

The plan of the windows follows from an analysis of the function. Should that overlook something, the tiles differ from the whole image at
their seams, which this finds.
"""

import dataclasses
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dilax.errors import UserError
from dilax.receptive_fields.jaxprs import computed_arrays
from dilax.tile_plans import CALLER, Fn, TilePlan, Window

# The memory, estimated, that computing the whole image may take. If it takes more, two neighbouring windows are computed at once.
MAX_BYTES = 2**26
# Differences count as rounding up to this many units in the last place of the largest value, and up to this share of it.
MAX_ULPS, MAX_SHARE = 2**12, 0.1


@dataclasses.dataclass(frozen=True)
class Reference:
    """A part of the image that was computed at once.

    Attributes:
        samples: The slices of the image that were read.
        values: What fn returns for them.
        steps: For each array that fn returns, the input samples between its neighbouring outputs, per spatial axis.
        share: Differences up to this share of the largest value count as rounding.
    """

    samples: tuple[slice, ...]
    values: tuple[np.ndarray, ...]
    steps: tuple[tuple[Fraction, ...], ...]
    share: float

    def compare(self, window: Window, results: list[np.ndarray], summed: bool) -> None:
        """Compare what is kept of a window with the same outputs of the reference, if the window lies within it.

        Args:
            window: The window.
            results: What fn returns for it; with `summed`, the sums over space of what is kept.
            summed: Whether `results` are sums.

        Raises:
            UserError: if they differ by more than rounding errors.
        """
        if not all(a.start <= b.start and b.stop <= a.stop for a, b in zip(self.samples[1:], window.samples[1:])):
            return
        for number, (result, whole, steps, (kept, target)) in enumerate(zip(results, self.values, self.steps, window.outputs)):
            starts = [int(part.start / step) for part, step in zip(self.samples[1:], steps)]
            expected = whole[(slice(None), *(slice(t.start - n, t.stop - n) for t, n in zip(target[1:], starts)))]
            if summed:
                wide = np.complex128 if np.iscomplexobj(expected) else np.float64
                self._check(number, result, expected.sum(tuple(range(1, expected.ndim - 1)), wide), _finite(expected).sum())
            else:
                self._check(number, result[kept], expected, _finite(expected).max(initial=0))

    def _check(self, number: int, actual: np.ndarray, expected: np.ndarray, scale: Any) -> None:
        discrete = not jnp.issubdtype(expected.dtype, jnp.inexact)
        # Rounding may tip a few values to the next integer.
        if discrete and (actual != expected).sum() <= actual.size // 1000:
            return
        same = (actual == expected) | ((actual != actual) & (expected != expected))
        wide = np.complex128 if np.iscomplexobj(expected) else np.float64
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0, np.abs(actual.astype(wide) - expected.astype(wide)))
        # Infinite where only one of them is not a number.
        difference = np.nan_to_num(difference, nan=np.inf, posinf=np.inf)
        if not (difference <= self.share * scale).all():
            raise UserError(
                f"{CALLER}: output {number} of fn differs by {difference.max():.3g} (values reach {scale:.3g}) between tiles and the "
                "same part of the image computed at once, because it depends on more than the analysis found; use None in tile to leave "
                "the axis whole, or check=False if fn only amplifies rounding, as thresholds and jax.image.resize of long images do."
            )


def references(fn: Fn, plan: TilePlan, image: Any) -> list[Reference]:
    """Compute what the tiles are compared with: the whole image if that fits into `MAX_BYTES`, or else two windows per divided axis.

    Args:
        fn: The function to be tiled.
        plan: How the image is divided.
        image: The image, an array or anything with a shape, a dtype and slicing.

    Returns:
        No reference if the image is not divided.
    """
    if all(len(axis.starts) == 1 for axis in plan.axes):
        return []
    arrays = computed_arrays(plan.whole.jaxpr)
    precision = max((float(jnp.finfo(a.dtype).eps) for a in arrays if jnp.issubdtype(a.dtype, jnp.inexact)), default=0.0)
    share = min(MAX_ULPS * max(precision, float(np.finfo(np.float32).eps)), MAX_SHARE)
    steps = tuple(tuple(axis.steps[i] for axis in plan.axes) for i in range(len(plan.leaves)))
    # A few arrays of the largest size exist at once.
    if 3 * max(a.size * a.dtype.itemsize for a in arrays) + np.dtype(image.dtype).itemsize * np.prod(image.shape) <= MAX_BYTES:
        samples = tuple(slice(0, n) for n in image.shape[:-1])
        values = jax.tree.leaves(plan.whole.lower().compile()(jnp.asarray(np.asarray(image[samples]))))
        return [Reference(samples, tuple(map(np.asarray, values)), steps, share)]
    found = []
    for along, axis in enumerate(plan.axes):
        if len(axis.starts) > 1:
            samples = (slice(0, image.shape[0]), *(_middle(plan, i, along) for i in range(len(plan.axes))))
            values = jax.tree.leaves(jax.jit(fn)(np.asarray(image[samples])))
            found.append(Reference(samples, tuple(map(np.asarray, values)), steps, share))
    return found


def _middle(plan: TilePlan, axis: int, along: int) -> slice:
    """Return the samples of a window in the middle of an axis, and those of the next window if it is the axis `along`."""
    starts, size = plan.axes[axis].starts, plan.axes[axis].size
    first = (len(starts) - 1) // 2
    return slice(starts[first], starts[first + 1 if axis == along else first] + size)


def _finite(values: np.ndarray) -> np.ndarray:
    """Return the absolute values of those that are finite."""
    return np.abs(values[np.isfinite(values)])
