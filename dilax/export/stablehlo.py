"""StableHLO, by `jax.export`: one file for CPU, CUDA and TPU, which JAX runs without dilax."""

import jax
from jax import export as jax_export

from dilax.errors import UserError, reason
from dilax.export.packages import required
from dilax.export.ports import Program, Run, appended, appended_metadata, checked_run
from dilax.lowerings import use_lowering

PLATFORMS = ("cpu", "cuda", "tpu")


def write(program: Program) -> bytes:
    """Return the bytes of a program, to which its names and metadata are appended."""
    required("flatbuffers", "stablehlo")
    with use_lowering("lax"):
        # A function of its own, so that the trace is not one that was cached in another scope.
        exported = jax_export.export(jax.jit(lambda *arrays: program.function(*arrays)), platforms=PLATFORMS)(*program.shapes())
    names = {"inputs": [port.name for port in program.inputs], "outputs": list(program.outputs)}
    return appended(bytes(exported.serialize()), names | {"metadata": dict(program.metadata)})


def load(data: bytes) -> Run:
    """Return a function that runs the program in JAX."""
    required("flatbuffers", "stablehlo")
    try:
        exported = jax_export.deserialize(bytearray(data))
    except Exception as error:  # flatbuffers and XLA have exceptions of their own
        raise UserError(
            f"load_exported: the data is not a StableHLO program ({reason(error)}); give that of format 'stablehlo'."
        ) from error
    return checked_run(len(exported.in_avals), "stablehlo", lambda arrays: exported.call(*arrays))


def metadata(data: bytes) -> dict[str, str]:
    """Return the metadata that `write` has stored."""
    return appended_metadata(data)
