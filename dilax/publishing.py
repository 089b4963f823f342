"""Weights in files of their own: variables as safetensors, under names that a person can read, and folders of published weights.

Such a folder, which `python -m train.publish` writes and `dilax.load` reads, holds three files: `WEIGHTS`, all variables; `DESCRIPTION`, in
JSON, the network, its data, and what was measured; and `CARD`, the model card, in the layout of the Hugging Face Hub.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from dilax import arguments
from dilax.errors import UserError, reason, shown
from dilax.files import check_file, replace_file
from dilax.state_dicts import read_safetensors

WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "model.json", "README.md"
HUB = "hf:"  # begins the address of weights on the Hugging Face Hub
_SUFFIX = ".safetensors"
# What NumPy reads back from such a file.
_DTYPES = {
    *("float16", "float32", "float64", "complex64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


def save_weights(variables: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the variables of a Flax module to a .safetensors file, which `read_weights` and other libraries read.

    The parameter params/stem/kernel is called "stem.kernel" in the file. The name of a variable of another collection begins with that
    collection: batch_stats/stem/mean is "batch_stats/stem.mean". Arrays keep the layout of Flax, (*window, c_in / groups, c_out) for a
    kernel.

    Args:
        variables: Nested dicts of arrays, such as `dilax.load("runs/digits").variables`.
        path: The file, whose name ends in .safetensors; "~" is expanded. A file that is there is replaced as a whole, or not at all.

    Raises:
        UserError: if the variables are not nested dicts of arrays, a name or a dtype does not fit the format, the file cannot be written,
            or safetensors is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights({"params": {"stem": {"bias": np.zeros(4)}}}, f"{folder}/weights.safetensors")
        ...     read_weights(f"{folder}/weights.safetensors")
        {'params': {'stem': {'bias': array([0., 0., 0., 0.])}}}
    """
    file = arguments.path("save_weights", "path", path)
    if file.suffix != _SUFFIX:
        raise UserError(f"save_weights: path={shown(str(path))} does not end in {_SUFFIX}; give a name that does.")
    arrays = _named(variables)
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError(f"save_weights: {_missing('writing')}") from error
    _replace(file, safetensors.numpy.save(arrays, metadata={"format": "flax"}))


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the variables that `save_weights` wrote; no model is needed.

    Args:
        path: The file; "~" is expanded.

    Returns:
        The variables as nested dicts of NumPy arrays, {"params": ..., "batch_stats": ...}, equal bit for bit to those that were saved.
        Collections and modules without arrays are not in the file, and not in the result.

    Raises:
        UserError: if the file is missing, damaged, or of another kind, or safetensors is not installed.

    Example:
        >>> variables = read_weights("pretrained/digits/model.safetensors")  # doctest: +SKIP
    """
    file = arguments.path("read_weights", "path", path)
    check_file(file, f"a {_SUFFIX} file")
    try:
        arrays = read_safetensors(file)
    except ImportError as error:
        raise UserError(f"{file} cannot be read: {_missing('reading')}") from error
    flat = {_path_of(name): array for name, array in arrays.items()}
    if not flat or any(path[:depth] in flat for path in flat for depth in range(1, len(path))) or not all(map(all, flat)):
        raise UserError(f"{file} does not hold the variables of a Flax module; give a file that save_weights or train.publish wrote.")
    return traverse_util.unflatten_dict(flat)


def _named(variables: Any) -> dict[str, np.ndarray]:
    """Return the arrays of variables by the names that they have in a file."""
    if not isinstance(variables, Mapping):
        raise UserError(f'save_weights: variables={shown(variables)} are not a dict; give {{"params": ...}}, as from model.init.')
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in _leaves(variables):
        where = "/".join(map(str, path))
        if len(path) < 2:
            raise UserError(f'save_weights: variables hold {where!r} outside of a collection; give {{"params": ...}}, as from model.init.')
        if not all(isinstance(word, str) and word and not set(word) & set("./") for word in path):
            raise UserError(f"save_weights: {where!r} has a name that is empty, no text, or has a dot or a slash; rename that module.")
        arguments.refuse_traced("save_weights", where, leaf)
        dtype = getattr(getattr(leaf, "dtype", None), "name", type(leaf).__name__)
        if dtype not in _DTYPES:
            raise UserError(
                f"save_weights: {where!r} is of dtype {dtype}, which the format lacks; convert it, such as by astype('float32')."
            )
        collection, *words = path
        name = ".".join(words)
        # Not `ascontiguousarray`, which gives a scalar an axis.
        arrays[name if collection == "params" else f"{collection}/{name}"] = np.asarray(leaf, order="C")
    if not arrays:
        raise UserError('save_weights: variables hold no arrays; give {"params": ...}, as from model.init.')
    return arrays


def _leaves(tree: Mapping[Any, Any], path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Return (path, leaf) of everything in nested dicts."""
    found: list[tuple[tuple[Any, ...], Any]] = []
    for key, value in tree.items():
        found += _leaves(value, (*path, key)) if isinstance(value, Mapping) else [((*path, key), value)]
    return found


def _path_of(name: str) -> tuple[str, ...]:
    """Return the path of a variable from its name in a file."""
    collection, slash, words = name.rpartition("/")
    return (collection if slash else "params", *words.split("."))


def _missing(doing: str) -> str:
    return f'{doing} {_SUFFIX} files requires safetensors; run: pip install "dilax-conv[weights]".'


def _replace(file: pathlib.Path, content: bytes) -> None:
    """Replace a file as a whole, or leave everything as it was."""
    try:
        replace_file(file, content)
    except (OSError, ValueError) as error:  # the latter for characters that no path has
        raise UserError(
            f"{file} cannot be written: {getattr(error, 'strerror', None) or error}; fix that, or give another path."
        ) from error


def is_published(folder: pathlib.Path) -> bool:
    """Return whether a folder holds published weights."""
    return (folder / DESCRIPTION).is_file()


def locate(caller: str, argument: str, value: str | os.PathLike[str]) -> pathlib.Path:
    """Return the absolute path of a folder, after fetching it if it is the address of one on the Hugging Face Hub.

    Args:
        caller: Name of the function that the user called, which messages start with.
        argument: Name of the argument.
        value: The folder, in which "~" is expanded; or "hf:owner/name", or "hf:owner/name@revision" for a branch, a tag or a commit.

    Raises:
        UserError: if it is not a path, or cannot be fetched.
    """
    if not isinstance(value, str) or not value.startswith(HUB):
        return arguments.path(caller, argument, value).absolute()
    address = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", value)
    if address is None:
        raise UserError(
            f"{caller}: {argument}={shown(value)} is not of the form hf:owner/name or hf:owner/name@revision; give such a name."
        )
    try:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f'{value}: fetching it requires huggingface_hub; run: pip install "dilax-conv[hub]".') from error
    try:
        folder = snapshot_download(address[1], revision=address[2], allow_patterns=[WEIGHTS, DESCRIPTION])
    except Exception as error:  # its own, those of the system, and those of the library that it speaks HTTP with
        raise UserError(
            f"{value} could not be fetched from the Hugging Face Hub ({reason(error)}); check the name, the network, and for a private "
            "model that you are logged in."
        ) from error
    if not is_published(pathlib.Path(folder)):
        raise UserError(f"{value} does not hold weights that train.publish wrote (it has no {DESCRIPTION}); give another name.")
    return pathlib.Path(folder)
