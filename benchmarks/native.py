"""The native part: the lowering "onednn" of the optional distribution dilax-onednn, and the scope in which "auto" does not use it."""

import contextlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator

import jax

from dilax.lowerings import onednn

# Its package, and its lowering.
PACKAGE, LOWERING = "dilax_onednn", "onednn"


def installed() -> bool:
    """Return whether the native part is installed and can be used."""
    return onednn.is_installed()


def version() -> str:
    """Return the version of the native part."""
    if not installed():
        return "not used" if importlib.util.find_spec(PACKAGE) else "not installed"
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:  # importable from a folder, without the metadata of an installation
        return "of unknown version"


def note() -> str:
    """Return one line that says whether the native part is measured, and if not, why."""
    status = onednn.status()
    return f"{status} auto: without it; auto+native: with it" if installed() else f"auto+native is not measured: {status}"


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Have "auto" choose as if the native part were not installed, for the programs that are traced and compiled inside the scope.

    JAX's caches are emptied on both sides, since the programs in them know nothing of the scope. Compile ahead of time in here.
    """
    before = os.environ.get(onednn.SWITCH)
    os.environ[onednn.SWITCH] = "0"
    jax.clear_caches()
    try:
        yield
    finally:
        os.environ.pop(onednn.SWITCH)
        if before is not None:
            os.environ[onednn.SWITCH] = before
        jax.clear_caches()


def scope(name: str) -> contextlib.AbstractContextManager[None]:
    """Return the scope in which a contender is compiled: `hidden`, unless it is named after the native part."""
    return hidden() if installed() and not name.endswith("native") and name != LOWERING else contextlib.nullcontext()
