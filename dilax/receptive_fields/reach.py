"""Which inputs each output along one axis sees, exactly: one set of indices per output phase, stored as the bits of an integer."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np

# With more phases, an axis counts as seen whole: the sets would exhaust the memory.
MAX_PHASES = 8192

# The first index, and an integer whose bit i says whether index first + i is in the set; (0, 0) is the empty set.
IndexSet = tuple[int, int]
EMPTY: IndexSet = (0, 0)
# The first and the last index of a range.
Span = tuple[int, int]
NOTHING: Span = (1 << 62, -(1 << 62))


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
        trimmed: Samples at the start and at the end of the input that were cropped before padding took their place, or that are treated
            otherwise than those in the middle: an output is affected by the border if its field reaches into them. (0, 0) unless the
            function does either.
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
        needs: For each set, the first and the last sample that must lie within the input for the output to be computed as those in the
            middle are. They reach beyond the set where the function crops and then pads. None if they are the ends of the set.
        border: Outputs at the border that see samples beyond the ends of their set, as reflecting padding does, with the first and the last
            sample that they see. All other outputs see nothing beyond the ends of their set.
    """

    rate: Fraction
    sets: tuple[IndexSet, ...]
    listed: bool = False
    equivariant: bool = True
    needs: tuple[Span, ...] | None = None
    border: tuple[tuple[int, Span], ...] = ()

    @functools.cached_property
    def inputs(self) -> int:
        """Input samples per period, an integer unless all sets are listed."""
        return int(self.rate * len(self.sets))

    @property
    def period(self) -> int | None:
        """The number of input samples by which the function is shift-equivariant, or None."""
        return self.inputs if self.equivariant and not self.listed else None

    @functools.cached_property
    def exceptions(self) -> dict[int, Span]:
        """The border, keyed by output."""
        return dict(self.border)

    def at(self, output: int) -> IndexSet:
        """Return the set that one output sees, if it does not lie at the border."""
        turn, phase = divmod(output, len(self.sets))
        first, bits = self.sets[phase]
        if not bits or (turn and self.listed):
            return EMPTY
        return first + turn * self.inputs, bits

    def seen(self, output: int) -> IndexSet:
        """Return a set between whose ends lies all that one output sees, at the border, too.

        Samples that are repeated at the border, as by padding_mode="edge", may lie in holes of the set.
        """
        if output not in self.exceptions:
            return self.at(output)
        first, last = self.exceptions[output]
        return first, (1 << (last - first + 1)) - 1

    def need(self, output: int) -> Span:
        """Return the ends of what must lie within the input for an output to be computed as those in the middle are."""
        turn, phase = divmod(output, len(self.sets))
        first, last = self.needs[phase] if self.needs else ends(self.sets[phase])
        return (first + turn * self.inputs, last + turn * self.inputs) if first <= last else NOTHING

    def is_intact(self, output: int, size: int) -> bool:
        """Return whether an output is computed as those in the middle of an input of `size` samples."""
        first, last = self.need(output)
        return first > last or (first >= 0 and last < size)

    def intact(self, count: int, size: int) -> np.ndarray:
        """Return `is_intact` of the first `count` outputs."""
        turns, phases = np.divmod(np.arange(count), len(self.sets))
        spans = [self.need(phase) for phase in range(len(self.sets))]
        first, last = (np.array([span[side] if span != NOTHING else 0 for span in spans])[phases] + turns * self.inputs for side in (0, 1))
        return np.array([span == NOTHING for span in spans])[phases] | ((first >= 0) & (last < size))

    def lies_inside(self, output: int, size: int) -> bool:
        """Return whether an output sees nothing outside the samples 0 ... size - 1."""
        first, bits = self.at(output)
        return first >= 0 and first + bits.bit_length() <= size

    def sees(self, output: int, size: int) -> bool:
        """Return whether an output sees any of the samples 0 ... size - 1."""
        first, bits = self.at(output)
        return bool((bits << first if first >= 0 else bits >> -first) & ((1 << size) - 1))

    def bounded(self, first: int | None, stop: int | None, samples: int) -> "Reach":
        """Return the same sets, in which outputs before `first` and from `stop` on differ from those in the middle."""
        if self.listed:
            return self
        count, needs = len(self.sets), []
        for phase in range(count):
            lo, hi = self.need(phase)
            if first is not None:
                # The last output of this phase before `first` must need a sample before the input.
                lo = min(lo, -((first - 1 - phase) // count) * self.inputs - 1)
                hi = max(hi, lo)
            if stop is not None:
                hi = max(hi, samples + (phase - stop) // count * self.inputs)
                lo = min(lo, hi)
            needs.append((lo, hi))
        return dataclasses.replace(self, needs=None if tuple(needs) == tuple(map(ends, self.sets)) else tuple(needs))

    def without_equivariance(self) -> "Reach":
        """Return the same sets, for a function that is not shift-equivariant."""
        return dataclasses.replace(self, equivariant=False)

    def field(self) -> ReceptiveField:
        """Return the receptive field that summarises the sets."""
        phases = [(phase * self.rate, first, bits) for phase, (first, bits) in enumerate(self.sets) if bits]
        size = max((bits.bit_length() for _, _, bits in phases), default=0)
        bits = min((bits for _, _, bits in phases if bits.bit_length() == size), key=int.bit_count, default=0)
        spans = [(position, first, first + bits.bit_length() - 1) for position, first, bits in phases]
        left, right = _margins([*spans, *((output * self.rate, *span) for output, span in self.border)])
        # Outputs that see nothing, such as zeros between samples, may be affected by the border as well.
        needs = [(phase * self.rate, *span) for phase, span in enumerate(self.needs or ()) if span != NOTHING]
        halo = _margins(needs) if needs else (left, right)
        return ReceptiveField(
            size=size,
            stride=self.rate.numerator if self.rate.denominator == 1 else self.rate,
            offset=phases[0][1] if phases else 0,
            left=left,
            right=right,
            period=self.period,
            holes=tuple(members(0, (1 << size) - 1 & ~bits)),
            trimmed=(max(halo[0] - left, 0), max(halo[1] - right, 0)),
        )


IDENTITY = Reach(Fraction(1), ((0, 1),))


def _margins(spans: Iterable[tuple[Fraction | int, int, int]]) -> tuple[int, int]:
    """Return the largest distances from positions to the first and to the last sample of their spans; 0 if there are none."""
    spans = [*spans]
    return (
        max((math.ceil(position - first) for position, first, _ in spans), default=0),
        max((math.ceil(last - position) for position, _, last in spans), default=0),
    )


def window(taps: int, stride: int = 1, lo: int = 0, dilation: int = 1, base: int = 1) -> Reach:
    """Return the reach of a sliding window: output o reads index o * stride + t * dilation - lo for t = 0 ... taps - 1.

    With `base` above 1, these are indices of an axis whose samples are `base` apart with zeros between them, as in a transposed convolution
    or interior padding.
    """
    # NumPy integers would overflow when used as bit sets.
    taps, stride, lo, dilation, base = map(int, (taps, stride, lo, dilation, base))
    common = math.gcd(base, stride)
    phases = base // common
    rows: list[list[int]] = [[] for _ in range(phases)]
    for shift in range(-lo, taps * dilation - lo, dilation):
        if shift % common == 0:
            # The one phase whose outputs read a sample at this tap, rather than a zero between samples.
            phase = -shift // common * pow(stride // common, -1, phases) % phases
            rows[phase].append((phase * stride + shift) // base)
    return Reach(Fraction(stride, base), tuple(index_set(row) if row else EMPTY for row in rows))


def repeat(times: int) -> Reach:
    """Return the reach of repeating every sample `times` times."""
    return Reach(Fraction(1, times), ((0, 1),) * times)


def listing(rows: Iterable[Iterable[int]], rate: Fraction = IDENTITY.rate) -> Reach:
    """Return the reach of outputs that each read their own list of samples, of which none repeats another."""
    return Reach(rate, tuple(map(index_set, rows)), listed=True)


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
    if bits.bit_count() * 64 < bits.bit_length():
        # Few members far apart, such as the taps of a large dilation.
        indices = []
        while bits:
            indices.append(first + (bits & -bits).bit_length() - 1)
            bits &= bits - 1
        return indices
    octets = np.frombuffer(bits.to_bytes((bits.bit_length() + 7) // 8, "little"), np.uint8)
    return [first + i for i in np.flatnonzero(np.unpackbits(octets, bitorder="little")).tolist()]


def ends(indices: IndexSet) -> Span:
    """Return the first and the last index in a set."""
    first, bits = indices
    return (first, first + bits.bit_length() - 1) if bits else NOTHING


def hull(spans: Iterable[Span]) -> Span:
    """Return the smallest range that contains all of these ranges."""
    return functools.reduce(lambda a, b: (min(a[0], b[0]), max(a[1], b[1])), spans, NOTHING)


def contains(outer: Span, inner: Span) -> bool:
    """Return whether a range contains another, which may be empty."""
    return inner == NOTHING or (outer[0] <= inner[0] and inner[1] <= outer[1])


def clip(span: Span, size: int) -> Span:
    """Return the part of a range within 0 ... size - 1."""
    first, last = max(span[0], 0), min(span[1], size - 1)
    return (first, last) if first <= last else NOTHING
