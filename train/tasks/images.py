"""What tasks on images share: image files to predict from, examples to show, feature maps."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

import dilax.summary
from dilax import Inference, UserError, plots
from dilax.blocks import ConvNormAct
from train.data import Source
from train.data.source import files_of, read
from train.tasks.base import Report


def check_colours(config: ConfigDict) -> None:
    """Refuse data.mean and data.std that are not colours from 0 to 1."""
    for key in ("mean", "std"):
        values = config.data[key]
        limits = "from 0 to 1" if key == "mean" else "above 0, up to 1"
        if not all(isinstance(value, int | float) and 0 <= value <= 1 and (key == "mean" or value) for value in values):
            raise UserError(
                f"config.data.{key}={tuple(values)} must hold numbers {limits}, one per channel, or be (); divide values of 0 to 255."
            )


def check_sizes(config: ConfigDict, key: str, axes: Sequence[str], empty: str) -> None:
    """Refuse the value of a key that holds neither a number of pixels for each of some axes nor (), which means what `empty` says."""
    section, _, name = key.partition(".")
    sizes = tuple(config[section][name])
    if sizes and (len(sizes) != len(axes) or not all(isinstance(size, int) and size >= 1 for size in sizes)):
        raise UserError(f"config.{key}={sizes} must be ({', '.join(axes)}) in pixels, or () {empty}.")


def check_channels(config: ConfigDict, channels: int) -> None:
    """Refuse data.mean and data.std that do not fit the channels of the images."""
    for key in ("mean", "std"):
        if len(config.data[key]) not in (0, 1, channels):
            raise UserError(
                f"config.data.{key}={tuple(config.data[key])} must hold one number, or one for each of the {channels} channels."
            )


def spread(source: Source, most: int) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the positions of up to `most` records, spread over a split, and the records."""
    chosen = np.linspace(0, len(source) - 1, min(most, len(source))).astype(int)
    return chosen.tolist(), read(source, chosen)


def name_of(source: Source, position: int) -> str:
    """Return the name of the file of a record, or its position in the split if the source does not know it."""
    files = files_of(source)
    return files[position] if files else f"image {position}"


def shorten(name: str, length: int = 24) -> str:
    """Return a file name without its folders, and without its beginning if it is longer than `length`: files often differ at the end."""
    name = pathlib.PurePath(name).name
    return name if len(name) <= length else "\N{HORIZONTAL ELLIPSIS}" + name[1 - length :]


def in_parts(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray, size: int) -> np.ndarray:
    """Apply a function to `size` images at a time."""
    return np.concatenate([function(images[i : i + size]) for i in range(0, len(images), size)])


def feature_map_pictures(inference: Inference, images: np.ndarray) -> dict[str, tuple[str, Any]]:
    """Return the picture of the feature maps of one image (1, *space, channels); nothing if no layer has any to show.

    Of a volume, the slice in the middle of its last axis is shown.
    """
    maps = feature_maps(inference, images)
    if not maps:
        return {}
    shown = {name: middle_slice(values) for name, values in maps.items()}
    return {"Feature maps, the first layer of each dilation": ("feature_maps", plots.feature_maps(shown, middle_slice(images[0])))}


def middle_slice(image: np.ndarray) -> np.ndarray:
    """Return an image (height, width, channels) unchanged; of a volume (x, y, z, channels) the slice in the middle of its last axis."""
    return image if image.ndim == 3 else image[:, :, image.shape[2] // 2]


def feature_maps(inference: Inference, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return {"layer, dilation d": (*space, channels)} of the first layer of each dilation, in the order they run."""
    maps: dict[Any, tuple[str, np.ndarray]] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        layer = context.module
        if isinstance(layer, ConvNormAct) and context.method_name == "__call__" and layer.dilation not in maps:
            maps[layer.dilation] = "/".join(layer.path), np.asarray(y[0], np.float32)
        return y

    with nn.intercept_methods(record):
        arguments: dict[str, Any] = inference.arguments(jax.numpy.asarray(images))
        inference.model.apply(inference.variables, **arguments, train=False)
    return {f"{path}, dilation {dilation}": values for dilation, (path, values) in maps.items()}


def kernel_pictures(inference: Inference) -> dict[str, tuple[str, Any]]:
    """Return the picture of the kernels of the first convolution; nothing if there is none."""
    kernel = first_kernel(inference)
    return {} if kernel is None else {"Kernels of the first layer": ("first_kernels", plots.kernels(kernel))}


def first_kernel(inference: Inference) -> np.ndarray | None:
    """Return the kernel (*window, c_in, c_out) of the first convolution that runs, or None."""
    dtype = getattr(inference.model, "dtype", None) or "float32"
    example = jax.ShapeDtypeStruct((1, *inference.spec.input_shape), jax.numpy.dtype(dtype))
    for layer in dilax.summary.layers(inference.model, example):
        node = inference.variables["params"]
        for name in layer.path:
            node = node[name]
        for name, leaf in node.items():
            if "kernel" in name and leaf.ndim > 2:
                return np.asarray(leaf)
    return None


def image_report(pictures: dict[str, tuple[str, Any]], inference: Inference, images: np.ndarray, sections: Sequence[str] = ()) -> Report:
    """Return a report with feature maps after the other pictures, sections, and the first images for TensorBoard."""
    shown = np.stack([middle_slice(image) for image in images[:16]])
    return Report({**pictures, **feature_map_pictures(inference, images[:1])}, sections, images=shown)


def most_telling(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the order to show examples in: mistakes, the most confident first, then right answers, the least confident first."""
    confidence, wrong = probabilities.max(1), probabilities.argmax(1) != labels
    return np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))
