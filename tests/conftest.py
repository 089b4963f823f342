"""Strict settings for all tests, and eight virtual devices for those that spread a batch."""

import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def root() -> pathlib.Path:
    return ROOT
