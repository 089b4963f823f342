"""Convert state dicts of other libraries to variables of a Flax module. The rules of each model are defined beside the model.

A rule is a pair: a regular expression that must match the full name of a foreign module, and the path of the Flax module that takes its
parameters (or `IGNORED`). The individual parameters are then mapped by name and by what the path holds:

| foreign parameter | Flax variable |
|---|---|
| `weight` of a convolution (c_out, c_in / groups, *window) | `kernel` (*window, c_in / groups, c_out) |
| `weight` of a linear layer (c_out, c_in), or of a 1x1 convolution that is a dense layer here | `kernel` (c_in, c_out) |
| `weight`, `bias` of a normalisation | `scale`, `bias` |
| `running_mean`, `running_var` | `mean`, `var` in the collection `batch_stats` |
| `num_batches_tracked` | ignored |
"""

import pathlib
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from dilax.errors import UserError, reason
from dilax.files import user_path

Rules = tuple[tuple[str, str], ...]
IGNORED = ""
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".npz")
_COUNTER = "num_batches_tracked"
_STATISTICS = {"running_mean": "mean", "running_var": "var"}
# Keys under which training scripts save the state dict, in the order of preference where there are several.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes that torch's own wrappers of a model give to all names


def conv_norm(conv: str, norm: str, path: str) -> Rules:
    """Return the rules that map a convolution and the normalisation after it to the `dilax.blocks.ConvNormAct` at `path`."""
    return (conv, f"{path}/DilatedConv_0"), (norm, f"{path}/Norm_0/BatchNorm_0")


def beneath(foreign: str, path: str, rules: Rules) -> Rules:
    """Return the rules with the foreign modules nested in `foreign` (a regular expression) and the Flax modules nested in `path`."""
    return tuple((rf"{foreign}\.{pattern}", f"{path}/{target}") for pattern, target in rules)


def convert(
    state: Mapping[str, np.ndarray], rules: Rules, template: Mapping[str, Any], *, description: str = "the state dict"
) -> dict[str, Any]:
    """Convert a foreign state dict to variables of a Flax module. The conversion is strict in both directions.

    Args:
        state: Arrays by name, such as "layer1.0.conv1.weight".
        rules: Pairs of pattern and path, as described at the top of the module; the first match wins.
        template: Variables of the module, or their shapes, as returned by `jax.eval_shape(module.init, ...)`.
        description: What to call the state dict in error messages.

    Returns:
        Variables with the structure, shapes and dtypes of `template`, as NumPy arrays, which may share memory with `state`.

    Raises:
        UserError: if an array of the state dict is not used, a leaf is not filled, or shapes differ. All mismatches are listed at once.

    Example:
        >>> state = {"fc.weight": np.ones((10, 4)), "fc.bias": np.zeros(10)}
        >>> leaves = {"kernel": np.zeros((4, 10)), "bias": np.zeros(10)}
        >>> convert(state, (("fc", "head"),), {"params": {"head": leaves}})["params"]["head"]["kernel"].shape
        (4, 10)
    """
    leaves: dict[str, Any] = traverse_util.flatten_dict(dict(template), sep="/")
    filled: dict[str, np.ndarray] = {}
    unused, mismatches = [], []
    for name, array in state.items():
        path = _leaf_path(name, rules, leaves)
        if path == IGNORED:
            continue
        if path is None or path in filled:
            unused.append(name)
            continue
        value = _transpose(array, path, leaves[path])
        if value.shape != leaves[path].shape:
            mismatches.append(f"{name} {tuple(array.shape)} for {path} {tuple(leaves[path].shape)}")
        else:
            value = value.astype(leaves[path].dtype, copy=False)
        filled[path] = value
    missing = [path for path in leaves if path not in filled]
    if unused or missing or mismatches:
        parts = [
            f"unused arrays ({len(unused)}): {_group(unused, '.')}" if unused else "",
            f"missing parameters ({len(missing)}): {_group(missing, '/')}" if missing else "",
            f"mismatched shapes ({len(mismatches)}): {', '.join(mismatches)}" if mismatches else "",
        ]
        raise UserError(
            f"{description} does not fit the model; {'; '.join(part for part in parts if part)}. Load it into the model it was saved from."
        )
    return traverse_util.unflatten_dict(filled, sep="/")


def target(name: str, rules: Rules) -> str | None:
    """Return the path of the Flax module that takes a foreign array, without its collection; None if no rule matches.

    The result is `IGNORED` if the rule says so.
    """
    module = name.rpartition(".")[0]
    for pattern, path in rules:
        if match := re.fullmatch(pattern, module):
            return match.expand(path)
    return None


def _leaf_path(name: str, rules: Rules, leaves: Mapping[str, Any]) -> str | None:
    """Return the path of the leaf that takes a foreign array, `IGNORED`, or None if there is none."""
    module, last = target(name, rules), name.rpartition(".")[2]
    if module is None:
        return None
    if module == IGNORED or last == _COUNTER:
        return IGNORED
    if last in _STATISTICS:
        paths = [f"batch_stats/{module}/{_STATISTICS[last]}"]
    else:
        paths = [f"params/{module}/{leaf}" for leaf in (("kernel", "scale") if last == "weight" else (last,))]
    return next((path for path in paths if path in leaves), None)


def _transpose(array: np.ndarray, path: str, leaf: Any) -> np.ndarray:
    """Return the array with its axes in Flax's order."""
    if not path.endswith("/kernel") or array.ndim < 2:
        return array
    kernel = np.moveaxis(array, (1, 0), (-2, -1))
    if kernel.ndim > len(leaf.shape) == 2 and set(kernel.shape[:-2]) == {1}:
        return kernel.reshape(kernel.shape[-2:])
    return kernel


def _group(names: Iterable[str], separator: str) -> str:
    """Return the names in one line, those of the same module grouped: "fc.{weight, bias}"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        module, _, last = name.rpartition(separator)
        groups.setdefault(module, []).append(last)
    words = [f"{{{', '.join(last)}}}" if len(last) > 1 else last[0] for last in groups.values()]
    return ", ".join(f"{module}{separator}{word}" if module else word for module, word in zip(groups, words))


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Read a state dict from a file.

    Args:
        path: A `.pth`, `.pt` or `.bin` file written by `torch.save`, which requires torch and from which only tensors are unpickled; a
            `.safetensors` file, which requires safetensors; or a `.npz` file; "~" is expanded. The state dict within a checkpoint, such as
            {"epoch": 3, "model_state_dict": {...}}, is found automatically; of several, the one with the usual key is read, with a warning.
            A prefix "module." or "_orig_mod." shared by all names is removed.

    Returns:
        NumPy arrays by name; floating-point tensors of torch as float32.

    Raises:
        UserError: if the file is missing, damaged or does not hold one state dict, or the package that reads it is not installed.
    """
    path = user_path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path}: the name of a weights file must end in one of {', '.join(SUFFIXES)}; rename the file or save it in another format."
        )
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a weights file.")
    try:
        read = {".safetensors": read_safetensors, ".npz": _read_npz}.get(path.suffix, _read_torch)
        state = read(path)
    except ImportError as error:
        package = "safetensors" if path.suffix == ".safetensors" else "torch"
        raise UserError(f"{path}: reading it requires {package}; pip install {package}, or save the state dict as .npz.") from error
    if not state:
        raise UserError(f"{path} does not hold named arrays; save model.state_dict().")
    while prefix := next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in state)), ""):
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state


def find_state_dict(loaded: Any, path: pathlib.Path) -> Mapping[str, Any]:
    """Return the state dict in what a file holds: itself, or one that is nested up to two levels deep.

    Args:
        loaded: What the file holds; everything that has a shape counts as an array.
        path: The file, for messages.

    Raises:
        UserError: if there is none, or there are several under unusual keys.
    """
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a state dict; save model.state_dict().")
    found: dict[str, Mapping[str, Any]] = {"": loaded} if _is_state_dict(loaded) else {}
    level: dict[str, Any] = {"": loaded}
    while not found and level and max(key.count("/") for key in level) < 2:
        inner = ((f"{outer}/{key}", value) for outer, entries in level.items() for key, value in entries.items())
        level = {key: value for key, value in inner if isinstance(value, Mapping)}
        found = {key.removeprefix("/"): value for key, value in level.items() if _is_state_dict(value)}
    named = ([key for key in found if key.rpartition("/")[2] == name] for name in _NESTED)
    usual = next((keys for keys in named if keys), list(found))
    if len(usual) != 1:
        keys = ", ".join(repr(key) for key in list(found or loaded)[:12]) or "none"
        what = "several state dicts under the keys" if found else "no state dict; its keys are"
        raise UserError(f"{path} holds {what} {keys}; save model.state_dict().")
    if len(found) > 1:
        warnings.warn(
            f"{path} holds several state dicts, under the keys {', '.join(map(repr, found))}; {usual[0]!r} is read.", stacklevel=3
        )
    return found[usual[0]]


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    """Whether it holds arrays by name, not only numbers, as metrics do."""
    return all(isinstance(key, str) and hasattr(leaf, "shape") for key, leaf in value.items()) and any(
        len(leaf.shape) for leaf in value.values()
    )


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or is not a {path.suffix} file ({reason(error)}); download it again.")


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    import pickle

    import torch  # pyright: ignore[reportMissingImports]

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not re.search("Unsupported (global|class)", str(error)):
            raise _damaged(path, Exception("not a pickle of tensors")) from error
        raise UserError(
            f"{path} holds more than tensors; it is not loaded, because that could run arbitrary code. Save model.state_dict()."
        ) from error
    except Exception as error:  # of many kinds for a damaged file
        raise _damaged(path, error) from error
    state: Any = find_state_dict(loaded, path)
    return {name: (value.float() if value.is_floating_point() else value).detach().numpy() for name, value in state.items()}


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays in a .safetensors file by name.

    Raises:
        UserError: if it is damaged.
        ImportError: if safetensors is not installed.
    """
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # its own, and others for dtypes that NumPy does not have
        raise _damaged(path, error) from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream:  # np.load would leave it open if the file is damaged
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single unnamed array")
            state = dict(file)
    except Exception as error:  # of many kinds for a damaged archive
        raise _damaged(path, error) from error
    for name, array in state.items():
        if array.dtype.kind not in "biuf":
            raise UserError(f"{path} holds {name!r} of dtype {array.dtype}; save arrays of numbers, by the names of the state dict.")
    return state
