"""Settings of the process: freed memory is kept, compiled programs too. In processes of their own: both last."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, jax, jax.numpy as jnp
from train import runtime
{setting}
# Two blocks of 48 MB of working memory.
hold = jax.lax.optimization_barrier
step = jax.jit(lambda x: hold(hold(x * 2).T + 1).sum(0))
x = jnp.ones((4096, 3072))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# The first calls still find the places of their blocks.
print(min([faults() for _ in range(12)]))
"""

CACHE = """
import sys, jax
from train import runtime
runtime.keep_compiled_programs(sys.argv[1])
print(jax.config.jax_compilation_cache_dir)
jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: jax.numpy.linalg.inv(x), x))(jax.numpy.eye(3)).block_until_ready()
"""


def run(code, *args, root, **environment):
    command = [sys.executable, "-c", code, *map(str, args)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env={**clean, **environment})
    return done.stdout.split()[-1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
def test_freed_memory_is_kept(root):
    before, after = (int(run(FAULTS.format(setting=setting), root=root)) for setting in ("", "runtime.keep_freed_memory()"))
    assert before > 5000
    assert after < before / 10


def test_compiled_programs_are_kept(root, tmp_path):
    assert run(CACHE, tmp_path / "programs", root=root) == str(tmp_path / "programs")


def test_jax_own_setting_wins_and_nothing_is_nowhere(root, tmp_path):
    assert run(CACHE, tmp_path / "ours", root=root, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs")) == str(tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()
    assert run(CACHE, "", root=root) == "None"


PARTITIONED = """
import jax, dilax
from jax.sharding import NamedSharding, PartitionSpec
from train import runtime
runtime.keep_compiled_programs("")
by_batch = NamedSharding(jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), PartitionSpec("data"))
x = jax.ShapeDtypeStruct((2, 9, 6), "float32", sharding=by_batch)
lowered = jax.jit(dilax.depthwise_conv).lower(x, jax.ShapeDtypeStruct((3, 1, 6), "float32"))
assert "CustomSPMDPartitioning" in lowered.as_text()
lowered.compile()
print("done")
"""


def test_another_process_finds_partitioned_operations_in_the_cache_that_jax_has(root, tmp_path):
    settings = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_NUM_CPU_DEVICES": "2"}
    settings["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    kept = []
    for _ in range(2):
        run(PARTITIONED, root=root, **settings)
        kept.append(sorted(path.name for path in tmp_path.iterdir() if path.name.endswith("-cache")))
    assert kept[0] == kept[1] != []
