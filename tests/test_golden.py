"""dilax against results of torch that were computed once, by tests/golden/make_golden.py."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import reference

import dilax

GOLDEN = Path(__file__).parent / "golden"


def tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def load(name: str) -> list[Any]:
    """One pytest parameter per case: its arrays, and dilax's arguments."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        cases = json.loads(str(stored["arguments"]))
        arrays = {case: {key.rpartition(".")[2]: stored[key] for key in stored.files if key.startswith(f"{case}.")} for case in cases}
    return [pytest.param(arrays[case], {key: tuples(value) for key, value in given.items()}, id=case) for case, given in cases.items()]


def by_lowering(name: str, of: str, to: str) -> list[Any]:
    """`load`, each case by every lowering that can compute the convolution of the array `of` to the array `to`."""
    ways = []
    for case in load(name):
        arrays, given = case.values
        (batch, *space, c_in), window, c_out = arrays[of].shape, arrays["kernel"].shape[:-2], arrays[to].shape[-1]
        stride, dilation = (reference.per_axis(given.get(word, 1), len(space)) for word in ("stride", "dilation"))
        pads = dilax.explicit_padding(tuple(space), window, stride=stride, padding=given["padding"], dilation=dilation)
        plan = dilax.ConvPlan(batch, tuple(space), c_in, c_out, window, stride, pads, dilation, given.get("groups", 1), "float32")
        able = (lowering for lowering in dilax.LOWERINGS if dilax.lowerings.supports(lowering, plan))
        ways += [pytest.param(*case.values, lowering, id=f"{case.id}-{lowering}") for lowering in able]
    return ways


def close(actual: Any, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("arrays", "arguments", "lowering"), by_lowering("conv", "x", "y"))
def test_conv_equals_torch(arrays, arguments, lowering):
    y, pull_back = jax.vjp(lambda x, kernel: dilax.dilated_conv(x, kernel, **arguments, lowering=lowering), arrays["x"], arrays["kernel"])
    for_x, for_kernel = pull_back(arrays["g"])
    close(y, arrays["y"])
    close(for_x, arrays["for_x"])
    close(for_kernel, arrays["for_kernel"])


@pytest.mark.parametrize(("arrays", "arguments", "lowering"), by_lowering("conv_transpose", "y", "x"))
def test_conv_transpose_equals_torch(arrays, arguments, lowering):
    y, pull_back = jax.vjp(
        lambda x, kernel: dilax.dilated_conv_transpose(x, kernel, **arguments, lowering=lowering), arrays["x"], arrays["kernel"]
    )
    for_x, for_kernel = pull_back(arrays["g"])
    close(y, arrays["y"])
    close(for_x, arrays["for_x"])
    close(for_kernel, arrays["for_kernel"])


@pytest.mark.parametrize(("arrays", "arguments"), load("conv"))
def test_oracle_conv_equals_torch(arrays, arguments):
    x, kernel, g = arrays["x"], arrays["kernel"], arrays["g"]
    close(reference.conv(x, kernel, **arguments), arrays["y"])
    close(reference.conv_transpose(g, kernel, x.shape[1:-1], **arguments), arrays["for_x"])
    close(reference.kernel_gradient(x, g, kernel.shape[:-2], **arguments), arrays["for_kernel"])


@pytest.mark.parametrize(("arrays", "arguments"), load("conv_transpose"))
def test_oracle_conv_transpose_equals_torch(arrays, arguments):
    arguments = dict(arguments)
    space = arguments.pop("output_size")
    x, kernel, g = arrays["x"], arrays["kernel"], arrays["g"]
    close(reference.conv_transpose(x, kernel, space, **arguments), arrays["y"])
    close(reference.conv(g, kernel, **arguments), arrays["for_x"])
    close(reference.kernel_gradient(g, x, kernel.shape[:-2], **arguments), arrays["for_kernel"])
