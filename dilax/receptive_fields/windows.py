"""The sliding windows of convolutions, and a warning about taps that only ever read padding."""

import dataclasses
import math
from typing import Any

from dilax.receptive_fields.reach import Reach, window
from dilax.receptive_fields.views import Axis, Operand, View, single


@dataclasses.dataclass(frozen=True)
class ConvWindow:
    """A convolution along one axis: output o reads index o * stride + t * dilation - lo, on an axis whose samples are `base` apart.

    Attributes:
        source: The axis of the input that it runs along.
        target: The corresponding axis of the output.
        samples: Length of the input's axis.
        outputs: Length of the output's axis.
        taps: Taps of the kernel.
        stride: Stride between outputs.
        lo: Padding before the first sample.
        dilation: Dilation between taps.
        base: Base dilation, the stride of a transposed convolution; 1 otherwise.
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
        """Return what the outputs see."""
        return window(self.taps, self.stride, self.lo, self.dilation, self.base)

    def live_taps(self, axis: Axis | None) -> int:
        """Return the number of taps that, for some output, read a sample that sees the network's input."""
        positions = range(self.samples)
        if axis is not None:
            first = next((p for p in positions if axis.reach.sees(p, axis.samples)), self.samples)
            last = next((p for p in reversed(positions) if axis.reach.sees(p, axis.samples)), -1)
            positions = range(first, last + 1)
        return sum(self._reads_any(t * self.dilation - self.lo, positions) for t in range(self.taps))

    def _reads_any(self, shift: int, positions: range) -> bool:
        """Return whether o * stride + shift equals base times one of the positions, for any output o."""
        if not positions:
            return False
        first = max(0, -((shift - positions[0] * self.base) // self.stride))
        last = min(self.outputs - 1, (positions[-1] * self.base - shift) // self.stride)
        common = math.gcd(self.stride, self.base)
        if shift % common:
            return False
        # The outputs that read a sample at this tap, rather than a zero between samples, are `phases` apart.
        phases = self.base // common
        o = -shift // common * pow(self.stride // common, -1, phases)
        return first + (o - first) % phases <= last


def conv_windows(eqn: Any) -> list[ConvWindow]:
    """Return the windows of a convolution, one per spatial axis; none for other operations."""
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        p = eqn.params
        numbers, x, kernel, y = p["dimension_numbers"], eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
        steps = zip(p["window_strides"], (lo for lo, _ in p["padding"]), p["rhs_dilation"], p["lhs_dilation"])
        axes = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], numbers.rhs_spec[2:])
        return [ConvWindow(a, b, x.shape[a], y.shape[b], kernel.shape[k], *step) for (a, b, k), step in zip(axes, steps)]
    if name == "dilated_conv":
        plan = eqn.params["plan"]
        steps = zip(plan.kernel_size, plan.stride, (lo for lo, _ in plan.padding), plan.dilation)
        sizes = zip(plan.input_size, plan.output_size)
        return [ConvWindow(i, i, n, m, *step, 1) for i, ((n, m), step) in enumerate(zip(sizes, steps), start=1)]
    if name == "dilated_conv_input_gradient":
        plan = eqn.params["plan"]
        before = ((k - 1) * d - lo for k, d, (lo, _) in zip(plan.kernel_size, plan.dilation, plan.padding))
        steps = zip(plan.kernel_size, before, plan.dilation, plan.stride)
        sizes = zip(plan.output_size, plan.input_size)
        return [ConvWindow(i, i, n, m, k, 1, lo, d, s) for i, ((n, m), (k, lo, d, s)) in enumerate(zip(sizes, steps), start=1)]
    return []


def conv_batch(eqn: Any) -> list[tuple[int, int]]:
    """Return the batch axis of a convolution's input and the corresponding axis of its output, unless the batch is split into groups."""
    if eqn.primitive.name != "conv_general_dilated":
        return [(0, 0)]
    numbers = eqn.params["dimension_numbers"]
    return [(numbers.lhs_spec[0], numbers.out_spec[0])] if eqn.params["batch_group_count"] == 1 else []


def idle_taps_warning(eqn: Any, operands: list[Operand]) -> str | None:
    """Return a warning about the taps of a convolution that only ever read padding, or None."""
    windows, x = conv_windows(eqn), operands[0] if operands else None
    if not windows or not isinstance(x, View):
        return None
    live = math.prod(window.live_taps(single(x.axes[window.source])) for window in windows)
    total = math.prod(window.taps for window in windows)
    if live == total:
        return None
    kernel_size, dilation, size = (_format([getattr(window, name) for window in windows]) for name in ("taps", "dilation", "samples"))
    return (
        f"receptive_field: {total - live} of the {total} taps of a convolution with kernel_size={kernel_size} and dilation={dilation} only "
        f"ever read padding, because its input has size {size}; use a smaller dilation or a larger input."
    )


def _format(values: list[int]) -> str:
    return str(values[0] if len(values) == 1 else tuple(values))
