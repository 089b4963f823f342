"""What the tests share that draw arguments at random: shares of the examples of the profile, arrays, and the text of a refusal."""

from collections.abc import Callable
from typing import Any

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest

from dilax.errors import UserError

DTYPES = {"float32": 3e-5, "bfloat16": 0.02, "float16": 0.003}


def fuzz(share: float, *strategies: Any, **named: Any) -> Callable[[Any], Any]:
    """Draw a share of the examples of the profile: each new shape is compiled."""

    def decorate(law: Any) -> Any:
        return hypothesis.settings(max_examples=max(1, round(share * hypothesis.settings().max_examples)))(
            hypothesis.given(*strategies, **named)(law)
        )

    return decorate


def array(seed: int, *shape: int, dtype: str = "float32") -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(0.3, 1.0, shape), dtype)


def exact(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def close(actual: Any, expected: np.ndarray, dtype: str = "float32") -> None:
    assert actual.dtype == dtype and actual.shape == expected.shape
    tolerance = DTYPES[dtype]
    np.testing.assert_allclose(exact(actual), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max(initial=1e-30))


def refusal(error: UserError, name: str | tuple[str, ...], right: bool = True) -> None:
    """Check the text of a refusal, and that the oracle finds it right."""
    text = str(error)
    assert right, text
    names = (name,) if isinstance(name, str) else name
    assert text.startswith(tuple(f"{one}: " for one in names)) and "\n" not in text and len(text) < 500, text


def refused(name: str, function: Callable[..., Any], *arrays: Any) -> None:
    with pytest.raises(UserError) as caught:
        function(*arrays)
    refusal(caught.value, name)
