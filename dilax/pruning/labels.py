"""Labels that say which channels of variables belong together, and can only be removed together.

Each entry along each axis of a variable gets a label of its own, a positive integer. The labels are carried through the jaxpr of a model: a
convolution or a product couples the labels of what it sums over, a sum of two arrays those of what it adds, and a concatenation joins them.
Positions (of the batch, of space, of taps) and whatever is not followed are labelled 0, the channels of the model's input -1: nothing is
removed there.

The idea is that of dependency graphs: Fang et al. 2023, arXiv:2301.12900.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

# The label of each index along an axis; None if all of them hold the same value, as where a bias was broadcast over space.
Labels = np.ndarray | None
Axes = tuple[Labels, ...]
INPUT = -1  # the label of the channels of a model's input


class Value(NamedTuple):
    """An array of a jaxpr.

    Attributes:
        axes: The labels of each axis.
        variables: Whether it depends on variables of the model.
        data: Whether it depends on the input of the model.
    """

    axes: Axes
    variables: bool = False
    data: bool = False

    @property
    def learned(self) -> bool:
        """Whether it is computed from variables alone."""
        return self.variables and not self.data


class Product(NamedTuple):
    """A convolution or matrix product of data with variables.

    Attributes:
        multiply_adds: Its multiply-adds.
        kernel: The labels of the axes of its variables; the multiply-adds are proportional to the number of their entries.
    """

    multiply_adds: int
    kernel: Axes


@dataclasses.dataclass
class Call:
    """A module that was called.

    Attributes:
        path: Its path, the names joined by slashes.
        fields: Its fields that hold a bool, an integer, a text or None.
        inputs: The labels of the last axis of its input.
        outputs: The labels of the last axis of its output.
    """

    path: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: Labels = None
    outputs: Labels = None


class Channels:
    """What is coupled to what in a model.

    Attributes:
        edges: Pairs of arrays of labels, which are coupled one by one.
        locked: Arrays of labels that cannot be removed, and why; "" if that need not be reported.
        produced: Arrays of labels of the outputs of convolutions and products with variables.
        products: These convolutions and products.
        calls: The modules that were called.
    """

    def __init__(self) -> None:
        """Start with nothing coupled."""
        self.edges: list[tuple[np.ndarray, np.ndarray]] = []
        self.locked: list[tuple[np.ndarray, str]] = []
        self.produced: list[np.ndarray] = []
        self.products: list[Product] = []
        self.calls: list[Call] = []

    def couple(self, a: Labels, b: Labels, why: str) -> None:
        """Couple labels one by one; those that meet a position or the input are locked."""
        if a is None or b is None:
            return
        a, b = (side.ravel() for side in np.broadcast_arrays(a, b))
        differ = (a > 0) & (b > 0) & (a != b)
        if differ.any():
            self.edges.append((a[differ], b[differ]))
        for one, other in ((a, b), (b, a)):
            self.lock(one[other == 0], why)
            self.lock(one[other == INPUT])

    def lock(self, labels: Labels, why: str = "") -> None:
        """Keep labels from being removed."""
        if labels is not None and (labels > 0).any():
            self.locked.append((labels[labels > 0], why))

    def merge(self, axes: Iterable[Labels], why: str) -> Labels:
        """Return the labels of an axis that several arrays share, coupled one by one."""
        known = [labels for labels in axes if labels is not None]
        for other in known[1:]:
            self.couple(known[0], other, why)
        return next((labels for labels in known if (labels > 0).any()), known[0]) if known else None

    def produce(self, labels: Labels, kernel: Value) -> None:
        """Note the labels of the outputs of a product, if the kernel consists of variables."""
        if labels is not None and kernel.learned:
            self.produced.append(labels)

    def count(self, multiply_adds: int, operands: Sequence[Value]) -> None:
        """Note the multiply-adds of a product of data with variables."""
        for operand, other in (operands, operands[::-1]):
            if operand.learned and other.data:
                self.products.append(Product(multiply_adds, operand.axes))


def positions(shape: Sequence[int]) -> Axes:
    """Return the labels of an array of which nothing can be removed."""
    return tuple(np.zeros(n, np.int64) if n != 1 else None for n in shape)


def leaves(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return each array of the variables by its path, such as "params/head/kernel", in the order of JAX."""
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(dict(variables))]
    return {path: flat[path] for path in paths}


def label(variables: Mapping[str, Any]) -> dict[str, Axes]:
    """Give each entry along each axis of each variable a label of its own; axes of length 1 get none."""
    labels, following = dict[str, Axes](), 1
    for path, leaf in leaves(variables).items():
        axes: list[Labels] = []
        for n in leaf.shape:
            axes.append(np.arange(following, following + n) if n != 1 else None)
            following += n
        labels[path] = tuple(axes)
    return labels
