"""Strict settings for all tests, and eight virtual devices for those that spread a batch."""

import gc
import os
import pathlib
import signal
import tempfile

import hypothesis
import jax
import pytest

# Most programs run once, and compiling them takes most of the time: LLVM is to hurry over what XLA has made of them, and XLA to make it the
# short way. To test with all optimisations: XLA_FLAGS=--xla_backend_optimization_level=3 python -m pytest
HURRY = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # XLA does not start with a flag that it does not know
    HURRY += " --xla_cpu_use_fusion_emitters=false"
if "xla_backend_optimization_level" not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{flags} {HURRY}"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs that several tests, and the processes they start, have in common are compiled once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="dilax-tests-", ignore_cleanup_errors=True)
    os.environ.update(JAX_COMPILATION_CACHE_DIR=CACHE.name, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.2")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Tests stop runs by signals, which are ignored, by the processes that they start as well, if the tests run under nohup or in the background.
if "PYTEST_XDIST_WORKER" in os.environ:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tracing makes many objects, of which few are garbage: to look for it less often saves a twentieth of the time.
gc.freeze()
gc.set_threshold(100_000, 50, 50)

# Random tests draw the same examples in each run; HYPOTHESIS_PROFILE=thorough draws many others.
hypothesis.settings.register_profile("quick", derandomize=True, deadline=None, database=None, max_examples=25)
every_check = list(hypothesis.HealthCheck)
hypothesis.settings.register_profile("thorough", deadline=None, database=None, max_examples=1000, suppress_health_check=every_check)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def root() -> pathlib.Path:
    return ROOT


# It imports torch and torchvision, which need not be there, to look for doctests.
collect_ignore = ["golden/make_networks.py"]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> pathlib.Path:
    """A config file of a tiny run, whose variant is a dict of changes."""
    from tiny_runs import write_config_file  # not for tests without a run

    return write_config_file(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> pathlib.Path:
    """The folder of a tiny run of one process with eight devices."""
    from tiny_runs import tiny

    from train import loop

    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    assert loop.run(tiny(), workdir) == 0
    return workdir
