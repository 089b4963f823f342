"""Stacks of dilated layers whose receptive field has no holes."""

from dilax.errors import UserError, shown
from dilax.geometry import is_integer


def suggest_dilations(kernel_size: int, target_size: int, *, layers: int | None = None) -> tuple[int, ...]:
    """Return the smallest stack of dilations, at stride 1, whose receptive field reaches `target_size` and has no holes.

    A stack sees 1 + (kernel_size - 1) * sum(dilations) samples. In increasing order, it has no holes if and only if each dilation is at
    most the receptive field of the layers before it. The result has the fewest layers possible, then the smallest sum and hence the
    smallest receptive field; among stacks with the same sum, the one with the largest last dilation is chosen.

    Args:
        kernel_size: Taps of every layer along the axis.
        target_size: Minimum receptive field of the last layer, in samples.
        layers: Number of layers; None uses as few as possible.

    Returns:
        One dilation per layer, in increasing order; () if target_size is 1 and layers is None.

    Raises:
        UserError: if there is no such stack, because kernels have a single tap or there are too few layers.

    Example:
        >>> suggest_dilations(3, 17)
        (1, 2, 5)
        >>> suggest_dilations(2, 16)
        (1, 2, 4, 8)

    Reference:
        Wang et al. 2018, arXiv:1702.08502 (hybrid dilated convolution), whose rule is stricter than necessary for three taps and more.
    """
    caller = "suggest_dilations"
    for name, value in (("kernel_size", kernel_size), ("target_size", target_size), ("layers", 1 if layers is None else layers)):
        if not is_integer(value) or value < 1:
            raise UserError(f"{caller}: {name}={shown(value)} is not a positive integer; use 1 or more.")
    kernel_size, target_size = int(kernel_size), int(target_size)
    layers = None if layers is None else int(layers)
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
    return _stack_of_sum(kernel_size, fewest if layers is None else layers, -(-(target_size - 1) // max(kernel_size - 1, 1)))


def _stack_of_sum(kernel_size: int, layers: int, total: int) -> tuple[int, ...]:
    """Return the stack whose dilations sum to `total`, or to `layers` if that is more, with each last dilation as large as allowed."""
    dilations = []
    for before in reversed(range(layers)):
        # A dilation is at most 1 + (kernel_size - 1) * the sum of those before it, each of which is at least 1.
        rest = max(before, -(-(total - 1) // kernel_size)) if before else 0
        dilations.append(max(total - rest, 1))
        total = rest
    return tuple(sorted(dilations))
