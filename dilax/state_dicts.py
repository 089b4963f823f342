"""State dicts of other libraries as variables of a Flax module: the engine. The rules that say which is which stand with the models.

A rule is a pair: a regular expression that matches the whole name of a foreign module, and the path of the module here that takes its
parameters (or `IGNORED`). The parameters themselves follow from their names and from what stands at that path:

| foreign parameter | here |
|---|---|
| `weight` of a convolution (c_out, c_in / groups, *window) | `kernel` (*window, c_in / groups, c_out) |
| `weight` of a linear layer (c_out, c_in), or of a 1x1 convolution where a linear layer stands here | `kernel` (c_in, c_out) |
| `weight`, `bias` of a normalisation | `scale`, `bias` |
| `running_mean`, `running_var` | `mean`, `var` of the collection `batch_stats` |
| `num_batches_tracked` | nothing |
"""

import pathlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from dilax.errors import UserError

Rules = tuple[tuple[str, str], ...]
IGNORED = ""
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".npz")
_UNUSED = "num_batches_tracked"
_STATISTICS = {"running_mean": "mean", "running_var": "var"}
_NESTED = ("state_dict", "model")  # where training programs put it in what they save


def conv_norm(conv: str, norm: str, path: str) -> Rules:
    """Rules of a convolution and of the normalisation after it, which are the `dilax.blocks.ConvNormAct` at `path`."""
    return (conv, f"{path}/DilatedConv_0"), (norm, f"{path}/Norm_0/BatchNorm_0")


def beneath(foreign: str, path: str, rules: Rules) -> Rules:
    """The same rules where the foreign modules stand beneath `foreign` (a regular expression), and those here beneath `path`."""
    return tuple((rf"{foreign}\.{pattern}", f"{path}/{target}") for pattern, target in rules)


def convert(state: Mapping[str, np.ndarray], rules: Rules, template: Mapping[str, Any], what: str = "the state dict") -> dict[str, Any]:
    """Return the variables that a foreign state dict holds.

    Args:
        state: Arrays by name, such as "layer1.0.conv1.weight".
        rules: See above; the first that matches counts.
        template: Variables of the module, or their shapes, as `jax.eval_shape(module.init, ...)` returns them.
        what: The state dict in the words of the error.

    Returns:
        Variables with the structure, the shapes and the dtypes of `template`, as numpy arrays.

    Raises:
        UserError: if an array of the state dict has no place, a leaf is not filled, or shapes differ; all of these are listed.

    Example:
        >>> state = {"fc.weight": np.ones((10, 4)), "fc.bias": np.zeros(10)}
        >>> leaves = {"kernel": np.zeros((4, 10)), "bias": np.zeros(10)}
        >>> convert(state, (("fc", "head"),), {"params": {"head": leaves}})["params"]["head"]["kernel"].shape
        (4, 10)
    """
    leaves: dict[str, Any] = traverse_util.flatten_dict(dict(template), sep="/")
    filled: dict[str, np.ndarray] = {}
    unused, shapes = [], []
    for name, array in state.items():
        path = _path(name, rules, leaves)
        if path == IGNORED:
            continue
        if path is None or path in filled:
            unused.append(name)
            continue
        found = _laid_out(array, path, leaves[path])
        if found.shape != leaves[path].shape:
            shapes.append(f"{name} {tuple(array.shape)} for {path} {tuple(leaves[path].shape)}")
        filled[path] = found.astype(leaves[path].dtype)
    missing = [path for path in leaves if path not in filled]
    if unused or missing or shapes:
        parts = [
            f"{len(unused)} of its arrays have no place here ({_grouped(unused, '.')})" if unused else "",
            f"{len(missing)} leaves are not in it ({_grouped(missing, '/')})" if missing else "",
            f"{len(shapes)} shapes differ ({', '.join(shapes)})" if shapes else "",
        ]
        raise UserError(
            f"{what} does not fit the model: {'; '.join(part for part in parts if part)}. Convert it to the model it was made by."
        )
    return traverse_util.unflatten_dict(filled, sep="/")


def target(name: str, rules: Rules) -> str | None:
    """Return the path, without its collection, of the module that takes a foreign array; `IGNORED`, or None where no rule matches."""
    module = name.rpartition(".")[0]
    for pattern, path in rules:
        if match := re.fullmatch(pattern, module):
            return match.expand(path)
    return None


def _path(name: str, rules: Rules, leaves: Mapping[str, Any]) -> str | None:
    """The path of the leaf that takes a foreign array."""
    module, last = target(name, rules), name.rpartition(".")[2]
    if module is None:
        return None
    if module == IGNORED or last == _UNUSED:
        return IGNORED
    if last in _STATISTICS:
        names = [f"batch_stats/{module}/{_STATISTICS[last]}"]
    else:
        names = [f"params/{module}/{leaf}" for leaf in (("kernel", "scale") if last == "weight" else (last,))]
    return next((path for path in names if path in leaves), None)


def _laid_out(array: np.ndarray, path: str, leaf: Any) -> np.ndarray:
    """The array with its axes in the order that they have here."""
    if not path.endswith("/kernel") or array.ndim < 2:
        return array
    kernel = np.moveaxis(array, (1, 0), (-2, -1))
    if kernel.ndim > len(leaf.shape) == 2 and set(kernel.shape[:-2]) == {1}:
        return kernel.reshape(kernel.shape[-2:])
    return kernel


def _grouped(names: Iterable[str], separator: str) -> str:
    """Names in one line, those of one module joined: "fc.{weight, bias}"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        module, _, last = name.rpartition(separator)
        groups.setdefault(module, []).append(last)
    words = [f"{{{', '.join(last)}}}" if len(last) > 1 else last[0] for last in groups.values()]
    return ", ".join(f"{module}{separator}{word}" if module else word for module, word in zip(groups, words))


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file by name.

    Args:
        path: A `.pth`, `.pt` or `.bin` file that `torch.save` wrote, for which torch is needed (nothing but tensors is unpickled), a
            `.safetensors` file, for which the package safetensors is, or a `.npz` file. A state dict below the key "state_dict" or
            "model" is found, and a "module." before all names is taken away.

    Raises:
        UserError: if the file is missing, damaged, or holds something else, or what it needs is not installed.
    """
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: a file of weights ends in one of {', '.join(SUFFIXES)}; rename it, or save a state dict as one.")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the file of weights.")
    try:
        read = {".safetensors": _read_safetensors, ".npz": _read_npz}.get(path.suffix, _read_torch)
        state = read(path)
    except ImportError as error:
        package = "safetensors" if path.suffix == ".safetensors" else "torch"
        raise UserError(f"{path}: reading it needs {package}; pip install {package}, or save the state dict as .npz.") from error
    if not state:
        raise UserError(f"{path} holds no arrays by name; save model.state_dict().")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    return state


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return UserError(f"{path} is damaged, or no {path.suffix} file ({reason}); fetch it again, whole.")


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    import pickle

    import torch  # pyright: ignore[reportMissingImports]

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not re.search("Unsupported (global|class)", str(error)):
            raise _damaged(path, Exception("no pickle of tensors")) from error
        raise UserError(
            f"{path} holds more than tensors, and is not read, since that could run any program; save model.state_dict()."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UserError(f"{path} holds no state dict, but a {type(loaded).__name__}; save model.state_dict().")
    return {str(name): (value.float() if value.is_floating_point() else value).detach().numpy() for name, value in loaded.items()}


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream:  # which np.load leaves open where the file is damaged
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array without a name")
            return dict(file)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, KeyError) as error:
        raise _damaged(path, error) from error
