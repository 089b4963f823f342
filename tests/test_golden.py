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


def close(actual: Any, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("arrays", "arguments"), load("conv"))
@pytest.mark.parametrize("lowering", list(dilax.LOWERINGS))
def test_conv_equals_torch(arrays, arguments, lowering):
    y, pull_back = jax.vjp(lambda x, kernel: dilax.dilated_conv(x, kernel, **arguments, lowering=lowering), arrays["x"], arrays["kernel"])
    for_x, for_kernel = pull_back(arrays["g"])
    close(y, arrays["y"])
    close(for_x, arrays["for_x"])
    close(for_kernel, arrays["for_kernel"])


@pytest.mark.parametrize(("arrays", "arguments"), load("conv_transpose"))
@pytest.mark.parametrize("lowering", list(dilax.LOWERINGS))
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
