"""oneDNN's convolutions as a custom call of XLA: loads the libraries and registers the call.

`dilax` imports this package if it is installed, and uses it for convolutions on a CPU.
"""

import contextlib
import ctypes
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from importlib import metadata

import jax
import numpy as np

__version__ = metadata.version("dilax-onednn")
ONEDNN = "3.2"
TARGET = "dilax_onednn_convolve"
# The calls that `dilax` may make; it uses no other version.
INTERFACE = 3
# How long a thread of OpenMP waits for work in a loop before it sleeps: about 0.1 ms instead of 4 ms. For that time it takes a core from
# XLA's threads, whose operations follow oneDNN's.
SPIN_COUNT = "2000"
CHOICES_OF_USERS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@contextlib.contextmanager
def _short_spin() -> Iterator[None]:
    """Have OpenMP, if it is loaded in this scope, read `SPIN_COUNT`, unless the user has chosen how it waits."""
    chosen = any(name in os.environ for name in CHOICES_OF_USERS)
    if not chosen:
        os.environ[CHOICES_OF_USERS[0]] = SPIN_COUNT
    try:
        yield
    finally:
        if not chosen:
            del os.environ[CHOICES_OF_USERS[0]]


def _load() -> ctypes.CDLL:
    """Load oneDNN from the wheel that holds it, and then this package's library, which needs it."""
    files = metadata.files("onednn-cpu-gomp") or []
    found = next((file for file in files if file.name == "libdnnl.so.3"), None)
    if found is None:
        raise ImportError("onednn-cpu-gomp does not hold libdnnl.so.3")
    with _short_spin():
        ctypes.CDLL(str(found.locate()))
    library = ctypes.CDLL(str(pathlib.Path(__file__).with_name("dilax_onednn.so")))
    library.dilax_onednn_supports.argtypes = [
        ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64
    ]  # fmt: skip
    library.dilax_onednn_instruction_set.restype = ctypes.c_char_p
    return library


_LIBRARY = _load()
jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(getattr(_LIBRARY, TARGET)), platform="cpu")


@functools.lru_cache(maxsize=4096)
def implementation(dtype: str, sizes: tuple[int, ...]) -> str | None:
    """Return the name of the implementation that computes an operation on this processor, or None.

    Args:
        dtype: Name of the dtype of the operands and the result.
        sizes: As `convolve`.
    """
    text, numbers = ctypes.create_string_buffer(256), np.array(sizes, np.int64)
    found = _LIBRARY.dilax_onednn_supports(
        dtype.encode(), numbers.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)), len(sizes), text, len(text)
    )
    return text.value.decode() if found else None


def instruction_set() -> str:
    """Return the name of the newest instruction set that oneDNN uses on this processor."""
    return _LIBRARY.dilax_onednn_instruction_set().decode()


def convolve(first: jax.Array, second: jax.Array, shape: Sequence[int], sizes: Sequence[int]) -> jax.Array:
    """Compute a convolution or one of its gradients.

    Args:
        first: x (batch, *space, c_in), or y (batch, *space, c_out) for the input gradient.
        second: The kernel (*taps, c_in // groups, c_out), or y for the kernel gradient.
        shape: The shape of the result.
        sizes: The operation (0 for the output, 1 for the input gradient, 2 for the kernel gradient), batch, c_in, c_out and groups, then
            for all spatial axes: input sizes, taps, output sizes, strides, dilations, padding before and padding after.
    """
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(tuple(shape), first.dtype))
    return call(first, second, sizes=np.array(sizes, np.int64))
