"""A config key: its default, what it means, which values it takes, and whether it may change when a run is resumed."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from dilax.errors import UserError, did_you_mean, shown


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        default: Its default value; its type is the type of the key.
        meaning: What it does, in one line, for the documentation.
        limits: The smallest and the largest number it takes.
        choices: The values it takes, if they are few.
        may_change: Whether a run may be resumed with another value.
        items: Type of the items of a tuple; None leaves them unchecked.
        needs: Another key, and the values of it without which nothing reads this one; () for the values is any but an empty one.
    """

    default: Any
    meaning: str
    limits: tuple[float, float] = (-math.inf, math.inf)
    choices: tuple[str, ...] = ()
    may_change: bool = False
    items: type | None = None
    needs: tuple[str, tuple[Any, ...]] | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise UserError unless `value` is one that the key called `name` takes."""
        kinds, what = _KINDS[type(self.default)]
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(self.default, bool):
            raise UserError(f"config.{name}={shown(value)} must be {what}; its default is {self.default!r}.")
        if self.choices and value not in self.choices:
            raise UserError(f"config.{name}={shown(value)} is unknown; use one of {self.choices}.{did_you_mean(str(value), self.choices)}")
        if self.items and not all(isinstance(item, self.items) and not isinstance(item, bool) for item in value):
            what, such = ("whole numbers", "(0, 2)") if self.items is int else ("texts", "('a', 'b')")
            raise UserError(f"config.{name}={shown(tuple(value))} must hold {what}, such as {such}, or be ().")
        lowest, highest = self.limits
        if isinstance(value, int | float) and not (lowest <= value <= highest and math.isfinite(value)):
            raise UserError(
                f"config.{name}={value} is out of range; give a{' finite' * math.isinf(value)} number {_range(lowest, highest)}."
            )


# The type of a default -> the types of the values, in words.
_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    tuple: ((tuple, list), "a tuple"),
}
Keys = dict[str, Key]
Reads = Mapping[str, Collection[str]]  # kind of data -> keys
OTHER = "a set of TFDS"  # as a kind of data: what config.data.name names if it names no other kind
UNLIMITED = math.inf
ON_BAD = Key(
    "refuse",
    'what happens to files that cannot be read: "refuse" ends the run, "skip" reads all files at the start and leaves those out, by name',
    choices=("refuse", "skip"),
    may_change=True,
)
POSITIVE = 1e-9  # as the smallest number of a key: any number above 0


def _range(lowest: float, highest: float) -> str:
    """Word limits, such as "above 0" or "from 0 to 1"."""
    if lowest == -UNLIMITED:
        return "that is finite"
    if highest == UNLIMITED:
        return "above 0" if lowest == POSITIVE else f"of {lowest:g} or more"
    return f"above 0, up to {highest:g}" if lowest == POSITIVE else f"from {lowest:g} to {highest:g}"
