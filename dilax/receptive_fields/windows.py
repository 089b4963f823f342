"""The sliding windows of convolutions, and the taps of them that an input of this size never feeds."""

import dataclasses
import math
from typing import Any

from dilax.receptive_fields.reach import Reach, window
from dilax.receptive_fields.views import Axis, Operand, View


@dataclasses.dataclass(frozen=True)
class Window:
    """A convolution along one axis: output o reads o * stride + t * dilation - lo, between samples that are `base` apart.

    Attributes:
        source: The axis it runs along.
        target: The axis of its outputs.
        samples: Length of the first.
        outputs: Length of the second.
        taps: Those of the kernel.
        stride: Between outputs.
        lo: Padding before the first sample.
        dilation: Between taps.
        base: Above 1 in transposed convolutions: their stride.
    """

    source: int
    target: int
    samples: int
    outputs: int
    taps: int
    stride: int
    lo: int
    dilation: int
    base: int

    def reach(self) -> Reach:
        """What its outputs see."""
        return window(self.taps, self.stride, self.lo, self.dilation, self.base)

    def live_taps(self, axis: Axis | None) -> int:
        """How many taps read, for any output, a sample that sees some of the network's input."""
        places = range(self.samples)
        if axis is not None:
            first = next((p for p in places if axis.reach.sees(p, axis.samples)), self.samples)
            last = next((p for p in reversed(places) if axis.reach.sees(p, axis.samples)), -1)
            places = range(first, last + 1)
        return sum(self._reads(t * self.dilation - self.lo, places) for t in range(self.taps))

    def _reads(self, shift: int, places: range) -> bool:
        """Whether o * stride + shift is one of the places, times base, for any output o."""
        if not places:
            return False
        begin = max(0, -((shift - places[0] * self.base) // self.stride))
        end = min(self.outputs - 1, (places[-1] * self.base - shift) // self.stride)
        return any((o * self.stride + shift) % self.base == 0 for o in range(begin, min(end, begin + self.base - 1) + 1))


def windows(eqn: Any) -> list[Window]:
    """The windows of a convolution, one per axis of space; none for other operations."""
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        p = eqn.params
        numbers, x, kernel, y = p["dimension_numbers"], eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
        steps = zip(p["window_strides"], (lo for lo, _ in p["padding"]), p["rhs_dilation"], p["lhs_dilation"])
        spaces = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], numbers.rhs_spec[2:])
        return [Window(a, b, x.shape[a], y.shape[b], kernel.shape[k], *step) for (a, b, k), step in zip(spaces, steps)]
    if name == "dilated_conv":
        plan = eqn.params["plan"]
        steps = zip(plan.kernel_size, plan.stride, (lo for lo, _ in plan.padding), plan.dilation)
        sizes = zip(plan.input_size, plan.output_size)
        return [Window(i, i, n, m, *step, 1) for i, ((n, m), step) in enumerate(zip(sizes, steps), start=1)]
    if name == "dilated_conv_input_gradient":
        plan = eqn.params["plan"]
        before = ((k - 1) * d - lo for k, d, (lo, _) in zip(plan.kernel_size, plan.dilation, plan.padding))
        steps = zip(plan.kernel_size, before, plan.dilation, plan.stride)
        sizes = zip(plan.output_size, plan.input_size)
        return [Window(i, i, n, m, k, 1, lo, d, s) for i, ((n, m), (k, lo, d, s)) in enumerate(zip(sizes, steps), start=1)]
    return []


def idle_taps(eqn: Any, operands: list[Operand]) -> str | None:
    """A sentence about the taps of a convolution that only ever read padding, if there are such."""
    steps, x = windows(eqn), operands[0] if operands else None
    if not steps or not isinstance(x, View):
        return None
    live = math.prod(step.live_taps(x.axes[step.source]) for step in steps)
    total = math.prod(step.taps for step in steps)
    if live == total:
        return None
    taps, dilation, size = (_words([getattr(step, name) for step in steps]) for name in ("taps", "dilation", "samples"))
    return (
        f"receptive_field: {total - live} of the {total} taps of a convolution of window {taps}, dilation {dilation} only ever see "
        f"padding, as its input has size {size}; use a smaller dilation or a larger input."
    )


def _words(values: list[int]) -> str:
    return str(values[0] if len(values) == 1 else tuple(values))
