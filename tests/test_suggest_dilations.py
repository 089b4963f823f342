"""Compare the suggested stacks with an exhaustive search."""

import functools
import itertools

import pytest

from dilax import UserError, suggest_dilations


def seen(kernel_size, dilations):
    """Return the positions that a stack reaches, counted from the first, by trying every combination of taps."""
    positions = {0}
    for dilation in dilations:
        positions = {position + tap * dilation for position in positions for tap in range(kernel_size)}
    return positions


def has_no_holes(kernel_size, dilations):
    positions = seen(kernel_size, dilations)
    return len(positions) == max(positions) + 1


@functools.cache
def fields(kernel_size, layers):
    """Return the fields and sums of all stacks without holes that have that many layers and dilations of at most 24."""
    stacks = itertools.combinations_with_replacement(range(1, 25), layers)
    return [(max(seen(kernel_size, stack)) + 1, sum(stack)) for stack in stacks if has_no_holes(kernel_size, stack)]


def smallest_sum(kernel_size, layers, target_size):
    return min((total for field, total in fields(kernel_size, layers) if field >= target_size), default=None)


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
def test_equals_a_search(kernel_size):
    for target_size in range(2, 17):
        stack = suggest_dilations(kernel_size, target_size)
        assert has_no_holes(kernel_size, stack)
        assert list(stack) == sorted(stack)
        assert smallest_sum(kernel_size, len(stack) - 1, target_size) is None
        assert smallest_sum(kernel_size, len(stack), target_size) == sum(stack)
        assert 1 + (kernel_size - 1) * sum(stack) >= target_size


@pytest.mark.parametrize("kernel_size", [2, 3, 4])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_equals_a_search_with_a_given_number_of_layers(kernel_size, layers):
    for target_size in range(1, min(kernel_size**layers, 24) + 1):
        stack = suggest_dilations(kernel_size, target_size, layers=layers)
        assert len(stack) == layers
        assert has_no_holes(kernel_size, stack)
        assert smallest_sum(kernel_size, layers, target_size) == sum(stack)


def test_known_answers():
    assert suggest_dilations(3, 17) == (1, 2, 5)
    assert suggest_dilations(3, 27) == (1, 3, 9)
    assert suggest_dilations(2, 1024) == tuple(2**i for i in range(10))
    assert suggest_dilations(3, 3, layers=4) == (1, 1, 1, 1)
    assert suggest_dilations(3, 1) == ()
    assert suggest_dilations(1, 1, layers=2) == (1, 1)
    assert suggest_dilations(7, 1) == ()


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((0, 5), {}, "suggest_dilations: kernel_size=0 is not a positive integer; use 1 or more."),
        ((3, 5.5), {}, "suggest_dilations: target_size=5.5 is not a positive integer; use 1 or more."),
        ((3, 5), {"layers": 0}, "suggest_dilations: layers=0 is not a positive integer; use 1 or more."),
        ((1, 5), {}, "suggest_dilations: kernels of one tap see one sample at any dilation, not 5; use kernel_size=2 or more."),
        (
            (3, 28),
            {"layers": 3},
            "suggest_dilations: 3 layers of 3 taps see at most 27 samples without holes, not 28; use layers=4 or a larger kernel_size.",
        ),
    ],
)
def test_impossible_requests(arguments, options, text):
    with pytest.raises(UserError) as error:
        suggest_dilations(*arguments, **options)
    assert str(error.value) == text
