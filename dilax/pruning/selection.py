"""Which channels are removed: coupled channels are found, rated and selected."""

import bisect
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dilax.errors import UserError
from dilax.pruning.labels import Axes, Channels, Product, leaves

MEASURES = ("magnitude", "scale")


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels of the same layers, each of which may be removed alone.

    Attributes:
        channels: The number of each channel: that of its labels in `Coupling.channel`.
        axes: The axes of variables that they are part of: (path, axis).
    """

    channels: np.ndarray
    axes: tuple[tuple[str, int], ...]


class Step(NamedTuple):
    """A group becomes smaller.

    Attributes:
        ratio: The share of its channels that it has lost by then.
        group: Its number.
        left: How many channels it has left.
    """

    ratio: float
    group: int
    left: int


class Coupling:
    """The channels of a model: sets of labels that can only be removed together.

    Attributes:
        labels: The labels of the axes of each variable.
        channel: The number of the channel of each label.
        groups: The channels that may be removed.
        kept: Path of each layer that keeps all its channels for a reason that is worth reporting -> that reason.
        products: The convolutions and products of the model.
    """

    def __init__(self, found: Channels, labels: Mapping[str, Axes], multiple_of: int = 1) -> None:
        """Find the channels; the number of those that are left in each group is to be a multiple of `multiple_of`."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        self.labels, self.products, self.multiple_of = labels, found.products, multiple_of
        size = 1 + max((int(axis[-1]) for axes in labels.values() for axis in axes if axis is not None), default=0)
        pairs = [np.concatenate(side) for side in zip(*found.edges)] if found.edges else [np.zeros(0, np.int64)] * 2
        _, self.channel = connected_components(coo_matrix((np.ones(len(pairs[0])), pairs), (size, size)), directed=False)
        locked = self._locked(found)
        produced = {int(labels[0]) for labels in found.produced}
        self.outputs = {
            (path, i) for path, axes in labels.items() for i, axis in enumerate(axes) if axis is not None and int(axis[0]) in produced
        }
        used: dict[int, list[tuple[str, int]]] = {}
        for path, axes in labels.items():
            for i, axis in enumerate(axes):
                for channel in np.unique(self.channel[axis]).tolist() if axis is not None else ():
                    used.setdefault(channel, []).append((path, i))
        groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
        self.kept: dict[str, str] = {}
        for channel, where in used.items():
            layers = [place for place in where if place in self.outputs]
            if not layers:
                continue
            if channel not in locked:
                groups.setdefault(tuple(where), []).append(channel)
            elif locked[channel]:
                self.kept.update((_layer(path), locked[channel]) for path, _ in layers)
        self.groups = [Group(np.array(channels), axes) for axes, channels in groups.items()]

    def _locked(self, found: Channels) -> dict[int, str]:
        """Return why each channel that cannot be removed cannot, "" if one of the reasons need not be reported."""
        locked: dict[int, str] = {}
        for labels, why in found.locked:
            for channel in np.unique(self.channel[labels]).tolist():
                locked[channel] = why if locked.get(channel, why) else ""
        return locked

    def steps(self) -> list[Step]:
        """Return the steps in which the groups become smaller, in the order in which they are taken: all lose equal shares."""
        steps: list[Step] = []
        for number, group in enumerate(self.groups):
            size = len(group.channels)
            steps.extend(Step((size - left) / size, number, left) for left in range(self.multiple_of, size, self.multiple_of))
        return sorted(steps)

    def removed(self, steps: Iterable[Step], ranks: Mapping[int, int]) -> np.ndarray:
        """Return which labels are removed after these steps: in each group, the channels of the lowest ranks."""
        gone = np.zeros(self.channel.max() + 1, bool)
        for number, left in {step.group: step.left for step in steps}.items():
            channels = self.groups[number].channels
            gone[sorted(channels.tolist(), key=ranks.__getitem__)[: len(channels) - left]] = True
        return gone[self.channel]

    def ranks(self, variables: Mapping[str, Any], by: str) -> dict[int, int]:
        """Return the rank of each channel within its group: 0 for the one that matters least.

        Args:
            variables: The variables.
            by: One of `MEASURES`.
        """
        arrays = {path: np.abs(np.asarray(leaf, np.float32)) for path, leaf in leaves(variables).items()}
        scaled = [any(path.endswith("/scale") for path, _ in group.axes) for group in self.groups]
        if by == "scale" and not any(scaled):
            raise UserError("prune: by='scale' needs layers that a normalisation with a scale follows; use by='magnitude'.")
        ranks: dict[int, int] = {}
        for group, has_scale in zip(self.groups, scaled):
            axes = [place for place in group.axes if place in self.outputs]
            if by == "scale" and has_scale:
                axes = [place for place in group.axes if place[0].endswith("/scale")]
            ratings = np.mean([self._rating(group, arrays[path], path, axis) for path, axis in axes], axis=0)
            ranks |= {int(channel): rank for rank, channel in enumerate(group.channels[np.argsort(ratings, kind="stable")])}
        return ranks

    def _rating(self, group: Group, array: np.ndarray, path: str, axis: int) -> np.ndarray:
        """Return the Euclidean norm of what each channel of a group has of a variable, relative to the mean of all."""
        squares = np.square(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)).sum(1)
        sums = np.bincount(self.channel[self.labels[path][axis]], squares, self.channel.max() + 1)[group.channels]
        return np.sqrt(sums) / max(float(np.sqrt(sums).mean()), np.finfo(np.float32).tiny)

    def multiply_adds(self, removed: np.ndarray) -> float:
        """Return the multiply-adds that are left."""
        return sum(_left(product, removed) for product in self.products)

    def steps_to(self, share: float, ranks: Mapping[int, int]) -> list[Step]:
        """Return the first steps, as few as possible, after which at most this share of the multiply-adds is left.

        Raises:
            UserError: if all of them are not enough.
        """
        steps, total = self.steps(), self.multiply_adds(np.zeros(len(self.channel), bool))

        def left(count: int) -> float:
            return self.multiply_adds(self.removed(steps[:count], ranks)) / total

        if left(len(steps)) > share:
            raise UserError(
                f"prune: flops={share} cannot be reached: with {self.multiple_of} left of the channels of each layer that can be pruned, "
                f"{left(len(steps)):.3g} of the multiply-adds remain; use a larger share."
            )
        return steps[: bisect.bisect_left(range(len(steps)), True, key=lambda count: left(count) <= share)]


def kept_count(labels: np.ndarray, removed: np.ndarray) -> int:
    """Return how many of the labels are left; those of positions and of the input always are."""
    return int(np.count_nonzero(~(removed[np.maximum(labels, 0)] & (labels > 0))))


def _left(product: Product, removed: np.ndarray) -> float:
    return product.multiply_adds * math.prod(kept_count(axis, removed) / len(axis) for axis in product.kernel if axis is not None)


def _layer(path: str) -> str:
    """Return the path of the module of a variable."""
    return path.partition("/")[2].rpartition("/")[0] or path


def report(kept: Mapping[str, str]) -> str:
    """Return one line that says which layers keep all channels, and why."""
    reasons: dict[str, list[str]] = {}
    for path, why in sorted(kept.items()):
        reasons.setdefault(why, []).append(path)
    return "; ".join(f"{_listed(paths)}: {why}" for why, paths in reasons.items())


def _listed(paths: Iterable[str]) -> str:
    first, *more = [*map(repr, paths)]
    return ", ".join([first, *more[:3]]) + (f" and {len(more) - 3} more" if len(more) > 3 else "")
