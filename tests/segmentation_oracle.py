"""The oracle of the segmentation heads: the small networks of tests/test_segmentation_models.py, written out in NumPy.

It reads the parameters of dilax by name and shares no code with it. Heads start from the feature maps of a backbone, which has its own
oracle; the U-Net starts from the image.
"""

import itertools
import math

import numpy as np
from backbone_oracle import RELU, Units, conv, shifted


class Layers(Units):
    """`Units`, extended by separable convolutions and by 1x1 convolutions without normalisation."""

    def __call__(self, x: np.ndarray, path: str, stride: int = 1, dilation: int = 1, act: tuple[float, float] = RELU) -> np.ndarray:
        params, stats = self.params, self.stats
        for name in path.split("/"):
            params, stats = params[name], stats[name]
        if "DilatedConv_0" in params:
            return super().__call__(x, path, stride, dilation, act)
        kernels = params["SeparableConv_0"]
        y = (
            conv(x, np.asarray(kernels["depthwise_kernel"], np.float64), stride, dilation)
            @ np.asarray(kernels["pointwise_kernel"], np.float64)[0, 0]
        )
        norm, running = params["Norm_0"]["BatchNorm_0"], stats["Norm_0"]["BatchNorm_0"]
        y = (y - running["mean"]) / np.sqrt(np.float64(running["var"]) + 1e-5) * norm["scale"] + norm["bias"]
        return np.clip(y, *act)

    def plain(self, x: np.ndarray, path: str) -> np.ndarray:
        params = self.params
        for name in path.split("/"):
            params = params[name]
        y = x @ np.asarray(params["kernel"], np.float64)[0, 0]
        return y + params["bias"] if "bias" in params else y


def resized(x: np.ndarray, size: tuple[int, ...], method: str = "bilinear", align_corners: bool = False) -> np.ndarray:
    """Resize by the definition, one output at a time."""
    y = np.zeros((x.shape[0], *size, x.shape[-1]))
    for output in itertools.product(*map(range, size)):
        corners = []
        for i, new, old in zip(output, size, x.shape[1:-1]):
            source = i * (old - 1) / max(new - 1, 1) if align_corners else (i + 0.5) * old / new - 0.5
            if method == "nearest":
                corners.append([(min(math.floor(source + 0.5), old - 1), 1.0)])
            else:
                source = min(max(source, 0), old - 1)
                before = math.floor(source)
                corners.append([(before, 1 - source + before), (min(before + 1, old - 1), source - before)])
        for corner in itertools.product(*corners):
            y[:, *output] += math.prod(weight for _, weight in corner) * x[:, *(index for index, _ in corner)]
    return y


def mean(x: np.ndarray) -> np.ndarray:
    return x.mean((1, 2), keepdims=True)


def segmenter(u: Layers, maps: list[np.ndarray], stride: int) -> np.ndarray:
    return u.plain(maps[-1], "logits")


def fcn(u: Layers, maps: list[np.ndarray], stride: int) -> np.ndarray:
    return u.plain(u(maps[-1], "classifier/conv"), "classifier/logits")


def auxiliary(u: Layers, maps: list[np.ndarray]) -> np.ndarray:
    return u.plain(u(maps[-2], "aux_classifier/conv"), "aux_classifier/logits")


def lraspp(u: Layers, maps: list[np.ndarray], stride: int) -> np.ndarray:
    gate = 1 / (1 + np.exp(-u.plain(mean(maps[-1]), "gate")))
    high = resized(u(maps[-1], "conv") * gate, maps[1].shape[1:-1])
    return u.plain(high, "logits") + u.plain(maps[1], "low_logits")


def aspp(u: Layers, x: np.ndarray, stride: int) -> np.ndarray:
    """ASPP with dilation 4 at output stride 16."""
    pooled = u(mean(x), "aspp/pooled") + np.zeros((*x.shape[:-1], 1))
    branches = [u(x, "aspp/dense"), u(x, "aspp/dilated_0", dilation={8: 8, 16: 4, 32: 2}[stride]), pooled]
    return u(np.concatenate(branches, -1), "aspp/project")


def deeplabv3(u: Layers, maps: list[np.ndarray], stride: int) -> np.ndarray:
    return u.plain(u(aspp(u, maps[-1], stride), "conv"), "logits")


def deeplabv3plus(u: Layers, maps: list[np.ndarray], stride: int) -> np.ndarray:
    y = resized(u(aspp(u, maps[-1], stride), "conv"), maps[0].shape[1:-1])
    return u.plain(u(np.concatenate([y, u(maps[0], "low")], -1), "mix"), "logits")


def pool(x: np.ndarray, stride: int, dilation: int) -> np.ndarray:
    """A window of 2 starts at the output's own sample: it has the taps of a centred window of 3, except for the first."""
    return np.max([samples for tap, samples in shifted(x, dilation, -np.inf, stride, dilation, 3) if min(tap) > 0], axis=0)


def unet(u: Layers, x: np.ndarray, stride: int) -> np.ndarray:
    """Three levels and multi_grid (1, 2), for sizes that are multiples of 4. At output stride 1, the lower levels are dilated instead."""
    step, (one, two) = {4: (2, (1, 1)), 1: (1, (2, 4))}[stride]

    def pair(x: np.ndarray, name: str, dilation: int) -> np.ndarray:
        return u(u(x, f"{name}_conv0", dilation=dilation), f"{name}_conv1", dilation=dilation)

    def concatenated(skip: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.concatenate([skip, resized(x, skip.shape[1:-1])], -1)

    level0 = pair(x, "backbone/level0", 1)
    level1 = pair(pool(level0, step, 1), "backbone/level1", one)
    level2 = pair(pool(level1, step, one), "backbone/level2", two)
    first = u(level2, "backbone/dilated_0", dilation=two)
    below = level2 + first + u(first, "backbone/dilated_1", dilation=2 * two)
    return u.plain(pair(concatenated(level0, pair(concatenated(level1, below), "up1", one)), "up0", 1), "logits")
