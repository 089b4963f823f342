"""Load published weights of other libraries: the supported sources, and the model that a file of weights belongs to."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dilax import arguments, models
from dilax.errors import UserError, did_you_mean, shown
from dilax.models import DRNS, deeplab, drn, fcn, fcos, resnet, retinanet
from dilax.state_dicts import Rules, convert, read_state_dict, target

SOURCES: dict[str, dict[str, Rules]] = {
    "torchvision": {
        **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), resnet.RULES),
        **dict.fromkeys(("fcn_resnet50", "fcn_resnet101"), fcn.RULES),
        **dict.fromkeys(("deeplabv3_resnet50", "deeplabv3_resnet101"), deeplab.RULES),
        "fcos_resnet50_fpn": fcos.RULES,
        "retinanet_resnet50_fpn": retinanet.RULES,
    },
    "drn": {
        **dict.fromkeys(DRNS, drn.RULES),
        **{f"{name}_segmenter": drn.C_SEGMENTER_RULES if "_c_" in name else drn.D_SEGMENTER_RULES for name in DRNS},
    },
}
# Mean and standard deviation per RGB channel, for images in 0..1, with which these networks were trained.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LOGITS = ("head", "logits", "classifier/logits")


def load_weights(source: str, path: str | pathlib.Path, *, fields: Mapping[str, Any] | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Create a model from a file of weights published by another library.

    Args:
        source: The library and the model, such as "torchvision:deeplabv3_resnet50" or "drn:drn_d_22"; `SOURCES` lists all of them. The
            weights of "drn" are those of its authors (fyu/drn).
        path: The file, in any format that `dilax.state_dicts.read_state_dict` reads; "~" is expanded.
        fields: Attributes of the model by name. The number of classes, and whether there is an auxiliary head, are read from the file.

    Returns:
        The model and its variables, NumPy arrays in float32. It expects images as its library does: RGB in 0..1, from which `IMAGENET_MEAN`
        is subtracted before dividing by `IMAGENET_STD` (for the segmenters of "drn", the mean and deviation of their own data).

    Raises:
        UserError: if the source is not supported, the file cannot be read, or it holds the weights of another model, in which case every
            array that does not fit is listed.

    Example:
        >>> model, variables = load_weights("torchvision:resnet50", "resnet50.pth")  # doctest: +SKIP
    """
    path = arguments.path("load_weights", "path", path)
    rules, state, name = _rules(source), read_state_dict(path), source.partition(":")[2]
    if fields is not None and not isinstance(fields, Mapping):
        raise UserError(f"load_weights: fields={shown(fields)} is not a dict from names to values; give one, or None.")
    known = {**fields_of(source, state), **(fields or {})}
    model = models.create(name, **{key: tuple(value) if isinstance(value, list) else value for key, value in known.items()})
    try:
        return model, convert(state, rules, shapes_of(model), description=f"{path}, read as {source},")
    except UserError as error:
        if others := [other for other in _all_sources() if other != source and _fits(other, state)]:
            raise UserError(f"{path} holds the weights of {' or '.join(others)}, not of {source}; give that source instead.") from error
        raise


def fields_of(source: str, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the attributes of a model that follow from its state dict: num_classes and, if it has an auxiliary head, aux_head."""
    rules = _rules(source)
    fields: dict[str, Any] = {}
    for name, array in state.items():
        path = target(name, rules)
        if path in _LOGITS and name.endswith(".bias") and array.ndim == 1:
            fields["num_classes"] = int(array.shape[0])
        elif path == "class_head/logits" and name.endswith(".bias"):
            fields["num_classes"] = int(array.shape[0]) // (retinanet.ANCHORS if rules is retinanet.RULES else 1)
        elif path and path.startswith("aux_classifier/"):
            fields["aux_head"] = True
    return fields


@functools.cache
def shapes_of(model: nn.Module) -> Any:
    """Return the shapes of a model's variables, which do not depend on the size of the image."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x)


def _fits(source: str, state: Mapping[str, np.ndarray]) -> bool:
    """Return whether a state dict is that of a source, with any number of classes."""
    if any(target(name, _rules(source)) is None for name in state):
        return False
    try:
        convert(state, _rules(source), shapes_of(models.create(source.partition(":")[2], **fields_of(source, state))))
    except UserError:
        return False
    return True


def _all_sources() -> list[str]:
    return [f"{library}:{name}" for library, known in SOURCES.items() for name in known]


def _rules(source: str) -> Rules:
    library, _, name = str(source).partition(":")
    if library not in SOURCES or name not in SOURCES[library]:
        known = _all_sources()
        hint = did_you_mean(str(source), known)
        raise UserError(f"load_weights: source={shown(source)} is unknown; use one of {', '.join(known)}.{hint}")
    return SOURCES[library][name]
