"""The networks of `benchmarks.train`, built with torch, and their training steps."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.networks import CLASSES, MOMENTUM, RATE, Network, Stage, Step, Values


def torch_step(network: Network, values: Values, *, as_image: bool, compiled: bool) -> Step:
    """Return the training step of the network in torch; `as_image` treats a sequence as an image of height 1, for channels_last.

    A network with strides is trained on mirrored inputs with mirrored kernels: see `mirrored`.
    """
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(common.cores())
    flip = mirrored(network)
    x, labels = (torch.from_numpy(array) for array in network.data())
    x = torch.movedim(x[:, None] if as_image else x, -1, 1)
    x = x.flip(*range(2, x.ndim)) if flip else x
    model = torch_network(network, as_image=as_image)
    load(model.parameters(), values.values(), flip=flip)
    if x.ndim == 4:
        x, model = x.contiguous(memory_format=torch.channels_last), model.to(memory_format=torch.channels_last)
    else:
        x = x.contiguous()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    labels = labels.long()

    def loss_fn(x: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x), labels)

    run = torch.compile(loss_fn) if compiled else loss_fn

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = run(x, labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def load(tensors: Iterable[Any], values: Iterable[np.ndarray], *, flip: bool) -> None:
    """Copy values of Flax into tensors of torch in the same order, as the mirror image if `flip`."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            value = np.flip(value, tuple(range(value.ndim - 2))) if flip and value.ndim > 2 else value
            order = (-1, -2, *range(value.ndim - 2)) if value.ndim > 1 else (0,)
            tensor.copy_(torch.from_numpy(value.transpose(order).copy()).reshape(tensor.shape))


def mirrored(network: Network) -> bool:
    """Return whether torch runs the network as its mirror image, which gives the same losses.

    torch pads a layer equally on both sides; with a stride, JAX's "SAME" pads less before the first sample than after the last one. In the
    mirror image, the windows of torch are those of JAX, and no padding in an operation of its own costs torch time.
    """
    return any(stage.stride > 1 for stage in network.stages)


def torch_network(network: Network, *, as_image: bool) -> Any:
    """Return the network as a `torch.nn.Module` in training mode."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn as tnn  # pyright: ignore[reportMissingImports]

    rank = 2 if as_image else len(network.shape) - 1
    conv, norm, pool, mean = (
        (tnn.Conv1d, tnn.BatchNorm1d, tnn.MaxPool1d, tnn.AdaptiveAvgPool1d)
        if rank == 1
        else (tnn.Conv2d, tnn.BatchNorm2d, tnn.MaxPool2d, tnn.AdaptiveAvgPool2d)
    )

    def layer(c_in: int, stage: Stage, separable: bool = False, relu: bool = True) -> list[Any]:
        """Convolution, normalisation and activation of a stage."""
        causal, span = len(stage.kernel) == 1, stage.dilation * (stage.kernel[-1] - 1)
        per_axis: Any = (lambda n: (1, n)) if as_image else (lambda n: n)
        shared: dict[str, Any] = dict(
            kernel_size=per_axis(stage.kernel[-1]),
            stride=per_axis(stage.stride),
            dilation=per_axis(stage.dilation),
            padding=0 if causal else span // 2,
            bias=False,
        )
        pads = [tnn.ZeroPad2d((span, 0, 0, 0)) if as_image else tnn.ConstantPad1d((span, 0), 0.0)] if causal and span else []
        if separable:
            convs = [conv(c_in, c_in, groups=c_in, **shared), conv(c_in, stage.features, 1, bias=False)]
        else:
            convs = [conv(c_in, stage.features, **shared)]
        return [*pads, *convs, norm(stage.features), *([tnn.ReLU(inplace=True)] if relu else [])]

    class Residual(tnn.Module):
        def __init__(self, c_in: int, stage: Stage):
            super().__init__()
            second = dataclasses.replace(stage, stride=1)
            branch = layer(c_in, stage, separable=True) + layer(stage.features, second, separable=True, relu=False)
            self.branch, self.shortcut, self.stride = tnn.Sequential(*branch), tnn.Sequential(), stage.stride
            if c_in != stage.features or stage.stride > 1:
                projection = Stage(stage.features, kernel=(1,) * len(stage.kernel))
                self.shortcut = tnn.Sequential(*layer(c_in, projection, relu=False))

        def forward(self, x: Any) -> Any:
            # The samples that a stride takes are counted from the other end of the mirror image.
            strided = [slice((size - 1) % self.stride, None, self.stride) for size in x.shape[2:]]
            return torch.relu(self.branch(x) + self.shortcut(x[(slice(None), slice(None), *strided)]))

    layers, c_in = [], network.shape[-1]
    for stage in network.stages:
        layers += [Residual(c_in, stage)] if stage.residual else layer(c_in, stage)
        layers += [pool(stage.pool)] if stage.pool > 1 else []
        c_in = stage.features
    return tnn.Sequential(*layers, mean(1), tnn.Flatten(), tnn.Linear(c_in, CLASSES))
