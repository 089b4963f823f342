"""Which inputs each output along one axis sees, exactly: one set of indices per output phase, stored as the bits of an integer."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from fractions import Fraction

# With more phases, an axis counts as seen whole: the sets would exhaust the memory.
MAX_PHASES = 8192

# The first index, and an integer whose bit i says whether index first + i is in the set; (0, 0) is the empty set.
IndexSet = tuple[int, int]
EMPTY: IndexSet = (0, 0)


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of the outputs along one axis, away from the border of the input.

    Attributes:
        size: Samples from the first to the last that an output depends on, the maximum over all outputs; None if every output depends on
            the whole axis (a global reduction, attention, a dense layer).
        stride: Input samples between neighbouring outputs; a `Fraction` where this is not an integer (1/2 after doubling).
        offset: The first sample that output 0 depends on; negative if it lies in the padding.
        left: Output o depends on no input before o * stride - left, for every o; negative if it depends on later samples only. 0 if size is
            None.
        right: Output o depends on no input after o * stride + right. 0 if size is None.
        period: The number of samples by which a shift of the input shifts the output and leaves it otherwise unchanged: the stride of an
            ordinary network, or 8 for a network of stride 8 whose output is enlarged 8 times. None if there is no such number, because
            size is None or the function depends on the position (coordinates, a resize to a size that is not a multiple).
        holes: Positions within the field, counted from its first sample, that no tap reaches. If outputs see different sets, those of the
            output with the most holes among the ones whose field has that size.
        trimmed: Samples at the start and at the end of the input that were cropped before padding took their place: an output is affected
            by the border if its field reaches into them. (0, 0) unless the function crops and then pads.
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
        """The fraction of the field that at least one tap reaches; a value below 1 is known as gridding."""
        return 1 - len(self.holes) / self.size if self.size else 1.0

    def __repr__(self) -> str:
        """Return size, stride and offset, and the coverage if there are holes."""
        coverage = f", coverage={self.coverage:.3g}" if self.holes else ""
        return f"ReceptiveField(size={self.size}, stride={self.stride}, offset={self.offset}{coverage})"


GLOBAL = ReceptiveField(size=None, period=None)


@dataclasses.dataclass(frozen=True)
class Reach:
    """The sets of inputs that the outputs along an axis see.

    Attributes:
        rate: Input samples between neighbouring outputs.
        sets: The sets of the first outputs. They repeat for later outputs, shifted by rate * len(sets) samples every len(sets) outputs.
        listed: Whether `sets` lists every output, so that nothing repeats before or after it.
        equivariant: Whether shifting the input by a period shifts the output. False if outputs also differ in their weights.
    """

    rate: Fraction
    sets: tuple[IndexSet, ...]
    listed: bool = False
    equivariant: bool = True

    @functools.cached_property
    def inputs(self) -> int:
        """Input samples per period, an integer unless all sets are listed."""
        return int(self.rate * len(self.sets))

    @property
    def period(self) -> int | None:
        """The number of input samples by which the function is shift-equivariant, or None."""
        return self.inputs if self.equivariant and not self.listed else None

    def at(self, output: int) -> IndexSet:
        """Return the set that one output sees."""
        turn, phase = divmod(output, len(self.sets))
        first, bits = self.sets[phase]
        if not bits or (turn and self.listed):
            return EMPTY
        return first + turn * self.inputs, bits

    def sees(self, output: int, size: int) -> bool:
        """Return whether an output sees any of the samples 0 ... size - 1."""
        first, bits = self.at(output)
        return bool((bits << first if first >= 0 else bits >> -first) & ((1 << size) - 1))

    def lies_inside(self, output: int, size: int) -> bool:
        """Return whether an output sees nothing outside the samples 0 ... size - 1."""
        first, bits = self.at(output)
        return first >= 0 and first + bits.bit_length() <= size

    def padding_indices(self, size: int, outputs: int) -> set[int]:
        """Return the indices outside 0 ... size - 1 that any of the first `outputs` outputs sees."""
        indices: set[int] = set()
        for order in (range(outputs), reversed(range(outputs))):
            inside = 0
            for output in order:
                first, bits = self.at(output)
                if first >= 0 and first + bits.bit_length() <= size:
                    inside += 1
                else:
                    inside = 0
                    indices.update(index for index in members(first, bits) if not 0 <= index < size)
                # Once a whole period of outputs sees no padding, those further in do not either.
                if inside == len(self.sets):
                    break
        return indices

    def without_equivariance(self) -> "Reach":
        """Return the same sets, for a function that is not shift-equivariant."""
        return dataclasses.replace(self, equivariant=False)

    def field(self) -> ReceptiveField:
        """Return the receptive field that summarises the sets."""
        phases = [(phase * self.rate, first, bits) for phase, (first, bits) in enumerate(self.sets) if bits]
        stride = self.rate.numerator if self.rate.denominator == 1 else self.rate
        if not phases:
            return ReceptiveField(0, stride, period=self.period)
        size = max(bits.bit_length() for _, _, bits in phases)
        bits = min((bits for _, _, bits in phases if bits.bit_length() == size), key=int.bit_count)
        return ReceptiveField(
            size=size,
            stride=stride,
            offset=phases[0][1],
            left=max(math.ceil(position - first) for position, first, _ in phases),
            right=max(math.ceil(first + bits.bit_length() - 1 - position) for position, first, bits in phases),
            period=self.period,
            holes=tuple(index for index, bit in enumerate(reversed(f"{bits:b}")) if bit == "0"),
        )


IDENTITY = Reach(Fraction(1), ((0, 1),))


def window(taps: int, stride: int = 1, lo: int = 0, dilation: int = 1, base: int = 1) -> Reach:
    """Return the reach of a sliding window: output o reads index o * stride + t * dilation - lo for t = 0 ... taps - 1.

    With `base` above 1, these are indices of an axis whose samples are `base` apart with zeros between them, as in a transposed convolution
    or interior padding.
    """
    # NumPy integers would overflow when used as bit sets.
    taps, stride, lo, dilation, base = map(int, (taps, stride, lo, dilation, base))
    rows = [[phase * stride + t * dilation - lo for t in range(taps)] for phase in range(base // math.gcd(base, stride))]
    return Reach(Fraction(stride, base), tuple(index_set(index // base for index in row if index % base == 0) for row in rows))


def repeat(times: int) -> Reach:
    """Return the reach of repeating every sample `times` times."""
    return Reach(Fraction(1, times), ((0, 1),) * times)


def compose(first: Reach, second: Reach, size: int) -> Reach | None:
    """Return what the `size` outputs of `second` see through `first`; None if there are too many phases."""
    listed = first.listed or second.listed
    outputs = size if listed else len(second.sets) * math.lcm(second.inputs, len(first.sets)) // second.inputs
    if outputs > MAX_PHASES:
        return None
    sets = tuple(union(first.at(index) for index in members(*second.at(output))) for output in range(outputs))
    return Reach(first.rate * second.rate, sets, listed, first.equivariant and second.equivariant)


def merge(a: Reach, b: Reach, size: int) -> Reach | None:
    """Return the union of what `a` and `b` see, for an axis of `size` outputs; None if there are too many phases."""
    if a == b:
        return a
    # Different rates have no common period.
    listed = a.listed or b.listed or a.rate != b.rate
    outputs = size if listed else math.lcm(len(a.sets), len(b.sets))
    if outputs > MAX_PHASES:
        return None
    sets = tuple(union((a.at(output), b.at(output))) for output in range(outputs))
    return Reach(a.rate, sets, listed, a.equivariant and b.equivariant)


def union(sets: Iterable[IndexSet]) -> IndexSet:
    """Return the union of sets."""
    nonempty = [(first, bits) for first, bits in sets if bits]
    start = min((first for first, _ in nonempty), default=0)
    total = 0
    for first, bits in nonempty:
        total |= bits << (first - start)
    return start, total


def index_set(indices: Iterable[int]) -> IndexSet:
    """Return the set of these indices."""
    return union((index, 1) for index in indices)


def members(first: int, bits: int) -> list[int]:
    """Return the indices in a set, in increasing order."""
    return [first + i for i, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]
