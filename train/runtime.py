"""Settings of the process that trains: memory that is kept, compiled programs that are kept. Neither changes a result."""

import ctypes
import os
import sys

import jax

# glibc's names for what `mallopt` sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
MOST_BYTES = 2**31 - 1
CACHE = "jax_compilation_cache_dir"


def keep_freed_memory() -> None:
    """Have glibc keep blocks of up to 2 GiB when they are freed, instead of giving them back to the system.

    XLA on a CPU takes the working memory of a step as one block and frees it after; as a rule the system then makes each of its pages
    anew for every step, which took a third of a step of a separable network (measured: 357 ms a step, 223 with this setting). Nothing
    happens where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in ((M_ARENA_MAX, 1), (M_TRIM_THRESHOLD, MOST_BYTES), (M_MMAP_THRESHOLD, MOST_BYTES)):
            mallopt(name, value)


def keep_compiled_programs(folder: str) -> None:
    """Keep compiled programs in `folder` ("" is nowhere), unless JAX was told of another one, as by JAX_COMPILATION_CACHE_DIR."""
    if folder and not getattr(jax.config, CACHE):
        jax.config.update(CACHE, os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
