"""Fold batch normalisation into the layer that precedes it, for inference."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.core import unfreeze
from flax.errors import FlaxError

from dilax import arguments, data_flow
from dilax.arguments import takes_train
from dilax.blocks import Norm
from dilax.errors import UserError
from dilax.modules import DepthwiseConv, DilatedConv, SeparableConv
from dilax.precision import wide_dtype
from dilax.pruning import Pruned
from dilax.smoothing import SmoothedConv
from dilax.spacings import DCLSConv

CALLER = "fold_batch_norm"
KINDS = ("batch", "frozen")
# Layer -> the parameter whose last axis is the output channels. Transposed convolutions are absent: their last axis is the input's.
KERNELS: dict[type, str] = {
    DilatedConv: "kernel",
    DepthwiseConv: "kernel",
    SeparableConv: "pointwise_kernel",
    SmoothedConv: "kernel",
    DCLSConv: "kernel",
    nn.Conv: "kernel",
    nn.Dense: "kernel",
}
# Sizes and channels of the inputs that are tried if none is given; they are traced, not computed. Many numbers of groups divide 720.
_SIZES, _PROBE = (64, 512), 720


def fold_batch_norm(
    model: nn.Module, variables: Mapping[str, Any], x: jax.Array | jax.ShapeDtypeStruct | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Return an equivalent model without batch normalisation, for inference.

    In inference, batch normalisation is a constant scale and shift per channel, and `scale * (kernel * x) + shift` is a convolution with
    the kernel `scale * kernel`. The model is traced: every `dilax.blocks.Norm` must be applied directly to the output of a convolution or
    of a linear layer, and nothing else may use that output.

    Args:
        model: A model or block with a field `norm`, "batch" or "frozen", with which it makes each `dilax.blocks.Norm`. The layers before
            those must have a bias with norm="none".
        variables: Its variables, with the collections "params" and "batch_stats".
        x: An input of the model; only the shape and dtype are used. None: floats (1, *space, channels) that the kernels fit.

    Returns:
        The model with norm="none", and its variables: the "params" that its `init` would create, and any other collections unchanged. The
        arithmetic is done in float32 and the result keeps the dtype of each kernel. Outputs equal those of `train=False` to 1e-5 in
        float32.

    Raises:
        UserError: if the model has no norm or one of another kind, variables are missing, a norm does not directly follow a layer it can be
            folded into, or the model with norm="none" differs in more than its normalisation.

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
    pruned = isinstance(model, Pruned)
    norm = getattr(model.model if pruned else model, "norm", None)
    if not isinstance(norm, str):
        raise UserError(f"{CALLER}: {type(model).__name__} has no field `norm`; give a model or a block of dilax with norm='batch'.")
    if norm not in KINDS:
        raise UserError(
            f"{CALLER}: norm={norm!r} is not a constant scale and shift per channel; only norm='batch' and norm='frozen' can be folded."
        )
    x = None if x is None else arguments.shaped(CALLER, "x", x)
    # New dictionaries throughout, so that the caller's are not modified.
    collections = unfreeze(dict(variables))
    shapes = _shapes(collections)
    x, created = _find_input(model, shapes) if x is None else (x, _init(model, x))
    _check_variables(created, shapes)
    pairs, norms = _find_pairs(model, created, x)
    _check_stacked(pairs, shapes)
    params, stats = collections.pop("params"), collections.pop("batch_stats", {})
    # Jitted as a whole: layer by layer, dozens of small programs would be compiled.
    folded = jax.jit(lambda params, stats: _fold(params, stats, pairs, norms))(params, stats)
    without = model.clone(model=model.model.clone(norm="none")) if pruned else model.clone(norm="none")
    _check_folded(model, without, created, {"params": _shapes(folded)}, pairs, x)
    return without, {"params": folded, **collections}


def _shapes(variables: Mapping[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), unfreeze(dict(variables)))


def _flat(variables: Mapping[str, Any], *collections: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each leaf by its path, without its collection."""
    trees: list[dict[str, Any]] = [traverse_util.flatten_dict(dict(variables.get(name, {})), sep="/") for name in collections]
    return {path: leaf.shape for tree in trees for path, leaf in tree.items()}


def _init(model: nn.Module, x: Any) -> dict[str, Any]:
    """Return the shapes of a model's variables."""
    return _shapes(jax.eval_shape(lambda x: model.init(jax.random.key(0), x, **data_flow.options(model)), x))


def _find_input(model: nn.Module, shapes: Mapping[str, Any]) -> tuple[jax.ShapeDtypeStruct, dict[str, Any]]:
    """Return an input with which the model creates the given parameters, apart from those that depend on its size, and what it creates."""
    wanted, reason = _flat(shapes, "params"), "they hold no kernel"
    close: list[tuple[jax.ShapeDtypeStruct, dict[str, Any]]] = []
    for x in _inputs(model, wanted):
        try:
            variables = _init(model, x)
        except (ValueError, TypeError, FlaxError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            continue
        created = _flat(variables, "params")
        if created == wanted:
            return x, variables
        if wrong := _mismatches(created, wanted):
            reason = f"it creates other parameters, such as {wrong[0]!r}"
        else:
            close.append((x, variables))
    if close:
        return close[0]
    raise UserError(
        f"{CALLER}: no input was found that fits {type(model).__name__} and its variables ({reason}); give one, or its shape and dtype, "
        "as x."
    )


def _inputs(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[jax.ShapeDtypeStruct]:
    """Yield inputs that may be those of a model: with as many channels as one of its kernels takes."""
    kernels = [shape for path, shape in shapes.items() if path.endswith("kernel") and len(shape) > 1]
    ranks = sorted({len(shape) - 2 for shape in kernels if len(shape) > 2}, reverse=True) or [1]
    for size, rank in itertools.product(_SIZES, ranks):
        # The kernels that read the input are as many times too large as it has too many channels.
        try:
            probed = _flat(_init(model, jax.ShapeDtypeStruct((1, *(size,) * rank, _PROBE), jnp.float32)), "params")
        except (ValueError, TypeError, FlaxError):
            probed = {}  # the channels must then be those of a kernel
        pairs = [pair for path in shapes for pair in zip(shapes[path], probed.get(path, ())) if pair[0] != pair[1]]
        solved = {_PROBE * ours // theirs for ours, theirs in pairs if _PROBE * ours % theirs == 0}
        others = {shape[-2] for shape in kernels} | {shape[-1] for shape in kernels if shape[-2] == 1}
        for channels in (*sorted(solved), *sorted(others - solved)):
            yield jax.ShapeDtypeStruct((1, *(size,) * rank, channels), jnp.float32)


def _mismatches(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return the paths of the leaves that differ, other than the kernels of linear layers behind a flattening of an image or a sequence."""
    different = (path for path in sorted({*expected, *given}) if expected.get(path) != given.get(path))
    return [path for path in different if not (path in expected and path in given and len(given[path]) == 2)]


def _check_variables(expected: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse variables that are not those of the model."""
    statistics = _flat(given, "batch_stats")
    for path in _flat(expected, "batch_stats"):
        if path not in statistics:
            raise UserError(
                f"{CALLER}: variables have no batch_stats for {_norm_of(path)!r}; give all collections of the trained model, not only "
                "params."
            )
    ours, theirs = (_flat(tree, "params", "batch_stats") for tree in (expected, given))
    if wrong := _mismatches(ours, theirs):
        path = wrong[0]
        raise UserError(
            f"{CALLER}: the variables are not those of the model for this input: {path!r} has shape {theirs.get(path, 'missing')} in the "
            f"variables, {ours.get(path, 'missing')} in the model; give the variables that its init(..., train=False) creates."
        )


def _norm_of(statistics: str) -> str:
    """Return the path of the norm, or of the other module, that has these statistics."""
    module = statistics.rpartition("/")[0]
    return module.removesuffix("BatchNorm_0").rstrip("/") or module


def _find_pairs(model: nn.Module, shapes: Mapping[str, Any], x: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Return {path of a layer: path of its norm}, and {path of a norm: the norm}."""
    flow = _trace(model, shapes, x)
    pairs, found = _pairs_of(flow), flow.norms
    norms = {_norm_of(path) for path in _flat(shapes, "batch_stats")}
    if norms - set(pairs.values()) and takes_train(model):
        flow = _trace(model, shapes, x, train=True)  # such as an auxiliary head, which runs in training only
        pairs, found = pairs | _pairs_of(flow), found | flow.norms
    unused = [path for path in _flat(shapes, "batch_stats") if _norm_of(path) not in pairs.values()]
    if unused:
        raise UserError(f"{CALLER}: the statistics {unused[0]!r} do not belong to a Norm after a convolution; they cannot be folded.")
    return pairs, found


def _check_stacked(pairs: Mapping[str, str], shapes: Mapping[str, Any]) -> None:
    """Refuse norms that hold the statistics of several layers in one array, as `flax.linen.vmap` makes them."""
    for path, shape in _flat(shapes, "batch_stats").items():
        if len(shape) != 1 and _norm_of(path) in pairs.values():
            raise UserError(
                f"{CALLER}: the statistics {path!r} have shape {shape}, those of several layers in one array (flax.linen.vmap or scan), "
                "which cannot be folded; make the layers one by one."
            )


def _pairs_of(flow: data_flow.Flow) -> dict[str, str]:
    """Return {path of a layer: path of its norm}, if every norm can be folded."""
    pairs: dict[str, str] = {}
    for norm, origin in flow.others.items():
        raise UserError(
            f"{CALLER}: {norm!r} normalises {origin}; a norm can be folded only where it directly follows a convolution or a "
            "linear layer, as in ConvNormAct."
        )
    for norm, layers in flow.pairs.items():
        for layer in layers:
            if pairs.setdefault(layer, norm) != norm:
                raise UserError(
                    f"{CALLER}: the layer {layer!r} is followed by two norms, {pairs[layer]!r} and {norm!r}; use a layer for each."
                )
            if layer in flow.raw:
                raise UserError(
                    f"{CALLER}: the output of the layer {layer!r} is also used without {norm!r}, which can then not be folded into it."
                )
    return pairs


def _trace(model: nn.Module, shapes: Mapping[str, Any], x: Any, **options: Any) -> data_flow.Flow:
    return data_flow.trace(
        model,
        shapes,
        x,
        is_layer=lambda module: type(module) in KERNELS,  # a subclass may do more
        is_norm=lambda module: type(module) is Norm and module.kind in KINDS,
        **options,
    )


def _check_folded(model: nn.Module, without: nn.Module, before: Any, after: Any, pairs: Mapping[str, str], x: Any) -> None:
    """Refuse a model that is not the same without normalisation."""
    name = f"{CALLER}: {type(model).__name__} with norm='none'"
    created = _init(without, x)
    ours, theirs = (_flat(tree, "params", "batch_stats") for tree in (created, after))
    for path in sorted(_mismatches(ours, theirs), key=lambda path: path not in ours):
        layer = path.rpartition("/")[0]
        if path not in ours and layer in pairs:
            raise UserError(
                f"{name} has no {path!r} to hold the shift of {pairs[layer]!r}; make the layer with use_bias=self.norm == 'none', or True."
            )
        verb = "still has" if path in ours else "no longer has"
        raise UserError(f"{name} {verb} the variable {path!r}; it must differ only in its normalisation: make each with Norm(self.norm).")
    original, folded = _trace(model, before, x), _trace(without, created, x, changed=pairs)
    if original.key != folded.key:
        raise UserError(
            f"{name} is not the same function without its normalisation, or uses the parameters of a layer in more than one place; "
            "it must differ only in its normalisation."
        )


def _fold(params: Mapping[str, Any], stats: Mapping[str, Any], pairs: Mapping[str, str], norms: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the layers with their norms folded in, without those of the norms."""
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
    flat_stats: dict[str, Any] = traverse_util.flatten_dict(dict(stats), sep="/")
    scopes = {norm: [_beneath(norm, tree) for tree in (flat, flat_stats)] for norm in pairs.values()}
    folded = {path: leaf for path, leaf in flat.items() if not any(path.startswith(f"{norm}/") for norm in scopes)}
    for layer, norm in pairs.items():
        inner = {path.removeprefix(f"{layer}/"): leaf for path, leaf in flat.items() if path.startswith(f"{layer}/")}
        folded |= {f"{layer}/{name}": leaf for name, leaf in _fold_layer(inner, norms[norm].epsilon, *scopes[norm]).items()}
    return traverse_util.unflatten_dict(folded, sep="/")


def _beneath(scope: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of one module, nested."""
    return traverse_util.unflatten_dict(
        {path.removeprefix(f"{scope}/"): leaf for path, leaf in flat.items() if path.startswith(f"{scope}/")}, sep="/"
    )


def _fold_layer(params: Mapping[str, Any], epsilon: float, norm: Any, stats: Any) -> dict[str, Any]:
    """Return the parameters of one layer with its norm folded in."""
    # The length of a kernel with weight normalisation is a parameter of its own.
    name = next(name for name in ("kernel_scale", "pointwise_kernel", "kernel") if name in params)
    kernel = params[name]
    wide = wide_dtype(kernel.dtype)
    bias = params.get("bias", jnp.zeros(kernel.shape[-1:], kernel.dtype))
    norm, stats = jax.tree.map(lambda leaf: leaf.astype(wide), (norm, stats))
    scale, shift = _scale_and_shift(epsilon, norm, stats, jnp.zeros(kernel.shape[-1:], wide))
    return {
        **params,
        name: jnp.asarray(kernel.astype(wide) * jnp.broadcast_to(scale, kernel.shape), kernel.dtype),
        "bias": jnp.asarray(bias.astype(wide) * scale + shift, kernel.dtype),
    }


def _scale_and_shift(epsilon: float, params: Any, stats: Any, zeros: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the scale and shift per channel that `Norm` applies in inference, by running it.

    The scale is its output for 1 with mean and bias set to 0: the difference of two outputs would lose digits to a large shift.
    """
    rows = zeros[None]
    norm = Norm("batch", epsilon=epsilon)

    def apply(x: jax.Array, params: Any, stats: Any) -> jax.Array:
        y: Any = norm.apply({"params": params, "batch_stats": stats}, x, train=False)
        return y[0]

    return apply(rows + 1, _with_zeros(params, "bias"), _with_zeros(stats, "mean")), apply(rows, params, stats)


def _with_zeros(tree: Any, leaf: str) -> Any:
    """Return the tree with every leaf of that name set to 0."""
    return jax.tree_util.tree_map_with_path(lambda path, value: jnp.zeros_like(value) if path[-1].key == leaf else value, tree)
