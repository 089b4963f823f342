"""Stacks of dilated layers whose receptive field has no holes."""

from dilax.errors import UserError
from dilax.geometry import is_integer


def suggest_dilations(kernel_size: int, target_size: int, layers: int | None = None) -> tuple[int, ...]:
    """The smallest stack of dilations, at stride 1, whose receptive field reaches a size and has no holes.

    A stack sees 1 + (kernel_size - 1) * sum(dilations) samples. In rising order it has no holes just when each dilation is at most what the
    layers before it see. The fewest layers are taken, then the smallest sum, so the smallest field; of stacks with the same sum, the one
    whose last layer is the widest.

    Args:
        kernel_size: Taps of every layer along the axis.
        target_size: Samples that the last layer's outputs should see at least.
        layers: How many layers; None takes as few as possible.

    Returns:
        One dilation per layer, in rising order; () if target_size is 1 and layers None.

    Raises:
        UserError: if no such stack exists: kernels of one tap, or too few layers.

    Example:
        >>> suggest_dilations(3, 17)
        (1, 2, 5)
        >>> suggest_dilations(2, 16)
        (1, 2, 4, 8)

    Reference:
        Wang et al. 2018, arXiv:1702.08502 (hybrid dilated convolution), whose rule for three taps and more is stricter than need be.
    """
    caller = "suggest_dilations"
    for name, value in (("kernel_size", kernel_size), ("target_size", target_size), ("layers", 1 if layers is None else layers)):
        if not is_integer(value) or value < 1:
            raise UserError(f"{caller}: {name}={value!r} is not a positive integer; use 1 or more.")
    if kernel_size == 1 and target_size > 1:
        raise UserError(f"{caller}: kernels of one tap see one sample at any dilation, not {target_size}; use kernel_size=2 or more.")
    fewest = 0
    while kernel_size**fewest < target_size:
        fewest += 1
    if layers is not None and layers < fewest:
        raise UserError(
            f"{caller}: {layers} layers of {kernel_size} taps see at most {kernel_size**layers} samples without holes, not {target_size}; "
            f"use layers={fewest} or a larger kernel_size."
        )
    return _with_sum(kernel_size, fewest if layers is None else layers, -(-(target_size - 1) // max(kernel_size - 1, 1)))


def _with_sum(kernel_size: int, layers: int, total: int) -> tuple[int, ...]:
    """The stack with that sum, or of ones if they have a larger one; each last layer as wide as those before it allow."""
    found = []
    for before in reversed(range(layers)):
        # A layer is at most 1 + (kernel_size - 1) * the sum of those before it, which are 1 at least.
        rest = max(before, -(-(total - 1) // kernel_size)) if before else 0
        found.append(max(total - rest, 1))
        total = rest
    return tuple(sorted(found))
