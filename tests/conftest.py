"""Strict settings for all tests, and eight virtual devices for those that spread a batch."""

import ctypes
import gc
import os
import pathlib
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis
import jax
import pytest

# Most programs run once, and compiling them takes most of the time: LLVM is to hurry over what XLA has made of them, and XLA to make it the
# short way. To test with all optimisations: XLA_FLAGS=--xla_backend_optimization_level=3 python -m pytest
HURRY = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_prefer_vector_width=128"
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
    os.environ["JAX_REMOVE_CUSTOM_PARTITIONING_PTR_FROM_CACHE_KEY"] = "1"  # see train.runtime: each tracing has an address of its own
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)

# The many processes that tests start import JAX and dilax from bytecode, which some environments do not write.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

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
GROWTH = 2**30  # bytes
# The files that take longest come first: each runs in one worker, and the last to come would leave the other idle.
LONGEST = ("test_parallel", "test_tasks", "test_configs", "test_hosts", "test_notebook", "test_loop", "test_folder", "test_functional")


def resident() -> int:
    """The memory that this process holds, in bytes; 0 where the system does not say."""
    counts = pathlib.Path("/proc/self/statm")
    return int(counts.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if counts.exists() else 0


class Memory:
    """Compiled programs, of which few are used again, are dropped whenever a process has grown by `GROWTH`."""

    def __init__(self) -> None:
        self.before = resident()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        done: Any = yield
        if resident() - self.before > GROWTH:
            jax.clear_caches()
            gc.collect()
            if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc keeps what is freed
                libc.malloc_trim(0)
            self.before = resident()
        return done


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" not in config.option.markexpr and not any("::" in word for word in config.args):  # which names a single test
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if "slow" not in config.option.markexpr:
        terminalreporter.write_line("Slow cases, which repeat what others cover, are left out: -m slow runs them.")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Memory())  # for doctests as well, to which the hooks of this file do not apply


@pytest.fixture
def root() -> pathlib.Path:
    return ROOT


# They import torch and other packages, which need not be there, to look for doctests.
collect_ignore_glob = ["golden/make_*.py"]


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
