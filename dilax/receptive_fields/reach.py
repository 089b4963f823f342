"""Which inputs each output along one axis sees, exactly: one set per output phase, as the bits of an integer."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from fractions import Fraction

# Beyond, an axis counts as seen whole: the sets would fill the memory.
MOST_PHASES = 8192

# The first place, and an integer whose bit i says whether the place first + i is in the set; (0, 0) is the empty set.
Places = tuple[int, int]
NOWHERE: Places = (0, 0)


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """What the outputs along one axis see of the input, away from its border.

    Attributes:
        size: Samples from the first to the last that an output sees, the most over all outputs; None if every output sees the whole axis
            (a global reduction, attention, a dense layer).
        stride: Input samples between neighbouring outputs; a `Fraction` where outputs are not whole samples apart (1/2 after doubling).
        offset: First sample that output 0 sees; negative in the padding.
        left: Output o sees no input before o * stride - left, whichever o is; negative if all it sees comes later. 0 if size is None.
        right: Output o sees no input after o * stride + right. 0 if size is None.
        period: Input samples by which the input may be shifted so that the output shifts, too, and does not change otherwise: the stride
            of an ordinary network, 8 for one of stride 8 whose output is enlarged 8 times. None if there are none: size is None, or the
            function tells places apart (coordinates, a resize to an odd size).
        holes: Places within the field, counted from its first sample, that no tap reaches. Of outputs that see different sets, those of
            one whose field has that size, with the most holes.
        trimmed: Samples at the start and at the end of the input that were cut off before padding took their place: an output feels the
            border if what it sees reaches into them. (0, 0) unless the function crops and then pads.
    """

    size: int | None
    stride: int | Fraction = 1
    offset: int = 0
    left: int = 0
    right: int = 0
    period: int | None = 1
    holes: tuple[int, ...] = ()
    trimmed: tuple[int, int] = (0, 0)

    @property
    def coverage(self) -> float:
        """Share of the field that any tap reaches; below 1 is gridding."""
        return 1 - len(self.holes) / self.size if self.size else 1.0

    def __repr__(self) -> str:
        """The three numbers of an ordinary field, and the coverage if there are holes."""
        coverage = f", coverage={self.coverage:.3g}" if self.holes else ""
        return f"ReceptiveField(size={self.size}, stride={self.stride}, offset={self.offset}{coverage})"


GLOBAL = ReceptiveField(size=None, period=None)


@dataclasses.dataclass(frozen=True)
class Reach:
    """The sets of inputs that the outputs along an axis see.

    Attributes:
        rate: Input samples between neighbouring outputs.
        sets: What the first outputs see. Later ones see the same again, rate * len(sets) samples further on for every len(sets) outputs.
        listed: The sets are those of all outputs; there is nothing before and after them.
        shifts: Whether the function commutes with shifts by a period; not if places differ in more than what they see.
    """

    rate: Fraction
    sets: tuple[Places, ...]
    listed: bool = False
    shifts: bool = True

    @functools.cached_property
    def inputs(self) -> int:
        """Samples in a period, a whole number unless all sets are listed."""
        return int(self.rate * len(self.sets))

    @property
    def period(self) -> int | None:
        """Input samples by which the function commutes with shifts, if there are such."""
        return self.inputs if self.shifts and not self.listed else None

    def at(self, output: int) -> Places:
        """The inputs that one output sees."""
        turn, phase = divmod(output, len(self.sets))
        first, bits = self.sets[phase]
        if not bits or (turn and self.listed):
            return NOWHERE
        return first + turn * self.inputs, bits

    def sees(self, output: int, size: int) -> bool:
        """Whether an output sees any of the samples 0 ... size - 1."""
        first, bits = self.at(output)
        return bool((bits << first if first >= 0 else bits >> -first) & ((1 << size) - 1))

    def lies_inside(self, output: int, size: int) -> bool:
        """Whether all that an output sees are samples 0 ... size - 1."""
        first, bits = self.at(output)
        return first >= 0 and first + bits.bit_length() <= size

    def reads(self, size: int, outputs: int) -> set[int]:
        """The places outside 0 ... size - 1 that any of the first `outputs` outputs sees."""
        found: set[int] = set()
        for order in (range(outputs), reversed(range(outputs))):
            inside = 0
            for output in order:
                first, bits = self.at(output)
                if first >= 0 and first + bits.bit_length() <= size:
                    inside += 1
                else:
                    inside = 0
                    found.update(place for place in members(first, bits) if not 0 <= place < size)
                # A whole period of them sees none; nor do those further in.
                if inside == len(self.sets):
                    break
        return found

    def pinned(self) -> "Reach":
        """The same sets in a function that does not commute with shifts."""
        return dataclasses.replace(self, shifts=False)

    def field(self) -> ReceptiveField:
        """The numbers that describe it."""
        seen = [(phase * self.rate, first, bits) for phase, (first, bits) in enumerate(self.sets) if bits]
        stride = self.rate.numerator if self.rate.denominator == 1 else self.rate
        if not seen:
            return ReceptiveField(0, stride, period=self.period)
        size = max(bits.bit_length() for _, _, bits in seen)
        bits = min((bits for _, _, bits in seen if bits.bit_length() == size), key=int.bit_count)
        return ReceptiveField(
            size=size,
            stride=stride,
            offset=seen[0][1],
            left=max(math.ceil(place - first) for place, first, _ in seen),
            right=max(math.ceil(first + bits.bit_length() - 1 - place) for place, first, bits in seen),
            period=self.period,
            holes=tuple(place for place, bit in enumerate(reversed(f"{bits:b}")) if bit == "0"),
        )


IDENTITY = Reach(Fraction(1), ((0, 1),))


def window(taps: int, stride: int = 1, lo: int = 0, dilation: int = 1, base: int = 1) -> Reach:
    """A sliding window: output o reads o * stride + t * dilation - lo for t = 0 ... taps - 1.

    With `base` above 1, that is a place on an axis whose samples are `base` apart, with nothing between them: the window of a transposed
    convolution, or of interior padding.
    """
    # NumPy's integers would overflow as bits.
    taps, stride, lo, dilation, base = map(int, (taps, stride, lo, dilation, base))
    rows = [[phase * stride + t * dilation - lo for t in range(taps)] for phase in range(base // math.gcd(base, stride))]
    return Reach(Fraction(stride, base), tuple(places(place // base for place in row if place % base == 0) for row in rows))


def repeat(times: int) -> Reach:
    """Every sample `times` times."""
    return Reach(Fraction(1, times), ((0, 1),) * times)


def chain(first: Reach, second: Reach, size: int) -> Reach | None:
    """What the `size` outputs of `second` see through `first`; None if there are too many phases."""
    listed = first.listed or second.listed
    outputs = size if listed else len(second.sets) * math.lcm(second.inputs, len(first.sets)) // second.inputs
    if outputs > MOST_PHASES:
        return None
    sets = tuple(union(first.at(place) for place in members(*second.at(output))) for output in range(outputs))
    return Reach(first.rate * second.rate, sets, listed, first.shifts and second.shifts)


def both(a: Reach, b: Reach, size: int) -> Reach | None:
    """What either sees, on an axis of `size` outputs; None if there are too many phases."""
    if a == b:
        return a
    # Outputs that drift apart have no common period.
    listed = a.listed or b.listed or a.rate != b.rate
    outputs = size if listed else math.lcm(len(a.sets), len(b.sets))
    if outputs > MOST_PHASES:
        return None
    return Reach(a.rate, tuple(union((a.at(output), b.at(output))) for output in range(outputs)), listed, a.shifts and b.shifts)


def union(sets: Iterable[Places]) -> Places:
    """All places that are in any of the sets."""
    found = [(first, bits) for first, bits in sets if bits]
    start = min((first for first, _ in found), default=0)
    total = 0
    for first, bits in found:
        total |= bits << (first - start)
    return start, total


def places(each: Iterable[int]) -> Places:
    """The set of these places."""
    return union((place, 1) for place in each)


def members(first: int, bits: int) -> list[int]:
    """The places in a set."""
    return [first + i for i, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]
