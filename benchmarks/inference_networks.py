"""The networks of `benchmarks.inference`, as models of dilax and of torch with the same random parameters and statistics."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import dilax
from benchmarks import networks, torch_networks
from dilax.models import MeshNet, SeparableCNN

PATH = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Inference:
    """A network and its input.

    Attributes:
        name: Its name.
        model: The model of dilax.
        shape: Shape of the input, (batch, *space, channels).
        torch: Function that makes the same network in torch.
        mirrored: Whether the network in torch is the mirror image; see `torch_networks.mirrored`.
        not_run: Contenders that would take too long.
    """

    name: str
    model: nn.Module
    shape: tuple[int, ...]
    torch: Callable[[], Any]
    mirrored: bool = False
    not_run: tuple[str, ...] = ()

    def data(self) -> np.ndarray:
        """Return a random input."""
        return np.random.default_rng(0).standard_normal(self.shape, np.float32)

    def variables(self) -> dict[PATH, np.ndarray]:
        """Return random parameters and running statistics by path, in the order in which the model creates them."""
        paths: list[PATH] = []

        def init(key: jax.Array, x: jax.Array) -> Any:
            variables = self.model.init(key, x, train=False)
            paths.extend(flatten_dict(variables))  # in here, since eval_shape returns sorted dictionaries
            return variables

        shapes: Any = flatten_dict(cast(Any, jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(self.shape, np.float32))))
        rng = np.random.default_rng(1)
        return {path: _random_variable(rng, path[-1], shapes[path].shape) for path in paths}

    def torch_model(self) -> Any:
        """Return the network in torch, with the same parameters and statistics, in inference mode."""
        model, values = self.torch(), self.variables()
        statistics = [buffer for name, buffer in model.named_buffers() if not name.endswith("num_batches_tracked")]
        for tensors, collection in ((model.parameters(), "params"), (statistics, "batch_stats")):
            own = [value for path, value in values.items() if path[0] == collection]
            torch_networks.load(tensors, own, flip=self.mirrored)
        return model.eval()


def nested(variables: dict[PATH, np.ndarray]) -> dict[str, Any]:
    """Return variables as Flax takes them."""
    return unflatten_dict(variables)


def _random_variable(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == "var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    gain = math.sqrt(2) if len(shape) > 1 else 1  # a ReLU halves the variance
    return np.float32(gain) * networks.random_parameter(rng, name, shape)


def torch_meshnet(model: MeshNet) -> Any:
    """Return a `MeshNet` in torch."""
    from torch import nn as tnn  # pyright: ignore[reportMissingImports]

    layers, c_in = [], 1
    for d in model.dilations:
        layers += [tnn.Conv3d(c_in, model.features, 3, dilation=d, padding=d, bias=False), tnn.BatchNorm3d(model.features)]
        layers += [tnn.ReLU(inplace=True)]
        c_in = model.features
    return tnn.Sequential(*layers, tnn.Conv3d(c_in, model.num_classes, 1))


def torch_tcn(model: dilax.models.TCN, channels: int) -> Any:
    """Return a `dilax.models.TCN` without weight normalisation in torch."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn as tnn  # pyright: ignore[reportMissingImports]

    class Block(tnn.Module):
        def __init__(self, c_in: int, features: int, dilation: int):
            super().__init__()
            self.span = (model.kernel_size - 1) * dilation
            self.conv1 = tnn.Conv1d(c_in, features, model.kernel_size, dilation=dilation)
            self.conv2 = tnn.Conv1d(features, features, model.kernel_size, dilation=dilation)
            self.shortcut = tnn.Conv1d(c_in, features, 1) if c_in != features else tnn.Identity()

        def forward(self, x: Any) -> Any:
            y = x
            for conv in (self.conv1, self.conv2):
                y = torch.relu(conv(tnn.functional.pad(y, (self.span, 0))))
            return torch.relu(self.shortcut(x) + y)

    pairs = zip((channels, *model.features), model.features)
    blocks = [Block(c_in, features, 2**i) for i, (c_in, features) in enumerate(pairs)]
    return tnn.Sequential(*blocks, tnn.Conv1d(model.features[-1], model.out_features, 1))


def torch_deeplab(num_classes: int) -> Any:
    """Return torchvision's DeepLabV3, whose modules are in the order of those of dilax, as a module that returns the logits alone."""
    import torch  # pyright: ignore[reportMissingImports]
    from torchvision.models import segmentation  # pyright: ignore[reportMissingImports]

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=False)

        def forward(self, x: Any) -> Any:
            return self.model(x)["out"]

    return Logits()


def meshnet(size: int, **options: Any) -> Inference:
    """Return a MeshNet of volumes of that size, of few channels and with larger dilations than those of the paper."""
    model = MeshNet(3, features=5, dilations=(1, 1, 1, 2, 4, 8, 16, 8, 4, 2, 1))
    return Inference(f"meshnet_{size}", model, (1, size, size, size, 1), functools.partial(torch_meshnet, model), **options)


def separable_cnn(batch: int) -> Inference:
    """Return the separable network."""
    model = cast(SeparableCNN, dilax.models.create("separable_cnn", num_classes=networks.CLASSES))
    network = networks.separable("separable_cnn", model, batch)
    make = functools.partial(torch_networks.torch_network, network, as_image=False)
    return Inference(network.name, model, (batch, *network.shape), make, mirrored=torch_networks.mirrored(network))


def tcn(batch: int, steps: int, channels: int) -> Inference:
    """Return the TCN without weight normalisation, which is constant in inference."""
    model = cast(dilax.models.TCN, dilax.models.create("tcn", out_features=10, weight_norm=False))
    return Inference("tcn", model, (batch, steps, channels), functools.partial(torch_tcn, model, channels))


def deeplab(size: int) -> Inference:
    """Return DeepLabV3 on a ResNet-50."""
    model = dilax.models.create("deeplabv3_resnet50", num_classes=21)
    return Inference("deeplabv3_resnet50", model, (1, size, size, 3), functools.partial(torch_deeplab, 21))


NETWORKS = (
    separable_cnn(64),
    tcn(8, 1024, 16),
    deeplab(256),
    meshnet(128),
    meshnet(256, not_run=("lax",)),  # eight times the work of the smaller one, which takes minutes
)
