"""The oracle of the backbones: small networks of each family at output stride 8 in NumPy, with every stride and dilation written out.

It reads the parameters of dilax by name and shares no code with it.
"""

from typing import Any

import numpy as np

RELU, RELU6, NONE = (0.0, np.inf), (0.0, 6.0), (-np.inf, np.inf)


class Units:
    """Convolution, normalisation with running statistics, and activation, given the path of the parameters.

    An activation is the limits between which it clips its input, or a function.
    """

    def __init__(self, variables: Any) -> None:
        self.params, self.stats, self.epsilon = variables["params"], variables["batch_stats"], 1e-5

    def __call__(self, x: np.ndarray, path: str, stride: int = 1, dilation: int = 1, act: Any = RELU) -> np.ndarray:
        return self.norm(self.conv(x, f"{path}/DilatedConv_0", stride, dilation), f"{path}/Norm_0", act)

    def conv(self, x: np.ndarray, path: str, stride: int = 1, dilation: int = 1) -> np.ndarray:
        return conv(x, np.asarray(at(self.params, path)["kernel"], np.float64), stride, dilation)

    def norm(self, x: np.ndarray, path: str, act: Any = RELU) -> Any:
        norm, running = at(self.params, path)["BatchNorm_0"], at(self.stats, path)["BatchNorm_0"]
        y = (x - running["mean"]) / np.sqrt(np.float64(running["var"]) + self.epsilon) * norm["scale"] + norm["bias"]
        return act(y) if callable(act) else np.clip(y, *act)

    def excite(self, x: np.ndarray, path: str, step: int, act: Any, gate: Any) -> np.ndarray:
        """Squeeze-and-excitation, by the means over every `step`-th sample."""
        first, second = (at(self.params, f"{path}/excite/Dense_{i}") for i in range(2))
        hidden = x[:, ::step, ::step].mean((1, 2)) @ np.asarray(first["kernel"], np.float64) + first["bias"]
        hidden = act(hidden) if callable(act) else np.clip(hidden, *act)
        return x * gate(hidden @ second["kernel"] + second["bias"])[:, None, None]


def at(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x / 6 + 0.5, 0, 1)


def hard_silu(x: np.ndarray) -> np.ndarray:
    return x * hard_sigmoid(x)


def shifted(x: np.ndarray, pad: int, fill: float, stride: int, dilation: int, taps: int) -> Any:
    """Yield each tap's index and the samples that it reads for all outputs."""
    size = [n + 2 * pad - (taps - 1) * dilation for n in x.shape[1:3]]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    for i in range(taps):
        for j in range(taps):
            yield (i, j), x[:, i * dilation : i * dilation + size[0] : stride, j * dilation : j * dilation + size[1] : stride]


def conv(x: np.ndarray, kernel: np.ndarray, stride: int, dilation: int) -> Any:
    """Dense convolution, or depthwise if the kernel has one input channel, padded by dilation * (taps - 1) // 2."""
    taps = kernel.shape[0]
    windows = shifted(x, dilation * (taps - 1) // 2, 0.0, stride, dilation, taps)
    depthwise = kernel.shape[2] == 1 and kernel.shape[3] == x.shape[3]
    return sum(samples * kernel[t][0] if depthwise else samples @ kernel[t] for t, samples in windows)


def basic(u: Units, x: np.ndarray, name: str, stride: int, first: int, second: int, shortcut: str = "identity") -> np.ndarray:
    y = u(u(x, f"{name}/conv1", stride, first), f"{name}/conv2", 1, second, NONE)
    if shortcut == "project":
        y = y + u(x, f"{name}/shortcut", stride, act=NONE)
    return np.maximum(y + x if shortcut == "identity" else y, 0)


def bottleneck(u: Units, x: np.ndarray, name: str, stride: int, dilation: int, shortcut: str = "identity") -> np.ndarray:
    return np.maximum(branch(u, x, name, stride, dilation) + shortcut_of(u, x, name, stride, shortcut), 0)


def branch(u: Units, x: np.ndarray, name: str, stride: int, dilation: int) -> np.ndarray:
    return u(u(u(x, f"{name}/conv1"), f"{name}/conv2", stride, dilation), f"{name}/conv3", act=NONE)


def shortcut_of(u: Units, x: np.ndarray, name: str, stride: int, shortcut: str) -> np.ndarray:
    return u(x, f"{name}/shortcut", stride, act=NONE) if shortcut == "project" else x


def stem_and_pool(u: Units, x: np.ndarray) -> np.ndarray:
    return np.max([samples for _, samples in shifted(u(x, "stem", 2), 1, -np.inf, 2, 1, 3)], axis=0)


def resnet18(u: Units, x: np.ndarray) -> list[np.ndarray]:
    """Blocks (1, 1, 2, 3)."""
    one = basic(u, stem_and_pool(u, x), "layer1_block0", 1, 1, 1)
    two = basic(u, one, "layer2_block0", 2, 1, 1, "project")
    three = basic(u, basic(u, two, "layer3_block0", 1, 1, 2, "project"), "layer3_block1", 1, 2, 2)
    four = basic(u, basic(u, three, "layer4_block0", 1, 2, 4, "project"), "layer4_block1", 1, 4, 4)
    return [one, two, three, basic(u, four, "layer4_block2", 1, 4, 4)]


def resnet50(u: Units, x: np.ndarray) -> list[np.ndarray]:
    """Blocks (1, 1, 2, 3), multi_grid (1, 2, 4)."""
    one = bottleneck(u, stem_and_pool(u, x), "layer1_block0", 1, 1, "project")
    two = bottleneck(u, one, "layer2_block0", 2, 1, "project")
    three = bottleneck(u, bottleneck(u, two, "layer3_block0", 1, 1, "project"), "layer3_block1", 1, 2)
    four = bottleneck(u, bottleneck(u, three, "layer4_block0", 1, 2, "project"), "layer4_block1", 1, 8)
    return [one, two, three, bottleneck(u, four, "layer4_block2", 1, 16)]


def drn_c(u: Units, x: np.ndarray) -> list[np.ndarray]:
    """Blocks (1, 1, 1, 1, 1, 2, 2, 1), multi_grid (1, 3)."""
    x = basic(u, basic(u, u(x, "stem"), "layer1_block0", 1, 1, 1), "layer2_block0", 2, 1, 1, "project")
    three = basic(u, x, "layer3_block0", 2, 1, 1, "project")
    four = basic(u, three, "layer4_block0", 2, 1, 1, "project")
    five = basic(u, four, "layer5_block0", 1, 2, 2, "project")
    six = basic(u, basic(u, five, "layer6_block0", 1, 4, 4, "project"), "layer6_block1", 1, 12, 12)
    seven = basic(u, basic(u, six, "layer7_block0", 1, 2, 2, "none"), "layer7_block1", 1, 2, 2, "none")
    return [three, four, five, six, seven, basic(u, seven, "layer8_block0", 1, 1, 1, "none")]


def drn_d(u: Units, x: np.ndarray) -> list[np.ndarray]:
    """Blocks (1, 1, 1, 1, 1, 2, 2, 1)."""
    x = u(u(u(x, "stem"), "layer1_conv0"), "layer2_conv0", 2)
    three = bottleneck(u, x, "layer3_block0", 2, 1, "project")
    four = bottleneck(u, three, "layer4_block0", 2, 1, "project")
    five = bottleneck(u, four, "layer5_block0", 1, 2, "project")
    six = bottleneck(u, bottleneck(u, five, "layer6_block0", 1, 4, "project"), "layer6_block1", 1, 4)
    seven = u(u(six, "layer7_conv0", 1, 2), "layer7_conv1", 1, 2)
    return [three, four, five, six, seven, u(seven, "layer8_conv0")]


def inverted(u: Units, x: np.ndarray, name: str, stride: int, dilation: int, residual: bool = False) -> np.ndarray:
    y = x if name == "block1" else u(x, f"{name}/expand", act=RELU6)
    y = u(u(y, f"{name}/depthwise", stride, dilation, RELU6), f"{name}/project", act=NONE)
    return y + x if residual else y


def mobilenet(u: Units, x: np.ndarray) -> list[np.ndarray]:
    """Blocks (1, 1, 2, 1, 1, 2, 1), multi_grid (2, 1, 3); the widths of blocks 4 and 5 are equal."""
    one = inverted(u, inverted(u, u(x, "stem", 2, act=RELU6), "block1", 1, 1), "block2", 2, 1)
    two = inverted(u, inverted(u, one, "block3", 2, 1), "block4", 1, 1, True)
    three = inverted(u, inverted(u, two, "block5", 1, 1), "block6", 1, 2)
    four = inverted(u, inverted(u, three, "block7", 1, 2 * 2), "block8", 1, 4 * 1, True)
    return [one, two, three, inverted(u, four, "block9", 1, 4 * 3, True)]


def separable(u: Units, x: np.ndarray, name: str, stride: int, dilations: tuple[int, int, int], shortcut: str) -> np.ndarray:
    y = x
    for i, dilation in enumerate(dilations, start=1):
        step = stride if i == 3 else 1
        if shortcut == "none":
            y = u(u(y, f"{name}/depthwise{i}", step, dilation), f"{name}/pointwise{i}")
        else:
            y = u(u(np.maximum(y, 0), f"{name}/depthwise{i}", step, dilation, NONE), f"{name}/pointwise{i}", act=NONE)
    if shortcut == "project":
        return y + u(x, f"{name}/shortcut", stride, act=NONE)
    return y if shortcut == "none" else y + x


def xception(u: Units, x: np.ndarray) -> list[np.ndarray]:
    """One middle block, multi_grid (1, 2, 3)."""
    one = separable(u, u(u(x, "stem1", 2), "stem2"), "entry1", 2, (1, 1, 1), "project")
    two = separable(u, one, "entry2", 2, (1, 1, 1), "project")
    middle = separable(u, separable(u, two, "entry3", 1, (1, 1, 1), "project"), "middle1", 1, (2, 2, 2), "identity")
    four = separable(u, separable(u, middle, "exit1", 1, (2, 2, 2), "project"), "exit2", 1, (4, 8, 12), "none")
    return [one, two, middle, four]


def excited_bottleneck(u: Units, x: np.ndarray, name: str, stride: int, dilation: int, step: int, shortcut: str) -> np.ndarray:
    y = u.excite(branch(u, x, name, stride, dilation), name, step, RELU, sigmoid)
    return np.maximum(y + shortcut_of(u, x, name, stride, shortcut), 0)


def seresnet50(u: Units, x: np.ndarray) -> list[np.ndarray]:
    """Blocks (1, 1, 2, 1)."""
    one = excited_bottleneck(u, stem_and_pool(u, x), "layer1_block0", 1, 1, 1, "project")
    two = excited_bottleneck(u, one, "layer2_block0", 2, 1, 1, "project")
    three = excited_bottleneck(u, two, "layer3_block0", 1, 1, 2, "project")
    three = excited_bottleneck(u, three, "layer3_block1", 1, 2, 2, "identity")
    return [one, two, three, excited_bottleneck(u, three, "layer4_block0", 1, 2, 4, "project")]


def mobilenet_v3(u: Units, x: np.ndarray) -> list[np.ndarray]:
    """Blocks 1 to 7 with strides (1, 2, 2, 1, 2, 2, 1), ReLU in 4, gates in 3, 4, 6 and 7, multi_grid (1, 3)."""
    u.epsilon = 1e-3

    def block(x: np.ndarray, number: int, stride: int = 1, dilation: int = 1, step: int = 0, residual: bool = False) -> np.ndarray:
        name, act = f"block{number}", RELU if number <= 4 else hard_silu
        y = u(u(x, f"{name}/expand", act=act) if number > 1 else x, f"{name}/depthwise", stride, dilation, act)
        y = u(u.excite(y, name, step, RELU, hard_sigmoid) if step else y, f"{name}/project", act=NONE)
        return y + x if residual else y

    one = block(block(u(x, "stem", 2, act=hard_silu), 1, residual=True), 2, 2)
    two = block(block(one, 3, 2, step=1), 4, step=1, residual=True)
    three = block(two, 5)
    return [one, two, three, block(block(three, 6, 1, 2, step=4), 7, 1, 3 * 4, step=4, residual=True)]


def efficientnet(u: Units, x: np.ndarray) -> list[np.ndarray]:
    """Blocks (1, 1, 1, 2, 1, 2, 1), multi_grid (1, 2); the widths of stages 3 and 4, and of 5 and 6, are equal."""

    def block(x: np.ndarray, name: str, stride: int = 1, dilation: int = 1, step: int = 1, residual: bool = False) -> np.ndarray:
        y = u(x, f"{name}/expand", act=silu) if name[5] != "1" else x
        y = u.excite(u(y, f"{name}/depthwise", stride, dilation, silu), name, step, silu, sigmoid)
        y = u(y, f"{name}/project", act=NONE)
        return y + x if residual else y

    one = block(block(u(x, "stem", 2, act=silu), "stage1_block0"), "stage2_block0", 2)
    two = block(one, "stage3_block0", 2)
    four = block(block(two, "stage4_block0", 1, 1, 2), "stage4_block1", 1, 2, 2, True)
    three = block(four, "stage5_block0", 1, 2, 2)
    six = block(block(three, "stage6_block0", 1, 2, 4), "stage6_block1", 1, 4 * 2, 4, True)
    return [one, two, three, block(six, "stage7_block0", 1, 4, 4)]


def densenet(u: Units, x: np.ndarray) -> list[np.ndarray]:
    """Blocks (1, 2, 1, 2), multi_grid (1, 3)."""

    def dense(x: np.ndarray, number: int, *dilations: int) -> np.ndarray:
        for i, dilation in enumerate(dilations, start=1):
            name = f"block{number}_layer{i}"
            y = u.conv(u(u.norm(x, f"{name}/norm"), f"{name}/reduce"), f"{name}/conv", 1, dilation)
            x = np.concatenate([x, y], -1)
        return u.norm(x, f"block{number}_norm")

    one = raw = dense(stem_and_pool(u, x), 1, 1)
    raw = u.conv(one, "transition1")[:, : one.shape[1] // 2 * 2, : one.shape[2] // 2 * 2]
    two = dense(np.mean([raw[:, i::2, j::2] for i in range(2) for j in range(2)], axis=0), 2, 1, 1)
    three = dense(averaged(u.conv(two, "transition2"), 1), 3, 2)
    return [one, two, three, dense(averaged(u.conv(three, "transition3"), 2), 4, 4, 3 * 4)]


def averaged(x: np.ndarray, step: int) -> np.ndarray:
    """Means of pairs `step` apart, along both axes; positions on the coarser grid that have no partner there are dropped."""
    for axis in (1, 2):
        x = np.moveaxis(x, axis, 0)
        size, whole = len(x), len(x[::step]) // 2 * 2 * step
        x = np.stack([(x[i] + x[i + step]) / 2 if i + step < size else x[i] for i in range(min(size, whole))])
        x = np.moveaxis(x, 0, axis)
    return x
