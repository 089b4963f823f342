"""The native part: oneDNN's convolutions in the optional distribution dilax_onednn, and the scope in which "auto" does not use them."""

import contextlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator

import jax

from dilax.lowerings import onednn

# Its distribution and package, and the lowering that it provides.
PACKAGE, LOWERING = "dilax_onednn", "onednn"


def installed() -> bool:
    """Return whether the native part is installed and can be used."""
    return onednn.is_installed()


def note() -> str:
    """Return what the results say of the native part."""
    if not installed():
        return f"{PACKAGE} is not installed: the native part of dilax is not measured"
    return f"auto: as if {PACKAGE} were not installed; auto+native: with it"


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Have "auto" choose as if the native part were not installed, for the programs that are traced and compiled inside the scope.

    Programs that JAX has cached know nothing of the scope, so that its caches are emptied on both sides: compile ahead of time in here.
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


def version() -> str:
    """Return the version of the native part."""
    try:
        return importlib.metadata.version(PACKAGE) if installed() else "not installed"
    except importlib.metadata.PackageNotFoundError:  # importable from a folder, without the metadata of an installation
        return "of unknown version"
