"""The plan of a convolution: its sizes and options, from which a lowering is chosen."""

import dataclasses
import math

from jax import lax

from dilax.arguments import is_integer
from dilax.geometry import Pairs, effective_kernel_size


@dataclasses.dataclass(frozen=True)
class ConvPlan:
    """Everything that is known about a convolution before it runs.

    Attributes:
        batch: Number of examples.
        input_size: Samples per axis, without padding.
        c_in: Input channels.
        c_out: Output channels.
        kernel_size: Taps per axis.
        stride: Samples between neighbouring outputs, per axis.
        padding: (lo, hi) per axis.
        dilation: Samples between neighbouring taps, per axis.
        groups: Number of independent channel groups.
        dtype: Name of the dtype of input and kernel.
        precision: As in `jax.lax.conv_general_dilated`.
    """

    batch: int
    input_size: tuple[int, ...]
    c_in: int
    c_out: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int
    dtype: str
    precision: lax.PrecisionLike = None

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def taps(self) -> int:
        """Taps of the kernel over all axes."""
        return math.prod(self.kernel_size)

    @property
    def symbolic(self) -> bool:
        """Whether a size is symbolic (`jax.export`), that is, unknown until the program runs."""
        return not all(map(is_integer, (self.batch, *self.input_size, self.c_in, self.c_out)))

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input: (batch, *input_size, c_in)."""
        return (self.batch, *self.input_size, self.c_in)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel: (*kernel_size, c_in // groups, c_out)."""
        return (*self.kernel_size, self.c_in // self.groups, self.c_out)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the output: (batch, *output_size, c_out)."""
        return (self.batch, *self.output_size, self.c_out)

    def result_shape(self, operation: str) -> tuple[int, ...]:
        """Shape of what an operation gives: "output", "input_gradient" or "kernel_gradient"."""
        return {"output": self.y_shape, "input_gradient": self.x_shape, "kernel_gradient": self.kernel_shape}[operation]

    @property
    def output_size(self) -> tuple[int, ...]:
        """Outputs per axis."""
        spans = effective_kernel_size(self.kernel_size, self.dilation)
        axes = zip(self.input_size, self.padding, spans, self.stride)
        return tuple((n + lo + hi - span) // stride + 1 for n, (lo, hi), span, stride in axes)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the whole batch, including taps in the padding, as papers count them."""
        per_output = self.taps * self.c_in // self.groups
        return self.batch * math.prod(self.output_size) * self.c_out * per_output
