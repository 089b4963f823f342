"""Fold batch normalisation into the convolution that precedes it, for inference."""

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
# Submodule name -> the kernel whose last axis is the output channels. Transposed convolutions are absent: their last axis is the input's.
KERNELS = {"DilatedConv_0": "kernel", "DepthwiseConv_0": "kernel", "SeparableConv_0": "pointwise_kernel"}


def fold_batch_norm(model: nn.Module, variables: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Return an equivalent model without batch normalisation, for inference.

    In inference, batch normalisation is a constant scale and shift per channel, and `scale * (kernel * x) + shift` is a convolution with
    the kernel `scale * kernel`. Every scope that holds exactly one convolution followed by one `dilax.blocks.Norm`, as in `ConvNormAct`,
    is folded.

    Args:
        model: A model or block of dilax with norm="batch" or norm="frozen".
        variables: Its variables, with the collections "params" and "batch_stats".

    Returns:
        The model with norm="none", and its variables: the "params" that its `init` would create, and any other collections unchanged. The
        arithmetic is done in float32 and the result keeps the dtype of each kernel. Outputs equal those of `train=False` to 1e-5 in
        float32.

    Raises:
        UserError: if the model has no norm or one of another kind, statistics are missing, or a norm does not follow exactly one
            convolution.

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
        raise UserError(f"{CALLER}: {type(model).__name__} has no field `norm`; give a model or a block of dilax with norm='batch'.")
    if norm not in ("batch", "frozen"):
        raise UserError(
            f"{CALLER}: norm={norm!r} is not a constant scale and shift per channel; only norm='batch' and norm='frozen' can be folded."
        )
    # New dictionaries throughout, so that the caller's are not modified.
    collections = unfreeze(dict(variables))
    params, stats = collections.pop("params", {}), collections.pop("batch_stats", {})
    # Jitted as a whole: layer by layer, dozens of small programs would be compiled.
    folded = jax.jit(lambda params, stats: _fold(params, stats, ()))(params, stats)
    return model.clone(norm="none"), {"params": folded, **collections}


def _fold(params: Mapping[str, Any], stats: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Fold a scope and all scopes within it; raise if any statistics remain unused."""
    folded = {name: value for name, value in params.items() if name != NORM}
    if NORM in params:
        convolution = _find_convolution(params, path)
        folded[convolution] = _fold_convolution(convolution, params, stats.get(NORM, {}), path)
    for name, value in folded.items():
        if isinstance(value, Mapping) and name not in KERNELS:
            folded[name] = _fold(value, stats.get(name, {}), (*path, name))
    unused = [name for name, value in stats.items() if name not in params or not isinstance(value, Mapping)]
    if unused:
        raise UserError(
            f"{CALLER}: the statistics {_join(path, unused[0])} do not belong to a {NORM} after a convolution; they cannot be folded."
        )
    return folded


def _find_convolution(params: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Return the name of the only convolution in a scope that also holds a norm."""
    convolutions = [name for name in params if name in KERNELS]
    others = [name for name in params if name != NORM and name not in KERNELS]
    if len(convolutions) != 1 or others:
        siblings = sorted([*convolutions, *others])
        contents = f"also holds {', '.join(siblings)}" if siblings else "holds no convolution"
        raise UserError(
            f"{CALLER}: the scope of {_join(path, NORM)} {contents}; a norm can be folded only where its scope holds exactly one "
            "convolution, as in ConvNormAct."
        )
    return convolutions[0]


def _fold_convolution(name: str, params: Mapping[str, Any], stats: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return the parameters of one convolution with its norm folded in."""
    if not stats:
        raise UserError(
            f"{CALLER}: variables have no batch_stats for {_join(path, NORM)}; give all collections of the trained model, not only params."
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
    """Return the scale and shift per channel that `Norm` applies in inference, by running it, so that its own epsilon is used.

    The scale is its output for 1 with mean and bias set to 0: the difference of two outputs would lose digits to a large shift.
    """
    rows = zeros[None]
    norm = Norm("batch")

    def apply(x: jax.Array, params: Any, stats: Any) -> jax.Array:
        y: Any = norm.apply({"params": params, "batch_stats": stats}, x, train=False)
        return y[0]

    return apply(rows + 1, _with_zeros(params, "bias"), _with_zeros(stats, "mean")), apply(rows, params, stats)


def _with_zeros(tree: Any, leaf: str) -> Any:
    """Return the tree with every leaf of that name set to 0."""
    return jax.tree_util.tree_map_with_path(lambda path, value: jnp.zeros_like(value) if path[-1].key == leaf else value, tree)


def _join(path: tuple[str, ...], name: str) -> str:
    return repr("/".join((*path, name)))
