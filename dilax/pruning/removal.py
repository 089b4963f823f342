"""`prune` removes channels of a model; `multiply_adds` counts what is left."""

import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import unfreeze
from flax.errors import FlaxError

from dilax import arguments
from dilax.errors import UserError, reason, shown
from dilax.pruning.follow import follow
from dilax.pruning.labels import Axes, Channels, label, leaves
from dilax.pruning.pruned import Pruned, changes_for, unpruned
from dilax.pruning.selection import MEASURES, Coupling, report


def prune(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: jax.Array | jax.ShapeDtypeStruct,
    *,
    ratio: float | None = None,
    flops: float | None = None,
    by: str = "magnitude",
    multiple_of: int = 1,
) -> tuple[Pruned, dict[str, Any]]:
    """Remove whole channels of a model, and return the smaller model and its variables.

    The model is traced, and channels that depend on each other are removed together: those of a convolution, of the normalisation after it
    and of the kernels that read it; those that a residual connection adds; those of depthwise convolutions and of what they read. Of a
    grouped convolution, the same channels of each group are removed. The inputs and outputs of the model keep their channels, and each
    layer keeps at least one.

    The smaller model equals the original one with the removed channels set to 0. Its accuracy is usually low until it is fine-tuned.

    Args:
        model: A Flax module; layers that have a number of channels of their own must call it `features`.
        variables: Its variables.
        x: Its input; only the shape and dtype are used.
        ratio: The share of the channels that each layer loses, between 0 and 1, rounded down to whole channels.
        flops: Instead of `ratio`, the share of the multiply-adds that may remain, between 0 and 1. All layers lose about the same share of
            their channels, the smallest one that suffices.
        by: Which channels are removed: "magnitude", those of the kernels with the smallest Euclidean norms (Li et al. 2017), or "scale",
            those with the smallest scales in the normalisation that follows (Liu et al. 2017), and by magnitude where none follows. The
            measures of coupled layers are averaged.
        multiple_of: The number of channels that each layer keeps is rounded up to a multiple of this, which processors compute faster,
            such as 8 or 16; a layer with fewer keeps all.

    Returns:
        The model as a `Pruned`, and its variables, with the collections, paths and dtypes of those given.

    Raises:
        UserError: if an argument is invalid, the model does not run with the variables and x, no channel can be removed, `flops` cannot be
            reached, or the model computes something else with fewer channels.

    Warns:
        UserWarning: if layers keep all their channels because an operation could not be followed or combines all channels, as group
            normalisation does; the message names them and says why.

    Example:
        >>> import dilax
        >>> model, x = dilax.models.create("dilated_cnn"), jnp.ones((1, 28, 28, 1))
        >>> variables = model.init(jax.random.key(0), x, train=False)
        >>> smaller, variables = prune(model, variables, x, flops=0.5)
        >>> variables["params"]["ConvNormAct_0"]["DilatedConv_0"]["kernel"].shape
        (3, 3, 1, 22)

    Reference:
        Li et al. 2017, arXiv:1608.08710; Liu et al. 2017, arXiv:1708.06519; Fang et al. 2023, arXiv:2301.12900, for the dependencies.
    """
    share = _check_arguments(model, ratio, flops, by)
    multiple_of = arguments.integer("prune", "multiple_of", multiple_of, minimum=1)
    x, collections = arguments.image("prune", "x", x), _collections("prune", variables)
    labels = label(collections)
    found = follow(model, collections, x, labels)
    while True:
        coupling = Coupling(found, labels, multiple_of)
        if not coupling.groups:
            why = report(coupling.kept) or "it has no layers between its input and its output"
            raise UserError(f"prune: no channel of {type(model).__name__} can be removed ({why}); use another model.")
        ranks = coupling.ranks(_with_lengths(collections), by)
        steps = coupling.steps_to(share, ranks) if ratio is None else [step for step in coupling.steps() if step.ratio <= share + 1e-9]
        removed = coupling.removed(steps, ranks)
        smaller, created = _smaller(model, x, found, removed)
        cut = _cut(collections, labels, removed)
        if not _lock_fixed(found, labels, cut, created):
            break
    _check_paths(model, cut, created)
    _check_equal(model, smaller, cut, x, labels, removed, coupling)
    if coupling.kept:
        warnings.warn(f"prune: layers that keep all channels: {report(coupling.kept)}.", UserWarning, stacklevel=2)
    return smaller, _unflat(cut)


def multiply_adds(model: nn.Module, variables: Mapping[str, Any], x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Return the multiply-adds of the convolutions and matrix products with variables, for one example in inference.

    The model is traced, not computed. Taps that read padding are counted, as is usual in papers; additions of biases, normalisation,
    activations and products of data with data are not, nor are loops whose length is only known when they run.

    Args:
        model: A Flax module.
        variables: Its variables, or their shapes.
        x: Its input, (batch, ...); only the shape and dtype are used.

    Raises:
        UserError: if the model does not run with the variables and x.

    Example:
        >>> from dilax import DilatedConv
        >>> layer, x = DilatedConv(16, (3, 3)), jnp.ones((8, 32, 32, 3))
        >>> multiply_adds(layer, layer.init(jax.random.key(0), x), x)  # 32 * 32 * 16 * 3 * 3 * 3
        442368
    """
    return multiply_adds_for("multiply_adds", model, variables, x)


def multiply_adds_for(caller: str, model: nn.Module, variables: Mapping[str, Any], x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Return what `multiply_adds` does, with errors that name the function that the user called."""
    arguments.module(caller, "model", model)
    x, collections = arguments.image(caller, "x", x), _collections(caller, variables)
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    found = follow(model, collections, one, label(collections), caller=caller)
    return sum(product.multiply_adds for product in found.products)


def _check_arguments(model: Any, ratio: float | None, flops: float | None, by: str) -> float:
    """Return the share that is given."""
    arguments.module("prune", "model", model)
    arguments.word("prune", "by", by, MEASURES)
    if (ratio is None) == (flops is None):
        raise UserError(f"prune: ratio={ratio} and flops={flops}: give one of them, such as flops=0.5, and not both.")
    name, share = ("ratio", ratio) if flops is None else ("flops", flops)
    share = arguments.number("prune", name, share)
    if not 0 < share < 1:
        raise UserError(f"prune: {name}={share} is not between 0 and 1; give a share such as 0.5.")
    return share


def _collections(caller: str, variables: Any) -> dict[str, Any]:
    """Return variables as new dicts, so that those of the caller are not modified."""
    if not isinstance(variables, Mapping) or not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(variables)):
        raise UserError(f"{caller}: variables={shown(variables)} are not those of a model; give what its init returns, a dict of arrays.")
    return unfreeze(dict(variables))


def _smaller(model: nn.Module, x: Any, found: Channels, removed: np.ndarray) -> tuple[Pruned, dict[str, Any]]:
    """Return the smaller model, and the shapes of the variables that it creates."""
    original = unpruned(model)
    try:
        changes, created = changes_for(original, x, found.calls, removed)
    except (FlaxError, ValueError, TypeError) as error:
        raise UserError(
            f"prune: {type(original).__name__} does not run with fewer channels ({reason(error)}); its code must follow the shapes of its "
            "arrays, and its layers must call their number of channels `features`."
        ) from None
    return Pruned(original, changes), leaves(unfreeze(created))


def _lock_fixed(found: Channels, labels: Mapping[str, Axes], cut: Mapping[str, Any], created: Mapping[str, Any]) -> bool:
    """Lock the channels of variables whose shapes do not follow; return whether there are any."""
    wrong = [path for path, leaf in cut.items() if path in created and created[path].shape != leaf.shape]
    for path in wrong:
        for axis, expected, given in zip(labels[path], created[path].shape, cut[path].shape):
            if expected != given:
                found.lock(axis, "the model determines the shape of a variable in another way than by `features` or its input")
    return bool(wrong)


_DECIDES = (
    "decides by the number of channels what to compute, and is another function with fewer of them; use another ratio, or make that "
    "decision a field of its blocks."
)


def _check_paths(model: nn.Module, cut: Mapping[str, Any], created: Mapping[str, Any]) -> None:
    """Refuse a smaller model that creates parameters which the original one does not have, or the reverse."""
    if wrong := [path for path in sorted({*cut, *created}) if path.startswith("params/") and (path in cut) != (path in created)]:
        verb = "no longer creates" if wrong[0] in cut else "creates"
        raise UserError(f"prune: {type(model).__name__} {verb} {wrong[0]!r} with fewer channels: it {_DECIDES}")


def _check_equal(
    model: nn.Module, smaller: Pruned, cut: dict[str, Any], x: Any, labels: Any, removed: np.ndarray, coupling: Coupling
) -> None:
    """Refuse a smaller model that couples channels which the original one does not, as other layers or sums would."""
    left = {path: tuple(axis if axis is None else axis[~removed[axis]] for axis in axes) for path, axes in labels.items()}
    left = {path: tuple(None if axis is not None and len(axis) == 1 else axis for axis in axes) for path, axes in left.items()}
    found, channel = follow(smaller, _unflat(cut), x, left), coupling.channel
    removable = np.isin(channel, np.concatenate([group.channels for group in coupling.groups]))
    same = all((channel[a] == channel[b]).all() for a, b in found.edges) and not any(removable[one].any() for one, _ in found.locked)
    if not same:
        raise UserError(f"prune: {type(model).__name__} {_DECIDES}")


def _cut(variables: Mapping[str, Any], labels: Mapping[str, Axes], removed: np.ndarray) -> dict[str, Any]:
    """Return each variable without the channels that are removed, by its path."""
    arrays, cut = leaves(variables), dict[str, Any]()
    for path, leaf in arrays.items():
        array = np.asarray(leaf)
        for axis, one in enumerate(labels[path]):
            array = array if one is None else np.compress(~removed[one], array, axis)
        cut[path] = array
    for path in cut:
        if path.endswith("/kernel_scale"):
            # The length of what is left of a kernel, so that its values stay the same.
            name = path.removesuffix("_scale")
            (kept,) = (np.ones(len(cut[path]), bool) if axis is None else ~removed[axis] for axis in labels[path])
            before, after = _lengths(np.asarray(arrays[name]))[kept], _lengths(cut[name])
            cut[path] = (cut[path] * np.divide(after, before, out=np.zeros_like(after), where=before > 0)).astype(cut[path].dtype)
    return {path: jnp.asarray(array) for path, array in cut.items()}


def _with_lengths(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables with weight normalisation applied to the kernels."""
    arrays = leaves(variables)
    for path in [path for path in arrays if path.endswith("/kernel_scale")]:
        name = path.removesuffix("_scale")
        kernel = np.asarray(arrays[name], np.float32)
        lengths = np.maximum(_lengths(kernel), np.finfo(np.float32).tiny)
        arrays[name] = kernel * (np.asarray(arrays[path], np.float32) / lengths)
    return _unflat(arrays)


def _lengths(kernel: np.ndarray) -> np.ndarray:
    """Return the Euclidean norm of the kernel of each output channel."""
    return np.sqrt(np.square(kernel.astype(np.float32)).sum(tuple(range(kernel.ndim - 1))))


def _unflat(flat: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(dict(flat), sep="/")
