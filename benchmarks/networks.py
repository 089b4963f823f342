"""The networks of `benchmarks.train`: as dilax writes them, of Flax's own modules, and of torch's; and a training step of each."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from dilax.blocks import ConvNormAct
from dilax.models.cnn import DilatedCNN, SeparableCNN

CLASSES = 10
RATE = 0.01
MOMENTUM = 0.9

# Takes a training step, waits for it and returns its loss.
Step = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A dense conv-norm-relu layer and a pool; or, if residual, two separable conv-norm layers beside a short cut."""

    features: int
    dilation: int = 1
    stride: int = 1
    kernel: tuple[int, ...] = (3, 3)
    residual: bool = False
    pool: int = 1


@dataclasses.dataclass(frozen=True)
class Network:
    """One architecture: as dilax writes it, and as stages from which it is built of Flax's own modules and of torch's."""

    name: str
    model: nn.Module
    stages: tuple[Stage, ...]
    batch: int
    shape: tuple[int, ...]

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return random examples (batch, *space, channels) and labels (batch,)."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch, *self.shape)).astype(np.float32)
        return x, rng.integers(0, CLASSES, self.batch).astype(np.int32)


class CausalResidual(nn.Module):
    """x + two causal separable convolutions, each normalised."""

    features: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, time, features) to the same shape."""
        shared: dict[str, Any] = dict(kernel_size=(3,), padding="CAUSAL", dilation=self.dilation, separable=True)
        y = ConvNormAct(self.features, **shared)(x, train=train)
        return nn.relu(x + ConvNormAct(self.features, activation="none", **shared)(y, train=train))


class TCN(nn.Module):
    """A causal network of dilated separable convolutions over a sequence (Bai et al. 2018, arXiv:1803.01271), and a classifier."""

    features: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, time, channels) to logits (batch, CLASSES)."""
        x = ConvNormAct(self.features, (1,))(x, train=train)
        for dilation in self.dilations:
            x = CausalResidual(self.features, dilation)(x, train=train)
        return nn.Dense(CLASSES)(x.mean(1))


class FlaxLayer(nn.Module):
    """Convolution, normalisation and activation of Flax's own modules."""

    features: int
    kernel: tuple[int, ...]
    dilation: int = 1
    stride: int = 1
    separable: bool = False
    relu: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (batch, *space, c_in) to (batch, *space_out, features)."""
        channels, ones = x.shape[-1], (1,) * len(self.kernel)
        first: dict[str, Any] = dict(
            strides=self.stride,
            kernel_dilation=self.dilation,
            padding="CAUSAL" if len(self.kernel) == 1 else "SAME",
            use_bias=False,
        )
        if self.separable:
            x = nn.Conv(channels, self.kernel, feature_group_count=channels, **first)(x)
            x = nn.Conv(self.features, ones, use_bias=False)(x)
        else:
            x = nn.Conv(self.features, self.kernel, **first)(x)
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
        return nn.relu(x) if self.relu else x


class FlaxNetwork(nn.Module):
    """A network of Flax's own modules."""

    stages: tuple[Stage, ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map (batch, *space, channels) to logits (batch, CLASSES)."""
        del train  # always in training
        for stage in self.stages:
            x = self._residual(stage, x) if stage.residual else FlaxLayer(stage.features, stage.kernel, stage.dilation, stage.stride)(x)
            if stage.pool > 1:
                x = nn.max_pool(x, (stage.pool,) * len(stage.kernel), (stage.pool,) * len(stage.kernel))
        return nn.Dense(CLASSES)(x.mean(range(1, x.ndim - 1)))

    def _residual(self, stage: Stage, x: jax.Array) -> jax.Array:
        y = FlaxLayer(stage.features, stage.kernel, stage.dilation, stage.stride, separable=True)(x)
        y = FlaxLayer(stage.features, stage.kernel, stage.dilation, separable=True, relu=False)(y)
        if x.shape != y.shape:
            x = FlaxLayer(stage.features, (1,) * len(stage.kernel), stride=stage.stride, relu=False)(x)
        return nn.relu(x + y)


def networks(batch: int | None) -> list[Network]:
    """Return the networks that are measured, at their own batch or at the one given."""
    cnn, image = DilatedCNN(num_classes=CLASSES), (32, 32, 3)
    plain = tuple(Stage(f, dilation=d, pool=p) for f, d, p in zip(cnn.features, cnn.dilations, cnn.pools))
    tcn = TCN(64, tuple(2**i for i in range(7)))
    causal = (Stage(64, kernel=(1,)), *(Stage(64, dilation=d, kernel=(3,), residual=True) for d in tcn.dilations))
    return [
        _separable("separable_cnn_small", SeparableCNN(CLASSES, 16, features=(32, 64, 128), blocks=(1, 1, 1), dilations=(2,)), batch),
        _separable("separable_cnn", SeparableCNN(CLASSES, 32, features=(64, 128, 192), blocks=(2, 2, 2), dilations=(1, 2)), batch),
        Network("dilated_cnn", cnn, plain, batch or 128, image),
        Network("separable_tcn", tcn, causal, batch or 16, (1024, 16)),
    ]


def _separable(name: str, model: SeparableCNN, batch: int | None) -> Network:
    blocks = [(stage, block) for stage, count in enumerate(model.blocks) for block in range(count)]
    residuals = [
        Stage(
            model.features[stage],
            dilation=model.dilations[block % len(model.dilations)],
            stride=2 if stage > 0 and block == 0 else 1,
            residual=True,
        )
        for stage, block in blocks
    ]
    return Network(name, model, (Stage(model.stem_features), *residuals), batch or 128, (32, 32, 3))


# Parameters by path, in the order in which the network makes them: the same in all implementations.
Values = dict[tuple[str, ...], np.ndarray]


def initial_values(model: nn.Module, network: Network) -> tuple[Values, Any]:
    """Return random parameters of a fixed seed, and the running statistics of the start."""
    paths: list[tuple[str, ...]] = []

    def init(key: jax.Array, x: jax.Array) -> Any:
        variables = model.init(key, x, train=True)
        paths.extend(flatten_dict(variables["params"]))  # a tree that leaves a trace is sorted
        return variables

    x = jax.ShapeDtypeStruct((2, *network.shape), np.float32)
    shapes: Any = jax.eval_shape(init, jax.random.key(0), x)
    flat: dict[Any, Any] = flatten_dict(shapes["params"])
    running: dict[Any, Any] = flatten_dict(shapes["batch_stats"])
    rng = np.random.default_rng(1)
    values = {path: _random(rng, path[-1], flat[path].shape) for path in paths}
    stats = {path: np.full(leaf.shape, path[-1] == "var", np.float32) for path, leaf in running.items()}
    return values, unflatten_dict(stats)


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels that keep the variance; scales near 1 and biases near 0."""
    deviation = 0.1 if len(shape) == 1 else math.prod(shape[:-1]) ** -0.5
    return ((name == "scale") + deviation * rng.standard_normal(shape)).astype(np.float32)


def jax_step(model: nn.Module, network: Network, values: Values, stats: Any, compiled: bool = False) -> tuple[Step, str]:
    """Return the step of a Flax module; if `compiled`, compile it now and return its program's text too."""
    tx = optax.sgd(RATE, MOMENTUM)

    def update(state: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        params, stats, moments = state

        def loss_fn(params: Any) -> Any:
            logits, updates = model.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates["batch_stats"]

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, moments = tx.update(grads, moments)
        return (optax.apply_updates(params, updates), stats, moments), loss

    params, stats = jax.tree.map(jnp.array, (unflatten_dict(values), stats))
    state, (x, labels) = (params, stats, tx.init(params)), map(jnp.asarray, network.data())
    run: Any = jax.jit(update, donate_argnums=0)
    if compiled:
        run = run.lower(state, x, labels).compile()

    def step() -> float:
        nonlocal state
        state, loss = jax.block_until_ready(run(state, x, labels))
        return float(loss)

    return step, run.as_text() if compiled else ""


def torch_step(network: Network, values: Values, as_image: bool, compiled: bool) -> Step:
    """Return the step of the network in torch; `as_image` runs a sequence as an image of height 1, which channels_last needs."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(os.cpu_count() or 1)
    x, labels = (torch.from_numpy(array) for array in network.data())
    x = torch.movedim(x[:, None] if as_image else x, -1, 1)
    model = torch_network(network, as_image)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values.values(), strict=True):
            order = (-1, -2, *range(value.ndim - 2)) if value.ndim > 1 else (0,)
            parameter.copy_(torch.from_numpy(value.transpose(order).copy()).reshape(parameter.shape))
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


def torch_network(network: Network, as_image: bool) -> Any:
    """Return the network as a `torch.nn.Module`, in training mode."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn as tnn  # pyright: ignore[reportMissingImports]

    rank = 2 if as_image else len(network.shape) - 1
    conv, norm, pool, mean = (
        (tnn.Conv1d, tnn.BatchNorm1d, tnn.MaxPool1d, tnn.AdaptiveAvgPool1d)
        if rank == 1
        else (tnn.Conv2d, tnn.BatchNorm2d, tnn.MaxPool2d, tnn.AdaptiveAvgPool2d)
    )

    def layer(c_in: int, stage: Stage, separable: bool = False, relu: bool = True) -> list[Any]:
        """Convolution, normalisation and activation, after `Stage`."""
        causal, reach = len(stage.kernel) == 1, stage.dilation * (stage.kernel[-1] - 1)
        one: Any = (lambda n, rest: (rest, n)) if as_image else (lambda n, _: n)
        shared: dict[str, Any] = dict(
            kernel_size=one(stage.kernel[-1], 1),
            stride=one(stage.stride, 1),
            dilation=one(stage.dilation, 1),
            padding=0 if causal else reach // 2,
            bias=False,
        )
        pads = [tnn.ZeroPad2d((reach, 0, 0, 0)) if as_image else tnn.ConstantPad1d((reach, 0), 0.0)] if causal and reach else []
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
            self.branch, self.short = tnn.Sequential(*branch), tnn.Sequential()
            if c_in != stage.features or stage.stride > 1:
                cut = Stage(stage.features, stride=stage.stride, kernel=(1,) * len(stage.kernel))
                self.short = tnn.Sequential(*layer(c_in, cut, relu=False))

        def forward(self, x: Any) -> Any:
            return torch.relu(self.branch(x) + self.short(x))

    layers, c_in = [], network.shape[-1]
    for stage in network.stages:
        layers += [Residual(c_in, stage)] if stage.residual else layer(c_in, stage)
        layers += [pool(stage.pool)] if stage.pool > 1 else []
        c_in = stage.features
    return tnn.Sequential(*layers, mean(1), tnn.Flatten(), tnn.Linear(c_in, CLASSES))
