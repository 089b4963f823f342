"""Cells of arrays in .mat files."""

import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dilax.errors import UserError

_INFLATION = 2 * 1032  # zlib compresses up to 1032 times, and the arrays are pickled
_PATIENCE = 120  # seconds, and another per megabyte
# scipy reads .mat files in a process of its own, because a damaged one can make it access invalid memory, which ends the process, or
# allocate what its header claims.
_LOAD_MAT = """
import io, pickle, sys
memory, *names = sys.argv[1:]
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
except (ImportError, ValueError):  # on Windows, or below a lower limit
    pass
try:
    from scipy.io import loadmat
    result = loadmat(io.BytesIO(sys.stdin.buffer.read()), variable_names=names)
except NotImplementedError:
    result = "7.3"
except BaseException as error:
    result = f"{error}"[:120] or type(error).__name__
sys.stdout.buffer.write(pickle.dumps(result))
"""


def read_cells(path: pathlib.Path, content: bytes, names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Return the arrays in cells of shape (1, n), by the names of the cells.

    Args:
        path: The file, for messages.
        content: Its bytes.
        names: The cells.

    Raises:
        UserError: if the file is damaged or in another format, or a cell is missing or has another shape.
    """
    memory = 2**32 + _INFLATION * len(content)
    command = [sys.executable, "-P", "-c", _LOAD_MAT, str(memory), *names]
    one_thread = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # each would take of the memory
    try:
        patience = _PATIENCE + len(content) / 1e6
        done = subprocess.run(command, input=content, capture_output=True, check=False, timeout=patience, env=one_thread)
        variables: Any = "scipy crashed" if done.returncode else pickle.loads(done.stdout)
    except subprocess.TimeoutExpired:
        variables = "scipy did not finish"
    except Exception:  # of many kinds: what scipy reads from invalid memory need not be an array that can be sent
        variables = "scipy misread it"
    if variables == "7.3":
        raise UserError(f"{path} is a .mat file of version 7.3; save it with -v7.")
    if isinstance(variables, str):
        raise UserError(f"{path} cannot be read as a .mat file ({variables}); it is truncated, damaged or in another format.")
    found = {}
    for name in names:
        cells = variables.get(name)
        if cells is None:
            raise UserError(f"{path} has no {name}; give a file with the cells {', '.join(names)}.")
        if cells.dtype != object or cells.ndim != 2 or cells.shape[0] != 1:
            raise UserError(f"{path}: {name} is {cells.dtype} of shape {cells.shape}; give cells of shape (1, sequences).")
        found[name] = [np.asarray(cell) for cell in cells[0]]
    return found
