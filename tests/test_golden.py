"""Compare dilax with results of torch that tests/golden/make_golden.py computed once."""

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
    """Return the lists of JSON as tuples."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def load(name: str) -> list[Any]:
    """Return one pytest parameter per case: its arrays, and the arguments of dilax."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        cases = json.loads(str(file["arguments"]))
        arrays = {case: {key.rpartition(".")[2]: file[key] for key in file.files if key.startswith(f"{case}.")} for case in cases}
    return [pytest.param(arrays[case], {key: tuples(value) for key, value in options.items()}, id=case) for case, options in cases.items()]


def by_lowering(name: str, x: str, y: str) -> list[Any]:
    """Return the cases of `load` for every lowering that supports the convolution from the array `x` to the array `y`."""
    params = []
    for case in load(name):
        arrays, options = case.values
        (batch, *space, c_in), window, c_out = arrays[x].shape, arrays["kernel"].shape[:-2], arrays[y].shape[-1]
        stride, dilation = (reference.per_axis(options.get(word, 1), len(space)) for word in ("stride", "dilation"))
        pads = dilax.explicit_padding(tuple(space), window, stride=stride, padding=options["padding"], dilation=dilation)
        plan = dilax.ConvPlan(batch, tuple(space), c_in, c_out, window, stride, pads, dilation, options.get("groups", 1), "float32")
        supported = (lowering for lowering in dilax.LOWERINGS if dilax.lowerings.supports(lowering, plan))
        params += [pytest.param(*case.values, lowering, id=f"{case.id}-{lowering}") for lowering in supported]
    return params


def assert_close(actual: Any, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())


def check(op: Any, arrays: Any, arguments: Any, lowering: str) -> None:
    """Compare an operation and its gradients with the arrays, in one compiled program."""

    @jax.jit
    def run(x: jax.Array, kernel: jax.Array, g: jax.Array) -> Any:
        y, pullback = jax.vjp(lambda x, kernel: op(x, kernel, **arguments, lowering=lowering), x, kernel)
        return y, *pullback(g)

    for actual, name in zip(run(arrays["x"], arrays["kernel"], arrays["g"]), ("y", "for_x", "for_kernel"), strict=True):
        assert_close(actual, arrays[name])


@pytest.mark.parametrize(("arrays", "arguments", "lowering"), by_lowering("conv", "x", "y"))
def test_conv_equals_torch(arrays, arguments, lowering):
    check(dilax.dilated_conv, arrays, arguments, lowering)


@pytest.mark.parametrize(("arrays", "arguments", "lowering"), by_lowering("conv_transpose", "y", "x"))
def test_conv_transpose_equals_torch(arrays, arguments, lowering):
    check(dilax.dilated_conv_transpose, arrays, arguments, lowering)


@pytest.mark.parametrize(("arrays", "arguments"), load("conv"))
def test_oracle_conv_equals_torch(arrays, arguments):
    x, kernel, g = arrays["x"], arrays["kernel"], arrays["g"]
    assert_close(reference.conv(x, kernel, **arguments), arrays["y"])
    assert_close(reference.conv_transpose(g, kernel, x.shape[1:-1], **arguments), arrays["for_x"])
    assert_close(reference.kernel_gradient(x, g, kernel.shape[:-2], **arguments), arrays["for_kernel"])


@pytest.mark.parametrize(("arrays", "arguments"), load("conv_transpose"))
def test_oracle_conv_transpose_equals_torch(arrays, arguments):
    arguments = dict(arguments)
    space = arguments.pop("output_size")
    x, kernel, g = arrays["x"], arrays["kernel"], arrays["g"]
    assert_close(reference.conv_transpose(x, kernel, space, **arguments), arrays["y"])
    assert_close(reference.conv(g, kernel, **arguments), arrays["for_x"])
    assert_close(reference.kernel_gradient(g, x, kernel.shape[:-2], **arguments), arrays["for_kernel"])
