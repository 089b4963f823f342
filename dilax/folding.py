"""Batch normalisation folded into the convolution before it, for inference."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze

from dilax.blocks import Norm
from dilax.errors import UserError

CALLER = "fold_batch_norm"
NORM = "Norm_0"
# The kernel whose last axis is the output's channels, by the module that holds it. A transposed convolution's last axis is the input's.
KERNELS = {"DilatedConv_0": "kernel", "DepthwiseConv_0": "kernel", "SeparableConv_0": "pointwise_kernel"}


def fold_batch_norm(model: nn.Module, variables: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Return the same function without its batch normalisation, for inference: y = a * (k * x) + b is a convolution with kernel a * k.

    Folds every scope that holds one convolution and, after it, one `dilax.blocks.Norm`, as `ConvNormAct` does.

    Args:
        model: A model or block of dilax with norm="batch" or "frozen".
        variables: Its "params" and "batch_stats".

    Returns:
        The model with norm="none", and its variables: those of `init`, and what other collections were given. Folded in float32 and kept in
        the dtype of each kernel; the outputs are those of `train=False`, to 1e-5 in float32.

    Raises:
        UserError: if the model has another norm or none, statistics are missing, or a norm has not one convolution beside it.

    Example:
        >>> from dilax.blocks import ConvNormAct
        >>> model = ConvNormAct(features=4)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)), train=False)
        >>> folded, variables = fold_batch_norm(model, variables)
        >>> folded.norm, list(variables), sorted(variables["params"]["DilatedConv_0"])
        ('none', ['params'], ['bias', 'kernel'])

    Reference:
        Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """
    norm = getattr(model, "norm", None)
    if not isinstance(norm, str):
        raise UserError(f"{CALLER}: {type(model).__name__} has no field norm; give a model or a block of dilax with norm='batch'.")
    if norm not in ("batch", "frozen"):
        raise UserError(
            f"{CALLER}: norm={norm!r} is no constant scale and shift of each channel; only norm='batch' and norm='frozen' can be folded."
        )
    # New dictionaries throughout: those of the caller stay as they are.
    rest = unfreeze(dict(variables))
    params, stats = rest.pop("params", {}), rest.pop("batch_stats", {})
    # One program for the model: layer by layer it would be dozens of small ones to compile.
    return model.clone(norm="none"), {"params": jax.jit(lambda params, stats: _fold(params, stats, ()))(params, stats), **rest}


def _fold(params: Mapping[str, Any], stats: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Fold a scope and all within; its statistics must have been used up."""
    folded = {name: inner for name, inner in params.items() if name != NORM}
    if NORM in params:
        convolution = _convolution(params, path)
        folded[convolution] = _fold_convolution(convolution, params, stats.get(NORM, {}), path)
    for name, inner in folded.items():
        if isinstance(inner, Mapping) and name not in KERNELS:
            folded[name] = _fold(inner, stats.get(name, {}), (*path, name))
    alone = [name for name, inner in stats.items() if name not in params or not isinstance(inner, Mapping)]
    if alone:
        raise UserError(f"{CALLER}: {_at(path, alone[0])} are statistics of no {NORM} that follows a convolution; they cannot be folded.")
    return folded


def _convolution(params: Mapping[str, Any], path: tuple[str, ...]) -> str:
    found = [name for name in params if name in KERNELS]
    others = [name for name in params if name != NORM and name not in KERNELS]
    if len(found) != 1 or others:
        beside = ", ".join(sorted([*found, *others])) or "nothing"
        raise UserError(
            f"{CALLER}: {_at(path, NORM)} has {beside} beside it; it can be folded into one convolution alone, as in ConvNormAct."
        )
    return found[0]


def _fold_convolution(name: str, params: Mapping[str, Any], stats: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    if not stats:
        raise UserError(
            f"{CALLER}: variables have no batch_stats for {_at(path, NORM)}; give all that the training kept, not params alone."
        )
    kernel = params[name][KERNELS[name]]
    wide = jnp.float32 if jnp.finfo(kernel.dtype).bits < 32 else kernel.dtype
    bias = params[name].get("bias", jnp.zeros(kernel.shape[-1:], kernel.dtype))
    norm, stats = jax.tree.map(lambda leaf: leaf.astype(wide), (params[NORM], stats))
    scale, shift = _scale_and_shift(norm, stats, jnp.zeros(kernel.shape[-1:], wide))
    return {
        **params[name],
        KERNELS[name]: jnp.asarray(kernel.astype(wide) * jnp.broadcast_to(scale, kernel.shape), kernel.dtype),
        "bias": jnp.asarray(bias.astype(wide) * scale + shift, kernel.dtype),
    }


def _scale_and_shift(params: Any, stats: Any, zeros: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `Norm` does to a channel in inference, asked of itself, so that its epsilon is the one used.

    The scale is what it makes of 1 with mean and bias 0; a difference of two of its outputs would lose digits to a large shift.
    """
    rows = zeros[None]
    norm = Norm("batch")

    def apply(x: jax.Array, params: Any, stats: Any) -> jax.Array:
        y: Any = norm.apply({"params": params, "batch_stats": stats}, x, train=False)
        return y[0]

    centred = [_zeroed(params, "bias"), _zeroed(stats, "mean")]
    return apply(rows + 1, *centred), apply(rows, params, stats)


def _zeroed(tree: Any, leaf: str) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, value: jnp.zeros_like(value) if path[-1].key == leaf else value, tree)


def _at(path: tuple[str, ...], name: str) -> str:
    return repr("/".join((*path, name)))
